# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Killed at any moment of any kind of work: nothing is lost, nothing is half, and the next run finishes.

``HYPERVISOR_STORAGE_MOMENTS=30`` kills at that many moments of each kind.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time

import libvirt
import pytest
from conftest import at_work_in
from support.faults import CONTENT, FULL, KINDS, State, Tree, moments, state_of
from support.hypervisors import Hypervisor, Pool, disk, domain_xml, guest_writes
from support.images import MIB, digest, file_sha, sh, sha, wait_until
from support.jobs import has_no_job, hold_job_of, jobs, set_speed
from support.runs import finish_module, run_module, start_module

MOMENTS = int(os.environ.get("HYPERVISOR_STORAGE_MOMENTS", "3"))


@pytest.fixture(scope="module")
def mortal(place):
    """A hypervisor whose daemon is killed."""
    running = Hypervisor(place / "mortal")
    yield running
    running.stop()


def is_well(running):
    """It runs and its disk takes writes (here of what is there already)."""
    guest_writes(running, CONTENT[-1], len(CONTENT) - 65536, 65536)
    return running.state()[0] == libvirt.VIR_DOMAIN_RUNNING


NUMBERS = itertools.count()


def started(kind, conn, pool):
    """The domain that runs on the kind's volume."""
    if not kind.runs:
        return None
    return conn.createXML(domain_xml(f"guest{next(NUMBERS)}", disk(pool / "a", kind.before["a"].format)))


def stop(running):
    if running is not None:
        with contextlib.suppress(libvirt.libvirtError):
            running.destroy()


@pytest.mark.parametrize("everything", [False, True], ids=["group", "all"])
@pytest.mark.parametrize("name", KINDS)
def test_killed(hypervisor, pool, masters, name, everything):
    """``all``: the guardian of a live copy dies too, so that what it would have undone is left to the next run."""
    kind = KINDS[name]
    if everything and "live" not in name:
        return  # nothing has a session of its own
    params = {"uri": hypervisor.uri, "pool": pool.name, **kind.wish}

    def rehearse():
        kind.lay_out(masters, pool.path)
        running = started(kind, hypervisor.conn, pool)
        began = time.monotonic()
        result = run_module(kind.module, params)
        seconds = time.monotonic() - began
        stop(running)
        assert result.get("changed"), result
        kind.assert_done(pool.path)
        return seconds

    met = 0
    seconds = rehearse()
    # The first third is Python that looks for its modules.
    for moment in moments(MOMENTS, seconds, seconds / 3):
        kind.lay_out(masters, pool.path)
        running = started(kind, hypervisor.conn, pool)
        tree = Tree(kind.module, params)
        time.sleep(moment)
        met += tree.kill(everything=everything)
        if running is not None:
            assert is_well(running)
            if not everything:
                wait_until(lambda: has_no_job(running), timeout=5)  # noqa: B023
        kind.assert_nothing_lost(pool.path)
        result = run_module(kind.module, params)
        assert not result.get("failed"), (moment, result)
        kind.assert_done(pool.path)
        if running is not None:
            assert has_no_job(running) and is_well(running), moment
        stop(running)
        assert at_work_in(pool.path) == []
    assert met >= MOMENTS // 2, "they ended before they were killed: the moments are wrong"


@pytest.mark.parametrize("name", KINDS)
def test_libvirtd_is_killed(mortal, place, masters, name):
    """It comes back at once, as a service does; guests go on, the run ends with a reason or well."""
    kind = KINDS[name]
    number = next(NUMBERS)
    pool = Pool(mortal, f"mortal{number}", place / f"mortal{number}")
    pool.virt.setAutostart(1)
    params = {"uri": mortal.uri, "pool": pool.name, **kind.wish}
    kind.lay_out(masters, pool.path)
    running = started(kind, mortal.conn, pool)
    process = start_module(kind.module, params)
    wait_until(lambda: at_work_in(pool.path) or process.poll() is not None)
    mortal.restart()
    result = finish_module(process)
    assert not result.get("failed") or result["reason"] in ("connection_failed", "libvirt_error", "tool_failed"), result
    if running is not None:
        running = mortal.conn.lookupByName(running.name())
        assert is_well(running)
        wait_until(lambda: has_no_job(running), timeout=10)
    kind.assert_nothing_lost(pool.path)
    result = run_module(kind.module, params)
    assert not result.get("failed"), result
    kind.assert_done(pool.path)
    if running is not None:
        assert has_no_job(running) and is_well(running)
        running.destroy()


TRIMS = """#!/bin/sh
for image; do :; done
for cluster in 512 513 514 515 516 517 518 519; do
    qemu-io -d unmap -f qcow2 -c "discard $((cluster * 64))k 64k" "$image" >/dev/null || exit 1
done
"""


@pytest.fixture
def trimming(place):
    """A prefix that puts something quicker in the place of virt-sparsify: it discards zeros through QEMU, bit by bit."""
    substitute = place / "virt-sparsify"
    substitute.write_text(TRIMS)
    substitute.chmod(0o755)
    tool = sh("which", "virt-sparsify").strip()
    return ["unshare", "-m", "bash", "-c", f'mount --bind {substitute} {tool} && exec "$@"', "bash"]


