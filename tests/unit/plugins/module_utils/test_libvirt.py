# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What libvirt says of jobs, also when it has lost one; and what it is asked for when a disk grows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

libvirt = pytest.importorskip("libvirt")

from ansible_collections.hypervisor.storage.plugins.module_utils import _pool_changes, _running  # noqa: E402
from ansible_collections.hypervisor.storage.plugins.module_utils._errors import (  # noqa: E402
    ConnectionFailed,
    LibvirtError,
    Locked,
    PoolInactive,
    StorageError,
)
from ansible_collections.hypervisor.storage.plugins.module_utils._libvirt import Connection  # noqa: E402
from ansible_collections.hypervisor.storage.plugins.module_utils._model import Pool  # noqa: E402
from ansible_collections.hypervisor.storage.plugins.module_utils._xml import build_backup  # noqa: E402


def failure(code: int, said: str, domain: int = libvirt.VIR_FROM_QEMU) -> libvirt.libvirtError:
    """What libvirt's binding raises for an error of this code."""
    error = libvirt.libvirtError(said)
    error.err = (code, domain, said, libvirt.VIR_ERR_ERROR, None, None, None, 0, 0)
    return error


class Handle:
    """A connection to a libvirt with one domain, which has this job or says this when it is asked."""

    def __init__(self, job: int = 0, code: int = 0, said: str = "") -> None:
        self._job, self._code, self._said = job, code, said

    def lookupByUUIDString(self, uuid: str) -> Handle:
        return self

    def jobInfo(self) -> list[int]:
        if self._said:
            raise failure(self._code, self._said)
        return [self._job, 0]


class Disk:
    """A connection to a libvirt with one domain, which notes how its disk is resized, and its job slowed down."""

    def __init__(self, version: int) -> None:
        self._version = version
        self.asked: list[tuple[str, int, int]] = []

    def getLibVersion(self) -> int:
        return self._version

    def lookupByUUIDString(self, uuid: str) -> Disk:
        return self

    def blockResize(self, target: str, size: int, flags: int) -> None:
        self.asked.append((target, size, flags))

    def blockJobSetSpeed(self, target: str, speed: int, flags: int) -> None:
        self.asked.append((target, speed, flags))


class Agent:
    """A connection to a libvirt with one domain, whose agent's freeze fails like this."""

    def __init__(self, code: int, said: str, channel: str = "<target name='org.qemu.guest_agent.0' state='connected'/>") -> None:
        self._failure = failure(code, said)
        self._channel = channel
        self.timeouts: list[int] = []

    def lookupByUUIDString(self, uuid: str) -> Agent:
        return self

    def XMLDesc(self, flags: int) -> str:
        return f"<domain><devices><channel type='unix'>{self._channel}</channel></devices></domain>"

    def agentSetResponseTimeout(self, seconds: int, flags: int) -> None:
        self.timeouts.append(seconds)

    def fsFreeze(self, mountpoints: None, flags: int) -> None:
        raise self._failure


@pytest.mark.parametrize(("code", "said", "frozen"), [
    (86, "Guest agent is not responding: QEMU guest agent is not connected", False),
    (86, "Guest agent is not responding: Guest agent not available for now", None),  # libvirt 9
    (112, "guest agent command timed out: guest agent didn't respond to command within '5' seconds", None),  # libvirt 11
    (113, "guest agent command failed: unable to execute QEMU agent command 'guest-fsfreeze-freeze'", False),
    (1, "internal error: unable to execute QEMU agent command 'guest-fsfreeze-freeze': it has been disabled", False),
    (74, "argument unsupported: QEMU guest agent is not configured", False),
    (1, "internal error: client socket is closed", None),
    (38, "Cannot recv data: Connection reset by peer", None),
])
def test_a_freeze_that_may_still_come(monkeypatch: pytest.MonkeyPatch, code: int, said: str, frozen: bool | None) -> None:
    """The codes are libvirt's (virterror.h): what is not surely no freeze is thawed when it comes."""
    monkeypatch.setattr(libvirt, "VIR_ERR_AGENT_COMMAND_FAILED", 113, raising=False)
    assert _running.freeze(Connection(Agent(code, said), "qemu:///system"), "0000-1") is frozen


