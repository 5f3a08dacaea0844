# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Blocks of a file that hold only zeros: finding those that take room, and giving them back as holes.

A hole reads as the zeros that were there. So digging never changes a byte of what the file says, can be
interrupted at any moment, and needs no free space of the pool.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from . import _side_by_side
from ._clusters import DATA, DOOMED, VOID, ClusterMap
from ._errors import InsufficientSpace, Unsupported
from ._extents import extents

# Smaller blocks would cost more in the file system's own records than they bring.
_UNIT = 65536
_CHUNK = 1 << 18
# What one thread takes on at a time.
_PART_BYTES, _PART_EXTENTS = 16 << 20, 4096

_KEEP_SIZE, _PUNCH_HOLE = 0x01, 0x02  # fallocate(2)


@dataclass
class Findings:
    """What can be given back of a file, in bytes; ``ranges`` holds starts and ends by turns, for dig()."""

    zero_bytes: int = 0  # data clusters' blocks of zeros, and what no guest ever reads
    doomed_bytes: int = 0  # what a trim would give back
    data_bytes: int = 0  # other data
    ranges: array[int] = field(default_factory=lambda: array("Q"))

    def add(self, start: int, end: int) -> None:
        self.zero_bytes += end - start
        if self.ranges and self.ranges[-1] == start:
            self.ranges[-1] = end
        else:
            self.ranges.extend((start, end))

    @classmethod
    def of_all(cls, parts: Iterable[Findings]) -> Findings:
        """What was found in the parts of a file, one after the other."""
        found = cls()
        for part in parts:
            found.doomed_bytes += part.doomed_bytes
            found.data_bytes += part.data_bytes
            if part.ranges:
                found.add(part.ranges[0], part.ranges[1])
                found.ranges.extend(part.ranges[2:])
                found.zero_bytes += part.zero_bytes - (part.ranges[1] - part.ranges[0])
        return found


def find(fd: int, clusters: ClusterMap) -> Findings:
    """Read all data clusters that take room, and no others; raises OSError."""
    block, unit = _block_size(fd), unit_of(fd, clusters)

    def look(part: list[tuple[int, int]]) -> Findings:
        search = _Search(fd, unit)
        found = search.found
        for extent_start, extent_end in part:
            for start, end in clusters.runs(DOOMED, extent_start, extent_end):
                found.doomed_bytes += end - start
            for start, end in clusters.runs(VOID, extent_start, extent_end):
                start, end = _whole_blocks(start, end, block)
                if start < end:
                    found.add(start, end)
            for start, end in clusters.runs(DATA, extent_start, extent_end):
                inner = _whole_blocks(start, end, block)
                if inner[0] >= inner[1]:
                    found.data_bytes += end - start
                    continue
                found.data_bytes += inner[0] - start + end - inner[1]
                search.look(*inner)
        return found

    return Findings.of_all(_side_by_side.in_order(look, _parts(extents(fd))))


def find_anywhere(fd: int) -> Findings:
    """The same for a file without clusters, a raw image: every block of zeros that takes room; raises OSError."""
    block = _block_size(fd)

    def look(part: list[tuple[int, int]]) -> Findings:
        search = _Search(fd, _UNIT)
        for start, end in part:
            search.look(*_whole_blocks(start, end, block))
        return search.found

    return Findings.of_all(_side_by_side.in_order(look, _parts(extents(fd))))


def _parts(places: Iterable[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """The places in parts for one thread each, divided where a cluster or a unit may end."""
    part: list[tuple[int, int]] = []
    size = 0
    for start, end in places:
        while start < end:
            stop = min(end, (start // _PART_BYTES + 1) * _PART_BYTES)
            part.append((start, stop))
            size += stop - start
            start = stop
            if size >= _PART_BYTES or len(part) >= _PART_EXTENTS:
                yield part
                part, size = [], 0
    if part:
        yield part


def dig(fd: int, found: Findings) -> None:
    """Make holes of the ranges found; raises OSError, InsufficientSpace or Unsupported.

    Where the file system has no room left to note a hole, others are dug first and make some.
    """
    waiting = list(range(0, len(found.ranges), 2))
    while waiting:
        again = []
        for at in waiting:
            start, end = found.ranges[at], found.ranges[at + 1]
            if not _punch(fd, start, end - start):
                again.append(at)
        if len(again) == len(waiting):
            raise InsufficientSpace("The file system has no room left to note a single hole. Free a few blocks first.")
        os.fsync(fd)
        waiting = again


def _whole_blocks(start: int, end: int, block: int) -> tuple[int, int]:
    return -(-start // block) * block, end // block * block


class _Search:
    """Reads places of a file, by one thread, and notes the units of zeros."""

    def __init__(self, fd: int, unit: int) -> None:
        self.found = Findings()
        self._fd, self._unit = fd, unit
        self._blank = bytes(max(_CHUNK, unit))
        self._buffer = bytearray(self._blank)  # for all that is read: to get memory from the system takes as long as to fill it

    def look(self, start: int, end: int) -> None:
        """Read [start, end); at its edges a unit may be cut."""
        while start < end:
            stop = min(end, (start // self._unit * self._unit) + len(self._blank))
            content = memoryview(self._buffer)[: stop - start]
            if os.preadv(self._fd, [content], start) < len(content):  # cut by somebody meanwhile: what isn't there is no business of ours
                return
            if self._blank.startswith(content):
                self.found.add(start, stop)
            else:
                self._note_units(start, len(content))
            start = stop

    def _note_units(self, start: int, size: int) -> None:
        at = 0
        while at < size:
            length = min(self._unit - (start + at) % self._unit, size - at)
            if self._buffer.startswith(memoryview(self._blank)[:length], at):
                self.found.add(start + at, start + at + length)
            else:
                self.found.data_bytes += length
            at += length


def unit_of(fd: int, clusters: ClusterMap) -> int:
    """What is looked at as one, in bytes: a cluster, but no more than is worth a hole, and no less than can be one."""
    return max(min(clusters.cluster_size, _UNIT), _block_size(fd))


def _block_size(fd: int) -> int:
    size = os.fstatvfs(fd).f_frsize
    return size if 512 <= size <= _UNIT else 4096  # network file systems name what they transfer at once


@functools.cache
def _fallocate() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    call = libc.fallocate64 if hasattr(libc, "fallocate64") else libc.fallocate
    call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    return call


def _punch(fd: int, start: int, length: int) -> bool:
    """Dig one hole; ``False`` when the file system has no room to note it."""
    call = _fallocate()
    while call(fd, _PUNCH_HOLE | _KEEP_SIZE, start, length):
        number = ctypes.get_errno()
        if number == errno.EINTR:
            continue
        if number in (errno.ENOSPC, errno.EDQUOT):
            return False
        if number in (errno.EOPNOTSUPP, errno.ENOSYS):
            raise Unsupported(
                "The pool's file system can't give back parts of a file; a compressed rewrite (volume_compress with compression) can."
            )
        raise OSError(number, os.strerror(number))
    return True
