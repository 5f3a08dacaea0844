# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where a row is measured: a directory with a private hypervisor, pools and loop file systems, all gone afterwards."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Callable
from xml.sax.saxutils import escape

import libvirt

from .measure import Failure, sh

REPO = Path(__file__).resolve().parents[1]
_HYPERVISOR = REPO / "tools" / "hypervisor.py"
_MKFS = {
    "ext4": ("mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0"),
    "xfs": ("mkfs.xfs", "-q", "-f", "-m", "reflink=1"),
    "btrfs": ("mkfs.btrfs", "-q", "-f"),
}

libvirt.registerErrorHandler(lambda _context, _error: None, None)  # errors travel as exceptions


class Place:
    """A directory that ends with everything in it; file systems are mounted before the first hypervisor starts."""

    def __init__(self, root: Path, undo: contextlib.ExitStack) -> None:
        self.root, self._undo = root, undo

    def directory(self, name: str) -> Path:
        path = self.root / name
        path.mkdir()
        return path

    def mount(self, kind: str, size: int) -> Path:
        """A fresh file system of ``size`` bytes on a loop device that passes the page cache of its file by."""
        image, mount = self.root / f"{kind}.img", self.directory(kind)
        with image.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
        self._undo.callback(image.unlink)
        device = sh("losetup", "--find", "--show", "--direct-io=on", image).strip()
        self._undo.callback(sh, "losetup", "--detach", device)
        sh(*_MKFS[kind], device)
        sh("mount", device, mount)
        self._undo.callback(sh, "umount", mount)
        return mount

    def ext4(self, size: int) -> Path:
        """A directory on ext4: the machine's own where it has one of the usual kind, else a loop device.

        One that is mounted with ``discard`` may keep whoever frees an extent waiting until the device has noted it.
        """
        kind, options = sh("findmnt", "-n", "-o", "FSTYPE,OPTIONS", "-T", self.root).split()
        if kind == "ext4" and "discard" not in options.split(","):
            return self.directory("disk")
        return self.mount("ext4", size)

    @functools.cached_property
    def hypervisor(self) -> Hypervisor:
        return self.another_hypervisor("hv")

    def undo(self, function: Callable[[], object]) -> None:
        """Have this done at the end, before what was made earlier goes."""
        self._undo.callback(function)

    def another_hypervisor(self, name: str) -> Hypervisor:
        running = Hypervisor(self.root / name)
        self._undo.callback(running.stop)
        return running


class Hypervisor:
    """A private libvirtd, with one connection of ours for preparations."""

    def __init__(self, root: Path) -> None:
        self.root = root
        done = subprocess.run([sys.executable, _HYPERVISOR, "start", root], capture_output=True, text=True, timeout=60, check=False)
        if done.returncode != 0:
            raise Failure(done.stderr)
        self.uri = done.stdout.strip()
        self.conn = libvirt.open(self.uri)

    def pool(self, name: str, path: Path) -> libvirt.virStoragePool:
        path.mkdir(exist_ok=True)
        pool = self.conn.storagePoolDefineXML(
            f"<pool type='dir'><name>{escape(name)}</name><target><path>{escape(str(path))}</path></target></pool>")
        pool.create()
        return pool

    def stop(self) -> None:
        self.conn.close()
        sh(sys.executable, _HYPERVISOR, "stop", self.root)


@contextlib.contextmanager
def a_place() -> Iterator[Place]:
    """Short paths, since sockets live in it; on the disk of the checkout, so that no memory file system is measured."""
    base = REPO / ".work" / "bench"
    base.mkdir(parents=True, exist_ok=True)
    root = Path(tempfile.mkdtemp(prefix="b-", dir=base))
    with contextlib.ExitStack() as undo:
        undo.callback(shutil.rmtree, root)
        yield Place(root, undo)


def remove(*paths: Path) -> None:
    """Remove what an arm made, and let the disk forget it before the next one is timed."""
    for path in paths:
        path.unlink(missing_ok=True)
    os.sync()


def warm(*paths: Path) -> None:
    """Have the files in the page cache, and nothing left to be written."""
    os.sync()
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.read(8 << 20):
                pass


def cool(*paths: Path) -> None:
    """Have nothing of the files in the page cache."""
    os.sync()
    for path in paths:
        with path.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
