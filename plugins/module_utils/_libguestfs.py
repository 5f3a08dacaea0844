# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The only file that knows libguestfs: a small virtual machine mounts an image's file systems and trims them.

A guest's file systems are read by that machine's kernel alone, never by the host's.
Manual: https://libguestfs.org/virt-sparsify.1.html
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import time
from collections.abc import Callable, Sequence

from ._errors import InsufficientSpace, ToolFailed, ToolMissing, VolumeInUse
from ._os_errors import tells_of_no_room
from ._qemu_img import SEARCH_PATH, Completed, start_tool

#: How long the virtual machine may take to come up, and then once more without KVM, in seconds.
LAUNCH_TIMEOUT, SLOW_LAUNCH_TIMEOUT = 120.0, 300.0
#: How long what was killed may take to be gone, in seconds.
_DEATH_TIMEOUT = 30.0
_TRACE = "libguestfs: trace:"
_LAUNCHED = f"{_TRACE} launch = ".encode(), f"{_TRACE} sparsify: launch = ".encode()

#: Runs a tool that has to come up within so many seconds.
ApplianceRunner = Callable[[Sequence[str], float], "Completed | None"]


class Libguestfs:
    """virt-sparsify of this host; the runner is a parameter so that faults can be played to it."""

    def __init__(self, runner: ApplianceRunner | None = None) -> None:
        self._runner = runner or run_appliance
        self._settings: tuple[str, ...] = ()

    def missing(self) -> ToolMissing | None:
        """The error to raise when libguestfs is needed and not there, ``None`` when it is."""
        if shutil.which("virt-sparsify", path=SEARCH_PATH) is not None:
            return None
        return ToolMissing(
            "virt-sparsify is not on this host. Install it: package 'guestfs-tools' on Debian, Fedora, RHEL and their "
            "kin, 'libguestfs-tools' on Ubuntu and older releases.",
            tool="virt-sparsify",
        )

    def sparsify(self, path: str, *, what: str) -> None:
        """Discard, in the qcow2 image itself, what its guest's file systems, swap and LVM don't use.

        Raises ToolMissing, ToolFailed, VolumeInUse or InsufficientSpace.
        """
        done = self._run(path, LAUNCH_TIMEOUT)
        if done is None or (done.returncode != 0 and "guestfs_launch failed" in done.stderr):
            # KVM may be there and still not work, in a nested guest for example.
            self._settings = ("LIBGUESTFS_BACKEND_SETTINGS=force_tcg",)
            done = self._run(path, SLOW_LAUNCH_TIMEOUT)
        if done is None:
            raise ToolFailed(
                f"Cannot {what}: the small virtual machine of libguestfs did not come up within {SLOW_LAUNCH_TIMEOUT:.0f} s, with KVM "
                "or without. 'libguestfs-test-tool' on the host tells more. method: zeros needs none."
            )
        if done.returncode != 0:
            raise _failure(what, done)

    def _run(self, path: str, timeout: float) -> Completed | None:
        missing = self.missing()
        if missing is not None:
            raise missing
        program = shutil.which("virt-sparsify", path=SEARCH_PATH) or ""
        # Without libvirt in between: its daemon may run as another user, who can't read the image.
        argv = ["env", "LIBGUESTFS_BACKEND=direct", "LIBGUESTFS_TRACE=1", *self._settings]
        argv += [program, "--quiet", "--in-place", "--format", "qcow2", "--", path]
        return self._runner(argv, timeout)


def run_appliance(argv: Sequence[str], timeout: float) -> Completed | None:
    """Run a tool of libguestfs to its end; ``None``, and nothing is left of it, when its virtual machine doesn't come up.

    With LIBGUESTFS_TRACE=1, guestfs(3) tells on stderr when that is up. What the tool does then may take as long as it needs.
    """
    with start_tool(argv, (), False) as process:
        stream = process.stderr.fileno() if process.stderr else -1
        said = b""
        deadline = time.monotonic() + timeout
        while not any(end in said for end in _LAUNCHED):
            if not select.select([stream], [], [], max(deadline - time.monotonic(), 0))[0]:
                _kill_all(process.pid)
                process.communicate()
                return None
            part = os.read(stream, 65536)
            if not part:
                break
            said += part
        stdout, stderr = process.communicate()
    return Completed(process.returncode, stdout, said.decode(errors="replace") + stderr)


def _kill_all(pid: int) -> None:
    """Kill a process and all that it started, which hold the image; returns when they are gone."""
    doomed = [pid]
    for parent in doomed:
        with contextlib.suppress(OSError), open(f"/proc/{parent}/task/{parent}/children", encoding="ascii") as children:
            doomed += [int(child) for child in children.read().split()]
    for each in reversed(doomed):
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)
    deadline = time.monotonic() + _DEATH_TIMEOUT
    while any(_lives(each) for each in doomed) and time.monotonic() < deadline:
        time.sleep(0.05)


def _lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as status:
            return status.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def _failure(what: str, done: Completed) -> InsufficientSpace | VolumeInUse | ToolFailed:
    said = done.stderr.strip() or done.stdout.strip()
    lines = [line for line in said.splitlines() if not line.startswith(_TRACE)] or ["no message"]
    telling = next((line for line in lines if "error:" in line), lines[-1])[:500]
    if tells_of_no_room(said):
        return InsufficientSpace(
            f"Cannot {what}: the storage is full (virt-sparsify: {telling}). Free space and run again."
        )
    if "Failed to get" in said and "lock" in said:
        return VolumeInUse(f"Cannot {what}: another process has the image open (virt-sparsify: {telling}).")
    if done.returncode < 0:
        return ToolFailed(f"Cannot {what}: virt-sparsify was ended by signal {-done.returncode}.")
    return ToolFailed(
        f"Cannot {what}: virt-sparsify failed with exit code {done.returncode}: {telling}", rc=done.returncode
    )
