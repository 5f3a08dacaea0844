# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""QEMU's own view of a running domain's jobs, past libvirt, and a hand on their speed."""

from __future__ import annotations

import json
import os
import subprocess
import time
from typing import Any

import libvirt
import libvirt_qemu


_last_seen: dict[str, str] = {}


def monitor(domain: libvirt.virDomain, command: str, **arguments: Any) -> Any:
    """What QEMU answers; None for an error."""
    question = json.dumps({"execute": command, "arguments": arguments})
    return json.loads(libvirt_qemu.qemuMonitorCommand(domain, question, 0)).get("return")


def jobs(domain: libvirt.virDomain) -> list[dict[str, Any]]:
    return list(monitor(domain, "query-block-jobs"))


def has_no_job(domain: libvirt.virDomain) -> bool:
    try:
        return bool(domain.jobInfo()[0] == libvirt.VIR_DOMAIN_JOB_NONE and jobs(domain) == [])
    except libvirt.libvirtError:  # a daemon that was just killed knows of a job whose data it has lost
        return False


def job_is_lost(domain: libvirt.virDomain) -> bool:
    """Whether libvirt believes in a job of which it knows nothing: killed at its very beginning, libvirt 9 never gets rid of it."""
    try:
        domain.jobInfo()
    except libvirt.libvirtError as error:
        return "backup job data missing" in str(error) and all(job["status"] == "concluded" for job in jobs(domain))
    return False


def set_speed(domain: libvirt.virDomain, speed: int) -> bool:
    """Bytes per second, 0 for no limit; false when there is no job that takes it."""
    def accepts(device: str) -> bool:
        return monitor(domain, "block-job-set-speed", device=device, speed=speed) == {}

    last = _last_seen.get(domain.UUIDString())
    if last is not None and accepts(last):  # one question less, when every moment counts
        return True
    for job in jobs(domain):
        _last_seen[domain.UUIDString()] = job["device"]
        if accepts(job["device"]):
            return True
    return False


def hold_job_of(process: subprocess.Popen[str], domain: libvirt.virDomain, speed: int = 1, *, large: bool = True) -> bool:
    """Slow the job down as soon as the module has started it; false when the module was done before.

    Of a ``large`` disk it is made sure that something is left: QEMU has up to 64 MiB on their way at once.
    """
    before = os.getpriority(os.PRIO_PROCESS, 0)
    os.setpriority(os.PRIO_PROCESS, 0, -15)  # a busy machine must not make us look too late
    try:
        while process.poll() is None:
            if set_speed(domain, speed):
                if not large:
                    return True
                for _time in range(20):  # the module itself lets go of the job once the guest is thawed
                    time.sleep(0.01)
                    set_speed(domain, speed)
                if any(job["status"] == "running" for job in jobs(domain)):
                    return True
        return False
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, before)
