"""Two real locks on one folder that two providers serve, which onesync admits not to exclude.

Promised is detection alone: who hears of the other's claim stops, by the name that a provider shows
beside ours; and once they hear of each other nobody, or one, goes on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from onesync.core.claims import LockTimes
from onesync.errors import DeployedElsewhere, Halted, LockLost
from onesync.lock import Claimant, Lock
from onesync.replica.folder import FolderReplica
from tests.standin.mounted import Mounted
from tests.standin.providers import Providers
from tests.test_lock import FakeClock

pytestmark = pytest.mark.fuse

TWIN = "second OneData provider"
TIMES = LockTimes.from_timeout(10)


@pytest.fixture
def providers(tmp_path: Path) -> Iterator[Providers]:
    """Two providers that exchange when asked to, with ``project`` on both."""
    with Providers(tmp_path) as both:
        (both.one.path / "project").mkdir()
        both.exchange()
        yield both


@pytest.fixture
def lock_on(providers: Providers) -> Iterator[Callable[[Mounted], Lock]]:
    """Makes the lock of a node that mounts through a provider."""
    doors = []

    def lock_on(mounted: Mounted) -> Lock:
        host = mounted.path.parent.name
        claimant = Claimant(host, f"boot-{host}", f"machine-{host}", "me", "/work", "/data", "0")
        doors.append(FolderReplica(os.fsencode(mounted.path / "project")))
        return Lock(doors[-1], FakeClock(), TIMES, claimant, None)

    yield lock_on
    for door in doors:
        door.forget()


@pytest.fixture
def one(providers: Providers, lock_on: Callable[[Mounted], Lock]) -> Lock:
    return lock_on(providers.one)


@pytest.fixture
def two(providers: Providers, lock_on: Callable[[Mounted], Lock]) -> Lock:
    return lock_on(providers.two)


def told(act: Callable[[], object]) -> str:
    """Return with what a lock gives up; nothing where it goes on."""
    try:
        act()
    except (DeployedElsewhere, Halted, LockLost) as error:
        return str(error)
    return ""


def test_a_claim_that_the_other_provider_knows_of_is_respected(
    providers: Providers, one: Lock, two: Lock
) -> None:
    assert one.acquire() == 1
    providers.exchange()
    assert "me on one holds it" in told(two.acquire)
    providers.exchange()
    one.beat()


def test_claims_that_cross_within_the_settle_time_stop_both(
    providers: Providers, one: Lock, two: Lock
) -> None:
    """The providers are late, but not later than a claim settles."""
    others: list[str] = []

    def meanwhile(_: float) -> None:
        others.append(told(lambda: two.acquire(pause=lambda _: providers.exchange())))

    assert TWIN in told(lambda: one.acquire(pause=meanwhile))
    assert TWIN in others[0]
    assert {one.is_held(), two.is_held()} == {False}


def test_who_settles_for_long_makes_up_for_who_does_not(
    providers: Providers, one: Lock, two: Lock
) -> None:
    """The first one's settle time is over before its claim gets across: it goes on, alone."""
    others: list[str] = []

    def meanwhile(_: float) -> None:
        others.append(told(lambda: one.acquire(pause=lambda _: None)))
        providers.exchange()

    assert TWIN in told(lambda: two.acquire(pause=meanwhile))
    assert others == [""]
    assert (one.is_held(), two.is_held()) == (True, False)
    providers.exchange()
    assert TWIN in told(one.beat)


def test_claims_during_a_partition_are_both_told_when_it_heals(
    providers: Providers, one: Lock, two: Lock, lock_on: Callable[[Mounted], Lock]
) -> None:
    """Until then both write: that is admitted."""
    providers.partition()
    assert (one.acquire(), two.acquire()) == (1, 1)
    providers.exchange()
    one.beat()
    two.beat()
    providers.heal()
    providers.exchange()
    assert TWIN in told(one.beat)
    assert TWIN in told(two.beat)
    for mounted in (providers.one, providers.two):
        assert TWIN in told(lock_on(mounted).acquire), "a person has to choose first"
    twin = next(name for name in one.replica.names(b"") if b"@" in name)
    assert one.replica.look(twin + b"/epochs/000001/record.json") is not None, "nothing is lost"


def test_an_owner_who_was_unlocked_behind_a_partition_is_told_when_it_heals(
    providers: Providers, one: Lock, two: Lock
) -> None:
    """Its beats do not come through, so it seems dead there."""
    one.acquire()
    providers.exchange()
    providers.partition()
    assert two.unlock(1) != []
    assert two.acquire() == 3
    one.beat()
    providers.heal()
    providers.exchange()
    assert "The lock of epoch 1 is lost" in told(one.beat)  # by the claim, or by the lock file
    two.beat()
