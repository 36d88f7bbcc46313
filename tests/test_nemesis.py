"""The lock's nemesis: at most one chain is accepted, and nobody may write beside its owner."""

from __future__ import annotations

import os
import sys
from collections import Counter
from typing import cast

import pytest

from onesync.core.claims import LOCK_BYTES
from onesync.errors import LockLost
from onesync.lock import LOCK
from onesync.replica.door import Replica
from onesync.replica.leased import leased
from tests.memory import MemoryReplica
from tests.nemesis import UNJUDGED, History, Life
from tests.test_lock import lock_of

HISTORIES = int(os.environ.get("ONESYNC_HISTORIES", "100"))
MISHAPS = (0.01, 0.003, 0.04)
"""How likely a call goes wrong, in turn; a death is one of six ways."""

BEATS = ("beats delayed", "beats never left", "beats failed", "beats torn")


def lived(seed: int, *, careless: bool = False) -> Counter[str]:
    history = History(seed, careless=careless, mishaps=MISHAPS[seed % len(MISHAPS)])
    history.run()
    assert history.broken == [], f"seed {seed}"
    return history.world.counts


def must_be_rare(counts: Counter[str], histories: int) -> None:
    """What is admitted must not become an excuse: of 1,500 histories none had it."""
    assert counts[UNJUDGED] <= histories // 20


def test_a_sample_of_histories() -> None:
    counts = sum((lived(seed) for seed in range(12)), Counter[str]())
    must_be_rare(counts, 12)
    befell = ("commits", "paused", "deaths", "unlocked", "clones", *BEATS)
    assert min(counts[what] for what in befell) > 0


def test_where_locks_are_deleted_under_live_owners_what_is_left_out_is_told_of() -> None:
    counts = sum((lived(seed, careless=True) for seed in range(12)), Counter[str]())
    assert min(counts[what] for what in ("commits", "locks deleted", "fenced")) > 0


@pytest.mark.session
@pytest.mark.timeout(120 + 2 * HISTORIES)
def test_many_histories() -> None:
    counts: Counter[str] = Counter()
    for seed in range(100, 100 + HISTORIES):
        counts.update(lived(seed, careless=seed % 5 == 0))
    must_be_rare(counts, HISTORIES)
    counts[UNJUDGED] += 0  # told also where there was none
    lines = [f"  {what:24} {number}" for what, number in sorted(counts.items())]
    sys.stdout.write("\n".join([f"\nlock nemesis: {HISTORIES} histories", *lines, ""]))


def test_a_history_that_is_not_judged_any_more_is_counted_once() -> None:
    history = History(0)
    node = history.nodes[0]
    owner = lock_of(cast(Replica, history.store), "one")
    owner.acquire()
    node.current = Life(node, owner)
    history.removes(node)
    assert history.world.counts[UNJUDGED] == 0, "it is its own"
    theirs = b"HOST: two\nDEPLOYMENT: d\nEPOCH: 2\n".ljust(LOCK_BYTES)
    history.store.overwrite(LOCK, theirs)
    for _ in range(2):
        history.removes(node)
    assert history.world.counts[UNJUDGED] == 1
    with pytest.raises(AssertionError):
        must_be_rare(history.world.counts, 12)


def test_an_owner_that_woke_up_fenced_changes_nothing_more() -> None:
    """Asked before every single call, also in the middle of a recovery."""
    store = MemoryReplica()
    lost: list[LockLost] = []

    def may_write() -> None:
        if lost:
            raise lost[0]

    door = leased(store, may_write)
    door.write_new(b"a", b"1")
    lost.append(LockLost("somebody took over"))
    before = dict(store._tree)
    changes = {
        "write_new": (b"b", b"2"),
        "overwrite": (b"a", b"2"),
        "make_directory": (b"d",),
        "remove": (b"a",),
        "unlink": (b"a",),
        "rename": (b"a", b"b"),
        "truncate": (b"a", 0),
        "undo": (b"a", b"a"),
    }
    for name, arguments in changes.items():
        with pytest.raises(LockLost):
            getattr(door, name)(*arguments)
    assert (store._tree, door.read(b"a")) == (before, b"1")
