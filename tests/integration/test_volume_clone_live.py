# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Copies of disks that running domains write to: one moment of them, and no job or file left behind, whatever happens."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time

import libvirt
import pytest
from support.hypervisors import disk, domain_xml, guest_writes, snapshot_outside
from support.images import (
    GIB,
    MIB,
    blank,
    content,
    digest,
    file_sha,
    make,
    noise,
    overlay,
    qcow2_header,
    sh,
    sha,
    take_snapshot,
    used,
    wait_until,
    write,
)
from support.images import (
    info as image_info,
)
from support.jobs import has_no_job, hold_job_of, set_speed
from support.runs import altered, finish_module, go_on, run_module, start_module
from support.spoiled import with_spoiled_copies

ALL_DATA = sha(noise(2 * MIB) + bytes(2 * MIB))  # of an image of 4 MiB


@pytest.fixture
def cloned_live(checked, clone, pool):
    """A transition that copies ``a`` of the running domain to ``b`` and leaves nothing else behind."""

    def run(running, *, on=pool, **params):
        there = set(os.listdir(on.path))
        result = checked(does=clone, pool=on.name, **params)
        assert result["changed"] and result["consistency"] == "crash", result
        made = result["volume"]
        assert (made["backing"], made["snapshots"], made["attachments"]) == (None, [], [])
        assert f"(backup job of domain {running.name()!r})" in result["actions"][0], "actions say how"
        assert has_no_job(running)
        assert set(os.listdir(on.path)) - there == {made["name"]}
        kept = [name for name in os.listxattr(on / made["name"]) if name.startswith("trusted.libvirt")]
        assert not kept, "libvirt was not done with it"
        if made["format"] == "qcow2":
            sh("qemu-img", "check", "-q", "-f", "qcow2", on / made["name"])
        return made

    return run


@pytest.fixture
def kept(refused, clone):
    """A wish that is refused, in check mode too; nothing is touched."""

    def run(reason, **params):
        return refused(reason, fails=clone, **params)

    return run


@pytest.fixture
def begun(hypervisor, pool):
    """A clone in the middle of its backup job, which has come to a halt."""

    def run(running, uri=hypervisor.uri, *, large=True, **params):
        for _attempt in range(20):  # on a busy machine the job may be over before it is met
            process = start_module("volume_clone", {"uri": uri, "pool": pool.name, "source": "a", "name": "b", **params})
            if hold_job_of(process, running, large=large):
                return process
            made = finish_module(process)
            assert made.get("changed"), made
            os.unlink(made["volume"]["path"])
        raise AssertionError("the job was never met in its middle")

    return run


def large(path, fmt="qcow2", size=512 * MIB):
    """An image full of data: copying it takes long enough to be met in the middle."""
    blank(path, size, fmt)
    write(path, 0x77, length=size, fmt=fmt)
    return path


# -- copies ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("source", "wanted", "target"), [
    ("qcow2", "qcow2", "vda"), ("raw", "raw", "sda"), ("qcow2", "raw", "vda"), ("raw", "qcow2", "vda"),
])
def test_copy_of_a_running_disk(cloned_live, pool, domain, source, wanted, target):
    path = make(pool / "a", source)
    running = domain(disk(path, source, target))
    if target == "vda":
        guest_writes(running, 0x42, offset=3 * MIB)
    made = cloned_live(running, format=wanted, verify=True)
    assert (made["format"], made["capacity"]) == (wanted, 4 * MIB)
    assert digest(pool / "b", wanted) == digest(path, source)
    assert image_info(pool / "b", wanted)["virtual-size"] == 4 * MIB


@pytest.mark.parametrize("source", ["qcow2", "raw"])
def test_verify_finds_an_image_that_is_not_sound(hypervisor, cloned_live, pool, domain, outside, source):
    make(pool / "a", source)
    running = domain(disk(pool / "a", source))
    wish = {"uri": hypervisor.uri, "pool": pool.name, "source": "a", "name": "b", "format": "qcow2", "verify": True}
    result = run_module("volume_clone", wish, prefix=with_spoiled_copies(outside))
    assert result.get("reason") == "tool_failed" and "sound" in result["msg"] and not result.get("changed"), result
    assert os.listdir(pool.path) == ["a"] and has_no_job(running)
    cloned_live(running, format="qcow2", verify=True)


