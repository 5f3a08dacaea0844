# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which parts of a file take room on storage: FS_IOC_FIEMAP (linux/fiemap.h), or SEEK_DATA (lseek(2)) where that is unknown."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator

_FIEMAP = 0xC020660B  # FS_IOC_FIEMAP, linux/fiemap.h
_FIEMAP_SYNC = 1
_FIEMAP_LAST = 1
_FIEMAP_HEAD = struct.Struct("=QQIIII")
_FIEMAP_EXTENT = struct.Struct("=QQQQQIIII")
_FIEMAP_ROWS = 512


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
        yield from data_ranges(fd, size)


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


def data_ranges(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """The parts of a file's first ``size`` bytes that hold data, as far as its file system tells them from holes; raises OSError."""
    position = 0
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        position = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, min(position, size)
