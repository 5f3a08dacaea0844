# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rounds and what is made of their times.

Arms take turns in random order within a round, so that what drifts on a machine drifts for all of them. Differences
and ratios are taken within a round, then their median.
"""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Callable


class Failure(Exception):
    """An arm did not do what it is measured for; the message says what happened."""


def nothing() -> None:
    """No preparation."""


@dataclass(frozen=True)
class Series:
    """One number a round: seconds, or ratios."""

    values: tuple[float, ...]

    def __sub__(self, other: Series) -> Series:
        return Series(tuple(a - b for a, b in zip(self.values, other.values)))

    def __truediv__(self, other: Series | float) -> Series:
        if isinstance(other, Series):
            return Series(tuple(a / b if b > 0 else float("nan") for a, b in zip(self.values, other.values)))
        return Series(tuple(a / other for a in self.values))

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)


@dataclass(frozen=True)
class Arm:
    """One way to do the work. ``run`` is timed, unless it returns the seconds itself, a float; ``prepare`` and ``clean`` are not."""

    name: str
    kind: str  # "ours", "peer" or "floor"
    run: Callable[[], object]
    prepare: Callable[[], None] = nothing
    clean: Callable[[], None] = nothing


@dataclass
class Times:
    """The seconds of all arms that could be measured, and why others could not."""

    arms: tuple[Arm, ...]
    seconds: dict[str, Series] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Series:
        if name not in self.seconds:
            raise Failure(f"'{name}' could not be measured: {self.failures.get(name, 'no such arm')}")
        return self.seconds[name]

    def has(self, *names: str) -> bool:
        return all(name in self.seconds for name in names)


def take_turns(arms: Sequence[Arm], rounds: int, *, warm_up: bool = False) -> Times:
    """Run every arm once a round; an arm that fails is left out from then on, the others go on."""
    order = random.Random(1)  # random, and the same in each run of the suite
    taken: dict[str, list[float]] = {arm.name: [] for arm in arms}
    times = Times(tuple(arms))
    for number in range(-1 if warm_up else 0, rounds):
        for arm in order.sample(list(arms), len(arms)):
            if arm.name in times.failures:
                continue
            try:
                seconds = _run_once(arm)
            except (Failure, OSError, subprocess.SubprocessError) as error:
                times.failures[arm.name] = describe(error)
                say(f"  {arm.name}: {times.failures[arm.name]}")
                continue
            if number >= 0:
                taken[arm.name].append(seconds)
    times.seconds = {name: Series(tuple(values)) for name, values in taken.items() if name not in times.failures}
    for name, series in times.seconds.items():
        say(f"  {name}: {series.median:.3f} s ({series.low:.3f}-{series.high:.3f})")
    return times


def _run_once(arm: Arm) -> float:
    arm.prepare()
    try:
        began = time.perf_counter()
        own = arm.run()
        took = time.perf_counter() - began
    finally:
        arm.clean()
    return own if isinstance(own, float) else took


def describe(error: Exception) -> str:
    """One line, with what a tool said before it failed."""
    said = getattr(error, "stderr", None) or ""
    if isinstance(said, bytes):
        said = said.decode(errors="replace")
    return " ".join(f"{error} {said[-300:]}".split())


def sh(*argv: object, timeout: float = 600) -> str:
    """Run a tool that must succeed; its stdout."""
    words = [str(word) for word in argv]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode != 0:
        raise Failure(f"{words[0]} gave {done.returncode}: {(done.stderr or done.stdout)[-600:]}")
    return done.stdout


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
