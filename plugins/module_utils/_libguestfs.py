# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The only file that knows libguestfs: a small virtual machine mounts an image's file systems and trims them.

A guest's file systems are read by that machine's kernel alone, never by the host's.
Manual: https://libguestfs.org/virt-sparsify.1.html
"""

from __future__ import annotations

import shutil

from ._errors import InsufficientSpace, ToolFailed, ToolMissing, VolumeInUse
from ._qemu_img import SEARCH_PATH, Completed, Runner, run_tool


class Libguestfs:
    """virt-sparsify of this host; the runner is a parameter so that faults can be played to it."""

    def __init__(self, runner: Runner = run_tool) -> None:
        self._runner = runner

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
        done = self._run(path)
        if done.returncode != 0 and "guestfs_launch failed" in done.stderr:
            # KVM may be there and still not work, in a nested guest for example.
            done = self._run(path, "LIBGUESTFS_BACKEND_SETTINGS=force_tcg")
        if done.returncode != 0:
            raise _failure(what, done)

    def _run(self, path: str, *settings: str) -> Completed:
        missing = self.missing()
        if missing is not None:
            raise missing
        program = shutil.which("virt-sparsify", path=SEARCH_PATH) or ""
        # Without libvirt in between: its daemon may run as another user, who can't read the image.
        argv = ["env", "LIBGUESTFS_BACKEND=direct", *settings]
        argv += [program, "--quiet", "--in-place", "--format", "qcow2", "--", path]
        return self._runner(argv, (), False)


def _failure(what: str, done: Completed) -> InsufficientSpace | VolumeInUse | ToolFailed:
    said = done.stderr.strip() or done.stdout.strip()
    lines = said.splitlines() or ["no message"]
    telling = next((line for line in lines if "error:" in line), lines[-1])[:500]
    if "No space left on device" in said:
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
