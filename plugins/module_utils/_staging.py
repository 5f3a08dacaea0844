# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Make it unseen, sync it, publish it: how a new volume gets its name.

Where the file system can (O_TMPFILE of open(2)), a volume has no name at all until it is complete: a killed
run leaves nothing, because the kernel frees a nameless file with its last descriptor. Elsewhere (NFS) it has
a hidden name whose maker holds a lock on it; a hidden file without such a lock is a leftover, which the next
run removes. Publishing never overwrites: link(2) fails when the name is taken.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from . import _directory, _locks, _os_errors
from ._errors import Exchanged, StorageError, VolumeMismatch
from ._landlock import Handed
from ._model import Ident
from ._named_tuple import NamedTuple
from ._names import STAGING_PREFIX

_PARTIAL = STAGING_PREFIX + "partial-"
_DOOMED = STAGING_PREFIX + "doomed-"
explained = _os_errors.explained
_FROZEN_MARK = "user.hypervisor.storage.frozen"
_LIFE_BYTE = 1 << 61  # far behind QEMU's lock bytes: whoever holds it is alive and at work on the file
_SYNCS_AT_ONCE = 16
_NOREPLACE = 1  # RENAME_NOREPLACE, linux/fs.h
_SIGNATURES = frozenset(("security.evm", "security.ima"))


class Ownership(NamedTuple):
    """Who may do what with a new volume's file; ``None`` leaves libvirt's defaults (this user, 0600)."""

    uid: int | None = None
    gid: int | None = None
    mode: int | None = None


@dataclass
class Staged:
    """A file in the making: ``path`` is for tools that get ``fd`` passed on, or that find the hidden name."""

    fd: int
    path: Handed
    directory: str
    hidden_name: str | None


@contextlib.contextmanager
def stage(directory: str, *, named: bool = False) -> Iterator[Staged]:
    """A new empty file in ``directory`` that goes away unless it is published; raises our errors only."""
    with explained(f"make a file in {directory!r}"):
        staged = None if named else _open_nameless(directory)
        staged = staged or _open_hidden(directory)
    try:
        yield staged
    finally:
        if staged.hidden_name is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(directory, staged.hidden_name))
        os.close(staged.fd)


class Complete(NamedTuple):
    """A staged file with all its data, and what it is to become."""

    staged: Staged
    name: str
    ownership: Ownership
    image_format: str


def publish(files: Sequence[Complete]) -> Iterator[str]:
    """Give complete files of one directory their names, yielding each: rights first, then the data on stable storage,
    then the name.
    """
    _settle_all(files)
    directory = files[0].staged.directory
    with explained(f"publish volumes in {directory!r}"), _opened_directory(directory) as directory_fd:
        given = ""
        try:
            for file in files:
                with explained(f"publish volume {file.name!r} in {directory!r}"):
                    try:
                        _give_name(file.staged, file.name, directory_fd)
                    except FileExistsError:
                        raise VolumeMismatch(
                            f"Volume {file.name!r} appeared in {directory!r} while it was being made; it was left as it is. "
                            "Run again to see whether it is what you want.",
                            volume=file.name,
                        ) from None
                given = file.name
                yield given
        finally:
            if given:
                with explained(f"sync the name of volume {given!r}", changed=True):
                    os.fsync(directory_fd)


def _settle_all(files: Sequence[Complete]) -> None:
    """Each waits for the disk by itself, so several at once wait for less."""
    if len(files) == 1:
        _settle(files[0])
        return
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(min(len(files), _SYNCS_AT_ONCE)) as pool:
        for _settled in pool.map(_settle, files):
            pass


def _settle(file: Complete) -> None:
    with explained(f"publish volume {file.name!r} in {file.staged.directory!r}"):
        fd, ownership = file.staged.fd, file.ownership
        _give(fd, ownership.uid, ownership.gid, name=file.name)
        os.fchmod(fd, 0o600 if ownership.mode is None else ownership.mode)
        _directory.write_mark(fd, file.image_format)
        os.fsync(fd)


def _give(fd: int, uid: int | None, gid: int | None, *, name: str) -> None:
    """Give a file to an owner and a group; ``None``, and what has it already, is left: some file systems let nobody change them."""
    made = os.fstat(fd)
    if uid in (None, made.st_uid) and gid in (None, made.st_gid):
        return
    with explained(f"give volume {name!r} its owner and group (the file system must allow it; NFS does not with root_squash)"):
        os.fchown(fd, -1 if uid is None else uid, -1 if gid is None else gid)


