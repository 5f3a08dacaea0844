# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The only XML: libvirt's documents in, typed values out, and the volume document that we send.

Formats: https://libvirt.org/formatstorage.html, formatdomain.html, formatsnapshot.html.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator

from ._model import Pool, PoolSource
from ._named_tuple import NamedTuple

_RBD_OPTIONS = "{http://libvirt.org/schemas/storagepool/rbd/1.0}"


class SourceRef(NamedTuple):
    """What a disk's ``<source>`` points to: a path, a volume of a pool, or a network name."""

    kind: str  # file | block | volume | network
    path: str | None = None
    pool: str | None = None
    volume: str | None = None
    protocol: str | None = None


class DiskDef(NamedTuple):
    """One use of storage in a domain's definition; ``layers`` are the backing sources that libvirt lists."""

    target: str | None
    bus: str | None
    readonly: bool
    format: str | None
    source: SourceRef
    layers: tuple[SourceRef, ...] = ()
    mirrors: tuple[SourceRef, ...] = ()  # what a running block copy writes to
    is_disk: bool = True
    encrypted: bool = False  # QEMU encrypts it, as LUKS or in its old method


class SnapshotDisk(NamedTuple):
    """What a domain snapshot did to one disk: how, and the overlay that came on top (external ones)."""

    target: str
    how: str  # internal | external | no | manual
    overlay: SourceRef | None
    half_merged: bool = False  # a later snapshot was to be deleted, which merges what came then into the overlay, and that never ended


class SnapshotDef(NamedTuple):
    """A libvirt domain snapshot: the disks as they were when it was taken, and what was made of them."""

    name: str
    created: int
    disks: tuple[SnapshotDisk, ...]
    domain_disks: tuple[DiskDef, ...]


class VolumeDef(NamedTuple):
    """A volume as libvirt describes it; sizes in bytes."""

    name: str
    key: str
    path: str
    type: str
    format: str | None
    capacity: int
    allocation: int
    backing_path: str | None
    backing_format: str | None
    encrypted: bool


def parse_pool(text: str, *, active: bool = True) -> Pool:
    """Read a pool's document; ``path`` is ``None`` for pools without a target."""
    root = ET.fromstring(text)
    return Pool(
        name=root.findtext("name", ""),
        uuid=root.findtext("uuid", ""),
        type=root.get("type", ""),
        path=root.findtext("target/path"),
        active=active,
        capacity=int(root.findtext("capacity", "0")),
        allocation=int(root.findtext("allocation", "0")),
        available=int(root.findtext("available", "0")),
        source=_pool_source(root),
    )


def _pool_source(root: ET.Element) -> PoolSource | None:
    """The named storage behind a pool; ``None`` for pools that are a directory, or the devices of a host."""
    name = root.findtext("source/name")
    if not name:
        return None
    hosts = []
    for host in root.findall("source/host"):
        address, port = host.get("name", ""), host.get("port")
        bracketed = f"[{address}]" if ":" in address else address
        hosts.append(f"{bracketed}:{port}" if port else address)
    auth = root.find("source/auth")
    known_by = auth.find("secret") if auth is not None else None
    known = dict(known_by.items()) if known_by is not None else {}
    secret = next(((kind, known[kind]) for kind in ("uuid", "usage") if known.get(kind)), None)
    options = root.findall(f"{_RBD_OPTIONS}config_opts/{_RBD_OPTIONS}option")
    return PoolSource(
        name=name,
        hosts=tuple(hosts),
        user=auth.get("username") if auth is not None else None,
        secret=secret,
        options=tuple((option.get("name", ""), option.get("value", "")) for option in options),
    )


def parse_volume(text: str) -> VolumeDef:
    """Read a volume's document."""
    root = ET.fromstring(text)
    target_format = root.find("target/format")
    backing_format = root.find("backingStore/format")
    return VolumeDef(
        name=root.findtext("name", ""),
        key=root.findtext("key", ""),
        path=root.findtext("target/path", ""),
        type=root.get("type", "file"),
        format=target_format.get("type") if target_format is not None else None,
        capacity=int(root.findtext("capacity", "0")),
        allocation=int(root.findtext("allocation", "0")),
        backing_path=root.findtext("backingStore/path"),
        backing_format=backing_format.get("type") if backing_format is not None else None,
        encrypted=root.find("target/encryption") is not None,
    )


def build_volume(*, name: str, capacity: int, allocation: int, format: str | None) -> str:
    """The document that creates a volume in a pool that isn't made of files; sizes in bytes.

    The allocation is always sent: without it libvirt allocates everything.
    """
    root = ET.Element("volume")
    ET.SubElement(root, "name").text = name
    ET.SubElement(root, "capacity", unit="bytes").text = str(capacity)
    ET.SubElement(root, "allocation", unit="bytes").text = str(allocation)
    if format is not None:
        ET.SubElement(ET.SubElement(root, "target"), "format", type=format)
    return ET.tostring(root, encoding="unicode")


def build_backup(*, target: str, path: str, image_format: str, others: Iterable[str]) -> str:
    """The document of a push backup of one disk into an existing file (https://libvirt.org/formatbackup.html)."""
    root = ET.Element("domainbackup", mode="push")
    disks = ET.SubElement(root, "disks")
    disk = ET.SubElement(disks, "disk", name=target, backup="yes", type="file")
    ET.SubElement(disk, "driver", type=image_format)
    ET.SubElement(disk, "target", file=path)
    for other in others:
        ET.SubElement(disks, "disk", name=other, backup="no")
    return ET.tostring(root, encoding="unicode")


