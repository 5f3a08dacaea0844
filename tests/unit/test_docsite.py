# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The guides speak of what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from ansible_collections.hypervisor.storage.plugins.module_utils import _errors

REPO = Path(__file__).resolve().parents[2]
GUIDES = sorted((REPO / "docs" / "docsite" / "rst").glob("*.rst"))


def read(name):
    return (REPO / "docs" / "docsite" / "rst" / name).read_text(encoding="utf-8")


def modules_of(tasks):
    """Names of the collection's modules, with their options, of plays or tasks however deep."""
    if isinstance(tasks, list):
        for task in tasks:
            yield from modules_of(task)
    elif isinstance(tasks, dict):
        for key, value in tasks.items():
            if key.startswith("hypervisor.storage."):
                yield key.rsplit(".", 1)[1], value
            else:
                yield from modules_of(value)


def test_every_guide_is_in_the_table_of_contents():
    sections = yaml.safe_load((REPO / "docs" / "docsite" / "extra-docs.yml").read_text(encoding="utf-8"))["sections"]
    assert sorted(name for section in sections for name in section["toctree"]) == [guide.stem for guide in GUIDES]


def test_troubleshooting_has_every_reason():
    reasons = {error.reason for error in vars(_errors).values()
               if isinstance(error, type) and issubclass(error, _errors.StorageError) and error is not _errors.StorageError}
    sections = re.split(r"\n([a-z_]+)\n-{3,}\n", read("troubleshooting.rst"))
    told = dict(zip(sections[1::2], sections[2::2]))
    assert sorted(told) == sorted(reasons)
    for reason, text in told.items():
        assert [word for word in ("*Meaning*", "*Look at*", "*Do*") if word not in text] == [], reason


def test_every_promise_names_its_limits_and_its_tests():
    sections = re.split(r"\n([A-Z].*)\n-{3,}\n", read("safety.rst"))
    for title, text in zip(sections[1::2], sections[2::2]):
        if title == "The kinds of storage":
            continue
        assert [word for word in ("*Promise.*", "*Not promised.*", "*Shown by*") if word not in text] == [], title
        for path in re.findall(r"``(tests/[^`]+\.py)``", text):
            assert (REPO / path).is_file(), path


def test_every_hazard_names_tests_that_exist():
    rows = read("hazards.rst").split("\n   * - ")[2:]
    assert len(rows) == 27
    for row in rows:
        _what, _done, shown = row.split("\n     - ")
        tests = re.findall(r"``(tests/[^`]+\.py)::(test_[a-z0-9_]+)``", shown)
        assert tests, row
        for path, name in tests:
            assert re.search(rf"^def {name}\(", (REPO / path).read_text(encoding="utf-8"), re.MULTILINE), (path, name)


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_yaml_is_yaml_with_options_that_exist(guide):
    for block in re.findall(r"\.\. code-block:: yaml\n\n((?:   .*\n|\n)+)", guide.read_text(encoding="utf-8")):
        for module, options in modules_of(yaml.safe_load(block)):
            source = (REPO / "plugins" / "modules" / f"{module}.py").read_text(encoding="utf-8")
            source += (REPO / "plugins" / "doc_fragments" / "common.py").read_text(encoding="utf-8")
            assert [name for name in options or {} if f"\n  {name}:\n" not in source] == [], (guide, module)


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_variables_of_roles_exist(guide):
    known = {
        name
        for spec in (REPO / "roles").glob("*/meta/argument_specs.yml")
        for name in yaml.safe_load(spec.read_text(encoding="utf-8"))["argument_specs"]["main"]["options"]
    }
    assert set(re.findall(r"-e (?!awx_)([a-z_]+_[a-z_]+)=", guide.read_text(encoding="utf-8"))) <= known
