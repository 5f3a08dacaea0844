# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.hypervisor.storage.plugins.module_utils import (
    _plan_create,
    _plan_delete,
    _plan_existing,
    _plan_grow,
    _plan_capacity,
    _plan_image,
    _plan_space,
)
from ansible_collections.hypervisor.storage.plugins.module_utils._errors import StorageError
from ansible_collections.hypervisor.storage.plugins.module_utils._model import (
    Attachment,
    Backing,
    Dependent,
    Pool,
    Rights,
    Snapshot,
    Volume,
)
from ansible_collections.hypervisor.storage.plugins.module_utils._plans import Facts, Plan, VolumePlan, Wish
from ansible_collections.hypervisor.storage.plugins.module_utils._steps import CopyImage, CreateBlank, CreateOverlay, Delete, Grow, Source

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
DIR = Pool("default", "5d6f2f4c-0b0f-4a4f-9f0a-1d2f3c4b5a69", "dir", "/pool")
LOGICAL = Pool("vg0", "0a6f2f4c-0b0f-4a4f-9f0a-1d2f3c4b5a69", "logical", "/dev/vg0")
RBD = Pool("ceph", "1b6f2f4c-0b0f-4a4f-9f0a-1d2f3c4b5a69", "rbd", None)
TEMPLATE = Source("/pool/base", "template 'base' of pool 'default'", "qcow2", 10 * MIB)
SNAPSHOT = Source(
    "/pool/web", "snapshot 's' of volume 'web' in pool 'default'", "qcow2", 10 * MIB,
    snapshot="1", snapshot_name="s", shared=True,
)  # fmt: skip
FROM_TEMPLATE = Wish(template="base")
FROM_SNAPSHOT = Wish(snapshot="s", snapshot_volume="web")
RIGHTS = Rights(0, 107, 0o640)
IDLE = Facts()


def volume(**changes: Any) -> Volume:
    web = Volume(
        name="web", uuid="5d0e7f1c-3bde-5f8a-a0f7-5f0f2a2c3d11", key="/pool/web", path="/pool/web", pool="default",
        type="file", format="qcow2", capacity=10 * MIB, allocation=200 * KIB, cluster_size=65536, compat="1.1",
    )  # fmt: skip
    return web._replace(**changes)


def overlay(path: str = "/pool/base", **changes: Any) -> Volume:
    return volume(backing=Backing(path, "qcow2", os.path.basename(path), "default", (path,)), **changes)


def use(**changes: Any) -> Attachment:
    disk = Attachment("vm1", "uuid-1", "running", "vda", "virtio", live=True, readonly=False, via="disk")
    return disk._replace(**changes)


def raised(reason: str, call: Any, *arguments: Any, **options: Any) -> StorageError:
    """The error that a call ends with, which has this reason and a message made of sentences."""
    with pytest.raises(StorageError) as caught:
        call(*arguments, **options)
    assert caught.value.reason == reason, caught.value.msg
    assert caught.value.msg.endswith((".", ")."))
    assert "None" not in caught.value.msg
    return caught.value


# -- options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wish",
    [
        Wish(),
        Wish(size=1),
        Wish(template="base", template_pool="images", clone_mode="backing"),
        Wish(template="base", clone_mode="full", size=MIB),
        Wish(snapshot="s", snapshot_volume="web", snapshot_pool="other"),
        Wish(cluster_size=512),
        Wish(cluster_size=2 * MIB),
    ],
)
def test_wishes_without_contradiction_pass(wish: Wish) -> None:
    _plan_image.check_wish(wish)


@pytest.mark.parametrize(
    ("wish", "word"),
    [
        (Wish(template="base", snapshot="s", snapshot_volume="web"), "exclude each other"),
        (Wish(snapshot="s"), "snapshot_volume go together"),
        (Wish(snapshot_volume="web"), "snapshot_volume go together"),
        (Wish(template=""), "template is empty"),
        (Wish(snapshot="", snapshot_volume="web"), "snapshot is empty"),
        (Wish(snapshot="s", snapshot_volume=""), "snapshot_volume is empty"),
        (Wish(clone_mode="full"), "clone_mode"),
        (Wish(clone_mode="full", snapshot="s", snapshot_volume="web"), "clone_mode"),
        (Wish(template_pool="images"), "template_pool"),
        (Wish(snapshot_pool="other"), "snapshot_pool"),
        (Wish(snapshot_pool="other", template="base"), "snapshot_pool"),
        *((Wish(cluster_size=size), "power of two") for size in (1, 256, 511, 513, 3 * KIB, 65535, 4 * MIB)),
    ],
)
def test_contradictions_are_refused(wish: Wish, word: str) -> None:
    assert word in raised("invalid_option", _plan_image.check_wish, wish).msg


