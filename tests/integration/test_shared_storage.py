# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Two hypervisors on one directory: what one has open, the other leaves alone, though its libvirt knows nothing of it."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time

import libvirt
import pytest
from conftest import first_success
from support.faults import CONTENT, GROWN, KINDS, ON_ITS_OWN
from support.hypervisors import Hypervisor, Pool, disk, domain_xml, guest_writes
from support.images import MIB, content, digest, is_locked, make, overlay, sh, sha, take_snapshot
from support.images import info as image_info
from support.runs import finish_module, go_on, look_at, run_module, start_module


@pytest.fixture(scope="module")
def other(place):
    """The other host."""
    running = Hypervisor(place / "other")
    yield running
    running.stop()


@pytest.fixture
def shared(pool, other):
    """The pool here is a pool there, too."""
    there = Pool(other, pool.name, pool.path)
    yield pool
    for running in other.conn.listAllDomains():
        running.destroy()
    there.forget()


@pytest.fixture
def here(hypervisor, shared):
    def run(module, **params):
        return run_module(module, {"uri": hypervisor.uri, "pool": shared.name, **params})

    return run


HARMFUL = {
    "delete": ("volume", {"name": "a", "state": "absent"}),
    "wipe": ("volume", {"name": "a", "state": "absent", "wipe": True}),
    "grow": ("volume_resize", {"name": "a", "size": "16M"}),
    "clone as offline": ("volume_clone", {"name": "b", "source": "a", "consistency": "offline"}),
    "full copy": ("volume", {"name": "b", "template": "a", "clone_mode": "full"}),
    "overlay": ("volume", {"name": "b", "template": "a"}),
}
HARMFUL_QCOW2 = {
    "ensure larger": ("volume", {"name": "a", "size": "16M"}),
    "clone": ("volume_clone", {"name": "b", "source": "a"}),
    "compress": ("volume_compress", {"name": "a", "method": "zeros"}),
    "rewrite": ("volume_compress", {"name": "a", "method": "zeros", "compression": "zstd"}),
}
CASES = [pytest.param(fmt, *work, id=f"{name} {fmt}")
         for fmt in ("qcow2", "raw") for name, work in {**HARMFUL, **(HARMFUL_QCOW2 if fmt == "qcow2" else {})}.items()]


@pytest.mark.parametrize(("fmt", "module", "wish"), CASES)
def test_open_there(here, other, shared, fmt, module, wish):
    path = make(shared / "a", fmt)
    guest = other.conn.createXML(domain_xml("there", disk(path, fmt)))
    before = look_at([shared.path])
    result = here(module, **wish)
    assert result.get("failed") and result["reason"] == "volume_in_use", result
    assert "'a'" in result["msg"] or str(path) in result["msg"]
    assert look_at([shared.path]) == before
    guest_writes(guest, 0x42)
    guest.destroy()
    assert not here(module, **wish).get("failed"), "free again"


@pytest.mark.parametrize(("module", "wish"), [
    ("volume", {"name": "base", "state": "absent"}),
    ("volume_compress", {"name": "base", "method": "zeros"}),
    ("volume_resize", {"name": "base", "size": "16M"}),
], ids=["delete", "compress", "grow"])
def test_base_of_what_runs_there(here, other, shared, module, wish):
    top = overlay(shared / "top", make(shared / "base"))
    guest = other.conn.createXML(domain_xml("there", disk(top)))
    before = digest(shared / "base")
    result = here(module, **wish)
    assert result.get("reason") in ("volume_in_use", "volume_has_dependents"), result
    guest_writes(guest, 0x42)
    assert digest(shared / "base") == before


