# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Disks of a running guest grow: the volume, its last partition, and the file system that the guest stands on, or what carries LVM."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.hypervisors import Pool
from support.images import MIB, sh, wait_until
from support.runs import environment
from support.whole_guest import WholeGuest, make_disk, make_partitioned

BIN = Path(sys.executable).parent


def collections() -> str:
    """Where this checkout is, and the collections that it builds on."""
    return os.environ.get("ANSIBLE_COLLECTIONS_PATH") or environment()["ANSIBLE_COLLECTIONS_PATH"]


@pytest.fixture(scope="module")
def pool(hypervisor, place):
    pool = Pool(hypervisor, "default", place / "default")
    yield pool
    pool.forget()


@pytest.fixture(scope="module")
def guest(hypervisor, place, pool):
    make_disk(pool / "web1", place / "key", 256 * MIB, 254 * MIB)
    make_partitioned(pool / "data1", 64 * MIB, 62 * MIB)
    pool.refresh()
    running = WholeGuest(hypervisor, place / "whole-guest", pool / "web1", place / "key", pool / "data1")
    yield running
    running.stop()


@pytest.fixture(scope="module")
def grow(hypervisor, place, guest):
    """``grow(*arguments)``: the role on the hypervisor, with the guest's host for what is inside; its result,
    and what Ansible said."""
    book, inventory, out = place / "grow.yml", place / "inventory.json", place / "result"
    here = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    inventory.write_text(json.dumps({"all": {"hosts": {"hv1": here, "web1.example.com": guest.ansible()}}}))
    wishes = {"grow_volume_name": "web1", "grow_volume_size": "512M", "grow_volume_guest": "web1.example.com",
              "grow_volume_guest_partition": 1, "grow_volume_uri": hypervisor.uri}
    report = {"ansible.builtin.copy": {"dest": str(out), "content": "{{ grow_volume_result | to_json }}", "mode": "0600"},
              "check_mode": False, "delegate_to": "hv1"}
    book.write_text(json.dumps([{"hosts": "hv1", "gather_facts": False, "vars": wishes,
                                 "roles": ["hypervisor.storage.grow_volume"], "post_tasks": [report]}]))

    def run(*arguments):
        argv = [str(BIN / "ansible-playbook"), "-i", inventory, book, *arguments]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=1200, check=False,
                              env=environment(ANSIBLE_COLLECTIONS_PATH=collections()))
        assert done.returncode == 0, done.stdout + done.stderr + guest.said()[-2000:]
        return {**json.loads(out.read_text()), "said": done.stdout}

    return run


KEYS = ("changed", "grown", "partition_grown", "filesystem_grown", "left")


def test_root_disk_of_a_running_guest(grow, guest, pool):
    guest.wait_for("\nroot ")
    before = guest.last("root")
    assert 0 < before < 254 * 1024

    predicted = grow("--check")
    assert guest.last("root") == before and (pool / "web1").stat().st_size == 256 * MIB

    result = grow()
    assert [result[key] for key in KEYS] == [True, True, True, True, []]
    assert [predicted[key] for key in KEYS] == [result[key] for key in KEYS]
    # What df says in the guest, which went on all the time.
    wait_until(lambda: guest.last("root") > before + 200 * 1024)
    assert guest.said().count("\nready") == 1
    table = json.loads(sh("sfdisk", "--json", pool / "web1"))["partitiontable"]
    assert table["partitions"][0]["size"] * 512 >= 510 * MIB

    again = grow()
    assert [again[key] for key in KEYS] == [False, False, False, False, []]


def test_partition_that_carries_lvm(grow, guest, pool):
    """It grows, and what is next is said; the logical volume is left to who knows what it should be."""
    guest.wait_for('Logical volume "all" created')
    wishes = "-e", json.dumps({"grow_volume_name": "data1", "grow_volume_size": "128M", "grow_volume_guest_device": "/dev/vdb"})
    result = grow(*wishes)
    assert [result[key] for key in KEYS] == [True, True, True, False, ["file system"]]
    assert ("It carries data-all: for LVM, grow the physical volume with community.general.lvg (pvresize) and the logical volume with "
            "community.general.lvol (resizefs).") in result["said"]
    table = json.loads(sh("sfdisk", "--json", pool / "data1"))["partitiontable"]
    assert table["partitions"][0]["size"] * 512 >= 126 * MIB

    again = grow(*wishes)
    assert [again[key] for key in KEYS] == [False, False, False, False, ["file system"]]
    assert "It carries data-all" in again["said"]
