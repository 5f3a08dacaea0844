# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Locks on images, by QEMU's own protocol: open-file-description locks, which die with their holder (see _locks).

They follow block/file-posix.c of QEMU: for each permission a process *uses* it read-locks byte
100 + n, for each that it *doesn't share with others* byte 200 + n; who wants a permission looks whether
somebody denies it, who denies one looks whether somebody uses it. n: 0 consistent read, 1 write,
2 write unchanged, 3 resize.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import signal
import struct
from collections.abc import Iterator

from ._directory import leads_to, open_image
from ._errors import Exchanged, VolumeInUse
from ._locks import FLOCK, lock_call, patiently, try_lock

#: How long we wait for an image that another process has open, in seconds (a passing qemu-img, say).
IMAGE_TIMEOUT = 2.0
#: How long a lock on what lost its name is kept for those who opened it by that name and ask for their locks only now, in seconds.
LATE_TIMEOUT = 2.0

_Permissions = tuple[tuple[int, ...], tuple[int, ...]]
_USED, _DENIED = 100, 200
READ, WRITE, WRITE_UNCHANGED, RESIZE = 0, 1, 2, 3
_ALL = (READ, WRITE, WRITE_UNCHANGED, RESIZE)
#: What is used and what is denied to others.
_AS_READER, _EXCLUSIVE = ((READ,), (WRITE, RESIZE)), (_ALL, _ALL)
_SPAN = 300  # the bytes from 0 on that hold every lock of the protocol


def allow_open_files(count: int) -> None:
    """Make room for this many more open files, as far as the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 256
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def image_users(path: str) -> str | None:
    """Who has an image open, by its locks: ``writing``, ``reading`` or ``None``; takes no lock itself."""
    try:
        fd = open_image(path)
    except OSError:
        return None
    try:
        if any(_somebody_holds(fd, _USED + use) for use in (WRITE, RESIZE)):
            return "writing"
        return "reading" if _somebody_holds(fd, _USED, _SPAN - _USED) else None
    except OSError:  # a file system without locks: nobody can hold one
        return None
    finally:
        os.close(fd)


@contextlib.contextmanager
def hold_image(path: str, *, exclusive: bool, what: str, shown: str | None = None) -> Iterator[int]:
    """Hold an image against other processes while it is worked on; yields the locked descriptor.

    Exclusive: nobody may have it open, and nobody can open it. Otherwise it is held as a reader that shares
    reading alone: QEMU can't open it for writing meanwhile. ``shown`` is its path for people. Raises VolumeInUse when
    somebody is in the way, Exchanged when it lost its path while it was waited for, OSError when it can't be opened.
    """
    fd = open_image(path)
    try:
        wanted = _EXCLUSIVE if exclusive else _AS_READER
        if not patiently(lambda: _try_permissions(fd, wanted) or not leads_to(path, fd), IMAGE_TIMEOUT):
            raise VolumeInUse(
                f"Cannot {what}: a process has {shown or path!r} open "
                f"({'of another host, or one' if exclusive else 'for writing, one'} that libvirt here need not know: a QEMU, "
                "qemu-nbd or qemu-img; 'lsof' or 'lslocks' on the hosts that share the pool find it). "
                "Stop it and run again; nothing was changed.",
                path=path,
            )
        # Who was waited for may have deleted it, and to hold what has no name any more protects nothing.
        if not leads_to(path, fd):
            raise Exchanged(f"Cannot {what}: {shown or path!r} was deleted or exchanged meanwhile. Run again.", path=path)
        try:
            yield fd
        finally:
            _outlast_others(fd)
    finally:
        os.close(fd)


def _outlast_others(fd: int) -> None:
    """Keep the locks on an image that lost its name until nobody else has it open, or long enough.

    A QEMU opens first and locks afterwards. Were it let in then, its guest would write to a file that nobody finds again.
    """
    if os.fstat(fd).st_nlink == 0:
        patiently(lambda: _is_open_here_alone(fd), LATE_TIMEOUT)


def _is_open_here_alone(fd: int) -> bool:
    """Whether nobody else has a file open, as far as the kernel tells: it grants a lease for writing then alone (fcntl(2))."""
    try:
        # Whoever opens it while we have the lease makes the kernel signal us: by default with one that ends the process.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError as error:
        return error.errno != errno.EAGAIN  # file systems without leases don't tell
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return True


def claim_image(fd: int, *, path: str, what: str) -> None:
    """Make a reader's hold on an image (hold_image's descriptor) exclusive; until then nobody can write to it either.

    Raises VolumeInUse.
    """
    if not patiently(lambda: _try_permissions(fd, _EXCLUSIVE, kept=_AS_READER), IMAGE_TIMEOUT):
        raise VolumeInUse(
            f"Cannot {what}: a process has opened {path!r} meanwhile ('lsof' or 'lslocks' on the hosts that share the pool "
            "find it). Stop it and run again; the volume is as it was.",
            path=path,
        )


def _try_permissions(fd: int, wanted: _Permissions, *, kept: _Permissions = ((), ())) -> bool:
    """Lock first, look afterwards: two that do so at once may both fail, but never both win. What is ``kept`` stays locked."""
    used, denied = wanted
    conflict = not all(try_lock(fd, fcntl.F_RDLCK, byte) for byte in _bytes_of(wanted)) or any(
        [_somebody_holds(fd, _DENIED + use) for use in used] + [_somebody_holds(fd, _USED + deny) for deny in denied]
    )
    if conflict:
        for byte in set(_bytes_of(wanted)) - set(_bytes_of(kept)):
            lock_call(fd, fcntl.F_OFD_SETLK, fcntl.F_UNLCK, byte, 1)
    return not conflict


def _bytes_of(permissions: _Permissions) -> list[int]:
    used, denied = permissions
    return [_USED + use for use in used] + [_DENIED + deny for deny in denied]


def _somebody_holds(fd: int, start: int, length: int = 1) -> bool:
    answer = lock_call(fd, fcntl.F_OFD_GETLK, fcntl.F_WRLCK, start, length)
    return bool(struct.unpack(FLOCK, answer)[0] != fcntl.F_UNLCK)
