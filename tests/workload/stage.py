"""Where the actors play: places, clock, records, and the few ways in which they write."""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.workload import content, databases
from tests.workload.record import Recorder

PIECE = 256 * 1024


@dataclass
class Stage:
    """A session; used by all actors.

    Attributes:
        root: the project.
        outside: movies and scratch, which no copy of the project holds.
        recorder: takes what was done.
        seconds: how long the session is.
        factor: how many times faster than in reality everything happens.
        seed: of all chance.
        many: how many files are deleted at once; a fourth of it is renamed or begun anew.
        stopped: set when the actors are to end.
    """

    root: Path
    outside: Path
    recorder: Recorder
    seconds: float
    factor: float = 1.0
    seed: int = 0
    many: int = 1000
    stopped: threading.Event = field(default_factory=threading.Event)
    began: float = field(default_factory=time.monotonic)

    def chance(self, name: str) -> random.Random:
        """Return the chance of one actor, the same with the same seed."""
        return random.Random(f"{self.seed} {name}")

    def wait(self, seconds: float) -> bool:
        """Wait as long as ``seconds`` of reality take; returns whether to go on."""
        return not self.stopped.wait(seconds / self.factor)

    def wait_until(self, part: float) -> bool:
        """Wait until this part of the session is over; returns whether to go on."""
        rest = self.began + part * self.seconds - time.monotonic()
        return not self.stopped.wait(max(0.0, rest))

    def name_of(self, path: Path) -> str:
        return os.path.relpath(path, self.root)

    def closed(self, path: Path, generation: int, size: int) -> None:
        """Record that a file has its content since now."""
        self.recorder.write("closed", self.name_of(path), generation, size)

    def removed(self, path: Path) -> None:
        self.recorder.write("removed", self.name_of(path))

    def write(self, path: Path, size: int, generation: int = 1, seconds: float = 0.0) -> None:
        """Write a file in place, in pieces, as long as ``seconds`` of reality."""
        self.write_as(path, self.name_of(path), size, generation, seconds)
        self.closed(path, generation, size)

    def write_as(
        self, path: Path, name: str, size: int, generation: int, seconds: float = 0.0
    ) -> None:
        """Write what the path ``name`` will hold, and record nothing."""
        steps = max(1, size // PIECE)
        with path.open("wb") as file:
            for piece in content.pieces(name, generation, size, PIECE):
                file.write(piece)
                file.flush()
                if seconds:
                    self.wait(seconds / steps)

    def copy(self, source: Path, target: Path, size: int, generation: int) -> None:
        """Copy to the final name in place, as Python's ``shutil.copy`` does."""
        shutil.copy(source, target)
        self.closed(target, generation, size)

    def touch(self, path: Path, generation: int = 1) -> None:
        """Make an empty marker."""
        path.touch()
        self.closed(path, generation, 0)

    def write_text(self, path: Path, lines: Iterable[str], how: str = "w") -> None:
        """Write or append lines."""
        with path.open(how) as file:
            file.writelines(line + "\n" for line in lines)

    def commit(self, path: Path, change: databases.Change, life: int = 1) -> None:
        """Change a database in a transaction of its own."""
        counted, waited = databases.commit(path, change, life)
        self.committed(path, counted, waited, life)

    def committed(self, path: Path, counted: int, waited: float, life: int = 1) -> None:
        # A transaction changes three or four pages; it is their bytes that count as changed.
        self.recorder.write(
            "committed", self.name_of(path), (life << 32) + counted, 4 * content.BLOCK, waited
        )

    def clear(self, path: Path) -> None:
        """Remove a tree at full speed."""
        shutil.rmtree(path, ignore_errors=True)
        self.removed(path)


def free(path: Path) -> None:
    """Let no file stand there."""
    path.unlink(missing_ok=True)
