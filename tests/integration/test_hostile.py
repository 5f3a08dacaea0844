# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Image headers are hostile input: no byte of the host ends in a volume, and nothing hangs or runs away."""

from __future__ import annotations

import os
import struct
import time

import pytest
from support.hypervisors import disk
from support.images import GIB, MIB, blank, file_sha, make, overlay, patch, qcow2_header, sh, sha
from support.runs import run_module

SECRET = b"a line that only the host may read\n" * 64
WISHES = [{"clone_mode": "backing"}, {"clone_mode": "full"}, {"format": "raw"}]


@pytest.fixture
def secret(outside):
    path = outside / "secret"
    path.write_bytes(SECRET)
    return path


@pytest.fixture
def disguised(pool, secret):
    """A raw volume into which its guest wrote a qcow2 header that names a file of the host as backing file."""
    path = pool / "disguised"
    path.write_bytes(qcow2_header(MIB, str(secret)).ljust(MIB, b"\0"))
    return path


@pytest.mark.parametrize("running", [True, False])
def test_raw_disk_with_a_qcow2_header_stays_raw(volume, info, pool, disguised, domain, running):
    """The domain's definition says raw; that is what it is."""
    domain(disk(disguised, "raw", target="hda", device="cdrom", readonly=True), running=running)
    found = info(name="disguised")["volumes"][0]
    assert (found["format"], found["backing"], found["capacity"]) == ("raw", None, MIB)
    for number, wish in enumerate(WISHES):
        result = volume(name=f"a{number}", template="disguised", **wish)
        assert result.get("failed") and result["reason"] == "unsafe_image", result
    assert os.listdir(pool.path) == ["disguised"]


@pytest.mark.parametrize("wish", WISHES, ids=str)
def test_header_that_names_a_file_of_the_host(refused, pool, disguised, wish):
    refused("unsafe_image", name="a", template="disguised", **wish)


def test_it_may_still_be_listed_and_deleted(checked, info, pool, disguised, secret):
    found = info(pool=[pool.name])
    assert [v["name"] for v in found["volumes"]] == ["disguised"]
    assert checked(name="disguised", state="absent")["changed"]
    assert secret.read_bytes() == SECRET


@pytest.mark.parametrize("wish", WISHES, ids=str)
def test_real_overlay_of_a_file_outside(refused, pool, secret, wish):
    overlay(pool / "t", secret, "raw")
    refused("unsafe_image", name="a", template="t", **wish)


@pytest.mark.parametrize("wish", WISHES, ids=str)
def test_hostile_second_layer(refused, pool, secret, wish):
    overlay(pool / "t", overlay(pool / "middle", secret, "raw"))
    refused("unsafe_image", name="a", template="t", **wish)


@pytest.mark.parametrize("wish", WISHES, ids=str)
def test_link_in_the_pool_as_backing_file(refused, pool, secret, wish):
    (pool / "innocent").symlink_to(secret)
    overlay(pool / "t", pool / "innocent", "raw")
    refused("unsafe_image", name="a", template="t", **wish)


@pytest.mark.parametrize(
    "backing", ["../outside/secret", "/proc/self/environ", "/dev/zero", "/dev/null", "/etc/hostname"]
)
def test_paths_that_lead_out_of_the_pool(refused, pool, secret, backing):
    (pool / "t").write_bytes(qcow2_header(MIB, backing).ljust(4 * 65536, b"\0"))
    for wish in WISHES:
        refused("unsafe_image", name="a", template="t", **wish)


@pytest.mark.parametrize(
    "backing",
    [
        'json:{"driver":"file","filename":"/etc/hostname"}',
        'json:{"driver":"raw","file":{"driver":"file","filename":"/etc/hostname"}}',
        "nbd://127.0.0.1:1/x",
        "nbd:unix:/tmp/nothing",
        "http://127.0.0.1:1/x",
        "ssh://127.0.0.1/x",
        "fat:/etc",
        "file:/etc/hostname",
        "rbd:pool/image",
        "host_device:/dev/vda",
        "blkdebug::/etc/hostname",
        "\x01\x02",
        "a\nb",
        "../../../../../../etc/hostname",
    ],
)
def test_protocols_and_oddities_as_backing(volume, info, pool, backing):
    (pool / "t").write_bytes(qcow2_header(MIB, backing).ljust(4 * 65536, b"\0"))
    for number, wish in enumerate(WISHES):
        result = volume(name=f"a{number}", template="t", **wish)
        assert result.get("failed") and result["reason"] == "unsafe_image", result
    assert os.listdir(pool.path) == ["t"]
    assert not info(pool=[pool.name]).get("failed")


def test_data_file(refused, pool, secret):
    blank(pool / "t", 65536, options=f"data_file={secret}.img,data_file_raw=on")
    for wish in WISHES:
        refused("unsafe_image", name="a", template="t", **wish)


