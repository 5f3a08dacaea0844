# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What compressing a volume may do, and whether it is worth it: pure decisions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ._errors import StorageError, ToolFailed, Unsupported, VolumeHasDependents, VolumeInUse
from ._model import Attachment, Pool, Volume
from ._named_tuple import NamedTuple
from ._plan_capacity import empty_qcow2_bytes
from ._plan_delete import doubt_about
from ._plans import Facts, Plan, VolumePlan
from ._size import human


# By how much samples may be wrong about a share of the data: with 256 of them, nearly five standard errors of the worst case.
_DOUBT = 0.15


class CompressWish(NamedTuple):
    """What the caller of ``volume_compress`` asks for; ``compression`` is ``None``, ``zlib`` or ``zstd``."""

    method: str = "auto"
    compression: str | None = None
    min_reclaim: int = 1 << 20


class FileFacts(NamedTuple):
    """What a rewrite has to know of a volume's file and header."""

    is_link: bool = False
    names: int = 1  # hard links
    bitmaps: bool = False


class Gains(NamedTuple):
    """What was found in an image, in bytes: each part can be given back beside the others."""

    zeros: int = 0  # blocks of zeros, as holes
    trimmed: int = 0  # what no file system of the guest uses
    squeezed: int = 0  # what compressing the other data takes off, by samples


class Compress(NamedTuple):
    """The work on one volume: trim first, then rewrite, else give back zeros in place; sizes in bytes."""

    pool: Pool
    name: str
    path: str
    trim: bool
    compression: str | None
    gains: Gains
    min_reclaim: int
    note: str | None = None  # why it isn't trimmed

    @property
    def expected(self) -> int:
        squeezed = self.gains.squeezed if self.compression else 0
        return self.gains.zeros + squeezed + (self.gains.trimmed if self.trim else 0)

    @property
    def text(self) -> str:
        how = ["trim what its guest's file systems don't use"] if self.trim else []
        if self.compression:
            how.append(f"rewrite it with {self.compression} compression")
        elif self.gains.zeros or not self.trim:
            how.append("give back its blocks of zeros")
        note = f" (zeros alone: {self.note})" if self.note else ""
        # What a trim gives back differs by some blocks each time that it is tried, and check mode says the same as the real run.
        about = "about " if self.compression else ""
        much = "" if self.trim else f"; {about}{self.expected} bytes ({human(self.expected)}) less"
        return f"compress volume {self.name!r} in pool {self.pool.name!r}: {', '.join(how)}{much}{note}"


class Saving(NamedTuple):
    """How one volume's allocation changes, in bytes; predicted until it is measured."""

    name: str
    method: str
    compression: str | None
    before: int
    after: int

    def to_result(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "method": self.method,
            "compression": self.compression or "none",
            "allocation_before": self.before,
            "allocation_after": self.after,
            "reclaimed": self.before - self.after,
        }


class CompressPlan(Plan):
    """A plan whose steps are of this module's own kind, at most one for a volume, in the order of the names."""

    def __init__(
        self, volumes: tuple[VolumePlan, ...] = (), work: tuple[Compress, ...] = (), savings: tuple[Saving, ...] = ()
    ) -> None:
        super().__init__(volumes)
        self.work = work
        self.savings = savings

    @property
    def changed(self) -> bool:
        return bool(self.work)

    @property
    def actions(self) -> list[str]:
        return [step.text for step in self.work]

    def without(self, name: str) -> CompressPlan:
        """The same plan when it turned out that there is nothing to gain for one volume."""
        return CompressPlan(
            volumes=tuple(v._replace(after=v.before) if v.name == name else v for v in self.volumes),
            work=tuple(step for step in self.work if step.name != name),
            savings=self.savings,
        )


# -- who may be touched ----------------------------------------------------------------------------


def refuse_others(*, volume: Volume, pool: Pool) -> None:
    """Refuse what has no clusters to give back; raises Unsupported."""
    if volume.format != "qcow2":
        raise Unsupported(
            f"Volume {volume.name!r} in pool {pool.name!r} has format {volume.format}; only qcow2 volumes are "
            "compressed. Make a qcow2 copy of it with volume_clone.",
            format=volume.format,
        )
    if volume.type != "file" or not pool.stores_files:
        raise Unsupported(
            f"Volume {volume.name!r} in pool {pool.name!r} is no file but a {volume.type} volume, whose size on storage "
            "is fixed."
        )


def refuse_busy(*, volume: Volume, facts: Facts, above: Sequence[Attachment]) -> None:
    """Refuse a volume that is attached or open; ``above``: uses of its dependents. Raises VolumeInUse.

    A base may be compressed as long as nobody reads it: what its overlays see stays the same.
    """
    where = f"volume {volume.name!r} of pool {volume.pool!r}"
    attached = [use for use in volume.attachments if use.via == "disk"]
    if attached:
        raise VolumeInUse(
            f"Cannot compress {where}: it is attached to domain {attached[0].domain!r} ({attached[0].state}). "
            "Detach it, also from the persistent definition, and run again.",
            attachments=[use.to_result() for use in volume.attachments],
        )
    live = [use for use in (*volume.attachments, *above) if use.live]
    if live:
        raise VolumeInUse(
            f"Cannot compress {where}: the running domain {live[0].domain!r} uses it as a backing layer. Stop the "
            "domain and run again.",
            attachments=[use.to_result() for use in live],
            dependents=[dependent.to_result() for dependent in volume.dependents],
        )
    if facts.opened is not None:
        raise VolumeInUse(
            f"Cannot compress {where}: a process has it open ({facts.opened}), though no domain of this host runs on it: "
            "a QEMU of another host, a bare QEMU, qemu-nbd or qemu-img. 'lslocks' on the hosts that share the pool "
            "finds it.",
            attachments=[],
        )
    if facts.loop_devices:
        raise VolumeInUse(
            f"Cannot compress {where}: {', '.join(facts.loop_devices)} has it as its file. Detach it ('losetup -d').",
            attachments=[],
        )


