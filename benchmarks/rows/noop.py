# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Row 1: what a task costs that has nothing to do."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ..measure import Arm, Series, Times, take_turns
from ..place import a_place, sh
from ..plays import PING, Task, ours, run_play, virt_volume
from ..results import Line, Spread, Table
from .scale import Scale

VOLUMES = 200
LIMIT = 1.16


def measure(scale: Scale) -> Iterator[Table]:
    repeats = scale.pick(10, 3)
    with a_place() as place:
        hypervisor = place.hypervisor
        images = place.directory("images")
        pool = hypervisor.pool("default", images)
        for number in range(VOLUMES):
            sh("qemu-img", "create", "-q", "-f", "qcow2", images / "v0", "1M") if number == 0 else None
            (images / f"v{number}").write_bytes((images / "v0").read_bytes())
        pool.refresh()
        uri = {"uri": hypervisor.uri}
        tasks: dict[str, tuple[str, Task]] = {
            "ping": ("floor", PING),
            "stat": ("peer", {"ansible.builtin.stat": {"path": str(images / "v0")}}),
            "a module that imports libvirt": ("floor", {"bare": {"binding": True}}),
            "virt_pool": ("peer", {"community.libvirt.virt_pool": {**uri, "name": "default", "state": "active"}}),
            "virt_volume": ("peer", virt_volume(**uri, pool="default", command="get_xml", name="v0")),
            "volume": ("ours", ours("volume", **uri, name="v0", size="1M")),
            "volume_info": ("ours", ours("volume_info", **uri, pool="default", name="v0")),
            "volume_resize": ("ours", ours("volume_resize", **uri, name="v0", size="1M")),
        }
        arms = [arm for name, (kind, task) in tasks.items() for arm in _pair(place.root, name, kind, task, repeats)]
        times = take_turns(arms, scale.rounds, warm_up=True)
    yield _table(tasks, times, repeats)


def _pair(directory: Path, name: str, kind: str, task: Task, repeats: int) -> list[Arm]:
    """A play with one such task, which builds the payload that further ones use, and one with many more."""
    few, many = partial(run_play, directory, [task], changed=0), partial(run_play, directory, [task] * (repeats + 1), changed=0)
    return [Arm(f"{name}, once", kind, few), Arm(f"{name}, many", kind, many)]


def _table(tasks: dict[str, tuple[str, Task]], times: Times, repeats: int) -> Table:
    def each(name: str) -> Series:
        return (times[f"{name}, many"] - times[f"{name}, once"]) / repeats

    table = Table(f"Marginal wall time of one more task, in a pool of {VOLUMES} volumes", "ping", [])
    for name, (kind, _task) in tasks.items():
        failure = times.failures.get(f"{name}, many") or times.failures.get(f"{name}, once")
        if failure:
            table.lines.append(Line(name, kind, None, None, failure))
            continue
        ratio = each(name) / each("ping")
        table.lines.append(Line(name, kind, Spread.of(ratio), Spread.of(each(name))))
        if kind == "ours":
            table.mark(f"{name} with nothing to do, to ping", ratio, LIMIT, why=WHY)
    return table


WHY = "The profile below shows where the time goes."
