# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Growing a volume: one code for ``volume`` and ``volume_resize``, online and offline."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterator

from . import _directory, _image_locks, _pool_tools, _running, _staging
from ._errors import Exchanged, InsufficientSpace, LibvirtError, ShrinkRefused, ToolFailed
from ._image_header import read_header
from ._inventory import Host
from ._libvirt import Connection
from ._model import Ident
from ._pinned import pin_image
from ._qemu_img import QemuImg
from ._steps import Grow

_KEEP_SIZE = 0x01  # FALLOC_FL_KEEP_SIZE, fallocate(2)


def grow(host: Host, qemu_img: QemuImg, step: Grow) -> None:
    """Make a volume larger, and look afterwards whether it is; raises our errors only.

    Another file or a link in the place of what the decision is about is not touched.

    The size on disk is read right before: libvirt's cached one may be smaller than the file, and resizing by it
    would truncate (virStorageVolResize compares with its cache).
    """
    connection = host.connection
    if not step.pool.stores_files:
        # QEMU itself makes an image in the network larger; a device it only finds larger.
        if not (step.online and step.pool.volume_type == "network"):
            _grow_without_file(host, step)
        if step.online:
            _grow_online(host, step)
        _assert_grown(connection, step)
        host.expect_change(step.path)
        return
    with _pinned(step, host.seen(step.path)) as (pinned, fd):
        if step.online:
            _grow_online(host, pinned)
        else:
            _grow_file(host, qemu_img, pinned, fd, step.path)
            _assert_named(step, fd)
        _assert_grown(connection, pinned)
    host.expect_change(step.path)


@contextlib.contextmanager
def _pinned(step: Grow, seen: Ident | None) -> Iterator[tuple[Grow, int]]:
    """The step with a path that leads to the opened file, whatever happens to its name; and the descriptor."""
    with _staging.explained(f"grow volume {step.name!r} of pool {step.pool.name!r}"):
        fd = _directory.open_image(step.path)
    try:
        pinned = step._replace(path=f"/proc/self/fd/{fd}")
        if seen is not None and _directory.identify(pinned.path) != seen:
            raise Exchanged(f"Cannot grow volume {step.name!r}: {step.path!r} was exchanged meanwhile. Run again.")
        yield pinned, fd
    finally:
        os.close(fd)


def _assert_named(step: Grow, fd: int) -> None:
    """Make sure that what was grown is what the name leads to: another host may have deleted or rewritten the volume meanwhile."""
    if not _directory.leads_to(step.path, fd):
        raise Exchanged(
            f"Volume {step.name!r} of pool {step.pool.name!r} was deleted or exchanged while it was grown; what has its name now is as it "
            "was. Run again."
        )


def _grow_file(host: Host, qemu_img: QemuImg, step: Grow, fd: int, path: str) -> None:
    if step.format == "raw":
        _grow_raw_file(step, path)
        return
    _assert_grows(host.connection, step)
    if _capacity_now(host.connection, step) == step.capacity:
        raise _grown_already(step)
    with pin_image(host, fd, path, image_format=step.format, what=f"grow volume {step.name!r}") as image:
        for last in (False, False, True):
            try:
                qemu_img.resize(
                    path=image.location,
                    image_format=step.format,
                    capacity=step.capacity,
                    preallocation=step.preallocation,
                    pass_fds=image.pass_fds,
                    label=f"volume {step.name!r}",
                )
                break
            except ToolFailed as error:
                if last or step.preallocation == "off" or "rc" in error.facts:  # an exit code: it wasn't a crash
                    raise
                _step_over_remains(step, path)
    _sync(step)


