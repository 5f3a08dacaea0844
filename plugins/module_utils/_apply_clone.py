# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The hands of volume_clone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ._apply import Worker
from ._create_copy import copy_without_file, create_copy
from ._errors import Exchanged
from ._inventory import Host
from ._qemu_img import QemuImg
from ._staging import Staged
from ._steps import CopyImage, Moment, Step


class CloneWorker(Worker):
    """Makes full copies, also of what a running domain writes to."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.moments: dict[str, Moment] = {}  # of each copy, by name

    def take(self, batch: Sequence[Step]) -> Iterator[tuple[Step, bool]]:
        """See Worker.take()."""
        for step in batch:
            if not isinstance(step, CopyImage):
                continue
            if step.pool.stores_files:
                self.moments[step.name] = create_copy(self.host, self.qemu_img, step, self._copy_running_disk)
            else:
                copy_without_file(self.host, self.qemu_img, step)
            yield step, step.pool.stores_files

    def _copy_running_disk(self, step: CopyImage, staged: Staged, qemu_img: QemuImg) -> Moment:
        from ._live import copy_running_disk

        return copy_running_disk(
            step,
            staged=staged,
            qemu_img=qemu_img,
            connection=self.host.connection,
            assert_disk=lambda: _assert_disk(self.host, step),
        )


def _assert_disk(host: Host, step: CopyImage) -> None:
    """Make sure that a running domain's disk is the volume that the decision is about: another job may have moved it meanwhile."""
    if step.live is None or step.source.home is None:
        return
    image = host.image(*step.source.home)
    if image is None or host.disk_of(step.live.domain_uuid, step.live.target) != image.ident:
        raise Exchanged(
            f"The disk {step.live.target} of domain {step.live.domain!r} was another one than the {step.source.label} when its copy "
            "began, so the copy was dropped. Run again."
        )
