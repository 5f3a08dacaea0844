# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""README's plays and the modules' EXAMPLES, run in check mode on a hypervisor that has what they speak of."""

from __future__ import annotations

import re

import pytest
import yaml
from support.images import blank, make, overlay, take_snapshot
from support.runs import REPO, run_play

MODULES = sorted(path.stem for path in (REPO / "plugins" / "modules").glob("volume*.py"))


def examples(module, outside):
    source = (REPO / "plugins" / "modules" / f"{module}.py").read_text()
    source = source.replace("/srv/images/", f"{outside}/")  # a directory of the test's own
    return yaml.safe_load(re.search(r'EXAMPLES = r"""\n(.*?)"""', source, re.DOTALL)[1])


def readme():
    """Tasks of the README's YAML: those of its plays, and those that stand alone."""
    for block in re.findall(r"```yaml\n(.*?)```", (REPO / "README.md").read_text(), re.DOTALL):
        for entry in yaml.safe_load(block):
            yield from entry["tasks"] if "hosts" in entry else [entry]


@pytest.fixture
def as_described(make_pool, outside):
    """The volumes that the texts name, and room for those that they make."""
    default, templates, databases, _backup = (
        make_pool(name) for name in ("default", "templates", "databases", "backup"))
    for place in (default, templates, outside):
        make(place / "debian-12.qcow2")
    for name in ("web1", "web2"):
        overlay(default / name, templates / "debian-12.qcow2")
    make(default / "db1")
    take_snapshot(default / "web1", "before-upgrade")
    blank(default / "legacy.raw", fmt="raw")
    for name in ("db1.raw", "db2.raw"):
        blank(databases / name, fmt="raw")
    for pool in (default, templates, databases):
        pool.refresh()


def in_check_mode(tasks, hypervisor):
    tasks = [{**task, "register": task.get("register", f"done{number}")} for number, task in enumerate(tasks)]
    results = run_play(tasks, arguments=["--check", "--diff"], LIBVIRT_DEFAULT_URI=hypervisor.uri)
    return [results[task["register"]] for task in tasks]


@pytest.mark.parametrize("module", MODULES)
def test_examples(module, hypervisor, as_described, outside):
    tasks = examples(module, outside)
    for task, result in zip(tasks, in_check_mode(tasks, hypervisor)):
        assert "volumes" in result, (task["name"], result)


def test_readme(hypervisor, as_described):
    tasks = list(readme())
    for task, result in zip(tasks, in_check_mode(tasks, hypervisor)):
        assert not result.get("failed"), (task["name"], result)
