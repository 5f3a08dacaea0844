# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How much is done for a task, in numbers that no busy machine can change: what the benchmarks' marks rest on."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter

import pytest
from support.counting import Counts, count
from support.hypervisors import disk, domain_xml
from support.images import blank, make, overlay
from support.runs import environment, run_adhoc

FEW, MANY = 10, 60
MIB = 1 << 20
HEAD = 4096  # bytes that are read of an image


def fill(pool, number, prefix="v"):
    image = blank(pool / f"{prefix}0").read_bytes()
    for n in range(1, number):
        (pool / f"{prefix}{n}").write_bytes(image)
    return pool.refresh()


@pytest.fixture
def counted(hypervisor):
    def run(module, **params) -> Counts:
        return count(module, {"uri": hypervisor.uri, **params}, environment())

    return run


def growth(small, large):
    """By which libvirt's calls differ."""
    names = {*small.calls, *large.calls}
    return {name: more for name in names if (more := large.calls.get(name, 0) - small.calls.get(name, 0))}


@pytest.mark.parametrize("module, params", [
    ("volume", {"size": "1M"}),
    ("volume_resize", {"size": "1M"}),
    ("volume_info", {}),
])
def test_nothing_to_do(counted, make_pool, module, params):
    """One connection, a handful of questions, no process, no refresh, no sync; each further volume is one file's head at most."""

    def look(pool):
        where = [pool.name] if module == "volume_info" else pool.name
        return pool, counted(module, name="v1", pool=where, **params)

    few, small = look(fill(make_pool(), FEW))
    many, large = look(fill(make_pool(), MANY))
    for found in (small, large):
        assert found.result["changed"] is False and [v["name"] for v in found.result["volumes"]] == ["v1"]
        assert (found.processes, found.synced) == (0, 0)
        assert sum(number for name, number in found.calls.items() if "Open" in name) == 1
        assert not [name for name in found.calls if "Refresh" in name]
        assert found.calls_in_all <= 16, found.calls
    # The second look goes over both pools: dependents may be in any.
    assert growth(small, large).keys() <= {"virStoragePoolGetXMLDesc"}
    assert large.opened_in(many.path) <= MANY + 2 and large.opened_in(few.path) <= FEW
    assert large.read - small.read <= MANY * HEAD


WATCH = """
import gc, json, runpy, sys
compiled, collected = [], []
def name_of(path):
    return str(path).rpartition("/")[2] if "/plugins/module_utils/_" in str(path) else ""
sys.addaudithook(lambda event, about: compiled.append(name_of(about[1])) if event == "compile" else None)
gc.callbacks.append(lambda phase, _about: collected.append(compiled[-1] if compiled else ""))
try:
    runpy.run_path(sys.argv.pop(1), run_name="__main__")
finally:
    left = [gc.isenabled(), len(gc.get_objects()), gc.get_freeze_count()]
    print(json.dumps([compiled, collected, left]), file=sys.stderr)
"""


@pytest.fixture
def payload(hypervisor, pool, tmp_path):
    """What Ansible sends for a task that finds nothing to do: a program with an archive in it."""
    blank(pool / "v")
    sent = dict(ANSIBLE_KEEP_REMOTE_FILES="1", ANSIBLE_REMOTE_TEMP=str(tmp_path))
    line = f"uri={hypervisor.uri} pool={pool.name} name=v size=1M"
    assert run_adhoc("volume", line, **sent)["changed"] is False
    (found,) = tmp_path.rglob("AnsiballZ_volume.py")
    return found


def run_payload(payload, code):
    done = subprocess.run([sys.executable, "-c", code, payload], capture_output=True, text=True, timeout=60, check=True, cwd="/")
    assert json.loads(done.stdout)["volume"]["name"] == "v"
    return done.stderr


@pytest.fixture
def watched(payload):
    """Files compiled, files being imported when Python collected garbage, and what is left at the end to be looked through for it."""
    return json.loads(run_payload(payload, WATCH))


def test_each_file_that_ansible_sends_is_compiled_once(watched):
    """Python alone would compile each file twice. All of them bear their names."""
    ours = Counter(name for name in watched[0] if name)
    assert len(ours) > 15 and {"_inventory.py", "_libvirt.py"} <= set(ours)
    assert {name: times for name, times in ours.items() if times > 1}.keys() <= {"__init__.py", "_process.py", "_args.py"}


def test_garbage_is_not_looked_for_where_there_is_none(watched):
    """Neither among what imports make, nor at the end of the process."""
    compiled, collected, (enabled, to_look_through, frozen) = watched
    assert "" in collected, "Python collects before our files are imported"
    assert set(collected) - {""} <= {"__init__.py", "_process.py", "_args.py", compiled[-1]}, "what follows the last file is the work"
    assert not enabled and to_look_through < 1000 < frozen


@pytest.mark.parametrize("lack", [
    "import threading\ndef fail(self): raise RuntimeError(\"can't start new thread\")\nthreading.Thread.start = fail",
    "sys.modules['ctypes'] = None",
], ids=["threads", "ctypes"])
def test_what_only_makes_it_faster_may_be_missing(payload, lack):
    assert run_payload(payload, f"import runpy, sys\n{lack}\nrunpy.run_path(sys.argv.pop(1), run_name='__main__')") == ""


