# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs an unpacked payload and tells on stderr where its time went: python3 drive.py DIRECTORY MODULE STARTED.

A section's time is its own, without that of sections within it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import time
from collections.abc import Iterator
from typing import Any, Callable

ENTERED = time.monotonic()
spent: dict[str, float] = {}
_inner = [0.0]  # of each section that is open, what sections within it took


@contextlib.contextmanager
def section(name: str) -> Iterator[None]:
    _inner.append(0.0)
    began = time.monotonic()
    try:
        yield
    finally:
        took = time.monotonic() - began
        spent[name] = spent.get(name, 0.0) + took - _inner.pop()
        _inner[-1] += took


def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any, **named: Any) -> Any:
        with section(name):
            return function(*arguments, **named)

    return run


def watch_imports() -> None:
    """The C code of an import comes here for every module that is not loaded yet."""
    bootstrap: Any = importlib._bootstrap  # type: ignore[attr-defined]
    load = bootstrap._find_and_load

    def find_and_load(name: str, *rest: Any) -> Any:
        kinds = {"libvirt": "import libvirt", "libvirtmod": "import libvirt", "ansible": "import Ansible's module_utils",
                 "ansible_collections": "import the collection"}
        with section(kinds.get(name.partition(".")[0], "import the standard library")):
            return load(name, *rest)

    bootstrap._find_and_load = find_and_load


def watch_libvirt() -> None:
    import libvirt

    binding: Any = libvirt.libvirtmod
    binding.virConnectOpen = timed("connect", binding.virConnectOpen)
    binding.virStoragePoolRefresh = timed("refresh", binding.virStoragePoolRefresh)


def watch_runner(runner: Any) -> None:
    lifecycle, lookup = runner.run_lifecycle, runner.run_lookup

    def run_lifecycle(*, make_task: Callable[..., Any], **rest: Any) -> None:
        lifecycle(make_task=lambda params: _watch_task(make_task(params)), **rest)

    def run_lookup(*, collect: Callable[..., Any], **rest: Any) -> None:
        lookup(collect=timed("look and decide", collect), **rest)

    runner.run_lifecycle, runner.run_lookup = run_lifecycle, run_lookup
    runner._Module.exit_json = timed("report", runner._Module.exit_json)


def _watch_task(task: Any) -> Any:
    guard = task.guard

    @contextlib.contextmanager
    def watched(host: Any) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            with section("lock and tidy"):
                stack.enter_context(guard(host))
            yield

    task.guard = watched
    for name, what in (("decide", "look and decide"), ("carry_out", "act"), ("describe", "look again")):
        setattr(task, name, timed(what, getattr(task, name)))
    return task


def main(directory: str, module: str, started: str) -> None:
    sys.path.insert(0, directory)
    spent["start Python"] = ENTERED - float(started)
    watch_imports()
    name = "ansible_collections.hypervisor.storage.plugins.modules." + module
    from ansible.module_utils import basic

    with open(f"{directory}/args", "rb") as file:
        basic._ANSIBLE_ARGS = file.read()
    basic._ANSIBLE_PROFILE = "legacy"
    watch_libvirt()
    watch_runner(importlib.import_module("ansible_collections.hypervisor.storage.plugins.module_utils._runner"))
    try:
        importlib.import_module(name).main()
    finally:
        print(json.dumps(spent), file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
