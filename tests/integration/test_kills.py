# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Killed at any moment of any kind of work: nothing is lost, nothing is half, and the next run finishes.

``HYPERVISOR_STORAGE_MOMENTS=30`` kills at that many moments of each kind, spread over the time from the first touch of
the pool to the end; ``HYPERVISOR_STORAGE_RECORD=PATH`` writes down what each of them met and left.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import time
from dataclasses import replace

import libvirt
import pytest
from conftest import at_work_in
from support.faults import CONTENT, FULL, KINDS, State, Tree, moments, record, state_of
from support.hypervisors import Hypervisor, Pool, disk, domain_xml, guest_writes, is_reachable
from support.images import MIB, digest, file_sha, noise, sh, sha, used, wait_until
from support.images import info as image_info
from support.jobs import has_no_job, hold_job_of, job_is_lost, jobs, set_speed
from support.runs import environment, finish_module, go_on, run_module, start_module

MOMENTS = int(os.environ.get("HYPERVISOR_STORAGE_MOMENTS", "3"))


@pytest.fixture(scope="module")
def daemon(place):
    running = Hypervisor(place / "mortal")
    yield running
    running.stop()


@pytest.fixture
def mortal(daemon):
    """A hypervisor whose daemon is killed; it lives at first, whatever became of it in the test before."""
    if not is_reachable(daemon.uri) or not daemon.conn.isAlive():
        daemon.restart()
    return daemon


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


def rehearse(kind, conn, pool, masters, prefix=()):
    """Once to the end: how long it works after its first touch of the pool."""
    kind.lay_out(masters, pool.path)
    running = started(kind, conn, pool)
    tree = Tree(kind.module, {"uri": pool.hypervisor.uri, "pool": pool.name, **kind.wish}, prefix=prefix)
    began = tree.wait_for_work(pool.path)
    result = finish_module(tree.process, 120)
    seconds = time.monotonic() - began
    stop(running)
    assert result.get("changed"), result
    kind.assert_done(pool.path)
    return seconds


@pytest.mark.parametrize("everything", [False, True], ids=["group", "all"])
@pytest.mark.parametrize("name", KINDS)
def test_killed(hypervisor, pool, masters, name, everything):
    """``all``: the guardian of a live copy dies too, so that what it would have undone is left to the next run."""
    kind = KINDS[name]
    if everything and "live" not in name:
        return  # nothing has a session of its own
    params = {"uri": hypervisor.uri, "pool": pool.name, **kind.wish}
    seconds = rehearse(kind, hypervisor.conn, pool, masters)
    found = []
    for moment in moments(MOMENTS, seconds):
        kind.lay_out(masters, pool.path)
        running = started(kind, hypervisor.conn, pool)
        tree = Tree(kind.module, params)
        tree.wait_for_work(pool.path)
        time.sleep(moment)
        found.append(tree.freeze(pool.path))
        tree.kill(everything=everything)
        if running is not None:
            assert is_well(running)
            if not everything:
                wait_until(lambda: has_no_job(running), timeout=10)  # noqa: B023
        kind.assert_nothing_lost(pool.path)
        record(killed="all" if everything else "group", kind=name, moment=moment, of=seconds, found=found[-1],
               new=kind.is_done(pool.path), left=leftovers(pool))
        result = run_module(kind.module, params)
        assert not result.get("failed"), (moment, result)
        kind.assert_done(pool.path)
        if running is not None:
            assert has_no_job(running) and is_well(running), moment
        stop(running)
        assert at_work_in(pool.path) == []
    assert found.count("over") < MOMENTS, ("the moments are wrong", found)


def leftovers(pool):
    return sum(name.startswith(".") for name in os.listdir(pool.path))


@pytest.mark.parametrize("name", KINDS)
def test_libvirtd_is_killed(mortal, place, masters, name):
    """It comes back at once, as a service does; guests go on, the run ends with a reason or well."""
    kind = KINDS[name]
    number = next(NUMBERS)
    pool = Pool(mortal, f"mortal{number}", place / f"mortal{number}")
    pool.virt.setAutostart(1)
    params = {"uri": mortal.uri, "pool": pool.name, **kind.wish}
    # In CI once, in the middle of it.
    seconds = rehearse(kind, mortal.conn, pool, masters) if MOMENTS > 3 else 0
    for moment in moments(MOMENTS if MOMENTS > 3 else 1, seconds):
        kind.lay_out(masters, pool.path)
        running = started(kind, mortal.conn, pool)
        tree = Tree(kind.module, params)
        tree.wait_for_work(pool.path)
        time.sleep(moment)
        over = tree.process.poll() is not None
        os.kill(int((mortal.root / "libvirtd.pid").read_text()), signal.SIGKILL)
        mortal.restart()
        result = finish_module(tree.process)
        allowed = ("connection_failed", "libvirt_error", "tool_failed") if "live" in name else ("connection_failed",)
        assert not result.get("failed") or result["reason"] in allowed, result
        if running is not None:
            running = mortal.conn.lookupByName(running.name())
            assert is_well(running)
            wait_until(lambda: has_no_job(running) or job_is_lost(running), timeout=10)  # noqa: B023
        lost = running is not None and job_is_lost(running)
        kind.assert_nothing_lost(pool.path)
        record(killed="libvirtd", kind=name, moment=moment, of=seconds, found="over" if over else "at work",
               new=kind.is_done(pool.path), left=leftovers(pool), reason=result.get("reason"), lost=lost)
        result = run_module(kind.module, params)
        if lost:
            assert result.get("reason") == "libvirt_error" and "Stop the domain" in result["msg"], result
            kind.assert_nothing_lost(pool.path)
            running.destroy()
            running = started(kind, mortal.conn, pool)
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
    kind = replace(KINDS["compress in place"], wish={"name": "a", "method": "trim", "min_reclaim": "64K"})
    params = {"uri": hypervisor.uri, "pool": pool.name, **kind.wish}
    seconds = rehearse(kind, hypervisor.conn, pool, masters, trimming)
    for moment in moments(MOMENTS, seconds):
        kind.lay_out(masters, pool.path)
        tree = Tree("volume_compress", params, prefix=trimming)
        tree.wait_for_work(pool.path)
        time.sleep(moment)
        found = tree.freeze(pool.path)
        tree.kill(everything=True)
        kind.assert_nothing_lost(pool.path)
        record(killed="all", kind="trim (discards alone)", moment=moment, of=seconds, found=found, new=None, left=leftovers(pool))
        result = run_module("volume_compress", params, prefix=trimming)
        assert not result.get("failed"), (moment, result)
        kind.assert_done(pool.path)