def test_what_only_reads_is_free(here, other, shared):
    """A look at it, a snapshot's copy, and a copy of what another host only reads."""
    take_snapshot(make(shared / "a"), "s")
    expected = digest(shared / "a")
    guest = other.conn.createXML(domain_xml("there", disk(shared / "a")))
    guest_writes(guest, 0x42)
    assert here("volume_info", name="a", pool=[shared.name])["volumes"][0]["capacity"] == 4 * MIB
    assert here("volume", name="c", snapshot="s", snapshot_volume="a")["changed"]
    assert digest(shared / "c") == expected
    make(shared / "iso", "raw")
    other.conn.createXML(domain_xml("reads", disk(shared / "iso", "raw", "hda", device="cdrom", readonly=True)))
    assert here("volume_clone", source="iso", name="d")["changed"]
    assert digest(shared / "d", "raw") == digest(shared / "iso", "raw")
    assert here("volume", name="iso", state="absent")["reason"] == "volume_in_use"


def test_a_new_volume_starts_on_the_other_host(here, other, shared):
    """A volume made here is seen there after its pool's refresh, and starts there."""
    assert here("volume", name="a", size="4M")["changed"]
    there = other.conn.storagePoolLookupByName(shared.name)
    there.refresh()
    assert there.storageVolLookupByName("a").info()[1] == 4 * MIB
    other.conn.createXML(domain_xml("there", disk((shared.name, "a")))).destroy()
    assert sorted(os.listdir(shared.path)) == ["a"]


@pytest.fixture
def begun(hypervisor, shared, masters):
    """``begun(kind)``: its module, which has begun to work here on a fresh volume "a"."""

    def begin(kind):
        kind.lay_out(masters, shared.path)
        return start_module(kind.module, {"uri": hypervisor.uri, "pool": shared.name, **kind.wish})

    return begin


@pytest.mark.parametrize("name", ON_ITS_OWN)
def test_our_work_keeps_the_other_host_out(begun, other, shared, name):
    """Stopped in the middle of its work, for as long as it takes: no domain of the other host gets the volume."""
    kind, path = KINDS[name], shared / "a"
    xml = domain_xml("there", disk(path, kind.before["a"].format))
    for _attempt in range(20):  # the work may be over before it is met
        process = begun(kind)
        while not is_locked(path) and process.poll() is None:
            time.sleep(0.001)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGSTOP)
        met = process.poll() is None and is_locked(path)
        if met:
            before = path.read_bytes()
            for _time in range(2):
                with pytest.raises(libvirt.libvirtError, match="lock"):
                    other.conn.createXML(xml)
            assert path.read_bytes() == before
        go_on(process)
        assert finish_module(process).get("changed")
        kind.assert_done(shared.path)
        if met:
            break
    assert met, "its work was never met"
    if kind.changes["a"] is not None:
        other.conn.createXML(xml).destroy()


@pytest.mark.parametrize("early", [True, False], ids=["at once", "at work"])
@pytest.mark.parametrize("name", ON_ITS_OWN)
def test_domain_of_the_other_host_that_wants_to_start(begun, other, shared, name, early):
    """It tries again and again: while it has the volume, our work is refused or over, and what its guest writes stays."""
    kind, path = KINDS[name], shared / "a"
    fmt = kind.before["a"].format
    process = begun(kind)
    guest = first_success(  # refused by the lock, or since the volume is gone
        lambda: other.conn.createXML(domain_xml("there", disk(path, fmt))), process, beside=None if early else shared.path)
    if guest is not None:
        guest_writes(guest, 0x42)
    result = finish_module(process)
    assert not result.get("failed") or result["reason"] == "volume_in_use", result
    if guest is None:
        assert kind.changes["a"] is None, "it could start afterwards"
        kind.assert_done(shared.path)
        return
    seen = guest.blockInfo("vda")[0]
    guest.destroy()
    assert path.exists(), "deleted under a running domain"
    assert seen == image_info(path, fmt)["virtual-size"], "its guest saw another size than there is"
    expected = b"\x42" * MIB + (GROWN if seen == len(GROWN) else CONTENT)[MIB:]
    assert seen == len(CONTENT) or not result.get("failed")
    assert sha(content(path, fmt)) == sha(expected)
    if fmt == "qcow2":
        sh("qemu-img", "check", "-q", "-f", fmt, path)
    assert sorted(os.listdir(shared.path)) == ["a", "bystander"]


