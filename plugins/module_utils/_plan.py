# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Decisions, without any I/O: what is there and what is wished for go in, the steps to take come out.

Check mode, diff, ``changed`` and ``actions`` are all read off the plan, so they can't disagree with what is done.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Union

from ._errors import (
    InsufficientSpace,
    InvalidOption,
    InvalidSize,
    ShrinkRefused,
    Unsupported,
    VolumeHasDependents,
    VolumeInUse,
    VolumeMismatch,
)
from ._model import ABSENT_DIFF, Attachment, Backing, Dependent, Pool, Volume
from ._names import volume_uuid
from ._size import MAX_BYTES, human, round_up

DEFAULT_CLUSTER_SIZE = 65536
_METHODS = {
    "reflink": "reflink, sharing extents",
    "convert": "qemu-img convert",
    "backup": "backup job of domain {domain!r}",
    "libvirt": "by libvirt",
}
_MAX_L1_BYTES = 32 << 20  # QCOW_MAX_L1_SIZE in block/qcow2.h of QEMU


@dataclass(frozen=True)
class Rights:
    """Owner, group and mode of a new file; ``None`` leaves the default (this user, 0600)."""

    uid: int | None = None
    gid: int | None = None
    mode: int | None = None


@dataclass(frozen=True)
class Wish:
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


@dataclass(frozen=True)
class CloneWish:
    """What the caller of ``volume_clone`` asks for; sizes in bytes, ``None`` where nothing is said."""

    size: int | None = None
    format: str | None = None
    preallocation: str | None = None
    cluster_size: int | None = None
    overcommit: bool = True
    verify: bool = False
    rights: Rights = Rights()


@dataclass(frozen=True)
class Source:
    """An image to start from, already found fit to be read: ``label`` says which one in words."""

    path: str
    label: str
    format: str
    capacity: int
    in_pool: bool = True
    snapshot: str | None = None  # id of an internal snapshot to read
    snapshot_name: str | None = None
    home: tuple[Pool, str] | None = None  # pool and name, where it is a volume
    below: tuple[str, ...] = ()  # paths of its own backing chain
    shared: bool = False  # a running domain writes to the image meanwhile
    check: bool = False  # look whether the copy is sound before it is published
    cluster_size: int | None = None  # of a qcow2 image
    features: tuple[tuple[str, str], ...] = ()  # qcow2 creation options that a clone of it keeps


@dataclass(frozen=True)
class CreateBlank:
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


@dataclass(frozen=True)
class CreateOverlay:
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


@dataclass(frozen=True)
class CopyImage:
    pool: Pool
    name: str
    format: str
    capacity: int
    source: Source
    preallocation: str
    cluster_size: int | None
    rights: Rights
    method: str = "convert"  # reflink | convert | backup | libvirt
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


@dataclass(frozen=True)
class Grow:
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


@dataclass(frozen=True)
class Delete:
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


@dataclass(frozen=True)
class VolumePlan:
    """What becomes of one volume: the steps (none when it is as wished), the diff, and the predicted result."""

    name: str
    steps: tuple[Step, ...]
    before: dict[str, Any]
    after: dict[str, Any]
    result: Volume | None
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()  # for the result's msg: what the caller should know or do next


@dataclass(frozen=True)
class Plan:
    """The plans of all names of a call, in their order."""

    volumes: tuple[VolumePlan, ...] = ()
    warnings: tuple[str, ...] = ()

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


@dataclass(frozen=True)
class Facts:
    """What decides about harm beside the volume itself: who has the image open, and loop devices on it."""

    opened: str | None = None  # writing | reading | None: by image locks, whoever holds them
    loop_devices: tuple[str, ...] = field(default_factory=tuple)


# -- options ---------------------------------------------------------------------------------------


def check_wish(wish: Wish) -> None:
    """Refuse options that contradict each other, whatever is there; raises InvalidOption or InvalidSize."""
    if wish.template is not None and wish.snapshot is not None:
        raise InvalidOption("template and snapshot exclude each other: give the one to start from.")
    if (wish.snapshot is None) != (wish.snapshot_volume is None):
        raise InvalidOption("snapshot and snapshot_volume go together: the snapshot's name, and the volume it is of.")
    for option in ("template", "snapshot", "snapshot_volume"):
        if getattr(wish, option) == "":
            raise InvalidOption(f"{option} is empty: give a name, or leave the option out.")
    if wish.clone_mode is not None and wish.template is None:
        raise InvalidOption("clone_mode says how to use a template: give template too, or leave clone_mode out.")
    if wish.template_pool is not None and wish.template is None:
        raise InvalidOption("template_pool is where the template lies: give template too, or leave template_pool out.")
    if wish.snapshot_pool is not None and wish.snapshot is None:
        raise InvalidOption("snapshot_pool is where snapshot_volume lies: give snapshot too, or leave snapshot_pool out.")
    if wish.cluster_size is not None:
        check_cluster_size(wish.cluster_size)


