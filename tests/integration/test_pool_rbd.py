# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Volumes in a Ceph cluster: all modules on a pool of type rbd, with a key that libvirt keeps."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import uuid

import pytest
from support.ceph import POOL, USER, Ceph, opened_by_qemu_io
from support.hypervisors import disk, guest_writes
from support.images import MIB, digest, make, noise, overlay, sh, sha, take_snapshot, wait_until, write
from support.runs import finish_module, run_module, start_module

CONTENT = noise(2 * MIB) + bytes(2 * MIB)  # of what make() makes
HIDDEN = ".hypervisor.storage-"


@pytest.fixture(scope="module")
def ceph(place):
    running = Ceph(place / "ceph")
    yield running
    running.stop()


@pytest.fixture
def rbd(ceph, hypervisor):
    """The name of a pool of type rbd; afterwards no image is left half-made in it."""
    conn, identity = hypervisor.conn, str(uuid.uuid4())
    secret = conn.secretDefineXML(
        f"<secret ephemeral='yes' private='no'><uuid>{identity}</uuid><usage type='ceph'><name>{identity}</name></usage></secret>")
    secret.setValue(ceph.key())
    virt = conn.storagePoolDefineXML(
        f"<pool type='rbd'><name>ceph</name><source><name>{POOL}</name><host name='127.0.0.1' port='{ceph.port}'/>"
        f"<auth type='ceph' username='{USER}'><secret uuid='{identity}'/></auth></source></pool>")
    virt.create()
    yield virt
    assert virt.isActive()
    left = [name for name in ceph.images() if name.startswith(HIDDEN)]
    virt.destroy()
    virt.undefine()
    secret.undefine()
    ceph.clear()
    assert left == []


@pytest.fixture
def on_rbd(hypervisor, rbd):
    """Run a module on the pool."""

    def run(module, check=False, **params):
        arguments = {"uri": hypervisor.uri, "pool": rbd.name(), **params}
        return run_module(module, arguments, check=check, diff=module != "volume_info")

    return run


@pytest.fixture
def done(on_rbd, state):
    """A transition that changes something: foretold without touching anything, done, and unchanged when asked again."""

    def run(module, **params):
        before = state()
        predicted = on_rbd(module, check=True, **params)
        assert state() == before, "check mode touched something"
        assert not predicted.get("failed") and predicted["changed"], predicted
        real = on_rbd(module, **params)
        assert not real.get("failed"), real["msg"]
        for key in ("changed", "actions", "diff"):
            assert predicted[key] == real[key], f"check mode promised another {key}"
        again = on_rbd(module, **params)
        assert not again.get("failed") and not again["changed"] and again["actions"] == [], again
        return real

    return run


@pytest.fixture
def refused(on_rbd, state):
    """A wish that is refused for ``reason``, in check mode just as for real, and nothing is touched."""

    def run(reason, module, **params):
        before = state()
        for check in (True, False):
            result = on_rbd(module, check=check, **params)
            assert result.get("failed") and result.get("reason") == reason, result
            assert not result.get("changed"), result
        assert state() == before, "a refused run touched something"
        return result

    return run


@pytest.fixture
def state(ceph):
    """The pool's images with their sizes and snapshots, as the cluster knows them."""
    return lambda: ceph.rbd("ls", "--long", "--format", "json", POOL)


@pytest.fixture
def image(ceph):
    """An image of 4 MiB, the first half noise, made by the cluster's own tool."""

    def put(name="a", data=CONTENT):
        subprocess.run(
            ["rbd", "import", "--no-progress", "--dest-pool", POOL, f"--dest={name}", "-"], input=data, check=True,
            env={**os.environ, "CEPH_CONF": str(ceph.root / "ceph.conf")})
        return name

    return put


def content(ceph, name):
    return subprocess.run(
        ["rbd", "export", "--no-progress", f"--pool={POOL}", f"--image={name}", "-"], stdout=subprocess.PIPE, check=True,
        env={**os.environ, "CEPH_CONF": str(ceph.root / "ceph.conf")}).stdout


