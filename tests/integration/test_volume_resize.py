# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Volumes that grow: on storage and through running domains; what is refused, and that nothing is ever cut off."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import libvirt
import pytest
from support.hypervisors import disk, domain_xml, guest_reads, guest_writes, snapshot_outside
from support.images import (
    KIB,
    MIB,
    PASSPHRASE,
    blank,
    content,
    digest,
    encrypted,
    exported_by_nbd,
    file_sha,
    held_by_qemu_io,
    luks,
    luks_alone,
    make,
    noise,
    overlay,
    sh,
    sha,
    take_snapshot,
    used,
    write,
)
from support.images import (
    info as image_info,
)
from support.runs import altered, finish_module, run_module, start_module

ALL_DATA = sha(noise(2 * MIB) + bytes(2 * MIB))  # of an image of 4 MiB


@pytest.fixture
def resize(hypervisor, pool):
    def run(check=False, diff=False, env=None, **params):
        arguments = {"uri": hypervisor.uri, "pool": pool.name, **params}
        return run_module("volume_resize", arguments, check=check, diff=diff, env=env)

    return run


@pytest.fixture
def grown(checked, resize, info, pool):
    """A transition that makes ``name`` of ``on`` larger; afterwards everybody sees the same size."""

    def run(name, size, *, fmt="qcow2", on=pool, through=None, target="vda", **params):
        inode = (on / name).stat().st_ino
        result = checked(does=resize, name=name, size=size, pool=on.name, **params)
        assert result["changed"] and len(result["actions"]) == 1, result
        assert "guest" in result["msg"], "the message tells what is left to do"
        volume = result["volume"]
        assert image_info(on / name, fmt)["virtual-size"] == volume["capacity"]
        assert on.virt.storageVolLookupByName(name).info()[1] == volume["capacity"]
        assert info(name=name, pool=on.name)["volumes"][0]["capacity"] == volume["capacity"]
        if through is not None:
            assert through.blockInfo(target)[0] == volume["capacity"]
        assert (on / name).stat().st_ino == inode
        return volume

    return run


@pytest.fixture
def kept(refused, resize):
    """A wish that is refused, in check mode too; nothing is touched."""

    def run(reason, **params):
        return refused(reason, fails=resize, **params)

    return run


# -- on storage --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
def test_content_stays_and_zeros_follow(grown, pool, fmt):
    path = make(pool / "a", fmt)
    os.chown(path, 65534, 65534)
    path.chmod(0o640)
    assert grown("a", "10M", fmt=fmt)["capacity"] == 10 * MIB
    data = content(path, fmt)
    assert sha(data[:4 * MIB]) == ALL_DATA and data[4 * MIB:] == bytes(6 * MIB)
    assert (path.stat().st_uid, oct(path.stat().st_mode & 0o7777)) == (65534, "0o640")


@pytest.mark.parametrize(("fmt", "wish", "reserved"), [
    ("raw", {}, True),
    ("raw", {"preallocation": "full"}, True),
    ("raw", {"preallocation": "off"}, False),
    ("qcow2", {}, False),
    ("qcow2", {"preallocation": "falloc"}, True),
    ("qcow2", {"preallocation": "full"}, True),
])
def test_added_space_is_reserved(grown, pool, fmt, wish, reserved):
    before = used(make(pool / "a", fmt))
    grown("a", "20M", fmt=fmt, **wish)
    added = used(pool / "a") - before
    assert added >= 16 * MIB if reserved else added < MIB
    assert digest(pool / "a", fmt, 4 * MIB) == ALL_DATA


@pytest.mark.parametrize(("how", "written"), [("falloc", False), ("full", True)])
def test_added_space_is_written_on_demand(grown, pool, how, written):
    make(pool / "a", "raw")
    grown("a", "20M", fmt="raw", preallocation=how)
    sh("sync", "-f", pool / "a")
    assert ("unwritten" not in sh("filefrag", "-v", pool / "a")) is written


