# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Row 6: copies that share their extents with the source."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from .. import images
from ..measure import Arm, Failure, sh, take_turns
from ..place import a_place, remove
from ..plays import PING, ours, time_tasks
from ..results import Table, compare
from .scale import GIB, MIB, Scale

PIECE = 64 * MIB
DD = "dd of the smaller, fsync"


def measure(scale: Scale) -> Iterator[Table]:
    small, large = scale.pick(GIB, 64 * MIB), scale.pick(10 * GIB, 256 * MIB)
    for kind in ("xfs", "btrfs"):
        with a_place() as place:
            mount = place.mount(kind, large + 4 * small + GIB)
            hypervisor = place.hypervisor
            pool = hypervisor.pool("default", mount / "images")
            for image_format in ("raw", "qcow2"):
                images_of = partial(_write_full, mount / "images", image_format)
                sources = {size: images_of(size) for size in (small, large)}
                pool.refresh()
                yield _measure_one(scale, place.root, hypervisor.uri, pool, kind, sources)
                remove(*sources.values())


def _write_full(directory: Path, image_format: str, size: int) -> Path:
    path = directory / f"{image_format}{size // MIB}"
    if image_format == "raw":
        return images.write_data(path, size)
    sh("qemu-img", "create", "-q", "-f", "qcow2", path, size)
    pieces = [word for start in range(0, size, PIECE) for word in ("-c", f"write -q -P 65 {start} {min(PIECE, size - start)}")]
    sh("qemu-io", "-t", "none", "-f", "qcow2", *pieces, path)
    return path


def _measure_one(scale: Scale, play: Path, uri: str, pool: object, kind: str, sources: dict[int, Path]) -> Table:
    (small, first), (large, second) = sources.items()
    target = first.parent / "target"
    image_format = "raw" if first.name.startswith("raw") else "qcow2"

    def prepare() -> None:
        remove(target)
        pool.refresh()  # type: ignore[attr-defined]

    def clone(source: Path) -> float:
        """Beyond a ping in the same play; the first task of each kind builds its payload."""
        there = ours("volume_clone", uri=uri, source=first.name, name=second.name)
        wish = ours("volume_clone", uri=uri, source=source.name, name="target")
        *_first, ping, made = time_tasks(play, [there, PING, PING, wish], changed=1)
        return made - ping

    def check(source: Path) -> None:
        if target.stat().st_blocks < source.stat().st_blocks * 0.9:
            raise Failure("the copy has not all the data")

    def arm(name: str, arm_kind: str, source: Path, *argv: object) -> Arm:
        return Arm(name, arm_kind, lambda: sh(*argv), prepare, partial(check, source))

    names = {path: f"volume_clone, {size / GIB:g} GiB" for size, path in sources.items()}
    times = take_turns([
        arm(DD, "floor", first, "dd", f"if={first}", f"of={target}", "bs=1M", "conv=fsync"),
        arm("virsh vol-clone of the smaller", "peer", first, "virsh", "-c", uri, "vol-clone", first.name, "target", "--pool", "default"),
        arm(f"cp --reflink, {large / GIB:g} GiB", "floor", second, "cp", "--reflink=always", second, target),
        *(Arm(name, "ours", partial(clone, path), prepare, partial(check, path)) for path, name in names.items()),
    ], scale.rounds)
    remove(target)
    table = compare(f"{image_format} on {kind}; tasks less a ping in the same play", times, DD)
    table.mark(f"clone of {large / GIB:g} GiB {image_format} on {kind}, marginal", times[names[second]], 0.3, "s", WHY)
    table.mark(f"clone of {large / GIB:g} GiB {image_format} on {kind}, more than of {small / GIB:g} GiB",
               times[names[second]] - times[names[first]], 0.1, "s", WHY)
    return table


WHY = "Sharing the extents takes no time that depends on their size; what is measured is the noise of whole tasks."