def test_a_raw_copy_that_can_not_be_verified_is_told(hypervisor, pool, domain):
    make(pool / "a")
    domain(disk(pool / "a"))
    for how in ({"check": True}, {}):
        wish = {"uri": hypervisor.uri, "pool": pool.name, "source": "a", "name": "b", "format": "raw", "verify": True}
        result = run_module("volume_clone", wish, **how)
        assert result["changed"] and len(result["warnings"]) == 1, result
        assert "'b' is not verified" in result["warnings"][0]
        assert "verify" not in result["actions"][0], result
    assert digest(pool / "b", "raw") == digest(pool / "a")


def test_copy_is_of_the_moment_when_it_began(begun, pool, domain):
    """What the guest writes meanwhile, where the copy has been and where it has not, is not in it."""
    path = large(pool / "a", "raw")
    running = domain(disk(path, "raw", cached=False))
    expected = digest(path, "raw")
    process = begun(running)
    for number in range(8):
        guest_writes(running, 0x40 + number, offset=number * 32 * MIB)
    set_speed(running, 0)
    result = finish_module(process)
    assert result["changed"] and result["consistency"] == "crash", result
    assert digest(pool / "b", "raw") == expected != digest(path, "raw")
    assert sorted(os.listdir(pool.path)) == ["a", "b"]


def test_into_another_pool_and_larger(cloned_live, make_pool, pool, domain):
    make(pool / "a")
    running = domain(disk(pool / "a"))
    copies = make_pool()
    assert cloned_live(running, on=copies, source_pool=pool.name, size="6M")["capacity"] == 6 * MIB
    data = content(copies / "b")
    assert sha(data[:4 * MIB]) == ALL_DATA and data[4 * MIB:] == bytes(2 * MIB)


def test_chain_is_flattened(cloned_live, pool, domain):
    top = overlay(pool / "a", make(pool / "base"))
    running = domain(disk(top))
    guest_writes(running, 0x42)
    expected = digest(top)
    cloned_live(running)
    running.destroy()
    top.unlink()
    (pool / "base").unlink()
    assert digest(pool / "b") == expected


@pytest.mark.parametrize("options", [
    "compat=0.10", "cluster_size=4K,lazy_refcounts=on", "extended_l2=on,compression_type=zstd,refcount_bits=64",
])
def test_features_are_kept(cloned_live, pool, domain, options):
    def features(name):
        found = image_info(pool / name)
        return found["cluster-size"], found["format-specific"]["data"]

    make(pool / "a", options=options)
    cloned_live(domain(disk(pool / "a")))
    assert features("a") == features("b") and digest(pool / "b") == ALL_DATA


def test_options(cloned_live, pool, domain):
    make(pool / "a")
    running = domain(disk(pool / "a"))
    cloned_live(running, cluster_size="128K", preallocation="falloc", owner="nobody", group="nogroup", mode="0600")
    st = (pool / "b").stat()
    assert (image_info(pool / "b")["cluster-size"], st.st_uid, oct(st.st_mode & 0o777)) == (131072, 65534, "0o600")
    assert used(pool / "b") >= 4 * MIB and digest(pool / "b") == ALL_DATA


@pytest.mark.parametrize("how", ["falloc", "full"])
@pytest.mark.parametrize("wanted", ["qcow2", "raw"])
def test_space_is_reserved_on_demand(cloned_live, pool, domain, wanted, how):
    """Also where the disk has holes, and of what is added."""
    make(pool / "a", "raw")
    cloned_live(domain(disk(pool / "a", "raw")), format=wanted, preallocation=how, size="8M")
    assert used(pool / "b") >= 8 * MIB
    assert digest(pool / "b", wanted, 4 * MIB) == ALL_DATA and digest(pool / "b", wanted) == sha(noise(2 * MIB) + bytes(6 * MIB))


@pytest.mark.parametrize(("source", "wanted"), [
    ("qcow2", "qcow2"), ("raw", "qcow2"), ("raw", "raw"), ("qcow2", "raw"),
])
def test_sparse_stays_sparse(cloned_live, pool, domain, source, wanted):
    blank(pool / "a", 2 * GIB, source)
    write(pool / "a", 0x33, GIB, fmt=source)
    cloned_live(domain(disk(pool / "a", source)), format=wanted)
    assert used(pool / "b") < 4 * MIB
    said = sh("qemu-io", "-r", "-f", wanted, "-c", f"read -P 0x33 {GIB} 1M", "-c", "read -P 0 0 1M", pool / "b")
    assert "failed" not in said