def _step_over_remains(step: Grow, path: str) -> None:
    """Move the end of a qcow2 file over what a killed reservation counted behind it.

    Those clusters have reference counts already, but the file does not reach to them: QEMU 7.2 aborts on such counts
    when it reserves space at the end again. The file gets a hole, which takes no room, and never one longer than
    what is to be reserved, since QEMU would not make the file shorter.
    """
    with _staging.explained(f"grow volume {step.name!r} of pool {step.pool.name!r}"):
        with _image_locks.hold_image(step.path, exclusive=True, what=f"grow volume {step.name!r} of pool {step.pool.name!r}", shown=path):
            os.truncate(step.path, os.stat(step.path).st_size + step.capacity - step.capacity_before)


def _grow_online(host: Host, step: Grow) -> None:
    connection = host.connection
    _assert_grows(connection, step)
    image = host.image(step.pool, step.name)
    with contextlib.ExitStack() as undo:
        if step.format != "qcow2" and step.preallocation != "off" and os.path.isfile(step.path):
            _reserve(step, undo)
        for use in step.online:
            if use.target is not None:
                # libvirt would cut a larger disk that has the target's name by now.
                if image is None or host.disk_of(use.domain_uuid, use.target) != image.ident:
                    raise Exchanged(
                        f"Cannot grow volume {step.name!r} of pool {step.pool.name!r}: domain {use.domain!r} stopped, or has another disk "
                        f"as {use.target} by now. Run again."
                    )
                what = f"grow volume {step.name!r} of pool {step.pool.name!r} through {use.target} of the running domain {use.domain!r}"
                _resize_block(connection, step, use.domain_uuid, use.target, what)
        undo.pop_all()
    if os.path.isfile(step.path):
        _sync(step)  # QEMU leaves the new size to the next flush of its guest


def _resize_block(connection: Connection, step: Grow, domain_uuid: str, target: str, what: str) -> None:
    try:
        _running.block_resize(connection, domain_uuid=domain_uuid, target=target, capacity=step.capacity, what=what)
    except LibvirtError:
        size = _running.block_capacity(connection, domain_uuid=domain_uuid, target=target)
        if size > step.capacity:  # it became so after we looked, and libvirt was told not to shrink
            raise _shrinks(step, size) from None
        raise


