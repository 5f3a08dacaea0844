# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The use case behind ``volume_compress``: find what takes room for nothing, and give it back.

Zeros become holes in the image's file: nothing the image says changes, so its chain, snapshots and overlays
stay right at every moment. A trim is first tried on an overlay that is thrown away, which tells what it would
bring without a write to the image. A rewrite makes a second file that takes the first one's place when it is
complete and compared.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from . import _clusters, _holes, _image_locks, _requests, _staging, _trust
from ._describe import describe
from ._directory import loop_devices_on
from ._errors import Exchanged, InsufficientSpace, StorageError, ToolFailed, told_as_changed
from ._facts import facts_of
from ._held_image import HeldImage, where_is
from ._image_header import ImageHeader, read_header
from ._inventory import Host, Image
from ._libguestfs import Libguestfs
from ._model import Attachment, Pool
from ._named_volumes import NamedVolumes, assert_writable, need_image
from ._pinned import pin_image
from ._plan_compress import (
    Compress,
    CompressPlan,
    CompressWish,
    FileFacts,
    Gains,
    Saving,
    obstacle_to_trim,
    plan_compress,
    refuse_busy,
    refuse_others,
    refuse_rewrite,
)
from ._plan_space import check_space
from ._plans import Facts, Plan
from ._qemu_img import QemuImg
from ._refresh import assert_refreshable, tell_libvirt

_MAKE_ROOM = "Free space first, also with compression: none, which gives zeros back in place."


