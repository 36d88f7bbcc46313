"""What the page tells of the last hours: in memory, bounded, and noted when others look anyway."""

from __future__ import annotations

import threading
from collections import deque

from onesync.core.clock import Clock
from onesync.core.page import HOURS, MINUTE, Done, Minute, Past
from onesync.core.view import Look

_BATCHES = 20
_RATE_SECONDS = 10.0
"""The rate is that of so many seconds at least: batches come in bursts."""
_RATE_SECONDS_AT_MOST = 60.0
"""The rate of more says nothing of now."""


class Recent:
    """Minutes and batches, the last ones of each. Nothing here wakes anybody."""

    def __init__(self, clock: Clock) -> None:
        """Remember from now on."""
        self._clock = clock
        self._since = clock.boottime()
        self._guard = threading.Lock()
        self._minutes: deque[Minute] = deque(maxlen=60 * HOURS)
        self._batches: deque[Done] = deque(maxlen=_BATCHES)
        self._looks: deque[Look] = deque(maxlen=2)
        self._moved = 0
        self._checkpoint = ""
        self._published = (0, 0)

    def looked(self, look: Look) -> None:
        """Note what a status document says of this minute. Any thread."""
        moved: int = look.document["moved_bytes"]
        oldest: float | None = look.document["oldest_unsynced_at"]
        with self._guard:
            # Of two looks at once the younger may be noted first.
            self._note(max(0, moved - self._moved), 0.0 if oldest is None else look.at - oldest)
            self._moved = max(moved, self._moved)
            if not self._looks or abs(look.at - self._looks[-1].at) >= _RATE_SECONDS:
                self._looks.append(_small(look))

    def committed(self, checkpoint: str) -> None:
        """Remember the newest checkpoint. Engine's thread."""
        self._checkpoint = checkpoint

    def pushed(self, files: int, size: int) -> None:
        """Remember what the batch under way published. Engine's thread."""
        self._published = files, size

    def synced(self, seconds: float, longest_wait: float) -> None:
        """Note how long the batch took, and the longest wait for its end. Engine's thread."""
        files, size = self._published
        with self._guard:
            now = self._clock.boottime()
            self._batches.append(Done(now, self._checkpoint, files, size, seconds))
            self._note(0, longest_wait)

    def past(self, look: Look) -> Past:
        """Return all of it, as of ``look``. Any thread."""
        with self._guard:
            minutes, batches = tuple(self._minutes), tuple(self._batches)
            earlier = self._looks[0] if self._looks else None
        if earlier is not None and look.at - earlier.at > _RATE_SECONDS_AT_MOST:
            earlier = None
        return Past(self._clock.boottime(), self._since, minutes, batches, earlier)

    def _note(self, size: int, lag: float) -> None:
        number = int(self._clock.boottime() // MINUTE)
        if self._minutes and self._minutes[-1].number == number:
            last = self._minutes.pop()
            size, lag = last.size + size, max(last.lag, lag)
        if size or lag > 0:
            self._minutes.append(Minute(number, size, max(0.0, lag)))


def _small(look: Look) -> Look:
    """Return the look without what may be long: the rate asks for none of it."""
    return Look({**look.document, "pending": [], "problems": []}, look.at, look.is_live)
