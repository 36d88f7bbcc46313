"""Renamed directories: what they carry along, and what waits for them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from blake3 import blake3

from onesync import push, transfer
from onesync.core import plan as planning
from onesync.core.plan import Difference
from tests.campaign.life import PORTION, Place
from tests.test_steady_load import (
    EXTRA,
    ONE,
    TWO,
    Act,
    Copies,
    act_and_look,
    copies,
    execute,
    nothing,
    put,
    rows,
)

__all__ = ["copies"]

INNER, OUTER = f"{EXTRA}/before", f"{EXTRA}/after"


def named(store: Path) -> set[str]:
    found: set[str] = set()
    for database in store.rglob("set.sqlite"):
        if ".deployment_status" in str(database):
            continue
        found |= rows(database.parent, ".")
    return found


def live(
    place: Place,
    acts: Sequence[Act],
    *,
    at_rest: bool = False,
    watch: Callable[[], None] = lambda: None,
) -> list[set[str]]:
    """Let one act happen at each checkpoint and at rest; returns what rows lack, in turn."""
    wrong: list[set[str]] = []

    def look() -> None:
        lacking = {name for name in named(place.store) if not (place.store / name).is_file()}
        if lacking:
            wrong.append(lacking)
        watch()

    act_and_look(place, acts, look, at_rest=at_rest)
    return wrong


class Stubborn:
    """Files that change whenever they are copied, so many times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, times: int) -> None:
        self.left = times
        self._original = transfer.transfer

        def bring(replica: object, difference: Difference, *more: object) -> object:
            if difference.path.endswith(name.encode()) and self.left > 0:
                self.left -= 1
                return None
            return self._original(replica, difference, *more)  # type: ignore[arg-type]

        monkeypatch.setattr(push, "transfer", bring)


