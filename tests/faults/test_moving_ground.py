# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Others delete or exchange a file at any moment between the first look and the last deed: the answer is honest.

The moments are all calls that get the file's path, and all starts of a tool, which may find the path in a header: each is met
once, right before the call.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.hypervisor.storage.plugins.module_utils import _landlock
from ansible_collections.hypervisor.storage.tests.faults.works import INDEPENDENT, MIB, WORKS, content_of, lay_out, make_masters, wish_of
from ansible_collections.hypervisor.storage.tests.unit.fake_hypervisor import Hypervisor

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img")


class Tamperer:
    """Does something once, right before the nth call that gets a path, or start of a tool."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._path, self._left, self._deed = "", 0, lambda: None
        for place, name in ((os, "open"), (os, "stat"), (os, "lstat"), (subprocess, "Popen")):
            monkeypatch.setattr(place, name, self._watched(getattr(place, name)))

    def arm(self, path: Path, moment: int, deed: Callable[[], None]) -> None:
        self._path, self._left, self._deed = str(path), moment, deed

    def struck(self) -> bool:
        """Whether it came to it."""
        done, self._left = self._left <= 0, 0
        return done

    def _watched(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(first: Any, *args: Any, **kwargs: Any) -> Any:
            if self._left > 0 and self._concerns(first, kwargs):
                self._left -= 1
                if self._left == 0:
                    self._deed()
            return real(first, *args, **kwargs)

        return call

    def _concerns(self, first: Any, kwargs: dict[str, Any]) -> bool:
        if isinstance(first, list):
            return True
        return first == self._path or (first == os.path.basename(self._path) and kwargs.get("dir_fd") is not None)


@pytest.fixture(scope="module")
def masters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_masters(tmp_path_factory.mktemp("masters"))


SECRET = b"a line that only the host may read\n" * 64
HOSTILE = ["full copy of a template", "full copy of a path", "overlay of a template", "restore", "clone",
           "verified clone", "clone of raw", "growth", "growth of raw", "compression", "rewrite",
           "delete", "delete with wipe", "full copy of an overlay", "overlay of an overlay", "clone of an overlay",
           "clone of an overlay of raw", "verified clone of an overlay of raw", "restore of an overlay", "growth of an overlay",
           "rewrite of an overlay"]  # fmt: skip


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    return tmp_path / "secret"


@pytest.fixture
def traps(tmp_path: Path, secret: Path) -> dict[str, Path]:
    """Images that have the secret as their backing file, or as the file that their data is in."""
    made = {"backing file": tmp_path / "trap", "data file": tmp_path / "data-trap"}
    run = functools.partial(subprocess.run, check=True)
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={secret},data_file_raw=on", made["data file"], "2M"])
    secret.write_bytes(SECRET)
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", made["backing file"], "2M"])
    run(["qemu-img", "snapshot", "-c", "s", made["backing file"]])
    for trap in made.values():
        assert SECRET[:34] in content_of(trap, "qcow2"), "no trap"
    return made


def put_link(victim: Path, secret: Path, traps: dict[str, Path]) -> None:
    twin = secret.with_name("twin")
    twin.symlink_to(secret)
    os.rename(twin, victim)


def put_image(victim: Path, secret: Path, traps: dict[str, Path]) -> None:
    twin = secret.with_name("twin")
    shutil.copy(traps["backing file"], twin)
    os.rename(twin, victim)


def write_over_it(kind: str, victim: Path, secret: Path, traps: dict[str, Path]) -> None:
    """The same file with another content, which is there for all that have it open."""
    with victim.open("r+b") as file:
        file.write(traps[kind].read_bytes())


HARMS = {
    "link": put_link,
    "image that names a file of the host": put_image,
    "content that names a backing file": functools.partial(write_over_it, "backing file"),
    "content that names a data file": functools.partial(write_over_it, "data file"),
}


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("name", HOSTILE)
def test_something_hostile_comes_in_its_place(
    name: str, harm: str, masters: Path, tmp_path: Path, secret: Path, traps: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Whoever may write to the directory or its files gets nothing of the host into a volume or a message, and nothing of it changed."""
    if harm == "content that names a data file" and not _landlock.version():
        pytest.skip("needs Landlock in the kernel")
    lab = Hypervisor(tmp_path, monkeypatch, capsys)
    tamperer = Tamperer(monkeypatch)
    work = WORKS[name]
    victim = lab.directory / work.victim
    wish = wish_of(work, lab)
    harm_it = functools.partial(HARMS[harm], victim, secret, traps)

    moment = 0
    while True:
        moment += 1
        lay_out(lab, masters)
        tamperer.arm(victim, moment, harm_it)
        result = lab.run(work.module, **wish)
        if not tamperer.struck():
            break
        assert secret.read_bytes() == SECRET, (moment, result)
        assert SECRET[:34] not in json.dumps(result).encode(), (moment, result)
        for path in lab.directory.iterdir():
            if path.is_symlink() or path == victim:
                continue
            assert SECRET[:34] not in path.read_bytes(), (moment, path, result)
            if path.name == "b" and result.get("changed") and result["volume"]["backing"] is None:
                assert SECRET[:34] not in content_of(path, result["volume"]["format"]), (moment, result)
    assert moment > 5, "the moments are not met"


@pytest.mark.parametrize("harm", ["deleted", "exchanged"])
@pytest.mark.parametrize("name", WORKS)
def test_file_goes_at_any_moment(
    name: str, harm: str, masters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lab = Hypervisor(tmp_path, monkeypatch, capsys)
    tamperer = Tamperer(monkeypatch)
    work = WORKS[name]
    victim = lab.directory / work.victim
    wish = wish_of(work, lab)

    def harm_it() -> None:
        if harm == "deleted":
            victim.unlink()
        else:
            shutil.copy(victim, tmp_path / "twin")
            os.rename(tmp_path / "twin", victim)

    moment, met = 0, 0
    while True:
        moment += 1 if harm == "deleted" or "growth" in name else 3
        lay_out(lab, masters)
        tamperer.arm(victim, moment, harm_it)
        result = lab.run(work.module, **wish)
        if not tamperer.struck():
            break
        met += 1
        there = (moment, result)
        if result.get("failed"):
            assert harm == "deleted" and result["reason"] in work.reasons, there
            assert not result.get("changed"), there
        elif wish.get("state") == "absent":
            assert not victim.exists() or harm == "exchanged", there
        elif harm == "exchanged" or name in INDEPENDENT:
            made = lab.directory / wish["name"]
            content = content_of(made, result["volume"]["format"])
            assert content[: 2 * MIB] == (masters / "r").read_bytes(), there
            assert "size" not in wish or len(content) == 3 * MIB, there
        assert not [left for left in os.listdir(lab.directory) if left.startswith(".")], there
    assert met >= (2 if harm == "deleted" else 1), "the moments are not met"
