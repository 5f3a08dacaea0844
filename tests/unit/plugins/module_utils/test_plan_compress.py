# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.hypervisor.storage.plugins.module_utils import _plan_compress
from ansible_collections.hypervisor.storage.plugins.module_utils._errors import StorageError
from ansible_collections.hypervisor.storage.plugins.module_utils._model import (
    Attachment,
    Backing,
    Dependent,
    Pool,
    Snapshot,
    Volume,
)
from ansible_collections.hypervisor.storage.plugins.module_utils._plan_compress import (
    CompressPlan,
    CompressWish,
    FileFacts,
    Gains,
)
from ansible_collections.hypervisor.storage.plugins.module_utils._plans import Facts

MIB = 1 << 20
DIR = Pool("default", "5d6f2f4c-0b0f-4a4f-9f0a-1d2f3c4b5a69", "dir", "/pool")
LOGICAL = Pool("vg0", "0a6f2f4c-0b0f-4a4f-9f0a-1d2f3c4b5a69", "logical", "/dev/vg0")
WEB = Volume(
    name="web", uuid="5d0e7f1c-3bde-5f8a-a0f7-5f0f2a2c3d11", key="/pool/web", path="/pool/web", pool="default",
    type="file", format="qcow2", capacity=100 * MIB, allocation=50 * MIB, cluster_size=65536, compat="1.1",
)  # fmt: skip
STOPPED = Attachment("vm", "c5f1e7aa-7c33-4a9c-9f6e-0a4f7f1f6a10", "shutoff", "vda", "virtio", False, False, "disk")
RUNNING = STOPPED._replace(state="running", live=True)
BELOW = STOPPED._replace(via="backing", readonly=True)
BELOW_RUNNING = RUNNING._replace(via="backing", readonly=True)
OVERLAY = Dependent("default", "over", "/pool/over")
SNAPSHOT = Snapshot("s", "1", "2024-01-01T00:00:00Z", 0)


def reason_of(action: Any, **how: Any) -> str | None:
    try:
        action(**how)
    except StorageError as error:
        return error.reason
    return None


@pytest.mark.parametrize(
    "changes, pool, reason",
    [
        ({}, DIR, None),
        ({"format": "raw"}, DIR, "unsupported"),
        ({"format": "vmdk"}, DIR, "unsupported"),
        ({"type": "block"}, DIR, "unsupported"),
        ({"type": "block"}, LOGICAL, "unsupported"),
    ],
)
def test_only_qcow2_files(changes: dict[str, Any], pool: Pool, reason: str | None) -> None:
    assert reason_of(_plan_compress.refuse_others, volume=WEB._replace(**changes), pool=pool) == reason


@pytest.mark.parametrize(
    "changes, facts, above, reason",
    [
        ({}, Facts(), [], None),
        ({"attachments": (STOPPED,)}, Facts(), [], "volume_in_use"),
        ({"attachments": (RUNNING,)}, Facts(), [], "volume_in_use"),
        ({"attachments": (BELOW,)}, Facts(), [], None),
        ({"attachments": (BELOW_RUNNING,)}, Facts(), [], "volume_in_use"),
        ({"dependents": (OVERLAY,)}, Facts(), [STOPPED], None),
        ({"dependents": (OVERLAY,)}, Facts(), [RUNNING], "volume_in_use"),
        ({}, Facts(opened="reading"), [], "volume_in_use"),
        ({}, Facts(opened="writing"), [], "volume_in_use"),
        ({}, Facts(loop_devices=("/dev/loop0",)), [], "volume_in_use"),
    ],
)
def test_busy(changes: dict[str, Any], facts: Facts, above: list[Attachment], reason: str | None) -> None:
    volume = WEB._replace(**changes)
    assert reason_of(_plan_compress.refuse_busy, volume=volume, facts=facts, above=above) == reason


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({}, None),
        ({"snapshots": (SNAPSHOT,)}, None),
        ({"backing": Backing("/pool/base", "qcow2", "base", "default", ("/pool/base",))}, None),
        ({"backing": Backing("/pool/base", "qcow2", "base", "default", ("/pool/base",)), "compat": "0.10"}, "unsupported"),
        ({"dependents": (OVERLAY,)}, "volume_has_dependents"),
        ({"attachments": (BELOW,)}, "volume_in_use"),
    ],
)
def test_trim(changes: dict[str, Any], reason: str | None) -> None:
    obstacle = _plan_compress.obstacle_to_trim(volume=WEB._replace(**changes))
    assert (obstacle.reason if obstacle else None) == reason


@pytest.mark.parametrize(
    "changes, compression, file, reason",
    [
        ({}, "zstd", FileFacts(), None),
        ({"compat": "0.10"}, "zlib", FileFacts(), None),
        ({"compat": "0.10"}, "zstd", FileFacts(), "unsupported"),
        ({"snapshots": (SNAPSHOT,)}, "zlib", FileFacts(), "unsupported"),
        ({}, "zlib", FileFacts(bitmaps=True), "unsupported"),
        ({}, "zlib", FileFacts(is_link=True), "unsupported"),
        ({}, "zlib", FileFacts(names=2), "unsupported"),
    ],
)
def test_rewrite(changes: dict[str, Any], compression: str, file: FileFacts, reason: str | None) -> None:
    volume = WEB._replace(**changes)
    assert reason_of(_plan_compress.refuse_rewrite, volume=volume, compression=compression, file=file) == reason


