"""The campaign in real processes: every fault and every death, on the kernel's FUSE.

``make soak`` goes through all of it: ONESYNC_DEATHS says how many deaths there are,
ONESYNC_DEATHS_FROM the first one's number, to go on where a run ended, ONESYNC_SEED what chance
makes of it.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from onesync.errors import Exit
from tests.campaign.calls import Fault
from tests.campaign.process import DEATHS, ProcessTrial

pytestmark = pytest.mark.fuse

SEED = int(os.environ.get("ONESYNC_SEED", "20260104"))
MANY = int(os.environ.get("ONESYNC_DEATHS", "500"))
FROM = int(os.environ.get("ONESYNC_DEATHS_FROM", "0"))
CHUNKS = 20
ERRNOS = (
    *("EIO", "ENOSPC", "ETIMEDOUT", "EAGAIN", "ENOTCONN", "EDQUOT", "EACCES", "EROFS"),
    "ECONNABORTED",
)
CALLS = 840
"""About so many calls a life makes that nothing befalls."""
CERTAIN = 500
"""Any life makes so many, however much of what it sees one batch takes."""
RECOVERY = 110
"""About so many of them until it syncs."""


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory in memory: the campaign makes many."""
    with tempfile.TemporaryDirectory(prefix="onesync-processes-", dir="/dev/shm") as path:
        yield Path(path)


def fail(number: int, home: Path, *, lasting: bool) -> bool:
    """Let one call fail, or all from it on; returns whether there was such a call."""
    chance = random.Random(f"{SEED} {number} {lasting}")
    unknown = chance.random() < 0.25
    fault = Fault(number, chance.choice(ERRNOS), lasting=lasting, applied=unknown)
    with ProcessTrial(home / str(number)) as trial:
        happened = trial.live(fault)
        trial.converge()
    assert not trial.wrong, (SEED, str(fault), trial.wrong)
    return happened


def die(number: int, home: Path, most: int = 10, calls: int = CALLS) -> int:
    """Die up to ``most`` times, also while the last death is settled; returns how often it was."""
    chance = random.Random(f"{SEED} {number}")
    profile = chance.choice(["plain", "plain", "21.02"])
    deaths = []
    with ProcessTrial(home / str(number), profile=profile) as trial:
        for _ in range(chance.randint(1, most)):
            call = chance.randint(1, chance.choice((RECOVERY, 2 * RECOVERY, calls)))
            deaths.append(Fault(call, chance.choice(DEATHS), applied=chance.random() < 0.5))
            trial.live(deaths[-1])
            if trial.wrong or trial.lives[-1].end is Exit.CLEAN:
                break
        trial.converge()
        trial.stage_in_elsewhere()
    assert not trial.wrong, (SEED, number, profile, list(map(str, deaths)), trial.wrong)
    return sum(life.died for life in trial.lives)


@pytest.mark.parametrize("number", range(6))
def test_a_fault_at_some_call(number: int, home: Path) -> None:
    fail(random.Random(f"{SEED} {number}").randint(1, CALLS), home, lasting=number % 2 == 1)


@pytest.mark.parametrize("number", range(3))
def test_some_deaths(number: int, home: Path) -> None:
    assert die(number, home, most=3, calls=CERTAIN)


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("chunk", range(CHUNKS), ids=lambda chunk: f"seed {SEED}, {chunk}")
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "for good"])
def test_a_fault_at_every_call(lasting: bool, chunk: int, home: Path) -> None:
    for number in count(1 + chunk, CHUNKS):
        if not fail(number, home, lasting=lasting):
            break


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("chunk", range(CHUNKS), ids=lambda chunk: f"seed {SEED}, {chunk}")
def test_many_deaths(chunk: int, home: Path) -> None:
    died = 0
    numbers = count(FROM + chunk, CHUNKS)
    while died < MANY / CHUNKS:
        died += die(next(numbers), home)
