# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Disks, jobs and guest agents of running domains, through a connection of _libvirt, whose library this file uses as well.

Domains are named by their UUIDs here, and looked up anew by each call: they may stop at any moment.
API: https://libvirt.org/html/libvirt-libvirt-domain.html.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

from . import _xml
from ._errors import LibvirtError, Locked
from ._libvirt import Connection, as_ours, is_held_up, translate, unless_gone
from ._libvirt import binding as libvirt

#: How long a guest agent may take to answer, in seconds.
AGENT_TIMEOUT = 5
#: What libvirt gives it unless told otherwise, which it remembers as long as the domain runs: all the time that it needs.
_AGENT_DEFAULT = -2  # VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK
#: Later ones (seen with 11.3) let a job's speed be set when the backup is over, and not before: qemuDomainBlockJobSetSpeed() takes a
#: kind of job (VIR_JOB_MODIFY_MIGRATION_SAFE) that qemuBackupBegin() does not allow beside it.
_LIMITS_BACKUPS = 10_000_999
_KNOWS_EXTEND = 12_003_000  # as virConnectGetLibVersion() tells versions
_JOBS = {1: "pull", 2: "copy", 3: "commit", 4: "commit", 5: "backup"}  # virDomainBlockJobType


def block_resize(connection: Connection, *, domain_uuid: str, target: str, capacity: int, what: str) -> None:
    """Grow a running domain's disk to ``capacity`` bytes; the guest sees it at once. Raises as assert_no_block_job(), too."""
    flags = libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES
    try:
        # Since libvirt 12.3 the daemon itself refuses to shrink when asked so; before, our own check stands alone, and the wish
        # is an error, also where the binding knows it already.
        if connection.handle.getLibVersion() >= _KNOWS_EXTEND:
            flags |= getattr(libvirt, "VIR_DOMAIN_BLOCK_RESIZE_EXTEND", 0)
        connection.handle.lookupByUUIDString(domain_uuid).blockResize(target, capacity, flags)
    except libvirt.libvirtError as error:
        assert_no_block_job(connection, domain_uuid=domain_uuid, target=target, what=what)
        raise as_ours(error, what) from error


def assert_no_block_job(connection: Connection, *, domain_uuid: str, target: str, what: str) -> None:
    """Make sure that no job works on a disk of a running domain, since QEMU resizes none meanwhile; raises Locked."""
    with translate(what):
        domain = connection.handle.lookupByUUIDString(domain_uuid)
        job = domain.blockJobInfo(target, 0)
        if job:
            raise Locked(
                f"Cannot {what} now: a {_JOBS.get(job['type'], 'block')} job is at work on it, and QEMU resizes no disk meanwhile. "
                f"Run again when it is done ('virsh blockjob {domain.name()} {target}' shows it)."
            )


def block_capacity(connection: Connection, *, domain_uuid: str, target: str) -> int:
    """The size in bytes of a running domain's disk as QEMU sees it."""
    with translate(f"read the size of disk {target!r} of the running domain {domain_uuid}"):
        return int(connection.handle.lookupByUUIDString(domain_uuid).blockInfo(target, 0)[0])


def backup_job(connection: Connection, domain_uuid: str) -> str | None:
    """The document of a running backup job of a domain, or ``None``."""
    try:
        return str(connection.handle.lookupByUUIDString(domain_uuid).backupGetXMLDesc(0))
    except libvirt.libvirtError as error:
        if error.get_error_code() in (libvirt.VIR_ERR_NO_DOMAIN_BACKUP, libvirt.VIR_ERR_NO_DOMAIN):
            return None
        raise as_ours(error, f"look for a backup job of domain {domain_uuid}") from error


def has_job(connection: Connection, domain_uuid: str) -> bool:
    """Whether a job (a backup, a migration, ...) runs on a domain now.

    Raises LibvirtError for one that libvirt lost: killed while it begins a backup job, libvirt 9 remembers that there is a
    job but not which, so that the domain has it for ever, as far as libvirt is concerned.
    """
    try:
        return bool(connection.handle.lookupByUUIDString(domain_uuid).jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE)
    except libvirt.libvirtError as error:
        if "backup job data missing" not in error.get_error_message():
            raise as_ours(error, f"look for jobs of domain {domain_uuid}") from error
        raise LibvirtError(
            f"Cannot copy a disk of domain {domain_uuid} while it runs: libvirt was killed while it began a backup job of the domain, "
            f"and takes that for unfinished since (libvirt says: {error.get_error_message()}). The guest runs on unharmed. "
            "Stop the domain and start it again, not from its inside, and run again.",
            domain=domain_uuid,
        ) from error


def begin_backup(connection: Connection, domain_uuid: str, document: str) -> bool:
    """Start a push backup into a file that exists; ``False`` when another job is in the way.

    https://libvirt.org/formatbackup.html; one job at a time and domain.
    """
    try:
        connection.handle.lookupByUUIDString(domain_uuid).backupBegin(
            document, None, libvirt.VIR_DOMAIN_BACKUP_BEGIN_REUSE_EXTERNAL
        )
    except libvirt.libvirtError as error:
        said = error.get_error_message()
        if is_held_up(error):
            return False
        # The words are those of a daemon that speaks English; a job that is still there is seen whatever it speaks.
        if any(text in said for text in ("active block job", "blockjob assigned", "another job")) or _has_block_job(
            connection, domain_uuid, _xml.backed_up(document)
        ):
            return False
        raise as_ours(error, f"start a backup job on domain {domain_uuid}") from error
    return True


