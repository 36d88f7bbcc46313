"""What committed batches left behind goes beside the next ones, while their intents stand.

A directory of thousands of files takes long on a slow mount. Only those wait for it who need the
same names, and who would be one too many.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from collections.abc import Set as AbstractSet
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from onesync.core.model import Problem, RelPath
from onesync.core.plan import Plan
from onesync.leftovers import Leftovers

_MOST = 8
"""What so many batches left behind goes at the same time; whoever settles has as many intents."""


class Tidying:
    """Used by the engine's thread; works with several of its own."""

    def __init__(
        self,
        lanes: int,
        note: Callable[[Problem], None],
        miss: Callable[[Collection[RelPath]], None],
        tell: Callable[[], None],
    ) -> None:
        """Begin with nothing.

        Args:
            lanes: of one batch so many files are removed at once.
            note: told, by the engine's thread, what was found of others where something went.
            miss: told, by the engine's thread, what was gone already.
            tell: called, by any thread, when there is something to be collected.
        """
        self._lanes = lanes
        self._note = note
        self._miss = miss
        self._tell = tell
        self._going: dict[Future[None], Leftovers] = {}
        self._unlinked: Future[None] | None = None
        self._batches = ThreadPoolExecutor(_MOST, "tidy")
        self._pool = ThreadPoolExecutor(2 * lanes, "remove")

    @property
    def going(self) -> Collection[Future[None]]:
        """What was begun and not collected, the oldest first."""
        return self._going.keys()

    def begin(self, leftovers: Leftovers) -> None:
        """Let ``leftovers`` go. Waits where they are too many, and raises then as ``collect``."""
        if len(self._going) >= _MOST:
            wait(self._going, return_when=FIRST_COMPLETED)
            self.collect()
        before, self._unlinked = self._unlinked, Future()
        task = self._batches.submit(self._tidy, leftovers, before, self._unlinked)
        self._going[task] = leftovers
        task.add_done_callback(lambda done: self._ended(leftovers, done))

    def collect(self) -> None:
        """Take note of what has ended; raises what came in the way of any, when all have ended."""
        self._end([task for task in self._going if task.done()])

    def leaving(self) -> set[RelPath]:
        """Return the names that are still taken by what is to go."""
        return {path for leftovers in self._going.values() for path in leftovers.leaving()}

    def make_way(self, plan: Plan, left: AbstractSet[RelPath]) -> None:
        """Wait for those whose names ``plan`` needs, but for what it ``left``; as ``collect``."""
        going = self._going.items()
        self._end([task for task, found in going if found.stands_in_the_way(plan, left)])

    def end_travels(self) -> None:
        """Wait for those whose intents go with the end of a travel; raises as ``collect`` does."""
        self._end([task for task, left in self._going.items() if left.begins_travel()])

    def end(self) -> None:
        """Wait for all; raises as ``collect`` does."""
        self._end(list(self._going))

    def shut_down(self) -> None:
        """Wait for all, without a word."""
        self._batches.shutdown()
        self._pool.shutdown()

    def _end(self, tasks: list[Future[None]]) -> None:
        wait(tasks)
        if any(task.exception() is not None for task in tasks):
            tasks = list(self._going)  # all are settled together
            wait(tasks)
            self._unlinked = None
        errors = [task.exception() for task in tasks]
        for task in tasks:
            leftovers = self._going.pop(task)
            self._miss(leftovers.missing)
            for problem in leftovers.problems:
                self._note(problem)
        for error in errors:
            if error is not None:
                raise error

    def _tidy(
        self, leftovers: Leftovers, before: Future[None] | None, unlinked: Future[None]
    ) -> None:
        try:
            if before is not None:
                before.result()  # its markers may promise what is unlinked here
            leftovers.unlink(self._pool, self._lanes)
        except BaseException as error:
            unlinked.set_exception(error)
            raise
        unlinked.set_result(None)
        leftovers.take_out(self._pool, self._lanes)

    def _ended(self, leftovers: Leftovers, task: Future[None]) -> None:
        if task.exception() is not None or leftovers.problems or leftovers.missing:
            self._tell()
