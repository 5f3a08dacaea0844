# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What lies in a pool's directory, read straight from it: one open and one small read per file.

Nothing here follows a path that somebody else wrote without looking at what it leads to first: FIFOs,
character devices and directories are never opened, symbolic links only after their target was looked at.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from ._image_header import ImageHeader, raw_header, read_header
from ._model import Ident
from ._named_tuple import NamedTuple
from ._names import STAGING_PREFIX

#: Remembers the format that the caller asked for, where no guest can write: beside the content, not in it.
FORMAT_MARK = "user.hypervisor.storage.format"

_PSEUDO_FILE_SYSTEMS = frozenset(
    "autofs bpf cgroup cgroup2 configfs debugfs devpts efivarfs fusectl mqueue nsfs proc pstore "
    "rpc_pipefs securityfs selinuxfs sysfs tracefs".split()
)
_UNREADABLE = "cannot be read"
_EXCHANGED = "was exchanged while it was looked at"
_LOOKS = 8  # at a file that keeps being exchanged
#: What the operating system says of a path that leads to nothing, and of a device without anything in it.
_NOTHING_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
_NO_MEDIUM = (errno.ENXIO, errno.ENODEV, errno.ENOMEDIUM)
_OPEN_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


class FileFacts(NamedTuple):
    """One file or block device: identity, sizes in bytes, header, and the format mark if it has one.

    ``header`` is ``None`` for what isn't an image's home (directories, FIFOs, devices other than block) and
    for files that can't be opened; ``trouble`` then says why.
    """

    name: str
    path: str
    ident: Ident
    is_link: bool
    kind: str  # file | block | directory | other
    size: int
    allocation: int
    header: ImageHeader | None
    mark: str | None
    trouble: str | None = None
    failure: OSError | None = None
    written: int = 0  # when its content last changed, in nanoseconds of Unix time; of files alone

    @property
    def stops_reading(self) -> bool:
        """Whether it could be opened but not read, as on a disk that fails."""
        return self.failure is not None and self.trouble is not None and self.trouble.startswith(_UNREADABLE)


def identify(path: str) -> Ident:
    """The identity of what a path leads to, by device and inode; raises OSError when nothing is there."""
    return ident_of(os.stat(path))


def identify_loosely(path: str) -> Ident:
    """Like identify(), with the normalised path as identity when nothing is there to be looked at."""
    try:
        return identify(path)
    except (OSError, ValueError):
        with contextlib.suppress(ValueError):  # a NUL, or half of a surrogate pair
            path = os.path.realpath(path)
        return ("path", path, "")


def leads_to(path: str, fd: int) -> bool:
    """Whether a path leads to what is open as ``fd``, which may have lost its name or had it taken; raises OSError."""
    return identify_loosely(path) == identify(f"/proc/self/fd/{fd}")


def scan_directory(path: str) -> list[FileFacts]:
    """Facts of all that lies in a pool's directory, but our own staging files; raises OSError."""
    facts = []
    with os.scandir(path) as entries:
        names = [entry.name for entry in entries]
    for name in names:
        if name.startswith(STAGING_PREFIX):
            continue
        found = look_at(os.path.join(path, name))
        if found is not None:
            facts.append(found)
    return facts


@contextlib.contextmanager
def opened(path: str) -> Iterator[int]:
    """A file or block device open for reading; what else may lie there is looked at, but never opened. Raises OSError."""
    fd = open_image(path)
    try:
        yield fd
    finally:
        os.close(fd)


def open_image(path: str) -> int:
    """The descriptor of opened(), which is the caller's to close."""
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if _kind_of(os.fstat(place)) not in ("file", "block"):
            raise OSError(errno.EINVAL, "it is neither a file nor a block device", path)
        return os.open(f"/proc/self/fd/{place}", _OPEN_FLAGS)
    finally:
        os.close(place)


def look_at(path: str, *, known_raw: bool = False, keep: list[int] | None = None) -> FileFacts | None:
    """Facts of one file; ``None`` when it isn't there (or is a link to nothing). Never raises for what it finds.

    ``keep`` gets the descriptor that the facts with a header are from; it is the caller's to close.
    """
    for _again in range(_LOOKS):
        facts = _look_once(path, known_raw=known_raw, keep=keep)
        if facts is None or facts.trouble != _EXCHANGED:
            break
    return facts


