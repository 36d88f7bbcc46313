"""A rate that the bytes of several processes keep to together.

When the next byte may go stands in memory that the processes share, behind a lock that the kernel
takes from whoever dies. Nobody has a share of his own: what one does not use another one may.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import threading
import time
from collections.abc import Callable

_NEXT = struct.Struct("=q")
_ALIVE_SECONDS = 1.0


def shared_place() -> int:
    """Return a descriptor of memory for ``Pace``, which child processes are to inherit."""
    place = os.memfd_create("onesync-pace")
    os.ftruncate(place, _NEXT.size)
    return place


class Pace:
    """Safe in several threads and processes. Times are nanoseconds on CLOCK_MONOTONIC."""

    def __init__(self, place: int, bytes_per_second: int) -> None:
        """Keep to ``bytes_per_second``, all who have the shared ``place`` together."""
        self._place = place
        self._next = mmap.mmap(place, _NEXT.size)
        self._rate = bytes_per_second
        self._guard = threading.Lock()

    def sent(self, size: int, alive: Callable[[], None]) -> None:
        """Wait as long as ``size`` bytes that were sent just now may take.

        ``alive`` is called every second meanwhile.
        """
        until = self._booked(size) / 1e9
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, _ALIVE_SECONDS))
            alive()

    def _booked(self, size: int) -> int:
        """Return when the rate allows what comes after ``size`` more bytes."""
        with self._guard:
            fcntl.lockf(self._place, fcntl.LOCK_EX)
            try:
                free: int = _NEXT.unpack(self._next[:])[0]
                free = max(free, time.monotonic_ns()) + size * 10**9 // self._rate
                self._next[:] = _NEXT.pack(free)
            finally:
                fcntl.lockf(self._place, fcntl.LOCK_UN)
        return free