def test_sizes_are_rounded_up_and_compared_so(checked, grown, resize, pool):
    make(pool / "a", "raw")
    result = checked(does=resize, name="a", size=str(4 * MIB - 100))
    assert not result["changed"], "less than a sector smaller is the same"
    assert grown("a", 4 * MIB + 1, fmt="raw")["capacity"] == 4 * MIB + 512


@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
def test_equal_is_unchanged(checked, resize, pool, fmt):
    before = file_sha(make(pool / "a", fmt))
    result = checked(does=resize, name="a", size="4M")
    assert not result["changed"] and result["volume"]["capacity"] == 4 * MIB
    assert file_sha(pool / "a") == before


@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
def test_smaller_is_refused(kept, pool, fmt):
    make(pool / "a", fmt)
    result = kept("shrink_refused", name="a", size="3M")
    assert str(4 * MIB) in result["msg"]


def test_file_that_grew_behind_libvirts_back(kept, checked, resize, grown, pool):
    """libvirt remembers 100 MiB, so by its own resize a wish for 120 MiB would cut off 80 MiB of data."""
    path = blank(pool / "a", 100 * MIB, "raw")
    pool.refresh()
    os.truncate(path, 200 * MIB)
    write(path, 0x5A, 150 * MIB, fmt="raw")
    kept("shrink_refused", name="a", size="120M")
    assert path.stat().st_size == 200 * MIB
    assert not checked(does=resize, name="a", size="200M")["changed"]
    grown("a", "201M", fmt="raw")
    with path.open("rb") as file:
        file.seek(150 * MIB)
        assert file.read(MIB) == b"\x5a" * MIB


def test_file_that_grew_behind_a_running_domains_back(kept, pool, domain):
    path = blank(pool / "a", 100 * MIB, "raw")
    domain(disk(path, "raw"))
    os.truncate(path, 200 * MIB)
    kept("shrink_refused", name="a", size="120M")
    assert path.stat().st_size == 200 * MIB


@pytest.mark.parametrize("options", ["compat=0.10", "cluster_size=512", "cluster_size=2M", "extended_l2=on"])
def test_features_stay(grown, pool, options):
    def features():
        found = image_info(pool / "a")
        return found["cluster-size"], found["format-specific"]["data"]

    make(pool / "a", options=options)
    before = features()
    grown("a", "40M")
    assert features() == before
    assert digest(pool / "a", length=4 * MIB) == ALL_DATA
    sh("qemu-img", "check", "-q", "-f", "qcow2", pool / "a")


def test_internal_snapshots_survive(grown, pool):
    path = make(pool / "a")
    take_snapshot(path, "old")
    write(path, 0x11)
    grown("a", "6M")
    assert [found["name"] for found in image_info(path)["snapshots"]] == ["old"]
    sh("qemu-img", "convert", "-f", "qcow2", "-l", "snapshot.name=old", "-O", "raw", path, pool / "old")
    assert digest(pool / "old", "raw", 4 * MIB) == ALL_DATA


def test_snapshots_that_take_more_than_the_new_size(grown, pool):
    """libvirt refuses to grow an image whose allocation is above the wanted capacity."""
    path = blank(pool / "a", 4 * MIB)
    for number in range(3):
        write(path, number + 1, length=4 * MIB)
        take_snapshot(path, f"s{number}")
    pool.refresh()
    assert used(path) > 8 * MIB
    assert grown("a", "6M")["capacity"] == 6 * MIB
    assert len(image_info(path)["snapshots"]) == 3
    assert digest(path, length=4 * MIB) == sha(b"\x03" * 4 * MIB)


@pytest.mark.parametrize("running", [False, True])
def test_old_format_with_snapshots(kept, pool, domain, running):
    take_snapshot(make(pool / "a", options="compat=0.10"), "old")
    if running:
        domain(disk(pool / "a"))
    assert "0.10" in kept("unsupported", name="a", size="6M")["msg"]


