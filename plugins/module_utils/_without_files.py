# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Volumes of pools that hold no files (RBD, LVM, ZFS): filled under a hidden name, then named; hidden, then wiped.

libvirt's own copy is no help here: into a Ceph pool it clones the image there that happens to have the source's name, and it
leaves a protected snapshot. Who makes a volume holds the lock on its hidden name, which says too on which host it was made.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator

from . import _locks, _pool_changes, _pool_tools, _xml
from ._describe import describe
from ._errors import LibvirtError, Locked, StorageError, Unsupported, VolumeInUse
from ._facts import facts_of
from ._inventory import Host
from ._model import Pool
from ._named_tuple import NamedTuple
from ._names import STAGING_PREFIX
from ._os_errors import explained
from ._plan_delete import refuse_harm
from ._qemu_img import QemuImg
from ._refresh import tell_libvirt
from ._steps import CopyImage, CreateBlank, Delete, Source

_PARTIAL = STAGING_PREFIX + "partial-"
_DOOMED = STAGING_PREFIX + "doomed-"
_WATCH_SECONDS = 40.0  # Ceph's osd_client_watch_timeout is 30


class Hidden(NamedTuple):
    """A volume without its name yet: where a tool finds it, and what the tool must inherit for that."""

    name: str
    location: str
    pass_fds: tuple[int, ...] = ()


def create_blank(host: Host, step: CreateBlank) -> None:
    """Create an empty volume, which the storage does in one step."""
    _pool_changes.create_volume(host.connection, step.pool, _document(step.name, step))


def copy(host: Host, step: CopyImage, qemu_img: QemuImg, *, source: Source) -> None:
    """Make a volume with the content of an image, the step's source as it is pinned; it gets its name when it is complete."""
    with _hidden(host, step) as made:
        fds = (*source.pass_fds, *made.pass_fds)
        qemu_img.convert(
            source=source.path,
            source_format=source.format,
            snapshot=source.snapshot,
            shared=source.shared,
            target=made.location,
            target_format="raw",
            options={},
            direct=False,
            into_existing=True,
            # A logical volume begins with what its extents held before.
            zeroed=step.pool.type != "logical",
            pass_fds=fds,
            label=source.label,
        )
        if step.pool.type != "rbd":
            _clear_rest(made.location, source.capacity)
        if step.verify:
            qemu_img.compare(
                first=source.path, first_format=source.format, second=made.location, second_format="raw", pass_fds=fds,
                label=source.label,
            )
        assert_source_stood_still(host, step)
        _rename(host, step.pool, made.name, step.name)
    tell_libvirt(host, step.pool)


def assert_source_stood_still(host: Host, step: CopyImage) -> None:
    """Make sure that nobody writes to a source in the network, which no lock of ours keeps others from. Raises VolumeInUse."""
    if not step.source.pass_fds or step.source.shared or step.source.home is None:
        return
    pool, name = step.source.home
    if host.ceph.way_to(pool).watchers(name):
        raise VolumeInUse(f"The {step.source.label} was opened for writing while it was copied, so the copy was dropped. Run again.")


def delete(host: Host, step: Delete) -> None:
    """Delete a volume; with ``wipe`` it loses its name first, so that nobody meets it half wiped."""
    if not step.wipe:
        _delete_named(host, step)
        return
    hidden = _new_name(_DOOMED)
    with _locks.hold_names(step.pool.place, [hidden]):
        _rename(host, step.pool, step.name, hidden)
        tell_libvirt(host, step.pool)
        _wipe(host, step.pool, hidden)


def sweep(host: Host, pool: Pool) -> None:
    """Remove what killed runs of this host left; what was on its way to be wiped is wiped to the end."""
    ours = (_new_name(_PARTIAL, ""), _new_name(_DOOMED, ""))
    for name in [volume.name for volume in host.connection.volumes(pool) if volume.name.startswith(ours)]:
        with contextlib.suppress(Locked), _locks.hold_names(pool.place, [name], timeout=0):
            if name.startswith(_DOOMED):
                _wipe(host, pool, name)
            else:
                _delete_leftover(host, pool, name)


