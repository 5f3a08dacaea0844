# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Two hypervisors on one directory: what one has open, the other leaves alone, though its libvirt knows nothing of it."""

from __future__ import annotations

import os

import pytest
from support.hypervisors import Hypervisor, Pool, disk, domain_xml, guest_writes
from support.images import MIB, digest, make, overlay, take_snapshot
from support.runs import look_at, run_module


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


def test_our_work_keeps_the_other_host_out(here, other, shared):
    """A volume made here is seen there after its pool's refresh, and starts there."""
    assert here("volume", name="a", size="4M")["changed"]
    there = other.conn.storagePoolLookupByName(shared.name)
    there.refresh()
    assert there.storageVolLookupByName("a").info()[1] == 4 * MIB
    other.conn.createXML(domain_xml("there", disk((shared.name, "a")))).destroy()
    assert sorted(os.listdir(shared.path)) == ["a"]
