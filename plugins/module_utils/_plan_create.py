# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How to make a volume that isn't there: blank, as an overlay, or as a copy. No I/O."""

from __future__ import annotations

from ._model import ABSENT_DIFF, Backing, Pool, Volume
from ._names import volume_uuid
from ._plan_capacity import DEFAULT_CLUSTER_SIZE, settle_capacity
from ._plan_image import refuse_rights_without_files, settle_format, settle_mode, settle_preallocation
from ._plans import VolumePlan, Wish
from ._steps import CopyImage, Create, CreateBlank, CreateOverlay, Source


def plan_create(*, name: str, pool: Pool, wish: Wish, source: Source | None) -> VolumePlan:
    """How to make a volume that isn't there."""
    image_format = settle_format(wish, pool)
    mode = settle_mode(wish, image_format)
    overlay = mode == "backing"
    preallocation = settle_preallocation(wish, image_format=image_format, overlay=overlay, pool=pool)
    capacity = settle_capacity(
        wish, name=name, pool=pool, source=source, image_format=image_format, cluster_size=wish.cluster_size
    )
    refuse_rights_without_files(pool, wish.rights)
    step: Create
    if source is None:
        step = CreateBlank(pool, name, image_format, capacity, preallocation, wish.cluster_size, wish.rights)
    elif overlay:
        step = CreateOverlay(pool, name, capacity, source, wish.cluster_size, wish.rights)
    else:
        step = CopyImage(pool, name, image_format, capacity, source, preallocation, wish.cluster_size, wish.rights)
    made = predict(step)
    return VolumePlan(name, (step,), dict(ABSENT_DIFF), made.to_diff(), made)


def predict(step: Create) -> Volume:
    """The volume that a step will have made, as far as it can be told before."""
    place = step.pool.path or (step.pool.source.name if step.pool.source is not None else None)
    path = f"{place}/{step.name}" if place else step.name
    backing = None
    if isinstance(step, CreateOverlay):
        base = step.source
        backing = Backing(
            path=base.path,
            format=base.format,
            name=base.home[1] if base.home else None,
            pool=base.home[0].name if base.home else None,
            chain=(base.path, *base.below),
        )
    reserved = step.preallocation in ("falloc", "full")
    is_qcow2 = step.format == "qcow2"
    return Volume(
        name=step.name,
        uuid=volume_uuid(step.pool.uuid, step.name),
        key=path,
        path=path,
        pool=step.pool.name,
        type=step.pool.volume_type,
        format=step.format,
        capacity=step.capacity,
        allocation=step.capacity if reserved else 0,
        backing=backing,
        cluster_size=(step.cluster_size or DEFAULT_CLUSTER_SIZE) if is_qcow2 else None,
        compat="1.1" if is_qcow2 else None,
    )
