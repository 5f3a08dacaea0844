# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""typing.NamedTuple, whose classes are made in a third of the time: each run makes all that it imports.

That of the library compiles the text of each annotation and looks whether it can be a type
(https://github.com/python/cpython/blob/3.13/Lib/typing.py, ForwardRef); a type checker has done that, and sees the original here.
"""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, Any

__all__ = ["NamedTuple"]

if TYPE_CHECKING:
    from typing import NamedTuple
else:

    class _Maker(type):
        def __new__(cls, name: str, bases: tuple[type, ...], members: dict[str, Any]) -> type:
            if not bases:
                return super().__new__(cls, name, bases, members)
            fields = members.get("__annotations__", {})
            defaults = [members.pop(field) for field in fields if field in members]
            plain = collections.namedtuple(name, fields, defaults=defaults, module=members["__module__"])
            return type(name, (plain,), {**members, "__slots__": ()})

    class NamedTuple(metaclass=_Maker):
        """Fields are what is annotated in the class."""
