# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Row 1: what a task costs that has nothing to do."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

from ..measure import Series, say
from ..place import a_place, sh
from ..plays import PING, Task, ours, time_tasks, virt_volume
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
        plays = [_play(place.root, tasks, repeats, number) for number in range(scale.rounds)]
    yield _table(tasks, plays)


def _play(directory: Path, tasks: dict[str, tuple[str, Task]], repeats: int, number: int) -> dict[str, float]:
    """The median seconds of each kind of task, all of them in one play in random order, after one of each that builds its payload."""
    shuffled = list(tasks) * repeats
    random.Random(number).shuffle(shuffled)
    order = [*tasks, *shuffled]
    taken = time_tasks(directory, [tasks[name][1] for name in order], changed=0)
    found = {name: median(seconds for kind, seconds in list(zip(order, taken))[len(tasks):] if kind == name) for name in tasks}
    say(f"  play {number + 1}: {', '.join(f'{name} {seconds:.3f} s' for name, seconds in found.items())}")
    return found


def _table(tasks: dict[str, tuple[str, Task]], plays: Sequence[dict[str, float]]) -> Table:
    series = {name: Series(tuple(play[name] for play in plays)) for name in tasks}
    table = Table(f"Wall time of one more task in a play, in a pool of {VOLUMES} volumes", "ping", [])
    for name, (kind, _task) in tasks.items():
        ratio = series[name] / series["ping"]
        table.lines.append(Line(name, kind, Spread.of(ratio), Spread.of(series[name])))
        if kind == "ours":
            table.mark(f"{name} with nothing to do, to ping", ratio, LIMIT, why=WHY)
    table.remarks.append("Each play runs all kinds of tasks in random order, many times each; its medians make one round.")
    return table


# Of the module's process alone, lowest of 15 runs, in ms: 37 for imports (of which compiling ours some 20, and libvirt's binding 5 where
# its library is loaded by a thread meanwhile), 4 for the heads of 200 images, 3 for libvirt's answers. Each KiB of payload costs some 0.03.
WHY = (
    "A bare module that imports libvirt has a third to a half of it already. What comes on top is compiling the collection's files, which "
    "Ansible sends as source (once each, without a search for garbage, and while a thread loads libvirt's library), a larger payload, and "
    "a few ms for connecting and looking. Compiled files kept on the host would save most of it; nothing is left there. Tried too: "
    "without all functions that this very run doesn't call, some 80 in 20 files, it takes 6 to 8 ms less, which is about the mark; but a "
    "host with domains and backing files calls half of them. The profile below has the parts."
)
