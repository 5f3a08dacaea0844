# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A pool of 2,000 volumes and a host of 100 domains: the answers stay right."""

from __future__ import annotations

import time

import pytest
from support.hypervisors import disk, domain_xml
from support.images import MIB, blank, overlay, sh
from support.runs import run_module

VOLUMES, DOMAINS = 2000, 100


@pytest.fixture
def crowd(own_hypervisor, make_pool):
    pool = make_pool("crowd", on=own_hypervisor)
    image = blank(pool / "v0000", options="cluster_size=512").read_bytes()
    for number in range(1, VOLUMES - 1):
        (pool / f"v{number:04}").write_bytes(image)
    overlay(pool / "top", pool / "v0000")
    pool.refresh()
    for number in range(DOMAINS):
        source = (pool.name, f"v{number:04}") if number % 2 else pool / f"v{number:04}"
        own_hypervisor.conn.defineXML(
            domain_xml(f"vm{number}", disk(source), disk(pool / "v1500", target="vdb", readonly=True))
        )
    return pool


def test_every_volume_and_every_attachment(own_hypervisor, crowd):
    result = run_module("volume_info", {"uri": own_hypervisor.uri})
    found = {v["name"]: v for v in result["volumes"]}
    assert len(result["volumes"]) == len(found) == VOLUMES
    assert list(found) == sorted(found)
    for number in range(DOMAINS):
        owners = {a["domain"] for a in found[f"v{number:04}"]["attachments"]}
        assert owners == {f"vm{number}"}
    assert {a["domain"] for a in found["v1500"]["attachments"]} == {f"vm{n}" for n in range(DOMAINS)}
    assert sum(v["status"] == "attached" for v in found.values()) == DOMAINS + 1
    assert [d["name"] for d in found["v0000"]["dependents"]] == ["top"]
    assert all(v["capacity"] == MIB and v["cluster_size"] == 512 for n, v in found.items() if n != "top")

    assert seconds_to_list(own_hypervisor) < 4 * seconds_of(["virsh", "-c", own_hypervisor.uri, "vol-list", "--details", crowd.name])

    params = {"uri": own_hypervisor.uri, "pool": crowd.name}
    made = run_module("volume", {**params, "name": ["new1", "new2"], "size": "1M"})
    assert made["changed"] and len(made["volumes"]) == 2
    refused = run_module("volume", {**params, "name": "v0099", "state": "absent"})
    assert refused["failed"] and [a["domain"] for a in refused["attachments"]] == ["vm99"]
    some = [f"v{n:04}" for n in range(1600, 1700)]
    assert run_module("volume", {**params, "name": some, "state": "absent"})["changed"]
    assert len(list(crowd.path.iterdir())) == VOLUMES + 2 - 100


def seconds_of(argv):
    """The best of three."""
    taken = []
    for _time in range(3):
        began = time.monotonic()
        sh(*argv)
        taken.append(time.monotonic() - began)
    return min(taken)


def seconds_to_list(hypervisor):
    """Of a whole process; what it answers was looked at before."""
    taken = []
    for _time in range(3):
        began = time.monotonic()
        run_module("volume_info", {"uri": hypervisor.uri})
        taken.append(time.monotonic() - began)
    return min(taken)
