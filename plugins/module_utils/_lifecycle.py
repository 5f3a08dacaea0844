# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a use case that changes volumes is to the runner, for the eyes of type checkers: nothing of it is there when modules run."""

from __future__ import annotations

import contextlib
from typing import Any, Protocol, TypeVar

from ._inventory import Host
from ._model import Volume
from ._plans import Plan

PlanT = TypeVar("PlanT", bound=Plan)


class LifecycleTask(Protocol[PlanT]):
    """What a module that changes volumes hands to run_lifecycle()."""

    @property
    def names(self) -> list[str]:
        """The volumes of the call, in order."""

    def guard(self, host: Host) -> contextlib.AbstractContextManager[None]:
        """The right to work on these volumes, and a tidy place to do it."""

    def decide(self, host: Host) -> PlanT:
        """Look at what is there and plan; touches nothing."""

    def carry_out(self, host: Host, plan: PlanT) -> PlanT | None:
        """Take the plan's steps; returns the plan as it came out where that can differ."""

    def describe(self, host: Host) -> list[Volume | None]:
        """The volumes as they are now, in order."""

    def extra_result(self, plan: Plan) -> dict[str, Any]:
        """Keys of the result beside those of all modules."""