def check_cluster_size(cluster_size: int) -> None:
    """Raises InvalidOption for what qcow2 can't have (docs/interop/qcow2.txt: 512 bytes to 2 MiB, a power of two)."""
    if not 512 <= cluster_size <= 2 << 20 or cluster_size & (cluster_size - 1):
        raise InvalidOption(
            f"cluster_size {cluster_size} is not possible: a power of two from 512 to 2M is, for example 64K."
        )


def settle_format(wish: Wish, pool: Pool) -> str:
    """The format of a volume to be made in a pool; raises Unsupported for qcow2 where volumes aren't files."""
    chosen = wish.format or pool.default_format
    if chosen == "qcow2" and not pool.stores_files:
        raise Unsupported(
            f"Pool {pool.name!r} (type {pool.type}) holds no image files, so its volumes are raw: leave format out, or "
            "choose a pool that is a directory."
        )
    return chosen


def settle_mode(wish: Wish, image_format: str) -> str | None:
    """``backing`` or ``full`` for a template, ``None`` without one; raises InvalidOption for a raw overlay."""
    if wish.template is None:
        return None
    if wish.clone_mode == "backing" and image_format == "raw":
        raise InvalidOption(
            "A raw volume can't have a backing file: use format qcow2 with clone_mode backing, or clone_mode full."
        )
    return wish.clone_mode or ("backing" if image_format == "qcow2" else "full")


def settle_preallocation(wish: Wish, *, image_format: str, overlay: bool) -> str:
    """What to reserve for a new volume; raises InvalidOption for what a format can't do."""
    if image_format == "raw":
        if wish.preallocation == "metadata":
            raise InvalidOption("preallocation metadata is for qcow2; a raw volume has none: use off, falloc or full.")
        if wish.cluster_size is not None:
            raise InvalidOption("cluster_size is for qcow2; a raw volume has no clusters.")
        return wish.preallocation or "falloc"
    if overlay and wish.preallocation not in (None, "off"):
        raise InvalidOption(
            f"preallocation {wish.preallocation} would hide the template's data: "
            "an overlay takes preallocation off; use clone_mode full to reserve space."
        )
    return wish.preallocation or "off"


