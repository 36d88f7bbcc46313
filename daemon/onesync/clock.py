"""The real clock."""

from __future__ import annotations

import time


class SystemClock:
    """This node's clock (``core.clock.Clock``)."""

    def boottime(self) -> float:
        """Return seconds on CLOCK_BOOTTIME."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wall_ns(self) -> int:
        """Return nanoseconds since 1970."""
        return time.time_ns()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)
