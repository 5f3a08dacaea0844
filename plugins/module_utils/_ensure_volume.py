# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The use case behind ``volume``: for each name the same wish, planned together, then done in order."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from . import _locks, _plan, _requests, _sources, _staging
from ._apply import Worker
from ._directory import identify, loop_devices_on
from ._errors import Unsupported
from ._inventory import NOT_AN_IMAGE, Host, Image
from ._model import Ident, Pool, Volume
from ._plan import Facts, Plan, Source, Step, VolumePlan, Wish
from ._qemu_img import Measure, QemuImg


class VolumeTask:
    """One call of ``volume``."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.names = _requests.read_names(params)
        self._pool_name: str = params["pool"]
        self._absent = params["state"] == "absent"
        self._wipe: bool = params["wipe"]
        self._wish = Wish() if self._absent else _requests.read_wish(params)
        self._qemu_img = QemuImg()
        self._measured: dict[tuple[object, ...], Measure] = {}

    @contextlib.contextmanager
    def guard(self, host: Host) -> Iterator[None]:
        """Hold the names; leftovers of killed runs are cleared first, and libvirt's view of the names set right."""
        pool = host.pool(self._pool_name)
        with _locks.hold_names(_place_of(pool), self.names):
            host.forget()
            if pool.stores_files and pool.path is not None:
                _staging.sweep(pool.path)
                self._correct_libvirt(host, pool)
            yield

    def decide(self, host: Host) -> Plan:
        """Plan all names; raises before anything is done if one is refused."""
        pool = host.pool(self._pool_name)
        images = {name: _look(host, pool, name) for name in self.names}
        if self._absent:
            return self._decide_absent(host, pool, images)
        return self._decide_present(host, pool, images)

    def carry_out(self, host: Host, plan: Plan) -> None:
        """Take the plan's steps."""
        Worker(host, self._qemu_img).carry_out(plan)

    def describe(self, host: Host) -> list[Volume | None]:
        """The volumes as they are now."""
        pool = host.pool(self._pool_name)
        images = [host.image(pool, name) for name in self.names]
        return [host.describe(image) if image is not None else None for image in images]

    def _correct_libvirt(self, host: Host, pool: Pool) -> None:
        """A run that was killed after it published or removed a file could not tell libvirt: do it now."""
        for name in self.names:
            if (host.image(pool, name) is not None) != (host.connection.volume(pool, name) is not None):
                host.tell_libvirt(pool)
                return

    def _decide_absent(self, host: Host, pool: Pool, images: Mapping[str, Image | None]) -> Plan:
        plans: list[VolumePlan] = []
        going: list[tuple[str, str]] = []
        for name, image in images.items():
            plans.append(
                _plan.plan_delete(
                    name=name,
                    pool=pool,
                    volume=host.describe(image) if image is not None else None,
                    wipe=self._wipe,
                    facts=gather_facts(image),
                    going=going,
                )
            )
            going.append((pool.name, name))
        return Plan(tuple(plans))

    def _decide_present(self, host: Host, pool: Pool, images: Mapping[str, Image | None]) -> Plan:
        wish = self._wish
        overlay = _plan.settle_mode(wish, _plan.settle_format(wish, pool)) == "backing"
        missing = any(image is None for image in images.values())
        # What exists already is compared with its template only as an overlay: a full copy outlives its source.
        source, source_ident = self._find_source(host, overlay) if wish.has_source and (missing or overlay) else (None, None)
        plans = []
        for name, image in images.items():
            if image is None:
                plans.append(_plan.plan_create(name=name, pool=pool, wish=wish, source=source))
                continue
            same = image.backing is not None and image.backing.ident == source_ident
            facts = gather_facts(image) if wish.size is not None and wish.size > image.capacity else Facts()
            plans.append(
                _plan.plan_existing(
                    volume=host.describe(image), wish=wish, pool=pool, same_backing=same, facts=facts
                )
            )
        if any(planned.steps for planned in plans) and pool.stores_files:
            host.assert_refreshable(pool)
        return Plan(tuple(plans), warnings=self._check_space(host, pool, plans))

    def _find_source(self, host: Host, overlay: bool) -> tuple[Source, Ident]:
        wish = self._wish
        if wish.template is not None:
            pool = host.pool(wish.template_pool or self._pool_name)
            source, image = _sources.find_template(host, template=wish.template, pool=pool, for_overlay=overlay)
        else:
            pool = host.pool(wish.snapshot_pool or self._pool_name)
            source, image = _sources.find_snapshot(
                host, snapshot=wish.snapshot or "", volume=wish.snapshot_volume or "", pool=pool
            )
        return source, image.ident

    def _check_space(self, host: Host, pool: Pool, plans: list[VolumePlan]) -> tuple[str, ...]:
        steps = [step for planned in plans for step in planned.steps]
        if not steps:
            return ()
        required = promised = 0
        for step in steps:
            now, later = self._needs(step)
            required += now
            promised += max(now, later)
        return _plan.check_space(
            pool=pool,
            names=[step.name for step in steps],
            required=required,
            thin=promised - required,
            available=host.free_bytes(pool),
            overcommit=self._wish.overcommit,
        )

    def _needs(self, step: Step) -> tuple[int, int]:
        """Bytes that a step writes or reserves itself, and bytes that its volume can come to take."""
        if isinstance(step, _plan.Delete):
            return 0, 0
        if isinstance(step, _plan.Grow):
            added = step.capacity - step.capacity_before
            return (0 if step.preallocation == "off" else added), added
        if isinstance(step, _plan.CreateOverlay):
            return _plan.empty_qcow2_bytes(step.capacity, step.cluster_size), step.capacity
        if step.format == "raw" and step.preallocation != "off":
            return step.capacity, step.capacity
        if isinstance(step, _plan.CreateBlank) and step.preallocation == "off":
            if step.format == "raw":
                return 0, step.capacity
            return _plan.empty_qcow2_bytes(step.capacity, step.cluster_size), step.capacity
        measured = self._measure(step)
        now = measured.fully_allocated if step.preallocation in ("falloc", "full") else measured.required
        return now, max(now, step.capacity)

    def _measure(self, step: _plan.CreateBlank | _plan.CopyImage) -> Measure:
        options = {"cluster_size": str(step.cluster_size)} if step.cluster_size is not None else {}
        if isinstance(step, _plan.CreateBlank):
            key: tuple[object, ...] = (step.format, step.capacity, step.cluster_size)
            if key not in self._measured:
                self._measured[key] = self._qemu_img.measure_empty(
                    capacity=step.capacity, image_format=step.format, options=options
                )
            return self._measured[key]
        source = step.source
        key = (source.path, source.snapshot, step.format, step.cluster_size)
        if key not in self._measured:
            self._measured[key] = self._qemu_img.measure(
                source=source.path,
                source_format=source.format,
                snapshot=source.snapshot,
                shared=source.shared,
                target_format=step.format,
                options=options,
            )
        return self._measured[key]


def gather_facts(image: Image | None) -> Facts:
    """Who has an image open, whether libvirt knows them or not."""
    if image is None or image.type != "file":
        return Facts()
    return Facts(opened=_locks.image_users(image.path), loop_devices=tuple(loop_devices_on(image.ident)))


def _look(host: Host, pool: Pool, name: str) -> Image | None:
    image = host.image(pool, name)
    if image is not None and image.distrust == NOT_AN_IMAGE:
        raise Unsupported(
            f"{image.path!r} in pool {pool.name!r} is neither a file nor a block device; it is left alone.", path=image.path
        )
    return image


def _place_of(pool: Pool) -> Ident:
    if pool.stores_files and pool.path is not None:
        return identify(pool.path)
    return ("pool", pool.uuid, "")
