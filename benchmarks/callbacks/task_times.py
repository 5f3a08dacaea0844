# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Notes when each task of a play begins, and when the last one is over, in the file that TASK_TIMES names."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: task_times
type: aggregate
short_description: When tasks begin
description: When tasks begin.
"""


class CallbackModule(CallbackBase):  # type: ignore[misc]
    """Only for plays of one host, whose tasks come one after the other."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "task_times"

    def __init__(self) -> None:
        super().__init__()
        self._moments: list[float] = []

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        self._moments.append(time.perf_counter())

    def v2_playbook_on_stats(self, stats: Any) -> None:
        self._moments.append(time.perf_counter())
        Path(os.environ["TASK_TIMES"]).write_text(json.dumps(self._moments))
