# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Compressing: space comes back, and nobody can tell by what he reads."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import subprocess
import time

import libvirt
import pytest
from conftest import at_work_in, pool_directories
from support.faults import Tree
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
    wait_until,
    write,
)
from support.images import info as image_info
from support.runs import finish_module, look_at, run_module, start_module
from support.spoiled import with_spoiled_copies


@pytest.fixture
def compress(hypervisor, pool):
    """Run the module, by default for zeros on ``pool``."""

    def run(check=False, diff=False, **params):
        wish = {"uri": hypervisor.uri, "pool": pool.name, "method": "zeros", **params}
        return run_module("volume_compress", wish, check=check, diff=diff, timeout=300)

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


def about(size):
    """The file system's own notes on a file's holes take blocks too."""
    return pytest.approx(size, rel=0.01)


def sound(path):
    return subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", path], check=False).returncode == 0


# -- zeros -----------------------------------------------------------------------------------------


LAYOUTS = ["", "cluster_size=4k", "cluster_size=512", "cluster_size=2M", "compat=0.10", "lazy_refcounts=on,refcount_bits=64",
           "extended_l2=on,cluster_size=128k", "preallocation=metadata", "preallocation=full"]


@pytest.mark.parametrize("options", LAYOUTS)
def test_zeros_are_given_back(saved, pool, options):
    path = dirty(pool / "a", options=options)
    before, inode = digest(path), path.stat().st_ino
    facts = image_info(path)
    # With clusters smaller than blocks, those that share a block with a table stay.
    reclaimed = saved(name="a")
    assert reclaimed == about(4 * MIB) or ("512" in options and reclaimed > 3.5 * MIB)
    assert (digest(path), path.stat().st_ino) == (before, inode) and sound(path)
    after = image_info(path)
    measured = dict.fromkeys(("actual-size", "children"))  # QEMU 8 and later tell of the file as a child, with its size
    assert {**after, **measured} == {**facts, **measured}


def test_written_a_moment_ago(compress, pool):
    """File systems count what waits for its place differently; both runs must see it placed."""
    dirty(pool / "b")
    sh("cp", "--sparse=always", pool / "b", pool / "a")  # more pieces than an inode of ext4 has room for
    predicted, real = (compress(name="a", method="zeros", check=check, diff=True) for check in (True, False))
    assert not predicted.get("failed") and not real.get("failed"), (predicted, real)
    assert predicted["diff"] == real["diff"] and predicted["allocation_before"] == real["allocation_before"] == used(pool / "a")


def test_reserved_space_that_was_never_written(saved, pool):
    blank(pool / "a", 8 * MIB, options="preallocation=falloc")
    assert saved(name="a") >= 8 * MIB - 64 * KIB
    assert digest(pool / "a") == digest(blank(pool / "b", 8 * MIB))


def test_every_other_cluster(saved, pool):
    path = striped(pool / "a", 8 * MIB)
    before = digest(path)
    assert saved(name="a") == about(4 * MIB)
    assert digest(path) == before and sound(path)


def test_clusters_zeroed_without_giving_them_back(saved, pool):
    path = blank(pool / "a", 8 * MIB)
    sh("qemu-io", "-f", "qcow2", "-c", "write -q -P 9 0 8M", "-c", "write -q -z 0 6M", path)
    assert used(path) > 8 * MIB
    before = digest(path)
    assert saved(name="a") == about(6 * MIB)
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
    # 4 MiB of the first snapshot, 2 written over with zeros
    assert saved(name="a") == about(6 * MIB)
    assert views() == before and sound(path)
    sh("qemu-img", "snapshot", "-a", "one", path)
    assert content(path)[: 4 * MIB] == noise(4 * MIB)


def test_parts_of_clusters(saved, pool):
    """With extended L2 entries a cluster has parts that are there, zeroed, or read from below."""
    make(pool / "base", size=4 * MIB, seed="base")
    path = pool / "a"
    sh("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-o", "extended_l2=on,cluster_size=128k", "-b", pool / "base", path)
    commands = []
    for start in range(0, 2 * MIB, 128 * KIB):  # 4 KiB are one part
        commands += [f"write -q -P 0 {start + 8 * KIB} 32k", f"write -q -P 9 {start + 64 * KIB} 8k"]
        commands += [f"write -q -z {start + 96 * KIB} 16k"]
    for start in range(2 * MIB, 4 * MIB, 128 * KIB):
        commands += [f"write -q -P 9 {start} 128k", f"write -q -z {start} 128k"]
    sh("qemu-io", "-f", "qcow2", *(part for command in commands for part in ("-c", command)), path)
    before = digest(path)
    assert saved(name="a", min_reclaim="64K") > 1.9 * MIB
    assert digest(path) == before and sound(path)
    write(path, 3, 9 * KIB, 10)
    assert content(path)[8 * KIB : 40 * KIB] == bytes(KIB) + b"\3" * 10 + bytes(31 * KIB - 10)


