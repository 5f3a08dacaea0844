# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a real guest sees: disks that grow under it, copies that are one moment of it, and that it is never left frozen."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time

import libvirt
import libvirt_qemu
import pytest
from support.faults import Tree
from support.guests import BOOT_SECONDS, Guest
from support.hypervisors import Hypervisor, Pool, disk
from support.images import MIB, blank, make, sh, used, wait_until, write
from support.images import info as image_info
from support.jobs import has_no_job, jobs, set_speed
from support.runs import altered, finish_module, run_module, start_module

RECORDS = 16000
SPACING = 25  # sectors: the records spread over a disk, in its first 200 MiB
SECTORS = 1024 * MIB  # so large that a copy of it is met in its middle
STEP = 1013  # shares no divisor with RECORDS: they come in no order in which a copy goes through the disk

SCRIPT = f"""
sizes() {{
    for name in vdc vdd; do echo "$name $(cat /sys/block/$name/size)"; done
    for name in sda sdb; do  # which is which is the kernel's whim
        lun=$(readlink -f /sys/block/$name/device); echo "lun${{lun##*:}} $(cat /sys/block/$name/size)"
    done
}}
(while :; do new=$(sizes); [ "$new" = "$old" ] || {{ echo "$new"; old=$new; }}; sleep 0.2; done) &
mount -t ext4 /dev/vda /mnt || echo "mount failed"
(n=0; while :; do n=$((n+1)); echo "record $n" >>/mnt/log; sync; echo "file $n"; sleep 0.1; done) &
n=0
while [ $n -lt {RECORDS} ]; do
    n=$((n+1))
    printf '%-511s\\n' "record $n" | dd of=/dev/vdb bs=512 seek=$((n * {STEP} % {RECORDS} * {SPACING})) oflag=direct conv=notrunc 2>&-
    echo "sector $n"
done
while :; do sleep 1; done
"""
# The agent calls it before it freezes and after it has thawed; before, it does what a disk says.
HOOK = """
echo "hook $1" >/dev/ttyS0
[ $1 = thaw ] || eval "$(dd if=/dev/vde bs=512 count=1 iflag=direct 2>/dev/null | tr -d '\\0')"
"""

AS_USUAL = "sleep 0.5"


def before_freezing(pool, command):
    """Have the guest run this each time before it is frozen."""
    (pool / "hook").write_bytes(command.encode().ljust(512, b"\0"))


@pytest.fixture(scope="module")
def busy(hypervisor, place):
    """A pool of disks that the guest writes to all the time."""
    pool = Pool(hypervisor, "busy", place / "busy")
    blank(pool / "files", 64 * MIB, "raw")
    sh("mke2fs", "-q", "-F", "-t", "ext4", pool / "files")
    blank(pool / "sectors", SECTORS, "raw")
    write(pool / "sectors", 0x77, length=SECTORS, fmt="raw")
    before_freezing(pool, AS_USUAL)
    yield pool
    pool.forget()


@pytest.fixture(scope="module")
def idle(hypervisor, place):
    """A pool of disks that the guest only looks at."""
    pool = Pool(hypervisor, "idle", place / "p-idle")
    for fmt in ("qcow2", "raw"):
        for bus in ("blk", "scsi"):
            make(pool / f"{bus}.{fmt}", fmt)
    yield pool
    pool.forget()


@pytest.fixture(scope="module")
def guest(hypervisor, place, busy, idle):
    """One boot for all the tests here."""
    running = Guest(
        hypervisor, place / "guest", SCRIPT, disk(busy / "files", "raw", "vda"), disk(busy / "sectors", "raw", "vdb"),
        disk(idle / "blk.qcow2", "qcow2", "vdc"), disk(idle / "blk.raw", "raw", "vdd"),
        disk(idle / "scsi.qcow2", "qcow2", "sda"), disk(idle / "scsi.raw", "raw", "sdb"),
        disk(busy / "hook", "raw", "vde"), hook=HOOK)
    for what in ("lun1 ", "file ", "sector "):
        running.wait_for(f"\n{what}")
    wait_until(lambda: status(running) is not None, 20)
    yield running
    running.stop()


