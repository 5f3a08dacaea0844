# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The map of clusters and the search for zeros, on real images."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.hypervisor.storage.plugins.module_utils import _clusters, _extents, _holes, _plan_compress, _samples
from ansible_collections.hypervisor.storage.plugins.module_utils._clusters import DATA, DOOMED, VOID, ClusterMap
from ansible_collections.hypervisor.storage.plugins.module_utils._errors import StorageError
from ansible_collections.hypervisor.storage.plugins.module_utils._image_header import ImageHeader, read_header

pytestmark = pytest.mark.skipif(
    shutil.which("qemu-img") is None or shutil.which("qemu-io") is None, reason="needs qemu-img and qemu-io"
)
KIB, MIB = 1 << 10, 1 << 20
NOISE = random.Random(1).getrandbits(8 * MIB).to_bytes(MIB, "big")


def make(path: Path, *commands: str, options: str = "cluster_size=64k", size: int = 4 * MIB) -> Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, str(size)], check=True)
    for command in commands:
        if command.startswith("snapshot"):
            subprocess.run(["qemu-img", *command.split(), path], check=True)
        else:
            subprocess.run(["qemu-io", "-f", "qcow2", "-c", command, path], check=True, stdout=subprocess.DEVNULL)
    return path


@pytest.fixture
def opened() -> Iterator[list[int]]:
    fds: list[int] = []
    yield fds
    for fd in fds:
        os.close(fd)


def look(path: Path, opened: list[int], **how: object) -> tuple[int, ClusterMap]:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    opened.append(fd)
    return fd, _clusters.read_map(fd, read_header(fd), where="volume 'a'", **how)  # type: ignore[arg-type]


def count(found: ClusterMap, kind: int) -> int:
    return found.kinds[:].count(bytes([kind]))


LAYOUTS = [
    "cluster_size=64k",
    "cluster_size=64k,compat=0.10",
    "cluster_size=64k,refcount_bits=1",
    "cluster_size=64k,extended_l2=on",
]


@pytest.mark.parametrize("options", LAYOUTS)
def test_data_clusters(tmp_path: Path, opened: list[int], options: str) -> None:
    path = make(tmp_path / "a", "write -P 1 0 512k", "write -P 0 1M 256k", options=options)
    fd, found = look(path, opened)
    assert (count(found, DATA), count(found, VOID), found.data_clusters) == (12, 0, 12)
    holes = _holes.find(fd, found)
    assert (holes.zero_bytes, holes.data_bytes) == (256 * KIB, 512 * KIB)
    assert sum(holes.ranges[1::2]) - sum(holes.ranges[::2]) == holes.zero_bytes
    before, blocks = path.read_bytes(), os.fstat(fd).st_blocks
    _holes.dig(fd, holes)
    assert path.read_bytes() == before
    assert (blocks - os.fstat(fd).st_blocks) * 512 == 256 * KIB
    assert _holes.find(fd, found).zero_bytes == 0


def test_snapshots_share_and_own_clusters(tmp_path: Path, opened: list[int]) -> None:
    path = make(tmp_path / "a", "write -P 1 0 1M", "snapshot -c one", "write -P 0 0 256k", "write -P 0 2M 128k")
    fd, found = look(path, opened)
    assert count(found, DATA) == 16 + 4 + 2
    assert _holes.find(fd, found).zero_bytes == 384 * KIB


def test_what_reads_as_zeros_whatever_lies_there(tmp_path: Path, opened: list[int]) -> None:
    path = make(tmp_path / "a", "write -P 1 0 1M", "write -z 0 256k")
    fd, found = look(path, opened)
    assert (count(found, VOID), count(found, DATA)) == (4, 12)
    assert _holes.find(fd, found).zero_bytes == 256 * KIB


def test_but_not_while_a_snapshot_needs_it(tmp_path: Path, opened: list[int]) -> None:
    path = make(tmp_path / "a", "write -P 1 0 1M", "snapshot -c one", "write -z 0 256k")
    fd, found = look(path, opened)
    assert count(found, DATA) == 16
    assert _holes.find(fd, found).zero_bytes == 0


def test_compressed_clusters_are_counted_and_left(tmp_path: Path, opened: list[int]) -> None:
    path = make(tmp_path / "a", *(f"write -c -P {n + 1} {n * 64}k 64k" for n in range(4)), "write -P 0 1M 64k")
    fd, found = look(path, opened)
    assert (count(found, DATA), found.compressed_clusters) == (1, 4)
    assert 0 < found.compressed_bytes < 4 * 1024
    assert _holes.find(fd, found).zero_bytes == 64 * KIB


