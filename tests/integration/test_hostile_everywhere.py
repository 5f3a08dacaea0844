# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Every hostile image through every module: refused within 2 s and 100 MiB, or read as raw; nothing of the host gets out."""

from __future__ import annotations

import json
import os
import shutil
import stat

import pytest
from support.hostile import REFUSED, SECRET, STRANGE
from support.hypervisors import Hypervisor, Pool, disk, domain_xml
from support.images import GIB, MIB, content
from support.images import info as image_info
from support.inprocess import server
from support.runs import environment

READERS = [
    ("volume", {"name": "out", "template": "NAME", "clone_mode": "backing"}),
    ("volume", {"name": "out", "template": "NAME", "clone_mode": "full"}),
    ("volume", {"name": "out", "template": "NAME", "format": "raw"}),
    ("volume", {"name": "out", "template": "PATH", "clone_mode": "full"}),
    ("volume", {"name": "out", "snapshot": "s", "snapshot_volume": "NAME"}),
    ("volume_clone", {"name": "out", "source": "NAME", "format": "qcow2"}),
    ("volume_clone", {"name": "out", "source": "NAME", "format": "raw"}),
    ("volume_compress", {"name": "NAME", "method": "zeros", "min_reclaim": "4K"}),
    ("volume_compress", {"name": "NAME", "method": "zeros", "compression": "zstd", "min_reclaim": "4K"}),
]
OTHERS = [
    ("volume_info", {}),
    ("volume_resize", {"name": "NAME", "size": "2M"}),
    ("volume", {"name": "NAME", "state": "absent"}),
]
#: What is no qcow2 to anybody, so that volume_compress has no use for it.
NO_QCOW2 = {"version 1", "version 4", "vmdk", "vmdk sparse", "vdi", "vhd", "vhdx", "qed", "empty", "luks"}
#: Encrypted by QEMU: sound, but nothing can be read.
ENCRYPTED = {"encrypted by AES", "luks"}
#: What has no snapshot that could be asked for: no qcow2, or a header that says nothing of where they are.
WITHOUT_SNAPSHOTS = NO_QCOW2 | {
    "clusters of 2^63", "clusters of 1", "too many snapshots", "snapshots far away", "header too long", "half a header"}
#: What libvirt, too, takes for raw: grown like any file, without a look at what is in it.
RAW_TO_LIBVIRT = {"version 4", "vmdk", "vhdx", "empty"}
#: What is raw: data that only looks like something at a glance.
RAW = {"only magic", "version 0", "vhd at the end", "iso and gpt", "qcow2 at 512", "shebang", "path"}
#: Sound headers before tables that lead nowhere: a guest reads zeros, or what it wrote there itself.
READ = {"L2 far away", "L2 is the header", "L2 is L1", "snapshot entry cut short", "lazy and dirty"}


def expected_of_refused(module, wish, image):
    """The one right reason (``None``: it isn't refused) for what must not be read."""
    if module == "volume_compress":
        return "unsupported" if image in NO_QCOW2 | ENCRYPTED else "unsafe_image"
    if module == "volume_resize":
        if image in RAW_TO_LIBVIRT:
            return None
        if image in NO_QCOW2 or image.startswith("encrypted"):
            return "unsupported"
        return "shrink_refused" if image in ("size 2^63", "size 2^64-1") else "unsafe_image"
    if module == "volume_info":
        return None
    if wish.get("state") == "absent":
        return "volume_has_dependents" if image == "loop of two" else None
    if "snapshot" in wish and image in WITHOUT_SNAPSHOTS:
        return "snapshot_not_found"
    return "unsupported" if image in ENCRYPTED else "unsafe_image"


def expected_of_strange(module, wish, image):
    """The same for what may be read, if it isn't too strange for that."""
    if module == "volume_compress" and image in RAW:
        return "unsupported"
    if module == "volume_compress" and image in READ:
        if "compression" in wish:
            return "unsupported"  # its snapshot would be lost
        return "unsafe_image" if image in ("L2 far away", "L2 is L1") else None
    if module == "volume_info" or wish.get("state") == "absent":
        return None
    if module == "volume_resize" and image == "size 2^62":
        return "shrink_refused"
    if "snapshot" in wish and image in RAW | {"snapshot entry cut short", "snapshot with long extra data"}:
        return "snapshot_not_found"
    return None if image in RAW | READ else "unsafe_image"


@pytest.fixture(scope="module")
def modules():
    with server("fork", environment()) as running:
        yield running


@pytest.fixture(scope="module")
def host(place):
    """A hypervisor of its own: what hangs libvirt must not disturb other tests."""
    running = Hypervisor(place / "wary")
    yield running
    running.stop()


@pytest.fixture(scope="module")
def secret(place):
    directory = place / "wary-outside" / "outside"
    directory.mkdir(parents=True)
    path = directory / "secret"
    path.write_bytes(SECRET)
    yield path
    shutil.rmtree(directory.parent)


@pytest.fixture(scope="module")
def den(host, secret):
    return Pool(host, "den", secret.parent.parent / "den")


