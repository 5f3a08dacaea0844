# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Logical volumes: libvirt's own pool of type logical over LVM's own tools, with extents of 4 MiB."""

from __future__ import annotations

import os
import signal
import uuid

import pytest
from support.hypervisors import Hypervisor, Pool, disk, domain_xml
from support.images import MIB, digest, held_by_qemu_io, make, noise, sha, take_snapshot, wait_until, write
from support.lvm import VolumeGroup
from support.runs import finish_module, run_play, start_module

CONTENT = noise(2 * MIB) + bytes(2 * MIB)  # of what make() makes
STALE = b"\xee"  # what is on a volume that nobody wrote to yet


@pytest.fixture(scope="module")
def group(place):
    made = VolumeGroup(place / "lvm", f"hs{uuid.uuid4().hex[:8]}")
    yield made
    made.stop()


@pytest.fixture(scope="module")
def host(place, group):
    """A hypervisor that finds the volume group."""
    running = Hypervisor(place / "lvm-hv", group.prefix)
    running.conn.storagePoolDefineXML(
        f"<pool type='logical'><name>vg</name><source><name>{group.name}</name><format type='lvm2'/></source>"
        f"<target><path>/dev/{group.name}</path></target></pool>").create()
    yield running
    running.stop()


@pytest.fixture
def files(host, place):
    """A directory pool beside it."""
    pool = Pool(host, "files", place / "lvm-files")
    yield pool
    pool.forget()
    for path in pool.path.iterdir():
        path.unlink()


@pytest.fixture
def run(host, group):
    """Run a module on the pool, on a host that finds the volume group."""

    def start(module, check=False, **params):
        arguments = {"uri": host.uri, "pool": "vg", **params}
        return finish_module(start_module(module, arguments, check=check, diff=module != "volume_info", prefix=group.prefix))

    yield start
    assert host.conn.storagePoolLookupByName("vg").isActive()
    for virt in host.conn.listAllDomains():
        if virt.isActive():
            virt.destroy()
        virt.undefine()
    left = [name for name in group.volumes() if name.startswith(".hypervisor.storage-")]
    group.clear()
    assert left == []


@pytest.fixture
def done(run, group):
    """A transition that changes something: foretold without touching anything, done, and unchanged when asked again."""

    def both(module, **params):
        before = group.volumes()
        predicted = run(module, check=True, **params)
        assert group.volumes() == before, "check mode touched something"
        assert not predicted.get("failed") and predicted["changed"], predicted
        real = run(module, **params)
        assert not real.get("failed"), real["msg"]
        for key in ("changed", "actions", "diff"):
            assert predicted[key] == real[key], f"check mode promised another {key}"
        again = run(module, **params)
        assert not again.get("failed") and not again["changed"] and again["actions"] == [], again
        return real

    return both


@pytest.fixture
def refused(run, group):
    """A wish that is refused for ``reason``, in check mode just as for real, and nothing is touched."""

    def both(reason, module, **params):
        before = group.volumes()
        for check in (True, False):
            result = run(module, check=check, **params)
            assert result.get("failed") and result.get("reason") == reason, result
        assert group.volumes() == before
        return result

    return both


def test_blank_list_delete(host, group, done, run):
    made = done("volume", name="a", size="5M")["volume"]
    assert (made["type"], made["format"], made["path"]) == ("block", "raw", f"/dev/{group.name}/a")
    assert made["capacity"] == 8 * MIB == group.volumes()["a"], "rounded up to whole extents, and said so"
    assert made["key"] == host.conn.storagePoolLookupByName("vg").storageVolLookupByName("a").key() != made["path"]
    listed = run("volume_info")
    assert listed["volumes"] == [made] and listed["pools"][0]["type"] == "logical"
    assert not run("volume", name="a", size=8 * MIB - 1)["changed"]
    done("volume", name="a", state="absent")
    assert group.volumes() == {}


@pytest.mark.parametrize(("wish", "reason"), [
    ({"format": "qcow2"}, "unsupported"),
    ({"preallocation": "off"}, "unsupported"),
    ({"owner": "root"}, "unsupported"),
    ({"name": "-a"}, "invalid_name"),
    ({"name": "a b"}, "invalid_name"),
    ({"size": "1G"}, "insufficient_space"),
])
def test_what_a_logical_volume_cannot_be(refused, wish, reason):
    refused(reason, "volume", **{"name": "a", "size": "4M", **wish})


def test_libvirt_lets_nobody_look_anew(host, run):
    """Of volumes that aren't files libvirt has to ask the storage first, which it does not for those who may only look."""
    result = run("volume_info", uri=f"{host.uri}-ro")
    assert result.get("failed") and result["reason"] == "libvirt_error", result
    assert "'vg'" in result["msg"] and "read only" in result["msg"]


def test_grow(group, done, refused, run):
    done("volume", name="a", size="4M")
    (group.devices / "a").write_bytes(noise(4 * MIB))
    assert done("volume_resize", name="a", size="9M")["volume"]["capacity"] == 12 * MIB == group.volumes()["a"]
    assert (group.devices / "a").read_bytes()[: 4 * MIB] == noise(4 * MIB)
    assert done("volume", name="a", size="13M")["volume"]["capacity"] == 16 * MIB
    refused("shrink_refused", "volume_resize", name="a", size="12M")
    result = refused("insufficient_space", "volume_resize", name="a", size="1G")
    assert result["required"] == 1008 * MIB and 0 < result["available"] < 160 * MIB


