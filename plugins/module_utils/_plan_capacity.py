# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How large an image to be made is: its capacity, and what it takes when it is empty. No I/O."""

from __future__ import annotations

from collections.abc import Sequence

from ._errors import InvalidOption, InvalidSize, ShrinkRefused
from ._model import Pool
from ._plans import Wish
from ._size import MAX_BYTES, human, round_up
from ._steps import Source

DEFAULT_CLUSTER_SIZE = 65536
_MAX_L1_BYTES = 32 << 20  # QCOW_MAX_L1_SIZE in block/qcow2.h of QEMU


def largest_capacity(image_format: str, cluster_size: int | None) -> int:
    """The most bytes an image can have (block/qcow2.c: the L1 table is 32 MiB at most)."""
    if image_format != "qcow2":
        return MAX_BYTES // 512 * 512
    cluster = cluster_size or DEFAULT_CLUSTER_SIZE
    return min(_MAX_L1_BYTES // 8 * (cluster // 8) * cluster, MAX_BYTES // 512 * 512)


def settle_capacity(
    wish: Wish, *, name: str, pool: Pool, source: Source | None, image_format: str, cluster_size: int | None
) -> int:
    """The capacity of a volume to be made, in bytes; raises InvalidOption, InvalidSize or ShrinkRefused."""
    if source is None:
        if wish.size is None:
            raise InvalidOption(f"size is needed to create the blank volume {name!r}, for example size: 10G.", name=name)
        capacity = round_up(wish.size, pool.granularity)
    else:
        least = round_up(source.capacity, pool.granularity)
        capacity = least if wish.size is None else round_up(wish.size, pool.granularity)
        if capacity < least:
            raise ShrinkRefused(
                f"Volume {name!r} can't be made with {capacity} bytes: {source.label} has {least} bytes "
                f"({human(least)}). Leave size out or give at least that.",
                required=least,
            )
    most = largest_capacity(image_format, cluster_size)
    if capacity > most:
        raise InvalidSize(
            f"size: {capacity} bytes are more than a {image_format} volume can have "
            f"({most} bytes{' with this cluster_size' if image_format == 'qcow2' else ''})."
        )
    return capacity


def qcow2_options(cluster_size: int | None, features: Sequence[tuple[str, str]] = ()) -> dict[str, str]:
    """Creation options of a qcow2 image; the version is always said, since old tools default to an old one."""
    options = {"compat": "1.1", **dict(features)}
    if cluster_size is not None:
        options["cluster_size"] = str(cluster_size)
    return options


def empty_qcow2_bytes(capacity: int, cluster_size: int | None) -> int:
    """What a new qcow2 without any data takes: header, L1 table, refcount table and block (docs/interop/qcow2.txt)."""
    cluster = cluster_size or DEFAULT_CLUSTER_SIZE
    l1_bytes = round_up(capacity, cluster // 8 * cluster) // (cluster // 8 * cluster) * 8
    clusters = round_up(l1_bytes, cluster) // cluster + 2  # with the header and the refcount table
    blocks = -(-clusters // (cluster * 8 // 16 - 1))  # a refcount block counts itself too
    return (clusters + blocks) * cluster
