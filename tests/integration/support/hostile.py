# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Images that nobody should trust, made from the formats' specifications (QEMU's docs/interop, the vendors' papers).

Each is a function of the path to write and of a file of the host that must never be read.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

from .images import MIB, patch, qcow2_header

SECRET = b"a line that only the host may read\n" * 64
CLUSTER = 65536
_END = 5 * CLUSTER
_TABLE = 4 * CLUSTER  # of snapshots
_SNAPSHOT = struct.pack(">QIHHIIQIIQQ", 3 * CLUSTER, 1, 1, 1, 0, 0, 0, 0, 16, 0, MIB) + b"1s"
Maker = Callable[[Path, Path], None]


def qcow2(path: Path, backing: str = "", *, at: dict[int, bytes] | None = None, size: int = _END) -> None:
    """An image in which nothing is written but its header and a snapshot "s", with other bytes at these places."""
    path.write_bytes(qcow2_header(MIB, backing).ljust(_END, b"\0")[:size])
    # Reference counts of the five clusters, so that only what is meant to be wrong is.
    if size == _END:
        patch(path, CLUSTER, struct.pack(">Q", 2 * CLUSTER))
        patch(path, 2 * CLUSTER, struct.pack(">5H", 1, 1, 1, 2, 1))
        patch(path, 60, struct.pack(">IQ", 1, _TABLE))
        patch(path, _TABLE, _SNAPSHOT)
    for offset, data in (at or {}).items():
        patch(path, offset, data)


def _backed(backing: str) -> Maker:
    return lambda path, secret: qcow2(path, backing.format(secret=secret, pool=path.parent, me=path, name=path.name))


def _patched(offset: int, data: bytes, backing: str = "") -> Maker:
    return lambda path, secret: qcow2(path, backing, at={offset: data})


def _extended(kind: int, length: int, data: bytes = b"", incompatible: int = 0, backing: bool = False) -> Maker:
    """A header extension behind the header of 104 bytes; the name of the backing file moves to 1024."""

    def make(path: Path, secret: Path) -> None:
        text = data.replace(b"SECRET", str(secret).encode())
        name = str(secret).encode() if backing else b""
        qcow2(path, at={
            72: struct.pack(">Q", incompatible), 104: struct.pack(">II", kind, length or len(text)) + text,
            8: struct.pack(">QI", 1024 if name else 0, len(name)), 1024: name})

    return make


def _bytes(data: bytes, size: int = MIB) -> Maker:
    return lambda path, secret: _write(path, data.replace(b"SECRET", str(secret).encode()).ljust(size, b"\0"))


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _link_in_pool(path: Path, secret: Path) -> None:
    (path.parent / "innocent").symlink_to(secret)
    qcow2(path, str(path.parent / "innocent"))


def _relative_link_in_pool(path: Path, secret: Path) -> None:
    (path.parent / "innocent").symlink_to(secret)
    qcow2(path, "innocent")


def _fifo(path: Path, secret: Path) -> None:
    os.mkfifo(path.parent / "fifo")
    qcow2(path, str(path.parent / "fifo"))


def _loop(path: Path, secret: Path) -> None:
    qcow2(path, f"{path.name}-pong")
    qcow2(path.with_name(f"{path.name}-pong"), path.name)


def _deep(path: Path, secret: Path) -> None:
    for depth in range(300):
        qcow2(path.with_name(f"layer{depth}"), f"layer{depth + 1}" if depth < 299 else str(secret))
    qcow2(path, "layer0")


def _second_layer(path: Path, secret: Path) -> None:
    qcow2(path.with_name("middle"), str(secret))
    qcow2(path, "middle")


def _snapshots(count: int, entry: bytes) -> Maker:
    """A snapshot table in the last cluster."""
    return lambda path, secret: qcow2(path, at={
        60: struct.pack(">IQ", count, _TABLE), _TABLE: entry.ljust(len(_SNAPSHOT), b"\0")})


def _l1(entry: int) -> Maker:
    return lambda path, secret: qcow2(path, at={3 * CLUSTER: struct.pack(">Q", entry)})


