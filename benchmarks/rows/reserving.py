# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Row 9: a raw volume with all of its space reserved."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from ..measure import Arm, Failure, sh, take_turns
from ..place import a_place, remove
from ..plays import PING, ours, time_tasks
from ..results import Table, compare
from .scale import GIB, MIB, Scale

FALLOCATE, CREATE = "fallocate", "volume, format raw"
PART = 10


def measure(scale: Scale) -> Iterator[Table]:
    size = scale.pick(10 * GIB, GIB)
    with a_place() as place:
        disk = place.ext4(size + GIB)
        uri, pool = place.hypervisor.uri, place.hypervisor.pool("default", disk / "images")
        target = disk / "images" / "volume"

        def prepare() -> None:
            remove(target)
            pool.refresh()

        def check() -> None:
            if target.stat().st_blocks * 512 < size:
                raise Failure("not all space is reserved")

        pings: list[float] = []
        wish = ours("volume", uri=uri, name="volume", format="raw", size=size)
        nothing = ours("volume", uri=uri, name="volume", state="absent")

        def create() -> float:
            """Beyond a ping in the same play; the first task of each kind builds its payload."""
            *_first, ping, made = time_tasks(place.root, [nothing, PING, PING, wish], changed=1)
            pings.append(ping)
            return made - ping

        by_libvirt = ("vol-create-as", "default", "volume", f"{size}B", "--allocation", f"{size}B", "--format", "raw")
        times = take_turns([
            Arm(CREATE, "ours", create, prepare, check),
            Arm("virsh vol-create-as", "peer", lambda: sh("virsh", "-c", uri, *by_libvirt), prepare, check),
            Arm("qemu-img create -o preallocation=falloc", "peer",
                lambda: sh("qemu-img", "create", "-q", "-f", "raw", "-o", "preallocation=falloc", target, size), prepare, check),
            Arm(FALLOCATE, "floor", lambda: sh("fallocate", "-l", size, target), prepare, check),
            Arm(f"zeros written, synced (from a {PART}th)", "floor", lambda: _write_zeros(target, size), prepare),
        ], scale.rounds, warm_up=True)
        remove(target)
    table = compare(f"{size / GIB:g} GiB; the task less a ping in the same play", times, FALLOCATE)
    table.mark(f"raw volume of {size / GIB:g} GiB, reserved, marginal", times[CREATE], 0.1, "s",
               "Most of it is what a task of ours costs beyond a ping with nothing to do, see row 1. A ping took "
               f"{median(pings):.2f} s here, and 0.18 to 0.22 s where the mark was set.")
    yield table


def _write_zeros(target: Path, size: int) -> float:
    began = time.perf_counter()
    with target.open("wb") as file:
        for _block in range(size // PART // MIB):
            file.write(bytes(MIB))
        os.fsync(file.fileno())
    return (time.perf_counter() - began) * PART