def _delete_leftover(host: Host, pool: Pool, name: str) -> None:
    """Ceph takes the client of a killed run for alive for half a minute; what is in use after that is left to another run."""
    deadline = time.monotonic() + _WATCH_SECONDS
    while True:
        try:
            _pool_changes.delete_volume(host.connection, pool, name)
            return
        except LibvirtError:
            if pool.type != "rbd" or not host.ceph.way_to(pool).watchers(name):
                raise
        if time.monotonic() > deadline:
            return
        time.sleep(1)


def _delete_named(host: Host, step: Delete) -> None:
    try:
        _pool_changes.delete_volume(host.connection, step.pool, step.name)
    except LibvirtError:
        # libvirt does not say why Ceph refuses: somebody may have come since we looked.
        host.forget()
        image = host.image(step.pool, step.name)
        if image is not None:
            refuse_harm(volume=describe(host, image), facts=facts_of(host, image))
        raise


def _wipe(host: Host, pool: Pool, hidden: str) -> None:
    _pool_changes.wipe_volume(host.connection, pool, hidden)
    _pool_changes.delete_volume(host.connection, pool, hidden)


@contextlib.contextmanager
def _hidden(host: Host, step: CopyImage) -> Iterator[Hidden]:
    """An empty volume under a hidden name, which goes away unless it is renamed."""
    pool, name = step.pool, _new_name(_PARTIAL)
    with _locks.hold_names(pool.place, [name]), contextlib.ExitStack() as undo:
        undo.callback(_drop, host, pool, name)
        if pool.type == "rbd":
            ceph = host.ceph.way_to(pool)
            ceph.create(name, step.capacity)
            yield Hidden(name, ceph.location(name), ceph.pass_fds)
        else:
            _pool_changes.create_volume(host.connection, pool, _document(name, step))
            definition = host.connection.volume(pool, name)
            if definition is None:
                raise Unsupported(f"Pool {pool.name!r} does not show a volume that was just made in it.")
            yield Hidden(name, definition.path)
        undo.pop_all()


def _drop(host: Host, pool: Pool, name: str) -> None:
    with contextlib.suppress(StorageError):  # the failure that led here is the one to report
        if pool.type == "rbd":
            host.ceph.way_to(pool).remove(name)
        else:
            _pool_changes.delete_volume(host.connection, pool, name)


def _rename(host: Host, pool: Pool, old: str, new: str) -> None:
    if pool.type == "rbd":
        host.ceph.way_to(pool).rename(old, new)
        return
    definition = host.connection.volume(pool, old)
    if definition is None:
        raise Unsupported(f"Volume {old!r} of pool {pool.name!r} is gone.")
    with _locks.hold_list(pool.place):
        _pool_tools.rename(pool.type, path=definition.path, name=new)


def _clear_rest(device: str, start: int, block: bytes = bytes(1 << 20)) -> None:
    """Zeros from the end of what was copied to the end of the device, and all of it on stable storage."""
    with explained(f"write to {device!r}"):
        fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        try:
            end = os.lseek(fd, 0, os.SEEK_END)
            while start < end:
                start += os.pwrite(fd, block[: end - start], start)
            os.fsync(fd)
        finally:
            os.close(fd)


def _document(name: str, step: CreateBlank | CopyImage) -> str:
    reserved = step.capacity if step.preallocation != "off" else 0
    return _xml.build_volume(name=name, capacity=step.capacity, allocation=reserved, format=None)


def _new_name(prefix: str, end: str | None = None) -> str:
    """A hidden name of this host: another host can't tell whether its maker is alive."""
    try:
        with open("/etc/machine-id", "rb") as file:
            host = file.read().strip()
    except OSError:
        host = os.uname().nodename.encode()
    return f"{prefix}{hashlib.sha256(host).hexdigest()[:8]}-{os.urandom(8).hex() if end is None else end}"
