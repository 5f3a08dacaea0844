# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A Ceph cluster of one node with one pool: a monitor, a manager for its figures, and an OSD on a file; all in one directory."""

from __future__ import annotations

import base64
import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .images import MIB, wait_until

POOL = "images"
USER = "libvirt"
#: The manager's modules do nothing for us, and start slowly.
_MODULES = "alerts balancer crash devicehealth iostat orchestrator pg_autoscaler progress rbd_support status telemetry volumes"
_CAPS = {
    "mon.": ("mon", "allow *"),
    "client.admin": ("mon", "allow *", "osd", "allow *", "mgr", "allow *"),
    "mgr.x": ("mon", "allow profile mgr", "osd", "allow *", "mds", "allow *"),
    "osd.0": ("mon", "allow profile osd", "mgr", "allow profile osd", "osd", "allow *"),
    f"client.{USER}": ("mon", "profile rbd", "osd", "profile rbd", "mgr", "profile rbd"),
}


class Ceph:
    """Started on construction, its daemons in the foreground of children that die with us; gone after ``stop``."""

    def __init__(self, root: Path, size: int = 720 * MIB) -> None:
        self.root = root
        self._daemons: list[subprocess.Popen[bytes]] = []
        root.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        (root / "ceph.conf").write_text(self._config(size))
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _config(self, size: int) -> str:
        self.fsid = str(uuid.uuid4())
        return "\n".join((
            "[global]", f"fsid = {self.fsid}", f"mon_host = v1:127.0.0.1:{self.port}", "public_addr = 127.0.0.1",
            "auth_cluster_required = cephx", "auth_service_required = cephx", "auth_client_required = cephx",
            f"keyring = {self.root}/keyring", f"run_dir = {self.root}", f"log_file = {self.root}/$name.log",
            f"mon_data = {self.root}/mon", f"mgr_data = {self.root}/mgr", f"osd_data = {self.root}/osd",
            "osd_pool_default_size = 1", "osd_pool_default_min_size = 1", "osd_crush_chooseleaf_type = 0",
            "mon_data_avail_crit = 1", "mon_data_avail_warn = 1", "mon_max_pg_per_osd = 1000",
            "ms_bind_msgr2 = false", "ms_bind_ipv6 = false", "mgr_stats_period = 1", "mgr_initial_modules =",
            f"mgr_disabled_modules = {_MODULES}", "osd_objectstore = bluestore", f"bluestore_block_size = {size}",
            "osd_memory_target = 939524096", "rbd_default_features = 61",
            "[mon]", f"admin_socket = {self.root}/$name.asok", "[osd]", f"admin_socket = {self.root}/$name.asok",
            "[mgr]", f"admin_socket = {self.root}/$name.asok", "",
        ))

    def _start(self) -> None:
        keyring, monmap = self.root / "keyring", self.root / "monmap"
        for number, (name, caps) in enumerate(_CAPS.items()):
            pairs = [text for kind, what in zip(caps[::2], caps[1::2]) for text in ("--cap", kind, what)]
            self._run("ceph-authtool", keyring, *(["--create-keyring"] if number == 0 else []), "--gen-key", "-n", name, *pairs)
        for directory in ("mon", "mgr", "osd"):
            (self.root / directory).mkdir()
        self._run("monmaptool", "--create", "--addv", "a", f"[v1:127.0.0.1:{self.port}]", "--fsid", self.fsid, monmap)
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)
        self._daemon("ceph-mon", "a")
        self._daemon("ceph-mgr", "x")
        osd = str(uuid.uuid4())
        self.ceph("osd", "new", osd)
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        self._daemon("ceph-osd", "0")
        self.ceph("osd", "pool", "create", POOL, "8")
        self.rbd("pool", "init", POOL)
        wait_until(lambda: json.loads(self.ceph("df", "--format", "json"))["stats"]["total_avail_bytes"] > 0, timeout=60)

    def _daemon(self, program: str, name: str) -> None:
        with (self.root / f"{program}.out").open("wb") as out:
            self._daemons.append(subprocess.Popen(
                [program, "-f", "-i", name, "-c", self.root / "ceph.conf"], stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                preexec_fn=_die_with_us))

    def _run(self, program: str, *arguments: str | Path, timeout: float = 60) -> str:
        done = subprocess.run(
            [program, *map(str, arguments)], capture_output=True, text=True, timeout=timeout, check=False,
            env={**os.environ, "CEPH_CONF": str(self.root / "ceph.conf")})
        assert done.returncode == 0, f"{program} {arguments} gave {done.returncode}: {done.stderr}{done.stdout}"
        return done.stdout

    def ceph(self, *arguments: str) -> str:
        return self._run("ceph", "--connect-timeout", "30", *arguments)

    def rbd(self, *arguments: str) -> str:
        return self._run("rbd", *arguments)

    def spec(self, image: str, snapshot: str = "") -> str:
        """An image as QEMU's tools take it."""
        ceph = {"driver": "rbd", "pool": POOL, "image": image, "conf": str(self.root / "ceph.conf")}
        return "json:" + json.dumps({"driver": "raw", "file": {**ceph, **({"snapshot": snapshot} if snapshot else {})}})

    def images(self) -> list[str]:
        return sorted(json.loads(self.rbd("ls", "--format", "json", POOL)))

    def info(self, image: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.rbd("info", "--format", "json", f"--pool={POOL}", f"--image={image}"))
        return found

    def snapshots(self, image: str) -> list[str]:
        listed = json.loads(self.rbd("snap", "ls", "--all", "--format", "json", f"--pool={POOL}", f"--image={image}"))
        return [found["name"] for found in listed]

    def clear(self) -> None:
        """Remove all images, clones first."""
        listed = json.loads(self.rbd("ls", "--long", "--format", "json", POOL))
        children = [found for found in listed if "parent" in found and "snapshot" not in found]
        for found in listed:
            if found.get("protected") == "true":
                self._drop_children(children, found["image"], found["snapshot"])
        for name in self.images():
            of = (f"--pool={POOL}", f"--image={name}")
            if any("snapshot" in found and found["image"] == name for found in listed):
                self.rbd("snap", "purge", "--no-progress", *of)
            self.rbd("rm", "--no-progress", *of)

    def _drop_children(self, children: list[dict[str, Any]], image: str, snapshot: str) -> None:
        for child in children:
            if (child["parent"]["image"], child["parent"]["snapshot"]) == (image, snapshot):
                self.rbd("flatten", "--no-progress", f"--pool={POOL}", f"--image={child['image']}")
        self.rbd("snap", "unprotect", f"--pool={POOL}", f"--image={image}", f"--snap={snapshot}")

    def key(self) -> bytes:
        """The key of the user that libvirt is."""
        return base64.b64decode(self._run("ceph-authtool", self.root / "keyring", "-p", "-n", f"client.{USER}"))

    def stop(self) -> None:
        for daemon in reversed(self._daemons):
            daemon.kill()
        for daemon in self._daemons:
            daemon.wait()


def _die_with_us() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


@contextlib.contextmanager
def opened_by_qemu_io(ceph: Ceph, image: str) -> Iterator[None]:
    """A bare qemu process, unknown to libvirt, that has the image open for writing."""
    with subprocess.Popen(["qemu-io", ceph.spec(image)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout.read(8) == b"qemu-io>"
            yield
        finally:
            holder.stdin.close()
            holder.wait()
