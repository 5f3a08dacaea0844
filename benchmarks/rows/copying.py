# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rows 4 and 5: whole copies, of raw and qcow2 disks and of a chain."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Callable

from .. import images
from ..measure import Arm, Failure, sh, take_turns
from ..peers import copy_xml
from ..place import Place, a_place, cool, remove, warm
from ..plays import PYTHON, ours, run_play, virt_volume
from ..results import Line, Spread, Table, compare
from .create import PEERS
from .scale import GIB, MIB, Scale

DD = "dd of the data, fsync"
CLONE, NO_CLONE = "volume_clone", "volume_clone, nothing to do"
TWO, WORK = "volume_clone, two copies", "volume_clone, one copy more in the same task"
VIRT, NO_VIRT = "virt_volume clone_source", "virt_volume, nothing to do"
VOL_CLONE = "virsh vol-clone"
CREATE_FROM, DIRECT = "createXMLFrom from Python", "dd, direct writes"
FAST = "qemu-img convert -W -m 16 -t none"
BRIEF = (CREATE_FROM, DIRECT, VIRT, NO_VIRT)


def measure_raw(scale: Scale) -> Iterator[Table]:
    with a_place() as place:
        bed = Bed(place, scale, "raw")
        bed.make(lambda path, data: images.write_raw(path, data, bed.capacity))
        yield bed.compare("raw, source in the page cache", warm)
        yield bed.compare("raw, cold source", cool, brief=True)


def measure_qcow2(scale: Scale) -> Iterator[Table]:
    with a_place() as place:
        bed = Bed(place, scale, "qcow2")
        bed.make(lambda path, data: images.write_qcow2(path, data, bed.capacity))
        yield bed.compare("qcow2, source in the page cache", warm)
    with a_place() as place:
        bed = Bed(place, scale, "qcow2")
        bed.make(lambda path, data: images.write_chain(path, data, bed.capacity))
        yield bed.compare("qcow2 with two backing files, source in the page cache", warm, brief=True)


class Bed:
    """A pool on ext4 with one source, and what copies it."""

    def __init__(self, place: Place, scale: Scale, image_format: str) -> None:
        self.scale, self.format = scale, image_format
        self.size = scale.pick(GIB, 128 * MIB)
        self.capacity = 4 * self.size
        self.disk = place.ext4(10 * self.size)
        self.hypervisor = place.hypervisor
        self.play = place.root
        self.pool = self.hypervisor.pool("default", self.disk / "images")
        self.data = images.write_data(self.disk / "data", self.size)
        self.source = self.disk / "images" / "source"
        self.target = self.disk / "images" / "target"

    def make(self, write: Callable[[Path, Path], Path]) -> None:
        write(self.source, self.data)
        self.pool.refresh()
        run_play(self.play, [self._wish("done")], changed=1)  # the copy that is there already
        self.pool.refresh()

    def _wish(self, *names: str) -> dict[str, object]:
        return ours("volume_clone", uri=self.hypervisor.uri, source="source", name=list(names))

    def _virt(self, name: str) -> dict[str, object]:
        document = copy_xml(name, self.format, self.capacity)
        return virt_volume(uri=self.hypervisor.uri, pool="default", state="present", clone_source="source", xml=document)

    def compare(self, title: str, ready: Callable[..., None], *, brief: bool = False) -> Table:
        """``brief`` leaves out the arms that tell little more where the same was measured fully."""
        layers = sorted(self.source.parent.glob("source*"))
        out, second = self.target, self.target.with_name("second")

        def prepare() -> None:
            remove(out, second)
            self.pool.refresh()
            ready(*layers, self.data)

        def convert(*options: str) -> None:
            sh("qemu-img", "convert", "-f", self.format, "-O", self.format, *options, self.source, out)

        def dd(*options: str) -> None:
            sh("dd", f"if={self.data}", f"of={out}", "bs=1M", "conv=fsync", *options)

        play = partial(run_play, self.play)
        arm = partial(self._arm, prepare)
        arms = [
            arm(DD, "floor", dd, check=False),
            arm(DIRECT, "floor", lambda: dd("oflag=direct"), check=False),
            Arm(CLONE, "ours", lambda: play([self._wish("target")], changed=1), prepare, partial(self._check, True)),
            Arm(TWO, "ours", lambda: play([self._wish("target", "second")], changed=1), prepare, partial(self._check, True)),
            Arm(NO_CLONE, "ours", lambda: play([self._wish("done")], changed=0), prepare),
            Arm(VIRT, "peer", lambda: play([self._virt("target")], changed=1), prepare, partial(self._check, True)),
            Arm(NO_VIRT, "peer", lambda: play([self._virt("done")], changed=0), prepare),
            arm(VOL_CLONE, "peer", lambda: sh("virsh", "-c", self.hypervisor.uri, "vol-clone", "source", "target", "--pool", "default")),
            arm(CREATE_FROM, "peer", lambda: sh(
                PYTHON, PEERS, "clone", self.hypervisor.uri, "default", "source", copy_xml("target", self.format, self.capacity))),
            arm("qemu-img convert", "peer", convert),
            arm(FAST, "peer", lambda: convert("-W", "-m", "16", "-t", "none")),
            arm(f"{FAST} -T none", "peer", lambda: convert("-W", "-m", "16", "-t", "none", "-T", "none")),
        ]
        if brief:
            arms = [each for each in arms if each.name not in BRIEF]
        elif len(layers) == 1:
            arms.append(arm("cp", "peer", lambda: sh("cp", self.source, out)))
        times = take_turns(arms, self.scale.rounds)
        remove(out, second)
        work = times[TWO] - times[CLONE]
        table = compare(f"{title}; plays less those with nothing to do", times, DD,
                        less={CLONE: NO_CLONE, VIRT: NO_VIRT}, hide=(TWO, NO_CLONE, NO_VIRT))
        table.lines.insert(0, Line(WORK, "ours", Spread.of(work / times[DD]), Spread.of(work)))
        table.mark(f"clone, {title}, work alone, to dd", work / times[DD], 1.1)
        if self.format == "raw":
            table.mark(f"clone, {title}, work alone, to vol-clone", work / times[VOL_CLONE], 0.4,
                       why=f"Ours is bound by the disk, for which qemu-img alone waits as long ({FAST}: {times[FAST].median:.2f} s, "
                           f"{times[FAST].low:.2f} to {times[FAST].high:.2f}), and vol-clone by the processor.")
        whole = ", ".join(f"{name} {times[name].median:.2f} s" for name in (CLONE, VIRT) if times.has(name))
        table.remarks.append(f"{self.size / GIB:g} GiB of data, {self.capacity / GIB:g} GiB of capacity; every copy is synced. The work "
                             "alone is a play that makes two copies less one that makes one. "
                             f"Whole plays: {whole}.")
        return table

    def _arm(self, prepare: Callable[[], None], name: str, kind: str, run: Callable[[], object], *, check: bool = True) -> Arm:
        def run_and_sync() -> None:
            run()
            with self.target.open("rb") as file:
                os.fsync(file.fileno())

        return Arm(name, kind, run_and_sync, prepare, partial(self._check, check))

    def _check(self, capacity: bool) -> None:
        """A copy that is too short to be one must not count as fast."""
        if capacity and f'"virtual-size": {self.capacity}' not in sh("qemu-img", "info", "--output=json", "-f", self.format, self.target):
            raise Failure("the copy has another size")
        if self.target.stat().st_blocks * 512 < self.size:
            raise Failure("the copy has not all the data")
