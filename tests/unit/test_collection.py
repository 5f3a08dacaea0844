# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the collection says of itself, in its metadata and on its first page, is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from ansible_collections.hypervisor.storage.plugins.module_utils import _errors

REPO = Path(__file__).resolve().parents[2]
README = (REPO / "README.md").read_text(encoding="utf-8")


def load(name):
    return yaml.safe_load((REPO / name).read_text(encoding="utf-8"))


def rows(*header):
    """The table of the README with these columns: its rows as lists of cells."""
    lines = README.splitlines()
    first = next(number for number, line in enumerate(lines) if cells(line) == list(header))
    table = []
    for line in lines[first + 2 :]:
        if not line.startswith("|"):
            break
        table.append(cells(line))
    return table


def cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []


def test_metadata():
    galaxy, runtime = load("galaxy.yml"), load("meta/runtime.yml")
    assert (galaxy["namespace"], galaxy["name"], runtime["requires_ansible"]) == ("hypervisor", "storage", ">=2.17.0")
    assert load("tests/config.yml")["modules"]["python_requires"] == ">=3.9"
    assert load("meta/execution-environment.yml")["dependencies"]["system"] == "bindep.txt"
    assert load("changelogs/config.yaml")["title"].lower().startswith("hypervisor.storage")
    for name in ("LICENSE", "CONTRIBUTING.md", "CHANGELOG.rst", "docs/architecture.md"):
        assert len((REPO / name).read_text(encoding="utf-8")) > 100, name


def test_packages_are_named_for_both_families():
    lines = [line for line in (REPO / "bindep.txt").read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    for family, tool in (("dpkg", "qemu-utils"), ("rpm", "qemu-img")):
        assert {line.split()[0] for line in lines if f"platform:{family}" in line} >= {"python3-libvirt", tool}
        row = next(row for row in rows("on", "Debian, Ubuntu", "Fedora, RHEL and their kin") if row[0] == "hypervisor")
        assert {"python3-libvirt", tool} <= set(row[1 if family == "dpkg" else 2].strip("`").split())


def test_no_sanity_check_is_left_out():
    assert [path for path in (REPO / "tests").glob("sanity/ignore*") if path.read_text(encoding="utf-8").strip()] == []


def test_endpoints():
    prefix = "`hypervisor.storage."
    assert rows("endpoint", "module") == [
        ["create-volume", f"{prefix}volume` with `state: present`"],
        ["delete-volume", f"{prefix}volume` with `state: absent`"],
        ["list-volumes, describe-volume", f"{prefix}volume_info`"],
        ["resize-volume", f"{prefix}volume_resize`"],
        ["clone-volume", f"{prefix}volume_clone`"],
        ["compress-volume", f"{prefix}volume_compress`"],
    ]


def test_every_reason_is_named():
    known = {error.reason for error in vars(_errors).values() if isinstance(error, type) and issubclass(error, _errors.StorageError)}
    told = README.partition("carries one of these as `reason`:")[2].partition("\n\n")[0]
    assert set(re.findall(r"`([a-z_]+)`", told)) == known


def test_every_role_is_named():
    named = re.findall(r"\[([a-z_]+)\]\(roles/\1/README\.md\)", README)
    assert sorted(named) == sorted(path.name for path in (REPO / "roles").iterdir())


def test_two_commands():
    for command in ("demo", "test"):
        assert f"```shell\n./dev {command}\n```" in README
    assert "KEEP=1 ./dev demo" in README
    assert "./dev test" in (REPO / ".ci" / "run").read_text(encoding="utf-8")


@pytest.mark.parametrize("heading", [
    "See it work", "Install", "First playbook", "Modules", "Workflows", "Compatibility", "What you can rely on", "Licence",
])
def test_what_a_reader_looks_for_has_a_heading(heading):
    assert f"\n## {heading}\n" in README


def test_compatibility_is_that_of_the_tests():
    table = {row[0]: row[1:] for row in rows("", "tested on every change", "meant to work")}
    cores = sorted(path.stem.removeprefix("core-") for path in (REPO / "tests" / "requirements").glob("core-*.txt"))
    assert table["ansible-core"][0] == ", ".join(cores)
    assert "3.9" in table["Python on the hypervisor"][0].split(", ")
    for what in ("libvirt", "QEMU", "distribution of the hypervisor", "pools"):
        assert all(table[what]), what


def test_links_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert links and [link for link in links if not (REPO / link).exists()] == []


def test_adhoc_lines_are_shown():
    lines = re.findall(r"^ansible hypervisors -b -m hypervisor\.storage\.([a-z_]+) -a ", README, re.MULTILINE)
    assert "volume" in lines