def test_what_a_trim_gives_back(tmp_path: Path, opened: list[int]) -> None:
    base = make(tmp_path / "a", "write -P 1 0 1M", "write -P 0 1M 256k", "write -c -P 3 2M 64k")
    over = tmp_path / "over"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", over], check=True, cwd=tmp_path
    )
    for discard in ("discard 0 512k", "discard 1M 128k", "discard 2M 64k", "discard 3M 1M", "write -P 1 512k 64k"):
        subprocess.run(["qemu-io", "-f", "qcow2", "-c", discard, over], check=True, stdout=subprocess.DEVNULL)
    fd = os.open(over, os.O_RDONLY | os.O_CLOEXEC)
    opened.append(fd)
    trimmed = _clusters.read_zeroed(fd, read_header(fd), where="scratch")
    assert trimmed[:].count(b"\1") == 8 + 2 + 1 + 16
    fd, found = look(base, opened, trimmed=trimmed)
    assert count(found, DOOMED) == 10
    holes = _holes.find(fd, found)
    assert (holes.doomed_bytes, holes.zero_bytes, holes.data_bytes) == (640 * KIB, 128 * KIB, 512 * KIB)
    assert 0 < found.doomed_bytes == found.compressed_bytes < 1024


@pytest.mark.parametrize("cluster", [512, 4 * KIB, 64 * KIB, 2 * MIB])
def test_blocks_of_zeros_within_clusters(tmp_path: Path, opened: list[int], cluster: int) -> None:
    """Large clusters give back parts of them; small ones whole blocks of the file system."""
    path = make(tmp_path / "a", "write -P 1 0 64k", "write -P 0 64k 1984k", options=f"cluster_size={cluster}")
    fd, found = look(path, opened)
    holes = _holes.find(fd, found)
    assert holes.zero_bytes > 1.6 * MIB and holes.data_bytes >= 64 * KIB
    before = path.read_bytes()
    _holes.dig(fd, holes)
    assert path.read_bytes() == before and _holes.find(fd, found).zero_bytes == 0