def test_second_disk_and_odd_names(cloned_live, pool, domain):
    """Only the disk that was asked for is in the job."""
    make(pool / "a '\"<&>%s")
    make(pool / "other", seed="other")
    running = domain(disk(pool / "other"), disk(pool / "a '\"<&>%s", target="vdb"))
    cloned_live(running, source="a '\"<&>%s", name="-b '\"<&>%s")
    (pool / "-b '\"<&>%s").rename(pool / "b")
    assert digest(pool / "b") == ALL_DATA


def test_domain_with_empty_drives_and_a_read_only_disk(cloned_live, pool, domain):
    make(pool / "a")
    make(pool / "other")
    running = domain(
        "<disk type='file' device='cdrom'><target dev='hda' bus='ide'/><readonly/></disk>",
        "<disk type='file' device='floppy'><target dev='fda' bus='fdc'/></disk>",
        disk(pool / "other", target="vdb", readonly=True), disk(pool / "a"))
    cloned_live(running)
    assert digest(pool / "b") == ALL_DATA


def test_disk_that_its_domain_knows_by_another_path(cloned_live, pool, domain, outside):
    make(pool / "a")
    (outside / "link").symlink_to(pool / "a")
    cloned_live(domain(disk(outside / "link")))
    assert digest(pool / "b") == ALL_DATA


def test_shareable_disk_that_only_one_running_domain_has(cloned_live, pool, domain):
    make(pool / "a", "raw")
    running = domain(disk(pool / "a", "raw", extra="<shareable/>"))
    domain(disk(pool / "a", "raw", extra="<shareable/>"), running=False)
    cloned_live(running, format="qcow2")
    assert digest(pool / "b") == ALL_DATA


def test_several_copies(checked, clone, pool, domain):
    make(pool / "a")
    running = domain(disk(pool / "a"))
    result = checked(does=clone, name=["b", "c"])
    assert len(result["actions"]) == 2 and result["consistency"] == "crash"
    assert digest(pool / "b") == digest(pool / "c") == ALL_DATA and has_no_job(running)


def test_paused_domain(cloned_live, pool, domain):
    make(pool / "a")
    running = domain(disk(pool / "a"))
    running.suspend()
    cloned_live(running, consistency="live")
    assert running.state()[0] == libvirt.VIR_DOMAIN_PAUSED, "still paused"
    assert digest(pool / "b") == ALL_DATA


def test_transient_domain(cloned_live, pool, domain):
    make(pool / "a")
    cloned_live(domain(disk(pool / "a"), transient=True))
    assert digest(pool / "b") == ALL_DATA


def test_internal_snapshots_stay_behind(clone, pool, domain):
    take_snapshot(make(pool / "a"), "old")
    running = domain(disk(pool / "a"))
    guest_writes(running, 0x42)
    result = clone()
    assert result["changed"] and any("snapshot" in warning for warning in result["warnings"])
    assert digest(pool / "b") == digest(pool / "a") and "snapshots" not in image_info(pool / "b")


def test_after_an_external_snapshot(cloned_live, checked, clone, pool, domain):
    """The layer that is frozen stands still, the one on top is live."""
    make(pool / "a")
    running = domain(disk(pool / "a"))
    snapshot_outside(running, "s", pool / "top")
    guest_writes(running, 0x42)
    pool.refresh()
    assert checked(does=clone)["consistency"] == "offline"
    assert digest(pool / "b") == ALL_DATA
    cloned_live(running, source="top", name="c")
    assert digest(pool / "c") == digest(pool / "top") != ALL_DATA


@pytest.mark.parametrize("how", [{"target": "hda", "device": "cdrom", "readonly": True}, {"readonly": True}], ids=["cdrom", "disk"])
def test_disk_that_its_domain_cannot_write(checked, clone, pool, domain, how):
    make(pool / "a", "raw")
    domain(disk(pool / "a", "raw", **how))
    result = checked(does=clone, consistency="offline")
    assert result["consistency"] == "offline" and digest(pool / "b", "raw") == ALL_DATA


