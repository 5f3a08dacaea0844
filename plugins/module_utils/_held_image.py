# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A qcow2 image that is held against writers while it is looked through, and what is found in it."""

from __future__ import annotations

import contextlib
import mmap
import os

from . import _clusters, _holes, _image_locks, _samples, _staging
from ._errors import Exchanged
from ._image_header import ImageHeader, read_header
from ._inventory import Image
from ._plan_compress import Gains, is_surely_worth_it, room_for_rewrite


def where_is(image: Image) -> str:
    """An image in words, for what is said of it."""
    return f"volume {image.name!r} of pool {image.pool.name if image.pool else ''!r}"


class HeldImage:
    """An image open as ``fd``, until it is released. It is read as a whole only where samples don't do, and once."""

    def __init__(self, image: Image, stack: contextlib.ExitStack, fd: int, header: ImageHeader) -> None:
        self.ident, self.fd, self.header = image.ident, fd, header
        self.release = stack.close
        self._where = where_is(image)
        self._clusters: _clusters.ClusterMap | None = None
        self._survey: _samples.Survey | None = None
        self._found: _holes.Findings | None = None

    @classmethod
    def take(cls, image: Image) -> HeldImage:
        """Raises VolumeInUse when somebody has it open for writing, Exchanged when it isn't what it was."""
        what = f"compress volume {image.name!r}"
        with contextlib.ExitStack() as stack:
            with _staging.explained(what):
                fd = stack.enter_context(_image_locks.hold_image(image.path, exclusive=False, what=what))
                status, header = os.fstat(fd), read_header(fd)
            if ("file", status.st_dev, status.st_ino) != image.ident or header != image.header:
                raise Exchanged(f"Cannot {what}: {image.path!r} was exchanged or changed meanwhile. Run again.")
            held = cls(image, stack.pop_all(), fd, header)
        return held

    def settled_allocation(self) -> int:
        """Bytes on storage once what was written lately has its place there: until then file systems count it differently."""
        with _staging.explained(f"sync the {self._where}"):
            os.fsync(self.fd)
            return os.fstat(self.fd).st_blocks * 512

    def gains(self, *, compression: str | None, min_reclaim: int, trimmed: mmap.mmap | None = None) -> Gains:
        """What can be gained in it; ``trimmed`` has a byte for each guest cluster that a trim would give back."""
        # With reference counts of one bit no two compressed clusters can share one of the file.
        packs = compression is not None and self.header.refcount_bits != 1
        clusters, seen = self._map(trimmed), _samples.Survey()
        if compression is not None:
            with _staging.explained(f"read the {self._where}"):
                self._survey = seen = _samples.survey(self.fd, clusters, compression)
        if packs and is_surely_worth_it(share=seen.squeezed, data=seen.data_bytes, min_reclaim=min_reclaim):
            return Gains(
                zeros=seen.void_bytes + int(seen.data_bytes * seen.zeros),
                trimmed=seen.doomed_bytes + clusters.doomed_bytes,
                squeezed=int(seen.data_bytes * seen.squeezed),
            )
        found = self.find()
        return Gains(
            zeros=found.zero_bytes,
            trimmed=found.doomed_bytes + clusters.doomed_bytes,
            squeezed=int(found.data_bytes * seen.squeezed_of_rest) if packs else 0,
        )

    def room_for_rewrite(self, available: int) -> int:
        """Bytes that the rewritten image can come to take; where ``available`` ones may not do, all is read for a better answer."""
        clusters, seen = self._map(), self._survey or _samples.Survey()

        def room(data_bytes: int) -> int:
            return room_for_rewrite(
                capacity=self.header.capacity,
                cluster_size=clusters.cluster_size,
                content=data_bytes + seen.doomed_bytes + clusters.compressed_clusters * clusters.cluster_size,
            )

        most = room(seen.data_bytes)
        return most if most <= available else room(self.find().data_bytes)

    def find(self) -> _holes.Findings:
        """All that can be given back in place, by reading all of it."""
        if self._found is None:
            clusters = self._map()
            with _staging.explained(f"read the {self._where}"):
                self._found = _holes.find(self.fd, clusters)
        return self._found

    def _map(self, trimmed: mmap.mmap | None = None) -> _clusters.ClusterMap:
        if self._clusters is None:
            with _staging.explained(f"read the {self._where}"):
                self._clusters = _clusters.read_map(self.fd, self.header, where=self._where, trimmed=trimmed)
        return self._clusters
