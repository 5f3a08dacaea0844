# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Through the real Ansible: plays, defaults by group, check mode, async, and ad-hoc lines as people type them."""

from __future__ import annotations

import pytest
from support.images import MIB, blank, digest, make
from support.runs import run_adhoc, run_play


@pytest.fixture
def defaults(hypervisor, pool):
    """A play that says uri and pool once, for the whole group of modules."""
    return {"module_defaults": {"group/hypervisor.storage.storage": {"uri": hypervisor.uri, "pool": pool.name}}}


def test_a_play_with_defaults_of_the_group(pool, defaults):
    make(pool / "template")
    results = run_play(
        [
            {"name": "Blank", "hypervisor.storage.volume": {"name": "blank", "size": "1M"}, "register": "blank"},
            {
                "name": "Copies",
                "hypervisor.storage.volume": {"name": ["a", "b"], "template": "template"},
                "register": "copies",
            },
            {
                "name": "Again",
                "hypervisor.storage.volume": {"name": ["a", "b"], "template": "template"},
                "register": "again",
            },
            {"name": "List", "hypervisor.storage.volume_info": {}, "register": "found"},
            {
                "name": "Refused",
                "hypervisor.storage.volume": {"name": "template", "state": "absent"},
                "register": "refused",
                "ignore_errors": True,
            },
            {
                "name": "Delete",
                "hypervisor.storage.volume": {
                    "name": "{{ found.volumes | map(attribute='name') | difference(['template']) }}",
                    "state": "absent",
                },
                "register": "deleted",
            },
        ],
        play=defaults,
    )
    assert all(results[step]["changed"] for step in ("blank", "copies", "deleted"))
    assert not any(results[step]["changed"] for step in ("again", "found"))
    assert [v["name"] for v in results["found"]["volumes"]] == ["a", "b", "blank", "template"]
    assert results["refused"]["failed"] and results["refused"]["reason"] == "volume_has_dependents"
    assert [p.name for p in pool.path.iterdir()] == ["template"]


def test_check_mode_and_diff_of_a_play(pool, defaults):
    results = run_play([
        {"name": "Blank", "hypervisor.storage.volume": {"name": "a", "size": "1M"}, "register": "blank"},
        {"name": "List", "hypervisor.storage.volume_info": {}, "register": "found"},
    ], play=defaults, arguments=["--check", "--diff"])
    assert results["blank"]["changed"] and results["blank"]["diff"] and results["blank"]["actions"]
    assert results["found"]["volumes"] == [] and list(pool.path.iterdir()) == []


def test_async(pool, defaults):
    make(pool / "template")
    results = run_play(
        [
            {
                "name": "Polled",
                "hypervisor.storage.volume": {"name": "a", "template": "template", "clone_mode": "full"},
                "async": 60,
                "poll": 1,
                "register": "polled",
            },
            {
                "name": "Started",
                "hypervisor.storage.volume": {"name": "b", "size": "1M"},
                "async": 60,
                "poll": 0,
                "register": "job",
            },
            {
                "name": "Waited for",
                "ansible.builtin.async_status": {"jid": "{{ job.ansible_job_id }}"},
                "register": "waited",
                "until": "waited.finished",
                "retries": 30,
                "delay": 1,
            },
        ],
        play=defaults,
    )
    assert results["polled"]["changed"] and results["polled"]["volume"]["name"] == "a"
    assert results["waited"]["changed"] and results["waited"]["volume"]["capacity"] == MIB
    assert digest(pool / "a") == digest(pool / "template")


def test_values_as_a_survey_sends_them(pool, defaults):
    """A survey knows text only."""
    results = run_play(
        [
            {
                "name": "Text",
                "hypervisor.storage.volume": {
                    "name": "a",
                    "size": "1048576",
                    "overcommit": "yes",
                    "mode": "0600",
                    "cluster_size": "65536",
                    "owner": "0",
                },
                "register": "made",
            }
        ],
        play=defaults,
    )
    assert results["made"]["volume"]["capacity"] == MIB


def test_mode_as_yaml_reads_it(pool, defaults):
    run_play(
        [
            {
                "name": "Octal",
                "hypervisor.storage.volume": {"name": "a", "size": 1048576, "mode": 0o640},
                "register": "made",
            }
        ],
        play=defaults,
    )
    assert oct((pool / "a").stat().st_mode & 0o777) == "0o640"


def test_adhoc_with_names_separated_by_commas(hypervisor, pool):
    line = f"uri={hypervisor.uri} pool={pool.name} name=a,b,c"
    assert run_adhoc("volume", f"{line} size=1M")["changed"]
    assert not run_adhoc("volume", f"{line} size=1M")["changed"]
    assert {p.name for p in pool.path.iterdir()} == {"a", "b", "c"}
    assert run_adhoc("volume", f"{line} state=absent", "--check")["changed"]
    assert run_adhoc("volume", f"{line} state=absent")["changed"]
    assert list(pool.path.iterdir()) == []


def test_adhoc_info(hypervisor, pool):
    blank(pool / "web1"), blank(pool / "db1")
    result = run_adhoc("volume_info", f"pattern=web* pool={pool.name}", LIBVIRT_DEFAULT_URI=hypervisor.uri)
    assert [v["name"] for v in result["volumes"]] == ["web1"]


def test_adhoc_failure_says_why(hypervisor):
    result = run_adhoc("volume", f"uri={hypervisor.uri} pool=nowhere name=a size=1M")
    assert result["reason"] == "pool_not_found" and "nowhere" in result["msg"]
