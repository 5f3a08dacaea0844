# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import grp
import os
import pwd
from typing import Any

import pytest

from ansible_collections.hypervisor.storage.plugins.module_utils import _requests
from ansible_collections.hypervisor.storage.plugins.module_utils._errors import InvalidOption, StorageError
from ansible_collections.hypervisor.storage.plugins.module_utils._model import Rights
from ansible_collections.hypervisor.storage.plugins.module_utils._plans import Wish

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
NOTHING: dict[str, Any] = {
    "name": ["web"], "pool": "default", "state": "present", "size": None, "format": None, "preallocation": None,
    "clone_mode": None, "template": None, "template_pool": None, "snapshot": None, "snapshot_volume": None,
    "snapshot_pool": None, "cluster_size": None, "overcommit": True, "owner": None, "group": None, "mode": None,
    "wipe": False,
}  # fmt: skip


def raised(reason: str, call: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(StorageError) as caught:
        call(*arguments, **options)
    assert caught.value.reason == reason, caught.value.msg
    return caught.value.msg


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [(["web"], ["web"]), (["b", "a", "b"], ["b", "a"]), (["a,b", "-", " "], ["a,b", "-", " "])],
)
def test_names_keep_their_order_each_once(given: list[str], expected: list[str]) -> None:
    assert _requests.read_names({"name": given}) == expected


@pytest.mark.parametrize("given", [[""], ["web", "a/b"], ["."], ["a\0b"], ["x" * 256]])
def test_one_bad_name_is_enough(given: list[str]) -> None:
    raised("invalid_name", _requests.read_names, {"name": given})


# -- wishes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, Wish()),
        ({"size": "1.5 GiB"}, Wish(size=3 * GIB // 2)),
        ({"size": "1", "overcommit": False}, Wish(size=1, overcommit=False)),
        (
            {"size": "10 MB", "format": "raw", "preallocation": "full", "owner": "0", "group": "0", "mode": "640"},
            Wish(size=10_000_000, format="raw", preallocation="full", rights=Rights(0, 0, 0o640)),
        ),
        ({"cluster_size": "64K"}, Wish(cluster_size=64 * KIB)),
        (
            {"template": "base", "template_pool": "images", "clone_mode": "full"},
            Wish(template="base", template_pool="images", clone_mode="full"),
        ),
        ({"template": "/srv/a b/image"}, Wish(template="/srv/a b/image")),
        (
            {"snapshot": "any/name\n", "snapshot_volume": "web", "snapshot_pool": "other"},
            Wish(snapshot="any/name\n", snapshot_volume="web", snapshot_pool="other"),
        ),
    ],
)
def test_wishes(params: dict[str, Any], expected: Wish) -> None:
    assert _requests.read_wish({**NOTHING, **params}) == expected


@pytest.mark.parametrize(
    ("params", "reason", "word"),
    [
        ({"size": "0"}, "invalid_size", "size"),
        ({"cluster_size": "-1"}, "invalid_size", "cluster_size"),
        ({"cluster_size": "3K"}, "invalid_option", "cluster_size"),
        ({"template": "a/b"}, "invalid_name", "template"),
        ({"template": "../base"}, "invalid_name", "template"),
        ({"template": ""}, "invalid_option", "template"),
        ({"snapshot": "s", "snapshot_volume": "/pool/web"}, "invalid_name", "snapshot_volume"),
        ({"snapshot": "s"}, "invalid_option", "snapshot_volume"),
        ({"mode": "rw"}, "invalid_option", "mode"),
    ],
)
def test_bad_wishes(params: dict[str, Any], reason: str, word: str) -> None:
    assert word in raised(reason, _requests.read_wish, {**NOTHING, **params})


def test_a_size_that_is_not_given() -> None:
    assert _requests.read_size(None) is None


# -- rights ----------------------------------------------------------------------------------------


def test_names_of_users_and_groups_are_looked_up() -> None:
    user, group = pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(os.getgid()).gr_name
    rights = _requests.read_rights({"owner": user, "group": group, "mode": None})
    assert rights == Rights(os.getuid(), os.getgid(), None)


def test_a_name_made_of_digits_comes_before_the_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pwd, "getpwnam", lambda name: pwd.getpwuid(os.getuid()) if name == "4711" else None)
    assert _requests.read_rights({"owner": "4711", "group": None, "mode": None}).uid == os.getuid()


@pytest.mark.parametrize(("text", "number"), [("0", 0), ("107", 107), ("4294967294", 2**32 - 2)])
def test_numbers_need_no_name(text: str, number: int) -> None:
    assert _requests.read_rights({"owner": text, "group": text, "mode": None}) == Rights(number, number, None)


@pytest.mark.parametrize("text", ["", "no such one", "-1", "+1", "1.5", "0x10", "٣", "4294967295", "9" * 30, "a\0b"])
@pytest.mark.parametrize("option", ["owner", "group"])
def test_strangers_are_refused(option: str, text: str) -> None:
    params = {"owner": None, "group": None, "mode": None, option: text}
    assert raised("invalid_option", _requests.read_rights, params).startswith(f"{option}: ")


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (None, None), ("0640", 0o640), ("640", 0o640), ("0o640", 0o640), ("0", 0), ("0777", 0o777), ("7", 7),
        (0o640, 0o640), (0, 0), (0o777, 0o777),
    ],
)  # fmt: skip
def test_modes(mode: object, expected: int | None) -> None:
    assert _requests.read_rights({"owner": None, "group": None, "mode": mode}).mode == expected


@pytest.mark.parametrize(
    "mode", ["", "8", "0o", "u=rw", "-1", "+640", "06400", "1777", "4755", "٠٦٤٠", 0o1000, -1, True, False, 6.4, [], {}, b"0640"]
)
def test_impossible_modes(mode: object) -> None:
    with pytest.raises(InvalidOption, match="mode"):
        _requests.read_rights({"owner": None, "group": None, "mode": mode})


# -- lists -----------------------------------------------------------------------------------------


def test_lists_of_patterns() -> None:
    assert _requests.read_patterns(None, option="pool") is None
    assert _requests.read_patterns(["b", "a", "b"], option="pool") == ["b", "a"]
    assert "pool" in raised("invalid_option", _requests.read_patterns, ["a", ""], option="pool")
