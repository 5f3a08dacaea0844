# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Deleting: what is deleted, and everything that must never be."""

from __future__ import annotations

import os
from pathlib import Path

import libvirt
import pytest
from support.hypervisors import disk, domain_xml, snapshot_outside
from support.images import MIB, exported_by_nbd, file_sha, held_by_qemu_io, make, noise, overlay, sh, take_snapshot


@pytest.fixture
def victim(pool):
    return make(pool / "a", size=MIB)


@pytest.fixture
def guarded(refused, pool):
    """The delete is refused as in use; what the result says of the attachments."""

    def check(name: str = "a", **params):
        result = refused("volume_in_use", name=name, state="absent", **params)
        assert (pool / name).exists()
        return result["attachments"]

    return check


@pytest.mark.parametrize("wipe", [False, True])
def test_deleted(checked, pool, victim, wipe):
    pool.refresh()
    result = checked(name="a", state="absent", **({"wipe": True} if wipe else {}))
    assert result["changed"] and result["volume"] is None and result["volumes"] == [] and not victim.exists()
    assert pool.virt.listVolumes() == [], "libvirt was told"
    assert ("wipe" in result["actions"][0]) == wipe, "only where it is asked for"


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_deleted_right_after_it_was_made(volume, checked, pool, fmt):
    volume(name="a", size="1M", format=fmt)
    assert checked(name="a", state="absent")["changed"] and not (pool / "a").exists()


def test_missing_is_fine(checked):
    result = checked(name="a", state="absent")
    assert not result["changed"] and result["volume"] is None and result["volumes"] == []


def test_list_with_missing_ones(checked, pool):
    make(pool / "a", size=MIB), make(pool / "c", size=MIB), make(pool / "d", size=MIB)
    assert checked(name=["a", "b", "c"], state="absent")["changed"]
    assert [p.name for p in pool.path.iterdir()] == ["d"]


def test_volume_libvirt_has_not_seen_yet_and_one_it_still_remembers(checked, pool, victim):
    assert checked(name="a", state="absent")["changed"] and not victim.exists()
    pool.refresh()
    make(pool / "b", size=MIB)
    pool.refresh()
    (pool / "b").unlink()
    assert not checked(name="b", state="absent")["changed"]


def test_one_refused_of_a_list_keeps_all(refused, pool, victim, domain):
    make(pool / "b", size=MIB)
    domain(disk(pool / "b"))
    refused("volume_in_use", name=["a", "b"], state="absent")


def test_attached_to_a_running_domain(guarded, victim, domain):
    virt = domain(disk(victim), name="runs")
    found = guarded()
    assert {(a["domain"], a["domain_uuid"], a["target"], a["bus"], a["via"]) for a in found} == {
        ("runs", virt.UUIDString(), "vda", "virtio", "disk")}
    assert any(a["live"] and a["state"] == "running" for a in found)


def test_attached_to_a_paused_domain(guarded, victim, domain):
    domain(disk(victim)).suspend()
    assert "paused" in {a["state"] for a in guarded()}


def test_attached_only_in_a_definition(guarded, victim, domain):
    domain(disk(victim), running=False)
    assert [(a["live"], a["state"]) for a in guarded()] == [(False, "shutoff")]


def test_attached_to_a_transient_domain(guarded, victim, domain):
    domain(disk(victim), transient=True)
    assert [a["live"] for a in guarded()] == [True]


def test_unplugged_from_the_definition_but_still_live(guarded, pool, victim, domain):
    virt = domain(disk(make(pool / "other")), disk(victim, target="vdb"))
    virt.detachDeviceFlags(disk(victim, target="vdb"), libvirt.VIR_DOMAIN_AFFECT_CONFIG)
    assert [(a["live"], a["target"]) for a in guarded()] == [(True, "vdb")]


def test_plugged_into_the_definition_of_a_running_domain(guarded, pool, victim, domain):
    virt = domain(disk(make(pool / "other")))
    virt.attachDeviceFlags(disk(victim, target="vdc"), libvirt.VIR_DOMAIN_AFFECT_CONFIG)
    assert [(a["live"], a["target"]) for a in guarded()] == [(False, "vdc")]


