# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.hypervisor.storage.plugins.module_utils import _qemu_img
from ansible_collections.hypervisor.storage.plugins.module_utils._errors import (
    InsufficientSpace,
    StorageError,
    ToolFailed,
    ToolMissing,
    VolumeInUse,
)
from ansible_collections.hypervisor.storage.plugins.module_utils._landlock import Handed, Only
from ansible_collections.hypervisor.storage.plugins.module_utils._qemu_img import (
    Completed,
    Measure,
    OpenLayer,
    QemuImg,
    locate_layers,
    run_team,
    run_tool,
)

needs_qemu = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img")

MIB = 1024**2
MEASURED = '{"required": 327680, "fully-allocated": 1376256}'


class Script:
    """A runner that answers from a script and keeps what it was asked."""

    def __init__(self, *answers: Completed) -> None:
        self.answers = list(answers)
        self.calls: list[tuple[list[str], tuple[int, ...], bool]] = []

    def __call__(self, argv: Sequence[str], pass_fds: Sequence[int], limited: bool, flush: int | None = None, /) -> Completed:
        self.flushed = flush
        self.calls.append((list(argv[1:]), tuple(pass_fds), limited))
        return self.answers.pop(0) if self.answers else Completed(0, MEASURED, "")


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A qemu-img that is found, but never run."""
    path = tmp_path / "bin" / "qemu-img"
    path.parent.mkdir()
    path.write_text("#!/bin/false\n")
    path.chmod(0o755)
    monkeypatch.setattr(_qemu_img, "SEARCH_PATH", str(path.parent))
    return path


CREATE: dict[str, Any] = {"path": "/pool/-web", "image_format": "qcow2", "capacity": MIB, "options": {}}
CONVERT: dict[str, Any] = {
    "source": "/pool/a b", "source_format": "raw", "snapshot": None, "shared": False, "target": "/proc/self/fd/7",
    "target_format": "qcow2", "options": {}, "direct": True,
}  # fmt: skip
MEASURE: dict[str, Any] = {
    "source": "/pool/-web", "source_format": "qcow2", "snapshot": None, "shared": False, "target_format": "raw",
    "options": {},
}  # fmt: skip
RESIZE: dict[str, Any] = {"path": "/pool/-web", "image_format": "raw", "capacity": 2 * MIB}


@pytest.mark.usefixtures("program")
@pytest.mark.parametrize(
    ("function", "arguments", "argv", "fds", "limited"),
    [
        ("create", CREATE, ["create", "-q", "-f", "qcow2", "--", "/pool/-web", "1048576"], (), False),
        (
            "create",
            {**CREATE, "options": {"compat": "1.1", "cluster_size": "4096"}, "pass_fds": (7,)},
            ["create", "-q", "-f", "qcow2", "-o", "compat=1.1,cluster_size=4096", "--", "/pool/-web", "1048576"],
            (7,),
            False,
        ),
        (
            "create",
            {**CREATE, "options": {"data_file": "a,b", "x": ",,"}, "backing": ("/pool/-a,b", "raw")},
            ["create", "-q", "-f", "qcow2", "-o", "data_file=a,,b,x=,,,,", "-u", "-b", "/pool/-a,b", "-F", "raw", "--",
             "/pool/-web", "1048576"],
            (),
            False,
        ),
        (
            "convert",
            CONVERT,
            ["convert", "-q", "-f", "raw", "-O", "qcow2", "-W", "-m", "16", "-t", "none", "--", "/pool/a b",
             "/proc/self/fd/7"],
            (),
            False,
        ),
        (
            "convert",
            {**CONVERT, "source_format": "qcow2", "snapshot": "1,x", "shared": True, "direct": False,
             "options": {"preallocation": "off"}, "into_existing": True, "compressed": True,
             "backing": ("/pool/-a,b", "raw"), "pass_fds": (7, 8)},
            ["convert", "-q", "-f", "qcow2", "-O", "qcow2", "-W", "-m", "16",
             "-t", "writeback", "-o", "preallocation=off", "-l", "snapshot.id=1,,x", "-U", "-n", "-c",
             "-B", "/pool/-a,b", "-F", "raw", "--", "/pool/a b", "/proc/self/fd/7"],
            (7, 8),
            False,
        ),
        ("measure", MEASURE, ["measure", "--output=json", "-f", "qcow2", "-O", "raw", "--", "/pool/-web"], (), True),
        (
            "measure",
            {**MEASURE, "snapshot": "2", "shared": True, "options": {"cluster_size": "4096"}},
            ["measure", "--output=json", "-f", "qcow2", "-O", "raw", "-o", "cluster_size=4096", "-l", "snapshot.id=2",
             "-U", "--", "/pool/-web"],
            (),
            True,
        ),
        (
            "measure_empty",
            {"capacity": MIB, "image_format": "qcow2", "options": {"cluster_size": "4096"}},
            ["measure", "--output=json", "-O", "qcow2", "-o", "cluster_size=4096", "--size", "1048576"],
            (),
            True,
        ),
        ("resize", RESIZE, ["resize", "-q", "-f", "raw", "--", "/pool/-web", "2097152"], (), False),
        (
            "resize",
            {**RESIZE, "preallocation": "falloc", "shrink": True, "pass_fds": (7,)},
            ["resize", "-q", "-f", "raw", "--preallocation=falloc", "--shrink", "--", "/pool/-web", "2097152"],
            (7,),
            False,
        ),
        (
            "compare",
            {"first": "/pool/-a", "first_format": "qcow2", "second": "/proc/self/fd/7", "second_format": "raw",
             "pass_fds": (7,)},
            ["compare", "-q", "-f", "qcow2", "-F", "raw", "--", "/pool/-a", "/proc/self/fd/7"],
            (7,),
            False,
        ),
        (
            "check",
            {"path": "/pool/-a", "image_format": "qcow2"},
            ["check", "-q", "-f", "qcow2", "--", "/pool/-a"],
            (),
            False,
        ),
    ],
)  # fmt: skip
def test_arguments(
    function: str, arguments: dict[str, Any], argv: list[str], fds: tuple[int, ...], limited: bool
) -> None:
    script = Script()
    getattr(QemuImg(script), function)(**arguments)
    assert script.calls == [(argv, fds, limited)]


@pytest.mark.usefixtures("program")
@pytest.mark.parametrize(
    ("function", "arguments", "written"),
    [
        ("create", {**CREATE, "path": Handed(7)}, {7}),
        ("convert", {**CONVERT, "source": Handed(8), "target": Handed(7)}, {7}),
        ("measure", {**MEASURE, "source": Handed(8)}, set()),
        ("resize", {**RESIZE, "path": Handed(8)}, {8}),
        ("compare", {"first": Handed(8), "first_format": "raw", "second": Handed(7), "second_format": "raw"}, set()),
        ("check", {"path": Handed(7), "image_format": "qcow2"}, set()),
    ],
)  # fmt: skip
def test_who_is_handed_all_may_open_no_more(function: str, arguments: dict[str, Any], written: set[int]) -> None:
    seen: list[Sequence[int]] = []

    def runner(argv: Sequence[str], pass_fds: Sequence[int], limited: bool, flush: int | None = None, /) -> Completed:
        seen.append(pass_fds)
        return Completed(0, MEASURED, "")

    getattr(QemuImg(runner), function)(**{**arguments, "pass_fds": (7, 8)})
    (only,) = seen
    assert isinstance(only, Only) and only == (7, 8) and only.written == written


@pytest.mark.usefixtures("program")
@pytest.mark.parametrize("source", ["/pool/a", Handed(9)], ids=["by name", "not passed on"])
def test_who_finds_an_image_by_name_is_not_confined(source: str) -> None:
    seen: list[Sequence[int]] = []

    def runner(argv: Sequence[str], pass_fds: Sequence[int], limited: bool, flush: int | None = None, /) -> Completed:
        seen.append(pass_fds)
        return Completed(0, MEASURED, "")

    QemuImg(runner).convert(**{**CONVERT, "source": source, "target": Handed(7), "pass_fds": (7, 8)})
    assert seen == [(7, 8)] and not isinstance(seen[0], Only)


@pytest.mark.usefixtures("program")
def test_measure_tells_both_numbers() -> None:
    assert QemuImg(Script()).measure(**MEASURE) == Measure(required=327680, fully_allocated=1376256)


def test_the_program_is_found_once(program: Path) -> None:
    seen: list[str] = []

    def runner(argv: Sequence[str], pass_fds: Sequence[int], limited: bool, flush: int | None = None, /) -> Completed:
        seen.append(argv[0])
        return Completed(0, "", "")

    tool = QemuImg(runner)
    tool.resize(**RESIZE)
    program.unlink()
    tool.resize(**RESIZE)
    assert seen == [str(program)] * 2


def test_a_missing_program_is_named_with_its_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_qemu_img, "SEARCH_PATH", str(tmp_path))
    script = Script()
    with pytest.raises(ToolMissing) as caught:
        QemuImg(script).create(**CREATE)
    assert caught.value.facts == {"tool": "qemu-img"}
    assert "qemu-utils" in caught.value.msg
    assert script.calls == []


@pytest.mark.usefixtures("program")
@pytest.mark.parametrize(
    ("done", "expected", "words"),
    [
        (
            Completed(1, "", "qemu-img: error while writing at byte 0: No space left on device\n"),
            InsufficientSpace,
            "the storage is full (qemu-img: qemu-img: error while writing at byte 0: No space left on device)",
        ),
        (Completed(1, "", "qemu-img: x: Disk quota exceeded"), InsufficientSpace, "quota"),
        (
            Completed(
                1, "", "qemu-img: Could not open 'x': Failed to get \"write\" lock\nIs another process using the image?"
            ),
            VolumeInUse,
            "another process has the image open",
        ),
        (Completed(-9, "", ""), ToolFailed, "ended by signal 9. no message"),
        (Completed(-24, "", "half a line"), ToolFailed, "ended by signal 24. half a line"),
        (Completed(1, "on stdout", ""), ToolFailed, "exit code 1: on stdout"),
        (Completed(1, "out", "first\nlast \n\n"), ToolFailed, "exit code 1: last"),
        (Completed(2, "", "x" * 10_000), ToolFailed, "exit code 2: " + "x" * 500),
    ],
)
def test_failures_have_a_reason(done: Completed, expected: type[StorageError], words: str) -> None:
    with pytest.raises(expected) as caught:
        QemuImg(Script(done)).resize(**RESIZE)
    assert caught.value.msg.startswith("Cannot resize '/pool/-web': ")
    assert words in caught.value.msg
    assert len(caught.value.msg) < 700
    if expected is ToolFailed and done.returncode > 0:
        assert caught.value.facts == {"rc": done.returncode}


@pytest.mark.usefixtures("program")
@pytest.mark.parametrize(("code", "sound"), [(0, True), (3, False), (1, None), (2, None), (-9, None)])
def test_leaked_clusters_are_no_damage(code: int, sound: bool | None) -> None:
    tool = QemuImg(Script(Completed(code, "", "said")))
    if sound is None:
        with pytest.raises(ToolFailed):
            tool.check(path="/pool/web", image_format="qcow2")
    else:
        assert tool.check(path="/pool/web", image_format="qcow2") is sound


# -- running tools ---------------------------------------------------------------------------------


def test_a_tool_speaks_the_c_locale_and_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("LANGUAGE", "de")
    done = run_tool(["sh", "-c", 'echo "$LC_ALL $LANGUAGE"; cat; echo problem >&2; exit 3'], (), False)
    assert done == Completed(3, "C C\n", "problem\n")


def test_a_tool_may_say_what_is_no_text() -> None:
    assert run_tool(["printf", "\\377x"], (), False).stdout == "\ufffdx"


def test_limits_are_for_those_who_read_headers_only() -> None:
    argv = ["sh", "-c", "ulimit -t; ulimit -v"]
    assert run_tool(argv, (), True).stdout.split() == ["30", str(1024**2)]
    assert run_tool(argv, (), False).stdout.split() == ["unlimited", "unlimited"]


def test_descriptors_are_passed_on_only_when_asked(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        assert run_tool(["cat", f"/proc/self/fd/{fd}"], (fd,), False).stdout == "content"
        assert run_tool(["cat", f"/proc/self/fd/{fd}"], (), False).returncode != 0
    finally:
        os.close(fd)


def test_a_signal_is_a_negative_code() -> None:
    assert run_tool(["sh", "-c", "kill -KILL $$"], (), False).returncode == -signal.SIGKILL


def test_what_a_tool_writes_is_flushed_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what the disk says to that is heard, since it says so once."""
    monkeypatch.setattr(_qemu_img, "_FLUSH_SECONDS", 0.01)
    flushed: list[int] = []
    monkeypatch.setattr(os, "fdatasync", flushed.append)
    assert run_tool(["sh", "-c", "sleep 0.2; echo done"], (), False, 7) == Completed(0, "done\n", "")
    assert flushed
    assert set(flushed) == {7}
    flushed.clear()
    assert run_tool(["sh", "-c", "sleep 0.1"], (), False).returncode == 0
    assert not flushed

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fdatasync", full)
    note = tmp_path / "pid"
    with pytest.raises(OSError, match="No space left"):
        run_tool(["sh", "-c", f"echo $$ > {note}; exec sleep 60"], (), False, 7)
    assert not is_alive(int(note.read_text()))


