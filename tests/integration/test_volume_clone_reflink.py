# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Copies on file systems whose files can share extents: made at once, taking no space, and independent all the same."""

from __future__ import annotations

import contextlib
import os

import pytest
from support import mounts
from support.hypervisors import Hypervisor
from support.images import KIB, MIB, blank, content, digest, file_sha, make, noise, overlay, sh, sha, take_snapshot, used, write
from support.images import info as image_info
from support.runs import run_module
from support.spoiled import with_spoiled_copies

ALL_DATA = sha(noise(2 * MIB) + bytes(2 * MIB))  # of an image of 4 MiB
KINDS = {"xfs": mounts.XFS, "btrfs": mounts.BTRFS}


@pytest.fixture(scope="module")
def host(place):
    """A hypervisor that sees the mounted file systems; one that ran before they were mounted would not."""
    with contextlib.ExitStack() as stack:
        for kind, maker in KINDS.items():
            stack.enter_context(mounts.mounted(place / kind, 320 * MIB, maker))
        running = Hypervisor(place / "sharing")
        stack.callback(running.stop)
        yield running


@pytest.fixture(params=KINDS)
def sharing(request, host, make_pool, place):
    """A pool on such a file system."""
    pool = make_pool("sharing", place / request.param / "pool", on=host)
    yield pool
    pool.forget()


@pytest.fixture
def elsewhere(host, make_pool):
    """A pool of the same hypervisor on another file system."""
    pool = make_pool("elsewhere", on=host)
    yield pool
    pool.forget()


@pytest.fixture
def neighbour(host, make_pool, sharing):
    """A second pool on the file system of the first."""
    pool = make_pool("neighbour", sharing.path.parent / "neighbour", on=host)
    yield pool
    pool.forget()


def shares(path):
    sh("sync", "-f", path)
    return "shared" in sh("filefrag", "-v", path)


@pytest.mark.parametrize(("fmt", "wish"), [
    ("qcow2", {}), ("raw", {}), ("qcow2", {"size": "40M"}), ("raw", {"size": "40M"}),
    ("qcow2", {"format": "qcow2", "cluster_size": "64K", "preallocation": "off"}),
])
def test_extents_are_shared(cloned, sharing, fmt, wish):
    make(sharing / "a", fmt, 32 * MIB)
    os.chown(sharing / "a", 65534, 65534)
    expected = digest(sharing / "a", fmt)
    made = cloned(on=sharing, verify=True, **wish)
    assert "reflink" in " ".join(made["actions"])
    assert shares(sharing / "b") and (sharing / "b").stat().st_uid == 0
    write(sharing / "b", 0x55, length=MIB, fmt=fmt)
    assert digest(sharing / "a", fmt) == expected, "a write to one is not seen by the other"
    write(sharing / "a", 0x66, offset=MIB, length=MIB, fmt=fmt)
    (sharing / "a").unlink()
    data = content(sharing / "b", fmt)
    assert data[:MIB] == b"\x55" * MIB and sha(data[MIB:16 * MIB]) == sha(noise(16 * MIB)[MIB:])
    assert data[16 * MIB:] == bytes(len(data) - 16 * MIB)


@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
def test_verify_finds_a_byte_that_differs(sharing, outside, fmt):
    make(sharing / "a", fmt)
    wish = {"uri": sharing.hypervisor.uri, "pool": sharing.name, "source": "a", "name": "b", "verify": True}
    assert "reflink" in run_module("volume_clone", wish, check=True)["actions"][0]
    result = run_module("volume_clone", wish, prefix=with_spoiled_copies(outside))
    assert result.get("reason") == "tool_failed" and "differs" in result["msg"], result
    assert os.listdir(sharing.path) == ["a"]
    assert digest(sharing / "a", fmt) == ALL_DATA


def test_extents_are_shared_with_another_pool_of_the_file_system(cloned, sharing, neighbour):
    make(neighbour / "a", options="cluster_size=4K,lazy_refcounts=on")
    assert "(reflink, sharing extents)" in cloned(on=sharing, of=neighbour, size="8M")["actions"][0]
    assert shares(sharing / "b") and digest(sharing / "b", length=4 * MIB) == ALL_DATA
    facts = [image_info(path)["format-specific"]["data"] for path in (neighbour / "a", sharing / "b")]
    assert facts[0] == facts[1]


