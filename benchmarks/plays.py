# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whole plays, as a user runs them: a new ansible-playbook, a local connection, the system's Python for the modules."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .measure import Failure

PYTHON = "/usr/bin/python3"
LIBRARY, CALLBACKS = (Path(__file__).parent / name for name in ("library", "callbacks"))

Task = dict[str, Any]

PING: Task = {"ansible.builtin.ping": {}}


def ours(module: str, **options: Any) -> Task:
    return {f"hypervisor.storage.{module}": options}


def virt_volume(**options: Any) -> Task:
    return {"community.libvirt.virt_volume": options}


def run_play(
    directory: Path, tasks: Sequence[Task], *, changed: int | None, hosts: Mapping[str, Mapping[str, Any]] | None = None, forks: int = 5,
    more: Mapping[str, str] | None = None,
) -> float:
    """Seconds of the whole play. Each host must come out with that many changed tasks (None: any) and no failure."""
    names = hosts or {"localhost": {}}
    inventory = {"all": {"hosts": names, "vars": {"ansible_connection": "local", "ansible_python_interpreter": PYTHON}}}
    book, where = directory / "play.json", directory / "hosts.json"
    book.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": list(tasks)}]))
    where.write_text(json.dumps(inventory))
    argv = ["ansible-playbook", "-i", str(where), "-f", str(forks), str(book)]
    env = {**os.environ, "ANSIBLE_LIBRARY": str(LIBRARY), "ANSIBLE_NOCOLOR": "1", **(more or {})}
    began = time.perf_counter()
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=env, timeout=900, check=False)
    seconds = time.perf_counter() - began
    recap = re.findall(r" changed=(\d+) +unreachable=(\d+) +failed=(\d+)", done.stdout)
    wanted = [(str(changed), "0", "0")] * len(names)
    if done.returncode != 0 or (changed is not None and recap != wanted):
        raise Failure(f"the play came out with {recap}: {(done.stdout + done.stderr)[-1500:]}")
    return seconds


def time_tasks(directory: Path, tasks: Sequence[Task], *, changed: int) -> list[float]:
    """Seconds of each task of a play as it goes by: from its beginning to that of the next."""
    told = directory / "task_times.json"
    run_play(directory, tasks, changed=changed, more={
        "ANSIBLE_CALLBACK_PLUGINS": str(CALLBACKS), "ANSIBLE_CALLBACKS_ENABLED": "task_times", "TASK_TIMES": str(told)})
    moments = json.loads(told.read_text())
    if len(moments) != len(tasks) + 1:
        raise Failure(f"the times of {len(moments) - 1} tasks are known instead of {len(tasks)}")
    return [end - begin for begin, end in zip(moments, moments[1:])]
