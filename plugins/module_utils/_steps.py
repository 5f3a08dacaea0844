# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The steps that a plan can have, and what is wished for: values that decisions make and deeds carry out.

Check mode, diff, ``changed`` and ``actions`` are all read off the plan, so they can't disagree with what is done.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Union

from ._model import Attachment, Pool, Volume
from ._size import human


_METHODS = {
    "reflink": "reflink, sharing extents",
    "convert": "qemu-img convert",
    "backup": "backup job of domain {domain!r}",
}


class Rights(NamedTuple):
    """Owner, group and mode of a new file; ``None`` leaves the default (this user, 0600)."""

    uid: int | None = None
    gid: int | None = None
    mode: int | None = None


class Wish(NamedTuple):
    """What the caller of ``volume`` with ``state: present`` asks for; sizes in bytes, ``None`` where nothing is said."""

    size: int | None = None
    format: str | None = None
    preallocation: str | None = None
    clone_mode: str | None = None
    template: str | None = None
    template_pool: str | None = None
    snapshot: str | None = None
    snapshot_volume: str | None = None
    snapshot_pool: str | None = None
    cluster_size: int | None = None
    overcommit: bool = True
    rights: Rights = Rights()

    @property
    def has_source(self) -> bool:
        return self.template is not None or self.snapshot is not None


class CloneWish(NamedTuple):
    """What the caller of ``volume_clone`` asks for; sizes in bytes, ``None`` where nothing is said."""

    size: int | None = None
    format: str | None = None
    preallocation: str | None = None
    cluster_size: int | None = None
    overcommit: bool = True
    verify: bool = False
    rights: Rights = Rights()


class Source(NamedTuple):
    """An image to start from, already found fit to be read: ``label`` says which one in words."""

    path: str
    label: str
    format: str
    capacity: int
    in_pool: bool = True
    snapshot: str | None = None  # id of an internal snapshot to read
    snapshot_name: str | None = None
    snapshot_moment: tuple[int, ...] = ()  # what tells it from a later one of its id and name
    home: tuple[Pool, str] | None = None  # pool and name, where it is a volume
    below: tuple[str, ...] = ()  # paths of its own backing chain
    shared: bool = False  # a running domain writes to the image meanwhile
    check: bool = False  # look whether the copy is sound before it is published
    cluster_size: int | None = None  # of a qcow2 image
    features: tuple[tuple[str, str], ...] = ()  # qcow2 creation options that a clone of it keeps
    pass_fds: tuple[int, ...] = ()  # descriptors that a tool inherits to reach the image
    fd: int | None = None  # of them, the image itself, once it is open


class CreateBlank(NamedTuple):
    pool: Pool
    name: str
    format: str
    capacity: int
    preallocation: str
    cluster_size: int | None
    rights: Rights

    @property
    def text(self) -> str:
        detail = f", preallocation {self.preallocation}" if self.preallocation != "off" else ""
        return (
            f"create blank {self.format} volume {self.name!r} of {self.capacity} bytes "
            f"({human(self.capacity)}) in pool {self.pool.name!r}{detail}"
        )


class CreateOverlay(NamedTuple):
    pool: Pool
    name: str
    capacity: int
    source: Source
    cluster_size: int | None
    rights: Rights
    format: str = "qcow2"
    preallocation: str = "off"

    @property
    def text(self) -> str:
        return (
            f"create qcow2 volume {self.name!r} of {self.capacity} bytes ({human(self.capacity)}) "
            f"in pool {self.pool.name!r}, backed by {self.source.label}"
        )


class CopyImage(NamedTuple):
    pool: Pool
    name: str
    format: str
    capacity: int
    source: Source
    preallocation: str
    cluster_size: int | None
    rights: Rights
    method: str = "convert"  # reflink | convert | backup
    features: tuple[tuple[str, str], ...] = ()  # qcow2 creation options beside cluster_size
    verify: bool = False
    live: Attachment | None = None  # the running disk that a backup job copies

    @property
    def text(self) -> str:
        how = _METHODS[self.method].format(domain=self.live.domain if self.live else "")
        verified = " and verify it" if self.verify else ""
        return (
            f"create {self.format} volume {self.name!r} of {self.capacity} bytes ({human(self.capacity)}) "
            f"in pool {self.pool.name!r} as a full copy of {self.source.label} ({how}){verified}"
        )


class Grow(NamedTuple):
    pool: Pool
    name: str
    path: str
    format: str
    capacity_before: int
    capacity: int
    preallocation: str
    online: tuple[Attachment, ...] = ()

    @property
    def text(self) -> str:
        through = ", ".join(f"{use.domain} ({use.target})" for use in self.online)
        how = f"online through {through}" if through else "offline"
        return (
            f"grow volume {self.name!r} in pool {self.pool.name!r} from {self.capacity_before} "
            f"to {self.capacity} bytes ({human(self.capacity)}), {how}"
        )


class Delete(NamedTuple):
    pool: Pool
    name: str
    path: str
    type: str
    wipe: bool

    @property
    def text(self) -> str:
        return f"{'wipe and delete' if self.wipe else 'delete'} volume {self.name!r} of pool {self.pool.name!r}"


Create = Union[CreateBlank, CreateOverlay, CopyImage]
Step = Union[CreateBlank, CreateOverlay, CopyImage, Grow, Delete]


class VolumePlan(NamedTuple):
    """What becomes of one volume: the steps (none when it is as wished), the diff, and the predicted result."""

    name: str
    steps: tuple[Step, ...]
    before: dict[str, Any]
    after: dict[str, Any]
    result: Volume | None
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()  # for the result's msg: what the caller should know or do next


def keep(volume: Volume) -> VolumePlan:
    """The plan of a volume that is as wished."""
    return VolumePlan(volume.name, (), volume.to_diff(), volume.to_diff(), volume)


class Plan:
    """The plans of all names of a call, in their order."""

    def __init__(self, volumes: tuple[VolumePlan, ...] = (), warnings: tuple[str, ...] = ()) -> None:
        self.volumes = volumes
        self.warnings = warnings

    @property
    def steps(self) -> tuple[Step, ...]:
        return tuple(step for volume in self.volumes for step in volume.steps)

    @property
    def changed(self) -> bool:
        return bool(self.steps)

    @property
    def actions(self) -> list[str]:
        return [step.text for step in self.steps]

    @property
    def before(self) -> dict[str, Any]:
        return {volume.name: volume.before for volume in self.volumes}

    @property
    def after(self) -> dict[str, Any]:
        return {volume.name: volume.after for volume in self.volumes}


class Facts(NamedTuple):
    """What decides about harm beside the volume itself: who has the image open, and loop devices on it."""

    opened: str | None = None  # writing | reading | None: by image locks, whoever holds them
    loop_devices: tuple[str, ...] = ()
    names: int = 1  # of its file (hard links)
    snapshots: tuple[str, ...] = ()  # the storage's own, which hold an RBD image
    unread: str | None = None  # what of the active pools can't be read by now, so that it may be built on anything
