# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.hypervisor.storage.plugins.module_utils import _directory, _staging
from ansible_collections.hypervisor.storage.plugins.module_utils._errors import (
    Exchanged,
    InsufficientSpace,
    InvalidSize,
    StorageError,
    ToolFailed,
    VolumeMismatch,
)
from ansible_collections.hypervisor.storage.plugins.module_utils._staging import Complete, Ownership, Staged, stage, sweep

MIB = 1024**2
ANYBODY = Ownership()
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    (tmp_path / "pool").mkdir()
    return tmp_path / "pool"


@pytest.fixture(params=[False, True], ids=["nameless", "named"])
def named(request: pytest.FixtureRequest) -> bool:
    """Files without a name, and the way of file systems that have none such."""
    return bool(request.param)


def publish(staged: Staged, name: str, *, ownership: Ownership, image_format: str) -> None:
    assert list(_staging.publish([Complete(staged, name, ownership, image_format)])) == [name]


def listing(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


# -- stage and publish -----------------------------------------------------------------------------


def test_a_volume_appears_when_it_is_complete(pool: Path, named: bool) -> None:
    with stage(str(pool), named=named) as staged:
        os.write(staged.fd, b"content")
        assert (staged.hidden_name is not None) is named
        assert "web" not in listing(pool)
        assert all(name.startswith(".hypervisor.storage-") for name in listing(pool))
        publish(staged, "web", ownership=ANYBODY, image_format="raw")
        assert listing(pool) == ["web"]
    assert listing(pool) == ["web"]
    assert (pool / "web").read_bytes() == b"content"
    assert (pool / "web").stat().st_nlink == 1


def test_a_tool_can_write_by_path(pool: Path, named: bool) -> None:
    with stage(str(pool), named=named) as staged:
        subprocess.run(["sh", "-c", 'echo content > "$1"', "sh", staged.path], check=True, pass_fds=(staged.fd,))
        publish(staged, "web", ownership=ANYBODY, image_format="raw")
    assert (pool / "web").read_bytes() == b"content\n"


def test_the_way_without_nameless_files_is_found(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_open = os.open

    def nfs_open(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return real_open(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", nfs_open)
    with stage(str(pool)) as staged:
        assert staged.hidden_name is not None
        publish(staged, "web", ownership=ANYBODY, image_format="raw")
    assert listing(pool) == ["web"]


@pytest.mark.parametrize("there", ["file", "directory", "link", "dangling link"])
def test_publishing_never_overwrites(pool: Path, named: bool, there: str) -> None:
    target = pool / "web"
    if there == "file":
        target.write_bytes(b"precious")
    elif there == "directory":
        target.mkdir()
    else:
        target.symlink_to(pool.parent if there == "link" else "nowhere")
    with pytest.raises(VolumeMismatch) as caught, stage(str(pool), named=named) as staged:
        publish(staged, "web", ownership=ANYBODY, image_format="raw")
    assert caught.value.facts == {"volume": "web"}
    assert listing(pool) == ["web"]
    if there == "file":
        assert target.read_bytes() == b"precious"


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK])
def test_publishing_where_there_are_no_hard_links(pool: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def no_link(*_arguments: Any, **_options: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", no_link)
    for _time in range(2):
        with contextlib.suppress(VolumeMismatch), stage(str(pool), named=True) as staged:
            os.write(staged.fd, b"first" if "web" not in listing(pool) else b"second")
            publish(staged, "web", ownership=ANYBODY, image_format="raw")
    assert listing(pool) == ["web"]
    assert (pool / "web").read_bytes() == b"first"


def test_a_name_that_is_taken_at_the_last_moment(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without hard links, too: nobody's file is overwritten, though it wasn't there at the last look."""
    (pool / "web").write_bytes(b"of somebody else")
    real = os.stat

    def too_early(path: Any, **options: Any) -> os.stat_result:
        if path == "web":
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return real(path, **options)

    def no_link(*_arguments: Any, **_options: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", no_link)
    monkeypatch.setattr(os, "stat", too_early)
    with pytest.raises(VolumeMismatch), stage(str(pool), named=True) as staged:
        publish(staged, "web", ownership=ANYBODY, image_format="raw")
    assert listing(pool) == ["web"] and (pool / "web").read_bytes() == b"of somebody else"


def test_many_are_published_in_their_order(pool: Path, named: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))
    wanted = [f"v{number}" for number in range(40)]
    with contextlib.ExitStack() as stack:
        files = [Complete(stack.enter_context(stage(str(pool), named=named)), name, ANYBODY, "raw") for name in wanted]
        for file in files:
            os.write(file.staged.fd, file.name.encode())
        given = []
        for name in _staging.publish(files):
            given.append(name)
            assert set(given) <= set(listing(pool))
    assert given == wanted and listing(pool) == sorted(wanted)
    assert all((pool / name).read_bytes() == name.encode() for name in wanted)
    assert sorted(synced[:-1]) == sorted((pool / name).stat().st_ino for name in wanted)
    assert synced[-1] == pool.stat().st_ino, "the names are synced after the files"


def test_one_of_many_whose_name_is_taken(pool: Path, named: bool) -> None:
    (pool / "b").write_bytes(b"of somebody else")
    given = []
    with contextlib.ExitStack() as stack:
        files = [Complete(stack.enter_context(stage(str(pool), named=named)), name, ANYBODY, "raw") for name in "abc"]
        with pytest.raises(VolumeMismatch) as failure:
            for name in _staging.publish(files):
                given.append(name)
    assert failure.value.facts["volume"] == "b"
    assert given == ["a"] and listing(pool) == ["a", "b"]
    assert (pool / "b").read_bytes() == b"of somebody else"


@pytest.mark.parametrize("name", ["-", "a b", "'", "日本語", "%s", "a\\b", "x" * 255, "*"])
def test_any_name_can_be_published(pool: Path, named: bool, name: str) -> None:
    with stage(str(pool), named=named) as staged:
        publish(staged, name, ownership=ANYBODY, image_format="raw")
    assert listing(pool) == [name]


@pytest.mark.parametrize(("mode", "expected"), [(None, 0o600), (0o640, 0o640), (0, 0), (0o777, 0o777)])
def test_rights_do_not_depend_on_the_umask(pool: Path, named: bool, mode: int | None, expected: int) -> None:
    before = os.umask(0o077)
    try:
        with stage(str(pool), named=named) as staged:
            assert os.fstat(staged.fd).st_mode & 0o777 == 0o600
            publish(staged, "web", ownership=Ownership(mode=mode), image_format="raw")
    finally:
        os.umask(before)
    assert (pool / "web").stat().st_mode & 0o7777 == expected


@needs_root
@pytest.mark.parametrize(
    ("ownership", "expected"),
    [
        (Ownership(uid=12, gid=34), (12, 34)),
        (Ownership(uid=12), (12, os.getegid())),
        (Ownership(gid=34), (os.geteuid(), 34)),
    ],
)
def test_owner_and_group(pool: Path, named: bool, ownership: Ownership, expected: tuple[int, int]) -> None:
    with stage(str(pool), named=named) as staged:
        publish(staged, "web", ownership=ownership, image_format="raw")
    made = (pool / "web").stat()
    assert (made.st_uid, made.st_gid) == expected


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_the_format_is_marked_beside_the_content(pool: Path, named: bool, image_format: str) -> None:
    try:
        os.setxattr(pool, "user.test", b"")
    except OSError:
        pytest.skip("no extended attributes here")
    with stage(str(pool), named=named) as staged:
        publish(staged, "web", ownership=ANYBODY, image_format=image_format)
    facts = _directory.look_at(str(pool / "web"))
    assert facts is not None
    assert (facts.mark, facts.size) == (image_format, 0)


# -- whatever goes wrong ---------------------------------------------------------------------------


def test_an_exception_leaves_nothing(pool: Path, named: bool) -> None:
    descriptors = os.listdir("/proc/self/fd")
    with pytest.raises(ZeroDivisionError), stage(str(pool), named=named) as staged:
        os.write(staged.fd, b"half")
        print(1 / 0)
    assert listing(pool) == []
    assert os.listdir("/proc/self/fd") == descriptors


def test_what_is_not_published_goes_away(pool: Path, named: bool) -> None:
    with stage(str(pool), named=named):
        pass
    assert listing(pool) == []


def test_a_failure_after_publishing_keeps_the_volume(pool: Path, named: bool) -> None:
    with pytest.raises(ZeroDivisionError), stage(str(pool), named=named) as staged:
        publish(staged, "web", ownership=ANYBODY, image_format="raw")
        print(1 / 0)
    assert listing(pool) == ["web"]


def test_a_directory_that_is_not_there(tmp_path: Path, named: bool) -> None:
    with pytest.raises(ToolFailed), stage(str(tmp_path / "gone"), named=named):
        pytest.fail("there is nothing to stage in")


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, "insufficient_space"),
        (errno.EDQUOT, "insufficient_space"),
        (errno.EACCES, "unsupported"),
        (errno.EPERM, "unsupported"),
        (errno.EROFS, "unsupported"),
        (errno.EFBIG, "invalid_size"),
        (errno.EAGAIN, "locked"),
        (errno.EBUSY, "locked"),
        (errno.EIO, "tool_failed"),
        (errno.ENOENT, "tool_failed"),
        (errno.ELOOP, "tool_failed"),
    ],
)
def test_refusals_of_the_system_are_explained(number: int, reason: str) -> None:
    with pytest.raises(StorageError) as caught, _staging.explained("do it"):
        raise OSError(number, os.strerror(number))
    assert caught.value.reason == reason
    assert caught.value.msg.startswith("Cannot do it: ")
    # The system's own word, by which the roles tell a file that the system holds from a volume that somebody is at work on.
    assert reason != "locked" or caught.value.facts["errno"] == number


def test_other_exceptions_pass() -> None:
    with pytest.raises(ZeroDivisionError), _staging.explained("do it"):
        print(1 / 0)


def test_a_device_that_is_full() -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(InsufficientSpace), _staging.explained("write"):
            os.write(fd, b"x")
    finally:
        os.close(fd)


@needs_root
def test_a_file_system_that_is_full(pool: Path, named: bool) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(pool)]
    if subprocess.run(mount, stderr=subprocess.DEVNULL, check=False).returncode:
        pytest.skip("may not mount here")
    try:
        with pytest.raises(InsufficientSpace), stage(str(pool), named=named) as staged, _staging.explained("reserve"):
            os.posix_fallocate(staged.fd, 0, MIB)
        assert listing(pool) == []
    finally:
        subprocess.run(["umount", str(pool)], check=True)


def test_a_file_larger_than_the_file_system_has(pool: Path, named: bool) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, before[1]))
    try:
        with pytest.raises(InvalidSize), stage(str(pool), named=named) as staged, _staging.explained("reserve"):
            os.posix_fallocate(staged.fd, 0, 2 * MIB)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert listing(pool) == []


def test_direct_writes_are_tried_before_they_are_used(pool: Path, named: bool) -> None:
    with stage(str(pool), named=named) as staged:
        expected = True
        try:
            os.close(os.open(staged.path, os.O_RDWR | os.O_DIRECT))
        except OSError:
            expected = False
        assert _staging.supports_direct(staged) is expected


# -- leftovers -------------------------------------------------------------------------------------


def killed_while_staging(pool: Path, *, named: bool) -> None:
    child = os.fork()
    if child == 0:
        try:
            with stage(str(pool), named=named) as staged:
                os.write(staged.fd, b"half")
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    _pid, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL


def test_a_killed_run_without_a_name_leaves_nothing(pool: Path) -> None:
    killed_while_staging(pool, named=False)
    assert listing(pool) == []


def test_a_killed_run_with_a_hidden_name_is_swept(pool: Path) -> None:
    (pool / "web").write_bytes(b"precious")
    killed_while_staging(pool, named=True)
    killed_while_staging(pool, named=True)
    left = [name for name in listing(pool) if name != "web"]
    assert len(left) == 2
    assert sweep(str(pool)) == left
    assert listing(pool) == ["web"]
    assert sweep(str(pool)) == []


def test_what_a_living_run_makes_is_left_alone(pool: Path) -> None:
    with stage(str(pool), named=True) as staged:
        assert sweep(str(pool)) == []
        assert listing(pool) == [staged.hidden_name]
        publish(staged, "web", ownership=ANYBODY, image_format="raw")
    assert listing(pool) == ["web"]


def test_only_our_own_leftovers_are_swept(pool: Path, tmp_path: Path) -> None:
    for name in (".hypervisor.storage-", ".hypervisor.storage-other", ".hypervisor", "partial-1", ".nfs001"):
        (pool / name).write_bytes(b"")
    (tmp_path / "precious").write_bytes(b"precious")
    (pool / ".hypervisor.storage-partial-link").symlink_to(tmp_path / "precious")
    (pool / ".hypervisor.storage-partial-directory").mkdir()
    os.mkfifo(pool / ".hypervisor.storage-doomed-fifo")
    before = listing(pool)
    signal.alarm(20)  # a FIFO that is opened for reading waits for ever
    try:
        assert sweep(str(pool)) == []
    finally:
        signal.alarm(0)
    assert listing(pool) == before
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_sweeping_a_directory_that_is_gone(tmp_path: Path) -> None:
    assert sweep(str(tmp_path / "gone")) == []


# -- wipe ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def watched(path: Path) -> Iterator[Path]:
    """A way to a file that stays when its name goes, and is no second name."""
    with path.open("rb") as file:
        yield Path(f"/proc/self/fd/{file.fileno()}")


@pytest.fixture
def doomed(pool: Path) -> Iterator[Path]:
    """A way to the volume 'web': data, a hole, data, and an end that fills no block."""
    path = pool / "web"
    with path.open("wb") as file:
        file.write(b"a" * MIB)
        file.seek(5 * MIB)
        file.write(b"b" * (2 * MIB + 123))
    with watched(path) as way:
        yield way


def test_wiping_takes_the_name_first_and_then_the_data(pool: Path, doomed: Path) -> None:
    hidden, fd = _staging.hide_for_wiping(str(pool), "web")
    try:
        assert listing(pool) == [os.path.basename(hidden)]
        assert os.path.basename(hidden).startswith(".hypervisor.storage-")
        assert doomed.read_bytes()[:1] == b"a"
        assert sweep(str(pool)) == []  # somebody is at work on it
        before = doomed.stat()
        _staging.wipe_and_remove(hidden, fd)
    finally:
        os.close(fd)
    assert listing(pool) == []
    wiped = doomed.stat()
    assert doomed.read_bytes().count(0) == wiped.st_size == before.st_size
    # Overwritten in place: neither holes filled nor blocks given back to be read by somebody else.
    assert wiped.st_blocks == before.st_blocks


def test_a_wipe_that_was_killed_is_finished(pool: Path, doomed: Path) -> None:
    child = os.fork()
    if child == 0:
        try:
            _staging.hide_for_wiping(str(pool), "web")
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    os.waitpid(child, 0)
    left = listing(pool)
    assert len(left) == 1
    assert doomed.read_bytes()[:1] == b"a"
    assert sweep(str(pool)) == left
    assert listing(pool) == []
    assert doomed.read_bytes().count(0) == doomed.stat().st_size


@pytest.mark.parametrize("content", [b"", b"x", b"x" * (MIB + 1)])
def test_every_size_can_be_wiped(pool: Path, content: bytes) -> None:
    (pool / "web").write_bytes(content)
    with watched(pool / "web") as way:
        hidden, fd = _staging.hide_for_wiping(str(pool), "web")
        _staging.wipe_and_remove(hidden, fd)
        os.close(fd)
        assert way.read_bytes() == bytes(len(content))


def test_what_is_wanted_under_another_name_is_not_wiped(pool: Path, tmp_path: Path) -> None:
    """A hard link that came before the wipe, and one that came after the run that began it was killed."""
    (pool / "web").write_bytes(b"precious")
    os.link(pool / "web", tmp_path / "other")
    with pytest.raises(Exchanged, match="'web'.*linked"):
        _staging.hide_for_wiping(str(pool), "web")
    assert listing(pool) == ["web"]
    (tmp_path / "other").unlink()
    hidden, fd = _staging.hide_for_wiping(str(pool), "web")
    os.close(fd)
    os.link(hidden, tmp_path / "other")
    assert sweep(str(pool)) == [os.path.basename(hidden)]
    assert listing(pool) == [] and (tmp_path / "other").read_bytes() == b"precious"


def test_only_what_was_locked_is_wiped(pool: Path) -> None:
    (pool / "web").write_bytes(b"old")
    ident = _directory.identify(str(pool / "web"))
    (pool / "new").write_bytes(b"of somebody else")
    os.rename(pool / "new", pool / "web")
    with pytest.raises(Exchanged, match="'web'.*exchanged"):
        _staging.hide_for_wiping(str(pool), "web", ident=ident)
    assert listing(pool) == ["web"] and (pool / "web").read_bytes() == b"of somebody else"


def test_a_link_is_not_followed_to_be_wiped(pool: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    (pool / "web").symlink_to(tmp_path / "precious")
    with pytest.raises(StorageError):
        _staging.hide_for_wiping(str(pool), "web")
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert listing(pool) == ["web"]


def test_what_is_gone_can_not_be_hidden(pool: Path) -> None:
    with pytest.raises(StorageError):
        _staging.hide_for_wiping(str(pool), "web")


def test_a_directory_is_put_on_stable_storage(pool: Path) -> None:
    _staging.sync_directory(str(pool))
    with pytest.raises(ToolFailed):
        _staging.sync_directory(str(pool / "gone"))


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
def test_what_cannot_be_wiped_stops_no_other_run(pool: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """It stays where it is, for a run that can."""
    (pool / "a").write_bytes(b"secret" * 4096)
    hidden, fd = _staging.hide_for_wiping(str(pool), "a")
    os.close(fd)
    other = pool / ".hypervisor.storage-partial-0123456789abcdef"
    other.write_bytes(b"left")

    def fails(*arguments: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", fails)
        assert sweep(str(pool)) == [other.name]
    assert Path(hidden).read_bytes() == b"secret" * 4096
    assert sweep(str(pool)) == [os.path.basename(hidden)]
    assert os.listdir(pool) == []
