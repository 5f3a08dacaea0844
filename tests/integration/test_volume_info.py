# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""volume_info: what it finds, filters, and says about attachments, chains, dependents and snapshots."""

from __future__ import annotations

import datetime
import os
import threading
import time
import uuid

import pytest
from support.hypervisors import disk
from support.images import KIB, MIB, blank, encrypted, make, overlay, take_snapshot, used
from support.runs import environment, look_at, run_module


@pytest.fixture
def names(info):
    """The names volume_info finds."""
    return lambda **params: [v["name"] for v in info(**params)["volumes"]]


@pytest.fixture
def only(info):
    """The one volume that volume_info finds."""

    def get(**params):
        found = info(**params)["volumes"]
        assert len(found) == 1, found
        return found[0]

    return get


def test_all_pools_sorted(info, make_pool):
    second, first = make_pool("zz"), make_pool("aa")
    for pool, name in ((second, "b"), (second, "a"), (first, "c"), (first, "B")):
        blank(pool / name)
    assert [(v["pool"], v["name"]) for v in info()["volumes"]] == [("aa", "B"), ("aa", "c"), ("zz", "a"), ("zz", "b")]


def test_pool_facts(info, pool, small):
    facts = {p["name"]: p for p in info()["pools"]}[small.name]
    assert set(facts) == {"name", "uuid", "type", "path", "active", "capacity", "allocation", "available"}
    assert (facts["uuid"], facts["type"], facts["path"], facts["active"]) == (small.uuid, "dir", str(small.path), True)
    assert 30 * MIB < facts["available"] <= facts["capacity"] <= 48 * MIB


def test_pools_by_name(info, names, make_pool):
    pools = [make_pool() for _time in range(3)]
    for number, pool in enumerate(pools):
        blank(pool / f"v{number}")
    assert names(pool=[pools[0].name, pools[2].name]) == ["v0", "v2"]
    assert names(pool=f"{pools[0].name},{pools[1].name}") == ["v0", "v1"]
    assert [p["name"] for p in info(pool=[pools[1].name])["pools"]] == [pools[1].name]


def test_no_volumes_no_pools(info):
    result = info()
    assert result["volumes"] == [] and result["pools"] == []


def test_one_name_in_several_pools(info, make_pool):
    pools = [make_pool(name) for name in ("bb", "aa")]
    for pool in pools:
        blank(pool / "a")
    found = info(name="a")
    assert [(v["pool"], v["name"]) for v in found["volumes"]] == [("aa", "a"), ("bb", "a")]
    assert found["volumes"][0]["uuid"] != found["volumes"][1]["uuid"]
    assert [v["pool"] for v in info(name="a", pool=["bb", "aa", "bb"])["volumes"]] == ["aa", "bb"]
    assert [p["name"] for p in info(name="nothing")["pools"]] == ["aa", "bb"]


def test_name_and_pattern_go_together(names, pool):
    blank(pool / "web1"), blank(pool / "web2")
    assert names(name="web1", pattern="web*") == ["web1"]
    assert names(name="web1", pattern="db") == []


def test_exact_name(names, pool):
    for name in ("web", "web1", "Web"):
        blank(pool / name)
    assert names(name="web") == ["web"]
    assert names(name="we") == []
    assert names(name="nothing") == []


@pytest.mark.parametrize(("pattern", "found"), [
    ("web", ["Web3", "a-WEB", "web1", "web22"]),
    ("WEB1", ["web1"]),
    ("web?", ["web1"]),
    ("web*", ["web1", "web22"]),
    ("[!w]*", ["Web3", "a-WEB", "d.b"]),
    ("*", ["Web3", "a-WEB", "d.b", "web1", "web22"]),
    ("*[0-9]", ["Web3", "web1", "web22"]),
    ("nothing", []),
    ("no*hing", []),
    ("e", ["Web3", "a-WEB", "web1", "web22"]),
    (".", ["d.b"]),
])
def test_pattern(names, pool, pattern, found):
    for name in ("web1", "web22", "Web3", "a-WEB", "d.b"):
        blank(pool / name)
    assert names(pattern=pattern) == found


