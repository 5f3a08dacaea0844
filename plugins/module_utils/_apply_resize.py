# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The hands of volume_resize."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from . import _grow
from ._apply import Worker
from ._steps import Grow, Step


class ResizeWorker(Worker):
    """Grows volumes."""

    def take(self, batch: Sequence[Step]) -> Iterator[tuple[Step, bool]]:
        """See Worker.take()."""
        for step in batch:
            if isinstance(step, Grow):
                _grow.grow(self.host, self.qemu_img, step)
                yield step, True
