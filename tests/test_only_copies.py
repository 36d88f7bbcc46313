"""What OneData has nowhere else stays, though its new name comes late or its old one is taken."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from onesync.batch import Batches
from tests.campaign.life import Place
from tests.test_steady_load import EXTRA, MANY, ONE, Act, act_and_look, nothing, put

pytestmark = pytest.mark.usefixtures("small_portions")

OTHER = "Movies/other"
"""A file that is deleted while others only have other names."""


def content_of(name: str) -> bytes:
    return b"content of " + name.encode()


class Moving:
    """MANY get other names, so that no rename is recognised; none of their contents may be lost."""

    def __init__(self, place: Place, folder: str) -> None:
        self.place = place
        self.news = {name: f"{ONE}/{folder}/{os.path.basename(name)}" for name in MANY}
        self.batches = 0
        self.has_begun = False
        self.lost: set[bytes] = set()

    def begin(self, work: Path) -> None:
        put(work, *MANY, OTHER)
        for name in MANY:
            (work / name).write_bytes(content_of(name))

    def turn(self, work: Path) -> None:
        for number, (old, new) in enumerate(self.news.items()):
            (work / new).parent.mkdir(exist_ok=True)
            (work / old).rename(work / new)
            os.utime(work / new, (number, number))
        self.has_begun = True

    def look(self) -> None:
        if self.has_begun:
            there = {p.read_bytes() for p in self.place.store.glob("Runs/**/*") if p.is_file()}
            self.lost |= {content_of(name) for name in MANY} - there

    def keeps(self, turn: Act, monkeypatch: pytest.MonkeyPatch, then: Callable[..., None]) -> bool:
        """Let ``turn`` happen, and ``then`` before each batch after it, told its number."""
        batch = Batches.batch

        def told(batches: Batches, *, everything: bool = False) -> bool:
            if self.has_begun:
                self.batches += 1
                then(batches, self.batches)
            return batch(batches, everything=everything)

        monkeypatch.setattr(Batches, "batch", told)
        acts: list[Act] = [self.begin, nothing, nothing, turn, *[nothing] * 6]
        act_and_look(self.place, acts, self.look, at_rest=True)
        assert self.batches > 2
        return not self.lost


def none(_: Batches, __: int) -> None:
    """Nothing more happens."""


def test_what_is_told_of_between_cut_and_push(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    moving = Moving(place, "other")
    identify = Batches._identify
    touched: list[bytes] = []

    def told(batches: Batches) -> None:
        identify(batches)
        if moving.has_begun and not touched:
            touched.extend(batches.marks.backlog())
            for path in touched:
                os.utime(os.path.join(os.fsencode(place.work), path))
                batches.marks.changed(path)

    monkeypatch.setattr(Batches, "_identify", told)
    assert moving.keeps(moving.turn, monkeypatch, none)
    assert touched


def test_what_became_scratch_and_is_worked_on(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    moving = Moving(place, "tmp")

    def works_on(_: Batches, number: int) -> None:
        for new in moving.news.values() if 1 < number < 9 else ():
            os.utime(place.work / new, (100 * number, 100 * number))

    assert moving.keeps(moving.turn, monkeypatch, works_on)


def test_where_room_is_made(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    moving = Moving(place, "other")

    def finds_no_room(batches: Batches, number: int) -> None:
        if number == 2:
            (place.work / OTHER).unlink()
            batches._is_full = True

    assert moving.keeps(moving.turn, monkeypatch, finds_no_room)
    assert not (place.store / OTHER).exists()


@pytest.mark.parametrize("what", ["links", "a link", "a file"])
def test_what_was_moved_with_something_left_in_its_place(
    place: Place, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    moving = Moving(place, "final")

    def turn(work: Path) -> None:
        moving.has_begun = True
        if what == "links":
            moving.turn(work)
            for old, new in moving.news.items():
                (work / old).symlink_to(f"../final/{os.path.basename(new)}")
            return
        (work / EXTRA).rename(work / ONE / "final")
        if what == "a link":
            (work / EXTRA).symlink_to("final")
        else:
            (work / EXTRA).write_bytes(b"")

    assert moving.keeps(turn, monkeypatch, none)
    assert sorted(os.listdir(place.store / ONE / "final")) == sorted(map(os.path.basename, MANY))
    assert not (place.store / EXTRA).is_dir() or not os.listdir(place.store / EXTRA)


@pytest.mark.parametrize("number", [1, 2], ids=["at once", "while it waits"])
def test_what_was_moved_aside_and_written_anew(
    place: Place, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    moving = Moving(place, "old")

    def anew(_: Batches, now: int) -> None:
        for name in MANY if now == number else ():
            (place.work / name).write_bytes(b"new " + name.encode())

    assert moving.keeps(moving.turn, monkeypatch, anew)
    assert all((place.store / name).read_bytes().startswith(b"new") for name in MANY)


def test_what_became_a_directory_that_holds_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot come before its old name is free: nobody waits for ever."""
    batches: list[int] = []
    batch = Batches.batch

    def counted(self: Batches, *, everything: bool = False) -> bool:
        batches.append(1)
        assert len(batches) < 60, "it never rests"
        return batch(self, everything=everything)

    def turn(work: Path) -> None:
        for name in MANY:
            (work / name).rename(work / "aside")
            (work / name).mkdir()
            (work / "aside").rename(work / name / "itself")
        # And two that hold each other.
        first, last = (work / name for name in (MANY[0], MANY[-1]))
        (first / "itself").rename(work / "aside")
        (last / "itself").rename(first / "itself")
        (work / "aside").rename(last / "itself")

    monkeypatch.setattr(Batches, "batch", counted)
    acts: list[Act] = [lambda work: put(work, *MANY), nothing, nothing, turn, nothing]
    act_and_look(place, acts, lambda: None, at_rest=True)
    assert all((place.store / name / "itself").read_bytes() == b"data" for name in MANY)


@pytest.mark.parametrize("in_circle", [False, True], ids=["a chain", "a circle"])
def test_what_takes_each_others_names_comes_in_any_portion(place: Place, in_circle: bool) -> None:
    """Each replaces the only copy of the next one, which has to come before it."""
    names = [f"{ONE}/extra/{number:02}" for number in range(12)]
    last = names[0] if in_circle else f"{ONE}/extra/new"
    content = {new: content_of(old) for old, new in zip(names, [*names[1:], last], strict=True)}

    def begin(work: Path) -> None:
        put(work, *names)
        for name in names:
            (work / name).write_bytes(content_of(name))

    def turn(work: Path) -> None:
        for name in names:
            (work / name).rename(work / f"{name}.aside")
        for number, (old, new) in enumerate(zip(names, [*names[1:], last], strict=True)):
            (work / f"{old}.aside").rename(work / new)
            os.utime(work / new, (number, number))

    act_and_look(place, [begin, nothing, nothing, turn], lambda: None, at_rest=True)
    assert {n: (place.store / n).read_bytes() for n in content} == content
