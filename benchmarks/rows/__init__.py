# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The rows: number, what is measured, and a function that yields its tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Callable

from ..results import Table
from . import compressing, copying, create, fleet, listing, live, noop, profile, reflink, reserving
from .scale import Scale

__all__ = ["PROFILE", "ROWS", "Scale"]

PROFILE = 12

ROWS: dict[int, tuple[str, Callable[[Scale], Iterator[Table]]]] = {
    1: ("A task that finds nothing to do", noop.measure),
    2: ("50 copy-on-write volumes from one template", create.measure),
    3: ("volume_info of thousands of volumes", listing.measure),
    4: ("A clone of a raw volume", copying.measure_raw),
    5: ("A clone of a qcow2 volume", copying.measure_qcow2),
    6: ("A clone that shares extents", reflink.measure),
    7: ("Compressing: zeros given back in place", compressing.measure_zeros),
    8: ("Compressing: rewritten", compressing.measure_rewrite),
    9: ("A raw volume, all space reserved", reserving.measure),
    10: ("A clone of a busy guest's disk", live.measure),
    11: ("A fleet of hypervisors in one play", fleet.measure),
    PROFILE: ("Where each module's time goes", profile.measure),
}
