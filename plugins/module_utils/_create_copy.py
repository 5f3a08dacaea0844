# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""New volumes with the content of an image: copied into a file without a name, published when it is complete."""

from __future__ import annotations

import contextlib

from . import _staging, _without_files
from ._copy import CopyRunningDisk, copy_image
from ._inventory import Host
from ._new_file import complete, directory_of
from ._pinned import pin_source
from ._qemu_img import QemuImg
from ._steps import CopyImage, Moment, Source


def create_copy(host: Host, qemu_img: QemuImg, step: CopyImage, copy_running_disk: CopyRunningDisk | None = None) -> Moment:
    """Make one volume in a pool of files, of a running disk with what can copy one; returns of which moment of its source it is."""
    # QEMU opens the target of a backup job by its path, hence by a name.
    with _pinned_source(host, step) as source, _staging.stage(directory_of(step), named=step.method == "backup") as staged:
        moment = copy_image(step._replace(source=source), staged=staged, qemu_img=qemu_img, copy_running_disk=copy_running_disk)
        _without_files.assert_source_stood_still(host, step)
        for _name in _staging.publish([complete(staged, step)]):
            pass
    return moment


def copy_without_file(host: Host, qemu_img: QemuImg, step: CopyImage) -> None:
    """Make one volume in a pool without files."""
    with _pinned_source(host, step) as source:
        _without_files.copy(host, step, qemu_img, source=source)


def _pinned_source(host: Host, step: CopyImage) -> contextlib.AbstractContextManager[Source]:
    """The image that the decision is about, kept from being changed or deleted while something is made from it."""
    if step.method == "backup":  # the domain writes to it, and alone reads it
        return contextlib.nullcontext(step.source)
    return pin_source(host, step.source, hold=True, what=f"create volume {step.name!r} from {step.source.label}")
