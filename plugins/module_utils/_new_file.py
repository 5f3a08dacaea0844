# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The file of a volume that is being made: where it is, and what it is to become."""

from __future__ import annotations

import os

from ._errors import Unsupported
from ._staging import Complete, Ownership, Staged
from ._steps import Create


def directory_of(step: Create) -> str:
    """The directory of the step's pool; raises Unsupported when it has none."""
    if step.pool.path is None:
        raise Unsupported(f"Pool {step.pool.name!r} has no directory.")
    return step.pool.path


def complete(staged: Staged, step: Create) -> Complete:
    """The staged file with all its data, with the name, the rights and the format of the step."""
    rights = step.rights
    # libvirt may have lent a backup's target to QEMU's user: without a wish it is ours again.
    uid = os.geteuid() if rights.uid is None else rights.uid
    gid = os.getegid() if rights.gid is None else rights.gid
    return Complete(staged, step.name, Ownership(uid, gid, rights.mode), step.format)
