# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What all roles have in common, read off their files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

REPO = Path(__file__).resolve().parents[2]
ROLES = sorted(path.name for path in (REPO / "roles").iterdir())

#: A role's work is done by modules that know what they change and can foretell it.
SHELLS = {"shell", "command", "raw", "script", "expect"}
#: What no module does: growpart, in the guest, of a partition that is mounted; foretold by a run of its own.
PROGRAMS = {"grow_volume": "growpart"}
#: Words of a task that are neither its module nor a list of further tasks.
KEYWORDS = set(
    "name vars when register loop loop_control block rescue always become become_user changed_when failed_when check_mode "
    "delegate_to delegate_facts run_once retries delay until no_log environment tags notify diff any_errors_fatal throttle "
    "ignore_errors ignore_unreachable async poll".split()
)


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def options(role: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = load(REPO / "roles" / role / "meta" / "argument_specs.yml")["argument_specs"]["main"]["options"]
    return found


def tasks(entries: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for entry in entries:
        yield entry
        for part in ("block", "rescue", "always"):
            yield from tasks(entry.get(part, []))


def tasks_of(role: str) -> Iterator[dict[str, Any]]:
    for path in sorted((REPO / "roles" / role / "tasks").glob("*.yml")):
        yield from tasks(load(path))


@pytest.mark.parametrize("role", ROLES)
def test_defaults_are_those_that_the_specs_tell(role: str) -> None:
    told = {name: option["default"] for name, option in options(role).items() if "default" in option}
    assert load(REPO / "roles" / role / "defaults" / "main.yml") == told
    for name, option in options(role).items():
        assert option.get("required", False) != ("default" in option), f"{name} is either required or has a default"
        assert option.get("default") in option.get("choices", [option.get("default")]) or option.get("required"), name


@pytest.mark.parametrize("role", ROLES)
def test_variables_are_described_and_bear_the_roles_name(role: str) -> None:
    readme = (REPO / "roles" / role / "README.md").read_text(encoding="utf-8")
    for name, option in options(role).items():
        assert name.startswith(f"{role}_")
        assert option["description"] and option["type"], name
        assert option["type"] != "list" or option["elements"], name
        assert f"`{name}`" in readme, f"README.md doesn't tell of {name}"
    assert f"`{role}_result`" in readme


@pytest.mark.parametrize("role", ROLES)
def test_readme_tells_the_defaults_of_the_specs(role: str) -> None:
    readme = (REPO / "roles" / role / "README.md").read_text(encoding="utf-8")
    told = dict(re.findall(rf"^\| `({role}_\w+)` \| (.*?) \| ", readme, re.MULTILINE))
    wanted = {}
    for name, option in options(role).items():
        default = option.get("default")
        default = ",".join(default) if isinstance(default, list) else str(default).lower() if isinstance(default, bool) else default
        wanted[name] = "required" if option.get("required") else "" if default == "" else f"`{default}`"
    assert told == wanted


@pytest.mark.parametrize("role", ROLES)
def test_readme_has_why_example_and_failures(role: str) -> None:
    readme = (REPO / "roles" / role / "README.md").read_text(encoding="utf-8")
    title, why, _rest = readme.split("\n\n", 2)
    assert title == f"# {role}" and why.strip() and not why.startswith("#")
    for section in ("## Example", "## Variables", "## Result", "## When it fails"):
        assert f"\n{section}\n\n" in readme, section
    (play,) = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL)[0])
    (used,) = play["roles"]
    assert used["role"] == f"hypervisor.storage.{role}"
    assert set(used["vars"]) <= set(options(role))
    assert {name for name, option in options(role).items() if option.get("required")} <= set(used["vars"])


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("path", ["roles/{}/README.md", "playbooks/{}.yml"])
def test_command_lines_can_be_copied(path: str, role: str) -> None:
    text = (REPO / path.format(role)).read_text(encoding="utf-8")
    lines = [line for line in re.sub(r" \\\n#? *", " ", text).splitlines() if "ansible-playbook hypervisor.storage." in line]
    assert lines
    for line in lines:
        given = set(re.findall(r" -e '?(\w+)=", line))
        assert f"hypervisor.storage.{role} " in line
        assert given - {"target"} <= set(options(role)), line
        assert {name for name, option in options(role).items() if option.get("required")} <= given, line


@pytest.mark.parametrize("role", ROLES)
def test_variables_that_are_set_bear_the_roles_name(role: str) -> None:
    for task in tasks_of(role):
        for name in [task.get("register"), *task.get("ansible.builtin.set_fact", {})]:
            assert name is None or name == "cacheable" or name.startswith((f"__{role}_", f"{role}_result")), task["name"]


