# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""File systems in files: real ones, of any kind and size."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from .images import sh

EXT4 = ("mke2fs", "-q", "-F", "-t", "ext4", "-m", "0")
#: Takes no space for itself later on.
PLAIN_EXT4 = (*EXT4, "-O", "^has_journal")
XFS = ("mkfs.xfs", "-q", "-f", "-m", "reflink=1")
BTRFS = ("mkfs.btrfs", "-q")


@contextlib.contextmanager
def mounted(mount: Path, size: int, maker: tuple[str, ...], *, image: Path | None = None, options: str = "loop") -> Iterator[Path]:
    """A new file system of ``size`` bytes, in a file beside the mount point if not in ``image``; yields the mount point."""
    image = image or mount.with_suffix(".img")
    with image.open("wb") as file:
        file.truncate(size)
    mount.mkdir()
    sh(*maker, image)
    sh("mount", "-o", options, image, mount)
    try:
        yield mount
    finally:
        sh("umount", mount)
        mount.rmdir()
        image.unlink()
