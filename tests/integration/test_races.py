# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Eight at once: one of the allowed outcomes each time, never corruption, never an endless wait."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

import libvirt
import pytest
from conftest import at_work_in, first_success
from support.faults import CONTENT, FULL, KINDS, ON_ITS_OWN, state_of
from support.hypervisors import disk, domain_xml, guest_writes
from support.images import MIB, blank, content, is_locked, make, overlay, sh, sha, wait_until
from support.images import info as image_info
from support.runs import altered, finish_module, go_on, run_module, start_module

SIZE = len(CONTENT)


@pytest.fixture
def at_once(hypervisor, pool):
    """Start all of these (module, wish) together; their results in this order. ``but``: why one may be refused when another was quicker."""

    def run(*works, but=()):
        common = {"uri": hypervisor.uri, "pool": pool.name}
        started = [start_module(module, {**common, **wish}) for module, wish in works]
        results = [finish_module(process, 120) for process in started]
        for result in results:
            assert not result.get("failed") or result["reason"] in but, result
        assert [name for name in os.listdir(pool.path) if name.startswith(".")] == []
        return results

    return run


def test_same_copy(at_once, pool, masters):
    KINDS["clone offline"].lay_out(masters, pool.path)
    results = at_once(*[("volume_clone", {"source": "a", "name": "b"})] * 8)
    assert sum(bool(result.get("changed")) for result in results) == 1
    KINDS["clone offline"].assert_done(pool.path)


OTHERS = {
    "deleted": ("volume", {"name": "a", "state": "absent"}),
    "wiped": ("volume", {"name": "a", "state": "absent", "wipe": True}),
    "resized": ("volume_resize", {"name": "a", "size": SIZE + MIB}),
    "compressed": ("volume_compress", {"name": "a", "method": "zeros"}),
    "rewritten": ("volume_compress", {"name": "a", "method": "zeros", "compression": "zstd"}),
}


@pytest.mark.parametrize("how", OTHERS)
def test_copies_of_what_is_being_changed(at_once, pool, masters, how):
    KINDS["clone offline"].lay_out(masters, pool.path)
    copies = [("volume_clone", {"source": "a", "name": f"b{number}"}) for number in range(3)]
    copies += [("volume", {"template": "a", "name": f"c{number}", "clone_mode": "full"}) for number in range(2)]
    overlays = [("volume", {"template": "a", "name": "d"})]
    gone = {"volume_not_found", "template_not_found", "volume_has_dependents"} if OTHERS[how][0] == "volume" else set()
    results = at_once(copies[0], OTHERS[how], *copies[1:], *overlays, OTHERS[how], but={"volume_in_use", *gone})
    made = [name for name in os.listdir(pool.path) if name[0] in "bcd" and name != "bystander"]
    assert len(made) == sum(bool(r.get("changed")) for r in (results[0], *results[2:7])), "what is said is there"
    for name in made:
        assert sha(content(pool / name)[:SIZE]) == sha(CONTENT), name
    if (pool / "a").exists():
        assert sha(content(pool / "a")[:SIZE]) == sha(CONTENT)
    else:
        assert "d" not in made, "its base is gone"


@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
@pytest.mark.parametrize("present", [False, True], ids=["from absent", "from present"])
def test_creates_against_deletes(at_once, pool, present, fmt):
    """In whatever order they come: what they say they did adds up to what is there in the end."""
    for first in (0, 1):
        works = [("volume", {"name": "a", "size": 4 * MIB, "format": fmt}), ("volume", {"name": "a", "state": "absent"})]
        if present and not (pool / "a").exists():
            blank(pool / "a", 4 * MIB, fmt)
        if not present:
            (pool / "a").unlink(missing_ok=True)
        results = at_once(*(works if first == 0 else works[::-1]) * 4)
        made = sum(bool(result.get("changed")) for result in results[first::2])
        gone = sum(bool(result.get("changed")) for result in results[1 - first :: 2])
        assert made - gone == (pool / "a").exists() - present, results
        assert os.listdir(pool.path) == ["a"][: (pool / "a").exists()]
        if (pool / "a").exists():
            assert content(pool / "a", fmt) == bytes(4 * MIB)


