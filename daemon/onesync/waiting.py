"""Snapshots that wait for the data of their cut.

A batch that leaves data to the next one cannot publish its databases, for any row may name what did
not come. Taken anew by each batch they would never come while new data do: so they are kept, and
published as soon as the data of their own cut are there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

from onesync.core.model import RelPath, Stamp, name_of
from onesync.core.ordering import is_in_scope, scope_of, scopes_of
from onesync.core.plan import Plan
from onesync.cut import Cut, Frozen
from onesync.mentions import holds_name, linked
from onesync.outcome import Outcome

_LOOKED_FOR = 50
"""For so many names in snapshots at most: each is looked for in all of their bytes."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A cut whose data came in part.

    Attributes:
        frozen: its databases' snapshots.
        markers: its markers, as they were.
        data: what of its data is still to come, the targets of ``moves`` among them; all by the
            names that they have in the working copy.
        removals: what had been seen to be gone before the cut: no row of it names them.
        moves: (source, target) of renames, likewise.
    """

    frozen: Mapping[RelPath, Frozen]
    markers: Mapping[RelPath, Stamp | None]
    data: AbstractSet[RelPath]
    removals: frozenset[RelPath]
    moves: frozenset[tuple[RelPath, RelPath]]

    def coming(self, plan: Plan) -> set[RelPath]:
        """Return what ``plan`` brings, by the names that it has in the working copy."""
        return {_place(plan, d.path) for d in plan.files} | {move.target for move in plan.moves}

    def may_name(self, gone: AbstractSet[RelPath], links: Iterable[tuple[RelPath, bytes]]) -> bool:
        """Whether a snapshot may name what is ``gone``, at once or through one of ``links``.

        Or a marker may promise it, for that does not tell what. To look for many names would take
        longer than what is waited for.
        """
        targets = {target for _, target in self.moves}
        marked = {scope_of(path) for path in self.markers}
        if gone & targets or len(gone) > _LOOKED_FOR or marked & {scope_of(path) for path in gone}:
            return True
        if linked(links, gone):
            return True
        names = {name_of(path) for path in gone}
        return any(holds_name(item.path, names) for item in self.frozen.values())

    def named_of(
        self, paths: AbstractSet[RelPath], links: Sequence[tuple[RelPath, bytes]]
    ) -> set[RelPath]:
        """Return those of ``paths`` that a snapshot may name, and all where they are many."""
        is_many = len(paths) > _LOOKED_FOR
        return {path for path in paths if is_many or self.may_name({path}, links)}

    def runs(self) -> set[RelPath]:
        """Return the runs of what waits and of what it waits for; all their databases wait."""
        return {scope_of(path) for path in (*self.frozen, *self.data)} - {b""}

    def named(self, plan: Plan) -> set[RelPath]:
        """Return ``data`` by the names under which ``plan`` brings them."""
        return _brought_as(plan, self.data)

    def databases(self, plan: Plan) -> set[RelPath]:
        """Return those that wait, by the names under which ``plan`` brings them."""
        return _brought_as(plan, self.frozen)

    def promised(self, plan: Plan) -> set[RelPath]:
        """Return the markers that promise no more than they did."""
        return {d.path for d in plan.files if self.markers.get(_place(plan, d.path)) == d.seen}

    def let_go(self) -> None:
        """Remove the snapshots."""
        remove_copies(self.frozen.values())


def remove_copies(snapshots: Iterable[Frozen]) -> None:
    """Remove the copies of ``snapshots`` from the spool."""
    for item in snapshots:
        Path(os.fsdecode(item.path)).unlink(missing_ok=True)


def what_waits(
    earlier: Waiting | None,
    cut: Cut,
    plan: Plan,
    outcome: Outcome,
    *,
    project_waits: bool,
    who_names: Callable[[AbstractSet[RelPath]], AbstractSet[RelPath]],
    may_name: Callable[[RelPath, RelPath], bool],
    after_absent: AbstractSet[RelPath],
) -> Waiting | None:
    """Return what waits after a push of ``plan`` had this ``outcome``.

    What is held back for a file that changes all the time does not, nor what may name what a rename
    of its cut has not brought yet: it is taken anew, and removals wait for that. Rows of the
    project may name any of it, if it ``project_waits`` for runs. ``who_names`` returns which of the
    databases that were to be pushed may name what lies in some runs, ``may_name`` says whether one
    that OneData has may. Those that wait ``after_absent`` ones are taken anew, too.
    """
    if not outcome.is_late:
        return None
    anew = _Anew(_runs_anew(plan, outcome) if earlier is None else set(), may_name)
    left = frozenset(outcome.postponed_moves)
    has_project = any(not scope_of(path) for path in cut.frozen)
    anew.is_project = project_waits and bool(anew.runs) and has_project
    anew.is_project |= any(not scope_of(path) for path in outcome.held & after_absent)
    if anew.is_project:
        anew.runs |= scopes_of(left)
    while True:
        naming = who_names(anew.runs) if anew.runs else set()
        anew.databases = outcome.held & (naming | after_absent)
        moves = frozenset(pair for pair in left if not anew.may_name_it(pair[0]))
        # What does not wait for its cut's rename must not be named by what does.
        if not (more := scopes_of(left - moves) - anew.runs):
            break
        anew.runs |= more

    def may_wait(path: RelPath) -> bool:
        # Those that were taken since are taken anew: what they may name is not told apart.
        return earlier is None or path in earlier.frozen

    now = {_place(plan, d.path): d.seen for d in plan.files}
    seen = now if earlier is None else earlier.markers
    held = {_place(plan, path) for path in outcome.held if path not in anew}
    removals = frozenset() if anew.is_project else frozenset(outcome.postponed)
    waiting = Waiting(
        {path: item for path, item in cut.frozen.items() if path in held and may_wait(path)},
        {path: seen[path] for path in held - cut.frozen.keys() if path in seen},
        {_place(plan, path) for path in outcome.lacking}.union(target for _, target in moves),
        frozenset(path for path in removals if not anew.may_name_it(path)),
        moves,
    )
    second_halves = waiting.removals or waiting.moves
    return waiting if waiting.frozen or waiting.markers or second_halves else None


@dataclass(slots=True)
class _Anew:
    """What is taken anew, for it may name what a rename of its cut has not brought yet.

    Attributes:
        runs: where that lies; ``b""`` among them stands for all.
        may_name: whether a database that OneData has may name what lies in a run.
        databases: those that may name it.
        is_project: whether the project's are among them.
    """

    runs: set[RelPath]
    may_name: Callable[[RelPath, RelPath], bool]
    databases: AbstractSet[RelPath] = frozenset()
    is_project: bool = False

    def __contains__(self, path: RelPath) -> bool:
        """Whether a database or marker is taken anew."""
        if self.is_project and not scope_of(path):
            return True
        is_naming = path in self.databases and bool(scope_of(path))
        return is_naming or is_in_scope(path, self.runs)

    def may_name_it(self, path: RelPath) -> bool:
        """Whether rows of what is taken anew may name what a removal or rename has at ``path``."""
        of_runs = filter(scope_of, self.databases)
        return path in self or any(self.may_name(one, scope_of(path)) for one in of_runs)


def _brought_as(plan: Plan, places: Iterable[RelPath]) -> set[RelPath]:
    """Return the names under which ``plan`` brings what stands at ``places``."""
    names = {place: path for path, place in plan.stands_at.items()}
    return {names.get(place, place) for place in places}


def _place(plan: Plan, path: RelPath) -> RelPath:
    """Return where that stands in the working copy which ``plan`` brings under ``path``."""
    return plan.stands_at.get(path, path)


def _runs_anew(plan: Plan, outcome: Outcome) -> set[RelPath]:
    """Return the runs whose databases may name what a rename of the cut has not brought yet."""
    anew = scopes_of(plan.awaited_moves)
    left = [scopes_of([move]) for move in outcome.postponed_moves]
    while more := {scope for ends in left if ends & anew for scope in ends} - anew:
        anew |= more
    return anew