def _give_name(staged: Staged, name: str, directory_fd: int) -> None:
    if staged.hidden_name is None:
        os.link(staged.path, name, dst_dir_fd=directory_fd, follow_symlinks=True)
        return
    try:
        os.link(staged.hidden_name, name, src_dir_fd=directory_fd, dst_dir_fd=directory_fd, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        # No hard links here (FAT, some FUSE): our own runs are kept apart by the lock on the name.
        _rename_unless_taken(staged.hidden_name, name, directory_fd)
    else:
        os.unlink(staged.hidden_name, dir_fd=directory_fd)
    staged.hidden_name = None


def _rename_unless_taken(old: str, new: str, directory_fd: int) -> None:
    """Rename within a directory, in one step where the file system can (renameat2(2)); raises FileExistsError."""
    libc = ctypes.CDLL(None, use_errno=True)
    number = errno.ENOSYS
    if hasattr(libc, "renameat2"):
        if not libc.renameat2(directory_fd, os.fsencode(old), directory_fd, os.fsencode(new), _NOREPLACE):
            return
        number = ctypes.get_errno()
    if number not in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        raise OSError(number, os.strerror(number), new)
    with contextlib.suppress(FileNotFoundError):
        os.stat(new, dir_fd=directory_fd, follow_symlinks=False)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new)
    os.rename(old, new, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)