def status(guest):
    """What the guest agent says about frozen file systems; None when it does not answer."""
    try:
        answer = libvirt_qemu.qemuAgentCommand(guest.virt, '{"execute": "guest-fsfreeze-status"}', 3, 0)
    except libvirt.libvirtError:
        return None
    return re.findall("thawed|frozen", answer)[0]


def hooks(guest):
    return re.findall("hook ([a-z]+)", guest.said())


@pytest.mark.parametrize(("name", "target", "seen"), [
    ("blk.qcow2", "vdc", "vdc"), ("blk.raw", "vdd", "vdd"), ("scsi.qcow2", "sda", "lun0"), ("scsi.raw", "sdb", "lun1")])
def test_guest_sees_its_disk_grow(hypervisor, checked, guest, idle, name, target, seen):
    assert guest.last(seen) * 512 == 4 * MIB

    def resize(check=False, diff=False, **params):
        return run_module("volume_resize", {"uri": hypervisor.uri, "pool": "idle", **params}, check=check, diff=diff)

    result = checked(does=resize, name=name, size="9M")
    assert result["changed"] and "online" in result["actions"][0]
    wait_until(lambda: guest.last(seen) * 512 == 9 * MIB)
    everybody = sizes(hypervisor, idle, name, target)
    assert all(size == 9 * MIB for size in everybody), everybody
    assert result["volume"]["capacity"] == 9 * MIB
    if name.endswith("raw"):
        assert used(idle / name) >= 4 * MIB // 2 + 5 * MIB, "what was added is reserved"


def sizes(hypervisor, pool, name, target):
    """virsh domblkinfo's, the pool listing's (before anybody refreshes it) and qemu-img's view of a disk."""
    virsh = ["virsh", "-c", hypervisor.uri, "-q"]
    listed = re.search(r"Capacity: +(\S+ \S+)", sh(*virsh, "vol-info", name, "--pool", pool.name))[1]
    row = next(line for line in sh(*virsh, "vol-list", pool.name, "--details").splitlines() if line.split()[0] == name)
    assert listed in row, (listed, row)
    return (
        int(re.search(r"Capacity: +(\d+)", sh(*virsh, "domblkinfo", "guest", target))[1]),
        int(re.search(r"Capacity: +(\d+)", sh(*virsh, "vol-info", name, "--pool", pool.name, "--bytes"))[1]),
        image_info(pool / name, name.rpartition(".")[2])["virtual-size"],
    )


# What is done to a module that otherwise is as it is.
BEGIN_FAILS = """
def fail(*arguments):
    raise _errors.LibvirtError("libvirt is out of order")
_running.begin_backup = fail
"""
LOST_WHILE_FROZEN = """
def leave(*arguments):
    raise KeyboardInterrupt
_running.begin_backup = leave
"""
STAYS_FROZEN = """
begin = _running.begin_backup
def begin_and_stop(*arguments):
    begin(*arguments)
    time.sleep(600)
_running.begin_backup = begin_and_stop
"""
NO_THAW = """
mine, thaw = os.getpid(), _running.thaw
_running.thaw = lambda connection, uuid: os.getpid() != mine and thaw(connection, uuid)
"""
IMPATIENT = "_live.JOB_TIMEOUT = 3"
# By QEMU itself, since not every libvirt lets a backup job be slowed down; and what the module asks of libvirt is never faster.
SLOW = """
import json, libvirt_qemu
begin, limit = _running.begin_backup, _running.limit_job
def begin_slowly(connection, uuid, document):
    begun = begin(connection, uuid, document)
    def ask(command, **arguments):
        question = json.dumps({"execute": command, "arguments": arguments})
        return json.loads(libvirt_qemu.qemuMonitorCommand(connection.handle.lookupByUUIDString(uuid), question, 0))
    for job in ask("query-block-jobs")["return"]:
        ask("block-job-set-speed", device=job["device"], speed=1 << 20)
    return begun
_running.begin_backup = begin_slowly
_running.limit_job = lambda connection, uuid, target, speed: limit(connection, uuid, target, 1 << 20)
"""


