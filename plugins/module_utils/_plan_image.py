# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What an image can be: format, mode, preallocation and clusters, settled from what is asked for. No I/O."""

from __future__ import annotations

from ._errors import InvalidOption, Unsupported
from ._model import Pool, Rights
from ._plans import Wish


def check_wish(wish: Wish) -> None:
    """Refuse options that contradict each other, whatever is there; raises InvalidOption or InvalidSize."""
    if wish.template is not None and wish.snapshot is not None:
        raise InvalidOption("template and snapshot exclude each other: give the one to start from.")
    if (wish.snapshot is None) != (wish.snapshot_volume is None):
        raise InvalidOption("snapshot and snapshot_volume go together: the snapshot's name, and the volume it is of.")
    for option in ("template", "snapshot", "snapshot_volume"):
        if getattr(wish, option) == "":
            raise InvalidOption(f"{option} is empty: give a name, or leave the option out.")
    if wish.clone_mode is not None and wish.template is None:
        raise InvalidOption("clone_mode says how to use a template: give template too, or leave clone_mode out.")
    if wish.template_pool is not None and wish.template is None:
        raise InvalidOption("template_pool is where the template lies: give template too, or leave template_pool out.")
    if wish.snapshot_pool is not None and wish.snapshot is None:
        raise InvalidOption("snapshot_pool is where snapshot_volume lies: give snapshot too, or leave snapshot_pool out.")
    if wish.cluster_size is not None:
        check_cluster_size(wish.cluster_size)


def check_cluster_size(cluster_size: int) -> None:
    """Raises InvalidOption for what qcow2 can't have (docs/interop/qcow2.txt: 512 bytes to 2 MiB, a power of two)."""
    if not 512 <= cluster_size <= 2 << 20 or cluster_size & (cluster_size - 1):
        raise InvalidOption(
            f"cluster_size {cluster_size} is not possible: a power of two from 512 to 2M is, for example 64K."
        )


def settle_format(wish: Wish, pool: Pool) -> str:
    """The format of a volume to be made in a pool; raises Unsupported for qcow2 where volumes aren't files."""
    chosen = wish.format or pool.default_format
    if chosen == "qcow2" and not pool.stores_files:
        raise Unsupported(
            f"Pool {pool.name!r} (type {pool.type}) holds no image files, so its volumes are raw: leave format out, or "
            "choose a pool that is a directory."
        )
    return chosen


def settle_mode(wish: Wish, image_format: str) -> str | None:
    """``backing`` or ``full`` for a template, ``None`` without one; raises InvalidOption for a raw overlay."""
    if wish.template is None:
        return None
    if wish.clone_mode == "backing" and image_format == "raw":
        raise InvalidOption(
            "A raw volume can't have a backing file: use format qcow2 with clone_mode backing, or clone_mode full."
        )
    return wish.clone_mode or ("backing" if image_format == "qcow2" else "full")


#: What volumes of pools without files can have reserved, the default first, and why nothing else.
_RESERVATIONS = {
    "rbd": (("off",), "a Ceph cluster reserves nothing for an RBD volume, so its volumes are always thin"),
    "logical": (("falloc",), "LVM reserves all space of a logical volume, and writes nothing"),
    "zfs": (("falloc", "off"), "ZFS reserves a volume's space or doesn't, and writes nothing"),
}


def settle_preallocation(wish: Wish, *, image_format: str, overlay: bool, pool: Pool) -> str:
    """What to reserve for a new volume; raises InvalidOption for what a format can't do, Unsupported for what a pool can't."""
    if image_format == "raw":
        if wish.preallocation == "metadata":
            raise InvalidOption("preallocation metadata is for qcow2; a raw volume has none: use off, falloc or full.")
        if wish.cluster_size is not None:
            raise InvalidOption("cluster_size is for qcow2; a raw volume has no clusters.")
        return reserve_raw(pool, wish.preallocation)
    if overlay and wish.preallocation not in (None, "off"):
        raise InvalidOption(
            f"preallocation {wish.preallocation} would hide the template's data: "
            "an overlay takes preallocation off; use clone_mode full to reserve space."
        )
    return wish.preallocation or "off"


def reserve_raw(pool: Pool, wanted: str | None) -> str:
    """What to reserve for a raw volume, new or growing; raises Unsupported for what the pool's storage can't do."""
    if pool.type not in _RESERVATIONS:
        return wanted or "falloc"
    possible, why = _RESERVATIONS[pool.type]
    if wanted is not None and wanted not in possible:
        raise Unsupported(
            f"preallocation {wanted} is not possible in pool {pool.name!r} of type {pool.type}: {why}. Leave it out, or use "
            f"{' or '.join(possible)}."
        )
    return wanted or possible[0]


def refuse_rights_without_files(pool: Pool, rights: Rights) -> None:
    """Devices and network volumes have no rights of their own; raises Unsupported."""
    if not pool.stores_files and rights != Rights():
        raise Unsupported(
            f"owner, group and mode are for files; volumes of pool {pool.name!r} (type {pool.type}) are none. Leave them out."
        )
