# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What must hold for any input of the readers of foreign bytes and text, whoever makes it up: Hypothesis, Atheris, the corpus.

Each check takes an input and returns its kind: inputs of one kind took the same way, as far as an answer shows it.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import tempfile
import unicodedata
import zlib
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

from ansible_collections.hypervisor.storage.plugins.module_utils import _foreign_header, _image_header, _names, _size, _xml
from ansible_collections.hypervisor.storage.plugins.module_utils._errors import InvalidName, InvalidSize
from ansible_collections.hypervisor.storage.plugins.module_utils._image_header import ImageHeader

Kind = tuple[Any, ...]

#: Imported for the fuzzer, which sees the inside of what is imported before it starts.
READERS = (_image_header, _foreign_header)

#: The longest file that check_header() makes: holes cost nothing.
MAX_LENGTH = 16 * 1024**2


# -- headers ---------------------------------------------------------------------------------------


def pack_image(content: bytes) -> bytes:
    """An image as input of check_header(): its length (4 bytes, little-endian), then its content less the zeros at its end."""
    return len(content).to_bytes(4, "little") + content.rstrip(b"\0")


def check_header(data: bytes, *, ask_qemu: bool = True) -> Kind:
    """The reader answers, in bounds, and says what ``qemu-img info`` says of what both accept."""
    length = max(int.from_bytes(data[:4], "little") % MAX_LENGTH, len(data) - 4)
    with tempfile.NamedTemporaryFile(prefix="hs-fuzz-") as file:
        file.write(data[4:])
        file.flush()
        os.truncate(file.name, max(length, 0))
        header = _image_header.read_header(file.fileno())
        assert_in_bounds(header)
        if ask_qemu and header.format == "qcow2":
            assert_no_lie(header, file.name)
    return kind_of(header)


def kind_of(header: ImageHeader) -> Kind:
    problem = re.sub(r"\d+", "N", header.problem) if header.problem is not None else None
    return (
        header.format, header.compat, header.cluster_size, header.backing_file is not None,
        header.backing_format in ("raw", "qcow2", None), header.data_file is not None, header.encryption,
        min(len(header.snapshots), 2), header.lazy_refcounts, header.extended_l2, header.compression_type,
        header.dirty, header.corrupt, header.bitmaps, problem,
    )  # fmt: skip


def assert_in_bounds(header: ImageHeader) -> None:
    assert 0 <= header.capacity < 2**63
    name = header.backing_file
    assert name is None or (name and "\0" not in name and len(os.fsencode(name)) <= 1023)
    assert header.problem is None or header.problem.isprintable()
    json.dumps(header._asdict(), default=str)


def assert_no_lie(header: ImageHeader, path: str) -> None:
    """Where QEMU opens the image, it finds nothing else in it than we told."""
    asked = subprocess.run(
        ["qemu-img", "info", "--output=json", "-f", "qcow2", path],
        check=False, capture_output=True, timeout=60, env={**os.environ, "LC_ALL": "C"},
    )  # fmt: skip
    # A data file would have to exist for QEMU, and a problem of ours is a refusal whatever QEMU thinks.
    if asked.returncode != 0 or header.problem is not None or header.data_file is not None or not is_plain(header):
        return
    assert told_by_us(header) == told_by_qemu(json.loads(asked.stdout))


def is_plain(header: ImageHeader) -> bool:
    """Whether all texts are such that qemu-img prints them as they are."""
    texts = [header.backing_file or "", header.backing_format or ""]
    texts += [text for entry in header.snapshots for text in (entry.id, entry.name)]
    return all(text.isascii() and text.isprintable() and "\\" not in text for text in texts)


def told_by_us(header: ImageHeader) -> dict[str, Any]:
    """The reader's answer, as far as qemu-img has one too."""
    return {
        "format": header.format, "capacity": header.capacity, "encrypted": header.encryption is not None,
        "backing": (header.backing_file, header.backing_format), "cluster_size": header.cluster_size, "dirty": header.dirty,
        "compat": header.compat, "compression": header.compression_type, "refcount_bits": header.refcount_bits,
        "lazy": header.lazy_refcounts, "extended_l2": header.extended_l2, "corrupt": header.corrupt,
        "bitmaps": header.bitmaps, "data_file": header.data_file, "encryption": header.encryption,
        "snapshots": [(e.id, e.name, e.date_sec, e.date_nsec, e.vm_state_size) for e in header.snapshots],
    }  # fmt: skip


