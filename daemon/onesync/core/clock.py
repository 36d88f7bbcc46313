"""The clock that the rest of onesync is given, so that tests can replace it."""

from __future__ import annotations

from typing import Protocol


class Happening(Protocol):
    """Something that may happen while somebody waits: a ``threading.Event``."""

    def is_set(self) -> bool:
        """Return whether it happened."""

    def wait(self, timeout: float | None = None) -> bool:
        """Wait in real time until it happens; returns whether it did."""


class Clock(Protocol):
    """Two times and two ways to wait."""

    def boottime(self) -> float:
        """Return seconds on CLOCK_BOOTTIME: never set back, counts suspend."""

    def wall_ns(self) -> int:
        """Return nanoseconds since 1970: for people and records, never for decisions."""

    def sleep(self, seconds: float) -> None:
        """Wait."""

    def wait(self, event: Happening, seconds: float) -> bool:
        """Wait until ``event`` happens, at most for ``seconds``; returns whether it did."""
