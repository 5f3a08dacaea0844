# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Copies of a disk that a running domain writes to: one moment of it, through libvirt's backup job.

File systems are frozen through the guest agent only around the job's start, when the agent answers. A guardian
process thaws the guest and ends the job should this one die in between, since a frozen guest looks like a dead one.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

from . import _libvirt, _xml
from ._errors import Locked, StorageError, ToolFailed
from ._libvirt import Connection
from ._model import Attachment
from ._plan import CopyImage, qcow2_options
from ._qemu_img import QemuImg
from ._staging import Staged

#: How long another job of the domain may be in the way, in seconds.
JOB_TIMEOUT = 60.0
_POLL = 0.1


def copy_running_disk(step: CopyImage, *, staged: Staged, qemu_img: QemuImg, connection: Connection) -> str:
    """Copy ``step.live``'s disk into the staged file; returns ``filesystem`` or ``crash``."""
    live = step.live
    if live is None or live.target is None:
        raise ToolFailed(f"The domain's disk for {step.source.label} is not known.")
    options = qcow2_options(step.cluster_size, step.features) if step.format == "qcow2" else {}
    options["preallocation"] = step.preallocation
    qemu_img.create(
        path=staged.path,
        image_format=step.format,
        capacity=step.source.capacity,
        options=options,
        pass_fds=(staged.fd,),
    )
    document = _xml.build_backup(target=live.target, path=staged.path, image_format=step.format, others=_others(connection, live))
    _wait_for_turn(connection, live)
    with _guardian(connection.uri, live.domain_uuid, staged.path) as guardian:
        consistency = _begin(connection, live, document, guardian)
        with contextlib.ExitStack() as undo:
            undo.callback(connection.abort_job, live.domain_uuid)
            _wait_for_end(connection, live)
            undo.pop_all()
    return consistency


def abort_orphans(connection: Connection, hidden: list[str], domains: list[str]) -> None:
    """End backup jobs that write into leftovers of a killed run (hidden paths that nobody holds)."""
    for domain in domains:
        document = connection.backup_job(domain)
        if document is not None and set(_xml.backup_targets(document)) & set(hidden):
            connection.abort_job(domain)
            connection.thaw(domain)


def _others(connection: Connection, live: Attachment) -> list[str]:
    """The domain's other disks, which the job leaves out."""
    for domain in connection.domains():
        if domain.uuid == live.domain_uuid and domain.live_xml is not None:
            targets = [disk.target for disk in _xml.parse_domain_disks(domain.live_xml) if disk.is_disk]
            return [target for target in targets if target is not None and target != live.target]
    raise Locked(f"Domain {live.domain!r} stopped before its disk could be copied. Run again.")


def _wait_for_turn(connection: Connection, live: Attachment) -> None:
    """Wait until no other job is at work, while the guest isn't frozen yet."""
    deadline = time.monotonic() + JOB_TIMEOUT
    while connection.has_job(live.domain_uuid):
        if time.monotonic() > deadline:
            raise _busy(live)
        time.sleep(_POLL)


def _begin(connection: Connection, live: Attachment, document: str, guardian: _Guardian) -> str:
    deadline = time.monotonic() + JOB_TIMEOUT
    while True:
        frozen = False
        if live.state == "running":
            guardian.watch_freeze(True)
            frozen = connection.freeze(live.domain_uuid)
        try:
            begun = connection.begin_backup(live.domain_uuid, document)
        finally:
            if frozen:
                _thaw(connection, live)
            elif live.state == "running":
                connection.thaw(live.domain_uuid)  # an agent that did not answer in time may still freeze later
            guardian.watch_freeze(False)
        if begun:
            return "filesystem" if frozen else "crash"
        if time.monotonic() > deadline:
            raise _busy(live)
        time.sleep(_POLL * 5)


def _thaw(connection: Connection, live: Attachment) -> None:
    for _attempt in range(10):
        if connection.thaw(live.domain_uuid):
            return
        time.sleep(_POLL)
    connection.abort_job(live.domain_uuid)
    raise ToolFailed(
        f"The file systems of domain {live.domain!r} could not be thawed after the copy was started. "
        f"Run 'virsh domfsthaw {live.domain}'."
    )


def _wait_for_end(connection: Connection, live: Attachment) -> None:
    pause = _POLL / 4
    while True:
        outcome = connection.finished_backup(live.domain_uuid)
        if outcome == "":
            return
        if outcome is not None:
            raise ToolFailed(f"The backup job of domain {live.domain!r} failed: {outcome}. The copy was dropped.")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.5)


def _busy(live: Attachment) -> Locked:
    return Locked(
        f"Domain {live.domain!r} has had another job (a backup, a migration or a block job) for more than {JOB_TIMEOUT:.0f} s. "
        "Wait for it to end ('virsh domjobinfo') and run again."
    )


class _Guardian:
    """Our end of the pipe to the guardian process: what it is to undo if we vanish."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def watch_freeze(self, frozen: bool) -> None:
        """Tell whether the guest may be frozen now."""
        os.write(self._fd, b"F" if frozen else b"T")


@contextlib.contextmanager
def _guardian(uri: str, domain_uuid: str, path: str) -> Iterator[_Guardian]:
    """A process of its own session that outlives a kill of ours, undoes what we began, and goes."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.setsid()
        if os.fork() == 0:
            _stand_guard(reader, uri, domain_uuid, path)
        os._exit(0)
    os.close(reader)
    os.waitpid(child, 0)
    try:
        yield _Guardian(writer)
        os.write(writer, b"Q")
    finally:
        os.close(writer)


def _stand_guard(reader: int, uri: str, domain_uuid: str, path: str) -> None:
    """Read states until the other end says all is well (Q) or is closed; never returns."""
    try:
        quiet = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):  # who started us waits for these to be closed
            os.dup2(quiet, standard)
        _close_others(reader)
        state = b""
        while state != b"Q":
            told = os.read(reader, 1)
            if not told:
                _undo(uri, domain_uuid, path, frozen=state == b"F")
                break
            state = told
    finally:
        os._exit(0)


def _close_others(keep: int) -> None:
    """Let go of every inherited descriptor: locks and staged files must die with the run itself."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) != keep:
            with contextlib.suppress(OSError):
                os.close(int(name))


def _undo(uri: str, domain_uuid: str, path: str, *, frozen: bool) -> None:
    with contextlib.suppress(StorageError), _libvirt.connect(uri) as connection:
        document = connection.backup_job(domain_uuid)
        if document is not None and path in _xml.backup_targets(document):
            connection.abort_job(domain_uuid)
        if frozen:
            connection.thaw(domain_uuid)
    with contextlib.suppress(OSError):
        os.unlink(path)
