# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""New volumes from snapshots: internal ones, offline and under a running domain, and external frozen layers."""

from __future__ import annotations

import libvirt
import pytest
from support.hypervisors import disk, guest_writes, snapshot_outside
from support.images import MIB, digest, file_sha, make, overlay, sh, take_snapshot, wait_until, write
from support.images import info as image_info
from support.runs import run_play


@pytest.fixture
def source(pool):
    """A qcow2 that changed after its snapshot ``before``: its path, and the digest at the snapshot."""
    path = make(pool / "source")
    frozen = digest(path)
    take_snapshot(path, "before")
    write(path, 0x66)
    assert digest(path) != frozen
    return path, frozen


@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
def test_internal_snapshot_of_a_volume_nobody_uses(created, pool, source, fmt):
    path, frozen = source
    bytes_before = file_sha(path)
    made = created(name="a", snapshot="before", snapshot_volume="source", format=fmt)
    assert (made["format"], made["capacity"], made["backing"], made["snapshots"]) == (fmt, 4 * MIB, None, [])
    assert digest(pool / "a", fmt) == frozen
    assert file_sha(path) == bytes_before, "the source is never modified"


def test_the_new_volume_lives_without_its_source(created, pool, source):
    path, frozen = source
    created(name="a", snapshot="before", snapshot_volume="source")
    path.unlink()
    assert digest(pool / "a") == frozen


def test_from_another_pool(created, make_pool, pool):
    other = make_pool()
    path = make(other / "source")
    take_snapshot(path, "s")
    created(name="a", snapshot="s", snapshot_volume="source", snapshot_pool=other.name)
    assert digest(pool / "a") == digest(path)


def test_internal_snapshot_taken_offline_while_a_domain_runs_now(created, pool, source, domain):
    path, frozen = source
    virt = domain(disk(path))
    guest_writes(virt, 0x21, offset=2 * MIB)
    created(name="a", snapshot="before", snapshot_volume="source")
    assert digest(pool / "a") == frozen
    assert virt.isActive()


def test_internal_snapshot_taken_while_the_domain_runs(created, pool, domain):
    path = make(pool / "source")
    frozen = digest(path)
    virt = domain(disk(path))
    virt.snapshotCreateXML("<domainsnapshot><name>running</name></domainsnapshot>")
    guest_writes(virt, 0x21)
    created(name="a", snapshot="running", snapshot_volume="source")
    assert digest(pool / "a") == frozen


def test_capacity_is_that_of_the_snapshot(created, refused, pool):
    path = make(pool / "source")
    frozen = digest(path)
    take_snapshot(path, "small")
    sh("qemu-img", "resize", "-q", "-f", "qcow2", path, "8M")
    assert created(name="a", snapshot="small", snapshot_volume="source")["capacity"] == 4 * MIB
    assert digest(pool / "a") == frozen
    assert created(name="b", snapshot="small", snapshot_volume="source", size="6M")["capacity"] == 6 * MIB
    assert digest(pool / "b", length=4 * MIB) == frozen
    refused("shrink_refused", name="c", snapshot="small", snapshot_volume="source", size="2M")


def test_each_snapshot_has_its_own_content(created, pool):
    path = make(pool / "source")
    contents = {}
    for number in (1, 2, 3):
        write(path, number)
        take_snapshot(path, f"s{number}")
        contents[f"s{number}"] = digest(path)
    write(path, 9)
    for name, expected in contents.items():
        created(name=f"from-{name}", snapshot=name, snapshot_volume="source")
        assert digest(pool / f"from-{name}") == expected


def test_a_name_that_looks_like_another_snapshots_id(created, pool):
    path = make(pool / "source")
    take_snapshot(path, "first")
    assert image_info(path)["snapshots"][0]["id"] == "1"
    write(path, 0x42)
    take_snapshot(path, "1")
    wanted = digest(path)
    write(path, 0x43)
    created(name="a", snapshot="1", snapshot_volume="source")
    assert digest(pool / "a") == wanted


def test_chosen_by_its_id(created, pool, source):
    _path, frozen = source
    created(name="a", snapshot="1", snapshot_volume="source")
    assert digest(pool / "a") == frozen


@pytest.mark.parametrize("name", ["a,b", "snapshot.name=x", "with space", "日本", "-l", "it's \"1\""])
def test_nasty_snapshot_names(volume, pool, name):
    path = make(pool / "source", size=MIB)
    take_snapshot(path, name)
    frozen = digest(path)
    write(path, 0x42)
    result = volume(name="a", snapshot=name, snapshot_volume="source")
    assert result["changed"], result
    assert digest(pool / "a") == frozen


