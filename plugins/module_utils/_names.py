# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which names a volume may have, and the identity that follows from a name."""

from __future__ import annotations

import hashlib
import re
import unicodedata

from ._errors import InvalidName

MAX_NAME_BYTES = 255
# Volumes in the making bear names like this one, and leftovers of killed runs are cleared by it.
STAGING_PREFIX = ".hypervisor.storage-"
# What a storage allows beyond that: lvm(8), zfs(8); in a Ceph name '@' begins a snapshot's.
_ALPHABETS = {"logical": r"[A-Za-z0-9+_.][A-Za-z0-9+_.-]{0,126}", "zfs": r"[A-Za-z0-9_.:-]+", "rbd": r"[^@]+"}
_RULES = {
    "logical": "LVM takes up to 127 letters, digits and '+', '_', '.', '-', but no '-' in front",
    "zfs": "ZFS takes letters, digits and '_', '.', ':', '-'",
    "rbd": "RBD takes no '@', which would mean a snapshot",
}


def check_name(name: object, *, option: str = "name") -> str:
    """Return ``name`` when a volume may bear it, on any pool and in libvirt's XML; raises InvalidName."""
    if not isinstance(name, str):
        raise InvalidName(f"{option}: a name must be text, not {type(name).__name__}.")
    fault = _find_fault(name)
    if fault:
        raise InvalidName(f"{option}: {_show(name)} can't be a volume's name: {fault}.")
    return name


def check_name_in(pool_type: str, name: str) -> None:
    """Refuse a name that the volumes of a pool of this type can't have; raises InvalidName."""
    allowed = _ALPHABETS.get(pool_type)
    if allowed is not None and re.fullmatch(allowed, name) is None:
        raise InvalidName(f"{_show(name)} can't be the name of a volume in a pool of type {pool_type}: {_RULES[pool_type]}.")


def volume_uuid(pool_uuid: str, name: str) -> str:
    """Return the UUIDv5 of ``name`` in its pool's namespace: equal on all hosts that share the pool.

    As uuid.uuid5() makes it (RFC 9562, 5.5), whose module takes longer to import than all names of a run to check.
    """
    digest = hashlib.sha1(bytes.fromhex(pool_uuid.replace("-", "")) + name.encode(), usedforsecurity=False).digest()
    octets = bytes([*digest[:6], digest[6] & 0x0F | 0x50, digest[7], digest[8] & 0x3F | 0x80, *digest[9:16]]).hex()
    return "-".join((octets[:8], octets[8:12], octets[12:16], octets[16:20], octets[20:]))


def _find_fault(name: str) -> str | None:
    if not name:
        return "it is empty"
    if name in (".", ".."):
        return "it means a directory"
    if "/" in name:
        return "it has a '/'; give the name alone, and its pool in the option for it"
    if any(unicodedata.category(char) == "Cc" for char in name):
        return "it has a control character"
    if any(char in "\ufffe\uffff" or "\ud800" <= char <= "\udfff" for char in name):
        return "it has a character that neither UTF-8 nor libvirt's XML can hold"
    length = len(name.encode("utf-8"))
    if length > MAX_NAME_BYTES:
        return f"it has {length} bytes in UTF-8, and {MAX_NAME_BYTES} are possible"
    if name.startswith(STAGING_PREFIX):
        return f"names with {STAGING_PREFIX!r} in front are for volumes in the making; later runs clear them"
    return None


def _show(name: str) -> str:
    return repr(name) if len(name) <= 80 else repr(name[:80]) + "..."
