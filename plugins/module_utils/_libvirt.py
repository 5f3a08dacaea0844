# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The only file that knows libvirt: a connection, and libvirt's errors in this collection's words.

Pools and domains are named by their UUIDs here; libvirt's own objects never leave.
API: https://libvirt.org/html/libvirt-libvirt-storage.html and libvirt-libvirt-domain.html.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qs, urlsplit

from . import _xml
from ._errors import ConnectionFailed, LibvirtError, Locked, PoolInactive, PoolNotFound, StorageError
from ._model import Pool

try:
    import libvirt
except ImportError:  # the runner respawns into an interpreter that has it, or says tool_missing
    libvirt = None

#: How long a pool may be busy with jobs of others before we give up, in seconds.
BUSY_TIMEOUT = 60.0
#: How long a remote daemon may take to accept a connection, in seconds.
CONNECT_TIMEOUT = 10.0
#: How long a guest agent may take to answer, in seconds.
AGENT_TIMEOUT = 5
#: What libvirt gives it unless told otherwise, which it remembers as long as the domain runs: all the time that it needs.
_AGENT_DEFAULT = -2  # VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK

_KNOWS_EXTEND = 12_003_000  # as virConnectGetLibVersion() tells versions
#: Later ones (seen with 11.3) let a job's speed be set when the backup is over, and not before: qemuDomainBlockJobSetSpeed() takes a
#: kind of job (VIR_JOB_MODIFY_MIGRATION_SAFE) that qemuBackupBegin() does not allow beside it.
_LIMITS_BACKUPS = 10_000_999

Answer = TypeVar("Answer")
_JOBS = {1: "pull", 2: "copy", 3: "commit", 4: "commit", 5: "backup"}  # virDomainBlockJobType
_STATES = ("no state", "running", "running", "paused", "shutdown", "shutoff", "crashed", "pmsuspended")


def is_installed() -> bool:
    """Whether this interpreter has libvirt's Python binding."""
    return libvirt is not None


class DomainFacts(NamedTuple):
    """A domain as libvirt knows it: its documents (live, persistent, saved) and its snapshots' documents."""

    name: str
    uuid: str
    state: str
    live_xml: str | None
    persistent_xml: str | None
    snapshot_xml: tuple[str, ...]
    saved_xml: str | None = None  # of a managed save image