def network_disk(ceph, rbd, name="a", target="vda", *, auth=True, hosts=True, fmt="raw"):
    """A domain's disk that names the image itself, not the pool."""
    secret = rbd.XMLDesc().partition("<secret ")[2].partition("/>")[0]
    return (
        f"<disk type='network' device='disk'><driver name='qemu' type='{fmt}'/>"
        + (f"<auth username='{USER}'><secret type='ceph' {secret}/></auth>" if auth else "")
        + f"<source protocol='rbd' name='{POOL}/{name}'"
        + (f"><host name='127.0.0.1' port='{ceph.port}'/></source>" if hosts else "/>")
        + f"<target dev='{target}' bus='virtio'/></disk>")


# -- make, list, delete ------------------------------------------------------------------------------


def test_blank(ceph, rbd, done, on_rbd):
    made = done("volume", name="a", size="10M")["volume"]
    assert (made["type"], made["format"], made["capacity"]) == ("network", "raw", 10 * MIB)
    assert made["key"] == made["path"] == f"{POOL}/a"
    assert made["uuid"] == str(uuid.uuid5(uuid.UUID(rbd.UUIDString()), "a"))
    assert ceph.info("a")["size"] == 10 * MIB
    listed = on_rbd("volume_info")
    assert listed["volumes"] == [made]
    facts = listed["pools"][0]
    assert (facts["type"], facts["path"]) == ("rbd", None) and 0 < facts["available"] <= facts["capacity"] <= 1024 * MIB


def test_sizes_are_rounded_up_and_a_minimum(ceph, done, on_rbd):
    assert done("volume", name="a", size=MIB + 1)["volume"]["capacity"] == MIB + 512
    assert not on_rbd("volume", name="a", size="512K")["changed"]
    assert done("volume", name="a", size="2M")["volume"]["capacity"] == 2 * MIB
    assert ceph.info("a")["size"] == 2 * MIB


def test_several_names_also_odd_ones(ceph, done, on_rbd):
    names = ["-a", "a b'\"<&>", "rbd:a", "json:{}", "ü%s", "x" * 200]
    made = done("volume", name=names, size="1M")
    assert [volume["name"] for volume in made["volumes"]] == names
    assert set(ceph.images()) == set(names)
    assert [v["name"] for v in on_rbd("volume_info", pattern="rbd:")["volumes"]] == ["rbd:a"]
    for name in names[:3]:
        assert on_rbd("volume_clone", source=name, name=f"{name}.", verify=True)["changed"]
    assert on_rbd("volume_resize", name=names, size="2M")["changed"]
    assert on_rbd("volume", name=names, state="absent")["changed"]
    assert set(ceph.images()) == {f"{name}." for name in names[:3]}


@pytest.mark.parametrize("name", ["a@b", "a/b", "@"])
def test_names_that_rbd_could_not_address(refused, name):
    refused("invalid_name", "volume", name=name, size="1M")
    refused("invalid_name", "volume", name=name, state="absent")


@pytest.mark.parametrize(("wish", "reason"), [
    ({"format": "qcow2"}, "unsupported"),
    ({"preallocation": "falloc"}, "unsupported"),
    ({"preallocation": "full"}, "unsupported"),
    ({"preallocation": "metadata"}, "invalid_option"),
    ({"cluster_size": "64K"}, "invalid_option"),
    ({"mode": "0600"}, "unsupported"),
    ({"size": "0"}, "invalid_size"),
    ({"size": None}, "invalid_option"),
])
def test_what_a_volume_in_ceph_cannot_be(refused, wish, reason):
    refused(reason, "volume", **{"name": "a", "size": "1M", **wish})


def test_image_that_was_made_behind_libvirts_back(ceph, image, on_rbd, done):
    before = sha(content(ceph, image()))
    assert [volume["name"] for volume in on_rbd("volume_info")["volumes"]] == ["a"]
    assert not on_rbd("volume", name="a", size="1M")["changed"]
    assert sha(content(ceph, "a")) == before
    done("volume", name="a", state="absent")
    assert ceph.images() == []


def test_more_than_the_cluster_can_hold_is_a_promise(done, refused):
    assert any("free" in text for text in done("volume", name="a", size="100G")["warnings"])
    result = refused("insufficient_space", "volume", name="b", size="100G", overcommit=False)
    assert result["required"] == 100 * 1024 * MIB and 0 < result["available"] < 1024 * MIB


