# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import errno
import json
import os
from collections.abc import Sequence
from typing import Any

import pytest

from ansible_collections.hypervisor.storage.plugins.module_utils import _rbd
from ansible_collections.hypervisor.storage.plugins.module_utils._errors import StorageError
from ansible_collections.hypervisor.storage.plugins.module_utils._model import PoolSource
from ansible_collections.hypervisor.storage.plugins.module_utils._qemu_img import Completed

SECURE = PoolSource("images", ("mon1:6789", "[2001:db8::1]:6789"), "libvirt", ("uuid", "x"), (("rbd_cache", "false"),))
OPEN = PoolSource("rbd", ("mon1",))
# As 'rbd ls --long --format json' of Ceph 16.2 says it.
LISTED = json.loads(
    '[{"image":"kid","id":"1047f229bf82","size":16777216,"parent":{"pool":"rbd","pool_namespace":"","image":"snap",'
    '"snapshot":"s2"},"format":2},{"image":"snap","id":"103facb4e1fa","size":16777216,"format":2},{"image":"snap",'
    '"id":"103facb4e1fa","snapshot":"s1","snapshot_id":4,"size":16777216,"format":2,"protected":"false"},{"image":"snap",'
    '"id":"103facb4e1fa","snapshot":"s2","snapshot_id":5,"size":16777216,"format":2,"protected":"true"}]'
)


class Scripted:
    """A runner that answers as told and remembers what was asked."""

    def __init__(self, *answers: Completed) -> None:
        self.answers = list(answers)
        self.argv: list[list[str]] = []
        self.fds: list[tuple[int, ...]] = []

    def __call__(self, argv: Sequence[str], pass_fds: Sequence[int], limited: bool) -> Completed:
        self.argv.append(list(argv))
        self.fds.append(tuple(pass_fds))
        return self.answers.pop(0)


@pytest.fixture(autouse=True)
def tool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_rbd.shutil, "which", lambda name, path: f"/usr/bin/{name}")


def test_the_configuration_is_the_pools_own() -> None:
    assert _rbd.build_config(SECURE, b"\x01secret").splitlines() == [
        "[global]",
        "mon_host = mon1:6789,[2001:db8::1]:6789",
        "auth_client_required = cephx",
        "auth_cluster_required = cephx",
        "auth_service_required = cephx",
        "client_mount_timeout = 30",
        "rados_mon_op_timeout = 30",
        "rados_osd_op_timeout = 30",
        "rbd_cache = false",
        "key = AXNlY3JldA==",
    ]
    plain = _rbd.build_config(OPEN, None)
    assert "auth_client_required = none" in plain and "key" not in plain


def test_the_key_is_kept_in_memory_and_never_said() -> None:
    runner = Scripted(Completed(0, "[]", ""))
    rbd = _rbd.Rbd(SECURE, b"\x01secret", runner)
    rbd.images()
    (fd,) = rbd.pass_fds
    assert b"AXNlY3JldA==" in os.pread(fd, 4096, 0)
    assert runner.argv == [
        ["/usr/bin/rbd", "--conf", f"/proc/self/fd/{fd}", "--pool=images", "--id=libvirt", "ls", "--long", "--format", "json"]
    ]
    assert runner.fds == [(fd,)]
    told = json.loads(rbd.location("a:b@'\"").removeprefix("json:"))
    assert told == {
        "driver": "raw",
        "file": {
            "driver": "rbd", "pool": "images", "image": "a:b@'\"", "conf": f"/proc/self/fd/{fd}", "user": "libvirt",
        },
    }  # fmt: skip


def test_images_with_snapshots_and_clones() -> None:
    assert _rbd.parse_images(LISTED) == {
        "kid": _rbd.RbdImage("kid", 16777216, (), ("rbd", "snap")),
        "snap": _rbd.RbdImage("snap", 16777216, ("s1", "s2"), None),
    }


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ('{"watchers":[]}', []),
        ('{"watchers":[{"address":"127.0.0.1:0/3155676156","client":4179,"cookie":140465965910320}]}', ["127.0.0.1:0/3155676156"]),
        # As Ceph 12 says it.
        ('{"watchers":{"watcher":{"address":"10.0.0.1:0/1","client":1,"cookie":1}}}', ["10.0.0.1:0/1"]),
    ],
)
def test_watchers(answer: str, found: list[str]) -> None:
    assert _rbd.Rbd(OPEN, None, Scripted(Completed(0, answer, ""))).watchers("a") == found


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.EEXIST, "volume_mismatch"),
        (errno.EBUSY, "volume_in_use"),
        (errno.ENOTEMPTY, "volume_in_use"),
        (errno.ENOSPC, "insufficient_space"),
        (errno.EDQUOT, "insufficient_space"),
        (errno.ETIMEDOUT, "tool_failed"),
        (errno.ENOENT, "tool_failed"),
        (-9, "tool_failed"),
    ],
)
@pytest.mark.parametrize(
    "act",
    [
        lambda rbd: rbd.create("-a", 512),
        lambda rbd: rbd.grow("-a", 512),
        lambda rbd: rbd.rename("-a", "b"),
        lambda rbd: rbd.remove("-a"),
        lambda rbd: rbd.watchers("-a"),
    ],
)
def test_failures(act: Any, code: int, reason: str) -> None:
    runner = Scripted(Completed(code, "", "noise\nrbd: something is wrong\n"))
    with pytest.raises(StorageError) as refused:
        act(_rbd.Rbd(OPEN, None, runner))
    assert refused.value.reason == reason
    assert "something is wrong" in refused.value.msg and "noise" not in refused.value.msg
    assert "--image=-a" in runner.argv[0], "a name is never taken for an option"


def test_without_the_tool_its_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_rbd.shutil, "which", lambda name, path: None)
    assert not _rbd.is_installed()
    with pytest.raises(StorageError) as refused:
        _rbd.Rbd(OPEN, None, Scripted()).images()
    assert refused.value.reason == "tool_missing" and "ceph-common" in refused.value.msg
