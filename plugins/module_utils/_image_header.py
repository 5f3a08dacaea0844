# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What an image's header says, read in plain Python, for images that nobody trusts.

The guest may have written every byte of what is read here, so nothing is believed: each number is
checked before it is used, work and memory are bounded, no other file is ever opened, and what no tool
should be let near is named in ``ImageHeader.problem``. Layout and rules are those of QEMU's
docs/interop/qcow2.txt, the limits those of its block/qcow2.c; for images that qemu-img accepts, the
answers are those of ``qemu-img info``.

A header is only a claim. Whether an image *is* qcow2 is for libvirt's definition or the caller to say:
see ``raw_header`` for images known to be raw.
"""

from __future__ import annotations

import os
import stat
import struct
from dataclasses import dataclass
from typing import Any

from ._foreign_header import read_foreign

# One read of this many bytes holds all there is to know about nearly every image.
_HEAD_BYTES = 4096
# Header extensions may fill a cluster (2 MiB); what QEMU writes stays below 2 KiB.
_MAX_EXTENSIONS_END = 64 * 1024
# QEMU's own limit is 64 MiB, for 65536 snapshots with 1 KiB each.
_MAX_SNAPSHOT_TABLE = 8 * 1024 * 1024

_MAX_SIZE = 2**63 - 1
_MAX_L1_BYTES = 32 * 1024 * 1024
_MAX_REFCOUNT_TABLE_BYTES = 8 * 1024 * 1024
_MAX_SNAPSHOTS = 65536
_MAX_SNAPSHOT_EXTRA_DATA = 1024
_MAX_BACKING_FILE = 1023
_MAX_BACKING_FORMAT = 15
_MAX_BITMAPS = 65535

_QCOW_MAGIC = b"QFI\xfb"
_HEADER_V2 = struct.Struct(">4sIQIIQIIQQIIQ")
_HEADER_V3 = struct.Struct(">QQQII")
_V3_LENGTH = _HEADER_V2.size + _HEADER_V3.size
_EXTENSION = struct.Struct(">II")
_CRYPTO = struct.Struct(">QQ")
_BITMAPS = struct.Struct(">IIQQ")
_SNAPSHOT = struct.Struct(">QIHHIIQII")
_SNAPSHOT_EXTRA = struct.Struct(">QQ")

_DIRTY, _CORRUPT, _DATA_FILE, _COMPRESSION, _EXTENDED_L2 = (1 << bit for bit in range(5))
_KNOWN_INCOMPATIBLE = _DIRTY | _CORRUPT | _DATA_FILE | _COMPRESSION | _EXTENDED_L2
_LAZY_REFCOUNTS = 1
_AUTOCLEAR_BITMAPS = 1

_END_OF_EXTENSIONS = 0
_BACKING_FORMAT_EXTENSION = 0xE2792ACA
_DATA_FILE_EXTENSION = 0x44415441
_CRYPTO_EXTENSION = 0x0537BE77
_BITMAPS_EXTENSION = 0x23852875
_TELLING_EXTENSIONS = frozenset(
    (_BACKING_FORMAT_EXTENSION, _DATA_FILE_EXTENSION, _CRYPTO_EXTENSION, _BITMAPS_EXTENSION)
)

_ENCRYPTIONS = {0: None, 1: "aes", 2: "luks"}
_COMPRESSIONS = {0: "zlib", 1: "zstd"}


@dataclass(frozen=True)
class SnapshotEntry:
    """An internal snapshot; sizes and offsets in bytes, ``l1_size`` in entries, the date in Unix time."""

    id: str
    name: str
    date_sec: int
    date_nsec: int
    vm_state_size: int
    disk_size: int | None  # virtual size when it was taken; old images don't tell
    l1_table_offset: int
    l1_size: int


@dataclass(frozen=True)
class ImageHeader:
    """What an image says about itself; when ``problem`` is set, what could be read before it."""

    format: str  # 'qcow2', 'raw', or a format that is only recognised: 'vmdk', 'luks', ...
    capacity: int = 0  # virtual bytes; of raw: the file's length
    compat: str | None = None  # '0.10' or '1.1'
    cluster_size: int | None = None
    backing_file: str | None = None  # as stored
    backing_format: str | None = None
    data_file: str | None = None  # '' when the data is in another file that isn't named
    encryption: str | None = None  # 'aes' or 'luks'
    snapshots: tuple[SnapshotEntry, ...] = ()
    lazy_refcounts: bool = False
    extended_l2: bool = False
    compression_type: str | None = None  # 'zlib' or 'zstd'
    refcount_bits: int | None = None
    dirty: bool = False
    corrupt: bool = False
    bitmaps: bool = False
    problem: str | None = None  # one clause, why no tool should be let near this image


class _Malformed(Exception):
    """The image breaks a rule of its format; the text becomes ``ImageHeader.problem``."""


def read_header(fd: int) -> ImageHeader:
    """Return what the image open as ``fd`` (a regular file or block device) claims to be; raises OSError alone."""
    status = os.fstat(fd)
    size = status.st_size if stat.S_ISREG(status.st_mode) else os.lseek(fd, 0, os.SEEK_END)
    head = os.pread(fd, _HEAD_BYTES, 0)
    if head.startswith(_QCOW_MAGIC) and int.from_bytes(head[4:8], "big") >= 2:
        return _read_qcow2(fd, head, size)
    foreign = read_foreign(fd, head, size)
    return ImageHeader(**foreign) if foreign else raw_header(size)


def raw_header(size: int) -> ImageHeader:
    """Return what an image of ``size`` bytes known to be raw is, whatever a guest wrote into it."""
    return ImageHeader(format="raw", capacity=size)


def _read_qcow2(fd: int, head: bytes, size: int) -> ImageHeader:
    facts: dict[str, Any] = {"format": "qcow2"}
    try:
        _parse_qcow2(fd, head, size, facts)
    except _Malformed as fault:
        facts["problem"] = str(fault)
    return ImageHeader(**facts)


def _parse_qcow2(fd: int, head: bytes, size: int, facts: dict[str, Any]) -> None:
    """Fill ``facts`` in the order in which the header tells them; raises _Malformed at the first lie."""
    if len(head) < _HEADER_V2.size:
        raise _Malformed("its header is cut short")
    (
        _magic, version, backing_offset, backing_length, cluster_bits, capacity, crypt_method,
        l1_size, l1_offset, refcount_offset, refcount_clusters, snapshot_count, snapshots_offset,
    ) = _HEADER_V2.unpack_from(head)  # fmt: skip
    if version > 3:
        raise _Malformed(f"its qcow2 version is {version}; 2 and 3 are known")
    facts["compat"] = "0.10" if version == 2 else "1.1"
    if not 9 <= cluster_bits <= 21:
        raise _Malformed("its cluster size is not between 512 bytes and 2 MiB")
    cluster_size = facts["cluster_size"] = 1 << cluster_bits
    # QEMU counts whole sectors.
    facts["capacity"] = min(capacity, _MAX_SIZE) & ~511
    if capacity > _MAX_SIZE:
        raise _Malformed("its virtual size is more than 2^63-1 bytes")

    incompatible = autoclear = 0
    header_length, refcount_order, compression = _HEADER_V2.size, 4, 0
    if version == 3:
        if len(head) < _V3_LENGTH:
            raise _Malformed("its header is cut short")
        incompatible, compatible, autoclear, refcount_order, header_length = _HEADER_V3.unpack_from(
            head, _HEADER_V2.size
        )
        if not _V3_LENGTH <= header_length <= min(cluster_size, size):
            raise _Malformed(f"its header claims a length of {header_length} bytes")
        if header_length > _V3_LENGTH:
            compression = head[_V3_LENGTH]
        facts["lazy_refcounts"] = bool(compatible & _LAZY_REFCOUNTS)
        facts["dirty"] = bool(incompatible & _DIRTY)
        facts["corrupt"] = bool(incompatible & _CORRUPT)
        facts["extended_l2"] = bool(incompatible & _EXTENDED_L2)
        if incompatible & _DATA_FILE:
            facts["data_file"] = ""
        if incompatible & ~_KNOWN_INCOMPATIBLE:
            raise _Malformed("it uses incompatible features that are not known here")
    if compression not in _COMPRESSIONS or bool(compression) != bool(incompatible & _COMPRESSION):
        raise _Malformed("its compression type is unknown or contradicts its feature bits")
    facts["compression_type"] = _COMPRESSIONS[compression]
    if incompatible & _EXTENDED_L2 and cluster_bits < 14:
        raise _Malformed("its clusters are too small for extended L2 entries")
    if refcount_order > 6:
        raise _Malformed("its reference counts are wider than 64 bits")
    facts["refcount_bits"] = 1 << refcount_order
    if crypt_method not in _ENCRYPTIONS:
        raise _Malformed("its encryption method is unknown")
    facts["encryption"] = _ENCRYPTIONS[crypt_method]

    def check_table(name: str, offset: int, length: int, limit: int) -> None:
        if length > limit:
            raise _Malformed(f"its {name} is larger than {limit} bytes")
        if offset % cluster_size:
            raise _Malformed(f"its {name} does not begin at a cluster")
        # A file may end within its last cluster.
        if length and not cluster_size <= offset <= -(-size // cluster_size) * cluster_size - length:
            raise _Malformed(f"its {name} lies outside the file")

    if not refcount_clusters:
        raise _Malformed("it has no reference counts")
    check_table(
        "table of reference counts", refcount_offset, refcount_clusters * cluster_size, _MAX_REFCOUNT_TABLE_BYTES
    )
    check_table("snapshot table", snapshots_offset, snapshot_count * _SNAPSHOT.size, _MAX_SNAPSHOTS * _SNAPSHOT.size)
    check_table("L1 table", l1_offset, l1_size * 8, _MAX_L1_BYTES)
    # An L1 entry leads to a cluster full of L2 entries, each of which leads to a cluster.
    reach = cluster_size * (cluster_size // (16 if incompatible & _EXTENDED_L2 else 8))
    if l1_size * reach < capacity:
        raise _Malformed("its L1 table is too small for its virtual size")

    if backing_offset > cluster_size:
        raise _Malformed("the name of its backing file lies outside the first cluster")
    extensions = _read_extensions(fd, head, header_length, backing_offset or cluster_size)
    if extensions:
        _interpret_extensions(extensions, facts, bool(autoclear & _AUTOCLEAR_BITMAPS), cluster_size, size)
    if crypt_method == 2 and _CRYPTO_EXTENSION not in extensions:
        raise _Malformed("it is encrypted and its encryption header is missing")
    if backing_offset:
        if backing_offset < header_length:
            raise _Malformed("the name of its backing file lies within its header")
        if backing_length > min(_MAX_BACKING_FILE, cluster_size - backing_offset):
            raise _Malformed(f"the name of its backing file has {backing_length} bytes")
        facts["backing_file"] = _read_backing_file(fd, head, backing_offset, backing_length)
    if not facts.get("backing_file"):
        facts["backing_format"] = None
    if snapshot_count:
        facts["snapshots"] = _read_snapshots(fd, size, snapshots_offset, snapshot_count)
        for entry in facts["snapshots"]:
            check_table("L1 table of a snapshot", entry.l1_table_offset, entry.l1_size * 8, _MAX_L1_BYTES)


def _read_extensions(fd: int, head: bytes, start: int, end: int) -> dict[int, bytes]:
    """Return the header extensions that tell something, by their number; they stand between ``start`` and ``end``."""
    found: dict[int, bytes] = {}
    offset = start
    while offset < end:
        data_offset = offset + _EXTENSION.size
        if data_offset > len(head) == _HEAD_BYTES:
            head = os.pread(fd, _MAX_EXTENSIONS_END, 0)
        # What lies behind the end of a file reads as zeros, which is how extensions end.
        if data_offset > len(head) and len(head) < _MAX_EXTENSIONS_END:
            return found
        if data_offset > min(end, len(head)):
            raise _Malformed("its header extensions are too long")
        magic, length = _EXTENSION.unpack_from(head, offset)
        if length > end - data_offset:
            raise _Malformed("a header extension is longer than its place")
        if magic == _END_OF_EXTENSIONS:
            return found
        offset = data_offset + (length + 7 & ~7)
        if magic not in _TELLING_EXTENSIONS:
            continue
        # Two answers to one question are how one tool is made to see what another doesn't.
        if magic in found:
            raise _Malformed("it has the same header extension twice")
        if data_offset + length > len(head) == _HEAD_BYTES:
            head = os.pread(fd, _MAX_EXTENSIONS_END, 0)
        if data_offset + length > len(head):
            raise _Malformed("its header extensions are cut short")
        found[magic] = head[data_offset : data_offset + length]
    return found


def _interpret_extensions(
    extensions: dict[int, bytes], facts: dict[str, Any], bitmaps_valid: bool, cluster_size: int, size: int
) -> None:
    backing_format = extensions.get(_BACKING_FORMAT_EXTENSION)
    if backing_format is not None:
        if len(backing_format) > _MAX_BACKING_FORMAT or b"\0" in backing_format:
            raise _Malformed("the name of its backing file's format is malformed")
        facts["backing_format"] = os.fsdecode(backing_format) or None
    data_file = extensions.get(_DATA_FILE_EXTENSION)
    if data_file is not None:
        # Told even where the feature bit is missing: whoever put it there is not to be trusted.
        facts["data_file"] = os.fsdecode(data_file)
        if len(data_file) > _MAX_BACKING_FILE or b"\0" in data_file:
            raise _Malformed("the name of its data file is malformed")
    crypto = extensions.get(_CRYPTO_EXTENSION)
    if crypto is not None:
        if facts["encryption"] != "luks" or len(crypto) != _CRYPTO.size:
            raise _Malformed("its encryption header is malformed")
        offset, length = _CRYPTO.unpack(crypto)
        if offset % cluster_size or not cluster_size <= offset <= -(-size // cluster_size) * cluster_size - length:
            raise _Malformed("its encryption header lies outside the file")
    bitmaps = extensions.get(_BITMAPS_EXTENSION)
    if bitmaps is not None:
        if len(bitmaps) != _BITMAPS.size:
            raise _Malformed("its bitmaps are malformed")
        # Without that bit, a tool that knows no bitmaps has written the image, and they count for nothing.
        if bitmaps_valid:
            count, reserved, length, offset = _BITMAPS.unpack(bitmaps)
            if not 0 < count <= _MAX_BITMAPS or reserved or length > 1024 * _MAX_BITMAPS or offset % cluster_size:
                raise _Malformed("its bitmaps are malformed")
            facts["bitmaps"] = True


def _read_backing_file(fd: int, head: bytes, offset: int, length: int) -> str | None:
    name = head[offset : offset + length] if offset + length <= len(head) else os.pread(fd, length, offset)
    if len(name) < length:
        raise _Malformed("the name of its backing file is cut short")
    if b"\0" in name:
        raise _Malformed("the name of its backing file has a NUL in it")
    return os.fsdecode(name) or None


def _read_snapshots(fd: int, size: int, offset: int, count: int) -> tuple[SnapshotEntry, ...]:
    available = min(size - offset, _MAX_SNAPSHOT_TABLE)
    length = 64 * 1024
    while True:
        table = os.pread(fd, length, offset)
        entries = _parse_snapshots(table, count)
        if entries is not None:
            return entries
        if length >= available:
            raise _Malformed("its snapshot table is cut short or longer than 8 MiB")
        length = min(length * 16, available)


def _parse_snapshots(table: bytes, count: int) -> tuple[SnapshotEntry, ...] | None:
    """Return the entries of ``table``, or None where it ends before the last of them."""
    entries = []
    offset = 0
    for _number in range(count):
        offset = offset + 7 & ~7
        extra_offset = offset + _SNAPSHOT.size
        if extra_offset > len(table):
            return None
        l1_offset, l1_size, id_length, name_length, seconds, nanoseconds, _clock, state_size, extra_length = (
            _SNAPSHOT.unpack_from(table, offset)
        )
        if extra_length > _MAX_SNAPSHOT_EXTRA_DATA:
            raise _Malformed("an entry of its snapshot table is malformed")
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
