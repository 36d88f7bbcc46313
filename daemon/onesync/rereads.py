"""Reads again what was written although its stamp is the one that was pushed.

The kernel dates a file once for all that is written within a tick of its clock, and once for all
that is stored into a mapped page before that page goes to the disk. What is pushed in between has
the stamp of what comes after it: only the kernel's word that somebody wrote, or closed what he
could write to, tells that there may be more. Such a file is read once, by a thread of its own, for
it may be large.
Engine's thread only, but for the reading.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from onesync.core.model import RelPath, join
from onesync.local import digest_local

_PACE = 4.0
_REST_AT_MOST = 30.0
"""A file that is closed again and again rests some times as long as its last reading took."""


@dataclass(slots=True)
class Rereads:
    """The files beneath the absolute path ``root`` that are read, one after the other.

    Attributes:
        wake: called, by the thread that reads, when a file was read.
    """

    root: bytes
    wake: Callable[[], None]
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "rereads"))
    _asked: list[tuple[RelPath, Future[str | None]]] = field(default_factory=list)
    _rests: dict[RelPath, float] = field(default_factory=dict)
    _hurry: threading.Event = field(default_factory=threading.Event)

    def ask(self, path: RelPath) -> None:
        """Have ``path`` read, unless its turn is still to come."""
        if any(p == path and not (f.running() or f.done()) for p, f in self._asked):
            return
        reading = self._pool.submit(self._read, path)
        self._asked.append((path, reading))
        reading.add_done_callback(lambda _: self.wake())

    def pending(self) -> set[RelPath]:
        """Return what was asked for and not told of by ``found`` yet."""
        return {path for path, _ in self._asked}

    def found(self, *, wait: bool) -> dict[RelPath, str]:
        """Return and forget the digests of what was read by now; ``wait`` for all of them.

        A file that went or changed while it was read is left out: of that the kernel tells. One
        that cannot be read has none, "": to push it meets the same error, and that is told.
        """
        if wait:
            self._hurry.set()
        over = [(path, reading) for path, reading in self._asked if wait or reading.done()]
        self._asked = [item for item in self._asked if item not in over]
        found = {path: digest for path, reading in over if (digest := reading.result()) is not None}
        self._hurry.clear()
        return found

    def _read(self, path: RelPath) -> str | None:
        now = time.monotonic()
        self._rests = {path: until for path, until in self._rests.items() if until > now}
        self._hurry.wait(self._rests.get(path, now) - now)
        began = time.monotonic()
        try:
            read = digest_local(join(self.root, path))
        except (FileNotFoundError, NotADirectoryError, InterruptedError):
            return None
        except OSError:
            return ""
        now = time.monotonic()
        self._rests[path] = now + min(_PACE * (now - began), _REST_AT_MOST)
        return read.digest if read.steady else None
