# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a run of a module does, counted instead of timed: libvirt calls, processes, files opened, bytes read, syncs.

Run as a program with a module's name and its parameters as JSON; prints the answer and the counts.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable


@dataclass(frozen=True)
class Counts:
    """``calls``: libvirt's C functions by name, without those that only free or read what the client has already."""

    result: dict[str, Any]
    calls: dict[str, int]
    processes: int
    opened: list[str]
    read: int
    synced: int

    @property
    def calls_in_all(self) -> int:
        return sum(self.calls.values())

    def opened_in(self, directory: Path) -> int:
        return sum(path.startswith(f"{directory}/") for path in self.opened)


def count(module: str, params: dict[str, Any], env: dict[str, str]) -> Counts:
    """Run a module in a process of its own that counts."""
    done = subprocess.run(
        [sys.executable, __file__, module, json.dumps(params)],
        capture_output=True, text=True, env=env, cwd="/", timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = Counts(**json.loads(done.stdout))
    assert not counts.result.get("failed"), counts.result
    return counts


# Those that go to no daemon: they read or free the client's own copy of an object.
LOCAL = ("Free", "Ref", "GetName", "GetUUID", "GetUUIDString", "GetKey", "SetErrorFunc", "RegisterErrorHandler", "GetLastError")


class _CountingBinding:
    """Stands in for libvirt's C module."""

    def __init__(self, binding: Any, calls: Counter[str]) -> None:
        self._binding, self._calls = binding, calls

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._binding, name)
        if callable(found) and not name.endswith(LOCAL):
            self._calls[name] += 1
        return found


_PROCESSES = ("subprocess.Popen", "os.posix_spawn", "os.fork", "os.forkpty", "os.system")


def main(module: str, params: dict[str, Any]) -> None:
    import libvirt

    importlib.import_module(f"ansible_collections.hypervisor.storage.plugins.modules.{module}")
    here = str(Path(__file__).resolve().parents[1])
    sys.path.insert(0, here)
    from support.inprocess import call

    calls: Counter[str] = Counter()
    numbers: Counter[str] = Counter()
    opened: list[str] = []
    libvirt.libvirtmod = _CountingBinding(libvirt.libvirtmod, calls)

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _PROCESSES:
            numbers["processes"] += 1
        elif event == "open" and isinstance(arguments[0], (str, bytes)):
            opened.append(os.fsdecode(arguments[0]))

    sys.addaudithook(note)
    for name in ("read", "pread"):
        setattr(os, name, _summing(getattr(os, name), numbers, "read", len))
    os.preadv = _summing(os.preadv, numbers, "read", int)
    for name in ("fsync", "fdatasync"):
        setattr(os, name, _summing(getattr(os, name), numbers, "synced", lambda _: 1))
    result = json.loads(call(module, params))
    print(json.dumps({
        "result": result, "calls": calls, "opened": list(opened),
        "processes": numbers["processes"], "read": numbers["read"], "synced": numbers["synced"]}))


def _summing(function: Callable[..., Any], numbers: Counter[str], key: str, weigh: Callable[[Any], int]) -> Callable[..., Any]:
    def counted(*arguments: Any, **named: Any) -> Any:
        answer = function(*arguments, **named)
        numbers[key] += weigh(answer)
        return answer

    return counted


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