@pytest.mark.parametrize(
    ("wish", "pool", "expected"),
    [
        (Wish(), DIR, "qcow2"),
        (Wish(format="raw"), DIR, "raw"),
        (Wish(format="qcow2"), DIR, "qcow2"),
        (Wish(), LOGICAL, "raw"),
        (Wish(format="raw"), LOGICAL, "raw"),
        (Wish(), RBD, "raw"),
        (Wish(format="qcow2"), LOGICAL, "unsupported"),
        (Wish(format="qcow2"), RBD, "unsupported"),
    ],
)
def test_format_follows_the_pool(wish: Wish, pool: Pool, expected: str) -> None:
    if expected == "unsupported":
        raised("unsupported", _plan_image.settle_format, wish, pool)
    else:
        assert _plan_image.settle_format(wish, pool) == expected


@pytest.mark.parametrize(
    ("wish", "image_format", "expected"),
    [
        (Wish(), "qcow2", None),
        (FROM_SNAPSHOT, "qcow2", None),
        (FROM_TEMPLATE, "qcow2", "backing"),
        (FROM_TEMPLATE, "raw", "full"),
        (Wish(template="base", clone_mode="backing"), "qcow2", "backing"),
        (Wish(template="base", clone_mode="full"), "qcow2", "full"),
        (Wish(template="base", clone_mode="full"), "raw", "full"),
    ],
)
def test_clone_mode_has_a_default_for_each_format(wish: Wish, image_format: str, expected: str | None) -> None:
    assert _plan_image.settle_mode(wish, image_format) == expected


def test_a_raw_overlay_is_refused() -> None:
    raised("invalid_option", _plan_image.settle_mode, Wish(template="base", clone_mode="backing"), "raw")


@pytest.mark.parametrize(
    ("asked", "image_format", "is_overlay", "expected"),
    [
        (None, "qcow2", False, "off"),
        (None, "qcow2", True, "off"),
        (None, "raw", False, "falloc"),
        *((asked, "qcow2", False, asked) for asked in ("off", "metadata", "falloc", "full")),
        *((asked, "raw", False, asked) for asked in ("off", "falloc", "full")),
        ("off", "qcow2", True, "off"),
    ],
)
def test_preallocation_is_settled(asked: str | None, image_format: str, is_overlay: bool, expected: str) -> None:
    wish = Wish(preallocation=asked)
    assert _plan_image.settle_preallocation(wish, image_format=image_format, overlay=is_overlay, pool=DIR) == expected


@pytest.mark.parametrize(
    ("wish", "image_format", "is_overlay"),
    [
        (Wish(preallocation="metadata"), "raw", False),
        (Wish(cluster_size=65536), "raw", False),
        *((Wish(preallocation=asked), "qcow2", True) for asked in ("metadata", "falloc", "full")),
    ],
)
def test_what_a_format_cannot_do_is_refused(wish: Wish, image_format: str, is_overlay: bool) -> None:
    raised("invalid_option", _plan_image.settle_preallocation, wish, image_format=image_format, overlay=is_overlay, pool=DIR)


@pytest.mark.parametrize(
    ("size", "source", "expected"),
    [
        (1, None, 512),
        (MIB, None, MIB),
        (MIB + 1, None, MIB + 512),
        (None, TEMPLATE, 10 * MIB),
        (10 * MIB, TEMPLATE, 10 * MIB),
        (10 * MIB - 511, TEMPLATE, 10 * MIB),
        (11 * MIB, TEMPLATE, 11 * MIB),
        (None, TEMPLATE._replace(capacity=1000), 1024),
        (1000, TEMPLATE._replace(capacity=1000), 1024),
    ],
)
def test_capacity_is_whole_sectors_and_at_least_the_source(
    size: int | None, source: Source | None, expected: int
) -> None:
    wish = Wish(size=size)
    settled = _plan_capacity.settle_capacity(wish, name="web", pool=DIR, source=source, image_format="qcow2", cluster_size=None)
    assert settled == expected


def test_capacity_of_a_blank_volume_must_be_given() -> None:
    error = raised(
        "invalid_option", _plan_capacity.settle_capacity, Wish(),
        name="web", pool=DIR, source=None, image_format="qcow2", cluster_size=None,
    )  # fmt: skip
    assert "'web'" in error.msg


def test_smaller_than_the_source_is_refused() -> None:
    error = raised(
        "shrink_refused", _plan_capacity.settle_capacity, Wish(size=10 * MIB - 512),
        name="web", pool=DIR, source=TEMPLATE, image_format="qcow2", cluster_size=None,
    )  # fmt: skip
    assert error.facts == {"required": 10 * MIB}


