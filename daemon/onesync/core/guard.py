"""Which absences are believed. Pure: a path is deleted in the replica only on positive evidence.

An absence that the kernel told as a deletion is *explained*. One that only a scan found, as after a
restart or after events were lost, is not: a working copy that came back empty or half looks the
same. Few of those are believed, many are held until a person accepts them or they reappear.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass

from onesync.core.model import Kind, Known, RelPath, Stamp, lies_in, parent_of, renamed_path
from onesync.core.plan import Difference


@dataclass(frozen=True, slots=True)
class Bound:
    """How many unexplained absences are believed at once.

    Attributes:
        number: never more than so many, however large the index.
        percent: never more than this part of the index, however small it is.
    """

    number: int
    percent: float

    def of(self, entries: int) -> int:
        """Return the bound for an index of ``entries`` rows."""
        return min(self.number, int(entries * self.percent / 100))


LIMIT = 200_000

Identity = tuple[Kind, int, int, int]
"""Kind, inode, size and modification time: what a rename keeps. The last two of files alone."""


def identity(stamp: Stamp) -> Identity:
    """Return what a path keeps when it is renamed."""
    is_file = stamp.kind is Kind.FILE
    return (stamp.kind, stamp.inode, stamp.size, stamp.mtime_ns if is_file else 0)


def tops(paths: Iterable[RelPath]) -> set[RelPath]:
    """Return those of ``paths`` that lie beneath no other one."""
    all_of_them = set(paths)
    return {p for p in all_of_them if not p or not lies_in(parent_of(p), all_of_them)}


def outstanding(told: Set[RelPath], is_back: Callable[[RelPath], bool]) -> set[RelPath]:
    """Return the tops of what was ``told`` and is still absent.

    Beneath a directory that was made anew the deletions of its former files still count.
    """
    found: set[RelPath] = set()
    left = set(told)
    while left:
        outer = tops(left)
        back = {path for path in outer if is_back(path)}
        found |= outer - back
        left = {path for path in left - back if lies_in(path, back)}
    return found


def carried(paths: Iterable[RelPath], renamed: Mapping[RelPath, RelPath]) -> set[RelPath]:
    """Return where those of ``paths`` would be now that lay beneath what was ``renamed``."""
    return {renamed_path(path, renamed) for path in paths if lies_in(path, renamed.keys())}


class Told:
    """Absences that were explained and not yet asked for. Not safe in several threads."""

    def __init__(self, limit: int = LIMIT) -> None:
        """Keep about ``limit`` paths; of what comes then only directories that held some of them.

        What is dropped goes unexplained, which only holds more, until its directory goes too.
        """
        self._limit = limit
        self._paths: set[RelPath] = set()
        self._above: set[RelPath] | None = None

    def add(self, path: RelPath) -> None:
        """Remember that ``path`` and all beneath it were deleted or moved away."""
        if self._above is not None:
            if path in self._above:
                self._paths.add(path)
                self._above.add(parent_of(path))
            return
        self._paths.add(path)
        if len(self._paths) >= self._limit:
            # A directory tells of all that it held: a run of any size comes down to one path.
            self._paths = tops(self._paths)
            if len(self._paths) > self._limit // 2:
                self._above = {parent_of(one) for one in self._paths}

    def take(self) -> set[RelPath]:
        """Return and forget what was added."""
        taken, self._paths, self._above = self._paths, set(), None
        return taken


def absences(differences: Mapping[RelPath, Difference]) -> set[RelPath]:
    """Return the tops of what the index has and the working copy has not.

    A directory in whose place something else stands is one: all beneath it is gone.
    """
    return tops(path for path, found in differences.items() if _is_absence(found))


def _is_absence(found: Difference) -> bool:
    if found.known is None:
        return False
    if found.seen is None:
        return True
    return found.known.entry.kind is Kind.DIRECTORY and found.seen.kind is not Kind.DIRECTORY


def arrived(differences: Mapping[RelPath, Difference]) -> set[Identity]:
    """Return the identities of what is new: what left elsewhere and came here was renamed."""
    return {identity(d.seen) for d in differences.values() if d.known is None and d.seen}


def certainly_gone(
    differences: Mapping[RelPath, Difference],
    beneath: Callable[[RelPath], Iterable[tuple[RelPath, Known]]],
) -> dict[RelPath, Difference]:
    """Return those of ``differences`` that are absences, and whose content came up nowhere else.

    What was renamed, and perhaps is not in the replica under its new name yet, is not among them.
    """
    here = arrived(differences)
    gone = tops(path for path, found in differences.items() if found.known and not found.seen)
    return {
        top: differences[top]
        for top in gone
        if not any(known.stamp and identity(known.stamp) in here for _, known in beneath(top))
    }


def rule(
    missing: Set[RelPath],
    believed: Set[RelPath],
    beneath: Callable[[RelPath], Iterable[tuple[RelPath, Known]]],
    here: Set[Identity],
    bound: int,
) -> set[RelPath]:
    """Return which of ``missing`` are to be held.

    Args:
        missing: tops of absences, none of them held already.
        believed: paths whose absence, with all that is beneath, is explained, accepted or awaited.
        beneath: the index's rows at and beneath a path.
        here: identities of what came at other places: renamed is not deleted.
        bound: how many rows may go unexplained at once.
    """
    unexplained = {path for path in missing if not lies_in(path, believed)}
    lost = (known for top in unexplained for _, known in beneath(top) if _is_lost(known, here))
    return unexplained if any(n > bound for n, _ in enumerate(lost, 1)) else set()


def _is_lost(known: Known, here: Set[Identity]) -> bool:
    return known.stamp is not None and identity(known.stamp) not in here
