# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The use case behind ``volume_clone``: a full, independent copy by the fastest way that is right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import _plan_clone, _requests, _trust
from ._describe import describe
from ._errors import InvalidOption, VolumeInUse, VolumeNotFound
from ._facts import facts_of, location_of
from ._inventory import Host, Image
from ._model import Attachment, Pool, name_uses
from ._named_volumes import NamedVolumes, find_image
from ._names import check_name
from ._plans import CloneWish, Plan, VolumePlan
from ._steps import CopyImage, Source


class CloneTask(NamedVolumes):
    """One call of ``volume_clone``."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        super().__init__(params)
        self._source_name = check_name(params["source"], option="source")
        self._source_pool: str = params["source_pool"] or self.pool_name
        self._mode: str = params["consistency"]
        self._wish = CloneWish(
            size=_requests.read_size(params["size"]),
            format=params["format"],
            preallocation=params["preallocation"],
            cluster_size=_requests.read_size(params["cluster_size"], option="cluster_size"),
            overcommit=params["overcommit"],
            verify=params["verify"],
            rights=_requests.read_rights(params),
        )
        if self._source_pool == self.pool_name and self._source_name in self.names:
            raise InvalidOption(f"source and name are the same volume {self._source_name!r}: give the copy another name.")
        self._consistency: dict[str, str] = {}

    def decide(self, host: Host) -> Plan:
        """Plan all copies; raises before anything is done if one is refused."""
        pool = self.pool(host)
        source_pool = host.pool(self._source_pool)
        image = host.image(source_pool, self._source_name)
        if image is None:
            raise VolumeNotFound(
                f"There is no volume {self._source_name!r} in pool {source_pool.name!r} to copy. Check "
                "source and source_pool; volume_info lists what is there.",
                volume=self._source_name,
                pool=source_pool.name,
            )
        existing = {name: find_image(host, pool, name) for name in self.names}
        live = self._running_disk(host, image) if any(found is None for found in existing.values()) else None
        plans: list[VolumePlan] = []
        for name, found in existing.items():
            if found is not None:
                plans.append(
                    _plan_clone.plan_existing_clone(
                        volume=describe(host, found), source=_source_of(host, image), wish=self._wish, pool=pool
                    )
                )
            else:
                plans.append(self._plan_copy(host, pool, name, image, live))
        return Plan(tuple(plans), warnings=self.assert_room(host, pool, plans, overcommit=self._wish.overcommit))

    def carry_out(self, host: Host, plan: Plan) -> Plan:
        """Take the plan's steps; the plan comes back with what turned out meanwhile."""
        from ._apply_clone import CloneWorker

        worker = CloneWorker(host)
        worker.carry_out(plan)
        moments = worker.moments
        self._consistency = {name: moment.consistency for name, moment in moments.items()}
        late = tuple(warning for moment in moments.values() for warning in moment.warnings)
        return Plan(plan.volumes, plan.warnings + late)

    def extra_result(self, plan: Plan) -> dict[str, Any]:
        """``consistency`` of the copy, where it is known: a backup job's only once it has begun."""
        steps = [step for step in plan.steps if isinstance(step, CopyImage)]
        known = {step.name: "offline" for step in steps if step.live is None}
        known.update(self._consistency)
        if not known:
            return {}
        return {"consistency": min(known.values(), key=("crash", "filesystem", "offline").index)}

    def _plan_copy(self, host: Host, pool: Pool, name: str, image: Image, live: Attachment | None) -> VolumePlan:
        source = _source_of(host, image, shared=live is not None)
        method = _plan_clone.choose_method(
            source=source,
            pool=pool,
            wish=self._wish,
            live=live is not None,
            whole_file=_whole_file_would_do(image),
        )
        if method == "reflink":
            from ._copy import can_share_extents

            if not (pool.path and can_share_extents(image.path, pool.path)):
                method = "convert"
        return _plan_clone.plan_clone(
            name=name, pool=pool, source=source, wish=self._wish, method=method, live=live, stays=_what_stays(image)
        )

    def _running_disk(self, host: Host, image: Image) -> Attachment | None:
        """The running disk to copy from, ``None`` when the source stands still; raises VolumeInUse, UnsafeImage, ..."""
        where = f"volume {image.name!r} of pool {self._source_pool!r}"
        _trust.assert_readable(host, image, where)
        _trust.assert_no_way_out(host, image, where)
        writers = [use for use in host.attachments(image) if use.live and use.via == "disk" and not use.readonly]
        if not writers:
            if facts_of(host, image).opened == "writing":
                raise VolumeInUse(
                    f"The {where} is open for writing in a process that libvirt on this host doesn't know: another host, a "
                    "QEMU or a qemu-nbd. Clone it from the host where its domain runs, or stop that process.",
                )
            return None
        facts = [use.to_result() for use in writers]
        if self._mode == "offline":
            raise VolumeInUse(
                f"The {where} is written to by the running domain {writers[0].domain!r}, and consistency: offline was asked "
                "for. Stop the domain, or use consistency: auto or live.",
                attachments=facts,
            )
        if len({use.domain_uuid for use in writers}) > 1:
            raise VolumeInUse(
                f"The {where} is written to by several running domains ({', '.join(use.domain for use in writers)}), which "
                "have no common moment to copy. Stop all of them but one.",
                attachments=facts,
            )
        aside = [use for use in writers if use.bus is None]
        if aside:
            raise VolumeInUse(
                f"The {where} is in use by {name_uses(aside)}, but not as a disk, and libvirt's backup job copies disks only. "
                "Stop the domain and run again.",
                attachments=facts,
            )
        return writers[0]


def _source_of(host: Host, image: Image, *, shared: bool = False) -> Source:
    where = f"volume {image.name!r} of pool {image.pool.name if image.pool else ''!r}"
    header = image.header
    features: list[tuple[str, str]] = []
    if image.format == "qcow2":
        features.append(("compat", header.compat or "1.1"))
        if header.extended_l2:
            features.append(("extended_l2", "on"))
        if header.compression_type == "zstd":
            features.append(("compression_type", "zstd"))
        if header.lazy_refcounts:
            features.append(("lazy_refcounts", "on"))
        if header.refcount_bits not in (None, 16):
            features.append(("refcount_bits", str(header.refcount_bits)))
    location, pass_fds = location_of(host, image)
    return Source(
        path=location,
        label=where,
        format=image.format,
        capacity=image.capacity,
        home=host.home(image.ident) or ((image.pool, image.name) if image.pool else None),
        shared=shared,
        cluster_size=header.cluster_size,
        features=tuple(features),
        pass_fds=pass_fds,
    )


def _what_stays(image: Image) -> list[str]:
    """What of an image is not copied."""
    names = [repr(entry.name) for entry in image.header.snapshots]
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    stays = [f"internal snapshots ({shown})"] if names else []
    return [*stays, "persistent bitmaps"] if image.header.bitmaps else stays


def _whole_file_would_do(image: Image) -> bool:
    """Whether a bytewise copy of the file is a right clone: nothing in it that a clone must not have."""
    header = image.header
    return (
        image.type == "file"
        and header.backing_file is None
        and not header.snapshots
        and not header.bitmaps
        and not header.dirty
    )
