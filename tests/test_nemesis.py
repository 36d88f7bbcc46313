"""The lock's nemesis: at most one chain is accepted, and nobody may write beside its owner."""

from __future__ import annotations

import os
import sys
from collections import Counter

import pytest

from onesync.errors import LockLost
from onesync.replica.leased import leased
from tests.memory import MemoryReplica
from tests.nemesis import History

HISTORIES = int(os.environ.get("ONESYNC_HISTORIES", "100"))
MISHAPS = (0.01, 0.003, 0.04)
"""How likely a call goes wrong, in turn; a death is one of six ways."""

BEATS = ("beats delayed", "beats never left", "beats failed", "beats torn")


def lived(seed: int, *, careless: bool = False) -> Counter[str]:
    history = History(seed, careless=careless, mishaps=MISHAPS[seed % len(MISHAPS)])
    history.run()
    assert history.broken == [], f"seed {seed}"
    return history.world.counts


def test_a_sample_of_histories() -> None:
    counts = sum((lived(seed) for seed in range(12)), Counter[str]())
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
        counts += lived(seed, careless=seed % 5 == 0)
    lines = [f"  {what:24} {number}" for what, number in sorted(counts.items())]
    sys.stdout.write("\n".join([f"\nlock nemesis: {HISTORIES} histories", *lines, ""]))


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
