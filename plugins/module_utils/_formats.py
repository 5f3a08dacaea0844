# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which format an image has: decided from who may be believed, never from guest-writable content alone."""

from __future__ import annotations

from collections.abc import Collection

from ._named_tuple import NamedTuple


class Settled(NamedTuple):
    """The format to treat an image as, and the contradiction that forbids to read it as a source, if there is one."""

    format: str
    conflict: str | None = None


def settle(*, probed: str, stated: Collection[str], marked: str | None, defined: str | None) -> Settled:
    """Decide an image's format.

    ``probed`` is what the content looks like, ``stated`` what domains say of their disk, ``marked`` what its
    maker noted beside the content, ``defined`` what libvirt holds. A raw disk is written by its guest, who can
    put any header there: once someone who knows says raw, raw it stays.
    """
    for format_known, who in (
        ("raw" if "raw" in stated else None, "a domain uses it as raw"),
        (marked if not stated else None, f"it was made as {marked}"),
        (defined if not stated and marked is None else None, f"libvirt has it as {defined}"),
    ):
        if format_known == "raw" and probed != "raw":
            return Settled("raw", f"{who}, but its content looks like {probed} (a guest can write that)")
    known = [each for each in ("qcow2", "luks") if each in stated or (not stated and marked == each)]
    wanted = known[0] if known else None
    if wanted is not None and probed != wanted:
        return Settled(probed, f"it should be {wanted}, but its content looks like {probed}")
    return Settled(probed)
