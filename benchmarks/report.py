# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The report in Markdown."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path

import ansible.release
import libvirt

from .measure import Failure, sh
from .results import Line, Mark, Row, Spread, Table

INTRODUCTION = """\
# Benchmarks

`./dev bench` measures the collection, its peers and the physical floor on the same work and writes this page and the
chart. Arms take turns in random order; each row starts every arm with the same state of the page cache. Shown are medians
of the rounds with the lowest and highest; ratios and differences are taken within a round. On two cores, differences below
1.25× (1.5× where disks are busy) are ties. The collection runs with all of its checks, syncs and locks on; of the peers
only those sync whose line says so.

*Marginal* is the wall time of a whole play with the task less that of the same play without it, or where a table says so, of a task
less a ping in the same play.

![Ratios of all rows](benchmarks.svg)
"""


def write_report(rows: Sequence[Row], path: Path) -> None:
    parts = [INTRODUCTION, describe_machine(), summarize(rows), *(describe_row(row) for row in rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(parts))


def describe_machine() -> str:
    cpu = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3
    number, core = libvirt.getVersion(), ansible.release.__version__
    tools = f"libvirt {number // 1000000}.{number // 1000 % 1000}.{number % 1000}, QEMU {_qemu()}"
    return (
        f"Machine: {os.cpu_count()} cores ({cpu.group(1) if cpu else platform.machine()}), {memory:.0f} GiB of memory, "
        f"Linux {platform.release().partition('-')[0]}, {tools}, ansible-core {core}, Python {platform.python_version()}.\n")


def _qemu() -> str:
    try:
        found = re.search(r"version (\S+)", sh("qemu-img", "--version"))
    except (Failure, OSError):
        found = None
    return found.group(1) if found else "?"


def summarize(rows: Sequence[Row]) -> str:
    lines = ["## Marks", "", "| row | mark | wanted | measured | reached |", "|---|---|---|---|---|"]
    for row in rows:
        if row.failure:
            lines.append(f"| {row.number} | {row.title} | | | not measured: {row.failure} |")
        for table in row.tables:
            for mark in table.marks:
                wanted, measured = amount(mark.limit, mark.unit), spread(mark.value, mark.unit)
                lines.append(f"| {row.number} | {mark.what} | ≤ {wanted} | {measured} | {'yes' if mark.reached else '**no**'} |")
    return "\n".join([*lines, ""])


def describe_row(row: Row) -> str:
    head = [f"## {row.number}. {row.title}", ""]
    if row.failure:
        head += [f"This row could not be measured: {row.failure}", ""]
    return "\n".join([*head, *(describe_table(table) for table in row.tables)])


def describe_table(table: Table) -> str:
    lines = [f"### {table.title}", "", f"| | ratio to {table.yardstick} | seconds |", "|---|---|---|"]
    lines += [describe_line(line) for line in table.lines]
    lines += ["", *(remark + "\n" for remark in table.remarks)]
    lines += [describe_miss(mark) + "\n" for mark in table.marks if not mark.reached]
    return "\n".join(lines)


def describe_line(line: Line) -> str:
    name = f"**{line.name}**" if line.kind == "ours" else line.name
    if line.ratio is None or line.seconds is None:
        return f"| {name} | | not measured: {line.failure} |"
    return f"| {name} | {spread(line.ratio, '×')} | {spread(line.seconds, 's')} |"


def describe_miss(mark: Mark) -> str:
    why = mark.why or "Not explained yet."
    return f"Not reached: {mark.what}, {amount(mark.value.median, mark.unit)} instead of {amount(mark.limit, mark.unit)}. {why}"


def spread(value: Spread, unit: str) -> str:
    if value.low == value.high:
        return amount(value.median, unit)
    return f"{amount(value.median, unit)} ({amount(value.low, '')}–{amount(value.high, '')})"


def amount(value: float, unit: str) -> str:
    """Three digits that matter."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    text = f"{value:.{digits}f}"
    return f"{text}{'' if unit in ('×', '') else ' '}{unit}"