def test_snapshot_of_a_volume_with_a_hostile_backing_file(refused, pool, secret):
    path = overlay(pool / "t", secret, "raw")
    sh("qemu-img", "snapshot", "-c", "s", path)
    refused("unsafe_image", name="a", snapshot="s", snapshot_volume="t")


# Where in the header (QEMU's docs/interop/qcow2.txt), and what no honest image has there.
ABSURD = {
    "backing name far away": (8, struct.pack(">QI", 2**63, 100)),
    "backing name too long": (8, struct.pack(">QI", 512, 2**32 - 1)),
    "clusters of 2^63": (20, struct.pack(">I", 63)),
    "clusters of 1": (20, struct.pack(">I", 0)),
    "size 2^62": (24, struct.pack(">Q", 2**62)),
    "size 2^63": (24, struct.pack(">Q", 2**63)),
    "size 2^64-1": (24, struct.pack(">Q", 2**64 - 1)),
    "L1 too long": (36, struct.pack(">I", 2**32 - 1)),
    "L1 far away": (40, struct.pack(">Q", 2**63)),
    "too many snapshots": (60, struct.pack(">I", 2**32 - 1)),
    "snapshots far away": (64, struct.pack(">Q", 2**64 - 512)),
    "unknown feature": (72, struct.pack(">Q", 2**63)),
    "header too long": (100, struct.pack(">I", 2**32 - 1)),
}


@pytest.mark.parametrize(("offset", "value"), ABSURD.values(), ids=ABSURD.keys())
def test_absurd_headers(volume, info, pool, offset, value):
    make(pool / "t", size=MIB)
    sh("qemu-img", "snapshot", "-c", "s", pool / "t")
    patch(pool / "t", offset, value)
    started = time.monotonic()
    found = info(pool=[pool.name])
    assert not found.get("failed"), found
    for number, wish in enumerate([*WISHES, {"snapshot": "s", "snapshot_volume": "t"}]):
        result = volume(name=f"a{number}", **({"template": "t"} if "snapshot" not in wish else {}), **wish)
        unknown = "snapshot" in wish and result.get("reason") == "snapshot_not_found"  # where they are is part of what is absurd
        assert result.get("failed") and (result["reason"] == "unsafe_image" or unknown), result
    assert os.listdir(pool.path) == ["t"]
    assert time.monotonic() - started < 20


def test_size_that_is_huge_but_legal(volume, small, pool):
    """A terabyte of nothing: a copy on write is fine, a raw copy does not fit; both answer at once."""
    blank(pool / "t", 1024 * GIB)
    assert volume(name="a", template="t")["changed"]
    result = volume(name="b", template="t", template_pool=pool.name, pool=small.name, format="raw")
    assert result["failed"] and result["reason"] == "insufficient_space", result


def test_chain_that_bites_its_tail(volume, info, pool):
    (pool / "self").write_bytes(qcow2_header(MIB, str(pool / "self")).ljust(4 * 65536, b"\0"))
    (pool / "ping").write_bytes(qcow2_header(MIB, str(pool / "pong")).ljust(4 * 65536, b"\0"))
    (pool / "pong").write_bytes(qcow2_header(MIB, "ping").ljust(4 * 65536, b"\0"))
    assert not info(pool=[pool.name]).get("failed")
    for name in ("self", "ping"):
        for wish in WISHES:
            result = volume(name="a", template=name, **wish)
            assert result["failed"] and result["reason"] == "unsafe_image", result


def test_very_long_chain(volume, info, pool):
    below = make(pool / "base", size=MIB)
    image = overlay(pool / "layer0", below).read_bytes()
    for depth in range(1, 300):
        name = str(pool / f"layer{depth - 1}").encode()
        path = pool / f"layer{depth}"
        path.write_bytes(image)
        offset = struct.unpack(">Q", image[8:16])[0]
        patch(path, 16, struct.pack(">I", len(name)))
        patch(path, offset, name)
    started = time.monotonic()
    assert not info(pool=[pool.name]).get("failed")
    result = volume(name="a", template="layer299", clone_mode="full")
    assert result.get("failed") and result["reason"] == "unsafe_image" and "200 layers" in result["msg"], result
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("backing", ["/proc/kmsg", "/dev/kmsg", "fifo", "/dev/stdin"])
def test_backing_file_that_never_ends_does_not_hang_us(own_hypervisor, make_pool, backing):
    """libvirt opens such a file when it refreshes the pool and waits for ever; so we have to see it first."""
    pool = make_pool(on=own_hypervisor)
    os.mkfifo(pool / "fifo")
    target = str(pool / "fifo") if backing == "fifo" else backing
    (pool / "trap").write_bytes(qcow2_header(MIB, target).ljust(4 * 65536, b"\0"))
    for module, wish in (
        ("volume_info", {}),
        ("volume", {"name": "a", "size": "1M"}),
        ("volume", {"name": "b", "template": "trap"}),
        ("volume", {"name": "c", "template": "trap", "clone_mode": "full"}),
        ("volume", {"name": "d", "state": "absent"}),
    ):
        params = {"uri": own_hypervisor.uri, "pool": [pool.name] if module == "volume_info" else pool.name, **wish}
        result = run_module(module, params, timeout=10)
        if module == "volume_info" or "state" in wish:  # a look, and a delete of what isn't there, tell libvirt nothing
            assert not result.get("failed") and not result["changed"], result
        elif backing == "/dev/stdin" and "template" not in wish:  # here that is a plain file, as for libvirt
            assert result.get("changed"), result
        else:
            assert result.get("reason") == "unsafe_image" and "trap" in result["msg"], result
    # The daemon still answers and the pool is still there.
    assert own_hypervisor.conn.getLibVersion() and pool.virt.isActive()