def test_what_is_shared_is_compressed_on_one_side_only(sharing, clone):
    """Zeros of a copy are given back, and the source has all that it had."""
    make(sharing / "a")
    write(sharing / "a", 0, offset=2 * MIB, length=2 * MIB)
    before, room = file_sha(sharing / "a"), used(sharing / "a")
    wish = {"uri": sharing.hypervisor.uri, "pool": sharing.name}
    assert clone(**wish)["changed"] and shares(sharing / "b")
    wish.update(name="b", method="zeros")
    foretold, result, again = (run_module("volume_compress", wish, check=check) for check in (True, False, False))
    assert result["changed"] and result["reclaimed"] == foretold["reclaimed"] >= 2 * MIB, result
    assert not again["changed"], again
    assert digest(sharing / "b") == digest(sharing / "a") == ALL_DATA
    assert (file_sha(sharing / "a"), used(sharing / "a")) == (before, room)


def test_zeros_are_given_back_where_no_byte_is_free(sharing):
    """These file systems write their own notes elsewhere than before, which takes room, too."""
    path = blank(sharing / "a", 32 * MIB)
    commands = [f"write -q -P {n % 2 * 7} {n * 64}k 64k" for n in range(512)]
    sh("qemu-io", "-f", "qcow2", *(part for command in commands for part in ("-c", command)), path)
    sh("sync", "-f", path)
    filler = sharing.path.parent / "filler"
    for piece in (MIB, 64 * KIB, 4 * KIB):
        with filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(os.urandom(piece))
                if piece < MIB:
                    os.fsync(file.fileno())
    try:
        facts = os.statvfs(sharing.path)
        assert facts.f_bavail * facts.f_frsize < 64 * KIB
        before = digest(path)
        wish = {"uri": sharing.hypervisor.uri, "pool": sharing.name, "name": "a", "method": "zeros"}
        result = run_module("volume_compress", wish)
        assert result.get("changed") and result["reclaimed"] == pytest.approx(16 * MIB, rel=0.01), result
        assert digest(path) == before
    finally:
        filler.unlink()


def test_shared_extents_need_no_space(checked, clone, sharing):
    make(sharing / "a", "raw", 200 * MIB)
    sh("sync", "-f", sharing.path)
    free = os.statvfs(sharing.path).f_bavail
    result = checked(does=clone, name=["b", "c", "d"], pool=sharing.name, uri=sharing.hypervisor.uri)
    assert all("reflink" in action for action in result["actions"])
    sh("sync", "-f", sharing.path)
    assert (free - os.statvfs(sharing.path).f_bavail) * os.statvfs(sharing.path).f_frsize < 8 * MIB


@pytest.mark.parametrize("wish", [
    {"format": "raw"}, {"cluster_size": "4K"}, {"preallocation": "falloc"},
], ids=str)
def test_extents_are_not_shared_where_the_copy_is_to_differ(cloned, sharing, wish):
    make(sharing / "a")
    assert "reflink" not in " ".join(cloned(on=sharing, **wish)["actions"])
    assert not shares(sharing / "b")
    assert digest(sharing / "b", wish.get("format", "qcow2")) == ALL_DATA


def test_extents_are_not_shared_with_overlays_and_snapshots(cloned, sharing):
    make(sharing / "base")
    overlay(sharing / "a", sharing / "base")
    cloned(on=sharing)
    take_snapshot(sharing / "base", "old")
    made = cloned(on=sharing, source="base", name="c")
    assert "reflink" not in " ".join(made["actions"])
    assert digest(sharing / "b") == digest(sharing / "c") == ALL_DATA


def test_extents_cannot_be_shared_across_file_systems(cloned, sharing, elsewhere):
    make(elsewhere / "a")
    assert "reflink" not in " ".join(cloned(on=sharing, of=elsewhere)["actions"])
    assert digest(sharing / "b") == ALL_DATA