class Connection:
    """One connection to one hypervisor."""

    def __init__(self, handle: Any, uri: str) -> None:
        self._handle = handle
        self.uri = uri
        self._pools: dict[str, Any] = {}

    def active_pools(self) -> list[Pool]:
        """All active pools, sorted by name."""
        with _translate("list the storage pools"):
            handles = self._handle.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE)
            found = [_unless_gone(self._describe, handle) for handle in handles]
        return sorted((pool for pool in found if pool is not None), key=lambda pool: pool.name)

    def inactive_pools(self) -> list[str]:
        """The names of the pools that are defined but not active."""
        with _translate("list the storage pools"):
            handles = self._handle.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_INACTIVE)
            return sorted(handle.name() for handle in handles)

    def pool(self, name: str) -> Pool:
        """The active pool of that name; raises PoolNotFound or PoolInactive."""
        if not _can_be_said(name):
            raise PoolNotFound(f"There is no storage pool {name!r}: no pool can have that name.", pool=name)
        try:
            handle = self._handle.storagePoolLookupByName(name)
            active = bool(handle.isActive())
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_STORAGE_POOL:
                raise PoolNotFound(
                    f"There is no storage pool {name!r} on {self.uri}. "
                    "Define it, or name one that 'virsh pool-list --all' shows.",
                    pool=name,
                ) from None
            raise _as_ours(error, f"look up storage pool {name!r}") from error
        if not active:
            raise PoolInactive(
                f"Storage pool {name!r} is not active. Start it ('virsh pool-start {name}') and run again.", pool=name
            )
        with _translate(f"describe storage pool {name!r}"):
            return self._describe(handle)

    def _describe(self, handle: Any) -> Pool:
        pool = _xml.parse_pool(handle.XMLDesc(0))
        self._pools[pool.uuid] = handle
        return pool

    def refresh(self, pool: Pool) -> None:
        """Make libvirt read the pool anew; waits for jobs of others, and never leaves the pool inactive.

        libvirt refuses while a volume of the pool is being built or copied, and stops the pool when the
        refresh itself fails (virStoragePoolRefresh in src/storage/storage_driver.c).
        """
        handle = self._pools[pool.uuid]
        with _translate(f"read the definition of storage pool {pool.name!r}"):
            definition = handle.XMLDesc(libvirt.VIR_STORAGE_XML_INACTIVE)
            persistent = bool(handle.isPersistent())
        deadline = time.monotonic() + BUSY_TIMEOUT
        pause = 0.05
        while True:
            try:
                handle.refresh(0)
                return
            except libvirt.libvirtError as error:
                busy = self._is_busy(pool, error)
                if error.get_error_code() not in (libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_STORAGE_POOL):
                    # Else somebody stopped it before, who means that.
                    self._revive(pool, definition, persistent)
                if not busy:
                    raise _as_ours(error, f"refresh storage pool {pool.name!r}") from error
                if time.monotonic() > deadline:
                    raise Locked(
                        f"Storage pool {pool.name!r} has been busy with other jobs for {BUSY_TIMEOUT:.0f} s "
                        f"({error.get_error_message()}). Run again when they are done.",
                        pool=pool.name,
                    ) from error
            time.sleep(pause)
            pause = min(pause * 2, 1.0)

    def _is_busy(self, pool: Pool, error: Any) -> bool:
        """Whether a refresh failed only because jobs run in the pool: alone of those that fail, it leaves the pool active.

        libvirt has no code of its own for it, and says it in the language that its daemon was started in.
        """
        if (error.get_error_code(), error.get_error_domain()) != (libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_FROM_STORAGE):
            return False
        with contextlib.suppress(libvirt.libvirtError):
            return bool(self._pools[pool.uuid].isActive())
        return False

    def _revive(self, pool: Pool, definition: str, persistent: bool) -> None:
        with contextlib.suppress(libvirt.libvirtError):
            if persistent:
                if not self._pools[pool.uuid].isActive():
                    self._pools[pool.uuid].create(0)
            elif not any(p.UUIDString() == pool.uuid for p in self._handle.listAllStoragePools(0)):
                self._pools[pool.uuid] = self._handle.storagePoolCreateXML(definition, 0)

    def volume(self, pool: Pool, name: str) -> _xml.VolumeDef | None:
        """What libvirt knows of a volume now (no refresh), or ``None``."""

        def describe(handle: Any) -> _xml.VolumeDef | None:
            return _volume_def(handle.storageVolLookupByName(name), pool)

        with _translate(f"look up volume {name!r} in pool {pool.name!r}"):
            return _unless_gone(describe, self._pools[pool.uuid])

    def knows_volume(self, pool: Pool, name: str) -> bool:
        """Whether libvirt has a volume of that name in its list now (no refresh)."""
        with _translate(f"look up volume {name!r} in pool {pool.name!r}"):
            return _unless_gone(lambda handle: handle.storageVolLookupByName(name), self._pools[pool.uuid]) is not None

    def volumes(self, pool: Pool) -> list[_xml.VolumeDef]:
        """What libvirt knows of all volumes of a pool now; those that vanish meanwhile are left out."""
        with _translate(f"list the volumes of pool {pool.name!r}"):
            handles = self._pools[pool.uuid].listAllVolumes(0)
            found = [_unless_gone(lambda each: _volume_def(each, pool), handle) for handle in handles]
        return [definition for definition in found if definition is not None]

    def create_volume(self, pool: Pool, document: str) -> None:
        """Create a volume through libvirt (pools that aren't directories of files)."""
        with _translate(f"create a volume in pool {pool.name!r}"):
            self._pools[pool.uuid].createXML(document, 0)

    def delete_volume(self, pool: Pool, name: str) -> bool:
        """Delete a volume through libvirt; ``False`` when libvirt doesn't know it."""
        try:
            self._pools[pool.uuid].storageVolLookupByName(name).delete(0)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_STORAGE_VOL:
                return False
            raise _as_ours(error, f"delete volume {name!r} of pool {pool.name!r}") from error
        return True

    def wipe_volume(self, pool: Pool, name: str) -> None:
        """Overwrite a block or network volume with zeros through libvirt."""
        with _translate(f"wipe volume {name!r} of pool {pool.name!r}"):
            self._pools[pool.uuid].storageVolLookupByName(name).wipe(0)

    def domains(self) -> list[DomainFacts]:
        """All domains with their live and persistent documents; those that vanish meanwhile are left out."""
        with _translate("list the domains"):
            handles = self._handle.listAllDomains(0)
            with_snapshots = self._uuids(libvirt.VIR_CONNECT_LIST_DOMAINS_HAS_SNAPSHOT)
            saved = self._uuids(libvirt.VIR_CONNECT_LIST_DOMAINS_MANAGEDSAVE)
            found = [_unless_gone(lambda each: _domain_facts(each, with_snapshots, saved), handle) for handle in handles]
        return [facts for facts in found if facts is not None]

    def _uuids(self, kind: int) -> set[str]:
        return {handle.UUIDString() for handle in self._handle.listAllDomains(kind)}

    def block_resize(self, *, domain_uuid: str, target: str, capacity: int, what: str) -> None:
        """Grow a running domain's disk to ``capacity`` bytes; the guest sees it at once. Raises as assert_no_block_job(), too."""
        flags = libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES
        try:
            # Since libvirt 12.3 the daemon itself refuses to shrink when asked so; before, our own check stands alone, and the wish
            # is an error, also where the binding knows it already.
            if self._handle.getLibVersion() >= _KNOWS_EXTEND:
                flags |= getattr(libvirt, "VIR_DOMAIN_BLOCK_RESIZE_EXTEND", 0)
            self._handle.lookupByUUIDString(domain_uuid).blockResize(target, capacity, flags)
        except libvirt.libvirtError as error:
            self.assert_no_block_job(domain_uuid=domain_uuid, target=target, what=what)
            raise _as_ours(error, what) from error

    def assert_no_block_job(self, *, domain_uuid: str, target: str, what: str) -> None:
        """Make sure that no job works on a disk of a running domain, since QEMU resizes none meanwhile; raises Locked."""
        with _translate(what):
            domain = self._handle.lookupByUUIDString(domain_uuid)
            job = domain.blockJobInfo(target, 0)
            if job:
                raise Locked(
                    f"Cannot {what} now: a {_JOBS.get(job['type'], 'block')} job is at work on it, and QEMU resizes no disk meanwhile. "
                    f"Run again when it is done ('virsh blockjob {domain.name()} {target}' shows it)."
                )

    def block_capacity(self, *, domain_uuid: str, target: str) -> int:
        """The size in bytes of a running domain's disk as QEMU sees it."""
        with _translate(f"read the size of disk {target!r} of the running domain {domain_uuid}"):
            return int(self._handle.lookupByUUIDString(domain_uuid).blockInfo(target, 0)[0])

    def secret(self, kind: str, which: str) -> bytes:
        """The value of a secret that libvirt keeps, looked up by its ``uuid``, or by its ``usage`` of Ceph."""
        with _translate(f"read the secret {which!r} of a storage pool"):
            if kind == "uuid":
                handle = self._handle.secretLookupByUUIDString(which)
            else:
                handle = self._handle.secretLookupByUsage(libvirt.VIR_SECRET_USAGE_TYPE_CEPH, which)
            return bytes(handle.value(0))

    def backup_job(self, domain_uuid: str) -> str | None:
        """The document of a running backup job of a domain, or ``None``."""
        try:
            return str(self._handle.lookupByUUIDString(domain_uuid).backupGetXMLDesc(0))
        except libvirt.libvirtError as error:
            if error.get_error_code() in (libvirt.VIR_ERR_NO_DOMAIN_BACKUP, libvirt.VIR_ERR_NO_DOMAIN):
                return None
            raise _as_ours(error, f"look for a backup job of domain {domain_uuid}") from error

    def has_job(self, domain_uuid: str) -> bool:
        """Whether a job (a backup, a migration, ...) runs on a domain now.

        Raises LibvirtError for one that libvirt lost: killed while it begins a backup job, libvirt 9 remembers that there is a
        job but not which, so that the domain has it for ever, as far as libvirt is concerned.
        """
        try:
            return bool(self._handle.lookupByUUIDString(domain_uuid).jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE)
        except libvirt.libvirtError as error:
            if "backup job data missing" not in error.get_error_message():
                raise _as_ours(error, f"look for jobs of domain {domain_uuid}") from error
            raise LibvirtError(
                f"Cannot copy a disk of domain {domain_uuid} while it runs: libvirt was killed while it began a backup job of the domain, "
                f"and takes that for unfinished since (libvirt says: {error.get_error_message()}). The guest runs on unharmed. "
                "Stop the domain and start it again, not from its inside, and run again.",
                domain=domain_uuid,
            ) from error

    def begin_backup(self, domain_uuid: str, document: str) -> bool:
        """Start a push backup into a file that exists; ``False`` when another job is in the way.

        https://libvirt.org/formatbackup.html; one job at a time and domain.
        """
        try:
            self._handle.lookupByUUIDString(domain_uuid).backupBegin(
                document, None, libvirt.VIR_DOMAIN_BACKUP_BEGIN_REUSE_EXTERNAL
            )
        except libvirt.libvirtError as error:
            said = error.get_error_message()
            if _is_held_up(error):
                return False
            # The words are those of a daemon that speaks English; a job that is still there is seen whatever it speaks.
            if any(text in said for text in ("active block job", "blockjob assigned", "another job")) or self._has_block_job(
                domain_uuid, _xml.backed_up(document)
            ):
                return False
            raise _as_ours(error, f"start a backup job on domain {domain_uuid}") from error
        return True

    def _has_block_job(self, domain_uuid: str, targets: Iterable[str]) -> bool:
        with contextlib.suppress(libvirt.libvirtError):
            domain = self._handle.lookupByUUIDString(domain_uuid)
            return any(domain.blockJobInfo(target, 0) for target in targets)
        return False

    def backup_result(self, domain_uuid: str) -> tuple[str, float]:
        """How the domain's last backup job ended and how long it took: ``""`` for success or what went wrong, and seconds.

        The statistics stay with libvirt, so that others can read them too (VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED).
        """
        flags = libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED | libvirt.VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED
        with _translate(f"ask how the backup job of domain {domain_uuid} ended"):
            done = self._handle.lookupByUUIDString(domain_uuid).jobStats(flags)
        if done.get(libvirt.VIR_DOMAIN_JOB_OPERATION) != libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP:
            return "libvirt no longer knows how it ended (another job followed, or a program took the record of it)", 0.0
        seconds = done.get(libvirt.VIR_DOMAIN_JOB_TIME_ELAPSED, 0) / 1000
        if done.get("type") == libvirt.VIR_DOMAIN_JOB_COMPLETED and done.get(libvirt.VIR_DOMAIN_JOB_SUCCESS, True):
            return "", seconds
        return str(done.get(libvirt.VIR_DOMAIN_JOB_ERRMSG) or "the job ended without success"), seconds

    def limit_job(self, domain_uuid: str, target: str, speed: int) -> bool:
        """Let the job of a disk copy no more than ``speed`` bytes a second, 0 for no limit; whether it took that.

        Where libvirt would wait with it until the job is over (a guest may be frozen that long), it is not asked.
        """
        try:
            if self._handle.getLibVersion() > _LIMITS_BACKUPS:
                return False
            self._handle.lookupByUUIDString(domain_uuid).blockJobSetSpeed(
                target, speed, libvirt.VIR_DOMAIN_BLOCK_JOB_SPEED_BANDWIDTH_BYTES
            )
        except libvirt.libvirtError:
            return False
        return True

    def abort_job(self, domain_uuid: str) -> None:
        """End a domain's job, if it has one."""
        with contextlib.suppress(libvirt.libvirtError):
            self._handle.lookupByUUIDString(domain_uuid).abortJob()

    def is_running(self, domain_uuid: str) -> bool:
        """Whether there is such a domain, and it is active."""
        with _translate(f"look up domain {domain_uuid}"):
            return bool(_unless_gone(lambda handle: handle.lookupByUUIDString(domain_uuid).isActive(), self._handle))

    def freeze(self, domain_uuid: str) -> bool | None:
        """Freeze the guest's file systems; ``False`` when no guest agent is there.

        ``None`` when one is there but did not answer in time: it may still freeze later, and has to be thawed then.
        """
        try:
            domain = self._handle.lookupByUUIDString(domain_uuid)
            if not _xml.may_have_agent(domain.XMLDesc(0)):
                return False
            domain.agentSetResponseTimeout(AGENT_TIMEOUT, 0)
            domain.fsFreeze(None, 0)
        except libvirt.libvirtError as error:
            if not _is_surely_not_frozen(error):
                return None
            with contextlib.suppress(libvirt.libvirtError):  # there is nothing to thaw, after which it would be set back
                self._handle.lookupByUUIDString(domain_uuid).agentSetResponseTimeout(_AGENT_DEFAULT, 0)
            return False
        return True

    def thaw(self, domain_uuid: str) -> bool:
        """Thaw the guest's file systems; ``False`` when that could not be done."""
        try:
            domain = self._handle.lookupByUUIDString(domain_uuid)
            domain.agentSetResponseTimeout(AGENT_TIMEOUT, 0)
            domain.fsThaw(None, 0)
            domain.agentSetResponseTimeout(_AGENT_DEFAULT, 0)
        except libvirt.libvirtError:
            return False
        return True

    def is_read_only(self) -> bool:
        """Whether the URI names the daemon's socket for those who may only look."""
        sockets = parse_qs(urlsplit(self.uri).query).get("socket", [])
        return any(path.endswith("-sock-ro") for path in sockets)

    def is_remote(self) -> bool:
        """Whether the connection goes to a daemon that need not run on this host."""
        with _translate("read the connection's URI"):
            scheme = urlsplit(self._handle.getURI()).scheme
        transport = scheme.partition("+")[2]
        return transport not in ("", "unix")