def slow_copy(hypervisor, guest, busy, name):
    """A copy whose job is in its middle, the guest being thawed, and stays slow until it is told otherwise."""
    params = {"uri": hypervisor.uri, "source": "sectors", "source_pool": "busy", "pool": "busy", "name": name}
    for _attempt in range(12):  # before it is slowed down, the job may be over
        called = len(hooks(guest))
        process = start_module("volume_clone", params, prefix=altered(SLOW))
        wait_until(lambda: hooks(guest)[called:] == ["freeze", "thaw"], 30)  # noqa: B023
        time.sleep(0.3)
        if any(job["status"] == "running" for job in jobs(guest.virt)):
            return process
        assert finish_module(process).get("changed")
        (busy / name).unlink()
    raise AssertionError("the job was never met in its middle")


def read_records(image):
    """Numbers of the records that are on the disk."""
    found = set()
    with image.open("rb") as file:
        for place in range(RECORDS):
            file.seek(place * SPACING * 512)
            record = file.read(512)
            if record.startswith(b"record "):
                number = int(record.split()[1])
                assert number * STEP % RECORDS == place
                found.add(number)
            else:
                assert record == b"\x77" * 512, "neither the old nor the new"
    return found


def test_copy_is_one_moment(hypervisor, guest, busy):
    """Records that the guest wrote one after the other, each safe before the next: a prefix of them, without holes."""
    guest.wait_for_more("sector", 5)
    before = guest.last("sector")
    process = slow_copy(hypervisor, guest, busy, "copy")
    guest.wait_for_more("sector", 30)
    assert process.poll() is None and jobs(guest.virt), "the copy is not complete"
    set_speed(guest.virt, 0)
    result = finish_module(process)
    assert result.get("changed"), result
    written = guest.last("sector")
    found = read_records(busy / "copy")
    (busy / "copy").unlink()
    assert found == set(range(1, len(found) + 1)), "a hole"
    assert before <= len(found) < written, "the guest wrote on while it was copied"
    guest.wait_for_more("sector")


def test_copy_of_a_file_system(hypervisor, guest, busy):
    """The agent freezes and thaws it: the copy needs no recovery, and holds a prefix of what was written."""
    params = {"uri": hypervisor.uri, "source": "files", "source_pool": "busy", "pool": "busy", "name": "backup"}
    before, called = guest.last("file"), hooks(guest)
    predicted = run_module("volume_clone", params, check=True)
    assert predicted["changed"] and hooks(guest) == called, "check mode does not freeze"
    result = run_module("volume_clone", params)
    assert result.get("changed"), result
    assert result["consistency"] == "filesystem" and result["actions"] == predicted["actions"]
    wait_until(lambda: hooks(guest)[len(called):] == ["freeze", "thaw"])
    assert status(guest) == "thawed"
    guest.wait_for_more("file", 2)
    assert "needs_recovery" not in sh("dumpe2fs", "-h", busy / "backup")
    sh("e2fsck", "-f", "-n", busy / "backup")
    lines = sh("debugfs", "-R", "cat /log", busy / "backup").splitlines()
    assert lines == [f"record {n}" for n in range(1, len(lines) + 1)] and len(lines) >= before


def test_thawed_at_once(hypervisor, guest, busy):
    """Its files are written to again while the copy is still being made."""
    process = slow_copy(hypervisor, guest, busy, "long")
    guest.wait_for_more("file", 3)
    assert status(guest) == "thawed" and hooks(guest)[-2:] == ["freeze", "thaw"]
    assert process.poll() is None and jobs(guest.virt), "the copy is not complete"
    set_speed(guest.virt, 0)
    result = finish_module(process)
    assert result.get("changed") and result["consistency"] == "filesystem", result
    (busy / "long").unlink()


