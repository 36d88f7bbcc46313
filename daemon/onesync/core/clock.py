"""The clock that the rest of onesync is given, so that tests can replace it."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """Two times and a way to wait."""

    def boottime(self) -> float:
        """Return seconds on CLOCK_BOOTTIME: never set back, counts suspend."""

    def wall_ns(self) -> int:
        """Return nanoseconds since 1970: for people and records, never for decisions."""

    def sleep(self, seconds: float) -> None:
        """Wait."""