POLICY = ["sh", "-c", "cut -d')' -f2- /proc/self/stat | cut -d' ' -f40"]


def test_a_tool_makes_way_for_guests() -> None:
    """As what runs for a long time in the background (SCHED_BATCH, sched(7)); unless somebody has said how we are to run."""
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
    assert run_tool(POLICY, (), False).stdout == f"{os.SCHED_BATCH}\n"
    child = os.fork()
    if child == 0:
        try:
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
            os._exit(run_tool(POLICY, (), False).stdout != f"{os.SCHED_IDLE}\n")
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_system_that_knows_no_policies(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_arguments: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))  # as musl has it

    monkeypatch.setattr(os, "sched_getscheduler", unknown)
    assert run_tool(POLICY, (), False).stdout == f"{os.SCHED_OTHER}\n"


@pytest.mark.parametrize(
    ("processors", "shares"),
    [
        ({3}, [{3}, {3}]),
        ({0, 1}, [{0}, {1}]),
        ({2, 5, 7}, [{2}, {5}, {7}]),
        ({0, 1, 2, 3}, [{0}, {1}, {2}, {3}]),
        (range(6), [{0}, {1, 2}, {3}, {4, 5}]),
        (range(64), [set(range(16)), set(range(16, 32)), set(range(32, 48)), set(range(48, 64))]),
    ],
)
def test_shares_of_the_processors(processors: set[int], shares: list[set[int]]) -> None:
    assert _qemu_img._shares(processors) == shares


