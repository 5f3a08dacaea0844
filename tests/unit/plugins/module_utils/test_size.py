# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import time

import pytest

from ansible_collections.hypervisor.storage.plugins.module_utils import _size
from ansible_collections.hypervisor.storage.plugins.module_utils._errors import InvalidSize

LEGAL = [
    (1, 1),
    (512, 512),
    (2**63 - 1, 2**63 - 1),
    ("1", 1),
    ("007", 7),
    (str(2**63 - 1), 2**63 - 1),
    ("1K", 1024),
    ("1M", 1024**2),
    ("1G", 1024**3),
    ("1T", 1024**4),
    ("1P", 1024**5),
    ("1KiB", 1024),
    ("1MiB", 1024**2),
    ("1GiB", 1024**3),
    ("1TiB", 1024**4),
    ("1PiB", 1024**5),
    ("1KB", 1000),
    ("1MB", 1000**2),
    ("1GB", 1000**3),
    ("1TB", 1000**4),
    ("1PB", 1000**5),
    ("1.5G", 3 * 1024**3 // 2),
    ("1.50 GiB", 3 * 1024**3 // 2),
    ("10 G", 10 * 1024**3),
    ("10 \t GB", 10**10),
    ("0.5K", 512),
    # Rounded up to whole bytes, and exact where floats are not.
    ("0.1K", 103),
    ("0.0000000001K", 1),
    ("1.1GB", 1100000000),
    ("0.3P", 337769972052788),
    ("9007199.254740993GB", 9007199254740993),
    ("9223372036854775.807KB", 2**63 - 1),
    ("8191.999999999999999P", 8191 * 1024**5 + 1024**5 - 1),
]

ILLEGAL: list[object] = [
    None, True, False, 1.0, 1.5, float("nan"), float("inf"), [], ["1G"], {}, {"size": 1}, (), b"1G",
    pytest.param(object(), id="an object"),
    0, -1, 2**63, -(2**63), 10**5000, -(10**5000),
    "", " ", "\t", "\n", "0", "00", "0G", "0.0G", "0.0 KiB", "-1", "-1G", "- 1G", "+1", "+10G", "--1",
    "1k", "1g", "10gb", "10Gib", "10GIB", "10kB", "10 gib", "10B", "10 b", "10bytes", "10Gi", "10GBs",
    "10E", "10EiB",
    "10Z", "10KK", "10KMG", "10 G B", "10 Gi B", "10 G 5 M", "G", "GiB", ".", ".5G", "5.G", "5. G", "5 .5G",
    "1.5", "1.0",
    "1..5G", "1.2.3G", "1,5G", "1,000", "1_000", "1'000", "1e9", "1E9", "1e3G", "0x10", "0b1", "0o7",
    "1/2G", "50%",
    " 1G", "1G ", "\t1G", "1G\n", "1\n", "\n1", "1\r", "1\0", "1G\0", "1\n2", "1\x0bG", "1\u00a0G",
    "1\u2003G", "\ufeff1G",
    "١٠G", "１０G", "10Ｇ", "²", "½G", "10К", "∞", "NaN", "nan", "inf", "Infinity", "None", "null", "max",
    "all", "ten",
    "{{ size }}", "$(id)", "1;reboot", "1G--force", "\ud800", "9223372036854775808", "8192P", "8192PiB",
    "9223.4PB",
    "9" * 64, "9" * 65, "9" * 10000, "1." + "0" * 10000 + "G", "1" + " " * 10000 + "G", "0" * 10000 + "1",
]  # fmt: skip


@pytest.mark.parametrize(("value", "size"), LEGAL)
def test_legal_sizes(value: object, size: int) -> None:
    assert _size.parse_size(value) == size


def label(value: object) -> str:
    return f"{value.bit_length()} bits" if isinstance(value, int) else ascii(value)[:30]


@pytest.mark.parametrize("value", ILLEGAL, ids=label)
def test_illegal_sizes_are_refused_with_a_short_message(value: object) -> None:
    with pytest.raises(InvalidSize) as caught:
        _size.parse_size(value, option="min_reclaim")
    assert caught.value.reason == "invalid_size"
    assert caught.value.msg.startswith("min_reclaim: ")
    assert len(caught.value.msg) < 300


def test_message_repeats_the_value_and_gives_an_example() -> None:
    with pytest.raises(InvalidSize) as caught:
        _size.parse_size("10g")
    assert "size: '10g' is not a size" in caught.value.msg
    assert "10G" in caught.value.msg


def test_monstrous_values_cost_nothing() -> None:
    started = time.perf_counter()
    for value in ("9" * 10**7, "1." + "9" * 10**7 + "G", "1" + " " * 10**7, 1 << 10**7):
        with pytest.raises(InvalidSize):
            _size.parse_size(value)
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize(
    ("size", "step", "rounded"),
    [
        (0, 512, 0),
        (1, 512, 512),
        (511, 512, 512),
        (512, 512, 512),
        (513, 512, 1024),
        (1, 1, 1),
        (4 * 1024**2 + 1, 4 * 1024**2, 8 * 1024**2),
        (2**63 - 1, 512, 2**63),
    ],
)
def test_round_up(size: int, step: int, rounded: int) -> None:
    assert _size.round_up(size, step) == rounded


def test_round_up_is_to_sectors_by_default() -> None:
    assert _size.round_up(1) == _size.SECTOR == 512


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (512, "512 bytes"),
        (1023, "1023 bytes"),
        (1024, "1 KiB"),
        (1536 * 1024**2, "1.5 GiB"),
        (1500, "1.46 KiB"),
        (1024**2 - 6 * 1024, "1018 KiB"),
        (1024**2 - 1, "1 MiB"),
        (1024**2 - 6, "1023.99 KiB"),
        (1024**2 - 5, "1 MiB"),
        (10 * 1024**3 + 1, "10 GiB"),
        (2**63 - 1, "8192 PiB"),
        (-5 * 1024**2, "-5 MiB"),
    ],
)
def test_human(size: int, text: str) -> None:
    assert _size.human(size) == text


@pytest.mark.parametrize("size", [1024, 3 * 1024**2 // 2, 20 * 1024**3, 7 * 1024**5 // 4])
def test_what_human_writes_exactly_parses(size: int) -> None:
    assert _size.parse_size(_size.human(size)) == size
