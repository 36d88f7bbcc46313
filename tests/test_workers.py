"""Nothing of a failed batch runs on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

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


def test_what_runs_has_ended_when_a_failure_is_told(
    workers: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted: list[Future[object]] = []
    submit = workers.submit

    def submits(act: Callable[..., object], *row: object) -> Future[object]:
        submitted.append(submit(act, *row))
        return submitted[-1]

    monkeypatch.setattr(workers, "submit", submits)
    failing, ended = threading.Event(), threading.Event()
    begun = []

    def act(number: int) -> None:
        begun.append(number)
        if number == 0:
            assert failing.wait(WAIT)
            deadline = time.monotonic() + WAIT
            while not submitted[-1].cancelled():
                assert time.monotonic() < deadline
                time.sleep(0.001)
            # The other one has failed: whoever is told of it must find this one ended.
            time.sleep(0.05)
            ended.set()
        elif number == 1:
            failing.set()
            raise OSError("the mount")
        else:
            assert ended.wait(WAIT)

    with pytest.raises(OSError, match="the mount"):
        each(workers, act, range(100))
    assert ended.is_set()
    assert begun in ([0, 1], [0, 1, 2])
    count = len(begun)
    each(workers, str, range(4))
    assert len(begun) == count
