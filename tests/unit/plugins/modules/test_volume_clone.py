# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.hypervisor.storage.plugins.modules import volume_clone
from ansible_collections.hypervisor.storage.tests.unit.fake_hypervisor import Hypervisor, disk, note_syncs

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img")

MIB = 1024**2


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Hypervisor:
    """base <- web, both with data of their own."""
    hypervisor = Hypervisor(tmp_path, monkeypatch, capsys)
    write(hypervisor.image("base"), "write -P 7 0 64k")
    write(hypervisor.image("web", "-b", hypervisor.directory / "base", "-F", "qcow2"), "write -P 8 64k 64k")
    return hypervisor


def write(path: Path, command: str) -> None:
    subprocess.run(["qemu-io", "-c", command, str(path)], check=True, stdout=subprocess.DEVNULL)


def assert_same_content(first: Path, second: Path) -> None:
    subprocess.run(["qemu-img", "compare", "-q", str(first), str(second)], check=True)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"format": "raw"},
        {"size": "2M", "verify": True},
        {"cluster_size": "4K", "preallocation": "metadata"},
        {"pool": "archive", "source_pool": "default", "mode": "0640"},
        {"consistency": "offline"},
    ],
)
def test_a_clone_is_independent_and_made_once(lab: Hypervisor, params: dict[str, Any]) -> None:
    archive = lab.add_pool("archive")
    made = lab.predict_and_run(volume_clone, source="web", name="copy", **params)
    assert made["changed"], made
    assert made["consistency"] == "offline"
    copy = (archive if "pool" in params else lab.directory) / "copy"
    found = made["volume"]
    assert (found["path"], found["backing"]) == (str(copy), None)
    assert found["format"] == params.get("format", "qcow2")
    assert found["capacity"] == (2 * MIB if "size" in params else MIB)
    assert copy.stat().st_mode & 0o777 == (0o640 if "mode" in params else 0o600)
    assert_same_content(lab.directory / "web", copy)
    assert not lab.predict_and_run(volume_clone, source="web", name="copy", **params)["changed"]


@pytest.mark.parametrize("params", [{}, {"format": "raw"}, {"verify": True}, {"size": "2M", "mode": "0640"}])
def test_a_clone_is_on_the_disk_before_it_has_its_name(
    lab: Hypervisor, monkeypatch: pytest.MonkeyPatch, params: dict[str, Any]
) -> None:
    """The file after the last write to it, then its name, then the directory that has the name."""
    noted = note_syncs(monkeypatch)
    assert lab.run(volume_clone, source="web", name="copy", **params)["changed"]
    made = (lab.directory / "copy").stat()
    at = noted.index(("named", "copy"))
    of_the_file = [what for what, which in noted[:at] if which == made.st_ino]
    assert of_the_file and of_the_file[-1] == "synced"
    assert noted[at - 1] == ("synced", made.st_ino) and made.st_ino not in [which for _what, which in noted[at:]]
    assert ("synced", lab.directory.stat().st_ino) in noted[at:]


def test_what_a_clone_keeps(lab: Hypervisor) -> None:
    lab.image("old", "-o", "compat=0.10,cluster_size=4096")
    made = lab.predict_and_run(volume_clone, source="old", name="copy")["volume"]
    assert (made["compat"], made["cluster_size"]) == ("0.10", 4096)


def test_snapshots_stay_behind_with_a_warning(lab: Hypervisor) -> None:
    subprocess.run(["qemu-img", "snapshot", "-c", "before", str(lab.directory / "base")], check=True)
    made = lab.predict_and_run(volume_clone, source="base", name="copy")
    assert made["volume"]["snapshots"] == []
    assert "snapshot" in str(made["warnings"])


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"source": "gone", "name": "copy"}, "volume_not_found"),
        ({"source": "web", "name": "web"}, "invalid_option"),
        ({"source": "web", "name": "small"}, "volume_mismatch"),
        ({"source": "web", "name": "disk.raw"}, "volume_mismatch"),
        ({"source": "web", "name": "copy", "size": "512K"}, "shrink_refused"),
        ({"source": "web", "name": "copy", "pool": "gone"}, "pool_not_found"),
        ({"source": "web", "name": "copy", "source_pool": "gone"}, "pool_not_found"),
        ({"source": "a/b", "name": "copy"}, "invalid_name"),
        ({"source": "running", "name": "copy", "consistency": "offline"}, "volume_in_use"),
        ({"name": "copy"}, "invalid_option"),
        ({"source": "web"}, "invalid_option"),
    ],
)
def test_refusals(lab: Hypervisor, params: dict[str, Any], reason: str) -> None:
    lab.connection.add_domain("vm1", disk(lab.image("running")), live=True)
    lab.image("small", size="512K")
    lab.image("disk.raw", fmt="raw")
    result = lab.predict_and_run(volume_clone, **params)
    assert result.get("failed"), result
    assert result["reason"] == reason, result["msg"]
