"""The order in which a batch publishes, and what holds back what.

Scipion skips an item for ever once its marker is there, and a set's rows are promises of files. So
data come first, then empty markers, then databases, the project's last; and while data of a run are
held back, so are the markers and databases of that run. What a program only works on, no row names.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Set
from functools import lru_cache
from typing import TypeVar, cast

from pathspec import PathSpec
from pathspec.pattern import RegexPattern

from onesync.core.model import RelPath, name_of, parent_of

T = TypeVar("T")
_Rule = tuple[Callable[[str], object], bool]
"""Finds a pattern in a path, and whether what matches is in or, with a !, out; the last counts."""

_REMEMBERED = 4096

SIDECARS = (b"-journal", b"-wal", b"-shm")
RUNS = b"Runs"
"""What each directory in here holds is a run."""

DATA = 0
"""The group of everything that no pattern of the publish order names: it is published first."""

SCIPION_ORDER = (
    "**/DONE/*",
    "**/*.sqlite",
    "**/steps.sqlite",
    "**/run.db",
    "/project.sqlite",
)
SCIPION_SCRATCH = ("/Runs/*/tmp/",)
SCIPION_UNNAMED = ("/Logs/",)


class PublishOrder:
    """Groups of paths, published one after the other."""

    def __init__(
        self, patterns: Iterable[str], scratch: Iterable[str] = (), unnamed: Iterable[str] = ()
    ) -> None:
        """Read patterns as in .gitignore, the earliest published first; ValueError on a bad one.

        Files that ``scratch`` matches are worked on, and moved or copied elsewhere when they are
        done: nothing waits for them. Of what ``unnamed`` matches no row tells and no marker.
        """
        self._specs = [_rules([pattern]) for pattern in patterns]
        self.groups = range(len(self._specs) + 1)
        # Asked with every event of the kernel, about the same few files again and again.
        self._matched = lru_cache(_REMEMBERED)(self._match)
        self.is_scratch = _matcher(scratch)
        self.is_unnamed = _matcher(unnamed)

    def group_of(self, path: RelPath, *, is_database: bool) -> int:
        """Return the group of ``path``: that of the last pattern that matches it.

        A database that no pattern matches goes with the last group, after all data.
        """
        group = self._matched(path)
        return len(self._specs) if is_database and group == DATA else group

    def is_promised(self, path: RelPath) -> bool:
        """Return whether markers may promise ``path``: data, and not what is only worked on."""
        is_named = not (self.is_scratch(path) or self.is_unnamed(path))
        return is_named and self._matched(path) == DATA

    def _match(self, path: RelPath) -> int:
        text = path.decode("utf-8", "surrogateescape")
        for number in range(len(self._specs), 0, -1):
            if _matches(self._specs[number - 1], text):
                return number
        return DATA


def _rules(lines: Iterable[str]) -> list[_Rule]:
    patterns = cast("list[RegexPattern]", PathSpec.from_lines("gitignore", lines).patterns)
    return [
        (pattern.regex.search, pattern.include)
        for pattern in reversed(patterns)
        if pattern.regex is not None and pattern.include is not None  # as no comment has
    ]


def _matcher(lines: Iterable[str]) -> Callable[[RelPath], bool]:
    rules = _rules(lines)

    @lru_cache(_REMEMBERED)
    def is_matched(path: RelPath) -> bool:
        return _matches(rules, path.decode("utf-8", "surrogateescape"))

    return is_matched


def _matches(rules: Iterable[_Rule], text: str) -> bool:
    """As PathSpec.match_file, without what it does for paths that are not ours.

    It spells each one anew and describes how it matched: ten times the work, for each new name.
    """
    return next((include for search, include in rules if search(text)), False)


def scope_of(path: RelPath) -> RelPath:
    """Return the run that ``path`` belongs to (``Runs/000123_X``), or ``b""`` for the project."""
    parts = path.split(b"/")
    return b"/".join(parts[:2]) if parts[0] == RUNS and len(parts) > 2 else b""


def run_of(path: RelPath) -> RelPath:
    """Return the run that ``path`` is or lies in, or ``b""``."""
    parts = path.split(b"/", 2)
    return b"/".join(parts[:2]) if parts[0] == RUNS and len(parts) > 1 else b""


def scopes_of(moves: Iterable[tuple[RelPath, RelPath]]) -> set[RelPath]:
    """Return the runs that renames touch; ``b""`` among them stands for all.

    What lies outside of the runs, any run's rows may name.
    """
    return {scope_of(end) for move in moves for end in move}


def is_in_scope(path: RelPath, scopes: Set[RelPath]) -> bool:
    """Return whether ``path`` belongs to one of ``scopes``, of which ``b""`` is all."""
    return b"" in scopes or scope_of(path) in scopes


def spread(items: Iterable[T], path_of: Callable[[T], RelPath]) -> list[T]:
    """Return ``items`` in turns over their directories.

    The kernel serialises creates and renames within one directory, so workers that follow each
    other into the same one only wait.
    """
    lanes: dict[RelPath, deque[T]] = {}
    for item in items:
        lanes.setdefault(parent_of(path_of(item)), deque()).append(item)
    waiting = deque(lanes.values())
    ordered = []
    while waiting:
        lane = waiting.popleft()
        ordered.append(lane.popleft())
        if lane:
            waiting.append(lane)
    return ordered


def database_of(path: RelPath) -> RelPath | None:
    """Return the database that ``path`` would be a sidecar of, judged by its name alone."""
    for suffix in SIDECARS:
        if path.endswith(suffix) and name_of(path) != suffix:
            return path[: -len(suffix)]
    return None


def ranks(waits_for: Mapping[T, T]) -> dict[T, int | None]:
    """Return how many have to come before each that ``waits_for`` another.

    None for those that wait for each other, at once or through others: they come together.
    """
    found: dict[T, int | None] = {}
    for start in waits_for:
        way: dict[T, None] = {}
        at = start
        while at in waits_for and at not in found and at not in way:
            way[at] = None
            at = waits_for[at]
        rank = None if at in way else found.get(at, 0)
        for item in reversed(way):
            rank = None if rank is None else rank + 1
            found[item] = rank
    return found


def waiting_one_way(waits_for: Mapping[T, Set[T]]) -> set[T]:
    """Return those that wait for another, at once or through others, that does not for them."""
    reached = {start: _reached(start, waits_for) for start in waits_for}
    return {start for start, of in reached.items() if any(start not in reached[one] for one in of)}


def _reached(start: T, waits_for: Mapping[T, Set[T]]) -> set[T]:
    found: set[T] = set()
    new = set(waits_for[start])
    while new:
        found |= new
        new = {end for one in new for end in waits_for[one]} - found
    return found
