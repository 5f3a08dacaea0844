# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.hypervisor.storage.plugins.module_utils import _directory
from ansible_collections.hypervisor.storage.plugins.modules import volume_info
from ansible_collections.hypervisor.storage.tests.unit.fake_hypervisor import Hypervisor, disk

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img")

MIB = 1024**2


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Hypervisor:
    """Two pools: base <- web1 (attached) in one, web2 and a raw disk in the other."""
    hypervisor = Hypervisor(tmp_path, monkeypatch, capsys)
    other = hypervisor.add_pool("archive")
    hypervisor.image("base")
    subprocess.run(["qemu-img", "snapshot", "-c", "before", str(hypervisor.directory / "base")], check=True)
    hypervisor.image("web1", "-b", hypervisor.directory / "base", "-F", "qcow2")
    shutil.copy(hypervisor.image("Web2", "-b", hypervisor.directory / "web1", "-F", "qcow2"), other / "Web2")
    (hypervisor.directory / "Web2").unlink()
    (other / "disk.raw").write_bytes(bytes(MIB))
    hypervisor.connection.add_domain("vm1", disk(hypervisor.directory / "web1"), live=True)
    for pool in ("default", "archive"):
        hypervisor.connection.refresh(hypervisor.connection.pool(pool))
    hypervisor.connection.calls.clear()
    return hypervisor


def ask(lab: Hypervisor, **params: object) -> dict[str, Any]:
    """The result, which nothing was touched for, and which is that of check mode."""
    before = lab.picture()
    result = lab.run(volume_info, **params)
    assert lab.run(volume_info, check=True, **params) == result
    assert lab.picture() == before
    assert not result.get("changed")
    return result


def found(lab: Hypervisor, **params: object) -> list[str]:
    return [f"{each['pool']}/{each['name']}" for each in ask(lab, **params)["volumes"]]


def test_all_volumes_of_all_pools_sorted(lab: Hypervisor) -> None:
    assert found(lab) == ["archive/Web2", "archive/disk.raw", "default/base", "default/web1"]


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"name": "web1"}, ["default/web1"]),
        ({"name": "web1", "pool": "archive"}, []),
        ({"name": "gone"}, []),
        ({"pool": ["default"]}, ["default/base", "default/web1"]),
        ({"pool": "archive,default,archive", "pattern": "b"}, ["archive/Web2", "default/base", "default/web1"]),
        ({"pattern": "web"}, ["archive/Web2", "default/web1"]),
        ({"pattern": "web*"}, ["default/web1"]),
        ({"pattern": "?eb[12]"}, ["archive/Web2", "default/web1"]),
        ({"pattern": "*"}, ["archive/Web2", "archive/disk.raw", "default/base", "default/web1"]),
        ({"pattern": "nothing"}, []),
        ({"status": "attached"}, ["default/base", "default/web1"]),
        ({"status": "available"}, ["archive/Web2", "archive/disk.raw"]),
        ({"format": "raw"}, ["archive/disk.raw"]),
        ({"format": "qcow2", "status": "available"}, ["archive/Web2"]),
        ({"format": "vmdk"}, []),
    ],
)
def test_filters(lab: Hypervisor, params: dict[str, Any], expected: list[str]) -> None:
    assert found(lab, **params) == expected


def test_what_a_volume_tells(lab: Hypervisor) -> None:
    base, web1 = ask(lab, pool="default")["volumes"]
    assert [use["via"] for use in base["attachments"]] == ["backing"]
    assert [child["name"] for child in base["dependents"]] == ["Web2", "web1"]
    assert [(each["name"], each["id"], each["vm_state_size"]) for each in base["snapshots"]] == [("before", "1", 0)]
    assert web1["backing"] == {
        "path": base["path"], "format": "qcow2", "name": "base", "pool": "default", "chain": [base["path"]],
    }  # fmt: skip
    assert web1["status"] == "attached"
    assert (web1["cluster_size"], web1["compat"], web1["capacity"]) == (65536, "1.1", MIB)
    assert web1["allocation"] == os.stat(web1["path"]).st_blocks * 512
    (web2,) = ask(lab, name="Web2")["volumes"]
    assert web2["backing"]["chain"] == [web1["path"], base["path"]]
    assert (web2["status"], web2["dependents"]) == ("available", [])


def test_what_is_no_image_is_left_out(lab: Hypervisor) -> None:
    (lab.directory / "directory").mkdir()
    os.mkfifo(lab.directory / "fifo")
    (lab.directory / "dangling").symlink_to("nowhere")
    (lab.directory / ".hypervisor.storage-partial-0123").write_bytes(b"half")
    Path(os.fsdecode(os.fsencode(lab.directory) + b"/no\xfftext")).write_bytes(b"")
    assert found(lab, pool="default") == ["default/base", "default/web1"]
    for name in ("directory", "fifo", "dangling"):
        assert found(lab, name=name) == []


def test_volumes_that_vanish_meanwhile_are_left_out(lab: Hypervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    look_at = _directory.look_at

    def vanishing(path: str, **options: Any) -> Any:
        return None if path.endswith("/web1") else look_at(path, **options)

    monkeypatch.setattr(_directory, "look_at", vanishing)
    assert found(lab, pool="default") == ["default/base"]


def test_an_image_that_can_not_be_trusted_is_listed_all_the_same(lab: Hypervisor) -> None:
    lab.image("evil", "-u", "-b", "/proc/kmsg", "-F", "raw")
    (evil,) = ask(lab, name="evil")["volumes"]
    assert evil["backing"]["path"] == "/proc/kmsg"
    assert evil["backing"]["name"] is None


def test_pools_are_described(lab: Hypervisor) -> None:
    archive, default = ask(lab, name="gone")["pools"]
    assert (archive["name"], default["name"]) == ("archive", "default")
    assert (default["type"], default["path"], default["active"]) == ("dir", str(lab.directory), True)
    assert default["capacity"] == default["allocation"] + default["available"] > 0


def test_idle_pools_are_left_out_with_a_warning(lab: Hypervisor) -> None:
    lab.connection.add_pool("idle", lab.directory / "idle", active=False)
    lab.connection.add_pool("nowhere", lab.directory / "nowhere")
    result = ask(lab)
    assert [pool["name"] for pool in result["pools"]] == ["archive", "default"]
    assert "idle" in str(result["warnings"])
    assert "nowhere" in str(result["warnings"])


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"pool": "gone"}, "pool_not_found"),
        ({"pool": ["default", "idle"]}, "pool_inactive"),
        ({"pool": "nowhere"}, "pool_inactive"),
        ({"pool": [""]}, "invalid_option"),
        ({"name": "a/b"}, "invalid_name"),
        ({"name": ""}, "invalid_name"),
        ({"pattern": ""}, "invalid_option"),
        ({"status": "lost"}, "invalid_option"),
        ({"colour": "red"}, "invalid_option"),
    ],
)
def test_refusals(lab: Hypervisor, params: dict[str, Any], reason: str) -> None:
    lab.connection.add_pool("idle", lab.directory, active=False)
    lab.connection.add_pool("nowhere", lab.directory / "nowhere")
    result = lab.run(volume_info, **params)
    assert (result["failed"], result["reason"]) == (True, reason), result["msg"]
