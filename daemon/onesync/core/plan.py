"""From what a scan saw to what a batch does. Pure: the plan is data.

A deletion or the source of a rename that scan *n* saw is carried out in batch *n + 1*, whose
databases are newer; until then it is *awaited*. The caller passes what was awaited last time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from itertools import chain

from onesync.core.blocks import PATCH_FROM
from onesync.core.model import (
    Kind,
    Known,
    RelPath,
    Stamp,
    is_beneath,
    is_doubted,
    lies_in,
    parent_of,
    renamed_path,
)
from onesync.core.ordering import run_of, scope_of, scopes_of


@dataclass(frozen=True, slots=True)
class Difference:
    """One path whose stamp does not match the index.

    Attributes:
        path: where.
        known: what the index holds; None for a new path.
        seen: what the working copy holds; None where nothing stands.
    """

    path: RelPath
    known: Known | None
    seen: Stamp | None

    @property
    def removes_directory(self) -> bool:
        """Whether a directory goes, if this is a removal."""
        return self.known is not None and self.known.entry.kind is Kind.DIRECTORY

    @property
    def is_another_kind(self) -> bool:
        """Whether another kind of thing stands there now."""
        known, seen = self.known, self.seen
        return known is not None and seen is not None and known.entry.kind is not seen.kind


@dataclass(frozen=True, slots=True)
class Move:
    """A path that was renamed in the working copy; ``seen`` is the stamp at ``target``."""

    source: RelPath
    target: RelPath
    kind: Kind
    seen: Stamp


@dataclass(frozen=True, slots=True)
class Plan:
    """The operations of one batch, each list in the order in which it is carried out.

    Attributes:
        directories: to be made, parents first; path and stamp.
        files: to be pushed whole; ``replaces`` tells whether the replica holds something there.
        links: to be recorded; the replica holds none.
        metadata: entries whose content is known to be the same (mode or time of directories).
        revoked: markers and databases that are gone, before anything that they promise is replaced.
        removals: tops of what is gone, nothing beneath another one; with the kind known.
        moves: renames to carry out; no source or target beneath another one.
        awaited_removals: gone, but seen for the first time: the next batch's.
        awaited_moves: likewise for renames.
        stands_at: where in the working copy that stands which is pushed under its old name, beneath
            a directory that this batch renames afterwards.
    """

    directories: list[Difference] = field(default_factory=list)
    files: list[Difference] = field(default_factory=list)
    links: list[Difference] = field(default_factory=list)
    metadata: list[Difference] = field(default_factory=list)
    revoked: list[Difference] = field(default_factory=list)
    removals: list[Difference] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    awaited_removals: frozenset[RelPath] = frozenset()
    awaited_moves: frozenset[tuple[RelPath, RelPath]] = frozenset()
    stands_at: Mapping[RelPath, RelPath] = field(default_factory=dict)

    def paths(self) -> set[RelPath]:
        """Return every path that is touched."""
        gone = (self.removals, self.revoked)
        parts = (self.directories, self.files, self.links, self.metadata, *gone)
        moved = {end for move in self.moves for end in (move.source, move.target)}
        return moved.union(difference.path for part in parts for difference in part)

    def turned(self) -> set[RelPath]:
        """Return what is another kind of thing than before."""
        parts = chain(self.directories, self.files, self.links)
        return {difference.path for difference in parts if difference.is_another_kind}

    def touched_directories(self) -> set[RelPath]:
        """Return the directories that are renamed or removed."""
        gone = {difference.path for difference in self.removals if difference.removes_directory}
        return gone | {move.source for move in self.moves if move.kind is Kind.DIRECTORY}

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do now."""
        parts = (self.directories, self.files, self.links, self.metadata, self.removals, self.moves)
        return not (any(parts) or self.revoked)