def test_attached_read_only_as_cdrom(guarded, victim, domain):
    domain(disk(victim, target="hda", device="cdrom", readonly=True))
    assert all(a["readonly"] and a["bus"] == "ide" for a in guarded())


def test_attached_as_pool_and_volume(guarded, pool, victim, domain):
    pool.refresh()
    domain(disk((pool.name, "a")))
    assert guarded()


def test_attached_as_pool_and_volume_in_a_definition(guarded, pool, victim, domain):
    domain(disk((pool.name, "a")), running=False)
    assert guarded()


@pytest.mark.parametrize("running", [True, False])
def test_attached_through_a_symbolic_link(guarded, pool, victim, outside, domain, running):
    (outside / "link").symlink_to(victim)
    domain(disk(outside / "link"), running=running)
    assert guarded()


@pytest.mark.parametrize("running", [True, False])
def test_attached_through_a_linked_directory(guarded, pool, victim, outside, domain, running):
    (outside / "dir").symlink_to(pool.path)
    domain(disk(outside / "dir" / "a"), running=running)
    assert guarded()


def test_attached_through_a_hard_link(guarded, victim, outside, domain):
    os.link(victim, outside / "hard")
    domain(disk(outside / "hard"), running=False)
    assert guarded()


def test_attached_by_a_path_with_dots(guarded, pool, victim, domain):
    domain(disk(pool.path / "." / ".." / pool.path.name / "a"), running=False)
    assert guarded()


def test_attached_through_a_second_pool_of_the_same_directory(guarded, make_pool, pool, victim, outside, domain):
    (outside / "dir").symlink_to(pool.path)
    twin = make_pool("twin", outside / "dir").refresh()
    domain(disk((twin.name, "a")), running=False)
    assert guarded()


def test_in_the_backing_chain_of_a_running_domain(guarded, pool, victim, outside, domain):
    domain(disk(overlay(outside / "top", overlay(outside / "middle", victim))))
    found = guarded()
    assert {a["via"] for a in found} == {"backing"} and any(a["live"] for a in found)


def test_in_the_backing_chain_of_a_defined_domain(guarded, pool, victim, outside, domain):
    domain(disk(overlay(outside / "top", victim)), running=False)
    assert {a["via"] for a in guarded()} == {"backing"}


def test_below_an_external_snapshot(guarded, pool, victim, outside, domain):
    virt = domain(disk(victim))
    snapshot_outside(virt, "s", outside / "layer")
    assert guarded()


def test_layer_that_only_a_snapshots_metadata_names(guarded, pool, victim, outside, domain):
    """The domain was pointed elsewhere, but its snapshot would still need the layer."""
    virt = domain(disk(victim))
    snapshot_outside(virt, "s", outside / "layer")
    virt.destroy()
    virt.updateDeviceFlags(disk(make(outside / "elsewhere")), libvirt.VIR_DOMAIN_AFFECT_CONFIG)
    assert guarded()


def test_base_of_others(refused, pool, victim):
    overlay(pool / "top", victim)
    result = refused("volume_has_dependents", name="a", state="absent")
    assert result["dependents"] == [{"pool": pool.name, "name": "top", "path": str(pool / "top")}]


def test_base_of_others_in_another_pool_and_further_up(refused, make_pool, pool, victim):
    other = make_pool()
    overlay(other / "top", overlay(other / "middle", victim))
    result = refused("volume_has_dependents", name="a", state="absent")
    assert {(d["pool"], d["name"]) for d in result["dependents"]} == {(other.name, "middle"), (other.name, "top")}


def test_raw_base_of_others(refused, pool):
    overlay(pool / "top", make(pool / "a", "raw", MIB), "raw")
    refused("volume_has_dependents", name="a", state="absent")


def test_base_by_relative_name_and_through_a_link(refused, make_pool, pool, victim, outside):
    overlay(pool / "relative", "a")
    refused("volume_has_dependents", name="a", state="absent")
    (pool / "relative").unlink()
    (outside / "dir").symlink_to(pool.path)
    overlay(make_pool() / "linked", outside / "dir" / "a")
    refused("volume_has_dependents", name="a", state="absent")


