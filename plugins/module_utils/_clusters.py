# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where a qcow2 image keeps its guest's data: the L1 and L2 tables, read in plain Python from a descriptor.

One byte of lazily allocated memory stands for each cluster of the file, so a large sparse image costs little,
and a table is read once however many entries lead to it, so a hostile one ends. Layout: QEMU's
docs/interop/qcow2.txt.
"""

from __future__ import annotations

import mmap
import os
import re
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

from ._errors import UnsafeImage, Unsupported
from ._image_header import ImageHeader

#: What the bytes of ClusterMap.kinds mean. A cluster is ...
DATA = 1  # ... a guest's data, as it is, in the active image or a snapshot
VOID = 2  # ... kept for a guest cluster that reads as zeros whatever lies in the file
DOOMED = 3  # ... going to be given back by a trim
_TABLE = 4  # ... an L2 table that has been read
_RUN = {kind: re.compile(re.escape(bytes([kind])) + b"+") for kind in (DATA, VOID, DOOMED)}

_MOST_CLUSTERS = 1 << 30  # 64 TiB with the default cluster size
_OFFSET = 0x00FFFFFFFFFFFE00
_COPIED, _COMPRESSED, _ZERO = 1 << 63, 1 << 62, 1
_L1_AT, _L1_ENTRIES_AT = 40, 36


@dataclass
class ClusterMap:
    """The clusters of one image file: ``kinds[n]`` is what lies at byte ``n * cluster_size``."""

    where: str  # the volume in words
    cluster_size: int
    kinds: mmap.mmap
    compressed_bytes: int = 0  # what compressed clusters take, in bytes
    compressed_clusters: int = 0
    data_clusters: int = 0
    doomed_bytes: int = 0  # of compressed_bytes, what a trim would give back
    _size: int = field(default=0, repr=False)

    def mark(self, offset: int, kind: int) -> None:
        number, rest = divmod(offset, self.cluster_size)
        if rest:
            raise _damaged(self.where, "an entry of an L2 table leads to a place that no cluster begins at")
        if offset >= self._size:  # reads as zeros, and takes no room
            return
        if self.kinds[number] == _TABLE:
            raise _damaged(self.where, "an L2 table is a guest's data too")
        if kind == DATA:
            self.data_clusters += self.kinds[number] != DATA
            self.kinds[number] = DATA  # somebody's data, even if another table has no use for it
        elif self.kinds[number] == 0:
            self.kinds[number] = kind

    def runs(self, kind: int, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Clusters of a kind in a row, as byte ranges within [start, end)."""
        size = self.cluster_size
        for match in _RUN[kind].finditer(self.kinds, start // size, -(-end // size)):
            yield max(match.start() * size, start), min(match.end() * size, end)


def read_map(fd: int, header: ImageHeader, *, where: str, trimmed: mmap.mmap | None = None) -> ClusterMap:
    """Map the image open as ``fd``, snapshots included; raises UnsafeImage for tables that can't be, and OSError.

    ``trimmed`` has a byte for each guest cluster, not zero where a trim would give it back: those are DOOMED
    when the active image is alone with them.
    """
    size = os.fstat(fd).st_size
    cluster_size = header.cluster_size or 0
    found = ClusterMap(where, cluster_size, _bytes_for(size, cluster_size, where), _size=size)
    reader = _Tables(fd, header, found)
    # First those of snapshots: what they hold as data is data, whatever the active image says.
    for snapshot in header.snapshots:
        for _guest, entry, subclusters in reader.entries(snapshot.l1_table_offset, snapshot.l1_size):
            _note(found, header, entry, subclusters, active=False)
    for guest, entry, subclusters in reader.entries(*_active_l1(fd)):
        doomed = trimmed is not None and guest < len(trimmed) and trimmed[guest] != 0
        if doomed and entry & _COMPRESSED:
            found.doomed_bytes += _compressed_length(entry, header)
        if doomed and entry & _COPIED and not entry & _COMPRESSED and entry & _OFFSET:
            found.mark(entry & _OFFSET, DOOMED)
        else:
            _note(found, header, entry, subclusters, active=True)
    return found


def read_zeroed(fd: int, header: ImageHeader, *, where: str) -> mmap.mmap:
    """One byte for each guest cluster: 1 where the image says that it reads as zeros; raises like read_map()."""
    cluster_size, size = header.cluster_size or 0, os.fstat(fd).st_size
    zeroed = _bytes_for(header.capacity, cluster_size, where)
    scratch = ClusterMap(where, cluster_size, _bytes_for(size, cluster_size, where), _size=size)
    for guest, entry, _subclusters in _Tables(fd, header, scratch).entries(*_active_l1(fd)):
        if entry & _ZERO and not entry & _COMPRESSED and guest < len(zeroed):
            zeroed[guest] = 1
    return zeroed


def _note(found: ClusterMap, header: ImageHeader, entry: int, subclusters: int, *, active: bool) -> None:
    if entry & _COMPRESSED:
        found.compressed_clusters += 1
        found.compressed_bytes += _compressed_length(entry, header)
        return
    offset = entry & _OFFSET
    if not offset:
        return
    reads_host = subclusters & 0xFFFFFFFF if header.extended_l2 else not (entry & _ZERO and header.compat != "0.10")
    if reads_host:
        found.mark(offset, DATA)
    elif active and entry & _COPIED and not header.dirty:
        found.mark(offset, VOID)


def _compressed_length(entry: int, header: ImageHeader) -> int:
    """Bytes of a compressed cluster: sectors beyond the first, above the offset's bits."""
    offset_bits = 62 - ((header.cluster_size or 0).bit_length() - 1 - 8)
    sectors = ((entry & (_COMPRESSED - 1)) >> offset_bits) + 1
    return sectors * 512 - (entry & 511)


class _Tables:
    """Reads tables of one image; each L2 table once."""

    def __init__(self, fd: int, header: ImageHeader, found: ClusterMap) -> None:
        self._fd, self._found = fd, found
        self._words = 2 if header.extended_l2 else 1
        self._size = os.fstat(fd).st_size

    def entries(self, l1_offset: int, l1_entries: int) -> Iterator[tuple[int, int, int]]:
        """All L2 entries that are not empty: guest cluster number, entry, subcluster bitmap (0 without)."""
        size, words = self._found.cluster_size, self._words
        per_table = size // (8 * words)
        for number, l1_entry in enumerate(_read_words(self._fd, l1_offset, l1_entries)):
            offset = l1_entry & _OFFSET
            if not offset:
                continue
            if offset % size or offset >= self._size:
                raise _damaged(self._found.where, "an entry of its L1 table leads to no place in the file")
            if self._found.kinds[offset // size] == _TABLE:
                continue
            if self._found.kinds[offset // size]:
                raise _damaged(self._found.where, "an L2 table is a guest's data too")
            self._found.kinds[offset // size] = _TABLE
            table = _read_words(self._fd, offset, size // 8)
            if words == 1:
                for index, entry in enumerate(table):
                    if entry:
                        yield number * per_table + index, entry, 0
            else:
                for index in range(len(table) // 2):
                    if table[2 * index] or table[2 * index + 1]:
                        yield number * per_table + index, table[2 * index], table[2 * index + 1]


def _active_l1(fd: int) -> tuple[int, int]:
    head = os.pread(fd, 48, 0)
    return int.from_bytes(head[_L1_AT:48], "big"), int.from_bytes(head[_L1_ENTRIES_AT:_L1_AT], "big")


def _read_words(fd: int, offset: int, count: int) -> array[int]:
    """Big-endian 64-bit words; what lies behind the end of the file is zero."""
    words = array("Q", os.pread(fd, count * 8, offset).ljust(count * 8, b"\0"))
    if sys.byteorder == "little":
        words.byteswap()
    return words


def _damaged(where: str, fault: str) -> UnsafeImage:
    return UnsafeImage(f"The {where} is damaged: {fault}. 'qemu-img check' tells more; nothing was changed.")


def _bytes_for(size: int, cluster_size: int, where: str) -> mmap.mmap:
    count = -(-size // cluster_size)
    if count > _MOST_CLUSTERS:
        raise Unsupported(f"The {where} has {count} clusters; up to {_MOST_CLUSTERS} can be looked at.")
    return mmap.mmap(-1, max(count, 1))
