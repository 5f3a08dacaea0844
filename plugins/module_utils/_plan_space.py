# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether what is to be written and promised fits into a pool. No I/O."""

from __future__ import annotations

from collections.abc import Sequence

from ._errors import InsufficientSpace
from ._model import Pool
from ._size import human


def check_space(
    *,
    pool: Pool,
    names: Sequence[str],
    required: int,
    thin: int,
    available: int,
    overcommit: bool,
    advice: str = "Free space, or choose another pool, size or preallocation.",
) -> tuple[str, ...]:
    """Compare what must be written (``required``) and promised (``thin``) with what is free, all in bytes.

    Returns warnings; raises InsufficientSpace, with ``advice`` where what must be written has no room.
    """
    whom = ", ".join(repr(name) for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    if required > available:
        raise InsufficientSpace(
            f"Pool {pool.name!r} has not enough free space for {whom}: {required} bytes ({human(required)}) are needed, "
            f"{available} bytes ({human(available)}) are free. {advice}",
            required=required,
            available=available,
        )
    if required + thin <= available or thin == 0:
        return ()
    facts = (
        f"{whom} may come to take {required + thin} bytes ({human(required + thin)}) more than now, but pool {pool.name!r} "
        f"has {available} bytes ({human(available)}) free"
    )
    if not overcommit:
        raise InsufficientSpace(
            f"{facts}, and overcommit is false. Free space, choose a smaller size, or allow overcommit.",
            required=required + thin,
            available=available,
        )
    return (f"{facts}: guests will meet write errors if it fills up.",)