HELD_UP = """
_live.FREEZE_LIMIT = 2.0
begin = _running.begin_backup
def begin_late(connection, uuid, document):
    time.sleep(7)
    return begin(connection, uuid, document)
_running.begin_backup = begin_late
"""


def test_thawed_though_the_copy_cannot_begin(hypervisor, guest, busy):
    """As when another job of the domain comes in between: nobody waits for it in a guest that stands still."""
    params = {"uri": hypervisor.uri, "source": "files", "source_pool": "busy", "pool": "busy", "name": "late"}
    called = len(hooks(guest))
    process = start_module("volume_clone", params, prefix=altered(HELD_UP))
    wait_until(lambda: hooks(guest)[called:] == ["freeze", "thaw"])
    guest.wait_for_more("file", 2)
    assert process.poll() is None and jobs(guest.virt) == [], "the copy has not begun"
    result = finish_module(process)
    assert result.get("changed") and result["consistency"] == "crash", result
    assert any("did not begin within 2 s" in warning for warning in result["warnings"]), result
    assert status(guest) == "thawed"
    (busy / "late").unlink()


def test_copy_is_slow_only_while_the_guest_is_frozen(hypervisor, guest, busy):
    """At the speed of that moment it would take minutes."""
    params = {"uri": hypervisor.uri, "source": "sectors", "source_pool": "busy", "pool": "busy", "name": "quick"}
    result = run_module("volume_clone", params)
    assert result.get("changed") and result["consistency"] == "filesystem", result
    found = read_records(busy / "quick")
    (busy / "quick").unlink()
    assert found == set(range(1, len(found) + 1)), "a hole"


@pytest.mark.parametrize("frozen", [False, True], ids=["while freezing", "while frozen"])
def test_killed_between_freeze_and_thaw(hypervisor, guest, busy, frozen):
    """The guest does not stay frozen, and the next run finishes."""
    name = f"killed{frozen:d}"
    params = {"uri": hypervisor.uri, "source": "files", "source_pool": "busy", "pool": "busy", "name": name}
    called = hooks(guest)
    process = start_module("volume_clone", params, prefix=altered(STAYS_FROZEN) if frozen else ())
    wait_until(lambda: hooks(guest)[len(called):] == ["freeze"])
    if frozen:
        wait_until(lambda: status(guest) == "frozen")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    wait_until(lambda: status(guest) == "thawed", 15)
    guest.wait_for_more("file", 5)
    wait_until(lambda: has_no_job(guest.virt), 5)
    assert not (busy / name).exists()
    result = run_module("volume_clone", params)
    assert result.get("changed") and result["consistency"] == "filesystem", result
    assert subprocess.run(["e2fsck", "-fn", busy / name], capture_output=True, check=False).returncode == 0
    assert not list(busy.path.glob(".hypervisor.storage-*"))
    guest.wait_for_more("file", 2)


def test_killed_while_frozen_and_its_guardian_too(hypervisor, guest, busy):
    """Nobody is left to thaw the guest: the next run in the pool does, before anything else."""
    params = {"uri": hypervisor.uri, "source": "files", "source_pool": "busy", "pool": "busy", "name": "orphaned"}
    called = hooks(guest)
    tree = Tree("volume_clone", params, prefix=altered(STAYS_FROZEN))
    wait_until(lambda: hooks(guest)[len(called):] == ["freeze"])
    wait_until(lambda: status(guest) == "frozen")
    tree.kill(everything=True)
    time.sleep(1)
    assert status(guest) == "frozen" and not (busy / "orphaned").exists()
    result = run_module("volume", {"uri": hypervisor.uri, "pool": "busy", "name": "nothing", "state": "absent"})
    assert result.get("changed") is False and status(guest) == "thawed", result
    guest.wait_for_more("file", 5)
    assert not list(busy.path.glob(".hypervisor.storage-*")) and has_no_job(guest.virt)
    result = run_module("volume_clone", params)
    assert result.get("changed") and result["consistency"] == "filesystem", result
    (busy / "orphaned").unlink()


