# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What libvirt says of jobs, also when it has lost one; and what it is asked for when a disk grows."""

from __future__ import annotations

from typing import Any

import pytest

libvirt = pytest.importorskip("libvirt")

from ansible_collections.hypervisor.storage.plugins.module_utils._errors import ConnectionFailed, LibvirtError, StorageError  # noqa: E402
from ansible_collections.hypervisor.storage.plugins.module_utils._libvirt import Connection  # noqa: E402


class Handle:
    """A connection to a libvirt with one domain, which has this job or says this when it is asked."""

    def __init__(self, job: int = 0, code: int = 0, said: str = "") -> None:
        self._job, self._code, self._said = job, code, said

    def lookupByUUIDString(self, uuid: str) -> Handle:
        return self

    def jobInfo(self) -> list[int]:
        if self._said:
            error = libvirt.libvirtError(self._said)
            error.err = (self._code, libvirt.VIR_FROM_QEMU, self._said, libvirt.VIR_ERR_ERROR, None, None, None, 0, 0)
            raise error
        return [self._job, 0]


class Disk:
    """A connection to a libvirt with one domain, which notes how its disk is resized."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, int]] = []

    def lookupByUUIDString(self, uuid: str) -> Disk:
        return self

    def blockResize(self, target: str, size: int, flags: int) -> None:
        self.asked.append((target, size, flags))


class Agent:
    """A connection to a libvirt with one domain, whose agent's freeze fails like this."""

    def __init__(self, code: int, said: str) -> None:
        self._failure = libvirt.libvirtError(said)
        self._failure.err = (code, libvirt.VIR_FROM_QEMU, said, libvirt.VIR_ERR_ERROR, None, None, None, 0, 0)

    def lookupByUUIDString(self, uuid: str) -> Agent:
        return self

    def agentSetResponseTimeout(self, seconds: int, flags: int) -> None:
        pass

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
    assert Connection(Agent(code, said), "qemu:///system").freeze("0000-1") is frozen


@pytest.mark.parametrize("extend", [None, 1 << 2])
def test_a_disk_only_grows_where_libvirt_can_see_to_that(monkeypatch: pytest.MonkeyPatch, extend: int | None) -> None:
    """In bytes, since without that flag they are KiB; since 12.3 libvirt takes the wish that nothing shrinks."""
    if extend is None:
        monkeypatch.delattr(libvirt, "VIR_DOMAIN_BLOCK_RESIZE_EXTEND", raising=False)
    else:
        monkeypatch.setattr(libvirt, "VIR_DOMAIN_BLOCK_RESIZE_EXTEND", extend, raising=False)
    disk = Disk()
    Connection(disk, "qemu:///system").block_resize(domain_uuid="0000-1", target="vda", capacity=512, what="grow it")
    assert disk.asked == [("vda", 512, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES | (extend or 0))]


def ask(handle: Any) -> bool:
    return Connection(handle, "qemu:///system").has_job("0000-1")


@pytest.mark.parametrize(("job", "has"), [(libvirt.VIR_DOMAIN_JOB_NONE, False), (libvirt.VIR_DOMAIN_JOB_UNBOUNDED, True)])
def test_a_job(job: int, has: bool) -> None:
    assert ask(Handle(job)) is has


def test_a_job_that_libvirt_lost_is_told_with_what_helps() -> None:
    with pytest.raises(LibvirtError, match="0000-1.*Stop the domain and start it again"):
        ask(Handle(code=libvirt.VIR_ERR_INTERNAL_ERROR, said="internal error: backup job data missing"))


@pytest.mark.parametrize(("code", "kind"), [(libvirt.VIR_ERR_RPC, ConnectionFailed), (libvirt.VIR_ERR_INTERNAL_ERROR, LibvirtError)])
def test_other_failures(code: int, kind: type[StorageError]) -> None:
    with pytest.raises(kind, match="look for jobs of domain 0000-1.*out of order"):
        ask(Handle(code=code, said="out of order"))
