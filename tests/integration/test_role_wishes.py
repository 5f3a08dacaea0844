# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A wish that can't be meant is refused before anything is asked of a hypervisor, the message names what is wrong with it, and
the role's result is not the one that an earlier use left."""

from __future__ import annotations

import os

import pytest
from support.runs import environment, run_play

#: Role, its variables, what the message says. There is no libvirt behind any of it.
WRONG = [
    ("backup_volume", {"name": " , "}, "backup_volume_name must name a volume. Nothing was done."),
    ("backup_volume", {"name": "a", "backup_pool": "default"}, "must be another pool than backup_volume_pool (default). Nothing"),
    ("backup_volume", {"name": "a", "keep": -1}, "backup_volume_keep must be 0 (keep all) or more. Nothing was done."),
    ("backup_volume", {"name": "a", "group": "nobody"}, "backup_volume_group is nobody, which is no group of the inventory."),
    ("clone_environment", {"prefix": "x-"}, "clone_environment_name or clone_environment_pattern must say what to copy."),
    ("clone_environment", {"prefix": "../x", "name": "a"}, "clone_environment_prefix is ../x, but may have letters"),
    ("clone_environment", {"prefix": "x-", "name": "a", "batch": 0, "timeout": 0}, "batch must be 1 or more. clone_environment_timeout"),
    ("delete_volume", {"name": ""}, "delete_volume_name must name a volume. Nothing was done."),
    ("delete_volume", {"name": "a", "backup": True, "backup_pool": "default"}, "must be another pool than delete_volume_pool (default)."),
    ("delete_volume", {"name": "a", "group": "nobody"}, "delete_volume_group is nobody, which is no group of the inventory."),
    ("grow_volume", {"name": "a", "size": "1G", "guest": "web"}, "grow_volume_guest is web, which is no host of the inventory."),
    ("grow_volume", {"name": "a", "size": "1G", "guest_device": "vda"}, "grow_volume_guest_device is vda, but must be a path below /dev."),
    ("grow_volume", {"name": "a", "size": ""}, "grow_volume_size is empty. Nothing was done."),
    ("grow_volume", {"name": "a"}, "missing required arguments: grow_volume_size"),
    ("migrate_volume", {"name": "a", "target_pool": "default"}, "must be another pool than migrate_volume_pool (default). Nothing"),
    ("migrate_volume", {"name": "a", "target_pool": "b", "group": "nobody"}, "migrate_volume_group is nobody, which is no group"),
    ("prepare_hypervisor", {"pool_path": "images"}, "prepare_hypervisor_pool_path is images, but must be an absolute path. Nothing"),
    ("prepare_hypervisor", {"pool_mode": "rwx"}, "prepare_hypervisor_pool_mode is rwx, but must be octal digits in quotes. Nothing"),
    ("provision_from_template", {"template": "t", "image": "/nowhere"}, "image is /nowhere, which is neither a file on the controller nor"),
    ("provision_from_template", {"template": "t", "image": "https://example.com/i"}, "An image from a URL needs provision_from_template"),
    ("provision_from_template", {"template": "t", "image": "/etc/passwd", "checksum": "md5:0"}, "checksum is md5:0, but must be ALGORITHM"),
    ("provision_from_template", {"template": "t", "volumes": "a,a"}, "provision_from_template_volumes names a volume twice. Nothing was"),
    ("provision_from_template", {"template": "t", "volumes": "t"}, "provision_from_template_volumes must not name the template t."),
    ("provision_from_template", {"template": "t", "volumes": "a", "format": "raw"}, "Raw volumes need provision_from_template_clone_mode"),
    ("reclaim_space", {"pools": ","}, "reclaim_space_pools must name a pool. Nothing was done."),
    ("restore_from_snapshot", {"volume": "a", "snapshot": "s", "name": "a"}, "must be that of a new volume: the damaged one is not"),
    ("restore_from_snapshot", {"volume": "a", "snapshot": "", "name": "b"}, "restore_from_snapshot_snapshot is empty. Nothing was done."),
]


@pytest.fixture(scope="module")
def said():
    """What each of the wrong wishes gets to hear, and the role's result then, of one play."""
    tasks = []
    for number, (role, wishes, _message) in enumerate(WRONG):
        variables = {f"{role}_{name}": value for name, value in {**wishes, "uri": "qemu+unix:///system?socket=/nowhere"}.items()}
        result = f"{role}_result"
        tasks += [
            {"ansible.builtin.set_fact": {result: {"failed": False, "changed": True, "reason": "", "msg": "of an earlier use"}}},
            {"block": [{"ansible.builtin.include_role": {"name": f"hypervisor.storage.{role}"}, "vars": variables}],
             "rescue": [{"ansible.builtin.set_fact": {f"heard{number}": "{{ ansible_failed_result.msg }}"}}]},
            {"ansible.builtin.debug": {"msg": f"{{{{ [heard{number} | default(''), {result}] }}}}"}, "register": f"told{number}"}]
    collections = os.environ.get("ANSIBLE_COLLECTIONS_PATH") or environment()["ANSIBLE_COLLECTIONS_PATH"]
    results = run_play(tasks, ANSIBLE_COLLECTIONS_PATH=collections)
    return [results[f"told{number}"]["msg"] for number in range(len(WRONG))]


EACH = pytest.mark.parametrize("number", range(len(WRONG)), ids=[f"{role}-{'-'.join(wishes)}" for role, wishes, _message in WRONG])


@EACH
def test_named_and_nothing_else(said, number):
    _role, _wishes, message = WRONG[number]
    heard, _result = said[number]
    assert message in heard
    assert "\n" not in heard.removeprefix("Validation of arguments failed:\n")


@EACH
def test_result_is_that_of_this_use(said, number):
    _role, _wishes, message = WRONG[number]
    heard, result = said[number]
    if "Validation of arguments" in heard:
        # Ansible itself refuses what the argument specs don't take, before the role begins.
        assert result["msg"] == "of an earlier use"
    else:
        assert message in result["msg"]
        assert (result["failed"], result["changed"], result["reason"]) == (True, False, "failed")
