# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Finds the image that a new volume starts from, and makes sure that it may be read."""

from __future__ import annotations

import os

from ._domains import SnapshotOfDomain
from ._errors import (
    InvalidOption,
    SnapshotNotFound,
    TemplateNotFound,
    UnsafeImage,
    Unsupported,
    VolumeInUse,
    VolumeNotFound,
)
from ._facts import facts_of, location_of
from ._inventory import Host, Image
from ._model import Attachment, Pool
from ._os_errors import explain
from ._snapshot_table import SnapshotEntry
from ._steps import Source
from ._trust import assert_no_way_out, assert_readable
from ._xml import DiskDef, SnapshotDisk


def find_template(host: Host, *, template: str, pool: Pool, for_overlay: bool) -> tuple[Source, Image]:
    """The template by its name in ``pool``, or by its absolute path on the host.

    Raises TemplateNotFound, UnsafeImage, Unsupported or VolumeInUse.
    """
    if os.path.isabs(template):
        image = host.image_at(template)
        where = f"template {template!r}"
        if image is None:
            raise TemplateNotFound(
                f"There is no image file {template!r} on the hypervisor to use as template. Check the path, and that it is one "
                "of the host that the task runs on.",
                template=template,
            )
    else:
        image = host.image(pool, template)
        where = f"template {template!r} of pool {pool.name!r}"
        if image is None:
            raise TemplateNotFound(
                f"There is no volume {template!r} in pool {pool.name!r} to use as template. "
                "Give the name of a volume there, another template_pool, or an absolute path on the hypervisor.",
                template=template,
                pool=pool.name,
            )
    if for_overlay and image.type == "network":
        raise Unsupported(
            f"The {where} is no file that an overlay could have below it. Use clone_mode: full for an independent copy."
        )
    in_pool = _lies_in_a_pool(host, image)
    if not in_pool and os.path.isabs(template) and _lies_in_a_directory_of_a_pool(host, template):
        assert_no_way_out(host, image._replace(is_link=os.path.islink(template)), where)
    if not in_pool and (for_overlay or not os.path.isabs(template)):
        raise UnsafeImage(
            f"The {where} lies outside every active pool of this host, so nothing would protect it from being changed or "
            "deleted under its overlays. Move it into a pool, or use clone_mode: full with its absolute path.",
            path=image.path,
        )
    assert_readable(host, image, where)
    _assert_nobody_writes(host, image, where)
    location, pass_fds = location_of(host, image)
    return (
        Source(
            path=location,
            label=where,
            format=image.format,
            capacity=image.capacity,
            in_pool=in_pool,
            home=host.home(image.ident),
            below=tuple(layer.path for layer in image.chain.layers),
            pass_fds=pass_fds,
        ),
        image,
    )


def find_snapshot(host: Host, *, snapshot: str, volume: str, pool: Pool) -> tuple[Source, Image]:
    """The snapshot of a volume: internal by name or id, else a libvirt domain snapshot's frozen layer.

    Raises VolumeNotFound, SnapshotNotFound, InvalidOption, UnsafeImage, Unsupported or VolumeInUse.
    """
    image = host.image(pool, volume)
    if image is None:
        raise VolumeNotFound(
            f"There is no volume {volume!r} in pool {pool.name!r} that could have a snapshot {snapshot!r}. Check "
            "snapshot_volume and snapshot_pool; volume_info lists what is there.",
            volume=volume,
        )
    if image.failure is not None:
        raise explain(image.failure, f"look at volume {volume!r} of pool {pool.name!r}")
    if pool.type in ("rbd", "zfs"):
        raise Unsupported(
            f"Volume {volume!r} lies in pool {pool.name!r} of type {pool.type}, whose own snapshots aren't read here: make a volume of one "
            "with the storage's own tools ('rbd cp', 'zfs send')."
        )
    entry = _pick_internal(image, snapshot)
    if entry is not None:
        return _internal_source(host, image, entry, pool), image
    return _find_in_domains(host, image, snapshot, pool)


def _lies_in_a_directory_of_a_pool(host: Host, path: str) -> bool:
    directory = os.path.realpath(os.path.dirname(path))
    return any(pool.stores_files and pool.path and os.path.realpath(pool.path) == directory for pool in host.pools())


def _lies_in_a_pool(host: Host, image: Image) -> bool:
    return host.home(image.ident) is not None or (image.pool is not None and not image.pool.stores_files)


def _assert_nobody_writes(host: Host, image: Image, where: str) -> None:
    writers = [use for use in host.attachments(image) if use.live and use.via == "disk" and not use.readonly]
    if writers:
        raise VolumeInUse(
            f"The {where} is written to by the running domain {writers[0].domain!r}: a copy would be of no one moment, and "
            "an overlay would break. Stop the domain, take a snapshot and start from that, or copy it with volume_clone.",
            attachments=[use.to_result() for use in writers],
        )
    if facts_of(host, image).opened == "writing":
        raise VolumeInUse(
            f"The {where} is open for writing in a process that libvirt on this host doesn't know: another host, a QEMU or "
            "a qemu-nbd. Stop it first.",
            path=image.path,
        )


def _pick_internal(image: Image, wanted: str) -> SnapshotEntry | None:
    named = [entry for entry in image.header.snapshots if entry.name == wanted]
    if len(named) > 1:
        raise InvalidOption(
            f"Volume {image.name!r} has {len(named)} snapshots of the name {wanted!r}: "
            f"give the id of one instead ({', '.join(entry.id for entry in named)}).",
            snapshots=[entry.id for entry in named],
        )
    if named:
        return named[0]
    return next((entry for entry in image.header.snapshots if entry.id == wanted), None)


