"""A new file may have a deleted one's inode number: the deletion was seen, and is not held.

What was renamed and touched looks the same, so such a deletion waits until the new file has come.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from onesync.errors import Exit
from tests.campaign.life import Life, Step
from tests.test_deleted_then_renamed import Strict

OLD, NEW = "Runs/000001_Many/extra/old", "Runs/000001_Many/extra/new"
FILES = 12


@pytest.fixture
def place(tmp_path: Path) -> Strict:
    return Strict.make(tmp_path)


def names(above: str) -> list[str]:
    return [f"{above}/{number}.dat" for number in range(FILES)]


def fill(life: Life) -> None:
    (life.place.work / OLD).mkdir(parents=True)
    for name in names(OLD):
        (life.place.work / name).write_bytes(b"old")


def delete_and_reuse(life: Life) -> None:
    """Delete files, and make others of the same numbers; links outside keep these free."""
    work, outside = life.place.work, life.place.home / "outside"
    (work / OLD).rename(outside)
    life.watcher.tell()
    (work / NEW).mkdir(exist_ok=True)
    for name in names(NEW):
        free = outside / os.path.basename(name)
        free.write_bytes(b"new content")
        free.rename(work / name)


def nothing(_: Life) -> None:
    """Let a batch pass."""


def lived(place: Strict, *steps: Step) -> list[tuple[int, int]]:
    """Return how many old and new files there were at each checkpoint and at the end."""
    seen: list[tuple[int, int]] = []
    held: set[bytes] = set()

    def look() -> None:
        old, new = (sum((place.store / n).exists() for n in names(of)) for of in (OLD, NEW))
        seen.append((old, new))
        held.update(life.engine._deletions.held.paths)

    life = Life(place, steps)
    life.told_commit = look
    life.live()
    look()
    assert life.end is Exit.CLEAN, life.error
    assert life.done == len(steps)
    assert held == set()
    return seen


@pytest.mark.usefixtures("small_portions")
def test_a_deletion_that_waits_for_a_late_file_is_not_held(place: Strict) -> None:
    waits = [nothing] * FILES
    seen = lived(place, fill, *waits, delete_and_reuse, *waits)
    assert any(old and 0 < new < FILES for old, new in seen)
    assert seen[-1] == (0, FILES)


def test_a_deletion_that_waits_for_what_cannot_come_is_not_held(place: Strict) -> None:
    """Somebody took the new files' names in OneData, and makes way later."""

    def take(life: Life) -> None:
        (place.store / NEW).mkdir()
        for name in names(NEW):
            (place.store / name).write_bytes(b"somebody else's")
        delete_and_reuse(life)

    def other(life: Life) -> None:
        (life.place.work / "Runs/other").write_bytes(b"other")

    def make_way(life: Life) -> None:
        assert (place.store / OLD).exists()
        for name in names(NEW):
            (place.store / name).unlink()
            os.utime(life.place.work / name)

    assert lived(place, fill, nothing, take, other, other, make_way, nothing)[-1] == (0, FILES)
    assert [(place.store / n).read_bytes() for n in names(NEW)] == [b"new content"] * FILES
    assert not (place.store / OLD).exists()
