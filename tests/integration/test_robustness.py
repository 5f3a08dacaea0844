# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Killed, interrupted, out of space, or two at once: the old state or the new one, and the next run finishes."""

from __future__ import annotations

import os
import signal
import time

import pytest
from conftest import at_work_in
from support.images import MIB, blank, digest, make, sh, wait_until
from support.images import info as image_info
from support.runs import finish_module, run_module, start_module


def at_work(process, pool):
    """Wait until the module makes something in the pool; false when it has ended before."""
    while process.poll() is None:
        if at_work_in(pool.path):
            return True
    return False


def settle(pool):
    """Wait until no tool of a killed run works on the pool any more."""
    wait_until(lambda: not at_work_in(pool.path))


@pytest.mark.parametrize("delay", [0, 0.02, 0.06, 0.15])
@pytest.mark.parametrize("wish", [
    {"template": "template", "clone_mode": "full"},
    {"template": "template", "format": "raw"},
    {"size": "64M", "preallocation": "full"},
], ids=["full", "raw", "blank"])
def test_killed(hypervisor, pool, wish, delay):
    template = make(pool / "template", size=64 * MIB)
    params = {"uri": hypervisor.uri, "pool": pool.name, "name": "a", **wish}
    process = start_module("volume", params)
    at_work(process, pool)
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    fmt = wish.get("format", "qcow2")
    expected = digest(template) if "template" in wish else None
    if (pool / "a").exists():
        assert image_info(pool / "a", fmt)["virtual-size"] == 64 * MIB
        assert expected is None or digest(pool / "a", fmt) == expected, "what shows under the name is complete"
    result = run_module("volume", params)
    assert not result.get("failed"), result
    assert image_info(pool / "a", fmt)["virtual-size"] == 64 * MIB
    assert expected is None or digest(pool / "a", fmt) == expected
    assert sorted(os.listdir(pool.path)) == ["a", "template"], "the next run clears what the killed one left"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_module_ends_alone_while_its_tool_goes_on(hypervisor, pool, number):
    """Only Python ends; a qemu-img that still writes must neither be disturbed nor end under the name."""
    template = make(pool / "template", size=96 * MIB)
    params = {"uri": hypervisor.uri, "pool": pool.name, "name": "a", "template": "template", "clone_mode": "full"}
    process = start_module("volume", params)
    at_work(process, pool)
    process.send_signal(number)
    result = run_module("volume", params)
    if result.get("failed"):
        assert result["reason"] == "locked", result
        settle(pool)
        result = run_module("volume", params)
    assert not result.get("failed"), result
    process.communicate()
    settle(pool)
    assert digest(pool / "a") == digest(template)
    assert sorted(os.listdir(pool.path)) == ["a", "template"]


@pytest.mark.parametrize("delay", [0, 0.01, 0.05])
def test_killed_while_wiping(hypervisor, pool, delay):
    """What lost its name on the way to be wiped is wiped and removed by the next run, whatever that one is for."""
    make(pool / "a", "raw", 128 * MIB)
    params = {"uri": hypervisor.uri, "pool": pool.name}
    process = start_module("volume", {**params, "name": "a", "state": "absent", "wipe": True})
    while (pool / "a").exists() and process.poll() is None:
        time.sleep(0.001)
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert run_module("volume", {**params, "name": "b", "size": "1M"})["changed"]
    assert os.listdir(pool.path) == ["b"]


def test_out_of_space_while_writing(hypervisor, small, make_pool):
    """Space that was there when it was measured and is gone when it is written."""
    images = make_pool()
    make(images / "template", size=60 * MIB)
    params = {
        "uri": hypervisor.uri,
        "pool": small.name,
        "name": "a",
        "template": "template",
        "template_pool": images.name,
        "clone_mode": "full",
    }
    process = start_module("volume", params)
    at_work(process, small)
    with (small / "hog").open("wb") as hog:
        stat = os.statvfs(small.path)
        os.posix_fallocate(hog.fileno(), 0, max(stat.f_bavail * stat.f_frsize - 4 * MIB, MIB))
    result = finish_module(process)
    if result.get("failed"):  # else it was quicker than us
        assert result["reason"] == "insufficient_space", result
        assert os.listdir(small.path) == ["hog"]
        (small / "hog").unlink()
        assert run_module("volume", params)["changed"]
    assert digest(small / "a") == digest(images / "template")


