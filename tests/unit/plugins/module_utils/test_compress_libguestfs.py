# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from ansible_collections.hypervisor.storage.plugins.module_utils import _libguestfs
from ansible_collections.hypervisor.storage.plugins.module_utils._errors import StorageError
from ansible_collections.hypervisor.storage.plugins.module_utils._libguestfs import Libguestfs
from ansible_collections.hypervisor.storage.plugins.module_utils._qemu_img import Completed

LAUNCH = "libguestfs: trace\nvirt-sparsify: error: libguestfs error: guestfs_launch failed.\nThis usually means ...\n"


class Script:
    """A runner that answers from a script and keeps what it was asked."""

    def __init__(self, *answers: Completed | None) -> None:
        self.answers = list(answers)
        self.calls: list[list[str]] = []

    def __call__(self, argv: Sequence[str], timeout: float) -> Completed | None:
        self.calls.append(list(argv))
        return self.answers.pop(0)


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    path = tmp_path / "virt-sparsify"
    path.write_text("#!/bin/false\n")
    path.chmod(0o755)
    monkeypatch.setattr(_libguestfs, "SEARCH_PATH", str(tmp_path))
    return str(path)


def test_command(program: str) -> None:
    script = Script(Completed(0, "", ""))
    Libguestfs(script).sparsify("/pool/-a b", what="trim it")
    settings = ["env", "LIBGUESTFS_BACKEND=direct", "LIBGUESTFS_TRACE=1"]
    assert script.calls == [[*settings, program, "--quiet", "--in-place", "--format", "qcow2", "--", "/pool/-a b"]]


def test_kvm_that_is_there_and_does_not_work(program: str) -> None:
    script = Script(Completed(1, "", LAUNCH), Completed(0, "", ""))
    Libguestfs(script).sparsify("/pool/a", what="trim it")
    assert [call[3] for call in script.calls] == [program, "LIBGUESTFS_BACKEND_SETTINGS=force_tcg"]


#: As if KVM never let the machine come up: it hangs with a lock on the image, deaf to what is polite.
HANGING = """#!/bin/bash
for image; do :; done
trap '' TERM
echo 'libguestfs: trace: launch' >&2
if [ "$LIBGUESTFS_BACKEND_SETTINGS" != force_tcg ]; then
    (exec 9<"$image"; flock 9; echo $BASHPID >"$image.pid"; sleep 1000) &
    wait
fi
exec 9<"$image"
flock --nonblock 9 || { echo 'Failed to get "write" lock' >&2; exit 1; }
echo 'libguestfs: trace: launch = 0' >&2
sleep 1
echo trimmed >>"$image"
"""


def test_kvm_that_hangs(program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it is killed before the next attempt, which may take longer than coming up does; it is made without KVM at once
    the next time."""
    monkeypatch.setattr(_libguestfs, "LAUNCH_TIMEOUT", 0.5)
    monkeypatch.setattr(_libguestfs, "SLOW_LAUNCH_TIMEOUT", 0.5)
    Path(program).write_text(HANGING)
    image = tmp_path / "image"
    image.touch()
    libguestfs = Libguestfs()
    libguestfs.sparsify(str(image), what="trim it")
    assert image.read_text() == "trimmed\n"
    killed = Path("/proc", (tmp_path / "image.pid").read_text().strip(), "cmdline")
    assert not killed.exists() or killed.read_text() == "", "at most a zombie is left"
    (tmp_path / "image.pid").unlink()
    libguestfs.sparsify(str(image), what="trim it")
    assert image.read_text() == "trimmed\n" * 2
    assert not (tmp_path / "image.pid").exists()


def test_it_never_comes_up(program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_libguestfs, "LAUNCH_TIMEOUT", 0.2)
    monkeypatch.setattr(_libguestfs, "SLOW_LAUNCH_TIMEOUT", 0.2)
    Path(program).write_text("#!/bin/sh\nsleep 1000\n")
    with pytest.raises(StorageError) as caught:
        Libguestfs().sparsify(str(tmp_path / "image"), what="trim it")
    assert caught.value.reason == "tool_failed" and "did not come up" in caught.value.msg and "trim it" in caught.value.msg


def test_what_it_says_besides_is_no_message(program: str) -> None:
    said = "libguestfs: trace: launch = 0\nvirt-sparsify: no such thing\nlibguestfs: trace: close\n"
    with pytest.raises(StorageError) as caught:
        Libguestfs(Script(Completed(1, "", said))).sparsify("/pool/a", what="trim it")
    assert "no such thing" in caught.value.msg
    assert "trace" not in caught.value.msg


@pytest.mark.parametrize(
    "answers, reason, said",
    [
        ([Completed(1, "", LAUNCH), Completed(1, "", LAUNCH)], "tool_failed", "guestfs_launch failed"),
        ([Completed(1, "", "virt-sparsify: error: no disk\nIf reporting bugs, ...\n")], "tool_failed", "no disk"),
        ([Completed(1, "", 'Failed to get "write" lock\nvirt-sparsify: error: x\n')], "volume_in_use", "open"),
        ([Completed(1, "", "write: No space left on device\n")], "insufficient_space", "full"),
        ([Completed(1, "", "write: Disk quota exceeded\n")], "insufficient_space", "quota"),
        ([Completed(-9, "", "")], "tool_failed", "signal 9"),
        ([Completed(3, "", "")], "tool_failed", "exit code 3"),
    ],
)
def test_failures(program: str, answers: list[Completed], reason: str, said: str) -> None:
    with pytest.raises(StorageError) as caught:
        Libguestfs(Script(*answers)).sparsify("/pool/a", what="trim it")
    assert caught.value.reason == reason and said in caught.value.msg and "trim it" in caught.value.msg


def test_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_libguestfs, "SEARCH_PATH", str(tmp_path))
    error = Libguestfs(Script()).missing()
    assert error is not None and error.reason == "tool_missing" and "guestfs-tools" in error.msg
    with pytest.raises(StorageError) as caught:
        Libguestfs(Script()).sparsify("/pool/a", what="trim it")
    assert caught.value.reason == "tool_missing"
