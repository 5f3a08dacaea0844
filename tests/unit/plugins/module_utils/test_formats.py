# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import itertools

import pytest

from ansible_collections.hypervisor.storage.plugins.module_utils._formats import settle

SAYS = (None, "raw", "qcow2")
STATED: tuple[tuple[str, ...], ...] = ((), ("raw",), ("qcow2",), ("raw", "qcow2"))


@pytest.mark.parametrize(
    ("probed", "stated", "marked", "defined", "expected"),
    [
        # Nobody says anything: what it looks like.
        ("qcow2", (), None, None, "qcow2"),
        ("raw", (), None, None, "raw"),
        ("vmdk", (), None, None, "vmdk"),
        # All agree.
        ("qcow2", ("qcow2",), "qcow2", "qcow2", "qcow2"),
        ("raw", ("raw",), "raw", "raw", "raw"),
        ("luks", ("luks",), None, "luks", "luks"),
        # libvirt's own probe may be older than the image.
        ("raw", (), None, "qcow2", "raw"),
        ("qcow2", (), "qcow2", "raw", "qcow2"),
        ("qcow2", ("qcow2",), None, "raw", "qcow2"),
        ("qcow2", ("qcow2",), "raw", "raw", "qcow2"),
    ],
)
def test_who_is_believed(
    probed: str, stated: tuple[str, ...], marked: str | None, defined: str | None, expected: str
) -> None:
    settled = settle(probed=probed, stated=stated, marked=marked, defined=defined)
    assert (settled.format, settled.conflict) == (expected, None)


@pytest.mark.parametrize(
    ("stated", "marked", "defined", "who"),
    [
        (("raw",), None, None, "a domain uses it as raw"),
        (("raw",), "qcow2", "qcow2", "a domain uses it as raw"),
        (("raw", "qcow2"), None, None, "a domain uses it as raw"),
        ((), "raw", "qcow2", "it was made as raw"),
        ((), None, "raw", "libvirt has it as raw"),
    ],
)
@pytest.mark.parametrize("probed", ["qcow2", "vmdk", "luks"])
def test_a_header_in_a_raw_volume_is_the_guests_word(
    probed: str, stated: tuple[str, ...], marked: str | None, defined: str | None, who: str
) -> None:
    settled = settle(probed=probed, stated=stated, marked=marked, defined=defined)
    assert settled.format == "raw"
    assert settled.conflict == f"{who}, but its content looks like {probed} (a guest can write that)"


@pytest.mark.parametrize("probed", ["raw", "vmdk", "qcow2"])
def test_luks_that_is_none_is_not_read(probed: str) -> None:
    settled = settle(probed=probed, stated=("luks",), marked=None, defined=None)
    assert (settled.format, settled.conflict) == (probed, f"it should be luks, but its content looks like {probed}")


@pytest.mark.parametrize(("stated", "marked"), [(("qcow2",), None), ((), "qcow2"), (("qcow2",), "raw")])
@pytest.mark.parametrize("probed", ["raw", "vmdk"])
def test_a_qcow2_that_is_none_is_not_read(probed: str, stated: tuple[str, ...], marked: str | None) -> None:
    settled = settle(probed=probed, stated=stated, marked=marked, defined=None)
    assert settled.format == probed
    assert settled.conflict == f"it should be qcow2, but its content looks like {probed}"


@pytest.mark.parametrize(("stated", "marked", "defined"), list(itertools.product(STATED, SAYS, SAYS)))
def test_whoever_a_domain_calls_raw_is_never_read_as_qcow2(
    stated: tuple[str, ...], marked: str | None, defined: str | None
) -> None:
    settled = settle(probed="qcow2", stated=stated, marked=marked, defined=defined)
    known_raw = "raw" in (stated or (marked or defined,))
    assert (settled.format == "raw") is known_raw
    assert (settled.conflict is not None) is known_raw