@pytest.fixture
def tried(modules, den, secret):
    """Run one module on the image: its answer, once it is sure that nothing got out."""

    def run(module, wish, path):
        wish = {key: {"NAME": path.name, "PATH": str(path)}.get(value, value) for key, value in wish.items()}
        where = [den.name] if module == "volume_info" else den.name
        answer = modules.run(module, uri=den.hypervisor.uri, pool=where, **wish)
        result = answer["result"]
        assert SECRET[:34] not in json.dumps(result).encode(), result
        # 300 volumes with up to 200 layers each are megabytes of text: what that takes depends on what else the machine does.
        many = len(result.get("volumes") or []) > 100
        assert answer["processor_seconds"] < 2, (answer["processor_seconds"], result)
        assert answer["seconds"] < (5 if many else 2), (answer["seconds"], result)
        assert answer["memory"] < 100 * MIB, (answer["memory"], result)
        if result.get("failed"):
            assert not (den / "out").exists()
        elif (den / "out").exists():
            made = image_info(den / "out")
            assert SECRET[:34] not in (den / "out").read_bytes(), (module, wish)
            if made["virtual-size"] < GIB:
                assert SECRET[:34] not in content(den / "out", made["format"])
            (den / "out").unlink()
        return result

    yield run
    assert secret.read_bytes() == SECRET
    for entry in den.path.iterdir():
        entry.unlink()


def numbered(images):
    """Each has a name of its own, which libvirt has no memory of."""
    return [pytest.param(f"t{number}", image, id=image) for number, image in enumerate(images)]


@pytest.mark.parametrize(("name", "image"), numbered(REFUSED))
def test_refused(tried, den, secret, name, image):
    REFUSED[image](den / name, secret)
    before = (den / name).read_bytes()
    for module, wish in READERS:
        result = tried(module, wish, den / name)
        assert result.get("failed") and result["reason"] == expected_of_refused(module, wish, image), (module, wish, result)
        assert (den / name).read_bytes() == before
    for module, wish in OTHERS:
        result = tried(module, wish, den / name)
        assert result.get("reason") == expected_of_refused(module, wish, image), (module, wish, result)


@pytest.mark.parametrize(("name", "image"), numbered(STRANGE))
def test_strange(tried, den, secret, name, image):
    STRANGE[image](den / name, secret)
    for module, wish in [*READERS, *OTHERS]:
        result = tried(module, wish, den / name)
        assert result.get("reason") == expected_of_strange(module, wish, image), (module, wish, result)


def test_there_are_enough():
    assert len(REFUSED) + len(STRANGE) >= 60


DISGUISES = [
    "path of the host", "data file", "json file", "nbd unix", "version 1", "vmdk", "vmdk sparse", "vdi", "vhd", "vhd at the end", "vhdx",
    "qed", "luks", "iso and gpt",
]


@pytest.mark.parametrize("disguise", DISGUISES)
@pytest.mark.parametrize("running", [True, False])
def test_raw_stays_raw(tried, host, den, secret, running, disguise):
    """The domain's definition says raw; what its guest wrote is data, to every module."""
    path = den / f"disguised{running}{disguise}"
    {**REFUSED, **STRANGE}[disguise](path, secret)
    path.write_bytes(path.read_bytes().ljust(MIB, b"\0"))
    before = path.read_bytes()
    domain = host.conn.defineXML(domain_xml("raw", disk(path, "raw", target="hda", device="cdrom", readonly=True)))
    try:
        if running:
            domain.create()
        for module, wish in READERS:
            result = tried(module, wish, path)
            looks_like_nothing = disguise in ("vhd at the end", "iso and gpt")
            reason = {"volume_compress": "unsupported"}.get(module, None if looks_like_nothing else "unsafe_image")
            assert result.get("reason") == ("snapshot_not_found" if "snapshot" in wish else reason), (module, wish, result)
            assert path.read_bytes() == before
        assert tried("volume_info", {}, path)["volumes"][0]["format"] == "raw"
        assert tried(*OTHERS[2], path)["reason"] == "volume_in_use"
    finally:
        if running:
            domain.destroy()
        domain.undefine()


@pytest.mark.parametrize("kind", ["link", "dangling", "absolute loop", "fifo", "directory", "device", "link to a device"])
def test_what_others_put_into_the_pool(tried, den, secret, kind):
    """Nothing behind it is read, changed or deleted."""
    path = den / f"odd-{kind}"
    device = None
    if kind == "link":
        path.symlink_to(secret)
    elif kind == "dangling":
        path.symlink_to(den / "nowhere")
    elif kind == "absolute loop":
        path.symlink_to(path)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "device":
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # zeros without end
    else:
        device = den.path.parent / "zeros"
        os.mknod(device, stat.S_IFCHR | 0o600, os.makedev(1, 5))
        path.symlink_to(device)
    try:
        for module, wish in [*READERS[:4], *READERS[5:], *OTHERS[:2], ("volume", {"name": "NAME", "state": "absent", "wipe": True})]:
            result = tried(module, wish, path)
            to_nothing = kind in ("dangling", "absolute loop")
            reason = {
                "volume_clone": "volume_not_found" if to_nothing else "unsafe_image",
                "volume_info": None,
                "volume_resize": "unsafe_image" if kind == "link" else "unsupported",
            }.get(module, "unsupported")
            if "template" in wish:
                reason = "template_not_found" if to_nothing else "unsafe_image"
            if "state" in wish and kind == "link":  # the link goes, what it leads to stays
                reason = None
            assert result.get("reason") == reason, (module, wish, result)
        assert secret.read_bytes() == SECRET, "still there and the same"
    finally:
        if kind == "directory":
            path.rmdir()
        if device is not None:
            assert stat.S_ISCHR(device.lstat().st_mode)
            device.unlink()