@pytest.mark.parametrize(
    ("image_format", "cluster_size", "most"),
    [
        ("raw", None, 2**63 - 512),
        ("qcow2", 512, 128 * GIB),
        ("qcow2", 4096, 8 * TIB),
        ("qcow2", None, 2048 * TIB),
        ("qcow2", 65536, 2048 * TIB),
        ("qcow2", 2 * MIB, 2**61),
    ],
)
def test_no_image_is_larger_than_its_format(image_format: str, cluster_size: int | None, most: int) -> None:
    assert _plan_capacity.largest_capacity(image_format, cluster_size) == most

    def settle(size: int) -> int:
        return _plan_capacity.settle_capacity(
            Wish(size=size), name="web", pool=DIR, source=None, image_format=image_format, cluster_size=cluster_size
        )

    assert settle(most) == most
    raised("invalid_size", settle, most + 1)


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img")
@pytest.mark.parametrize("cluster_size", [65536, 2 * MIB])
def test_the_largest_qcow2_is_the_one_that_qemu_img_makes(tmp_path: Path, cluster_size: int) -> None:
    def create(size: int) -> int:
        argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", f"cluster_size={cluster_size}", "image", str(size)]
        return subprocess.run(argv, cwd=tmp_path, stderr=subprocess.DEVNULL, check=False).returncode

    most = _plan_capacity.largest_capacity("qcow2", cluster_size)
    assert create(most) == 0
    assert create(most + 512) != 0


# -- create ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pool", "wish", "source", "step"),
    [
        (DIR, Wish(size=MIB), None, CreateBlank(DIR, "web", "qcow2", MIB, "off", None, Rights())),
        (
            DIR,
            Wish(size=MIB, cluster_size=4096, preallocation="metadata", rights=RIGHTS),
            None,
            CreateBlank(DIR, "web", "qcow2", MIB, "metadata", 4096, RIGHTS),
        ),
        (DIR, Wish(size=MIB, format="raw"), None, CreateBlank(DIR, "web", "raw", MIB, "falloc", None, Rights())),
        (LOGICAL, Wish(size=MIB), None, CreateBlank(LOGICAL, "web", "raw", MIB, "falloc", None, Rights())),
        (RBD, Wish(size=MIB, preallocation="off"), None, CreateBlank(RBD, "web", "raw", MIB, "off", None, Rights())),
        (DIR, FROM_TEMPLATE, TEMPLATE, CreateOverlay(DIR, "web", 10 * MIB, TEMPLATE, None, Rights())),
        (
            DIR,
            Wish(template="base", size=20 * MIB, cluster_size=65536, rights=RIGHTS),
            TEMPLATE,
            CreateOverlay(DIR, "web", 20 * MIB, TEMPLATE, 65536, RIGHTS),
        ),
        (
            DIR,
            Wish(template="base", clone_mode="full", preallocation="full", rights=RIGHTS),
            TEMPLATE,
            CopyImage(DIR, "web", "qcow2", 10 * MIB, TEMPLATE, "full", None, RIGHTS),
        ),
        (
            DIR,
            Wish(template="base", format="raw"),
            TEMPLATE,
            CopyImage(DIR, "web", "raw", 10 * MIB, TEMPLATE, "falloc", None, Rights()),
        ),
        (DIR, FROM_SNAPSHOT, SNAPSHOT, CopyImage(DIR, "web", "qcow2", 10 * MIB, SNAPSHOT, "off", None, Rights())),
    ],
)
def test_create_is_one_step(pool: Pool, wish: Wish, source: Source | None, step: Any) -> None:
    plan = _plan_create.plan_create(name="web", pool=pool, wish=wish, source=source)
    assert plan.steps == (step,)
    assert plan.before == {"state": "absent"}
    made = plan.result
    assert made is not None
    assert plan.after == made.to_diff()
    assert (made.name, made.pool, made.format, made.capacity) == ("web", pool.name, step.format, step.capacity)
    assert made.type == pool.volume_type
    assert made.status == "available"


@pytest.mark.parametrize("pool", [LOGICAL, RBD])
@pytest.mark.parametrize("source", [TEMPLATE, SNAPSHOT, TEMPLATE._replace(home=(DIR, "base"))])
def test_what_is_copied_into_pools_without_files_is_converted(pool: Pool, source: Source) -> None:
    (step,) = _plan_create.plan_create(name="web", pool=pool, wish=Wish(template="base"), source=source).steps
    assert isinstance(step, CopyImage)
    assert (step.method, step.format) == ("convert", "raw")