def make_plan(
    differences: Mapping[RelPath, Difference],
    renames: list[Move],
    awaited_removals: frozenset[RelPath],
    awaited_moves: frozenset[tuple[RelPath, RelPath]],
    known_at: Callable[[RelPath], Known | None],
    databases: AbstractSet[RelPath] = frozenset(),
) -> Plan:
    """Return the plan for ``differences``.

    What is new in a directory that is renamed is pushed under its old name first, and the rename
    carries it along: rows that come with the rename may name it.

    Args:
        differences: what the scan found, by path.
        renames: those of them that are known to be renames (source gone, target new).
        awaited_removals: removals that an earlier scan saw already.
        awaited_moves: (source, target) of renames that an earlier scan saw already.
        known_at: what the index holds at a path.
        databases: those of which there are snapshots.
    """
    moves = _outermost_moves(renames)
    covered = {end for m in moves for end in (m.source, m.target)}
    plan = Plan(
        awaited_moves=frozenset(
            (m.source, m.target) for m in moves if (m.source, m.target) not in awaited_moves
        ),
    )
    plan.moves.extend(m for m in moves if (m.source, m.target) in awaited_moves)
    carrying = {m.target: m.source for m in plan.moves if m.kind is Kind.DIRECTORY}
    stands_at: dict[RelPath, RelPath] = {}
    gone: list[Difference] = []
    for path in sorted(differences):
        difference = differences[path]
        if lies_in(path, covered):
            old = _under_old_name(difference, carrying, known_at, path in databases)
            if old is not None:
                stands_at[old.path] = path
                _place(plan, old, gone)
            continue
        if difference.seen is None:
            if difference.known is not None:
                gone.append(difference)
        else:
            _place(plan, difference, gone)
    tops = _tops(gone)
    # A path that changed its kind must go before the new thing takes its name: not awaited.
    waiting = frozenset(d.path for d in tops if d.seen is None and d.path not in awaited_removals)
    plan.removals.extend(d for d in tops if d.path not in waiting)
    return replace(plan, awaited_removals=waiting, stands_at=stands_at)


def _under_old_name(
    difference: Difference,
    carrying: Mapping[RelPath, RelPath],
    known_at: Callable[[RelPath], Known | None],
    is_database: bool,
) -> Difference | None:
    """Return how ``difference`` would be pushed before its directory is renamed, if that can be.

    What changed its kind waits until the rename is done, and so does a large file of which the
    replica has an old version: its length may be behind. A database's never is.
    """
    path, seen = difference.path, difference.seen
    if seen is None or path in carrying or not lies_in(path, carrying.keys()):
        return None
    old = renamed_path(path, carrying)
    known = known_at(old)
    if known is None:
        return None if _is_beneath_file(old, known_at) else Difference(old, None, seen)
    if known.entry.kind is not seen.kind or known.stamp == seen:
        return None
    if _is_large(known, seen) and not is_database:
        return None
    return Difference(old, known, seen)


def _is_beneath_file(path: RelPath, known_at: Callable[[RelPath], Known | None]) -> bool:
    """Whether what ``path`` lies in is no directory in the replica, but became one since."""
    while path := parent_of(path):
        if (known := known_at(path)) is not None:
            return known.entry.kind is not Kind.DIRECTORY
    return False


def _is_large(known: Known, seen: Stamp) -> bool:
    return seen.kind is Kind.FILE and max(known.entry.size, seen.size) >= PATCH_FROM


def portioned(plan: Plan, most: int) -> Plan:
    """Leave all but ``most`` of the removals to the next batch; a directory is one removal."""
    gone = [difference.path for difference in plan.removals if difference.seen is None]
    return _without(plan, set(gone[most:]), frozenset())


def restricted(
    plan: Plan, removals: AbstractSet[RelPath], moves: AbstractSet[tuple[RelPath, RelPath]]
) -> Plan:
    """Leave all second halves but these to a later batch."""
    gone = {difference.path for difference in plan.removals if difference.seen is None}
    renamed = frozenset((move.source, move.target) for move in plan.moves)
    return _without(plan, gone - removals, renamed - moves)


def second_halves(plan: Plan) -> set[RelPath]:
    """Return what ``plan`` removes, and the sources of what it renames."""
    return {d.path for d in plan.removals if d.seen is None} | {m.source for m in plan.moves}


Named = Callable[[Iterable[RelPath], AbstractSet[RelPath]], AbstractSet[RelPath]]
"""Returns which of some runs the rows may name that some databases have in OneData."""


def staying(
    tops: AbstractSet[RelPath],
    stay: AbstractSet[RelPath],
    databases_at: Callable[[AbstractSet[RelPath]], Iterable[RelPath]],
    named: Named,
) -> set[RelPath]:
    """Return those of ``tops``, which are to go, that have to stay because others ``stay``.

    For databases at and beneath these may name them, or one that has to stay for that; each is
    asked once.
    """
    by_run: dict[RelPath, set[RelPath]] = {}
    for top in tops:
        by_run.setdefault(run_of(top), set()).add(top)
    found: set[RelPath] = set()
    new = stay
    while new and by_run:
        runs = named(databases_at(new), by_run.keys())
        new = {top for run in runs for top in by_run.pop(run)}
        found |= new
    return found