def _has_block_job(connection: Connection, domain_uuid: str, targets: Iterable[str]) -> bool:
    with contextlib.suppress(libvirt.libvirtError):
        domain = connection.handle.lookupByUUIDString(domain_uuid)
        return any(domain.blockJobInfo(target, 0) for target in targets)
    return False


def backup_result(connection: Connection, domain_uuid: str) -> tuple[str, float]:
    """How the domain's last backup job ended and how long it took: ``""`` for success or what went wrong, and seconds.

    The statistics stay with libvirt, so that others can read them too (VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED).
    """
    flags = libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED | libvirt.VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED
    with translate(f"ask how the backup job of domain {domain_uuid} ended"):
        done = connection.handle.lookupByUUIDString(domain_uuid).jobStats(flags)
    if done.get(libvirt.VIR_DOMAIN_JOB_OPERATION) != libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP:
        return "libvirt no longer knows how it ended (another job followed, or a program took the record of it)", 0.0
    seconds = done.get(libvirt.VIR_DOMAIN_JOB_TIME_ELAPSED, 0) / 1000
    if done.get("type") == libvirt.VIR_DOMAIN_JOB_COMPLETED and done.get(libvirt.VIR_DOMAIN_JOB_SUCCESS, True):
        return "", seconds
    return str(done.get(libvirt.VIR_DOMAIN_JOB_ERRMSG) or "the job ended without success"), seconds


def limit_job(connection: Connection, domain_uuid: str, target: str, speed: int) -> bool:
    """Let the job of a disk copy no more than ``speed`` bytes a second, 0 for no limit; whether it took that.

    Where libvirt would wait with it until the job is over (a guest may be frozen that long), it is not asked.
    """
    try:
        if connection.handle.getLibVersion() > _LIMITS_BACKUPS:
            return False
        connection.handle.lookupByUUIDString(domain_uuid).blockJobSetSpeed(
            target, speed, libvirt.VIR_DOMAIN_BLOCK_JOB_SPEED_BANDWIDTH_BYTES
        )
    except libvirt.libvirtError:
        return False
    return True


def abort_job(connection: Connection, domain_uuid: str) -> None:
    """End a domain's job, if it has one."""
    with contextlib.suppress(libvirt.libvirtError):
        connection.handle.lookupByUUIDString(domain_uuid).abortJob()


def is_running(connection: Connection, domain_uuid: str) -> bool:
    """Whether there is such a domain, and it is active."""
    with translate(f"look up domain {domain_uuid}"):
        return bool(unless_gone(lambda handle: handle.lookupByUUIDString(domain_uuid).isActive(), connection.handle))


def freeze(connection: Connection, domain_uuid: str) -> bool | None:
    """Freeze the guest's file systems; ``False`` when no guest agent is there.

    ``None`` when one is there but did not answer in time: it may still freeze later, and has to be thawed then.
    """
    try:
        domain = connection.handle.lookupByUUIDString(domain_uuid)
        if not _xml.may_have_agent(domain.XMLDesc(0)):
            return False
        domain.agentSetResponseTimeout(AGENT_TIMEOUT, 0)
        domain.fsFreeze(None, 0)
    except libvirt.libvirtError as error:
        if not _is_surely_not_frozen(error):
            return None
        with contextlib.suppress(libvirt.libvirtError):  # there is nothing to thaw, after which it would be set back
            connection.handle.lookupByUUIDString(domain_uuid).agentSetResponseTimeout(_AGENT_DEFAULT, 0)
        return False
    return True


def thaw(connection: Connection, domain_uuid: str) -> bool:
    """Thaw the guest's file systems; ``False`` when that could not be done."""
    try:
        domain = connection.handle.lookupByUUIDString(domain_uuid)
        domain.agentSetResponseTimeout(AGENT_TIMEOUT, 0)
        domain.fsThaw(None, 0)
        domain.agentSetResponseTimeout(_AGENT_DEFAULT, 0)
    except libvirt.libvirtError:
        return False
    return True


def _is_surely_not_frozen(error: Any) -> bool:
    """Whether a freeze that failed so did not reach the agent, or was refused by it, which then undoes what it did.

    Anything else may come late: that the agent is slow (an error of its own since libvirt 11), and that the daemon went meanwhile.
    """
    code, message = error.get_error_code(), error.get_error_message()
    if code == libvirt.VIR_ERR_AGENT_UNRESPONSIVE:
        return "not connected" in message
    if code == libvirt.VIR_ERR_INTERNAL_ERROR:
        return "unable to execute QEMU agent command" in message
    return code in (
        libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED,  # there is none
        libvirt.VIR_ERR_OPERATION_UNSUPPORTED,
        libvirt.VIR_ERR_NO_SUPPORT,
        libvirt.VIR_ERR_OPERATION_INVALID,  # the domain does not run
        libvirt.VIR_ERR_NO_DOMAIN,
        libvirt.VIR_ERR_ACCESS_DENIED,
        libvirt.VIR_ERR_OPERATION_DENIED,
        getattr(libvirt, "VIR_ERR_AGENT_COMMAND_FAILED", None),
    )