def test_status_and_format(names, pool, domain):
    blank(pool / "used"), blank(pool / "free"), blank(pool / "raw", fmt="raw")
    domain(disk(pool / "used"), running=False)
    assert names(status="attached") == ["used"]
    assert names(status="available") == ["free", "raw"]
    assert names(format="raw") == ["raw"]
    assert names(format="qcow2", status="available") == ["free"]
    assert names(format="qcow2", pattern="raw") == []


def test_every_field(only, pool):
    path = blank(pool / "a", 3 * MIB, options="cluster_size=4096,compat=0.10")
    assert only(name="a") == {
        "name": "a",
        "uuid": str(uuid.uuid5(uuid.UUID(pool.uuid), "a")),
        "key": str(path),
        "path": str(path),
        "pool": pool.name,
        "type": "file",
        "format": "qcow2",
        "capacity": 3 * MIB,
        "allocation": used(path),
        "status": "available",
        "attachments": [],
        "backing": None,
        "dependents": [],
        "snapshots": [],
        "encrypted": False,
        "cluster_size": 4 * KIB,
        "compat": "0.10",
    }


def test_sparse_raw(only, pool):
    blank(pool / "a", 64 * MIB, "raw")
    found = only(name="a")
    assert (found["format"], found["capacity"], found["allocation"]) == ("raw", 64 * MIB, used(pool / "a"))
    assert found["allocation"] < MIB


def test_other_formats_are_listed(info, pool):
    blank(pool / "m.vmdk", fmt="vmdk"), blank(pool / "v.vdi", fmt="vdi")
    assert {v["name"]: v["format"] for v in info()["volumes"]} == {"m.vmdk": "vmdk", "v.vdi": "vdi"}


def test_encrypted(only, pool):
    encrypted(pool / "a")
    assert only(name="a")["encrypted"] is True


def test_luks_that_libvirt_has_as_raw(only, info, pool, domain):
    """Its capacity is what its guest has, without the header, as libvirt says too; unless a domain says that it is no LUKS."""
    (pool / "a").write_bytes((b"LUKS\xba\xbe\0\1aes".ljust(104, b"\0") + (8).to_bytes(4, "big")).ljust(MIB, b"\0"))
    pool.virt.refresh()
    volume = only(name="a")
    assert "<encryption format='luks'>" in pool.virt.storageVolLookupByName("a").XMLDesc()
    assert (volume["encrypted"], volume["format"], volume["capacity"]) == (True, "luks", MIB - 4096)
    assert pool.virt.storageVolLookupByName("a").info()[1] == MIB - 4096
    assert info(pool=[pool.name])["volumes"][0]["capacity"] == MIB - 4096
    domain(disk(pool / "a", "raw"), running=False)
    volume = only(name="a")
    assert (volume["encrypted"], volume["format"], volume["capacity"]) == (True, "raw", MIB)


@pytest.mark.parametrize(("wish", "found"), [
    ({"running": True}, {(True, "running"), (False, "running")}),
    ({"running": False}, {(False, "shutoff")}),
])
def test_attachment_fields(only, pool, domain, wish, found):
    blank(pool / "a")
    virt = domain(disk(pool / "a", target="vdb"), name="vm é & co", **wish)
    seen = only(name="a")
    assert seen["status"] == "attached"
    for one in seen["attachments"]:
        assert set(one) == {"domain", "domain_uuid", "state", "target", "bus", "live", "readonly", "via"}
        assert (one["domain"], one["domain_uuid"], one["target"], one["bus"], one["readonly"], one["via"]) == (
            "vm é & co", virt.UUIDString(), "vdb", "virtio", False, "disk")
    assert {(a["live"], a["state"]) for a in seen["attachments"]} <= found
    assert any(a["live"] for a in seen["attachments"]) == wish["running"]


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize("source", [
    "file", "volume", "block", "link", "linked directory", "hard link", "dots", "linked pool", "block device by a link",
])
def test_attached_by_whatever_name(only, make_pool, pool, domain, outside, loop_device, source, running):
    """However a domain's disk is written, it is the one volume, used once and by that disk."""
    on_device = source.startswith("block")
    if on_device:
        (pool / "a").symlink_to(loop_device)
    else:
        blank(pool / "a", fmt="raw")
    (outside / "dir").symlink_to(pool.path)
    (outside / "link").symlink_to(loop_device if on_device else pool / "a")
    if source == "hard link":
        os.link(pool / "a", outside / "hard")
    pool.refresh()
    written = {
        "file": pool / "a", "volume": (pool.name, "a"), "block": loop_device, "link": outside / "link",
        "linked directory": outside / "dir" / "a", "hard link": outside / "hard", "block device by a link": outside / "link",
        "dots": f"{outside}/../{pool.path.name}//./a",
        "linked pool": (make_pool("twin", outside / "dir").refresh().name, "a") if source == "linked pool" else "",
    }[source]
    virt = domain(disk(written, "raw", "sdb", block=on_device), name="vm", running=running)
    assert only(name="a", pool=[pool.name])["attachments"] == [{
        "domain": "vm", "domain_uuid": virt.UUIDString(), "state": "running" if running else "shutoff", "target": "sdb", "bus": "scsi",
        "live": running, "readonly": False, "via": "disk"}]


