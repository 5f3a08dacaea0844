# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Row 11: many hypervisors in one play."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..measure import Arm, Failure, sh, take_turns
from ..place import Hypervisor, a_place, remove
from ..plays import PING, ours, run_play
from ..results import Table, compare
from .scale import Scale

ONE = "1 hypervisor"


def measure(scale: Scale) -> Iterator[Table]:
    count, volumes = scale.pick(20, 4), scale.pick(50, 10)
    names = [f"v{number:02}" for number in range(volumes)]
    with a_place() as place:
        fleet: dict[str, Hypervisor] = {}
        for number in range(count):
            name = f"h{number:02}"
            fleet[name] = place.another_hypervisor(name)
            fleet[name].pool("default", place.root / f"{name}-images")
            template = place.root / f"{name}-images" / "template"
            sh("qemu-img", "create", "-q", "-f", "qcow2", template, "1G")
            fleet[name].conn.storagePoolLookupByName("default").refresh()

        def hosts(number: int) -> dict[str, Any]:
            return {name: {"uri": fleet[name].uri} for name in list(fleet)[:number]}

        def prepare() -> None:
            remove(*(place.root / f"{name}-images" / volume for name in fleet for volume in names))
            for hypervisor in fleet.values():
                hypervisor.conn.storagePoolLookupByName("default").refresh()

        def create(number: int, forks: int) -> float:
            wish = ours("volume", uri="{{ uri }}", name=names, template="template")
            seconds = run_play(place.root, [wish], changed=1, hosts=hosts(number), forks=forks)
            for name in hosts(number):
                if len(list((place.root / f"{name}-images").iterdir())) != volumes + 1:
                    raise Failure(f"{name} has not all volumes")
            return seconds

        def arm(name: str, number: int, forks: int) -> Arm:
            return Arm(name, "ours", lambda: create(number, forks), prepare)

        def ping(name: str, number: int, forks: int) -> Arm:
            return Arm(f"{name}, ping", "floor", lambda: run_play(place.root, [PING], changed=0, hosts=hosts(number), forks=forks))

        half, whole = f"{count // 2} hypervisors, forks 5", f"{count} hypervisors, forks 5"
        times = take_turns([
            arm(ONE, 1, 5), arm(half, count // 2, 5), arm(whole, count, 5), arm(f"{count} hypervisors, forks 20", count, 20),
            ping(ONE, 1, 5), ping(whole, count, 5),
        ], scale.rounds)
    table = compare(f"{volumes} copy-on-write volumes on each; whole plays", times, ONE)
    table.mark(f"{count} hypervisors to {count // 2}, whole plays (2 is linear)", times[whole] / times[half], 2.2)
    each = (times[whole] - times[f"{whole}, ping"]) / count
    table.remarks.append(
        f"All of them share this machine's cores. Marginal to a ping, a hypervisor's {volumes} volumes take {each.median:.2f} s in the "
        f"fleet of {count} and {(times[ONE] - times[f'{ONE}, ping']).median:.2f} s alone.")
    yield table
