# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rows 7 and 8: giving back zeros in place, and rewriting with compressed clusters."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from .. import images
from ..measure import Arm, Failure, Times, sh, take_turns
from ..place import Place, a_place, remove, warm
from ..plays import ours, run_play
from ..results import Table, compare
from .scale import GIB, MIB, Scale

CP = "cp, fsync"
NOTHING = "volume_compress, nothing to do"
CLUSTER = 65536
RUN = 16 * MIB


class Bed:
    """A pool on ext4 with a master image and the copy of it that is worked on."""

    def __init__(self, place: Place, scale: Scale, *, run: int, words: bool = False) -> None:
        self.size, self.run, self.rounds, self.play = scale.pick(GIB, 128 * MIB), run, scale.rounds, place.root
        disk = place.ext4(6 * self.size + GIB)
        self.uri = place.hypervisor.uri
        self.master = images.write_half_zeros(disk / "master", self.size, run=run, words=words)
        self.pool = place.hypervisor.pool("default", disk / "images")
        self.volume, self.out = disk / "images" / "volume", disk / "out"
        sh("qemu-img", "create", "-q", "-f", "qcow2", disk / "images" / "empty", "1M")
        self.pool.refresh()
        self.compared: set[str] = set()

    def prepare(self) -> None:
        """A fresh copy to work on, in the page cache."""
        remove(self.volume, self.out)
        shutil.copyfile(self.master, self.volume)
        self.pool.refresh()
        warm(self.volume, self.master)

    def arm(self, name: str, kind: str, run: object, *, most: float = 1.1) -> Arm:
        return Arm(name, kind, run, self.prepare, partial(self._check, name, most))  # type: ignore[arg-type]

    def _check(self, name: str, most: float) -> None:
        """What is left must be small, and still the image: that is compared in the first round."""
        made = self.out if self.out.exists() else self.volume
        if made.stat().st_blocks * 512 > self.size * most:
            raise Failure(f"{made.name} still takes {made.stat().st_blocks * 512} bytes")
        if name not in self.compared:
            sh("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "qcow2", self.master, made)
            self.compared.add(name)

    def compress(self, changed: int = 1, name: str = "volume", **options: str) -> float:
        return run_play(self.play, [ours("volume_compress", uri=self.uri, name=name, method="zeros", **options)], changed=changed)

    def take_turns(self, arms: Sequence[Arm]) -> Times:
        common = [
            self.arm(CP, "floor", self._copy),
            Arm(NOTHING, "ours", lambda: self.compress(changed=0, name="empty")),
        ]
        return take_turns([*common, *arms], self.rounds)

    def _copy(self) -> None:
        sh("cp", "--sparse=never", self.volume, self.out)
        self._sync(self.out)

    def convert(self, *options: str) -> None:
        sh("qemu-img", "convert", "-f", "qcow2", "-O", "qcow2", *options, self.volume, self.out)
        self._sync(self.out)

    def _sync(self, path: Path) -> None:
        with path.open("rb") as file:
            os.fsync(file.fileno())


def measure_zeros(scale: Scale) -> Iterator[Table]:
    for run, title, limit in ((RUN, "zeros in runs of 16 MiB", 0.6), (CLUSTER, "zeros in every second cluster", 1.5)):
        with a_place() as place:
            yield _measure_zeros(Bed(place, scale, run=run), title, limit)


def _measure_zeros(bed: Bed, title: str, limit: float) -> Table:
    def dig() -> None:
        sh("fallocate", "--dig-holes", bed.volume)
        bed._sync(bed.volume)

    def feed(command: str) -> None:
        pieces = "".join(f"{command} {start} {bed.run}\n" for start in range(bed.run, bed.size, 2 * bed.run))
        argv = ["qemu-io", "-d", "unmap", "-f", "qcow2", str(bed.volume)]
        done = subprocess.run(argv, input=f"{pieces}flush\n", capture_output=True, text=True, check=True)
        if "failed" in done.stdout:
            raise Failure(done.stdout[-300:])
        bed._sync(bed.volume)

    half, compress = 0.65, "volume_compress zeros"
    times = bed.take_turns([
        bed.arm(compress, "ours", bed.compress, most=half),
        bed.arm("qemu-img convert (takes the space again)", "peer", bed.convert, most=half),
        bed.arm("qemu-img convert -W -m 16 -t none (likewise)", "peer", lambda: bed.convert("-W", "-m", "16", "-t", "none"), most=half),
        bed.arm("qemu-io write -z -u", "peer", lambda: feed("write -z -u"), most=half),
        bed.arm("qemu-io discard", "peer", lambda: feed("discard"), most=half),
        bed.arm("fallocate --dig-holes", "peer", dig, most=half),
    ])
    table = compare(f"{title}; plays less those with nothing to do", times, CP, less={compress: NOTHING}, hide=(NOTHING,))
    table.remarks.append(f"{bed.size / GIB:g} GiB allocated, half of it zeros; every result is synced.")
    table.mark(f"compress, {title}, to a copy", (times[compress] - times[NOTHING]) / times[CP], limit)
    return table


def measure_rewrite(scale: Scale) -> Iterator[Table]:
    for words, title in ((False, "data that does not compress"), (True, "data that compresses to half")):
        with a_place() as place:
            yield _measure_rewrite(Bed(place, scale, run=RUN, words=words), title)


def _measure_rewrite(bed: Bed, title: str) -> Table:
    zstd = ("-o", "compression_type=zstd")
    ours_zstd, ours_zlib = "volume_compress compression=zstd", "volume_compress compression=zlib"
    plain, fast = "qemu-img convert -c (zlib)", "qemu-img convert -c -W -m 16 (zstd)"
    times = bed.take_turns([
        bed.arm(ours_zstd, "ours", partial(bed.compress, compression="zstd")),
        bed.arm(ours_zlib, "ours", partial(bed.compress, compression="zlib")),
        bed.arm(plain, "peer", lambda: bed.convert("-c")),
        bed.arm("qemu-img convert -c -W (zlib)", "peer", lambda: bed.convert("-c", "-W")),
        bed.arm("qemu-img convert -c (zstd)", "peer", lambda: bed.convert("-c", *zstd)),
        bed.arm(fast, "peer", lambda: bed.convert("-c", "-W", "-m", "16", *zstd)),
    ])
    table = compare(f"{title}; plays less those with nothing to do", times, CP, less=dict.fromkeys((ours_zstd, ours_zlib), NOTHING),
                    hide=(NOTHING,))
    table.remarks.append(
        f"{bed.size / GIB:g} GiB allocated, half of it zeros in runs of 16 MiB; every result is synced. Ours also compares the new "
        "image with the old one before it takes its place, since the old one is gone then.")
    work = times[ours_zstd] - times[NOTHING]
    table.mark(f"rewrite with zstd, {title}, to convert -c -W zstd", work / times[fast], 1.1, why=WHY)
    table.mark(f"rewrite with zstd, {title}, to convert -c", work / times[plain], 0.2, why=WHY)
    return table


WHY = (
    "The converting itself takes less time than the bare one, since it runs as SCHED_BATCH. What comes on top is comparing the new image "
    "with the old one before the old one is given up, on all processors, which takes a fifth of the time. That comparison stays: it is "
    "what makes the loss of the old file safe. It could begin while the last of the new image is still on its way to the disk, were "
    "qemu-img told to leave that to us (-t unsafe): tried, 0.06 to 0.1 s less, and not done, so that each tool syncs what it writes."
)
