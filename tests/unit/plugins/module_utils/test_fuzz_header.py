# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whatever a guest writes into its disk: an answer, soon, and no exception."""

from __future__ import annotations

import os
import struct
import tempfile
import time

import pytest

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import given, settings, strategies as st  # noqa: E402

from ansible_collections.hypervisor.storage.plugins.module_utils import _image_header  # noqa: E402
from ansible_collections.hypervisor.storage.plugins.module_utils._image_header import ImageHeader  # noqa: E402

# Numbers where checks go wrong: the ends of ranges, cluster boundaries, what overflows 32 and 64 bits.
EDGES_64 = st.one_of(
    st.sampled_from(
        [
            0,
            1,
            511,
            512,
            65535,
            65536,
            3 * 65536,
            2**31,
            2**32,
            2**56,
            2**63 - 1,
            2**63,
            2**64 - 65536,
            2**64 - 1,
        ]
    ),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**20),
)
EDGES_32 = st.one_of(
    st.sampled_from([0, 1, 2, 15, 16, 1023, 1024, 65535, 65536, 65537, 2**31 - 1, 2**31, 2**32 - 1]),
    st.integers(0, 2**32 - 1),
    st.integers(0, 200),
)
EXTENSIONS = st.lists(
    st.tuples(
        st.sampled_from([0xE2792ACA, 0x44415441, 0x0537BE77, 0x23852875, 0x6803F857, 1]),
        st.one_of(st.none(), EDGES_32),
        st.binary(max_size=40),
    ),
    max_size=6,
)
MAGICS = [
    b"QFI\xfb\0\0\0\1", b"QED\0", b"KDMV", b"COWD", b"conectix", b"vhdxfile", b"LUKS\xba\xbe\0\1",
    b"WithoutFreeSpace",
    b"WithouFreSpacExt", b"Bochs Virtual HD Image",
    b"# Disk DescriptorFile\nversion=1\nRW 9999999999999999999 FLAT ",
    b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n",
    bytes(64) + b"\x7f\x10\xda\xbe",
]  # fmt: skip


def read(content: bytes) -> ImageHeader:
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        started = time.perf_counter()
        header = _image_header.read_header(file.fileno())
        assert time.perf_counter() - started < 1
    assert 0 <= header.capacity < 2**63
    if header.backing_file is not None:
        assert (
            header.backing_file
            and "\0" not in header.backing_file
            and len(os.fsencode(header.backing_file)) <= 1023
        )
    return header


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(content=st.binary(max_size=600), magic=st.sampled_from(MAGICS))
def test_anything_behind_a_magic(magic: bytes, content: bytes) -> None:
    read(magic + content)


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(magic=st.sampled_from(MAGICS), order=st.sampled_from("<>"), numbers=st.lists(EDGES_64, max_size=60))
def test_numbers_behind_a_magic(magic: bytes, order: str, numbers: list[int]) -> None:
    # Four more bytes move the numbers onto fields that begin at odd multiples of four.
    for shift in (0, 4):
        content = magic.ljust(-(-len(magic) // 8) * 8 + shift, b"\0")
        read(content + struct.pack(f"{order}{len(numbers)}Q", *numbers))


@settings(max_examples=800, deadline=None, derandomize=True, database=None)
@given(
    version=st.sampled_from([2, 3, 3, 3]),
    sizes=st.tuples(EDGES_64, EDGES_32, st.integers(8, 22), EDGES_64),
    tables=st.tuples(st.integers(0, 3), EDGES_32, EDGES_64, EDGES_64, EDGES_32, EDGES_32, EDGES_64),
    features=st.tuples(st.one_of(st.integers(0, 31), EDGES_64), EDGES_64, EDGES_64, st.integers(0, 8)),
    header_length=st.one_of(st.sampled_from([104, 112]), EDGES_32),
    extensions=EXTENSIONS,
    length=st.integers(0, 5 * 65536),
)
def test_any_qcow2_header(
    version: int,
    sizes: tuple[int, ...],
    tables: tuple[int, ...],
    features: tuple[int, ...],
    header_length: int,
    extensions: list[tuple[int, int | None, bytes]],
    length: int,
) -> None:
    content = struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", version, *sizes, *tables)
    if version == 3:
        content += struct.pack(">QQQIIQ", *features, header_length, 0)
    for magic, claimed, data in extensions:
        content += struct.pack(">II", magic, len(data) if claimed is None else claimed)
        content += data.ljust(-(-len(data) // 8) * 8, b"\0")
    header = read(content.ljust(length, b"\0"))
    assert header.format == "qcow2"
    if header.problem is None:
        assert header.cluster_size is not None and header.refcount_bits is not None


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(
    entries=st.lists(
        st.tuples(
            EDGES_64, EDGES_32, *[st.integers(0, 65535)] * 2, EDGES_32, EDGES_32, EDGES_64, EDGES_32, EDGES_32
        ),
        max_size=5,
    ),
    data=st.binary(max_size=200),
    count=EDGES_32,
)
def test_any_snapshot_table(entries: list[tuple[int, ...]], data: bytes, count: int) -> None:
    cluster = 65536
    header = struct.pack(
        ">4sIQIIQIIQQIIQ", b"QFI\xfb", 2, 0, 0, 16, 512, 0, 1, cluster, 2 * cluster, 1, count, 3 * cluster
    )
    table = b"".join(struct.pack(">QIHHIIQII", *entry) + data for entry in entries)
    answer = read(header.ljust(3 * cluster, b"\0") + table.ljust(cluster, b"\0"))
    assert len(answer.snapshots) in (0, count)
