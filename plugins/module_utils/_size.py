# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Text to bytes and back: the one grammar of sizes, in exact integers, never floats."""

from __future__ import annotations

import re

from ._errors import InvalidSize

MAX_BYTES = 2**63 - 1
SECTOR = 512

_POWERS = {letter: power for power, letter in enumerate("KMGTP", start=1)}
_UNITS = {
    **{letter: 1024**power for letter, power in _POWERS.items()},
    **{letter + "iB": 1024**power for letter, power in _POWERS.items()},
    **{letter + "B": 1000**power for letter, power in _POWERS.items()},
}
# [0-9], because \d takes the digits of every script.
_SIZE = re.compile(r"([0-9]+)(?:(?:\.([0-9]+))?[ \t]*([KMGTP](?:iB|B)?))?")
# No size needs more characters; longer ones are refused before anything is computed from them.
_MAX_TEXT = 64
_EXAMPLE = "give whole bytes or a number with a unit, for example 10G, 1.5 GiB or 500 MB"


def parse_size(value: object, *, option: str = "size") -> int:
    """Return ``value`` in bytes, a fraction of a byte rounded up; raises InvalidSize."""
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    elif isinstance(value, str):
        size = _parse_text(value, option)
    else:
        raise InvalidSize(f"{option}: {_show(value)} is not a size: {_EXAMPLE}.")
    if size < 1:
        raise InvalidSize(f"{option}: {_show(value)} is too small: {_EXAMPLE}.")
    if size > MAX_BYTES:
        raise InvalidSize(f"{option}: {_show(value)} is too large: {MAX_BYTES} bytes are possible.")
    return size


def round_up(size: int, step: int = SECTOR) -> int:
    """Return the smallest multiple of ``step`` that is not less than ``size`` (both bytes).

    The result can exceed MAX_BYTES by less than a step.
    """
    return -(-size // step) * step


def human(size: int) -> str:
    """Return ``size`` (bytes) for people, rounded to two decimals at most: ``1.5 GiB``."""
    sign, size = ("-", -size) if size < 0 else ("", size)
    unit, name = 1, "bytes"
    for letter, power in _POWERS.items():
        # Half a hundredth of the smaller unit earlier, else the last bytes before 1 GiB read "1024 MiB".
        if 200 * size + 1024 ** (power - 1) < 200 * 1024**power:
            break
        unit, name = 1024**power, letter + "iB"
    hundredths = (size * 200 + unit) // (2 * unit)
    whole, rest = divmod(hundredths, 100)
    decimals = f".{rest:02d}".rstrip("0") if rest else ""
    return f"{sign}{whole}{decimals} {name}"


def _parse_text(text: str, option: str) -> int:
    found = _SIZE.fullmatch(text) if len(text) <= _MAX_TEXT else None
    if found is None:
        raise InvalidSize(f"{option}: {_show(text)} is not a size: {_EXAMPLE}.")
    whole, fraction, unit = found.group(1), found.group(2) or "", found.group(3)
    divisor: int = 10 ** len(fraction)
    return -(-int(whole + fraction) * (_UNITS[unit] if unit else 1) // divisor)


def _show(value: object) -> str:
    """Return ``value`` quoted and short enough for a message, whatever it is."""
    if isinstance(value, int) and value.bit_length() > 200:
        # Python refuses to write numbers of more than 4300 digits.
        return f"a number of {value.bit_length()} bits"
    shown = repr(value[: _MAX_TEXT + 1] if isinstance(value, str) else value)
    return shown if len(shown) <= _MAX_TEXT + 2 else shown[:_MAX_TEXT] + "..."
