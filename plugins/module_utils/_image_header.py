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
from typing import TYPE_CHECKING, Any

from ._errors import Malformed
from ._named_tuple import NamedTuple

if TYPE_CHECKING:
    from ._snapshot_table import SnapshotEntry

# One read of this many bytes holds all there is to know about nearly every image.
_HEAD_BYTES = 4096
# Header extensions may fill a cluster (2 MiB); what QEMU writes stays below 2 KiB.
_MAX_EXTENSIONS_END = 64 * 1024

_MAX_SIZE = 2**63 - 1
_MAX_L1_BYTES = 32 * 1024 * 1024
_MAX_REFCOUNT_TABLE_BYTES = 8 * 1024 * 1024
_MAX_SNAPSHOTS = 65536
_LEAST_SNAPSHOT = 40  # bytes of an entry of their table
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

_LUKS = 2
_ENCRYPTIONS = {0: None, 1: "aes", _LUKS: "luks"}
_COMPRESSIONS = {0: "zlib", 1: "zstd"}


class ImageHeader(NamedTuple):
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
    problem: str | None = None  # a clause ("its ..."), why no tool should be let near this image


def read_header(fd: int) -> ImageHeader:
    """Return what the image open as ``fd``, a regular file or block device, claims to be; raises OSError."""
    status = os.fstat(fd)
    size = status.st_size if stat.S_ISREG(status.st_mode) else os.lseek(fd, 0, os.SEEK_END)
    head = os.pread(fd, _HEAD_BYTES, 0)
    if len(head) < _HEAD_BYTES:
        # It may have been cut since.
        size = len(head)
    if head.startswith(_QCOW_MAGIC) and int.from_bytes(head[4:8], "big") >= 2:
        return _read_qcow2(fd, head, size)
    from ._foreign_header import read_foreign  # here, since most images are qcow2

    foreign = read_foreign(fd, head, size)
    return ImageHeader(**foreign) if foreign else raw_header(size)


def raw_header(size: int) -> ImageHeader:
    """Return what an image of ``size`` bytes known to be raw is, whatever a guest wrote into it."""
    return ImageHeader(format="raw", capacity=size)


class _Fields(NamedTuple):
    """The fixed fields of a qcow2 header, in its order; offsets and sizes in bytes unless named otherwise."""

    version: int
    backing_offset: int
    backing_length: int
    cluster_bits: int
    capacity: int
    crypt_method: int
    l1_entries: int
    l1_offset: int
    refcount_offset: int
    refcount_clusters: int
    snapshot_count: int
    snapshots_offset: int
    # Version 3 has these; in version 2 they mean what stands here.
    incompatible: int = 0
    compatible: int = 0
    autoclear: int = 0
    refcount_order: int = 4
    header_length: int = _HEADER_V2.size


def _read_qcow2(fd: int, head: bytes, size: int) -> ImageHeader:
    facts: dict[str, Any] = {"format": "qcow2"}
    try:
        image = _Qcow2(fd, head, size, facts)
    except Malformed as fault:
        return ImageHeader(**facts, problem=str(fault))
    # All are tried, also after a fault: a damaged overlay still needs its backing file kept.
    for step in (image.tell_features, image.tell_references, image.check_tables, image.tell_snapshots):
        try:
            step()
        except Malformed as fault:
            facts.setdefault("problem", str(fault))
    return ImageHeader(**facts)