def test_no_space_for_a_copy(refused, make_pool):
    files = make_pool()
    with (files / "big").open("wb") as file:
        for _mebibyte in range(512):
            file.write(b"\x11" * MIB)
    result = refused("insufficient_space", "volume_clone", source="big", source_pool=files.name, name="b")
    assert 0 < result["available"] < 512 * MIB <= result["required"] < 514 * MIB


def test_wipe(ceph, image, done):
    image()
    image("b", noise(MIB, "b"))
    done("volume", name="a", state="absent", wipe=True)
    assert ceph.images() == ["b"] and content(ceph, "b") == noise(MIB, "b")


def test_snapshots_keep_an_image(ceph, image, done, refused):
    """They are somebody's backup, and go with the image; nothing here removes them."""
    ceph.rbd("snap", "create", "--no-progress", f"{POOL}/{image()}@monday")
    result = refused("volume_has_dependents", "volume", name="a", state="absent")
    assert result["snapshots"] == ["monday"] and "monday" in result["msg"]
    done("volume_resize", name="a", size="8M")
    ceph.rbd("snap", "rm", "--no-progress", f"{POOL}/a@monday")
    done("volume", name="a", state="absent")


def test_clones_of_the_clusters_own_are_dependents(ceph, image, done, refused, on_rbd):
    ceph.rbd("snap", "create", "--no-progress", f"{POOL}/{image()}@s")
    ceph.rbd("snap", "protect", f"{POOL}/a@s")
    for parent, kid in (("a@s", "kid"), ("kid@s", "grandkid")):
        ceph.rbd("clone", f"{POOL}/{parent}", f"{POOL}/{kid}")
        ceph.rbd("snap", "create", "--no-progress", f"{POOL}/{kid}@s")
        ceph.rbd("snap", "protect", f"{POOL}/{kid}@s")
    result = refused("volume_has_dependents", "volume", name="a", state="absent")
    assert [(d["pool"], d["name"]) for d in result["dependents"]] == [("ceph", "grandkid"), ("ceph", "kid")]
    found = {volume["name"]: volume for volume in on_rbd("volume_info")["volumes"]}
    assert found["grandkid"]["backing"] == {
        "path": f"{POOL}/kid", "format": "raw", "name": "kid", "pool": "ceph", "chain": [f"{POOL}/kid", f"{POOL}/a"]}
    assert [d["name"] for d in found["kid"]["dependents"]] == ["grandkid"]
    done("volume_clone", source="grandkid", name="free")
    assert "parent" not in ceph.info("free") and content(ceph, "free") == CONTENT


# -- who uses it -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("auth", "hosts"), [(True, True), (False, True), (True, False), (False, False)])
def test_defined_domain_that_names_the_image(ceph, rbd, image, domain, on_rbd, refused, auth, hosts):
    virt = domain(network_disk(ceph, rbd, image(), auth=auth, hosts=hosts), running=False)
    image("b", bytes(MIB))
    found = {volume["name"]: volume for volume in on_rbd("volume_info")["volumes"]}
    assert found["a"]["status"] == "attached" and found["b"]["status"] == "available"
    use = found["a"]["attachments"][0]
    assert (use["domain"], use["target"], use["via"], use["live"]) == (virt.name(), "vda", "disk", False)
    assert refused("volume_in_use", "volume", name="a", state="absent")["attachments"] == [use]


def test_defined_domain_that_names_the_volume(image, domain, refused):
    domain(disk(("ceph", image()), "raw"), running=False)
    assert refused("volume_in_use", "volume", name="a", state="absent")["attachments"][0]["target"] == "vda"


def test_defined_domain_that_has_it_mapped_by_the_kernel(image, domain, refused):
    domain(disk(f"/dev/rbd/{POOL}/{image()}", "raw", block=True), running=False)
    refused("volume_in_use", "volume", name="a", state="absent")


