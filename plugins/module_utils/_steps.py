# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The steps that a plan can have, and the image that some of them start from: values that deeds carry out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Union

from ._named_tuple import NamedTuple
from ._size import human

if TYPE_CHECKING:
    from ._model import Attachment, Pool, Rights

_METHODS = {
    "reflink": "reflink, sharing extents",
    "convert": "qemu-img convert",
    "backup": "backup job of domain {domain!r}",
}


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


class Moment(NamedTuple):
    """What a copy is of: ``offline``, ``filesystem`` or ``crash``; and what the user should know about the guest."""

    consistency: str
    warnings: tuple[str, ...] = ()