def test_two_kinds_of_compression(at_once, pool, masters):
    KINDS["compress rewrite"].lay_out(masters, pool.path)
    work = [("volume_compress", {"name": "a", "method": "zeros", "compression": how}) for how in ("none", "zlib", "zstd", "none")]
    results = at_once(*work * 2)
    assert 1 <= sum(bool(result.get("changed")) for result in results) <= 4
    assert state_of(pool / "a", FULL) == sha(CONTENT)


def test_all_sorts(at_once, pool, masters):
    """Deletes, creates, growth and compressions of one volume; whatever is left is sound."""
    KINDS["clone offline"].lay_out(masters, pool.path)
    create = ("volume", {"name": "a", "size": SIZE})
    at_once(create, OTHERS["deleted"], OTHERS["resized"], OTHERS["compressed"], create, OTHERS["rewritten"], OTHERS["deleted"], create,
            but={"volume_not_found"})
    if (pool / "a").exists():
        sh("qemu-img", "check", "-q", "-f", "qcow2", pool / "a")
        assert image_info(pool / "a")["virtual-size"] in (SIZE, SIZE + MIB)
        assert sha(content(pool / "a")[:SIZE]) in (sha(CONTENT), sha(bytes(SIZE)))
    assert set(os.listdir(pool.path)) <= {"a", "bystander"}


@pytest.mark.parametrize("name", ON_ITS_OWN)
def test_domain_that_starts_meanwhile(hypervisor, pool, masters, name):
    """Either it can't start or the work is refused or over: never do both write."""
    kind = KINDS[name]
    fmt = kind.before["a"].format
    kind.lay_out(masters, pool.path)
    process = start_module(kind.module, {"uri": hypervisor.uri, "pool": pool.name, **kind.wish})
    wait_until(lambda: at_work_in(pool.path) or process.poll() is not None)
    time.sleep(0.02)
    started = None
    while started is None:
        ended = process.poll() is not None
        with contextlib.suppress(libvirt.libvirtError):  # refused by the lock
            started = hypervisor.conn.createXML(domain_xml("late", disk(pool / "a", fmt)))
        if ended:
            break
    result = finish_module(process)
    assert not result.get("failed") or result["reason"] == "volume_in_use", result
    kind.assert_nothing_lost(pool.path)
    if started is not None:
        assert (pool / "a").exists(), "deleted under a running domain"
        seen = started.blockInfo("vda")[0]
        assert seen == image_info(pool / "a", fmt)["virtual-size"], "its guest sees another size than there is"
        started.destroy()
    kind.assert_nothing_lost(pool.path)


def starts(hypervisor, path):
    return hypervisor.conn.createXML(domain_xml("late", disk(path)))


def is_plugged_in(hypervisor, path):
    running = hypervisor.conn.lookupByName("early")
    running.attachDevice(disk(path))
    return running


def starts_on_an_overlay(hypervisor, path):
    return hypervisor.conn.createXML(domain_xml("late", disk(path.with_name("top"))))


ATTACHES = {"starts": starts, "is plugged in": is_plugged_in, "starts on an overlay": starts_on_an_overlay}


@pytest.fixture
def compressed(hypervisor, pool, masters, domain):
    """``compressed(kind)``: its module at its beginning, a volume "a" that it is to compress, and "top" above that."""
    domain(name="early")  # without a disk

    def begin(kind):
        kind.lay_out(masters, pool.path)
        overlay(pool / "top", pool / "a")
        return start_module(kind.module, {"uri": hypervisor.uri, "pool": pool.name, **kind.wish})

    return begin


