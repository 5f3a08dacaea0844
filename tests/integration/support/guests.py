# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A real guest: Debian's cloud kernel and a busybox, which run a shell script and tell what they see on a serial line."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import libvirt

from .hypervisors import Hypervisor
from .images import sh, wait_until

BOOT_SECONDS = 60  # it is emulated; a few seconds on an idle machine
MODULES = ("virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod", "virtio_console", "virtio_net")
AGENT = "/usr/sbin/qemu-ga"
INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
while read module; do insmod "/modules/$module"; done </modules/order
exec </dev/null >/dev/ttyS0 2>&1
for port in /sys/class/virtio-ports/*; do
    [ "$(cat "$port/name")" = org.qemu.guest_agent.0 ] && qemu-ga -m virtio-serial -p "/dev/${port##*/}" -F/hook &
done
"""


class Guest:
    """Boots on construction, with the script as its only user; ``virt`` is its transient domain."""

    def __init__(self, hypervisor: Hypervisor, directory: Path, script: str, *disks: str, hook: str = "",
                 modules: tuple[str, ...] = MODULES) -> None:
        kernel = newest_kernel()
        directory.mkdir()
        self.console = directory / "console"
        initrd = make_initrd(directory, kernel.name.removeprefix("vmlinuz-"), script, hook, modules)
        self.virt: libvirt.virDomain = hypervisor.conn.createXML(
            "<domain type='qemu'><name>guest</name><memory unit='MiB'>256</memory><vcpu>1</vcpu>"
            f"<os><type arch='x86_64' machine='pc'>hvm</type><kernel>{kernel}</kernel><initrd>{initrd}</initrd>"
            "<cmdline>console=ttyS0 quiet panic=-1</cmdline></os><features><acpi/></features>"
            f"<devices><controller type='scsi' model='virtio-scsi'/>{''.join(disks)}"
            f"<serial type='file'><source path='{self.console}'/></serial>"
            "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
            "<controller type='usb' model='none'/><memballoon model='none'/></devices></domain>")

    def said(self) -> str:
        return self.console.read_text(errors="replace")

    def last(self, what: str) -> int:
        """The number after the last ``what`` that the guest said, 0 before."""
        found = re.findall(rf"^{what} (\d+)\r?$", self.said(), re.M)
        return int(found[-1]) if found else 0

    def wait_for(self, what: str, timeout: float = BOOT_SECONDS) -> None:
        try:
            wait_until(lambda: what in self.said(), timeout)
        except AssertionError:
            raise AssertionError(f"the guest did not say {what!r}, but: {self.said()[-2000:]}") from None

    def wait_for_more(self, what: str, more: int = 1, timeout: float = 20) -> None:
        """Wait until the guest has counted on."""
        least = self.last(what) + more
        try:
            wait_until(lambda: self.last(what) >= least, timeout)
        except AssertionError:
            raise AssertionError(f"the guest stands still: {self.said()[-2000:]}") from None

    def stop(self) -> None:
        self.virt.destroy()


def newest_kernel() -> Path:
    return max(Path("/boot").glob("vmlinuz-*-cloud-amd64"), key=lambda path: path.stat().st_mtime)


def make_initrd(directory: Path, version: str, script: str, hook: str, modules: tuple[str, ...]) -> Path:
    root = directory / "root"
    for name in ("bin", "proc", "sys", "dev", "mnt", "modules", "var/run"):
        (root / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    order: list[str] = []
    for module in modules:
        for line in sh("modprobe", "-S", version, "--show-depends", module).splitlines():
            kind, path = line.split()[:2]
            if kind == "insmod" and os.path.basename(path) not in order:
                shutil.copy(path, root / "modules")
                order.append(os.path.basename(path))
    (root / "modules/order").write_text("\n".join(order) + "\n")
    for path in (AGENT, *re.findall(r"(?:=> |^\s*)(/\S+)", sh("ldd", AGENT), re.M)):
        target = root / ("bin/qemu-ga" if path == AGENT else path.lstrip("/"))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    for name, text in (("init", INIT + script), ("hook", "#!/bin/sh\n" + hook)):
        (root / name).write_text(text)
        (root / name).chmod(0o755)
    initrd = directory / "initrd"
    subprocess.run(f"find . | cpio -o -H newc --quiet | gzip -1 >{initrd}", shell=True, cwd=root, check=True)
    return initrd
