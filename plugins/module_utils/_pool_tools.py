# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The storage's own tools, for pools whose volumes libvirt can't resize: LVM and ZFS."""

from __future__ import annotations

import os
from collections.abc import Sequence

from . import _qemu_img
from ._errors import InsufficientSpace, ToolFailed, ToolMissing

_SEARCH = os.pathsep.join(["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/bin", "/bin"])


def _lvextend(path: str, capacity: int) -> list[str]:
    return ["lvextend", "--yes", "--size", f"{capacity}b", "--", path]


def _zfs_volsize(path: str, capacity: int) -> list[str]:
    # libvirt shows a ZFS volume as /dev/zvol/POOL/NAME; zfs knows it as POOL/NAME.
    return ["zfs", "set", f"volsize={capacity}", path.removeprefix("/dev/zvol/")]


#: By libvirt's pool type: the command that grows a volume to a size in bytes.
GROWERS = {"logical": _lvextend, "zfs": _zfs_volsize}
_PACKAGES = {"lvextend": "lvm2", "zfs": "zfsutils-linux (Debian, Ubuntu) or zfs (elsewhere)"}


def grow(pool_type: str, *, path: str, capacity: int, runner: _qemu_img.Runner = _qemu_img.run_tool) -> None:
    """Grow a logical volume or zvol to ``capacity`` bytes, rounded up by its storage; raises our errors."""
    argv = GROWERS[pool_type](path, capacity)
    done = runner([_find(argv[0]), *argv[1:]], (), False)
    if done.returncode == 0:
        return
    said = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1][:500]
    if "nsufficient free space" in said or "out of space" in said:
        raise InsufficientSpace(f"Cannot grow {path!r} to {capacity} bytes: {said} Add space to the pool and run again.")
    raise ToolFailed(f"Cannot grow {path!r} to {capacity} bytes: {argv[0]} failed: {said}", rc=done.returncode)


def _find(tool: str, search: Sequence[str] = _SEARCH.split(os.pathsep)) -> str:
    for directory in search:
        path = os.path.join(directory, tool)
        if os.access(path, os.X_OK):
            return path
    raise ToolMissing(f"{tool} is not on this host. Install package {_PACKAGES[tool]}.", tool=tool)
