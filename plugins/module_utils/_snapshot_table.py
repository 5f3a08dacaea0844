# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The table of a qcow2 image's internal snapshots, by the same rules and with the same distrust as its header (_image_header)."""

from __future__ import annotations

import os
import struct

from ._errors import Malformed
from ._named_tuple import NamedTuple

# QEMU's own limit is 64 MiB, for 65536 snapshots with 1 KiB each.
_MAX_TABLE = 8 * 1024 * 1024
_MAX_EXTRA_DATA = 1024

_ENTRY = struct.Struct(">QIHHIIQII")


class SnapshotEntry(NamedTuple):
    """An internal snapshot; sizes and offsets in bytes, ``l1_size`` in entries, the date in Unix time."""

    id: str
    name: str
    date_sec: int
    date_nsec: int
    vm_state_size: int
    disk_size: int | None  # virtual size when it was taken; old images don't tell
    l1_table_offset: int
    l1_size: int

    @property
    def moment(self) -> tuple[int, ...]:
        """What tells it from another one that got its id and name later."""
        return self.date_sec, self.date_nsec, self.l1_table_offset


def read_snapshots(fd: int, size: int, offset: int, count: int) -> tuple[SnapshotEntry, ...]:
    """The ``count`` entries of the table at ``offset``, in an image of ``size`` bytes; raises Malformed, OSError."""
    available = min(size - offset, _MAX_TABLE)
    length = 64 * 1024
    while True:
        table = os.pread(fd, length, offset)
        entries = _parse_snapshots(table, count)
        if entries is not None:
            return entries
        if length >= available:
            raise Malformed("its snapshot table is cut short or longer than 8 MiB")
        length = min(length * 16, available)


def _parse_snapshots(table: bytes, count: int) -> tuple[SnapshotEntry, ...] | None:
    """Return the entries of ``table``, or None where it ends before the last of them."""
    entries = []
    offset = 0
    for _number in range(count):
        offset = offset + 7 & ~7
        extra_offset = offset + _ENTRY.size
        if extra_offset > len(table):
            return None
        l1_offset, l1_size, id_length, name_length, seconds, nanoseconds, _clock, state_size, extra_length = (
            _ENTRY.unpack_from(table, offset)
        )
        if extra_length > _MAX_EXTRA_DATA:
            raise Malformed("an entry of its snapshot table is malformed")
        id_offset = extra_offset + extra_length
        name_offset = id_offset + id_length
        offset = name_offset + name_length
        if offset > len(table):
            return None
        disk_size = None
        if extra_length >= 8:
            state_size = int.from_bytes(table[extra_offset : extra_offset + 8], "big")
        if extra_length >= 16:
            disk_size = int.from_bytes(table[extra_offset + 8 : extra_offset + 16], "big")
        entries.append(
            SnapshotEntry(
                id=_decode_text(table[id_offset:name_offset]),
                name=_decode_text(table[name_offset:offset]),
                date_sec=seconds,
                date_nsec=nanoseconds,
                vm_state_size=state_size,
                disk_size=disk_size,
                l1_table_offset=l1_offset,
                l1_size=l1_size,
            )
        )
    return tuple(entries)


def _decode_text(text: bytes) -> str:
    """Return ``text`` up to a NUL, where QEMU ends it, with bytes that aren't UTF-8 written as ``\\xff``."""
    return text.partition(b"\0")[0].decode("utf-8", "backslashreplace")