def test_overlay_keeps_its_zeros(saved, pool):
    make(pool / "base", size=8 * MIB, seed="base")
    path = overlay(pool / "a", pool / "base")
    write(path, 0, 0, 4 * MIB)
    before = digest(path)
    assert content(path)[: 4 * MIB] == bytes(4 * MIB)
    assert saved(name="a") == about(4 * MIB)
    assert digest(path) == before and image_info(path)["backing-filename"] == str(pool / "base")


def test_base_of_stopped_overlays(saved, compress, pool, domain):
    dirty(pool / "base")
    path = overlay(pool / "a", pool / "base")
    write(path, 5, MIB, MIB)
    domain(disk(path), running=False)
    before = digest(path)
    assert saved(name="base") == about(4 * MIB)
    assert digest(path) == before
    result = compress(name="base", method="trim")
    assert result["failed"] and result["reason"] == "volume_has_dependents" and result["dependents"], result


def test_compressed_clusters_stay(saved, pool):
    make(pool / "x", size=8 * MIB)
    sh("qemu-img", "convert", "-c", "-O", "qcow2", pool / "x", pool / "a")
    (pool / "x").unlink()
    write(pool / "a", 0, 6 * MIB, 2 * MIB)
    before = digest(pool / "a")
    assert saved(name="a") == about(2 * MIB)
    assert digest(pool / "a") == before and sound(pool / "a")


def test_owner_mode_labels_and_attributes_stay(saved, pool):
    path = dirty(pool / "a")
    set_rights(path)
    before = rights(path)
    assert saved(name="a") == about(4 * MIB)
    assert rights(path) == before


def set_rights(path):
    os.chown(path, 1234, 4321)
    path.chmod(0o640)
    os.setxattr(path, "user.note", b"mine")
    os.setxattr(path, "trusted.note", b"root's")
    os.setxattr(path, "security.selinux", b"system_u:object_r:virt_image_t:s0\0")
    # user::rw-, user 77: r--, group::r--, mask::r--, other::--- (acl(5), linux/posix_acl_xattr.h)
    entries = ((1, 6, -1), (2, 4, 77), (4, 4, -1), (16, 4, -1), (32, 0, -1))
    acl = b"\2\0\0\0" + b"".join(
        kind.to_bytes(2, "little") + bits.to_bytes(2, "little") + (who % 2**32).to_bytes(4, "little") for kind, bits, who in entries
    )
    os.setxattr(path, "system.posix_acl_access", acl)


def rights(path):
    found = path.stat()
    return found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode), {n: os.getxattr(path, n) for n in os.listxattr(path)}


