# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The hands of ``volume``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ._apply import Worker
from ._errors import Unsupported
from ._inventory import Host
from ._model import Ident
from ._steps import CopyImage, CreateBlank, CreateOverlay, Delete, Grow, Step

if TYPE_CHECKING:
    from ._create_empty import Patterns


class VolumeWorker(Worker):
    """Makes volumes, blank or from what stands still, grows and deletes them."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._doomed: dict[str, Ident] = {}  # the files to be deleted, by name
        self._patterns: Patterns = {}

    def prepare(self, steps: Sequence[Step], held: contextlib.ExitStack) -> None:
        """See Worker.prepare()."""
        if any(isinstance(step, Delete) for step in steps):
            from ._delete import hold_doomed

            self._doomed = hold_doomed(self.host, steps, held)

    def take(self, batch: Sequence[Step]) -> Iterator[tuple[Step, bool]]:
        """See Worker.take()."""
        step = batch[0]
        if isinstance(step, Delete):
            from ._delete import delete

            yield step, delete(self.host, step, self._doomed.get(step.name))
        elif isinstance(step, Grow):
            from ._grow import grow

            grow(self.host, self.qemu_img, step)
            yield step, True
        elif not step.pool.stores_files:
            self._create_without_file(step)
            yield step, False
        elif isinstance(step, CopyImage):
            from ._create_copy import create_copy

            create_copy(self.host, self.qemu_img, step)
            yield step, True
        else:
            from ._create_empty import create_empty

            empty = [each for each in batch if isinstance(each, (CreateBlank, CreateOverlay))]
            for created in create_empty(self.host, lambda: self.qemu_img, empty, self._patterns):
                yield created, True

    def _create_without_file(self, step: Step) -> None:
        from . import _without_files

        if isinstance(step, CreateBlank):
            _without_files.create_blank(self.host, step)
        elif isinstance(step, CopyImage):
            from ._create_copy import copy_without_file

            copy_without_file(self.host, self.qemu_img, step)
        else:
            raise Unsupported(f"Pool {step.pool.name!r} (type {step.pool.type}) holds no image files.")