def told_by_qemu(said: dict[str, Any]) -> dict[str, Any]:
    """What ``qemu-img info`` says, in the same form."""
    data = said["format-specific"]["data"]
    return {
        "format": said["format"], "capacity": said["virtual-size"], "encrypted": said.get("encrypted", False),
        "backing": (said.get("backing-filename"), said.get("backing-filename-format")), "cluster_size": said["cluster-size"],
        "dirty": said["dirty-flag"], "compat": data["compat"], "compression": data["compression-type"],
        "refcount_bits": data["refcount-bits"], "lazy": data.get("lazy-refcounts", False),
        "extended_l2": data.get("extended-l2", False), "corrupt": data.get("corrupt", False),
        "bitmaps": bool(data.get("bitmaps")), "data_file": data.get("data-file"),
        "encryption": data.get("encrypt", {}).get("format"),
        "snapshots": [
            (e["id"], e["name"], e["date-sec"], e["date-nsec"], e["vm-state-size"]) for e in said.get("snapshots", [])
        ],
    }  # fmt: skip


# -- texts -----------------------------------------------------------------------------------------

_FACTORS = {"": 1}
for _power, _letter in enumerate("KMGTP", start=1):
    _FACTORS.update({_letter: 1024**_power, f"{_letter}iB": 1024**_power, f"{_letter}B": 1000**_power})


def size_by_hand(text: str) -> int | None:
    """Another reading of the grammar of sizes, letter by letter; None where it is not one."""
    number = text.rstrip("KMGTPiB")
    unit = text[len(number) :]
    if len(text) > 64 or unit not in _FACTORS:
        return None
    if unit:
        number = number.rstrip(" \t")
    whole, dot, fraction = number.partition(".")
    digits = set("0123456789")
    if not whole or set(whole + fraction) - digits or (dot and (not fraction or not unit)):
        return None
    size = -(-(Fraction(int(whole + fraction), 10 ** len(fraction)) * _FACTORS[unit]) // 1)
    return size if 1 <= size < 2**63 else None


def check_size(data: bytes) -> Kind:
    """A size or a short refusal, and no other size than the grammar's."""
    text = data.decode("utf-8", "surrogateescape")
    wanted = size_by_hand(text)
    try:
        size = _size.parse_size(text)
    except InvalidSize as refused:
        assert wanted is None, (text, wanted)
        assert len(refused.msg) < 500 and refused.msg.isprintable()
        return ("refused", refused.msg[-30:], len(text) > 64, "." in text, text[-1:] in "KMGTPiB")
    assert size == wanted, (text, size, wanted)
    assert _size.round_up(size) - size in range(512)
    assert _size.human(size)
    return ("size", text.lstrip("0123456789.")[:4].strip(), "." in text, " " in text)


def check_name(data: bytes) -> Kind:
    """A name that the file system and libvirt's XML carry, or a short refusal."""
    text = data.decode("utf-8", "surrogateescape")
    try:
        assert _names.check_name(text) == text
    except InvalidName as refused:
        assert len(refused.msg) < 1200 and "\n" not in refused.msg
        assert not re.fullmatch(r"[a-zA-Z0-9_-][a-zA-Z0-9._-]{0,200}", text), "an everyday name"
        return ("refused", re.sub(r"\d+", "N", refused.msg[-40:]))
    assert 0 < len(text.encode()) <= 255 and text not in (".", "..")
    assert not any(char == "/" or unicodedata.category(char) == "Cc" for char in text)
    assert not text.startswith(_names.STAGING_PREFIX)
    document = _xml.build_volume(name=text, capacity=1, allocation=0, format=None)
    assert _xml.parse_volume(document).name == text
    with tempfile.TemporaryDirectory(prefix="hs-fuzz-") as directory:
        with open(os.path.join(directory, text), "x"):
            assert os.listdir(directory) == [text]
    return ("name", text[:1] in "-.", text.isascii(), any(char in "<>&\"'" for char in text), len(text.encode()) > 200)


TARGETS = {"header": check_header, "size": check_size, "name": check_name}


def pack_corpus(inputs: Iterable[bytes]) -> str:
    """Inputs as a text file: one a line, deflated (they are zeros for the most part), in base64."""
    return "".join(sorted(base64.b64encode(zlib.compress(data, 9)).decode() + "\n" for data in inputs))


def unpack_corpus(text: str) -> list[bytes]:
    return [zlib.decompress(base64.b64decode(line)) for line in text.splitlines()]
