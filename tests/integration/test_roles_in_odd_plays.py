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
from support.hypervisors import disk, domain_xml
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


def test_a_host_that_can_not_say_what_its_own_volume_is(pool, make_pool, use, tmp_path):
    """The play says where its libvirt is, the inventory says otherwise: by the latter the host can't be asked, and nothing goes."""
    backups = make_pool()
    make(pool / "web1")
    make(backups / "web1-20200101T000000Z")
    here = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    hosts = {"first": {**here, "backup_volume_uri": "qemu+unix:///system?socket=/nowhere"}, "second": here}
    (tmp_path / "hosts.json").write_text(json.dumps({"hypervisors": {"hosts": hosts}}))
    tasks = use("backup_volume", name="web1", pool=pool.name, backup_pool=backups.name, keep=1, group="hypervisors")
    told = run_play(tasks, play={"hosts": "first"}, arguments=["-i", str(tmp_path / "hosts.json")])["backup_volume"]["msg"]["result"]
    (made,) = told["backups"]
    (stays,) = made["refused"]
    assert (stays["name"], stays["reason"]) == ("web1-20200101T000000Z", "host_not_asked"), told
    assert "host first could not say what it is" in stays["msg"] and "/nowhere" in stays["msg"]
    assert sorted(path.name for path in backups.path.iterdir()) == ["web1-20200101T000000Z", made["backup"]]


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
    """``run(role, hosts, **wishes)``: the role on hosts that have variables of their own; what its job hands on."""

    def run(role, hosts, play=None, fails=True, **wishes):
        here = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        inventory, book = tmp_path / "hosts.json", tmp_path / "book.json"
        inventory.write_text(json.dumps({"all": {"hosts": {host: {**here, **own} for host, own in hosts.items()}}}))
        default = {"uri": hypervisor.uri, **wishes}
        for_all = {f"{role}_{name}": value for name, value in default.items()}
        # Of the least precedence, so that a host's own win.
        (tmp_path / "group_vars").mkdir(exist_ok=True)
        (tmp_path / "group_vars" / "all.json").write_text(json.dumps(for_all))
        book.write_text(json.dumps([{"hosts": "all", "gather_facts": False, **(play or {}), "roles": [f"hypervisor.storage.{role}"]}]))
        argv = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", str(inventory), str(book)]
        env = environment(ANSIBLE_SHOW_CUSTOM_STATS="1")
        done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False, env=env)
        said = done.stdout.replace("\\n", " ")
        assert (done.returncode != 0) == fails and "CUSTOM STATS" in said, done.stdout + done.stderr
        stats = said[said.index("CUSTOM STATS"):]
        return json.loads(stats[stats.index("{"):stats.rindex("}") + 1])

    return run


def test_a_job_of_many_hosts_hands_on_that_one_failed(pool, run_on_hosts):
    """The first host fails, the second does well: the last word must not be the second's alone."""
    make(pool / "web1")
    hosts = {"first": {"grow_volume_name": "nowhere"}, "second": {"grow_volume_name": "web1"}}
    job = run_on_hosts("grow_volume", hosts, pool=pool.name, size="64M")
    assert (job["grow_volume_result"]["failed"], job["grow_volume_result"]["reason"]) == (True, "volume_not_found"), job
    assert {host: result["failed"] for host, result in job["grow_volume_results"].items()} == {"first": True, "second": False}, job


@pytest.fixture
def each_its_own(pool, make_pool):
    """Hosts that have a volume of one name each, and where these are."""
    other = make_pool()
    hosts = {"first": {"delete_volume_pool": pool.name}, "second": {"delete_volume_pool": other.name}}
    return hosts, make(pool / "web1"), make(other / "web1")


def test_volumes_of_one_name_of_which_one_stays(run_on_hosts, each_its_own):
    """Each host has its own: that the one is gone must not hide that the other is not."""
    hosts, goes, stays = each_its_own
    sh("chattr", "+i", stays)
    try:
        job = run_on_hosts("delete_volume", hosts, name="web1")
    finally:
        sh("chattr", "-i", stays)
    told = job["delete_volume_result"]
    assert told["failed"] and (told["deleted"], told["not_deleted"]) == (["web1"], ["web1"]), told
    assert "second: " in told["msg"] and not goes.exists() and stays.exists(), told