def test_base_and_overlays_deleted_together(checked, pool, victim):
    """Nothing outside the wish needs the base: the order is ours to find, or the wish is refused as a whole."""
    overlay(pool / "top", victim)
    result = checked(name=["top", "a"], state="absent")
    assert result["changed"] and list(pool.path.iterdir()) == []


def test_base_before_its_overlays_is_refused_as_a_whole(refused, pool, victim):
    overlay(pool / "top", victim)
    result = refused("volume_has_dependents", name=["a", "top"], state="absent")
    assert [d["name"] for d in result["dependents"]] == ["top"]


def test_failure_half_way_names_what_is_gone(volume, pool):
    """The second can't be deleted: its file system keeps it."""
    make(pool / "a"), make(pool / "b"), make(pool / "c")
    pool.refresh()
    sh("chattr", "+i", pool / "b")
    try:
        result = volume(name=["a", "b", "c"], state="absent")
    finally:
        sh("chattr", "-i", pool / "b")
    assert result.get("failed") and result["reason"] == "libvirt_error" and "'b'" in result["msg"], result
    assert result["actions"] == [f"delete volume 'a' of pool '{pool.name}'"]
    assert (result["done"], result["not_done"], result["changed"]) == (["a"], ["b", "c"], True)
    assert sorted(os.listdir(pool.path)) == sorted(pool.virt.listVolumes()) == ["b", "c"]


def test_overlay_first_then_its_base(volume, checked, pool, victim):
    overlay(pool / "top", victim)
    volume(name="top", state="absent")
    assert victim.exists() and checked(name="a", state="absent")["changed"]


@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
def test_open_in_a_bare_qemu(volume, pool, fmt):
    path = make(pool / "a", fmt, MIB)
    before = file_sha(path)
    with held_by_qemu_io(path, fmt):
        for check in (True, False):
            result = volume(name="a", state="absent", check=check)
            assert result["failed"] and result["reason"] == "volume_in_use", result
    assert file_sha(path) == before
    assert volume(name="a", state="absent")["changed"]


def test_served_by_qemu_nbd(volume, victim):
    with exported_by_nbd(victim):
        for check in (True, False):
            result = volume(name="a", state="absent", check=check)
            assert result["failed"] and result["reason"] == "volume_in_use", result
    assert victim.exists()


def test_block_device_in_use(guarded, pool, loop_device, domain):
    (pool / "a").symlink_to(loop_device)
    pool.refresh()
    domain(disk(loop_device, "raw", block=True))
    assert guarded()


def test_domain_gone_then_deleted(volume, checked, victim, domain):
    virt = domain(disk(victim), transient=True)
    assert volume(name="a", state="absent")["failed"]
    virt.destroy()
    assert checked(name="a", state="absent")["changed"]


def test_volume_with_internal_snapshots_is_deleted(checked, victim):
    take_snapshot(victim, "s")
    assert checked(name="a", state="absent")["changed"]


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_wiped_data_is_gone_from_the_medium(checked, volume, small, place, fmt):
    marker = noise(512, "the guest's secret")
    make(small / "a", fmt, MIB, seed="x")
    (place / "secret").write_bytes(marker * 512)
    sh("qemu-img", "convert", "-f", "raw", "-O", fmt, place / "secret", small / "a")
    sh("sync", "-f", small.path)
    medium = place / "small.img"
    assert marker in medium.read_bytes()
    assert checked(name="a", state="absent", wipe=True, pool=small.name)["changed"]
    sh("sync", "-f", small.path)
    assert marker not in medium.read_bytes()


def test_wipe_is_guarded_like_delete(guarded, victim, domain):
    before = file_sha(victim)
    domain(disk(victim))
    guarded(wipe=True)
    assert file_sha(victim) == before


def test_wipe_leaves_the_base_alone(checked, pool, victim):
    before = file_sha(victim)
    overlay(pool / "top", victim)
    assert checked(name="top", state="absent", wipe=True)["changed"]
    assert file_sha(victim) == before and not (pool / "top").exists()


