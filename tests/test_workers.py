"""Nothing of a failed batch runs on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from onesync.workers import each

WAIT = 30.0


@pytest.fixture
def workers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as made:
        yield made


def test_results_are_in_order(workers: ThreadPoolExecutor) -> None:
    assert each(workers, divmod, [7, 9, 11], [2, 2, 2]) == [(3, 1), (4, 1), (5, 1)]
    assert each(workers, str, []) == []


def test_what_runs_has_ended_when_a_failure_is_told(workers: ThreadPoolExecutor) -> None:
    failing, ended = threading.Event(), threading.Event()
    begun = []

    def act(number: int) -> None:
        begun.append(number)
        if number == 0:
            assert failing.wait(WAIT)
            # The other one has failed: whoever is told of it must find this one ended.
            threading.Event().wait(0.05)
            ended.set()
        elif number == 1:
            failing.set()
            raise OSError("the mount")

    with pytest.raises(OSError, match="the mount"):
        each(workers, act, range(100))
    assert ended.is_set()
    count = len(begun)
    assert count < 100
    each(workers, str, range(4))
    assert len(begun) == count
