# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What others change between a look and the deed that it is for, and what fails when the deed is done: the answer is honest."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.hypervisor.storage.plugins.module_utils import _directory, _grow, _image_locks, _qemu_img
from ansible_collections.hypervisor.storage.plugins.module_utils._errors import ConnectionFailed, LibvirtError
from ansible_collections.hypervisor.storage.plugins.modules import volume, volume_clone, volume_compress, volume_resize
from ansible_collections.hypervisor.storage.tests.faults.works import MIB, WORKS, content_of, lay_out, make_masters, wish_of
from ansible_collections.hypervisor.storage.tests.unit.fake_hypervisor import Hypervisor, disk

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img")
run = functools.partial(subprocess.run, check=True, capture_output=True)


@pytest.fixture(scope="module")
def masters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_masters(tmp_path_factory.mktemp("masters"))


@pytest.fixture
def lab(masters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Hypervisor:
    made = Hypervisor(tmp_path, monkeypatch, capsys)
    lay_out(made, masters)
    return made


def before(monkeypatch: pytest.MonkeyPatch, place: Any, name: str, deed: Callable[[], None], *, nth: int = 1) -> None:
    """Have something done right before the nth call of a function."""
    real, calls = getattr(place, name), 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == nth:
            deed()
        return real(*args, **kwargs)

    monkeypatch.setattr(place, name, call)


def run_on_it(path: Path, fmt: str) -> None:
    """A host makes it larger, its domain runs for a while and writes behind the old end."""
    run(["qemu-img", "resize", "-q", "-f", fmt, path, "4M"])
    run(["qemu-io", "-f", fmt, "-c", "write -q -P 7 3M 1M", path])


# -- sources ---------------------------------------------------------------------------------------

COPIES = ["full copy of a template", "full copy of a path", "clone", "verified clone", "clone of raw"]


@pytest.mark.parametrize("name", COPIES)
def test_source_that_is_grown_and_written_before_it_is_held(lab: Hypervisor, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The copy is what the source is when it is held, to its end."""
    work = WORKS[name]
    source, fmt = lab.directory / work.victim, "raw" if work.victim == "r" else "qcow2"
    before(monkeypatch, _image_locks, "hold_image", lambda: run_on_it(source, fmt))
    result = lab.run(work.module, **wish_of(work, lab))
    assert result.get("changed") and result["volume"]["capacity"] == 4 * MIB, result
    assert content_of(lab.directory / "b", fmt) == content_of(source, fmt)


@pytest.mark.parametrize("source", ["a", "r"])
def test_source_that_changes_between_two_copies_of_a_list(lab: Hypervisor, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """The first is done; the second would be cut to the size that was planned."""
    fmt = "raw" if source == "r" else "qcow2"
    before(monkeypatch, _image_locks, "hold_image", lambda: run_on_it(lab.directory / source, fmt), nth=2)
    result = lab.run(volume_clone, source=source, name=["b", "c"])
    assert result.get("failed") and result["changed"] and "Run again" in result["msg"], result
    assert (result["done"], result["not_done"]) == (["b"], ["c"])
    assert not (lab.directory / "c").exists()
    again = lab.run(volume_clone, source=source, name="c")
    assert again["changed"] and content_of(lab.directory / "c", fmt) == content_of(lab.directory / source, fmt)


def test_template_that_is_written_before_its_overlay_is_made(lab: Hypervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    before(monkeypatch, _image_locks, "hold_image", lambda: run_on_it(lab.directory / "a", "qcow2"))
    result = lab.run(volume, name="b", template="a")
    assert result.get("changed") and result["volume"]["capacity"] == 4 * MIB, result
    assert content_of(lab.directory / "b", "qcow2") == content_of(lab.directory / "a", "qcow2")


def test_template_that_the_same_call_grows(lab: Hypervisor) -> None:
    """What we change ourselves is no reason to stop."""
    result = lab.run(volume, name=["alone", "b"], template="alone", clone_mode="full", size="3M")
    assert result.get("changed") and not result.get("failed"), result
    assert content_of(lab.directory / "b", "qcow2") == content_of(lab.directory / "alone", "qcow2")


def test_snapshot_that_is_replaced_while_it_is_copied(lab: Hypervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the same name and id is another moment; it is decided anew, and is that moment as a whole."""
    path = lab.directory / "a"
    lab.connection.add_domain("web", disk(path), live=True)

    def replace_it() -> None:
        run(["qemu-img", "snapshot", "-d", "s", path])
        run(["qemu-io", "-f", "qcow2", "-c", "write -q -P 9 0 2M", path])
        run(["qemu-img", "snapshot", "-c", "s", path])

    real, starts = _qemu_img.QemuImg.convert, []

    def convert(self: Any, **wish: Any) -> None:
        starts.append(wish["label"])
        real(self, **wish)
        if len(starts) == 1:  # its clusters were being read meanwhile
            replace_it()

    monkeypatch.setattr(_qemu_img.QemuImg, "convert", convert)
    result = lab.run(volume, name="b", snapshot="s", snapshot_volume="a")
    assert result.get("changed") and len(starts) == 2, result
    assert content_of(lab.directory / "b", "qcow2") == b"\x09" * (2 * MIB)


# -- what loses its name ---------------------------------------------------------------------------


def rewrite_elsewhere(path: Path) -> None:
    """What a compressed rewrite on another host comes to: another file in its place, with the same content."""
    run(["qemu-img", "convert", "-O", "qcow2", "-c", path, path.parent.parent / "twin"])
    os.rename(path.parent.parent / "twin", path)


def capacity_of(path: Path, fmt: str) -> int:
    return path.stat().st_size if fmt == "raw" else int.from_bytes(path.read_bytes()[24:32], "big")


def test_volume_that_is_rewritten_elsewhere_while_it_is_grown(lab: Hypervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    path = lab.directory / "alone"
    before(monkeypatch, _qemu_img.QemuImg, "resize", lambda: rewrite_elsewhere(path))
    result = lab.run(volume_resize, name="alone", size="4M")
    assert result.get("changed") and result["volume"]["capacity"] == 4 * MIB, result
    assert capacity_of(path, "qcow2") == 4 * MIB


@pytest.mark.parametrize("name", ["alone", "r"])
def test_volume_that_is_grown_elsewhere_while_it_is_grown(lab: Hypervisor, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Who finds it done has changed nothing."""
    fmt = "raw" if name == "r" else "qcow2"
    place = (_grow, "_assert_grows") if name == "alone" else (_image_locks, "hold_image")
    before(monkeypatch, *place, lambda: run(["qemu-img", "resize", "-q", "-f", fmt, lab.directory / name, "4M"]))
    result = lab.run(volume_resize, name=name, size="4M")
    assert result.get("changed") is False and result["volume"]["capacity"] == 4 * MIB, result


@pytest.mark.parametrize("name", ["alone", "r"])
def test_volume_that_is_deleted_elsewhere_while_it_is_grown(lab: Hypervisor, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path = lab.directory / name
    before(monkeypatch, *((_qemu_img.QemuImg, "resize") if name == "alone" else (_image_locks, "hold_image")), path.unlink)
    result = lab.run(volume_resize, name=name, size="4M")
    assert result.get("reason") == "volume_not_found" and not result.get("changed"), result


def test_another_disk_that_the_domain_gets_is_not_grown(lab: Hypervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is at the target's name by now is none of our business; libvirt would even cut it."""
    path, other = lab.directory / "alone", lab.image("other", size="8M")
    lab.connection.add_domain("web", disk(path), live=True)
    was = other.read_bytes()

    def exchange() -> None:
        lab.connection.add_domain("web", disk(other), live=True)

    before(monkeypatch, _grow, "_assert_grows", exchange)
    result = lab.run(volume_resize, name="alone", size="4M")
    assert result.get("changed") and not result.get("failed"), result
    assert [call for call in lab.connection.calls if call[0] == "block_resize"] == []
    assert other.read_bytes() == was and capacity_of(path, "qcow2") == 4 * MIB


LATE = {
    "rewrite": (volume_compress, {"name": "alone", "method": "zeros", "compression": "zlib", "min_reclaim": "64K"}),
    "delete": (volume, {"name": "alone", "state": "absent"}),
    "delete with wipe": (volume, {"name": "alone", "state": "absent", "wipe": True}),
}


class Latecomer(threading.Thread):
    """Opens an image by its name, as a QEMU does, and comes to lock it only when the name leads elsewhere."""

    def __init__(self, path: Path, pause: float) -> None:
        super().__init__()
        self._path, self._pause = path, pause
        self._fd = os.open(path, os.O_RDWR)
        self.got_it: bool | None = None

    def run(self) -> None:
        try:
            deadline = time.monotonic() + 20
            while _directory.identify_loosely(str(self._path)) == _directory.identify(f"/proc/self/fd/{self._fd}"):
                assert time.monotonic() < deadline, "its name never went"
                time.sleep(0.001)
            time.sleep(self._pause)
            self.got_it = _image_locks._try_permissions(self._fd, _image_locks._EXCLUSIVE)
        finally:
            os.close(self._fd)


@pytest.mark.parametrize("name", LATE)
def test_who_opened_it_before_and_locks_it_afterwards(lab: Hypervisor, name: str) -> None:
    """Whoever was between the two when the name went is kept out: its guest would write to what nobody finds again."""
    module, wish = LATE[name]
    late = Latecomer(lab.directory / "alone", pause=0.3)
    late.start()
    began = time.monotonic()
    result = lab.run(module, **wish)
    late.join()
    assert result.get("changed"), result
    assert late.got_it is False
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("name", LATE)
def test_nobody_is_waited_for_in_vain(lab: Hypervisor, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Nobody else has it open: nothing is waited for."""
    monkeypatch.setattr(_image_locks, "LATE_TIMEOUT", 60.0)
    module, wish = LATE[name]
    began = time.monotonic()
    assert lab.run(module, **wish).get("changed")
    assert time.monotonic() - began < 30


# -- who comes between the plan and the lock -------------------------------------------------------


@pytest.mark.parametrize("wipe", [False, True])
def test_volume_that_another_host_deletes_before_it_is_locked(lab: Hypervisor, monkeypatch: pytest.MonkeyPatch, wipe: bool) -> None:
    """Who has nothing left to delete changed nothing."""
    before(monkeypatch, _image_locks, "allow_open_files", (lab.directory / "alone").unlink)
    result = lab.run(volume, name="alone", state="absent", wipe=wipe)
    assert not result.get("failed") and result["changed"] is False and result["actions"] == [], result


@pytest.mark.parametrize("wish", [{}, {"wipe": True}], ids=["delete", "wipe"])
def test_loop_device_that_comes_before_a_delete(lab: Hypervisor, monkeypatch: pytest.MonkeyPatch, wish: dict[str, Any]) -> None:
    """It takes no lock."""
    found: list[str] = []
    monkeypatch.setattr(_directory, "loop_devices_on", lambda ident: list(found))
    before(monkeypatch, _image_locks, "hold_image", lambda: found.append("/dev/loop7"))
    result = lab.run(volume, name="alone", state="absent", **wish)
    assert result.get("reason") == "volume_in_use" and "/dev/loop7" in result["msg"], result
    assert not result.get("changed") and (lab.directory / "alone").exists()


# -- what fails when the work is done --------------------------------------------------------------


@contextlib.contextmanager
def failing_after(monkeypatch: pytest.MonkeyPatch, place: Any, name: str, done: Callable[[], bool], error: Exception) -> Iterator[None]:
    """Have all calls fail once the work is done."""
    real = getattr(place, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        if done():
            raise error
        return real(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(place, name, call)
        yield


DONE: dict[str, Callable[[Path], bool]] = {
    "clone": lambda pool: (pool / "b").exists(),
    "overlay of a template": lambda pool: (pool / "b").exists(),
    "growth": lambda pool: capacity_of(pool / "alone", "qcow2") == 3 * MIB,
    "growth of raw": lambda pool: capacity_of(pool / "r", "raw") == 3 * MIB,
    "compression": lambda pool: (pool / "alone").stat().st_blocks * 512 < 1.6 * MIB,
    "rewrite": lambda pool: (pool / "alone").stat().st_blocks * 512 < 1.6 * MIB,
    "delete with wipe": lambda pool: not (pool / "alone").exists(),
}


@pytest.mark.parametrize("call", ["refresh", "domains"])
@pytest.mark.parametrize("name", DONE)
def test_libvirt_fails_when_the_work_is_done(lab: Hypervisor, monkeypatch: pytest.MonkeyPatch, name: str, call: str) -> None:
    """The failure is told, and so is what was changed."""
    work, is_done = WORKS[name], functools.partial(DONE[name], lab.directory)
    assert not is_done()
    error = LibvirtError("The daemon has other plans.") if call == "refresh" else ConnectionFailed("The daemon is gone.")
    with failing_after(monkeypatch, lab.connection, call, is_done, error):
        result = lab.run(work.module, **wish_of(work, lab))
    assert is_done(), result
    if name == "delete with wipe" and call == "domains":
        assert result.get("changed"), "nothing is left to ask about"
        return
    assert result.get("failed") and result["reason"] == error.reason and result.get("changed") is True, result


@pytest.mark.parametrize("preallocation", ["falloc", "full"])
def test_room_that_runs_out_where_none_can_be_reserved(
    lab: Hypervisor, monkeypatch: pytest.MonkeyPatch, preallocation: str
) -> None:
    """The size is as it was."""
    monkeypatch.setattr(_grow, "_reserve_behind_end", lambda *args: False)

    def full(fd: int, start: int, length: int) -> None:
        os.pwrite(fd, b"\0" * (length // 2), start)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    content = (lab.directory / "r").read_bytes()
    result = lab.run(volume_resize, name="r", size="4M", preallocation=preallocation)
    assert result.get("reason") == "insufficient_space" and not result.get("changed"), result
    assert (lab.directory / "r").read_bytes() == content


@pytest.mark.parametrize(("name", "rewritten"), [("compression", False), ("rewrite", True), ("rewrite of an overlay", True)])
def test_a_rewrite_is_one(lab: Hypervisor, name: str, rewritten: bool) -> None:
    """A test of the tests: this kind of work makes a new file, the other doesn't."""
    path = lab.directory / WORKS[name].wish["name"]
    old = path.stat().st_ino
    result = lab.run(WORKS[name].module, **wish_of(WORKS[name], lab))
    assert result.get("changed") and (path.stat().st_ino != old) is rewritten, result
