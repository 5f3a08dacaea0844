# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A private hypervisor with its pools and domains; everything of it lives in one directory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

import libvirt
import libvirt_qemu

from .images import wait_until
from .runs import REPO

TOOL = REPO / "tools" / "hypervisor.py"

# The tests read the errors they expect; libvirt's own copy on stderr only confuses.
libvirt.registerErrorHandler(lambda _context, _error: None, None)


class Hypervisor:
    """Started on construction, gone with all its domains and files after ``stop``."""

    def __init__(self, root: Path, prefix: Sequence[str] = ()) -> None:
        self.root = root
        done = subprocess.run([*prefix, sys.executable, str(TOOL), "start", str(root)], stdout=subprocess.PIPE, text=True,
                              timeout=60, check=True)
        self.uri = done.stdout.strip()
        self.conn = libvirt.open(self.uri)

    def halt(self) -> None:
        """End the daemon alone, as a crash or an administrator would."""
        os.kill(int((self.root / "libvirtd.pid").read_text()), signal.SIGTERM)
        wait_until(lambda: not is_reachable(self.uri))

    def restart(self) -> None:
        """A new daemon in place of the old one, which dies at once."""
        subprocess.run(
            [sys.executable, str(TOOL), "restart", str(self.root)], stdout=subprocess.DEVNULL, timeout=60, check=True
        )
        self.conn = libvirt.open(self.uri)

    def stop(self) -> None:
        self.conn.close()
        subprocess.run(
            [sys.executable, str(TOOL), "stop", str(self.root)], stdout=subprocess.DEVNULL, timeout=60, check=True
        )


def is_reachable(uri: str) -> bool:
    try:
        libvirt.open(uri).close()
    except libvirt.libvirtError:
        return False
    return True


class Pool:
    """An active directory pool; ``path / name`` is where a volume is found."""

    def __init__(self, hypervisor: Hypervisor, name: str, path: Path, active: bool = True) -> None:
        self.hypervisor, self.name, self.path, self.active = hypervisor, name, path, active
        self.uuid = str(uuid.uuid4())
        path.mkdir(parents=True, exist_ok=True)
        self.virt = hypervisor.conn.storagePoolDefineXML(
            f"<pool type='dir'><name>{escape(name)}</name><uuid>{self.uuid}</uuid>"
            f"<target><path>{escape(str(path))}</path></target></pool>")
        if active:
            self.virt.create()

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def refresh(self) -> Pool:
        self.virt.refresh()
        return self

    def stop(self) -> None:
        self.virt.destroy()
        self.active = False

    def forget(self) -> None:
        if self.virt.isActive():
            self.virt.destroy()
        self.virt.undefine()


def disk(
    source: Path | tuple[str, str], fmt: str = "qcow2", target: str = "vda", *, block: bool = False,
    readonly: bool = False, device: str = "disk", extra: str = "", cached: bool = True,
) -> str:
    """A ``<disk>``: a path, or (pool, volume) for a source of type volume.

    Not ``cached``: a copy of it comes from the medium, and takes long enough to be met in its middle.
    """
    if isinstance(source, tuple):
        kind, where = "volume", f"pool={quoteattr(source[0])} volume={quoteattr(source[1])}"
    elif block:
        kind, where = "block", f"dev={quoteattr(str(source))}"
    else:
        kind, where = "file", f"file={quoteattr(str(source))}"
    bus = {"v": "virtio", "h": "ide", "s": "scsi"}[target[0]]
    cache = "" if cached else " cache='none'"
    return (f"<disk type='{kind}' device='{device}'><driver name='qemu' type='{fmt}'{cache}/><source {where}/>"
            f"<target dev='{target}' bus='{bus}'/>{'<readonly/>' if readonly else ''}{extra}</disk>")


def domain_xml(name: str, *disks: str, firmware: tuple[Path, Path] | None = None) -> str:
    """No operating system, 32 MiB: enough to hold disks open. ``firmware``: its code and where it keeps its state."""
    loader = f"<loader readonly='yes' type='pflash'>{firmware[0]}</loader><nvram>{firmware[1]}</nvram>" if firmware else ""
    return (
        f"<domain type='qemu'><name>{escape(name)}</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>"
        f"<os><type arch='x86_64' machine='pc'>hvm</type>{loader}</os><features><acpi/></features>"
        f"<devices>{''.join(disks)}<controller type='usb' model='none'/><memballoon model='none'/></devices></domain>"
    )


def guest_writes(domain: libvirt.virDomain, pattern: int, offset: int = 0, length: int = 1024**2) -> None:
    """Let the running domain's first disk change as its guest would do it: through the disk's own block backend."""
    for command in (f"write -P {pattern} {offset} {length}", "flush"):
        said = _as_guest(domain, command)
        assert said == "", said


def guest_reads(domain: libvirt.virDomain, pattern: int, offset: int = 0, length: int = 1024**2) -> bool:
    """Whether the guest of a running domain would find this pattern there on its first disk."""
    return _as_guest(domain, f"read -P {pattern} {offset} {length}") == ""


def _as_guest(domain: libvirt.virDomain, command: str) -> str:
    answer = json.loads(libvirt_qemu.qemuMonitorCommand(domain, '{"execute": "query-block"}', 0))
    drive = next(found["qdev"] for found in answer["return"] if "inserted" in found)
    return str(libvirt_qemu.qemuMonitorCommand(
        domain, f'qemu-io -d {drive} "{command}"', libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP)).strip()


def snapshot_outside(domain: libvirt.virDomain, name: str, layer: Path) -> None:
    """An external snapshot: the domain goes on in ``layer``, what it had is frozen below."""
    domain.snapshotCreateXML(
        f"<domainsnapshot><name>{name}</name><disks><disk name='vda' snapshot='external'>"
        f"<source file={quoteattr(str(layer))}/></disk></disks></domainsnapshot>",
        libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY)
