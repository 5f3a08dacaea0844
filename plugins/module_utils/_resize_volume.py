# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The use case behind ``volume_resize``: grow, online where a running domain uses the volume."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ._describe import describe
from ._inventory import Host
from ._named_volumes import NamedVolumes, need_image
from ._plan_existing import plan_resize
from ._plans import Facts, Plan
from ._size import parse_size

GUEST_HINT = "Once the volume is larger, the partition and the file system inside the guest are still to be grown."


class ResizeTask(NamedVolumes):
    """One call of ``volume_resize``."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        super().__init__(params)
        self._size = parse_size(params["size"])
        self._preallocation: str | None = params["preallocation"]

    def decide(self, host: Host) -> Plan:
        """Plan all names; raises before anything is done if one is refused."""
        pool = self.pool(host)
        plans = []
        for name in self.names:
            image = need_image(host, pool, name)
            facts = Facts()
            if self._size > image.capacity:
                from ._facts import facts_of

                facts = facts_of(host, image)
            planned = plan_resize(
                volume=describe(host, image),
                pool=pool,
                size=self._size,
                preallocation=self._preallocation,
                facts=facts,
            )
            if planned.steps:
                from ._trust import assert_growable

                assert_growable(host, image, planned)
                planned = planned._replace(notes=(GUEST_HINT,))
            plans.append(planned)
        return Plan(tuple(plans), warnings=self.assert_room(host, pool, plans, overcommit=True))

    def carry_out(self, host: Host, plan: Plan) -> None:
        """Take the plan's steps."""
        from ._apply_resize import ResizeWorker

        ResizeWorker(host).carry_out(plan)
