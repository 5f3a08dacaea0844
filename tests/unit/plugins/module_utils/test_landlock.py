# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A tool opens what it was handed, and no other file of the host."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from ansible_collections.hypervisor.storage.plugins.module_utils import _landlock
from ansible_collections.hypervisor.storage.plugins.module_utils._landlock import Handed, Only
from ansible_collections.hypervisor.storage.plugins.module_utils._qemu_img import Completed, run_tool

needs_landlock = pytest.mark.skipif(not _landlock.version(), reason="needs Landlock in the kernel")
SHELL = "/bin/sh"


def sh(script: str, fds: Sequence[int]) -> Completed:
    return run_tool([SHELL, "-c", script], fds, False)


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    """A file that is open, for reading."""
    (tmp_path / "image").write_text("image")
    opened = os.open(tmp_path / "image", os.O_RDONLY)
    yield opened
    os.close(opened)


@pytest.fixture
def other(tmp_path: Path) -> Path:
    path = tmp_path / "other"
    path.write_text("other")
    return path


@needs_landlock
def test_what_was_handed_can_be_opened_once_more(fd: int, tmp_path: Path) -> None:
    assert sh(f"cat {Handed(fd)}", Only([fd])).stdout == "image"
    assert sh(f"echo new > {Handed(fd)}", Only([fd])).returncode != 0
    assert sh(f"echo new > {Handed(fd)}", Only([fd], [fd])).returncode == 0
    assert (tmp_path / "image").read_text() == "new\n"


@needs_landlock
def test_a_file_without_a_name(tmp_path: Path) -> None:
    nameless = os.open(tmp_path, os.O_TMPFILE | os.O_RDWR, 0o600)
    try:
        assert sh(f"echo new > {Handed(nameless)}; cat {Handed(nameless)}", Only([nameless], [nameless])).stdout == "new\n"
    finally:
        os.close(nameless)


@needs_landlock
def test_nothing_else_can_be_opened(fd: int, other: Path) -> None:
    answer = sh(f"cat {other}; echo new > {other}", Only([fd], [fd]))
    assert answer.stdout == "" and answer.returncode != 0
    assert other.read_text() == "other"
    assert sh(f"cat {other}", (fd,)).stdout == "other", "it is the confinement that keeps it from that"


@needs_landlock
@pytest.mark.parametrize("path", ["/etc/passwd", "/proc/self/environ", "/proc/1/cmdline"])
def test_nothing_of_the_system_but_what_programs_need(fd: int, path: str) -> None:
    assert sh(f"cat {path}", Only([fd])).stdout == ""
    assert sh(f"cat {path}", (fd,)).stdout != ""


@needs_landlock
def test_by_way_of_a_link(fd: int, other: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(other)
    assert sh(f"cat {tmp_path}/link", Only([fd])).stdout == ""


@needs_landlock
@pytest.mark.skipif(_landlock.version() < 4, reason="needs Landlock for networks")
def test_no_network(fd: int) -> None:
    argv = ["/bin/bash", "-c", ": < /dev/tcp/127.0.0.1/1"]
    assert "Permission denied" in run_tool(argv, Only([fd]), False).stderr
    assert "Connection refused" in run_tool(argv, (fd,), False).stderr


@needs_landlock
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")
def test_who_is_not_root() -> None:
    with tempfile.NamedTemporaryFile("w") as other:
        other.write("other")
        other.flush()
        os.chmod(other.name, 0o644)
        child = os.fork()
        if child == 0:
            code = 2
            try:
                os.setgid(65534)
                os.setuid(65534)
                image = os.open("/bin/sh", os.O_RDONLY)
                free, kept = sh(f"cat {other.name}", (image,)), sh(f"cat {other.name}; cat {Handed(image)} | head -c 4", Only([image]))
                code = int((free.stdout, kept.stdout[1:]) != ("other", "ELF"))
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("answers", [[-1], [7, -1]], ids=["no Landlock", "no ruleset"])
def test_a_kernel_without_it(fd: int, other: Path, monkeypatch: pytest.MonkeyPatch, answers: list[int]) -> None:
    script = iter(answers)
    monkeypatch.setattr(_landlock, "_call", lambda *_arguments: next(script, -1))
    assert sh(f"cat {other}", Only([fd])).stdout == "other"


@needs_landlock
def test_a_descriptor_that_no_rule_can_be_made_for(other: Path) -> None:
    reading, writing = os.pipe()
    try:
        os.write(writing, b"piped")
        os.close(writing)
        assert sh(f"cat {Handed(reading)} {other}", Only([reading])).stdout == "pipedother"
    finally:
        os.close(reading)


def test_nothing_stays_open(fd: int) -> None:
    before = os.listdir("/proc/self/fd")
    sh("true", Only([fd]))
    assert os.listdir("/proc/self/fd") == before
