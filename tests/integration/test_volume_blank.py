# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Blank volumes: formats, preallocation, sizes, ownership, growing, lists, idempotence, space."""

from __future__ import annotations

import os
import threading
import time
import uuid

import libvirt
import pytest
from support.hypervisors import disk, guest_writes, snapshot_outside
from support.images import GIB, KIB, MIB, blank, file_sha, make, sh, used, write
from support.images import info as image_info
from support.runs import run_module


def unwritten(path) -> bool:
    """Whether the file's space is reserved without having been written."""
    return "unwritten" in sh("filefrag", "-v", path)


def test_default_is_thin_qcow2(created, pool):
    made = created(name="a", size="8M")
    seen = image_info(pool / "a")
    assert seen["format"] == made["format"] == "qcow2"
    assert seen["virtual-size"] == made["capacity"] == 8 * MIB
    assert seen["format-specific"]["data"]["compat"] == made["compat"] == "1.1"
    assert seen["cluster-size"] == made["cluster_size"] == 64 * KIB
    assert used(pool / "a") == made["allocation"] < MIB


def test_every_field_of_a_blank_volume(created, pool):
    made = created(name="a", size="8M")
    path = str(pool / "a")
    assert made == {
        "name": "a", "uuid": str(uuid.uuid5(uuid.UUID(pool.uuid), "a")), "key": path, "path": path, "pool": pool.name,
        "type": "file", "format": "qcow2", "capacity": 8 * MIB, "allocation": used(pool / "a"), "status": "available",
        "attachments": [], "backing": None, "dependents": [], "snapshots": [], "encrypted": False,
        "cluster_size": 64 * KIB, "compat": "1.1"}
    assert pool.virt.storageVolLookupByName("a").key() == path


def test_raw_reserves_all_space_without_writing(created, pool):
    made = created(name="a", size="8M", format="raw")
    assert (made["format"], made["capacity"], (pool / "a").stat().st_size) == ("raw", 8 * MIB, 8 * MIB)
    assert used(pool / "a") >= 8 * MIB and made["allocation"] == used(pool / "a")
    assert unwritten(pool / "a")
    assert made["cluster_size"] is None and made["compat"] is None


@pytest.mark.parametrize(("fmt", "preallocation", "least", "most"), [
    ("raw", "off", 0, 64 * KIB),
    ("raw", "falloc", 8 * MIB, 9 * MIB),
    ("raw", "full", 8 * MIB, 9 * MIB),
    ("qcow2", "off", 0, MIB),
    ("qcow2", "metadata", 0, MIB),
    ("qcow2", "falloc", 8 * MIB, 10 * MIB),
    ("qcow2", "full", 8 * MIB, 10 * MIB),
])
def test_preallocation(created, pool, fmt, preallocation, least, most):
    made = created(name="a", size="8M", format=fmt, preallocation=preallocation)
    assert image_info(pool / "a")["virtual-size"] == 8 * MIB
    assert least <= used(pool / "a") <= most
    assert made["allocation"] == used(pool / "a")
    assert pool.refresh().virt.storageVolLookupByName("a").info()[2] == used(pool / "a")
    if fmt == "qcow2":
        mapped = '"offset"' in sh("qemu-img", "map", "-f", fmt, "--output=json", pool / "a")
        assert mapped == (preallocation != "off"), "preallocated clusters have an offset in the file"
    elif least:
        assert unwritten(pool / "a") == (preallocation == "falloc")


def test_raw_has_no_metadata_to_preallocate(refused):
    refused("invalid_option", name="a", size="1M", format="raw", preallocation="metadata")


@pytest.mark.parametrize(("given", "size"), [("4K", 4 * KIB), ("128KiB", 128 * KIB), (2097152, 2 * MIB)])
def test_cluster_size(created, pool, given, size):
    made = created(name="a", size="1M", cluster_size=given)
    assert made["cluster_size"] == image_info(pool / "a")["cluster-size"] == size


@pytest.mark.parametrize("given", ["1000", "3K", "256", "4M"])
def test_cluster_size_that_qcow2_does_not_know(refused, given):
    refused("invalid_option", name="a", size="1M", cluster_size=given)


@pytest.mark.parametrize("given", ["big", "", "0", "64k"])
def test_cluster_size_that_is_no_size(refused, given):
    refused("invalid_size", name="a", size="1M", cluster_size=given)


