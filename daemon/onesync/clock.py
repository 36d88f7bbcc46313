"""The real clock."""

from __future__ import annotations

import time

from onesync.core.clock import Happening


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

    def wait(self, event: Happening, seconds: float) -> bool:
        """Wait until ``event`` happens, at most for ``seconds``; returns whether it did."""
        return event.wait(seconds)