#: The most room that the disk takes when the deleted file's 16 MiB are given back.
TRIMMED = 12 * MIB


@pytest.fixture
def guest_disk(place):
    """ext4 on the whole disk, with a file that stays and one that was deleted."""
    bench = place / "bench"
    bench.mkdir()
    raw = bench / "raw"
    raw.touch()
    os.truncate(raw, 48 * MIB)
    sh("mke2fs", "-q", "-F", "-t", "ext4", "-E", "nodiscard", raw)
    with mounted(raw, bench / "mount") as mount:
        (mount / "keep").write_bytes(noise(3 * MIB, "keep"))
        (mount / "gone").write_bytes(noise(16 * MIB, "gone"))
        sh("sync", "-f", mount)
        (mount / "gone").unlink()
    sh("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, bench / "disk")
    yield bench / "disk"
    shutil.rmtree(bench)


@contextlib.contextmanager
def mounted(image, on):
    on.mkdir(exist_ok=True)
    sh("mount", "-o", "loop,nodiscard", image, on)
    try:
        yield on
    finally:
        sh("umount", on)


def assert_files_stand(path, bench):
    """The file that stays is there, on a file system without a fault."""
    assert image_info(path)["format"] == "qcow2"
    checked = subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", path], check=False, capture_output=True)
    assert checked.returncode in (0, 3), checked.stderr
    sh("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, bench / "seen")
    with mounted(bench / "seen", bench / "mount") as mount:  # plays its journal
        assert (mount / "keep").read_bytes() == noise(3 * MIB, "keep")
        assert not (mount / "gone").exists()
    sh("e2fsck", "-fn", bench / "seen")


def test_killed_in_virt_sparsify(hypervisor, pool, guest_disk):
    """With the real virt-sparsify, which runs a machine of its own: first on a throw-away overlay, then on the volume."""
    params = {"uri": hypervisor.uri, "pool": pool.name, "name": "a", "method": "trim"}
    scratch = guest_disk.parent / "tmp"

    def start():
        shutil.copy(guest_disk, pool / "a")
        scratch.mkdir(exist_ok=True)
        return Tree("volume_compress", params, extra={"TMPDIR": str(scratch)})

    seconds = 0.0
    if MOMENTS > 3:
        tree = start()
        began = tree.wait_for_work(pool.path)
        assert finish_module(tree.process, 300).get("changed")
        seconds = time.monotonic() - began
    for moment in moments(MOMENTS if MOMENTS > 3 else 1, seconds):
        tree = start()
        if MOMENTS > 3:
            tree.wait_for_work(pool.path)
            time.sleep(moment)
        else:  # one machine's life takes seconds: meet the second one, whose disk is the volume, in the middle
            wait_until(lambda: tree.writes_to(pool / "a"), timeout=300)  # noqa: B023
            time.sleep(0.5)
        found = tree.freeze(pool.path)
        tree.kill(everything=True)
        wait_until(lambda: at_work_in(pool.path) == [])
        assert_files_stand(pool / "a", guest_disk.parent)
        left = used(pool / "a")
        record(killed="all", kind="trim", moment=moment, of=seconds, found=found, new=left <= TRIMMED, left=leftovers(pool))
        result = finish_module(start_module("volume_compress", params, env=environment(TMPDIR=str(scratch))), 300)
        assert not result.get("failed"), (moment, result)
        assert_files_stand(pool / "a", guest_disk.parent)
        assert used(pool / "a") <= TRIMMED
        assert os.listdir(pool.path) == ["a"]
        assert [path for path in scratch.glob("*/*") if "hypervisor.storage-partial" in path.name] == []


def test_what_a_living_run_stages_is_never_swept(hypervisor, pool, domain):
    """A copy stands still in its middle, with its file under a hidden name; other runs come and go, one is killed."""
    (pool / "a").write_bytes(bytes([7]) * (512 * MIB))  # QEMU has 64 MiB in flight at once
    running = domain(disk(pool / "a", "raw", cached=False))
    (pool / "t").write_bytes(CONTENT)
    common = {"uri": hypervisor.uri, "pool": pool.name}
    for _attempt in range(20):  # the job may be over before it is met
        living = start_module("volume_clone", {**common, "source": "a", "name": "b"})
        if hold_job_of(living, running):
            break
        assert finish_module(living).get("changed")
        (pool / "b").unlink()
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
    go_on(wiping)
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
