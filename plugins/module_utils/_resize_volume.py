# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The use case behind ``volume_resize``: grow, online where a running domain uses the volume."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from . import _plan, _sources
from ._apply import Worker
from ._inventory import Host
from ._named_volumes import NamedVolumes, gather_facts, need_image
from ._plan import Facts, Plan
from ._qemu_img import QemuImg
from ._size import parse_size
from ._space import SpaceCheck

GUEST_HINT = "The volume is larger now; the partition and the file system inside the guest are still to be grown."


class ResizeTask(NamedVolumes):
    """One call of ``volume_resize``."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        super().__init__(params)
        self._size = parse_size(params["size"])
        self._preallocation: str | None = params["preallocation"]
        self._qemu_img = QemuImg()
        self._space = SpaceCheck(self._qemu_img)

    def decide(self, host: Host) -> Plan:
        """Plan all names; raises before anything is done if one is refused."""
        pool = host.pool(self.pool_name)
        plans = []
        for name in self.names:
            image = need_image(host, pool, name)
            grows = self._size > image.capacity
            planned = _plan.plan_grow(
                volume=host.describe(image),
                pool=pool,
                size=self._size,
                preallocation=self._preallocation,
                facts=gather_facts(image) if grows else Facts(),
            )
            _sources.assert_growable(host, image, planned)
            plans.append(replace(planned, notes=(GUEST_HINT,)) if planned.steps else planned)
        if any(planned.steps for planned in plans) and pool.stores_files:
            host.assert_refreshable(pool)
        return Plan(tuple(plans), warnings=self._space.check(host, pool, plans, overcommit=True))

    def carry_out(self, host: Host, plan: Plan) -> None:
        """Take the plan's steps."""
        Worker(host, self._qemu_img).carry_out(plan)
