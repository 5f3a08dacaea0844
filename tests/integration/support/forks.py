# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Processes for modules that need no start of Python: most of a module's run is that, and there are thousands of runs.

What is loaded before is Ansible's and libvirt's alone; each run imports the collection anew, in a process of its own.
"""

from __future__ import annotations

import functools
import multiprocessing
import multiprocessing.connection
import multiprocessing.context
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from typing import IO

#: Who starts a process asks for the ends of all others, which can be read once only.
_ONE_AT_A_TIME = threading.Lock()


class Forked:
    """What ``subprocess.Popen`` offers, as far as it is asked for."""

    def __init__(self, module: str, feed: IO[str], env: dict[str, str]) -> None:
        self._out, self._err = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")
        standard = [f"/proc/{os.getpid()}/fd/{each.fileno()}" for each in (feed, self._out, self._err)]
        self._process = _server().Process(target=_run, args=(module, standard, env))
        with _ONE_AT_A_TIME:
            self._process.start()
        self.pid = self._process.pid or 0

    @property
    def returncode(self) -> int | None:
        with _ONE_AT_A_TIME:
            return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        if not multiprocessing.connection.wait([self._process.sentinel], timeout):
            raise subprocess.TimeoutExpired("module", timeout or 0)
        with self._out, self._err:
            for said in (self._out, self._err):
                said.seek(0)
            return self._out.read(), self._err.read()


@functools.cache
def _server() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ansible.module_utils.basic", "libvirt", "runpy", "tempfile", "subprocess", "multiprocessing"])
    return context


def _run(module: str, standard: list[str], env: dict[str, str]) -> None:
    """In a child of the server: a module as ``python -m`` runs it."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for number, path in enumerate(standard):
        fd = os.open(path, os.O_WRONLY if number else os.O_RDONLY)
        os.dup2(fd, number)
        os.close(fd)
    sys.stdin = open(0, encoding="utf-8", closefd=False)
    os.environ.clear()
    os.environ.update(env)
    os.chdir("/")
    sys.path[:] = [*env["PYTHONPATH"].split(os.pathsep), *(path for path in sys.path if not path.endswith("tests/integration"))]
    sys.argv = [module]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
