"""Workers take turns over directories, and none follows too many others into one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait

import pytest

from onesync.core.model import parent_of
from onesync.lanes import Lanes

MOST = 2
WORKERS = 8
WAIT = 30.0


@pytest.fixture
def workers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(WORKERS) as made:
        yield made


def lanes_of(*parts: list[bytes], most: int = MOST) -> Lanes[bytes]:
    return Lanes(parts, parent_of, most)


def test_each_is_done_once(workers: ThreadPoolExecutor) -> None:
    items = [b"%d/%d" % (number % 7, number) for number in range(3000)]
    lanes = lanes_of(items[::2], items[1::2])
    done: list[bytes] = []
    wait([workers.submit(lanes.work, done.append) for _ in range(WORKERS)])
    assert sorted(done) == sorted(items)


def test_a_slow_directory_keeps_no_more_workers_than_it_may(workers: ThreadPoolExecutor) -> None:
    """Both of its workers stand still, and everything else is done by the others."""
    slow = [b"burst/%d" % number for number in range(100)]
    rest = [b"%d/%d" % (number % 3, number) for number in range(100)]
    lanes = lanes_of(slow, rest)
    guard, going_on, all_else = threading.Lock(), threading.Event(), threading.Event()
    done: list[bytes] = []
    standing = most_standing = 0

    def act(path: bytes) -> None:
        nonlocal standing, most_standing
        if path.startswith(b"burst/"):
            with guard:
                standing += 1
                most_standing = max(standing, most_standing)
            assert going_on.wait(WAIT)
            with guard:
                standing -= 1
        with guard:
            done.append(path)
            if set(rest) <= set(done):
                all_else.set()

    work = [workers.submit(lanes.work, act) for _ in range(WORKERS)]
    try:
        assert all_else.wait(WAIT), "the rest waits for the slow directory"
        assert not set(slow) & set(done)
    finally:
        going_on.set()
    for one in work:
        one.result(WAIT)
    assert most_standing == MOST
    assert sorted(done) == sorted(slow + rest)


def test_parts_take_turns_and_so_do_directories_within_them() -> None:
    done: list[bytes] = []
    lanes_of([b"a/1", b"a/2", b"a/3", b"b/1"], [b"c/1", b"c/2"]).work(done.append)
    assert done == [b"a/1", b"c/1", b"b/1", b"c/2", b"a/2", b"a/3"]


def test_a_failure_ends_the_work_of_all(workers: ThreadPoolExecutor) -> None:
    lanes = lanes_of([b"%d/x" % number for number in range(1000)])
    is_at_work, has_failed = threading.Event(), threading.Event()
    done: list[bytes] = []

    def act(path: bytes) -> None:
        if path == b"0/x":
            assert is_at_work.wait(WAIT)
            raise OSError("the mount")
        is_at_work.set()
        assert has_failed.wait(WAIT)
        done.append(path)

    failing = workers.submit(lanes.work, act)
    others = [workers.submit(lanes.work, act) for _ in range(3)]
    with pytest.raises(OSError, match="the mount"):
        failing.result(WAIT)
    has_failed.set()
    for other in others:
        other.result(WAIT)
    assert len(done) <= 3, "each of the others only ended what it had begun"


def test_after_the_end_nothing_is_taken() -> None:
    lanes = lanes_of([b"a/1", b"a/2", b"a/3"])
    done: list[bytes] = []

    def act(path: bytes) -> None:
        done.append(path)
        lanes.end()

    lanes.work(act)
    assert done == [b"a/1"]
