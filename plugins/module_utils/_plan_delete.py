# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether a volume may be deleted: refused while anybody uses it or needs it. No I/O."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ._errors import ToolFailed, Unsupported, VolumeHasDependents, VolumeInUse
from ._model import ABSENT_DIFF, Dependent, Pool, Volume, name_uses
from ._plans import Facts, VolumePlan
from ._steps import Delete


def plan_delete(
    *, name: str, pool: Pool, volume: Volume | None, wipe: bool, facts: Facts, going: Collection[tuple[str, str]]
) -> VolumePlan:
    """How to delete a volume; ``going``: (pool, name) of those deleted before it by the same call.

    Raises as refuse_harm(), or Unsupported.
    """
    if volume is None:
        return VolumePlan(name, (), dict(ABSENT_DIFF), dict(ABSENT_DIFF), None)
    refuse_harm(volume=volume, facts=facts, going=going)
    if wipe and facts.names > 1:
        raise Unsupported(
            f"Cannot wipe volume {name!r} of pool {pool.name!r}: its file has {facts.names} names (hard links), and the data under "
            "the others would be wiped too. Remove the others first ('find -samefile' lists them), or delete it without wipe.",
        )
    if wipe and pool.type == "zfs":
        raise Unsupported(
            f"Volume {name!r} in pool {pool.name!r} can't be wiped: ZFS writes what is new to another place, so the old data would "
            "stay where they are. Leave wipe out."
        )
    step = Delete(pool, name, volume.path, volume.type, wipe)
    return VolumePlan(name, (step,), volume.to_diff(), dict(ABSENT_DIFF), None)


def refuse_harm(*, volume: Volume, facts: Facts, going: Collection[tuple[str, str]] = ()) -> None:
    """Refuse to delete what somebody uses; raises VolumeInUse, VolumeHasDependents, or ToolFailed when that can't be told."""
    where = f"volume {volume.name!r} of pool {volume.pool!r}"
    if volume.attachments:
        raise VolumeInUse(
            f"Cannot delete {where}: it is attached to {name_uses(volume.attachments)}. "
            "Detach it there (also from the persistent definition and snapshots) or delete the domain, then run again.",
            attachments=[use.to_result() for use in volume.attachments],
        )
    staying = [d for d in volume.dependents if (d.pool, d.name) not in going]
    if staying:
        raise VolumeHasDependents(
            f"Cannot delete {where}: {_names_of(staying)} {'needs' if len(staying) == 1 else 'need'} it as a backing or data file. "
            "Delete what depends on it first (in one list of names, put it last), or flatten that.",
            dependents=[d.to_result() for d in staying],
        )
    if facts.unread is not None:
        raise ToolFailed(f"Cannot delete {where}: {doubt_about(facts.unread)}")
    if facts.snapshots:
        shown = ", ".join(facts.snapshots[:5]) + (f" and {len(facts.snapshots) - 5} more" if len(facts.snapshots) > 5 else "")
        raise VolumeHasDependents(
            f"Cannot delete {where}: it has snapshots of its own ({shown}), which would go with it. Delete them first if nobody "
            "needs them ('rbd snap purge').",
            dependents=[],
            snapshots=list(facts.snapshots),
        )
    if facts.opened is not None:
        raise VolumeInUse(
            f"Cannot delete {where}: a process has it open ({facts.opened}), though no domain of this host uses it: a QEMU of "
            "another host, a bare QEMU, qemu-nbd or qemu-img. 'lslocks' on the hosts that share the pool finds it. Stop it "
            "there, then run again.",
            attachments=[],
        )
    if facts.loop_devices:
        raise VolumeInUse(
            f"Cannot delete {where}: {', '.join(facts.loop_devices)} has it as its file. Detach it ('losetup -d'), then run again.",
            attachments=[],
        )


def doubt_about(unread: str) -> str:
    """Why nothing can be said about a volume's dependents, and what to do."""
    return (
        f"whether others are built on it can't be told, since not all of the active pools can be read ({unread}). Mend that, or run the "
        "task as root (become: true); a pool that is broken can be stopped ('virsh pool-destroy', which deletes nothing)."
    )


def _names_of(dependents: Sequence[Dependent]) -> str:
    shown = [f"{d.pool}/{d.name}" for d in dependents[:5]]
    return ", ".join(shown) + (f" and {len(dependents) - 5} more" if len(dependents) > 5 else "")
