# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is wished for, and what becomes of it: values that decisions make. The steps of a plan are in _steps.

Check mode, diff, ``changed`` and ``actions`` are all read off the plan, so they can't disagree with what is done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._model import Rights
from ._named_tuple import NamedTuple

if TYPE_CHECKING:
    from ._model import Volume
    from ._steps import Step


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
