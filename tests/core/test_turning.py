"""What turned waits for the databases that may name it as it was."""

from __future__ import annotations

from onesync.core.turning import Turning

A, B = b"Runs/000001_A/extra/a", b"Runs/000002_B/extra/b"
ONE, TWO = b"Runs/000001_A/set.sqlite", b"Runs/000002_B/set.sqlite"


def stay(turning: Turning, turned: set[bytes], *owed: bytes, now: float = 0) -> set[bytes]:
    return turning.stay(turned, turned, lambda _: owed, now)


def test_it_goes_when_each_of_them_came() -> None:
    turning = Turning(10)
    assert stay(turning, {A}, ONE, TWO) == {A}
    turning.came({ONE})
    assert stay(turning, {A}, ONE) == {A}
    turning.came({TWO})
    assert stay(turning, {A}, ONE) == set(), "what changed since does not name it"


def test_it_goes_at_once_where_none_may_name_it() -> None:
    assert stay(Turning(10), {A}) == set()


def test_what_turned_since_the_snapshots_waits_for_younger_ones() -> None:
    turning = Turning(10)
    assert turning.stay({A}, set(), lambda _: [], 0) == {A}
    turning.came({ONE})
    assert stay(turning, {A}, ONE) == {A}
    turning.came({ONE})
    assert stay(turning, {A}) == set()


def test_those_of_a_run_wait_so_long_together_and_anew_after_that() -> None:
    turning = Turning(10)
    assert stay(turning, {A}, ONE) == {A}
    turning.went([])
    assert stay(turning, {A, A + b"2", B}, ONE, now=9) == {A, A + b"2", B}
    turning.went([])
    assert stay(turning, {A, A + b"2", B}, ONE, now=10) == {B}
    turning.went([A, A + b"2"])
    assert stay(turning, {A + b"3", B}, ONE, now=12) == {A + b"3", B}


def test_what_is_forgotten_waits_anew() -> None:
    turning = Turning(10)
    stay(turning, {A}, ONE)
    turning.came({ONE})
    turning.forget([A])
    assert not turning.paths()
    assert stay(turning, {A}, TWO) == {A}
    assert turning.owed() == {TWO}
