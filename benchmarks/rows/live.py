# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Row 10: the disk of a guest that writes to it all the time."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import libvirt

from .. import images
from ..measure import Arm, Failure, Series, sh, take_turns
from ..place import REPO, a_place, remove
from ..plays import ours, run_play
from ..results import Table, compare
from .scale import GIB, MIB, Scale

CLONE, NOTHING, BACKUP = "volume_clone", "volume_clone, nothing to do", "bare backup job, synced"
FROZEN = "bare backup job begun while the guest is frozen, synced"
ROUND = MIB  # what the guest writes before it counts on
# Writes over its own file again and again, past its cache, and counts; the hook tells when the agent freezes and thaws.
SCRIPT = """
mount -t ext4 /dev/vda /mnt || echo "mount failed"
n=0
while :; do
    dd if=/dev/zero of=/mnt/busy bs=64k count=16 seek=$((n % 64 * 16)) oflag=direct conv=notrunc 2>&-
    n=$((n+1))
    echo "wrote $n"
done
"""
HOOK = 'read -r now rest </proc/uptime; echo "$1 $now" >/dev/ttyS0\n'  # no process: each takes its time while all stands still


def measure(scale: Scale) -> Iterator[Table]:
    # What boots a guest for the tests boots one here.
    sys.path.insert(0, str(REPO / "tests" / "integration"))
    from support.guests import Guest
    from support.hypervisors import disk

    size = scale.pick(GIB, 128 * MIB)
    with a_place() as place:
        directory = place.ext4(6 * size) / "images"
        hypervisor = place.hypervisor
        pool = hypervisor.pool("default", directory)
        _make_disk(place.directory("tree"), directory / "disk", size)
        sh("qemu-img", "create", "-q", "-f", "qcow2", directory / "done", size * 2)
        pool.refresh()
        guest = Guest(hypervisor, place.root / "guest", SCRIPT, disk(directory / "disk", "qcow2", "vda"), hook=HOOK)
        place.undo(guest.stop)
        guest.wait_for("wrote 20")
        bench = Bench(place.root, hypervisor.uri, pool, guest, directory)
        idle = bench.watch(lambda: time.sleep(5))
        times = take_turns([
            Arm(BACKUP, "floor", bench.back_up, bench.prepare, bench.check),
            Arm(FROZEN, "floor", bench.freeze_and_back_up, bench.prepare, bench.check),
            Arm(CLONE, "ours", bench.clone, bench.prepare, bench.check),
            Arm(NOTHING, "ours", lambda: run_play(place.root, [bench.wish("done")], changed=0), bench.prepare),
        ], scale.rounds)
        busy = bench.watch(bench.back_up_slowly)
        remove(bench.target)
    title = f"{size / GIB:g} GiB of data, qcow2; the play less one with nothing to do"
    table = compare(title, times, BACKUP, less={CLONE: NOTHING}, hide=(NOTHING,))
    table.remarks.append(f"The guest wrote {idle:.1f} MiB/s alone and {busy:.1f} MiB/s while its disk was copied.")
    for arm, frozen in bench.frozen.items():
        table.remarks.append(
            f"{arm}: the guest was frozen for {', '.join(f'{seconds:.2f}' for seconds in frozen)} s, as its own clock says (from "
            "before the agent freezes to after it has thawed, in steps of 10 ms).")
    table.mark("live clone to the bare backup job", (times[CLONE] - times[NOTHING]) / times[BACKUP], 1.3, why=WHY)
    table.mark("live clone to the bare job that is begun while the guest is frozen", (times[CLONE] - times[NOTHING]) / times[FROZEN], 1.3,
               why=WHY_BEGUN)
    table.mark("frozen time", Series(tuple(bench.frozen[CLONE])), 0.2, "s", why=WHY_FROZEN)
    yield table


