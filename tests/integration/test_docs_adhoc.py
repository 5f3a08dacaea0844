# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The documented one-liners, from the top of the page to its bottom, as a person on call types them."""

from __future__ import annotations

import re
import shlex

import pytest
from support.hypervisors import disk
from support.images import MIB, make, take_snapshot, write
from support.runs import REPO, run_adhoc

PAGE = REPO / "docs" / "docsite" / "rst" / "adhoc.rst"


def documented():
    """(line, the reason it is refused for, if it is), from the page's blocks of shell code."""
    refused = ""
    for block in re.findall(r"\.\. code-block:: shell\n\n((?:   .*\n|\n)+)", PAGE.read_text()):
        for line in filter(None, map(str.strip, block.splitlines())):
            if line.startswith("#"):
                refused = line.removeprefix("# refused: ")
            else:
                yield line, refused
                refused = ""


@pytest.fixture
def as_documented(make_pool, domain):
    """Three pools, a template, and a running domain whose disk has a snapshot: what the lines speak of."""
    default, templates, _backup = (make_pool(name) for name in ("default", "templates", "backup"))
    make(templates / "debian-12.qcow2")
    make(default / "web1")
    take_snapshot(default / "web1", "before-upgrade")
    make(default / "old1", size=8 * MIB)
    write(default / "old1", 0, 4 * MIB, 2 * MIB)  # zeros to give back
    write(default / "old1", 7, 6 * MIB, 2 * MIB)  # and something to compress
    for pool in (default, templates):
        pool.refresh()
    domain(disk(default / "web1"))
    return default


def test_every_line(hypervisor, as_documented):
    modules, pattern = set(), "ansible hypervisors -b "
    for line, refused in documented():
        assert line.startswith(pattern), line
        words = shlex.split(line.removeprefix(pattern))
        module = words.pop(words.index("-m") + 1).removeprefix("hypervisor.storage.")
        words.remove("-m")
        arguments = words.pop(words.index("-a") + 1) if "-a" in words else ""
        options = [word for word in words if word != "-a"]
        result = run_adhoc(module, arguments, *options, LIBVIRT_DEFAULT_URI=hypervisor.uri)
        assert result.get("reason", "") == refused, (line, result)
        assert ("volumes" in result) != bool(refused), (line, result)
        changes = module != "volume_info" and not refused
        assert result.get("changed", False) == changes, (line, result)
        modules.add(module)
    assert modules == {path.stem for path in (REPO / "plugins" / "modules").glob("volume*.py")}