@pytest.mark.parametrize(
    ("pool_type", "wanted", "settled"),
    [
        ("rbd", None, "off"),
        ("rbd", "off", "off"),
        ("rbd", "falloc", "unsupported"),
        ("rbd", "full", "unsupported"),
        ("rbd", "metadata", "invalid_option"),
        ("logical", None, "falloc"),
        ("logical", "falloc", "falloc"),
        ("logical", "off", "unsupported"),
        ("logical", "full", "unsupported"),
        ("zfs", None, "falloc"),
        ("zfs", "off", "off"),
        ("zfs", "full", "unsupported"),
    ],
)
def test_what_pools_without_files_can_reserve(pool_type: str, wanted: str | None, settled: str) -> None:
    def make() -> VolumePlan:
        return _plan_create.plan_create(name="web", pool=LOGICAL._replace(type=pool_type), wish=wish, source=None)

    wish = Wish(size=MIB, preallocation=wanted)
    if settled in ("unsupported", "invalid_option"):
        raised(settled, make)
        return
    (step,) = make().steps
    assert isinstance(step, CreateBlank)
    assert step.preallocation == settled


def test_sizes_go_in_the_steps_of_a_pool() -> None:
    """A volume group's extents, so that what LVM rounds up is not taken for too large when asked for again."""
    pool = LOGICAL._replace(granularity=4 * MIB)
    plan = _plan_create.plan_create(name="web", pool=pool, wish=Wish(size=5 * MIB), source=None)
    made = plan.result
    assert made is not None and made.capacity == 8 * MIB
    again = _plan_grow.plan_grow(volume=made, pool=pool, size=5 * MIB, preallocation=None, facts=Facts())
    assert not again.steps
    grown = _plan_grow.plan_grow(volume=made, pool=pool, size=8 * MIB + 1, preallocation=None, facts=Facts()).result
    assert grown is not None and grown.capacity == 12 * MIB
    raised("shrink_refused", _plan_grow.plan_grow, volume=made, pool=pool, size=4 * MIB, preallocation=None, facts=Facts())
    copied = _plan_create.plan_create(name="web", pool=pool, wish=Wish(template="base"), source=TEMPLATE._replace(capacity=5 * MIB))
    assert copied.result is not None and copied.result.capacity == 8 * MIB


def test_zfs_does_not_wipe() -> None:
    pool = LOGICAL._replace(type="zfs")
    made = _plan_create.plan_create(name="web", pool=pool, wish=Wish(size=MIB), source=None).result
    assert made is not None
    raised("unsupported", _plan_delete.plan_delete, name="web", pool=pool, volume=made, wipe=True, facts=Facts(), going=())
    assert _plan_delete.plan_delete(name="web", pool=pool, volume=made, wipe=False, facts=Facts(), going=()).steps


def test_the_prediction_of_a_blank_volume() -> None:
    made = _plan_create.plan_create(name="web", pool=DIR, wish=Wish(size=MIB), source=None).result
    assert made is not None
    assert made.to_result() == {
        "name": "web",
        "uuid": "c2ae5011-96a1-5c2c-b02b-e6ccc6b95cde",
        "key": "/pool/web",
        "path": "/pool/web",
        "pool": "default",
        "type": "file",
        "format": "qcow2",
        "capacity": MIB,
        "allocation": 0,
        "status": "available",
        "attachments": [],
        "backing": None,
        "dependents": [],
        "snapshots": [],
        "encrypted": False,
        "cluster_size": 65536,
        "compat": "1.1",
    }


@pytest.mark.parametrize(
    ("wish", "allocation", "cluster_size", "compat"),
    [
        (Wish(size=MIB, cluster_size=4096), 0, 4096, "1.1"),
        (Wish(size=MIB, preallocation="falloc"), MIB, 65536, "1.1"),
        (Wish(size=MIB, preallocation="metadata"), 0, 65536, "1.1"),
        (Wish(size=MIB, format="raw"), MIB, None, None),
        (Wish(size=MIB, format="raw", preallocation="off"), 0, None, None),
    ],
)
def test_the_prediction_knows_what_is_reserved(
    wish: Wish, allocation: int, cluster_size: int | None, compat: str | None
) -> None:
    made = _plan_create.plan_create(name="web", pool=DIR, wish=wish, source=None).result
    assert made is not None
    assert (made.allocation, made.cluster_size, made.compat) == (allocation, cluster_size, compat)


def test_the_prediction_of_an_overlay_names_its_template() -> None:
    plan = _plan_create.plan_create(name="web", pool=DIR, wish=FROM_TEMPLATE, source=TEMPLATE)
    assert plan.after == {
        "state": "present", "pool": "default", "format": "qcow2", "capacity": 10 * MIB, "backing": "/pool/base",
    }  # fmt: skip
    copied = _plan_create.plan_create(name="web", pool=DIR, wish=FROM_SNAPSHOT, source=SNAPSHOT)
    assert copied.after["backing"] is None