def test_snapshot_of_a_copy_on_write_volume(created, pool):
    make(pool / "base")
    path = overlay(pool / "source", pool / "base")
    write(path, 0x10)
    frozen = digest(path)
    take_snapshot(path, "s")
    write(path, 0x20)
    assert created(name="a", snapshot="s", snapshot_volume="source")["backing"] is None
    assert digest(pool / "a") == frozen


@pytest.mark.parametrize("asked_of", ["source", "layer"])
def test_external_snapshot_gives_the_frozen_layer(created, pool, domain, asked_of):
    path = make(pool / "source")
    frozen = digest(path)
    virt = domain(disk(path))
    snapshot_outside(virt, "ext", pool / "layer")
    guest_writes(virt, 0x21)
    assert digest(pool / "layer") != frozen
    bytes_before = file_sha(path)
    made = created(name="a", snapshot="ext", snapshot_volume=asked_of)
    assert made["backing"] is None and digest(pool / "a") == frozen
    assert file_sha(path) == bytes_before and virt.isActive()


@pytest.mark.parametrize("kind", ["by pool and volume", "taken while it was off", "never started since", "with another disk"])
def test_external_snapshot_however_it_was_taken(created, pool, domain, kind):
    path = make(pool / "source")
    make(pool / "other", seed="other")
    pool.refresh()
    frozen = digest(path)
    disks = [disk((pool.name, "source") if kind == "by pool and volume" else path)]
    disks += [disk(pool / "other", target="vdb")] if kind == "with another disk" else []
    virt = domain(*disks, running=kind in ("by pool and volume", "with another disk"))
    snapshot_outside(virt, "ext", pool / "layer")
    if kind == "taken while it was off":
        virt.create()
    if kind != "never started since":
        guest_writes(virt, 0x21)
        assert digest(pool / "layer") != frozen
    for name, asked_of in (("a", "source"), ("b", "layer")):
        created(name=name, snapshot="ext", snapshot_volume=asked_of)
        assert digest(pool / name) == frozen


def test_external_snapshot_of_another_disk_or_domain(refused, pool, domain):
    """The name alone is not enough: the volume must be the one that the snapshot froze."""
    make(pool / "source"), make(pool / "other"), make(pool / "third")
    virt = domain(disk(pool / "source"), disk(pool / "other", target="vdb"))
    domain(disk(pool / "third"))
    snapshot_outside(virt, "ext", pool / "layer")  # freezes vda alone, and names the next layer of vdb itself
    refused("snapshot_not_found", name="a", snapshot="ext", snapshot_volume="third")


