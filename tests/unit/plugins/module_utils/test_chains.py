# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.hypervisor.storage.plugins.module_utils import _chains, _directory
from ansible_collections.hypervisor.storage.plugins.module_utils._chains import Chain, ChainReader, may_hang_a_reader
from ansible_collections.hypervisor.storage.plugins.module_utils._image_header import ImageHeader

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img")

MIB = 1024**2


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """A walk that does not end is a failure, not a wait."""
    signal.alarm(30)
    yield
    signal.alarm(0)


def raw(path: Path, content: bytes = b"", size: int = MIB) -> Path:
    path.write_bytes(content)
    os.truncate(path, size)
    return path


def overlay(path: Path, stored: object, backing_format: str | None = None, **options: str) -> Path:
    """A qcow2 image that names ``stored`` as its backing file, whether or not that is there."""
    stated = ("-F", backing_format) if backing_format else ("-F", "raw")
    more = [part for key, value in options.items() for part in ("-o", f"{key}={value}")]
    argv = ["qemu-img", "create", "-q", "-u", "-f", "qcow2", *more, "-b", str(stored), *stated, str(path), str(MIB)]
    subprocess.run(argv, check=True)
    if backing_format is None:
        forget_backing_format(path)
    return path


def blank(path: Path, **options: str) -> Path:
    more = [part for key, value in options.items() for part in ("-o", f"{key}={value}")]
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *more, str(path), str(MIB)], check=True)
    return path


def forget_backing_format(path: Path) -> None:
    """Turn the extension that states the backing format into one that nobody knows."""
    patch(path, bytes.fromhex("e2792aca"), bytes.fromhex("01234567"))


def patch(path: Path, before: bytes, after: bytes) -> None:
    assert len(before) == len(after)
    content = path.read_bytes()
    assert content.count(before) == 1
    path.write_bytes(content.replace(before, after))


def below(path: Path, reader: ChainReader | None = None) -> Chain:
    facts = _directory.look_at(str(path))
    assert facts is not None and facts.header is not None
    return (reader or ChainReader()).below(facts.path, facts.header, facts.ident)


def paths(chain: Chain) -> list[Path]:
    assert chain.trouble is None
    return [Path(layer.path) for layer in chain.layers]


def formats(chain: Chain) -> list[str | None]:
    return [layer.format for layer in chain.layers]


# -- good chains -----------------------------------------------------------------------------------


def test_no_backing_file(tmp_path: Path) -> None:
    assert below(blank(tmp_path / "web")) == Chain()
    assert below(raw(tmp_path / "disk")) == Chain()


@pytest.mark.parametrize("relative", [False, True])
def test_a_chain_goes_from_the_direct_backing_to_the_base(tmp_path: Path, relative: bool) -> None:
    names = ["base", "one", "two", "three"]
    raw(tmp_path / "base")
    for lower, upper in zip(names, names[1:]):
        overlay(tmp_path / upper, lower if relative else tmp_path / lower, "raw" if lower == "base" else "qcow2")
    chain = below(tmp_path / "three")
    assert paths(chain) == [tmp_path / "two", tmp_path / "one", tmp_path / "base"]
    assert formats(chain) == ["qcow2", "qcow2", "raw"]
    assert [layer.ident for layer in chain.layers] == [_directory.identify(layer.path) for layer in chain.layers]
    told = subprocess.run(
        ["qemu-img", "info", "--output=json", "--backing-chain", str(tmp_path / "three")],
        check=True, stdout=subprocess.PIPE,
    ).stdout  # fmt: skip
    assert [layer["filename"] for layer in json.loads(told)[1:]] == [layer.path for layer in chain.layers]


