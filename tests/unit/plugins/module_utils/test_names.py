# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import uuid

import pytest

from ansible_collections.hypervisor.storage.plugins.module_utils import _names
from ansible_collections.hypervisor.storage.plugins.module_utils._errors import InvalidName

LEGAL = [
    "web", "web.qcow2", "-", "--help", "-f", "a b", " a", "a ", "...", ".hidden", "a..b", "~", "*", "?",
    "[a]", "a\\b", "%s", "%2F",
    "a:b", "nbd:x", "json:{}", "file:x", "a,b", "a;b", "a&b", "<a>", "&amp;", "]]>", "'", '"', "`id`",
    "$(id)", "${HOME}",
    "{{ a }}", "a=b", "a#b", "a@b", "a|b", "!", "é", "e\u0301", "Ünïcödé", "日本語", "🐧", "\u00a0", "\u200b",
    "\u202e", "\u2028",
    "\ufeff", "\ufffd", "\U0001fffe", "\ue000", "x" * 255, "é" * 127, "🐧" * 63,
    ".hypervisor.storage", "hypervisor.storage-1", ".Hypervisor.storage-1",
]  # fmt: skip

ILLEGAL: list[object] = [
    None, 1, True, 1.5, b"a", [], ["a"], {}, "", ".", "..", "/", "a/b", "/a", "a/", "../a",
    "../../etc/passwd", "./a",
    "\0", "a\0", "a\0b", "\n", "a\n", "a\nb", "\r", "\t", "a\tb", "\x01", "\x1b[31m", "\x1f", "\x7f",
    "\x80", "\x85", "\x9f",
    "\ud800", "a\udcffb", "\udfff", "\ufffe", "\uffff", "a\uffffb", "x" * 256, "é" * 128, "🐧" * 64,
    "x" * 10**6,
    ".hypervisor.storage-", ".hypervisor.storage-web", ".hypervisor.storage-\U0001f427",
]  # fmt: skip

POOL = "5d6f2f4c-0b0f-4a4f-9f0a-1d2f3c4b5a69"


@pytest.mark.parametrize("name", LEGAL, ids=lambda name: ascii(name)[:30])
def test_legal_names_stay_as_they_are(name: str) -> None:
    assert _names.check_name(name) == name


@pytest.mark.parametrize("name", ILLEGAL, ids=lambda name: ascii(name)[:30])
def test_illegal_names_are_refused_with_a_short_printable_message(name: object) -> None:
    with pytest.raises(InvalidName) as caught:
        _names.check_name(name, option="snapshot_volume")
    assert caught.value.reason == "invalid_name"
    assert caught.value.msg.startswith("snapshot_volume: ")
    assert caught.value.msg.isprintable()
    assert caught.value.msg.encode("utf-8")
    assert len(caught.value.msg) < 1200


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "empty"),
        ("a/b", "'/'"),
        ("a\nb", "control"),
        ("\ud800", "UTF-8"),
        ("é" * 128, "256 bytes"),
        (".hypervisor.storage-web", "in the making"),
    ],
)
def test_message_says_why(name: str, why: str) -> None:
    with pytest.raises(InvalidName, match=why):
        _names.check_name(name)


@pytest.mark.parametrize("name", LEGAL, ids=lambda name: ascii(name)[:30])
def test_uuid_is_the_version_5_uuid_in_the_pools_namespace(name: str) -> None:
    found = uuid.UUID(_names.volume_uuid(POOL, name))
    assert found == uuid.uuid5(uuid.UUID(POOL), name)
    assert found.version == 5


def test_uuid_differs_between_pools_and_names() -> None:
    other = str(uuid.UUID(int=1))
    assert len({_names.volume_uuid(pool, name) for pool in (POOL, other) for name in ("a", "b")}) == 4


def test_uuid_never_changes() -> None:
    assert _names.volume_uuid(POOL, "ä") == "b048c61e-2feb-57ab-b2d6-45f3ce936d59"
    assert _names.volume_uuid(POOL.upper(), "ä") == "b048c61e-2feb-57ab-b2d6-45f3ce936d59"


@pytest.mark.parametrize(
    ("pool_type", "legal", "illegal"),
    [
        ("dir", ["a@b", "-a", "ü"], []),
        ("rbd", ["-a", "a b", "rbd:a", "ü", "x" * 255], ["a@b", "@", "a@"]),
        ("logical", ["a", "a.b-c_d+1", "x" * 127], ["-a", "a b", "a:b", "ü", "a@b", "x" * 128]),
        ("zfs", ["a", "-a", "a:b.c_d"], ["a b", "a@b", "ü", "a,b"]),
    ],
)
def test_what_storages_take_as_a_name(pool_type: str, legal: list[str], illegal: list[str]) -> None:
    for name in legal:
        _names.check_name_in(pool_type, name)
    for name in illegal:
        with pytest.raises(InvalidName) as refused:
            _names.check_name_in(pool_type, name)
        assert pool_type in refused.value.msg
