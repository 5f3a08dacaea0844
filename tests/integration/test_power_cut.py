# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The power goes: what the device has of a pool at some moment, without what was only in memory, is looked at.

The pool lies on a file system in a file. A clone of that file's extents, taken in one step, is what a disk would hold
after a power cut at that moment: what was not synced by then is not in it. Mounting it plays the journal, as a boot would.
"""

from __future__ import annotations

import fcntl
import itertools
import contextlib
import os
import signal
import time

import pytest
from support import mounts
from support.faults import KINDS, Tree, moments
from support.hypervisors import Hypervisor, Pool, disk, domain_xml
from support.images import MIB, sh
from support.runs import finish_module, start_module

MOMENTS = int(os.environ.get("HYPERVISOR_STORAGE_MOMENTS", "3"))
FICLONE = 0x40049409
FILE_SYSTEMS = {"ext4": mounts.EXT4, "xfs": mounts.XFS}


@pytest.fixture(scope="module")
def floor(place):
    """A file system that can share extents, so that a disk can be copied in one step."""
    with mounts.mounted(place / "floor", 2048 * MIB, mounts.XFS) as mount:
        yield mount


@pytest.fixture(scope="module", params=FILE_SYSTEMS)
def device(request, place, floor):
    """A disk with a file system that nothing syncs but those who ask for it."""
    image = floor / "device"
    # A commit of the journal that comes by itself would write what nobody synced.
    options = "loop" + (",commit=3600" if request.param == "ext4" else "")
    with mounts.mounted(place / "powered", 320 * MIB, FILE_SYSTEMS[request.param], image=image, options=options):
        yield image


@pytest.fixture(scope="module")
def powered(place, device):
    """A pool on it, of a hypervisor that sees it."""
    own = Hypervisor(place / "powerful")
    yield Pool(own, "powered", place / "powered" / "pool")
    own.stop()


@pytest.fixture
def cut(place, device):
    """Take what the disk has now, and show it mounted to a check."""
    # A loop device may outlive its mount for a moment, with the old file's pages: each look is at a file of its own.
    names = (device.with_name(f"after{number}") for number in itertools.count())
    taken = []
    mount = place / "after"
    mount.mkdir()

    def take():
        taken.append(next(names))
        with device.open("rb") as source, taken[-1].open("wb") as target:
            fcntl.ioctl(target, FICLONE, source.fileno())

    def look(check):
        kind = sh("blkid", "-p", "-o", "value", "-s", "TYPE", taken[-1]).strip()
        sh("mount", "-o", "loop,nouuid" if kind == "xfs" else "loop", taken[-1], mount)
        try:
            check(mount / "pool")
        finally:
            sh("umount", mount)
            taken.pop().unlink()

    yield take, look
    for path in taken:
        path.unlink()
    mount.rmdir()


@pytest.mark.parametrize("name", KINDS)
def test_power_cut(powered, masters, cut, name):
    """At any moment old or new under each name, and new once the module has said so."""
    kind = KINDS[name]
    take, look = cut
    conn = powered.hypervisor.conn
    params = {"uri": powered.hypervisor.uri, "pool": powered.name, **kind.wish}
    seconds = None
    for number in range(MOMENTS):
        kind.lay_out(masters, powered.path)
        powered.refresh()
        running = None
        if kind.runs:
            running = conn.createXML(domain_xml(f"cut{number}", disk(powered / "a", kind.before["a"].format)))
        sh("sync", "-f", powered.path)
        try:
            tree = Tree(kind.module, params)
            began = tree.wait_for_work(powered.path)
            if seconds is not None:  # the first one tells how long it takes
                time.sleep(moments(MOMENTS, seconds)[number])
                with contextlib.suppress(ProcessLookupError):  # it may be over by then
                    os.kill(tree.process.pid, signal.SIGSTOP)
                take()
                with contextlib.suppress(ProcessLookupError):
                    os.kill(tree.process.pid, signal.SIGCONT)
                look(kind.assert_nothing_lost)
            result = finish_module(tree.process)
            seconds = seconds or time.monotonic() - began
            take()
            assert result.get("changed"), result
            look(kind.assert_done)
        finally:
            if running is not None:
                running.destroy()


def test_a_cut_shows_what_was_not_synced(powered, cut):
    """A test of the test: a file that was written and not synced is not there after the cut, a synced one is."""
    take, look = cut
    sh("sync", "-f", powered.path)
    (powered / "lost").write_bytes(b"x" * MIB)
    take()
    look(lambda directory: check_missing(directory / "lost"))
    sh("sync", "-f", powered.path)
    take()
    look(lambda directory: check_there(directory / "lost"))
    (powered / "lost").unlink()


def check_missing(path):
    assert not path.exists() or path.read_bytes() != b"x" * MIB


def check_there(path):
    assert path.read_bytes() == b"x" * MIB


def test_result_is_reported_after_the_sync(powered, cut):
    """A blank raw volume, whose size is nothing but metadata."""
    take, look = cut
    result = finish_module(start_module("volume", {
        "uri": powered.hypervisor.uri, "pool": powered.name, "name": "blank", "size": "8M", "format": "raw", "preallocation": "off"}))
    take()
    assert result["changed"], result
    look(lambda directory: check_size(directory / "blank", 8 * MIB))
    (powered / "blank").unlink()


def check_size(path, size):
    assert path.stat().st_size == size
