# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The only import of libvirt: a connection, and libvirt's errors in this collection's words. What is changed is in two more files: pools in
_pool_changes, running domains in _running.

Pools and domains are named by their UUIDs here; libvirt's own objects never leave these files.
API: https://libvirt.org/html/libvirt-libvirt-storage.html and libvirt-libvirt-domain.html.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

from . import _xml
from ._errors import ConnectionFailed, LibvirtError, Locked, PoolInactive, PoolNotFound, StorageError
from ._model import Pool
from ._named_tuple import NamedTuple

try:
    import libvirt
except ImportError:  # the runner respawns into an interpreter that has it, or says tool_missing
    libvirt = None

binding = libvirt  # for the files that change what is there, too

#: How long a remote daemon may take to accept a connection, in seconds.
CONNECT_TIMEOUT = 10.0


Answer = TypeVar("Answer")
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
        self.handle = handle
        self.uri = uri
        self.pool_handles: dict[str, Any] = {}

    def active_pools(self) -> list[Pool]:
        """All active pools, sorted by name."""
        with translate("list the storage pools"):
            handles = self.handle.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE)
            found = [unless_gone(self._describe, handle) for handle in handles]
        return sorted((pool for pool in found if pool is not None), key=lambda pool: pool.name)

    def inactive_pools(self) -> list[str]:
        """The names of the pools that are defined but not active."""
        with translate("list the storage pools"):
            handles = self.handle.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_INACTIVE)
            return sorted(handle.name() for handle in handles)

    def pool(self, name: str) -> Pool:
        """The active pool of that name; raises PoolNotFound or PoolInactive."""
        if not _can_be_said(name):
            raise PoolNotFound(f"There is no storage pool {name!r}: no pool can have that name.", pool=name)
        try:
            handle = self.handle.storagePoolLookupByName(name)
            active = bool(handle.isActive())
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_STORAGE_POOL:
                raise PoolNotFound(
                    f"There is no storage pool {name!r} on {self.uri}. "
                    "Define it, or name one that 'virsh pool-list --all' shows.",
                    pool=name,
                ) from None
            raise as_ours(error, f"look up storage pool {name!r}") from error
        if not active:
            raise PoolInactive(
                f"Storage pool {name!r} is not active. Start it ('virsh pool-start {name}') and run again.", pool=name
            )
        with translate(f"describe storage pool {name!r}"):
            return self._describe(handle)

    def _describe(self, handle: Any) -> Pool:
        pool = _xml.parse_pool(handle.XMLDesc(0))
        self.pool_handles[pool.uuid] = handle
        return pool

    def volume(self, pool: Pool, name: str) -> _xml.VolumeDef | None:
        """What libvirt knows of a volume now (no refresh), or ``None``."""

        def describe(handle: Any) -> _xml.VolumeDef | None:
            return _volume_def(handle.storageVolLookupByName(name), pool)

        with translate(f"look up volume {name!r} in pool {pool.name!r}"):
            return unless_gone(describe, self.pool_handles[pool.uuid])

    def knows_volume(self, pool: Pool, name: str) -> bool:
        """Whether libvirt has a volume of that name in its list now (no refresh)."""
        with translate(f"look up volume {name!r} in pool {pool.name!r}"):
            return unless_gone(lambda handle: handle.storageVolLookupByName(name), self.pool_handles[pool.uuid]) is not None

    def volumes(self, pool: Pool) -> list[_xml.VolumeDef]:
        """What libvirt knows of all volumes of a pool now; those that vanish meanwhile are left out."""
        with translate(f"list the volumes of pool {pool.name!r}"):
            handles = self.pool_handles[pool.uuid].listAllVolumes(0)
            found = [unless_gone(lambda each: _volume_def(each, pool), handle) for handle in handles]
        return [definition for definition in found if definition is not None]

    def domains(self) -> list[DomainFacts]:
        """All domains with their live and persistent documents; those that vanish meanwhile are left out."""
        with translate("list the domains"):
            handles = self.handle.listAllDomains(0)
            with_snapshots = self._uuids(libvirt.VIR_CONNECT_LIST_DOMAINS_HAS_SNAPSHOT)
            saved = self._uuids(libvirt.VIR_CONNECT_LIST_DOMAINS_MANAGEDSAVE)
            found = [unless_gone(lambda each: _domain_facts(each, with_snapshots, saved), handle) for handle in handles]
        return [facts for facts in found if facts is not None]

    def _uuids(self, kind: int) -> set[str]:
        return {handle.UUIDString() for handle in self.handle.listAllDomains(kind)}

    def secret(self, kind: str, which: str) -> bytes:
        """The value of a secret that libvirt keeps, looked up by its ``uuid``, or by its ``usage`` of Ceph."""
        with translate(f"read the secret {which!r} of a storage pool"):
            if kind == "uuid":
                handle = self.handle.secretLookupByUUIDString(which)
            else:
                handle = self.handle.secretLookupByUsage(libvirt.VIR_SECRET_USAGE_TYPE_CEPH, which)
            return bytes(handle.value(0))

    def is_read_only(self) -> bool:
        """Whether the URI names the daemon's socket for those who may only look."""
        sockets = parse_qs(urlsplit(self.uri).query).get("socket", [])
        return any(path.endswith("-sock-ro") for path in sockets)

    def is_remote(self) -> bool:
        """Whether the connection goes to a daemon that need not run on this host."""
        with translate("read the connection's URI"):
            scheme = urlsplit(self.handle.getURI()).scheme
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
    described = [unless_gone(lambda each: each.getXMLDesc(0), snapshot) for snapshot in snapshots]
    return DomainFacts(
        name=handle.name(),
        uuid=uuid,
        state=_STATES[state] if state < len(_STATES) else "unknown",
        live_xml=live,
        persistent_xml=persistent,
        snapshot_xml=tuple(document for document in described if document is not None),
        saved_xml=saved_xml,
    )


def unless_gone(read: Callable[[Any], Answer], handle: Any) -> Answer | None:
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


def is_held_up(error: Any) -> bool:
    """Whether a domain's other job was in the way: a migration, say, for which libvirt lets a request wait for half a minute."""
    return error.get_error_code() in (libvirt.VIR_ERR_OPERATION_TIMEOUT, libvirt.VIR_ERR_RESOURCE_BUSY)


def as_ours(error: Any, what: str) -> StorageError:
    """What libvirt says when it can't do ``what``, with the reason that the collection has for it."""
    code, message = error.get_error_code(), error.get_error_message()
    texts = ("asynchronous jobs running", "is still being allocated", "is still in use")
    if is_held_up(error) or any(text in message for text in texts):
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
def translate(what: str) -> Iterator[None]:
    """Do ``what``; raises as as_ours() says."""
    try:
        yield
    except libvirt.libvirtError as error:
        raise as_ours(error, what) from error
