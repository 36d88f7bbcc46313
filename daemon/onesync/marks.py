"""The dirty set, shared by the watcher's thread, which marks, and the engine's, which takes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet

from onesync.core.clock import Clock
from onesync.core.dirty import DirtySet, Due
from onesync.core.guard import Told
from onesync.core.model import RelPath, lies_in
from onesync.core.ordering import database_of

log = logging.getLogger(__name__)


class Marks:
    """Safe in several threads. What was taken counts as pending until it is done or given back."""

    def __init__(
        self,
        dirty: DirtySet,
        clock: Clock,
        is_restless: Callable[[RelPath], bool],
        is_scratch: Callable[[RelPath], bool] = lambda _: False,
    ) -> None:
        """Guard ``dirty``; times are the clock's boottime.

        ``is_restless`` tells by the name which files never settle; ``databases`` adds to them.
        ``is_scratch`` tells what no database waits for while it is written.
        """
        self._dirty = dirty
        self._clock = clock
        self._is_restless = is_restless
        self._is_scratch = is_scratch
        self._guard = threading.Lock()
        self._taken: list[Due] = []
        self._told = Told()
        self.databases: set[RelPath] = set()
        self.arrived = threading.Event()
        self.overflows = 0

    def reconfigure(self, settle_seconds: float, max_delay_seconds: float) -> None:
        """Let paths settle, and wait at most, for so long from now on."""
        with self._guard:
            self._dirty.reconfigure(settle_seconds, max_delay_seconds)
        self.arrived.set()

    def changed(self, path: RelPath) -> None:
        """Mark one path, and the database that it is a sidecar of (watcher)."""
        self._mark(path, is_gone=False)

    def touched(self, paths: Mapping[RelPath, bool]) -> None:
        """Mark many at once, and databases as ``changed`` does; True: somebody wrote (watcher)."""
        # Names are judged first: whoever takes what is due would wait for that.
        judged = [(path, *self._judged(path), written) for path, written in paths.items()]
        with self._guard:
            now = self._clock.boottime()
            for path, restless, scratch, is_written in judged:
                self._put(path, now, restless, scratch)
                if is_written:
                    self._dirty.written(path)
        self.arrived.set()

    def _mark(self, path: RelPath, *, is_gone: bool) -> None:
        restless, scratch = self._judged(path)
        with self._guard:
            now = self._clock.boottime()
            self._put(path, now, restless, scratch and not is_gone)
        self.arrived.set()

    def _judged(self, path: RelPath) -> tuple[bool, bool]:
        """Return whether a path never settles, and whether it is scratch, as far as names tell."""
        restless = self._is_restless(path)
        return restless, not restless and self._is_scratch(path)

    def _put(self, path: RelPath, now: float, restless: bool, scratch: bool) -> None:
        base = database_of(path)
        if base is not None and base in self.databases:
            self._dirty.mark(base, now, restless=True)
        is_database = path in self.databases
        self._dirty.mark(path, now, restless or is_database, scratch and not is_database)

    def deleted(self, path: RelPath) -> None:
        """Mark one path whose absence, with all that was beneath, is explained (watcher)."""
        with self._guard:
            self._told.add(path)
        self._mark(path, is_gone=True)

    def take_deleted(self) -> set[RelPath]:
        """Return and forget the paths whose absence was explained since the last call."""
        with self._guard:
            return self._told.take()

    def moved(self, source: RelPath, target: RelPath) -> None:
        """Mark both ends of a rename that the kernel told as a pair (watcher)."""
        with self._guard:
            self._told.add(source)
            self._dirty.moved(source, target, self._clock.boottime())
        self.arrived.set()

    def moves(self) -> set[tuple[RelPath, RelPath]]:
        """Return (source, target) of the renames that nobody has looked at yet."""
        with self._guard:
            return self._dirty.moves()

    def tree_changed(self, path: RelPath) -> None:
        """Mark everything beneath ``path``."""
        with self._guard:
            self._dirty.mark_tree(path, self._clock.boottime())
        self.arrived.set()

    def overflowed(self) -> None:
        """The kernel dropped events: only a whole scan knows (watcher)."""
        self.overflows += 1
        log.warning("kernel events were dropped, everything is scanned")
        self.tree_changed(b"")

    def unwatched(self, path: RelPath, reason: str) -> None:
        """Directories cannot be watched: they are polled (watcher)."""
        log.warning("not all can be watched, polled", extra={"path": path, "reason": reason})
        self.tree_changed(path)

    def again(self, paths: Iterable[RelPath]) -> None:
        """Mark ``paths`` once more."""
        for path in paths:
            self.changed(path)

    def later(self, paths: AbstractSet[RelPath]) -> None:
        """Put back ``paths`` that a batch took and left to the next one: they are due at once."""
        if not paths:
            return
        with self._guard:
            self._dirty.leave(self._since(paths))
        self.arrived.set()

    def _since(self, paths: AbstractSet[RelPath]) -> dict[RelPath, float]:
        """Return since when ``paths`` are pending; those that a walk came upon are since now."""
        taken = (item for due in self._taken for item in due.since)
        return dict.fromkeys(paths, self._clock.boottime()) | {
            path: first for path, first in taken if path in paths
        }

    def untouched(self, paths: AbstractSet[RelPath]) -> None:
        """Put back data that a batch took and left to the next ones, as it saw them."""
        if not paths:
            return
        with self._guard:
            self._dirty.leave_untouched(self._since(paths))
        self.arrived.set()

    def backlog(self) -> set[RelPath]:
        """Return what was left to the next batches, and of which nobody told since."""
        with self._guard:
            return self._dirty.backlog()

    def growing(self, path: RelPath, rest_seconds: float) -> None:
        """Mark a growing file that was pushed as far as it came; let it rest before the next."""
        with self._guard:
            now = self._clock.boottime()
            self._dirty.mark(path, now, scratch=self._is_scratch(path))
            self._dirty.rest(path, now + rest_seconds)
        self.arrived.set()

    def take(
        self,
        everything: bool,
        *,
        resting: bool = False,
        backlog: int | None = 0,
        first: AbstractSet[RelPath] = frozenset(),
    ) -> Due:
        """Take what is due, or all there is; it stays pending until ``done`` or ``give_back``.

        Growing files that rest are taken only when they are asked for too, and of the backlog no
        more than so many (None: all), every second of them of the ``first``.
        """
        with self._guard:
            due = self._dirty.take(self._clock.boottime(), everything, resting, backlog, first)
            self._taken.append(due)
            return due

    def waited(self, left: AbstractSet[RelPath]) -> list[float]:
        """Return how many seconds each path that was taken, but ``left``, has been pending."""
        with self._guard:
            now = self._clock.boottime()
            taken = (item for due in self._taken for item in due.since)
            return [now - first for path, first in taken if path not in left]

    def done(self) -> None:
        """Forget what was taken: it is committed, or was marked again."""
        with self._guard:
            self._taken.clear()

    def give_back(self) -> None:
        """Put back what a failed batch took, with its age."""
        with self._guard:
            for due in self._taken:
                self._dirty.give_back(due, self._clock.boottime())
            self._taken.clear()

    def next_due(self) -> float | None:
        """Return the seconds until something is due, or None."""
        with self._guard:
            return self._dirty.next_due(self._clock.boottime())

    def oldest(self) -> float | None:
        """Return when (boottime) the oldest pending path was marked."""
        with self._guard:
            firsts = [first for due in self._taken for _, first in due.since]
            oldest = self._dirty.oldest()
            return min(firsts if oldest is None else [oldest, *firsts], default=None)

    def pending(self, limit: int) -> list[RelPath]:
        """Return up to ``limit`` pending paths and trees."""
        with self._guard:
            found = [path for due in self._taken for path, _ in due.since[:limit]]
            return (found + self._dirty.some(limit))[:limit]

    def is_pending(self, path: RelPath) -> bool:
        """Return whether ``path`` is marked, or taken by a batch that is not committed."""
        with self._guard:
            taken = any(path in due.paths or lies_in(path, due.trees) for due in self._taken)
            return taken or self._dirty.holds(path)

    def rests(self, path: RelPath) -> bool:
        """Return whether ``path`` is to rest before it is pushed again."""
        with self._guard:
            return self._dirty.rests(path)

    def is_worked_on(self, path: RelPath) -> bool:
        """Return whether ``path`` is scratch that changed and has not settled since."""
        with self._guard:
            return self._dirty.is_scratch(path)

    def __len__(self) -> int:
        with self._guard:
            return len(self._dirty) + sum(len(due.since) for due in self._taken)