@pytest.mark.parametrize(("change", "reason"), [(BEGIN_FAILS, "libvirt_error"), (NO_THAW, "tool_failed")], ids=["begin", "thaw"])
def test_job_that_fails_while_the_guest_is_frozen(hypervisor, guest, busy, change, reason):
    """It does not stay so: thawed by the module, or where that can't, by its guardian once it has given up."""
    params = {"uri": hypervisor.uri, "source": "files", "source_pool": "busy", "pool": "busy", "name": "failed"}
    called = hooks(guest)
    result = finish_module(start_module("volume_clone", params, prefix=altered(change)))
    assert result.get("reason") == reason and not result.get("changed"), result
    if change is BEGIN_FAILS:
        assert status(guest) == "thawed", "at once"
    else:
        assert "domfsthaw" in result["msg"]
        wait_until(lambda: status(guest) == "thawed", 15)
    assert hooks(guest)[len(called):] == ["freeze", "thaw"]
    guest.wait_for_more("file", 2)
    assert has_no_job(guest.virt) and not (busy / "failed").exists() and not list(busy.path.glob(".hypervisor.storage-*"))


# An agent that answers nothing while the guest is frozen, and a module that gives it a tenth of the time it has.
AGENT_STOPS = "(sleep 1; kill -STOP $(pidof qemu-ga); sleep {}; kill -CONT $(pidof qemu-ga)) >/dev/null 2>&1 </dev/null &"
THAWS_LATE = """
_running.AGENT_TIMEOUT = 1
begin = _running.begin_backup
def begin_late(*arguments):
    time.sleep(2)
    return begin(*arguments)
_running.begin_backup = begin_late
"""


@pytest.mark.parametrize(("seconds", "reason"), [(4, None), (18, "tool_failed")], ids=["for a while", "for long"])
def test_agent_that_stops_while_the_guest_is_frozen(hypervisor, guest, busy, seconds, reason):
    """The thaw itself fails: it is tried again; and when the module gives up, its guardian goes on trying."""
    params = {"uri": hypervisor.uri, "source": "files", "source_pool": "busy", "pool": "busy", "name": "stopped"}
    called = hooks(guest)
    before_freezing(busy, AGENT_STOPS.format(seconds))
    try:
        result = finish_module(start_module("volume_clone", params, prefix=altered(THAWS_LATE)))
    finally:
        before_freezing(busy, AS_USUAL)
    assert result.get("reason") == reason, result
    if reason:
        assert "domfsthaw" in result["msg"] and not result.get("changed")
        assert hooks(guest)[len(called):] == ["freeze"], "it is frozen still"
        assert not (busy / "stopped").exists() and has_no_job(guest.virt)
        wait_until(lambda: status(guest) == "thawed", 30)
    else:
        assert result["changed"] and result["consistency"] == "filesystem", result
        assert "needs_recovery" not in sh("dumpe2fs", "-h", busy / "stopped")
        (busy / "stopped").unlink()
    assert status(guest) == "thawed" and hooks(guest)[len(called):][:2] == ["freeze", "thaw"]
    guest.wait_for_more("file", 2)
    assert not list(busy.path.glob(".hypervisor.storage-*"))
    seen = None
    while seen != (seen := hooks(guest)):  # what timed out may have come to the agent all the same
        time.sleep(2)


def test_interrupted_while_the_guest_is_frozen(hypervisor, guest, busy):
    params = {"uri": hypervisor.uri, "source": "files", "source_pool": "busy", "pool": "busy", "name": "failed"}
    called = hooks(guest)
    process = start_module("volume_clone", params, prefix=altered(LOST_WHILE_FROZEN))
    process.communicate(timeout=60)
    wait_until(lambda: status(guest) == "thawed" and hooks(guest)[len(called):] == ["freeze", "thaw"], 15)
    guest.wait_for_more("file", 2)
    assert not (busy / "failed").exists()