@pytest.mark.parametrize("channel", ["<target name='org.qemu.guest_agent.0' state='disconnected'/>", "<target name='com.redhat.spice.0'/>"])
def test_where_no_agent_is_none_is_asked(channel: str) -> None:
    """libvirt would say so in the language of its daemon, so that it could not be told from one that is slow."""
    agent = Agent(86, "Der Gast-Agent antwortet nicht: der QEMU-Gast-Agent ist nicht verbunden", channel)
    assert _running.freeze(Connection(agent, "qemu:///system"), "0000-1") is False
    assert agent.timeouts == []


def test_an_agent_that_did_not_freeze_has_all_the_time_again() -> None:
    """libvirt remembers the time for all who ask the agent later, also while none is there."""
    agent = Agent(86, "Guest agent is not responding: QEMU guest agent is not connected")
    assert _running.freeze(Connection(agent, "qemu:///system"), "0000-1") is False
    assert agent.timeouts == [5, libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK]


@pytest.mark.parametrize(("extend", "daemon", "asked"), [(None, 12_008_000, 0), (1 << 2, 12_008_000, 1 << 2), (1 << 2, 11_003_000, 0)])
def test_a_disk_only_grows_where_libvirt_can_see_to_that(
    monkeypatch: pytest.MonkeyPatch, extend: int | None, daemon: int, asked: int
) -> None:
    """In bytes, since without that flag they are KiB; from 12.3 on libvirt takes the wish that nothing shrinks, if its daemon is so new."""
    if extend is None:
        monkeypatch.delattr(libvirt, "VIR_DOMAIN_BLOCK_RESIZE_EXTEND", raising=False)
    else:
        monkeypatch.setattr(libvirt, "VIR_DOMAIN_BLOCK_RESIZE_EXTEND", extend, raising=False)
    disk = Disk(daemon)
    _running.block_resize(Connection(disk, "qemu:///system"), domain_uuid="0000-1", target="vda", capacity=512, what="grow it")
    assert disk.asked == [("vda", 512, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES | asked)]


class Busy:
    """A pool that refuses to be refreshed until it was asked often enough, or is stopped by it."""

    def __init__(self, *, stops: bool) -> None:
        self._stops, self._active = stops, 1
        self.asked = 0

    def XMLDesc(self, flags: int) -> str:
        return "<pool/>"

    def isPersistent(self) -> int:
        return 1

    def isActive(self) -> int:
        return self._active

    def create(self, flags: int) -> None:
        self._active = 1

    def refresh(self, flags: int) -> None:
        self.asked += 1
        if self._stops or self.asked < 3:
            self._active = int(not self._stops)
            raise failure(libvirt.VIR_ERR_INTERNAL_ERROR, "Interner Fehler: Pool hat asynchrone Aufgaben.", libvirt.VIR_FROM_STORAGE)


@pytest.mark.parametrize("stops", [False, True])
def test_a_busy_pool_is_waited_for_whatever_language_libvirt_speaks(stops: bool) -> None:
    handle, pool = Busy(stops=stops), Pool("pool", "0000-2", "dir", "/pool", True, 0, 0, 0)
    connection = Connection(None, "qemu:///system")
    connection.pool_handles[pool.uuid] = handle
    if stops:
        with pytest.raises(LibvirtError):
            _pool_changes.refresh(connection, pool)
    else:
        _pool_changes.refresh(connection, pool)
    assert (handle.asked, handle.isActive()) == (1 if stops else 3, 1)


class Stopped(Busy):
    """A pool that somebody stops right before it is refreshed."""

    def refresh(self, flags: int) -> None:
        self._active = 0
        raise failure(libvirt.VIR_ERR_OPERATION_INVALID, "storage pool 'pool' is not active", libvirt.VIR_FROM_STORAGE)


def test_a_pool_that_somebody_stopped_stays_so() -> None:
    """To start it would mount what was to be unmounted, and activate a volume group that is to be another host's by now."""
    handle, pool = Stopped(stops=True), Pool("pool", "0000-2", "logical", "/dev/pool", True, 0, 0, 0)
    connection = Connection(None, "qemu:///system")
    connection.pool_handles[pool.uuid] = handle
    with pytest.raises(PoolInactive, match="Start the pool"):
        _pool_changes.refresh(connection, pool)
    assert not handle.isActive()