def test_each_of_a_team_keeps_to_its_share() -> None:
    mine = os.sched_getaffinity(0)
    said = run_team([[sys.executable, "-c", "import os; print(sorted(os.sched_getaffinity(0)))"]] * 8, ())
    assert {done.stdout for done in said} <= {f"{sorted(share)}\n" for share in _qemu_img._shares(mine)}
    assert len({done.stdout for done in said}) == min(len(mine), 4)
    assert os.sched_getaffinity(0) == mine


def test_a_tool_dies_with_its_parent(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    child = os.fork()
    if child == 0:
        try:
            run_tool(["sh", "-c", f"echo $$ > {note}.new; mv {note}.new {note}; exec sleep 60"], (), False)
        finally:
            os._exit(0)
    deadline = time.monotonic() + 10
    while not note.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    tool = int(note.read_text())
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while is_alive(tool):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# -- the real one ----------------------------------------------------------------------------------


def info(path: Path) -> dict[str, Any]:
    argv = ["qemu-img", "info", "--output=json", str(path)]
    answer: dict[str, Any] = json.loads(subprocess.run(argv, check=True, stdout=subprocess.PIPE).stdout)
    return answer


def run(*argv: object) -> None:
    subprocess.run([str(part) for part in argv], check=True, stdout=subprocess.DEVNULL)


@needs_qemu
def test_create_for_real(tmp_path: Path) -> None:
    base = tmp_path / "base, -F qcow2"
    QemuImg().create(path=str(base), image_format="raw", capacity=MIB, options={})
    top = tmp_path / "-web"
    QemuImg().create(
        path=str(top), image_format="qcow2", capacity=2 * MIB, options={"compat": "1.1", "cluster_size": "4096"},
        backing=(str(base), "raw"),
    )  # fmt: skip
    said = info(top)
    assert (said["virtual-size"], said["cluster-size"]) == (2 * MIB, 4096)
    assert (said["backing-filename"], said["backing-filename-format"]) == (str(base), "raw")


@needs_qemu
def test_create_into_a_descriptor(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_TMPFILE | os.O_RDWR)
    try:
        QemuImg().create(
            path=f"/proc/self/fd/{fd}", image_format="qcow2", capacity=MIB, options={}, pass_fds=(fd,)
        )
        assert os.pread(fd, 4, 0) == b"QFI\xfb"
    finally:
        os.close(fd)


@needs_qemu
def test_convert_a_snapshot_for_real(tmp_path: Path) -> None:
    source = tmp_path / "source"
    run("qemu-img", "create", "-q", "-f", "qcow2", source, MIB)
    run("qemu-io", "-c", "write -P 1 0 4k", source)
    run("qemu-img", "snapshot", "-c", "2", source)  # its name is another's id
    run("qemu-io", "-c", "write -P 2 0 4k", source)
    run("qemu-img", "snapshot", "-c", "1", source)
    run("qemu-io", "-c", "write -P 3 0 4k", source)
    for snapshot, byte in (("1", 1), ("2", 2), (None, 3)):
        target = tmp_path / f"target{byte}"
        QemuImg().convert(
            source=str(source), source_format="qcow2", snapshot=snapshot, shared=False, target=str(target),
            target_format="raw", options={}, direct=False,
        )  # fmt: skip
        assert target.read_bytes()[:4096] == bytes([byte]) * 4096
        assert target.stat().st_size == MIB


@needs_qemu
def test_a_raw_source_is_copied_as_it_is(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret" + bytes(MIB - 6))
    forged = tmp_path / "forged"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", forged)
    QemuImg().convert(
        source=str(forged), source_format="raw", snapshot=None, shared=False, target=str(tmp_path / "copy"),
        target_format="raw", options={}, direct=False,
    )  # fmt: skip
    copy = (tmp_path / "copy").read_bytes()
    assert copy.startswith(b"QFI\xfb")
    assert not copy.startswith(b"secret")


@needs_qemu
def test_measure_for_real(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * MIB)
    os.truncate(source, 4 * MIB)
    measured = QemuImg().measure(
        source=str(source), source_format="raw", snapshot=None, shared=False, target_format="qcow2", options={}
    )
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", source, tmp_path / "copy")
    assert (tmp_path / "copy").stat().st_size <= measured.required < 2 * MIB < measured.fully_allocated
    empty = QemuImg().measure_empty(capacity=4 * MIB, image_format="qcow2", options={"cluster_size": "4096"})
    assert empty.required < MIB < empty.fully_allocated


@needs_qemu
@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_compare_in_pieces(tmp_path: Path, image_format: str) -> None:
    """Large images, side by side: a difference of one byte is found wherever it is, and at the seams too."""
    size = 2051 * MIB + 512
    first, second, longer = (tmp_path / name for name in ("first", "second", "longer"))
    for path in (first, second):
        QemuImg().create(path=str(path), image_format=image_format, capacity=size, options={})
    QemuImg().create(path=str(longer), image_format="raw", capacity=size + MIB, options={})
    starts = [start for start, _length in _qemu_img._pieces(size)]
    assert len(starts) == 8

    def write(path: Path, as_format: str, at: int, value: int) -> None:
        run("qemu-io", "-f", as_format, "-c", f"write -q -P {value} {at} 512", path)

    def compare(other: Path, other_format: str) -> None:
        QemuImg().compare(first=str(first), first_format=image_format, second=str(other), second_format=other_format, capacity=size)

    compare(second, image_format)
    compare(longer, "raw")
    for at in (0, *(start + offset for start in starts[1:] for offset in (-512, 0)), size - 512):
        write(second, image_format, at, 7)
        with pytest.raises(ToolFailed, match="differs"):
            compare(second, image_format)
        write(second, image_format, at, 0)
    compare(second, image_format)
    write(longer, "raw", size + MIB - 512, 7)
    with pytest.raises(ToolFailed, match="differs"):
        compare(longer, "raw")
    with pytest.raises(ToolFailed, match="Cannot compare"):
        compare(second, "qcow2" if image_format == "raw" else "vmdk")


@pytest.mark.usefixtures("program")
def test_pieces_are_compared_by_who_may_open_no_more() -> None:
    handed: list[Sequence[int]] = []

    def team(argvs: Sequence[Sequence[str]], pass_fds: Sequence[int]) -> list[Completed]:
        handed.append(pass_fds)
        return [Completed(0, "", "")] * len(argvs)

    images = {"first": Handed(8, "json:{}"), "second": Handed(9, "json:{}")}
    QemuImg(team_runner=team).compare(**images, first_format="qcow2", second_format="qcow2", capacity=200 * MIB, pass_fds=(8, 9))
    assert isinstance(handed[0], Only) and set(handed[0]) == {8, 9} and not handed[0].written


@pytest.mark.usefixtures("program")
def test_no_further_piece_is_compared_after_a_difference() -> None:
    asked: list[str] = []

    def team(argvs: Sequence[Sequence[str]], pass_fds: Sequence[int]) -> list[Completed]:
        asked.extend(argv[-1] for argv in argvs)
        return [Completed(0, "", ""), Completed(1, "", "")]

    with pytest.raises(ToolFailed, match="differs"):
        QemuImg(team_runner=team).compare(
            first="json:{}", first_format="qcow2", second="json:{}", second_format="qcow2", capacity=200 * MIB
        )
    assert [json.loads(location[5:]) for location in asked] == [
        {"driver": "raw", "offset": start * MIB, "file": {}, **({"size": 100 * MIB} if start == 0 else {})} for start in (0, 100)
    ]


def test_a_team_takes_them_as_they_end(tmp_path: Path) -> None:
    """Whoever is slow keeps no place of the others; and each of them is heard."""
    made = [tmp_path / str(number) for number in range(12)]
    slow = ["sh", "-c", "until [ -e \"$1\" ]; do sleep 0.05; done; echo said", "sh", str(made[-1])]
    ended = run_team([slow, *(["touch", str(path)] for path in made)], ())
    told = [(done.returncode, done.stdout) for done in ended]
    assert sorted(told) == [(0, "")] * 12 + [(0, "said\n")]
    assert told.index((0, "said\n")) >= 9  # when the last was begun, at most two others were still at work


@pytest.mark.usefixtures("program")
def test_what_was_not_compared_is_no_success() -> None:
    with pytest.raises(ToolFailed, match="as a whole"):
        QemuImg(team_runner=lambda argvs, _fds: [Completed(0, "", "")] * (len(argvs) - 1)).compare(
            first="json:{}", first_format="qcow2", second="json:{}", second_format="qcow2", capacity=200 * MIB
        )


def test_a_team_with_more_files_open_than_a_set_of_descriptors_holds(tmp_path: Path) -> None:
    """select(2) knows 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(2048, hard), hard))
    held = [os.open(tmp_path, os.O_RDONLY) for _number in range(1100)]
    try:
        assert run_team([["echo", "said"]], ()) == [Completed(0, "said\n", "")]
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_team_ends_at_the_first_failure(tmp_path: Path) -> None:
    began = time.monotonic()
    argvs = [["true"], ["false"], *[["sleep", "60"]] * 4, ["touch", str(tmp_path / "late")]]
    assert sorted(done.returncode for done in run_team(argvs, ())) in ([0, 1], [1])  # whichever ends first
    assert time.monotonic() - began < 30
    assert not (tmp_path / "late").exists()


@needs_qemu
def test_compare_for_real(tmp_path: Path) -> None:
    first, longer, other, image = (tmp_path / name for name in ("first", "longer", "other", "image"))
    first.write_bytes(b"x" * MIB)
    longer.write_bytes(b"x" * MIB + bytes(MIB))
    other.write_bytes(b"x" * (MIB - 1) + b"y")
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", first, image)

    def compare(second: Path, second_format: str = "raw") -> None:
        QemuImg().compare(first=str(first), first_format="raw", second=str(second), second_format=second_format)

    compare(longer)
    compare(image, "qcow2")
    with pytest.raises(ToolFailed, match="differs"):
        compare(other)
    with pytest.raises(ToolFailed, match="Cannot compare"):
        compare(tmp_path / "gone")


@needs_qemu
@pytest.mark.parametrize("options", ["cluster_size=512", "cluster_size=4k", "compat=0.10", "cluster_size=2M", "extended_l2=on"])
def test_open_layers_for_real(tmp_path: Path, options: str) -> None:
    """QEMU keeps parts of tables of any image; what is no qcow2 has none."""
    base, middle, top = (tmp_path / name for name in ("base", "middle", "top"))
    base.write_bytes(b"b" * MIB)
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, "-b", base, "-F", "raw", middle)
    run("qemu-io", "-f", "qcow2", "-c", "write -q -P 0x6d 512k 64k", middle)
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", middle, "-F", "qcow2", top)
    fds = [os.open(path, os.O_RDWR) for path in (top, middle, base)]
    try:
        sizes = [info(path).get("cluster-size") for path in (top, middle, base)]
        image = locate_layers([OpenLayer(fd, kind, size) for fd, kind, size in zip(fds, ("qcow2", "qcow2", "raw"), sizes)])
        kept = json.loads(image[len("json:") :])
        assert kept["l2-cache-entry-size"] == 4096
        assert kept["backing"]["l2-cache-entry-size"] == min(4096, sizes[1])
        assert "l2-cache-entry-size" not in kept["backing"]["backing"]
        seen = tmp_path / "seen"
        QemuImg().convert(
            source=image, source_format="qcow2", snapshot=None, shared=False, target=str(seen), target_format="raw",
            options={}, direct=False, pass_fds=fds,
        )  # fmt: skip
        assert seen.read_bytes() == b"b" * (MIB // 2) + b"m" * 65536 + b"b" * (MIB // 2 - 65536)
        vmdk = tmp_path / "vmdk"
        run("qemu-img", "convert", "-f", "raw", "-O", "vmdk", base, vmdk)
        fds.append(os.open(vmdk, os.O_RDWR))
        other = locate_layers([OpenLayer(fds[-1], "vmdk", 65536)])
        QemuImg().compare(first=other, first_format="vmdk", second=str(base), second_format="raw", pass_fds=fds)
    finally:
        for fd in fds:
            os.close(fd)


@needs_qemu
def test_check_for_real(tmp_path: Path) -> None:
    path = tmp_path / "web"
    run("qemu-img", "create", "-q", "-f", "qcow2", path, MIB)
    assert QemuImg().check(path=str(path), image_format="qcow2")
    with path.open("r+b") as file:
        file.truncate(8 * 65536)
        file.seek(2 * 65536 + 2 * 5)  # the refcount of a cluster that nobody refers to
        file.write(b"\0\1")
    assert not QemuImg().check(path=str(path), image_format="qcow2")
    with path.open("r+b") as file:
        file.seek(2 * 65536)
        file.write(b"\0\0")  # the header's own
    with pytest.raises(ToolFailed):
        QemuImg().check(path=str(path), image_format="qcow2")


@needs_qemu
def test_resize_for_real(tmp_path: Path) -> None:
    path = tmp_path / "web"
    for image_format in ("raw", "qcow2"):
        run("qemu-img", "create", "-q", "-f", image_format, path, MIB)
        QemuImg().resize(path=str(path), image_format=image_format, capacity=2 * MIB, preallocation="falloc")
        assert info(path)["virtual-size"] == 2 * MIB
        assert path.stat().st_blocks * 512 >= MIB
        with pytest.raises(ToolFailed):
            QemuImg().resize(path=str(path), image_format=image_format, capacity=MIB)
        QemuImg().resize(path=str(path), image_format=image_format, capacity=MIB, shrink=True)
        assert info(path)["virtual-size"] == MIB


@needs_qemu
def test_an_image_that_is_open_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "web"
    run("qemu-img", "create", "-q", "-f", "qcow2", path, MIB)
    # Unbuffered, and asked for data: its first answer means that it has the image open.
    with subprocess.Popen(["qemu-io", str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as holder:
        assert holder.stdin and holder.stdout
        holder.stdin.write(b"read 0 512\n")
        assert holder.stdout.read(1)
        with pytest.raises(VolumeInUse):
            QemuImg().resize(path=str(path), image_format="qcow2", capacity=2 * MIB)
        holder.kill()


@needs_qemu
def test_a_full_device(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * MIB)
    with pytest.raises(StorageError):
        QemuImg().convert(
            source=str(source), source_format="raw", snapshot=None, shared=False, target="/dev/full",
            target_format="raw", options={}, direct=False, into_existing=True,
        )  # fmt: skip
