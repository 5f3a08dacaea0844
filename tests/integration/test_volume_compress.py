# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Compressing: space comes back, and nobody can tell by what he reads."""

from __future__ import annotations

import os
import random
import signal
import stat
import subprocess
import time

import pytest
from conftest import pool_directories
from support.hypervisors import disk
from support.images import (
    GIB,
    KIB,
    MIB,
    blank,
    content,
    digest,
    exported_by_nbd,
    file_sha,
    held_by_qemu_io,
    make,
    noise,
    overlay,
    patch,
    sh,
    take_snapshot,
    used,
    write,
)
from support.images import info as image_info
from support.runs import finish_module, look_at, run_module, start_module


@pytest.fixture
def compress(hypervisor, pool):
    """Run the module, by default for zeros on ``pool``."""

    def run(check=False, diff=False, **params):
        wish = {"uri": hypervisor.uri, "pool": pool.name, "method": "zeros", **params}
        return run_module("volume_compress", wish, check=check, diff=diff, timeout=120)

    return run


@pytest.fixture
def saved(compress, place):
    """Bytes reclaimed by one run in full: predicted without a touch, done as predicted, unchanged the second time."""

    def run(tolerance=0.05, **params):
        before = look_at(pool_directories(place))
        predicted = compress(check=True, diff=True, **params)
        assert look_at(pool_directories(place)) == before, "check mode touched something"
        assert not predicted.get("failed"), predicted
        real = compress(diff=True, **params)
        assert not real.get("failed"), real
        for key in ("changed", "actions", "diff"):
            assert predicted[key] == real[key], f"check mode promised another {key}"
        for result in (predicted, real):
            assert result["reclaimed"] == result["allocation_before"] - result["allocation_after"], result
            assert result["changed"] == bool(result["actions"]) == (result["reclaimed"] > 0), result
            assert result["reclaimed"] == sum(saving["reclaimed"] for saving in result["savings"])
        assert predicted["allocation_before"] == real["allocation_before"]
        assert abs(predicted["reclaimed"] - real["reclaimed"]) <= tolerance * real["reclaimed"], (predicted, real)
        again = compress(diff=True, **params)
        assert not again.get("failed") and not again["changed"] and again["actions"] == [], again
        assert again["allocation_before"] == again["allocation_after"] == real["allocation_after"], again
        assert again["reclaimed"] == 0 and again["diff"]["before"] == again["diff"]["after"], again
        return real["reclaimed"]

    return run


@pytest.fixture
def refuses(compress, refused):
    def run(reason, **params):
        return refused(reason, fails=compress, **{"name": "a", **params})

    return run


