# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Image formats that are recognised, so that they are refused by name, but never worked with.

Each is known by the magic that QEMU's probe functions look for (block/*.c), and told with what costs
one look: virtual size, a backing file. Content is as hostile here as in ``_image_header``.
"""

from __future__ import annotations

import os
import re
import struct
from typing import Any, Callable

_MAX_SIZE = 2**63 - 1
_SECTOR = 512
_PROBE_BYTES = 512
_MAX_NAME = 1023

_VHDX_METADATA_REGION = bytes.fromhex("06a27c8b90479a4bb8fe575f050f886e")
_VHDX_DISK_SIZE = bytes.fromhex("2442a52f1bcd7648b2115dbed83bf4b8")
_VHDX_REGION_TABLE = 192 * 1024
_VHDX_TABLE_BYTES = 64 * 1024

_CLOOP_MAGIC = b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n"
# Comments and blanks, then the version. One blank at a time, so that there is one way to match.
_VMDK_TEXT = re.compile(rb"(?:#[^\n]*\n| (?:\r?\n)?)*version=[123]\r?\n")
_VMDK_EXTENT = re.compile(rb"^(?:RW|RDONLY|NOACCESS) ([0-9]{1,19}) ", re.MULTILINE)
_VMDK_PARENT = re.compile(rb'^parentFileNameHint="([^"\n\0]{1,1023})"', re.MULTILINE)
_VMDK_DESCRIPTOR_BYTES = 20 * _SECTOR

_Facts = dict[str, Any]
_Reader = Callable[[int, bytes, int], _Facts]


def read_foreign(fd: int, head: bytes, size: int) -> _Facts | None:
    """Return the fields of ImageHeader for a file that begins with ``head``; None means raw."""
    head = head.ljust(_PROBE_BYTES, b"\0")
    recognised = _recognise(head)
    if recognised is None:
        return None
    name, reader = recognised
    facts: _Facts = {"format": name, **reader(fd, head, size)}
    if not 0 <= facts["capacity"] <= _MAX_SIZE:
        facts.update(capacity=0, problem="its virtual size is impossible")
    return facts


def _recognise(head: bytes) -> tuple[str, _Reader] | None:
    for magic, name, reader in _MAGICS:
        if head.startswith(magic):
            return name, reader
    if head[0x40:0x44] == b"\x7f\x10\xda\xbe":
        return "vdi", _read_vdi
    # Only what begins like text is searched for text.
    if head[:1] in b"#v " and _VMDK_TEXT.match(head[:_PROBE_BYTES]):
        return "vmdk", _read_vmdk_text
    return None


def _read_at(fd: int, size: int, offset: int, length: int) -> bytes:
    # Offsets that no file can have are an error for the kernel, not an end of file.
    return os.pread(fd, length, offset) if offset < size else b""


def _read_qcow1(fd: int, head: bytes, size: int) -> _Facts:
    offset, length, _mtime, capacity, cluster_bits = struct.unpack_from(">QIIQB", head, 8)
    (encryption,) = struct.unpack_from(">I", head, 36)
    facts: _Facts = {"capacity": capacity & ~511, "encryption": "aes" if encryption else None}
    if 9 <= cluster_bits <= 16:
        facts["cluster_size"] = 1 << cluster_bits
    if offset:
        facts.update(_read_name(fd, size, offset, length))
    return facts


def _read_qed(fd: int, head: bytes, size: int) -> _Facts:
    cluster_size, _table_size, _header_size, features = struct.unpack_from("<IIIQ", head, 4)
    capacity, offset, length = struct.unpack_from("<QII", head, 48)
    facts: _Facts = {"capacity": capacity, "cluster_size": cluster_size, "dirty": bool(features & 2)}
    if features & 1:
        facts.update(_read_name(fd, size, offset, length))
        facts["backing_format"] = "raw" if features & 4 else None
    return facts


def _read_name(fd: int, size: int, offset: int, length: int) -> _Facts:
    name = _read_at(fd, size, offset, length) if length <= _MAX_NAME else b""
    if len(name) < length or b"\0" in name:
        return {"problem": "the name of its backing file is malformed"}
    return {"backing_file": os.fsdecode(name) or None}


def _read_vmdk4(fd: int, head: bytes, size: int) -> _Facts:
    capacity, _grain, descriptor, _length = struct.unpack_from("<QQQQ", head, 12)
    facts: _Facts = {"capacity": capacity * _SECTOR}
    if descriptor:
        facts.update(_find_vmdk_parent(_read_at(fd, size, descriptor * _SECTOR, _VMDK_DESCRIPTOR_BYTES)))
    return facts


def _read_vmdk3(fd: int, head: bytes, size: int) -> _Facts:
    return {"capacity": int.from_bytes(head[12:16], "little") * _SECTOR}


def _read_vmdk_text(fd: int, head: bytes, size: int) -> _Facts:
    descriptor = os.pread(fd, _VMDK_DESCRIPTOR_BYTES, 0)
    sectors = sum(int(found) for found in _VMDK_EXTENT.findall(descriptor))
    return {"capacity": sectors * _SECTOR, **_find_vmdk_parent(descriptor)}


def _find_vmdk_parent(descriptor: bytes) -> _Facts:
    found = _VMDK_PARENT.search(descriptor)
    return {"backing_file": os.fsdecode(found.group(1))} if found else {}


def _read_vdi(fd: int, head: bytes, size: int) -> _Facts:
    (capacity,) = struct.unpack_from("<Q", head, 0x170)
    return {"capacity": -(-capacity // _SECTOR) * _SECTOR}


def _read_vpc(fd: int, head: bytes, size: int) -> _Facts:
    current, cylinders, heads, sectors = struct.unpack_from(">QHBB", head, 48)
    by_geometry = cylinders * heads * sectors
    # As QEMU: some creators mean the size, others the geometry, unless that is the largest there is.
    by_size = head[28:32] in (b"win ", b"qem2", b"d2v ", b"tap\0", b"CTXS") or by_geometry == 65535 * 16 * 255
    return {"capacity": current // _SECTOR * _SECTOR if by_size else by_geometry * _SECTOR}


def _read_vhdx(fd: int, head: bytes, size: int) -> _Facts:
    regions = _read_at(fd, size, _VHDX_REGION_TABLE, _VHDX_TABLE_BYTES)
    offset = _find_vhdx_entry(regions, b"regi", 16, 8, _VHDX_METADATA_REGION, "<Q")
    if offset is not None:
        metadata = _read_at(fd, size, offset, _VHDX_TABLE_BYTES)
        place = _find_vhdx_entry(metadata, b"metadata", 32, 10, _VHDX_DISK_SIZE, "<I")
        value = _read_at(fd, size, offset + place, 8) if place is not None else b""
        if len(value) == 8:
            return {"capacity": int.from_bytes(value, "little")}
    return {"capacity": 0, "problem": "its header is malformed"}


def _find_vhdx_entry(
    table: bytes, signature: bytes, first: int, count_at: int, wanted: bytes, number: str
) -> int | None:
    """Return the number behind the GUID ``wanted`` among the 32-byte entries of ``table``."""
    if not table.startswith(signature):
        return None
    count = int.from_bytes(table[count_at : count_at + 2], "little")
    for offset in range(first, min(first + 32 * count, len(table) - 31), 32):
        if table[offset : offset + 16] == wanted:
            return int(struct.unpack_from(number, table, offset + 16)[0])
    return None


def _read_luks(fd: int, head: bytes, size: int) -> _Facts:
    payload = int.from_bytes(head[104:108], "big") * _SECTOR
    facts: _Facts = {"capacity": max(size - payload, 0), "encryption": "luks"}
    if payload > size:
        facts["problem"] = "its data lies outside the file"
    return facts


def _read_parallels(fd: int, head: bytes, size: int) -> _Facts:
    (sectors,) = struct.unpack_from("<Q", head, 36)
    if head.startswith(b"WithoutFreeSpace"):
        sectors &= 0xFFFFFFFF
    return {"capacity": sectors * _SECTOR}


def _read_bochs(fd: int, head: bytes, size: int) -> _Facts:
    version = int.from_bytes(head[64:68], "little")
    (capacity,) = struct.unpack_from("<Q", head, 84 if version == 0x10000 else 88)
    return {"capacity": capacity & ~511}


def _read_cloop(fd: int, head: bytes, size: int) -> _Facts:
    block_size, blocks = struct.unpack_from(">II", head, 128)
    return {"capacity": block_size * blocks & ~511}


# What the file begins with, the format's name as QEMU has it, who reads it.
_MAGICS: tuple[tuple[bytes, str, _Reader], ...] = (
    (b"QFI\xfb\0\0\0\x01", "qcow", _read_qcow1),
    (b"QED\0", "qed", _read_qed),
    (b"KDMV", "vmdk", _read_vmdk4),
    (b"COWD", "vmdk", _read_vmdk3),
    (b"conectix", "vpc", _read_vpc),
    (b"vhdxfile", "vhdx", _read_vhdx),
    (b"LUKS\xba\xbe\0\x01", "luks", _read_luks),
    (b"WithoutFreeSpace", "parallels", _read_parallels),
    (b"WithouFreSpacExt", "parallels", _read_parallels),
    (b"Bochs Virtual HD Image", "bochs", _read_bochs),
    (_CLOOP_MAGIC, "cloop", _read_cloop),
)