#: A prefix that makes a run one of a host of its own: its locks on names keep none of another host out.
ANOTHER_HOST = ["unshare", "-m", "bash", "-c",
                'mkdir -p /run/hypervisor.storage && mount -t tmpfs -o mode=700 none /run/hypervisor.storage && exec "$@"', "bash"]


@pytest.mark.parametrize(("module", "wish"), [
    ("volume", {"size": "4M"}),
    ("volume", {"size": "4M", "format": "raw"}),
    ("volume", {"template": "a"}),
    ("volume", {"template": "a", "clone_mode": "full"}),
    ("volume_clone", {"source": "a"}),
], ids=["blank", "raw", "overlay", "full", "clone"])
def test_hosts_that_make_the_same_volume(hypervisor, other, shared, module, wish):
    """One of them made it; it is there for the others, or they say that it came while they made it."""
    make(shared / "a")
    started = [start_module(module, {"uri": (hypervisor, other)[number % 2].uri, "pool": shared.name, "name": "b", **wish},
                            prefix=ANOTHER_HOST) for number in range(6)]
    results = [finish_module(process) for process in started]
    assert {result.get("reason") for result in results} <= {None, "volume_mismatch"}, results
    assert [bool(result.get("changed")) for result in results].count(True) == 1, results
    assert sorted(os.listdir(shared.path)) == ["a", "b"]
    fmt = wish.get("format", "qcow2")
    assert content(shared / "b", fmt) == (bytes(4 * MIB) if "size" in wish else content(shared / "a"))


WORK = {
    "resize": ("volume_resize", {"name": "a", "size": len(GROWN)}),
    "compress": ("volume_compress", {"name": "a", "method": "zeros"}),
    "rewrite": ("volume_compress", {"name": "a", "method": "zeros", "compression": "zstd"}),
    "delete": ("volume", {"name": "a", "state": "absent"}),
    "wipe": ("volume", {"name": "a", "state": "absent", "wipe": True}),
    "overlay": ("volume", {"name": "d", "template": "a"}),
    "full": ("volume", {"name": "c", "template": "a", "clone_mode": "full"}),
    "clone": ("volume_clone", {"name": "b", "source": "a"}),
}
READS = ("overlay", "full", "clone")
MAKES = {"overlay": "d", "full": "c", "clone": "b"}
PAIRS = [pair for pair in itertools.combinations_with_replacement(WORK, 2) if not set(pair) <= set(READS)]


@pytest.mark.parametrize("pair", PAIRS, ids=" and ".join)
def test_work_of_two_hosts(hypervisor, other, shared, masters, pair):
    """At the same time, or one a little later: what they say they did adds up to what is there, and all of it is whole."""
    for pause in (0, 0.1):
        KINDS["clone offline"].lay_out(masters, shared.path)
        started = []
        for host, name in zip((hypervisor, other), pair):
            module, wish = WORK[name]
            started.append(start_module(module, {"uri": host.uri, "pool": shared.name, **wish}, prefix=ANOTHER_HOST))
            time.sleep(pause)
        results = [finish_module(process) for process in started]
        assert {result.get("reason") for result in results} <= {
            None, "volume_in_use", "volume_not_found", "template_not_found", "volume_has_dependents"}, results
        done = {name for name, result in zip(pair, results) if result.get("changed")}
        if pair[0] == pair[1] or set(pair) == {"delete", "wipe"}:
            assert sum(bool(result.get("changed")) for result in results) <= 1, results
        both_compress = set(pair) <= {"compress", "rewrite"}
        assert both_compress or not all(result.get("failed") for result in results), results
        there = {MAKES[name] for name in done & set(READS)} | ({"a"} if not done & {"delete", "wipe"} else set())
        assert set(os.listdir(shared.path)) == there | {"bystander"}, results
        for name in there:
            seen = content(shared / name)
            assert sha(seen[: len(CONTENT)]) == sha(CONTENT), (name, results)
            assert not any(seen[len(CONTENT) :]), (name, results)
            sh("qemu-img", "check", "-q", "-f", "qcow2", shared / name)
        if "a" in there:
            assert image_info(shared / "a")["virtual-size"] == len(GROWN if "resize" in done else CONTENT), results