class CompressTask(NamedVolumes):
    """One call of ``volume_compress``."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        super().__init__(params)
        self._wish = CompressWish(
            method=params["method"],
            compression=None if params["compression"] == "none" else params["compression"],
            min_reclaim=_requests.read_size(params["min_reclaim"], option="min_reclaim") or 0,
        )
        self._qemu_img = QemuImg()
        self._libguestfs = Libguestfs()
        self._held: contextlib.ExitStack | None = None  # of a real run, to its end
        self._found: dict[str, HeldImage] = {}
        self._savings: tuple[Saving, ...] = ()

    @contextlib.contextmanager
    def guard(self, host: Host) -> Iterator[None]:
        """Hold the names, and from the decision on the images."""
        with super().guard(host), contextlib.ExitStack() as self._held:
            yield

    def decide(self, host: Host) -> CompressPlan:
        """Look into all volumes and plan; raises before anything is done if one is refused."""
        if self._held is not None:  # what an earlier look held is looked at anew
            self._held.close()
        pool = host.pool(self.pool_name)
        trims = {name: self._look(host, pool, name) for name in self.names}
        plans, work, savings = [], [], []
        need = 0
        for name, why_not in trims.items():
            with contextlib.ExitStack() as passing:
                image = need_image(host, pool, name)
                held = HeldImage.take(image)
                passing.callback(held.release)
                image = image._replace(allocation=held.settled_allocation())
                gains, trim, why_not = self._search(image, held, why_not)
                planned, step, saving = plan_compress(
                    volume=describe(host, image),
                    pool=pool,
                    wish=self._wish,
                    trims=trim,
                    note=_brief(why_not) if why_not is not None else None,
                    gains=gains,
                )
                plans.append(planned)
                savings.append(saving)
                if step is None:
                    continue
                work.append(step)
                if step.compression:
                    need = max(need, held.room_for_rewrite(host.free_bytes(pool)))
                if self._held is not None:
                    self._found[name] = held
                    self._held.push(passing.pop_all())
        if work:
            assert_writable(pool, [step.name for step in work])
            assert_refreshable(host, pool)
        if need:  # one at a time: each gives room back before the next
            names = [step.name for step in work if step.compression]
            check_space(
                pool=pool, names=names, required=need, thin=0, available=host.free_bytes(pool), overcommit=True, advice=_MAKE_ROOM
            )
        self._savings = tuple(savings)
        return CompressPlan(volumes=tuple(plans), work=tuple(work), savings=self._savings)

    def carry_out(self, host: Host, plan: CompressPlan) -> CompressPlan:
        """Do one volume after the other; the plan comes back with what was measured."""
        told = False
        outcome, done, saved = plan, [], {saving.name: saving for saving in plan.savings}
        pool = host.pool(self.pool_name)
        try:
            for step in plan.work:
                before = saved[step.name].before
                with _staging.explained(f"compress volume {step.name!r} of pool {step.pool.name!r}"):
                    used = self._compress(host, step)
                after = _allocation(step.path)
                saved[step.name] = saved[step.name]._replace(after=after, compression=used if after < before else None)
                if after == before and not step.trim:
                    outcome = outcome.without(step.name)
                    continue
                done.append(step)
            told = True
            tell_libvirt(host, pool)
        except StorageError as error:
            if done and not told:
                with contextlib.suppress(StorageError):  # the first failure is the one to report
                    tell_libvirt(host, pool)
            names = [each.name for each in done]
            error.facts.setdefault("changed", bool(done))
            error.facts.setdefault("actions", [each.text for each in done])
            error.facts.setdefault("done", names)
            error.facts.setdefault("not_done", [each.name for each in plan.work if each.name not in names])
            raise
        self._savings = tuple(saved[saving.name] for saving in plan.savings)
        return CompressPlan(outcome.volumes, outcome.work, self._savings)

    def extra_result(self, plan: Plan) -> dict[str, Any]:
        """The sums, and each volume's share."""
        before, after = sum(s.before for s in self._savings), sum(s.after for s in self._savings)
        return {
            "allocation_before": before,
            "allocation_after": after,
            "reclaimed": before - after,
            "savings": [saving.to_result() for saving in self._savings],
        }

    # -- look --------------------------------------------------------------------------------------

    def _look(self, host: Host, pool: Pool, name: str) -> StorageError | None:
        """Refuse what can't be compressed; returns why it can't be trimmed."""
        image = need_image(host, pool, name)
        volume = describe(host, image)
        refuse_others(volume=volume, pool=pool)
        _trust.assert_no_way_out(host, image, where_is(image))
        _trust.assert_readable(host, image, where_is(image))
        refuse_busy(volume=volume, facts=facts_of(host, image), above=_uses_above(host, image))
        if self._wish.compression:
            refuse_rewrite(volume=volume, compression=self._wish.compression, file=_file_facts(image))
        if self._wish.method == "zeros":
            return None
        why_not = obstacle_to_trim(volume=volume, unread=host.unread(image.ident)) or self._libguestfs.missing()
        if why_not is not None and self._wish.method == "trim":
            raise why_not
        return why_not

    def _search(
        self, image: Image, held: HeldImage, why_not: StorageError | None
    ) -> tuple[Gains, bool, StorageError | None]:
        """What can be gained in an image that stands still; whether it is trimmed, and if not, why."""
        trimmed = None
        if image.allocation < self._wish.min_reclaim:
            return Gains(), False, why_not
        if self._wish.method != "zeros" and why_not is None:
            try:
                trimmed = self._try_trim(image)
            except (ToolFailed, InsufficientSpace) as error:
                if self._wish.method == "trim":
                    raise
                why_not = error
        gains = held.gains(compression=self._wish.compression, min_reclaim=self._wish.min_reclaim, trimmed=trimmed)
        return gains, trimmed is not None, why_not

    def _try_trim(self, image: Image) -> mmap.mmap:
        """Trim an overlay that is thrown away, and read from it which guest clusters a trim gives back."""
        where = where_is(image)
        directory = _scratch_directory()
        _staging.sweep(directory)
        # By name, since libguestfs looks where a path really leads.
        with _staging.stage(directory, named=True) as staged:
            self._qemu_img.create(
                path=staged.path,
                image_format="qcow2",
                capacity=image.capacity,
                options={"compat": "1.1", "cluster_size": str(image.header.cluster_size)},
                backing=(image.path, "qcow2"),
            )
            self._libguestfs.sparsify(staged.path, what=f"find out what a trim of the {where} brings")
            with _staging.explained("read what a trim brings"):
                return _clusters.read_zeroed(staged.fd, read_header(staged.fd), where=where)

    # -- do ----------------------------------------------------------------------------------------

    def _compress(self, host: Host, step: Compress) -> str | None:
        """Do one volume's work; returns the compression that it was rewritten with."""
        held = self._found.pop(step.name)
        if step.trim:
            self._claim(host, step, held)
            held.release()  # virt-sparsify takes QEMU's own lock
            self._libguestfs.sparsify(step.path, what=f"trim volume {step.name!r} of pool {step.pool.name!r}")
            with told_as_changed(), _staging.explained(f"compress volume {step.name!r} of pool {step.pool.name!r}"):
                return self._give_back(host, step, self._take_again(host, step))
        return self._give_back(host, step, held)

    def _give_back(self, host: Host, step: Compress, held: HeldImage) -> str | None:
        """Rewrite, or dig out zeros; lets go of the volume in any case."""
        try:
            if step.compression and self._rewrite(host, step, held, step.compression):
                return step.compression
            found = held.find()
            if found.zero_bytes and (step.trim or found.zero_bytes >= step.min_reclaim):
                self._claim(host, step, held)
                self._dig(step, held, found)
            return None
        finally:
            held.release()

    def _take_again(self, host: Host, step: Compress) -> HeldImage:
        """Hold and map the volume anew after somebody else wrote to it."""
        host.forget()
        image = need_image(host, step.pool, step.name)
        held = HeldImage.take(image)
        held.settled_allocation()
        return held

    def _claim(self, host: Host, step: Compress, held: HeldImage) -> None:
        """Make the hold exclusive, then look once more who uses it: a domain may have come since the plan."""
        _image_locks.claim_image(held.fd, path=step.path, what=f"compress volume {step.name!r}")
        host.forget()
        image = need_image(host, step.pool, step.name)
        if image.ident != held.ident:
            raise Exchanged(f"Volume {step.name!r} in pool {step.pool.name!r} was exchanged meanwhile. Run again.")
        volume = describe(host, image)
        refuse_busy(
            volume=volume, facts=Facts(loop_devices=tuple(loop_devices_on(image.ident))), above=_uses_above(host, image)
        )
        if step.trim:
            why_not = obstacle_to_trim(volume=volume, unread=host.unread(image.ident))
            if why_not is not None:
                raise why_not

    def _dig(self, step: Compress, held: HeldImage, found: _holes.Findings) -> None:
        with _staging.explained(f"give back the zeros of volume {step.name!r}"):
            fd = os.open(f"/proc/self/fd/{held.fd}", os.O_RDWR | os.O_CLOEXEC)
            try:
                _holes.dig(fd, found)
            finally:
                os.close(fd)

    def _rewrite(self, host: Host, step: Compress, held: HeldImage, compression: str) -> bool:
        """Put a compressed copy in the volume's place; ``False`` when it turned out not to be worth it."""
        header = held.header
        directory = os.path.dirname(step.path)
        backing = (header.backing_file, header.backing_format or "qcow2") if header.backing_file else None
        options, label = _features(header, compression), f"volume {step.name!r} of pool {step.pool.name!r}"
        with contextlib.ExitStack() as stack:
            source = stack.enter_context(
                pin_image(host, held.fd, step.path, image_format="qcow2", what=f"compress volume {step.name!r}")
            )
            staged = stack.enter_context(_staging.stage(directory))
            target = source.under(staged.fd, header.cluster_size)
            if backing is not None:
                # qemu-img would open what the name in a new header leads to, were it to make the file itself.
                self._qemu_img.create(
                    path=staged.path,
                    image_format="qcow2",
                    capacity=header.capacity,
                    options=options,
                    backing=backing,
                    pass_fds=(staged.fd,),
                )
            self._qemu_img.convert(
                source=source.location,
                source_format="qcow2",
                snapshot=None,
                shared=False,
                target=target.location if backing is not None else staged.path,
                target_format="qcow2",
                options={} if backing is not None else options,
                # Compressed clusters begin anywhere, so that past the page cache each would be read before it is written.
                direct=False,
                into_existing=backing is not None,
                compressed=True,
                backing=backing,
                flush=staged.fd,
                pass_fds=(*source.pass_fds, staged.fd),
                label=label,
            )
            os.fsync(staged.fd)
            before, after = os.fstat(held.fd).st_blocks * 512, os.fstat(staged.fd).st_blocks * 512
            if before - after < step.min_reclaim:
                return False
            self._qemu_img.compare(
                first=source.location,
                first_format="qcow2",
                second=target.location,
                second_format="qcow2",
                capacity=header.capacity,
                pass_fds=(*source.pass_fds, staged.fd),
                label=label,
            )
            self._claim(host, step, held)
            _staging.replace(staged, step.name, old_fd=held.fd)
        return True