@pytest.mark.parametrize("role", ROLES)
def test_no_name_is_both_a_fact_and_a_variable_of_a_task(role: str) -> None:
    """A fact, also one of an earlier use of the role, counts more than a variable of a task, which would be ignored then."""
    facts, variables = set(), set()
    for task in tasks_of(role):
        facts |= {task.get("register"), *task.get("ansible.builtin.set_fact", {})}
        if not [word for word in task if word.startswith("ansible.builtin.include_")]:
            variables |= set(task.get("vars", {}))
    for path in (REPO / "roles" / role / "vars").glob("*.yml"):
        variables |= set(load(path))
    assert facts & variables == set()


@pytest.mark.parametrize("role", ROLES)
def test_modules_by_full_name_and_no_shell(role: str) -> None:
    for task in tasks_of(role):
        modules = set(task) - KEYWORDS
        assert len(modules) == (0 if "block" in task else 1), task
        for module in modules:
            assert module.count(".") == 2, f"{task['name']}: {module} is no full name"
            if module == "ansible.builtin.command" and role in PROGRAMS:
                assert task[module]["argv"][0] == PROGRAMS[role] and task["delegate_to"] == f"{{{{ {role}_guest }}}}"
                assert f"not __{role}_check_mode" in task.get("when", []) or "--dry-run" in task[module]["argv"]
            else:
                assert module.rpartition(".")[2] not in SHELLS, f"{task['name']}: {module}"


#: Whose workflow has to do with other hosts: guests, and hypervisors that may share the storage.
OTHERS = {"grow_volume", "delete_volume", "reclaim_space"}


@pytest.mark.parametrize("role", ROLES)
def test_no_privileges_of_its_own_and_no_other_hosts_without_need(role: str) -> None:
    for task in tasks_of(role):
        assert not [word for word in task if word.startswith("become")], f"{task['name']}: the play decides"
        assert "delegate_to" not in task or role in OTHERS, task["name"]


@pytest.mark.parametrize("role", ROLES)
def test_result_for_later_plays_and_for_awx(role: str) -> None:
    facts = [name for task in tasks_of(role) for name in task.get("ansible.builtin.set_fact", {})]
    stats = [name for task in tasks_of(role) for name in task.get("ansible.builtin.set_stats", {}).get("data", {})]
    assert f"{role}_result" in facts and set(stats) == {f"{role}_result", f"{role}_results"}


#: One host at a time where hosts may share what is written to; all others together, which delete_volume depends on.
SERIAL = {"clone_environment": 1, "migrate_volume": 1, "reclaim_space": 1, "prepare_hypervisor": [1, "100%"]}


@pytest.mark.parametrize("role", ROLES)
def test_playbook_takes_its_hosts_so_that_storage_is_safe(role: str) -> None:
    (play,) = load(REPO / "playbooks" / f"{role}.yml")
    assert play.get("serial") == SERIAL.get(role)
    assert "strategy" not in play


@pytest.mark.parametrize("role", ROLES)
def test_playbook_of_the_same_name(role: str) -> None:
    path = REPO / "playbooks" / f"{role}.yml"
    (play,) = load(path)
    assert play["hosts"] == "{{ target | default('hypervisors') }}"
    assert "become" not in play, "whoever starts it decides"
    assert f"ansible-playbook hypervisor.storage.{role}" in path.read_text(encoding="utf-8"), "its head shows how to start it"


@pytest.mark.parametrize("role", ROLES)
def test_scenario_of_the_same_name(role: str) -> None:
    for name in ("molecule.yml", "converge.yml", "verify.yml"):
        assert (REPO / "extensions" / "molecule" / role / name).is_file()


@pytest.mark.parametrize("role", ROLES)
def test_a_play_that_ignores_errors_does_not_have_the_role_go_on(role: str) -> None:
    """Or old backups would go without a new one, and volumes without their backup."""
    (work,) = [entry for entry in load(REPO / "roles" / role / "tasks" / "main.yml") if "rescue" in entry]
    assert (work.get("ignore_errors"), work.get("ignore_unreachable")) == (False, False)


@pytest.mark.parametrize("role", ROLES)
def test_modules_are_told_the_pool_whatever_the_play_has_as_their_default(role: str) -> None:
    for task in tasks_of(role):
        for module in (name for name in task if name.startswith("hypervisor.storage.")):
            assert "pool" in task[module], task["name"]
