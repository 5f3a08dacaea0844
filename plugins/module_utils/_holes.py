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
import fcntl
import functools
import os
import re
import struct
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ._clusters import DATA, DOOMED, VOID, ClusterMap
from ._errors import InsufficientSpace, Unsupported

# Smaller blocks would cost more in the file system's own records than they bring.
_UNIT = 65536
_CHUNK = 1 << 20
_SAMPLES = 128

_FIEMAP = 0xC020660B  # FS_IOC_FIEMAP, linux/fiemap.h
_FIEMAP_SYNC = 1
_FIEMAP_LAST = 1
_FIEMAP_HEAD = struct.Struct("=QQIIII")
_FIEMAP_EXTENT = struct.Struct("=QQQQQIIII")
_FIEMAP_ROWS = 512
_KEEP_SIZE, _PUNCH_HOLE = 0x01, 0x02  # fallocate(2)

_RUN = {kind: re.compile(re.escape(bytes([kind])) + b"+") for kind in (DATA, VOID, DOOMED)}


@dataclass
class Findings:
    """What can be given back of a file, in bytes; ``ranges`` holds starts and ends by turns, for dig()."""

    zero_bytes: int = 0  # data clusters' blocks of zeros, and what no guest ever reads
    doomed_bytes: int = 0  # what a trim would give back
    data_bytes: int = 0  # other data
    squeezed: float = 1.0  # sampled: what compression leaves of that other data
    ranges: array[int] = field(default_factory=lambda: array("Q"))

    def add(self, start: int, end: int) -> None:
        self.zero_bytes += end - start
        if self.ranges and self.ranges[-1] == start:
            self.ranges[-1] = end
        else:
            self.ranges.extend((start, end))


def find(fd: int, clusters: ClusterMap, *, squeeze: str | None = None) -> Findings:
    """Read all data clusters that take room, and no others; raises OSError.

    ``squeeze``, a compression's name, has samples compressed to tell what that would bring.
    """
    found = Findings()
    block = _block_size(fd)
    unit = max(min(clusters.cluster_size, _UNIT), block)
    sampler = _Sampler(squeeze, clusters, unit) if squeeze else None
    for extent_start, extent_end in extents(fd):
        for start, end in _runs(clusters, DOOMED, extent_start, extent_end):
            found.doomed_bytes += end - start
        for start, end in _runs(clusters, VOID, extent_start, extent_end):
            start, end = _whole_blocks(start, end, block)
            if start < end:
                found.add(start, end)
        for start, end in _runs(clusters, DATA, extent_start, extent_end):
            inner = _whole_blocks(start, end, block)
            if inner[0] >= inner[1]:
                found.data_bytes += end - start
                continue
            found.data_bytes += inner[0] - start + end - inner[1]
            _search(fd, *inner, unit, found, sampler)
    if sampler is not None:
        found.squeezed = sampler.ratio
    return found


def find_anywhere(fd: int) -> Findings:
    """The same for a file without clusters, a raw image: every block of zeros that takes room; raises OSError."""
    found = Findings()
    block = _block_size(fd)
    for start, end in extents(fd):
        start, end = _whole_blocks(start, end, block)
        if start < end:
            _search(fd, start, end, _UNIT, found, None)
    return found


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


def extents(fd: int) -> Iterator[tuple[int, int]]:
    """The parts of a file that take room, as (start, end) in bytes."""
    size = os.fstat(fd).st_size
    try:
        for start, end in _fiemap(fd):
            if start < size:
                yield start, min(end, size)
    except OSError as error:
        # The first call says whether the file system knows the question.
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS):
            raise
        yield from _data_ranges(fd, size)


def _fiemap(fd: int) -> Iterator[tuple[int, int]]:
    position = 0
    while True:
        answer = bytearray(_FIEMAP_HEAD.size + _FIEMAP_ROWS * _FIEMAP_EXTENT.size)
        _FIEMAP_HEAD.pack_into(answer, 0, position, (1 << 63) - 1 - position, _FIEMAP_SYNC, 0, _FIEMAP_ROWS, 0)
        fcntl.ioctl(fd, _FIEMAP, answer)
        count = _FIEMAP_HEAD.unpack_from(answer)[3]
        if not count:
            return
        for row in range(count):
            logical, _physical, length, _r1, _r2, flags, *_rest = _FIEMAP_EXTENT.unpack_from(
                answer, _FIEMAP_HEAD.size + row * _FIEMAP_EXTENT.size
            )
            yield logical, logical + length
            position = logical + length
            if flags & _FIEMAP_LAST:
                return


def _data_ranges(fd: int, size: int) -> Iterator[tuple[int, int]]:
    position = 0
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        position = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, position


def _runs(clusters: ClusterMap, kind: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Clusters of a kind in a row, as byte ranges within [start, end)."""
    size = clusters.cluster_size
    for match in _RUN[kind].finditer(clusters.kinds, start // size, -(-end // size)):
        yield max(match.start() * size, start), min(match.end() * size, end)


def _whole_blocks(start: int, end: int, block: int) -> tuple[int, int]:
    return -(-start // block) * block, end // block * block


def _search(fd: int, start: int, end: int, unit: int, found: Findings, sampler: _Sampler | None) -> None:
    """Read [start, end) and note the units of zeros; at its edges a unit may be cut."""
    blank, blank_chunk = bytes(unit), bytes(max(_CHUNK, unit))
    while start < end:
        stop = min(end, (start // unit * unit) + len(blank_chunk))
        content = os.pread(fd, stop - start, start)
        if len(content) < stop - start:  # cut by somebody meanwhile: what isn't there is no business of ours
            return
        if blank_chunk.startswith(content):
            found.add(start, stop)
            start = stop
            continue
        at = 0
        while at < len(content):
            length = min(unit - (start + at) % unit, len(content) - at)
            if content.startswith(blank if length == unit else blank[:length], at):
                found.add(start + at, start + at + length)
            else:
                found.data_bytes += length
                if sampler is not None:
                    sampler.look(content, at, length)
            at += length
        start = stop


class _Sampler:
    """Compresses evenly spread samples, each cluster by itself, with the window that QEMU's kind of compression has."""

    def __init__(self, compression: str, clusters: ClusterMap, unit: int) -> None:
        self._piece = min(clusters.cluster_size, unit)
        self._step = max(clusters.data_clusters * clusters.cluster_size // unit // _SAMPLES, 1)
        self._window = -12 if compression == "zlib" else -15
        self._seen = self._before = self._after = 0

    def look(self, content: bytes, at: int, length: int) -> None:
        if self._seen % self._step == 0:
            for start in range(at, at + length, self._piece):
                piece = content[start : min(start + self._piece, at + length)]
                squeezer = zlib.compressobj(1, zlib.DEFLATED, self._window)
                self._before += len(piece)
                self._after += min(len(squeezer.compress(piece)) + len(squeezer.flush()), len(piece))
        self._seen += 1

    @property
    def ratio(self) -> float:
        return self._after / self._before if self._before else 1.0


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
