# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Each question to the operating system is refused once: the answer has a reason, nothing is lost, the next run finishes.

A place is met once, whatever work comes by it first: a run of all has been everywhere.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.hypervisor.storage.plugins.module_utils._errors import StorageError
from ansible_collections.hypervisor.storage.tests.faults.works import MIB, WORKS, content_of, lay_out, make_masters, wish_of
from ansible_collections.hypervisor.storage.tests.unit.fake_hypervisor import Hypervisor

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img")

UTILS = "ansible_collections.hypervisor.storage.plugins.module_utils."
FAKE = "ansible_collections.hypervisor.storage.tests.unit.fake_hypervisor"
CALLS = [
    *((os, name) for name in (
        "fchmod", "fchown", "fdatasync", "fstat", "fstatvfs", "fsync", "ftruncate", "getxattr", "link", "listdir", "listxattr", "lseek",
        "lstat", "makedirs", "open", "posix_fallocate", "pread", "pwrite", "readlink", "rename", "scandir", "setxattr", "stat", "statvfs",
        "unlink")),
    (fcntl, "fcntl"), (fcntl, "flock"), (fcntl, "ioctl"), (fcntl, "lockf"), (subprocess, "Popen"),
]  # fmt: skip
REASONS = {error.reason for error in StorageError.__subclasses__()}
Place = tuple[tuple[str, int], ...]


MET: set[Place] = set()


class Refuser:
    """Refuses the first call that comes from a place where none was refused yet."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, met: set[Place]) -> None:
        self.met = met
        self.refused: str | None = None
        self.armed = False
        for module, name in CALLS:
            monkeypatch.setattr(module, name, self._watched(name, getattr(module, name)))

    def arm(self, number: int) -> None:
        self.armed, self.refused, self._errno = True, None, number

    def _watched(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.armed:
                place = self._place()
                if place and place not in self.met:
                    self.met.add(place)
                    self.armed, self.refused = False, f"{name} at {place}"
                    raise OSError(self._errno, os.strerror(self._errno))
            return real(*args, **kwargs)

        return call

    @staticmethod
    def _place() -> Place:
        """The last lines of the collection that lead to a call, if one of them makes it; none for what the fake asks for itself."""
        frame, found = sys._getframe(2), []
        if not frame.f_globals["__name__"].startswith(UTILS):
            return ()
        while frame is not None:
            module = frame.f_globals["__name__"]
            if module == FAKE and frame.f_code.co_name != "run":
                return ()
            if module.startswith(UTILS):
                found.append((module.rpartition(".")[2], frame.f_lineno))
            frame = frame.f_back  # type: ignore[assignment]
        return tuple(found[:3])


@pytest.fixture(scope="module")
def masters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_masters(tmp_path_factory.mktemp("masters"))


@pytest.mark.parametrize("name", WORKS)
def test_refused_once_at_each_place(
    name: str, masters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _meet_all(name, MET, errno.EIO, masters, Hypervisor(tmp_path, monkeypatch, capsys), monkeypatch)


@pytest.mark.parametrize("name", ["growth of raw", "overlay of a template"])
def test_no_space_at_each_place(
    name: str, masters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the beginning, so that it shows how much a kind of work asks."""
    assert _meet_all(name, set(), errno.ENOSPC, masters, Hypervisor(tmp_path, monkeypatch, capsys), monkeypatch) > 20


def _meet_all(
    name: str, met: set[Place], number: int, masters: Path, lab: Hypervisor, monkeypatch: pytest.MonkeyPatch
) -> int:
    """Refuse at each new place of a kind of work; returns how often that made it fail."""
    refuser = Refuser(monkeypatch, met)
    work = WORKS[name]
    wish = wish_of(work, lab)
    failures = 0
    while True:
        lay_out(lab, masters)
        refuser.arm(number)
        result = lab.run(work.module, **wish)
        refuser.armed = False
        if refuser.refused is None:
            break
        there = (refuser.refused, result)
        if result.get("failed"):
            failures += 1
            assert result["reason"] in REASONS and os.strerror(number) in result["msg"] + str(result), there
        _assert_nothing_lost(lab, masters, wish, there)
        again = lab.run(work.module, **wish)
        assert not again.get("failed"), (there, again)
        assert not [left for left in os.listdir(lab.directory) if left.startswith(".")], (there, again)
        _assert_done(lab, masters, wish, (there, again))
    return failures


def _assert_nothing_lost(lab: Hypervisor, masters: Path, wish: dict[str, Any], there: object) -> None:
    """Other volumes are as they were; the one worked on is so, too, as far as it went, or has all that was asked for."""
    for master in masters.iterdir():
        path = lab.directory / master.name
        if master.name != wish["name"]:
            assert path.read_bytes() == master.read_bytes(), (master.name, there)
        elif wish.get("state") != "absent":
            fmt = "raw" if master.name == "r" else "qcow2"
            same = path.read_bytes() == master.read_bytes()
            assert same or content_of(path, fmt)[: 2 * MIB] == (masters / "r").read_bytes(), there
    if wish["name"] == "b" and (lab.directory / "b").exists():
        _assert_done(lab, masters, wish, there)


def _assert_done(lab: Hypervisor, masters: Path, wish: dict[str, Any], there: object) -> None:
    path = lab.directory / wish["name"]
    if wish.get("state") == "absent":
        assert not path.exists(), there
        return
    fmt = "raw" if wish["name"] == "r" or wish.get("format") == "raw" or wish.get("source") == "r" else "qcow2"
    assert content_of(path, fmt)[: 2 * MIB] == (masters / "r").read_bytes(), there
