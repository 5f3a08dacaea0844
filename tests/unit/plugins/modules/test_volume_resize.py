# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.hypervisor.storage.plugins.module_utils import _grow
from ansible_collections.hypervisor.storage.plugins.modules import volume_resize
from ansible_collections.hypervisor.storage.tests.unit.fake_hypervisor import Hypervisor, disk

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img")

MIB = 1024**2


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Hypervisor:
    return Hypervisor(tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize("image_format", ["qcow2", "raw"])
@pytest.mark.parametrize("preallocation", [None, "off", "falloc", "full"])
def test_grow_again_shrink(lab: Hypervisor, image_format: str, preallocation: str | None) -> None:
    path = lab.image("web", fmt=image_format)
    subprocess.run(
        ["qemu-io", "-f", image_format, "-c", "write -P 7 0 1M", str(path)], check=True, stdout=subprocess.DEVNULL
    )
    params = {"name": "web", "size": "2 MiB", **({"preallocation": preallocation} if preallocation else {})}
    grown = lab.predict_and_run(volume_resize, **params)
    assert grown["changed"]
    assert grown["volume"]["capacity"] == 2 * MIB
    assert "guest" in grown["msg"]
    reserved = preallocation in ("falloc", "full") or (image_format == "raw" and preallocation is None)
    assert (path.stat().st_blocks * 512 >= 2 * MIB) is reserved
    again = lab.predict_and_run(volume_resize, **params)
    assert not again["changed"]
    smaller = lab.predict_and_run(volume_resize, **{**params, "size": "1M"})
    assert (smaller["reason"], smaller["required"]) == ("shrink_refused", 2 * MIB)
    raw = path.with_name("seen")
    subprocess.run(["qemu-img", "convert", "-f", image_format, "-O", "raw", str(path), str(raw)], check=True)
    assert raw.read_bytes() == b"\7" * MIB + bytes(MIB)


def test_a_stale_view_of_libvirt_does_not_truncate(lab: Hypervisor) -> None:
    path = lab.image("web", fmt="raw")
    path.write_bytes(b"x" * 3 * MIB)  # libvirt still believes 1 MiB
    refused = lab.predict_and_run(volume_resize, name="web", size="2M")
    assert refused["reason"] == "shrink_refused"
    assert path.read_bytes() == b"x" * 3 * MIB


@pytest.mark.parametrize("image_format", ["qcow2", "raw"])
def test_online(lab: Hypervisor, image_format: str) -> None:
    path = lab.image("web", fmt=image_format)
    lab.connection.add_domain("vm1", disk(path, fmt=image_format), live=True)
    grown = lab.predict_and_run(volume_resize, name="web", size="2M")
    assert grown["volume"]["capacity"] == 2 * MIB
    assert ("block_resize", "uuid-vm1", "vda", 2 * MIB) in lab.connection.calls
    assert not lab.predict_and_run(volume_resize, name="web", size="2M")["changed"]


@pytest.mark.parametrize("online", [False, True])
@pytest.mark.parametrize("image_format", ["qcow2", "raw"])
def test_what_grew_after_the_decision_is_not_cut_off(
    lab: Hypervisor, monkeypatch: pytest.MonkeyPatch, image_format: str, online: bool
) -> None:
    """Between the plan and the deed somebody else makes it larger than is asked for; QEMU below libvirt 12.3 would shrink it."""
    path = lab.image("web", fmt=image_format)
    if online:
        lab.connection.add_domain("vm1", disk(path, fmt=image_format), live=True)
    grow = _grow.grow

    def grow_late(*args: Any) -> None:
        subprocess.run(["qemu-img", "resize", "-q", "-f", image_format, str(path), "3M"], check=True)
        grow(*args)

    monkeypatch.setattr(_grow, "grow", grow_late)
    result = lab.run(volume_resize, name="web", size="2M", preallocation="off")
    assert result.get("reason") == "shrink_refused", result
    assert not any(call[0] == "block_resize" for call in lab.connection.calls)
    told = subprocess.run(["qemu-img", "info", "--output=json", "-f", image_format, path], check=True, capture_output=True).stdout
    assert json.loads(told)["virtual-size"] == 3 * MIB


def test_a_resize_that_came_to_nothing_is_no_success(lab: Hypervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    """libvirt says yes, and nothing is larger."""
    path = lab.image("web")
    lab.connection.add_domain("vm1", disk(path), live=True)
    monkeypatch.setattr(lab.connection, "block_resize", lambda **_asked: None)
    result = lab.run(volume_resize, name="web", size="2M")
    assert result.get("reason") == "tool_failed" and str(2 * MIB) in result["msg"], result


def test_a_guest_that_does_not_see_it_is_no_success(lab: Hypervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    path = lab.image("web")
    lab.connection.add_domain("vm1", disk(path), live=True)
    monkeypatch.setattr(lab.connection, "block_capacity", lambda **_asked: MIB)
    result = lab.run(volume_resize, name="web", size="2M")
    assert result.get("reason") == "tool_failed" and "'vm1' still sees" in result["msg"], result


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"name": "gone", "size": "2M"}, "volume_not_found"),
        ({"name": ["web", "gone"], "size": "2M"}, "volume_not_found"),
        ({"name": "web"}, "invalid_option"),
        ({"name": "web", "size": "x"}, "invalid_size"),
        ({"name": "web", "size": "2M", "pool": "gone"}, "pool_not_found"),
        ({"name": "web", "size": "2M", "preallocation": "metadata"}, "invalid_option"),
        ({"name": "web", "size": "2G", "preallocation": "falloc"}, "insufficient_space"),
        ({"name": "shared", "size": "2M"}, "volume_in_use"),
    ],
)
def test_refusals(lab: Hypervisor, params: dict[str, Any], reason: str) -> None:
    lab.image("web")
    shared = lab.image("shared")
    for name in ("vm1", "vm2"):
        lab.connection.add_domain(name, disk(shared), live=True)
    result = lab.predict_and_run(volume_resize, **params)
    assert result.get("failed"), result
    assert result["reason"] == reason, result["msg"]