def test_raw_disk_whose_guest_wrote_a_qcow2_header(clone, pool, domain, outside):
    """Raw it stays; what the header points to is never read."""
    secret = outside / "secret"
    secret.write_bytes(b"a line that only the host may read\n" * 64)
    path = pool / "a"
    path.write_bytes(bytes(MIB))
    domain(disk(path, "raw"))
    with path.open("r+b") as file:
        file.write(qcow2_header(MIB, str(secret)))
    for name, wanted in (("b", "raw"), ("c", "qcow2")):
        result = clone(name=name, format=wanted)
        if result.get("failed"):
            assert result["reason"] == "unsafe_image", result
        else:
            assert digest(pool / name, wanted) == file_sha(path), "byte by byte, from the first on"


# -- what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
def test_raw_copies_need_room_for_the_whole_disk(kept, cloned_live, pool, small, domain, fmt):
    """The job writes them whole; that is known before it begins."""
    blank(pool / "a", GIB, fmt)
    write(pool / "a", 0x33, MIB, fmt=fmt)
    running = domain(disk(pool / "a", fmt))
    assert kept("insufficient_space", pool=small.name, source_pool=pool.name, format="raw")["required"] == GIB
    cloned_live(running, on=small, source_pool=pool.name, format="qcow2")
    assert digest(small / "b", length=3 * MIB) == sha(bytes(MIB) + b"\x33" * MIB + bytes(MIB))


def test_offline_was_asked_for(kept, pool, domain):
    make(pool / "a")
    domain(disk(pool / "a"))
    assert kept("volume_in_use", consistency="offline")["attachments"][0]["live"]


def test_shared_by_two_running_domains(kept, pool, domain):
    make(pool / "a", "raw")
    for _domain in range(2):
        domain(disk(pool / "a", "raw", extra="<shareable/>"))
    assert len(kept("volume_in_use")["attachments"]) == 2


def test_firmware_of_a_running_domain(kept, checked, clone, hypervisor, pool, domain):
    """What it keeps its firmware's state in is no disk, so that no job copies it; what it only reads stands still."""
    for name in ("code", "state"):
        (pool / name).write_bytes(noise(MIB))
    hypervisor.conn.createXML(domain_xml("boots", firmware=(pool / "code", pool / "state")))
    for consistency in ("auto", "live"):
        told = kept("volume_in_use", source="state", name="b", consistency=consistency)
        assert "domain 'boots' (running, nvram), but not as a disk" in told["msg"] and "Stop the domain" in told["msg"]
        assert [use["target"] for use in told["attachments"]] == ["nvram"]
    assert checked(does=clone, source="code", name="b")["consistency"] == "offline"
    assert (pool / "b").read_bytes() == (pool / "code").read_bytes()


def test_space(kept, pool, small, domain):
    make(pool / "a", "raw", 100 * MIB)
    domain(disk(pool / "a", "raw"))
    result = kept("insufficient_space", pool=small.name, source_pool=pool.name)
    assert result["required"] >= 50 * MIB > result["available"]


# -- other jobs --------------------------------------------------------------------------------------


@pytest.fixture
def other_job(pool):
    """A backup job of somebody else, which lasts until it is aborted."""

    def begin(running):
        scratch = pool.path.parent / "scratch"
        running.backupBegin(
            f"<domainbackup mode='pull'><server transport='unix' socket='{pool.path.parent}/nbd'/>"
            f"<disks><disk name='vda' backup='yes' type='file'><scratch file='{scratch}'/></disk></disks></domainbackup>", None)

    return begin


def test_waits_for_another_job(clone, pool, domain, other_job):
    make(pool / "a")
    running = domain(disk(pool / "a"))
    other_job(running)
    began = time.monotonic()
    ends = threading.Timer(2, running.abortJob)
    ends.start()
    result = clone()
    ends.join()
    assert result.get("changed") and time.monotonic() - began > 2, result
    assert digest(pool / "b") == ALL_DATA and has_no_job(running)


def test_waits_no_longer_than_it_says(hypervisor, pool, domain, other_job):
    make(pool / "a")
    running = domain(disk(pool / "a"))
    other_job(running)
    params = {"uri": hypervisor.uri, "pool": pool.name, "source": "a", "name": "b"}
    result = finish_module(start_module("volume_clone", params, prefix=altered("_live.JOB_TIMEOUT = 1")))
    assert result.get("reason") == "locked" and running.name() in result["msg"], result
    assert os.listdir(pool.path) == ["a"]
    assert running.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE, "the other job goes on"
    running.abortJob()


