# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Images handed to tools as open descriptors, with all that lies below them.

What was looked at is what a tool reads: whoever exchanges a file of a pool's directory between our look and the tool's start
comes too late, for the image as for its backing files. A tool that finds those by the names in the headers would follow
what stands there by then, which may be a link to any file of the host.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from . import _chains, _directory, _image_locks, _staging
from ._errors import Exchanged, UnsafeImage
from ._image_header import read_header
from ._inventory import Host
from ._landlock import Handed
from ._named_tuple import NamedTuple
from ._qemu_img import OpenLayer, locate_layers
from ._steps import Source


class Pinned(NamedTuple):
    """Where qemu-img finds an image, the descriptors that it must inherit for that, and the layers below."""

    location: Handed
    pass_fds: tuple[int, ...]
    below: tuple[OpenLayer, ...] = ()

    def under(self, fd: int, cluster_size: int | None) -> Pinned:
        """Another image, a qcow2 open as ``fd`` with clusters of that size, with the same layers below."""
        location = locate_layers([OpenLayer(fd, "qcow2", cluster_size), *self.below])
        return Pinned(location, (fd, *(layer.fd for layer in self.below)), self.below)


@contextlib.contextmanager
def pin_image(host: Host, fd: int, path: str, *, image_format: str, what: str) -> Iterator[Pinned]:
    """Open what lies below an image, open as ``fd``, and look at it once more on the very descriptors.

    Raises Exchanged when it isn't what the decision is about, UnsafeImage when it lies outside the pools.
    """
    if image_format == "raw":
        yield Pinned(locate_layers([OpenLayer(fd, "raw")]), (fd,))
        return
    with contextlib.closing(_OpenedChain()) as opened:
        with _staging.explained(what):
            header, ident = read_header(fd), _directory.identify(f"/proc/self/fd/{fd}")
            chain = opened.below(path, header, ident)
        if header.format != image_format or chain != host.chain_below(path, header, ident):
            raise Exchanged(f"Cannot {what}: a backing file of {path!r} was exchanged or changed meanwhile. Run again.")
        if chain.trouble is not None:
            raise UnsafeImage(f"Cannot {what}: {chain.trouble}.", path=path)
        for layer in chain.layers:
            if layer.format not in ("qcow2", "raw") or host.home(layer.ident) is None:
                raise UnsafeImage(
                    f"Cannot {what}: the backing file {layer.path!r} of {path!r} is no qcow2 or raw image in an active pool of this "
                    "host by now.",
                    path=path,
                )
        below = [
            OpenLayer(below_fd, layer.format or "", size) for below_fd, layer, size in zip(opened.fds, chain.layers, opened.cluster_sizes)
        ]
        top = OpenLayer(fd, image_format, header.cluster_size)
        yield Pinned(locate_layers([top, *below]), (fd, *opened.fds), tuple(below))


@contextlib.contextmanager
def pin_source(host: Host, source: Source, *, hold: bool, what: str) -> Iterator[Source]:
    """The source as it was looked at, for tools; with ``hold`` it is kept from being changed or deleted meanwhile.

    A disk that its domain writes to can't be held; an image in the network has no descriptor. Raises as pin_image().
    """
    if source.pass_fds:
        yield source
        return
    with contextlib.ExitStack() as stack:
        held = hold_source(
            host, source.path, shared=source.shared or not hold, what=what, whole=source.snapshot is None
        )
        fd = stack.enter_context(held)
        image = stack.enter_context(pin_image(host, fd, source.path, image_format=source.format, what=what))
        yield source._replace(path=image.location, pass_fds=image.pass_fds, fd=fd)


@contextlib.contextmanager
def hold_source(host: Host, path: str, *, shared: bool, what: str, whole: bool = True) -> Iterator[int]:
    """Keep the image that the decision is about open, and unless it is ``shared`` from being changed or deleted.

    The ``whole`` image must be as it was looked at; an internal snapshot in it stays what it is, whatever is written beside.
    """
    with contextlib.ExitStack() as stack:
        with _staging.explained(what):
            if shared:
                fd = stack.enter_context(_directory.opened(path))
            else:
                fd = stack.enter_context(_image_locks.hold_image(path, exclusive=False, what=what))
            seen = host.seen(path)
            if seen is not None and _directory.identify(f"/proc/self/fd/{fd}") != seen:
                raise Exchanged(f"Cannot {what}: {path!r} was exchanged meanwhile. Run again.")
            # Now nobody writes to it, but since the look somebody may have grown it, merged a snapshot into it, or run on it.
            if whole and not shared and not host.stands_still(path, fd):
                raise Exchanged(
                    f"Cannot {what}: {path!r} was written to meanwhile. Run again; if it says so each time, stop what writes to it."
                )
        yield fd


class _OpenedChain(_chains.ChainReader):
    """Walks one chain and keeps open what it looks at, so that a tool can be given just that: a descriptor for each layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fds: list[int] = []
        self.cluster_sizes: list[int | None] = []  # for each of them

    def close(self) -> None:
        """Let go of all layers."""
        while self.fds:
            os.close(self.fds.pop())

    def _look_at(self, path: str, known_raw: bool) -> _directory.FileFacts | None:
        facts = _directory.look_at(path, known_raw=known_raw, keep=self.fds)
        if facts is not None and facts.header is not None:
            self.cluster_sizes.append(facts.header.cluster_size)
        return facts