def test_attached_to_several_domains(only, pool, domain):
    blank(pool / "iso", fmt="raw")
    for name in ("one", "two", "three"):
        domain(disk(pool / "iso", "raw", "hda", device="cdrom", readonly=True), name=name, running=name != "two")
    seen = only(name="iso")["attachments"]
    assert {(a["domain"], a["readonly"]) for a in seen} == {("one", True), ("two", True), ("three", True)}
    assert {a["domain"] for a in seen if a["live"]} == {"one", "three"}


def test_empty_cdrom_and_network_disks_are_no_trouble(info, pool, domain):
    blank(pool / "a")
    domain(
        "<disk type='file' device='cdrom'><target dev='hda' bus='ide'/></disk>",
        "<disk type='network' device='disk'><driver name='qemu' type='raw'/>"
        "<source protocol='nbd' name='x'><host name='127.0.0.1' port='1'/></source>"
        "<target dev='vdb' bus='virtio'/></disk>",
        disk(pool / "not-there-yet", target="vdc"),
        disk(("no-such-pool", "v"), target="vdd"),
        running=False,
    )
    assert info()["volumes"][0]["status"] == "available"


def test_chain_from_top_to_base(only, make_pool, pool):
    images = make_pool()
    base = make(images / "base", "raw", MIB)
    middle = overlay(images / "middle", base, "raw")
    overlay(pool / "top", middle)
    assert only(name="top")["backing"] == {
        "path": str(middle),
        "format": "qcow2",
        "name": "middle",
        "pool": images.name,
        "chain": [str(middle), str(base)],
    }
    assert only(name="middle")["backing"] == {
        "path": str(base), "format": "raw", "name": "base", "pool": images.name, "chain": [str(base)]}


def test_backing_by_relative_name(only, pool):
    blank(pool / "base")
    overlay(pool / "top", "base")
    assert only(name="top")["backing"]["path"] == str(pool / "base")
    assert [d["name"] for d in only(name="base")["dependents"]] == ["top"]


def test_dependents_direct_and_indirect_over_pools(only, make_pool, pool):
    other = make_pool()
    overlay(other / "two", overlay(pool / "one", blank(pool / "base")))
    overlay(pool / "beside", pool / "base")
    found = [(d["pool"], d["name"], d["path"]) for d in only(name="base", pool=[pool.name])["dependents"]]
    assert sorted(found) == sorted(
        (p.name, n, str(p / n)) for p, n in ((pool, "one"), (pool, "beside"), (other, "two"))
    )
    assert [d["name"] for d in only(name="one")["dependents"]] == ["two"]


def test_used_as_backing_of_a_running_domain(only, pool, domain):
    overlay(pool / "top", blank(pool / "base"))
    domain(disk(pool / "top"), name="vm")
    base, top = only(name="base"), only(name="top")
    assert base["status"] == top["status"] == "attached"
    assert {a["via"] for a in base["attachments"]} == {"backing"} and {a["via"] for a in top["attachments"]} == {"disk"}


