# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Keeps a tool to the files that it is given, by Landlock (landlock(7)), where the kernel has it: Linux 5.13, if switched on.

qemu-img opens what an image's header names. The header was looked at, but who may write to the file can give it another one
before qemu-img reads it. Backing files are then of no avail, since those are named to qemu-img; a data file is, for which
QEMU has no option that says none. So qemu-img may open what it was handed, what programs need to run, and nothing else.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence

# The numbers of the calls are the same on all processors that distributions support libvirt on.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_TELL_VERSION = 1  # LANDLOCK_CREATE_RULESET_VERSION
_PATH_BENEATH = 1  # LANDLOCK_RULE_PATH_BENEATH
_WRITE, _READ = 1 << 1, 1 << 2  # LANDLOCK_ACCESS_FS_WRITE_FILE, _READ_FILE
_NETWORK = 0b11  # LANDLOCK_ACCESS_NET_BIND_TCP, _CONNECT_TCP
_KNOWS_NETWORK = 4  # the version from which on
_PR_SET_NO_NEW_PRIVS = 38
#: What programs read to run, and no secret is kept in.
_PROGRAMS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store", "/gnu/store", "/proc/sys", "/sys")
_SETTINGS = ("ld.so.cache", "ld.so.preload", "localtime", "crypto-policies", "gcrypt", "gnutls", "pki/tls/openssl.cnf", "ssl/openssl.cnf")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")


class Handed(str):
    """Where a tool finds an image that it gets as the open descriptor ``fd``."""

    fd: int

    def __new__(cls, fd: int, location: str | None = None) -> Handed:
        """By default the way by which every process finds its descriptors."""
        handed = super().__new__(cls, f"/proc/self/fd/{fd}" if location is None else location)
        handed.fd = fd
        return handed


class Only(tuple[int, ...]):
    """Descriptors for a tool that is to open nothing else: all for reading, ``written`` for writing too."""

    written: frozenset[int]

    def __new__(cls, fds: Iterable[int], written: Iterable[int] = ()) -> Only:
        """The descriptors that are written to are among the others."""
        only = super().__new__(cls, fds)
        only.written = frozenset(written)
        return only


def version() -> int:
    """The kernel's version of Landlock, 0 where it has none."""
    return max(_call(_CREATE_RULESET, None, 0, _TELL_VERSION), 0)


@contextlib.contextmanager
def confinement(program: str, fds: Sequence[int]) -> Iterator[Callable[[], None]]:
    """What a child calls, before it becomes this program, to be kept to the descriptors if they are an Only."""
    ruleset = _make_ruleset(program, fds) if isinstance(fds, Only) and version() else None
    if ruleset is None:
        yield lambda: None
        return
    try:
        yield functools.partial(_enter, ruleset)
    finally:
        os.close(ruleset)


def _enter(ruleset: int) -> None:
    if _call(_RESTRICT_SELF, ruleset, 0) < 0:  # who is not root has to promise first never to become more than he is
        _libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        _call(_RESTRICT_SELF, ruleset, 0)


def _make_ruleset(program: str, only: Only) -> int | None:
    """``None`` when a descriptor is of a kind that Landlock has no rules for."""
    asked = struct.pack("=QQ", _READ | _WRITE, _NETWORK) if version() >= _KNOWS_NETWORK else struct.pack("=Q", _READ | _WRITE)
    ruleset = _call(_CREATE_RULESET, asked, len(asked), 0)
    if ruleset < 0:
        return None
    if not all(_allow(ruleset, fd, _READ | (_WRITE if fd in only.written else 0)) for fd in only):
        os.close(ruleset)
        return None
    for path in (*_PROGRAMS, *_homes_of(program), *(f"/etc/{name}" for name in _SETTINGS), *_DEVICES):
        with contextlib.suppress(OSError):  # not every host has all of them
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            try:
                _allow(ruleset, place, _READ | (_WRITE if path in _DEVICES else 0))
            finally:
                os.close(place)
    return ruleset


def _homes_of(program: str) -> list[str]:
    """Where a program that lies in a place of its own, and its libraries, are."""
    directory = os.path.dirname(os.path.realpath(program))
    return [directory, *(os.path.join(os.path.dirname(directory), name) for name in ("lib", "lib64"))]


def _allow(ruleset: int, place: int, access: int) -> bool:
    return _call(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", access, place), 0) == 0


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _call(number: int, *arguments: int | bytes | None) -> int:
    words = [ctypes.c_long(each) if isinstance(each, int) else ctypes.c_char_p(each) for each in arguments]
    syscall = _libc().syscall
    syscall.restype = ctypes.c_long
    return int(syscall(ctypes.c_long(number), *words))
