# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Work to be interrupted: what each kind of it may leave behind, and ways to end it."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .images import KIB, MIB, blank, noise, sh, sha, take_snapshot, used
from .images import info as image_info
from .runs import environment, start_module

SIZE = 48 * MIB
_TEXT = noise(8 * MIB, "text").hex().encode()
#: What a guest reads of every image made here: text that compresses, noise, written zeros.
CONTENT = _TEXT + noise(SIZE - len(_TEXT) - 16 * MIB) + bytes(16 * MIB)
CHANGED = b"\x55" * (8 * MIB) + CONTENT[8 * MIB :]
GROWN = CONTENT + bytes(16 * MIB)


@dataclass(frozen=True)
class State:
    """A volume as its guest sees it, and the most room it may take."""

    format: str
    content: str  # sha256
    room: int | None = None


FULL, RAW = State("qcow2", sha(CONTENT)), State("raw", sha(CONTENT))
#: Kinds of work that write to a volume "a" which nobody may have open meanwhile.
ON_ITS_OWN = ["resize raw", "resize qcow2", "compress in place", "compress rewrite", "delete with wipe"]


@dataclass(frozen=True)
class Kind:
    """One kind of work: the volumes before, and those that are others afterwards (``None``: gone)."""

    module: str
    wish: dict[str, Any]
    before: dict[str, State]
    changes: dict[str, State | None]
    runs: bool = False  # a domain runs on the volume "a"
    bystander: State = field(default=State("raw", sha(CONTENT[: 64 * KIB])))

    @property
    def after(self) -> dict[str, State | None]:
        return {**self.before, **self.changes}

    def lay_out(self, masters: Path, directory: Path) -> None:
        """Put fresh images in the directory, beside a volume that is none of its business."""
        for path in directory.iterdir():
            path.unlink()
        for name, state in self.before.items():
            which = "snapped" if "snapshot" in self.wish else state.format
            sh("cp", "--sparse=never", masters / which, directory / name)
        (directory / "bystander").write_bytes(CONTENT[: 64 * KIB])

    def assert_nothing_lost(self, directory: Path) -> None:
        """Each volume is as it was or as it was to become; nothing in between shows under a name."""
        assert state_of(directory / "bystander", self.bystander) == self.bystander.content
        for name in {**self.before, **self.changes}:
            allowed = [self.before.get(name), self.after.get(name)]
            if not (directory / name).exists():
                assert None in allowed, f"{name} is lost"
                continue
            found = [state_of(directory / name, state) for state in allowed if state is not None]
            wanted = [state.content for state in allowed if state is not None]
            assert any(f == w for f, w in zip(found, wanted)), f"{name} is neither what it was nor what it was to become"

    def is_done(self, directory: Path) -> bool:
        """Whether the new state is there, after assert_nothing_lost()."""
        for name, state in self.changes.items():
            if not (directory / name).exists():
                return state is None
            return state is not None and (name not in self.before or state.content != self.before[name].content) and (
                state_of(directory / name, state) == state.content)
        return False

    def assert_done(self, directory: Path) -> None:
        """All is as it was to become, and nothing else is there."""
        there = {name: state for name, state in self.after.items() if state is not None}
        assert sorted(os.listdir(directory)) == sorted([*there, "bystander"])
        for name, state in there.items():
            assert state_of(directory / name, state) == state.content, name
            assert state.room is None or used(directory / name) <= state.room, (name, used(directory / name))
        assert state_of(directory / "bystander", self.bystander) == self.bystander.content


KINDS = {
    "create full": Kind(
        "volume", {"name": "b", "template": "a", "clone_mode": "full"}, {"a": FULL}, {"b": FULL}),
    "create raw": Kind(
        "volume", {"name": "b", "template": "a", "format": "raw"}, {"a": FULL}, {"b": RAW}),
    "restore": Kind(
        "volume", {"name": "b", "snapshot": "s", "snapshot_volume": "a"},
        {"a": State("qcow2", sha(CHANGED))}, {"b": FULL}),
    "resize raw": Kind(
        "volume_resize", {"name": "a", "size": len(GROWN), "preallocation": "full"},
        {"a": RAW}, {"a": State("raw", sha(GROWN))}),
    "resize qcow2": Kind(
        "volume_resize", {"name": "a", "size": len(GROWN), "preallocation": "falloc"},
        {"a": FULL}, {"a": State("qcow2", sha(GROWN))}),
    "resize online": Kind(
        "volume_resize", {"name": "a", "size": len(GROWN)}, {"a": RAW}, {"a": State("raw", sha(GROWN))}, runs=True),
    "clone offline": Kind(
        "volume_clone", {"name": "b", "source": "a", "verify": True}, {"a": FULL}, {"b": FULL}),
    "clone live": Kind(
        "volume_clone", {"name": "b", "source": "a"}, {"a": FULL}, {"b": FULL}, runs=True),
    "clone live raw": Kind(
        "volume_clone", {"name": "b", "source": "a"}, {"a": RAW}, {"b": RAW}, runs=True),
    "compress in place": Kind(
        "volume_compress", {"name": "a", "method": "zeros"}, {"a": FULL}, {"a": State("qcow2", sha(CONTENT), 33 * MIB)}),
    "compress rewrite": Kind(
        "volume_compress", {"name": "a", "method": "zeros", "compression": "zstd"},
        {"a": FULL}, {"a": State("qcow2", sha(CONTENT), 30 * MIB)}),
    "delete with wipe": Kind(
        "volume", {"name": "a", "state": "absent", "wipe": True}, {"a": RAW}, {"a": None}),
}