def test_a_host_that_drops_out_when_it_is_to_delete(run_on_hosts, each_its_own):
    """It has answered, and then it is gone: the others tell that what it was to delete may be there or not."""
    hosts, goes, stays = each_its_own
    # Where no directory can be made, a host is unreachable.
    hosts["second"]["ansible_remote_tmp"] = "{{ '/proc/nowhere' if __delete_volume_mine | default([]) else '/tmp/.ansible' }}"
    job = run_on_hosts("delete_volume", hosts, name="web1")
    told = job["delete_volume_result"]
    assert (told["failed"], told["deleted"], told["not_deleted"]) == (True, ["web1"], ["web1"]), told
    assert "second: " in told["msg"] and "Whether it has deleted anything is not known" in told["msg"], told
    assert not goes.exists() and stays.exists()


@pytest.fixture
def shared(pool, make_pool, own_hypervisor, tmp_path):
    """Two hypervisors that know one directory as pools of two names, and a file that says how to define a domain on its volume."""
    there = make_pool("there", pool.path, on=own_hypervisor)
    path = make(pool / "web1")
    (tmp_path / "domain.xml").write_text(domain_xml("next-door", disk(path)))
    hosts = {"first": {"delete_volume_pool": pool.name},
             "second": {"delete_volume_pool": there.name, "delete_volume_uri": own_hypervisor.uri}}
    yield hosts, path
    for running in own_hypervisor.conn.listAllDomains():
        running.undefine()
    there.forget()


def test_a_use_that_begins_on_a_host_without_backup_while_another_makes_its_own(run_on_hosts, shared, make_pool, own_hypervisor, tmp_path):
    """What the host without backup has said is as old as the backup took."""
    hosts, path = shared
    backups = make_pool()
    define = f"virsh -q -c {own_hypervisor.uri} define {tmp_path}/domain.xml >&2; echo {backups.name}"
    hosts["first"] |= {
        "delete_volume_backup": True,
        "delete_volume_backup_pool":
            f"{{{{ lookup('ansible.builtin.pipe', '{define}') if __delete_volume_backing_up | default(false) else '{backups.name}' }}}}",
        # Not what the role wants saved: its own word wins.
        "backup_volume_name": "another", "backup_volume_pool": "nowhere",
    }
    told = run_on_hosts("delete_volume", hosts, name="web1")["delete_volume_result"]
    assert (told["reason"], told["deleted"], told["not_deleted"]) == ("volume_in_use", [], ["web1"]), told
    assert "on host second, domain next-door uses" in told["msg"], told
    (saved,) = backups.path.iterdir()
    assert [saved.name] == told["backups"] and digest(saved) == digest(path)


def test_nothing_goes_of_which_this_run_has_no_backup(run_on_hosts, shared, make_pool):
    """When the answers change during the backup, a host may have to delete what it has not saved."""
    hosts, path = shared
    backups = make_pool()
    for host in hosts.values():
        host |= {"delete_volume_backup": True, "delete_volume_backup_pool": backups.name}
    mine = hosts["first"]["delete_volume_pool"]
    hosts["first"]["delete_volume_pool"] = f"{{{{ 'elsewhere' if __delete_volume_saved | default([]) else '{mine}' }}}}"
    told = run_on_hosts("delete_volume", hosts, name="web1")["delete_volume_results"]["second"]
    assert told["failed"] and "No backup was made of web1" in told["msg"] and told["deleted"] == [], told
    assert path.exists()


def test_a_pool_that_the_play_has_for_all_its_looks(run_on_hosts, shared, make_pool, own_hypervisor, tmp_path):
    """module_defaults: the hosts are asked about all their pools all the same."""
    hosts, path = shared
    own_hypervisor.conn.defineXML((tmp_path / "domain.xml").read_text())
    elsewhere = make_pool("elsewhere")
    play = {"module_defaults": {"hypervisor.storage.volume_info": {"pool": [elsewhere.name]}}}
    for host in hosts.values():
        host["delete_volume_pool"] = hosts["first"]["delete_volume_pool"]
    told = run_on_hosts("delete_volume", hosts, play=play, name="web1")["delete_volume_result"]
    assert told["reason"] == "volume_in_use" and "on host second, domain next-door uses" in told["msg"], told
    assert path.exists()
