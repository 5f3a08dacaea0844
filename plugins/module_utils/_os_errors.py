# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The operating system's refusals in this collection's words."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from typing import Any

from ._errors import InsufficientSpace, InvalidSize, Locked, StorageError, ToolFailed, Unsupported

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_NO_ROOM_IN_WORDS = ("No space left on device", "Disk quota exceeded")


def tells_of_no_room(said: str) -> bool:
    """Whether a tool that speaks the C locale failed for want of room in a file system or a quota."""
    return any(words in said for words in _NO_ROOM_IN_WORDS)


@contextlib.contextmanager
def explained(what: str, **facts: Any) -> Iterator[None]:
    """Turn the operating system's refusals into this collection's errors, which get these facts."""
    try:
        yield
    except OSError as error:
        raise explain(error, what, **facts) from error


def explain(error: OSError, what: str, **facts: Any) -> StorageError:
    """What the operating system said when asked to do ``what``, as one of this collection's errors."""
    if error.errno in _NO_ROOM:
        return InsufficientSpace(f"Cannot {what}: {error.strerror}. Free space in the pool and run again.", **facts)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return Unsupported(
            f"Cannot {what}: {error.strerror}. Run the task as root on the hypervisor (become: true) and "
            "check that the pool's file system is mounted writable.",
            **{"errno": error.errno, **facts},
        )
    if error.errno == errno.EFBIG:
        return InvalidSize(f"Cannot {what}: the pool's file system has no files of that size.", **facts)
    if error.errno in (errno.EAGAIN, errno.EBUSY):
        return Locked(f"Cannot {what}: {error.strerror}. Run again when it is free.", **{"errno": error.errno, **facts})
    return ToolFailed(f"Cannot {what}: {error.strerror or error}.", **{"errno": error.errno, **facts})