def test_volume_that_grew_behind_libvirts_back(group, done, refused):
    done("volume", name="a", size="4M")
    group.run("lvextend", "--size", "20m", f"{group.name}/a")
    refused("shrink_refused", "volume_resize", name="a", size="12M")
    assert group.volumes() == {"a": 20 * MIB}


def test_running_domain(host, group, done, refused):
    done("volume", name="a", size="4M")
    virt = host.conn.defineXML(domain_xml("vm", disk(group.devices / "a", "raw", block=True)))
    virt.create()
    refused("volume_in_use", "volume", name="a", state="absent")
    refused("unsupported", "volume_clone", source="a", name="b")
    assert done("volume_resize", name="a", size="8M")["volume"]["attachments"][0]["live"]
    assert virt.blockInfo("vda")[0] == 8 * MIB == group.volumes()["a"]
    virt.destroy()
    assert refused("volume_in_use", "volume", name="a", state="absent")["attachments"][0]["state"] == "shutoff"


def test_open_in_a_process_unknown_to_libvirt(group, done, refused):
    done("volume", name="a", size="4M")
    with held_by_qemu_io(group.devices / "a", "raw"):
        refused("volume_in_use", "volume", name="a", state="absent")
        refused("volume_in_use", "volume_clone", source="a", name="b")
    done("volume", name="a", state="absent")


@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
def test_clone_from_files(group, files, done, fmt):
    make(files / "src", fmt, 5 * MIB)
    want = noise(5 * MIB // 2).ljust(8 * MIB, b"\0")
    made = done("volume_clone", source="src", source_pool="files", name="b", verify=True)
    assert made["volume"]["capacity"] == 8 * MIB
    assert group.content("b") == want, "converted, and nothing old to be read at its end"


def test_clone_within_the_group(group, done):
    done("volume", name="a", size="4M")
    (group.devices / "a").write_bytes(CONTENT)
    done("volume_clone", source="a", name="b", size="6M", verify=True)
    done("volume", name="a", state="absent")
    assert group.content("b") == CONTENT + bytes(4 * MIB)


def test_clone_into_files(group, files, done):
    done("volume", name="a", size="4M")
    (group.devices / "a").write_bytes(CONTENT)
    done("volume_clone", source="a", source_pool="vg", name="b", pool="files", format="qcow2", verify=True)
    assert digest(files / "b") == sha(CONTENT)


def test_template_and_snapshot_from_files(group, files, done):
    take_snapshot(make(files / "src"), "old")
    write(files / "src", 0x77)
    done("volume", name="new", template="src", template_pool="files")
    done("volume", name="old", snapshot="old", snapshot_volume="src", snapshot_pool="files")
    assert group.content("old") == CONTENT and group.content("new") == b"\x77" * MIB + CONTENT[MIB:]


def test_base_of_an_overlay(group, files, done, refused):
    done("volume", name="base", size="4M")
    (group.devices / "base").write_bytes(CONTENT)
    done("volume", name="top", pool="files", template="base", template_pool="vg")
    assert digest(files / "top") == sha(CONTENT)
    assert refused("volume_has_dependents", "volume", name="base", state="absent")["dependents"][0]["name"] == "top"
    done("volume", name="top", pool="files", state="absent")
    done("volume", name="base", state="absent", wipe=True)


def test_wiped_is_wiped(group, done, place):
    done("volume", name="a", size="4M")
    (group.devices / "a").write_bytes(noise(4 * MIB))
    (data,) = (group.root / "data").iterdir()
    os.link(data, place / "kept")
    done("volume", name="a", state="absent", wipe=True)
    assert (place / "kept").read_bytes() == bytes(4 * MIB)
    (place / "kept").unlink()


def test_killed_copy_leaves_no_volume_and_the_next_run_clears_up(host, group, files, run):
    (files / "src").write_bytes(noise(48 * MIB))
    wish = {"uri": host.uri, "pool": "vg", "source": "src", "source_pool": "files", "name": "b"}
    process = start_module("volume_clone", wish, prefix=group.prefix)
    wait_until(lambda: any(name.startswith(".hypervisor.storage-") for name in group.volumes()))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert "b" not in group.volumes() and run("volume_info")["volumes"] == []
    assert run("volume_clone", **wish)["changed"]
    assert list(group.volumes()) == ["b"] and group.content("b") == noise(48 * MIB)


def test_an_environment_is_torn_down_without_what_others_made(host, group, run):
    """A logical volume that somebody made anew under one of the names is not the copy."""
    assert run("volume", name=["a", "b"], size="4M")["changed"]
    wish = {"uri": host.uri, "pool": "vg", "prefix": "copy-", "name": "a,b", "record_dir": str(host.root / "records")}

    def environment_of(state):
        variables = {f"clone_environment_{name}": value for name, value in {**wish, "state": state}.items()}
        tasks = [{"ansible.builtin.include_role": {"name": "hypervisor.storage.clone_environment"}, "vars": variables},
                 {"ansible.builtin.debug": {"var": "clone_environment_result"}, "register": "told"}]
        return run_play(tasks, prefix=group.prefix)["told"]["clone_environment_result"]

    assert environment_of("present")["changed"]
    assert run("volume", name="copy-a", state="absent")["changed"] and run("volume", name="copy-a", size="4M")["changed"]
    result = environment_of("absent")
    assert result["left"] == [{"name": "copy-a", "pool": "vg"}], result
    assert {"a", "b", "copy-a"} <= set(group.volumes()) and "copy-b" not in group.volumes()