def test_a_link_in_the_pool_does_not_take_its_target_along(volume, pool, outside):
    target = make(outside / "precious", size=MIB)
    before = file_sha(target)
    (pool / "a").symlink_to(target)
    volume(name="a", state="absent", wipe=True)
    assert target.exists() and file_sha(target) == before


@pytest.mark.parametrize("name", ["../outside/precious", "/etc/passwd", "..", "."])
def test_names_that_lead_out_of_the_pool(refused, pool, outside, name):
    make(outside / "precious", size=MIB)
    refused("invalid_name", name=[name], state="absent")


@pytest.mark.parametrize("with_domain", [False, True])
def test_a_loop_device_has_it_as_its_file(volume, pool, domain, with_domain):
    make(pool / "a", "raw", MIB)
    device = Path(sh("losetup", "--find", "--show", pool / "a").strip())
    try:
        if with_domain:
            domain(disk(device, "raw", block=True), running=False)
        for check in (True, False):
            result = volume(name="a", state="absent", check=check)
            assert result.get("failed") and result["reason"] == "volume_in_use", result
    finally:
        sh("losetup", "--detach", device)
    assert (pool / "a").exists()


def test_copy_in_the_making(volume, info, pool, victim, domain):
    """The target of a running block copy is in use, though no definition names it."""
    virt = domain(disk(victim), transient=True)
    target = f"<disk type='file'><driver type='qcow2'/><source file='{pool / 'copy'}'/></disk>"
    virt.blockCopy("vda", target, {}, 0)
    assert {a["domain"] for a in info(name="copy")["volumes"][0]["attachments"]} == {virt.name()}
    result = volume(name="copy", state="absent")
    virt.blockJobAbort("vda")
    assert result.get("failed") and result["reason"] == "volume_in_use", result


def test_backing_file_that_only_the_definition_names(guarded, pool, victim, domain):
    store = f"<backingStore type='file'><format type='qcow2'/><source file='{victim}'/><backingStore/></backingStore>"
    domain(disk(make(pool / "top", size=MIB), extra=store), running=False)
    assert {a["via"] for a in guarded()} == {"backing"}


@pytest.mark.parametrize("defined", [True, False])
def test_file_of_an_images_data(refused, info, hypervisor, pool, victim, defined):
    """Since libvirt 10.10 domains run on images that keep their data in another file; only a running one's definition names it."""
    sh("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={pool / 'a'},data_file_raw=on", pool / "top", "1M")
    (seen,) = info(pool=[pool.name], name="a")["volumes"]
    assert [each["name"] for each in seen["dependents"]] == ["top"]
    if not defined:
        refused("volume_has_dependents", name="a", state="absent")
        return
    virt = hypervisor.conn.defineXML(domain_xml("keeps-data", disk(pool / "top")))
    try:
        assert refused("volume_in_use", name="a", state="absent")["attachments"][0]["via"] == "backing"
    finally:
        virt.undefine()


def test_kernel_and_nvram_of_a_domain(guarded, hypervisor, pool, domain):
    for name in ("kernel", "nvram"):
        (pool / name).write_bytes(bytes(4096))
    xml = domain_xml("boots").replace("</os>", f"""<kernel>{pool / 'kernel'}</kernel>
        <loader readonly='yes' type='pflash'>{pool / 'kernel'}</loader><nvram>{pool / 'nvram'}</nvram></os>""")
    virt = hypervisor.conn.defineXML(xml)
    try:
        guarded("kernel")
        guarded("nvram")
    finally:
        virt.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM)


def test_disk_of_a_saved_domain_that_was_redefined(guarded, hypervisor, pool, victim, domain):
    """It wakes up with the disks of the saved image, whatever its definition says since."""
    virt = domain(disk(victim), name="saved")
    virt.managedSave()
    other = domain_xml("saved", disk(make(pool / "other"))).replace("</name>", f"</name><uuid>{virt.UUIDString()}</uuid>", 1)
    hypervisor.conn.defineXML(other)
    try:
        guarded()
    finally:
        virt.managedSaveRemove()
