# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""python -m benchmarks [--quick] [--rounds N] [ROW...]

A row is kept in .work/bench; the page and the chart are made anew from all that are kept. A quick run measures small
sizes in few rounds, to see that everything works, and keeps apart what it finds: its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
import traceback
from datetime import datetime, timezone

from .chart import write_chart
from .measure import Failure, describe, say
from .place import REPO
from .report import write_report
from .results import Row, load, save
from .rows import PROFILE, ROWS, Scale


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev bench", description="Measure the collection, its peers and the floor.")
    parser.add_argument("rows", nargs="*", type=read_row, metavar="ROW", help=f"1 to {max(ROWS)}, or profile ({PROFILE}); default: all")
    parser.add_argument("--quick", action="store_true", help="small sizes and few rounds, to see that it works")
    parser.add_argument("--rounds", type=int, help="rounds of each row (default: 5; quick: 2)")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("private hypervisors and loop devices need root")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # a terminated run cleans up as an interrupted one does
    scale = Scale(rounds=arguments.rounds or (2 if arguments.quick else 5), quick=arguments.quick)
    kept = REPO / ".work" / "bench" / ("quick" if arguments.quick else "results")
    failed = False
    for number in arguments.rows or sorted(ROWS):
        row = measure(number, scale)
        save(row, kept)
        failed = failed or row.failure is not None
    target = kept if arguments.quick else REPO / "docs"
    rows = load(kept)
    write_report(rows, target / "benchmarks.md")
    write_chart([row for row in rows if row.number != PROFILE], target / "benchmarks.svg")
    say(f"{target / 'benchmarks.md'} and benchmarks.svg are written.")
    return int(failed)


def read_row(word: str) -> int:
    number = PROFILE if word == "profile" else int(word)
    if number not in ROWS:
        raise argparse.ArgumentTypeError(f"there is no row {number}")
    return number


def measure(number: int, scale: Scale) -> Row:
    """One row; a failure is part of the report and keeps no other row from being measured."""
    title, take = ROWS[number]
    row = Row(number, title, [], when=datetime.now(timezone.utc).strftime("%Y-%m-%d"))
    say(f"{number}. {title}")
    began = time.monotonic()
    try:
        for table in take(scale):
            row.tables.append(table)
    except (Failure, OSError) as error:
        row.failure = describe(error)
    except Exception as error:  # noqa: BLE001  # a bug in one row must not take the others' results with it
        traceback.print_exc()
        row.failure = f"{type(error).__name__}: {describe(error)}"
    row.took = time.monotonic() - began
    say(f"{number}. took {row.took:.0f} s{': ' + row.failure if row.failure else ''}")
    return row


if __name__ == "__main__":
    sys.exit(main())
