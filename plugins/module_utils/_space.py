# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How many bytes a step writes, and how many its volume can come to take: measured, not guessed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ._directory import can_hold
from ._errors import InvalidSize
from ._inventory import Host
from ._model import Pool
from ._plan_capacity import empty_qcow2_bytes
from ._plan_space import check_space
from ._plans import VolumePlan
from ._size import human
from ._steps import CopyImage, CreateBlank, CreateOverlay, Delete, Grow, Step

if TYPE_CHECKING:
    from ._qemu_img import Measure, QemuImg


class SpaceCheck:
    """Sums the needs of all steps of a call; asks qemu-img once for each different image."""

    def __init__(self, qemu_img: QemuImg | None = None) -> None:
        self._qemu_img = qemu_img
        self._measured: dict[tuple[object, ...], Measure] = {}

    def check(self, host: Host, pool: Pool, plans: Sequence[VolumePlan], *, overcommit: bool) -> tuple[str, ...]:
        """Warnings about promises that the pool can't keep now; raises InsufficientSpace or InvalidSize."""
        steps = [step for planned in plans for step in planned.steps]
        if not steps:
            return ()
        required = promised = 0
        for step in steps:
            now, later = self._needs(host, step)
            required += now
            promised += max(now, later)
        warnings = check_space(
            pool=pool,
            names=[step.name for step in steps],
            required=required,
            thin=promised - required,
            available=host.free_bytes(pool),
            overcommit=overcommit,
        )
        _assert_files_can_be_so_large(pool, steps)
        return warnings

    def _needs(self, host: Host, step: Step) -> tuple[int, int]:
        """Bytes that a step writes or reserves itself, and bytes that its volume can come to take."""
        if isinstance(step, Delete):
            return 0, 0
        if isinstance(step, Grow):
            added = step.capacity - step.capacity_before
            return (0 if step.preallocation == "off" else added), added
        if isinstance(step, CreateOverlay):
            return empty_qcow2_bytes(step.capacity, step.cluster_size), step.capacity
        if step.format == "raw" and step.preallocation != "off":
            return step.capacity, step.capacity
        if isinstance(step, CreateBlank) and step.preallocation == "off":
            if step.format == "raw":
                return 0, step.capacity
            return empty_qcow2_bytes(step.capacity, step.cluster_size), step.capacity
        if isinstance(step, CopyImage) and step.method == "reflink":
            return 0, step.capacity  # the data is there already
        if isinstance(step, CopyImage) and step.method == "backup" and step.format == "raw":
            return step.source.capacity, step.capacity  # the job writes it whole; zeros are given back at the end
        measured = self._measure(host, step)
        now = measured.fully_allocated if step.preallocation in ("falloc", "full") else measured.required
        if step.format == "raw":
            now = min(now, step.capacity)
        return now, max(now, step.capacity)

    def _measure(self, host: Host, step: CreateBlank | CopyImage) -> Measure:
        from ._pinned import pin_source  # here, as most volumes need neither
        from ._qemu_img import QemuImg

        qemu_img = self._qemu_img = self._qemu_img or QemuImg()
        options = {"cluster_size": str(step.cluster_size)} if step.cluster_size is not None else {}
        if isinstance(step, CopyImage):
            options.update((key, value) for key, value in step.features if key == "extended_l2")
        if isinstance(step, CreateBlank):
            key: tuple[object, ...] = (step.format, step.capacity, step.cluster_size)
            if key not in self._measured:
                self._measured[key] = qemu_img.measure_empty(
                    capacity=step.capacity, image_format=step.format, options=options
                )
            return self._measured[key]
        source = step.source
        if step.format == "raw":  # of raw targets qemu-img tells the whole size, of qcow2 what is data
            options = {}
        key = (source.path, source.snapshot, step.format, step.cluster_size)
        if key not in self._measured:
            with pin_source(host, source, hold=False, what=f"measure {source.label}") as pinned:
                self._measured[key] = qemu_img.measure(
                    source=pinned.path,
                    source_format=pinned.format,
                    snapshot=pinned.snapshot,
                    shared=pinned.shared,
                    target_format="qcow2",
                    options=options,
                    pass_fds=pinned.pass_fds,
                    label=pinned.label,
                    # Ceph's client has more threads and buffers than the limit for a header of a file leaves room for.
                    limited=pinned.fd is not None,
                )
        return self._measured[key]


def _assert_files_can_be_so_large(pool: Pool, steps: Sequence[Step]) -> None:
    """Raises InvalidSize for raw files that the pool's file system can't have; qcow2 files have no size of their own yet."""
    sizes = [step.capacity for step in steps if not isinstance(step, Delete) and step.format == "raw"]
    if pool.stores_files and pool.path is not None and sizes and not can_hold(pool.path, max(sizes)):
        raise InvalidSize(
            f"size: {max(sizes)} bytes ({human(max(sizes))}) are more than a file can have on the file system of pool "
            f"{pool.name!r}. Choose a smaller size, format qcow2, or a pool on a file system such as XFS.",
            pool=pool.name,
        )
