"""What the actors did and when: JSON lines with times on CLOCK_MONOTONIC, which processes share."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Record:
    """One deed.

    Attributes:
        time: seconds on CLOCK_MONOTONIC when it was done.
        deed: ``closed``, ``committed``, ``removed``, ``paced`` or ``probed``.
        path: relative to the root; undecodable bytes as lone surrogates.
        generation: of the content that stands there since.
        size: bytes that changed.
        took: seconds that it took, or that a database let it wait.
    """

    time: float
    deed: str
    path: str
    generation: int = 0
    size: int = 0
    took: float = 0.0


class Recorder:
    """Appends records to a file; any thread."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a")
        self._guard = threading.Lock()

    def write(
        self, deed: str, path: str, generation: int = 0, size: int = 0, took: float = 0.0
    ) -> None:
        """Record a deed that was done just now."""
        record = Record(time.monotonic(), deed, path, generation, size, took)
        with self._guard:
            self._file.write(json.dumps(asdict(record)) + "\n")
            self._file.flush()

    def close(self) -> None:
        self._file.close()


class Reader:
    """Reads the records that came since the last call."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0

    def more(self) -> list[Record]:
        """Return what was recorded meanwhile."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._position)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._position += len(whole)
        return [Record(**json.loads(line)) for line in whole.splitlines()]
