# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Roles in plays that were not written for them: what the play has of its own must cost nobody a volume."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.hypervisors import disk
from support.images import digest, make, sh, write
from support.runs import environment, run_play


@pytest.fixture
def use(hypervisor):
    """Tasks that use a role and tell its result, also of a failure, under the role's name."""

    def tasks(role, **wishes):
        variables = {f"{role}_{name}": value for name, value in {"uri": hypervisor.uri, **wishes}.items()}
        return [{"block": [{"ansible.builtin.include_role": {"name": f"hypervisor.storage.{role}"}, "vars": variables}],
                 "rescue": [{"ansible.builtin.set_fact": {"heard": "{{ ansible_failed_result.msg | default('') }}"}}]},
                {"ansible.builtin.debug": {"msg": {"result": f"{{{{ {role}_result }}}}", "heard": "{{ heard | default('') }}"}},
                 "register": role}]

    return tasks


def test_a_play_that_ignores_errors_keeps_the_only_backup(pool, make_pool, domain, use):
    """The new backup fails, since the domain runs."""
    backups = make_pool()
    domain(disk(make(pool / "web1")))
    make(backups / "web1-20200101T000000Z")
    tasks = use("backup_volume", name="web1", pool=pool.name, backup_pool=backups.name, keep=1, consistency="offline")
    told = run_play(tasks, play={"ignore_errors": True})["backup_volume"]["msg"]
    assert told["result"]["failed"] and told["result"]["failures"][0]["reason"] == "volume_in_use", told
    assert [path.name for path in backups.path.iterdir()] == ["web1-20200101T000000Z"]


def test_hosts_that_take_turns_do_not_delete_each_others_new_backup(pool, make_pool, use):
    """Both name one volume, or two of one name: who comes second can't tell whose the first one's backup is."""
    backups = make_pool()
    make(pool / "web1")
    play = {"hosts": "localhost,second", "serial": 1}
    tasks = use("backup_volume", name="web1", pool=pool.name, backup_pool=backups.name, keep=1)
    told = run_play(tasks, play=play, arguments=["-i", "localhost,second,"])["backup_volume"]["msg"]
    assert "localhost has just made backups of the same names" in told["heard"], told
    (only,) = backups.path.iterdir()
    assert digest(only) == digest(pool / "web1")


def test_names_that_yaml_takes_for_numbers(pool, use):
    make(pool / "2024")
    told = run_play(use("delete_volume", name=[2024], pool=pool.name))["delete_volume"]["msg"]["result"]
    assert (told["deleted"], told["absent"]) == (["2024"], []), told
    assert not (pool / "2024").exists()


@pytest.mark.parametrize("really", [True, False])
def test_two_volumes_of_a_name_when_the_command_line_and_the_play_differ_about_check_mode(pool, make_pool, use, really):
    """The play's word counts: it moves, and nothing is lost, or it touches nothing."""
    target = make_pool()
    write(make(pool / "web1"), 0x42)
    make(target / "web1")
    before, wanted = digest(target / "web1"), digest(pool / "web1")
    records = str(target.path.parent / "records")
    tasks = use("migrate_volume", name="web1", pool=pool.name, target_pool=target.name, replace=True, record_dir=records)
    arguments = ["--check"] if really else []
    run_play(tasks, play={"check_mode": not really}, arguments=arguments)
    if really:
        assert digest(target / "web1") == wanted
    else:
        assert (digest(target / "web1"), digest(pool / "web1")) == (before, wanted)


def test_two_pools_that_show_one_directory(pool, make_pool, outside, use):
    (outside / "alias").symlink_to(pool.path)
    alias = make_pool(path=outside / "alias")
    make(pool / "web1")
    before = digest(pool / "web1")
    told = run_play(use("migrate_volume", name="web1", pool=pool.name, target_pool=alias.name, replace=True))["migrate_volume"]["msg"]
    assert "is one and the same" in told["heard"] and told["result"]["failed"], told
    assert digest(pool / "web1") == before


def test_the_tour_does_not_tidy_up_a_pool_of_somebody_else(hypervisor, pool, tmp_path):
    make(pool / "web1")
    settings = {"demo_uri": hypervisor.uri, "demo_dir": str(tmp_path), "demo_pool": pool.name, "ansible_python_interpreter": sys.executable}
    playbook = str(Path(sys.executable).parent / "ansible-playbook")
    argv = [playbook, "hypervisor.storage.demo", "-i", "localhost,", "-e", json.dumps(settings)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False, env=environment())
    assert done.returncode != 0 and "not that of this tour" in done.stdout + done.stderr, done.stdout
    assert (pool / "web1").exists() and pool.virt.isActive()


@pytest.fixture
def run_on_hosts(tmp_path, hypervisor):
    """``run(role, hosts, **wishes)``: the role on hosts that have wishes of their own; what its job hands on."""

    def run(role, hosts, **wishes):
        here = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        own = {host: {**here, **{f"{role}_{name}": value for name, value in his.items()}} for host, his in hosts.items()}
        inventory, book = tmp_path / "hosts.json", tmp_path / "book.json"
        inventory.write_text(json.dumps({"all": {"hosts": own}}))
        for_all = {f"{role}_{name}": value for name, value in {"uri": hypervisor.uri, **wishes}.items()}
        book.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "vars": for_all, "roles": [f"hypervisor.storage.{role}"]}]))
        argv = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", str(inventory), str(book)]
        env = environment(ANSIBLE_SHOW_CUSTOM_STATS="1")
        done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False, env=env)
        said = done.stdout.replace("\\n", " ")
        assert done.returncode == 2 and "CUSTOM STATS" in said, done.stdout + done.stderr
        stats = said[said.index("CUSTOM STATS"):]
        return json.loads(stats[stats.index("{"):stats.rindex("}") + 1])

    return run


def test_a_job_of_many_hosts_hands_on_that_one_failed(pool, run_on_hosts):
    """The first host fails, the second does well: the last word must not be the second's alone."""
    make(pool / "web1")
    job = run_on_hosts("grow_volume", {"first": {"name": "nowhere"}, "second": {"name": "web1"}}, pool=pool.name, size="64M")
    assert (job["grow_volume_result"]["failed"], job["grow_volume_result"]["reason"]) == (True, "volume_not_found"), job
    assert {host: result["failed"] for host, result in job["grow_volume_results"].items()} == {"first": True, "second": False}, job


def test_volumes_of_one_name_of_which_one_stays(pool, make_pool, run_on_hosts):
    """Each host has its own: that the one is gone must not hide that the other is not."""
    other = make_pool()
    make(pool / "web1")
    stays = make(other / "web1")
    sh("chattr", "+i", stays)
    try:
        job = run_on_hosts("delete_volume", {"first": {"pool": pool.name}, "second": {"pool": other.name}}, name="web1")
    finally:
        sh("chattr", "-i", stays)
    told = job["delete_volume_result"]
    assert told["failed"] and (told["deleted"], told["not_deleted"]) == (["web1"], ["web1"]), told
    assert "second: " in told["msg"] and not (pool / "web1").exists() and stays.exists(), told