def _qcow1(path: Path, secret: Path) -> None:
    name = str(secret).encode()
    head = struct.pack(">4sIQIIQBBxxIQ", b"QFI\xfb", 1, 48, len(name), 0, MIB, 12, 9, 0, 4096)
    _write(path, (head + name).ljust(MIB, b"\0"))


def _qed(path: Path, secret: Path) -> None:
    name = str(secret).encode()
    head = struct.pack("<4sIIIQQQQQII", b"QED\0", CLUSTER, 1, 1, 1, 0, 0, CLUSTER, MIB, 72, len(name))
    _write(path, (head + name).ljust(MIB, b"\0"))


_VMDK = (b'# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType="monolithicFlat"\n'
         b'RW 16 FLAT "SECRET" 0\nddb.virtualHWVersion = "4"\nddb.geometry.cylinders = "1"\n')
_VMDK_SPARSE = (struct.pack("<4sIIQQQQIQQQB", b"KDMV", 1, 3, 2048, 128, 1, 20, 512, 21, 26, 128, 0).ljust(512, b"\0") + _VMDK)
_VHD = struct.pack(">8sIIQI4sI4sQQ", b"conectix", 2, 0x10000, 512, 0, b"evil", 1, b"Wi2k", MIB, MIB)
_VDI = (b"<<< Oracle VM VirtualBox Disk Image >>>\n".ljust(64, b"\0") + struct.pack("<III", 0xBEDA107F, 0x10001, 0x190))
_GPT = b"\0" * 510 + b"\x55\xaa" + b"EFI PART" + bytes(0x8000 - 520) + b"\1CD001\1"

