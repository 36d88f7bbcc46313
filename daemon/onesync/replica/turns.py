"""Whose turn it is: calls wait here while as many as may go to the mount are under way."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from onesync.core.allowance import Allowance, Begun, Outcome
from onesync.core.model import RelPath
from onesync.core.trouble import Reaction, judge
from onesync.errors import LocalError, MountHung

_TOO_MUCH = (Reaction.AGAIN, Reaction.SUSPECT, Reaction.WAIT)
_WAITED = (
    "The mount stopped answering while a call waited for its turn; nothing is lost, the call is"
    " made when the mount answers."
)


class Turns:
    """A turn for each call. Safe in several threads.

    Who has a turn never waits for another one, so each turn ends, whatever its owner or those who
    wait hold. Where one ends because the mount hangs, those who wait are sent away: where few may
    go, each would find the same out for itself, one after the other.
    """

    def __init__(self, most: int) -> None:
        """Begin with ``most`` at once, and never allow more."""
        self._allowance = Allowance(most)
        self._guard = threading.Lock()
        self._hangs = 0
        self._room = {is_small: threading.Condition(self._guard) for is_small in (False, True)}

    @property
    def limit(self) -> int:
        """How many small calls may be under way at once, just now."""
        return self._allowance.limit

    @contextmanager
    def turn(self, kind: str, directory: RelPath | None = None) -> Iterator[None]:
        """Wait for a turn, and have it; a small call says in which ``directory`` its path lies.

        Raises MountHung where the mount was found to hang meanwhile.
        """
        call = self._begin(kind, directory)
        try:
            yield
        except BaseException as error:
            self._end(call, _outcome(error), is_hung=isinstance(error, MountHung))
            raise
        self._end(call, Outcome.DONE)

    def _begin(self, kind: str, directory: RelPath | None) -> Begun:
        is_small = directory is not None
        with self._guard:
            hangs = self._hangs
            while self._allowance.room(is_small=is_small) <= 0:
                self._room[is_small].wait()
                if self._hangs != hangs:
                    raise MountHung(_WAITED)
            return self._allowance.begin(time.monotonic(), kind, directory)

    def _end(self, call: Begun, outcome: Outcome, *, is_hung: bool = False) -> None:
        with self._guard:
            self._allowance.end(time.monotonic(), call, outcome)
            if is_hung:
                self._hangs += 1
                for room in self._room.values():
                    room.notify_all()
                return
            # Not all: where few may go many wait, and each would wake up for each turn.
            for is_small, room in self._room.items():
                room.notify(max(0, self._allowance.room(is_small=is_small)))


def _outcome(error: BaseException) -> Outcome:
    if isinstance(error, LocalError) or not isinstance(error, OSError | MountHung):
        return Outcome.OTHER
    return Outcome.REFUSED if judge(error).reaction in _TOO_MUCH else Outcome.OTHER