def striped(path, size):
    """An image of which every other cluster holds zeros."""
    blank(path, size)
    commands = [f"write -q -P {n % 2 * 7} {n * 64}k 64k" for n in range(size // (64 * KIB))]
    sh("qemu-io", "-f", "qcow2", *(part for c in commands for part in ("-c", c)), path)
    return path


@pytest.mark.parametrize("made", [dirty, striped])
def test_full_pool(hypervisor, small, made):
    """Also where the file system has to note many holes, and has not a block left to do so."""
    path = made(small / "a", 16 * MIB)
    filler = small / "filler"
    with filler.open("wb", buffering=0) as file:
        with pytest.raises(OSError, match="No space"):
            while True:
                file.write(bytes([1]) * 4 * KIB)
    assert os.statvfs(small.path).f_bavail * 1024 < 4 * KIB
    before = digest(path)
    result = run_module("volume_compress", {"uri": hypervisor.uri, "pool": "small", "name": "a", "method": "zeros"})
    assert result["changed"] and result["reclaimed"] == about(8 * MIB), result
    assert digest(path) == before and os.statvfs(small.path).f_bavail * 1024 >= 8 * MIB


def test_min_reclaim(saved, compress, pool):
    dirty(pool / "a")
    assert saved(name="a", min_reclaim="4.1M") == 0
    assert saved(name="a", min_reclaim="4M") == about(4 * MIB)
    assert saved(name="a", min_reclaim=1) == 0
    for bad in ("0", "-1M", "much"):
        result = compress(name="a", min_reclaim=bad)
        assert result["failed"] and result["reason"] == "invalid_size", result


def test_several(compress, saved, pool):
    dirty(pool / "a")
    blank(pool / "b", 8 * MIB)
    dirty(pool / "c")
    assert saved(name=["a", "b", "c"]) == about(8 * MIB)
    result = compress(name=["a", "b"])
    assert [saving["name"] for saving in result["savings"]] == ["a", "b"] and len(result["volumes"]) == 2


def test_one_refused_of_several_keeps_all(refuses, pool, domain):
    dirty(pool / "a")
    dirty(pool / "b")
    domain(disk(pool / "b"))
    refuses("volume_in_use", name=["a", "b"])


def test_flat_memory(hypervisor, pool):
    """20 GiB of which every 160th MiB is there, half of that zeros: no more than 200 MiB of memory."""
    path = blank(pool / "a", 20 * GIB)
    commands = [f"write -q -P {n % 2} {n * 160}M 1M" for n in range(128)]
    subprocess.run(["qemu-io", "-f", "qcow2", path], input="\n".join(commands), text=True, check=True, stdout=subprocess.DEVNULL)
    process = start_module("volume_compress", {"uri": hypervisor.uri, "pool": pool.name, "name": "a", "method": "zeros"},
                           prefix=["/bin/bash", "-c", 'ulimit -d 204800; exec "$@"', "bash"])
    assert finish_module(process)["reclaimed"] == about(64 * MIB)


# -- whom it refuses -------------------------------------------------------------------------------


def test_attached(refuses, pool, domain):
    dirty(pool / "a")
    domain(disk(pool / "a"), running=False)
    assert refuses("volume_in_use")["attachments"]


@pytest.mark.parametrize("between", [0, 2])
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_base_of_a_running_overlay(refuses, pool, domain, between, compression):
    """Directly, or with others between."""
    top = dirty(pool / "a")
    for number in range(between + 1):
        top = overlay(pool / f"b{number}", top)
    domain(disk(top))
    assert refuses("volume_in_use", compression=compression)["attachments"]


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
       "-o", "encrypt.format=aes,encrypt.key-secret=s", pool / "a", "1M")
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
    wait_until(lambda: at_work_in(pool.path) or process.poll() is not None)
    started = False
    while not started:
        with contextlib.suppress(libvirt.libvirtError):  # refused by the lock
            domain(disk(path), transient=True, name="late")
            started = True
    result = finish_module(process)
    # The file system takes a block or two to note the holes.
    assert result.get("reason") == "volume_in_use" or result["reclaimed"] == pytest.approx(32 * MIB, rel=0.01), result
    assert content(path)[: 32 * MIB] == noise(32 * MIB)


@pytest.mark.parametrize("delay", [0, 0.02, 0.06, 0.15])
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_killed(hypervisor, pool, compression, delay):
    make(pool / "base", size=32 * MIB, seed="base")
    path = overlay(pool / "a", pool / "base")
    write(path, 0, 0, 8 * MIB)
    write(path, 1, 8 * MIB, 8 * MIB)
    before = digest(path)
    params = {"uri": hypervisor.uri, "pool": pool.name, "name": "a", "method": "zeros", "compression": compression}
    process = start_module("volume_compress", params)
    wait_until(lambda: at_work_in(pool.path) or process.poll() is not None)
    time.sleep(delay)
    with contextlib.suppress(ProcessLookupError):  # it was quicker
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert digest(path) == before and sound(path)
    result = run_module("volume_compress", params)
    assert not result.get("failed"), result
    assert digest(path) == before and sound(path) and used(path) < 10 * MIB
    assert sorted(os.listdir(pool.path)) == ["a", "base"], "the next run clears what the killed one left"


# -- rewritten with compression --------------------------------------------------------------------


def wordy(path, size=8 * MIB, options="", backing=None):
    """An image of ``size``: text that compresses in its first half, noise in the second but for a MiB of zeros."""
    if backing is None:
        blank(path, size, options=options)
    else:
        sh("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", backing, *(("-o", options) if options else ()), path)
    text = noise(size // 4, "text").hex().encode()
    with path.with_suffix(".words").open("wb") as file:
        file.write(text + noise(size // 2 - MIB) + bytes(MIB))
    sh("qemu-io", "-f", "qcow2", "-c", f"write -q -s {file.name} 0 {size}", path)
    os.unlink(file.name)
    return path


@pytest.mark.parametrize("compression, options", [
    ("zlib", ""), ("zstd", ""), ("zlib", "compat=0.10"), ("zstd", "compat=0.10"), ("zstd", "cluster_size=4k,refcount_bits=8"),
    ("zlib", "cluster_size=2M,lazy_refcounts=on"), ("zstd", "extended_l2=on")])
def test_rewritten(saved, refuses, pool, compression, options):
    path = wordy(pool / "a", options=options)
    before, facts = digest(path), image_info(path)["format-specific"]["data"]
    if compression == "zstd" and "0.10" in options:
        refuses("unsupported", compression=compression)
        return
    set_rights(path)
    attributes = rights(path)
    assert 2 * MIB < saved(tolerance=0.2, name="a", compression=compression) < 5 * MIB
    assert digest(path) == before and sound(path) and rights(path) == attributes
    after = image_info(path)["format-specific"]["data"]
    assert after == ({**facts, "compression-type": compression} if "compression-type" in facts else facts)
    assert sorted(os.listdir(pool.path)) == ["a"]


@pytest.mark.parametrize("name", ["base", "b:a,s e"])
@pytest.mark.parametrize("relative", [True, False])
def test_rewritten_overlay_stays_one(saved, pool, relative, name):
    if relative and ":" in name:
        return  # qemu-img would read a protocol
    make(pool / name, size=12 * MIB, seed="base")
    path = wordy(pool / "a", backing=name if relative else pool / name)
    before = digest(path)
    assert content(path)[7 * MIB : 8 * MIB] == bytes(MIB)  # above data of its backing file
    assert saved(tolerance=0.2, name="a", compression="zstd") > 2.5 * MIB
    assert digest(path) == before and sound(path)
    assert image_info(path)["backing-filename"] == (name if relative else str(pool / name))
    assert image_info(path)["backing-filename-format"] == "qcow2"
    assert used(path) < 6 * MIB


def test_rewritten_base_of_a_stopped_overlay(saved, pool):
    wordy(pool / "base")
    path = overlay(pool / "a", pool / "base")
    write(path, 5, MIB, MIB)
    before = digest(path)
    assert saved(tolerance=0.2, name="base", compression="zstd") > 2 * MIB
    assert digest(path) == before


def test_nothing_to_compress(saved, pool):
    """Noise is left as it is, and of noise with zeros the zeros go in place."""
    make(pool / "a", size=8 * MIB)
    dirty(pool / "b")
    inodes = [(pool / name).stat().st_ino for name in "ab"]
    assert saved(name="a", compression="zstd") == 0
    assert saved(name="b", compression="zstd") == about(4 * MIB)
    assert [(pool / name).stat().st_ino for name in "ab"] == inodes


def test_what_only_one_compression_finds(compress, pool):
    """Whatever the samples promise, the file that is made decides."""
    path = blank(pool / "a", 8 * MIB)
    with path.with_suffix(".n").open("wb") as file:
        for number in range(8 * MIB // (64 * KIB)):
            file.write(noise(16 * KIB, str(number)) * 4)
    sh("qemu-io", "-f", "qcow2", "-c", f"write -q -s {file.name} 0 8M", path)
    os.unlink(file.name)
    before = digest(path)
    for _time in range(2):
        for compression in ("zlib", "zstd"):
            result = compress(name="a", compression=compression)
            assert not result.get("failed") and result["changed"] == (result["reclaimed"] > 0), result
            assert digest(path) == before


@pytest.mark.parametrize("compression", ["zlib", "zstd"])
def test_rewrite_that_went_wrong_never_takes_the_place(hypervisor, compress, pool, outside, compression):
    """It is compared with the original, which stands until then and after."""
    path = wordy(pool / "a")
    before = (path.stat().st_ino, path.stat().st_mtime_ns, file_sha(path))
    wish = {"uri": hypervisor.uri, "pool": pool.name, "name": "a", "method": "zeros", "compression": compression}
    result = run_module("volume_compress", wish, prefix=with_spoiled_copies(outside))
    assert result.get("reason") == "tool_failed" and not result.get("changed"), result
    assert (path.stat().st_ino, path.stat().st_mtime_ns, file_sha(path)) == before
    assert os.listdir(pool.path) == ["a"]
    assert compress(name="a", compression=compression)["changed"]


@pytest.mark.parametrize("why", ["snapshot", "bitmap", "link", "names"])
def test_not_rewritten(refuses, pool, make_pool, why):
    path = wordy(make_pool() / "a" if why == "link" else pool / "a")
    if why == "snapshot":
        take_snapshot(path, "s")
    elif why == "bitmap":
        sh("qemu-img", "bitmap", "--add", path, "b0")
    elif why == "link":
        (pool / "a").symlink_to(path)
    else:
        os.link(path, pool / "b")
    refuses("unsupported", compression="zstd")


@pytest.mark.parametrize("wish", [{}, {"method": "zeros"}, {"compression": "zstd"}])
def test_link_out_of_the_pools(refuses, pool, outside, wish):
    path = wordy(outside / "a")
    before = path.read_bytes()
    (pool / "a").symlink_to(path)
    refuses("unsafe_image", **wish)
    assert path.read_bytes() == before


def test_no_room_for_a_rewrite(hypervisor, small, refused):
    wordy(small / "a", 16 * MIB)
    with (small / "hog").open("wb") as hog:
        facts = os.statvfs(small.path)
        os.posix_fallocate(hog.fileno(), 0, facts.f_bavail * facts.f_frsize - 8 * MIB)
    wish = {"uri": hypervisor.uri, "pool": "small", "name": "a", "method": "zeros", "compression": "zstd"}
    result = refused("insufficient_space", fails=lambda **how: run_module("volume_compress", {**wish}, **how))
    assert result["required"] > result["available"]
    assert "'a'" in result["msg"] and "'small'" in result["msg"] and "compression: none" in result["msg"]


def test_zeros_need_no_room_for_a_rewrite(hypervisor, small):
    """A volume of 24 MiB, all of them taken, of which 4 MiB are data, needs no 24 MiB beside it."""
    path = blank(small / "a", 24 * MIB)
    words = small / "words"
    words.write_bytes(noise(2 * MIB, "text").hex().encode())
    sh("qemu-io", "-f", "qcow2", "-c", f"write -q -s {words} 0 4M", "-c", "write -q -P 0 4M 20M", path)
    words.unlink()
    before = digest(path)
    with (small / "hog").open("wb") as hog:
        facts = os.statvfs(small.path)
        os.posix_fallocate(hog.fileno(), 0, facts.f_bavail * facts.f_frsize - 6 * MIB)
    wish = {"uri": hypervisor.uri, "pool": "small", "name": "a", "method": "zeros", "compression": "zstd"}
    foretold, result = (run_module("volume_compress", {**wish}, check=check) for check in (True, False))
    assert result["changed"] and result["reclaimed"] > 21 * MIB, result
    assert foretold["changed"] and foretold["reclaimed"] == pytest.approx(result["reclaimed"], rel=0.05)
    assert digest(path) == before and sound(path)


def test_reference_counts_of_one_bit(saved, pool):
    """Compressed clusters can't share one of the file then, so there is nothing to gain but zeros."""
    path = wordy(pool / "a", options="refcount_bits=1")
    before = digest(path)
    assert saved(name="a", compression="zstd") == MIB
    assert digest(path) == before and sound(path)


# -- trimmed ---------------------------------------------------------------------------------------

#: Partitions of the test disk, by start and length in MiB, and where the logical volume on the last one lies.
PARTITIONS = {"ext4": (1, 64), "btrfs": (65, 128), "xfs": (193, 320), "swap": (513, 16), "lvm": (529, 64)}
LOGICAL = (530, 48)
FILE_SYSTEMS = {"ext4": PARTITIONS["ext4"], "btrfs": PARTITIONS["btrfs"], "xfs": PARTITIONS["xfs"], "logical": LOGICAL}
MKFS = {
    "ext4": ["mke2fs", "-q", "-F", "-t", "ext4", "-E", "nodiscard"],
    "btrfs": ["mkfs.btrfs", "-q", "-f", "-K"],
    "xfs": ["mkfs.xfs", "-q", "-f", "-K"],
    "swap": ["mkswap", "-q", "-L", "swap"],
}
# Written by hand, since lvcreate wants the kernel's device-mapper, which a container has not.
VOLUME_GROUP = """
contents = "Text Format Volume Group"
version = 1
vg {
  id = "aaaaaa-aaaa-aaaa-aaaa-aaaa-aaaa-aaaaaa" seqno = 2 format = "lvm2" status = ["RESIZEABLE", "READ", "WRITE"]
  extent_size = 8192 max_lv = 0 max_pv = 0
  physical_volumes { pv0 {
    id = "bbbbbb-bbbb-bbbb-bbbb-bbbb-bbbb-bbbbbb" status = ["ALLOCATABLE"] pe_start = 2048 pe_count = 15
  } }
  logical_volumes { lv {
    id = "cccccc-cccc-cccc-cccc-cccc-cccc-cccccc" status = ["READ", "WRITE", "VISIBLE"] segment_count = 1
    segment1 { start_extent = 0 extent_count = 12 type = "striped" stripe_count = 1 stripes = ["pv0", 0] }
  } }
}
"""


@pytest.fixture
def workbench(place):
    path = place / "workbench"
    path.mkdir()
    yield path
    shutil.rmtree(path)


@contextlib.contextmanager
def loop(image, start, length):
    """A part of an image, in MiB, as a block device."""
    device = sh("losetup", "-f", "--show", "-o", str(start * MIB), "--sizelimit", str(length * MIB), image).strip()
    try:
        yield device
    finally:
        sh("losetup", "-d", device)


@contextlib.contextmanager
def mounted(device, on, options):
    on.mkdir(exist_ok=True)
    sh("mount", "-o", options, device, on)
    try:
        yield on
    finally:
        sh("umount", on)


@pytest.fixture
def guest_disk(pool, workbench):
    """ext4, btrfs, xfs, swap, and ext4 on LVM; on each file system a file that stays and one that was deleted."""
    raw, group = workbench / "raw", workbench / "vg"
    raw.touch()
    os.truncate(raw, 600 * MIB)
    table = "label: gpt\n" + "".join(f"start={s}MiB, size={length}MiB\n" for s, length in PARTITIONS.values())
    subprocess.run(["sfdisk", "-q", raw], input=table, text=True, check=True)
    with loop(raw, *PARTITIONS["swap"]) as device:
        sh(*MKFS["swap"], device)
    with loop(raw, *PARTITIONS["lvm"]) as device:
        group.write_text(VOLUME_GROUP)
        only = f'devices {{ global_filter=["a|{device}|","r|.*|"] }}'
        uuid = "bbbbbb-bbbb-bbbb-bbbb-bbbb-bbbb-bbbbbb"
        sh("pvcreate", "-q", "--config", only, "--uuid", uuid, "--restorefile", group, device)
        sh("vgcfgrestore", "-q", "--force", "--config", only, "-f", group, "vg")
    for kind, (start, length) in FILE_SYSTEMS.items():
        with loop(raw, start, length) as device:
            sh(*MKFS.get(kind, MKFS["ext4"]), device)
            with mounted(device, workbench / "mount", "nodiscard") as mount:
                (mount / "keep").write_bytes(noise(3 * MIB, "keep"))
                (mount / "gone").write_bytes(noise(16 * MIB, "gone"))
                sh("sync", "-f", mount)
                (mount / "gone").unlink()
    sh("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, pool / "a")
    raw.unlink()
    return pool / "a"


def test_trimmed(compress, guest_disk, workbench):
    """Four deleted files of 16 MiB come back; files, swap and rights stay."""
    set_rights(guest_disk)
    attributes, inode = rights(guest_disk), guest_disk.stat().st_ino
    before = look_at([guest_disk.parent])
    foretold = compress(name="a", method="trim", diff=True, check=True)
    assert look_at([guest_disk.parent]) == before, "check mode touched something"
    result = compress(name="a", method="trim", diff=True)
    assert result["changed"] and result["savings"][0]["method"] == "trim", result
    assert [foretold[key] for key in ("changed", "actions")] == [result[key] for key in ("changed", "actions")]
    # What a trim gives back is tried on an overlay each time, and may differ by a few blocks.
    for diff in (foretold["diff"], result["diff"]):
        after = diff["after"]["a"].pop("allocation")
        assert diff["before"]["a"]["allocation"] - after == pytest.approx(result["reclaimed"], rel=0.05)
    assert foretold["diff"] == result["diff"]
    assert foretold["reclaimed"] == pytest.approx(result["reclaimed"], rel=0.05)
    assert result["reclaimed"] > 60 * MIB and result["allocation_after"] == used(guest_disk)
    assert (rights(guest_disk), guest_disk.stat().st_ino) == (attributes, inode) and sound(guest_disk)
    again = compress(name="a", method="auto")
    assert not again["changed"] and again["reclaimed"] == 0, again
    raw = workbench / "raw"
    sh("qemu-img", "convert", "-f", "qcow2", "-O", "raw", guest_disk, raw)
    for place in FILE_SYSTEMS.values():
        with loop(raw, *place) as device, mounted(device, workbench / "mount", "ro") as mount:
            assert not (mount / "gone").exists()
            assert (mount / "keep").read_bytes() == noise(3 * MIB, "keep")
    with loop(raw, *PARTITIONS["swap"]) as device:
        assert 'LABEL="swap"' in sh("blkid", "-p", device)
    with loop(raw, *PARTITIONS["lvm"]) as device:
        assert "LVM2_member" in sh("blkid", "-p", device)


@pytest.fixture
def guest_overlay(pool, workbench):
    """ext4 on an overlay whose base holds other data everywhere; a snapshot, and since then a file that stays and one that was deleted."""
    size = 48 * MIB
    raw = workbench / "raw"
    raw.write_bytes(noise(size, "base"))
    sh("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, pool / "base")
    raw.write_bytes(noise(size, "guest"))
    sh(*MKFS["ext4"], raw)
    sh("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, pool / "a")
    sh("qemu-img", "rebase", "-f", "qcow2", "-b", pool / "base", "-F", "qcow2", pool / "a")
    take_snapshot(pool / "a", "s")
    with mounted(raw, workbench / "mount", "loop,nodiscard") as mount:
        (mount / "keep").write_bytes(noise(3 * MIB, "keep"))
        (mount / "gone").write_bytes(noise(16 * MIB, "gone"))
        sh("sync", "-f", mount)
        (mount / "gone").unlink()
    sh("qemu-img", "convert", "-n", "-f", "raw", "-O", "qcow2", raw, pool / "a")
    assert content(pool / "a") == raw.read_bytes()
    return pool / "a"


def test_trimmed_overlay_with_a_snapshot(hypervisor, pool, domain, workbench, guest_overlay):
    """What is given back never shows the base's data; the snapshot stays; nobody gets the volume meanwhile."""

    def of_snapshot():
        sh("qemu-img", "convert", "-f", "qcow2", "-l", "s", "-O", "raw", guest_overlay, workbench / "snapshot")
        return file_sha(workbench / "snapshot")

    snapshot = of_snapshot()
    tree = Tree("volume_compress", {"uri": hypervisor.uri, "pool": pool.name, "name": "a", "method": "trim"})
    wait_until(lambda: tree.writes_to(guest_overlay), timeout=120)
    time.sleep(0.5)
    with pytest.raises(libvirt.libvirtError, match="lock"):
        domain(disk(guest_overlay), transient=True)
    assert tree.process.poll() is None and tree.writes_to(guest_overlay), "met too late"
    result = finish_module(tree.process, 300)
    assert result["changed"] and result["reclaimed"] > 30 * MIB, result
    after, below = content(guest_overlay), content(pool / "base")
    for start in range(0, len(after), 4 * KIB):
        part = slice(start, start + 4 * KIB)
        assert after[part] != below[part], f"the base shows at {start}"
    assert of_snapshot() == snapshot and sound(guest_overlay)
    assert image_info(guest_overlay)["backing-filename"] == str(pool / "base")
    (workbench / "raw").write_bytes(after)
    sh("e2fsck", "-f", "-n", workbench / "raw")
    with mounted(workbench / "raw", workbench / "mount", "loop,ro") as mount:
        assert (mount / "keep").read_bytes() == noise(3 * MIB, "keep")


def test_trimmed_and_rewritten(compress, pool, workbench):
    """Both in one run, as foretold; a second run finds nothing more."""
    raw, files = workbench / "raw", {"keep": noise(3 * MIB, "keep"), "words": noise(4 * MIB, "text").hex().encode()}
    raw.write_bytes(b"")
    os.truncate(raw, 48 * MIB)
    sh(*MKFS["ext4"], raw)
    with mounted(raw, workbench / "mount", "loop,nodiscard") as mount:
        for name, data in {**files, "gone": noise(16 * MIB, "gone")}.items():
            (mount / name).write_bytes(data)
        sh("sync", "-f", mount)
        (mount / "gone").unlink()
    sh("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, pool / "a")
    wish = {"name": "a", "method": "auto", "compression": "zstd"}
    foretold, result, again = (compress(**wish, check=check, diff=True) for check in (True, False, False))
    assert result["changed"] and result["reclaimed"] > 19 * MIB, result
    assert [foretold[key] for key in ("changed", "actions", "diff")] == [result[key] for key in ("changed", "actions", "diff")]
    assert foretold["reclaimed"] == pytest.approx(result["reclaimed"], rel=0.2)
    assert (result["savings"][0]["method"], result["savings"][0]["compression"]) == ("trim", "zstd")
    assert not again["changed"] and again["reclaimed"] == 0 and again["actions"] == [], again
    assert sound(pool / "a") and os.listdir(pool.path) == ["a"]
    sh("qemu-img", "convert", "-f", "qcow2", "-O", "raw", pool / "a", raw)
    with mounted(raw, workbench / "mount", "loop,ro") as mount:
        assert {name: (mount / name).read_bytes() for name in files} == files and not (mount / "gone").exists()


@pytest.fixture
def in_place_of_virt_sparsify(workbench):
    """A prefix that runs a module where virt-sparsify is something else; an empty text takes it away."""

    def put(text):
        substitute = workbench / "substitute"
        substitute.write_text(text)
        substitute.chmod(0o755 if text else 0o644)
        tool = sh("which", "virt-sparsify").strip()
        return ["unshare", "-m", "bash", "-c", f'mount --bind {substitute} {tool} && exec "$@"', "bash"]

    return put


@pytest.fixture
def with_virt_sparsify(hypervisor, pool, in_place_of_virt_sparsify):
    def run(text, check=False, **params):
        wish = {"uri": hypervisor.uri, "pool": pool.name, "name": "a", **params}
        return run_module("volume_compress", wish, check=check, prefix=in_place_of_virt_sparsify(text))

    return run


FAILS = "#!/bin/sh\necho virt-sparsify: error: no operating system >&2\nexit 1\n"


@pytest.mark.parametrize("tool, reason, note", [
    ("", "tool_missing", "virt-sparsify is not on this host"),
    (FAILS, "tool_failed", "no operating system"),
], ids=["missing", "failing"])
def test_without_a_working_virt_sparsify(with_virt_sparsify, pool, tool, reason, note):
    path = dirty(pool / "a")
    before = digest(path)
    for check in (True, False):
        result = with_virt_sparsify(tool, method="trim", check=check)
        assert result["failed"] and result["reason"] == reason and note in result["msg"], result
    if reason == "tool_missing":
        assert "guestfs-tools" in result["msg"]
    for check in (True, False):
        result = with_virt_sparsify(tool, method="auto", check=check)
        assert result["changed"] and result["reclaimed"] == about(4 * MIB) and note in result["actions"][0], result
        assert result["savings"][0]["method"] == "zeros"
    assert not with_virt_sparsify(tool, method="auto")["changed"]
    assert digest(path) == before


def test_what_goes_wrong_in_the_trial_never_meets_the_volume(with_virt_sparsify, pool):
    """The trial works on something else than the volume, which nobody can write to meanwhile."""
    path = dirty(pool / "a")
    before = file_sha(path)
    harm = f"""#!/bin/sh
        for image; do :; done
        qemu-io -f qcow2 -c "write 0 1M" "$image"
        qemu-io -f qcow2 -c "write 0 1M" {path}
    """
    result = with_virt_sparsify(harm, method="trim")
    assert result["failed"] and result["reason"] == "volume_in_use", result
    assert file_sha(path) == before


def test_what_lies_below_is_not_trimmed(refuses, compress, pool, domain):
    dirty(pool / "a")
    overlay(pool / "b", pool / "a")
    assert refuses("volume_has_dependents", method="trim")["dependents"]
    result = compress(name="a", method="auto")
    assert result["reclaimed"] == about(4 * MIB) and "backing file" in result["actions"][0]
