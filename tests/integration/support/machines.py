# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whole Debian systems in containers, with systemd as their first process, for what a private hypervisor can't show."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

from support.images import sh, wait_until


class Machine:
    """A fresh Debian in a directory, which can be booted again and again. It shares this machine's network, without a say in it."""

    def __init__(self, root: Path, suite: str) -> None:
        self.root = root
        # A program in place of chroot, so that Ansible's connection for directories comes into the running system.
        self.door = root.with_name(f"{root.name}-door")
        self._container: subprocess.Popen[bytes] | None = None
        sh("mmdebstrap", "--quiet", "--variant=apt", "--include=python3,systemd-sysv,dbus", suite, root, timeout=600)
        (root / "etc" / "hostname").write_text(f"{root.name}\n")

    def boot(self) -> None:
        # The newest systemd knows only the newer cgroups, of which a machine with both has to be told.
        self._container = subprocess.Popen(
            ["systemd-nspawn", "--quiet", "--boot", f"--directory={self.root}", "--register=no", "--keep-unit", "--link-journal=no",
             "--console=pipe"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"})
        wait_until(self._first_process)
        self.door.write_text(f'#!/bin/sh\nshift\nexec nsenter --target {self._first_process()} --all --wd=/ "$@"\n')
        self.door.chmod(0o755)
        wait_until(lambda: self.says("systemctl", "is-system-running") in ("running", "degraded"), 60)

    def _first_process(self) -> str:
        """The number that the container's systemd has outside; empty as long as there is none."""
        assert self._container and self._container.poll() is None, "the container ended"
        children = Path(f"/proc/{self._container.pid}/task/{self._container.pid}/children").read_text().split()
        for child in children:
            with contextlib.suppress(OSError):  # the one that prepares the container ends meanwhile
                if Path(f"/proc/{child}/comm").read_text() == "systemd\n":
                    return child
        return ""

    def says(self, *argv: str) -> str:
        """What a command in the running system prints."""
        return subprocess.run([str(self.door), "/", *argv], capture_output=True, text=True, timeout=60, check=False).stdout.strip()

    def host(self) -> dict[str, str]:
        """For an inventory."""
        return {"ansible_connection": "community.general.chroot", "ansible_host": str(self.root), "ansible_chroot_exe": str(self.door),
                "ansible_python_interpreter": "/usr/bin/python3"}

    def power_off(self) -> None:
        if self._container:
            if self.door.exists():
                self.says("systemctl", "poweroff")
            try:
                self._container.wait(60)
            except subprocess.TimeoutExpired:
                self._container.kill()  # which takes the whole container along
                self._container.wait()
            self._container = None

    def remove(self) -> None:
        self.power_off()
        shutil.rmtree(self.root)
        self.door.unlink(missing_ok=True)