def _internal_source(host: Host, image: Image, entry: SnapshotEntry, pool: Pool) -> Source:
    where = f"snapshot {entry.name!r} of volume {image.name!r} in pool {pool.name!r}"
    assert_readable(host, image, where)
    if sum(other.id == entry.id for other in image.header.snapshots) > 1:
        raise UnsafeImage(f"The {where} can't be told from others: several have the id {entry.id!r}.", path=image.path)
    written = any(use.live and use.via == "disk" and not use.readonly for use in host.attachments(image))
    if not written and image.type == "file":
        written = facts_of(host, image).opened == "writing"
    return Source(
        path=image.path,
        label=where,
        format="qcow2",
        capacity=entry.disk_size or image.capacity,
        snapshot=entry.id,
        snapshot_name=entry.name,
        snapshot_moment=entry.moment,
        check=True,
        shared=written,
    )


def _find_in_domains(host: Host, image: Image, wanted: str, pool: Pool) -> tuple[Source, Image]:
    """The layer that a domain snapshot froze for this volume's disk, if it still stands as it was then."""
    mine = {(use.domain, use.target) for use in host.attachments(image)}
    candidates: list[tuple[Source, Image]] = []
    stale: str | None = None
    for owned in host.domains().snapshots:
        if owned.snapshot.name != wanted:
            continue
        for disk in owned.snapshot.disks:
            before = _disk_before(owned, disk)
            if before is None or (owned.domain, disk.target) not in mine:
                continue
            frozen, why_not = _frozen_image(host, owned, disk, before)
            if frozen is None:
                stale = why_not
                continue
            if disk.how == "internal":
                entry = _pick_internal(frozen, wanted)
                if entry is not None:
                    candidates.append((_internal_source(host, frozen, entry, pool), frozen))
                continue
            where = (
                f"snapshot {wanted!r} of domain {owned.domain!r} for volume {image.name!r} (frozen layer {frozen.path!r})"
            )
            assert_readable(host, frozen, where)
            _assert_nobody_writes(host, frozen, where)
            source = Source(path=frozen.path, label=where, format=frozen.format, capacity=frozen.capacity, check=True)
            candidates.append((source, frozen))
    if len({candidate.path for candidate, _image in candidates}) > 1:
        raise InvalidOption(
            f"Several domains that use volume {image.name!r} have a snapshot {wanted!r}. Name the frozen layer itself as "
            f"template instead: {', '.join(sorted(candidate.path for candidate, _image in candidates))}."
        )
    if candidates:
        return candidates[0]
    raise SnapshotNotFound(_not_found(host, image, wanted, pool, mine, stale), snapshots=_known(host, image, mine))


def _disk_before(owned: SnapshotOfDomain, disk: SnapshotDisk) -> DiskDef | None:
    return next((d for d in owned.snapshot.domain_disks if d.target == disk.target), None)


def _frozen_image(
    host: Host, owned: SnapshotOfDomain, disk: SnapshotDisk, before: DiskDef
) -> tuple[Image | None, str | None]:
    """The image that the snapshot froze, or why it is not what it was.

    A commit or a merge writes into the layer and takes the overlay away; then its content is that of a later moment.
    """
    place = host.locate(before.source)
    frozen = host.image_at(place[1]) if place is not None else None
    if frozen is None:
        return None, "its frozen layer is gone"
    if disk.how == "internal":
        return frozen, None
    if disk.how != "external" or disk.overlay is None:
        return None, "it left this disk out"
    above = host.locate(disk.overlay)
    overlay = host.image_at(above[1]) if above is not None else None
    if overlay is None or overlay.backing is None or overlay.backing.ident != frozen.ident:
        return None, f"its frozen layer {frozen.path!r} was merged or replaced since, so it no longer holds that moment"
    if any(_is_half_merged(host, frozen, each) for other in host.domains().snapshots for each in other.snapshot.disks):
        return None, (
            f"a deletion of the snapshot was begun that merges later writes into its frozen layer {frozen.path!r}, and did not end, so the "
            "layer may no longer hold that moment"
        )
    again = next((use for use in host.attachments(frozen) if _writes_or_wrote(use)), None)
    if again is not None:
        return None, (
            f"its frozen layer {frozen.path!r} is the disk {again.target} of domain {again.domain!r} again, since it was merged or the "
            "domain reverted, so it no longer holds that moment"
        )
    return frozen, None


def _is_half_merged(host: Host, frozen: Image, disk: SnapshotDisk) -> bool:
    """Whether an image is what an earlier snapshot put on top, and libvirt has noted that another is being merged into that."""
    place = host.locate(disk.overlay) if disk.half_merged and disk.overlay is not None else None
    return place is not None and place[0] == frozen.ident


def _writes_or_wrote(use: Attachment) -> bool:
    """Whether an image is a domain's own disk now, or was when it last ran, as far as its definition tells."""
    return use.via == "disk" and not use.readonly and (use.live or use.state in ("shutoff", "crashed"))


def _known(host: Host, image: Image, mine: set[tuple[str, str | None]]) -> list[str]:
    names = [entry.name for entry in image.header.snapshots]
    domains = {domain for domain, _target in mine}
    names += [owned.snapshot.name for owned in host.domains().snapshots if owned.domain in domains]
    return list(dict.fromkeys(names))


def _not_found(
    host: Host, image: Image, wanted: str, pool: Pool, mine: set[tuple[str, str | None]], stale: str | None
) -> str:
    if stale is not None:
        return f"Snapshot {wanted!r} can't be restored for volume {image.name!r} in pool {pool.name!r}: {stale}."
    known = _known(host, image, mine)
    there = f"It has: {', '.join(known)}." if known else "It has none, nor has a domain that uses it."
    return f"Volume {image.name!r} in pool {pool.name!r} has no snapshot {wanted!r}. {there}"
