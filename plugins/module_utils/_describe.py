# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What modules return of a volume, in public terms."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING

from ._inventory import Host, Image
from ._model import Backing, Snapshot, Volume
from ._names import volume_uuid

if TYPE_CHECKING:
    from ._snapshot_table import SnapshotEntry


def describe(host: Host, image: Image) -> Volume:
    """The public description of a pool's volume."""
    if image.pool is None:
        raise ValueError(f"{image.path} lies in no pool")
    return Volume(
        name=image.name,
        uuid=volume_uuid(image.pool.uuid, image.name),
        key=image.key or image.path,
        path=image.path,
        pool=image.pool.name,
        type=image.type,
        format=image.format,
        capacity=image.capacity,
        allocation=image.allocation,
        attachments=host.attachments(image),
        backing=_describe_backing(host, image),
        dependents=host.dependents(image.ident),
        snapshots=tuple(describe_snapshot(entry) for entry in image.header.snapshots),
        encrypted=image.header.encryption is not None or image.format == "luks",
        cluster_size=image.header.cluster_size,
        compat=image.header.compat,
    )


def _describe_backing(host: Host, image: Image) -> Backing | None:
    stored = image.header.backing_file
    direct = image.backing
    if direct is None:
        if stored is None:
            return None
        return Backing(path=stored, format=image.header.backing_format, name=None, pool=None, chain=(stored,))
    home = host.home(direct.ident)
    return Backing(
        path=direct.path,
        format=image.header.backing_format or direct.format,
        name=home[1] if home else None,
        pool=home[0].name if home else None,
        chain=tuple(layer.path for layer in image.chain.layers),
    )


def describe_snapshot(entry: SnapshotEntry) -> Snapshot:
    """An internal snapshot in public terms."""
    moment = datetime.datetime.fromtimestamp(entry.date_sec, datetime.timezone.utc)
    return Snapshot(
        name=entry.name,
        id=entry.id,
        date=moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
        vm_state_size=entry.vm_state_size,
        disk_size=entry.disk_size,
    )