def test_snapshots(only, pool):
    path = blank(pool / "a")
    earliest = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
    for name in ("first", "zwei ö"):
        take_snapshot(path, name)
    found = only(name="a")["snapshots"]
    assert [(s["name"], s["id"], s["vm_state_size"]) for s in found] == [("first", "1", 0), ("zwei ö", "2", 0)]
    for one in found:
        date = datetime.datetime.fromisoformat(one["date"].replace("Z", "+00:00"))
        assert date.utcoffset() == datetime.timedelta(0)
        assert earliest <= date <= earliest + datetime.timedelta(seconds=30)


def test_dates_are_utc_wherever_the_host_is(hypervisor, only, pool):
    take_snapshot(blank(pool / "a"), "s")
    far_away = run_module("volume_info", {"uri": hypervisor.uri}, env=environment(TZ="Asia/Tokyo"))
    assert far_away["volumes"][0]["snapshots"] == only(name="a")["snapshots"]


def test_snapshot_with_vm_state_of_a_running_domain(only, pool, domain):
    blank(pool / "a", 8 * MIB)
    virt = domain(disk(pool / "a"))
    virt.snapshotCreateXML("<domainsnapshot><name>live</name></domainsnapshot>")
    found = only(name="a")["snapshots"]
    assert found[0]["name"] == "live" and found[0]["vm_state_size"] > 0


def test_open_read_write_by_a_domain(only, pool, domain):
    """Describing must neither need nor take the image lock."""
    take_snapshot(blank(pool / "a"), "s")
    virt = domain(disk(pool / "a"))
    for _time in range(3):
        assert only(name="a")["capacity"] == MIB
    assert virt.isActive() and virt.blockInfo("vda")[0] == MIB


def test_unknown_pool(refused, info):
    assert "nowhere" in refused("pool_not_found", fails=info, pool=["nowhere"])["msg"]


def test_one_unknown_pool_of_several(refused, info, pool):
    refused("pool_not_found", fails=info, pool=[pool.name, "nowhere"])


def test_inactive_pool_by_name(refused, info, make_pool):
    idle = make_pool(active=False)
    assert idle.name in refused("pool_inactive", fails=info, pool=[idle.name])["msg"]


def test_inactive_pool_by_default_is_skipped_with_a_warning(info, names, make_pool, pool):
    idle = make_pool(active=False)
    blank(pool / "a")
    result = info()
    assert [v["name"] for v in result["volumes"]] == ["a"]
    assert any(idle.name in w for w in result["warnings"])
    assert not idle.virt.isActive()


def test_a_pool_that_was_stopped(refused, info, make_pool):
    gone = make_pool()
    gone.stop()
    refused("pool_inactive", fails=info, pool=[gone.name])


def test_volumes_made_and_removed_behind_libvirts_back(names, pool):
    blank(pool / "a"), blank(pool / "b")
    assert names() == ["a", "b"]
    (pool / "a").unlink()
    blank(pool / "c")
    assert names() == ["b", "c"]


def test_volumes_that_vanish_meanwhile_are_skipped(info, pool):
    image = blank(pool / "stays").read_bytes()
    running = True

    def flicker():
        while running:
            for number in range(40):
                (pool / f"x{number}").write_bytes(image)
            for number in range(40):
                (pool / f"x{number}").unlink()
            time.sleep(0.001)

    thread = threading.Thread(target=flicker)
    thread.start()
    try:
        for _time in range(4):
            result = info(pool=[pool.name])
            assert not result.get("failed"), result
            assert "stays" in [v["name"] for v in result["volumes"]]
    finally:
        running = False
        thread.join()


def test_nothing_is_touched(info, pool, domain):
    overlay(pool / "top", blank(pool / "base"))
    take_snapshot(pool / "top", "s")
    blank(pool / "raw", fmt="raw")
    before = look_at([pool.path])
    real, predicted = info(), info(check=True)
    assert look_at([pool.path]) == before
    assert real["volumes"] == predicted["volumes"]


def test_hidden_leftovers_of_a_killed_run_are_not_volumes(names, pool):
    blank(pool / "a")
    hidden = blank(pool / ".hypervisor.storage-x")
    found = names()
    hidden.unlink()
    assert found == ["a"]