def test_running_domain(ceph, rbd, image, domain, refused, done):
    running = domain(network_disk(ceph, rbd, image()))
    use = refused("volume_in_use", "volume", name="a", state="absent")["attachments"][0]
    assert use["live"] and use["state"] == "running"
    refused("volume_in_use", "volume", name="b", template="a")
    refused("volume_in_use", "volume_clone", source="a", name="b", consistency="offline")
    assert "directory" in refused("unsupported", "volume_clone", source="a", name="b")["msg"]
    volume = done("volume_resize", name="a", size="9M")["volume"]
    assert volume["capacity"] == 9 * MIB == running.blockInfo("vda")[0] == ceph.info("a")["size"]
    guest_writes(running, 0x42, offset=8 * MIB)
    refused("shrink_refused", "volume_resize", name="a", size="8M")
    running.destroy()
    assert content(ceph, "a")[8 * MIB:] == b"\x42" * MIB and content(ceph, "a")[: 4 * MIB] == CONTENT


def test_open_in_a_process_unknown_to_libvirt(ceph, image, refused, done):
    """QEMU on another host, say: it shows as a watcher of the image. libvirt itself would resize under it."""
    with opened_by_qemu_io(ceph, image()):
        refused("volume_in_use", "volume", name="a", state="absent")
        refused("volume_in_use", "volume", name="a", size="8M")
        refused("volume_in_use", "volume_resize", name="a", size="8M")
        refused("volume_in_use", "volume_clone", source="a", name="b")
        refused("volume_in_use", "volume", name="b", template="a")
    wait_until(lambda: "watcher=" not in ceph.rbd("status", f"--pool={POOL}", "--image=a"), timeout=60)
    done("volume", name="a", state="absent")


def test_running_domain_copied_into_files(ceph, rbd, image, domain, make_pool, on_rbd):
    running, files = domain(network_disk(ceph, rbd, image())), make_pool()
    made = on_rbd("volume_clone", source="a", source_pool="ceph", name="b", pool=files.name, format="qcow2")
    assert made["changed"] and made["consistency"] == "crash", made
    assert digest(files / "b") == sha(CONTENT)
    assert running.isActive() and ceph.images() == ["a"]


# -- grow --------------------------------------------------------------------------------------------


def test_grow(ceph, image, done, refused, on_rbd):
    volume = done("volume_resize", name=image(), size=8 * MIB + 1)["volume"]
    assert volume["capacity"] == 8 * MIB + 512 == ceph.info("a")["size"]
    assert content(ceph, "a") == CONTENT + bytes(4 * MIB + 512)
    refused("shrink_refused", "volume_resize", name="a", size="7M")
    refused("unsupported", "volume_resize", name="a", size="9M", preallocation="falloc")
    refused("volume_not_found", "volume_resize", name="none", size="9M")


def test_image_that_grew_behind_libvirts_back(ceph, image, refused, on_rbd):
    on_rbd("volume_info", name=image())
    ceph.rbd("resize", "--no-progress", "--size", "20M", f"{POOL}/a")
    refused("shrink_refused", "volume_resize", name="a", size="10M")
    assert not on_rbd("volume_resize", name="a", size="20M")["changed"]


# -- copies ------------------------------------------------------------------------------------------


def test_clone_within_the_pool_is_independent(ceph, image, done):
    """libvirt's own would be a child of a protected snapshot, which keeps its source from being deleted."""
    made = done("volume_clone", source=image(), name="b", size="6M", verify=True)
    assert made["consistency"] == "offline" and made["volume"]["backing"] is None
    assert ceph.snapshots("a") == [] and "parent" not in ceph.info("b")
    done("volume", name="a", state="absent")
    assert content(ceph, "b") == CONTENT + bytes(2 * MIB)


def test_copies_stay_sparse(ceph, done, on_rbd):
    done("volume", name="a", size="1G")
    sh("qemu-io", "-c", "write -P 7 512M 1M", ceph.spec("a"))
    done("volume_clone", source="a", name="b")
    used = ceph.rbd("du", "--format", "json", f"--pool={POOL}", "--image=b")
    assert f'"used_size":{4 * MIB}' in used, used


@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
def test_clone_from_files(ceph, make_pool, image, done, fmt):
    """Into a pool that has an image of the source's name too: by libvirt it would become a clone of that."""
    image("src", noise(MIB, "another"))
    files = make_pool()
    make(files / "src", fmt)
    made = done("volume_clone", source="src", source_pool=files.name, name="b", verify=True)
    assert (made["volume"]["format"], made["volume"]["capacity"]) == ("raw", 4 * MIB)
    assert content(ceph, "b") == CONTENT
    assert content(ceph, "src") == noise(MIB, "another")


