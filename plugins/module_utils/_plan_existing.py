# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What to do with a volume that is there already: nothing, or grow it, or say that it isn't what was meant. No I/O."""

from __future__ import annotations

from ._errors import VolumeMismatch
from ._model import Pool, Volume
from ._plan_image import settle_format, settle_mode, settle_preallocation
from ._plans import Facts, VolumePlan, Wish, keep
from ._size import round_up


def check_existing(*, volume: Volume, wish: Wish, pool: Pool, same_backing: bool) -> None:
    """Refuse to pass off a volume as what was asked for when it isn't; raises VolumeMismatch."""
    image_format = settle_format(wish, pool)
    mode = settle_mode(wish, image_format)
    settle_preallocation(wish, image_format=image_format, overlay=mode == "backing", pool=pool)
    there = f"Volume {volume.name!r} in pool {volume.pool!r} exists already"
    hint = "Nothing was changed: choose another name, adapt the options, or delete the volume first."
    if volume.format != image_format:
        raise VolumeMismatch(
            f"{there} with format {volume.format}, not {image_format}. {hint}",
            expected=image_format,
            found=volume.format,
        )
    found = volume.backing.path if volume.backing else None
    if mode == "backing" and not same_backing:
        raise VolumeMismatch(
            f"{there}, but {'backed by ' + repr(found) if found else 'without a backing file'} "
            f"instead of template {wish.template!r}. {hint}",
            expected=wish.template,
            found=found,
        )
    if (mode == "full" or wish.snapshot is not None) and found is not None:
        raise VolumeMismatch(f"{there} as an overlay of {found!r}, not as an independent volume. {hint}", found=found)


def plan_existing(*, volume: Volume, wish: Wish, pool: Pool, same_backing: bool, facts: Facts) -> VolumePlan:
    """What to do with a volume that is there: nothing, or grow it; ``size`` is a minimum."""
    check_existing(volume=volume, wish=wish, pool=pool, same_backing=same_backing)
    if wish.size is None or round_up(wish.size) <= volume.capacity:
        return keep(volume)
    from ._plan_grow import plan_grow  # here, since most runs find that there is nothing to do

    preallocation = wish.preallocation if wish.preallocation != "metadata" else "off"
    return plan_grow(volume=volume, pool=pool, size=wish.size, preallocation=preallocation, facts=facts)


def plan_resize(*, volume: Volume, pool: Pool, size: int, preallocation: str | None, facts: Facts) -> VolumePlan:
    """Nothing for a volume that has just ``size`` bytes, else as plan_grow() says."""
    if round_up(size, pool.granularity) == volume.capacity:
        return keep(volume)
    from ._plan_grow import plan_grow

    return plan_grow(volume=volume, pool=pool, size=size, preallocation=preallocation, facts=facts)
