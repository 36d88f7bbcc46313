"""What a batch leaves in the replica until its checkpoint stands: asides, removals, its intents."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from onesync.core.model import Kind, Problem, RelPath, lies_in, renamed_path
from onesync.core.ordering import DATA, PublishOrder
from onesync.core.plan import Plan
from onesync.intent import Intent
from onesync.outcome import Outcome
from onesync.removals import kept_beside, newcomer, take_out
from onesync.replica.door import Ours, Replica
from onesync.workers import each

T = TypeVar("T")


class Leftovers:
    """What is to be tidied behind one batch. The push's workers tell what they leave."""

    def __init__(
        self,
        replica: Replica,
        pool: ThreadPoolExecutor,
        order: PublishOrder,
        intent: Intent,
        removal: Intent,
        outcome: Outcome,
    ) -> None:
        """Leave nothing but the intents; ``order`` tells markers from what they promise."""
        self._replica = replica
        self._pool = pool
        self._order = order
        self._intent = intent
        self._removal = removal
        self._outcome = outcome
        self._asides: list[RelPath] = []
        self._replaced: list[tuple[RelPath, RelPath]] = []
        self._removed: list[tuple[RelPath, RelPath, Ours]] = []
        self._unlinked: list[RelPath] = []
        self._gone: set[RelPath] = set()
        self.problems: list[Problem] = []
        """What was found of others where something was removed, when all is done."""
        self.missing: set[RelPath] = set()
        """What was to be unlinked and was gone already, likewise."""

    def add(self, aside: RelPath) -> None:
        """Leave a temporary, an undo file or a note."""
        self._asides.append(aside)

    def add_replaced(self, path: RelPath, aside: RelPath) -> None:
        """Leave what went aside from ``path``: a file of ours, unless somebody took its place."""
        self._replaced.append((path, aside))

    def add_removed(self, path: RelPath, aside: RelPath) -> None:
        """Leave what went aside from ``path`` as the intent says, a directory with all in it."""
        self._removed.append((path, aside, self._intent.ours[aside]))

    def unlink_later(self, paths: list[RelPath]) -> None:
        """Leave ``paths``, which stand under their own names until the checkpoint stands."""
        self._unlinked = paths

    def follow(self, renamed: Mapping[RelPath, RelPath]) -> None:
        """Tell what lies beneath renamed directories by their new names."""
        self._asides = [renamed_path(path, renamed) for path in self._asides]
        self._replaced = [
            (renamed_path(path, renamed), renamed_path(aside, renamed))
            for path, aside in self._replaced
        ]
        self._removed = [
            (renamed_path(path, renamed), renamed_path(aside, renamed), ours)
            for path, aside, ours in self._removed
        ]

    def begins_travel(self) -> bool:
        """Whether the intent stands for a copy that goes on: then it needs its checkpoint."""
        travels = self._outcome.travels.values()
        return any(travel.intent == self._intent.path for travel in travels)

    def leaving(self) -> set[RelPath]:
        """Return the names that are still taken by what is to go. For any thread."""
        return {*(aside for _, aside, _ in self._removed), *self._unlinked} - self._gone

    def stands_in_the_way(self, plan: Plan, left: AbstractSet[RelPath]) -> bool:
        """Whether what ``plan`` does, but for what is ``left``, needs that to be gone first."""
        leaving = self.leaving()
        tops = plan.touched_directories()
        needed = plan.paths() - left
        if plan.turned() and not leaving.isdisjoint(self._databases()):
            return True  # rows of a database that still stands may name what turned
        return not leaving.isdisjoint(needed) or any(lies_in(path, tops) for path in leaving)

    def _databases(self) -> set[RelPath]:
        """Return what may be databases of what is unlinked; an empty marker is none."""
        return {path for path, size, _ in self._removal.gone if size and not self._is_data(path)}

    def tidy(self) -> bool:
        """Remove the asides, and the intent if it is needed for nothing else.

        The checkpoint stands. Returns whether files or whole directories are still to go, by
        ``unlink`` and then ``take_out``. That may take long; only those wait for it who need the
        same names.
        """
        each(self._pool, self._replica.remove, self._asides)
        each(self._pool, self._remove_replaced, *zip(*self._replaced, strict=True))
        if self._removed or self._unlinked:
            return True
        self._end_removal()  # all removals were postponed
        self._end_intent()
        return False

    def _remove_replaced(self, path: RelPath, aside: RelPath) -> None:
        if self._replica.unlink(aside) is Kind.DIRECTORY:
            self.problems.append(kept_beside(self._replica, path, aside))

    def unlink(self, pool: ThreadPoolExecutor, lanes: int) -> None:
        """Remove, by ``lanes`` of ``pool``, the files that stand under their own names."""
        promises = [path for path in self._unlinked if not self._is_data(path)]
        promised = [path for path in self._unlinked if self._is_data(path)]
        for paths in (promises, promised):  # no marker stands without what it promises
            each(pool, self._unlink, _parted(paths, lanes))
        self._end_removal()

    def take_out(self, pool: ThreadPoolExecutor, lanes: int) -> None:
        """Remove what went aside, and the intent: it is needed for nothing else then."""
        each(pool, self._take_out, _parted(self._removed, lanes))
        self._end_intent()

    def _is_data(self, path: RelPath) -> bool:
        return self._order.group_of(path, is_database=False) == DATA

    def _unlink(self, paths: list[RelPath]) -> None:
        for path in paths:
            found = self._replica.unlink(path)
            if found is None:
                self.missing.add(path)
            elif found is Kind.DIRECTORY:
                self.problems.append(newcomer(path))
            self._gone.add(path)

    def _take_out(self, removed: list[tuple[RelPath, RelPath, Ours]]) -> None:
        for path, aside, ours in removed:
            self.problems += take_out(self._replica, path, aside, ours)

    def _end_removal(self) -> None:
        if self._removal.is_needed():
            self._replica.remove(self._removal.path)

    def _end_intent(self) -> None:
        if self._intent.is_needed() and not self.begins_travel():
            self._replica.remove(self._intent.path)


def _parted(items: list[T], lanes: int) -> list[list[T]]:
    """Share ``items`` out. Few go at a time: in one directory they wait for each other."""
    return [items[number::lanes] for number in range(lanes) if items[number::lanes]]