def test_two_at_once_take_turns(hypervisor, pool, domain):
    make(pool / "a", size=64 * MIB)
    running = domain(disk(pool / "a"))
    started = [start_module("volume_clone", {"uri": hypervisor.uri, "pool": pool.name, "source": "a", "name": name})
               for name in "bbc"]
    results = [finish_module(process) for process in started]
    for result in results:
        assert not result.get("failed"), result
    assert sum(bool(result.get("changed")) for result in results) == 2
    assert digest(pool / "b") == digest(pool / "c") == digest(pool / "a") and has_no_job(running)


@pytest.mark.parametrize("copies", [6])
def test_each_reads_the_result_of_its_own_job(hypervisor, pool, domain, copies):
    """libvirt has a record of a domain's last job only; six that end and begin at about one time."""
    make(pool / "a")
    running = domain(disk(pool / "a"))
    names = [f"copy-{number}" for number in range(copies)]
    started = [start_module("volume_clone", {"uri": hypervisor.uri, "pool": pool.name, "source": "a", "name": name})
               for name in names]
    for result in [finish_module(process) for process in started]:
        assert result.get("changed"), result.get("msg", result)
    assert {digest(pool / name) for name in names} == {ALL_DATA} and has_no_job(running)


def test_a_job_that_follows_at_once(clone, pool, domain, other_job):
    """Somebody else's job begins as soon as ours ended, and hides how that was: no copy without knowing; theirs goes on."""
    make(pool / "a", size=64 * MIB)
    running = domain(disk(pool / "a"))
    began = []

    def follow():
        deadline = time.monotonic() + 30
        while has_no_job(running) and time.monotonic() < deadline:
            pass
        while not began and time.monotonic() < deadline:
            with contextlib.suppress(libvirt.libvirtError):
                other_job(running)
                began.append(True)

    other = threading.Thread(target=follow)
    other.start()
    result = clone()
    other.join()
    assert began and "pull" in running.backupGetXMLDesc(), "the other job goes on"
    running.abortJob()
    if result.get("changed"):
        assert digest(pool / "b") == digest(pool / "a")
    else:
        assert result.get("reason") == "tool_failed" and "how it ended" in result["msg"], result
        assert os.listdir(pool.path) == ["a"]


def test_somebody_takes_the_record_of_the_job(clone, pool, domain):
    """A program that reads and so removes libvirt's record of the last job: no telling how ours ended, so no copy."""
    make(pool / "a", size=64 * MIB)
    running = domain(disk(pool / "a"))
    ended = threading.Event()

    def take():
        while not ended.is_set():
            with contextlib.suppress(libvirt.libvirtError):
                running.jobStats(libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED)

    taker = threading.Thread(target=take)
    taker.start()
    result = clone()
    ended.set()
    taker.join()
    assert result.get("reason") == "tool_failed" and "how it ended" in result["msg"], result
    assert os.listdir(pool.path) == ["a"] and has_no_job(running)
    assert clone().get("changed")


# -- when it goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
def test_killed_in_the_middle(begun, clone, pool, domain, fmt, number):
    large(pool / "a", fmt)
    running = domain(disk(pool / "a", fmt, cached=False))
    process = begun(running)
    os.killpg(process.pid, number)
    process.communicate()
    wait_until(lambda: has_no_job(running), timeout=5)
    assert not (pool / "b").exists()
    guest_writes(running, 0x42)
    result = clone()
    assert result.get("changed"), result.get("msg", result)
    assert digest(pool / "b", fmt) == digest(pool / "a", fmt)
    assert sorted(os.listdir(pool.path)) == ["a", "b"]


@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
def test_name_is_taken_in_the_middle(begun, pool, domain, fmt):
    large(pool / "a", fmt)
    running = domain(disk(pool / "a", fmt, cached=False))
    process = begun(running)
    (pool / "b").write_text("somebody's notes")
    set_speed(running, 0)
    result = finish_module(process)
    assert result.get("reason") == "volume_mismatch" and not result.get("changed"), result
    assert (pool / "b").read_text() == "somebody's notes"
    assert sorted(os.listdir(pool.path)) == ["a", "b"] and has_no_job(running)