def replace(staged: Staged, name: str, *, old_fd: int) -> None:
    """Put the complete file in the place of the one open as ``old_fd``, with its rights and attributes, in one step."""
    with explained(f"replace volume {name!r} in {staged.directory!r}"):
        old = os.fstat(old_fd)
        _give(staged.fd, old.st_uid, old.st_gid, name=name)
        os.fchmod(staged.fd, stat.S_IMODE(old.st_mode))
        _copy_attributes(old_fd, staged.fd)
        os.fsync(staged.fd)
        with _opened_directory(staged.directory) as directory_fd:
            if not os.path.samestat(os.stat(name, dir_fd=directory_fd, follow_symlinks=False), old):
                raise Exchanged(
                    f"Volume {name!r} in {staged.directory!r} was exchanged meanwhile; it was left as it is. Run again.",
                    volume=name,
                )
            if staged.hidden_name is None:
                _claim(staged.fd)  # so that nobody takes it for a leftover
                hidden = _PARTIAL + os.urandom(8).hex()
                os.link(staged.path, hidden, dst_dir_fd=directory_fd, follow_symlinks=True)
                staged.hidden_name = hidden
            os.rename(staged.hidden_name, name, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
            staged.hidden_name = None
            with explained(f"sync the name of volume {name!r}", changed=True):
                os.fsync(directory_fd)


def _copy_attributes(old_fd: int, new_fd: int) -> None:
    """Extended attributes, hence ACLs, security labels and our mark; but not signatures of the content (IMA, EVM)."""
    try:
        names = os.listxattr(old_fd)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return
        raise
    there = set(os.listxattr(new_fd))
    for attribute in sorted(set(names) - _SIGNATURES):
        value = os.getxattr(old_fd, attribute)
        if attribute not in there or os.getxattr(new_fd, attribute) != value:
            os.setxattr(new_fd, attribute, value)


def supports_direct(staged: Staged) -> bool:
    """Whether the file system of a staged file takes writes past the page cache (O_DIRECT)."""
    try:
        os.close(os.open(f"/proc/self/fd/{staged.fd}", os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def sync_directory(path: str) -> None:
    """Put the names of a directory, which were changed, on stable storage."""
    with explained(f"sync directory {path!r}", changed=True), _opened_directory(path) as directory_fd:
        os.fsync(directory_fd)


def hide_for_wiping(directory: str, name: str, *, ident: Ident | None = None) -> tuple[str, int]:
    """Take a volume's name away in one step, so that nobody meets it half wiped; returns hidden path and fd.

    Raises Exchanged for what isn't ``ident``, or has other names by which its data is wanted.
    """
    hidden = f"{_DOOMED}{os.urandom(8).hex()}"
    with contextlib.ExitStack() as stack:
        stack.enter_context(explained(f"hide volume {name!r} of {directory!r}"))
        directory_fd = stack.enter_context(_opened_directory(directory))
        try:
            fd = os.open(name, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory_fd)
        except FileNotFoundError:
            raise Exchanged(f"Volume {name!r} of {directory!r} went away before it could be wiped.", volume=name) from None
        closed = stack.enter_context(contextlib.ExitStack())
        closed.callback(os.close, fd)
        found = os.fstat(fd)
        if ident not in (None, _directory.ident_of(found)) or found.st_nlink != 1:
            raise Exchanged(f"Volume {name!r} of {directory!r} was exchanged or linked to before it could be wiped.", volume=name)
        _claim(fd)
        os.rename(name, hidden, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
        with explained(f"sync the going of volume {name!r}", changed=True):
            os.fsync(directory_fd)
        closed.pop_all()
    return os.path.join(directory, hidden), fd


def wipe_and_remove(hidden_path: str, fd: int) -> None:
    """Overwrite every allocated byte with zeros, sync, and remove the hidden file."""
    with explained(f"wipe {hidden_path!r}", changed=True):
        _overwrite_data(fd)
        os.fsync(fd)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(hidden_path)
        with _opened_directory(os.path.dirname(hidden_path)) as directory_fd:
            os.fsync(directory_fd)


def sweep(directory: str) -> list[str]:
    """Remove what killed runs left in a pool's directory, and nothing that a living run holds; returns names.

    What was on its way to be wiped is wiped to the end; where that fails, it is left for another run, and stops nobody.
    """
    removed = []
    for name in _leftovers(directory):
        path = os.path.join(directory, name)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode) or not _claim(fd):
                continue
            if name.startswith(_DOOMED) and os.fstat(fd).st_nlink == 1:  # else its data is somebody's under another name
                wipe_and_remove(path, fd)
            else:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
            removed.append(name)
        except StorageError:  # no room on a file system that writes elsewhere, which this run may be about to make; a bad disk
            continue
        finally:
            os.close(fd)
    return removed


def is_abandoned(path: str) -> bool:
    """Whether a path is one of our hidden files that no run holds any more, or is gone already."""
    if not os.path.basename(path).startswith(_PARTIAL):
        return False
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        return _claim(fd)
    finally:
        os.close(fd)


def write_frozen(fd: int, domain_uuid: str | None) -> None:
    """Note on a staged file whose guest may be frozen while it is made, where the file system can; ``None``: nobody's is."""
    with contextlib.suppress(OSError):
        if domain_uuid is None:
            os.removexattr(fd, _FROZEN_MARK)
        else:
            os.setxattr(fd, _FROZEN_MARK, domain_uuid.encode())


def read_frozen(path: str) -> str | None:
    """Whose guest may be frozen since the run that staged this file was killed, or ``None``."""
    try:
        return os.getxattr(path, _FROZEN_MARK, follow_symlinks=False).decode("ascii", "replace")
    except OSError:
        return None


def orphans(directory: str) -> list[str]:
    """Hidden paths that killed runs left behind; nothing is removed."""
    return [path for name in _leftovers(directory) if is_abandoned(path := os.path.join(directory, name))]


def _leftovers(directory: str) -> list[str]:
    try:
        return sorted(n for n in os.listdir(directory) if n.startswith((_PARTIAL, _DOOMED)))
    except OSError:
        return []


def _open_nameless(directory: str) -> Staged | None:
    try:
        fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            return None
        raise
    return Staged(fd=fd, path=Handed(fd), directory=directory, hidden_name=None)


def _open_hidden(directory: str) -> Staged:
    while True:
        name = _PARTIAL + os.urandom(8).hex()
        path = os.path.join(directory, name)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        # A sweeper may have met the file before it was claimed: then it is gone, and we take another.
        if _claim(fd) and os.fstat(fd).st_nlink == 1:
            return Staged(fd=fd, path=Handed(fd, path), directory=directory, hidden_name=name)
        os.close(fd)


def _claim(fd: int) -> bool:
    return _locks.try_exclusive_byte(fd, _LIFE_BYTE)


def _overwrite_data(fd: int, block: bytes = bytes(1 << 20)) -> None:
    from ._extents import data_ranges  # here, since little is wiped

    for start, stop in data_ranges(fd, os.lseek(fd, 0, os.SEEK_END)):
        while start < stop:
            start += os.pwrite(fd, block[: stop - start], start)


@contextlib.contextmanager
def _opened_directory(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
