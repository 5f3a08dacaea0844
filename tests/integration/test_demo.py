# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The tour of the README: what it shows, in this order, and what it leaves."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.images import MIB
from support.runs import environment, run_module

#: Each is shown in plain words, one after the other.
SHOWN = [
    "create qcow2 volume 'web1' of 536870912 bytes (512 MiB) in pool 'storage-demo', backed by template 'golden'",
    "create qcow2 volume 'web2' of 536870912 bytes (512 MiB) in pool 'storage-demo', backed by template 'golden'",
    "create qcow2 volume 'db1' of 268435456 bytes (256 MiB) in pool 'storage-demo' as a full copy of template 'golden'",
    "create blank qcow2 volume 'data' of 2147483648 bytes (2 GiB)",
    "create blank raw volume 'swap' of 67108864 bytes (64 MiB) in pool 'storage-demo', preallocation falloc",
    "The second run of all 4 tasks changed nothing.",
    "The restored volume reads exactly as the database did before the update",
    "on top of golden, used by the domain storage-demo-web",
    "Cannot delete volume 'golden' of pool 'storage-demo': storage-demo/web1, storage-demo/web2 need it as a backing or data file.",
    "Cannot delete volume 'web1' of pool 'storage-demo': it is attached to domain 'storage-demo-web' (running, disk vda).",
    "Deleted were 4 unused volumes; still there: db1-restored, golden, web1.",
    "web1 has 768 MiB now, web1-copy stands on its own",
]


def take_tour(hypervisor, directory, keep):
    settings = {"demo_uri": hypervisor.uri, "demo_dir": str(directory), "demo_keep": keep, "ansible_python_interpreter": sys.executable}
    playbook = str(Path(sys.executable).parent / "ansible-playbook")
    argv = [playbook, "hypervisor.storage.demo", "-i", "localhost,", "-e", json.dumps(settings)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False, env=environment())
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("keep", [False, True])
def test_tour(own_hypervisor, tmp_path, keep):
    said = take_tour(own_hypervisor, tmp_path, keep)
    places = [said.find(text) for text in SHOWN]
    assert -1 not in places, SHOWN[places.index(-1)]
    assert places == sorted(places)
    assert re.search(r"failed=0 +skipped=\d+ +rescued=0 +ignored=0", said)
    conn = own_hypervisor.conn
    if keep:
        assert "virsh -c" in said and own_hypervisor.uri in said
        found = {v["name"]: v for v in run_module("volume_info", {"uri": own_hypervisor.uri})["volumes"]}
        assert sorted(found) == ["db1-restored", "golden", "web1", "web1-copy"]
        assert found["web1"]["capacity"] == 768 * MIB and found["web1"]["attachments"][0]["live"]
    else:
        assert conn.listAllStoragePools() == [] and conn.listAllDomains() == []
        assert list(tmp_path.iterdir()) == []
