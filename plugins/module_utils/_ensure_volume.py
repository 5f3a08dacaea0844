# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The use case behind ``volume``: for each name the same wish, planned together, then done in order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from . import _plan_existing, _plan_image, _requests
from ._describe import describe
from ._inventory import Host, Image
from ._model import Ident, Pool
from ._named_volumes import NamedVolumes, assert_writable, find_image
from ._plans import Facts, Plan, VolumePlan, Wish

if TYPE_CHECKING:
    from ._steps import Source


class VolumeTask(NamedVolumes):
    """One call of ``volume``."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        super().__init__(params)
        self._absent = params["state"] == "absent"
        self._wipe: bool = params["wipe"]
        self._wish = Wish() if self._absent else _requests.read_wish(params)

    def decide(self, host: Host) -> Plan:
        """Plan all names; raises before anything is done if one is refused."""
        pool = self.pool(host)
        images = {name: find_image(host, pool, name) for name in self.names}
        if self._absent:
            return self._decide_absent(host, pool, images)
        return self._decide_present(host, pool, images)

    def carry_out(self, host: Host, plan: Plan) -> None:
        """Take the plan's steps."""
        from ._apply_volume import VolumeWorker

        VolumeWorker(host).carry_out(plan)

    def _decide_absent(self, host: Host, pool: Pool, images: Mapping[str, Image | None]) -> Plan:
        from ._facts import facts_of
        from ._plan_delete import plan_delete

        plans: list[VolumePlan] = []
        going: list[tuple[str, str]] = []
        for name, image in images.items():
            plans.append(
                plan_delete(
                    name=name,
                    pool=pool,
                    volume=describe(host, image) if image is not None else None,
                    wipe=self._wipe,
                    facts=facts_of(host, image),
                    going=going,
                )
            )
            going.append((pool.name, name))
        assert_writable(pool, [planned.name for planned in plans if planned.steps])
        if self._wipe and pool.stores_files and any(planned.steps for planned in plans):
            from ._refresh import assert_refreshable

            assert_refreshable(host, pool, but=self.names)
        return Plan(tuple(plans))

    def _decide_present(self, host: Host, pool: Pool, images: Mapping[str, Image | None]) -> Plan:
        wish = self._wish
        overlay = _plan_image.settle_mode(wish, _plan_image.settle_format(wish, pool)) == "backing"
        missing = any(image is None for image in images.values())
        # What exists already is compared with its template only as an overlay: a full copy outlives its source.
        source, source_ident = self._find_source(host, overlay) if wish.has_source and (missing or overlay) else (None, None)
        plans = []
        for name, image in images.items():
            if image is None:
                from ._plan_create import plan_create

                plans.append(plan_create(name=name, pool=pool, wish=wish, source=source))
                continue
            same = image.backing is not None and image.backing.ident == source_ident
            facts = Facts()
            if wish.size is not None and wish.size > image.capacity:
                from ._facts import facts_of

                facts = facts_of(host, image)
            planned = _plan_existing.plan_existing(
                volume=describe(host, image), wish=wish, pool=pool, same_backing=same, facts=facts
            )
            if planned.steps:
                from ._trust import assert_growable

                assert_growable(host, image, planned)
            plans.append(planned)
        return Plan(tuple(plans), warnings=self.assert_room(host, pool, plans, overcommit=wish.overcommit))

    def _find_source(self, host: Host, overlay: bool) -> tuple[Source, Ident]:
        from . import _sources

        wish = self._wish
        if wish.template is not None:
            pool = host.pool(wish.template_pool or self.pool_name)
            source, image = _sources.find_template(host, template=wish.template, pool=pool, for_overlay=overlay)
        else:
            pool = host.pool(wish.snapshot_pool or self.pool_name)
            source, image = _sources.find_snapshot(
                host, snapshot=wish.snapshot or "", volume=wish.snapshot_volume or "", pool=pool
            )
        return source, image.ident
