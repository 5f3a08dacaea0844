# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""libvirt's view of a pool, made to agree with what is there, unless a file would make libvirt hang or stop the pool."""

from __future__ import annotations

import os
from collections.abc import Collection

from . import _chains, _directory
from ._errors import ToolFailed, UnsafeImage
from ._inventory import Host
from ._model import Pool


def assert_refreshable(host: Host, pool: Pool, but: Collection[str] = ()) -> None:
    """Refuse to let libvirt read a directory in which a header would make it hang; raises UnsafeImage or ToolFailed.

    libvirt opens the backing file that a header names when it refreshes a pool. On a device, a pipe or a
    file like /proc/kmsg that read never ends, and a restarted daemon hangs again. Where it can't read a header it stops the
    pool, which then doesn't start again. ``but``: names that will be gone by then.
    """
    for facts in host.scan(pool):
        if facts.name in but:
            continue
        if facts.stops_reading and facts.failure is not None:
            raise ToolFailed(
                f"Volume {facts.name!r} in pool {pool.name!r} can't be read ({facts.failure.strerror}), which would make libvirt stop "
                f"the pool. Delete that volume or move it out of {pool.path!r}, then run again; nothing was changed.",
                volume=facts.name,
                path=facts.path,
                errno=facts.failure.errno,
            )
        if facts.is_link and _directory.is_pseudo(facts.path):
            raise UnsafeImage(
                f"Volume {facts.name!r} in pool {pool.name!r} is a link to a file that the kernel makes up as it is read, which can "
                f"make libvirt hang or stop the pool. Delete that volume or move it out of {pool.path!r}, then run again; nothing "
                "was changed.",
                volume=facts.name,
                path=facts.path,
            )
        if _stops_a_refresh(facts):
            raise UnsafeImage(
                f"The header of volume {facts.name!r} in pool {pool.name!r} is cut short, which would make libvirt stop the "
                f"pool. Delete that volume or move it out of {pool.path!r}, then run again; nothing was changed.",
                volume=facts.name,
                path=facts.path,
            )
        stored = facts.header.backing_file if facts.header is not None else None
        reason = _chains.may_hang_a_reader(os.path.dirname(facts.path), stored) if stored else None
        if reason is not None:
            raise UnsafeImage(
                f"Volume {facts.name!r} in pool {pool.name!r} names a backing file that would make libvirt hang: "
                f"{reason}. Delete that volume or move it out of {pool.path!r}, then run again; nothing was changed.",
                volume=facts.name,
                path=facts.path,
            )


def tell_libvirt(host: Host, pool: Pool) -> None:
    """Make libvirt's view of a pool agree with what we changed."""
    host.look_again_at(pool)
    if pool.stores_files:
        assert_refreshable(host, pool)
    host.refresh(pool)
    host.forget()


def _stops_a_refresh(facts: _directory.FileFacts) -> bool:
    """Whether libvirt's refresh would fail on a file: libvirt 9 reads features of qcow2 that must lie in 104 bytes."""
    if facts.header is None or facts.header.format != "qcow2" or facts.kind != "file":
        return False
    return 8 <= facts.size < 104 and facts.header.compat != "0.10"