def test_domain_stops_in_the_middle(begun, clone, pool, domain):
    large(pool / "a")
    running = domain(disk(pool / "a", cached=False))
    process = begun(running)
    running.destroy()
    result = finish_module(process)
    assert result.get("failed") and not result.get("changed"), result
    assert os.listdir(pool.path) == ["a"]
    assert clone()["consistency"] == "offline"
    assert digest(pool / "b") == digest(pool / "a")


def test_job_is_aborted_by_somebody_else(begun, pool, domain):
    large(pool / "a")
    running = domain(disk(pool / "a", cached=False))
    process = begun(running)
    running.abortJob()
    assert finish_module(process)["reason"] == "tool_failed"
    assert os.listdir(pool.path) == ["a"] and has_no_job(running)


def test_space_runs_out_in_the_middle(begun, pool, small, domain):
    large(pool / "a", size=30 * MIB)
    running = domain(disk(pool / "a", cached=False))
    for _attempt in range(20):  # on a busy machine the job may have written all before the room is gone
        process = begun(running, large=False, pool=small.name, source_pool=pool.name)
        with (small / "hog").open("wb") as hog:
            facts = os.statvfs(small.path)
            os.posix_fallocate(hog.fileno(), 0, (facts.f_bavail - 1024) * facts.f_frsize)
        set_speed(running, 0)
        result = finish_module(process)
        if result.get("failed"):
            break
        assert digest(small / "b") == digest(pool / "a")
        (small / "b").unlink()
        (small / "hog").unlink()
    assert result.get("failed") and result["reason"] == "insufficient_space", result
    assert os.listdir(small.path) == ["hog"] and has_no_job(running)


def test_waits_for_a_block_job(clone, pool, domain, outside):
    make(pool / "a", "raw", 64 * MIB)
    running = domain(disk(pool / "a", "raw"))
    running.blockCopy(
        "vda", f"<disk type='file'><source file='{outside}/mirror'/><driver type='raw'/></disk>",
        {"bandwidth": 1}, libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB)
    ends = threading.Timer(2, running.blockJobAbort, ("vda",))
    ends.start()
    result = clone()
    ends.join()
    assert result.get("changed"), result["msg"]
    assert digest(pool / "b", "raw") == digest(pool / "a", "raw")


def test_disk_that_is_moved_while_its_turn_is_waited_for(hypervisor, pool, domain):
    """Another job goes before, and takes the domain to another file: what the copy is of is still the volume that was asked for."""
    make(pool / "a")
    moment = digest(pool / "a")
    running = domain(disk(pool / "a"))
    running.blockCopy(
        "vda", f"<disk type='file'><driver type='qcow2'/><source file='{pool / 'moved'}'/></disk>", {},
        libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB)
    wait_until(lambda: "<mirror" in running.XMLDesc() and "ready='yes'" in running.XMLDesc())
    process = start_module("volume_clone", {"uri": hypervisor.uri, "pool": pool.name, "source": "a", "name": "b"})
    wait_until(lambda: any(name.startswith(".") for name in os.listdir(pool.path)))  # its target is made: it waits
    os.killpg(process.pid, signal.SIGSTOP)
    running.blockJobAbort("vda", libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
    guest_writes(running, 0x42)
    go_on(process)
    result = finish_module(process)
    assert result.get("changed") and result["consistency"] == "offline", result
    assert digest(pool / "b") == moment != digest(pool / "moved")
    assert has_no_job(running) and sorted(os.listdir(pool.path)) == ["a", "b", "moved"]


def test_libvirt_is_restarted_in_the_middle(own_hypervisor, make_pool, begun):
    there = make_pool("own", on=own_hypervisor)
    large(there / "a")
    running = own_hypervisor.conn.createXML(domain_xml("vm", disk(there / "a", cached=False)))
    params = {"uri": own_hypervisor.uri, "pool": there.name}
    process = begun(running, **params)
    own_hypervisor.restart()
    running = own_hypervisor.conn.lookupByName("vm")
    result = finish_module(process)
    assert result.get("failed") and result["reason"] in ("connection_failed", "libvirt_error"), result
    assert not (there / "b").exists()
    again = run_module("volume_clone", {**params, "source": "a", "name": "b"})
    assert again.get("changed"), again
    assert digest(there / "b") == digest(there / "a")
    assert sorted(os.listdir(there.path)) == ["a", "b"]
    running.destroy()