def dirty(path, size=8 * MIB, options="", seed="seed"):
    """An image of ``size``: noise in its first half, written zeros (that take room) in the second."""
    blank(path, size, options=options)
    with path.with_suffix(".noise").open("wb") as file:
        file.write(noise(size // 2, seed))
    try:
        sh("qemu-io", "-f", "qcow2", "-c", f"write -q -s {file.name} 0 {size // 2}",
           "-c", f"write -q -P 0 {size // 2} {size // 2}", path)
    finally:
        os.unlink(file.name)
    assert used(path) > size
    return path


def sound(path):
    return subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", path], check=False).returncode == 0


# -- zeros -----------------------------------------------------------------------------------------


LAYOUTS = ["", "cluster_size=4k", "cluster_size=512", "cluster_size=2M", "compat=0.10", "lazy_refcounts=on",
           "extended_l2=on,cluster_size=128k", "refcount_bits=64", "preallocation=metadata", "preallocation=full"]


@pytest.mark.parametrize("options", LAYOUTS)
def test_zeros_are_given_back(saved, pool, options):
    path = dirty(pool / "a", options=options)
    before, inode = digest(path), path.stat().st_ino
    facts = image_info(path)
    # With clusters smaller than blocks, those that share a block with a table stay.
    assert (3.5 if "512" in options else 4) * MIB <= saved(name="a") <= 4 * MIB
    assert (digest(path), path.stat().st_ino) == (before, inode) and sound(path)
    after = image_info(path)
    assert {**after, "actual-size": 0} == {**facts, "actual-size": 0}


def test_reserved_space_that_was_never_written(saved, pool):
    blank(pool / "a", 8 * MIB, options="preallocation=falloc")
    assert saved(name="a") >= 8 * MIB - 64 * KIB
    assert digest(pool / "a") == digest(blank(pool / "b", 8 * MIB))


def test_every_other_cluster(saved, pool):
    path = blank(pool / "a", 8 * MIB)
    commands = [f"write -q -P {n % 2 * 7} {n * 64}k 64k" for n in range(128)]
    sh("qemu-io", "-f", "qcow2", *(part for c in commands for part in ("-c", c)), path)
    before = digest(path)
    assert saved(name="a") == 4 * MIB
    assert digest(path) == before and sound(path)


def test_clusters_zeroed_without_giving_them_back(saved, pool):
    path = blank(pool / "a", 8 * MIB)
    sh("qemu-io", "-f", "qcow2", "-c", "write -q -P 9 0 8M", "-c", "write -q -z 0 6M", path)
    assert used(path) > 8 * MIB
    before = digest(path)
    assert saved(name="a") == 6 * MIB
    assert digest(path) == before and sound(path)
    write(path, 3, 100 * KIB, 10)  # into one that was given back
    assert content(path)[64 * KIB : 128 * KIB] == bytes(36 * KIB) + b"\3" * 10 + bytes(28 * KIB - 10)


def test_in_snapshots_too_and_only_zeros(saved, pool):
    path = dirty(pool / "a")
    take_snapshot(path, "one")
    write(path, 0, 0, 2 * MIB)
    take_snapshot(path, "two")
    sh("qemu-io", "-f", "qcow2", "-c", "write -q -z 2M 1M", path)

    def views():
        sh("qemu-img", "convert", "-l", "one", "-O", "raw", path, pool / "x")
        one = file_sha(pool / "x")
        sh("qemu-img", "convert", "-l", "two", "-O", "raw", path, pool / "x")
        two = file_sha(pool / "x")
        (pool / "x").unlink()
        return digest(path), one, two

    before = views()
    assert saved(name="a") == 6 * MIB  # 4 of the first snapshot, 2 written over with zeros
    assert views() == before and sound(path)
    sh("qemu-img", "snapshot", "-a", "one", path)
    assert content(path)[: 4 * MIB] == noise(4 * MIB)


def test_overlay_keeps_its_zeros(saved, pool):
    make(pool / "base", size=8 * MIB, seed="base")
    path = overlay(pool / "a", pool / "base")
    write(path, 0, 0, 4 * MIB)
    before = digest(path)
    assert content(path)[: 4 * MIB] == bytes(4 * MIB)
    assert saved(name="a") == 4 * MIB
    assert digest(path) == before and image_info(path)["backing-filename"] == str(pool / "base")


def test_base_of_stopped_overlays(saved, compress, pool, domain):
    dirty(pool / "base")
    path = overlay(pool / "a", pool / "base")
    write(path, 5, MIB, MIB)
    domain(disk(path), running=False)
    before = digest(path)
    assert saved(name="base") == 4 * MIB
    assert digest(path) == before
    result = compress(name="base", method="trim")
    assert result["failed"] and result["reason"] == "volume_has_dependents" and result["dependents"], result


def test_compressed_clusters_stay(saved, pool):
    make(pool / "x", size=8 * MIB)
    sh("qemu-img", "convert", "-c", "-O", "qcow2", pool / "x", pool / "a")
    (pool / "x").unlink()
    write(pool / "a", 0, 6 * MIB, 2 * MIB)
    before = digest(pool / "a")
    assert saved(name="a") == 2 * MIB
    assert digest(pool / "a") == before and sound(pool / "a")


def test_owner_mode_labels_and_attributes_stay(saved, pool):
    path = dirty(pool / "a")
    set_rights(path)
    before = rights(path)
    assert saved(name="a") == 4 * MIB
    assert rights(path) == before


def set_rights(path):
    os.chown(path, 1234, 4321)
    path.chmod(0o640)
    os.setxattr(path, "user.note", b"mine")
    os.setxattr(path, "trusted.note", b"root's")
    # user::rw-, user 77: r--, group::r--, mask::r--, other::--- (acl(5), linux/posix_acl_xattr.h)
    entries = ((1, 6, -1), (2, 4, 77), (4, 4, -1), (16, 4, -1), (32, 0, -1))
    acl = b"\2\0\0\0" + b"".join(
        kind.to_bytes(2, "little") + bits.to_bytes(2, "little") + (who % 2**32).to_bytes(4, "little") for kind, bits, who in entries
    )
    os.setxattr(path, "system.posix_acl_access", acl)


def rights(path):
    found = path.stat()
    return found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode), {n: os.getxattr(path, n) for n in os.listxattr(path)}


def test_full_pool(hypervisor, small):
    path = dirty(small / "a", 16 * MIB)
    filler = small / "filler"
    with filler.open("wb", buffering=0) as file:
        with pytest.raises(OSError, match="No space"):
            while True:
                file.write(bytes([1]) * 4 * KIB)
    assert os.statvfs(small.path).f_bfree == 0
    before = digest(path)
    result = run_module("volume_compress", {"uri": hypervisor.uri, "pool": "small", "name": "a", "method": "zeros"})
    assert result["changed"] and result["reclaimed"] == 8 * MIB, result
    assert digest(path) == before and os.statvfs(small.path).f_bfree > 0


def test_min_reclaim(saved, compress, pool):
    dirty(pool / "a")
    assert saved(name="a", min_reclaim="4.1M") == 0
    assert saved(name="a", min_reclaim="4M") == 4 * MIB
    assert saved(name="a", min_reclaim=1) == 0
    for bad in ("0", "-1M", "much"):
        result = compress(name="a", min_reclaim=bad)
        assert result["failed"] and result["reason"] == "invalid_size", result


def test_several(compress, saved, pool):
    dirty(pool / "a")
    blank(pool / "b", 8 * MIB)
    dirty(pool / "c")
    assert saved(name=["a", "b", "c"]) == 8 * MIB
    result = compress(name=["a", "b"])
    assert [saving["name"] for saving in result["savings"]] == ["a", "b"] and len(result["volumes"]) == 2


def test_one_refused_of_several_keeps_all(refuses, pool, domain):
    dirty(pool / "a")
    dirty(pool / "b")
    domain(disk(pool / "b"))
    refuses("volume_in_use", name=["a", "b"])


def test_flat_memory(hypervisor, pool):
    """20 GiB of which every 20th MiB is there, half of that zeros: no more than 200 MiB of memory."""
    path = blank(pool / "a", 20 * GIB)
    commands = [f"write -q -P {n % 2} {n * 20}M 1M" for n in range(1024)]
    subprocess.run(["qemu-io", "-f", "qcow2", path], input="\n".join(commands), text=True, check=True, stdout=subprocess.DEVNULL)
    process = start_module("volume_compress", {"uri": hypervisor.uri, "pool": pool.name, "name": "a", "method": "zeros"},
                           prefix=["/bin/bash", "-c", 'ulimit -d 204800; exec "$@"', "bash"])
    assert finish_module(process)["reclaimed"] == 512 * MIB


# -- whom it refuses -------------------------------------------------------------------------------


def test_attached(refuses, pool, domain):
    dirty(pool / "a")
    domain(disk(pool / "a"), running=False)
    assert refuses("volume_in_use")["attachments"]


def test_base_of_a_running_overlay(refuses, pool, domain):
    dirty(pool / "a")
    overlay(pool / "b", pool / "a")
    domain(disk(pool / "b"))
    assert refuses("volume_in_use")["attachments"]


@pytest.mark.parametrize("holder", [held_by_qemu_io, exported_by_nbd])
def test_open_elsewhere(refuses, pool, holder):
    with holder(dirty(pool / "a")):
        refuses("volume_in_use")


def test_only_qcow2(refuses, pool):
    blank(pool / "a", MIB, "raw")
    refuses("unsupported")


def test_not_there(refuses):
    refuses("volume_not_found")


def test_encrypted(refuses, pool):
    sh("qemu-img", "create", "-q", "-f", "qcow2", "--object", "secret,id=s,data=abc",
       "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", pool / "a", "1M")
    refuses("unsupported")


def test_marked_as_corrupt(refuses, pool):
    patch(dirty(pool / "a"), 79, b"\2")
    refuses("unsafe_image")


@pytest.mark.parametrize("entry", [0x8000000000000001 << 9, 0x80FFFFFFFFFF0000, 0x8000000000050200], ids=hex)
def test_damaged_tables(compress, pool, entry):
    """Whatever the tables say: a clear refusal, or what holds no zeros stays."""
    path = dirty(pool / "a")
    l1 = int.from_bytes(path.read_bytes()[40:48], "big")
    patch(path, l1, (entry & (1 << 64) - 1).to_bytes(8, "big"))
    before = file_sha(path)
    result = compress(name="a")
    assert result.get("reason") == "unsafe_image", result
    assert "qemu-img check" in result["msg"]
    assert file_sha(path) == before


def test_a_domain_that_comes_between(hypervisor, pool, domain):
    """A domain that starts while a volume is worked on can't get it, and no work begins on one that it got."""
    path = dirty(pool / "a", 64 * MIB)
    process = start_module("volume_compress", {"uri": hypervisor.uri, "pool": pool.name, "name": "a", "method": "zeros"})
    started = None
    for _attempt in range(200):
        try:
            started = domain(disk(path), name="late")
            break
        except Exception:  # refused by the lock
            time.sleep(0.01)
    result = finish_module(process)
    assert started is not None
    assert result.get("reason") == "volume_in_use" or result["reclaimed"] == 32 * MIB, result
    assert content(path)[: 32 * MIB] == noise(32 * MIB)
