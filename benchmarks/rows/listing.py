# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Row 3: everything about thousands of volumes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..measure import Arm, Failure, sh, take_turns
from ..place import Hypervisor, Place, a_place, warm
from ..plays import PING, PYTHON, ours, run_play, virt_volume
from ..results import Table, compare
from .create import PEERS
from .scale import MIB, Scale

DOMAINS, SNAPSHOTS, SAMPLE = 100, 20, 200
WHY = "The profile below shows where the time goes."


def measure(scale: Scale) -> Iterator[Table]:
    counts = (scale.pick(2000, 300), scale.pick(10000, 600))
    each: list[float] = []
    for count in counts:
        with a_place() as place:
            crowd = Crowd(place, count)
            table, seconds = _measure_one(crowd, scale)
        each.append(seconds / count)
        if count == counts[-1]:
            table.mark(f"time per volume at {counts[1]} to that at {counts[0]}", each[1] / each[0], 1.25, why=WHY)
        yield table


class Crowd:
    """A pool of ``count`` qcow2 volumes: some with snapshots, a tenth with a backing file, a hundred domains' disks."""

    def __init__(self, place: Place, count: int) -> None:
        self.place, self.count = place, count
        self.hypervisor: Hypervisor = place.hypervisor
        self.images = place.directory("images")
        plain, layer, kept = (self.images / f"v{number:05}" for number in range(3))
        sh("qemu-img", "create", "-q", "-f", "qcow2", plain, "1M")
        sh("qemu-img", "create", "-q", "-f", "qcow2", "-b", plain, "-F", "qcow2", layer)
        sh("qemu-img", "create", "-q", "-f", "qcow2", kept, "1M")
        sh("qemu-img", "snapshot", "-c", "first", kept)
        forms = [path.read_bytes() for path in (plain, layer, kept)]
        for number in range(3, count):
            form = 2 if number < 3 + SNAPSHOTS else 1 if number % 10 == 0 else 0
            (self.images / f"v{number:05}").write_bytes(forms[form])
        self.hypervisor.pool("default", self.images)
        for number in range(DOMAINS):
            self.hypervisor.conn.defineXML(_domain(f"vm{number}", self.images / f"v{100 + number:05}"))


def _domain(name: str, image: Path) -> str:
    return (
        f"<domain type='qemu'><name>{name}</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>"
        "<os><type arch='x86_64' machine='pc'>hvm</type></os><devices><disk type='file' device='disk'>"
        f"<driver name='qemu' type='qcow2'/><source file='{image}'/><target dev='vda' bus='virtio'/></disk></devices></domain>")


def _measure_one(crowd: Crowd, scale: Scale) -> tuple[Table, float]:
    uri, count, play = crowd.hypervisor.uri, crowd.count, crowd.place.root
    sample = sorted(crowd.images.iterdir())[:SAMPLE]

    def qemu_img() -> float:
        began = time.perf_counter()
        for path in sample:
            sh("qemu-img", "info", "-U", "--output=json", "-f", "qcow2", path)
        return (time.perf_counter() - began) * count / len(sample)

    wish = ours("volume_info", uri=uri, pool="default")
    libvirt_list, info = "libvirt from Python: list, XML of each", "volume_info"
    times = take_turns([
        Arm("play of a ping", "floor", lambda: run_play(play, [PING], changed=0)),
        Arm(info, "ours", lambda: run_play(play, [wish], changed=0)),
        Arm("virt_volume list_volumes (names only)", "peer",
            lambda: run_play(play, [virt_volume(uri=uri, pool="default", command="list_volumes")], changed=0)),
        Arm("virsh vol-list --details", "peer", lambda: sh("virsh", "-c", uri, "vol-list", "default", "--details")),
        Arm(libvirt_list, "peer", lambda: sh(PYTHON, PEERS, "list", uri, "default")),
        Arm(f"qemu-img info of each ({len(sample)} run)", "peer", qemu_img),
        Arm("headers read from the directory", "floor", lambda: sh(PYTHON, PEERS, "scan", crowd.images)),
    ], scale.rounds, warm_up=True)
    plays = (info, "virt_volume list_volumes (names only)")
    table = compare(f"{count} volumes, {DOMAINS} domains; plays less that of a ping", times, libvirt_list,
                    less=dict.fromkeys(plays, "play of a ping"), hide=("play of a ping",))
    marginal = times[info] - times["play of a ping"]
    table.mark(f"volume_info of {count} volumes, marginal, to libvirt's list and XML", marginal / times[libvirt_list], 1.5, why=WHY)
    memory, size, seconds = run_alone(uri, count)
    table.remarks.append(
        f"The module alone, without Ansible's controller: {seconds:.2f} s, {memory / MIB:.0f} MiB of memory at most, "
        f"a result of {size / MIB:.1f} MiB ({size / count:.0f} bytes a volume).")
    table.mark(f"memory of volume_info at {count} volumes", memory / MIB, 100, "MiB", WHY)
    warm()
    return table, marginal.median


def run_alone(uri: str, count: int) -> tuple[int, int, float]:
    """Run the module as one process: its peak of memory in bytes, the size of its answer, its seconds."""
    options: dict[str, Any] = {"uri": uri, "pool": ["default"], "_ansible_remote_tmp": "/tmp", "_ansible_keep_remote_files": False}
    argv = [sys.executable, "-m", "ansible_collections.hypervisor.storage.plugins.modules.volume_info"]
    env = {**os.environ, "PYTHONPATH": os.environ["ANSIBLE_COLLECTIONS_PATH"]}
    began = time.perf_counter()
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env) as process:
        assert process.stdin and process.stdout
        process.stdin.write(json.dumps({"ANSIBLE_MODULE_ARGS": options}).encode())
        process.stdin.close()
        said = process.stdout.read()
        _pid, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - began
    answer = json.loads(said)
    if len(answer.get("volumes", ())) != count:
        raise Failure(f"volume_info gave {str(answer)[:600]}")
    return usage.ru_maxrss * 1024, len(said), seconds