def _scratch_directory() -> str:
    """A directory for temporary files that nobody else can put anything into."""
    path = os.path.join(tempfile.gettempdir(), f"hypervisor.storage-{os.geteuid()}")
    with _staging.explained(f"use {path!r}"):
        os.makedirs(path, mode=0o700, exist_ok=True)
        found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise ToolFailed(f"{path!r} is open to other users, so no work can be done there. Remove it and run again.")
    return path


def _brief(why_not: StorageError) -> str:
    """The first clause of a refusal, for a remark within a sentence."""
    return why_not.msg.split(". ")[0].rstrip(".")


def _uses_above(host: Host, image: Image) -> list[Attachment]:
    """The uses of all that has an image as a backing layer."""
    uses: list[Attachment] = []
    for dependent in host.dependents(image.ident):
        above = host.image_at(dependent.path)
        if above is not None:
            uses += host.attachments(above)
    return uses


def _file_facts(image: Image) -> FileFacts:
    with _staging.explained(f"look at the {where_is(image)}"):
        names = os.stat(image.path).st_nlink
    return FileFacts(is_link=image.is_link, names=names, bitmaps=image.header.bitmaps)


def _features(header: ImageHeader, compression: str) -> dict[str, str]:
    """Creation options with which a rewritten image stays what it was."""
    options = {"compat": header.compat or "1.1", "cluster_size": str(header.cluster_size)}
    if header.compat == "0.10":
        return options
    options["refcount_bits"] = str(header.refcount_bits)
    if header.extended_l2:
        options["extended_l2"] = "on"
    if header.lazy_refcounts:
        options["lazy_refcounts"] = "on"
    options["compression_type"] = compression
    return options


def _allocation(path: str) -> int:
    with _staging.explained(f"look at {path!r}"):
        return os.stat(path).st_blocks * 512