def test_killed_while_trimming(hypervisor, pool, masters, trimming):
    kind = KINDS["compress in place"]
    params = {"uri": hypervisor.uri, "pool": pool.name, "name": "a", "method": "trim", "min_reclaim": "64K"}
    kind.lay_out(masters, pool.path)
    began = time.monotonic()
    assert run_module("volume_compress", params, prefix=trimming)["changed"]
    seconds = time.monotonic() - began
    for moment in moments(MOMENTS, seconds, seconds / 3):
        kind.lay_out(masters, pool.path)
        tree = Tree("volume_compress", params, prefix=trimming)
        time.sleep(moment)
        tree.kill(everything=True)
        kind.assert_nothing_lost(pool.path)
        result = run_module("volume_compress", params, prefix=trimming)
        assert not result.get("failed"), (moment, result)
        kind.assert_done(pool.path)


def test_what_a_living_run_stages_is_never_swept(hypervisor, pool, domain):
    """A copy stands still in its middle, with its file under a hidden name; other runs come and go, one is killed."""
    (pool / "a").write_bytes(bytes([7]) * (256 * MIB))  # QEMU has 64 MiB in flight at once
    running = domain(disk(pool / "a", "raw"))
    (pool / "t").write_bytes(CONTENT)
    common = {"uri": hypervisor.uri, "pool": pool.name}
    living = start_module("volume_clone", {**common, "source": "a", "name": "b"})
    assert hold_job_of(living, running)
    hidden = {name for name in os.listdir(pool.path) if name.startswith(".")}
    assert len(hidden) == 1
    assert run_module("volume", {**common, "name": "c", "size": "1M"})["changed"]
    killed = Tree("volume", {**common, "name": "d", "template": "t", "clone_mode": "full"})
    time.sleep(0.4)
    killed.kill(everything=True)
    assert run_module("volume", {**common, "name": "c", "state": "absent"})["changed"]
    assert {name for name in os.listdir(pool.path) if name.startswith(".")} == hidden
    assert jobs(running), "the copy's job goes on"
    set_speed(running, 0)
    assert finish_module(living)["changed"]
    assert (pool / "b").read_bytes() == (pool / "a").read_bytes()
    assert set(os.listdir(pool.path)) - {"d"} == {"a", "b", "t"}


def test_what_a_living_run_wipes_is_left_to_it(hypervisor, pool):
    """Stopped in the middle of a wipe, it isn't dead."""
    path = pool / "a"
    path.write_bytes(bytes([7]) * (256 * MIB))
    common = {"uri": hypervisor.uri, "pool": pool.name}
    wiping = start_module("volume", {**common, "name": "a", "state": "absent", "wipe": True})
    wait_until(lambda: not path.exists())
    os.killpg(wiping.pid, signal.SIGSTOP)
    assert run_module("volume", {**common, "name": "b", "size": "1M"})["changed"]
    left = os.listdir(pool.path)
    os.killpg(wiping.pid, signal.SIGCONT)
    assert finish_module(wiping)["changed"]
    assert len(left) == 2, left
    assert os.listdir(pool.path) == ["b"]


def test_hidden_files_of_others_are_left_alone(hypervisor, pool):
    """Neither files with other names nor things that aren't files are leftovers of ours."""
    others = [".hidden", ".hypervisor.storage", "x.hypervisor.storage-partial-1", ".nfs0001"]
    for name in others:
        (pool / name).write_text("mine")
    (pool / ".hypervisor.storage-partial-dir").mkdir()
    (pool / ".hypervisor.storage-partial-link").symlink_to(pool / ".hidden")
    os.mkfifo(pool / ".hypervisor.storage-doomed-fifo")
    try:
        assert run_module("volume", {"uri": hypervisor.uri, "pool": pool.name, "name": "a", "size": "1M"})["changed"]
        for name in others:
            assert (pool / name).read_text() == "mine"
    finally:
        (pool / ".hypervisor.storage-partial-dir").rmdir()
        (pool / ".hypervisor.storage-partial-link").unlink()
        (pool / ".hypervisor.storage-doomed-fifo").unlink()


def test_locks_die_with_their_holder(hypervisor, pool, masters):
    """A killed run's locks on names and images are no obstacle a moment later."""
    KINDS["compress rewrite"].lay_out(masters, pool.path)
    before = file_sha(pool / "bystander")
    common = {"uri": hypervisor.uri, "pool": pool.name}
    tree = Tree("volume_compress", {**common, "name": "a", "method": "zeros", "compression": "zlib"})
    wait_until(lambda: at_work_in(pool.path) or tree.process.poll() is not None)
    os.killpg(tree.process.pid, signal.SIGSTOP)
    waiting = start_module("volume", {**common, "name": "a", "state": "absent"})
    with pytest.raises(AssertionError):  # it waits
        wait_until(lambda: waiting.poll() is not None, timeout=1)
    began = time.monotonic()
    tree.kill(everything=True)
    result = finish_module(waiting)
    assert result.get("changed") and time.monotonic() - began < 5, result
    assert os.listdir(pool.path) == ["bystander"] and file_sha(pool / "bystander") == before


def test_masters_are_what_they_are_taken_for(masters):
    """A test of the tests: a damaged copy would be noticed."""
    assert state_of(masters / "qcow2", FULL) == sha(CONTENT) == digest(masters / "raw", "raw")
    assert state_of(masters / "snapped", FULL) != sha(CONTENT)
    assert state_of(masters / "raw", State("qcow2", "")) is None
