# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""LVM's and ZFS's own tools: what they are told, and what their answers mean.

LVM's answers are those of lvm2 2.03.16, ZFS's those of OpenZFS 2.1, as their sources print them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest

from ansible_collections.hypervisor.storage.plugins.module_utils import _pool_tools
from ansible_collections.hypervisor.storage.plugins.module_utils._errors import StorageError
from ansible_collections.hypervisor.storage.plugins.module_utils._qemu_img import Completed

MIB = 1 << 20


class Scripted:
    """A runner that answers as told and remembers what was asked."""

    def __init__(self, *answers: str | Completed) -> None:
        self.answers = [answer if isinstance(answer, Completed) else Completed(0, answer, "") for answer in answers]
        self.asked: list[list[str]] = []

    def __call__(self, argv: Sequence[str], pass_fds: Sequence[int], limited: bool) -> Completed:
        self.asked.append([os.path.basename(argv[0]), *argv[1:]])
        return self.answers.pop(0)


@pytest.fixture(autouse=True)
def tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pool_tools, "_find", lambda tool: f"/usr/sbin/{tool}")


def test_steps_of_sizes() -> None:
    runner = Scripted("  4194304\n")
    assert _pool_tools.granularity("logical", "-vg", runner=runner) == 4 * MIB
    assert runner.asked == [
        ["vgs", "--noheadings", "--units", "b", "--nosuffix", "--options", "vg_extent_size", "--", "-vg"]
    ]
    assert _pool_tools.granularity("zfs", "tank", runner=Scripted()) == 128 << 10
    assert _pool_tools.granularity("rbd", "images", runner=Scripted()) == 512


@pytest.mark.parametrize("answer", ["", "4.00m", "-1", "0", "4194304B"])
def test_steps_that_make_no_sense(answer: str) -> None:
    with pytest.raises(StorageError) as refused:
        _pool_tools.granularity("logical", "vg", runner=Scripted(answer))
    assert refused.value.reason == "tool_failed"


def test_growing_a_logical_volume() -> None:
    runner = Scripted("")
    _pool_tools.grow("logical", path="/dev/vg/a", capacity=5 * MIB, runner=runner)
    assert runner.asked == [["lvextend", "--yes", "--size", "5242880b", "--", "/dev/vg/a"]]


def test_growing_a_zvol_by_whole_blocks() -> None:
    runner = Scripted("16384\n", "")
    _pool_tools.grow("zfs", path="/dev/zvol/tank/vm/a", capacity=5 * MIB + 512, runner=runner)
    assert runner.asked == [
        ["zfs", "get", "-H", "-p", "-o", "value", "volblocksize", "tank/vm/a"],
        ["zfs", "set", f"volsize={5 * MIB + 16384}", "tank/vm/a"],
    ]


def test_renaming() -> None:
    runner = Scripted("", "")
    _pool_tools.rename("logical", path="/dev/vg/.hidden", name="a", runner=runner)
    _pool_tools.rename("zfs", path="/dev/zvol/tank/.hidden", name="a", runner=runner)
    assert runner.asked == [
        ["lvrename", "--yes", "--", "vg", ".hidden", "a"],
        ["zfs", "rename", "tank/.hidden", "tank/a"],
    ]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("  Insufficient free space: 25 extents needed, but only 3 available", "insufficient_space"),
        ("cannot set property for 'tank/a': out of space", "insufficient_space"),
        ("  New size given (2 extents) not larger than existing size (4 extents)", "tool_failed"),
        ("  WARNING: noise\n  Failed to find logical volume \"vg/a\"", "tool_failed"),
        ("", "tool_failed"),
    ],
)
@pytest.mark.parametrize("pool_type", ["logical", "zfs"])
def test_growth_that_fails(pool_type: str, said: str, reason: str) -> None:
    runner = Scripted(*(["8192"] if pool_type == "zfs" else []), Completed(5, "", said))
    with pytest.raises(StorageError) as refused:
        _pool_tools.grow(pool_type, path="/dev/vg/a", capacity=MIB, runner=runner)
    assert refused.value.reason == reason
    assert "/dev/vg/a" in refused.value.msg and "noise" not in refused.value.msg


@pytest.mark.parametrize(
    ("pool_type", "said"),
    [
        ("logical", '  Logical Volume "a" already exists in volume group "vg"'),
        ("zfs", "cannot rename 'tank/.hidden': dataset already exists"),
    ],
)
def test_a_name_that_was_taken_meanwhile(pool_type: str, said: str) -> None:
    with pytest.raises(StorageError) as refused:
        _pool_tools.rename(pool_type, path="/dev/vg/.hidden", name="a", runner=Scripted(Completed(5, "", said)))
    assert refused.value.reason == "volume_mismatch"


@pytest.mark.parametrize(("pool_type", "package"), [("logical", "lvm2"), ("zfs", "zfsutils-linux")])
def test_without_the_tool_its_package_is_named(monkeypatch: pytest.MonkeyPatch, pool_type: str, package: str) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(_pool_tools.os, "access", lambda path, mode: False)
    with pytest.raises(StorageError) as refused:
        _pool_tools.grow(pool_type, path="/dev/vg/a", capacity=MIB, runner=Scripted())
    assert refused.value.reason == "tool_missing" and package in refused.value.msg
