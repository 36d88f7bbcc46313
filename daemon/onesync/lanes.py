"""Work in turns over the directories that it lies in, for several workers.

The kernel lets creates and renames within one directory go one after the other. Who follows too
many others into the same one only waits there, while elsewhere there would be something to do.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from onesync.core.model import RelPath

T = TypeVar("T")


class Lanes(Generic[T]):
    """Items that wait, of which a worker takes one after the other. Safe in several threads."""

    def __init__(
        self, parts: Iterable[Iterable[T]], lane_of: Callable[[T], RelPath], most: int
    ) -> None:
        """Let ``parts`` take turns, and within each its lanes; a lane has no more than ``most``."""
        self._parts = deque(_by_lane(part, lane_of) for part in parts)
        self._most = most
        self._busy: Counter[RelPath] = Counter()
        self._guard = threading.Lock()

    def work(self, act: Callable[[T], object]) -> None:
        """Do one after the other, until the rest is what enough others are at.

        What ``act`` raises ends the work of all, and is raised.
        """
        while (found := self._take()) is not None:
            lane, item = found
            with self._ending_on_error():
                act(item)
            with self._guard:
                self._busy[lane] -= 1

    def end(self) -> None:
        """Let no more be taken."""
        with self._guard:
            self._parts.clear()

    @contextmanager
    def _ending_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.end()
            raise

    def _take(self) -> tuple[RelPath, T] | None:
        with self._guard:
            for _ in range(len(self._parts)):
                part = self._parts[0]
                self._parts.rotate(-1)
                for _ in range(len(part)):
                    lane, items = part[0]
                    part.rotate(-1)
                    if self._busy[lane] < self._most:
                        return lane, self._pop(lane, items, part)
        return None

    def _pop(self, lane: RelPath, items: deque[T], part: deque[tuple[RelPath, deque[T]]]) -> T:
        self._busy[lane] += 1
        item = items.popleft()
        if not items:
            part.pop()
        return item


def _by_lane(
    items: Iterable[T], lane_of: Callable[[T], RelPath]
) -> deque[tuple[RelPath, deque[T]]]:
    lanes: dict[RelPath, deque[T]] = {}
    for item in items:
        lanes.setdefault(lane_of(item), deque()).append(item)
    return deque(lanes.items())
