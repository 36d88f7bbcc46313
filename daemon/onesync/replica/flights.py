"""Which files are on their way: what a thread's calls are for, as long as it says so."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from onesync.core.model import RelPath


@dataclass(slots=True)
class Flight:
    """A file on its way.

    Attributes:
        path: of the file.
        size: its bytes, as far as they are known.
        is_fetched: whether it comes from OneData.
        began: when, on the monotonic clock.
        moved: bytes that were read, written or compared so far.
    """

    path: RelPath
    size: int
    is_fetched: bool = False
    began: float = field(default_factory=time.monotonic)
    moved: int = 0


_mine = threading.local()


@contextmanager
def aloft(path: RelPath, size: int, *, is_fetched: bool = False) -> Iterator[None]:
    """Say that this thread's calls are for one file."""
    _mine.flight = Flight(path, size, is_fetched)
    try:
        yield
    finally:
        _mine.flight = None


def of_this_thread() -> Flight | None:
    """Return the file that this thread's calls are for."""
    flight: Flight | None = getattr(_mine, "flight", None)
    return flight