@contextlib.contextmanager
def connect(uri: str) -> Iterator[Connection]:
    """Open the connection and close it at the end; raises ConnectionFailed."""
    if not _can_be_said(uri):
        raise ConnectionFailed(f"The uri {uri!r} is not valid.")
    libvirt.registerErrorHandler(lambda *_ignored: None, None)  # errors travel as exceptions, not on stderr
    _knock(uri)
    try:
        handle = libvirt.open(uri)
    except libvirt.libvirtError as error:
        raise ConnectionFailed(
            f"Cannot connect to libvirt at {_without_password(uri)!r}: {error.get_error_message()}. "
            "Is the libvirt daemon running on this host, is the uri right, and may this user "
            "use it (become: true)?",
            uri=_without_password(uri),
        ) from error
    try:
        yield Connection(handle, _without_password(uri))
    finally:
        with contextlib.suppress(libvirt.libvirtError):
            handle.close()


def _knock(uri: str) -> None:
    """Fail soon where libvirt would wait for minutes on a TCP connection that nobody answers."""
    try:
        parts = urlsplit(uri)
        host = parts.hostname
        port = parts.port or {"tcp": 16509, "tls": 16514}.get(parts.scheme.partition("+")[2])
    except ValueError as error:
        raise ConnectionFailed(f"The uri {_without_password(uri)!r} is not valid: {error}.") from None
    if host is None or port is None or parts.scheme.endswith(("+ssh", "+libssh", "+libssh2")):
        return
    try:
        socket.create_connection((host, port), timeout=CONNECT_TIMEOUT).close()
    except OSError as error:
        raise ConnectionFailed(
            f"Cannot connect to libvirt at {_without_password(uri)!r}: {host} port {port}: {error.strerror or error}. "
            "Is the daemon running there and listening for this transport?",
            uri=_without_password(uri),
        ) from error