def _make_disk(tree: Path, path: Path, size: int) -> None:
    """An ext4 with as much data as asked for, part of which the guest writes over."""
    images.write_data(tree / "data", size - 64 * MIB)
    images.write_data(tree / "busy", 64 * MIB)
    raw = path.with_suffix(".raw")
    with raw.open("wb") as file:
        file.truncate(size * 2)
    sh("mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, raw)
    sh("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path)
    remove(raw, tree / "data", tree / "busy")


class Bench:
    """The guest, its disk, and what copies it."""

    def __init__(self, root: Path, uri: str, pool: Any, guest: Any, directory: Path) -> None:
        self.root, self.uri, self.pool, self.guest = root, uri, pool, guest
        self.source, self.target = directory / "disk", directory / "target"
        self.frozen: dict[str, list[float]] = {FROZEN: [], CLONE: []}

    def wish(self, name: str) -> dict[str, Any]:
        return ours("volume_clone", uri=self.uri, source="disk", name=name)

    def prepare(self) -> None:
        remove(self.target)
        self.pool.refresh()

    def check(self) -> None:
        sh("qemu-img", "check", "-q", "-f", "qcow2", self.target)
        if self.target.stat().st_blocks < self.source.stat().st_blocks * 0.9:
            raise Failure("the copy has not all the data")

    def clone(self) -> None:
        run_play(self.root, [self.wish("target")], changed=1)
        self._note_frozen(CLONE)

    def freeze_and_back_up(self) -> None:
        self.guest.virt.fsFreeze()
        try:
            self._begin()
        finally:
            self.guest.virt.fsThaw()
        self._finish()
        self._note_frozen(FROZEN)

    def back_up(self) -> None:
        self._begin()
        self._finish()

    def _finish(self) -> None:
        while self._has_job():
            time.sleep(0.01)
        with self.target.open("rb") as file:
            os.fsync(file.fileno())

    def _begin(self) -> None:
        self.guest.virt.backupBegin(
            "<domainbackup mode='push'><disks><disk name='vda' backup='yes' type='file'>"
            f"<target file='{self.target}'/><driver type='qcow2'/></disk></disks></domainbackup>", None, 0)

    def _has_job(self) -> bool:
        return bool(self.guest.virt.jobInfo()[0] not in (libvirt.VIR_DOMAIN_JOB_NONE, libvirt.VIR_DOMAIN_JOB_COMPLETED))

    def back_up_slowly(self) -> None:
        """One clone after the other for a while, to see what they leave to the guest."""
        until = time.monotonic() + 5
        while time.monotonic() < until:
            self.prepare()
            self.clone()

    def watch(self, work: Any) -> float:
        """MiB a second that the guest wrote meanwhile."""
        before, began = self.guest.last("wrote"), time.monotonic()
        work()
        return (self.guest.last("wrote") - before) * ROUND / MIB / (time.monotonic() - began)

    def _note_frozen(self, arm: str) -> None:
        """How long the guest was frozen each time since the last note, in seconds of its own clock."""
        told = re.findall(r"(freeze|thaw) (\d+\.\d+)", self.guest.said())
        times = [round(float(b[1]) - float(a[1]), 2) for a, b in zip(told, told[1:]) if (a[0], b[0]) == ("freeze", "thaw")]
        fresh = times[sum(len(noted) for noted in self.frozen.values()):]
        if not fresh:
            raise Failure("the guest was not frozen")
        self.frozen[arm] += fresh


WHY = (
    "The bare job copies a guest in the middle of its writes. Ours is begun while the guest's agent keeps its file systems still, for "
    "which the guest, here without hardware virtualisation, takes its time; the bare job that is begun so, too, shows what that costs."
)
WHY_BEGUN = (
    "Of the time on top, compiling the files that only such a copy needs takes some 0.05 s, qemu-img's measuring and making the file "
    "0.03 s, and the job's being held back until the guest has thawed 0.06 to 0.1 s: that is what keeps the guest frozen for half as long "
    "as the bare job does."
)
WHY_FROZEN = (
    "What the guest's agent and its kernel take, emulated beside a busy processor, is most of it; what the bare job took that is begun "
    "while the guest is frozen stands above."
)