@pytest.mark.parametrize("running", [True, False])
def test_merged_layer_is_no_snapshot_any_more(refused, pool, domain, running):
    """After a commit the layer holds what the guest wrote since, though the overlay's file is still there."""
    path = make(pool / "source")
    virt = domain(disk(path))
    snapshot_outside(virt, "ext", pool / "layer")
    guest_writes(virt, 0x21)
    virt.blockCommit("vda", None, None, 0, libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)
    wait_until(lambda: (info := virt.blockJobInfo("vda", 0)) and info["cur"] == info["end"])
    virt.blockJobAbort("vda", libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
    if not running:
        virt.destroy()
    assert "merged" in refused("snapshot_not_found", name="a", snapshot="ext", snapshot_volume="source")["msg"]


def test_the_right_layer_of_two_external_snapshots(created, pool, domain):
    path = make(pool / "source")
    virt = domain(disk(path))
    first = digest(path)
    snapshot_outside(virt, "one", pool / "layer1")
    guest_writes(virt, 0x21)
    second = digest(pool / "layer1")
    snapshot_outside(virt, "two", pool / "layer2")
    guest_writes(virt, 0x22)
    created(name="a", snapshot="one", snapshot_volume="layer2")
    created(name="b", snapshot="two", snapshot_volume="layer2")
    assert (digest(pool / "a"), digest(pool / "b")) == (first, second)


def test_layer_that_a_deletion_merged_half(created, refused, pool, domain):
    """The deletion of the second snapshot never ended: libvirt notes at the first that what came on top of that is written to."""
    path = make(pool / "source")
    virt = domain(disk(path))
    first = digest(path)
    snapshot_outside(virt, "one", pool / "layer1")
    snapshot_outside(virt, "two", pool / "layer2")
    known = virt.snapshotLookupByName("one").getXMLDesc(libvirt.VIR_DOMAIN_SNAPSHOT_XML_SECURE)
    noted = known.replace("</disk>", "<snapshotDeleteInProgress/></disk>", 1)
    virt.snapshotCreateXML(noted, libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE)
    if "snapshotDeleteInProgress" not in virt.snapshotLookupByName("one").getXMLDesc(0):
        pytest.skip("this libvirt deletes no external snapshots")
    assert "did not end" in refused("snapshot_not_found", name="a", snapshot="two", snapshot_volume="source")["msg"]
    created(name="b", snapshot="one", snapshot_volume="layer2")
    assert digest(pool / "b") == first


@pytest.mark.parametrize("running", [True, False])
def test_snapshot_that_is_not_there(refused, source, pool, domain, running):
    if running:
        domain(disk(pool / "source"))
    result = refused("snapshot_not_found", name="a", snapshot="nope", snapshot_volume="source")
    assert "before" in result["msg"], "the message names the snapshots there are"


def test_volume_of_the_snapshot_is_not_there(refused):
    refused("volume_not_found", name="a", snapshot="s", snapshot_volume="nowhere")


def test_pool_of_the_snapshot_is_not_there(refused, source):
    refused("pool_not_found", name="a", snapshot="before", snapshot_volume="source", snapshot_pool="nowhere")


@pytest.mark.parametrize("wish", [
    {"snapshot": "before"},
    {"snapshot_volume": "source"},
    {"snapshot": "", "snapshot_volume": "source"},
    {"snapshot": "before", "snapshot_volume": "source", "template": "source"},
])
def test_options_that_do_not_go_together(refused, source, wish):
    refused("invalid_option", name="a", **wish)


def test_existing_volume_is_unchanged(volume, pool, source):
    volume(name="a", snapshot="before", snapshot_volume="source")
    before = file_sha(pool / "a")
    assert not volume(name="a", snapshot="before", snapshot_volume="source")["changed"]
    assert file_sha(pool / "a") == before


def test_restored_copy_that_does_not_fit(refused, make_pool, small):
    images = make_pool()
    path = make(images / "source", size=150 * MIB)
    take_snapshot(path, "s")
    refused(
        "insufficient_space",
        name="a",
        snapshot="s",
        snapshot_volume="source",
        snapshot_pool=images.name,
        pool=small.name,
    )


def test_role_restores_what_an_external_snapshot_froze(hypervisor, pool, domain):
    """While the domain goes on in the layer above; a name that is no snapshot's is answered with those there are."""
    path = make(pool / "web1")
    running, frozen = domain(disk(path)), digest(path)
    snapshot_outside(running, "before-update", pool / "web1.layer")
    guest_writes(running, 0x42)
    common = {"uri": hypervisor.uri, "pool": pool.name, "volume": "web1", "name": "restored"}

    def restore(snapshot):
        wish = {f"restore_from_snapshot_{name}": value for name, value in {**common, "snapshot": snapshot}.items()}
        return [{"block": [{"ansible.builtin.include_role": {"name": "hypervisor.storage.restore_from_snapshot"}, "vars": wish}],
                 "rescue": [{"ansible.builtin.meta": "noop"}]},
                {"ansible.builtin.debug": {"var": "restore_from_snapshot_result"}, "register": f"of_{len(snapshot)}"}]

    told = run_play(restore("wrong") + restore("before-update"))
    refused, result = (told[name]["restore_from_snapshot_result"] for name in ("of_5", "of_13"))
    assert refused["reason"] == "snapshot_not_found" and "before-update" in refused["msg"] + str(refused["snapshots"]), refused
    assert result["restored"] and not result.get("failed") and result["volume"]["name"] == "restored", result
    assert digest(pool / "restored") == frozen and image_info(pool / "restored").get("backing-filename") is None
    assert digest(pool / "web1.layer") != frozen, "the domain's disk is as it was"


def test_role_leaves_what_has_the_name_as_it_is(hypervisor, pool):
    """It is not made as large as was wished for, and nothing is told as restored."""
    make(pool / "web1")
    take_snapshot(pool / "web1", "before-update")
    make(pool / "other")
    before = file_sha(pool / "other")
    wish = {"uri": hypervisor.uri, "pool": pool.name, "volume": "web1", "snapshot": "before-update", "name": "other", "size": "1G"}
    told = run_play([
        {"ansible.builtin.include_role": {"name": "hypervisor.storage.restore_from_snapshot"},
         "vars": {f"restore_from_snapshot_{name}": value for name, value in wish.items()}},
        {"ansible.builtin.debug": {"var": "restore_from_snapshot_result"}, "register": "told"}])
    result = told["told"]["restore_from_snapshot_result"]
    assert (result["changed"], result["restored"]) == (False, False), result
    assert file_sha(pool / "other") == before
