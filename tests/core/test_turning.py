"""What turned waits for rows, each run for so long."""

from __future__ import annotations

from onesync.core.turning import Turning

A, B = b"Runs/000001_A/extra/a", b"Runs/000002_B/extra/b"


def test_those_of_a_run_wait_so_long_together_and_anew_after_that() -> None:
    turning = Turning(10)
    assert turning.stay({A}, 0) == {A}
    turning.began_anew()
    assert turning.stay({A, A + b"2", B}, 9) == {A, A + b"2", B}
    turning.began_anew()
    assert turning.stay({A, A + b"2", B}, 10) == {B}
    assert turning.stay({A, A + b"2", B}, 11) == {B}, "the batch is planned twice"
    turning.began_anew()
    assert turning.stay({A + b"3", B}, 12) == {A + b"3", B}


def test_a_run_that_did_not_wait_for_a_while_waits_anew() -> None:
    turning = Turning(10)
    turning.stay({A}, 0)
    turning.began_anew()
    turning.stay(set(), 5)
    turning.began_anew()
    assert turning.stay({A}, 12) == {A}


def test_a_run_that_is_asked_for_last_in_each_batch_waits_no_longer() -> None:
    turning = Turning(10)
    for second in range(12):
        turning.stay({B}, second)
        assert turning.stay({A, B}, second) == ({A, B} if second < 10 else set())
        turning.began_anew()
        if second == 10:
            break