def gone_but_open(directory):
    """What domains have open of a directory though it has no name there any more."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            if (process / "comm").read_text().startswith("qemu-system"):
                found += [os.readlink(descriptor) for descriptor in (process / "fd").iterdir()]
    return [path for path in found if path.startswith(f"{directory}/") and path.endswith(" (deleted)")]


@pytest.mark.parametrize("how", ATTACHES)
@pytest.mark.parametrize("name", ["compress in place", "compress rewrite"])
def test_not_attached_during_compress(hypervisor, pool, compressed, name, how):
    """Stopped in the middle of it, for as long as it takes: no domain gets the volume, by itself or below an overlay."""
    kind, path = KINDS[name], pool / "a"
    against = "reading" if ATTACHES[how] is starts_on_an_overlay else "writing"
    for _attempt in range(20):  # the work may be over before it is met
        process = compressed(kind)
        while not is_locked(path, against=against) and process.poll() is None:
            time.sleep(0.001)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGSTOP)
        met = process.poll() is None and is_locked(path, against=against)
        if met:
            for _time in range(2):
                with pytest.raises(libvirt.libvirtError, match="lock"):
                    ATTACHES[how](hypervisor, path)
        go_on(process)
        assert finish_module(process).get("changed")
        if met:
            break
    assert met, "its work was never met"
    assert state_of(path, FULL) == sha(CONTENT)
    assert ATTACHES[how](hypervisor, path).blockInfo("vda")[0] == SIZE, "free again"


@pytest.mark.parametrize("early", [True, False], ids=["at once", "at work"])
@pytest.mark.parametrize("how", ATTACHES)
@pytest.mark.parametrize("name", ["compress in place", "compress rewrite"])
def test_attached_during_compress(hypervisor, pool, compressed, name, how, early):
    """It is tried again and again: the work is refused or over when it succeeds, and what the guest then writes stays."""
    kind, path = KINDS[name], pool / "a"
    process = compressed(kind)
    guest = first_success(lambda: ATTACHES[how](hypervisor, path), process, beside=None if early else pool.path)
    assert guest is not None, "free again"
    guest_writes(guest, 0x42)
    result = finish_module(process)
    assert not result.get("failed") or result["reason"] == "volume_in_use", result
    assert gone_but_open(pool.path) == [], "replaced under a running domain"
    guest.destroy()
    written = "top" if ATTACHES[how] is starts_on_an_overlay else "a"
    assert sha(content(pool / written)) == sha(b"\x42" * MIB + CONTENT[MIB:])
    assert written == "a" or state_of(path, FULL) == sha(CONTENT)
    sh("qemu-img", "check", "-q", "-f", "qcow2", path)
    assert sorted(os.listdir(pool.path)) == ["a", "bystander", "top"]


def test_pool_is_refreshed_all_the_time(hypervisor, at_once, pool):
    """Refreshes, and jobs that make libvirt refuse one: waited for, and the pool stays active."""
    make(pool / "base", "raw", 64 * MIB)
    pool.refresh()
    done = threading.Event()

    def disturb():
        other = libvirt.open(hypervisor.uri)
        mine = other.storagePoolLookupByName(pool.name)
        number = 0
        while not done.is_set():
            with contextlib.suppress(libvirt.libvirtError):
                mine.refresh()
            with contextlib.suppress(libvirt.libvirtError):
                number += 1
                mine.createXMLFrom(
                    f"<volume><name>job{number}</name><capacity>0</capacity><target><format type='raw'/></target></volume>",
                    mine.storageVolLookupByName("base")).delete()
        other.close()

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        results = at_once(*[("volume", {"name": f"a{number}", "size": "1M"}) for number in range(6)])
    finally:
        done.set()
        thread.join()
    assert all(result.get("changed") for result in results), results
    assert pool.virt.isActive()


def test_pool_is_stopped_in_between(hypervisor, make_pool, masters):
    """At any moment: done, or the reason is the pool; started again, all goes on."""
    pool = make_pool()
    kinds = ["create full", "clone offline", "resize qcow2", "compress rewrite", "delete with wipe"]
    reasons = set()
    for number in range(5):
        kind = KINDS[kinds[number % len(kinds)]]
        kind.lay_out(masters, pool.path)
        params = {"uri": hypervisor.uri, "pool": pool.name, **kind.wish}
        process = start_module(kind.module, params)
        time.sleep(0.15 + 0.1 * number)
        pool.virt.destroy()
        result = finish_module(process)
        assert not result.get("failed") or result["reason"] == "pool_inactive", result
        reasons.add(result.get("reason"))
        kind.assert_nothing_lost(pool.path)
        if not pool.virt.isActive():
            pool.virt.create()
        assert not run_module(kind.module, params).get("failed")
        kind.assert_done(pool.path)
    assert "pool_inactive" in reasons, "the moments are wrong"


def impatient(**limits):
    """A prefix that runs a module as it is, but with less patience in ``_locks`` and ``_image_locks``."""
    files = {"NAME_TIMEOUT": "_locks", "IMAGE_TIMEOUT": "_image_locks"}
    return altered("; ".join(f"{files[name]}.{name} = {value}" for name, value in limits.items()))


WHILE_THE_LOCK_IS_WAITED_FOR = """
real, path = _image_locks._try_permissions, sys.argv[1]
def after_the_other(*wanted, **kept):
    if os.path.exists(path):
        os.unlink(path)
    return real(*wanted, **kept)