def test_the_prediction_in_a_pool_without_a_directory() -> None:
    made = _plan_create.plan_create(name="web", pool=RBD, wish=Wish(size=MIB), source=None).result
    assert made is not None
    assert (made.path, made.type, made.format) == ("web", "network", "raw")


@pytest.mark.parametrize(
    ("pool", "wish", "source", "reason"),
    [
        (DIR, Wish(), None, "invalid_option"),
        (DIR, Wish(size=2**62, cluster_size=512), None, "invalid_size"),
        (DIR, Wish(size=MIB, format="raw", preallocation="metadata"), None, "invalid_option"),
        (DIR, Wish(template="base", preallocation="full"), TEMPLATE, "invalid_option"),
        (DIR, Wish(template="base", size=MIB), TEMPLATE, "shrink_refused"),
        (DIR, Wish(template="base", clone_mode="backing", format="raw"), TEMPLATE, "invalid_option"),
        (LOGICAL, Wish(size=MIB, format="qcow2"), None, "unsupported"),
    ],
)
def test_create_is_refused_before_anything_is_done(pool: Pool, wish: Wish, source: Source | None, reason: str) -> None:
    raised(reason, _plan_create.plan_create, name="web", pool=pool, wish=wish, source=source)


# -- what exists -----------------------------------------------------------------------------------


def plan_existing(
    there: Volume, wish: Wish, *, same: bool = False, facts: Facts = IDLE, pool: Pool = DIR
) -> VolumePlan:
    return _plan_existing.plan_existing(volume=there, wish=wish, pool=pool, same_backing=same, facts=facts)


@pytest.mark.parametrize(
    ("there", "wish", "same"),
    [
        (volume(), Wish(), False),
        (volume(), Wish(size=10 * MIB), False),
        (volume(), Wish(size=10 * MIB - 1), False),
        (volume(), Wish(size=1), False),
        # Differences that are not ours to mend.
        (volume(cluster_size=4096), Wish(cluster_size=65536, preallocation="full", rights=RIGHTS), False),
        (volume(format="raw", cluster_size=None, compat=None), Wish(format="raw"), False),
        (overlay(), Wish(), False),
        (overlay(), FROM_TEMPLATE, True),
        (overlay(), Wish(template="base", size=5 * MIB), True),
        (volume(), Wish(template="base", clone_mode="full"), False),
        (volume(format="raw"), Wish(template="base", format="raw"), False),
        (volume(), FROM_SNAPSHOT, False),
        # Attached or open elsewhere: nothing is done to it, so nobody is in the way.
        (volume(attachments=(use(),)), Wish(size=MIB), False),
    ],
)
def test_what_is_as_wished_stays_untouched(there: Volume, wish: Wish, same: bool) -> None:
    plan = plan_existing(there, wish, same=same, facts=Facts(opened="writing"))
    assert plan == VolumePlan("web", (), there.to_diff(), there.to_diff(), there)


@pytest.mark.parametrize(
    ("there", "wish", "facts"),
    [
        (volume(format="raw"), Wish(), {"expected": "qcow2", "found": "raw"}),
        (volume(), Wish(format="raw"), {"expected": "raw", "found": "qcow2"}),
        (volume(format="vmdk"), Wish(), {"expected": "qcow2", "found": "vmdk"}),
        (volume(), FROM_TEMPLATE, {"expected": "base", "found": None}),
        (overlay("/pool/other"), FROM_TEMPLATE, {"expected": "base", "found": "/pool/other"}),
        (overlay(), Wish(template="base", clone_mode="full"), {"found": "/pool/base"}),
        (overlay(), FROM_SNAPSHOT, {"found": "/pool/base"}),
    ],
)
def test_something_else_of_that_name_is_a_mismatch(there: Volume, wish: Wish, facts: dict[str, Any]) -> None:
    with pytest.raises(StorageError) as caught:
        plan_existing(there, wish)
    assert caught.value.reason == "volume_mismatch"
    assert caught.value.facts == facts
    assert "Nothing was changed" in caught.value.msg


@pytest.mark.parametrize(
    ("wish", "pool", "reason"),
    [
        (Wish(format="qcow2"), RBD, "unsupported"),
        (Wish(template="base", clone_mode="backing", format="raw"), DIR, "invalid_option"),
        (Wish(template="base", preallocation="falloc"), DIR, "invalid_option"),
        (Wish(format="raw", cluster_size=65536), DIR, "invalid_option"),
    ],
)
def test_impossible_options_are_refused_for_what_exists_too(wish: Wish, pool: Pool, reason: str) -> None:
    raised(reason, plan_existing, volume(), wish, pool=pool)