def _without_password(uri: str) -> str:
    try:
        parts = urlsplit(uri)
    except ValueError:
        return uri
    if "@" not in parts.netloc or ":" not in parts.netloc.rpartition("@")[0]:
        return uri
    user, _sep, host = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{user.partition(':')[0]}:***@{host}").geturl()


def _volume_def(handle: Any, pool: Pool) -> _xml.VolumeDef | None:
    """What libvirt knows of a volume; it repeats what an image names as its backing file, and that may be any bytes.

    ``None`` for files that libvirt 9 can't describe itself, since it takes what the image names as its backing format as it is.
    """
    try:
        document = handle.XMLDesc(0)
    except UnicodeDecodeError as error:  # from libvirt's binding
        document = error.object.decode("utf-8", "replace")
    except libvirt.libvirtError as error:
        # 'unknown volume format number', in the language that the daemon was started in
        kind = error.get_error_code(), error.get_error_domain()
        if not pool.stores_files or kind != (libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_FROM_STORAGE):
            raise
        return None
    return _xml.parse_volume(document)


def _domain_facts(handle: Any, with_snapshots: set[str], saved: set[str]) -> DomainFacts:
    uuid = handle.UUIDString()
    active = bool(handle.isActive())
    live = handle.XMLDesc(0) if active else None
    persistent = handle.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE) if handle.isPersistent() else None
    state = handle.state(0)[0]
    try:
        saved_xml = handle.managedSaveGetXMLDesc(0) if uuid in saved else None
    except libvirt.libvirtError:
        if handle.hasManagedSaveImage(0):
            raise
        return _domain_facts(handle, with_snapshots, saved - {uuid})  # it woke up meanwhile, or its image was removed
    snapshots = handle.listAllSnapshots(0) if uuid in with_snapshots else ()
    # A snapshot that vanishes meanwhile is no reason to take its domain for vanished.
    described = [_unless_gone(lambda each: each.getXMLDesc(0), snapshot) for snapshot in snapshots]
    return DomainFacts(
        name=handle.name(),
        uuid=uuid,
        state=_STATES[state] if state < len(_STATES) else "unknown",
        live_xml=live,
        persistent_xml=persistent,
        snapshot_xml=tuple(document for document in described if document is not None),
        saved_xml=saved_xml,
    )