def test_a_rename_into_another_run_comes_with_its_rows(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source's run has a file that does not come: the move waits, the target's rows not."""
    Stubborn(monkeypatch, "stubborn", 3)
    old, new = f"{ONE}/extra/item", f"{TWO}/extra/item"

    def begin(work: Path) -> None:
        put(work, old, f"{TWO}/extra/other")
        execute(work, ONE, "INSERT INTO item VALUES (?)", old)
        execute(work, TWO, "INSERT INTO item VALUES (?)", f"{TWO}/extra/other")

    def turn(work: Path) -> None:
        execute(work, ONE, "DELETE FROM item WHERE path = ?", old)
        (work / old).rename(work / new)
        execute(work, TWO, "INSERT INTO item VALUES (?)", new)

    def more(work: Path) -> None:
        put(work, f"{ONE}/extra/stubborn")
        put(work, f"{TWO}/extra/other2")
        execute(work, TWO, "INSERT INTO item VALUES (?)", f"{TWO}/extra/other2")
        execute(work, ONE, "INSERT INTO item VALUES (?)", f"{ONE}/extra/stubborn")

    assert live(place, [begin, nothing, nothing, turn, more, *[nothing] * 3]) == []


@pytest.mark.usefixtures("small_portions")
def test_a_database_in_a_renamed_directory_waits_like_others(place: Place) -> None:
    gone = f"{ONE}/gone"

    def begin(work: Path) -> None:
        put(work, gone, f"{ONE}/stays")
        execute(work, INNER, "INSERT INTO item VALUES (?)", gone, f"{ONE}/stays")

    def turn(work: Path) -> None:
        execute(work, INNER, "DELETE FROM item WHERE path = ?", gone)
        (work / gone).unlink()
        (work / INNER).rename(work / OUTER)
        put(work, f"{TWO}/extra/first")

    def load(work: Path) -> None:
        put(work, *(f"{TWO}/extra/load_{n}" for n in range(4 * PORTION)))

    assert live(place, [begin, nothing, nothing, turn, load, *[nothing] * 4]) == []


def test_a_large_database_in_a_renamed_directory_comes_with_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "PATCH_FROM", 4096)
    old, new = f"{INNER}/item", f"{OUTER}/item"

    def begin(work: Path) -> None:
        put(work, old)
        execute(work, INNER, "INSERT INTO item VALUES (?)", old)

    def turn(work: Path) -> None:
        (work / INNER).rename(work / OUTER)
        execute(work, OUTER, "DELETE FROM item WHERE path = ?", old)
        execute(work, OUTER, "INSERT INTO item VALUES (?)", new)

    assert live(place, [begin, nothing, turn, nothing], at_rest=True) == []


def test_a_busy_database_in_a_renamed_directory_holds_back_removals(
    place: Place, copies: Copies
) -> None:
    gone = f"{ONE}/gone"

    def begin(work: Path) -> None:
        put(work, gone, f"{ONE}/stays")
        execute(work, INNER, "INSERT INTO item VALUES (?)", gone, f"{ONE}/stays")

    def turn(work: Path) -> None:
        execute(work, INNER, "DELETE FROM item WHERE path = ?", gone)
        (work / gone).unlink()
        (work / INNER).rename(work / OUTER)
        copies.busy, copies.patience = "after/set.sqlite", 4
        put(work, f"{TWO}/extra/first")

    other: Act = lambda work: put(work, f"{TWO}/extra/other{time.monotonic()}")  # noqa: E731
    assert live(place, [begin, nothing, nothing, turn, other, other, other, other]) == []


def test_a_run_is_renamed_with_its_databases(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = f"{ONE}/extra/item", f"{TWO}/extra/item"
    Stubborn(monkeypatch, "stubborn", 2)

    def begin(work: Path) -> None:
        put(work, old)
        execute(work, ONE, "INSERT INTO item VALUES (?)", old)

    def turn(work: Path) -> None:
        (work / ONE).rename(work / TWO)
        put(work, f"{TWO}/extra/stubborn")
        execute(work, TWO, "DELETE FROM item WHERE path = ?", old)
        execute(work, TWO, "INSERT INTO item VALUES (?)", new, f"{TWO}/extra/stubborn")

    assert live(place, [begin, nothing, turn, nothing], at_rest=True) == []


def test_a_rename_that_waits_brings_no_rows_under_the_old_name(
    place: Place, copies: Copies
) -> None:
    old, new = f"{ONE}/extra/item", f"{TWO}/extra/item"

    def begin(work: Path) -> None:
        put(work, old, "proj/first", "proj/second")
        execute(work, ONE, "INSERT INTO item VALUES (?)", old)
        execute(work, "proj", "INSERT INTO item VALUES (?)", "proj/first")

    def turn(work: Path) -> None:
        copies.busy, copies.patience = "proj/set.sqlite", 4
        execute(work, "proj", "INSERT INTO item VALUES (?)", "proj/second")
        execute(work, ONE, "DELETE FROM item WHERE path = ?", old)
        (work / ONE).rename(work / TWO)
        execute(work, TWO, "INSERT INTO item VALUES (?)", new)

    assert live(place, [begin, nothing, nothing, turn, *[nothing] * 3]) == []


def test_the_only_copy_stays_until_it_came_in_a_renamed_directory(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``mv d1 d2; mv old d2/``: OneData must have ``large`` whole somewhere, all the time."""
    content = os.urandom(3 * 4096)
    old = f"{EXTRA}/old/large"
    lost: list[bool] = []
    original = transfer.transfer
    rounds = {"n": 0}

    def bring(replica: object, difference: Difference, *more: object) -> object:
        brought = original(replica, difference, *more)  # type: ignore[arg-type]
        if difference.path.endswith(b"large") and difference.known is None and rounds["n"]:
            rounds["n"] -= 1
            assert isinstance(brought, transfer.Brought)
            assert brought.temporary is not None
            replica.truncate(brought.temporary, 4096)  # type: ignore[attr-defined]
            copied = replace(
                brought.copied,
                digest=blake3(content[:4096]).hexdigest(),
                size=4096,
                prefix=True,
                blocks=None,
            )
            return replace(brought, copied=copied)
        return brought

    monkeypatch.setattr(push, "transfer", bring)

    def begin(work: Path) -> None:
        put(work, f"{INNER}/item", f"{EXTRA}/old/other")
        (work / old).write_bytes(content)

    def turn(work: Path) -> None:
        rounds["n"] = 1
        (work / INNER).rename(work / OUTER)
        (work / EXTRA / "old").rename(work / OUTER / "old")

    def watch() -> None:
        if rounds["n"] == 0 and not (place.store / EXTRA).exists():
            return
        whole = [p for p in place.store.rglob("large") if p.read_bytes() == content]
        lost.append(not whole)

    acts = [begin, nothing, turn, nothing, nothing]
    assert live(place, acts, at_rest=True, watch=watch) == []
    assert (place.store / OUTER / "old/large").read_bytes() == content
    assert not (place.store / old).exists()
    assert not any(lost), lost


def test_a_database_that_went_is_not_carried_along_by_a_rename(place: Place) -> None:
    def begin(work: Path) -> None:
        put(work, f"{INNER}/item")
        execute(work, INNER, "INSERT INTO item VALUES (?)", f"{INNER}/item")

    def turn(work: Path) -> None:
        (work / INNER / "set.sqlite").unlink()
        (work / INNER).rename(work / OUTER)

    assert live(place, [begin, nothing, turn, nothing], at_rest=True) == []