def test_clone_of_an_overlay_from_files(ceph, make_pool, done):
    files = make_pool()
    make(files / "base")
    write(overlay(files / "top", files / "base"), 0x33)
    done("volume_clone", source="top", source_pool=files.name, name="b")
    assert content(ceph, "b") == b"\x33" * MIB + CONTENT[MIB:]


@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
def test_clone_into_files(image, make_pool, on_rbd, fmt):
    files = make_pool()
    wish = {"source": image(), "source_pool": "ceph", "name": "b", "pool": files.name, "format": fmt, "verify": True}
    assert on_rbd("volume_clone", check=True, **wish)["changed"] and not (files / "b").exists()
    made = on_rbd("volume_clone", **wish)
    assert made["changed"] and made["volume"]["format"] == fmt, made
    assert digest(files / "b", fmt) == sha(CONTENT)
    assert not on_rbd("volume_clone", **wish)["changed"]


def test_template_in_files(ceph, make_pool, done):
    files = make_pool()
    make(files / "template")
    done("volume", name=["b", "c"], template="template", template_pool=files.name, size="6M")
    assert content(ceph, "b") == content(ceph, "c") == CONTENT + bytes(2 * MIB)


def test_template_in_ceph(ceph, image, make_pool, on_rbd, done):
    done("volume", name="b", template=image())
    assert content(ceph, "b") == CONTENT and ceph.snapshots("a") == []
    files = make_pool()
    wish = {"name": "c", "pool": files.name, "template": "a", "template_pool": "ceph"}
    assert on_rbd("volume", **wish)["reason"] == "unsupported"
    assert on_rbd("volume", clone_mode="full", **wish)["changed"]
    assert digest(files / "c") == sha(CONTENT)


def test_volume_from_an_internal_snapshot(ceph, make_pool, done):
    files = make_pool()
    take_snapshot(make(files / "a"), "old")
    write(files / "a", 0x77)
    done("volume", name="b", snapshot="old", snapshot_volume="a", snapshot_pool=files.name)
    assert content(ceph, "b") == CONTENT


def test_the_clusters_snapshots_are_not_read(ceph, image, refused):
    ceph.rbd("snap", "create", "--no-progress", f"{POOL}/{image()}@monday")
    refused("unsupported", "volume", name="b", snapshot="monday", snapshot_volume="a")


def test_existing_copy_is_never_overwritten(ceph, image, refused, on_rbd):
    image(), image("b", noise(MIB, "b")), image("c", noise(8 * MIB, "c"))
    refused("volume_mismatch", "volume_clone", source="a", name="b")
    assert not on_rbd("volume_clone", source="a", name="c")["changed"]
    assert content(ceph, "b") == noise(MIB, "b") and content(ceph, "c") == noise(8 * MIB, "c")


def test_raw_disk_whose_guest_wrote_a_qcow2_header(ceph, make_pool, image, done, on_rbd):
    """What is in a Ceph image is raw, whatever it looks like."""
    files = make_pool()
    sh("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", "/etc/passwd", files / "evil", "1M")
    header = (files / "evil").read_bytes()
    (files / "evil").unlink()
    image("a", header.ljust(MIB, b"\0"))
    done("volume_clone", source="a", name="b")
    assert content(ceph, "b") == header.ljust(MIB, b"\0")


def test_compress_is_for_files(image, refused):
    refused("unsupported", "volume_compress", name=image())


def is_watched(ceph, image):
    return bool(json.loads(ceph.rbd("status", f"{POOL}/{image}", "--format", "json"))["watchers"])


# -- when it is interrupted --------------------------------------------------------------------------