@pytest.mark.parametrize("known", [False, True], ids=["new to libvirt", "known to libvirt"])
@pytest.mark.parametrize("wish", [{}, {"wipe": True}], ids=["delete", "wipe"])
def test_trap_can_be_deleted(own_hypervisor, make_pool, known, wish):
    """Whoever is told to remove the file can do it with the same module; until then others can be deleted, but not made."""
    pool = make_pool(on=own_hypervisor)
    for name in ("other", "trap"):
        blank(pool / name)
    if known:
        pool.refresh()
    (pool / "trap").write_bytes(qcow2_header(MIB, "/proc/kmsg").ljust(4 * 65536, b"\0"))

    def both(**params):
        """The same in check mode as for real."""
        arguments = {"uri": own_hypervisor.uri, "pool": pool.name, **params}
        foretold, real = (run_module("volume", arguments, timeout=20, check=check) for check in (True, False))
        assert foretold.get("reason") == real.get("reason") and foretold.get("actions") == real.get("actions"), (foretold, real)
        return real

    assert both(name="new", size="1M")["reason"] == "unsafe_image"
    assert both(name="other", state="absent", wipe=True)["reason"] == "unsafe_image"
    assert both(name="other", state="absent")["changed"] and os.listdir(pool.path) == ["trap"]
    assert both(name="trap", state="absent", **wish)["changed"] and os.listdir(pool.path) == []
    assert both(name="new", size="1M")["changed"]
    assert pool.virt.isActive() and pool.virt.listVolumes() == ["new"]


def test_info_does_not_open_what_a_chain_names(info, pool, outside):
    """A fifo's reader would wake its writer: nobody may have opened it."""
    os.mkfifo(outside / "fifo")
    (pool / "t").write_bytes(qcow2_header(MIB, str(outside / "fifo")).ljust(4 * 65536, b"\0"))
    before = (outside / "fifo").stat().st_atime_ns
    info(pool=[pool.name])
    assert (outside / "fifo").stat().st_atime_ns == before


def test_template_file_itself_is_no_regular_file(volume, outside, pool):
    os.mkfifo(outside / "fifo")
    for template in (outside / "fifo", "/dev/zero", "/proc/kmsg", "/", outside):
        for mode in ("backing", "full"):
            result = run_module("volume", {"uri": pool.hypervisor.uri, "pool": pool.name, "name": "a",
                                           "template": str(template), "clone_mode": mode}, timeout=10)
            missing = str(template) == "/proc/kmsg"  # what the kernel makes up isn't looked at
            assert result.get("reason") == ("template_not_found" if missing else "unsafe_image"), result
    assert os.listdir(pool.path) == []


def test_guest_content_never_decides_the_format_of_a_volume_we_made(volume, info, pool, domain, secret):
    """Made as raw, attached as raw, overwritten by its guest: the second run still sees what was asked for."""
    volume(name="a", size="1M", format="raw")
    domain(disk(pool / "a", "raw"), running=False)
    patch(pool / "a", 0, qcow2_header(MIB, str(secret)))
    before = file_sha(pool / "a")
    again = volume(name="a", size="1M", format="raw")
    assert not again.get("failed") and not again["changed"], again
    grown = volume(name="a", size="2M", format="raw")
    assert grown["changed"] and (pool / "a").stat().st_size == 2 * MIB, grown
    assert sha((pool / "a").read_bytes()[:MIB]) == before
    assert info(name="a")["volumes"][0]["format"] == "raw"


@pytest.mark.parametrize("fmt", ["vmdk", "vdi", "vhdx", "vpc", "qed"])
def test_other_formats_are_no_templates(refused, pool, fmt):
    """They too can name files of the host, and nobody reads their headers first."""
    make(pool / "t", fmt)
    for wish in WISHES:
        refused("unsafe_image", name="a", template="t", **wish)


def test_descriptor_that_names_a_file_of_the_host(volume, pool, secret):
    (pool / "t").write_text(
        '# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType="monolithicFlat"\n'
        f'RW 16 FLAT "{secret}" 0\nddb.virtualHWVersion = "4"\nddb.geometry.cylinders = "1"\n')
    for number, wish in enumerate(WISHES):
        result = volume(name=f"a{number}", template="t", **wish)
        assert result.get("failed") and result["reason"] == "unsafe_image", result
    assert os.listdir(pool.path) == ["t"]
