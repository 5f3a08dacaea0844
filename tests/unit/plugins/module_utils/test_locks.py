# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ansible_collections.hypervisor.storage.plugins.module_utils import _image_locks, _locks, _pool_changes, _pool_tools, _without_files
from ansible_collections.hypervisor.storage.plugins.module_utils._errors import Exchanged, Locked, StorageError, VolumeInUse
from ansible_collections.hypervisor.storage.plugins.module_utils._inventory import Host
from ansible_collections.hypervisor.storage.plugins.module_utils._model import Pool, PoolSource

needs_qemu = pytest.mark.skipif(shutil.which("qemu-io") is None, reason="needs qemu-io")

MIB = 1024**2
PLACE = ("file", 1, 2)


@pytest.fixture(autouse=True)
def private_locks(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Name locks of these tests alone, and short waits."""
    place = tmp_path_factory.mktemp("locks") / "names.lock"
    monkeypatch.setattr(_locks, "_lock_home", lambda: str(place))
    monkeypatch.setattr(_image_locks, "IMAGE_TIMEOUT", 0.05)
    return place


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


@contextlib.contextmanager
def another_process(work: Callable[[Callable[[], None]], None]) -> Iterator[int]:
    """Run ``work`` in a child that says when it is ready, and is killed at the end; yields its id."""
    ready, say = os.pipe()

    def say_and_wait() -> None:
        os.write(say, b"x")
        signal.pause()

    child = os.fork()
    if child == 0:
        try:
            work(say_and_wait)
        finally:
            os._exit(1)
    os.close(say)
    try:
        assert os.read(ready, 1) == b"x"
        yield child
    finally:
        os.close(ready)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)


# -- names -----------------------------------------------------------------------------------------


def hold(*names: str, place: tuple[str, int, int] = PLACE) -> Callable[[Callable[[], None]], None]:
    def work(ready: Callable[[], None]) -> None:
        with _locks.hold_names(place, names):
            ready()

    return work


def is_free(*names: str, place: tuple[str, int, int] = PLACE) -> bool:
    try:
        with _locks.hold_names(place, names, timeout=0):
            return True
    except Locked:
        return False


def test_a_name_is_held_against_other_processes() -> None:
    with another_process(hold("web")):
        assert not is_free("web")
        assert is_free("db")
        assert is_free("web", place=("file", 1, 3))
    assert is_free("web")


def test_the_file_of_the_locks_is_tidied_away_while_one_is_waited_for(private_locks: Path) -> None:
    """Who waited holds the name for all who come afterwards, in the file that they find."""
    held, release = threading.Event(), threading.Event()

    def wait_for_it() -> None:
        with _locks.hold_names(PLACE, ["web"], timeout=10) as waited:
            assert waited
            held.set()
            release.wait(10)

    with another_process(hold("web")):
        waiting = threading.Thread(target=wait_for_it)
        waiting.start()
        time.sleep(0.2)
        private_locks.unlink()
    assert held.wait(10)
    assert not is_free("web")
    release.set()
    waiting.join()
    assert is_free("web")


def test_a_name_is_held_against_the_same_process() -> None:
    with _locks.hold_names(PLACE, ["web"]):
        assert not is_free("web")
    assert is_free("web")


def test_the_wait_is_bounded_and_the_message_names_the_volume() -> None:
    with another_process(hold("web", "db")):
        began = time.monotonic()
        with pytest.raises(Locked) as caught, _locks.hold_names(PLACE, ["a", "web", "z"], timeout=0.3):
            pytest.fail("it was held by another")
        assert 0.3 <= time.monotonic() - began < 3
    assert caught.value.facts == {"volume": "web"}
    assert "'web'" in caught.value.msg
    assert is_free("a", "z"), "what was taken on the way must be given back"


def test_who_waits_goes_on_when_the_other_is_killed() -> None:
    with another_process(hold("web")) as holder:
        threading.Timer(0.2, os.kill, (holder, signal.SIGKILL)).start()
        began = time.monotonic()
        with _locks.hold_names(PLACE, ["web"], timeout=10):
            assert 0.15 < time.monotonic() - began < 5


def test_a_killed_holder_leaves_nothing_behind(private_locks: Path) -> None:
    with another_process(hold("web")) as holder:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        assert is_free("web")
    assert os.listdir(private_locks.parent) == ["names.lock"]
    assert private_locks.stat().st_size == 0
    assert private_locks.stat().st_mode & 0o777 == 0o600


def test_an_exception_gives_the_names_back() -> None:
    with pytest.raises(ZeroDivisionError), _locks.hold_names(PLACE, ["web"]):
        print(1 / 0)
    assert is_free("web")


def test_names_that_repeat_or_are_strange() -> None:
    names = ["web", "web", "-", "日本語", "a\udcff", "x" * 255]
    with _locks.hold_names(PLACE, names):
        assert not any(is_free(name) for name in names)


def test_many_names_cost_one_descriptor(private_locks: Path) -> None:
    before = os.listdir("/proc/self/fd")
    with _locks.hold_names(PLACE, [f"web{n}" for n in range(500)]):
        assert len(os.listdir("/proc/self/fd")) == len(before) + 1
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_the_lock_is_not_inherited_by_tools() -> None:
    with _locks.hold_names(PLACE, ["web"]):
        tool = subprocess.Popen(["sleep", "30"])
    try:
        assert is_free("web")
    finally:
        tool.kill()
        tool.wait()


def test_no_logical_volume_is_renamed_while_libvirt_reads_its_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """libvirt would not find it where it was a moment before, and stop the pool: copies made side by side came to that."""
    order: list[str] = []
    reading, go_on = threading.Event(), threading.Event()

    def refresh(_connection: Any, _pool: Pool) -> None:
        order.append("read")
        reading.set()
        go_on.wait(10)
        order.append("done")

    handle: Any = SimpleNamespace(volume=lambda _pool, _name: SimpleNamespace(path="/dev/vg/old"))
    monkeypatch.setattr(_pool_changes, "refresh", refresh)
    monkeypatch.setattr(_pool_tools, "rename", lambda _type, **_options: order.append("rename"))
    host, pool = Host(handle), Pool("vg", "uuid", "logical", "/dev/vg", source=PoolSource("vg"))
    reader = threading.Thread(target=host.refresh, args=(pool,))
    renamer = threading.Thread(target=_without_files._rename, args=(host, pool, "old", "new"))
    reader.start()
    assert reading.wait(10)
    renamer.start()
    renamer.join(0.5)
    assert order == ["read"]
    go_on.set()
    reader.join(10)
    renamer.join(10)
    assert order == ["read", "done", "rename"]


def test_the_wait_for_a_pool_is_bounded_and_told_in_words_of_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_locks, "NAME_TIMEOUT", 0.1)
    with _locks.hold_list(("pool", "logical", "vg")):
        with pytest.raises(Locked, match="reading the pool at 'vg'") as caught, _locks.hold_list(("pool", "logical", "vg")):
            pytest.fail("it is held")
    assert "list of all" not in caught.value.msg


def test_locks_live_in_a_directory_that_only_this_user_can_enter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() or 12345)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    home = tmp_path / f"hypervisor.storage-{os.geteuid()}"
    if os.getuid() == 0:
        # Made by root here, hence another's in the eyes of user 12345.
        with pytest.raises(Locked) as caught:
            _locks._lock_home()
        assert "belongs to another user" in caught.value.msg
        os.chown(home, 12345, -1)
    assert _locks._lock_home() == str(home / "names.lock")
    assert home.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("place", ["file/names.lock", "gone/names.lock", "directory", "link"])
def test_a_place_that_can_not_hold_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to("file")
    monkeypatch.setattr(_locks, "_lock_home", lambda: str(tmp_path / place))
    with pytest.raises(StorageError), _locks.hold_names(PLACE, ["web"]):
        pytest.fail("there is nothing to lock")


# -- images: QEMU's own locks ----------------------------------------------------------------------


@pytest.fixture(params=["raw", "qcow2"])
def image(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    path = tmp_path / "image"
    argv = ["qemu-img", "create", "-q", "-f", request.param, str(path), str(MIB)]
    subprocess.run(argv, check=True)
    return path, request.param


@contextlib.contextmanager
def qemu_has(image: tuple[Path, str], *options: str) -> Iterator[None]:
    """A QEMU that has an image open, for writing unless an option says otherwise."""
    path, fmt = image
    process = subprocess.Popen(
        ["qemu-io", "-f", fmt, *options, str(path)],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until(lambda: _image_locks.image_users(str(path)) is not None)
        yield
    finally:
        process.kill()
        process.communicate()


def qemu_io(image: tuple[Path, str], command: str, *options: str) -> str:
    """What qemu-io says about one command on an image; empty when it worked."""
    path, fmt = image
    done = subprocess.run(
        ["qemu-io", "-f", fmt, *options, "-c", command, str(path)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", check=False,
    )  # fmt: skip
    return done.stdout if done.returncode else ""


@needs_qemu
def test_nobody_uses_a_closed_image(image: tuple[Path, str]) -> None:
    assert _image_locks.image_users(str(image[0])) is None


@needs_qemu
@pytest.mark.parametrize(("options", "expected"), [((), "writing"), (("-r",), "reading")])
def test_who_has_an_image_open(image: tuple[Path, str], options: tuple[str, ...], expected: str) -> None:
    with qemu_has(image, *options):
        assert _image_locks.image_users(str(image[0])) == expected
    assert _image_locks.image_users(str(image[0])) is None


def test_what_can_not_be_opened_has_no_known_users(tmp_path: Path) -> None:
    assert _image_locks.image_users(str(tmp_path / "gone")) is None


@needs_qemu
def test_looking_takes_no_lock(image: tuple[Path, str]) -> None:
    fd = os.open(image[0], os.O_RDONLY)
    try:
        _image_locks.image_users(str(image[0]))
        assert qemu_io(image, "write 0 512") == ""
    finally:
        os.close(fd)


@needs_qemu
@pytest.mark.parametrize(
    ("options", "exclusive", "refused"),
    [((), True, True), (("-r",), True, True), ((), False, True), (("-r",), False, False)],
)
def test_an_image_that_qemu_has(
    image: tuple[Path, str], options: tuple[str, ...], exclusive: bool, refused: bool
) -> None:
    with qemu_has(image, *options):
        if refused:
            with pytest.raises(VolumeInUse) as caught:
                with _image_locks.hold_image(str(image[0]), exclusive=exclusive, what="try"):
                    pytest.fail("it was open elsewhere")
            assert caught.value.facts == {"path": str(image[0])}
            assert caught.value.msg.startswith(f"Cannot try: a process has {str(image[0])!r} open")
        else:
            with _image_locks.hold_image(str(image[0]), exclusive=exclusive, what="try"):
                pass


@needs_qemu
def test_a_refused_hold_leaves_no_lock_behind(image: tuple[Path, str]) -> None:
    with qemu_has(image, "-r"):
        fd = os.open(image[0], os.O_RDONLY)
        try:
            assert not _image_locks._try_permissions(fd, _image_locks._EXCLUSIVE)
            assert qemu_io(image, "read 0 512", "-r") == ""
        finally:
            os.close(fd)


@needs_qemu
def test_qemu_can_not_open_what_is_held_exclusively(image: tuple[Path, str]) -> None:
    with _image_locks.hold_image(str(image[0]), exclusive=True, what="try"):
        assert "lock" in qemu_io(image, "write 0 512")
        assert "lock" in qemu_io(image, "read 0 512", "-r")
        assert _image_locks.image_users(str(image[0])) == "writing"
    assert qemu_io(image, "write 0 512") == ""


@needs_qemu
def test_qemu_can_read_but_not_write_what_is_held_as_a_reader(image: tuple[Path, str]) -> None:
    with _image_locks.hold_image(str(image[0]), exclusive=False, what="try"):
        assert "lock" in qemu_io(image, "write 0 512")
        assert qemu_io(image, "read 0 512", "-r") == ""
        assert _image_locks.image_users(str(image[0])) == "reading"
        # Several of us may read at once.
        with _image_locks.hold_image(str(image[0]), exclusive=False, what="try"):
            pass
        with pytest.raises(VolumeInUse), _image_locks.hold_image(str(image[0]), exclusive=True, what="try"):
            pytest.fail("somebody reads it")
    assert qemu_io(image, "write 0 512") == ""


@needs_qemu
def test_a_passing_qemu_is_waited_for(image: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_image_locks, "IMAGE_TIMEOUT", 10.0)
    path, fmt = image
    with subprocess.Popen(["qemu-io", "-f", fmt, "-c", "sleep 300", str(path)], stdout=subprocess.DEVNULL):
        until(lambda: _image_locks.image_users(str(path)) is not None)
        with _image_locks.hold_image(str(path), exclusive=True, what="try"):
            pass


@needs_qemu
def test_a_killed_holder_frees_the_image(image: tuple[Path, str]) -> None:
    def work(ready: Callable[[], None]) -> None:
        with _image_locks.hold_image(str(image[0]), exclusive=True, what="try"):
            ready()

    with another_process(work) as holder:
        assert _image_locks.image_users(str(image[0])) == "writing"
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        assert qemu_io(image, "write 0 512") == ""


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("successor", [None, b"another"])
def test_an_image_that_goes_while_its_holder_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exclusive: bool, successor: bytes | None
) -> None:
    """Who deletes an image holds it until it is gone; what then can be locked is a file without a name."""
    monkeypatch.setattr(_image_locks, "IMAGE_TIMEOUT", 10.0)
    path = tmp_path / "image"
    path.write_bytes(b"one")
    caught: list[BaseException | None] = []

    def wait() -> None:
        try:
            with _image_locks.hold_image(str(path), exclusive=exclusive, what="try"):
                caught.append(None)
        except StorageError as error:
            caught.append(error)

    waiting = threading.Thread(target=wait)
    with _image_locks.hold_image(str(path), exclusive=True, what="delete it"):
        waiting.start()
        until(lambda: times_open(path) == 2)
        path.unlink()
        if successor is not None:
            path.write_bytes(successor)
    waiting.join()
    assert isinstance(caught[0], Exchanged)
    assert caught[0].msg == f"Cannot try: {str(path)!r} was deleted or exchanged meanwhile. Run again."


def test_who_looks_whether_others_have_a_file_open_survives_that_one_opens_it(tmp_path: Path) -> None:
    """The kernel tells the holder of a lease by a signal, which would end it."""
    (tmp_path / "image").write_bytes(b"")
    fd = os.open(tmp_path / "image", os.O_RDONLY)
    child = os.fork()
    if child == 0:
        for _again in range(5000):
            _image_locks._is_open_here_alone(fd)
        os._exit(0)
    os.close(fd)
    opened = 0
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        with contextlib.suppress(BlockingIOError):
            os.close(os.open(tmp_path / "image", os.O_RDONLY | os.O_NONBLOCK))
        opened += 1
    assert (ended[1], opened > 10) == (0, True)


def times_open(path: Path) -> int:
    """How often this process has a file open."""
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found += os.path.samefile(f"/proc/self/fd/{fd}", path)
    return found


def test_nobody_writes_between_a_readers_hold_and_its_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim that has to wait must not let go of what it has: what was found in the image would be old."""
    monkeypatch.setattr(_image_locks, "IMAGE_TIMEOUT", 1.0)
    path = tmp_path / "image"
    path.write_bytes(b"")
    as_writer = ((_image_locks.WRITE,), ())
    writes, ended = [], threading.Event()

    def write() -> None:
        fd = os.open(path, os.O_RDWR)
        while not ended.is_set():
            writes.append(_image_locks._try_permissions(fd, as_writer))
        os.close(fd)

    with _image_locks.hold_image(str(path), exclusive=False, what="try") as fd:
        with _image_locks.hold_image(str(path), exclusive=False, what="read"):
            writer = threading.Thread(target=write)
            writer.start()
            with pytest.raises(VolumeInUse):
                _image_locks.claim_image(fd, path=str(path), what="try")
            ended.set()
            writer.join()
        assert len(writes) > 100
        assert not any(writes)
        _image_locks.claim_image(fd, path=str(path), what="try")
        assert _image_locks.image_users(str(path)) == "writing"


def test_an_image_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), _image_locks.hold_image(str(tmp_path / "gone"), exclusive=True, what="try"):
        pytest.fail("it is not there")


def test_the_descriptor_is_closed_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"")
    with _image_locks.hold_image(str(tmp_path / "image"), exclusive=True, what="try") as fd:
        os.fstat(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_one_byte_is_for_one_holder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    mine = os.open(tmp_path / "file", os.O_RDWR)
    theirs = os.open(tmp_path / "file", os.O_RDWR)
    try:
        assert _locks.try_exclusive_byte(mine, 1 << 61)
        assert not _locks.try_exclusive_byte(theirs, 1 << 61)
        assert _locks.try_exclusive_byte(theirs, 5)
        os.close(os.dup(mine))
        assert not _locks.try_exclusive_byte(theirs, 1 << 61)
    finally:
        os.close(mine)
        assert _locks.try_exclusive_byte(theirs, 1 << 61)
        os.close(theirs)
