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
SAID = ("unsafe_image", "unsupported")
#: Sound headers before unsound tables are qemu-img's to refuse; sizes that no host has are refused for lack of room.
SAID_OF_STRANGE = (*SAID, "tool_failed", "insufficient_space", "snapshot_not_found", "shrink_refused", "volume_mismatch")


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
    return [pytest.param(f"t{number}", make, id=name) for number, (name, make) in enumerate(images.items())]


@pytest.mark.parametrize(("name", "make"), numbered(REFUSED))
def test_refused(tried, den, secret, name, make):
    make(den / name, secret)
    before = (den / name).read_bytes()
    for module, wish in READERS:
        result = tried(module, wish, den / name)
        allowed = (*SAID, "snapshot_not_found") if "snapshot" in wish else SAID
        assert result.get("failed") and result["reason"] in allowed, (module, wish, result)
        assert (den / name).read_bytes() == before
    for module, wish in OTHERS:
        result = tried(module, wish, den / name)
        assert not result.get("failed") or module != "volume_info", result
        assert not result.get("failed") or result["reason"] in (*SAID, "volume_has_dependents", "shrink_refused"), (module, result)


@pytest.mark.parametrize(("name", "make"), numbered(STRANGE))
def test_strange(tried, den, secret, name, make):
    make(den / name, secret)
    for module, wish in [*READERS, *OTHERS]:
        result = tried(module, wish, den / name)
        assert not result.get("failed") or result["reason"] in SAID_OF_STRANGE, (module, wish, result)


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
            assert not result.get("failed") or result["reason"] in (*SAID, "volume_in_use", "snapshot_not_found"), result
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
            if module not in ("volume_info", "volume") or "template" in wish:
                assert result.get("failed") or not result["changed"], (module, wish, result)
        assert secret.read_bytes() == SECRET, "still there and the same"
    finally:
        if kind == "directory":
            path.rmdir()
        if device is not None:
            assert stat.S_ISCHR(device.lstat().st_mode)
            device.unlink()
