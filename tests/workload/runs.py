"""A streaming run: data file, marker, set's row, steps and run.db, the project's database."""

from __future__ import annotations

import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path

from tests.workload import databases
from tests.workload.stage import Stage

KEPT = 15
"""After so many items the oldest is taken back now and then."""


@dataclass(frozen=True, slots=True)
class Making:
    """What one item of a run is.

    Attributes:
        size: bytes of its data file.
        seconds: how long that is written.
        small: endings and sizes of its small files.
        every: seconds from item to item.
    """

    size: int
    seconds: float
    small: tuple[tuple[str, int], ...]
    every: float


@dataclass
class Run:
    """One run's folder; ``life`` counts how often it was begun anew under the same name."""

    stage: Stage
    name: str
    making: Making
    number: int
    life: int = 1
    guard: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.folder = self.stage.root / "Runs" / self.name
        self.extra = self.folder / "extra"
        self.set = self.folder / "items.sqlite"
        self.steps = self.folder / "logs" / "steps.sqlite"
        self.run_database = self.folder / "logs" / "run.db"
        self.project = self.stage.root / "project.sqlite"

    def make_folders(self) -> None:
        for name in ("extra/DONE", "logs", "tmp"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def path_of(self, item: int) -> Path:
        return self.extra / f"item_{item:06d}.mrc"

    def marker_of(self, item: int) -> Path:
        return self.extra / "DONE" / f"item_{item:06d}.TXT"

    def id_of(self, item: int) -> int:
        """Return the number of the item's row in the project's database."""
        return self.number * 1_000_000 + item

    def make_item(self, item: int) -> None:
        """Work in ``tmp``, copy to the final name, mark, and only then tell the databases."""
        scratch = self.folder / "tmp" / f"movie_{item:06d}"
        scratch.mkdir(exist_ok=True)
        (scratch / "movie.tif").symlink_to(self.stage.outside / f"movie_{item:06d}.tif")
        draft, final = scratch / "result.mrc", self.path_of(item)
        # The blocks name the path that they end up at.
        name = self.stage.name_of(final)
        self.stage.write_as(draft, name, self.making.size, self.life, self.making.seconds)
        self.stage.copy(draft, final, self.making.size, self.life)
        for ending, size in self.making.small:
            self.stage.write(final.with_suffix(ending), size, self.life)
        shutil.rmtree(scratch)
        self.stage.touch(self.marker_of(item), self.life)
        self._tell(item, final)

    def _tell(self, item: int, final: Path) -> None:
        name = self.stage.name_of(final)
        with self.guard:
            for database in (self.set, self.steps):
                self.stage.commit(database, databases.add(item, name, self.life), self.life)
            self.stage.commit(self.run_database, databases.nothing, self.life)
            row = databases.add(self.id_of(item), name, self.life)
            self.stage.commit(self.project, row)

    def take_back(self, item: int) -> None:
        """Undo an item: what promises it first, its file last."""
        with self.guard:
            self.stage.commit(self.project, databases.remove(self.id_of(item)))
            for database in (self.steps, self.set):
                self.stage.commit(database, databases.remove(item), self.life)
        for path in (self.marker_of(item), self.path_of(item)):
            path.unlink()
            self.stage.removed(path)

    def rebuild_steps(self) -> None:
        """Drop all steps and write them anew; for a moment everybody sees no table."""
        with self.guard:
            rows = databases.read_rows(self.steps)
            self.stage.commit(self.steps, databases.drop_all, self.life)
            self.stage.wait(0.05)
            self.stage.commit(self.steps, databases.fill(rows), self.life)

    def begin_anew(self) -> None:
        """Remove the whole folder and begin under the same name, as a restart does."""
        for item in databases.read_rows(self.set):
            self.stage.commit(self.project, databases.remove(self.id_of(item[0])))
        # What promises the files goes before them: else no order of copying could be right.
        for path in (self.run_database, self.steps, self.set):
            path.unlink()
            self.stage.removed(path)
        self.stage.clear(self.extra / "DONE")
        self.stage.clear(self.folder)
        self.life += 1
        self.make_folders()
