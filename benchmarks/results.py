# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a row found: tables of arms, and marks that were reached or not. Kept as JSON, so that rows can be run one by one."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .measure import Failure, Series, Times


@dataclass(frozen=True)
class Spread:
    """A median and the extremes around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, series: Series) -> Spread:
        return cls(series.median, series.low, series.high)


@dataclass(frozen=True)
class Line:
    """One arm of a table: how it compares with the table's yardstick, and its seconds."""

    name: str
    kind: str
    ratio: Spread | None
    seconds: Spread | None
    failure: str | None = None


@dataclass(frozen=True)
class Mark:
    """A number that was to be reached; ``why`` is told when it was not."""

    what: str
    value: Spread
    limit: float
    unit: str
    why: str = ""

    @property
    def reached(self) -> bool:
        return self.value.median <= self.limit


@dataclass
class Table:
    """Arms that did the same work. ``yardstick`` is the one whose ratio is 1."""

    title: str
    yardstick: str
    lines: list[Line]
    marks: list[Mark] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def mark(self, what: str, value: Series | float, limit: float, unit: str = "×", why: str = "") -> None:
        series = value if isinstance(value, Series) else Series((float(value),))
        self.marks.append(Mark(what, Spread.of(series), limit, unit, why))


@dataclass
class Row:
    """One row of the suite, as it came out."""

    number: int
    title: str
    tables: list[Table]
    when: str = ""
    took: float = 0.0
    failure: str | None = None


def compare(title: str, times: Times, yardstick: str, *, less: dict[str, str] | None = None, hide: tuple[str, ...] = ()) -> Table:
    """A table of all arms against ``yardstick``. ``less``: the arm whose time is taken off another's, round by round."""
    table = Table(title, yardstick, [])

    def seconds_of(name: str) -> Series:
        off = (less or {}).get(name)
        return times[name] - times[off] if off else times[name]

    for arm in times.arms:
        if arm.name in hide:
            continue
        try:
            series = seconds_of(arm.name)
            base = seconds_of(yardstick)
            table.lines.append(Line(arm.name, arm.kind, Spread.of(series / base), Spread.of(series)))
        except Failure as failure:
            table.lines.append(Line(arm.name, arm.kind, None, None, str(failure)))
    return table


def save(row: Row, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{row.number:02}.json").write_text(json.dumps(asdict(row), indent=1) + "\n")


def load(directory: Path) -> list[Row]:
    return [_row(json.loads(path.read_text())) for path in sorted(directory.glob("[0-9]*.json"))]


def _row(data: dict[str, Any]) -> Row:
    tables = [
        Table(
            entry["title"],
            entry["yardstick"],
            [Line(**{**line, "ratio": _spread(line["ratio"]), "seconds": _spread(line["seconds"])}) for line in entry["lines"]],
            [Mark(**{**mark, "value": Spread(**mark["value"])}) for mark in entry["marks"]],
            entry["remarks"],
        )
        for entry in data["tables"]
    ]
    return Row(**{**data, "tables": tables})


def _spread(data: dict[str, float] | None) -> Spread | None:
    return Spread(**data) if data else None
