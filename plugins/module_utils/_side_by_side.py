# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Two threads for work that mostly waits for the kernel: a read lets the other one go on."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def in_order(work: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
    """What ``work``, which may raise OSError, makes of each item, in the order of the items.

    Items are drawn as they are needed; after a failure no more are. Where no second thread is to be had, one does it all.
    """
    waiting, turn, over = iter(items), threading.Lock(), threading.Event()
    results: list[list[_Result]] = []  # for each item drawn: nothing until it is done
    failures: list[OSError] = []

    def go_on() -> None:
        try:
            while not over.is_set():
                result: list[_Result] = []
                with turn:
                    drawn = list(itertools.islice(waiting, 1))
                    if not drawn:
                        break
                    results.append(result)
                result.append(work(drawn[0]))
        except OSError as error:
            failures.append(error)
        finally:
            over.set()

    helper = threading.Thread(target=go_on)
    with contextlib.suppress(RuntimeError):  # the system has no thread left for us
        helper.start()
    try:
        go_on()
    finally:
        if helper.ident is not None:
            helper.join()
    if failures:
        raise failures[0]
    return [result for (result,) in results]
