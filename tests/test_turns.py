"""The number of calls at once: it follows what the mount takes."""

from __future__ import annotations

import errno
import threading

import pytest

from onesync.errors import LocalError, MountHung
from onesync.replica.turns import Turns

MOST = 32


def rounds(turns: Turns, number: int, takes: int, error: Exception) -> list[int]:
    """Let as many calls as may go at once, ``number`` times; beyond ``takes`` they are refused."""
    limits = []
    for _ in range(number):
        limits.append(turns.limit)
        going = turns.limit
        for _ in range(going):
            turns.__enter__()
        for place in range(going):
            turns.__exit__(None, error if place >= takes else None, None)
    return limits


@pytest.mark.parametrize("error", [OSError(errno.EAGAIN, "busy"), MountHung("hangs")])
def test_the_number_follows_what_the_mount_takes(error: Exception) -> None:
    turns = Turns(MOST)
    limits = rounds(turns, 60, 10, error)[20:]
    assert max(limits) <= 11
    assert sum(limits) / len(limits) > 6
    assert rounds(turns, MOST, MOST, error)[-1] >= MOST - 1


def test_a_mount_that_refuses_all_gets_a_few_still() -> None:
    assert rounds(Turns(MOST), 10, 0, OSError(errno.ENOTCONN, "gone"))[-1] == 4
    assert rounds(Turns(2), 10, 0, OSError(errno.ENOTCONN, "gone"))[-1] == 2


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "no such name"),
        OSError(errno.ENOSPC, "full"),
        LocalError(errno.EAGAIN, "this machine's"),
        ValueError("a bug"),
    ],
)
def test_other_errors_are_no_refusals(error: Exception) -> None:
    assert rounds(Turns(MOST), 5, 0, error) == [MOST] * 5


def test_whoever_is_too_much_waits_for_a_turn() -> None:
    turns = Turns(1)
    entered = threading.Event()

    def enter() -> None:
        with turns:
            entered.set()

    turns.__enter__()
    thread = threading.Thread(target=enter)
    thread.start()
    assert not entered.wait(0.05)
    turns.__exit__(None, None, None)
    assert entered.wait(10)
    thread.join()