def test_owner_group_mode(created, pool):
    created(name="a", size="1M", owner="nobody", group="daemon", mode="0640")
    st = (pool / "a").stat()
    assert (st.st_uid, st.st_gid, oct(st.st_mode & 0o7777)) == (65534, 1, "0o640")


def test_owner_and_group_by_number(created, pool):
    created(name="a", size="1M", format="raw", owner="4711", group="4712")
    assert ((pool / "a").stat().st_uid, (pool / "a").stat().st_gid) == (4711, 4712)


@pytest.mark.parametrize(
    "wish", [{"owner": "no-such-user"}, {"group": "no-such-group"}, {"mode": "rwx"}, {"mode": "99999"}]
)
def test_ownership_that_makes_no_sense(refused, wish):
    refused("invalid_option", name="a", size="1M", **wish)


@pytest.mark.parametrize(("text", "size"), [
    (1, 512), ("512", 512), ("1000", 1024), ("1K", KIB), ("3KiB", 3 * KIB), ("1M", MIB), ("1.5M", MIB * 3 // 2),
    ("2 MiB", 2 * MIB), ("1MB", 1000448), ("0.5GB", 500000256), ("1G", GIB), ("1.5G", GIB * 3 // 2), ("1GiB", GIB),
    ("1TB", 10**12), ("1T", 1024**4), ("0.5PiB", 1024**5 // 2), ("0.25PB", 250 * 10**12), ("1KB", 1024), ("0.1K", 512),
])
def test_size_units(volume, pool, text, size):
    result = volume(name="a", size=text, format="qcow2", cluster_size="2M")
    assert result["changed"], result
    assert result["volume"]["capacity"] == size == image_info(pool / "a")["virtual-size"]
    again = volume(name="a", size=text)
    assert not again.get("failed") and not again["changed"], again


def test_raw_sizes_are_rounded_to_sectors(created, pool):
    assert created(name="a", size="1000", format="raw")["capacity"] == 1024 == (pool / "a").stat().st_size


def test_diff_is_what_was_asked_for_and_nothing_that_moves(created, checked, volume, pool):
    """One shape for all that happens to a volume."""
    absent, small = {"a": {"state": "absent"}}, {"state": "present", "pool": pool.name, "format": "qcow2", "capacity": MIB, "backing": None}
    assert checked(name="a", size="1M")["diff"] == {"before": absent, "after": {"a": small}}
    volume(name="top", template="a")
    on_top = {**small, "capacity": 2 * MIB, "backing": str(pool / "a")}
    diff = checked(name="top", template="a", size="2M")["diff"]
    assert diff == {"before": {"top": {**on_top, "capacity": MIB}}, "after": {"top": on_top}}
    assert checked(name="top", state="absent")["diff"] == {"before": {"top": on_top}, "after": {"top": {"state": "absent"}}}
    assert checked(name="a", state="absent", wipe=True)["diff"] == {"before": {"a": small}, "after": absent}


@pytest.mark.parametrize(("fmt", "other"), [("qcow2", "raw"), ("raw", "qcow2")])
def test_other_format_is_a_mismatch(volume, refused, pool, fmt, other):
    volume(name="a", size="1M", format=fmt)
    refused("volume_mismatch", name="a", size="1M", format=other)


@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
def test_smaller_is_grown(volume, created, pool, fmt):
    volume(name="a", size="1M", format=fmt)
    write(pool / "a", 0x5A, length=MIB, fmt=fmt)
    inode = (pool / "a").stat().st_ino
    grown = created(name="a", size="3M", format=fmt)
    assert grown["capacity"] == image_info(pool / "a", fmt)["virtual-size"] == 3 * MIB
    assert (pool / "a").stat().st_ino == inode
    assert pool.virt.storageVolLookupByName("a").info()[1] == 3 * MIB, "libvirt knows"
    sh("qemu-io", "-f", fmt, "-c", "read -P 0x5a 0 1M", "-c", "read -P 0 1M 2M", pool / "a")
    if fmt == "raw":
        assert used(pool / "a") >= 3 * MIB, "raw reserves what it grows by"


def test_grown_while_a_domain_runs(volume, created, pool, domain):
    volume(name="a", size="1M")
    virt = domain(disk(pool / "a"))
    assert created(name="a", size="3M")["capacity"] == 3 * MIB
    assert virt.blockInfo("vda")[0] == 3 * MIB, "the domain sees the new size"


@pytest.mark.parametrize("job", ["copy", "pull", "commit"])
def test_not_grown_while_a_job_works_on_the_disk(volume, created, pool, domain, outside, job):
    """QEMU refuses it then, which is foretold: wait for the job, and run again."""
    make(pool / "a", size=64 * MIB)
    virt = domain(disk(pool / "a", cached=False), transient=True, name="vm")
    if job == "copy":
        virt.blockCopy("vda", f"<disk type='file'><driver type='qcow2'/><source file='{outside / 'copy'}'/></disk>", {}, 0)
    else:
        snapshot_outside(virt, "s", pool / "b")
    if job == "pull":
        virt.blockPull("vda", 1, 0)  # MiB/s
    elif job == "commit":
        guest_writes(virt, 7, length=8 * MIB)
        virt.blockCommit("vda", None, None, 1, libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)
    name = "a" if job == "copy" else "b"
    for check in (True, False):
        result = volume(name=name, size="96M", check=check)
        assert result.get("failed") and result["reason"] == "locked" and not result.get("changed"), result
        assert all(word in result["msg"] for word in (f"'{name}'", job, "vda", "'vm'")), result["msg"]
    assert virt.blockInfo("vda")[0] == 64 * MIB
    virt.blockJobAbort("vda")
    assert created(name=name, size="96M")["capacity"] == 96 * MIB == virt.blockInfo("vda")[0]


def test_grows_from_what_the_file_is_now_not_from_a_stale_cache(volume, checked, pool):
    volume(name="a", size="1M", format="raw")
    os.truncate(pool / "a", 4 * MIB)
    assert not checked(name="a", size="2M", format="raw")["changed"]
    assert (pool / "a").stat().st_size == 4 * MIB, "a raw volume must never be truncated"


@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
def test_larger_is_left_alone(volume, checked, pool, fmt):
    volume(name="a", size="4M", format=fmt)
    result = checked(name="a", size="1M", format=fmt)
    assert not result["changed"] and result["volume"]["capacity"] == 4 * MIB


def test_differences_nobody_asked_about_are_left_alone(volume, checked, pool):
    volume(name="a", size="1M", cluster_size="4K", preallocation="full", mode="0600")
    assert not checked(name="a", size="1M")["changed"]


def test_existing_volume_needs_no_size(volume, checked):
    volume(name="a", size="1M")
    assert checked(name="a")["changed"] is False


def test_a_volume_made_behind_libvirts_back_is_seen(checked, pool):
    blank(pool / "a", MIB)
    assert not checked(name="a", size="1M")["changed"]


def test_a_volume_removed_behind_libvirts_back_is_made_again(volume, created, pool):
    volume(name="a", size="1M")
    (pool / "a").unlink()
    created(name="a", size="1M")


def test_list_of_names_in_order(checked, pool):
    result = checked(name=["c", "a", "b"], size="1M")
    assert [v["name"] for v in result["volumes"]] == ["c", "a", "b"]
    assert "volume" not in result
    assert [text.split("'")[1] for text in result["actions"]] == ["c", "a", "b"]
    assert list(result["diff"]["after"]) == ["c", "a", "b"]
    assert {p.name for p in pool.path.iterdir()} == {"a", "b", "c"}


def test_string_of_names_is_split_on_commas_and_a_list_is_not(volume, pool):
    volume(name="a,b", size="1M")
    volume(name=["x,y"], size="1M")
    assert {p.name for p in pool.path.iterdir()} == {"a", "b", "x,y"}


def test_only_what_is_missing_of_a_list_is_made(volume, checked, pool):
    volume(name="b", size="1M")
    before = (pool / "b").stat()
    assert checked(name=["a", "b"], size="1M")["changed"]
    assert (pool / "b").stat() == before


@pytest.mark.parametrize(("names", "reason"), [
    (["a", "b", "x/y"], "invalid_name"), (["x\ny", "a"], "invalid_name"), (["a", "taken"], "volume_mismatch"),
    (["taken", "a"], "volume_mismatch"),
])
def test_one_refused_name_stops_all(refused, pool, names, reason):
    make(pool / "taken", "raw", MIB)
    refused(reason, name=names, size="1M", format="qcow2")


def test_the_same_name_twice(checked):
    result = checked(name=["a", "b", "a"], size="1M")
    assert [v["name"] for v in result["volumes"]] == ["a", "b"] and len(result["actions"]) == 2


def test_failure_half_way_names_what_is_done(hypervisor, pool):
    """Somebody puts a file of the second name there just after the first volume appeared.

    With tables to write each is made by itself, so that there is time for it.
    """
    foreign = b"not yours" * 1000

    def interfere():
        deadline = time.monotonic() + 20
        while not (pool / "first").exists() and time.monotonic() < deadline:
            time.sleep(0.0002)
        (pool / "second").write_bytes(foreign)

    thread = threading.Thread(target=interfere)
    thread.start()
    names = ["first", "second", "third"]
    result = run_module("volume", {"uri": hypervisor.uri, "pool": pool.name, "name": names, "size": "64M",
                                   "preallocation": "metadata"})
    thread.join()
    assert result.get("failed"), result
    assert (pool / "second").read_bytes() == foreign, "never overwrite"
    assert (pool / "first").exists() and not (pool / "third").exists()
    assert result["changed"] is True and result["reason"] == "volume_mismatch", result
    assert (result["done"], result["not_done"]) == (["first"], ["second", "third"])
    assert len(result["actions"]) == 1 and "'first'" in result["actions"][0]
    assert "first" in pool.virt.listVolumes(), "libvirt was told of it"


def test_blank_needs_a_size(refused):
    assert "size" in refused("invalid_option", name="a")["msg"]


def test_reserved_space_that_is_not_there(refused, small):
    result = refused("insufficient_space", name="a", size="100M", format="raw", pool=small.name)
    assert result["required"] >= 100 * MIB > result["available"] > 0
    assert list(small.path.iterdir()) == []


@pytest.mark.parametrize("preallocation", ["falloc", "full"])
def test_reserved_qcow2_space_that_is_not_there(refused, small, preallocation):
    refused("insufficient_space", name="a", size="100M", preallocation=preallocation, pool=small.name)


def test_space_of_a_list_is_summed_up(refused, volume, small):
    result = refused("insufficient_space", name=["a", "b", "c"], size="20M", format="raw", pool=small.name)
    assert result["required"] >= 60 * MIB
    assert volume(name=["a", "b"], size="16M", format="raw", pool=small.name)["changed"]


def test_growing_beyond_the_space(refused, volume, small):
    volume(name="a", size="8M", format="raw", pool=small.name)
    refused("insufficient_space", name="a", size="100M", format="raw", pool=small.name)
    assert (small / "a").stat().st_size == 8 * MIB


@pytest.mark.parametrize(("fmt", "preallocation"), [("qcow2", "off"), ("raw", "off"), ("qcow2", "metadata")])
def test_thin_beyond_the_space_warns(volume, refused, small, fmt, preallocation):
    wish = {"name": "a", "size": "1G", "format": fmt, "preallocation": preallocation, "pool": small.name}
    refused("insufficient_space", **wish, overcommit=False)
    foretold, result = volume(check=True, **wish), volume(**wish)
    assert result["changed"] and len(result["warnings"]) == 1
    assert all(word in result["warnings"][0] for word in ("'a'", repr(small.name), "bytes"))
    assert foretold["warnings"] == result["warnings"]
    assert not volume(**{**wish, "size": "1M"})["warnings"]


def test_growing_a_thin_one_beyond_the_space_warns(volume, refused, small):
    wish = {"name": "a", "size": "1G", "pool": small.name}
    volume(**{**wish, "size": "1M"})
    refused("insufficient_space", **wish, overcommit=False)
    foretold, result = volume(check=True, **wish), volume(**wish)
    assert result["changed"] and len(result["warnings"]) == 1 and foretold["warnings"] == result["warnings"]
    assert not volume(**wish, overcommit=False).get("failed"), "what is there already is not promised anew"


def test_thin_within_the_space_does_not_warn(volume, small):
    assert volume(name="a", size="8M", overcommit=False, pool=small.name)["warnings"] == []


def test_existing_file_content_is_never_replaced(volume, pool):
    make(pool / "a", size=MIB)
    before = file_sha(pool / "a")
    assert not volume(name="a", size="1M")["changed"]
    assert file_sha(pool / "a") == before


def test_default_pool_is_called_default(hypervisor, make_pool):
    pool = make_pool("default")
    assert run_module("volume", {"uri": hypervisor.uri, "name": "a", "size": "1M"})["volume"]["pool"] == "default"
    assert (pool / "a").exists()