def test_block_job_in_the_way_of_a_frozen_guest(hypervisor, guest, busy, outside):
    """Each try thaws what it froze, and the last one ends with a reason."""
    guest.virt.blockCopy(
        "vda", f"<disk type='file'><source file='{outside}/mirror'/><driver type='raw'/></disk>", {},
        libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB)
    params = {"uri": hypervisor.uri, "source": "files", "source_pool": "busy", "pool": "busy", "name": "failed"}
    called = hooks(guest)
    try:
        result = finish_module(start_module("volume_clone", params, prefix=altered(IMPATIENT)))
        assert result.get("reason") == "locked" and "guest" in result["msg"], result
        assert status(guest) == "thawed"
        tries = hooks(guest)[len(called):]
        assert tries == ["freeze", "thaw"] * (len(tries) // 2)
        guest.wait_for_more("file", 2)
    finally:
        guest.virt.blockJobAbort("vda")
    assert not (busy / "failed").exists() and not list(busy.path.glob(".hypervisor.storage-*"))


def test_agent_that_is_too_slow(hypervisor, guest, busy):
    """It is not waited for; and when it freezes at last, long after the copy began, the guest does not stay so."""
    params = {"uri": hypervisor.uri, "source": "files", "source_pool": "busy", "pool": "busy", "name": "slow"}
    before_freezing(busy, "sleep 14")
    called = hooks(guest)
    result = run_module("volume_clone", params)
    before_freezing(busy, AS_USUAL)
    assert result.get("changed") and result["consistency"] == "crash", result
    wait_until(lambda: hooks(guest)[len(called):] == ["freeze", "thaw"], 30)
    wait_until(lambda: status(guest) == "thawed", 15)
    guest.wait_for_more("file", 5)


# The same disk alone, whose guest logs what it writes, as in the guest above.
ALONE = """
mount -t ext4 /dev/vda /mnt || echo "mount failed"
n=0; while :; do n=$((n+1)); echo "record $n" >>/mnt/log; sync; echo "file $n"; sleep 0.1; done
"""


def test_libvirtd_dies_while_the_guest_is_being_frozen(place):
    """The agent freezes it when libvirt has gone: who is left thaws it through the daemon that comes back."""
    mortal = Hypervisor(place / "mortal-guest")
    try:
        pool = Pool(mortal, "alone", place / "alone")
        pool.virt.setAutostart(1)
        blank(pool / "files", 64 * MIB, "raw")
        sh("mke2fs", "-q", "-F", "-t", "ext4", pool / "files")
        before_freezing(pool, "sleep 3")
        guest = Guest(mortal, place / "alone-guest", ALONE, disk(pool / "files", "raw", "vda"), disk(pool / "hook", "raw", "vde"),
                      hook=HOOK.replace("/dev/vde", "/dev/vdb"))
        guest.wait_for_more("file", 2, BOOT_SECONDS)
        wait_until(lambda: status(guest) is not None, 20)
        params = {"uri": mortal.uri, "source": "files", "source_pool": "alone", "pool": "alone", "name": "copy"}
        process = start_module("volume_clone", params)
        wait_until(lambda: hooks(guest) == ["freeze"])
        os.kill(int((mortal.root / "libvirtd.pid").read_text()), signal.SIGKILL)
        mortal.restart()
        result = finish_module(process)
        assert result.get("reason") == "connection_failed", result
        wait_until(lambda: hooks(guest)[:2] == ["freeze", "thaw"], 30)
        guest.wait_for_more("file", 5)
        before_freezing(pool, AS_USUAL)
        assert not (pool / "copy").exists()
        wait_until(lambda: run_module("volume_clone", params).get("changed"), 30)
        assert not list(pool.path.glob(".hypervisor.storage-*"))
    finally:
        mortal.stop()