def obstacle_to_trim(*, volume: Volume, unread: str | None = None) -> StorageError | None:
    """Why a volume must not be trimmed though its zeros may be given back, or ``None``.

    Trimming keeps files, not every block: what lies above would see other blocks below it.
    """
    where = f"Volume {volume.name!r} of pool {volume.pool!r} can't be trimmed"
    if unread is not None:
        return ToolFailed(f"{where}: {doubt_about(unread)}")
    if volume.dependents:
        return VolumeHasDependents(
            f"{where}: other volumes have it as their backing file, and would see its blocks change. "
            "Use method: zeros.",
            dependents=[dependent.to_result() for dependent in volume.dependents],
        )
    if volume.attachments:
        return VolumeInUse(
            f"{where}: domain {volume.attachments[0].domain!r} has it below a disk or in a snapshot, and would see its "
            "blocks change. Use method: zeros.",
            attachments=[use.to_result() for use in volume.attachments],
        )
    if volume.backing is not None and volume.compat == "0.10":
        return Unsupported(
            f"{where}: an overlay in the old format compat 0.10 can't hide its backing file's data. Use method: zeros, "
            "or upgrade it ('qemu-img amend -o compat=1.1')."
        )
    return None


def refuse_rewrite(*, volume: Volume, compression: str, file: FileFacts) -> None:
    """Refuse to rewrite a volume where something would be lost with the old file; raises Unsupported."""
    where = f"Volume {volume.name!r} of pool {volume.pool!r} can't be rewritten with compression"
    advice = "Use compression: none, which works in place."
    if volume.snapshots:
        raise Unsupported(
            f"{where}: its {len(volume.snapshots)} internal snapshots would be lost. {advice}",
            snapshots=[snapshot.name for snapshot in volume.snapshots],
        )
    if file.bitmaps:
        raise Unsupported(f"{where}: its bitmaps, with which incremental backups go on, would be lost. {advice}")
    if file.is_link:
        raise Unsupported(f"{where}: it is a symbolic link. Compress the volume where it lies. {advice}")
    if file.names > 1:
        raise Unsupported(
            f"{where}: its file has {file.names} names (hard links), of which only one would change. {advice}"
        )
    if compression == "zstd" and volume.compat == "0.10":
        raise Unsupported(
            f"{where}: zstd needs qcow2 compat 1.1, and it has the old 0.10. Use compression: zlib, or upgrade it "
            "('qemu-img amend -o compat=1.1')."
        )


# -- what to do ------------------------------------------------------------------------------------


def is_surely_worth_it(*, share: float, data: int, min_reclaim: int) -> bool:
    """Whether a rewrite brings enough if compression takes about this share off the data (bytes), by samples."""
    return data * (share - _DOUBT) >= min_reclaim


def room_for_rewrite(*, capacity: int, cluster_size: int, content: int) -> int:
    """The most bytes that a rewritten image can come to take, when nothing in it can be compressed.

    ``content``: the bytes that aren't zeros, by whole clusters of up to 64 KiB. Layout: QEMU's docs/interop/qcow2.txt.
    """
    clusters = -(-content // min(cluster_size, 65536))  # larger ones may hold no more than one part of that size
    by_table = cluster_size // 16 * cluster_size  # what an L2 table leads to, with entries of 16 bytes at most
    tables = min(clusters, -(-capacity // by_table)) * cluster_size
    counts = clusters * 8 + cluster_size  # reference counts of 64 bits at most
    # A cluster with zeros in it may be larger compressed than what else it holds, but not by much (RFC 1951, RFC 8878).
    return content + content // 128 + tables + counts + empty_qcow2_bytes(capacity, cluster_size)


def plan_compress(
    *, volume: Volume, pool: Pool, wish: CompressWish, trims: bool, note: str | None, gains: Gains
) -> tuple[VolumePlan, Compress | None, Saving]:
    """What to do with one volume, by what was found in it; nothing when that is less than ``min_reclaim``."""
    trim = trims and gains.trimmed > 0
    # What is squeezed already has nothing more to give; then its zeros can go in place.
    compression = wish.compression if wish.compression and gains.squeezed >= wish.min_reclaim else None
    step = Compress(pool, volume.name, volume.path, trim, compression, gains, wish.min_reclaim, note)
    worth = 0 < step.expected >= wish.min_reclaim
    after = max(volume.allocation - step.expected, 0) if worth else volume.allocation
    planned = VolumePlan(
        name=volume.name,
        steps=(),
        before={**volume.to_diff(), "allocation": volume.allocation},
        after={**volume.to_diff(), "allocation": after},
        result=volume._replace(allocation=after),
    )
    saving = Saving(volume.name, "trim" if trims else "zeros", compression if worth else None, volume.allocation, after)
    return planned, step if worth else None, saving