def test_a_smaller_volume_is_grown() -> None:
    plan = plan_existing(volume(), Wish(size=20 * MIB - 1))
    assert plan.steps == (Grow(DIR, "web", "/pool/web", "qcow2", 10 * MIB, 20 * MIB, "off"),)
    assert plan.before == volume().to_diff()
    assert plan.after == {**volume().to_diff(), "capacity": 20 * MIB}
    assert plan.result == volume(capacity=20 * MIB)


@pytest.mark.parametrize(
    ("image_format", "asked", "expected"),
    [
        ("qcow2", None, "off"),
        ("qcow2", "metadata", "off"),
        ("qcow2", "falloc", "falloc"),
        ("raw", None, "falloc"),
        ("raw", "off", "off"),
        ("raw", "full", "full"),
    ],
)
def test_growing_reserves_as_creating_does(image_format: str, asked: str | None, expected: str) -> None:
    wish = Wish(size=20 * MIB, format=image_format, preallocation=asked)
    (step,) = plan_existing(volume(format=image_format), wish).steps
    assert step.preallocation == expected  # type: ignore[union-attr]


def test_an_overlay_is_grown_above_its_template() -> None:
    (step,) = plan_existing(overlay(), Wish(template="base", size=20 * MIB), same=True).steps
    assert isinstance(step, Grow)


# -- grow ------------------------------------------------------------------------------------------


def plan_grow(there: Volume, size: int, *, facts: Facts = IDLE) -> VolumePlan:
    return _plan_grow.plan_grow(volume=there, pool=DIR, size=size, preallocation=None, facts=facts)


@pytest.mark.parametrize("size", [10 * MIB, 10 * MIB - 511])
def test_equal_after_rounding_is_unchanged(size: int) -> None:
    assert plan_grow(volume(), size).steps == ()


def test_growing_never_shrinks() -> None:
    assert raised("shrink_refused", plan_grow, volume(), 10 * MIB - 512).facts == {"required": 10 * MIB}


@pytest.mark.parametrize(
    ("there", "size", "reason"),
    [
        (volume(format="vmdk"), 20 * MIB, "unsupported"),
        (volume(cluster_size=512), 129 * GIB, "invalid_size"),
        (volume(compat="0.10", snapshots=(Snapshot("s", "1", "", 0),)), 20 * MIB, "unsupported"),
    ],
)
def test_what_can_not_grow(there: Volume, size: int, reason: str) -> None:
    raised(reason, plan_grow, there, size)


@pytest.mark.parametrize(
    "there",
    [
        volume(compat="0.10"),
        volume(snapshots=(Snapshot("s", "1", "", 0),)),
        # Only defined: QEMU will see the new size when the domain starts.
        volume(attachments=(use(live=False, state="shutoff"), use(live=False, state="shutoff", via="backing"))),
    ],
)
def test_what_grows_offline(there: Volume) -> None:
    plan = plan_grow(there, 20 * MIB)
    assert isinstance(plan.steps[0], Grow)
    assert plan.steps[0].online == ()
    assert plan.steps[0].text == (
        "grow volume 'web' in pool 'default' from 10485760 to 20971520 bytes (20 MiB), offline"
    )


@pytest.mark.parametrize(
    ("attachments", "online"),
    [
        ((use(),), (use(),)),
        # The same domain's second disk, and users that are not running.
        ((use(), use(target="vdb"), use(domain="vm2", domain_uuid="uuid-2", live=False)), (use(), use(target="vdb"))),
        ((use(), use(domain="vm2", domain_uuid="uuid-2", via="backing")), (use(),)),
        ((use(state="paused"),), (use(state="paused"),)),
    ],
)
def test_a_running_domain_grows_its_own_disk(
    attachments: tuple[Attachment, ...], online: tuple[Attachment, ...]
) -> None:
    # Its QEMU has the image open: that is no stranger.
    plan = plan_grow(volume(attachments=attachments), 20 * MIB, facts=Facts(opened="writing"))
    (step,) = plan.steps
    assert isinstance(step, Grow)
    assert step.online == online
    assert step.text.endswith("online through " + ", ".join(f"vm1 ({disk.target})" for disk in online))