def _unless_gone(read: Callable[[Any], Answer], handle: Any) -> Answer | None:
    """What ``read`` says of an object, or ``None`` when it has vanished since it was listed."""
    try:
        return read(handle)
    except libvirt.libvirtError as error:
        if error.get_error_code() in (
            libvirt.VIR_ERR_NO_DOMAIN,
            libvirt.VIR_ERR_NO_STORAGE_VOL,
            libvirt.VIR_ERR_NO_STORAGE_POOL,
            libvirt.VIR_ERR_NO_DOMAIN_SNAPSHOT,
        ):
            return None
        raise


def _can_be_said(text: str) -> bool:
    """Whether libvirt's C strings can carry a text."""
    return "\0" not in text and not any("\ud800" <= char <= "\udfff" for char in text)


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


def _is_held_up(error: Any) -> bool:
    """Whether a domain's other job was in the way: a migration, say, for which libvirt lets a request wait for half a minute."""
    return error.get_error_code() in (libvirt.VIR_ERR_OPERATION_TIMEOUT, libvirt.VIR_ERR_RESOURCE_BUSY)


def _as_ours(error: Any, what: str) -> StorageError:
    code, message = error.get_error_code(), error.get_error_message()
    texts = ("asynchronous jobs running", "is still being allocated", "is still in use")
    if _is_held_up(error) or any(text in message for text in texts):
        return Locked(f"Cannot {what}: {message}. Another job is at work on it; run again when it is done.")
    if code == libvirt.VIR_ERR_OPERATION_INVALID and "is not active" in message and "pool" in message:
        return PoolInactive(f"Cannot {what}: {message}. Start the pool ('virsh pool-start') and run again.")
    if code in (libvirt.VIR_ERR_NO_CONNECT, libvirt.VIR_ERR_RPC) or error.get_error_domain() == libvirt.VIR_FROM_RPC:
        return ConnectionFailed(
            f"The connection to libvirt was lost: cannot {what}: {message}. "
            "Check that the daemon is running ('systemctl status libvirtd virtqemud virtstoraged') and run again."
        )
    return LibvirtError(f"Cannot {what}: libvirt says: {message}", libvirt_code=code)


@contextlib.contextmanager
def _translate(what: str) -> Iterator[None]:
    try:
        yield
    except libvirt.libvirtError as error:
        raise _as_ours(error, what) from error
