# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.hypervisor.storage.plugins.modules import volume_compress
from ansible_collections.hypervisor.storage.tests.unit.fake_hypervisor import Hypervisor, disk, note_syncs

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img")

MIB = 1024**2


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Hypervisor:
    """An image with 1 MiB of data and 4 MiB of written zeros."""
    hypervisor = Hypervisor(tmp_path, monkeypatch, capsys)
    path = hypervisor.image("web", size="8M")
    commands = ("-c", "write -P 7 0 1M", "-c", "write -P 0 1M 4M")
    subprocess.run(["qemu-io", *commands, str(path)], check=True, stdout=subprocess.DEVNULL)
    return hypervisor


def test_zeros_are_given_back_in_place(lab: Hypervisor, tmp_path: Path) -> None:
    path = lab.directory / "web"
    subprocess.run(["qemu-img", "convert", "-O", "raw", str(path), str(tmp_path / "before")], check=True)
    before = path.stat()
    result = lab.predict_and_run(volume_compress, name="web", method="zeros")
    assert result["changed"], result
    after = path.stat()
    assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size)
    assert result["reclaimed"] == (before.st_blocks - after.st_blocks) * 512 >= 4 * MIB
    assert result["allocation_before"] - result["allocation_after"] == result["reclaimed"]
    subprocess.run(["qemu-img", "compare", "-q", str(tmp_path / "before"), str(path)], check=True)
    subprocess.run(["qemu-img", "check", "-q", str(path)], check=True)
    again = lab.predict_and_run(volume_compress, name="web", method="zeros")
    assert (again["changed"], again["reclaimed"]) == (False, 0)


def test_a_rewritten_image_is_on_the_disk_before_it_takes_the_place(lab: Hypervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    noted = note_syncs(monkeypatch)
    assert lab.run(volume_compress, name="web", method="zeros", compression="zlib", min_reclaim="64K")["changed"]
    made = (lab.directory / "web").stat()
    at = noted.index(("named", "web"))
    assert ("synced", made.st_ino) in noted[:at]
    assert ("synced", lab.directory.stat().st_ino) in noted[at:]


def test_too_little_to_reclaim_changes_nothing(lab: Hypervisor) -> None:
    assert not lab.predict_and_run(volume_compress, name="web", method="zeros", min_reclaim="5M")["changed"]


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"name": "gone"}, "volume_not_found"),
        ({"name": "disk.raw"}, "unsupported"),
        ({"name": "used"}, "volume_in_use"),
        ({"name": ["web", "gone"]}, "volume_not_found"),
        ({"name": "web", "min_reclaim": "x"}, "invalid_size"),
        ({"name": "web", "pool": "gone"}, "pool_not_found"),
        ({"name": "web", "compression": "lzma"}, "invalid_option"),
        ({"name": "a/b"}, "invalid_name"),
    ],
)
def test_refusals(lab: Hypervisor, params: dict[str, Any], reason: str) -> None:
    lab.image("disk.raw", fmt="raw")
    lab.connection.add_domain("vm1", disk(lab.image("used")))
    result = lab.predict_and_run(volume_compress, **{"method": "zeros", **params})
    assert result.get("failed"), result
    assert result["reason"] == reason, result["msg"]