def _look_once(path: str, *, known_raw: bool, keep: list[int] | None) -> FileFacts | None:
    try:
        here = os.lstat(path)
        is_link = stat.S_ISLNK(here.st_mode)
        found = os.stat(path) if is_link else here
    except ValueError:
        return None
    except OSError as error:
        if error.errno in _NOTHING_THERE:
            return None
        why = f"cannot be looked at: {error.strerror}"
        return FileFacts(os.path.basename(path), path, ("path", path, ""), False, "file", 0, 0, None, None, why, error)
    kind = _kind_of(found)
    if is_link and is_pseudo(path):
        kind = "other"  # a read could never end, or eat what it shows, as that of /proc/kmsg does
    header: ImageHeader | None = None
    mark: str | None = None
    trouble: str | None = None
    failure: OSError | None = None
    size, written = found.st_size, 0
    if kind in ("file", "block"):
        try:
            fd = os.open(path, _OPEN_FLAGS | (0 if is_link else os.O_NOFOLLOW))
        except FileNotFoundError:
            return None
        except OSError as error:
            trouble = f"cannot be opened: {error.strerror}"
            failure = error if error.errno not in _NO_MEDIUM else None
        else:
            try:
                opened = os.fstat(fd)
                if ident_of(opened) != ident_of(found):  # between the two calls
                    trouble = _EXCHANGED
                else:
                    size = opened.st_size if kind == "file" else os.lseek(fd, 0, os.SEEK_END)
                    written = last_write(opened)
                    mark = _read_mark(fd)
                    header = raw_header(size) if known_raw else read_header(fd)
            except OSError as error:
                trouble, failure = f"{_UNREADABLE}: {error.strerror}", error
            finally:
                if keep is not None and header is not None:
                    keep.append(fd)
                else:
                    os.close(fd)
    return FileFacts(
        name=os.path.basename(path),
        path=path,
        ident=ident_of(found),
        is_link=is_link,
        kind=kind,
        size=size,
        allocation=found.st_blocks * 512 if kind == "file" else size,
        header=header,
        mark=mark,
        trouble=trouble,
        failure=failure,
        written=written,
    )


def is_pseudo(path: str) -> bool:
    """Whether a path lies on a kernel-made file system (/proc, /sys, ...), where a read may never end."""
    try:
        device = os.stat(path).st_dev
    except (OSError, ValueError):
        return False
    with contextlib.suppress(OSError), open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
        for line in mounts:
            fields, _sep, rest = line.partition(" - ")
            major, _colon, minor = fields.split()[2].partition(":")
            if os.makedev(int(major), int(minor)) == device and rest.split()[0] in _PSEUDO_FILE_SYSTEMS:
                return True
    return False


def free_bytes(path: str) -> int:
    """Bytes that this process may still write to the file system of ``path``; raises OSError."""
    facts = os.statvfs(path)
    return facts.f_frsize * (facts.f_bfree if os.geteuid() == 0 else facts.f_bavail)


def can_hold(path: str, size: int) -> bool:
    """Whether a file in this directory can have ``size`` bytes, tried with one that has no name and no data."""
    import resource  # here, since few runs need it

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit != resource.RLIM_INFINITY and size > limit:
        return True  # it can't be tried: the answer would be about this process, not about the file system
    try:
        fd = os.open(path, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except OSError:
        return True  # it can't be tried here
    try:
        os.ftruncate(fd, size)
    except OSError as error:
        return error.errno != errno.EFBIG
    finally:
        os.close(fd)
    return True


def usage_bytes(path: str) -> tuple[int, int, int]:
    """Capacity, allocation and available bytes of a directory's file system, as libvirt counts them."""
    facts = os.statvfs(path)
    capacity, available = facts.f_frsize * facts.f_blocks, facts.f_frsize * facts.f_bfree
    return capacity, capacity - available, available


def write_mark(fd: int, image_format: str) -> None:
    """Remember an image's format beside its content, where the file system can (extended attributes)."""
    with contextlib.suppress(OSError):
        os.setxattr(fd, FORMAT_MARK, image_format.encode())


def loop_devices_on(ident: Ident) -> list[str]:
    """The loop devices of this host that have a file as their store (they take no image lock)."""
    found = []
    with contextlib.suppress(OSError):
        for name in os.listdir("/sys/block"):
            if not name.startswith("loop"):
                continue
            with contextlib.suppress(OSError), open(f"/sys/block/{name}/loop/backing_file", encoding="utf-8") as source:
                if identify(source.read().rstrip("\n")) == ident:
                    found.append(f"/dev/{name}")
    return found


def last_write(found: os.stat_result) -> int:
    """When a file's content last changed, in nanoseconds of Unix time; 0 for devices, which don't tell."""
    return found.st_mtime_ns if stat.S_ISREG(found.st_mode) else 0


def _read_mark(fd: int) -> str | None:
    try:
        return os.getxattr(fd, FORMAT_MARK).decode("ascii", "replace")
    except OSError:
        return None


def ident_of(found: os.stat_result) -> Ident:
    """The identity of what was looked at, by device and inode."""
    if stat.S_ISBLK(found.st_mode):
        return ("block", found.st_rdev, 0)
    return ("file", found.st_dev, found.st_ino)


def _kind_of(found: os.stat_result) -> str:
    if stat.S_ISREG(found.st_mode):
        return "file"
    if stat.S_ISBLK(found.st_mode):
        return "block"
    return "directory" if stat.S_ISDIR(found.st_mode) else "other"
