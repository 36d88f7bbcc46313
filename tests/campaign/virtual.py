"""Virtual time: it moves only when the engine waits, so an hour of backing off costs nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from onesync.core.clock import Happening

_LOOK_SECONDS = 0.002


@dataclass
class _Parked:
    due: float
    released: threading.Event = field(default_factory=threading.Event)


class VirtualClock:
    """The clock of one life (``core.clock.Clock``).

    The thread that makes it drives time. The beat's thread, whenever it waits, is parked until time
    has come to where it is due; the driver then stands still until it is parked again. So the two
    take turns, and nothing depends on the machine's speed.
    """

    def __init__(self, begin: float, told: Callable[[Happening, float], None]) -> None:
        """Begin at ``begin``; ``told`` is called before each of the driver's waits for an event."""
        self.now = begin
        self._told = told
        self._driver = threading.get_ident()
        self._parked: dict[threading.Thread, _Parked] = {}
        self._guard = threading.Lock()
        self._others = set(threading.enumerate())
        self._ended = False

    def end(self) -> None:
        """Let the process end: its beat, wherever it waits, goes no further."""
        self._ended = True
        for thread in self._beats():
            thread.join()

    def boottime(self) -> float:
        return self.now

    def wall_ns(self) -> int:
        return int((1_700_000_000 + self.now) * 1e9)

    def sleep(self, seconds: float) -> None:
        if threading.get_ident() == self._driver:
            self._advance(self.now + seconds)
        else:
            self._park(threading.Event(), seconds)

    def wait(self, event: Happening, seconds: float) -> bool:
        if threading.get_ident() != self._driver:
            return self._park(event, seconds)
        if not event.is_set():
            self._told(event, seconds)
        if not event.is_set():
            self._advance(self.now + seconds)
        return event.is_set()

    def _park(self, event: Happening, seconds: float) -> bool:
        parked = _Parked(self.now + seconds)
        with self._guard:
            self._parked[threading.current_thread()] = parked
        while not (self._ended or parked.released.is_set() or event.wait(_LOOK_SECONDS)):
            pass
        with self._guard:
            self._parked.pop(threading.current_thread(), None)
        if self._ended:
            raise SystemExit
        return event.is_set()

    def _advance(self, until: float) -> None:
        while True:
            self._stand_still()
            with self._guard:
                first = min(self._parked.values(), key=lambda p: p.due, default=None)
                if first is None or first.due > until:
                    break
                self.now = max(self.now, first.due)
                for thread in [t for t, p in self._parked.items() if p is first]:
                    del self._parked[thread]
            first.released.set()
        self.now = until

    def _stand_still(self) -> None:
        """Wait until every beat is parked or has ended."""
        for thread in self._beats():
            while thread.is_alive() and thread not in self._parked:
                thread.join(_LOOK_SECONDS)

    def _beats(self) -> list[threading.Thread]:
        found = set(threading.enumerate()) - self._others
        return [thread for thread in found if thread.name == "beat"]
