# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""From module parameters to wishes: every value checked once, here."""

from __future__ import annotations

import grp
import os
import pwd
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ._errors import InvalidOption
from ._model import Rights
from ._names import check_name
from ._plan_image import check_wish
from ._plans import Wish
from ._size import parse_size


def read_names(params: Mapping[str, Any]) -> list[str]:
    """The names of a call in their order, each once; raises InvalidName."""
    return list(dict.fromkeys(check_name(name) for name in params["name"]))


def warn_of_blanks(names: Sequence[str]) -> tuple[str, ...]:
    """A warning for names that begin or end with a blank: legal, but mostly left over from text like ``a, b``."""
    odd = [name for name in names if name != name.strip(" ")]
    if not odd:
        return ()
    return (f"These names begin or end with a blank: {', '.join(map(repr, odd))}. If that isn't meant, write a,b without blanks.",)


def read_wish(params: Mapping[str, Any]) -> Wish:
    """What ``volume`` with ``state: present`` is asked for; raises InvalidName, InvalidSize or InvalidOption."""
    template = params["template"]
    if template and not os.path.isabs(template):
        check_name(template, option="template")
    if params["snapshot_volume"]:
        check_name(params["snapshot_volume"], option="snapshot_volume")
    wish = Wish(
        size=read_size(params["size"]),
        format=params["format"],
        preallocation=params["preallocation"],
        clone_mode=params["clone_mode"],
        template=template,
        template_pool=params["template_pool"],
        snapshot=params["snapshot"],
        snapshot_volume=params["snapshot_volume"],
        snapshot_pool=params["snapshot_pool"],
        cluster_size=read_size(params["cluster_size"], option="cluster_size"),
        overcommit=params["overcommit"],
        rights=read_rights(params),
    )
    check_wish(wish)
    return wish


def read_size(value: str | None, *, option: str = "size") -> int | None:
    """A size option in bytes, ``None`` when it isn't given; raises InvalidSize."""
    return None if value is None else parse_size(value, option=option)


def read_rights(params: Mapping[str, Any]) -> Rights:
    """Owner, group and mode as numbers; raises InvalidOption for names that this host doesn't know."""
    return Rights(uid=_uid(params["owner"]), gid=_gid(params["group"]), mode=_mode(params["mode"]))


def _uid(owner: str | None) -> int | None:
    if owner is None:
        return None
    try:
        return pwd.getpwnam(owner).pw_uid
    except (KeyError, ValueError):
        return _number(owner, option="owner", kind="user")


def _gid(group: str | None) -> int | None:
    if group is None:
        return None
    try:
        return grp.getgrnam(group).gr_gid
    except (KeyError, ValueError):
        return _number(group, option="group", kind="group")


def _number(text: str, *, option: str, kind: str) -> int:
    if re.fullmatch(r"[0-9]{1,10}", text) and int(text) < 2**32 - 1:
        return int(text)
    raise InvalidOption(f"{option}: there is no {kind} {text!r} on this host; give a {kind}'s name or number.")


def _mode(mode: object) -> int | None:
    """Octal text such as '0640', or the number that YAML makes of 0640; a file's mode has no more than 0777 here."""
    if mode is None:
        return None
    number = mode if isinstance(mode, int) and not isinstance(mode, bool) else None
    if isinstance(mode, str) and re.fullmatch(r"(0o)?[0-7]{1,4}", mode):
        number = int(mode.replace("o", ""), 8)
    if number is None or not 0 <= number <= 0o777:
        raise InvalidOption(f"mode: {mode!r} is not possible: give octal digits in quotes, for example '0640'.")
    return number


def read_patterns(values: Sequence[str] | None, *, option: str) -> list[str] | None:
    """A list option without blanks and repetitions, ``None`` when it isn't given."""
    if values is None:
        return None
    if any(not value for value in values):
        raise InvalidOption(f"{option} holds an empty entry: give names, or leave the option out.")
    return list(dict.fromkeys(values))
