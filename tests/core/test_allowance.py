"""How many calls may go at once, on mounts that are nothing but a rule of how long a call takes."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from onesync.core.allowance import LEAST, Allowance, Begun, Outcome

MOST = 32
SEEDS = st.integers(0, 2**32)
# A smaller seed is no simpler one.
some_seeds = settings(
    deadline=None, max_examples=10, phases=(Phase.explicit, Phase.reuse, Phase.generate)
)
Latency = Callable[[int], float]
"""Seconds that a call takes as long as so many are under way."""


def far_away(_: int) -> float:
    return 0.2


def one_by_one(crowd: int) -> float:
    return 0.01 * crowd


def thrashing(crowd: int) -> float:
    return 0.001 * crowd * crowd


def eight_at_once(crowd: int) -> float:
    return 0.2 * max(1.0, crowd / 8)


@dataclass
class Load:
    """Workers that have always something to do, on a mount that shares its time out evenly."""

    latency: Latency
    seed: int = 0
    workers: int = MOST
    most: int = MOST
    jitter: float = 0.3
    takes: int = 1000  # more at once are refused
    directories: int = 1000
    is_small: bool = True
    now: float = 0.0
    limits: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.allowance = Allowance(self.most)
        self.chance = random.Random(self.seed)
        self.going: list[tuple[float, Begun, Outcome]] = []
        self.begun = 0

    def speed(self, calls: int) -> float:
        """Make so many calls; returns how many were carried out in a second."""
        began, done = self.now, 0
        for _ in range(calls):
            self.fill()
            done += self.step()
            self.limits.append(self.allowance.limit)
        return done / (self.now - began)

    def fill(self) -> None:
        while len(self.going) < self.workers and self.allowance.room(is_small=self.is_small) > 0:
            self.begun += 1
            directory = b"%d" % (self.begun % self.directories) if self.is_small else None
            call = self.allowance.begin(self.now, self.chance.choice("ab"), directory)
            is_refused = len(self.going) >= self.takes
            work = self.chance.uniform(1 - self.jitter, 1 + self.jitter) * (1 + (call.kind == "b"))
            outcome = Outcome.REFUSED if is_refused else Outcome.DONE
            self.going.append((0.01 if is_refused else work, call, outcome))

    def step(self) -> bool:
        """Let the next call end; returns whether it was carried out."""
        pace = self.latency(len(self.going))
        left, call, outcome = min(self.going, key=lambda item: item[0])
        self.now += left * pace
        self.going = [(more - left, c, o) for more, c, o in self.going if c is not call]
        self.allowance.end(self.now, call, outcome)
        return outcome is Outcome.DONE


def with_all(latency: Latency, seed: int = 0, calls: int = 3000) -> float:
    """Return the speed where nothing adapts: no call is small."""
    return Load(latency, seed, is_small=False).speed(calls)


@some_seeds
@given(SEEDS, st.floats(0, 0.9))
def test_a_mount_that_is_far_away_keeps_all(seed: int, jitter: float) -> None:
    load = Load(far_away, seed, jitter=jitter)
    speed = load.speed(10_000)
    assert speed >= 0.97 * Load(far_away, seed, jitter=jitter, is_small=False).speed(10_000)
    assert load.limits.count(MOST) >= 0.9 * len(load.limits)
    assert min(load.limits) >= MOST // 2, "one trial never leads to the next"


def test_a_thousand_calls_are_never_held_back() -> None:
    load = Load(far_away)
    load.speed(1000)
    assert set(load.limits) == {MOST}


@some_seeds
@given(SEEDS)
@pytest.mark.parametrize("latency", [one_by_one, thrashing])
def test_a_mount_that_slows_with_the_crowd_gets_few_and_does_no_less(
    latency: Latency, seed: int
) -> None:
    load = Load(latency, seed)
    load.speed(6000)
    load.limits.clear()
    assert load.speed(3000) >= 0.95 * with_all(latency, seed)
    assert sorted(load.limits)[len(load.limits) // 2] <= 2 * LEAST


@some_seeds
@given(SEEDS)
def test_a_mount_that_does_eight_at_once_gets_as_many(seed: int) -> None:
    load = Load(eight_at_once, seed)
    load.speed(6000)
    load.limits.clear()
    assert load.speed(3000) >= 0.9 * with_all(eight_at_once, seed)
    assert 8 <= sorted(load.limits)[len(load.limits) // 2] <= 16


@some_seeds
@given(SEEDS)
def test_it_gets_more_again_as_soon_as_they_pay(seed: int) -> None:
    load = Load(one_by_one, seed)
    load.speed(6000)
    load.latency = far_away
    load.limits.clear()
    load.speed(1500)
    assert load.allowance.limit >= MOST // 2
    assert MOST in load.limits


@some_seeds
@given(SEEDS, st.integers(5, 24))
def test_refusals_are_followed_at_once_and_forgotten(seed: int, takes: int) -> None:
    load = Load(far_away, seed, takes=takes)
    load.speed(3 * MOST)
    assert min(load.limits) <= MOST // 2
    load.limits.clear()
    load.speed(2000)
    assert LEAST <= min(load.limits) <= max(load.limits) <= takes + 2
    load.takes = 1000
    load.speed(MOST * MOST)
    assert load.allowance.limit == MOST


@pytest.mark.parametrize(
    "load",
    [
        Load(one_by_one, directories=8),  # they wait for each other in the kernel
        Load(one_by_one, is_small=False),  # their bytes take the time
        Load(one_by_one, workers=MOST // 2),  # there is no more to do
        Load(lambda crowd: one_by_one(crowd) / 100),  # nobody minds
    ],
    ids=["in few directories", "large", "few", "quick"],
)
def test_what_tells_nothing_changes_nothing(load: Load) -> None:
    load.speed(10_000)
    assert set(load.limits) == {MOST}


def test_large_calls_are_not_held_back_by_what_small_ones_showed() -> None:
    load = Load(one_by_one)
    load.speed(6000)
    load.allowance.begin(load.now, "large")
    assert load.allowance.limit <= 2 * LEAST
    assert load.allowance.room(is_small=False) > MOST // 2
    assert load.allowance.room(is_small=True) <= 2 * LEAST


def test_a_bad_moment_of_the_mount_is_not_taken_for_a_crowd() -> None:
    """It is slow while all may go, and well again just when fewer are tried."""
    load = Load(far_away)
    while load.allowance.limit == MOST:
        load.latency = lambda _: 1.0
        load.speed(1)
    load.latency = far_away
    load.speed(3000)
    assert load.allowance.limit == MOST
    assert min(load.limits) == MOST // 2, "tried, and not believed"


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 70), st.lists(st.tuples(st.floats(0, 10), st.integers(0, 9)), max_size=400))
def test_the_number_has_its_bounds_and_somebody_may_always_go(
    most: int, steps: list[tuple[float, int]]
) -> None:
    allowance, going, now = Allowance(most), [], 0.0
    for seconds, what in steps:
        now += seconds
        directory = b"%d" % (what % 3) if what < 7 else None
        if allowance.room(is_small=directory is not None) > 0:
            going.append(allowance.begin(now, str(what % 2), directory))
        elif going:
            outcome = (Outcome.DONE, Outcome.REFUSED, Outcome.OTHER)[what % 3]
            allowance.end(now, going.pop(what % len(going)), outcome)
        assert min(LEAST, most) <= allowance.limit <= most
        assert len(going) <= most
    while going:
        allowance.end(now, going.pop(), Outcome.OTHER)
    assert allowance.room(is_small=True) > 0
    assert allowance.room(is_small=False) > 0
