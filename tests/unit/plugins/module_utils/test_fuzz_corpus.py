# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the fuzzer met in long runs is asked again: each input a kind of its own. And texts that Hypothesis makes up."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import example, given, settings, strategies as st  # noqa: E402

from ansible_collections.hypervisor.storage.tests.unit import fuzz_targets  # noqa: E402

CORPUS = Path(__file__).parents[3] / "fuzz" / "corpus"
LEAST = {"header": 100, "size": 8, "name": 8}


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img")
@pytest.mark.parametrize("target", fuzz_targets.TARGETS)
def test_the_corpus_stands(target: str) -> None:
    kinds = {fuzz_targets.TARGETS[target](data) for data in fuzz_targets.unpack_corpus((CORPUS / target).read_text())}
    assert len(kinds) >= LEAST[target]


QUIET = settings(max_examples=500, deadline=None, derandomize=True, database=None)
NUMBERS = st.from_regex(r"[0-9]{1,22}(\.[0-9]{0,12})?", fullmatch=True)
UNITS = st.sampled_from(["", *"KMGTPkmgtpEB", "KB", "KiB", "MB", "GiB", "TB", "PiB", "kib", "Ki", "iB", "BB", "G B"])


@QUIET
@given(number=NUMBERS, blanks=st.text(" \t\n\N{NO-BREAK SPACE}", max_size=3), unit=UNITS, sign=st.sampled_from(["", "", "", "-", "+", " "]))
def test_whatever_looks_like_a_size(number: str, blanks: str, unit: str, sign: str) -> None:
    fuzz_targets.check_size(f"{sign}{number}{blanks}{unit}".encode())


@QUIET
@given(text=st.text(max_size=70))
@example(text="1" * 63 + "P")
def test_any_text_as_size(text: str) -> None:
    fuzz_targets.check_size(text.encode())


@QUIET
@given(name=st.text(min_size=0, max_size=300) | st.text("ab.-/\0\n <&\"'%:\ufffe\N{SNOWMAN}", max_size=12))
@example(name=".hypervisor.storage-partial-1")
@example(name="\N{SNOWMAN}" * 85)
@example(name="\N{SNOWMAN}" * 86)
def test_any_text_as_name(name: str) -> None:
    fuzz_targets.check_name(name.encode())


@QUIET
@given(name=st.binary(max_size=40))
def test_any_bytes_as_name(name: bytes) -> None:
    fuzz_targets.check_name(name)
