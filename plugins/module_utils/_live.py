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
import select
import time
from collections.abc import Callable, Iterator

from . import _holes, _leftovers, _libvirt, _locks, _running, _staging, _xml
from ._errors import InsufficientSpace, Locked, StorageError, ToolFailed, Unsupported
from ._libvirt import Connection
from ._model import Attachment
from ._os_errors import tells_of_no_room
from ._plan_capacity import qcow2_options
from ._qemu_img import QemuImg
from ._staging import Staged
from ._steps import CopyImage, Moment

#: How long another job of the domain may be in the way, in seconds.
JOB_TIMEOUT = 60.0
_POLL = 0.1
#: How long a guest may be frozen, in seconds, whoever holds up the job's start. Windows takes up its writes again after as long
#: (Volume Shadow Copy Service, "flush and hold writes").
FREEZE_LIMIT = 10.0
#: Bytes a second that are copied while the guest is frozen: a job at full speed would leave the guest no processor to thaw with.
_SLOWLY = 1 << 20


def copy_running_disk(
    step: CopyImage, *, staged: Staged, qemu_img: QemuImg, connection: Connection, assert_disk: Callable[[], None]
) -> Moment:
    """Copy ``step.live``'s disk into the staged file; ``assert_disk`` raises when that is another one by now."""
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
    with _turn(connection, live), _guardian(connection.uri, live.domain_uuid, staged.path) as guardian:
        moment = _begin(connection, live, document, guardian, staged.fd)
        with contextlib.ExitStack() as undo:
            undo.callback(_drop_job, connection, live, staged.path)
            assert_disk()  # libvirt copies what has the target's name; while the job runs, that stays
            _wait_for_end(connection, live, staged.path)
            undo.pop_all()
        _staging.write_frozen(staged.fd, None)
    if step.format == "raw" and step.preallocation == "off":
        # A backup job writes zeros where the disk has nothing.
        try:
            with _staging.explained("make the copy sparse"):
                _holes.dig(staged.fd, _holes.find_anywhere(staged.fd))
        except (InsufficientSpace, Unsupported) as error:  # it is complete all the same
            takes_all = f"The copy of {step.source.label} takes its whole size on storage, since it could not be made sparse: {error.msg}"
            return moment._replace(warnings=(*moment.warnings, takes_all))
    return moment


def _others(connection: Connection, live: Attachment) -> list[str]:
    """The domain's other disks, which the job leaves out."""
    for domain in connection.domains():
        if domain.uuid == live.domain_uuid and domain.live_xml is not None:
            targets = [disk.target for disk in _xml.parse_domain_disks(domain.live_xml) if disk.is_disk]
            return [target for target in targets if target is not None and target != live.target]
    raise Locked(f"Domain {live.domain!r} stopped before its disk could be copied. Run again.")


@contextlib.contextmanager
def _turn(connection: Connection, live: Attachment) -> Iterator[None]:
    """Have the domain's jobs for this run alone, as far as runs of ours go, and none at work when it begins.

    The guest isn't frozen yet. libvirt keeps the result of a domain's last job only, so the next must not begin too soon.
    """
    deadline = time.monotonic() + JOB_TIMEOUT
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(_locks.hold_names(("domain", live.domain_uuid, ""), ["backup job"], timeout=JOB_TIMEOUT))
        except Locked:
            raise _busy(live) from None
        while _running.has_job(connection, live.domain_uuid):
            _leftovers.abort_orphan(connection, live.domain_uuid)
            if time.monotonic() > deadline:
                raise _busy(live)
            time.sleep(_POLL)
        yield


def _is_ours(connection: Connection, live: Attachment, path: str) -> bool:
    """Whether the domain's backup job of now writes to ``path``."""
    document = _running.backup_job(connection, live.domain_uuid)
    return document is not None and path in _xml.backup_targets(document)


def _drop_job(connection: Connection, live: Attachment, path: str) -> None:
    """End our job; another's that follows it is none of our business."""
    with contextlib.suppress(StorageError):
        if _is_ours(connection, live, path):
            _running.abort_job(connection, live.domain_uuid)


