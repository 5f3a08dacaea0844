# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How to copy a volume whole, and what to do with a destination that is there. No I/O."""

from __future__ import annotations

from collections.abc import Sequence

from ._errors import InvalidOption, Unsupported, VolumeMismatch
from ._model import ABSENT_DIFF, Attachment, Pool, Volume
from ._plan_capacity import DEFAULT_CLUSTER_SIZE, settle_capacity
from ._plan_create import predict
from ._plan_image import check_cluster_size, refuse_rights_without_files, settle_format, settle_preallocation
from ._plans import CloneWish, VolumePlan, Wish, keep
from ._size import round_up
from ._steps import CopyImage, Source


def choose_method(*, source: Source, pool: Pool, wish: CloneWish, live: bool, whole_file: bool) -> str:
    """The fastest way of copying that is right: ``reflink`` if it can be done at all, ``convert``, ``backup``.

    Raises Unsupported where there is none.
    """
    if live and not pool.stores_files:
        raise Unsupported(
            f"A running domain writes to {source.label}, and libvirt's backup job writes to files only, not to pool {pool.name!r} "
            f"of type {pool.type}. Clone it into a pool that is a directory first, and that clone into this pool."
        )
    if live:
        return "backup"
    if not pool.stores_files or source.pass_fds:
        return "convert"
    same = (wish.format or source.format) == source.format
    same_clusters = wish.cluster_size in (None, source.cluster_size)
    if whole_file and same and same_clusters and wish.preallocation in (None, "off"):
        return "reflink"
    return "convert"


def plan_clone(
    *, name: str, pool: Pool, source: Source, wish: CloneWish, method: str, live: Attachment | None, stays: Sequence[str]
) -> VolumePlan:
    """How to make a clone that isn't there; ``stays`` names what of the source is not copied."""
    refuse_rights_without_files(pool, wish.rights)
    as_wish, image_format, preallocation = _settle_wish(source, wish, pool)
    same_format = image_format == source.format == "qcow2"
    cluster_size = wish.cluster_size or (source.cluster_size if same_format else None)
    features = source.features if same_format else ()
    if ("extended_l2", "on") in features and (cluster_size or DEFAULT_CLUSTER_SIZE) < 16384:
        raise InvalidOption(f"cluster_size {cluster_size}: {source.label} has extended L2 entries, which need 16K or more.")
    capacity = settle_capacity(
        as_wish, name=name, pool=pool, source=source, image_format=image_format, cluster_size=cluster_size
    )
    can_verify = live is None or image_format != "raw"
    step = CopyImage(
        pool,
        name,
        image_format,
        capacity,
        source,
        preallocation,
        cluster_size,
        wish.rights,
        method=method,
        features=features,
        verify=wish.verify and can_verify,
        live=live,
    )
    made = predict(step)
    warnings = [f"The {what} of {source.label} are not copied." for what in stays]
    if wish.verify and not can_verify:
        warnings.append(
            f"Volume {name!r} is not verified: {source.label} moves on while it is copied, and a raw image has no structure of its own "
            "to check. Make the copy qcow2, or copy while the domain is off."
        )
    return VolumePlan(name, (step,), dict(ABSENT_DIFF), made.to_diff(), made, warnings=tuple(warnings))


def plan_existing_clone(*, volume: Volume, source: Source, wish: CloneWish, pool: Pool) -> VolumePlan:
    """What to do with a destination that is there: nothing; it is never overwritten.

    Raises VolumeMismatch, and for options that no copy could have the same as plan_clone().
    """
    _as_wish, image_format, _preallocation = _settle_wish(source, wish, pool)
    there = f"Volume {volume.name!r} in pool {volume.pool!r} exists already"
    hint = "It was left as it is: choose another name, or delete it first."
    if volume.format != image_format:
        raise VolumeMismatch(
            f"{there} with format {volume.format}, not {image_format}. {hint}", expected=image_format, found=volume.format
        )
    least = max(round_up(source.capacity), round_up(wish.size) if wish.size is not None else 0)
    if volume.capacity < least:
        raise VolumeMismatch(
            f"{there} with {volume.capacity} bytes, less than the {least} of the copy that was asked for. {hint}",
            expected=least,
            found=volume.capacity,
        )
    if volume.backing is not None:
        raise VolumeMismatch(
            f"{there} as an overlay of {volume.backing.path!r}, not as an independent copy. {hint}", found=volume.backing.path
        )
    return keep(volume)


def _settle_wish(source: Source, wish: CloneWish, pool: Pool) -> tuple[Wish, str, str]:
    """The wish as one for a new volume, its format and preallocation; raises InvalidOption or Unsupported."""
    image_format = wish.format or (source.format if pool.stores_files else "raw")
    as_wish = Wish(
        size=wish.size,
        format=image_format,
        preallocation=wish.preallocation or ("off" if pool.stores_files else None),
        cluster_size=wish.cluster_size,
    )
    settle_format(as_wish, pool)
    if wish.cluster_size is not None:
        check_cluster_size(wish.cluster_size)
    return as_wish, image_format, settle_preallocation(as_wish, image_format=image_format, overlay=False, pool=pool)
