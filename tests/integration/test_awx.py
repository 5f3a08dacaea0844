# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""As AWX does it: each playbook through ansible-runner, with a survey's answers as extra variables."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import ansible_runner
import pytest
import yaml
from support.images import MIB, digest, make, take_snapshot, write
from support.runs import REPO, environment

AWX = REPO / "extensions" / "awx"
BIN = Path(sys.executable).parent


def collections() -> str:
    """Where this checkout is, and the collections that it builds on."""
    return os.environ.get("ANSIBLE_COLLECTIONS_PATH") or environment()["ANSIBLE_COLLECTIONS_PATH"]


@pytest.fixture
def start(hypervisor, tmp_path):
    """``start(role, **answers)``: the job's artifacts; questions without an answer keep what the form shows."""
    host = {
        "ansible_connection": "local", "ansible_python_interpreter": sys.executable,
        "clone_environment_record_dir": str(tmp_path / "record"), "migrate_volume_record_dir": str(tmp_path / "record"),
    }
    numbers = itertools.count()

    def run(role: str, check: bool = False, status: str = "successful", **answers: Any) -> dict[str, Any]:
        survey = yaml.safe_load((AWX / "job_templates" / f"{role}.yml").read_text())["survey"]
        form = {question["variable"]: question["default"] for question in survey if "default" in question}
        form.update({f"{role}_{name}": answer for name, answer in answers.items()}, target="hv1")
        assert set(form) <= {question["variable"] for question in survey}
        assert all(form[question["variable"]] for question in survey if question["required"])
        place = tmp_path / f"job{next(numbers)}"
        place.mkdir()
        job = ansible_runner.run(
            private_data_dir=str(place), playbook=str(REPO / "playbooks" / f"{role}.yml"), quiet=True,
            inventory={"all": {"hosts": {"hv1": host}}}, extravars=form, cmdline="--check" if check else None,
            envvars={
                **environment(), "ANSIBLE_COLLECTIONS_PATH": collections(), "LIBVIRT_DEFAULT_URI": hypervisor.uri,
                "PATH": f"{BIN}:{os.environ['PATH']}",
            },
        )
        assert job.status == status, job.stdout.read()
        (end,) = [event for event in job.events if event["event"] == "playbook_on_stats"]
        artifacts: dict[str, Any] = end["event_data"].get("artifact_data", {})
        return artifacts.get(f"{role}_result", {})

    return run


def test_every_playbook_with_the_answers_of_its_survey(start, make_pool, hypervisor, outside):
    default, fast, backup = (make_pool(name) for name in ("default", "fast", "backup"))

    assert start("prepare_hypervisor", install="false", pool="default", pool_path=str(default.path))

    image = make(outside / "image.qcow2")
    write(image, 0, 2 * MIB, MIB)  # zeros for which space is taken
    assert start("provision_from_template", template="debian", image=str(image), volumes="web1, web2", size="8M")
    assert {path.name for path in default.path.iterdir()} == {"debian", "web1", "web2"}

    take_snapshot(default / "web1", "monday")
    assert start("restore_from_snapshot", volume="web1", snapshot="monday", name="web3")
    assert digest(default / "web3") == digest(default / "web1")

    assert start("grow_volume", name="web3", size="16M")
    assert digest(default / "web3", length=8 * MIB) == digest(default / "web1")

    assert start("backup_volume", name="web3", keep=2)
    (copy,) = backup.path.iterdir()
    assert digest(copy) == digest(default / "web3")

    assert start("migrate_volume", name="web3", target_pool="fast")
    assert not (default / "web3").exists() and digest(fast / "web3") == digest(copy)

    assert start("clone_environment", prefix="test-", pattern="web[12]")
    assert {path.name for path in default.path.glob("test-*")} == {"test-web1", "test-web2"}
    assert start("clone_environment", prefix="test-", state="absent")
    assert not list(default.path.glob("test-*"))

    assert start("reclaim_space", pools="default,fast", method="zeros")

    start("delete_volume", name="web1,web2", check=True)
    assert (default / "web1").exists()
    assert start("delete_volume", name="web1,web2")
    assert {path.name for path in default.path.iterdir()} == {"debian"}


@pytest.mark.parametrize(("role", "answers", "reason"), [
    ("backup_volume", {"name": "web1"}, "pool_not_found"),
    ("clone_environment", {"prefix": "test-", "name": "web1", "target_pool": "nowhere"}, "pool_not_found"),
    ("delete_volume", {"name": "web1", "backup": "true", "backup_pool": "nowhere"}, "pool_not_found"),
    ("grow_volume", {"name": "web1", "size": "1M"}, "shrink_refused"),
    ("migrate_volume", {"name": "web1", "target_pool": "nowhere"}, "pool_not_found"),
    ("prepare_hypervisor", {"install": "false", "pool_path": "images"}, "failed"),
    ("provision_from_template", {"template": "web1", "volumes": "web2", "size": "1M"}, "shrink_refused"),
    ("reclaim_space", {"pools": "default,nowhere"}, "pool_not_found"),
    ("restore_from_snapshot", {"volume": "web1", "snapshot": "monday", "name": "web2"}, "snapshot_not_found"),
], ids=lambda value: value if isinstance(value, str) and "_" in value else "")
def test_failed_job_leaves_its_result_too(start, make_pool, role, answers, reason):
    """For the nodes of a workflow that follow on a failure."""
    default = make_pool("default")
    make(default / "web1")
    default.refresh()
    result = start(role, status="failed", **answers)
    assert (result["failed"], result["changed"], result["reason"]) == (True, False, reason)
    assert result["msg"].strip()
    assert [path.name for path in default.path.iterdir()] == ["web1"]


def test_execution_environment(tmp_path):
    subprocess.run(
        [str(BIN / "ansible-builder"), "create", "-f", str(AWX / "execution-environment.yml"),
         "-c", str(tmp_path), "--output-filename", "Containerfile"],
        capture_output=True, timeout=60, check=True,
    )
    assert "ansible-galaxy collection install" in (tmp_path / "Containerfile").read_text()
    wanted = yaml.safe_load((tmp_path / "_build" / "requirements.yml").read_text())["collections"]
    assert "hypervisor.storage" in [collection["name"] for collection in wanted]