def test_many_overlays_at_once(counted, pool):
    """However many are made: libvirt is told once, and one process made the image that is written for each."""
    blank(pool / "template")
    pool.refresh()
    made = {n: counted("volume", pool=pool.name, template="template", name=[f"n{n}-{i}" for i in range(n)]) for n in (2, FEW, MANY)}
    for number, found in made.items():
        assert found.result["changed"] and len(found.result["volumes"]) == number
        assert found.processes == made[2].processes <= 2
        assert found.calls.get("virStoragePoolRefresh") == 1
        assert found.synced <= 2 * number + 1  # its data and its name
    per_name = {name: more / (MANY - FEW) for name, more in growth(made[FEW], made[MANY]).items()}
    assert sum(per_name.values()) <= 1, per_name


def test_many_empty_volumes_at_once(counted, pool):
    few, many = (counted("volume", pool=pool.name, size="1M", name=[f"n{n}-{i}" for i in range(n)]) for n in (FEW, MANY))
    assert few.processes == many.processes <= 2
    assert few.calls.get("virStoragePoolRefresh") == many.calls.get("virStoragePoolRefresh") == 1


@pytest.mark.parametrize("wish", [{"size": "1M"}, {"template": "template"}, {"state": "absent"}], ids=str)
def test_names_share_one_connection_refresh_and_domain_map(counted, pool, domain, wish):
    """However many names: each domain is read as often as for two of them, and the pool refreshed once."""
    blank(pool / "template")
    for number in range(3):
        domain(disk(blank(pool / f"used{number}")), running=False)
    names = {number: [f"n{number}-{i}" for i in range(number)] for number in (2, FEW)}
    if "state" in wish:
        fill(pool, 2, "n2-"), fill(pool, FEW, f"n{FEW}-")
    pool.refresh()
    small, large = (counted("volume", pool=pool.name, name=names[number], **wish) for number in (2, FEW))
    for found in (small, large):
        assert found.result["changed"] and len(found.result["actions"]) > 1
        assert sum(number for name, number in found.calls.items() if "Open" in name) == 1
        assert found.calls.get("virStoragePoolRefresh", 0) == ("state" not in wish), found.calls
        assert found.calls["virDomainGetXMLDesc"] <= 3 * 3  # before, under the locks, and for the result
    assert {name for name in growth(small, large) if "Domain" in name} == set()


def test_list_of_many(counted, hypervisor, make_pool, domain):
    """No call of libvirt for a volume, one head of a file each, and no more for each further domain than its documents."""
    pool = fill(make_pool(), FEW)
    overlay(pool / "top", pool / "v0")
    pool.refresh()
    for number in range(3):
        domain(disk(pool / f"v{number}"), running=False)
    small = counted("volume_info", pool=[pool.name])
    image = (pool / "v0").read_bytes()
    for number in range(FEW, MANY):
        (pool / f"v{number}").write_bytes(image)
    pool.refresh()
    large = counted("volume_info", pool=[pool.name])
    assert len(large.result["volumes"]) == MANY + 1 and len(small.result["volumes"]) == FEW + 1
    assert growth(small, large) == {}
    assert (large.processes, large.synced) == (0, 0)
    assert large.opened_in(pool.path) - small.opened_in(pool.path) == MANY - FEW
    assert large.read - small.read <= (MANY - FEW) * HEAD
    for number in range(3):
        hypervisor.conn.defineXML(domain_xml(f"more{number}", disk(pool / f"v{number}")))
    more = counted("volume_info", pool=[pool.name])
    assert sum(growth(large, more).values()) <= 3 * 6, growth(large, more)


@pytest.mark.parametrize("fmt, tools", [("raw", 2), ("qcow2", 3)])
def test_copy(counted, pool, fmt, tools):
    """A copy is one convert, beside measuring what it takes; its data and its name are synced."""
    make(pool / "a", fmt)
    pool.refresh()
    found = counted("volume_clone", pool=pool.name, source="a", name="b")
    assert found.result["changed"]
    assert found.processes <= tools
    assert found.synced <= 3
    assert found.calls.get("virStoragePoolRefresh") == 1
    assert found.calls_in_all <= 24, found.calls


def test_reservation(counted, pool):
    """Reserving space starts no tool and writes nothing."""
    found = counted("volume", pool=pool.name, name="a", format="raw", size="64M")
    assert found.result["changed"] and found.processes == 0 and found.synced <= 2


@pytest.mark.parametrize("compression, least, most", [("none", 64, 65), ("zstd", 0, 18)])
def test_compressing_reads_samples_where_they_do(counted, pool, compression, least, most):
    """64 MiB of text and zeros by turns: to know that a rewrite is worth it takes no more than 256 pieces of 64 KiB."""
    text = random.Random(1).randbytes(MIB // 2).hex().encode()
    path = blank(pool / "a", 64 * MIB)
    with path.with_suffix(".words").open("wb") as file:
        file.writelines([text, bytes(MIB)] * 32)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", f"write -q -s {file.name} 0 64M", path], check=True)
    os.unlink(file.name)
    pool.refresh()
    found = counted("volume_compress", pool=pool.name, name="a", method="zeros", compression=compression)
    assert found.result["changed"]
    assert least * MIB <= found.read <= most * MIB
    gained = (32 if compression == "none" else 48) * MIB
    assert found.result["reclaimed"] == pytest.approx(gained, rel=0.1)