def make_masters(directory: Path) -> Path:
    """The images that each kind starts from."""
    directory.mkdir()
    (directory / "raw").write_bytes(CONTENT)
    blank(directory / "qcow2", SIZE)
    sh("qemu-io", "-f", "qcow2", "-c", f"write -q -s {directory / 'raw'} 0 {SIZE}", directory / "qcow2")
    sh("cp", "--sparse=never", directory / "qcow2", directory / "snapped")
    take_snapshot(directory / "snapped", "s")
    sh("qemu-io", "-f", "qcow2", "-c", "write -q -P 0x55 0 8M", directory / "snapped")
    return directory


def state_of(path: Path, state: State) -> str | None:
    """sha256 of what a guest reads, if the image is a sound one of the state's format; leaked clusters are no damage."""
    if state.format == "raw":
        return sha(path.read_bytes())
    if image_info(path)["format"] != "qcow2":
        return None
    checked = subprocess.run(["qemu-img", "check", "-q", "-U", "-f", "qcow2", path], check=False, capture_output=True)
    assert checked.returncode in (0, 3), checked.stderr
    target = path.parent.parent / f"{path.name}.content"
    sh("qemu-img", "convert", "-U", "-W", "-f", "qcow2", "-O", "raw", path, target)
    try:
        return sha(target.read_bytes())
    finally:
        target.unlink()


class Tree:
    """A module's process with all that it starts, in whatever session, known by a mark in their environment."""

    def __init__(self, module: str, params: dict[str, Any], *, extra: dict[str, str] | None = None, **how: Any) -> None:
        self._mark = f"HYPERVISOR_STORAGE_TREE={secrets.token_hex(8)}"
        marked = environment(**dict([self._mark.split("=")]), **(extra or {}))
        self.process = start_module(module, params, env=marked, **how)

    def members(self) -> list[int]:
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it ended meanwhile
                if self._mark.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
        return found

    def touches(self, directory: Path) -> bool:
        """Whether the module or a tool that it runs has something of the directory open, also a file without a name."""
        pids = [str(self.process.pid)]
        for pid in pids:
            with contextlib.suppress(OSError):  # it ended meanwhile
                pids += Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
                for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                    with contextlib.suppress(OSError):
                        if os.readlink(descriptor).startswith(f"{directory}/"):
                            return True
        return False

    def wait_for_work(self, directory: Path) -> float:
        """Until it first touches the directory or ends: Python has looked for its modules by then. The moment of it."""
        while not self.touches(directory) and self.process.poll() is None:
            time.sleep(0.001)
        return time.monotonic()

    def writes_to(self, path: Path) -> bool:
        """Whether one of them has a file open for writing."""
        for pid in self.members():
            with contextlib.suppress(OSError):  # it ended meanwhile
                for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                    flags = Path(f"/proc/{pid}/fdinfo/{descriptor.name}").read_text().split("flags:")[1].split()[0]
                    if os.readlink(descriptor) == str(path) and int(flags, 8) & os.O_ACCMODE:
                        return True
        return False

    def freeze(self, directory: Path) -> str:
        """Stop it where it is, to be killed there: ``at work`` in the directory, ``between`` two deeds, or ``over``."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGSTOP)
        if self.process.poll() is not None:
            return "over"
        return "at work" if self.touches(directory) else "between"

    def kill(self, *, everything: bool) -> bool:
        """SIGKILL to the process group, or really to all, the guardian too; whether it was still at work."""
        alive = self.process.poll() is None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        while everything and (living := self.members()):
            for pid in living:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.process.communicate()
        return alive


def record(**facts: Any) -> None:
    """Add a line to the record that a long run may be asked for (``HYPERVISOR_STORAGE_RECORD``: a path)."""
    path = os.environ.get("HYPERVISOR_STORAGE_RECORD")
    if path:
        with open(path, "a") as file:
            file.write(json.dumps(facts) + "\n")


def moments(count: int, seconds: float, begin: float = 0.0) -> list[float]:
    """Moments spread evenly over the time between ``begin`` and a little before ``seconds``."""
    return [begin + (seconds - begin) * number / count for number in range(count)]