_image_locks._try_permissions = after_the_other
"""


@pytest.mark.parametrize(("module", "params", "reason"), [
    ("volume", {"name": "top", "template": "base"}, "template_not_found"),
    ("volume", {"name": "top", "template": "base", "clone_mode": "full"}, "template_not_found"),
    ("volume_clone", {"source": "base", "name": "top"}, "volume_not_found"),
    ("volume_compress", {"name": "base"}, "volume_not_found"),
    ("volume", {"name": "base", "state": "absent"}, None),
], ids=["overlay", "full", "clone", "compress", "delete"])
def test_a_volume_that_goes_while_its_lock_is_waited_for(hypervisor, pool, module, params, reason):
    """Whoever deletes it holds it until it is gone; what can be locked then is a file without a name, which backs nothing."""
    make(pool / "base", size=MIB)
    process = start_module(module, {"uri": hypervisor.uri, "pool": pool.name, **params},
                           prefix=altered(WHILE_THE_LOCK_IS_WAITED_FOR, str(pool / "base")))
    result = finish_module(process)
    assert result.get("reason") == reason and not result.get("changed"), result
    assert os.listdir(pool.path) == []


def test_waiting_has_an_end_and_a_reason(hypervisor, pool):
    """The one in front stands still; the one behind gives up in time and says whom it waited for."""
    (pool / "a").write_bytes(bytes([7]) * (256 * MIB))
    common = {"uri": hypervisor.uri, "pool": pool.name, "name": "a"}
    front = start_module("volume", {**common, "state": "absent", "wipe": True})
    wait_until(lambda: not (pool / "a").exists())
    os.killpg(front.pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        behind = start_module("volume", {**common, "size": "1M"}, prefix=impatient(NAME_TIMEOUT=1))
        result = finish_module(behind)
        assert result.get("reason") == "locked" and "'a'" in result["msg"] and "1 s" in result["msg"], result
        assert 1 <= time.monotonic() - began < 5
        other = run_module("volume", {**common, "name": "b", "size": "1M"})
        assert other.get("changed"), "other volumes of the pool are free"
    finally:
        go_on(front)
    assert finish_module(front)["changed"]


def test_volumes_of_two_lists_in_opposite_order(at_once, pool):
    """Whoever names the same volumes in another order doesn't wait for ever."""
    names = [f"v{number}" for number in range(6)]
    results = at_once(*[("volume", {"name": names[::step], "size": "1M"}) for step in (1, -1) * 4])
    assert sum(len(result["actions"]) for result in results) == 6
    for name in names:
        sh("qemu-img", "compare", "-q", pool / name, blank(pool.path.parent / "blank", MIB))
