# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is asked of one image before something is done with it: who has it open, and where a tool finds it."""

from __future__ import annotations

import os

from ._directory import loop_devices_on
from ._image_locks import image_users
from ._inventory import Host, Image
from ._plans import Facts


def facts_of(host: Host, image: Image | None) -> Facts:
    """Who has an image open, whether libvirt knows them or not, and what the storage itself keeps of it."""
    if image is None:
        return Facts()
    if image.type == "network":
        if image.pool is None or image.pool.type != "rbd":
            return Facts()
        watched = "writing" if host.ceph.way_to(image.pool).watchers(image.name) else None
        known = host.ceph.images(image.pool).get(image.name)
        return Facts(opened=watched, snapshots=known.snapshots if known is not None else ())
    loops = tuple(loop_devices_on(image.ident)) if image.type == "file" else ()
    return Facts(opened=image_users(image.path), loop_devices=loops, names=_count_names(image), unread=host.unread(image.ident))


def location_of(host: Host, image: Image) -> tuple[str, tuple[int, ...]]:
    """Where a tool finds an image, and the descriptors that it must inherit for that; raises Unsupported."""
    if image.type != "network" or image.pool is None:
        return image.path, ()
    ceph = host.ceph.way_to(image.pool)
    return ceph.location(image.name), ceph.pass_fds


def _count_names(image: Image) -> int:
    try:
        return 1 if image.is_link or image.type != "file" else os.lstat(image.path).st_nlink
    except OSError:  # gone meanwhile
        return 1