def test_overlay_grows_alone(grown, pool):
    base = make(pool / "base")
    before = file_sha(base)
    overlay(pool / "a", base)
    grown("a", "6M")
    data = content(pool / "a")
    assert sha(data[:4 * MIB]) == ALL_DATA and data[4 * MIB:] == bytes(2 * MIB)
    assert file_sha(base) == before


def test_grown_overlay_never_shows_what_its_backing_file_has_there(grown, pool):
    base = blank(pool / "base", 8 * MIB)
    write(base, 0x77, length=8 * MIB)
    sh("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, pool / "a", "4M")
    grown("a", "8M")
    assert content(pool / "a")[4 * MIB:] == bytes(4 * MIB)


def test_several_names(checked, resize, pool):
    names = ["-a", "a b'\"<&>", "nbd:a", "json:{}", "ü%s", "grown"]
    for name in names:
        make(pool / name)
    sh("qemu-img", "resize", "-q", "-f", "qcow2", pool / "grown", "6M")
    result = checked(does=resize, name=names, size="6M")
    assert [volume["name"] for volume in result["volumes"]] == names and "volume" not in result
    assert len(result["actions"]) == 5
    assert {image_info(pool / name, "qcow2")["virtual-size"] for name in names} == {6 * MIB}


def test_one_of_several_is_refused(kept, pool):
    make(pool / "a")
    make(pool / "b", size=8 * MIB)
    kept("shrink_refused", name=["a", "b"], size="6M")


@pytest.mark.parametrize(("reason", "wish"), [
    ("volume_not_found", {"name": "none", "size": "6M"}),
    ("volume_not_found", {"name": ["a", "none"], "size": "6M"}),
    ("invalid_size", {"name": "a", "size": "+6M"}),
    ("invalid_size", {"name": "a", "size": "0"}),
    ("invalid_name", {"name": "../a", "size": "6M"}),
    ("pool_not_found", {"name": "a", "size": "6M", "pool": "none"}),
])
def test_bad_wishes(kept, pool, reason, wish):
    make(pool / "a")
    kept(reason, **wish)


# -- space -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("running", [False, True])
def test_no_space(kept, small, domain, running):
    path = make(small / "a", "raw", 8 * MIB)
    guest = domain(disk(path, "raw")) if running else None
    before = digest(path, "raw")
    result = kept("insufficient_space", name="a", size="100M", pool=small.name)
    assert guest is None or guest.blockInfo("vda")[0] == 8 * MIB
    assert result["required"] == 92 * MIB and 0 < result["available"] < 48 * MIB
    assert str(result["required"]) in result["msg"] and str(result["available"]) in result["msg"]
    assert path.stat().st_size == 8 * MIB and digest(path, "raw") == before


def keep_nothing_back(mount):
    """Let ext4 have no reserve for its own lists (/sys/fs/ext4/*/reserved_clusters)."""
    device = mount.stat().st_dev
    name = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve().name
    Path("/sys/fs/ext4", name, "reserved_clusters").write_text("0")


@pytest.mark.parametrize("running", [False, True])
def test_space_that_is_there_but_too_scattered(resize, small, domain, running):
    """By what is free it would fit; the file system needs room for its own lists of many small pieces too."""
    path = make(small / "a", "raw", 2 * MIB)
    if running:
        domain(disk(path, "raw"))
    keep_nothing_back(small.path)
    crumbs = small.path / "crumbs"
    crumbs.mkdir()
    for number in range(4000):
        (crumbs / str(number)).write_bytes(b"x" * 4096)
    sh("sync", "-f", crumbs)  # each gets its place now
    with (small / "hog").open("wb") as hog, contextlib.suppress(OSError):
        while True:
            facts = os.statvfs(small.path)
            hog.seek(0, os.SEEK_END)
            os.posix_fallocate(hog.fileno(), hog.tell(), max(facts.f_bavail, 1) * facts.f_frsize)
    for number in range(0, 4000, 2):
        (crumbs / str(number)).unlink()
    facts = os.statvfs(small.path)
    before, took = file_sha(path), used(path)
    result = resize(name="a", pool=small.name, size=2 * MIB + facts.f_bavail * facts.f_frsize)
    assert result.get("reason") == "insufficient_space", result
    assert {"required", "available"} <= set(result) and str(result["required"]) in result["msg"]
    assert not result.get("changed"), result
    assert file_sha(path) == before, "old size and content"
    assert used(path) <= took + 64 * KIB, "nothing stays reserved"


def test_space_of_several_is_summed_up(kept, small):
    for name in "ab":
        make(small / name, "raw", 2 * MIB)
    kept("insufficient_space", name=["a", "b"], size="28M", pool=small.name)


def test_without_reserving_there_is_always_space(grown, small):
    make(small / "a", "raw", 2 * MIB)
    make(small / "b", "qcow2", 2 * MIB)
    grown("a", "1G", fmt="raw", on=small, preallocation="off")
    grown("b", "1G", on=small)


# -- through running domains -------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["vda", "sda"])
@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
def test_online(grown, pool, domain, fmt, target):
    path = make(pool / "a", fmt)
    running = domain(disk(path, fmt, target))
    before = used(path)
    volume = grown("a", "20M", fmt=fmt, through=running, target=target)
    assert volume["attachments"][0]["live"]
    if fmt == "raw":
        assert used(path) - before >= 16 * MIB, "reserved also online"
    if target == "vda":
        guest_writes(running, 0x42, offset=19 * MIB)
        assert content(path, fmt)[19 * MIB:] == b"\x42" * MIB
    assert digest(path, fmt, 4 * MIB) == ALL_DATA


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_every_disk_of_its_domain_sees_it(grown, pool, domain, fmt):
    """One domain has the volume twice."""
    path = make(pool / "a", fmt)
    how = "<shareable/>"
    try:
        running = domain(disk(path, fmt, extra=how), disk(path, fmt, "vdb", extra=how))
    except libvirt.libvirtError:
        assert fmt == "qcow2", "libvirt shares raw disks only"
        return
    grown("a", "6M", fmt=fmt, through=running, target="vda")
    assert running.blockInfo("vdb")[0] == 6 * MIB


def test_online_without_reserving(grown, pool, domain):
    path = make(pool / "a", "raw")
    running = domain(disk(path, "raw"))
    grown("a", "1G", fmt="raw", through=running, preallocation="off")
    assert used(path) < 4 * MIB


def test_online_equal_and_smaller(checked, kept, resize, pool, domain):
    path = make(pool / "a")
    running = domain(disk(path))
    assert not checked(does=resize, name="a", size="4M")["changed"]
    kept("shrink_refused", name="a", size="3M")
    assert running.blockInfo("vda")[0] == 4 * MIB


# Somebody else grows the disk after the module looked for the last time.
GROWN_AT_THE_LAST_MOMENT = """
resize = _running.block_resize
def after_the_other(self, *, capacity, **which):
    resize(self, capacity=2 * capacity, **which)
    resize(self, capacity=capacity, **which)
_running.block_resize = after_the_other
"""


@pytest.mark.skipif(not hasattr(libvirt, "VIR_DOMAIN_BLOCK_RESIZE_EXTEND"), reason="only libvirt 12.3 and later can be told not to shrink")
@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
def test_libvirt_itself_does_not_shrink(hypervisor, pool, domain, fmt):
    path = make(pool / "a", fmt)
    running = domain(disk(path, fmt))
    params = {"uri": hypervisor.uri, "pool": pool.name, "name": "a", "size": "6M", "preallocation": "off"}
    result = finish_module(start_module("volume_resize", params, prefix=altered(GROWN_AT_THE_LAST_MOMENT)))
    assert result.get("reason") == "shrink_refused" and "a" in result["msg"], result
    assert running.blockInfo("vda")[0] == 12 * MIB
    assert digest(path, fmt, 4 * MIB) == ALL_DATA


def test_paused_domain(grown, pool, domain):
    path = make(pool / "a")
    running = domain(disk(path))
    running.suspend()
    grown("a", "6M", through=running)
    assert running.state()[0] == 3, "still paused"


def test_transient_domain(grown, pool, domain):
    running = domain(disk(make(pool / "a")), transient=True)
    grown("a", "6M", through=running)


def test_domain_that_is_off(grown, pool, domain):
    domain(disk(make(pool / "a")), running=False)
    assert grown("a", "6M")["attachments"][0]["live"] is False


def test_source_by_volume_and_second_disk(grown, pool, domain):
    make(pool / "a")
    pool.refresh()
    running = domain(disk(blank(pool / "b")), disk((pool.name, "a"), target="vdb"))
    grown("a", "6M", through=running, target="vdb")
    assert running.blockInfo("vda")[0] == MIB


def test_disk_that_its_domain_knows_by_another_path(grown, pool, domain, outside):
    make(pool / "a")
    (outside / "link").symlink_to(pool / "a")
    grown("a", "6M", through=domain(disk(outside / "link")))


def test_online_with_internal_snapshots(grown, pool, domain):
    path = make(pool / "a")
    take_snapshot(path, "old")
    grown("a", "6M", through=domain(disk(path)))


def test_online_after_an_external_snapshot(grown, kept, pool, domain):
    path = make(pool / "a")
    running = domain(disk(path))
    snapshot_outside(running, "s", pool / "top")
    pool.refresh()
    grown("top", "6M", through=running)
    result = kept("volume_in_use", name="a", size="8M")
    assert {use["via"] for use in result["attachments"]} >= {"backing"}


def test_only_a_backing_layer_of_a_running_domain(kept, pool, domain):
    base = make(pool / "base")
    domain(disk(overlay(pool / "a", base)))
    result = kept("volume_in_use", name="base", size="6M")
    assert [use["via"] for use in result["attachments"]] == ["backing"]


def test_backing_layer_of_a_domain_that_is_off(grown, pool, domain):
    base = make(pool / "base")
    domain(disk(overlay(pool / "a", base)), running=False)
    grown("base", "6M")
    assert digest(pool / "a") == ALL_DATA


def test_shared_by_two_running_domains(kept, pool, domain):
    path = make(pool / "a", "raw")
    for _domain in range(2):
        domain(disk(path, "raw", extra="<shareable/>"))
    assert len(kept("volume_in_use", name="a", size="6M")["attachments"]) == 2


def test_shared_by_a_running_domain_and_one_that_is_off(grown, pool, domain):
    path = make(pool / "a", "raw")
    running = domain(disk(path, "raw", extra="<shareable/>"))
    domain(disk(path, "raw", extra="<shareable/>"), running=False)
    grown("a", "6M", fmt="raw", through=running)


@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
def test_read_only_disk(kept, pool, domain, fmt):
    domain(disk(make(pool / "a", fmt), fmt, readonly=True))
    assert kept("volume_in_use", name="a", size="6M")["attachments"][0]["readonly"]


def test_cd_rom(kept, pool, domain):
    domain(disk(make(pool / "a", "raw"), "raw", "hda", device="cdrom", readonly=True))
    assert kept("volume_in_use", name="a", size="6M")["attachments"][0]["target"] == "hda"


def test_firmware_of_a_running_domain(kept, hypervisor, pool, domain):
    for name in ("code", "state"):
        make(pool / name, "raw", MIB)
    hypervisor.conn.createXML(domain_xml("boots", firmware=(pool / "code", pool / "state")))
    told = kept("volume_in_use", name="state", size="6M")
    assert "domain 'boots' (running, nvram), but not as a disk" in told["msg"], told
    kept("volume_in_use", name="code", size="6M")


# -- what others do to it ----------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
@pytest.mark.parametrize("holder", [held_by_qemu_io, exported_by_nbd])
def test_open_in_a_process_unknown_to_libvirt(kept, grown, pool, fmt, holder):
    path = make(pool / "a", fmt)
    with holder(path, fmt):
        kept("volume_in_use", name="a", size="6M")
    grown("a", "6M", fmt=fmt)


def test_raw_disk_whose_guest_wrote_a_qcow2_header(resize, pool, domain, outside):
    """Raw it stays, or it is refused; what the header points to is never opened as its backing file."""
    secret = make(outside / "secret")
    before = file_sha(secret)
    path = blank(pool / "a", 4 * MIB, "raw")
    sh("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", secret, pool / "evil", "4M")
    header = (pool / "evil").read_bytes()[:65536]
    with path.open("r+b") as file:
        file.write(header)
    (pool / "evil").unlink()
    for running in (True, False):
        virt = domain(disk(path, "raw"), running=running)
        result = resize(name="a", size="6M")
        if result.get("failed"):
            assert result["reason"] == "unsafe_image", result
            assert path.stat().st_size == 4 * MIB
        else:
            assert path.stat().st_size == 6 * MIB and result["volume"]["format"] == "raw"
        if running:
            virt.destroy()
            virt.undefine()
            os.truncate(path, 4 * MIB)
    assert path.read_bytes()[:65536] == header and file_sha(secret) == before


def test_four_at_once(hypervisor, pool):
    make(pool / "a", "raw")
    params = {"uri": hypervisor.uri, "pool": pool.name, "name": "a", "size": "64M"}
    results = [finish_module(p) for p in [start_module("volume_resize", params) for _time in range(4)]]
    for result in results:
        assert not result.get("failed"), result
    assert sum(bool(result.get("changed")) for result in results) == 1
    assert (pool / "a").stat().st_size == 64 * MIB
    assert digest(pool / "a", "raw", 4 * MIB) == ALL_DATA


@pytest.mark.parametrize("encrypts", [encrypted, luks, luks_alone])
def test_encrypted(kept, pool, encrypts):
    """Its key is its domain's."""
    encrypts(pool / "a")
    for _time in range(2):
        assert "encrypted" in kept("unsupported", name="a", size="6M")["msg"]
        pool.refresh()  # then libvirt has an opinion on it, too


@pytest.fixture
def secret(hypervisor):
    """The key of LUKS images, for libvirt to give to their domain."""
    kept = hypervisor.conn.secretDefineXML("<secret ephemeral='yes' private='no'/>")
    kept.setValue(PASSPHRASE.encode())
    yield f"<encryption format='luks'><secret type='passphrase' uuid='{kept.UUIDString()}'/></encryption>"
    kept.undefine()


@pytest.mark.parametrize(("fmt", "encrypts"), [("qcow2", luks), ("raw", luks_alone)])
def test_encrypted_online(checked, kept, resize, info, pool, domain, secret, fmt, encrypts):
    """The size is that of the disk in the guest; a header before it is no part of that."""
    path = encrypts(pool / "a", 4 * MIB)
    running = domain(disk(path, fmt, extra=secret))
    pool.refresh()
    guest_writes(running, 0x42, offset=3 * MIB)
    size, taken = path.stat().st_size, used(path)
    result = checked(does=resize, name="a", size="20M")
    assert result["changed"], result
    seen = [result["volume"]["capacity"], info(name="a", pool=pool.name)["volumes"][0]["capacity"],
            pool.virt.storageVolLookupByName("a").info()[1], running.blockInfo("vda")[0]]
    assert seen == [20 * MIB] * 4
    if fmt == "raw":
        assert path.stat().st_size == size + 16 * MIB and used(path) - taken >= 16 * MIB
    guest_writes(running, 0x43, offset=19 * MIB)
    kept("shrink_refused", name="a", size="19M")
    running.destroy()
    running.create()
    assert running.blockInfo("vda")[0] == 20 * MIB
    for pattern, at in ((0x42, 3), (0x43, 19)):
        assert guest_reads(running, pattern, offset=at * MIB)


@pytest.mark.parametrize("how", ["falloc", "full"])
def test_qcow2_cannot_reserve_online(kept, pool, domain, how):
    domain(disk(make(pool / "a")))
    kept("unsupported", name="a", size="20M", preallocation=how)