def largest_capacity(image_format: str, cluster_size: int | None) -> int:
    """The most bytes an image can have (block/qcow2.c: the L1 table is 32 MiB at most)."""
    if image_format != "qcow2":
        return MAX_BYTES // 512 * 512
    cluster = cluster_size or DEFAULT_CLUSTER_SIZE
    return min(_MAX_L1_BYTES // 8 * (cluster // 8) * cluster, MAX_BYTES // 512 * 512)


def settle_capacity(
    wish: Wish, *, name: str, source: Source | None, image_format: str, cluster_size: int | None
) -> int:
    """The capacity of a volume to be made, in bytes; raises InvalidOption, InvalidSize or ShrinkRefused."""
    if source is None:
        if wish.size is None:
            raise InvalidOption(f"size is needed to create the blank volume {name!r}, for example size: 10G.", name=name)
        capacity = round_up(wish.size)
    else:
        least = round_up(source.capacity)
        capacity = least if wish.size is None else round_up(wish.size)
        if capacity < least:
            raise ShrinkRefused(
                f"Volume {name!r} can't be made with {capacity} bytes: {source.label} has {least} bytes "
                f"({human(least)}). Leave size out or give at least that.",
                required=least,
            )
    most = largest_capacity(image_format, cluster_size)
    if capacity > most:
        raise InvalidSize(
            f"size: {capacity} bytes are more than a {image_format} volume can have "
            f"({most} bytes{' with this cluster_size' if image_format == 'qcow2' else ''})."
        )
    return capacity


def qcow2_options(cluster_size: int | None, features: Sequence[tuple[str, str]] = ()) -> dict[str, str]:
    """Creation options of a qcow2 image; the version is always said, since old tools default to an old one."""
    options = {"compat": "1.1", **dict(features)}
    if cluster_size is not None:
        options["cluster_size"] = str(cluster_size)
    return options


# -- volume, state present -------------------------------------------------------------------------


def plan_create(*, name: str, pool: Pool, wish: Wish, source: Source | None) -> VolumePlan:
    """How to make a volume that isn't there."""
    image_format = settle_format(wish, pool)
    mode = settle_mode(wish, image_format)
    overlay = mode == "backing"
    preallocation = settle_preallocation(wish, image_format=image_format, overlay=overlay)
    capacity = settle_capacity(
        wish, name=name, source=source, image_format=image_format, cluster_size=wish.cluster_size
    )
    if source is not None and not pool.stores_files:
        _refuse_copy_without_files(pool, source)
    step: Create
    if source is None:
        step = CreateBlank(pool, name, image_format, capacity, preallocation, wish.cluster_size, wish.rights)
    elif overlay:
        step = CreateOverlay(pool, name, capacity, source, wish.cluster_size, wish.rights)
    else:
        method = "convert" if pool.stores_files else "libvirt"
        step = CopyImage(
            pool, name, image_format, capacity, source, preallocation, wish.cluster_size, wish.rights, method=method
        )
    made = _predict(step)
    return VolumePlan(name, (step,), dict(ABSENT_DIFF), made.to_diff(), made)


def _refuse_copy_without_files(pool: Pool, source: Source) -> None:
    """Only libvirt itself copies into pools that aren't made of files, and only whole volumes; raises Unsupported."""
    if source.home is None or source.snapshot is not None or source.shared:
        raise Unsupported(
            f"Pool {pool.name!r} (type {pool.type}) holds no image files: only a whole volume of an active pool can be copied "
            f"there, not {source.label}. Make it in a pool that is a directory first, and clone that."
        )


def _predict(step: Create) -> Volume:
    path = f"{step.pool.path}/{step.name}" if step.pool.path else step.name
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


def check_existing(*, volume: Volume, wish: Wish, pool: Pool, same_backing: bool) -> None:
    """Refuse to pass off a volume as what was asked for when it isn't; raises VolumeMismatch."""
    image_format = settle_format(wish, pool)
    mode = settle_mode(wish, image_format)
    settle_preallocation(wish, image_format=image_format, overlay=mode == "backing")
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
        return VolumePlan(volume.name, (), volume.to_diff(), volume.to_diff(), volume)
    preallocation = wish.preallocation if wish.preallocation != "metadata" else "off"
    return plan_grow(volume=volume, pool=pool, size=wish.size, preallocation=preallocation, facts=facts)


def plan_grow(*, volume: Volume, pool: Pool, size: int, preallocation: str | None, facts: Facts) -> VolumePlan:
    """How to grow a volume to ``size`` bytes, online where a running domain has it as its disk.

    Raises ShrinkRefused, InvalidSize, Unsupported or VolumeInUse.
    """
    capacity = round_up(size)
    if capacity < volume.capacity:
        raise ShrinkRefused(
            f"Volume {volume.name!r} in pool {volume.pool!r} has {volume.capacity} bytes ({human(volume.capacity)}); "
            f"making it {capacity} bytes would cut off data. Volumes only grow.",
            required=volume.capacity,
        )
    if capacity == volume.capacity:
        return VolumePlan(volume.name, (), volume.to_diff(), volume.to_diff(), volume)
    if volume.format not in ("qcow2", "raw"):
        raise Unsupported(f"Volume {volume.name!r} has format {volume.format}; only qcow2 and raw volumes can grow.")
    most = largest_capacity(volume.format, volume.cluster_size)
    if capacity > most:
        raise InvalidSize(f"size: {capacity} bytes are more than volume {volume.name!r} can have ({most} bytes).")
    if volume.compat == "0.10" and volume.snapshots:
        raise Unsupported(
            f"Volume {volume.name!r} has internal snapshots and is in the old format compat 0.10, which can't grow with "
            "snapshots. Upgrade it ('qemu-img amend -o compat=1.1') while no domain uses it, or delete its snapshots."
        )
    online = _online_disks(volume, facts)
    if volume.encrypted and not online:
        raise Unsupported(
            f"Volume {volume.name!r} is encrypted by QEMU, and only its own domain has the key: start the domain and grow the "
            "volume while it runs."
        )
    if online and volume.format == "qcow2" and preallocation not in (None, "off"):
        raise Unsupported(
            f"Volume {volume.name!r} is in use by {_domains_of(online)}, and QEMU can't reserve space in a qcow2 image that grows "
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
        preallocation=preallocation or ("falloc" if volume.format == "raw" else "off"),
        online=online,
    )
    grown = replace(volume, capacity=capacity)
    return VolumePlan(volume.name, (step,), volume.to_diff(), grown.to_diff(), grown)


def _online_disks(volume: Volume, facts: Facts) -> tuple[Attachment, ...]:
    """The running disks through which to grow, none when nobody has the volume open; raises VolumeInUse."""
    live = [use for use in volume.attachments if use.live]
    top = [use for use in live if use.via == "disk"]
    if live and not top:
        raise VolumeInUse(
            f"Volume {volume.name!r} is a backing layer of {_domains_of(live)}, where growing it would be seen by "
            "nobody and could harm the layers above. Grow the domain's own volume, or stop the domain.",
            attachments=[use.to_result() for use in live],
        )
    readonly = [use for use in top if use.readonly]
    if readonly:
        raise VolumeInUse(
            f"Volume {volume.name!r} is attached read-only to {_domains_of(readonly)}, which can't grow it. "
            "Detach it or stop the domain, then run again.",
            attachments=[use.to_result() for use in readonly],
        )
    if len({use.domain_uuid for use in top}) > 1:
        raise VolumeInUse(
            f"Volume {volume.name!r} is shared by the running domains {_domains_of(top)}: grown through one, the others "
            "would not see it. Stop all but one of them, then run again.",
            attachments=[use.to_result() for use in top],
        )
    if not top and facts.opened is not None:
        raise VolumeInUse(
            f"Volume {volume.name!r} is open ({facts.opened}) in a process that libvirt on this host doesn't know: another "
            "host, a QEMU or a qemu-nbd. Stop it there, or grow it from there.",
        )
    return tuple(top)


# -- volume, state absent --------------------------------------------------------------------------


def plan_delete(
    *, name: str, pool: Pool, volume: Volume | None, wipe: bool, facts: Facts, going: Collection[tuple[str, str]]
) -> VolumePlan:
    """How to delete a volume; ``going``: (pool, name) of those deleted before it by the same call.

    Raises VolumeInUse or VolumeHasDependents.
    """
    if volume is None:
        return VolumePlan(name, (), dict(ABSENT_DIFF), dict(ABSENT_DIFF), None)
    refuse_harm(volume=volume, facts=facts, going=going)
    step = Delete(pool, name, volume.path, volume.type, wipe)
    return VolumePlan(name, (step,), volume.to_diff(), dict(ABSENT_DIFF), None)


def refuse_harm(*, volume: Volume, facts: Facts, going: Collection[tuple[str, str]] = ()) -> None:
    """Refuse to delete what somebody uses; raises VolumeInUse or VolumeHasDependents."""
    where = f"volume {volume.name!r} of pool {volume.pool!r}"
    if volume.attachments:
        raise VolumeInUse(
            f"Cannot delete {where}: it is attached to {_domains_of(volume.attachments)}. "
            "Detach it there (also from the persistent definition and snapshots) or delete the domain, then run again.",
            attachments=[use.to_result() for use in volume.attachments],
        )
    staying = [d for d in volume.dependents if (d.pool, d.name) not in going]
    if staying:
        raise VolumeHasDependents(
            f"Cannot delete {where}: {_names_of(staying)} {'needs' if len(staying) == 1 else 'need'} it as a backing file. "
            "Delete or flatten what depends on it first.",
            dependents=[d.to_result() for d in staying],
        )
    if facts.opened is not None:
        raise VolumeInUse(
            f"Cannot delete {where}: a process has it open ({facts.opened}), though no domain of this host uses it: a QEMU of "
            "another host, a bare QEMU, qemu-nbd or qemu-img. 'lslocks' on the hosts that share the pool finds it.",
            attachments=[],
        )
    if facts.loop_devices:
        raise VolumeInUse(
            f"Cannot delete {where}: {', '.join(facts.loop_devices)} has it as its file. Detach it ('losetup -d').",
            attachments=[],
        )


# -- volume_clone ----------------------------------------------------------------------------------


def choose_method(*, source: Source, pool: Pool, wish: CloneWish, live: bool, whole_file: bool) -> str:
    """The fastest way of copying that is right: ``reflink`` if it can be done at all, ``convert``, ``backup``, ``libvirt``.

    Raises Unsupported where there is none.
    """
    if not pool.stores_files:
        _refuse_copy_without_files(pool, source)
        return "libvirt"
    if live:
        return "backup"
    same = (wish.format or source.format) == source.format
    same_clusters = wish.cluster_size in (None, source.cluster_size)
    if whole_file and same and same_clusters and wish.preallocation in (None, "off"):
        return "reflink"
    return "convert"


def plan_clone(
    *, name: str, pool: Pool, source: Source, wish: CloneWish, method: str, live: Attachment | None, stays: Sequence[str]
) -> VolumePlan:
    """How to make a clone that isn't there; ``stays`` names what of the source is not copied."""
    image_format = wish.format or (source.format if pool.stores_files else "raw")
    as_wish = Wish(
        size=wish.size, format=image_format, preallocation=wish.preallocation or "off", cluster_size=wish.cluster_size
    )
    settle_format(as_wish, pool)
    if wish.cluster_size is not None:
        check_cluster_size(wish.cluster_size)
    preallocation = settle_preallocation(as_wish, image_format=image_format, overlay=False)
    same_format = image_format == source.format == "qcow2"
    cluster_size = wish.cluster_size or (source.cluster_size if same_format else None)
    features = source.features if same_format else ()
    if ("extended_l2", "on") in features and (cluster_size or DEFAULT_CLUSTER_SIZE) < 16384:
        raise InvalidOption(f"cluster_size {cluster_size}: {source.label} has extended L2 entries, which need 16K or more.")
    capacity = settle_capacity(
        as_wish, name=name, source=source, image_format=image_format, cluster_size=cluster_size
    )
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
        verify=wish.verify,
        live=live,
    )
    made = _predict(step)
    warnings = tuple(f"The {what} of {source.label} are not copied." for what in stays)
    return VolumePlan(name, (step,), dict(ABSENT_DIFF), made.to_diff(), made, warnings=warnings)


