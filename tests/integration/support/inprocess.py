# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Many runs of the modules without starting Python for each; run as a program, one JSON document a line.

``fork``: each run in a child, with its times and peak of memory. ``same``: all in this process, with what it holds open.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

MODULES = ("volume", "volume_info", "volume_resize", "volume_clone", "volume_compress")


def call(module: str, params: dict[str, Any]) -> str:
    """The module's answer to these parameters, a JSON document of one line."""
    from ansible.module_utils import basic

    basic._ANSIBLE_ARGS = json.dumps({"ANSIBLE_MODULE_ARGS": {**params, "_ansible_remote_tmp": tempfile.gettempdir()}}).encode()
    basic._ANSIBLE_PROFILE = "legacy"
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        importlib.import_module(f"ansible_collections.hypervisor.storage.plugins.modules.{module}").main()
    return said.getvalue().strip()


def call_forked(module: str, params: dict[str, Any]) -> dict[str, Any]:
    reader, writer = os.pipe()
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(reader)
        with open(writer, "w") as pipe:
            answer = call(module, params)
            seconds = time.monotonic() - began
            used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
            pipe.write(json.dumps({
                "memory": max(each.ru_maxrss for each in used) * 1024, "seconds": seconds,
                "processor_seconds": sum(each.ru_utime + each.ru_stime for each in used)}) + "\n" + answer)
        os._exit(0)
    os.close(writer)
    with open(reader) as pipe:
        parts = [json.loads(line) for line in pipe.read().splitlines()]
    os.waitpid(child, 0)
    assert len(parts) == 2, f"{module} {params} ended without an answer"
    return {**parts[0], "result": parts[1]}


def serve(how: str) -> None:
    for module in MODULES:
        importlib.import_module(f"ansible_collections.hypervisor.storage.plugins.modules.{module}")
    for line in sys.stdin:
        module, params = json.loads(line)
        if how == "fork":
            answer = call_forked(module, params)
        else:
            answer = {"result": json.loads(call(module, params)), "descriptors": sorted(
                os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")
            ), "threads": threading.active_count(), "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
        print(json.dumps(answer), flush=True)


class Server:
    """A process that runs modules for us."""

    def __init__(self, how: str, env: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env, cwd="/")

    def run(self, module: str, **params: Any) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps([module, params]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"{module} {params} ended the process"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        self._process.communicate()


@contextlib.contextmanager
def server(how: str, env: dict[str, str]) -> Iterator[Server]:
    running = Server(how, env)
    try:
        yield running
    finally:
        running.close()


if __name__ == "__main__":
    serve(sys.argv[1])
