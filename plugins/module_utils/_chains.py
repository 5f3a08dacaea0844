# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Backing chains: from an image's header down to its base, whatever the headers say.

A chain is walked by device and inode, with bounded depth, and before any tool sees it: an image that names
itself, a FIFO, a file of /proc or a network protocol ends the walk with a sentence that says so.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from . import _directory
from ._image_header import ImageHeader
from ._model import Ident
from ._named_tuple import NamedTuple

#: libvirt's own limit (VIR_STORAGE_MAX_CHAIN_DEPTH).
MAX_DEPTH = 200


class Layer(NamedTuple):
    """One image below another: the path as its overlay leads to it, and what lies there."""

    path: str
    ident: Ident
    format: str | None


class Chain(NamedTuple):
    """The layers from the direct backing to the base; ``trouble`` says why the walk had to stop, if it had to.

    ``data``: files in which the image or a layer keeps its data. They are never read through, but needed all the same.
    """

    layers: tuple[Layer, ...] = ()
    trouble: str | None = None
    data: tuple[Ident, ...] = ()


class ChainReader:
    """Walks chains, and remembers each path that it has looked at and each chain that it has walked."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, bool], _directory.FileFacts | None] = {}
        self._walked: dict[tuple[str, ImageHeader, Ident | None], Chain] = {}

    def below(self, path: str, header: ImageHeader, ident: Ident | None = None) -> Chain:
        """The chain below an image whose format is settled and whose header is this one."""
        key = (path, header, ident)
        if key not in self._walked:
            self._walked[key] = self._walk(path, header, ident)
        return self._walked[key]

    def _walk(self, path: str, header: ImageHeader, ident: Ident | None) -> Chain:
        layers: list[Layer] = []
        data: list[Ident] = []
        trouble: str | None = None  # the first; the walk goes on where it can, so that a damaged overlay's base is known
        visited = {ident if ident is not None else _directory.identify_loosely(path)}
        while True:
            trouble = trouble or _trouble_with(path, header)
            if header.data_file and not _has_protocol(header.data_file):
                data.append(_directory.identify_loosely(_join(os.path.dirname(path), header.data_file)))
            if header.backing_file is None:
                return Chain(tuple(layers), trouble, tuple(data))
            stored, stated = header.backing_file, header.backing_format
            if _has_protocol(stored):
                return Chain(tuple(layers), trouble or f"{path!r} names a backing file by protocol ({stored!r})", tuple(data))
            path = _join(os.path.dirname(path), stored)
            facts = self._look(path, stated == "raw")
            if facts is None:
                layers.append(Layer(path, ("path", path, ""), stated))
                return Chain(tuple(layers), trouble or f"the backing file {path!r} is not there", tuple(data))
            if facts.ident in visited:
                return Chain(tuple(layers), trouble or f"the backing chain runs in a circle: it comes back to {path!r}", tuple(data))
            visited.add(facts.ident)
            layers.append(Layer(path, facts.ident, facts.header.format if facts.header is not None else stated))
            trouble = trouble or _trouble_of(facts, stated)
            if facts.header is None:
                return Chain(tuple(layers), trouble or f"the backing file {path!r} can't be read", tuple(data))
            if len(layers) > MAX_DEPTH:
                return Chain(tuple(layers), trouble or f"the backing chain has more than {MAX_DEPTH} layers", tuple(data))
            header = facts.header

    def looked(self) -> Iterator[tuple[str, Ident]]:
        """The paths that were found to lead to something, and to what."""
        return ((path, facts.ident) for (path, _raw), facts in self._seen.items() if facts is not None)

    def _look(self, path: str, known_raw: bool) -> _directory.FileFacts | None:
        key = (path, known_raw)
        if key not in self._seen:
            self._seen[key] = None if _directory.is_pseudo(path) else self._look_at(path, known_raw)
        return self._seen[key]

    def _look_at(self, path: str, known_raw: bool) -> _directory.FileFacts | None:
        return _directory.look_at(path, known_raw=known_raw)


def may_hang_a_reader(directory: str, stored: str) -> str | None:
    """Why reading a stored backing file name might never end (libvirt's pool refresh would), or ``None``."""
    if not stored or _has_protocol(stored):
        return None
    path = _join(directory, stored)
    if _directory.is_pseudo(path):
        return f"{path!r} lies on a file system that the kernel makes up"
    facts = _directory.look_at(path, known_raw=True)
    if facts is not None and facts.kind == "other":
        return f"{path!r} is a device or pipe"
    return None


def _has_protocol(stored: str) -> bool:
    """A colon before the first slash makes QEMU read a protocol, for example nbd: or json: (path_has_protocol in block.c)."""
    return ":" in stored.partition("/")[0]


def _join(directory: str, stored: str) -> str:
    """The path that QEMU would open for a stored name: relative names start at the overlay's directory.

    Dots are resolved in the directory alone. A final link keeps its name, since the next layer lies beside it.
    """
    path = os.path.join(directory, stored)
    if "\0" in path or not re.search(r"//|/\.\.?/", path):
        return path
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))


def _trouble_with(path: str, header: ImageHeader) -> str | None:
    if header.data_file is not None:
        return f"{path!r} keeps its data in another file ({header.data_file!r})"
    if header.problem is not None:
        return f"{path!r} has a header that can't be trusted: {header.problem}"
    return None


def _trouble_of(facts: _directory.FileFacts, stated: str | None) -> str | None:
    if facts.kind not in ("file", "block"):
        return f"the backing file {facts.path!r} is neither a file nor a block device"
    if facts.trouble is not None or facts.header is None:
        return f"the backing file {facts.path!r} {facts.trouble or 'has no header'}"
    if stated is not None and stated != facts.header.format:
        return f"the backing file {facts.path!r} should be {stated}, but its content is {facts.header.format}"
    return None
