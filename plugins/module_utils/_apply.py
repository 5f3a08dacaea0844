# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Carries out a plan's steps, in order, each whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence

from . import _directory, _locks, _staging, _without_files
from ._copy import copy_image
from ._describe import describe
from ._errors import Exchanged, StorageError, Unsupported
from ._grow import grow
from ._inventory import Host
from ._live import Moment
from ._model import Ident, Pool
from ._plan_delete import refuse_harm
from ._pinned import hold_source, pin_source
from ._plan_image import qcow2_options
from ._qemu_img import QemuImg
from ._refresh import assert_refreshable, tell_libvirt
from ._steps import CopyImage, CreateBlank, CreateOverlay, Delete, Facts, Grow, Plan, Rights, Source, Step

#: An empty image up to this many bytes is made once per call and then written again for each name that wants the same.
_PATTERN_LIMIT = 4 << 20
#: How many new files are staged before the first gets its name.
_BATCH = 64


class Worker:
    """The hands: a host and its tools, for the steps of one call."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.qemu_img = QemuImg()
        self.moments: dict[str, Moment] = {}  # of each copy, by name
        self._doomed: dict[str, Ident] = {}  # the files to be deleted, by name
        self._patterns: dict[tuple[object, ...], bytes] = {}

    def carry_out(self, plan: Plan) -> None:
        """Do all steps in order; on a failure the error's facts name what is done and what isn't."""
        done: list[Step] = []
        steps = plan.steps
        touched: dict[str, Pool] = {}
        try:
            doomed = {step.name for step in steps if isinstance(step, Delete)}
            for pool in {step.pool.name: step.pool for step in steps if _is_to_be_told(step)}.values():
                if pool.stores_files:
                    assert_refreshable(self.host, pool, but=doomed)
            with contextlib.ExitStack() as held:
                self._hold_doomed(steps, held)
                for batch in _batches(steps):
                    with _staging.explained(_describe(batch)):
                        for step, untold in self._do(batch):
                            if untold:
                                touched[step.pool.name] = step.pool
                            done.append(step)
            self._tell_libvirt(touched)
        except StorageError as error:
            if done:
                with contextlib.suppress(StorageError):  # the first failure is the one to report
                    self._tell_libvirt(touched)
            error.facts["changed"] = bool(done) or error.facts.get("changed", False)
            error.facts.setdefault("actions", [step.text for step in done])
            error.facts.setdefault("done", [step.name for step in done])
            error.facts.setdefault("not_done", [step.name for step in steps[len(done) :]])
            raise

    def _tell_libvirt(self, pools: dict[str, Pool]) -> None:
        for pool in pools.values():
            tell_libvirt(self.host, pool)
        self.host.forget()

    def _do(self, batch: Sequence[Step]) -> Iterator[tuple[Step, bool]]:
        """Carry out steps that go together; yields each that is done, and whether libvirt has still to be told."""
        step = batch[0]
        if isinstance(step, Delete):
            yield step, self._delete(step)
        elif isinstance(step, Grow):
            grow(self.host, self.qemu_img, step)
            self.host.expect_change(step.path)
            yield step, True
        elif not step.pool.stores_files:
            self._create_without_file(step)
            yield step, False
        elif isinstance(step, CopyImage):
            self._copy(step)
            yield step, True
        else:
            for created in self._create_empty([each for each in batch if isinstance(each, (CreateBlank, CreateOverlay))]):
                yield created, True

    # -- create ------------------------------------------------------------------------------------

    def _create_empty(self, batch: Sequence[CreateBlank | CreateOverlay]) -> Iterator[CreateBlank | CreateOverlay]:
        """Make volumes without data of their own, all staged before the first gets its name."""
        _locks.allow_open_files(2 * len(batch))
        with contextlib.ExitStack() as stack:
            files = []
            for step in batch:
                if isinstance(step, CreateOverlay):
                    what = f"create volume {step.name!r} on {step.source.label}"
                    stack.enter_context(hold_source(self.host, step.source.path, shared=False, what=what))
                staged = stack.enter_context(_staging.stage(_directory_of(step)))
                self._fill(staged, step)
                files.append(_complete(staged, step))
            for _name, step in zip(_staging.publish(files), batch):  # the former goes on to its end
                yield step

    def _fill(self, staged: _staging.Staged, step: CreateBlank | CreateOverlay) -> None:
        if isinstance(step, CreateOverlay):
            self._write_empty(
                staged,
                image_format="qcow2",
                capacity=step.capacity,
                options=qcow2_options(step.cluster_size),
                backing=(step.source.path, step.source.format),
            )
        elif step.format == "raw" and step.preallocation in ("off", "falloc"):
            with _staging.explained(f"reserve {step.capacity} bytes for volume {step.name!r} of pool {step.pool.name!r}"):
                if step.preallocation == "falloc":
                    os.posix_fallocate(staged.fd, 0, step.capacity)
                else:
                    os.ftruncate(staged.fd, step.capacity)
        else:
            options = {"preallocation": step.preallocation}
            if step.format == "qcow2":
                options.update(qcow2_options(step.cluster_size))
            self._write_empty(staged, image_format=step.format, capacity=step.capacity, options=options)

    def _write_empty(
        self,
        staged: _staging.Staged,
        *,
        image_format: str,
        capacity: int,
        options: dict[str, str],
        backing: tuple[str, str] | None = None,
    ) -> None:
        key = (image_format, capacity, tuple(sorted(options.items())), backing)
        pattern = self._patterns.get(key)
        if pattern is not None:
            os.ftruncate(staged.fd, len(pattern))
            written = 0
            while written < len(pattern):  # a disk that fills up takes a part
                written += os.pwrite(staged.fd, pattern[written:], written)
            return
        self.qemu_img.create(
            path=staged.path,
            image_format=image_format,
            capacity=capacity,
            options=options,
            backing=backing,
            pass_fds=(staged.fd,),
        )
        size = os.fstat(staged.fd).st_size
        if size <= _PATTERN_LIMIT and options.get("preallocation", "off") == "off":
            pattern = os.pread(staged.fd, size, 0)
            if len(pattern) == size:
                self._patterns[key] = pattern

    def _copy(self, step: CopyImage) -> None:
        # QEMU opens the target of a backup job by its path, hence by a name.
        with self._pinned_source(step) as source, _staging.stage(_directory_of(step), named=step.method == "backup") as staged:
            self.moments[step.name] = copy_image(
                step._replace(source=source),
                staged=staged,
                qemu_img=self.qemu_img,
                connection=self.host.connection,
                assert_disk=lambda: self._assert_disk(step),
            )
            _without_files.assert_source_stood_still(self.host, step)
            for _name in _staging.publish([_complete(staged, step)]):
                pass

    def _assert_disk(self, step: CopyImage) -> None:
        """Make sure that a running domain's disk is the volume that the decision is about: another job may have moved it meanwhile."""
        if step.live is None or step.source.home is None:
            return
        image = self.host.image(*step.source.home)
        if image is None or self.host.disk_of(step.live.domain_uuid, step.live.target) != image.ident:
            raise Exchanged(
                f"The disk {step.live.target} of domain {step.live.domain!r} was another one than the {step.source.label} when its copy "
                "began, so the copy was dropped. Run again."
            )

    def _pinned_source(self, step: CopyImage) -> contextlib.AbstractContextManager[Source]:
        """The image that the decision is about, kept from being changed or deleted while something is made from it."""
        if step.method == "backup":  # the domain writes to it, and alone reads it
            return contextlib.nullcontext(step.source)
        return pin_source(self.host, step.source, hold=True, what=f"create volume {step.name!r} from {step.source.label}")

    def _create_without_file(self, step: Step) -> None:
        if isinstance(step, CreateBlank):
            _without_files.create_blank(self.host, step)
        elif isinstance(step, CopyImage):
            with self._pinned_source(step) as source:
                _without_files.copy(self.host, step, self.qemu_img, source=source)
        else:
            raise Unsupported(f"Pool {step.pool.name!r} (type {step.pool.type}) holds no image files.")

    # -- delete ------------------------------------------------------------------------------------

    def _hold_doomed(self, steps: tuple[Step, ...], held: contextlib.ExitStack) -> None:
        """Lock the images to be deleted, then look once more who uses them: between the plan and now a domain may have come."""
        doomed = [step for step in steps if isinstance(step, Delete)]
        _locks.allow_open_files(len(doomed))
        for step in doomed:
            if step.type == "file" and os.path.isfile(step.path):
                with _staging.explained(f"open volume {step.name!r} of pool {step.pool.name!r}"):
                    fd = held.enter_context(_locks.hold_image(step.path, exclusive=True, what=f"delete volume {step.name!r}"))
                    self._doomed[step.name] = _directory.identify(f"/proc/self/fd/{fd}")
        if doomed:
            self.host.forget()
        going: list[tuple[str, str]] = []
        for step in doomed:
            image = self.host.image(step.pool, step.name)
            if image is None or (image.type == "file" and self._doomed.get(step.name) != image.ident):
                raise Exchanged(f"Cannot delete volume {step.name!r}: {step.path!r} was deleted or exchanged meanwhile. Run again.")
            if image.type == "file":  # it is locked by now, so nobody else has it open; but loop devices know no locks
                loops = tuple(_directory.loop_devices_on(image.ident))
                facts = Facts(loop_devices=loops, unread=self.host.unread(image.ident))
            else:
                facts = self.host.facts(image)
            refuse_harm(volume=describe(self.host, image), facts=facts, going=going)
            going.append((step.pool.name, step.name))

    def _delete(self, step: Delete) -> bool:
        if step.wipe and step.type == "file" and not os.path.islink(step.path):
            hidden, fd = _staging.hide_for_wiping(os.path.dirname(step.path), step.name, ident=self._doomed.get(step.name))
            try:
                _staging.wipe_and_remove(hidden, fd)
            finally:
                os.close(fd)
            return True
        if not step.pool.stores_files:
            _without_files.delete(self.host, step)
            return False
        known = self.host.connection.delete_volume(step.pool, step.name)
        if not known and step.type == "file":
            with _staging.explained(f"delete volume {step.name!r} of pool {step.pool.name!r}"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(step.path)
        _staging.sync_directory(os.path.dirname(step.path))
        return False


def _batches(steps: Sequence[Step]) -> Iterator[Sequence[Step]]:
    """The steps in their order; those in a row that make small new files of one pool go together."""
    batch: list[Step] = []
    for step in steps:
        if batch and not (len(batch) < _BATCH and step.pool == batch[0].pool and _is_light(step) and _is_light(batch[0])):
            yield batch
            batch = []
        batch.append(step)
    if batch:
        yield batch


def _describe(batch: Sequence[Step]) -> str:
    return batch[0].text if len(batch) == 1 else f"create {len(batch)} volumes in pool {batch[0].pool.name!r}"


def _is_to_be_told(step: Step) -> bool:
    """Whether libvirt does not see to its view of the pool itself."""
    return not isinstance(step, Delete) or step.wipe


def _is_light(step: Step) -> bool:
    """Whether a step makes a file that takes next to no room."""
    return step.pool.stores_files and isinstance(step, (CreateBlank, CreateOverlay)) and step.preallocation == "off"


def _complete(staged: _staging.Staged, step: CreateBlank | CreateOverlay | CopyImage) -> _staging.Complete:
    rights: Rights = step.rights
    # libvirt may have lent a backup's target to QEMU's user: without a wish it is ours again.
    uid = os.geteuid() if rights.uid is None else rights.uid
    gid = os.getegid() if rights.gid is None else rights.gid
    return _staging.Complete(staged, step.name, _staging.Ownership(uid, gid, rights.mode), step.format)


def _directory_of(step: Step) -> str:
    if step.pool.path is None:
        raise Unsupported(f"Pool {step.pool.name!r} has no directory.")
    return step.pool.path
