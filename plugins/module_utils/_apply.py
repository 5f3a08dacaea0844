# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Carries out a plan's steps, in order, each whole or not at all, with the hands of a use case (_apply_volume, ...).

Each use case has its own, so that Ansible sends no module the hands of another; those of each kind of step are imported when there
is such a step, since each run compiles what it imports.
"""

from __future__ import annotations

import abc
import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from . import _staging
from ._errors import StorageError
from ._inventory import Host
from ._model import Pool
from ._plans import Plan
from ._refresh import assert_refreshable, tell_libvirt
from ._steps import CreateBlank, CreateOverlay, Delete, Step

if TYPE_CHECKING:
    from ._qemu_img import QemuImg

#: How many new files are staged before the first gets its name.
_BATCH = 64


class Worker(abc.ABC):
    """A host and its tools, for the steps of one call; what takes each kind of step is a use case's."""

    def __init__(self, host: Host) -> None:
        self.host = host

    @functools.cached_property
    def qemu_img(self) -> QemuImg:
        from ._qemu_img import QemuImg

        return QemuImg()

    def carry_out(self, plan: Plan) -> None:
        """Do all steps in order; on a failure the error's facts name what is done and what isn't."""
        done: list[Step] = []
        steps = plan.steps
        touched: dict[str, Pool] = {}
        try:
            doomed = {step.name for step in steps if isinstance(step, Delete)}
            for pool in {step.pool.name: step.pool for step in steps if _is_to_be_told(step)}.values():
                if pool.stores_files:
                    assert_refreshable(self.host, pool, but=doomed)
            with contextlib.ExitStack() as held:
                self.prepare(steps, held)
                for batch in _batches(steps):
                    with _staging.explained(_describe(batch)):
                        for step, untold in self.take(batch):
                            if untold:
                                touched[step.pool.name] = step.pool
                            done.append(step)
            self._tell_libvirt(touched)
        except StorageError as error:
            if done:
                with contextlib.suppress(StorageError):  # the first failure is the one to report
                    self._tell_libvirt(touched)
            error.facts["changed"] = bool(done) or error.facts.get("changed", False)
            error.facts.setdefault("actions", [step.text for step in done])
            error.facts.setdefault("done", [step.name for step in done])
            error.facts.setdefault("not_done", [step.name for step in steps[len(done) :]])
            raise

    def _tell_libvirt(self, pools: dict[str, Pool]) -> None:
        for pool in pools.values():
            tell_libvirt(self.host, pool)
        self.host.forget()

    def prepare(self, steps: Sequence[Step], held: contextlib.ExitStack) -> None:  # noqa: B027  # most have nothing to hold
        """Take hold of what the steps need all together, before the first of them."""

    @abc.abstractmethod
    def take(self, batch: Sequence[Step]) -> Iterator[tuple[Step, bool]]:
        """Carry out steps that go together; yields each that is done, and whether libvirt has still to be told."""


def _batches(steps: Sequence[Step]) -> Iterator[Sequence[Step]]:
    """The steps in their order; those in a row that make small new files of one pool go together."""
    batch: list[Step] = []
    for step in steps:
        if batch and not (len(batch) < _BATCH and step.pool == batch[0].pool and _is_light(step) and _is_light(batch[0])):
            yield batch
            batch = []
        batch.append(step)
    if batch:
        yield batch


def _describe(batch: Sequence[Step]) -> str:
    return batch[0].text if len(batch) == 1 else f"create {len(batch)} volumes in pool {batch[0].pool.name!r}"


def _is_to_be_told(step: Step) -> bool:
    """Whether libvirt does not see to its view of the pool itself."""
    return not isinstance(step, Delete) or step.wipe


def _is_light(step: Step) -> bool:
    """Whether a step makes a file that takes next to no room."""
    return step.pool.stores_files and isinstance(step, (CreateBlank, CreateOverlay)) and step.preallocation == "off"
