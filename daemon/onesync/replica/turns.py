"""How many calls go to the mount at once: fewer when it refuses, one more with each good round."""

from __future__ import annotations

import threading
from types import TracebackType

from onesync.core.trouble import Reaction, judge
from onesync.errors import LocalError, MountHung

_LEAST = 4
_TOO_MUCH = (Reaction.AGAIN, Reaction.SUSPECT, Reaction.WAIT)


class Turns:
    """A context manager for each call. Safe in several threads.

    A refusal halves the number, once in as many calls as were allowed then: those that were on
    their way with it say nothing new.
    """

    def __init__(self, most: int) -> None:
        """Begin with ``most`` at once, and never allow more."""
        self._most = most
        self.limit = most
        self._going = 0
        self._good = 0
        self._ended_since = most
        self._changed = threading.Condition()

    def __enter__(self) -> None:
        with self._changed:
            while self._going >= self.limit:
                self._changed.wait()
            self._going += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._changed:
            self._going -= 1
            self._ended_since += 1
            if _is_refusal(error):
                self._halve()
            else:
                self._take_good()
            self._changed.notify_all()

    def _halve(self) -> None:
        self._good = 0
        if self._ended_since > self.limit:
            self._ended_since = 0
            self.limit = max(min(_LEAST, self._most), self.limit // 2)

    def _take_good(self) -> None:
        self._good += 1
        if self._good >= self.limit:
            self._good = 0
            self.limit = min(self._most, self.limit + 1)


def _is_refusal(error: BaseException | None) -> bool:
    if isinstance(error, LocalError) or not isinstance(error, OSError | MountHung):
        return False
    return judge(error).reaction in _TOO_MUCH
