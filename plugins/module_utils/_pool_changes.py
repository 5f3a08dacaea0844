# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is changed in storage pools through libvirt: a connection of _libvirt looks, this changes.

API: https://libvirt.org/html/libvirt-libvirt-storage.html.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

from ._errors import Locked
from ._libvirt import Connection, as_ours, translate
from ._libvirt import binding as libvirt
from ._model import Pool

#: How long a pool may be busy with jobs of others before we give up, in seconds.
BUSY_TIMEOUT = 60.0


def refresh(connection: Connection, pool: Pool) -> None:
    """Make libvirt read the pool anew; waits for jobs of others, and never leaves the pool inactive.

    libvirt refuses while a volume of the pool is being built or copied, and stops the pool when the
    refresh itself fails (virStoragePoolRefresh in src/storage/storage_driver.c).
    """
    handle = connection.pool_handles[pool.uuid]
    with translate(f"read the definition of storage pool {pool.name!r}"):
        definition = handle.XMLDesc(libvirt.VIR_STORAGE_XML_INACTIVE)
        persistent = bool(handle.isPersistent())
    deadline = time.monotonic() + BUSY_TIMEOUT
    pause = 0.05
    while True:
        try:
            handle.refresh(0)
            return
        except libvirt.libvirtError as error:
            busy = _is_busy(connection, pool, error)
            if error.get_error_code() not in (libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_STORAGE_POOL):
                # Else somebody stopped it before, who means that.
                _revive(connection, pool, definition, persistent)
            if not busy:
                raise as_ours(error, f"refresh storage pool {pool.name!r}") from error
            if time.monotonic() > deadline:
                raise Locked(
                    f"Storage pool {pool.name!r} has been busy with other jobs for {BUSY_TIMEOUT:.0f} s "
                    f"({error.get_error_message()}). Run again when they are done.",
                    pool=pool.name,
                ) from error
        time.sleep(pause)
        pause = min(pause * 2, 1.0)


def _is_busy(connection: Connection, pool: Pool, error: Any) -> bool:
    """Whether a refresh failed only because jobs run in the pool: alone of those that fail, it leaves the pool active.

    libvirt has no code of its own for it, and says it in the language that its daemon was started in.
    """
    if (error.get_error_code(), error.get_error_domain()) != (libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_FROM_STORAGE):
        return False
    with contextlib.suppress(libvirt.libvirtError):
        return bool(connection.pool_handles[pool.uuid].isActive())
    return False


def _revive(connection: Connection, pool: Pool, definition: str, persistent: bool) -> None:
    with contextlib.suppress(libvirt.libvirtError):
        if persistent:
            if not connection.pool_handles[pool.uuid].isActive():
                connection.pool_handles[pool.uuid].create(0)
        elif not any(p.UUIDString() == pool.uuid for p in connection.handle.listAllStoragePools(0)):
            connection.pool_handles[pool.uuid] = connection.handle.storagePoolCreateXML(definition, 0)


def create_volume(connection: Connection, pool: Pool, document: str) -> None:
    """Create a volume through libvirt (pools that aren't directories of files)."""
    with translate(f"create a volume in pool {pool.name!r}"):
        connection.pool_handles[pool.uuid].createXML(document, 0)


def delete_volume(connection: Connection, pool: Pool, name: str) -> bool:
    """Delete a volume through libvirt; ``False`` when libvirt doesn't know it."""
    try:
        connection.pool_handles[pool.uuid].storageVolLookupByName(name).delete(0)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_STORAGE_VOL:
            return False
        raise as_ours(error, f"delete volume {name!r} of pool {pool.name!r}") from error
    return True


def wipe_volume(connection: Connection, pool: Pool, name: str) -> None:
    """Overwrite a block or network volume with zeros through libvirt."""
    with translate(f"wipe volume {name!r} of pool {pool.name!r}"):
        connection.pool_handles[pool.uuid].storageVolLookupByName(name).wipe(0)
