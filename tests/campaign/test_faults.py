"""Every fault at every call on the mount: nothing is lost, and no error is counted as success."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from onesync.errors import Exit
from tests.campaign.calls import Fault
from tests.campaign.life import Life
from tests.campaign.trial import Trial

SEED = 20_260_104
CHUNKS = 4
NEVER = 1_000_000
"""No life makes so many calls."""
_ERRNOS = (
    *("EIO", "ENOSPC", "EDQUOT", "ETIMEDOUT", "EAGAIN"),
    *("ENOTCONN", "ECONNABORTED", "EACCES", "EROFS"),
)


@dataclass(frozen=True)
class Loop:
    """A fault at one call after the other; every ``stride``-th where time is short."""

    fault: Fault
    stride: int
    returns: bool = False

    def __str__(self) -> str:
        return f"{replace(self.fault, number=0)}{' returning' if self.returns else ''}"

    def numbers(self, stride: int, chunk: int) -> Iterator[int]:
        number = random.Random(f"{SEED}{self}").randint(1, stride) + chunk * stride
        while True:
            yield number
            number += CHUNKS * stride


LOOPS = [
    Loop(Fault(0, "crash"), 14),
    Loop(Fault(0, "crash"), 21, returns=True),
    Loop(Fault(0, "crash", loses="zeros"), 70),
    Loop(Fault(0, "crash", loses="old"), 70),
    Loop(Fault(0, "EIO", loses="zeros"), 70),
    Loop(Fault(0, "ETIMEDOUT", applied=True), 28),
    Loop(Fault(0, "ETIMEDOUT", applied=True), 48, returns=True),
    Loop(Fault(0, "hang"), 70),
    Loop(Fault(0, "hang", applied=True), 70),
    Loop(Fault(0, "hang", lasting=True), 140),
    *(Loop(Fault(0, what), 28 if what == "EIO" else 140) for what in _ERRNOS),
    *(Loop(Fault(0, what, lasting=True), 140) for what in _ERRNOS),
    *(Loop(Fault(0, what), 140, returns=True) for what in _ERRNOS),
]


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory in memory: the campaign makes many."""
    with tempfile.TemporaryDirectory(prefix="onesync-campaign-", dir="/dev/shm") as path:
        yield Path(path)


def go_through(loop: Loop, stride: int, chunk: int, home: Path) -> None:
    wrong: dict[int, list[str]] = {}
    for number in loop.numbers(stride, chunk):
        trial = Trial(home / str(number), returns=loop.returns)
        happened = trial.live(replace(loop.fault, number=number))
        trial.converge()
        trial.clear()
        if trial.wrong:
            wrong[number] = trial.wrong
        if not happened:
            break
    assert not wrong


@pytest.mark.parametrize("chunk", range(CHUNKS))
@pytest.mark.parametrize("loop", LOOPS, ids=str)
def test_a_fault_at_some_calls(loop: Loop, chunk: int, home: Path) -> None:
    go_through(loop, loop.stride, chunk, home)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("chunk", range(CHUNKS))
@pytest.mark.parametrize("loop", LOOPS, ids=str)
def test_a_fault_at_every_call(loop: Loop, chunk: int, home: Path) -> None:
    go_through(loop, 1, chunk, home)


def test_a_life_whose_every_write_fails_tells_no_success(home: Path) -> None:
    def creates_in_vain(life: Life) -> None:
        successes.append(len(life.succeeded_after))
        life.calls.fault = Fault(1, "EIO", lasting=True, only="write")
        creates(life)
        trial.story.flushes(life)  # at once: the batch's own writes fail before the beat's

    successes: list[int] = []
    trial = Trial(home / "one")
    creates, trial.steps[1] = trial.steps[1], creates_in_vain
    assert trial.live(Fault(NEVER, "EIO", lasting=True, only="write"))
    (life,) = trial.lives
    assert isinstance(life, Life)
    assert life.end is Exit.FLUSH_NOT_FINISHED
    assert successes == [len(life.succeeded_after)]
    assert "EIO" in life.failed_as
    trial.converge()
    assert not trial.wrong


@pytest.mark.parametrize("chunk", range(CHUNKS))
@pytest.mark.parametrize("returns", [False, True])
def test_a_death_at_every_write_of_the_state_directory(
    returns: bool, chunk: int, home: Path
) -> None:
    wrong: dict[int, list[str]] = {}
    happened, number = True, chunk + 1 - CHUNKS
    while happened:
        number += CHUNKS
        trial = Trial(home / str(number), returns=returns)
        happened = trial.live(dies_at=number)
        trial.converge()
        trial.clear()
        if trial.wrong:
            wrong[number] = trial.wrong
    assert not wrong
    assert number > 10


def many_deaths(seed: int, home: Path) -> None:
    """Deaths at random, also while the last one is settled, also with what was not flushed."""
    chance = random.Random(seed)
    trial = Trial(home / str(seed), returns=chance.random() < 0.3)
    faults = []
    for most in (700, 170, 170)[: chance.randint(1, 3)]:
        what = chance.choice(["crash", "crash", "crash", "hang", "EIO", "ENOTCONN"])
        lost = chance.choice(["", "", "zeros", "old"]) if what == "crash" else ""
        lasting = what in ("EIO", "ENOTCONN")
        faults.append(Fault(chance.randint(1, most), what, lasting=lasting, loses=lost))
        trial.live(faults[-1])
    trial.converge()
    trial.clear()
    assert not trial.wrong, (seed, list(map(str, faults)))


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_some_deaths_at_random(chunk: int, home: Path) -> None:
    for number in range(10):
        many_deaths(SEED + CHUNKS * number + chunk, home)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_many_deaths_at_random(chunk: int, home: Path) -> None:
    for number in range(250):
        many_deaths(2 * SEED + CHUNKS * number + chunk, home)
