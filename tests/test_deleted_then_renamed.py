"""What is deleted just before its directory gets another name was seen to go, and is not held."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from onesync.deletions import Deletions
from onesync.errors import Exit
from onesync.settings import GuardSettings, Settings
from tests.campaign.life import Life, Place

FILES = 20


class Strict(Place):
    """A node that believes no absence which nobody saw."""

    def settings(self) -> Settings:
        guards = GuardSettings(unexplained_deletions=0)
        return replace(super().settings(), guards=guards)


@pytest.fixture
def place(tmp_path: Path) -> Strict:
    return Strict.make(tmp_path)


def fill(life: Life) -> None:
    for run in ("one", "two"):
        folder = life.place.work / "Runs" / run / "extra"
        folder.mkdir(parents=True)
        for number in range(FILES):
            (folder / f"mic_{number}.mrc").write_bytes(b"%d" % number)


def delete_most(life: Life) -> None:
    for path in sorted((life.place.work / "Runs" / "one").rglob("*.mrc"))[1:]:
        path.unlink()


def rename(source: str, target: str) -> Callable[[Path], None]:
    return lambda work: (work / source).rename(work / target).touch()


def to_and_fro(work: Path) -> None:
    (work / "Runs/one").rename(work / "Runs/other")
    (work / "Runs/other").rename(work / "Runs/one")


@pytest.mark.parametrize(
    ("act", "run"),
    [
        (rename("Runs/one", "Runs/other"), "Runs/other"),
        (rename("Runs", "Old"), "Old/one"),
        (rename("Runs/one/extra", "Runs/one/before"), None),
        (to_and_fro, "Runs/one"),
    ],
    ids=["the run", "all runs", "inside", "to and fro"],
)
@pytest.mark.parametrize("again", [False, True], ids=["once", "and once more"])
def test_a_deletion_that_waits_keeps_its_explanation(
    place: Strict,
    monkeypatch: pytest.MonkeyPatch,
    act: Callable[[Path], None],
    run: str | None,
    again: bool,
) -> None:
    """The directory is renamed after the cut that found the deletions, before the one after it."""
    real = Deletions.done
    acts = [act, rename("Runs/two", "Runs/zwei")] if again and run != "Old/one" else [act]

    def done(self: Deletions, removals: set[bytes], *more: Any) -> None:
        real(self, removals, *more)
        if acts and len(removals) >= FILES - 1:
            acts.pop(0)(place.work)

    monkeypatch.setattr(Deletions, "done", done)
    life = Life(place, [fill, delete_most]).live()
    assert life.end is Exit.CLEAN, life.error
    assert life.engine.problems() == []
    here, there = (
        {path.relative_to(top) for path in top.rglob("*.mrc")} for top in (place.work, place.store)
    )
    assert here == there
    assert len(here) == FILES + 1
    if run:
        assert (place.store / run).is_dir()


@pytest.mark.parametrize(("source", "target"), [("Runs/one", "Runs/other"), ("Runs", "Old")])
def test_what_is_told_before_its_rename_is_looked_at_keeps_its_explanation(
    place: Strict, monkeypatch: pytest.MonkeyPatch, source: str, target: str
) -> None:
    """A batch hears of all deletions and of the rename, and looked at the first ones alone."""
    real = Deletions.judge
    seen: list[int] = []

    def delete_some(life: Life) -> None:
        for path in sorted((life.place.work / "Runs" / "one").rglob("*.mrc"))[1:5]:
            path.unlink()

    def judge(
        self: Deletions, found: dict[bytes, Any], looked: Any, settled: Any, drain: Any, **how: Any
    ) -> dict[bytes, Any]:
        gone = [path for path, difference in found.items() if difference.seen is None]
        if gone and not seen:
            seen.append(len(gone))
            delete_most(life)
            rename(source, target)(place.work)
            drain()
        return real(self, found, looked, settled, drain, **how)

    monkeypatch.setattr(Deletions, "judge", judge)
    life = Life(place, [fill, delete_some])
    life.live()
    assert seen == [4]
    assert life.end is Exit.CLEAN, life.error
    assert life.engine.problems() == []
    assert {path.name for path in place.store.rglob("*.mrc")} == {
        path.name for path in place.work.rglob("*.mrc")
    }
    assert not (place.store / source).exists()