def test_relative_names_start_at_the_overlays_directory(tmp_path: Path) -> None:
    for name in ("a/deep", "b"):
        (tmp_path / name).mkdir(parents=True)
    raw(tmp_path / "b/base")
    overlay(tmp_path / "a/middle", "../b/./base", "raw")
    overlay(tmp_path / "a/deep/top", "..//middle", "qcow2")
    assert paths(below(tmp_path / "a/deep/top")) == [tmp_path / "a/middle", tmp_path / "b/base"]


def test_dots_behind_a_linked_directory_mean_its_real_parent(tmp_path: Path) -> None:
    for name in ("real/sub", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    raw(tmp_path / "real/base")
    raw(tmp_path / "elsewhere/base")
    (tmp_path / "elsewhere/link").symlink_to(tmp_path / "real/sub")
    top = overlay(tmp_path / "top", "elsewhere/link/../base", "raw")
    assert paths(below(top)) == [tmp_path / "real/base"]


def test_links_keep_their_name_and_have_the_identity_of_their_target(tmp_path: Path) -> None:
    base = raw(tmp_path / "base")
    (tmp_path / "link").symlink_to("base")
    (layer,) = below(overlay(tmp_path / "top", "link", "raw")).layers
    assert layer.path == str(tmp_path / "link")
    assert layer.ident == _directory.identify(str(base))


def test_the_layer_below_a_link_lies_beside_the_link(tmp_path: Path) -> None:
    for name in ("links", "real"):
        (tmp_path / name).mkdir()
        raw(tmp_path / name / "base")
    overlay(tmp_path / "real/middle", "base", "raw")
    (tmp_path / "links/middle").symlink_to(tmp_path / "real/middle")
    top = overlay(tmp_path / "top", tmp_path / "links/middle", "qcow2")
    assert paths(below(top)) == [tmp_path / "links/middle", tmp_path / "links/base"]


def test_a_link_that_is_reached_by_dots_keeps_its_name(tmp_path: Path) -> None:
    for name in ("top", "links", "real"):
        (tmp_path / name).mkdir()
        raw(tmp_path / name / "base")
    overlay(tmp_path / "real/middle", "base", "raw")
    (tmp_path / "links/middle").symlink_to("../real/middle")
    top = overlay(tmp_path / "top/top", "../links/middle", "qcow2")
    assert paths(below(top)) == [tmp_path / "links/middle", tmp_path / "links/base"]


@pytest.mark.parametrize("name", ["-f", "a b", "a,b", "'", "日本語", "%s", "a=b"])
def test_names_of_backing_files_need_no_quoting(tmp_path: Path, name: str) -> None:
    base = raw(tmp_path / name)
    assert paths(below(overlay(tmp_path / "top", base, "raw"))) == [base]


def test_a_colon_behind_a_slash_is_no_protocol(tmp_path: Path) -> None:
    base = raw(tmp_path / "nbd:host:10809")
    assert paths(below(overlay(tmp_path / "top", base, "raw"))) == [base]


def test_a_raw_base_is_the_end_whatever_its_content_says(tmp_path: Path) -> None:
    secret = raw(tmp_path / "secret")
    forged = overlay(tmp_path / "forged", secret, "raw")
    chain = below(overlay(tmp_path / "top", forged, "raw"))
    assert (paths(chain), formats(chain)) == ([forged], ["raw"])


def test_without_a_stated_format_the_content_decides(tmp_path: Path) -> None:
    base = raw(tmp_path / "base")
    middle = overlay(tmp_path / "middle", base)
    chain = below(overlay(tmp_path / "top", middle))
    assert (paths(chain), formats(chain)) == ([middle, base], ["qcow2", "raw"])


def test_an_image_is_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = raw(tmp_path / "base")
    tops = [overlay(tmp_path / f"top{n}", base, "raw") for n in range(3)]
    looked: list[str] = []
    look_at = _directory.look_at

    def counting(path: str, *, known_raw: bool = False) -> _directory.FileFacts | None:
        looked.append(path)
        return look_at(path, known_raw=known_raw)

    reader = ChainReader()
    headers = [(top, look_at(str(top))) for top in tops]
    monkeypatch.setattr(_directory, "look_at", counting)
    for top, facts in headers:
        assert facts is not None and facts.header is not None
        assert paths(reader.below(str(top), facts.header, facts.ident)) == [base]
    assert looked == [str(base)]


# -- hostile chains --------------------------------------------------------------------------------


def trouble(path: Path) -> str:
    chain = below(path)
    assert chain.trouble is not None
    return chain.trouble


@pytest.mark.parametrize("name", ["top", "./top", "hard", "link"])
@pytest.mark.parametrize("stated", ["qcow2", "raw", None])
def test_an_image_that_names_itself(tmp_path: Path, name: str, stated: str | None) -> None:
    top = overlay(tmp_path / "top", name, stated)
    os.link(top, tmp_path / "hard")
    (tmp_path / "link").symlink_to("top")
    assert "circle" in trouble(top)


def test_two_images_that_name_each_other(tmp_path: Path) -> None:
    overlay(tmp_path / "one", tmp_path / "two", "qcow2")
    overlay(tmp_path / "two", tmp_path / "one", "qcow2")
    top = overlay(tmp_path / "top", tmp_path / "one", "qcow2")
    assert "circle" in trouble(tmp_path / "one")
    assert "circle" in trouble(top)


def line_up(directory: Path, count: int) -> Path:
    """A chain of ``count`` overlays above a raw base; returns the topmost. One header, copied and patched."""
    raw(directory / "0000")
    pattern = overlay(directory / "pattern", "9999", "qcow2").read_bytes()[: 65536 * 3 + 8]
    for number in range(1, count + 1):
        path = directory / f"{number:04}"
        path.write_bytes(pattern.replace(b"9999", f"{number - 1:04}".encode()))
    patch(directory / "0001", b"qcow2", b"raw\0\0")
    patch(directory / "0001", bytes.fromhex("e2792aca00000005"), bytes.fromhex("e2792aca00000003"))
    return directory / f"{count:04}"


def test_a_chain_may_be_as_deep_as_libvirt_allows(tmp_path: Path) -> None:
    assert len(paths(below(line_up(tmp_path, _chains.MAX_DEPTH)))) == _chains.MAX_DEPTH


def test_a_chain_without_end_ends(tmp_path: Path) -> None:
    chain = below(line_up(tmp_path, _chains.MAX_DEPTH + 20))
    assert chain.trouble == "the backing chain has more than 200 layers"
    assert len(chain.layers) == _chains.MAX_DEPTH + 1


@pytest.mark.parametrize(
    "stored",
    [
        "nbd:127.0.0.1:10809", "nbd://example.org/disk", "file:base", "file:/etc/shadow", "http://example.org/disk",
        'json:{"driver":"raw","file":{"driver":"file","filename":"/etc/shadow"}}', "fat:/etc", "host_device:/dev/vda",
        "ssh://example.org/disk", "a:b", "vvfat:rw:/",
    ],
)  # fmt: skip
def test_protocols_are_not_followed(tmp_path: Path, stored: str) -> None:
    # qemu-img itself would try to reach some of these.
    top = overlay(tmp_path / "top", "x" * len(stored), "raw")
    patch(top, b"x" * len(stored), stored.encode())
    raw(tmp_path / "base")
    chain = below(top)
    assert chain.layers == ()
    assert chain.trouble == f"{str(top)!r} names a backing file by protocol ({stored!r})"


def test_a_backing_file_that_is_missing(tmp_path: Path) -> None:
    chain = below(overlay(tmp_path / "top", "gone", "raw"))
    assert chain.trouble == f"the backing file {str(tmp_path / 'gone')!r} is not there"
    assert [(layer.path, layer.ident) for layer in chain.layers] == [
        (str(tmp_path / "gone"), ("path", str(tmp_path / "gone"), ""))
    ]


def test_data_in_another_file(tmp_path: Path) -> None:
    data = raw(tmp_path / "data")
    for top in (blank(tmp_path / "top", data_file=str(data)), overlay(tmp_path / "upper", tmp_path / "top", "qcow2")):
        assert trouble(top) == f"{str(tmp_path / 'top')!r} keeps its data in another file ({str(data)!r})"
        assert below(top).data == (_directory.identify(str(data)),)


@pytest.mark.parametrize(("stored", "found"), [("data", True), ("nbd://host/data", False), ("gone", True)])
def test_the_name_of_a_data_file(tmp_path: Path, stored: str, found: bool) -> None:
    """It begins at the image, as libvirt has it; what isn't there has its path for an identity, and a protocol none."""
    raw(tmp_path / "data")
    header = ImageHeader(format="qcow2", data_file=stored)
    expected = (_directory.identify_loosely(str(tmp_path / stored)),) if found else ()
    assert ChainReader().below(str(tmp_path / "top"), header).data == expected


def test_a_fifo_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for stated in ("raw", "qcow2", None):
        top = overlay(tmp_path / f"top-{stated}", "fifo", stated)
        assert "neither a file nor a block device" in trouble(top)


@pytest.mark.parametrize("stored", ["/dev/zero", "/dev/tty", "/", "."])
def test_what_is_no_file_is_not_opened(tmp_path: Path, stored: str) -> None:
    assert "neither a file nor a block device" in trouble(overlay(tmp_path / "top", stored, "raw"))


@pytest.mark.parametrize("stored", ["/proc/kmsg", "/proc/self/mem", "/sys/kernel/uevent_seqnum", "/proc/self/fd/0"])
@pytest.mark.parametrize("stated", ["raw", "qcow2"])
def test_files_that_the_kernel_makes_up_are_not_opened(tmp_path: Path, stored: str, stated: str) -> None:
    chain = below(overlay(tmp_path / "top", stored, stated))
    assert chain.trouble is not None
    assert all(layer.path == stored for layer in chain.layers)


def test_a_link_to_what_must_not_be_opened(tmp_path: Path) -> None:
    (tmp_path / "innocent").symlink_to("/proc/kmsg")
    assert below(overlay(tmp_path / "top", "innocent", "raw")).trouble is not None


def test_a_base_of_another_format_than_stated(tmp_path: Path) -> None:
    base = raw(tmp_path / "base")
    assert trouble(overlay(tmp_path / "top", base, "qcow2")).endswith("should be qcow2, but its content is raw")


def test_a_base_with_a_damaged_header(tmp_path: Path) -> None:
    base = blank(tmp_path / "base")
    with base.open("r+b") as file:
        file.seek(20)
        file.write(bytes([0, 0, 0, 63]))  # clusters of 2^63 bytes
    assert "can't be trusted" in trouble(overlay(tmp_path / "top", base, "qcow2"))


def test_links_that_run_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert "is not there" in trouble(overlay(tmp_path / "top", "a", "raw"))


# -- what would hang libvirt -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "word"),
    [
        ("/proc/kmsg", "kernel makes up"),
        ("../../../../../../../../../../proc/kmsg", "kernel makes up"),
        ("/sys/kernel/uevent_seqnum", "kernel makes up"),
        ("/dev/zero", "device or pipe"),
        ("fifo", "device or pipe"),
        ("./fifo", "device or pipe"),
        ("link", "device or pipe"),
    ],
)
def test_what_would_hang_a_refresh(tmp_path: Path, stored: str, word: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    assert word in str(may_hang_a_reader(str(tmp_path), stored))


@pytest.mark.parametrize("stored", ["", "file", "gone", ".", "nbd:x:1", "json:{}", "a\0b", "/etc/hostname"])
def test_what_would_not(tmp_path: Path, stored: str) -> None:
    raw(tmp_path / "file")
    assert may_hang_a_reader(str(tmp_path), stored) is None
