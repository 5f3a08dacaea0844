# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Deletes volumes: what is to go is locked first, and looked at once more; a file to be wiped is hidden before."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from . import _directory, _image_locks, _pool_changes, _staging
from ._describe import describe
from ._errors import Exchanged
from ._facts import facts_of
from ._inventory import Host
from ._model import Ident
from ._plan_delete import refuse_harm
from ._plans import Facts
from ._steps import Delete, Step


def hold_doomed(host: Host, steps: Sequence[Step], held: contextlib.ExitStack) -> dict[str, Ident]:
    """Lock the images to be deleted, then look once more who uses them: between the plan and now a domain may have come.

    Returns the files' identities by name; raises Exchanged, and what refuse_harm() raises.
    """
    doomed = [step for step in steps if isinstance(step, Delete)]
    idents: dict[str, Ident] = {}
    _image_locks.allow_open_files(len(doomed))
    for step in doomed:
        if step.type == "file" and os.path.isfile(step.path):
            with _staging.explained(f"open volume {step.name!r} of pool {step.pool.name!r}"):
                fd = held.enter_context(_image_locks.hold_image(step.path, exclusive=True, what=f"delete volume {step.name!r}"))
                idents[step.name] = _directory.identify(f"/proc/self/fd/{fd}")
    host.forget()
    going: list[tuple[str, str]] = []
    for step in doomed:
        image = host.image(step.pool, step.name)
        if image is None or (image.type == "file" and idents.get(step.name) != image.ident):
            raise Exchanged(f"Cannot delete volume {step.name!r}: {step.path!r} was deleted or exchanged meanwhile. Run again.")
        if image.type == "file":  # it is locked by now, so nobody else has it open; but loop devices know no locks
            loops = tuple(_directory.loop_devices_on(image.ident))
            facts = Facts(loop_devices=loops, unread=host.unread(image.ident))
        else:
            facts = facts_of(host, image)
        refuse_harm(volume=describe(host, image), facts=facts, going=going)
        going.append((step.pool.name, step.name))
    return idents


def delete(host: Host, step: Delete, ident: Ident | None) -> bool:
    """Delete one volume, the one that was locked as ``ident`` if it is a file; returns whether libvirt has still to be told."""
    if step.wipe and step.type == "file" and not os.path.islink(step.path):
        hidden, fd = _staging.hide_for_wiping(os.path.dirname(step.path), step.name, ident=ident)
        try:
            _staging.wipe_and_remove(hidden, fd)
        finally:
            os.close(fd)
        return True
    if not step.pool.stores_files:
        from . import _without_files

        _without_files.delete(host, step)
        return False
    known = _pool_changes.delete_volume(host.connection, step.pool, step.name)
    if not known and step.type == "file":
        with _staging.explained(f"delete volume {step.name!r} of pool {step.pool.name!r}"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(step.path)
    _staging.sync_directory(os.path.dirname(step.path))
    return False