def _begin(connection: Connection, live: Attachment, document: str, guardian: _Guardian, staged_fd: int) -> Moment:
    deadline = time.monotonic() + JOB_TIMEOUT
    while True:
        frozen: bool | None = False
        slowed = late = False
        asked = time.monotonic()
        if live.state == "running":
            guardian.tell(_FROZEN)
            _staging.write_frozen(staged_fd, live.domain_uuid)
            frozen = _running.freeze(connection, live.domain_uuid)
        try:
            begun = _running.begin_backup(connection, live.domain_uuid, document)
            late = time.monotonic() > asked + FREEZE_LIMIT
            if begun and frozen and live.target is not None:
                slowed = _running.limit_job(connection, live.domain_uuid, live.target, _SLOWLY)
        finally:
            if frozen:
                _thaw(connection, live)
            guardian.tell(_LATE if frozen is None else _THAWED)
            if frozen is not None:
                _staging.write_frozen(staged_fd, None)
        if slowed:
            _go_at_full_speed(connection, live)
        if begun:
            return _moment(live, frozen, late=late)
        if time.monotonic() > deadline:
            raise _busy(live)
        time.sleep(_POLL * 5)


def _go_at_full_speed(connection: Connection, live: Attachment) -> None:
    for _attempt in range(10):
        fast = _running.limit_job(connection, live.domain_uuid, live.target or "", 0)
        if fast or not _running.has_job(connection, live.domain_uuid):
            return
        time.sleep(_POLL)
    _running.abort_job(connection, live.domain_uuid)
    raise ToolFailed(
        f"The backup job of domain {live.domain!r} was slowed down while the guest was frozen, and did not speed up again. "
        "The copy was dropped; run again."
    )


def _moment(live: Attachment, frozen: bool | None, *, late: bool) -> Moment:
    if frozen and not late:
        return Moment("filesystem")
    if frozen:
        return Moment(
            "crash",
            (
                f"The job that copies the disk of domain {live.domain!r} did not begin within {FREEZE_LIMIT:.0f} s, for which a guest may "
                "be frozen. The guest was thawed before, so the copy is as after a power cut. If that is not enough, delete the copy and "
                f"run again when the domain has no other job ('virsh domjobinfo {live.domain}') and its storage is less busy.",
            ),
        )
    if frozen is False:
        return Moment("crash")
    return Moment(
        "crash",
        (
            f"The guest agent of domain {live.domain!r} did not answer a freeze within {_running.AGENT_TIMEOUT} s, so the copy is "
            "as after a power cut. Should it freeze late, it is thawed as soon as it answers; if the guest stands still, run "
            f"'virsh domfsthaw {live.domain}'.",
        ),
    )


def _thaw(connection: Connection, live: Attachment) -> None:
    for _attempt in range(10):
        if _running.thaw(connection, live.domain_uuid):
            return
        time.sleep(_POLL)
    _running.abort_job(connection, live.domain_uuid)
    raise ToolFailed(
        f"The file systems of domain {live.domain!r} could not be thawed after the copy was started. "
        f"Run 'virsh domfsthaw {live.domain}'."
    )


def _wait_for_end(connection: Connection, live: Attachment, path: str) -> None:
    began = seen = time.monotonic()
    while _is_ours(connection, live, path):
        seen = time.monotonic()
        time.sleep(max(_POLL / 10, min((seen - began) / 50, _POLL)))  # so that a short job is not made much longer
    # libvirt forgets the job first, and then takes the copy from QEMU and gives it back to its owner: who asks the domain waits.
    with contextlib.suppress(StorageError):  # it stopped, and with it the job
        _running.block_capacity(connection, domain_uuid=live.domain_uuid, target=live.target or "")
    outcome, took = _running.backup_result(connection, live.domain_uuid)
    if not outcome and took < seen - began - 2 * _POLL:
        outcome = "another backup job ended before the result of this one could be read"
    if tells_of_no_room(outcome):
        raise InsufficientSpace(
            f"The pool filled up while the backup job of domain {live.domain!r} wrote the copy, which was dropped ({outcome}). "
            "Free space and run again."
        )
    if outcome:
        raise ToolFailed(f"The backup job of domain {live.domain!r} failed: {outcome}. The copy was dropped; run again.")


