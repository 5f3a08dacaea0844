# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How to grow a volume, and when not to. No I/O."""

from __future__ import annotations

from ._errors import InvalidSize, ShrinkRefused, Unsupported, VolumeInUse
from ._model import Attachment, Pool, Volume, name_uses
from ._plan_capacity import largest_capacity
from ._plan_image import reserve_raw
from ._plans import Facts, VolumePlan, keep
from ._size import human, round_up
from ._steps import Grow


def plan_grow(*, volume: Volume, pool: Pool, size: int, preallocation: str | None, facts: Facts) -> VolumePlan:
    """How to grow a volume to ``size`` bytes, online where a running domain has it as its disk.

    Raises ShrinkRefused, InvalidSize, Unsupported or VolumeInUse.
    """
    capacity = round_up(size, pool.granularity)
    if capacity < volume.capacity:
        raise ShrinkRefused(
            f"{_name_of(volume)} has {volume.capacity} bytes ({human(volume.capacity)}); "
            f"making it {capacity} bytes would cut off data. Volumes only grow.",
            required=volume.capacity,
        )
    if capacity == volume.capacity:
        return keep(volume)
    if volume.format not in ("qcow2", "raw", "luks"):
        raise Unsupported(f"{_name_of(volume)} has format {volume.format}; only qcow2 and raw volumes can grow.")
    most = largest_capacity(volume.format, volume.cluster_size)
    if capacity > most:
        raise InvalidSize(f"size: {capacity} bytes are more than volume {volume.name!r} of pool {volume.pool!r} can have ({most} bytes).")
    if volume.compat == "0.10" and volume.snapshots:
        raise Unsupported(
            f"{_name_of(volume)} has internal snapshots and is in the old format compat 0.10, which can't grow with "
            "snapshots. Upgrade it ('qemu-img amend -o compat=1.1') while no domain uses it, or delete its snapshots."
        )
    if volume.format in ("raw", "luks"):
        preallocation = reserve_raw(pool, preallocation)
    online = _online_disks(volume, facts)
    if volume.encrypted and volume.format != "raw" and not online:
        raise Unsupported(
            f"{_name_of(volume)} is encrypted by QEMU, and only its own domain has the key: start the domain and grow the "
            "volume while it runs."
        )
    if online and volume.format == "qcow2" and preallocation not in (None, "off"):
        raise Unsupported(
            f"{_name_of(volume)} is in use by {name_uses(online)}, and QEMU can't reserve space in a qcow2 image that grows "
            "online. Leave preallocation out, or stop the domain.",
            attachments=[use.to_result() for use in online],
        )
    step = Grow(
        pool=pool,
        name=volume.name,
        path=volume.path,
        format=volume.format,
        capacity_before=volume.capacity,
        capacity=capacity,
        preallocation=preallocation or "off",
        online=online,
    )
    grown = volume._replace(capacity=capacity)
    return VolumePlan(volume.name, (step,), volume.to_diff(), grown.to_diff(), grown)


def _online_disks(volume: Volume, facts: Facts) -> tuple[Attachment, ...]:
    """The running disks through which to grow, none when nobody has the volume open; raises VolumeInUse."""
    live = [use for use in volume.attachments if use.live]
    top = [use for use in live if use.via == "disk"]
    if live and not top:
        raise VolumeInUse(
            f"{_name_of(volume)} is a backing layer of {name_uses(live)}, where growing it would be seen by "
            "nobody and could harm the layers above. Grow the domain's own volume, or stop the domain.",
            attachments=[use.to_result() for use in live],
        )
    readonly = [use for use in top if use.readonly]
    if readonly:
        raise VolumeInUse(
            f"{_name_of(volume)} is attached read-only to {name_uses(readonly)}, which can't grow it. "
            "Detach it or stop the domain, then run again.",
            attachments=[use.to_result() for use in readonly],
        )
    aside = [use for use in top if use.bus is None]
    if aside:
        raise VolumeInUse(
            f"{_name_of(volume)} is in use by {name_uses(aside)}, but not as a disk, so that it can't grow meanwhile. "
            "Stop the domain, then run again.",
            attachments=[use.to_result() for use in aside],
        )
    if len({use.domain_uuid for use in top}) > 1:
        raise VolumeInUse(
            f"{_name_of(volume)} is shared by the running domains {name_uses(top)}: grown through one, the others "
            "would not see it. Stop all but one of them, then run again.",
            attachments=[use.to_result() for use in top],
        )
    if not top and facts.opened is not None:
        raise VolumeInUse(
            f"{_name_of(volume)} is open ({facts.opened}) in a process that libvirt on this host doesn't know: another "
            "host, a QEMU or a qemu-nbd. Stop it there, or grow it from there.",
        )
    return tuple(top)


def _name_of(volume: Volume) -> str:
    return f"Volume {volume.name!r} in pool {volume.pool!r}"
