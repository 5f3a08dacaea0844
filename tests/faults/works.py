# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One wish for each kind of work that the modules do on files, and the images that it starts from."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from ansible_collections.hypervisor.storage.plugins.modules import volume, volume_clone, volume_compress, volume_resize
from ansible_collections.hypervisor.storage.tests.unit.fake_hypervisor import Hypervisor

MIB = 1024**2


class Work(NamedTuple):
    """A module's wish, the file that is tampered with, and what may be said when it is gone (``None``: all is well)."""

    module: ModuleType
    wish: dict[str, Any]
    reasons: set[str | None]
    victim: str = "a"


WORKS = {
    "full copy of a template": Work(volume, {"name": "b", "template": "a", "clone_mode": "full"}, {"template_not_found"}),
    "full copy of a path": Work(volume, {"name": "b", "template": "{0}/a", "clone_mode": "full"}, {"template_not_found"}),
    "overlay of a template": Work(volume, {"name": "b", "template": "a"}, {"template_not_found"}),
    "overlay of a path": Work(volume, {"name": "b", "template": "{0}/a"}, {"template_not_found"}),
    "overlay of an overlay": Work(volume, {"name": "b", "template": "over"}, {"unsafe_image"}),
    "full copy of an overlay": Work(volume, {"name": "b", "template": "over", "clone_mode": "full"}, {"unsafe_image"}),
    "comparison with a template": Work(volume, {"name": "over", "template": "a"}, {"template_not_found"}),
    "restore": Work(volume, {"name": "b", "snapshot": "s", "snapshot_volume": "a"}, {"volume_not_found"}),
    "clone": Work(volume_clone, {"name": "b", "source": "a"}, {"volume_not_found"}),
    "verified clone": Work(volume_clone, {"name": "b", "source": "a", "verify": True}, {"volume_not_found"}),
    "clone of an overlay": Work(volume_clone, {"name": "b", "source": "over"}, {"unsafe_image"}),
    "clone of raw": Work(volume_clone, {"name": "b", "source": "r"}, {"volume_not_found"}, "r"),
    "clone of an overlay of raw": Work(volume_clone, {"name": "b", "source": "over-r"}, {"unsafe_image"}, "r"),
    "verified clone of an overlay of raw": Work(
        volume_clone, {"name": "b", "source": "over-r", "verify": True, "format": "raw"}, {"unsafe_image"}, "r"),
    "restore of an overlay": Work(volume, {"name": "b", "snapshot": "t", "snapshot_volume": "over-r"}, {"unsafe_image"}, "r"),
    "growth of an overlay": Work(volume_resize, {"name": "over-r", "size": "3M"}, {"unsafe_image"}, "r"),
    "rewrite of an overlay": Work(
        volume_compress, {"name": "over", "method": "zeros", "compression": "zlib", "min_reclaim": "64K"}, {"unsafe_image"}),
    "growth": Work(volume_resize, {"name": "alone", "size": "3M"}, {"volume_not_found"}, "alone"),
    "growth of raw": Work(volume_resize, {"name": "r", "size": "3M"}, {"volume_not_found"}, "r"),
    "compression": Work(
        volume_compress, {"name": "alone", "method": "zeros", "min_reclaim": "64K"}, {"volume_not_found"}, "alone"),
    "rewrite": Work(
        volume_compress, {"name": "alone", "method": "zeros", "compression": "zlib", "min_reclaim": "64K"},
        {"volume_not_found"}, "alone"),
    "delete": Work(volume, {"name": "alone", "state": "absent"}, {None}, "alone"),
    "delete with wipe": Work(volume, {"name": "alone", "state": "absent", "wipe": True}, {None}, "alone"),
}  # fmt: skip
#: These don't need the file any more once they are done.
INDEPENDENT = [name for name in WORKS if "copy" in name or "clone" in name or "restore" in name]


def wish_of(work: Work, lab: Hypervisor) -> dict[str, Any]:
    return {key: value.format(lab.directory) if key == "template" else value for key, value in work.wish.items()}


def content_of(path: Path, fmt: str) -> bytes:
    """What a guest reads."""
    target = path.parent.parent / "content"
    subprocess.run(["qemu-img", "convert", "-f", fmt, "-O", "raw", path, target], check=True)
    return target.read_bytes()


def make_masters(directory: Path) -> Path:
    """What each run starts from: images of the same data."""
    # Half of it can be squeezed out, so that a rewrite is worth it.
    (directory / "r").write_bytes(os.urandom(MIB // 2).hex().encode() + bytes(MIB))
    run = functools.partial(subprocess.run, check=True, cwd=directory)
    run(["qemu-img", "create", "-q", "-f", "qcow2", "a", "2M"])
    run(["qemu-io", "-f", "qcow2", "-c", "write -q -s r 0 2M", "a"])
    shutil.copy(directory / "a", directory / "alone")
    run(["qemu-img", "snapshot", "-c", "s", "a"])
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", "a", "-F", "qcow2", "over", "2M"])
    run(["qemu-io", "-f", "qcow2", "-c", "write -q -s r 0 512k", "over"])
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", "r", "-F", "raw", "over-r", "2M"])
    run(["qemu-img", "snapshot", "-c", "t", "over-r"])
    return directory


def lay_out(lab: Hypervisor, masters: Path) -> None:
    shutil.rmtree(lab.directory)
    shutil.copytree(masters, lab.directory)
    lab.connection.refresh(lab.connection.pool("default"))