def _busy(live: Attachment) -> Locked:
    return Locked(
        f"Domain {live.domain!r} has had another job (a backup, a migration or a block job) for more than {JOB_TIMEOUT:.0f} s. "
        "Wait for it to end ('virsh domjobinfo') and run again."
    )


# What the guardian is told: the guest may be frozen; it is not; it may freeze late; all is well.
_FROZEN, _THAWED, _LATE, _DONE = b"F", b"T", b"L", b"D"
#: How long the guardian tries to undo what is left, in seconds.
_GUARD_TIMEOUT = 600.0
#: How long a killed run's request for the job may still be on its way to QEMU, in seconds.
_REQUEST_TIMEOUT = 3.0


class _Guardian:
    """Our end of the pipe to the guardian process."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def tell(self, state: bytes) -> None:
        """Tell what it has to undo if we vanish."""
        os.write(self._fd, state)


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
        guardian = _Guardian(writer)
        yield guardian
        guardian.tell(_DONE)
    finally:
        os.close(writer)


def _stand_guard(reader: int, uri: str, domain_uuid: str, path: str) -> None:
    """Follow what we are told until the other end says all is well or is closed; never returns."""
    try:
        quiet = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):  # who started us waits for these to be closed
            os.dup2(quiet, standard)
        _close_others(reader)
        state, thaw = _THAWED, False
        wait: float | None = None
        while state != _DONE:
            if not select.select([reader], [], [], wait)[0]:
                thaw = not _thaw_from_outside(uri, domain_uuid)
                wait = 1.0 if thaw else None
                continue
            told = os.read(reader, 1)
            if not told:
                break
            state = told
            thaw = state == _LATE or (thaw and state != _THAWED)
            wait = 1.0 if thaw else FREEZE_LIMIT if state == _FROZEN else None
        vanished = time.monotonic()
        deadline = vanished + _GUARD_TIMEOUT
        left = state != _DONE
        thaw = thaw or state == _FROZEN
        while (left or thaw) and time.monotonic() < deadline:
            settled = time.monotonic() > vanished + _REQUEST_TIMEOUT
            left = left and not _drop_from_outside(uri, domain_uuid, path, settled=settled)
            thaw = thaw and not _thaw_from_outside(uri, domain_uuid)
            if left or thaw:
                time.sleep(1.0)
    finally:
        os._exit(0)


def _close_others(keep: int) -> None:
    """Let go of every inherited descriptor: locks and staged files must die with the run itself."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) != keep:
            with contextlib.suppress(OSError):
                os.close(int(name))


def _thaw_from_outside(uri: str, domain_uuid: str) -> bool:
    """Whether the guest is surely not frozen now: its agent answered, or there is no such running domain any more."""
    with contextlib.suppress(StorageError), _libvirt.connect(uri) as connection:
        return _running.thaw(connection, domain_uuid) or not _running.is_running(connection, domain_uuid)
    return False


def _drop_from_outside(uri: str, domain_uuid: str, path: str, *, settled: bool) -> bool:
    """Whether the job that writes to ``path`` is ended, so that the file could be removed.

    Not before a request that was on its way has come to something: libvirt 9 dies when a job's target is missing.
    """
    with contextlib.suppress(StorageError), _libvirt.connect(uri) as connection:
        document = _running.backup_job(connection, domain_uuid)
        if document is not None and path in _xml.backup_targets(document):
            _running.abort_job(connection, domain_uuid)
            return False  # look again whether it is gone
        if document is None and (not settled or _running.has_job(connection, domain_uuid)):
            return False
        with contextlib.suppress(OSError):
            os.unlink(path)
        return True
    return False
