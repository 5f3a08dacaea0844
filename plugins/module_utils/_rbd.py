# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The only file that knows Ceph: the tool ``rbd``, and how QEMU is told of an image in a cluster.

libvirt names neither the snapshots, the clones nor the users of an RBD image, has no word for renaming one, and its copy leaves
a protected snapshot on the source. Manual: https://docs.ceph.com/en/latest/man/8/rbd/
"""

from __future__ import annotations

import base64
import errno
import json
import os
import shutil
from collections.abc import Sequence
from typing import Any

from . import _qemu_img
from ._errors import InsufficientSpace, ToolFailed, ToolMissing, VolumeInUse, VolumeMismatch
from ._model import PoolSource
from ._named_tuple import NamedTuple

#: How long a cluster that does not answer is waited for, in seconds; the time that libvirt gives it.
TIMEOUT = 30


class RbdImage(NamedTuple):
    """An image of a pool: its size in bytes, its own snapshots, and the image that it is a clone of."""

    name: str
    size: int
    snapshots: tuple[str, ...] = ()
    parent: tuple[str, str] | None = None  # Ceph pool and image


class Rbd:
    """One Ceph pool as one user; what leads to it, the key too, is kept in memory that children inherit."""

    def __init__(self, source: PoolSource, key: bytes | None, runner: _qemu_img.Runner = _qemu_img.run_tool) -> None:
        self._source = source
        self._runner = runner
        self._fd = os.memfd_create("ceph.conf")
        with open(self._fd, "w", encoding="utf-8", closefd=False) as file:
            file.write(build_config(source, key))

    @property
    def pass_fds(self) -> tuple[int, ...]:
        """What a tool must inherit to reach the cluster."""
        return (self._fd,)

    def location(self, image: str) -> str:
        """An image as QEMU's tools take it, in place of a file's path."""
        ceph = {"driver": "rbd", "pool": self._source.name, "image": image, "conf": self._config_path()}
        if self._source.user is not None:
            ceph["user"] = self._source.user
        return "json:" + json.dumps({"driver": "raw", "file": ceph})

    def images(self) -> dict[str, RbdImage]:
        """All images of the pool by name."""
        return parse_images(json.loads(self._run(["ls", "--long", "--format", "json"], f"list Ceph pool {self._source.name!r}")))

    def watchers(self, image: str) -> list[str]:
        """The addresses of those who have an image open for writing, on any host."""
        answer = json.loads(self._run([*_of(image), "status", "--format", "json"], f"look who uses RBD image {image!r}"))
        found = answer.get("watchers", [])
        return [str(watcher.get("address")) for watcher in (found.values() if isinstance(found, dict) else found)]

    def create(self, image: str, size: int) -> None:
        """Make an empty image of ``size`` bytes."""
        self._run([*_of(image), "create", "--size", f"{size}B"], f"create RBD image {image!r}")

    def grow(self, image: str, size: int) -> None:
        """Make an image larger; the tool itself refuses to make one smaller."""
        self._run([*_of(image), "resize", "--no-progress", "--size", f"{size}B"], f"grow RBD image {image!r}")

    def rename(self, image: str, name: str) -> None:
        """Give an image another name, which must be free; raises VolumeMismatch."""
        self._run(
            [*_of(image), "rename", f"--dest-pool={self._source.name}", f"--dest={name}"], f"give volume {name!r} its name"
        )

    def remove(self, image: str) -> None:
        """Remove an image."""
        self._run([*_of(image), "rm", "--no-progress"], f"remove RBD image {image!r}")

    def _config_path(self) -> str:
        return f"/proc/self/fd/{self._fd}"

    def _run(self, arguments: Sequence[str], what: str) -> str:
        argv = [_find(), "--conf", self._config_path(), f"--pool={self._source.name}"]
        if self._source.user is not None:
            argv.append(f"--id={self._source.user}")
        done = self._runner([*argv, *arguments], self.pass_fds, False)
        if done.returncode == 0:
            return done.stdout
        said = (done.stderr.strip() or "no message").splitlines()[-1][:500]
        message = f"Cannot {what}: rbd says: {said}"
        if done.returncode == errno.EEXIST:
            raise VolumeMismatch(f"{message}. It appeared meanwhile and was left as it is; run again.")
        if done.returncode in (errno.EBUSY, errno.ENOTEMPTY):
            raise VolumeInUse(f"{message}. Nothing was changed.")
        if done.returncode in (errno.ENOSPC, errno.EDQUOT):
            raise InsufficientSpace(f"{message}. Free space in the cluster and run again.")
        if done.returncode in (errno.ETIMEDOUT, errno.EACCES, errno.EPERM):
            message += ". Is the cluster up, and may the pool's user do this?"
        raise ToolFailed(message, rc=done.returncode)


def build_config(source: PoolSource, key: bytes | None) -> str:
    """The client's whole configuration, as libvirt makes it from a pool's definition: no file of the host is asked."""
    scheme = "none" if source.secret is None else "cephx"
    lines = [f"mon_host = {','.join(source.hosts)}"]
    lines += [f"auth_{who}_required = {scheme}" for who in ("client", "cluster", "service")]
    lines += [f"{option} = {TIMEOUT}" for option in ("client_mount_timeout", "rados_mon_op_timeout", "rados_osd_op_timeout")]
    lines += [f"{name} = {value}" for name, value in source.options]
    if key is not None:
        lines.append(f"key = {base64.b64encode(key).decode('ascii')}")
    return "\n".join(["[global]", *lines, ""])


def parse_images(listed: Sequence[dict[str, Any]]) -> dict[str, RbdImage]:
    """Read what ``rbd ls --long`` says: a line for each image, and one more for each of its snapshots."""
    snapshots: dict[str, list[str]] = {}
    for entry in listed:
        if "snapshot" in entry:
            snapshots.setdefault(entry["image"], []).append(entry["snapshot"])
    images = {}
    for entry in listed:
        if "snapshot" not in entry:
            above = entry.get("parent")
            name = str(entry["image"])
            parent = (str(above["pool"]), str(above["image"])) if above else None
            images[name] = RbdImage(name, int(entry["size"]), tuple(snapshots.get(name, ())), parent)
    return images


def is_installed() -> bool:
    """Whether this host has the tool."""
    return shutil.which("rbd", path=_qemu_img.SEARCH_PATH) is not None


def _find() -> str:
    path = shutil.which("rbd", path=_qemu_img.SEARCH_PATH)
    if path is None:
        raise ToolMissing(
            "rbd is not on this host, and without it nobody can tell who uses a volume of an RBD pool. Install package "
            "'ceph-common'.",
            tool="rbd",
        )
    return path


def _of(image: str) -> list[str]:
    return [f"--image={image}"]
