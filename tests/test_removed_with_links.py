"""What a link leads to stays while rows in OneData may name the link, though both are removed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.campaign.life import Place
from tests.test_changed_kinds import forget
from tests.test_named_databases import OLD, changing
from tests.test_steady_load import (
    ONE,
    TWO,
    Copies,
    act_and_look,
    copies,
    execute,
    nothing,
    put,
    rows,
    without_files,
)

__all__ = ["copies"]
THREE = "Runs/000003_Extract"
LINK, BETWEEN, CHANGING = f"{TWO}/extra/l", f"{THREE}/between", f"{TWO}/extra/changing"
LOAD = 24


def link(work: Path, path: str, to: str) -> None:
    (work / path).parent.mkdir(parents=True, exist_ok=True)
    (work / path).symlink_to(os.path.relpath(work / to, (work / path).parent))


class Linked:
    """A row of one run names a link that leads to a file of another one."""

    def __init__(self, place: Place, shape: str) -> None:
        self.place = place
        self.shape = shape
        self.wrong: list[int] = []
        self.seen = 0
        self.left: list[int] = []
        self.is_gone = False

    def begin(self, work: Path) -> None:
        put(work, OLD, f"{ONE}/a", f"{THREE}/a", f"{TWO}/a", f"{TWO}/extra/b")
        if self.shape == "through another link":
            link(work, BETWEEN, OLD)
            link(work, LINK, BETWEEN)
        elif self.shape == "through its directory":
            link(work, LINK, os.path.dirname(OLD))
        else:
            link(work, LINK, OLD)
        named = f"{LINK}/old" if self.shape == "through its directory" else LINK
        execute(work, TWO, "INSERT INTO item VALUES (?)", named, f"{TWO}/a")

    def remove(self, work: Path) -> None:
        """Remove the rows, then the links, then what they lead to."""
        forget(work, TWO, LINK)
        forget(work, TWO, f"{LINK}/old")
        (work / LINK).unlink()
        if self.shape == "through another link":
            (work / BETWEEN).unlink()
        if self.shape == "in a directory":
            shutil.rmtree((work / OLD).parent)
        else:
            (work / OLD).unlink()
        put(work, f"{THREE}/x")

    def load(self, work: Path) -> None:
        """Begin another batch, and see how long the file stays."""
        self.left.append(1)
        put(work, f"{THREE}/x{len(self.left)}")

    def look(self) -> None:
        store, names = self.place.store, {LINK, f"{LINK}/old"}
        self.seen += bool(rows(store, TWO) & names)
        if names & without_files(store, TWO, is_there=lambda _: (store / OLD).is_file()):
            self.wrong.append(len(self.left))


@pytest.mark.parametrize(
    "shape", ["straight", "through another link", "through its directory", "in a directory"]
)
@pytest.mark.parametrize("why", ["locked", "held back"])
def test_it_stays(
    place: Place, copies: Copies, monkeypatch: pytest.MonkeyPatch, why: str, shape: str
) -> None:
    linked = Linked(place, shape)

    def remove(work: Path) -> None:
        if why == "locked":
            copies.busy, copies.patience = TWO, 6
        else:
            changing(monkeypatch, CHANGING)[0] = 6
            put(work, CHANGING)
            execute(work, TWO, "INSERT INTO item VALUES (?)", CHANGING)
        linked.remove(work)

    act_and_look(
        place, [linked.begin, nothing, nothing, remove, *[linked.load] * LOAD], linked.look
    )
    assert linked.seen > 2
    assert linked.wrong == []
    assert not (place.store / OLD).exists()