class _Qcow2:
    """Reads one qcow2 header into ``facts``, the fields of ImageHeader; every method raises Malformed."""

    def __init__(self, fd: int, head: bytes, size: int, facts: dict[str, Any]) -> None:
        self.fd, self.head, self.size, self.facts = fd, head, size, facts
        if len(head) < _HEADER_V2.size:
            raise Malformed("its header is cut short")
        values = _HEADER_V2.unpack_from(head)[1:]
        version, cluster_bits = values[0], values[3]
        if version > 3:
            raise Malformed(f"its qcow2 version is {version}; 2 and 3 are known")
        facts["compat"] = "0.10" if version == 2 else "1.1"
        if not 9 <= cluster_bits <= 21:
            raise Malformed("its cluster size is not between 512 bytes and 2 MiB")
        self.cluster_size = facts["cluster_size"] = 1 << cluster_bits
        if version == 3:
            if len(head) < _V3_LENGTH:
                raise Malformed("its header is cut short")
            values += _HEADER_V3.unpack_from(head, _HEADER_V2.size)
        self.fields = _Fields(*values)
        least = _V3_LENGTH if version == 3 else _HEADER_V2.size
        if not least <= self.fields.header_length <= min(self.cluster_size, size):
            raise Malformed(f"its header claims a length of {self.fields.header_length} bytes")

    def tell_features(self) -> None:
        fields, facts = self.fields, self.facts
        # QEMU counts whole sectors.
        facts["capacity"] = min(fields.capacity, _MAX_SIZE) & ~511
        facts["lazy_refcounts"] = bool(fields.compatible & _LAZY_REFCOUNTS)
        facts["dirty"] = bool(fields.incompatible & _DIRTY)
        facts["corrupt"] = bool(fields.incompatible & _CORRUPT)
        facts["extended_l2"] = bool(fields.incompatible & _EXTENDED_L2)
        if fields.capacity > _MAX_SIZE:
            raise Malformed("its virtual size is more than 2^63-1 bytes")
        if fields.incompatible & ~_KNOWN_INCOMPATIBLE:
            raise Malformed("it uses incompatible features that are not known here")
        compression = self.head[_V3_LENGTH] if fields.header_length > _V3_LENGTH else 0
        if compression not in _COMPRESSIONS or bool(compression) != bool(fields.incompatible & _COMPRESSION):
            raise Malformed("its compression type is unknown or contradicts its features")
        facts["compression_type"] = _COMPRESSIONS[compression]
        if fields.incompatible & _EXTENDED_L2 and fields.cluster_bits < 14:
            raise Malformed("its clusters are too small for extended L2 entries")
        if fields.refcount_order > 6:
            raise Malformed("its reference counts are wider than 64 bits")
        facts["refcount_bits"] = 1 << fields.refcount_order
        if fields.crypt_method not in _ENCRYPTIONS:
            raise Malformed("its encryption method is unknown")
        facts["encryption"] = _ENCRYPTIONS[fields.crypt_method]

    def tell_references(self) -> None:
        """Tell what the image leads to: its backing file, a data file; and what else the extensions hold."""
        fields, facts = self.fields, self.facts
        if fields.incompatible & _DATA_FILE:
            facts["data_file"] = ""
        if fields.backing_offset:
            facts["backing_file"] = self._read_backing_file()
        extensions = self._read_extensions()
        if extensions:
            self._tell_extensions(extensions)
        if fields.crypt_method == _LUKS and _CRYPTO_EXTENSION not in extensions:
            raise Malformed("it is encrypted and its encryption header is missing")

    def check_tables(self) -> None:
        fields = self.fields
        if not fields.refcount_clusters:
            raise Malformed("it has no reference counts")
        length = fields.refcount_clusters * self.cluster_size
        self._check_place("reference counts", fields.refcount_offset, length, _MAX_REFCOUNT_TABLE_BYTES)
        self._check_place("L1 table", fields.l1_offset, fields.l1_entries * 8, _MAX_L1_BYTES)
        # An L1 entry leads to a cluster full of L2 entries, each of which leads to a cluster.
        l2_entries = self.cluster_size // (16 if fields.incompatible & _EXTENDED_L2 else 8)
        if fields.l1_entries * l2_entries * self.cluster_size < fields.capacity:
            raise Malformed("its L1 table is too small for its virtual size")

    def tell_snapshots(self) -> None:
        fields = self.fields
        least = fields.snapshot_count * _LEAST_SNAPSHOT
        self._check_place("snapshot table", fields.snapshots_offset, least, _MAX_SNAPSHOTS * _LEAST_SNAPSHOT)
        if not fields.snapshot_count:
            return
        from ._snapshot_table import read_snapshots  # here, since most images have none

        entries = read_snapshots(self.fd, self.size, fields.snapshots_offset, fields.snapshot_count)
        self.facts["snapshots"] = entries
        for entry in entries:
            self._check_place("snapshot's L1 table", entry.l1_table_offset, entry.l1_size * 8, _MAX_L1_BYTES)

    def _check_place(self, name: str, offset: int, length: int, limit: int) -> None:
        if length > limit:
            raise Malformed(f"its {name} would take more than {limit} bytes")
        if offset % self.cluster_size:
            raise Malformed(f"its {name} would not begin at a cluster")
        # Nothing lies in the header's cluster. A file may end within its last cluster.
        end = -(-self.size // self.cluster_size) * self.cluster_size
        if length and not self.cluster_size <= offset <= end - length:
            raise Malformed(f"its {name} would lie outside the file")

    def _read_backing_file(self) -> str | None:
        offset, length = self.fields.backing_offset, self.fields.backing_length
        if not self.fields.header_length <= offset <= self.cluster_size:
            raise Malformed("the name of its backing file is not in its place")
        if length > min(_MAX_BACKING_FILE, self.cluster_size - offset):
            raise Malformed(f"the name of its backing file has {length} bytes")
        name = self.head[offset : offset + length]
        if len(name) < length:
            name = os.pread(self.fd, length, offset)
        if len(name) < length:
            raise Malformed("the name of its backing file is cut short")
        if b"\0" in name:
            raise Malformed("the name of its backing file has a NUL in it")
        return os.fsdecode(name) or None

    def _read_extensions(self) -> dict[int, bytes]:
        """Return the header extensions that tell something, by their number."""
        found: dict[int, bytes] = {}
        head = self.head
        offset, end = self.fields.header_length, self.fields.backing_offset or self.cluster_size
        while offset < end:
            start = offset + _EXTENSION.size
            if start > end:
                raise Malformed("a header extension is longer than its place")
            if start > len(head):
                head = self._read_long_head()
                # What lies behind the end of a file reads as zeros, which is how extensions end.
                if start > len(head):
                    break
            magic, length = _EXTENSION.unpack_from(head, offset)
            if length > end - start:
                raise Malformed("a header extension is longer than its place")
            if magic == _END_OF_EXTENSIONS:
                break
            if magic in _TELLING_EXTENSIONS:
                # Two answers to one question are how one tool is made to see what another doesn't.
                if magic in found:
                    raise Malformed("it has the same header extension twice")
                if start + length > len(head):
                    head = self._read_long_head()
                found[magic] = head[start : start + length]
                if len(found[magic]) < length:
                    raise Malformed("its header extensions are cut short")
            # Each begins at a multiple of eight bytes.
            offset = start + (length + 7 & ~7)
        return found

    def _read_long_head(self) -> bytes:
        if len(self.head) < min(self.size, _MAX_EXTENSIONS_END):
            self.head = os.pread(self.fd, _MAX_EXTENSIONS_END, 0)
        elif self.size > _MAX_EXTENSIONS_END:
            raise Malformed(f"its header extensions take more than {_MAX_EXTENSIONS_END} bytes")
        return self.head

    def _tell_extensions(self, extensions: dict[int, bytes]) -> None:
        facts = self.facts
        data_file = extensions.get(_DATA_FILE_EXTENSION)
        if data_file is not None:
            # Told even where the feature bit is missing: whoever put it there is not to be trusted.
            facts["data_file"] = os.fsdecode(data_file)
            if len(data_file) > _MAX_BACKING_FILE or b"\0" in data_file:
                raise Malformed("the name of its data file is malformed")
        backing_format = extensions.get(_BACKING_FORMAT_EXTENSION)
        if backing_format is not None:
            if len(backing_format) > _MAX_BACKING_FORMAT or b"\0" in backing_format:
                raise Malformed("the name of its backing file's format is malformed")
            # Without a backing file, it is a leftover.
            if facts.get("backing_file"):
                facts["backing_format"] = os.fsdecode(backing_format) or None
        crypto = extensions.get(_CRYPTO_EXTENSION)
        if crypto is not None:
            if self.fields.crypt_method != _LUKS or len(crypto) != _CRYPTO.size:
                raise Malformed("its encryption header is malformed")
            offset, length = _CRYPTO.unpack(crypto)
            self._check_place("encryption header", offset, length, self.size)
        bitmaps = extensions.get(_BITMAPS_EXTENSION)
        if bitmaps is not None:
            facts["bitmaps"] = self._check_bitmaps(bitmaps)

    def _check_bitmaps(self, extension: bytes) -> bool:
        if len(extension) != _BITMAPS.size:
            raise Malformed("its bitmaps are malformed")
        # Without that bit, a tool that knows no bitmaps has written the image, and they count for nothing.
        if not self.fields.autoclear & _AUTOCLEAR_BITMAPS:
            return False
        count, reserved, length, offset = _BITMAPS.unpack(extension)
        if not 0 < count <= _MAX_BITMAPS or reserved:
            raise Malformed("its bitmaps are malformed")
        self._check_place("bitmaps' directory", offset, length, _MAX_BITMAPS * 1024)
        return True