#: What no module may read as an image.
REFUSED: dict[str, Maker] = {
    "path of the host": _backed("{secret}"),
    "path through dots": _backed("{pool}/../outside/secret"),
    "relative path": _backed("../outside/secret"),
    "many dots": _backed("../../../../../../../../etc/hostname"),
    "link in the pool": _link_in_pool,
    "relative link": _relative_link_in_pool,
    "second layer": _second_layer,
    "environment": _backed("/proc/self/environ"),
    "descriptor": _backed("/proc/self/fd/0"),
    "zero": _backed("/dev/zero"),
    "kernel messages": _backed("/proc/kmsg"),
    "fifo": _fifo,
    "directory": _backed("/etc"),
    "missing": _backed("{pool}/missing"),
    "json file": _backed('json:{{"driver":"file","filename":"{secret}"}}'),
    "json raw": _backed('json:{{"driver":"raw","file":{{"driver":"file","filename":"{secret}"}}}}'),
    "json short": _backed("json:{{}}"),
    "file:": _backed("file:{secret}"),
    "nbd unix": _backed("nbd:unix:/tmp/nothing"),
    "nbd url": _backed("nbd://127.0.0.1:1/x"),
    "http": _backed("http://127.0.0.1:1/x"),
    "https": _backed("https://127.0.0.1:1/x"),
    "ssh": _backed("ssh://127.0.0.1/x"),
    "rbd": _backed("rbd:pool/image"),
    "iscsi": _backed("iscsi://127.0.0.1/x/0"),
    "fat": _backed("fat:/etc"),
    "host device": _backed("host_device:/dev/vda"),
    "blkdebug": _backed("blkdebug::{secret}"),
    "control characters": _backed("\x01\x02"),
    "two lines": _backed("a\nb"),
    "itself": _backed("{name}"),
    "loop of two": _loop,
    "300 layers": _deep,
    "data file": _extended(0x44415441, 0, b"SECRET", incompatible=4),
    "data file without a name": _patched(72, struct.pack(">Q", 4)),
    "backing format raw": _extended(0xE2792ACA, 3, b"raw", backing=True),
    "backing format nbd": _extended(0xE2792ACA, 3, b"nbd", backing=True),
    "extension too long": _extended(0xE2792ACA, 0xFFFFFFFF),
    "extension cut short": _extended(0xE2792ACA, CLUSTER, b"raw"),
    "version 1": _qcow1,
    "version 4": _patched(4, struct.pack(">I", 4)),
    "name far away": _patched(8, struct.pack(">QI", 2**63, 100)),
    "name too long": _patched(8, struct.pack(">QI", 512, 2**32 - 1)),
    "clusters of 2^63": _patched(20, struct.pack(">I", 63)),
    "clusters of 1": _patched(20, struct.pack(">I", 0)),
    "size 2^63": _patched(24, struct.pack(">Q", 2**63)),
    "size 2^64-1": _patched(24, struct.pack(">Q", 2**64 - 1)),
    "unknown encryption": _patched(32, struct.pack(">I", 9)),
    "encrypted by AES": _patched(32, struct.pack(">I", 1)),
    "encrypted by LUKS": _patched(32, struct.pack(">I", 2)),
    "L1 too long": _patched(36, struct.pack(">I", 2**32 - 1)),
    "L1 far away": _patched(40, struct.pack(">Q", 2**63)),
    "too many snapshots": _patched(60, struct.pack(">I", 2**32 - 1)),
    "snapshots far away": _patched(60, struct.pack(">IQ", 1, 2**64 - 512)),
    "unknown feature 5": _patched(72, struct.pack(">Q", 1 << 5)),
    "unknown feature 63": _patched(72, struct.pack(">Q", 1 << 63)),
    "marked as corrupt": _patched(72, struct.pack(">Q", 2)),
    "header too long": _patched(100, struct.pack(">I", 2**32 - 1)),
    "unknown compression": _extended(0, 8, b"", incompatible=8),
    "half a header": lambda path, secret: qcow2(path, size=40),
    "vmdk": _bytes(_VMDK, 1024),
    "vmdk sparse": _bytes(_VMDK_SPARSE),
    "vdi": _bytes(_VDI),
    "vhd": _bytes(_VHD),
    "vhdx": _bytes(b"vhdxfile"),
    "qed": _qed,
    "empty": _bytes(b"", 0),
    "luks": _bytes(b"LUKS\xba\xbe\x00\x01aes"),
}
#: What may be read; then as what it is, and no more.
STRANGE: dict[str, Maker] = {
    "only magic": lambda path, secret: qcow2(path, size=4),
    "version 0": _patched(4, struct.pack(">I", 0)),
    "size 2^62": _patched(24, struct.pack(">Q", 2**62)),
    "reference counts of 2^63 bits": _patched(96, struct.pack(">I", 63)),
    "reference counts far away": _patched(48, struct.pack(">Q", 2**62)),
    "L1 in the header": _patched(40, struct.pack(">Q", 0)),
    "L1 crooked": _patched(40, struct.pack(">Q", 12345)),
    "L1 too short": _patched(36, struct.pack(">I", 0)),
    "L2 far away": _l1(1 << 63 | 1 << 50),
    "L2 is the header": _l1(1 << 63),
    "L2 is L1": _l1(1 << 63 | 3 * CLUSTER),
    "snapshot entry cut short": _snapshots(1, _SNAPSHOT[:20]),
    "snapshot with long extra data": _snapshots(1, _SNAPSHOT[:36] + struct.pack(">I", 2**31) + b"1s"),
    "snapshot with a huge L1": _snapshots(1, struct.pack(">QI", 3 * CLUSTER, 2**32 - 1) + _SNAPSHOT[12:]),
    "snapshot with L1 far away": _snapshots(1, struct.pack(">Q", 2**62) + _SNAPSHOT[8:]),
    "lazy and dirty": _patched(72, struct.pack(">QQ", 1, 1)),
    "vhd at the end": lambda path, secret: _write(path, bytes(MIB - 512) + _VHD.ljust(512, b"\0")),
    "iso and gpt": _bytes(_GPT),
    "qcow2 at 512": _bytes(bytes(512) + qcow2_header(MIB, "/etc/hostname")),
    "shebang": _bytes(b"#!/bin/cat SECRET\n"),
    "path": _bytes(b"SECRET\n"),
}
