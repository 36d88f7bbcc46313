"""The dirty set: paths that may differ from the index. It holds paths, never events.

All times are seconds on one monotonic clock that the caller reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import chain, islice, zip_longest

from onesync.core.model import RelPath, lies_in
from onesync.core.ordering import spread

LIMIT = 200_000


@dataclass(frozen=True, slots=True)
class Due:
    """What a batch takes.

    Attributes:
        paths: each to be looked at alone.
        trees: directories to be scanned with all that is beneath.
        moves: (source, target) pairs that the kernel told as one rename.
        since: when each path or tree was first marked, so that it can be given back.
        written: the files among them of which the kernel told that somebody wrote.
    """

    paths: frozenset[RelPath]
    trees: frozenset[RelPath]
    moves: tuple[tuple[RelPath, RelPath], ...]
    since: tuple[tuple[RelPath, float], ...]
    written: frozenset[RelPath] = frozenset()


@dataclass(slots=True)
class _Mark:
    first: float
    last: float
    restless: bool = False
    scratch: bool = False
    left: bool = False


class DirtySet:
    """See the module. Not safe in several threads; its owner guards it."""

    def __init__(self, settle_seconds: float, max_delay_seconds: float, limit: int = LIMIT) -> None:
        """Paths are due after ``settle_seconds`` of quiet, at most ``max_delay_seconds`` late."""
        self._settle = settle_seconds
        self._max_delay = max_delay_seconds
        self._limit = limit
        self._paths: dict[RelPath, _Mark] = {}
        self._trees: dict[RelPath, float] = {}
        self._given_back: set[RelPath] = set()
        self._moves: dict[tuple[RelPath, RelPath], None] = {}
        self._resting: dict[RelPath, float] = {}
        self._written: set[RelPath] = set()
        self._backlog: dict[RelPath, float] = {}

    def reconfigure(self, settle_seconds: float, max_delay_seconds: float) -> None:
        """Change the times of all paths, also of those that are marked."""
        self._settle = settle_seconds
        self._max_delay = max_delay_seconds

    def __len__(self) -> int:
        return len(self._paths) + len(self._trees) + len(self._backlog)

    def mark(
        self, path: RelPath, now: float, restless: bool = False, scratch: bool = False
    ) -> None:
        """Mark one path. Beyond the limit the whole tree is marked instead.

        A ``restless`` path (a live database) never settles: it is due after the settle time from
        its first mark. One that is ``scratch``, unless it was marked otherwise since, is not taken
        with everything else before it is due.
        """
        mark = self._paths.get(path)
        if mark is not None:
            mark.last = now
            mark.restless |= restless
            mark.scratch &= scratch
        elif len(self._paths) >= self._limit:
            self.mark_tree(b"", now)
        elif b"" not in self._trees:
            first = self._backlog.pop(path, None)
            if first is None:
                self._paths[path] = _Mark(now, now, restless, scratch)
            else:  # it was due, and no scratch or not any more
                self._paths[path] = _Mark(first, now, left=True)

    def written(self, path: RelPath) -> None:
        """Remember that somebody wrote into the file at ``path``, which is marked."""
        if len(self._written) < self._limit:
            self._written.add(path)

    def mark_tree(self, path: RelPath, now: float) -> None:
        """Mark everything beneath ``path``. The whole tree subsumes all other marks.

        Others subsume nothing: looking for marks beneath each new directory would cost far more
        than looking at a path twice.
        """
        if b"" in self._trees:
            return
        if path and len(self._trees) < self._limit:
            self._trees.setdefault(path, now)
            return
        oldest = self.oldest()
        self._paths.clear()
        self._backlog.clear()
        self._given_back.clear()
        self._trees = {b"": now if oldest is None else min(oldest, now)}

    def moved(self, source: RelPath, target: RelPath, now: float) -> None:
        """Mark both ends of a rename and remember that they are one."""
        self.mark(source, now)
        self.mark(target, now)
        self._moves[source, target] = None

    def moves(self) -> set[tuple[RelPath, RelPath]]:
        """Return the renames of which no end has been taken since they were marked."""
        return set(self._moves)

    def rest(self, path: RelPath, until: float) -> None:
        """Let ``path`` be due no earlier than ``until``."""
        self._resting[path] = until

    def take(
        self,
        now: float,
        everything: bool = False,
        resting: bool = True,
        backlog: int | None = None,
        first: AbstractSet[RelPath] = frozenset(),
    ) -> Due:
        """Remove and return what is due; with ``everything`` all there is.

        Without ``resting`` what still rests stays, and so does scratch that is not due. Both ends
        of a rename are due when one of them is. Of the backlog no more than so many are taken
        (None: all), every second of them of the ``first``.
        """
        if resting:
            self._resting.clear()
        else:
            self._resting = {p: until for p, until in self._resting.items() if until > now}
        paths = {
            p: m
            for p, m in self._paths.items()
            if p not in self._resting
            and ((everything and (resting or not m.scratch)) or self._due(p, m) <= now)
        }
        self._join_ends(paths)
        trees = {p: f for p, f in self._trees.items() if everything or self._tree_due(p, f) <= now}
        for path in trees:
            del self._trees[path]
        self._given_back -= trees.keys()
        for path in paths:
            del self._paths[path]
        moves = tuple(
            pair
            for pair in self._moves
            if pair[0] not in self._paths and pair[1] not in self._paths
        )
        for pair in moves:
            del self._moves[pair]
        since = [(p, m.first) for p, m in paths.items()] + list(trees.items())
        in_turns = self._in_turns(first) if backlog != 0 else iter(())
        left = {p: self._backlog.pop(p) for p in list(islice(in_turns, backlog))}
        since += left.items()
        written = frozenset(p for p in self._written if p not in self._paths)
        self._written -= written
        return Due(frozenset(chain(paths, left)), frozenset(trees), moves, tuple(since), written)

    def _join_ends(self, paths: dict[RelPath, _Mark]) -> None:
        """Add to the ``paths`` that are taken the other ends of their renames.

        What is at the one end now, or nothing, must not replace what only the other one tells of.
        """
        ends: dict[RelPath, list[RelPath]] = {}
        for one, other in self._moves:
            ends.setdefault(one, []).append(other)
            ends.setdefault(other, []).append(one)
        new = paths.keys() & ends.keys()
        while new:
            others = {end for path in new for end in ends[path]}
            new = {end for end in others if end in self._paths and end not in paths}
            paths |= {path: self._paths[path] for path in new}
            for path in new:
                self._resting.pop(path, None)  # it is another file than the one that rests

    def _in_turns(self, first: AbstractSet[RelPath]) -> Iterator[RelPath]:
        """Yield the backlog in turns over its directories, and over those of the ``first``."""
        some = spread((p for p in self._backlog if p in first), _itself)
        rest = spread((p for p in self._backlog if p not in first), _itself)
        return (p for pair in zip_longest(some, rest) for p in pair if p is not None)

    def give_back(self, due: Due, now: float) -> None:
        """Put back what a failed batch took, with its age: it is due at once.

        Else the next try might find that nothing had settled, and be told as a success.
        """
        for path, first in due.since:
            if path in due.trees:
                self._trees[path] = min(first, self._trees.get(path, now))
                self._given_back.add(path)
            else:
                mark = self._paths.setdefault(path, _Mark(first, first))
                mark.first = min(mark.first, first, self._backlog.pop(path, first))
                mark.left = True
        for pair in due.moves:
            self._moves[pair] = None
        self._written |= due.written

    def leave(self, since: Mapping[RelPath, float]) -> None:
        """Put back what a batch took and left to the next one, with its age: it is due at once."""
        for path, first in since.items():
            mark = self._paths.setdefault(path, _Mark(first, first))
            mark.first = min(mark.first, first, self._backlog.pop(path, first))
            mark.left = True

    def leave_untouched(self, since: Mapping[RelPath, float]) -> None:
        """Put back data that a batch left as it saw them, which they are until they are marked.

        Of this backlog each batch takes some.
        """
        for path, first in since.items():
            if (mark := self._paths.get(path)) is not None:
                mark.first = min(mark.first, first)
                mark.left = True
            elif b"" in self._trees:
                self._trees[b""] = min(first, self._trees[b""])
            else:
                self._backlog[path] = min(first, self._backlog.get(path, first))

    def backlog(self) -> set[RelPath]:
        """Return what was left as it was, and is not marked since."""
        return set(self._backlog)

    def next_due(self, now: float) -> float | None:
        """Return in how many seconds something is due (0 = now), or None."""
        if b"" in self._trees or self._backlog:
            return 0.0
        if not self._paths and not self._trees:
            return None
        paths = (self._due(*item) for item in self._paths.items())
        trees = (self._tree_due(*item) for item in self._trees.items())
        return max(0.0, min(chain(paths, trees)) - now)

    def some(self, limit: int) -> list[RelPath]:
        """Return up to ``limit`` of the marked paths and trees."""
        return list(islice(chain(self._paths, self._trees, self._backlog), limit))

    def is_scratch(self, path: RelPath) -> bool:
        """Return whether ``path`` is marked as scratch."""
        mark = self._paths.get(path)
        return mark is not None and mark.scratch

    def holds(self, path: RelPath) -> bool:
        """Return whether ``path``, or a tree that it lies in, is marked."""
        is_alone = path in self._paths or path in self._backlog
        return is_alone or lies_in(path, self._trees.keys())

    def rests(self, path: RelPath) -> bool:
        """Return whether ``path`` was let rest, and was not taken since."""
        return path in self._resting

    def oldest(self) -> float | None:
        """Return when the oldest was first marked, or None."""
        marks = (mark.first for mark in self._paths.values())
        return min(chain(marks, self._trees.values(), self._backlog.values()), default=None)

    def _tree_due(self, path: RelPath, first: float) -> float:
        # A new directory is being filled: to list it meanwhile is work that its writer pays for,
        # and in vain. That all may have changed is told when somebody wants to know.
        if not path or path in self._given_back:
            return first
        return first + min(self._settle, self._max_delay)

    def _due(self, path: RelPath, mark: _Mark) -> float:
        if mark.left:
            return mark.first
        if mark.restless:
            return mark.first + min(self._settle, self._max_delay)
        settled = min(mark.last + self._settle, mark.first + self._max_delay)
        return max(settled, self._resting.get(path, settled))


def _itself(path: RelPath) -> RelPath:
    return path