@pytest.mark.parametrize(
    ("attachments", "facts", "word"),
    [
        ((use(via="backing"),), Facts(), "backing layer"),
        ((use(readonly=True),), Facts(), "read-only"),
        ((use(), use(target="vdb", readonly=True)), Facts(), "read-only"),
        ((use(target="nvram", bus=None),), Facts(), "not as a disk"),
        ((use(), use(domain="vm2", domain_uuid="uuid-2")), Facts(), "shared by"),
        ((), Facts(opened="writing"), "doesn't know"),
        ((), Facts(opened="reading"), "doesn't know"),
        ((use(live=False),), Facts(opened="writing"), "doesn't know"),
    ],
)
def test_what_can_not_grow_while_in_use(attachments: tuple[Attachment, ...], facts: Facts, word: str) -> None:
    assert word in raised("volume_in_use", plan_grow, volume(attachments=attachments), 20 * MIB, facts=facts).msg


# -- delete ----------------------------------------------------------------------------------------


def plan_delete(
    there: Volume | None, *, wipe: bool = False, facts: Facts = IDLE, going: tuple[tuple[str, str], ...] = ()
) -> VolumePlan:
    return _plan_delete.plan_delete(name="web", pool=DIR, volume=there, wipe=wipe, facts=facts, going=going)


def test_what_is_absent_stays_absent() -> None:
    assert plan_delete(None) == VolumePlan("web", (), {"state": "absent"}, {"state": "absent"}, None)


@pytest.mark.parametrize(("wipe", "word"), [(False, "delete"), (True, "wipe and delete")])
def test_delete_is_one_step(wipe: bool, word: str) -> None:
    plan = plan_delete(overlay(), wipe=wipe)
    assert plan == VolumePlan(
        "web", (Delete(DIR, "web", "/pool/web", "file", wipe),), overlay().to_diff(), {"state": "absent"}, None
    )
    assert plan.steps[0].text == f"{word} volume 'web' of pool 'default'"


@pytest.mark.parametrize(
    ("attachment", "words"),
    [
        (use(), "domain 'vm1' (running, disk vda)"),
        (use(live=False, state="shutoff"), "domain 'vm1' (shutoff, disk vda)"),
        (use(readonly=True, target="sda"), "domain 'vm1' (running, disk sda)"),
        (use(via="backing"), "domain 'vm1' (running, backing layer vda)"),
        (use(via="backing", live=False, state="shutoff", snapshot="s1"), "domain 'vm1' (shutoff, snapshot 's1' vda)"),
        (use(target=None), "domain 'vm1' (running, disk)"),
        (use(target="nvram", bus=None), "domain 'vm1' (running, nvram)"),
        (use(target=None, bus=None), "domain 'vm1' (running)"),
    ],
)
def test_attached_volumes_are_not_deleted(attachment: Attachment, words: str) -> None:
    error = raised("volume_in_use", plan_delete, volume(attachments=(attachment, attachment)))
    assert error.msg.count(words) == 1
    assert error.facts == {"attachments": [attachment.to_result()] * 2}


@pytest.mark.parametrize(
    ("facts", "word"),
    [
        (Facts(opened="writing"), "open (writing)"),
        (Facts(opened="reading"), "open (reading)"),
        (Facts(loop_devices=("/dev/loop0", "/dev/loop7")), "/dev/loop0, /dev/loop7"),
    ],
)
def test_what_strangers_use_is_not_deleted(facts: Facts, word: str) -> None:
    error = raised("volume_in_use", plan_delete, volume(), facts=facts)
    assert word in error.msg
    assert error.facts == {"attachments": []}


def test_a_base_is_not_deleted_under_its_overlays() -> None:
    children = tuple(Dependent("default", f"web{n}", f"/pool/web{n}") for n in range(7))
    error = raised("volume_has_dependents", plan_delete, volume(dependents=children))
    assert error.facts == {"dependents": [child.to_result() for child in children]}
    assert "default/web0, default/web1, default/web2, default/web3, default/web4 and 2 more" in error.msg
    assert "default/web0 needs it" in raised("volume_has_dependents", plan_delete, volume(dependents=children[:1])).msg


def test_a_base_goes_after_the_overlays_that_go_in_the_same_call() -> None:
    children = (Dependent("default", "web1", "/pool/web1"), Dependent("other", "web2", "/other/web2"))
    base = volume(dependents=children)
    assert plan_delete(base, going=(("default", "web1"), ("other", "web2"))).steps
    error = raised("volume_has_dependents", plan_delete, base, going=(("default", "web1"), ("default", "web2")))
    assert error.facts == {"dependents": [children[1].to_result()]}


def test_attachments_come_before_dependents_and_strangers() -> None:
    there = volume(attachments=(use(),), dependents=(Dependent("default", "x", "/pool/x"),))
    assert raised("volume_in_use", plan_delete, there, facts=Facts(opened="writing")).facts["attachments"]


