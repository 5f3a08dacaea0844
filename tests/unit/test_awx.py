# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The surveys for AWX ask for what the roles take, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

REPO = Path(__file__).resolve().parents[2]
ROLES = sorted(path.name for path in (REPO / "roles").iterdir())


#: Groups that own files, not groups of hosts.
OF_FILES = {(role, f"{role}_group") for role in ("provision_from_template", "restore_from_snapshot")}


def load(path):
    return yaml.safe_load((REPO / path).read_text(encoding="utf-8"))


def definition(role):
    return load(f"extensions/awx/job_templates/{role}.yml")


def options(role):
    return load(f"roles/{role}/meta/argument_specs.yml")["argument_specs"]["main"]["options"]


def as_question(option):
    """What a survey, which knows only flat values, has to say about an option of a role."""
    kind, choices, default = option["type"], option.get("choices"), option.get("default")
    if kind == "bool":
        kind, choices, default = "str", ["true", "false"], None if default is None else str(default).lower()
    if kind == "list" and default is not None:
        default = ",".join(default)
    asked = {"type": "multiplechoice" if choices else "integer" if kind == "int" else "text"}
    asked["required"] = option.get("required", False)
    if choices:
        asked["choices"] = choices
    if default is not None:
        asked["default"] = default
    return asked


def test_every_role_has_a_playbook_and_a_definition():
    assert ROLES == sorted(path.stem for path in (REPO / "extensions/awx/job_templates").iterdir())
    for role in ROLES:
        wanted = definition(role)
        assert wanted["playbook"] == f"playbooks/{role}.yml"
        assert (REPO / wanted["playbook"]).is_file()
        assert wanted["name"].strip() and wanted["description"].strip()


@pytest.mark.parametrize("role", ROLES)
def test_survey_is_the_roles_own_variables(role):
    wanted = definition(role)
    first, *questions = wanted["survey"]
    assert (first["variable"], first["default"], first["required"]) == ("target", "hypervisors", False)
    asked = {question["variable"]: question for question in questions}
    assert len(asked) == len(questions), "a variable is asked for twice"
    assert sorted([*asked, *wanted["not_asked"]]) == sorted(options(role))
    for name in wanted["not_asked"]:
        assert not options(role)[name].get("required"), f"{name} is required, so it has to be asked for"
    for name, question in asked.items():
        said = {key: question[key] for key in ("type", "required", "choices", "default") if key in question}
        assert said == as_question(options(role)[name]), name


@pytest.mark.parametrize("role", ROLES)
def test_an_empty_field_takes_no_protection_away(role):
    """AWX passes what a form shows as extra variables, which win over the inventory's."""
    for name in (f"{role}_group", f"{role}_prefix", f"{role}_uri"):
        if "default" in options(role).get(name, {}) and (role, name) not in OF_FILES:
            assert name in definition(role)["not_asked"]


@pytest.mark.parametrize("role", ROLES)
def test_survey_is_one_that_awx_takes(role):
    for question in definition(role)["survey"]:
        assert set(question) <= {
            "variable", "question_name", "question_description", "type", "required", "choices", "default", "min", "max"
        }
        assert question["question_name"].strip()
        assert all(isinstance(choice, str) for choice in question.get("choices", []))
        kind = {"integer": int}.get(question["type"], str)
        assert isinstance(question.get("default", kind()), kind), question["variable"]
        if "choices" in question:
            assert question["default"] in question["choices"]


@pytest.mark.parametrize("role", ROLES)
def test_playbook_lets_the_survey_choose_its_hosts(role):
    (play,) = load(f"playbooks/{role}.yml")
    assert play["hosts"] == "{{ target | default('hypervisors') }}"
    assert [entry["role"] for entry in play["roles"]] == [f"hypervisor.storage.{role}"]


@pytest.mark.parametrize("role", ROLES)
def test_flat_types_only(role):
    for name, option in options(role).items():
        assert option["type"] in ("str", "path", "list", "int", "bool"), f"{name}: a survey can't give a {option['type']}"