class OneVolume:
    """A pool of files with one volume, which describes itself like this."""

    def __init__(self, describe: Callable[[], str]) -> None:
        self._describe = describe

    def storageVolLookupByName(self, name: str) -> OneVolume:
        return self

    def listAllVolumes(self, flags: int) -> list[OneVolume]:
        return [self]

    def XMLDesc(self, flags: int) -> str:
        return self._describe()


def one_volume(describe: Callable[[], str]) -> tuple[Connection, Pool]:
    connection, pool = Connection(None, "qemu:///system"), Pool("pool", "0000-2", "dir", "/pool", True, 0, 0, 0)
    connection.pool_handles[pool.uuid] = OneVolume(describe)
    return connection, pool


def test_a_volume_that_libvirt_cannot_describe_is_left_out() -> None:
    """libvirt knows no name for what its header names as its backing format."""

    def describe() -> str:
        raise failure(libvirt.VIR_ERR_INTERNAL_ERROR, "Interner Fehler: unbekannte Format-Nummer 42", libvirt.VIR_FROM_STORAGE)

    connection, pool = one_volume(describe)
    assert connection.volume(pool, "top") is None
    assert connection.volumes(pool) == []


def test_a_volume_may_name_any_bytes_as_its_backing_file() -> None:
    below = b"<backingStore><path>/pool/b\xbf</path></backingStore>"
    document = b"<volume><name>top</name><target><format type='qcow2'/></target>%s</volume>" % below
    connection, pool = one_volume(lambda: document.decode("utf-8"))  # as libvirt's binding does
    definition = connection.volume(pool, "top")
    assert definition is not None and (definition.format, definition.backing_path) == ("qcow2", "/pool/b\ufffd")
    assert connection.volumes(pool) == [definition]


class Gone:
    """A snapshot that is deleted right after it was listed."""

    def getXMLDesc(self, flags: int) -> str:
        raise failure(libvirt.VIR_ERR_NO_DOMAIN_SNAPSHOT, "Domain snapshot not found")


class Snapshotted:
    """A connection to a libvirt, and its one domain, which is shut off and has these snapshots."""

    def __init__(self, *snapshots: Any) -> None:
        self._snapshots = snapshots

    def listAllDomains(self, kind: int) -> list[Snapshotted]:
        return [] if kind == libvirt.VIR_CONNECT_LIST_DOMAINS_MANAGEDSAVE else [self]

    def listAllSnapshots(self, flags: int) -> tuple[Any, ...]:
        return self._snapshots

    def UUIDString(self) -> str:
        return "0000-1"

    def name(self) -> str:
        return "vm1"

    def isActive(self) -> int:
        return 0

    def isPersistent(self) -> int:
        return 1

    def state(self, flags: int) -> list[int]:
        return [libvirt.VIR_DOMAIN_SHUTOFF, 0]

    def XMLDesc(self, flags: int) -> str:
        return "<domain/>"


class Waking(Snapshotted):
    """A connection to a libvirt, and its one domain, which wakes up right after it was listed as saved, unless its image is broken."""

    def __init__(self, *, broken: bool) -> None:
        super().__init__()
        self._broken, self._awake = broken, 0

    def listAllDomains(self, kind: int) -> list[Snapshotted]:
        return [] if kind == libvirt.VIR_CONNECT_LIST_DOMAINS_HAS_SNAPSHOT else [self]

    def isActive(self) -> int:
        return self._awake

    def XMLDesc(self, flags: int) -> str:
        return "<domain/>" if flags else "<domain id='1'/>"

    def managedSaveGetXMLDesc(self, flags: int) -> str:
        self._awake = int(not self._broken)
        raise failure(libvirt.VIR_ERR_OPERATION_INVALID, "domain does not have managed save image")

    def hasManagedSaveImage(self, flags: int) -> int:
        return int(self._broken)


def test_a_saved_domain_that_wakes_up_is_looked_at_once_more() -> None:
    (facts,) = Connection(Waking(broken=False), "qemu:///system").domains()
    assert (facts.live_xml, facts.persistent_xml, facts.saved_xml) == ("<domain id='1'/>", "<domain/>", None)