# -- space -----------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img")
@pytest.mark.parametrize(
    ("capacity", "cluster_size"),
    [
        *((capacity, 512) for capacity in (512, MIB, 100 * MIB, GIB)),
        *((capacity, 4096) for capacity in (512, MIB, 100 * MIB, 10 * GIB)),
        *((capacity, 65536) for capacity in (512, MIB, 10 * GIB, TIB, 64 * TIB)),
        *((capacity, 2 * MIB) for capacity in (512, 10 * GIB, 64 * TIB)),
    ],
)
def test_an_empty_qcow2_takes_what_was_foretold(tmp_path: Path, capacity: int, cluster_size: int) -> None:
    options = f"compat=1.1,cluster_size={cluster_size}"
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, str(tmp_path / "image"), str(capacity)]
    subprocess.run(argv, check=True)
    size = os.stat(tmp_path / "image").st_size
    # The file ends with what is used of its last cluster.
    assert size <= _plan_capacity.empty_qcow2_bytes(capacity, cluster_size) < size + 2 * cluster_size


def test_an_empty_qcow2_has_the_default_cluster_size() -> None:
    assert _plan_capacity.empty_qcow2_bytes(MIB, None) == _plan_capacity.empty_qcow2_bytes(MIB, 65536)


def check_space(
    required: int, thin: int, available: int, *, overcommit: bool = True, names: int = 1
) -> tuple[str, ...]:
    return _plan_space.check_space(
        pool=DIR, names=[f"web{n}" for n in range(names)], required=required, thin=thin, available=available,
        overcommit=overcommit,
    )  # fmt: skip


@pytest.mark.parametrize("overcommit", [True, False])
@pytest.mark.parametrize(
    ("required", "thin", "available"), [(0, 0, 0), (10, 0, 10), (10, 90, 100), (0, 100, 100)]
)
def test_what_fits_says_nothing(required: int, thin: int, available: int, overcommit: bool) -> None:
    assert check_space(required, thin, available, overcommit=overcommit) == ()


@pytest.mark.parametrize("overcommit", [True, False])
@pytest.mark.parametrize(("required", "thin"), [(11, 0), (11, 100)])
def test_what_must_be_written_has_to_fit(required: int, thin: int, overcommit: bool) -> None:
    error = raised("insufficient_space", check_space, required, thin, 10, overcommit=overcommit)
    assert error.facts == {"required": required, "available": 10}


def test_promises_beyond_the_free_space_are_warned_of() -> None:
    (warning,) = check_space(10 * MIB, GIB, 20 * MIB)
    assert "may come to take 1084227584 bytes (1.01 GiB)" in warning
    assert "20971520 bytes (20 MiB) free" in warning


def test_promises_beyond_the_free_space_fail_without_overcommit() -> None:
    error = raised("insufficient_space", check_space, 10, 91, 100, overcommit=False)
    assert error.facts == {"required": 101, "available": 100}
    assert "overcommit is false" in error.msg


def test_many_names_are_shortened() -> None:
    (warning,) = check_space(0, 2, 1, names=7)
    assert "'web0', 'web1', 'web2', 'web3', 'web4' and 2 more" in warning
    assert "more" not in check_space(0, 2, 1, names=5)[0].split("may come to take")[0]


# -- the plan of a call ----------------------------------------------------------------------------


def test_a_plan_sums_up_its_volumes() -> None:
    created = _plan_create.plan_create(name="web", pool=DIR, wish=Wish(size=MIB, preallocation="full"), source=None)
    kept = plan_existing(volume(name="db"), Wish())
    plan = Plan((created, kept))
    assert plan.changed
    assert plan.steps == created.steps
    assert plan.actions == [
        "create blank qcow2 volume 'web' of 1048576 bytes (1 MiB) in pool 'default', preallocation full"
    ]
    assert plan.before == {"web": {"state": "absent"}, "db": volume().to_diff()}
    assert plan.after == {"web": created.after, "db": volume().to_diff()}


def test_a_plan_without_steps_changes_nothing() -> None:
    plan = Plan((plan_existing(volume(), Wish()),))
    assert not plan.changed
    assert plan.actions == []
    assert plan.before == plan.after


def test_the_words_of_the_other_steps() -> None:
    overlaid = _plan_create.plan_create(name="web", pool=DIR, wish=FROM_TEMPLATE, source=TEMPLATE)
    copied = _plan_create.plan_create(name="web", pool=DIR, wish=FROM_SNAPSHOT, source=SNAPSHOT)
    assert [step.text for step in overlaid.steps + copied.steps] == [
        "create qcow2 volume 'web' of 10485760 bytes (10 MiB) in pool 'default', "
        "backed by template 'base' of pool 'default'",
        "create qcow2 volume 'web' of 10485760 bytes (10 MiB) in pool 'default' as a full copy of "
        "snapshot 's' of volume 'web' in pool 'default' (qemu-img convert)",
    ]
