# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Two threads that share work."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from ansible_collections.hypervisor.storage.plugins.module_utils import _side_by_side


def test_two_at_a_time_and_in_order() -> None:
    meeting = threading.Barrier(2, timeout=10)

    def work(item: int) -> int:
        if item < 2:
            meeting.wait()  # each of the first two waits for the other
        time.sleep(0.001 * (item % 3))
        return item * item

    assert _side_by_side.in_order(work, range(40)) == [item * item for item in range(40)]
    assert _side_by_side.in_order(work, []) == []


def test_without_a_second_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert _side_by_side.in_order(str, range(5)) == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("bad", [0, 1, 7, 19])
def test_a_failure_ends_it_whoever_met_it(bad: int, monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    mine = SimpleNamespace(Lock=threading.Lock, Thread=threading.Thread, Event=lambda: over)  # a Thread has events of its own
    monkeypatch.setattr(_side_by_side, "threading", mine)
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        if item == bad:
            raise OSError(errno.EIO, "unreadable")
        if item > bad:
            assert over.wait(10)  # the other thread may have drawn this one before it heard of the failure, but no more
        return item

    with pytest.raises(OSError, match="unreadable"):
        _side_by_side.in_order(work, range(1000))
    assert len(begun) <= bad + 2
    assert threading.active_count() == 1


def test_items_that_cannot_be_told_are_a_failure_too() -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise OSError(errno.EIO, "no map")

    with pytest.raises(OSError, match="no map"):
        _side_by_side.in_order(abs, items())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("who", ["main", "helper"])
def test_a_bug_is_never_a_result_that_lacks(who: str) -> None:
    turn = threading.Barrier(2, timeout=10)

    def work(item: int) -> int:
        if item < 2:
            turn.wait()
        if (threading.current_thread() is threading.main_thread()) == (who == "main"):
            raise ZeroDivisionError
        return item

    with pytest.raises((ZeroDivisionError, ValueError)):
        _side_by_side.in_order(work, range(2))
    assert threading.active_count() == 1