def test_a_saved_domain_whose_image_cannot_be_read() -> None:
    """Nobody knows which disks it has, so nothing is taken for unused."""
    with pytest.raises(LibvirtError, match="list the domains"):
        Connection(Waking(broken=True), "qemu:///system").domains()


class Kept:
    """A snapshot that stays."""

    def getXMLDesc(self, flags: int) -> str:
        return "<domainsnapshot/>"


def test_a_domain_stays_known_when_one_of_its_snapshots_vanishes() -> None:
    """Its disks would be nobody's, and free to be deleted."""
    (facts,) = Connection(Snapshotted(Gone(), Kept()), "qemu:///system").domains()
    assert (facts.name, facts.persistent_xml, facts.snapshot_xml) == ("vm1", "<domain/>", ("<domainsnapshot/>",))


class Copied:
    """A connection to a libvirt with one domain, of which one disk is being copied or not, and that begins no backup job."""

    def __init__(self, code: int, copied: str = "") -> None:
        self._code, self._copied = code, copied

    def lookupByUUIDString(self, uuid: str) -> Copied:
        return self

    def backupBegin(self, document: str, checkpoint: None, flags: int) -> None:
        raise failure(self._code, "Operation nicht unterstützt: Datenträger ist schon in einer Aufgabe")

    def blockJobInfo(self, target: str, flags: int) -> dict[str, int]:
        return {"type": 2} if target == self._copied else {}


@pytest.mark.parametrize(("code", "copied", "waits"), [
    (libvirt.VIR_ERR_OPERATION_UNSUPPORTED, "vda", True),
    (libvirt.VIR_ERR_OPERATION_UNSUPPORTED, "vdb", False),
    (libvirt.VIR_ERR_OPERATION_TIMEOUT, "", True),
])
def test_a_backup_job_waits_for_other_jobs_whatever_language_libvirt_speaks(code: int, copied: str, waits: bool) -> None:
    document = build_backup(target="vda", path="/pool/copy", image_format="raw", others=["vdb"])
    connection = Connection(Copied(code, copied), "qemu:///system")
    if waits:
        assert _running.begin_backup(connection, "0000-1", document) is False
    else:
        with pytest.raises(LibvirtError, match="start a backup job"):
            _running.begin_backup(connection, "0000-1", document)


def ask(handle: Any) -> bool:
    return _running.has_job(Connection(handle, "qemu:///system"), "0000-1")


@pytest.mark.parametrize(("job", "has"), [(libvirt.VIR_DOMAIN_JOB_NONE, False), (libvirt.VIR_DOMAIN_JOB_UNBOUNDED, True)])
def test_a_job(job: int, has: bool) -> None:
    assert ask(Handle(job)) is has


def test_a_job_that_libvirt_lost_is_told_with_what_helps() -> None:
    with pytest.raises(LibvirtError, match="0000-1.*Stop the domain and start it again"):
        ask(Handle(code=libvirt.VIR_ERR_INTERNAL_ERROR, said="internal error: backup job data missing"))


@pytest.mark.parametrize(("code", "kind"), [
    (libvirt.VIR_ERR_RPC, ConnectionFailed), (libvirt.VIR_ERR_INTERNAL_ERROR, LibvirtError), (libvirt.VIR_ERR_OPERATION_TIMEOUT, Locked),
])
def test_other_failures(code: int, kind: type[StorageError]) -> None:
    with pytest.raises(kind, match="look for jobs of domain 0000-1.*out of order"):
        ask(Handle(code=code, said="out of order"))


@pytest.mark.parametrize(("version", "limited"), [(9_000_000, True), (10_000_000, True), (10_001_000, False), (11_003_000, False)])
def test_a_backup_is_slowed_down_only_where_libvirt_does_it_at_once(version: int, limited: bool) -> None:
    """Elsewhere the call would come back when the copy is complete, and the guest stay frozen until then."""
    disk = Disk(version)
    assert _running.limit_job(Connection(disk, "qemu:///system"), "0000-1", "vda", 1 << 20) is limited
    assert disk.asked == ([("vda", 1 << 20, libvirt.VIR_DOMAIN_BLOCK_JOB_SPEED_BANDWIDTH_BYTES)] if limited else [])