def _reserve(step: Grow, undo: contextlib.ExitStack) -> None:
    """Reserve the added space behind the file's end, where QEMU doesn't see it before the resize."""
    with _staging.explained(f"reserve space for volume {step.name!r} of pool {step.pool.name!r}"):
        fd = os.open(step.path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        size = os.fstat(fd).st_size
        # The guest writes below the end only, so what lies behind it is ours to give back.
        undo.callback(_give_back, step.path, size)
        header = 0 if step.format == "raw" else size - read_header(fd).capacity  # of LUKS, which lies before the disk
        _reserve_behind_end(fd, size, step, header)
    finally:
        os.close(fd)


def _give_back(path: str, size: int) -> None:
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if os.fstat(fd).st_size == size:
                os.ftruncate(fd, size)
        finally:
            os.close(fd)


def _grow_raw_file(step: Grow, path: str) -> None:
    with _staging.explained(f"grow volume {step.name!r} of pool {step.pool.name!r}"):
        fd = os.open(step.path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        with _staging.explained(f"grow volume {step.name!r} of pool {step.pool.name!r}"), _image_locks.hold_image(
            step.path, exclusive=True, what=f"grow volume {step.name!r} of pool {step.pool.name!r}", shown=path
        ):
            size = os.fstat(fd).st_size
            if size > step.capacity:
                raise _shrinks(step, size)
            if size == step.capacity:
                raise _grown_already(step)
            reserved = True
            if step.preallocation != "off":
                try:
                    reserved = _reserve_behind_end(fd, size, step)
                except InsufficientSpace:
                    os.ftruncate(fd, size)  # gives back what was reserved behind the end until then
                    raise
            os.ftruncate(fd, step.capacity)  # one step from the old size to the new one, whenever we are killed
            with contextlib.ExitStack() as undo:
                undo.callback(os.ftruncate, fd, size)  # nobody else has it open, so nothing but ours lies behind
                if not reserved:
                    os.posix_fallocate(fd, size, step.capacity - size)
                if step.preallocation == "full":
                    _write_zeros(fd, size, step.capacity)
                os.fsync(fd)
                undo.pop_all()
    finally:
        os.close(fd)


def _write_zeros(fd: int, start: int, end: int, block: bytes = bytes(1 << 20)) -> None:
    while start < end:
        start += os.pwrite(fd, block[: end - start], start)


def _reserve_behind_end(fd: int, size: int, step: Grow, header: int = 0) -> bool:
    """Reserve the blocks of the added space without moving the file's end; ``False`` where the file system can't."""
    length = step.capacity + header - size
    if length <= 0:
        return True
    libc = ctypes.CDLL(None, use_errno=True)
    call = libc.fallocate64 if hasattr(libc, "fallocate64") else libc.fallocate
    call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    if call(fd, _KEEP_SIZE, size, length) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EOPNOTSUPP, errno.ENOSYS):
        return False
    if number not in (errno.ENOSPC, errno.EDQUOT):
        raise OSError(number, os.strerror(number))
    facts = os.fstatvfs(fd)
    available = facts.f_frsize * facts.f_bfree
    raise InsufficientSpace(
        f"Volume {step.name!r} in pool {step.pool.name!r} can't grow: {length} bytes more are needed, {available} bytes are "
        "free. Its size and content are as before. Free space and run again, or use preallocation: off.",
        required=length,
        available=available,
    )


def _grow_without_file(host: Host, step: Grow) -> None:
    """By the storage's own tool.

    libvirt can't resize LVM and ZFS volumes (src/storage/storage_backend_logical.c and _zfs.c), and takes an RBD image for
    larger than it is, since it counts whole objects, so that it refuses to grow a small one.
    """
    if step.pool.type == "rbd":
        _assert_grows(host.connection, step)
        host.ceph.way_to(step.pool).grow(step.name, step.capacity)
        return
    host.refresh(step.pool)
    _assert_grows(host.connection, step)  # 'zfs set' would cut off what is too much
    _pool_tools.grow(step.pool.type, path=step.path, capacity=step.capacity)
    host.refresh(step.pool)


def _assert_grows(connection: Connection, step: Grow) -> None:
    size = _capacity_now(connection, step)
    if size is not None and size > step.capacity:
        raise _shrinks(step, size)


def _assert_grown(connection: Connection, step: Grow) -> None:
    size = _capacity_now(connection, step)
    if size is not None and size < step.capacity:
        raise ToolFailed(f"Volume {step.name!r} should have {step.capacity} bytes now, but has {size}.")
    for use in step.online:
        if use.target is not None:
            seen = _running.block_capacity(connection, domain_uuid=use.domain_uuid, target=use.target)
            if seen < step.capacity:
                raise ToolFailed(
                    f"Domain {use.domain!r} still sees {seen} bytes of {step.name!r} on {use.target}, not {step.capacity}."
                )


def _capacity_now(connection: Connection, step: Grow) -> int | None:
    """The size that a volume has by the image itself, or by its storage: libvirt looks when it is asked for one."""
    if not step.pool.stores_files:
        definition = connection.volume(step.pool, step.name)
        return definition.capacity if definition is not None else None
    if not os.path.isfile(step.path):
        return None
    with _staging.explained(f"look at volume {step.name!r} of pool {step.pool.name!r}"):
        fd = os.open(step.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return os.fstat(fd).st_size if step.format == "raw" else read_header(fd).capacity
        finally:
            os.close(fd)


def _sync(step: Grow) -> None:
    with _staging.explained(f"sync volume {step.name!r}"):
        fd = os.open(step.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _grown_already(step: Grow) -> Exchanged:
    return Exchanged(f"Volume {step.name!r} of pool {step.pool.name!r} was grown by another host meanwhile. Run again.")


def _shrinks(step: Grow, size: int) -> ShrinkRefused:
    return ShrinkRefused(
        f"Volume {step.name!r} has {size} bytes on disk by now, more than the {step.capacity} asked for; nothing was changed.",
        required=size,
    )