def plan_existing_clone(*, volume: Volume, source: Source, wish: CloneWish) -> VolumePlan:
    """What to do with a destination that is there: nothing; it is never overwritten. Raises VolumeMismatch."""
    image_format = wish.format or source.format
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
    return VolumePlan(volume.name, (), volume.to_diff(), volume.to_diff(), volume)


# -- space -----------------------------------------------------------------------------------------


def empty_qcow2_bytes(capacity: int, cluster_size: int | None) -> int:
    """What a new qcow2 without any data takes: header, L1 table, refcount table and block (docs/interop/qcow2.txt)."""
    cluster = cluster_size or DEFAULT_CLUSTER_SIZE
    l1_bytes = round_up(capacity, cluster // 8 * cluster) // (cluster // 8 * cluster) * 8
    clusters = round_up(l1_bytes, cluster) // cluster + 2  # with the header and the refcount table
    blocks = -(-clusters // (cluster * 8 // 16 - 1))  # a refcount block counts itself too
    return (clusters + blocks) * cluster


def check_space(
    *, pool: Pool, names: Sequence[str], required: int, thin: int, available: int, overcommit: bool
) -> tuple[str, ...]:
    """Compare what must be written (``required``) and promised (``thin``) with what is free, all in bytes.

    Returns warnings; raises InsufficientSpace.
    """
    whom = ", ".join(repr(name) for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    if required > available:
        raise InsufficientSpace(
            f"Pool {pool.name!r} has not enough free space for {whom}: {required} bytes ({human(required)}) are needed, "
            f"{available} bytes ({human(available)}) are free. Free space, or choose another pool, size or preallocation.",
            required=required,
            available=available,
        )
    if required + thin <= available or thin == 0:
        return ()
    facts = (
        f"{whom} may grow to {required + thin} bytes ({human(required + thin)}), but pool {pool.name!r} has "
        f"{available} bytes ({human(available)}) free"
    )
    if not overcommit:
        raise InsufficientSpace(
            f"{facts}, and overcommit is false. Free space, choose a smaller size, or allow overcommit.",
            required=required + thin,
            available=available,
        )
    return (f"{facts}: guests will meet write errors if it fills up.",)


def _domains_of(uses: Sequence[Attachment]) -> str:
    """Domains with what they use the volume for, in words."""
    words = []
    for use in uses:
        how = f"snapshot {use.snapshot!r}" if use.snapshot else ("backing layer" if use.via == "backing" else "disk")
        words.append(f"domain {use.domain!r} ({use.state}, {how} {use.target or ''}".rstrip() + ")")
    return ", ".join(dict.fromkeys(words))


def _names_of(dependents: Sequence[Dependent]) -> str:
    shown = [f"{d.pool}/{d.name}" for d in dependents[:5]]
    return ", ".join(shown) + (f" and {len(dependents) - 5} more" if len(dependents) > 5 else "")
