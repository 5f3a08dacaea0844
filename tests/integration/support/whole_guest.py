# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A guest that Ansible can work in: Python, growpart and an SSH server on a partition that is its root file system.

Its programs are this machine's own, taken from the packages that it has installed; it boots as the guests of ``guests``."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import libvirt_qemu

from .guests import BOOT_SECONDS, MODULES, Guest
from .hypervisors import Hypervisor, disk
from .images import MIB, sh

PACKAGES = (
    "cloud-guest-utils", "coreutils", "dash", "dropbear-bin", "e2fsprogs", "fdisk", "grep", "libc-bin", "lvm2", "mawk", "mount",
    "python3", "sed", "util-linux",
)
NOT_NEEDED = re.compile(r"/usr/share/(doc|man|locale|info|lintian|bash-completion)/|/test/|/idlelib/|/ensurepip/|/lib2to3/")
NETWORK = "<interface type='user'><model type='virtio'/></interface>"

#: In the initrd, and then as the first program of the root file system.
BOOT = """
mount -t ext4 /dev/vda1 /mnt || exec sh
for place in proc sys dev; do mount --move /$place /mnt/$place; done
exec switch_root /mnt /sbin/start
"""
START = """#!/bin/busybox sh
PATH=/usr/sbin:/usr/bin:/sbin:/bin
exec </dev/null >/dev/ttyS0 2>&1
for place in run tmp; do mount -t tmpfs tmpfs /$place; done
mkdir /dev/pts
mount -t devpts devpts /dev/pts
busybox ip link set lo up
busybox ip addr add 10.0.2.15/24 dev eth0
busybox ip link set eth0 up
dropbear -r /root/host_key -s
# No udev makes the devices here.
without_udev="activation { udev_sync=0 udev_rules=0 verify_udev_operations=0 } devices { obtain_device_list_from_udev=0 }"
if [ -b /dev/vdb1 ]; then
    lvm vgcreate --config "$without_udev" data /dev/vdb1 &&
    lvm lvcreate --config "$without_udev" --wipesignatures n --zero n --extents 100%FREE --name all data
fi
echo ready
while :; do
    new=$(/bin/df --output=size / | tail -n 1)
    [ "$new" = "$old" ] || { echo "root $((new))"; old=$new; }
    sleep 0.5
done
"""


class WholeGuest(Guest):
    """Boots from the first partition of ``image``, a raw disk that ``make_disk`` made.

    On the first partition of ``data``, another raw disk, it makes a volume group ``data`` with a logical volume ``all``."""

    def __init__(self, hypervisor: Hypervisor, directory: Path, image: Path, key: Path, data: Path) -> None:
        disks = disk(image, "raw"), disk(data, "raw", "vdb")
        super().__init__(hypervisor, directory, BOOT, *disks, NETWORK, modules=(*MODULES, "dm_mod"))
        self.key = key

    def ansible(self) -> dict[str, Any]:
        """Variables of the inventory, once it is ready."""
        self.wait_for("\nready", 5 * BOOT_SECONDS)
        port = free_port()
        self.monitor(f"hostfwd_add hostnet0 tcp:127.0.0.1:{port}-:22")
        return {
            "ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": port, "ansible_user": "root",
            "ansible_become": False, "ansible_python_interpreter": "/usr/bin/python3", "ansible_ssh_private_key_file": str(self.key),
            "ansible_ssh_args": "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o ControlMaster=auto "
                                f"-o ControlPersist=300 -o ControlPath={self.console.parent}/ssh -o ConnectTimeout=60",
            "ansible_ssh_pipelining": True, "ansible_ssh_transfer_method": "piped",
        }

    def monitor(self, command: str) -> None:
        said = libvirt_qemu.qemuMonitorCommand(self.virt, command, libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP)
        assert said.strip() == "", said


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def make_disk(image: Path, key: Path, size: int, partition: int) -> None:
    """A raw disk whose first partition (GPT) holds a root file system that lets ``key``, which is made too, log in."""
    root = image.parent / f"{image.name}.root"
    sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
    try:
        fill_root(root, Path(f"{key}.pub").read_text())
        make_partitioned(image, size, partition)
        sh("mke2fs", "-q", "-F", "-t", "ext4", "-d", root, "-E", f"offset={MIB}", image, f"{partition // 1024}k")
    finally:
        shutil.rmtree(root, ignore_errors=True)


def make_partitioned(image: Path, size: int, partition: int) -> None:
    """A raw disk with one empty partition (GPT)."""
    with image.open("xb") as file:
        file.truncate(size)
    subprocess.run(["sfdisk", "-q", image], input=f"label: gpt\nstart=1MiB, size={partition // MIB}MiB\n", text=True, check=True)


def fill_root(root: Path, key: str) -> None:
    for name in ("usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "proc", "sys", "dev", "run", "tmp", "mnt", "root/.ssh", "etc", "var/tmp"):
        (root / name).mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    without = [f"--no-{kind}" for kind in "recommends suggests conflicts breaks replaces enhances".split()]
    needed = set(re.findall(r"^[a-z].*", sh("apt-cache", "depends", "--recurse", *without, *PACKAGES), re.M))
    here = set(re.findall(r"^installed (.*)", sh("dpkg-query", "-W", "-f", "${db:Status-Status} ${Package}\\n"), re.M))
    files = [path for path in sh("dpkg", "-L", *sorted(needed & here)).splitlines() if not NOT_NEEDED.search(path)]
    files = [path for path in files if path.startswith("/") and not Path(path).is_dir()]
    # Compiling takes its time in an emulated machine.
    files += [str(found) for path in files if path.endswith(".py")
              for found in Path(path).parent.glob(f"__pycache__/{Path(path).stem}.cpython-*.pyc")]
    files += ["/bin/busybox", "/etc/ld.so.cache"]
    names = "".join(f"{path.lstrip('/')}\n" for path in sorted(set(files)))
    subprocess.run(["cpio", "--quiet", "-pdm", root], input=names, text=True, cwd="/", check=True)
    (root / "usr/bin/awk").symlink_to("mawk")  # an alternative, of no package
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    (root / "etc/shells").write_text("/bin/sh\n")
    (root / "sbin/start").write_text(START)
    (root / "sbin/start").chmod(0o755)
    (root / "root/.ssh/authorized_keys").write_text(key)
    for private in (root / "root", root / "root/.ssh"):
        private.chmod(0o700)
    sh("dropbearkey", "-t", "ed25519", "-f", root / "root/host_key")
