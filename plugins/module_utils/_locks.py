# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Locks that die with their holder, and those on names, which lie outside the pools; those on images are in _image_locks.

All are open-file-description locks (F_OFD_SETLK, fcntl(2)): the kernel drops them when the last descriptor
is closed, also after SIGKILL, and they leave no file behind in a pool.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import random
import struct
import time
from collections.abc import Callable, Iterable, Iterator

from ._directory import leads_to
from ._errors import Locked
from ._model import Ident
from ._os_errors import explained

#: How long a run waits for another one that works on the same volume, in seconds.
NAME_TIMEOUT = 120.0

FLOCK = "hhqqi4x"


def lock_call(fd: int, command: int, kind: int, start: int, length: int) -> bytes:
    """One call of fcntl(2) about bytes of a file, with its ``struct flock``."""
    return fcntl.fcntl(fd, command, struct.pack(FLOCK, kind, os.SEEK_SET, start, length, 0))


def try_lock(fd: int, kind: int, start: int, length: int = 1) -> bool:
    """Take a lock without waiting; whether that worked."""
    try:
        lock_call(fd, fcntl.F_OFD_SETLK, kind, start, length)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def patiently(attempt: Callable[[], bool], timeout: float) -> bool:
    """Try again and again, for ``timeout`` seconds; whether it worked."""
    deadline, pause = time.monotonic() + timeout, 0.01
    while not attempt():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause * random.uniform(0.5, 1.5))  # two that meet must not keep meeting
        pause = min(pause * 1.5, 0.25)
    return True


def _lock_home() -> str:
    """The file that carries the name locks of this host; one for all users of a uid."""
    if os.geteuid() == 0:
        home = "/run/hypervisor.storage"
    else:
        home = os.path.join(os.environ.get("XDG_RUNTIME_DIR") or "/tmp", f"hypervisor.storage-{os.geteuid()}")
    os.makedirs(home, mode=0o700, exist_ok=True)
    if os.lstat(home).st_uid != os.geteuid():
        raise Locked(f"{home!r} belongs to another user, so locks kept there can't be trusted. Remove it and run again.")
    return os.path.join(home, "names.lock")


def try_exclusive_byte(fd: int, offset: int) -> bool:
    """Lock one byte for ourselves, without waiting; whether it worked."""
    return try_lock(fd, fcntl.F_WRLCK, offset)


@contextlib.contextmanager
def hold_names(place: Ident, names: Iterable[str], *, timeout: float | None = None) -> Iterator[bool]:
    """Hold the exclusive right to work on these volume names of a place (a directory's or pool's identity).

    Names map to single bytes of one file far outside any pool, so holding many costs no file and a killed
    holder leaves nothing behind. Yields whether another run was in the way, so that what was seen before is old.
    Raises Locked when one holds a name for longer than the timeout.
    """
    limit = NAME_TIMEOUT if timeout is None else timeout
    by_offset = {_offset_of(place, name): name for name in names}
    waited = False
    while True:
        with explained("open the file of this host's volume locks"):
            home = _lock_home()
            fd = os.open(home, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            waited = _lock_names(fd, by_offset, limit) or waited
            if leads_to(home, fd):  # else it was tidied away meanwhile, and others lock another one
                yield waited
                return
        finally:
            os.close(fd)


@contextlib.contextmanager
def hold_list(place: Ident) -> Iterator[None]:
    """Hold the list of a pool's logical volumes or the like, which we rename without libvirt.

    Were one renamed while libvirt reads the pool, libvirt would not find it where it was, and stop the pool. Not to be held
    twice at once; raises Locked.
    """
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(hold_names(place, ["(the list of all)"]))  # no volume has that name
        except Locked as error:
            if "volume" not in error.facts:  # it is not about a wait
                raise
            raise Locked(
                f"Other runs have been reading the pool at {place[2]!r}, or renaming a volume in it, for more than {NAME_TIMEOUT:.0f} s. "
                "Wait for them to end and run again.",
                pool_source=place[2],
            ) from None
        yield


def _lock_names(fd: int, by_offset: dict[int, str], limit: float) -> bool:
    """Lock the bytes of names, in their order; whether another run was in the way. Raises Locked."""
    waited = False
    for offset in sorted(by_offset):
        with explained(f"lock volume {by_offset[offset]!r}"):
            if try_lock(fd, fcntl.F_WRLCK, offset):
                continue
        waited = True
        if not patiently(lambda at=offset: try_lock(fd, fcntl.F_WRLCK, at), limit):  # type: ignore[misc]
            raise Locked(
                f"Another run has been working on volume {by_offset[offset]!r} for more than {limit:.0f} s. "
                "Wait for it to end and run again; nothing was changed.",
                volume=by_offset[offset],
            )
    return waited


def _offset_of(place: Ident, name: str) -> int:
    digest = hashlib.sha256(repr(place).encode() + b"\0" + name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") >> 2  # 62 bits: an offset that every file system accepts