@pytest.mark.parametrize(
    "wish, gains, trims, reclaimed, trim, compression",
    [
        # Nothing, too little, just enough.
        (CompressWish(), Gains(), False, 0, None, None),
        (CompressWish(), Gains(zeros=MIB - 4096), False, 0, None, None),
        (CompressWish(), Gains(zeros=MIB), False, MIB, False, None),
        (CompressWish(min_reclaim=1), Gains(), True, 0, None, None),
        (CompressWish(min_reclaim=5 * MIB), Gains(zeros=4 * MIB), False, 0, None, None),
        # What a trim finds counts only where it is done.
        (CompressWish(), Gains(zeros=MIB, trimmed=3 * MIB), True, 4 * MIB, True, None),
        (CompressWish(), Gains(zeros=MIB, trimmed=3 * MIB), False, MIB, False, None),
        (CompressWish(), Gains(zeros=MIB), True, MIB, False, None),
        (CompressWish(), Gains(zeros=MIB - 4096, trimmed=8192), True, MIB + 4096, True, None),
        # Compressing is worth it by itself, or the zeros go in place.
        (CompressWish(compression="zstd"), Gains(squeezed=9 * MIB), False, 9 * MIB, False, "zstd"),
        (CompressWish(compression="zstd"), Gains(zeros=MIB, squeezed=9 * MIB), True, 10 * MIB, False, "zstd"),
        (CompressWish(compression="zlib"), Gains(zeros=MIB, squeezed=MIB - 1), False, MIB, False, None),
        (CompressWish(compression="zlib"), Gains(zeros=100, squeezed=MIB - 1), False, 0, None, None),
        (CompressWish(), Gains(squeezed=9 * MIB), False, 0, None, None),
    ],
)
def test_worth(
    wish: CompressWish, gains: Gains, trims: bool, reclaimed: int, trim: bool | None, compression: str | None
) -> None:
    planned, step, saving = _plan_compress.plan_compress(
        volume=WEB, pool=DIR, wish=wish, trims=trims, note=None, gains=gains
    )
    assert (step.trim if step else None) == trim
    assert (step.compression if step else None) == compression == saving.compression
    assert saving.before - saving.after == reclaimed == planned.before["allocation"] - planned.after["allocation"]
    assert saving.to_result()["reclaimed"] == reclaimed
    assert saving.method == ("trim" if trims else "zeros")
    plan = CompressPlan(volumes=(planned,), work=(step,) if step else (), savings=(saving,))
    assert plan.changed == bool(reclaimed) == (plan.before != plan.after) == bool(plan.actions)
    assert not plan.without("web").changed
    assert plan.without("web").before == plan.without("web").after
    assert planned.result is not None and planned.result.allocation == saving.after


def test_text_names_what_is_done_and_why_not_more() -> None:
    wish = CompressWish(compression="zstd")
    gains = Gains(zeros=MIB, trimmed=2 * MIB, squeezed=3 * MIB)
    _planned, step, _saving = _plan_compress.plan_compress(
        volume=WEB, pool=DIR, wish=wish, trims=True, note=None, gains=gains
    )
    assert step is not None and step.text == (
        "compress volume 'web' in pool 'default': trim what its guest's file systems don't use, rewrite it with zstd compression"
    )
    _planned, step, _saving = _plan_compress.plan_compress(volume=WEB, pool=DIR, wish=wish, trims=False, note=None, gains=gains)
    assert step is not None and step.text == (
        f"compress volume 'web' in pool 'default': rewrite it with zstd compression; about {4 * MIB} bytes (4 MiB) less"
    )
    _planned, step, _saving = _plan_compress.plan_compress(
        volume=WEB, pool=DIR, wish=CompressWish(), trims=False, note="no such tool", gains=gains
    )
    assert step is not None and step.text == (
        "compress volume 'web' in pool 'default': give back its blocks of zeros; "
        f"{MIB} bytes (1 MiB) less (zeros alone: no such tool)"
    )


def test_estimates_never_go_below_nothing() -> None:
    planned, _step, saving = _plan_compress.plan_compress(
        volume=WEB, pool=DIR, wish=CompressWish(), trims=True, note=None, gains=Gains(trimmed=80 * MIB)
    )
    assert saving.after == planned.after["allocation"] == 0


@pytest.mark.parametrize(
    ("share", "data", "sure"),
    [(0.5, 100 * MIB, True), (0.16, 100 * MIB, True), (0.155, 100 * MIB, False), (0.1, 1 << 40, False), (0.9, MIB, False), (0, 0, False)],
)
def test_samples_alone_tell_when_there_is_no_doubt(share: float, data: int, sure: bool) -> None:
    assert _plan_compress.is_surely_worth_it(share=share, data=data, min_reclaim=MIB) is sure
