# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The ladder of copies, fastest that is right first: shared extents, parallel convert, a live backup job.

Each writes a complete image into a staged file; publishing is the caller's.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
from collections.abc import Callable

from . import _staging
from ._directory import opened
from ._errors import Exchanged, ToolFailed
from ._image_header import read_header
from ._plan_capacity import qcow2_options
from ._qemu_img import QemuImg
from ._steps import CopyImage, Moment

_FICLONE = 0x40049409  # ioctl_ficlone(2)
_FICLONERANGE = 0x4020940D
_PROBE_BYTES = 65536

#: Copies the disk of a running domain into a staged file.
CopyRunningDisk = Callable[[CopyImage, _staging.Staged, QemuImg], Moment]


class _CloneRange(ctypes.Structure):
    """struct file_clone_range of linux/fs.h."""

    _fields_ = [
        ("src_fd", ctypes.c_int64),
        ("src_offset", ctypes.c_uint64),
        ("src_length", ctypes.c_uint64),
        ("dest_offset", ctypes.c_uint64),
    ]


def can_share_extents(path: str, directory: str) -> bool:
    """Whether a file's extents can be shared with a new file of a directory; tried on a file that never gets a name."""
    with contextlib.ExitStack() as stack:
        try:
            source = stack.enter_context(opened(path))
            target = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, target)
            length = min(_PROBE_BYTES, os.fstat(source).st_size)
            wish = _CloneRange(source, 0, 0 if length < _PROBE_BYTES else length, 0)
            fcntl.ioctl(target, _FICLONERANGE, bytes(wish))
        except OSError:
            return False
    return True


def copy_image(step: CopyImage, *, staged: _staging.Staged, qemu_img: QemuImg, copy_running_disk: CopyRunningDisk | None) -> Moment:
    """Fill a staged file as the step says; returns what moment of the source, which is pinned where it has files, it is.

    ``copy_running_disk`` is for the method ``backup``.
    """
    more_fds = step.source.pass_fds
    moment = Moment("offline")
    if step.method == "reflink":
        _share_extents(step, staged)
    elif copy_running_disk is not None and step.method == "backup":
        moment = copy_running_disk(step, staged, qemu_img)
    else:
        _convert(step, staged, qemu_img, more_fds)
    _set_capacity(step, staged, qemu_img)
    _assert_snapshot_stands(step)
    if step.verify:
        _verify(step, staged, qemu_img, more_fds)
    elif step.source.check and step.format == "qcow2":
        qemu_img.check(path=staged.path, image_format=step.format, pass_fds=(staged.fd,))
    return moment


def _share_extents(step: CopyImage, staged: _staging.Staged) -> None:
    if step.source.fd is None:
        raise ToolFailed(f"The {step.source.label} is not open.")
    with _staging.explained(f"copy {step.source.label}"):
        fcntl.ioctl(staged.fd, _FICLONE, step.source.fd)


def _convert(step: CopyImage, staged: _staging.Staged, qemu_img: QemuImg, more_fds: tuple[int, ...]) -> None:
    options = {"preallocation": step.preallocation}
    if step.format == "qcow2":
        options.update(qcow2_options(step.cluster_size, step.features))
    direct = _staging.supports_direct(staged)
    qemu_img.convert(
        source=step.source.path,
        source_format=step.source.format,
        snapshot=step.source.snapshot,
        shared=step.source.shared,
        target=staged.path,
        target_format=step.format,
        options=options,
        direct=direct,
        flush=None if direct else staged.fd,
        pass_fds=(staged.fd, *more_fds),
        label=step.source.label,
    )


def _set_capacity(step: CopyImage, staged: _staging.Staged, qemu_img: QemuImg) -> None:
    """Bring the copy to the size asked for: larger on demand, smaller where the snapshot was smaller than its image."""
    copied = _capacity(step, staged)
    if copied != step.capacity:
        qemu_img.resize(
            path=staged.path,
            image_format=step.format,
            capacity=step.capacity,
            preallocation=step.preallocation if step.capacity > copied and step.preallocation != "metadata" else "off",
            shrink=step.capacity < copied,
            pass_fds=(staged.fd,),
        )
    made = _capacity(step, staged)
    if made != step.capacity:
        raise ToolFailed(f"The copy of {step.source.label} has {made} bytes instead of {step.capacity}; it was dropped.")


def _capacity(step: CopyImage, staged: _staging.Staged) -> int:
    return read_header(staged.fd).capacity if step.format == "qcow2" else os.fstat(staged.fd).st_size


def _assert_snapshot_stands(step: CopyImage) -> None:
    """A snapshot that was deleted or replaced during the copy may have given its clusters to new data."""
    if step.source.snapshot is None or step.source.fd is None:
        return
    with _staging.explained(f"copy {step.source.label}"):
        entries = read_header(step.source.fd).snapshots
    wanted = (step.source.snapshot, step.source.snapshot_name, step.source.snapshot_moment)
    if not any((entry.id, entry.name, entry.moment) == wanted for entry in entries):
        raise Exchanged(f"The {step.source.label} went away while it was copied, so the copy was dropped. Run again.")


def _verify(step: CopyImage, staged: _staging.Staged, qemu_img: QemuImg, more_fds: tuple[int, ...]) -> None:
    """Compare with the source where it stands still; of a live copy, check the image's own structure."""
    os.fsync(staged.fd)
    if step.method != "backup":
        qemu_img.compare(
            first=step.source.path,
            first_format=step.source.format,
            second=staged.path,
            second_format=step.format,
            capacity=min(step.source.capacity, step.capacity),
            pass_fds=(staged.fd, *more_fds),
            label=step.source.label,
        )
    elif step.format == "qcow2":
        qemu_img.check(path=staged.path, image_format=step.format, pass_fds=(staged.fd,))