def test_killed_copy_leaves_no_volume_and_the_next_run_clears_up(ceph, hypervisor, rbd, make_pool, on_rbd, state):
    files = make_pool()
    (files / "src").write_bytes(noise(96 * MIB))
    wish = {"uri": hypervisor.uri, "pool": "ceph", "source": "src", "source_pool": files.name, "name": "b"}
    process = start_module("volume_clone", wish)
    wait_until(lambda: any(name.startswith(HIDDEN) and is_watched(ceph, name) for name in ceph.images()))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert [name for name in ceph.images() if not name.startswith(HIDDEN)] == []
    assert on_rbd("volume_info")["volumes"] == []
    result = on_rbd("volume_clone", **wish)
    assert result.get("changed"), result
    assert ceph.images() == ["b"] and sha(content(ceph, "b")) == sha(noise(96 * MIB))


def test_work_in_progress_is_no_leftover(ceph, hypervisor, rbd, make_pool, on_rbd):
    files = make_pool()
    (files / "src").write_bytes(noise(96 * MIB))
    wish = {"uri": hypervisor.uri, "pool": "ceph", "source": "src", "source_pool": files.name}
    process = start_module("volume_clone", {**wish, "name": "b"})
    wait_until(lambda: any(name.startswith(HIDDEN) for name in ceph.images()))
    result = on_rbd("volume", name="c", size="1M")
    assert result.get("changed"), result
    assert finish_module(process)["changed"]
    assert sorted(ceph.images()) == ["b", "c"]


def test_four_at_once(hypervisor, ceph, rbd):
    wish = {"uri": hypervisor.uri, "pool": "ceph", "name": "a", "size": "4M"}
    results = [finish_module(p) for p in [start_module("volume", wish) for _time in range(4)]]
    for result in results:
        assert not result.get("failed"), result
    assert sum(bool(result.get("changed")) for result in results) == 1
    assert ceph.images() == ["a"]


# -- tools -------------------------------------------------------------------------------------------


@pytest.fixture
def without_rbd(tmp_path, hypervisor, rbd):
    """Run a module where the tool ``rbd`` can't be found."""
    instead = tmp_path / "rbd"
    instead.touch(mode=0o644)

    def run(module, **params):
        arguments = {"uri": hypervisor.uri, "pool": "ceph", **params}
        blind = ["unshare", "--mount", "--propagation", "private", "sh", "-c",
                 f'mount --bind {instead} /usr/bin/rbd && exec "$@"', "sh"]
        return finish_module(start_module(module, arguments, prefix=blind))

    return run


def test_without_the_tool(image, without_rbd):
    """What libvirt alone can do is done; what needs a look at who uses an image is not."""
    assert without_rbd("volume", name="b", size="1M")["changed"]
    assert sorted(v["name"] for v in without_rbd("volume_info", name=None)["volumes"]) == ["b"]
    for module, wish in (("volume", {"name": "b", "state": "absent"}), ("volume_resize", {"name": "b", "size": "2M"})):
        result = without_rbd(module, **wish)
        assert result["reason"] == "tool_missing" and "ceph-common" in result["msg"], result


def test_tool_that_fails(image, hypervisor, rbd, tmp_path):
    """Who uses an image can't be told then, and no list says that nobody does."""
    broken = tmp_path / "rbd"
    broken.write_text("#!/bin/sh\necho 'rbd: lost my way' >&2\nexit 3\n")
    broken.chmod(0o755)
    prefix = ["unshare", "--mount", "--propagation", "private", "sh", "-c", f'mount --bind {broken} /usr/bin/rbd && exec "$@"', "sh"]
    image()
    for module, wish in (("volume_info", {}), ("volume", {"name": "a", "state": "absent"})):
        where = {"uri": hypervisor.uri, "pool": [rbd.name()] if module == "volume_info" else rbd.name()}
        result = finish_module(start_module(module, {**where, **wish}, prefix=prefix))
        assert result.get("failed") and result["reason"] == "tool_failed" and "lost my way" in result["msg"], result


def test_the_key_is_nowhere_to_be_seen(ceph, image, make_pool, hypervisor, on_rbd):
    """Neither in a command line nor in a message."""
    key = ceph._run("ceph-authtool", ceph.root / "keyring", "-p", "-n", f"client.{USER}").strip()
    files = make_pool()
    result = on_rbd("volume_clone", source=image(), source_pool="ceph", name="b", pool=files.name)
    assert result["changed"] and key not in str(result)
    assert key not in str(on_rbd("volume_clone", source="a", name="a/b"))