def test_zeros_in_many_parts(tmp_path: Path, opened: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """What two threads find in parts is what one finds in the whole, in the order of the file."""
    path = make(tmp_path / "a", "write -P 1 0 4M", *(f"write -P 0 {at}k 192k" for at in range(64, 4096, 320)), "write -z 0 64k")
    fd, found = look(path, opened)
    whole = _holes.find(fd, found)
    assert (whole.zero_bytes, whole.data_bytes) == (13 * 192 * KIB + 64 * KIB, 4 * MIB - 13 * 192 * KIB - 64 * KIB)
    monkeypatch.setattr(_holes, "_PART_BYTES", 128 * KIB)
    assert _holes.find(fd, found) == whole
    assert list(whole.ranges) == sorted(whole.ranges)
    monkeypatch.setattr(_holes, "_PART_EXTENTS", 1)
    monkeypatch.setattr(_holes, "extents", lambda fd: ((at, at + 64 * KIB) for at in range(0, os.fstat(fd).st_size, 64 * KIB)))
    assert _holes.find(fd, found) == whole
    assert _holes.find_anywhere(fd).zero_bytes >= 13 * 192 * KIB


@pytest.mark.parametrize("compression", ["zlib", "zstd"])
@pytest.mark.parametrize("cluster", ["4k", "64k", "2M"])
def test_samples(tmp_path: Path, opened: list[int], compression: str, cluster: str) -> None:
    (tmp_path / "text").write_bytes(NOISE.hex().encode() + NOISE + bytes(MIB))
    path = make(tmp_path / "a", f"write -s {tmp_path}/text 0 4M", options=f"cluster_size={cluster}", size=8 * MIB)
    seen = _samples.survey(*look(path, opened), compression)
    assert seen.data_bytes == 4 * MIB
    assert seen.zeros == pytest.approx(1 / 4, abs=0.01)
    assert 0.15 < seen.squeezed < 0.3
    assert 0.25 < seen.squeezed_of_rest < 0.4
    (tmp_path / "noise").write_bytes(NOISE)
    seen = _samples.survey(*look(make(tmp_path / "b", f"write -s {tmp_path}/noise 0 1M"), opened), compression)
    assert (seen.data_bytes, seen.zeros) == (MIB, 0) and seen.squeezed < 0.01
    assert _samples.survey(*look(make(tmp_path / "c"), opened), compression) == _samples.Survey()


def test_samples_of_a_large_image(tmp_path: Path, opened: list[int]) -> None:
    """A quarter zeros, a quarter text, by turns that are as long as the way from one sample to the next, or near it."""
    pieces = {b"\0": bytes(32 * KIB), b"t": NOISE.hex().encode()[: 32 * KIB], b"n": NOISE[: 32 * KIB]}
    for pattern, zeros, squeezed in ((b"\0tnn", 0.25, 0.1), (b"tn" * 7 + b"\0\0", 0.125, 0.2), (b"nnnnnnnt", 0, 0.06)):
        with (tmp_path / "content").open("wb") as file:
            file.writelines(pieces[bytes([kind])] * 2 for kind in pattern * (256 * MIB // 65536 // len(pattern)))
        path = make(tmp_path / "a", f"write -q -s {tmp_path}/content 0 256M", size=256 * MIB)
        fd, found = look(path, opened)
        seen = _samples.survey(fd, found, "zstd")
        assert seen.data_bytes == 256 * MIB
        assert seen.zeros == pytest.approx(zeros, abs=0.06)
        assert seen.squeezed == pytest.approx(squeezed, abs=0.06)
        assert _samples.survey(fd, found, "zstd") == seen


def test_samples_are_of_all_of_a_cluster(tmp_path: Path, opened: list[int]) -> None:
    """Files begin where clusters do, so that their heads differ from the rest."""
    (tmp_path / "content").write_bytes((NOISE.hex().encode()[: 16 * KIB] + NOISE[: 48 * KIB]) * 2048)
    path = make(tmp_path / "a", f"write -q -s {tmp_path}/content 0 128M", size=128 * MIB)
    assert _samples.survey(*look(path, opened), "zstd").squeezed == pytest.approx(0.25 * 0.43, abs=0.04)


def test_samples_leave_alone_what_is_no_data(tmp_path: Path, opened: list[int]) -> None:
    path = make(tmp_path / "a", "write -P 1 0 1M", "write -z 0 256k", "write -c -P 3 2M 64k")
    trimmed = _clusters.read_zeroed(*opened_header(path, opened), where="scratch")
    trimmed[:8] = bytes(4) + b"\1" * 4
    fd, found = look(path, opened, trimmed=trimmed)
    seen = _samples.survey(fd, found, "zlib")
    assert (seen.void_bytes, seen.doomed_bytes, seen.data_bytes) == (256 * KIB, 256 * KIB, 512 * KIB)


def opened_header(path: Path, opened: list[int]) -> tuple[int, ImageHeader]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    opened.append(fd)
    return fd, read_header(fd)


def word_at(path: Path, offset: int) -> int:
    with path.open("rb") as file:
        file.seek(offset)
        return int.from_bytes(file.read(8), "big")


def put_word(path: Path, offset: int, word: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(word.to_bytes(8, "big"))


COPIED = 1 << 63


@pytest.mark.parametrize("word", [0x200, 0x7FFFFFFFFFFE00, 0x00FFFFFFFFFFFE00, 3 << 40], ids=hex)
def test_l1_entries_that_lead_nowhere(tmp_path: Path, opened: list[int], word: int) -> None:
    path = make(tmp_path / "a", "write -P 1 0 1M")
    put_word(path, word_at(path, 40), COPIED | word)
    with pytest.raises(StorageError) as caught:
        look(path, opened)
    assert caught.value.reason == "unsafe_image" and "volume 'a'" in caught.value.msg


@pytest.mark.parametrize("word", [0x200, "l2"], ids=str)
def test_l2_entries_that_lead_astray(tmp_path: Path, opened: list[int], word: int | str) -> None:
    path = make(tmp_path / "a", "write -P 1 0 1M")
    table = word_at(path, word_at(path, 40)) & 0x00FFFFFFFFFFFE00
    put_word(path, table, COPIED | (table if isinstance(word, str) else word))
    with pytest.raises(StorageError) as caught:
        look(path, opened)
    assert caught.value.reason == "unsafe_image"


def test_entries_behind_the_end_take_no_room(tmp_path: Path, opened: list[int]) -> None:
    path = make(tmp_path / "a", "write -P 0 0 1M")
    table = word_at(path, word_at(path, 40)) & 0x00FFFFFFFFFFFE00
    put_word(path, table, COPIED | 1 << 45)
    fd, found = look(path, opened)
    assert _holes.find(fd, found).zero_bytes == MIB - 64 * KIB


def test_one_table_for_all_is_read_once(tmp_path: Path, opened: list[int]) -> None:
    """A hostile L1 table of which every entry leads to the same L2 table ends soon."""
    path = make(tmp_path / "a", "write -P 1 0 64k", size=1 << 40)
    l1 = word_at(path, 40)
    with path.open("r+b") as file:
        file.seek(l1)
        file.write(word_at(path, l1).to_bytes(8, "big") * 2048)
    _fd, found = look(path, opened)
    assert found.data_clusters == 1


def test_absurdly_many_clusters(tmp_path: Path, opened: list[int]) -> None:
    path = make(tmp_path / "a", options="cluster_size=512")
    os.truncate(path, 1 << 40)
    with pytest.raises(StorageError) as caught:
        look(path, opened)
    assert caught.value.reason == "unsupported"


def test_extents_without_fiemap(tmp_path: Path, opened: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    with path.open("wb") as file:
        file.write(NOISE)
        file.seek(3 * MIB)
        file.write(NOISE)
        file.truncate(8 * MIB)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    opened.append(fd)

    def merged() -> list[tuple[int, int]]:
        ranges: list[tuple[int, int]] = []
        for start, end in _extents.extents(fd):
            if ranges and ranges[-1][1] == start:
                ranges[-1] = (ranges[-1][0], end)
            else:
                ranges.append((start, end))
        return ranges

    assert merged() == [(0, MIB), (3 * MIB, 4 * MIB)]

    def unknown(*_arguments: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "not here")

    monkeypatch.setattr(_extents.fcntl, "ioctl", unknown)
    assert merged() == [(0, MIB), (3 * MIB, 4 * MIB)]


def test_digging_goes_on_where_there_is_room(
    tmp_path: Path, opened: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hole that can't be noted now is dug after others have made room; when none can, that is said."""
    fd, found = look(make(tmp_path / "a", "write -P 0 0 64k", "write -P 1 64k 64k", "write -P 0 128k 64k"), opened)
    holes = _holes.find(fd, found)
    assert len(holes.ranges) == 4
    dug: list[int] = []
    monkeypatch.setattr(_holes, "_punch", lambda _fd, start, _length: bool(dug or start > holes.ranges[0]) and not dug.append(start))
    _holes.dig(fd, holes)
    assert dug == [holes.ranges[2], holes.ranges[0]]
    monkeypatch.setattr(_holes, "_punch", lambda *_arguments: False)
    with pytest.raises(StorageError) as caught:
        _holes.dig(fd, holes)
    assert caught.value.reason == "insufficient_space"


@pytest.mark.parametrize("options", ["cluster_size=64k", "cluster_size=512", "cluster_size=4k,refcount_bits=64", "cluster_size=2M",
                                     "cluster_size=64k,extended_l2=on"])
@pytest.mark.parametrize("layout", ["whole", "scattered", "parts of clusters"])
def test_a_rewrite_takes_no_more_room_than_foretold(tmp_path: Path, opened: list[int], options: str, layout: str) -> None:
    """Noise that nothing compresses; and what is foretold is not much too much."""
    (tmp_path / "noise").write_bytes(NOISE * 3)
    writes = {
        "whole": [f"write -s {tmp_path}/noise 0 3M"],
        "scattered": [f"write -s {tmp_path}/noise {at}M 64k" for at in range(0, 1024, 32)],
        "parts of clusters": [f"write -s {tmp_path}/noise {at}k 128k" for at in range(128, 4096, 512)],
    }[layout]
    size = 1024 * MIB if "512" not in options else 256 * MIB
    path = make(tmp_path / "a", f"write -P 0 0 {8 * MIB}", *writes[: size // 32 // MIB], options=options, size=size)
    fd, found = look(path, opened)
    room = _plan_compress.room_for_rewrite(
        capacity=size, cluster_size=found.cluster_size, content=_holes.find(fd, found).data_bytes
    )
    for compression in ("zlib", "zstd"):
        out = tmp_path / compression
        how = f"{options},compression_type={compression}"
        subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "qcow2", "-c", "-o", how, path, out], check=True)
        with out.open("rb") as file:
            os.fsync(file.fileno())
        assert out.stat().st_blocks * 512 <= room, compression
    if found.cluster_size >= 65536:  # small ones may need as much for tables as for data
        assert room < 1.1 * out.stat().st_size + 40 * found.cluster_size