_SMALLEST_PAGE = 512
"""What SQLite's files consist of is no smaller."""


@dataclass(frozen=True, slots=True)
class Promises:
    """Markers and databases that are gone, among what a plan removes or leaves to the next batch.

    A removal waits for the next batch because older databases may name what goes. With a promise
    it is the other way round: it must not outlive what it promises.

    Attributes:
        found: what the scan found, by path.
        promised: the index's rows of markers and databases at and beneath a path.
        is_promise: whether a path is that of a marker or a database.
        may_be: whether what stands at a path may be the file of a stamp, by more than its inode.
        late: where that stands, by its inode, which did not come under its name yet.
    """

    found: Mapping[RelPath, Difference]
    promised: Callable[[RelPath], Sequence[tuple[RelPath, Known]]]
    is_promise: Callable[[RelPath], bool]
    may_be: Callable[[RelPath, Stamp], bool]
    late: Mapping[int, RelPath]

    def first(self, plan: Plan) -> Plan:
        """Let those go with the plan whose data it removes or renames, and before any other."""
        going = {scope_of(d.path) for d in plan.removals if not self.is_promise(d.path)}
        going |= scopes_of((move.source, move.target) for move in plan.moves)
        more = dict(self._gone(plan, plan.awaited_removals, going))
        removals = sorted(plan.removals, key=self._rank)
        return replace(
            plan,
            removals=[*more.values(), *removals],
            awaited_removals=plan.awaited_removals - more.keys(),
        )

    def revoked(self, plan: Plan) -> Plan:
        """Let those go before all else whose data the plan replaces."""
        replacing = [d for d in chain(plan.files, plan.links) if d.known is not None]
        replacing += [d for d in plan.removals if d.seen is not None]
        scopes = {scope_of(d.path) for d in replacing if not self.is_promise(d.path)}
        tops = plan.awaited_removals.union(d.path for d in plan.removals if d.seen is None)
        gone = dict(self._gone(plan, tops, scopes))
        return replace(
            plan,
            revoked=list(gone.values()),
            removals=[d for d in plan.removals if d.path not in gone],
            awaited_removals=plan.awaited_removals - gone.keys(),
        )

    def databases(self, tops: Iterable[RelPath]) -> list[RelPath]:
        """Return what at and beneath ``tops`` may be a database that OneData has: whole pages."""
        sizes = ((path, known.entry.size) for path, known in self._promises(tops))
        return [path for path, size in sizes if size and not size % _SMALLEST_PAGE]

    def _gone(
        self, plan: Plan, tops: AbstractSet[RelPath], scopes: AbstractSet[RelPath]
    ) -> Iterator[tuple[RelPath, Difference]]:
        """Yield the promises at and beneath ``tops`` that promise something of ``scopes``.

        Not what is renamed out of there, or has another name that it does not come under before:
        it is not gone.
        """
        if not scopes:
            return
        renamed = {move.source for move in plan.moves}.union(s for s, _ in plan.awaited_moves)
        coming = {d.seen.inode: d.path for d in plan.files if d.seen is not None}
        places = {**self.late, **{i: plan.stands_at.get(p, p) for i, p in coming.items()}}
        scopes = {*scopes, b""}
        # A run that waits to be removed may hold ten thousand files: none of them is looked at.
        near = (top for top in tops if run_of(top) in scopes or self._is_of_project(top))
        for path, known in self._promises(near):
            if known.stamp is None or lies_in(path, renamed):
                continue
            place = places.get(known.stamp.inode)
            has_other_name = place is not None and self.may_be(place, known.stamp)
            if scope_of(path) in scopes and not has_other_name:
                yield path, Difference(path, known, None)

    def _is_of_project(self, top: RelPath) -> bool:
        """Whether ``top`` is a promise of the project that stands among its runs."""
        return not scope_of(top) and self.is_promise(top)

    def _promises(self, tops: Iterable[RelPath]) -> Iterator[tuple[RelPath, Known]]:
        for top in sorted(tops):
            if not self._is_other_file(top):
                yield from self.promised(top)

    def _is_other_file(self, top: RelPath) -> bool:
        # Nearly all are: not worth a look into the index.
        difference = self.found.get(top)
        is_directory = difference is None or difference.removes_directory
        return not is_directory and not self.is_promise(top)

    def _rank(self, removal: Difference) -> int:
        """Promises go first, then directories that hold any, with what these promise, then data."""
        if not removal.removes_directory:
            return 0 if self.is_promise(removal.path) else 2
        return 1 if self.promised(removal.path) else 2


