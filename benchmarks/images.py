# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Images to work on: data that neither compresses nor looks like zeros, and where it lies."""

from __future__ import annotations

import os
import random
from pathlib import Path

from .measure import sh

MIB = 1 << 20
_BLOCK = 16 * MIB


def noise(size: int = _BLOCK, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def write_data(path: Path, size: int) -> Path:
    """A file full of data."""
    block = noise()
    with path.open("wb") as file:
        for start in range(0, size, _BLOCK):
            turn = start // _BLOCK * 4096 % _BLOCK  # no two blocks alike
            file.write((block[turn:] + block[:turn])[: size - start])
        os.fsync(file.fileno())
    return path


def write_raw(path: Path, data: Path, capacity: int, *, part: int = 0, parts: int = 1) -> Path:
    """A raw disk with the data in runs of 16 MiB spread over it; of several parts, the n-th part of the runs."""
    runs = data.stat().st_size // _BLOCK
    step = capacity // runs // _BLOCK * _BLOCK
    with data.open("rb") as source, path.open("wb") as disk:
        disk.truncate(capacity)
        for run in range(runs):
            block = source.read(_BLOCK)
            if run % parts == part:
                disk.seek(run * step)
                disk.write(block)
        os.fsync(disk.fileno())
    return path


def write_half_zeros(path: Path, size: int, *, run: int, words: bool = False) -> Path:
    """A qcow2 with all of ``size`` allocated, runs of data and of zeros by turns; with ``words``, data that compresses."""
    block = noise()
    if words:
        block = block.translate(bytes(97 + value % 16 for value in range(256)))
    raw = path.with_suffix(".raw")
    with raw.open("wb") as file:
        for start in range(0, size, 2 * run):
            at = start // 2 % (_BLOCK - run + 1)
            file.write(block[at : at + run])
            file.write(bytes(run))
        file.truncate(size)
    sh("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-S", "0", raw, path)
    raw.unlink()
    return path


def write_qcow2(path: Path, data: Path, capacity: int) -> Path:
    raw = write_raw(path.with_suffix(".raw"), data, capacity)
    sh("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path)
    raw.unlink()
    return path


def write_chain(path: Path, data: Path, capacity: int, layers: int = 3) -> Path:
    """A qcow2 with its data spread over layers, of which ``path`` is the uppermost."""
    below: list[object] = []
    for layer in range(layers):
        image = path if layer == layers - 1 else path.with_name(f"{path.name}-layer{layer}")
        raw = write_raw(path.with_suffix(".raw"), data, capacity, part=layer, parts=layers)
        sh("qemu-img", "create", "-q", "-f", "qcow2", *below, image, capacity)
        # Into an image with a backing file, --target-is-zero keeps the holes from being written as zeros.
        sh("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-n", "--target-is-zero", raw, image)
        raw.unlink()
        below = ["-b", image, "-F", "qcow2"]
    return path
