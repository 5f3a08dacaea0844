# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Every role's result in check mode is that of the real run, also where the real run fails, and nothing is touched for it; and what
the README tells of the result is what it has."""

from __future__ import annotations

import json
import os
import re
import sys

import pytest
from support.hypervisors import Pool, disk, domain_xml
from support.images import MIB, make, overlay, take_snapshot, write
from support.runs import REPO, environment, look_at, run_play

#: What a wish is for, role, why it is refused if it is, variables. {place} is a directory outside of all pools.
WISHES = [
    ("a pool", "prepare_hypervisor", "", {
        "install": False, "pool": "made", "pool_path": "{place}/made/", "python": sys.executable}),
    ("a template", "provision_from_template", "", {"template": "golden", "image": "{place}/image"}),
    ("volumes", "provision_from_template", "", {"template": "debian", "volumes": "web1,web2", "size": "8M"}),
    ("volumes that are too small", "provision_from_template", "shrink_refused", {
        "template": "debian", "volumes": [{"name": "web3"}, {"name": "web4", "size": "1M"}]}),
    ("a snapshot", "restore_from_snapshot", "", {"volume": "db1", "snapshot": "monday", "name": "db2", "digest": True}),
    ("no such snapshot", "restore_from_snapshot", "snapshot_not_found", {"volume": "db1", "snapshot": "tuesday", "name": "db3"}),
    ("more room", "grow_volume", "", {"name": "db1", "size": "16M"}),
    ("less room", "grow_volume", "shrink_refused", {"name": "old1", "size": "1M"}),
    ("backups", "backup_volume", "", {"name": "old1,live", "keep": 2}),
    ("a backup of what runs", "backup_volume", "volume_in_use", {"name": "old2,live", "consistency": "offline"}),
    ("a new place, offline, for what runs", "migrate_volume", "volume_in_use", {
        "name": "live", "target_pool": "fast", "consistency": "offline", "replace": True}),
    ("a new place for what runs", "migrate_volume", "", {"name": "live", "target_pool": "fast", "replace": True}),
    ("a new place for an overlay and its base", "migrate_volume", "", {
        "name": "top,base", "target_pool": "fast", "must_delete": True}),
    ("an environment", "clone_environment", "", {"prefix": "test-", "pattern": "*d1", "record_dir": "{place}/records"}),
    ("no environment over others", "clone_environment", "failed", {"prefix": "ol", "name": "d1", "record_dir": "{place}/records"}),
    ("no environment any more", "clone_environment", "", {"prefix": "gone-", "state": "absent", "record_dir": "{place}/records"}),
    ("space", "reclaim_space", "", {"pools": "default", "pattern": "zeros*", "method": "zeros"}),
    ("space of no pool", "reclaim_space", "pool_not_found", {"pools": "nowhere"}),
    ("no volumes any more", "delete_volume", "", {"name": "top2,base2,nope", "backup": True}),
    ("one that is in use", "delete_volume", "volume_in_use", {"name": "zeros2,live"}),
]
#: What only the real run can know.
UNFORESEEN = {"allocation", "consistency", "sha256", "source_untouched"}


@pytest.fixture(scope="module")
def told(hypervisor, place):
    """Each wish's result, in check mode and for real.

    By the word of the play, which is the one that counts, against that of the command line; with this one alone the roles run in
    their molecule scenarios.
    """
    outside = place / "foretold"
    outside.mkdir()
    pools = default, fast, backup = [Pool(hypervisor, name, outside / name) for name in ("default", "fast", "backup")]
    for name in "debian db1 d1 old1 old2 live base base2 zeros1 zeros2 gone-a".split():
        make(default / name, seed=name)
    make(outside / "image")
    for name in ("top", "top2"):
        overlay(default / name, default / name.replace("top", "base"))
    for name in ("zeros1", "zeros2"):
        write(default / name, 0, 2 * MIB, MIB)
    make(fast / "live", seed="something else")
    for date in ("20240101", "20240102", "20240103"):
        make(backup / f"old1-{date}T000000Z", seed=date)
    take_snapshot(default / "db1", "monday")
    (outside / "records").mkdir()
    (outside / "records" / "gone-.json").write_text(json.dumps([
        {"pool": "default", "name": "gone-a", "source": "a", "source_pool": "default", "identity": ""}]))
    for pool in pools:
        pool.refresh()
    live = hypervisor.conn.defineXML(domain_xml("live", disk(default / "live")))
    live.create()

    tasks = []
    for number, (_what, role, _reason, wishes) in enumerate(WISHES):
        variables = json.loads(json.dumps({f"{role}_{name}": value for name, value in wishes.items()}).replace("{place}", str(outside)))
        tasks += [
            {"block": [{"ansible.builtin.include_role": {"name": f"hypervisor.storage.{role}"}, "vars": variables}],
             "rescue": [{"ansible.builtin.debug": {"msg": "It failed."}}]},
            {"ansible.builtin.debug": {"msg": f"{{{{ {role}_result }}}}"}, "register": f"told{number}"}]

    def run(*arguments, check_mode):
        collections = os.environ.get("ANSIBLE_COLLECTIONS_PATH") or environment()["ANSIBLE_COLLECTIONS_PATH"]
        results = run_play(
            tasks, arguments=arguments, timeout=900, ANSIBLE_COLLECTIONS_PATH=collections, LIBVIRT_DEFAULT_URI=hypervisor.uri,
            play={"check_mode": check_mode, "vars": {
                "ansible_python_interpreter": sys.executable, "migrate_volume_record_dir": str(outside / "migrations")}})
        return [results[f"told{number}"]["msg"] for number in range(len(WISHES))]

    before = look_at([outside])
    foretold = run(check_mode=True)
    assert look_at([outside]) == before
    real = run("--check", check_mode=False)
    assert (outside / "records" / "test-.json").exists(), "what was copied can't be torn down by its record"
    yield foretold, real

    live.destroy()
    live.undefine()
    made = hypervisor.conn.storagePoolLookupByName("made")
    made.destroy()
    made.undefine()
    for pool in pools:
        pool.forget()


def foreseeable(value, also):
    """Without what only the real run can know, and without the moment."""
    if isinstance(value, dict):
        return {key: foreseeable(entry, also) for key, entry in value.items() if key not in UNFORESEEN | also}
    if isinstance(value, list):
        return [foreseeable(entry, also) for entry in value]
    return re.sub(r"\b\d{8}T\d{6}Z", "DATE", value) if isinstance(value, str) else value


EACH = pytest.mark.parametrize("number", range(len(WISHES)), ids=[f"{role}-{what}".replace(" ", "_") for what, role, *_more in WISHES])


@EACH
def test_result_was_foretold(told, number):
    what, *_more = WISHES[number]
    # Of a pool that is not there yet only the definition is known, of a template that is not there yet only the name.
    also = {"a pool": {"uuid", "capacity", "available"}, "a template": {"volumes", "actions"}}.get(what, set())
    foretold, real = (foreseeable(results[number], also) for results in told)
    assert foretold == real


@EACH
def test_result_is_as_wished_and_documented(told, number):
    _what, role, reason, _wishes = WISHES[number]
    _foretold, real = (results[number] for results in told)
    assert (real["failed"], real.get("reason", "")) == (bool(reason), reason)
    readme = (REPO / "roles" / role / "README.md").read_text(encoding="utf-8")
    section = readme.split("## Result\n\n")[1].split("\n\n")[0]
    assert [key for key in real if f"`{key}`" not in section] == []
