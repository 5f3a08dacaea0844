# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Pools on file systems that can do less: each kind of work is done all the same, and done again is no change.

ext3 reserves no space without writing; FUSE, like NFS, has no files without a name, no shared extents, and here no extended
attributes and no change of owners. What is mounted read-only takes no change at all, and check mode knows.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack

import pytest
from support import mounts
from support.faults import KINDS, Tree
from support.hypervisors import Hypervisor, Pool, disk, domain_xml
from support.images import MIB, sh, used, wait_until
from support.runs import finish_module, run_module

POOR = ["ext3", "fuse"]
AT_REST = [name for name, kind in KINDS.items() if not kind.runs]


@pytest.fixture(scope="module")
def host(place):
    """A hypervisor that sees them."""
    with ExitStack() as stack:
        stack.enter_context(mounts.mounted(place / "ext3", 320 * MIB, (*mounts.EXT4[:-3], "ext3", "-m", "0")))
        (place / "behind").mkdir()
        (place / "fuse").mkdir()
        sh("bindfs", "--xattr-none", "--chown-deny", place / "behind", place / "fuse")
        stack.callback(lambda: wait_until(lambda: os.system(f"umount {place / 'fuse'}") == 0))
        running = Hypervisor(place / "poor")
        stack.callback(running.stop)
        yield running


@pytest.fixture(params=POOR)
def poor(request, host, place):
    pool = Pool(host, request.param, place / request.param / "pool")
    yield pool
    for path in pool.path.iterdir():
        path.unlink()
    pool.forget()


@pytest.mark.parametrize("name", KINDS)
def test_is_done(poor, masters, name):
    kind = KINDS[name]
    kind.lay_out(masters, poor.path)
    poor.refresh()
    params = {"uri": poor.hypervisor.uri, "pool": poor.name, **kind.wish}
    running = poor.hypervisor.conn.createXML(domain_xml("poor", disk(poor / "a", kind.before["a"].format))) if kind.runs else None
    try:
        predicted = run_module(kind.module, params, check=True)
        result = run_module(kind.module, params)
        if (poor.name, name) == ("fuse", "compress in place"):
            # Whether a file system like this can give back a part of a file shows only when it is told to.
            assert result.get("reason") == "unsupported" and "compressed rewrite" in result["msg"], result
            kind.assert_nothing_lost(poor.path)
            return
        assert result.get("changed") and predicted["changed"], (predicted, result)
        sparse = (poor.name, name) != ("fuse", "clone live raw")
        assert sparse is not any("could not be made sparse" in warning for warning in result.get("warnings", [])), result
        assert result["actions"] == predicted["actions"]
        kind.assert_done(poor.path)
        assert run_module(kind.module, params).get("changed") is False
    finally:
        if running is not None:
            running.destroy()


@pytest.fixture
def read_only(host, place):
    """A pool on the first of them, and what makes its file system read-only until the test ends."""
    mount = place / POOR[0]
    pool = Pool(host, "read-only", mount / "read-only")
    yield pool, lambda: sh("mount", "-o", "remount,ro", mount)
    sh("mount", "-o", "remount,rw", mount)
    for path in pool.path.iterdir():
        path.unlink()
    pool.forget()


@pytest.mark.parametrize("name", AT_REST)
def test_read_only_is_refused_in_check_mode_too(read_only, masters, name):
    pool, make_read_only = read_only
    kind = KINDS[name]
    kind.lay_out(masters, pool.path)
    pool.refresh()
    before = {path.name: path.read_bytes() for path in pool.path.iterdir()}
    make_read_only()
    params = {"uri": pool.hypervisor.uri, "pool": pool.name, **kind.wish}
    for check in (True, False):
        result = run_module(kind.module, params, check=check)
        assert result.get("failed") and result["reason"] == "unsupported", result
        assert "Read-only file system" in result["msg"] and "mounted writable" in result["msg"], result
        assert not result.get("changed")
    assert {path.name: path.read_bytes() for path in pool.path.iterdir()} == before


@pytest.mark.parametrize("preallocation", ["falloc", "full"])
def test_raw_is_reserved(poor, preallocation):
    """Where a file system can't reserve, zeros are written."""
    params = {"uri": poor.hypervisor.uri, "pool": poor.name, "name": "a", "preallocation": preallocation}
    result = run_module("volume", {**params, "format": "raw", "size": "8M"})
    assert result.get("changed"), result
    assert used(poor / "a") >= 8 * MIB
    result = run_module("volume_resize", {**params, "size": "16M"})
    assert result.get("changed"), result
    assert used(poor / "a") >= 16 * MIB and (poor / "a").read_bytes() == bytes(16 * MIB)


def test_owner_that_can_not_be_given(poor):
    wish = {"uri": poor.hypervisor.uri, "pool": poor.name, "name": "a", "size": "1M", "owner": "nobody", "mode": "0640"}
    result = run_module("volume", wish)
    if poor.name == "fuse":
        assert result.get("failed") and result["reason"] == "unsupported" and "owner" in result["msg"], result
        assert os.listdir(poor.path) == []
    else:
        assert result.get("changed"), result


@pytest.mark.parametrize("name", ["create raw", "restore", "clone offline", "compress rewrite"])
def test_killed(poor, masters, name):
    """What is staged has a hidden name where there are no files without one; the next run removes it, and finishes."""
    kind = KINDS[name]
    params = {"uri": poor.hypervisor.uri, "pool": poor.name, **kind.wish}
    left, seconds = 0, 0.0
    for moment in range(4):
        kind.lay_out(masters, poor.path)
        tree = Tree(kind.module, params)
        began = tree.wait_for_work(poor.path)
        if not moment:  # the first tells how long it takes
            assert finish_module(tree.process).get("changed")
            seconds = time.monotonic() - began
        if moment == 1:
            wait_until(lambda: hidden(poor) or tree.process.poll() is not None)  # noqa: B023
        else:
            time.sleep(seconds * moment / 5)
        tree.kill(everything=False)
        kind.assert_nothing_lost(poor.path)
        left += len(hidden(poor))
        assert not run_module(kind.module, params).get("failed")
        kind.assert_done(poor.path)
    assert left or poor.name != "fuse", "it was never met"


def hidden(pool):
    return [name for name in os.listdir(pool.path) if name.startswith(".") and not name.startswith(".fuse_hidden")]
