# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""New volumes without data of their own: blank ones, and overlays on a template."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Union

from . import _image_locks, _staging
from ._inventory import Host
from ._new_file import complete, directory_of
from ._plan_capacity import qcow2_options
from ._steps import CreateBlank, CreateOverlay

if TYPE_CHECKING:
    from ._qemu_img import QemuImg

#: An empty image up to this many bytes is made once per call and then written again for each name that wants the same.
_PATTERN_LIMIT = 4 << 20
#: Such images by what was asked for.
Patterns = dict[tuple[object, ...], bytes]
Empty = Union[CreateBlank, CreateOverlay]


def create_empty(
    host: Host, qemu_img: Callable[[], QemuImg], batch: Sequence[Empty], patterns: Patterns
) -> Iterator[Empty]:
    """Make the volumes of one pool, all staged before the first gets its name; yields each that has it.

    ``qemu_img`` is called for when it is needed; ``patterns`` keeps from call to call what was made before.
    """
    _image_locks.allow_open_files(2 * len(batch))
    with contextlib.ExitStack() as stack:
        files = []
        for step in batch:
            if isinstance(step, CreateOverlay):
                from ._pinned import hold_source

                what = f"create volume {step.name!r} on {step.source.label}"
                stack.enter_context(hold_source(host, step.source.path, shared=False, what=what))
            staged = stack.enter_context(_staging.stage(directory_of(step)))
            _fill(staged, step, qemu_img, patterns)
            files.append(complete(staged, step))
        for _name, step in zip(_staging.publish(files), batch):  # the former goes on to its end
            yield step


def _fill(staged: _staging.Staged, step: Empty, qemu_img: Callable[[], QemuImg], patterns: Patterns) -> None:
    backing = None
    if isinstance(step, CreateOverlay):
        options, backing = qcow2_options(step.cluster_size), (step.source.path, step.source.format)
    elif step.format == "raw" and step.preallocation in ("off", "falloc"):
        with _staging.explained(f"reserve {step.capacity} bytes for volume {step.name!r} of pool {step.pool.name!r}"):
            if step.preallocation == "falloc":
                os.posix_fallocate(staged.fd, 0, step.capacity)
            else:
                os.ftruncate(staged.fd, step.capacity)
        return
    else:
        options = {"preallocation": step.preallocation}
        if step.format == "qcow2":
            options.update(qcow2_options(step.cluster_size))
    key = (step.format, step.capacity, tuple(sorted(options.items())), backing)
    if key in patterns:
        _write(staged.fd, patterns[key])
        return
    qemu_img().create(
        path=staged.path,
        image_format=step.format,
        capacity=step.capacity,
        options=options,
        backing=backing,
        pass_fds=(staged.fd,),
    )
    size = os.fstat(staged.fd).st_size
    if size <= _PATTERN_LIMIT and step.preallocation == "off":
        pattern = os.pread(staged.fd, size, 0)
        if len(pattern) == size:
            patterns[key] = pattern


def _write(fd: int, pattern: bytes) -> None:
    os.ftruncate(fd, len(pattern))
    written = 0
    while written < len(pattern):  # a disk that fills up takes a part
        written += os.pwrite(fd, pattern[written:], written)
