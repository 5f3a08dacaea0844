# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Copies of volumes that stand still: full, independent, as thin as the source, by the fastest way that is right."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import at_work_in
from support.hypervisors import disk
from support.images import (
    GIB,
    KIB,
    MIB,
    blank,
    content,
    digest,
    encrypted,
    file_sha,
    held_by_qemu_io,
    luks,
    luks_alone,
    make,
    noise,
    overlay,
    patch,
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
from support.runs import finish_module, go_on, look_at, run_module, start_module
from support.spoiled import with_spoiled_copies

ALL_DATA = sha(noise(2 * MIB) + bytes(2 * MIB))  # of an image of 4 MiB


@pytest.fixture
def kept(refused, clone):
    """A wish that is refused, in check mode too; nothing is touched."""

    def run(reason, **params):
        return refused(reason, fails=clone, **params)

    return run


# -- copies ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("elsewhere", [False, True], ids=["same", "other"])
@pytest.mark.parametrize(("source", "wanted"), [("qcow2", None), ("raw", None), ("qcow2", "raw"), ("raw", "qcow2")])
def test_independent_copy(cloned, make_pool, pool, source, wanted, elsewhere):
    home = make_pool() if elsewhere else pool
    make(home / "a", source)
    made = cloned(of=home if elsewhere else None, **({"format": wanted} if wanted else {}))
    assert (made["format"], made["capacity"]) == (wanted or source, 4 * MIB)
    assert "(qemu-img convert)" in made["actions"][0], "this file system shares no extents"
    (home / "a").unlink()
    assert digest(pool / "b", made["format"]) == ALL_DATA


@pytest.mark.parametrize("wanted", ["qcow2", "raw"])
def test_chain_is_flattened(cloned, make_pool, pool, wanted):
    images = make_pool()
    base = make(images / "base", "raw")
    middle = overlay(images / "middle", base, "raw")
    write(middle, 0x11, offset=MIB)
    top = overlay(pool / "a", middle)
    write(top, 0x22, offset=3 * MIB)
    expected = digest(top)
    cloned(format=wanted)
    for layer in (top, middle, base):
        layer.unlink()
    assert digest(pool / "b", wanted) == expected
    assert content(pool / "b", wanted)[3 * MIB:] == b"\x22" * MIB


def test_overlay_that_is_larger_than_its_backing_file(cloned, pool):
    base = make(pool / "base")
    sh("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, pool / "a", "6M")
    cloned(verify=True)
    data = content(pool / "b")
    assert sha(data[:4 * MIB]) == ALL_DATA and data[4 * MIB:] == bytes(2 * MIB)


def test_what_an_overlay_zeroed_stays_zero(cloned, pool):
    make(pool / "base")
    overlay(pool / "a", pool / "base")
    sh("qemu-io", "-f", "qcow2", "-c", "write -z 0 1M", pool / "a")
    cloned()
    assert content(pool / "b")[:MIB] == bytes(MIB) and digest(pool / "b") == digest(pool / "a") != ALL_DATA


@pytest.mark.parametrize("options", [
    "compat=0.10", "cluster_size=4K,lazy_refcounts=on", "extended_l2=on,cluster_size=128K", "compression_type=zstd",
    "cluster_size=32K,extended_l2=on,compression_type=zstd,lazy_refcounts=on",
    "refcount_bits=64,cluster_size=2M",
])
def test_features_are_kept(cloned, pool, options):
    def features(name):
        found = image_info(pool / name)
        return found["cluster-size"], found["format-specific"]["data"]

    make(pool / "a", options=options)
    made = cloned()
    assert features("a") == features("b")
    assert made["cluster_size"] == image_info(pool / "a")["cluster-size"]
    assert digest(pool / "b") == ALL_DATA


def test_options_come_before_what_the_source_has(cloned, pool):
    make(pool / "a", options="cluster_size=4K,lazy_refcounts=on")
    assert cloned(cluster_size="128K", preallocation="full")["cluster_size"] == 131072
    assert image_info(pool / "b")["cluster-size"] == 131072
    assert image_info(pool / "b")["format-specific"]["data"]["lazy-refcounts"] is True
    assert used(pool / "b") >= 4 * MIB and digest(pool / "b") == ALL_DATA


def test_space_is_reserved_on_demand(cloned, pool):
    make(pool / "a", "raw")
    cloned(preallocation="falloc", size="8M")
    assert used(pool / "b") >= 8 * MIB and digest(pool / "b", "raw", 4 * MIB) == ALL_DATA


def test_compressed_clusters_can_be_copied(cloned, pool):
    make(pool / "base")
    sh("qemu-img", "convert", "-c", "-O", "qcow2", pool / "base", pool / "a")
    cloned(verify=True)
    assert digest(pool / "b") == ALL_DATA


@pytest.mark.parametrize(("source", "wanted"), [("raw", "raw"), ("raw", "qcow2"), ("qcow2", "raw"), ("qcow2", "qcow2")])
def test_verify_finds_a_byte_that_differs(hypervisor, clone, pool, outside, source, wanted):
    make(pool / "a", source)
    wish = {"uri": hypervisor.uri, "pool": pool.name, "source": "a", "name": "b", "format": wanted, "verify": True}
    result = run_module("volume_clone", wish, prefix=with_spoiled_copies(outside))
    assert result.get("reason") == "tool_failed" and "differs" in result["msg"] and not result.get("changed"), result
    assert os.listdir(pool.path) == ["a"]
    assert clone(format=wanted, verify=True)["changed"]


@pytest.mark.parametrize(("source", "wanted"), [("raw", "raw"), ("raw", "qcow2"), ("qcow2", "raw"), ("qcow2", "qcow2")])
def test_sparse_stays_sparse(checked, clone, pool, source, wanted):
    blank(pool / "a", 20 * GIB, source)
    write(pool / "a", 0x33, 15 * GIB, fmt=source)
    result = checked(does=clone, format=wanted, verify=True)
    assert result["volume"]["capacity"] == 20 * GIB
    assert used(pool / "b") < 5 * MIB
    assert sh("qemu-io", "-r", "-f", wanted, "-c", f"read -P 0x33 {15 * GIB} 1M", pool / "b")
    assert "Pattern verification failed" not in sh(
        "qemu-io", "-r", "-f", wanted, "-c", f"read -P 0x33 {15 * GIB} 1M", "-c", "read -P 0 1G 1M", pool / "b")


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize(("source", "wanted"), [("raw", "raw"), ("raw", "qcow2"), ("qcow2", "raw"), ("qcow2", "qcow2")])
def test_holes_are_not_read(hypervisor, pool, source, wanted, verify):
    """Of 20 GiB one MiB is there: the module and its tools together read little more than themselves."""
    blank(pool / "a", 20 * GIB, source)
    write(pool / "a", 0x33, 15 * GIB, fmt=source)
    params = {"uri": hypervisor.uri, "pool": pool.name, "source": "a", "name": "b", "format": wanted, "verify": verify}
    # Of children that it has waited for, a process has the sums.
    process = start_module("volume_clone", params, prefix=["bash", "-c", '"$@" && cat /proc/$$/io >&2', "bash"])
    out, err = process.communicate(timeout=60)
    assert json.loads(out)["changed"], out
    assert int(re.search(r"rchar: (\d+)", err)[1]) < 64 * MIB, err


@pytest.mark.parametrize(("source", "wanted"), [("qcow2", "qcow2"), ("raw", "raw")])
def test_flat_memory(hypervisor, pool, source, wanted):
    """20 GiB of which every 160th MiB is there: the module itself takes no more than 200 MiB of memory."""
    path = blank(pool / "a", 20 * GIB, source)
    commands = [f"write -q -P 1 {n * 160}M 1M" for n in range(128)]
    subprocess.run(["qemu-io", "-f", source, path], input="\n".join(commands), text=True, check=True, stdout=subprocess.DEVNULL)
    params = {"uri": hypervisor.uri, "pool": pool.name, "source": "a", "name": "b", "format": wanted, "verify": True}
    process = start_module("volume_clone", params)
    peak = 0
    while process.poll() is None:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
        peak = max(peak, int(found[1]) * KIB if found else 0)
        time.sleep(0.01)
    result = finish_module(process)
    assert result.get("changed"), result
    assert 10 * MIB < peak < 200 * MIB
    assert 128 * MIB <= used(pool / "b") < 140 * MIB


@pytest.mark.parametrize(("source", "wanted"), [("raw", "raw"), ("qcow2", "qcow2"), ("qcow2", "raw")])
def test_larger(cloned, pool, source, wanted):
    make(pool / "a", source)
    assert cloned(size="6M", format=wanted, verify=True)["capacity"] == 6 * MIB
    data = content(pool / "b", wanted)
    assert sha(data[:4 * MIB]) == ALL_DATA and data[4 * MIB:] == bytes(2 * MIB)


def test_smaller_is_refused(kept, pool):
    make(pool / "a")
    kept("shrink_refused", size="3M")


def test_owner_group_and_mode(cloned, pool):
    make(pool / "a")
    cloned(owner="nobody", group="nogroup", mode="0640")
    st = (pool / "b").stat()
    assert (st.st_uid, st.st_gid, oct(st.st_mode & 0o7777)) == (65534, 65534, "0o640")


def test_internal_snapshots_stay_behind(cloned, pool):
    take_snapshot(make(pool / "a"), "old")
    write(pool / "a", 0x44)
    made = cloned()
    assert any("snapshot" in warning for warning in made["warnings"])
    assert digest(pool / "b") == digest(pool / "a") != ALL_DATA
    assert used(pool / "b") < used(pool / "a"), "nor is their data"


def test_several_copies(checked, clone, pool):
    make(pool / "a")
    names = ["-b", "b '\"<&>", "nbd:b", "json:{}", "ü%s"]
    make(pool / "there")
    result = checked(does=clone, name=[*names, "there"])
    assert len(result["actions"]) == 5 and "volume" not in result
    assert [volume["name"] for volume in result["volumes"]] == [*names, "there"]
    for name in names:
        (pool / name).rename(pool / "look")  # a name that every tool takes as it is
        assert digest(pool / "look") == ALL_DATA


def test_source_with_an_odd_name(cloned, pool):
    make(pool / "nbd:-a '\"<&>%s")
    cloned(source="nbd:-a '\"<&>%s")
    assert digest(pool / "b") == ALL_DATA


def test_attached_to_a_domain_that_is_off(cloned, pool, domain):
    domain(disk(make(pool / "a")), running=False)
    cloned(consistency="offline")
    assert digest(pool / "b") == ALL_DATA


def test_live_is_allowed_of_what_stands_still(cloned, pool):
    make(pool / "a")
    cloned(consistency="live")
    assert digest(pool / "b") == ALL_DATA


def test_backing_layer_of_a_running_domain(cloned, pool, domain):
    domain(disk(overlay(pool / "top", make(pool / "a"))))
    cloned()
    assert digest(pool / "b") == ALL_DATA


def test_raw_file_that_is_no_multiple_of_a_sector(checked, clone, pool):
    (pool / "a").write_bytes(noise(1000))
    assert checked(does=clone)["volume"]["capacity"] == 1024
    assert (pool / "b").read_bytes()[:1000] == noise(1000)


# -- what is there already ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", [4, 8])
def test_existing_is_enough(checked, clone, pool, size):
    make(pool / "a")
    before = file_sha(make(pool / "b", size=size * MIB, seed="other"))
    assert not checked(does=clone)["changed"]
    assert file_sha(pool / "b") == before, "never overwritten"


def test_existing_is_enough_while_its_own_domain_and_the_sources_run(checked, clone, pool, domain):
    domain(disk(make(pool / "a")))
    domain(disk(make(pool / "b", seed="other")))
    assert not checked(does=clone)["changed"]


@pytest.mark.parametrize(("there", "wish"), [
    (lambda pool: make(pool / "b", "raw"), {}),
    (lambda pool: make(pool / "b"), {"format": "raw"}),
    (lambda pool: make(pool / "b", size=3 * MIB), {}),
    (lambda pool: make(pool / "b"), {"size": "6M"}),
    (lambda pool: overlay(pool / "b", pool / "a"), {}),
], ids=["format", "wanted-format", "smaller", "wanted-size", "overlay"])
def test_existing_is_something_else(kept, pool, there, wish):
    make(pool / "a")
    before = file_sha(there(pool))
    kept("volume_mismatch", **wish)
    kept("volume_mismatch", name=["c", "b"], **wish)
    assert file_sha(pool / "b") == before and not (pool / "c").exists()


@pytest.mark.parametrize("takes", [
    lambda path: path.write_text("somebody's notes"), lambda path: path.mkdir(), lambda path: path.symlink_to("/nowhere/at/all"),
    lambda path: path.write_bytes(b""), os.mkfifo,
], ids=["text", "directory", "dangling link", "empty", "pipe"])
def test_name_is_taken_by_what_libvirt_never_listed(clone, pool, takes):
    make(pool / "a")
    pool.refresh()
    takes(pool / "b")
    before = look_at([pool.path])
    results = [clone(check=check) for check in (True, False)]
    assert {result.get("reason") for result in results} in ({"volume_mismatch"}, {"unsupported"}), results
    assert results[0]["msg"] == results[1]["msg"] and "'b'" in results[0]["msg"].replace(str(pool / "b"), "b")
    assert look_at([pool.path]) == before


@pytest.mark.parametrize("wanted", ["qcow2", "raw"])
def test_name_is_taken_at_the_last_moment(hypervisor, clone, pool, wanted):
    make(pool / "a", size=128 * MIB)
    params = {"uri": hypervisor.uri, "pool": pool.name, "source": "a", "name": "b", "format": wanted, "verify": True}
    for _attempt in range(20):  # the copy may be complete before it is met
        process = start_module("volume_clone", params)
        wait_until(lambda: process.poll() is not None or at_work_in(pool.path))  # noqa: B023
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGSTOP)
        met = process.poll() is None and not (pool / "b").exists()
        if met:
            (pool / "b").write_text("somebody's notes")
        go_on(process)
        result = finish_module(process)
        if met:
            break
        (pool / "b").unlink()
    assert result.get("reason") == "volume_mismatch" and not result.get("changed"), result
    assert (pool / "b").read_text() == "somebody's notes"
    assert sorted(os.listdir(pool.path)) == ["a", "b"]


# -- what is refused ---------------------------------------------------------------------------------


def test_space(kept, small, make_pool):
    images = make_pool()
    make(images / "a", size=100 * MIB)
    result = kept("insufficient_space", pool=small.name, source_pool=images.name)
    assert result["required"] >= 50 * MIB > result["available"]
    assert str(result["required"]) in result["msg"] and str(result["available"]) in result["msg"]


def test_space_of_several_is_summed_up(kept, small, make_pool):
    make(make_pool("images") / "a", size=40 * MIB)
    kept("insufficient_space", pool=small.name, source_pool="images", name=["b", "c", "d"])


def test_space_that_is_only_promised(kept, cloned, small, make_pool):
    images = make_pool()
    blank(images / "a", GIB)
    kept("insufficient_space", pool=small.name, source_pool=images.name, overcommit=False)
    assert any("space" in w or "free" in w for w in cloned(on=small, of=images)["warnings"])


@pytest.mark.parametrize(("reason", "wish"), [
    ("volume_not_found", {"source": "none"}),
    ("pool_not_found", {"source_pool": "none"}),
    ("pool_not_found", {"pool": "none"}),
    ("invalid_option", {"name": "a"}),
    ("invalid_option", {"name": ["b", "a"]}),
    ("invalid_name", {"name": "../b"}),
    ("invalid_name", {"source": "../a"}),
    ("invalid_size", {"size": "-1"}),
    ("invalid_option", {"format": "raw", "cluster_size": "64K"}),
], ids=str)
def test_bad_wishes(kept, pool, reason, wish):
    make(pool / "a")
    kept(reason, **wish)


@pytest.mark.parametrize("wish", [
    {"format": "raw", "cluster_size": "64K"}, {"format": "raw", "preallocation": "metadata"}, {"cluster_size": "3K"},
], ids=str)
@pytest.mark.parametrize("there", [False, True], ids=["new", "there"])
def test_options_that_no_copy_can_have(kept, pool, wish, there):
    """They are wrong whether or not the copy is there already."""
    make(pool / "a")
    if there:
        make(pool / "b", wish.get("format", "qcow2"))
    kept("invalid_option", **wish)


def test_source_pool_that_is_not_active(kept, make_pool):
    images = make_pool()
    make(images / "a")
    images.stop()
    kept("pool_inactive", source_pool=images.name)


@pytest.mark.parametrize("wish", [{}, {"format": "raw"}, {"size": "4M"}, {"verify": True}], ids=str)
@pytest.mark.parametrize("encrypts", [encrypted, luks, luks_alone])
def test_encrypted_source(kept, pool, encrypts, wish):
    """What only its own domain has the key for, in QEMU's old method, as LUKS within qcow2, and as LUKS without."""
    encrypts(pool / "a")
    for _time in range(2):
        assert "encrypted" in kept("unsupported", **wish)["msg"]
        pool.refresh()  # then libvirt has an opinion on it, too


@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
def test_source_that_an_unknown_process_writes(kept, cloned, pool, fmt):
    path = make(pool / "a", fmt)
    with held_by_qemu_io(path, fmt):
        kept("volume_in_use")
    cloned()


HOSTILE = {
    "overlay of a file outside": lambda pool, secret: overlay(pool / "a", secret, "raw"),
    "its base is an overlay of a file outside":
        lambda pool, secret: overlay(pool / "a", overlay(pool / "base", secret, "raw")),
    "raw disk with a header that names a file outside":
        lambda pool, secret: (pool / "a").write_bytes(qcow2_header(MIB, str(secret)).ljust(MIB, b"\0")),
    "itself as backing file":
        lambda pool, secret: patch(blank(pool / "a"), 0, qcow2_header(MIB, str(pool / "a"))),
    "a protocol as backing file":
        lambda pool, secret: patch(blank(pool / "a"), 0, qcow2_header(MIB, f'json:{{"driver":"raw","file.filename":"{secret}"}}')),
    "a data file": lambda pool, secret: blank(pool / "a", options=f"data_file={secret},data_file_raw=on"),
    "a descriptor that names a file outside": lambda pool, secret: (pool / "a").write_text(
        f'# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="monolithicFlat"\nRW 2 FLAT "{secret}" 0\n'
        .ljust(1024)),
}


@pytest.mark.parametrize("how", HOSTILE)
def test_hostile_source(refused, clone, pool, outside, how):
    secret = outside / "secret"
    secret.write_bytes(b"a line that only the host may read\n" * 64)
    HOSTILE[how](pool, secret)
    before = file_sha(secret)
    if how.startswith("a descriptor"):  # as raw bytes it is harmless, as what it claims it is not
        result = clone()
        assert result.get("reason") == "unsafe_image" or digest(pool / "b", "raw") == file_sha(pool / "a")
    else:
        refused("unsafe_image", fails=clone)
        refused("unsafe_image", fails=clone, format="raw")
    assert file_sha(secret) == before


# -- killed, and many at once ------------------------------------------------------------------------


def test_killed(hypervisor, pool):
    make(pool / "a", size=128 * MIB)
    params = {"uri": hypervisor.uri, "pool": pool.name, "source": "a", "name": "b"}
    for delay in (0, 0.05, 0.1):
        process = start_module("volume_clone", params)
        while process.poll() is None and not at_work_in(pool.path):
            time.sleep(0.005)
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if (pool / "b").exists():
            assert digest(pool / "b") == digest(pool / "a")
            (pool / "b").unlink()
        wait_until(lambda: not at_work_in(pool.path))
    assert run_module("volume_clone", params)["changed"]
    assert digest(pool / "b") == digest(pool / "a")
    assert sorted(os.listdir(pool.path)) == ["a", "b"]


def test_four_at_once(hypervisor, pool):
    make(pool / "a", size=32 * MIB)
    params = {"uri": hypervisor.uri, "pool": pool.name, "source": "a", "name": "b"}
    results = [finish_module(p) for p in [start_module("volume_clone", params) for _time in range(4)]]
    for result in results:
        assert not result.get("failed"), result
    assert sum(bool(result.get("changed")) for result in results) == 1
    assert digest(pool / "b") == digest(pool / "a")


def test_bitmaps_stay_behind(cloned, pool):
    sh("qemu-img", "bitmap", "--add", make(pool / "a"), "m")
    assert any("bitmap" in warning for warning in cloned()["warnings"])
