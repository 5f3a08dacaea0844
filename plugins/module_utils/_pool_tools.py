# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The storage's own tools, for what libvirt can't do with LVM and ZFS: grow a volume, rename it, tell the steps of its size.

Manuals: lvextend(8), lvrename(8), vgs(8), zfs-set(8), zfs-rename(8), zfs-create(8).
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from . import _qemu_img
from ._errors import InsufficientSpace, ToolFailed, ToolMissing, VolumeMismatch

_SEARCH = os.pathsep.join(["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/bin", "/bin"])
#: ``zfs create -V`` rounds up to this, which every block size up to it divides.
_ZFS_STEP = 128 << 10
_PACKAGES = {"zfs": "zfsutils-linux (Debian, Ubuntu) or zfs (elsewhere)"}

Runner = _qemu_img.Runner


def granularity(pool_type: str, source: str, *, runner: Runner = _qemu_img.run_tool) -> int:
    """The bytes that sizes of a pool's volumes are multiples of: a volume group's extent, a ZFS block, a sector."""
    if pool_type == "logical":
        argv = ["vgs", "--noheadings", "--units", "b", "--nosuffix", "--options", "vg_extent_size", "--", source]
        return _number(_run(argv, f"read the extent size of volume group {source!r}", runner), argv)
    return _ZFS_STEP if pool_type == "zfs" else 512


def grow(pool_type: str, *, path: str, capacity: int, runner: Runner = _qemu_img.run_tool) -> None:
    """Grow a logical volume or zvol to ``capacity`` bytes, rounded up by its storage; raises our errors."""
    what = f"grow {path!r} to {capacity} bytes"
    if pool_type == "zfs":
        dataset = _dataset(path)
        argv = ["zfs", "get", "-H", "-p", "-o", "value", "volblocksize", dataset]
        block = _number(_run(argv, f"read the block size of {dataset!r}", runner), argv)
        _run(["zfs", "set", f"volsize={-(-capacity // block) * block}", dataset], what, runner)
    else:
        _run(["lvextend", "--yes", "--size", f"{capacity}b", "--", path], what, runner)


def rename(pool_type: str, *, path: str, name: str, runner: Runner = _qemu_img.run_tool) -> None:
    """Give a logical volume or zvol another name in its group or pool; raises VolumeMismatch when that is taken."""
    what = f"give volume {name!r} its name"
    if pool_type == "zfs":
        dataset = _dataset(path)
        _run(["zfs", "rename", dataset, f"{os.path.dirname(dataset)}/{name}"], what, runner)
    else:
        group, old = os.path.split(path)
        _run(["lvrename", "--yes", "--", os.path.basename(group), old, name], what, runner)


def _dataset(path: str) -> str:
    """libvirt shows a ZFS volume as /dev/zvol/POOL/NAME; zfs knows it as POOL/NAME."""
    return path.removeprefix("/dev/zvol/")


def _run(argv: Sequence[str], what: str, runner: Runner) -> str:
    done = runner([_find(argv[0]), *argv[1:]], (), False)
    if done.returncode == 0:
        return done.stdout
    said = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1].strip()[:500]
    if "nsufficient free space" in said or "out of space" in said:
        raise InsufficientSpace(f"Cannot {what}: {said.rstrip('.')}. Add space to the pool and run again.")
    if "already exists" in said:
        raise VolumeMismatch(f"Cannot {what}: {said.rstrip('.')}. It appeared meanwhile and was left as it is; run again.")
    raise ToolFailed(f"Cannot {what}: {argv[0]} failed: {said}", rc=done.returncode)


def _number(text: str, argv: Sequence[str]) -> int:
    answer = text.strip()
    if not answer.isdecimal() or int(answer) < 512:
        raise ToolFailed(f"{argv[0]} gave {answer[:80]!r} where a number of bytes was expected ({' '.join(argv)}).")
    return int(answer)


def _find(tool: str, search: Sequence[str] = _SEARCH.split(os.pathsep)) -> str:
    for directory in search:
        path = os.path.join(directory, tool)
        if os.access(path, os.X_OK):
            return path
    raise ToolMissing(f"{tool} is not on this host. Install package {_PACKAGES.get(tool, 'lvm2')}.", tool=tool)
