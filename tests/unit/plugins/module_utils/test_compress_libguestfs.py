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

    def __init__(self, *answers: Completed) -> None:
        self.answers = list(answers)
        self.calls: list[list[str]] = []

    def __call__(self, argv: Sequence[str], pass_fds: Sequence[int], limited: bool) -> Completed:
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
    assert script.calls == [
        ["env", "LIBGUESTFS_BACKEND=direct", program, "--quiet", "--in-place", "--format", "qcow2", "--", "/pool/-a b"]
    ]


def test_kvm_that_is_there_and_does_not_work(program: str) -> None:
    script = Script(Completed(1, "", LAUNCH), Completed(0, "", ""))
    Libguestfs(script).sparsify("/pool/a", what="trim it")
    assert [call[2] for call in script.calls] == [program, "LIBGUESTFS_BACKEND_SETTINGS=force_tcg"]


@pytest.mark.parametrize(
    "answers, reason, said",
    [
        ([Completed(1, "", LAUNCH), Completed(1, "", LAUNCH)], "tool_failed", "guestfs_launch failed"),
        ([Completed(1, "", "virt-sparsify: error: no disk\nIf reporting bugs, ...\n")], "tool_failed", "no disk"),
        ([Completed(1, "", 'Failed to get "write" lock\nvirt-sparsify: error: x\n')], "volume_in_use", "open"),
        ([Completed(1, "", "write: No space left on device\n")], "insufficient_space", "full"),
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
