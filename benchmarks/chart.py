# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The bar chart, as plain SVG: one panel a table, bars are ratios to the table's yardstick."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from .report import amount
from .results import Line, Row, Table

WIDTH, LABELS, BAR, GAP, HEAD = 960, 330, 16, 5, 26
COLOURS = {"ours": "#0b6e4f", "peer": "#9aa5b1", "floor": "#c9b458"}
STYLE = "text{font:12px sans-serif;fill:#222}.t{font-weight:bold}.v{font-size:11px}"


def write_chart(rows: Sequence[Row], path: Path) -> None:
    body: list[str] = []
    top = _legend(body)
    for row in rows:
        for table in row.tables:
            top = _panel(body, row, table, top)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{top}" viewBox="0 0 {WIDTH} {top}" role="img">'
        f"<title>Ratios to the yardstick of each row; shorter is faster</title><style>{STYLE}</style>"
        '<rect width="100%" height="100%" fill="#fff"/>')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([head, *body, "</svg>\n"]))


def _legend(body: list[str]) -> int:
    left = 10
    for kind, name in (("ours", "this collection"), ("peer", "peers"), ("floor", "floor or yardstick")):
        body.append(f'<rect x="{left}" y="10" width="12" height="12" fill="{COLOURS[kind]}"/><text x="{left + 18}" y="20">{name}</text>')
        left += 150
    body.append(f'<text x="{left}" y="20">ratio to the yardstick (line at 1×), shorter is faster; thin lines: lowest to highest</text>')
    return 34


def _panel(body: list[str], row: Row, table: Table, top: int) -> int:
    lines = [line for line in table.lines if line.ratio is not None]
    if not lines:
        return top
    body.append(f'<text class="t" x="10" y="{top + 16}">{row.number}. {escape(table.title)} (1× = {escape(table.yardstick)})</text>')
    top += HEAD
    most = max(max(line.ratio.median for line in lines if line.ratio), 1.0)
    scale = (WIDTH - LABELS - 150) / most
    bottom = top + len(lines) * (BAR + GAP)
    one = f"{LABELS + scale:.1f}"
    body.append(f'<line x1="{one}" y1="{top - 3}" x2="{one}" y2="{bottom}" stroke="#444" stroke-dasharray="3 3"/>')
    for line in lines:
        body.append(_bar(line, top, scale))
        top += BAR + GAP
    return top + 14


def _bar(line: Line, top: int, scale: float) -> str:
    assert line.ratio is not None
    middle, limit = top + BAR // 2, WIDTH - 60
    ends = [min(LABELS + max(value, 0) * scale, limit) for value in (line.ratio.low, line.ratio.median, line.ratio.high)]
    return (
        f'<text x="{LABELS - 8}" y="{top + 12}" text-anchor="end">{escape(line.name)}</text>'
        f'<rect x="{LABELS}" y="{top}" width="{max(ends[1] - LABELS, 1):.1f}" height="{BAR}" fill="{COLOURS[line.kind]}"/>'
        f'<line x1="{ends[0]:.1f}" y1="{middle}" x2="{ends[2]:.1f}" y2="{middle}" stroke="#222"/>'
        f'<text class="v" x="{max(ends[1], ends[2]) + 5:.1f}" y="{top + 12}">{amount(line.ratio.median, "×")}</text>')
