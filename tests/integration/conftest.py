# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Fixtures: a private hypervisor for the whole run; pools, domains and module calls for each test."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import libvirt
import pytest
from support import mounts
from support.faults import make_masters
from support.hypervisors import Hypervisor, Pool, domain_xml
from support.images import MIB, file_sha, sh, wait_until
from support.images import info as image_info
from support.runs import Result, look_at, run_module

SMALL_FS = 48 * MIB
#: What takes longest begins first, so that no worker has it alone at the end.
LONGEST = (
    "test_volume_compress.py", "test_kills.py", "test_grow_guest.py", "test_awx.py", "test_pool_rbd.py", "test_role_check_mode.py",
    "test_poor_file_systems.py", "test_volume_clone_live.py", "test_pool_logical.py", "test_docs_examples.py", "test_ansible.py",
    "test_demo.py", "test_docs_adhoc.py", "test_prepare_hypervisor.py", "test_awx_register.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def place() -> Iterator[Path]:
    """A short directory (UNIX sockets live in it) for everything the run makes."""
    root = Path(tempfile.mkdtemp(prefix="hs-"))
    yield root
    shutil.rmtree(root)


@pytest.fixture(scope="session")
def masters(place: Path) -> Path:
    """Images that the kinds of work in ``support.faults`` start from."""
    return make_masters(place / "masters")


@pytest.fixture(scope="session")
def small_mount(place: Path) -> Iterator[Path]:
    """A mounted ext4 of 48 MiB: real out-of-space errors, and a device whose raw bytes can be read."""
    with mounts.mounted(place / "small", SMALL_FS, mounts.PLAIN_EXT4) as mount:
        yield mount


@pytest.fixture(scope="session")
def hypervisor(place: Path, small_mount: Path) -> Iterator[Hypervisor]:
    # The mount comes first: the hypervisor has a mount namespace of its own and sees only what was there before it.
    running = Hypervisor(place / "hv")
    yield running
    running.stop()


@pytest.fixture
def own_hypervisor(place: Path) -> Iterator[Hypervisor]:
    """One more hypervisor, for a test that may wedge or stop it."""
    running = Hypervisor(place / "own")
    yield running
    running.stop()


@pytest.fixture
def make_pool(hypervisor: Hypervisor, place: Path) -> Iterator[Callable[..., Pool]]:
    """``make_pool(name, path, active, on)``: a directory pool; afterwards it must be as active and tidy as it was."""
    made: list[Pool] = []
    numbers = itertools.count()

    def make(name: str = "", path: Path | None = None, active: bool = True, on: Hypervisor = hypervisor) -> Pool:
        number = next(numbers)
        made.append(Pool(on, name or f"pool{number}", path or place / f"p{number}", active))
        return made[-1]

    yield make
    try:
        for pool in made:
            assert list(pool.path.glob(".hypervisor.storage-*")) == [], "a hidden file was left in the pool"
            assert at_work_in(pool.path) == []
            if pool.hypervisor is hypervisor:
                assert bool(pool.virt.isActive()) == pool.active, f"{pool.name} is no longer as active as it was"
    finally:
        for pool in made:
            if pool.hypervisor is hypervisor:
                pool.forget()
            for entry in pool.path.iterdir() if pool.path.exists() else ():
                remove(entry)


def remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink()


def at_work_in(directory: Path) -> list[str]:
    """Processes, domains aside, that have something of the directory open, also a file without a name."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            command = (process / "comm").read_text().strip()
            if process.name == str(os.getpid()) or command.startswith(("qemu-system", "libvirtd")):
                continue
            for descriptor in (process / "fd").iterdir():
                if os.readlink(descriptor).startswith(f"{directory}/"):
                    found.append(f"{command} ({process.name})")
                    break
    return found


def first_success(
    attempt: Callable[[], libvirt.virDomain], process: subprocess.Popen[str], *, beside: Path | None = None
) -> libvirt.virDomain | None:
    """What is tried again and again beside a run, from when it works in ``beside`` on if that is given.

    ``None`` when libvirt refuses it even after the run.
    """
    if beside is not None:
        wait_until(lambda: at_work_in(beside) or process.poll() is not None)
    while True:
        over = process.poll() is not None
        try:
            return attempt()
        except libvirt.libvirtError:
            if over:
                return None


@pytest.fixture
def pool(make_pool: Callable[..., Pool]) -> Pool:
    return make_pool()


@pytest.fixture
def small(make_pool: Callable[..., Pool], small_mount: Path) -> Pool:
    """A pool on the file system of 48 MiB."""
    return make_pool("small", small_mount / "pool")


@pytest.fixture
def loop_device(place: Path) -> Iterator[Path]:
    """A block device of 8 MiB."""
    image = place / "loop.img"
    image.write_bytes(b"")
    os.truncate(image, 8 * MIB)
    device = Path(sh("losetup", "--find", "--show", image).strip())
    yield device
    sh("losetup", "--detach", device)
    image.unlink()


@pytest.fixture
def domain(hypervisor: Hypervisor, make_pool: Callable[..., Pool]) -> Iterator[Callable[..., libvirt.virDomain]]:
    """``domain(*disks, running=True)``: a defined, by default started, domain with these disks."""
    conn, numbers = hypervisor.conn, itertools.count()

    def define(*disks: str, running: bool = True, transient: bool = False, name: str = "") -> libvirt.virDomain:
        xml = domain_xml(name or f"vm{next(numbers)}", *disks)
        virt = conn.createXML(xml) if transient else conn.defineXML(xml)
        if running and not transient:
            virt.create()
        return virt

    yield define
    for virt in conn.listAllDomains():
        lasting = virt.isPersistent()
        if virt.isActive():
            virt.destroy()
        if lasting:
            virt.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA)


@pytest.fixture
def volume(hypervisor: Hypervisor, pool: Pool) -> Callable[..., Result]:
    """Run the module ``volume``, by default on ``pool``."""

    def run(check: bool = False, diff: bool = False, env: dict[str, str] | None = None, **params: Any) -> Result:
        return run_module(
            "volume", {"uri": hypervisor.uri, "pool": pool.name, **params}, check=check, diff=diff, env=env
        )

    return run


@pytest.fixture
def info(hypervisor: Hypervisor) -> Callable[..., Result]:
    """Run the module ``volume_info``; it must never say changed."""

    def run(check: bool = False, **params: Any) -> Result:
        result = run_module("volume_info", {"uri": hypervisor.uri, **params}, check=check)
        assert not result.get("changed"), result
        return result

    return run


@pytest.fixture
def checked(volume: Callable[..., Result], place: Path) -> Callable[..., Result]:
    """One transition in full: the prediction touches nothing and comes true, the second run changes nothing."""

    def run(*, does: Callable[..., Result] = volume, **params: Any) -> Result:
        before = look_at(pool_directories(place))
        predicted = does(check=True, diff=True, **params)
        assert look_at(pool_directories(place)) == before, "check mode touched something"
        assert not predicted.get("failed"), predicted
        real = does(diff=True, **params)
        assert not real.get("failed"), real
        for key in ("changed", "actions", "diff"):
            assert predicted[key] == real[key], f"check mode promised another {key}"
        assert real["changed"] == bool(real["actions"]), real
        assert real["changed"] == (real["diff"]["before"] != real["diff"]["after"]), real
        again = does(diff=True, **params)
        assert not again.get("failed") and not again["changed"] and again["actions"] == [], again
        assert again["diff"]["before"] == again["diff"]["after"], again
        return real

    return run


@pytest.fixture
def created(checked: Callable[..., Result]) -> Callable[..., dict[str, Any]]:
    """A transition that must have changed something; the one volume it returned."""

    def run(**params: Any) -> dict[str, Any]:
        result = checked(**params)
        assert result["changed"], result
        assert result["volumes"] == [result["volume"]], result
        return result["volume"]

    return run


@pytest.fixture
def refused(volume: Callable[..., Result], place: Path) -> Callable[..., Result]:
    """A wish that is refused for ``reason``, in check mode just as for real, and nothing is touched."""

    def run(reason: str, *, fails: Callable[..., Result] = volume, **params: Any) -> Result:
        before = look_at(pool_directories(place))
        predicted = fails(check=True, **params)
        real = fails(**params)
        assert look_at(pool_directories(place)) == before, "a refused run touched something"
        for result in (predicted, real):
            assert result.get("failed"), f"not refused: {result}"
            assert result.get("reason") == reason, result
            assert not result.get("changed"), result
        assert predicted["msg"] == real["msg"]
        return real

    return run


@pytest.fixture
def clone(hypervisor: Hypervisor, pool: Pool) -> Callable[..., Result]:
    """Run the module ``volume_clone``, by default from ``a`` to ``b`` of ``pool``."""

    def run(check: bool = False, diff: bool = False, **params: Any) -> Result:
        arguments = {"uri": hypervisor.uri, "pool": pool.name, "source": "a", "name": "b", **params}
        return run_module("volume_clone", arguments, check=check, diff=diff)

    return run


@pytest.fixture
def cloned(checked: Callable[..., Result], clone: Callable[..., Result], pool: Pool) -> Callable[..., Any]:
    """A transition that makes the copy ``b`` of a volume ``a`` that stands still; the source's file is not touched."""

    def run(*, on: Pool = pool, of: Pool | None = None, **params: Any) -> dict[str, Any]:
        source = (of or on) / params.get("source", "a")
        before = file_sha(source)
        if of is not None:
            params["source_pool"] = of.name
        result = checked(does=clone, uri=on.hypervisor.uri, pool=on.name, **params)
        assert result["changed"] and result["consistency"] == "offline", result
        volume = result["volume"]
        assert (volume["backing"], volume["snapshots"], volume["attachments"]) == (None, [], [])
        assert image_info(on / volume["name"], volume["format"])["virtual-size"] == volume["capacity"]
        if volume["format"] == "qcow2":
            sh("qemu-img", "check", "-q", "-f", "qcow2", on / volume["name"])
        assert file_sha(source) == before
        return {**volume, "actions": result["actions"], "warnings": result["warnings"]}

    return run


def pool_directories(place: Path) -> list[Path]:
    return sorted([*place.glob("p[0-9]*"), *place.glob("*/pool"), *place.glob("outside")])


@pytest.fixture
def outside(place: Path) -> Iterator[Path]:
    """A directory that belongs to no pool."""
    path = place / "outside"
    path.mkdir()
    yield path
    shutil.rmtree(path)
