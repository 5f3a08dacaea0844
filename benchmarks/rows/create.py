# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Row 2: fifty overlays of one template."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from ..measure import Arm, Failure, sh, take_turns
from ..peers import overlay_xml
from ..place import a_place, remove
from ..plays import PING, PYTHON, ours, run_play, time_tasks, virt_volume
from ..results import Table, compare
from .scale import Scale

PEERS = Path(sys.modules["benchmarks"].__path__[0], "peers.py")
CAPACITY = "1G"


def measure(scale: Scale) -> Iterator[Table]:
    count = scale.pick(50, 10)
    names = [f"v{number:02}" for number in range(count)]
    with a_place() as place:
        hypervisor, images = place.hypervisor, place.directory("images")
        pool = hypervisor.pool("default", images)
        template, uri = images / "template", hypervisor.uri
        sh("qemu-img", "create", "-q", "-f", "qcow2", template, CAPACITY)
        pool.refresh()
        wish = ours("volume", uri=uri, name=names, template="template")
        loop = {**virt_volume(uri=uri, pool="default", state="present", xml=overlay_xml("{{ item }}", str(template))), "loop": names}

        built: list[float] = []

        def prepare() -> None:
            remove(*(images / name for name in names))
            pool.refresh()

        def prepare_again() -> None:
            run_play(place.root, [wish], changed=0 if (images / names[-1]).exists() else 1)

        def again() -> float:
            """Beyond a ping in the same play, each the first of its kind, for which the controller builds the payload."""
            ping, first, second_ping, second = time_tasks(place.root, [PING, wish, PING, wish], changed=0)
            built.append(second - second_ping)
            return first - ping

        def check() -> None:
            if sorted(path.name for path in images.iterdir()) != sorted([*names, "template"]):
                raise Failure("not all volumes are there")

        def qemu_img() -> None:
            for name in names:
                sh("qemu-img", "create", "-q", "-f", "qcow2", "-b", template, "-F", "qcow2", images / name)

        def virsh() -> None:
            for name in names:
                sh("virsh", "-c", uri, "vol-create-as", "default", name, CAPACITY, "--format", "qcow2",
                   "--backing-vol", template, "--backing-vol-format", "qcow2")

        def by_hand() -> None:
            sh(PYTHON, PEERS, "copy-header", images, template, count)

        play, create = place.root, "libvirt from Python"
        times = take_turns([
            Arm("play of a ping", "floor", lambda: run_play(play, [PING], changed=0)),
            Arm("volume, one task", "ours", lambda: run_play(play, [wish], changed=1), prepare, check),
            Arm("volume, again", "ours", again, prepare_again),
            Arm("virt_volume, a loop", "peer", lambda: run_play(play, [loop], changed=1), prepare, check),
            Arm(f"{count} virsh processes", "peer", virsh, prepare, check),
            Arm(create, "peer", lambda: sh(PYTHON, PEERS, "create", uri, "default", template, count), prepare, check),
            Arm(f"{count} qemu-img create, not synced", "floor", qemu_img, prepare, check),
            Arm("one header made and copied, not synced", "floor", by_hand, prepare, check),
        ], scale.rounds, warm_up=True)
    plays = ("volume, one task", "virt_volume, a loop")
    title = f"{count} volumes; plays less that of a ping; again: the task less a ping in the same play"
    table = compare(title, times, create, less=dict.fromkeys(plays, "play of a ping"), hide=("play of a ping",))
    table.remarks.append(f"The whole play with one task took {times['volume, one task'].median:.2f} s, that with virt_volume "
                         f"{times['virt_volume, a loop'].median:.1f} s.")
    table.mark(f"{count} volumes in one task, whole play", times["volume, one task"], 1.6, "s",
               f"A play of one ping takes {times['play of a ping'].median:.2f} s of that on this machine. The mark was set where the loop "
               f"of virt_volume takes 12.1 s, which is {times['virt_volume, a loop'].median:.1f} s here.")
    table.mark(f"{count} volumes in one task, marginal, to libvirt from Python",
               (times["volume, one task"] - times["play of a ping"]) / times[create], 1.2, why=WHY)
    table.mark("the same again, marginal", times["volume, again"], 0.3, "s",
               "Ansible builds a module's payload once in a play, on the controller, for which it parses all files that the module may "
               f"need. A second such task in the play takes {median(built):.2f} s.")
    yield table


WHY = "The profile below shows where the time goes."