def without_removals(plan: Plan, kept: AbstractSet[RelPath]) -> Plan:
    """Leave out the removals of ``kept``; no later batch waits for them either."""
    if not kept:
        return plan
    removals = [d for d in plan.removals if d.seen is not None or d.path not in kept]
    return replace(plan, removals=removals, awaited_removals=plan.awaited_removals - kept)


def without_beneath(plan: Plan, tops: AbstractSet[RelPath]) -> Plan:
    """Leave out what is done at and beneath ``tops``, but for removals that the next batch does."""
    if not tops:
        return plan

    removals = [d for d in plan.removals if not lies_in(d.path, tops)]
    return replace(_bringing(plan, lambda path: not lies_in(path, tops)), removals=removals)


def only_beneath(plan: Plan, tops: AbstractSet[RelPath]) -> Plan:
    """Return what ``plan`` brings at and beneath ``tops``, and what has to go for that."""
    coming = _bringing(plan, lambda path: lies_in(path, tops))
    removals = [d for d in plan.removals if d.path in tops]
    return replace(coming, revoked=[], removals=removals, moves=[])


def _without(
    plan: Plan, removals: AbstractSet[RelPath], moves: frozenset[tuple[RelPath, RelPath]]
) -> Plan:
    if not (removals or moves):
        return plan
    left = [m for m in plan.moves if (m.source, m.target) not in moves]
    return replace(
        _without_carried(plan, {m.source for m in left}) if moves else plan,
        removals=[d for d in plan.removals if d.path not in removals],
        moves=left,
        awaited_removals=plan.awaited_removals | removals,
        awaited_moves=plan.awaited_moves | moves,
    )


def _without_carried(plan: Plan, sources: AbstractSet[RelPath]) -> Plan:
    """Leave out what is pushed under an old name and would be carried along from no ``sources``."""
    waiting = {path for path in plan.stands_at if not lies_in(path, sources)}
    stands_at = {old: at for old, at in plan.stands_at.items() if old not in waiting}
    return replace(_bringing(plan, lambda path: path not in waiting), stands_at=stands_at)


def _bringing(plan: Plan, is_brought: Callable[[RelPath], bool]) -> Plan:
    """Leave out what is new or changed where ``is_brought`` says no."""

    def rest(differences: list[Difference]) -> list[Difference]:
        return [d for d in differences if is_brought(d.path)]

    return replace(
        plan,
        directories=rest(plan.directories),
        files=rest(plan.files),
        links=rest(plan.links),
        metadata=rest(plan.metadata),
    )


def _place(plan: Plan, difference: Difference, gone: list[Difference]) -> None:
    seen, known = difference.seen, difference.known
    assert seen is not None
    if known is not None and difference.is_another_kind:
        if known.entry.kind is not Kind.LINK:
            gone.append(difference)
        known = None
    if seen.kind is Kind.DIRECTORY:
        is_there = known is not None and not is_doubted(known.stamp)
        (plan.metadata if is_there else plan.directories).append(difference)
    elif seen.kind is Kind.LINK:
        plan.links.append(difference)
    else:
        plan.files.append(difference)


def _tops(gone: list[Difference]) -> list[Difference]:
    """Return those of the sorted ``gone`` that lie beneath no other one."""
    tops: list[Difference] = []
    for difference in sorted(gone, key=lambda d: d.path.split(b"/")):
        if not tops or not is_beneath(difference.path, tops[-1].path):
            tops.append(difference)
    return tops


def _outermost_moves(renames: list[Move]) -> list[Move]:
    """Drop renames that another one carries along, or whose ends lie inside each other's.

    Those of directories come first: a file that was moved into a renamed one is cheaper than that.
    """
    chosen: list[Move] = []
    tops: set[RelPath] = set()
    above: set[RelPath] = set()
    for move in sorted(renames, key=_outermost_first):
        ends = (move.source, move.target)
        clash = any(lies_in(end, tops) or end in above for end in ends)
        if clash or is_beneath(move.target, move.source):
            continue
        chosen.append(move)
        tops.update(ends)
        for end in ends:
            while end and (end := parent_of(end)) not in above:
                above.add(end)
    return chosen


def _outermost_first(move: Move) -> tuple[bool, int, RelPath]:
    return move.kind is not Kind.DIRECTORY, move.source.count(b"/"), move.source
