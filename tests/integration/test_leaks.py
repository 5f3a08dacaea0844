# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Nothing piles up over 200 operations, failed ones among them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from support.hypervisors import disk
from support.images import MIB, make, wait_until
from support.inprocess import server
from support.runs import environment

ROUND = [
    ("volume", {"name": "x", "size": "1M"}),
    ("volume", {"name": "x", "size": "2M"}),
    ("volume", {"name": "x", "size": "1M", "format": "raw"}),  # fails
    ("volume_resize", {"name": "x", "size": "3M"}),
    ("volume_resize", {"name": "x", "size": "1K"}),  # fails
    ("volume_clone", {"source": "a", "name": "y"}),
    ("volume_clone", {"source": "missing", "name": "z"}),  # fails
    ("volume_clone", {"source": "live", "name": "z"}),
    ("volume_compress", {"name": "y", "method": "zeros", "min_reclaim": "64K"}),
    ("volume_compress", {"name": "y", "method": "zeros", "compression": "zstd", "min_reclaim": "64K"}),
    ("volume", {"name": "over", "template": "a"}),
    ("volume", {"name": "a", "state": "absent"}),  # fails
    ("volume", {"name": "live", "state": "absent", "wipe": True}),  # fails
    ("volume_info", {}),
    ("volume", {"name": ["over", "x", "y", "z"], "state": "absent", "wipe": True}),
]
FAILURES = 5


def started_with(mark):
    """Processes that have this text in their environment."""
    found = 0
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            found += mark.encode() in (entry / "environ").read_bytes()
    return found


def loop_devices():
    return {path.name for path in Path("/sys/block").glob("loop*") if (path / "loop" / "backing_file").exists()}


def open_files(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_two_hundred_operations(hypervisor, pool, domain, place):
    make(pool / "a", size=MIB)
    make(pool / "live", size=MIB)
    domain(disk(pool / "live"))
    daemon = int((hypervisor.root / "libvirtd.pid").read_text())
    temporary = place / "temporary"
    temporary.mkdir()
    loops = loop_devices()
    with server("same", environment(TMPDIR=str(temporary))) as modules:
        seen = []
        for number in range(14):
            failed = 0
            for module, wish in ROUND:
                where = [pool.name] if module == "volume_info" else pool.name
                answer = modules.run(module, uri=hypervisor.uri, pool=where, **wish)
                failed += bool(answer["result"].get("failed"))
            assert failed == FAILURES, (number, failed)
            seen.append((answer["descriptors"], answer["threads"], os.listdir(temporary), open_files(daemon)))
            assert sorted(os.listdir(pool.path)) == ["a", "live"]
        wait_until(lambda: started_with(str(temporary)) == 1)
    first, last = seen[1], seen[-1]
    assert len(last[0]) == len(first[0]), (first[0], last[0])
    assert last[1] == first[1] == 1
    assert not last[2]
    assert loop_devices() == loops
    assert last[3] <= first[3] + 2, "the daemon still has connections or files of ours open"
