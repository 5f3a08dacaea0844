# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What compressing an image would bring, by samples of its data: to read all of a large one can take many minutes."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator

from . import _side_by_side
from ._clusters import DATA, DOOMED, VOID, ClusterMap
from ._extents import extents
from ._holes import unit_of
from ._named_tuple import NamedTuple

#: How many samples are taken of a large image; a small one is read whole.
SAMPLES = 256
# Samples lie one in each stretch of the same length, but not at the same place of it: else they could always meet the
# same thing that a file system has at regular distances. Multiples of 2 ** 32 divided by the golden ratio spread evenly.
_GOLDEN, _WORD = 2654435769, 1 << 32
# Of a sample of a large image, this much is compressed, somewhere in it: that costs far more than to read it.
_PIECE = 16 << 10


class Survey(NamedTuple):
    """What takes room in an image, in bytes, and two shares of its data by samples."""

    data_bytes: int = 0  # in clusters of data, with zeros among it
    void_bytes: int = 0  # what no guest ever reads
    doomed_bytes: int = 0  # what a trim would give back
    zeros: float = 0.0  # of the data
    squeezed: float = 0.0  # of the data, zeros left aside: what compression takes off

    @property
    def squeezed_of_rest(self) -> float:
        """What compression takes off of what isn't zeros, as a share of that."""
        return self.squeezed / (1 - self.zeros) if self.zeros < 1 else 0.0


def survey(fd: int, clusters: ClusterMap, compression: str) -> Survey:
    """Look at samples of the data of the image open as ``fd``; raises OSError.

    The same image is always judged the same. zlib stands for zstd too: the standard library of old Pythons has no other.
    """
    unit = unit_of(fd, clusters)
    room = {DATA: 0, VOID: 0, DOOMED: 0}
    stretch = max(clusters.data_clusters * clusters.cluster_size // SAMPLES, unit)
    window = -12 if compression == "zlib" else -15  # bits; as QEMU has it

    def places() -> Iterator[tuple[int, int]]:
        number = due = 0
        for extent_start, extent_end in extents(fd):
            for kind in (VOID, DOOMED):
                room[kind] += sum(end - start for start, end in clusters.runs(kind, extent_start, extent_end))
            for start, end in clusters.runs(DATA, extent_start, extent_end):
                while due < room[DATA] + end - start:
                    at = max((start + due - room[DATA]) // unit * unit, start)
                    yield at, min(at + unit, end) - at
                    number += 1
                    due = number * stretch + (_spread(number, stretch) if stretch > unit else 0)
                room[DATA] += end - start

    def weigh(place: tuple[int, int]) -> tuple[int, int, int]:
        """Bytes read, those of them in a unit of zeros, and those that compression takes off the others."""
        content = os.pread(fd, place[1], place[0])
        if content == bytes(len(content)):
            return len(content), len(content), 0
        whole, squeezed = len(content), 0
        if stretch > unit and whole > _PIECE:
            start = _spread(place[0] // unit, whole // _PIECE) * _PIECE
            content = content[start : start + _PIECE]
        for start in range(0, len(content), clusters.cluster_size):  # each cluster by itself
            piece = content[start : start + clusters.cluster_size]
            squeezer = zlib.compressobj(1, zlib.DEFLATED, window)
            squeezed += max(len(piece) - len(squeezer.compress(piece)) - len(squeezer.flush()), 0)
        return whole, 0, squeezed * whole // len(content)

    seen, zeros, squeezed = (sum(column) for column in zip((0, 0, 0), *_side_by_side.in_order(weigh, places())))
    return Survey(room[DATA], room[VOID], room[DOOMED], zeros / max(seen, 1), squeezed / max(seen, 1))


def _spread(number: int, length: int) -> int:
    """A place in [0, length), far from that of the numbers before."""
    return number * _GOLDEN % _WORD * length // _WORD
