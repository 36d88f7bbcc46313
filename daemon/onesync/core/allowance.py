"""How many calls may be on the mount at once: fewer where it refuses, or where they do not pay.

Pure: every event comes with its time. Two numbers, of which the smaller one counts. ``_Taken`` is
what the mount takes: half of it after a refusal, one more with each round that is answered.
``_Paying`` is what pays, and counts for *small* calls alone, which are a few round trips each. That
a call takes long tells nothing: a mount that is far away needs all the more of them at once. So it
is tried: for a short while half as many are let go, and where they then take half as long each, as
much is done, and the rest of them only waited for each other. More are tried in the same way.

A large copy is neither measured nor held back: its time is its bytes' time.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from onesync.core.model import RelPath

LEAST = 4
"""So many go even to a mount that refuses everything: a loss must be noticed to be over."""
_SLOW_SECONDS, _STILL_SLOW_SECONDS = 0.2, 0.05
"""A mount that answers sooner with all that may go is not crowded, whatever it could do alone; the
second counts where fewer were found to do as much. Where this node's processors are what is short,
fewer calls do as much too: so the first is far from what a sound mount takes."""
_FEWEST_SEEN = 48
_ROUNDS_SEEN = 3
_AS_MUCH, _MORE = 0.9, 1.1
"""What fewer calls must still do, and what more must do, of what was done before the trial."""
_FIRST_FEWER, _LAST_FEWER = 20, 160
_FIRST_MORE, _LAST_MORE = 1, 16
"""Measurements between two trials, twice as many after each that failed. On a mount that takes all,
a trial of fewer costs two rounds in sixty at first, in five hundred later."""


class Outcome(Enum):
    """How a call ended."""

    DONE = auto()
    REFUSED = auto()
    OTHER = auto()
    """An answer, but not that of a call that did its work: its time tells nothing."""


@dataclass(frozen=True, slots=True)
class Begun:
    """A call that is under way.

    Attributes:
        kind: what calls of about the same work have in common.
        directory: where its path lies; None of a call that is not small.
        at: when it began, in monotonic seconds.
        limit: how many might go, where as many as that did and did not wait for each other in the
            kernel; else 0, and its time tells nothing.
        crowd: how many small calls were under way, this one among them.
    """

    kind: str
    directory: RelPath | None
    at: float
    limit: int
    crowd: int


class Allowance:
    """Told of each call that begins and ends, it answers how many may. One thread at a time."""

    def __init__(self, most: int) -> None:
        """Begin with ``most`` at once, and never allow more."""
        self._taken = _Taken(most)
        self._paying = _Paying(most)
        self._going = 0
        self._small = 0
        self._directories: dict[RelPath, int] = {}

    @property
    def limit(self) -> int:
        """How many small calls may be under way at once."""
        return min(self._taken.limit, self._paying.limit)

    def room(self, *, is_small: bool) -> int:
        """Return how many more may begin; none where it is not positive."""
        room = self._taken.limit - self._going
        return min(room, self._paying.limit - self._small) if is_small else room

    def begin(self, now: float, kind: str, directory: RelPath | None = None) -> Begun:
        """Begin a call; a small one says in which ``directory`` its path lies."""
        self._going += 1
        if directory is None:
            return Begun(kind, None, now, 0, 0)
        self._small += 1
        self._directories[directory] = self._directories.get(directory, 0) + 1
        limit = self._paying.limit if self._is_telling() else 0
        return Begun(kind, directory, now, limit, self._small)

    def end(self, now: float, call: Begun, outcome: Outcome) -> None:
        """End a call that began."""
        self._going -= 1
        self._taken.ended(is_refusal=outcome is Outcome.REFUSED)
        if call.directory is None:
            return
        self._small -= 1
        left = self._directories.pop(call.directory) - 1
        if left:
            self._directories[call.directory] = left
        if outcome is Outcome.DONE and call.limit == self._paying.limit:
            self._paying.add(call.kind, now - call.at, call.crowd)

    def _is_telling(self) -> bool:
        """Whether what a call takes that begins now is due to how many may go.

        Not where fewer do, nor while the mount refuses. The kernel makes names in one directory
        one after the other: where more than two calls share one they wait there, not on the mount.
        """
        is_full = 4 * self._small >= 3 * self._paying.limit
        is_spread = 2 * len(self._directories) >= self._small
        return is_full and is_spread and self._taken.limit >= self._paying.limit


class _Taken:
    """What the mount takes.

    A refusal halves the number, once in as many calls as were allowed then: those that were on
    their way with it say nothing new.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.limit = most
        self._good = 0
        self._ended_since = most

    def ended(self, *, is_refusal: bool) -> None:
        self._ended_since += 1
        if is_refusal:
            self._halve()
        else:
            self._take_good()

    def _halve(self) -> None:
        self._good = 0
        if self._ended_since > self.limit:
            self._ended_since = 0
            self.limit = max(min(LEAST, self._most), self.limit // 2)

    def _take_good(self) -> None:
        self._good += 1
        if self._good >= self.limit:
            self._good = 0
            self.limit = min(self._most, self.limit + 1)


class _Seen:
    """A measurement: what calls took that began while as many as allowed were under way."""

    def __init__(self) -> None:
        self.calls = 0
        self.seconds = 0.0
        self._crowd = 0
        self._kinds: dict[str, tuple[int, float]] = {}

    def add(self, kind: str, seconds: float, crowd: int) -> None:
        self.calls += 1
        self.seconds += seconds
        self._crowd += crowd
        calls, sum_of_them = self._kinds.get(kind, (0, 0.0))
        self._kinds[kind] = calls + 1, sum_of_them + seconds

    def speed_over(self, other: _Seen) -> float | None:
        """Return how much more was done in the same time than in ``other``.

        None where they have too little in common. A crowd's speed is its number by what each takes
        (Little's law), whatever was done before, between and after; kinds are compared each for
        itself, for another mix of them is neither slower nor faster.
        """
        common = self._kinds.keys() & other._kinds.keys()
        shared = sum(self._kinds[kind][0] + other._kinds[kind][0] for kind in common)
        if 2 * shared < self.calls + other.calls:
            return None
        ours = theirs = 0.0
        for kind in common:
            (calls, seconds), (their_calls, their_seconds) = self._kinds[kind], other._kinds[kind]
            ours += (calls + their_calls) * seconds / calls
            theirs += (calls + their_calls) * their_seconds / their_calls
        crowds = (self._crowd / self.calls) / (other._crowd / other.calls)
        return crowds * theirs / max(ours, 1e-9)


class _Patience:
    """Measurements to wait for before the next trial."""

    def __init__(self, first: int, last: int) -> None:
        self._first, self._last = first, last
        self._span = self._left = first

    def is_over(self) -> bool:
        """Count a measurement, and say whether it was the last one to wait for."""
        self._left -= 1
        return self._left < 0

    def end(self) -> None:
        self._left = 0

    def begin(self) -> None:
        self._span = self._left = self._first

    def double(self) -> None:
        self._span = self._left = min(2 * self._span, self._last)


class _Paying:
    """What pays."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.limit = most
        self._settled = most
        self._seen = self._before = _Seen()
        self._fewer = _Patience(_FIRST_FEWER, _LAST_FEWER)
        self._more = _Patience(_FIRST_MORE, _LAST_MORE)
        self._is_confirmed = False

    def add(self, kind: str, seconds: float, crowd: int) -> None:
        """Take what a call took that began while ``limit`` was reached."""
        self._seen.add(kind, seconds, crowd)
        if self._seen.calls < max(_FEWEST_SEEN, _ROUNDS_SEEN * self.limit):
            return
        seen, self._seen = self._seen, _Seen()
        if self.limit == self._settled:
            self._before = seen
            self._try()
        else:
            self._judge(seen.speed_over(self._before))

    def _try(self) -> None:
        slow = _SLOW_SECONDS if self._settled == self._most else _STILL_SLOW_SECONDS
        is_slow = self._before.seconds >= slow * self._before.calls
        if is_slow and self._settled >= 2 * LEAST and self._fewer.is_over():
            self.limit = self._settled // 2
            return
        self._is_confirmed = False
        if self._settled < self._most and self._more.is_over():
            self.limit = min(self._most, 2 * self._settled)

    def _judge(self, speed: float | None) -> None:
        tried, self.limit = self.limit, self._settled
        if tried > self._settled:
            if speed is not None and speed >= _MORE:
                self._settle(tried, self._more, self._fewer)
            else:
                self._more.double()
        elif speed is None or speed < _AS_MUCH:
            self._is_confirmed = False
            self._fewer.double()
        elif not self._is_confirmed:
            self._is_confirmed = True  # once more: the mount may have had a bad moment before
            self._fewer.end()
        else:
            self._is_confirmed = False
            self._settle(tried, self._fewer, self._more)

    def _settle(self, tried: int, again: _Patience, other: _Patience) -> None:
        """Stay there, and try the next step at once."""
        self.limit = self._settled = tried
        again.end()
        other.begin()