@pytest.mark.parametrize(
    "wish",
    [
        {"size": "1M"},
        {"size": "1M", "format": "raw"},
        {"template": "template", "clone_mode": "full"},
        {"template": "template"},
    ],
    ids=["qcow2", "raw", "full", "backing"],
)
def test_eight_at_once_make_the_same_volume(hypervisor, pool, wish):
    template = make(pool / "template", size=4 * MIB)
    params = {"uri": hypervisor.uri, "pool": pool.name, "name": "a", **wish}
    results = [finish_module(p, 90) for p in [start_module("volume", params) for _time in range(8)]]
    for result in results:
        assert not result.get("failed"), result
    assert sum(bool(r.get("changed")) for r in results) == 1, [r.get("changed") for r in results]
    assert sorted(os.listdir(pool.path)) == ["a", "template"]
    if "template" in wish:
        assert digest(pool / "a") == digest(template)


def test_eight_at_once_make_different_volumes(hypervisor, pool):
    make(pool / "template", size=4 * MIB)
    started = [
        start_module("volume", {"uri": hypervisor.uri, "pool": pool.name, "name": f"a{n}", "template": "template"})
        for n in range(8)
    ]
    for result in [finish_module(p, 90) for p in started]:
        assert result.get("changed"), result
    assert len(os.listdir(pool.path)) == 9


def test_a_base_is_not_deleted_under_a_new_overlay(hypervisor, pool):
    """Delete of the template and a copy on write of it at the same time: one of them wins."""
    for round_ in range(6):
        make(pool / "base", size=MIB)
        common = {"uri": hypervisor.uri, "pool": pool.name}
        making = start_module("volume", {**common, "name": "top", "template": "base"})
        time.sleep(0.02 * round_)
        deleting = start_module("volume", {**common, "name": "base", "state": "absent"})
        made, deleted = finish_module(making), finish_module(deleting)
        assert bool(made.get("failed")) != bool(deleted.get("failed")), (round_, made, deleted)
        assert (pool / "top").exists() == (pool / "base").exists()
        for path in pool.path.iterdir():
            path.unlink()


def test_pool_is_refreshed_under_a_running_job(hypervisor, pool):
    """libvirt refuses to refresh a pool while a volume job runs in it; that is waited for."""
    base = blank(pool / "base", 300 * MIB, "raw")
    sh("qemu-io", "-f", "raw", "-c", "write -P 9 0 300M", base)
    pool.refresh()
    process = start_module("volume", {"uri": hypervisor.uri, "pool": pool.name, "name": "a", "size": "1M"})
    pool.virt.createXMLFrom(
        "<volume><name>copy</name><capacity>0</capacity><target><format type='raw'/></target></volume>",
        pool.virt.storageVolLookupByName("base"))
    result = finish_module(process)
    assert result.get("changed"), result


def test_libvirtd_restarts_meanwhile(own_hypervisor, make_pool):
    pool = make_pool(on=own_hypervisor)
    pool.virt.setAutostart(1)
    template = make(pool / "template", size=64 * MIB)
    params = {"uri": own_hypervisor.uri, "pool": pool.name, "name": "a", "template": "template", "clone_mode": "full"}
    process = start_module("volume", params)
    at_work(process, pool)
    own_hypervisor.restart()
    result = finish_module(process)
    assert not result.get("failed") or result["reason"] == "connection_failed", result
    if (pool / "a").exists():
        assert digest(pool / "a") == digest(template)
    assert not run_module("volume", params).get("failed")
    assert digest(pool / "a") == digest(template)
    assert sorted(os.listdir(pool.path)) == ["a", "template"]
