# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The nouns: pools, volumes and what hangs on them, as frozen values without any I/O."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ._named_tuple import NamedTuple

#: What tells one piece of storage from another, whatever path leads to it:
#: ``("file", st_dev, st_ino)``, ``("block", st_rdev, 0)``, ``("network", key, "")`` or, where nothing
#: is there to be looked at, ``("path", normalised path, "")``.
Ident = tuple[str, Any, Any]

#: Pool types whose volumes are files in a directory of this host.
FILE_POOL_TYPES = frozenset({"dir", "fs", "netfs", "vstorage"})
#: Pool types whose volumes are reached over the network by QEMU itself.
NETWORK_POOL_TYPES = frozenset({"rbd", "sheepdog", "gluster", "iscsi-direct"})
#: Pool types without files whose volumes can be made, grown and deleted.
MANAGED_POOL_TYPES = frozenset({"logical", "zfs", "rbd"})
#: Of them, those whose volumes libvirt looks for at the paths that it was told of a moment before.
RENAMED_POOL_TYPES = frozenset({"logical", "zfs"})


class PoolSource(NamedTuple):
    """Where a pool's storage is: a volume group, a zpool, or a pool of a Ceph cluster with the way to it."""

    name: str
    hosts: tuple[str, ...] = ()  # monitors, with their ports
    user: str | None = None
    secret: tuple[str, str] | None = None  # how libvirt knows the user's key: ("uuid" or "usage", which)
    options: tuple[tuple[str, str], ...] = ()  # of the Ceph client


class Pool(NamedTuple):
    """A storage pool; sizes in bytes."""

    name: str
    uuid: str
    type: str
    path: str | None
    active: bool = True
    capacity: int = 0
    allocation: int = 0
    available: int = 0
    source: PoolSource | None = None
    granularity: int = 512  # bytes that its volumes' sizes are multiples of

    @property
    def stores_files(self) -> bool:
        return self.type in FILE_POOL_TYPES and self.path is not None

    @property
    def volume_type(self) -> str:
        if self.stores_files:
            return "file"
        return "network" if self.type in NETWORK_POOL_TYPES else "block"

    @property
    def place(self) -> Ident:
        """What the volumes of a pool without files lie in, whatever hypervisors of this host call it."""
        return ("pool", self.type, self.source.name if self.source is not None else self.uuid)

    @property
    def default_format(self) -> str:
        return "qcow2" if self.stores_files else "raw"

    def to_result(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "uuid": self.uuid,
            "type": self.type,
            "path": self.path,
            "active": self.active,
            "capacity": self.capacity,
            "allocation": self.allocation,
            "available": self.available,
        }


class Attachment(NamedTuple):
    """One use of a volume by a domain; ``snapshot`` names the domain snapshot when only that refers to it."""

    domain: str
    domain_uuid: str
    state: str
    target: str | None
    bus: str | None
    live: bool
    readonly: bool
    via: str
    snapshot: str | None = None

    @property
    def running(self) -> bool:
        """Whether a QEMU process has the volume open now (a paused guest's process does)."""
        return self.live

    def to_result(self) -> dict[str, Any]:
        return {
            "domain": self.domain,
            "domain_uuid": self.domain_uuid,
            "state": self.state,
            "target": self.target,
            "bus": self.bus,
            "live": self.live,
            "readonly": self.readonly,
            "via": self.via,
        }


class Backing(NamedTuple):
    """What a volume's unwritten clusters are read from; ``chain`` goes from the direct backing to the base."""

    path: str
    format: str | None
    name: str | None
    pool: str | None
    chain: tuple[str, ...]

    def to_result(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "format": self.format,
            "name": self.name,
            "pool": self.pool,
            "chain": list(self.chain),
        }


class Dependent(NamedTuple):
    """A volume whose backing chain includes the one that was asked for."""

    pool: str
    name: str
    path: str

    def to_result(self) -> dict[str, Any]:
        return {"pool": self.pool, "name": self.name, "path": self.path}


class Snapshot(NamedTuple):
    """An internal qcow2 snapshot; ``date`` is ISO 8601 in UTC, sizes in bytes."""

    name: str
    id: str
    date: str
    vm_state_size: int
    disk_size: int | None = None

    def to_result(self) -> dict[str, Any]:
        return {"name": self.name, "id": self.id, "date": self.date, "vm_state_size": self.vm_state_size}


class Volume(NamedTuple):
    """The public ``volume`` dict, sizes in bytes."""

    name: str
    uuid: str
    key: str
    path: str
    pool: str
    type: str
    format: str
    capacity: int
    allocation: int
    attachments: tuple[Attachment, ...] = ()
    backing: Backing | None = None
    dependents: tuple[Dependent, ...] = ()
    snapshots: tuple[Snapshot, ...] = ()
    encrypted: bool = False
    cluster_size: int | None = None
    compat: str | None = None

    @property
    def status(self) -> str:
        return "attached" if self.attachments else "available"

    def to_result(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "uuid": self.uuid,
            "key": self.key,
            "path": self.path,
            "pool": self.pool,
            "type": self.type,
            "format": self.format,
            "capacity": self.capacity,
            "allocation": self.allocation,
            "status": self.status,
            "attachments": [a.to_result() for a in self.attachments],
            "backing": self.backing.to_result() if self.backing else None,
            "dependents": [d.to_result() for d in self.dependents],
            "snapshots": [s.to_result() for s in self.snapshots],
            "encrypted": self.encrypted,
            "cluster_size": self.cluster_size,
            "compat": self.compat,
        }

    def to_diff(self) -> dict[str, Any]:
        """The part of a volume that a diff shows: what was asked for, nothing that moves by itself."""
        return {
            "state": "present",
            "pool": self.pool,
            "format": self.format,
            "capacity": self.capacity,
            "backing": self.backing.path if self.backing else None,
        }


#: The same shape for a volume that isn't there.
ABSENT_DIFF = {"state": "absent"}


def name_uses(uses: Iterable[Attachment]) -> str:
    """Domains with what they use the volume for, in words."""
    words = []
    for use in uses:
        # What has no bus is no disk: firmware's state, a kernel, memory, a file system of the host.
        kind = "backing layer" if use.via == "backing" else "disk" if use.bus else ""
        how = f"snapshot {use.snapshot!r}" if use.snapshot else kind
        what = f"{how} {use.target or ''}".strip()
        words.append(f"domain {use.domain!r} ({use.state}, {what})" if what else f"domain {use.domain!r} ({use.state})")
    return ", ".join(dict.fromkeys(words))


class Rights(NamedTuple):
    """Owner, group and mode of a new file; ``None`` leaves the default (this user, 0600)."""

    uid: int | None = None
    gid: int | None = None
    mode: int | None = None