def backed_up(text: str) -> list[str]:
    """The disks of a domain that a backup job copies."""
    return [disk.get("name", "") for disk in ET.fromstring(text).findall("disks/disk") if disk.get("backup") != "no"]


def backup_targets(text: str) -> list[str]:
    """The files that a backup job writes to."""
    found = [target.get("file") for target in ET.fromstring(text).findall("disks/disk/target")]
    return [path for path in found if path]


def may_have_agent(text: str) -> bool:
    """Whether a running domain has a guest agent that libvirt can talk to, as far as QEMU tells of its channel."""
    channels = ET.fromstring(text).findall("devices/channel/target")
    return any(each.get("name") == "org.qemu.guest_agent.0" and each.get("state") != "disconnected" for each in channels)


def parse_domain_disks(text: str) -> tuple[DiskDef, ...]:
    """Every storage that a domain's document refers to."""
    return tuple(_domain_disks(ET.fromstring(text)))


def parse_snapshot(text: str) -> SnapshotDef:
    """Read a domain snapshot's document."""
    root = ET.fromstring(text)
    disks = []
    for disk in root.findall("disks/disk"):
        overlay = _source_ref(disk, disk.get("type", "file"))
        half_merged = disk.find("snapshotDeleteInProgress") is not None
        disks.append(SnapshotDisk(disk.get("name", ""), disk.get("snapshot", "no"), overlay, half_merged))
    inner = [d for tag in ("domain", "inactiveDomain") for e in root.findall(tag) for d in _domain_disks(e)]
    for memory in root.findall("memory"):  # without it the snapshot can't be gone back to
        inner += _other("memory", _file(memory.get("file")))
    return SnapshotDef(
        name=root.findtext("name", ""),
        created=int(root.findtext("creationTime", "0")),
        disks=tuple(disks),
        domain_disks=tuple(inner),
    )


def _domain_disks(root: ET.Element) -> Iterator[DiskDef]:
    for disk in root.findall("devices/disk"):
        source = _source_ref(disk, disk.get("type", "file"))
        if source is None:
            continue
        target = disk.find("target")
        driver = disk.find("driver")
        yield DiskDef(
            target=target.get("dev") if target is not None else None,
            bus=target.get("bus") if target is not None else None,
            readonly=disk.find("readonly") is not None or disk.get("device") == "cdrom",
            # libvirt opens a disk without a stated driver type as raw (probing is off).
            format=(driver.get("type") if driver is not None else None) or "raw",
            source=source,
            layers=tuple(_nested(disk, "backingStore", "dataStore")),
            mirrors=tuple(_nested(disk, "mirror")),
            encrypted=disk.find("encryption") is not None or disk.find("source/encryption") is not None,
        )
    yield from _other_storage(root)


def _nested(disk: ET.Element, *tags: str) -> Iterator[SourceRef]:
    """The sources of elements at any depth below a disk."""
    for element in disk.iter():
        if element.tag in tags:
            ref = _source_ref(element, element.get("type", "file"))
            if ref is not None:
                yield ref


def _other_storage(root: ET.Element) -> Iterator[DiskDef]:
    """Storage that a domain needs besides its disks: state of firmware and TPM, kernels, memory that lasts, host file systems."""
    plain = {"loader": "loader", "nvram": "nvram", "kernel": "kernel", "initrd": "initrd", "dtb": "dtb"}
    for tag, label in plain.items():
        for element in root.findall(f"os/{tag}"):
            yield from _other(label, _source_ref(element, element.get("type", "file")) or _file(element.text), readonly=tag != "nvram")
    for element in root.findall("os/varstore"):  # of UEFI too, since libvirt 12
        yield from _other("varstore", _file(element.get("path")))
    for element in root.findall("devices/tpm/backend/source"):  # a file may be chosen since libvirt 10.10
        yield from _other("tpm", _file(element.get("path")))
    for label, path in (("memory", "devices/memory/source/path"), ("pstore", "devices/pstore/path")):
        for element in root.findall(path):
            yield from _other(label, _file(element.text))
    for element in root.findall("devices/filesystem"):
        source = element.find("source")
        location = (source.get("file") or source.get("dev")) if source is not None else None
        if location:
            target = element.find("target")
            place = target.get("dir") if target is not None else None
            yield from _other(place, SourceRef("file", path=location), readonly=element.find("readonly") is not None)


def _other(label: str | None, source: SourceRef | None, *, readonly: bool = False) -> Iterator[DiskDef]:
    if source is not None:
        yield DiskDef(target=label, bus=None, readonly=readonly, format=None, source=source, is_disk=False)


def _file(path: str | None) -> SourceRef | None:
    """What a path that stands in an attribute or a text leads to; relative ones are not libvirt's."""
    path = (path or "").strip()
    return SourceRef("file", path=path) if path.startswith("/") else None


def _source_ref(element: ET.Element, kind: str) -> SourceRef | None:
    source = element.find("source")
    if source is None:
        return None
    if kind == "volume":
        return SourceRef("volume", pool=source.get("pool"), volume=source.get("volume"))
    if kind == "network":
        return SourceRef("network", path=source.get("name"), protocol=source.get("protocol"))
    path = source.get("file") or source.get("dev")
    if not path:
        return None
    return SourceRef("block" if kind == "block" else "file", path=path)
