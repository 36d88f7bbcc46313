"""What one batch does about the differences that a cut found. Engine's thread only.

The plan's rules are ``core.plan``'s; here stands what they need to know across batches.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from itertools import chain

from onesync.core.chain import Renamed, Set
from onesync.core.dirty import Due
from onesync.core.guard import certainly_gone
from onesync.core.model import (
    Entry,
    Kind,
    Known,
    Problem,
    RelPath,
    Stamp,
    is_beneath,
    is_damaged_row,
    is_unconfirmed,
    join,
    lies_in,
    parent_of,
    renamed_path,
)
from onesync.core.ordering import (
    DATA,
    RUNS,
    PublishOrder,
    is_in_scope,
    run_of,
    scope_of,
    scopes_of,
)
from onesync.core.plan import (
    Difference,
    Move,
    Plan,
    Promises,
    make_plan,
    portioned,
    restricted,
    second_halves,
    staying,
)
from onesync.core.renames import renames_among
from onesync.core.turning import Turning
from onesync.cut import Cut, Cuts
from onesync.deletions import Deletions
from onesync.holds import ProjectWait
from onesync.index import Index
from onesync.local import is_another, on_this_machine
from onesync.mentions import Published, linked, runs_leading
from onesync.only_copies import OnlyCopies
from onesync.outcome import BEHIND, LASTING, NAME_REFUSED, NOT_COPIED, OCCUPIED, Outcome
from onesync.waiting import Waiting

_REMOVED_AT_ONCE = 2000
"""A batch removes no more than so many, for each is five calls and new data wait meanwhile."""

_COPIED_AT_MOST = 16 << 20
_COPIED_FILES = 1000
"""What has more bytes or names together is rather renamed than sent again."""

_ABSENT_SECONDS = 10.0
"""So long databases wait for a new one that they name and that cannot be copied: it is locked."""


@dataclass(frozen=True, slots=True)
class Awaited:
    """Second halves that the next batch does, when its databases are newer."""

    removals: frozenset[RelPath] = frozenset()
    moves: frozenset[tuple[RelPath, RelPath]] = frozenset()

    def paths(self) -> set[RelPath]:
        """Return what is removed, and both ends of what is renamed."""
        return set(self.removals) | {end for pair in self.moves for end in pair}


@dataclass(slots=True)
class Planning:
    """See the module.

    Attributes:
        problems: what went wrong with single paths, until they are pushed.
        awaited: second halves that the next batch does.
        project_wait: how long the project's databases have waited.
        turning: how long what became another kind of thing waits for newer rows.
        held: how long it waits for those that a batch held back, other than for late data.
        taken: the targets of renames that the last try met in OneData: they are sent as new things.
    """

    index: Index
    cuts: Cuts
    deletions: Deletions
    only_copies: OnlyCopies
    order: PublishOrder
    problems: dict[RelPath, Problem]
    awaited: Awaited = field(default_factory=Awaited)
    project_wait: ProjectWait = field(default_factory=ProjectWait)
    turning: Turning = field(default_factory=lambda: Turning(_ABSENT_SECONDS))
    held: Turning = field(default_factory=lambda: Turning(_ABSENT_SECONDS))
    taken: set[RelPath] = field(default_factory=set)
    _mentions: Published = field(default_factory=Published)
    _renaming: set[RelPath] = field(default_factory=set)
    _behind: set[RelPath] = field(default_factory=set)
    _late: dict[RelPath, int] = field(default_factory=dict)
    _left_once: set[RelPath] = field(default_factory=set)
    _absent: dict[RelPath, float] = field(default_factory=dict)
    _after_absent: dict[RelPath, float] = field(default_factory=dict)
    _put_off_since: dict[RelPath, float] = field(default_factory=dict)
    _put_off_over: set[RelPath] = field(default_factory=set)
    _promised_at: dict[RelPath, list[tuple[RelPath, Known]]] = field(default_factory=dict)

    def plan(self, cut: Cut, waiting: Waiting | None, *, everything: bool) -> Plan:
        """Return what is to be done about ``cut``, after the snapshots that are ``waiting``.

        ``everything``: all removals at once, and none waits for an explanation.
        """
        self._promised_at.clear()  # the index may have changed
        # In a directory that OneData does not have nothing can be kept until it is tried again.
        closed = self._refused() - cut.found.keys()
        open_to = {p: d for p, d in cut.found.items() if not lies_in(parent_of(p), closed)}
        if standing := self.only_copies.standing():
            open_to = {p: d for p, d in open_to.items() if not lies_in(p, standing)}
        open_to |= self._no_longer_behind(cut)
        moves = cut.moves | self.awaited.moves | _moves_of_damaged(open_to)
        renames = renames_among(open_to, moves)
        promises = self._promises(cut)
        copied = self._rather_copied(renames, promises)
        renames = [m for m in renames if m not in copied and m.target not in self.taken]
        settled = self.awaited.removals | {move.source for move in renames} | cut.taken_back
        found = self.deletions.judge(
            open_to, cut.looked, settled, self.cuts.drain, at_once=everything
        )
        awaited = self.awaited
        plan = make_plan(
            found, renames, awaited.removals, awaited.moves, self.index.known, cut.frozen.keys()
        )
        if waiting is not None:
            plan = restricted(plan, waiting.removals, waiting.moves)
        else:
            plan = self._without_named(plan, cut)
        named = self._named_as_it_was(plan, cut, waiting, promises)
        left = cut.found.keys() - open_to.keys()
        self.only_copies.see_moves(cut.moves | self.awaited.moves)
        plan = self.only_copies.stay(plan, left, named)
        promises = replace(promises, late=self.only_copies.late_now())
        plan = self._after_databases(promises.first(plan), promises)
        plan = promises.revoked(plan if everything else self._portioned(plan, promises))
        plan = self._with_kept_databases(plan, promises)
        return replace(plan, removals=plan.removals + self._stale(plan.moves))

    def forget_gone(self, looked: Due) -> None:
        """Forget what could not come and is gone: it was renamed, as it had to be, or deleted.

        Where it was renamed it has not come until it is pushed under its new name. Of a database
        the try to copy it tells, under each name.
        """
        told, moved = looked.paths | looked.trees, dict(looked.moves)
        kinds = LASTING | NOT_COPIED
        kept_out = [path for path, problem in self.problems.items() if problem.kind in kinds]
        for path in kept_out:
            if lies_in(path, told) and self.cuts.scanner.gone([path]):
                problem = self.problems.pop(path)
                now = renamed_path(path, moved)
                is_told = problem.kind in LASTING
                if is_told and now != path and not self.cuts.scanner.gone([now]):
                    self.problems[now] = replace(problem, path=now)

    def _refused(self) -> set[RelPath]:
        """Return the names that OneData refused, or has for others: nothing lies beneath there."""
        kinds = (NAME_REFUSED, OCCUPIED)
        return {p.path for p in self.problems.values() if p.kind in kinds}

    def _no_longer_behind(self, cut: Cut) -> dict[RelPath, Difference]:
        """Return what was behind, and is here now as OneData has it: that is to be told.

        Not of what a dead node left behind: as OneData has it is all that there is of it.
        """
        found = {}
        for path in self._behind & self.problems.keys():
            is_looked_at = path in cut.looked.paths or lies_in(path, cut.looked.trees)
            if self.problems[path].kind != BEHIND or path in cut.found or not is_looked_at:
                continue
            known, seen = self.index.known(path), self.cuts.scanner.see(path)
            if known is not None and seen is not None and known.stamp == seen:
                found[path] = Difference(path, known, seen)
        return found

    def _rather_copied(self, renames: list[Move], promises: Promises) -> set[Move]:
        """Return the renames that are better brought as new files and removals.

        Databases wait for new renames of their run, the project's for all, and a new one in each
        batch would keep them waiting for ever. So every second batch copies, where that is cheap.
        No databases: a copy of one may have to wait, while its old name goes. Nor what came
        damaged, for OneData may have better bytes by now.
        """
        again = {
            move
            for move in renames
            if any(is_in_scope(end, self._renaming) for end in (move.source, move.target))
            and (move.source, move.target) not in self.awaited.moves
        }
        beneath = (known for move in again for _, known in self.index.beneath(move.source))
        size = 0
        for number, known in enumerate(beneath):
            size += known.entry.size
            if size > _COPIED_AT_MOST or number >= _COPIED_FILES or is_damaged_row(known):
                return set()
        return {move for move in again if not promises.databases([move.source])}

    def _without_named(self, plan: Plan, cut: Cut) -> Plan:
        """Leave second halves of runs whose databases the cut left out: OneData's may name them.

        Those of the project name files of all runs, but these are not held back for ever.
        """
        came_from = _came_from(plan)
        here = {renamed_path(path, came_from): path for path in cut.deferred}
        left = {old: path for old, path in here.items() if self.committed(old) is not None}
        if not left:
            return plan
        scopes = {scope_of(path) for path in chain(left.keys(), left.values())}
        if b"" in scopes and not self.project_wait.is_over(time.monotonic()):
            return restricted(plan, set(), set())

        of_runs = {database for database in left if scope_of(database)}
        tops = {d.path for d in plan.removals if d.seen is None}
        through = runs_leading(list(self.links(plan)), tops) if tops else {}
        runs = {scope_of(top) for top in second_halves(plan)}.union(*through.values())
        waiting = scopes | self.named(of_runs, runs)
        removals = {
            top
            for top in tops
            if scope_of(top) not in waiting and waiting.isdisjoint(through.get(top, ()))
        }
        moves = {
            (m.source, m.target)
            for m in plan.moves
            if scope_of(m.source) not in waiting
            and not any(is_beneath(path, m.source) for path in left)
        }
        return restricted(plan, removals, moves)

    def _named_as_it_was(
        self, plan: Plan, cut: Cut, waiting: Waiting | None, promises: Promises
    ) -> AbstractSet[RelPath]:
        """Return what turned into another kind of thing and is named by rows that do not come now.

        Those are rows of the databases that the cut, or the plan, left out, of those that are to go
        with a later batch, and of snapshots that wait: these are older. So are all than what turned
        while they were taken. Whether others are held back the push finds out.
        """
        turned = plan.turned()
        if not turned:
            return turned
        brought = {plan.stands_at.get(d.path, d.path) for d in plan.files}
        left = (cut.deferred | (cut.frozen.keys() - brought)) & self.cuts.marks.databases
        going = promises.databases(plan.awaited_removals | self._gone_databases(cut))
        named = (turned & cut.turned) | self.named_before(plan, left.union(going), turned)
        stay = self.turning.stay(named, time.monotonic())
        # With those that stay their databases do, which may name others.
        while more := self.named_before(plan, set(promises.databases(stay)), turned - stay):
            stay |= more
        # Their wait ends by itself.
        return stay if waiting is None else stay | waiting.named_of(turned, list(self.links(plan)))

    def named_before(
        self, plan: Plan, databases: AbstractSet[RelPath], turned: AbstractSet[RelPath]
    ) -> set[RelPath]:
        """Return what of ``turned`` rows of ``databases`` may name as OneData has them."""
        late = self._in_onedata(plan, databases) if turned else set()
        links = list(self.links(plan)) if late else []
        by_run = {run: self._may_any_name(late, run, links) for run in set(map(scope_of, turned))}
        return {path for path in turned if by_run[scope_of(path)]}

    def stay_a_while(self, turned: AbstractSet[RelPath]) -> set[RelPath]:
        """Return what of ``turned`` stays for databases that are held back: not for ever."""
        return self.held.stay(turned, time.monotonic())

    def stay_with(
        self, cut: Cut, plan: Plan, stayed: AbstractSet[RelPath]
    ) -> tuple[set[RelPath], set[RelPath]]:
        """Return what has to stay with what turned and ``stayed``.

        What else turned, and the removals, and sources of renames, of ``plan``: they may be all
        that OneData has of what would come there, or databases that stay there name them, or they
        are renamed to there.
        """
        if not stayed:
            return set(), set()
        promises, new = self._promises(cut), self.only_copies.coming(plan, stayed)
        tops = second_halves(plan)
        waiting = {move.source for move in plan.moves if lies_in(move.target, stayed)}
        removals = tops - {move.source for move in plan.moves}
        waiting |= self.only_copies.holding(removals, new)
        waiting |= staying(tops - waiting, stayed, promises.databases, self.named)
        turned = plan.turned() - stayed
        named = self.named_before(plan, set(promises.databases(stayed)), turned)
        return named | self.only_copies.holding(turned, new), waiting

    def _gone_databases(self, cut: Cut) -> set[RelPath]:
        gone = (path for path, difference in cut.found.items() if difference.seen is None)
        return {path for path in gone if self.cuts.is_promise(path)}

    def _may_any_name(
        self, databases: Iterable[RelPath], run: RelPath, links: Iterable[tuple[RelPath, bytes]]
    ) -> bool:
        """Whether rows of ``databases`` may name what lies in ``run``, or links that lead there."""
        runs = {run} | {scope_of(link) for link in linked(links, {run} - {b""})}
        return any(scope_of(path) in runs or self.named([path], runs) for path in databases)

    def _in_onedata(self, plan: Plan, databases: Iterable[RelPath]) -> set[RelPath]:
        """Return ``databases`` by their names in OneData, as far as it has them."""
        came_from = _came_from(plan)
        names = {name for path in databases for name in (path, renamed_path(path, came_from))}
        return {name for name in names if self.committed(name) is not None}

    def _with_kept_databases(self, plan: Plan, promises: Promises) -> Plan:
        """Leave out removals of what databases may name that have to stay under their old names.

        For as long as somebody does nothing about it: so no batch waits for them.
        """
        tops = plan.awaited_removals.union(d.path for d in plan.removals if d.seen is None)
        kept = self.only_copies.kept()
        named = staying(tops, kept, promises.databases, self.named) if kept and tops else set()
        named = {path for path in named if not self.cuts.is_promise(path)}
        return self.only_copies.stay_with_kept(plan, named) if named else plan

    def _after_databases(self, plan: Plan, promises: Promises) -> Plan:
        """Leave second halves of runs that a database may name which goes with a later batch.

        Until then it stands in OneData as it was. For one that is only seen now to go they wait
        once, for more and more may; removals wait for one that is held longer as long as that.
        Renames do not: databases wait for these.
        """
        tops, sources = second_halves(plan), {move.source for move in plan.moves}
        going = plan.awaited_removals.union(source for source, _ in plan.awaited_moves)
        before = self.awaited.removals.union(source for source, _ in self.awaited.moves)
        stays = (going & before) | self.only_copies.put_off
        always = staying(tops, stays, promises.databases, self.named)
        once = staying(tops - always, going - before, promises.databases, self.named)
        once |= always & sources
        left = (always - sources) | (once - self._left_once)
        self._left_once = once
        return _without(plan, left)

    def _portioned(self, plan: Plan, promises: Promises) -> Plan:
        """Leave all but a portion of the removals; no databases: these may name what goes.

        They are among the first, behind the markers of what lies beside them.
        """
        gone = [difference.path for difference in plan.removals if difference.seen is None]
        if len(gone) <= _REMOVED_AT_ONCE:
            return plan
        naming = [number for number, top in enumerate(gone, 1) if any(promises.databases([top]))]
        return portioned(plan, max([_REMOVED_AT_ONCE, *naming[-1:]]))

    def databases_at(self, cut: Cut, tops: AbstractSet[RelPath]) -> Iterable[RelPath]:
        """Return the databases that OneData may have at and beneath ``tops``.

        ``cut`` tells what of these is a directory.
        """
        return self._promises(cut).databases(tops)

    def _promises(self, cut: Cut) -> Promises:
        return Promises(
            cut.found,
            self._promised,
            self.cuts.is_promise,
            self._may_be,
            self.only_copies.late,
        )

    def _promised(self, top: RelPath) -> list[tuple[RelPath, Known]]:
        """Return the rows of markers and databases at and beneath ``top``.

        That is asked several times a batch, and there may be ten thousand rows of others.
        """
        found = self._promised_at.get(top)
        if found is None:
            rows = self.index.beneath(top)
            files = ((path, known) for path, known in rows if known.entry.kind is Kind.FILE)
            found = [(path, known) for path, known in files if self.cuts.is_promise(path)]
            self._promised_at[top] = found
        return found

    def _may_be(self, place: RelPath, stamp: Stamp) -> bool:
        with on_this_machine():
            return not is_another(join(self.cuts.root, place), stamp)

    def _stale(self, moves: Iterable[Move]) -> list[Difference]:
        """Return the removals of databases and markers that are gone from directories renamed now.

        Carried along, they would stand there with rows that name the old directory.
        """
        beneath = (
            (path, known, renamed_path(path, {move.source: move.target}))
            for move in moves
            if move.kind is Kind.DIRECTORY
            for path, known in self.index.beneath(move.source)
        )
        return [
            Difference(path, known, None)
            for path, known, now in beneath
            if known.entry.kind is Kind.FILE
            and known.stamp is not None  # it was here
            and self.order.group_of(path, is_database=False) != DATA
            and (self.deletions.is_explained(path) or self.deletions.is_explained(now))
            and self.cuts.scanner.gone([now])
        ]

    def removals_alone(self, cut: Cut) -> list[Difference]:
        """Return what of ``cut`` may go before anything else comes: what came up nowhere else."""
        found = self.deletions.judge(
            cut.found, cut.looked, self.awaited.removals, self.cuts.drain, at_once=False
        )
        renamed = {source for source, _ in cut.moves | self.awaited.moves}
        new = {d.seen.inode: path for path, d in found.items() if d.known is None and d.seen}
        gone = certainly_gone(found, self.index.beneath)
        self.only_copies.see_moves(cut.moves | self.awaited.moves)
        stays = self.only_copies.standing_left_out(gone.keys())
        tops = (path for path in sorted(gone) if path not in stays and not lies_in(path, renamed))
        return [gone[top] for top in tops if not self._came_elsewhere(top, new)]

    def _came_elsewhere(self, top: RelPath, new: Mapping[int, RelPath]) -> bool:
        """Whether a file at or beneath ``top`` is one of the ``new``, by its inode."""
        stamps = (known.stamp for _, known in self.index.beneath(top))
        pairs = ((new.get(stamp.inode), stamp) for stamp in stamps if stamp is not None)
        return any(
            place is not None and not is_another(join(self.cuts.root, place), stamp)
            for place, stamp in pairs
        )

    def leave(
        self,
        plan: Plan,
        outcome: Outcome,
        *,
        project_held: bool = False,
    ) -> None:
        """Leave second halves to the next batch: those that ``plan`` says, and what a push left.

        ``project_held``: databases of the project were held back.
        """
        new = plan.awaited_moves - self.awaited.moves
        self.awaited = Awaited(
            plan.awaited_removals | outcome.postponed,
            plan.awaited_moves | outcome.postponed_moves,
        )
        self.cuts.awaited_moves = self.awaited.moves
        self.turning.began_anew()
        self.held.began_anew()
        # Where nothing was held back all may wait anew; what waits on, for other things, may not.
        for run in self._put_off_over - set(map(scope_of, outcome.held)):
            self._put_off_since.pop(run, None)
        self.taken.clear()
        self._renaming = scopes_of(new) | ({b""} if new and project_held else set())

    def hold_back(self, beneath: AbstractSet[RelPath]) -> set[RelPath]:
        """Return what of ``beneath`` others wait for, which is put off: none of a run for long."""
        now = time.monotonic()
        runs = {scope_of(path) for path in beneath}
        self._put_off_since = {run: self._put_off_since.get(run, now) for run in runs}
        since = self._put_off_since
        self._put_off_over = {run for run in runs if now - since[run] >= _ABSENT_SECONDS}
        return {path for path in beneath if scope_of(path) not in self._put_off_over}

    def lacks_project(self, cut: Cut) -> bool:
        """Whether ``cut`` left out a database of the project that OneData has."""
        outside = (path for path in cut.deferred if not scope_of(path))
        return any(self.committed(path) is not None for path in outside)

    def absent(self, cut: Cut, plan: Plan) -> set[RelPath]:
        """Return the new databases that ``cut``, or its ``plan``, left out; none for long.

        Nor any that is only worked on: no row names it.
        """
        now = time.monotonic()
        left = {path for path in cut.deferred if path in self.cuts.marks.databases}
        left |= cut.frozen.keys() - {plan.stands_at.get(d.path, d.path) for d in plan.files}
        # What is renamed is not absent: it stands under its old name.
        targets = {move.target for move in plan.moves}.union(t for _, t in plan.awaited_moves)
        left = {path for path in left if not lies_in(path, targets)}
        new = {path for path in left if self._lacks_file(path) and not self.order.is_scratch(path)}
        for waits in (self._absent, self._after_absent):
            for path in waits.keys() - self.cuts.marks.databases:
                del waits[path]
        for path in [path for path in self._absent if not self._lacks_file(path)]:
            del self._absent[path]
        since = {path: self._absent.setdefault(path, now) for path in new}
        return {path for path in new if now - since[path] < _ABSENT_SECONDS}

    def impatient(self) -> set[RelPath]:
        """Return the databases that waited for new ones long enough, one after the other."""
        now = time.monotonic()
        return {p for p, since in self._after_absent.items() if now - since >= _ABSENT_SECONDS}

    def waited_for_absent(self, databases: AbstractSet[RelPath]) -> None:
        """Take over which ``databases`` a batch held back for new ones."""
        now = time.monotonic()
        for path in databases:
            self._after_absent.setdefault(path, now)

    def _lacks_file(self, path: RelPath) -> bool:
        entry = self.committed(path)
        return entry is None or entry.kind is not Kind.FILE

    def committed(self, path: RelPath) -> Entry | None:
        """Return what the last checkpoint has at ``path``."""
        known = self.index.known(path)
        return None if known is None or is_unconfirmed(known.entry) else known.entry

    def may_name(self, database: RelPath, run: RelPath) -> bool:
        """Whether rows of ``database`` in OneData may name what lies in ``run``."""
        return bool(self.named([database], {run}))

    def named(
        self, databases: Iterable[RelPath], runs: AbstractSet[RelPath]
    ) -> AbstractSet[RelPath]:
        """Return those of ``runs`` that rows of ``databases`` in OneData may name.

        Those of the project may name all.
        """
        found: set[RelPath] = set()
        for database in databases:
            if len(found) == len(runs):
                break
            if self.committed(database) is not None:
                found |= self._mentions.named(database, runs) if scope_of(database) else runs
        return found

    def links(self, plan: Plan) -> Iterator[tuple[RelPath, bytes]]:
        """Yield path and target of every link that a batch of ``plan`` leaves or makes."""
        yield from ((d.path, d.seen.target) for d in plan.links if d.seen is not None)
        moved = {move.source: move.target for move in plan.moves}
        for path, target in self.index.links():
            yield path, target
            if lies_in(path, moved.keys()):
                yield renamed_path(path, moved), target

    def see_published(self, plan: Plan, cut: Cut, outcome: Outcome) -> None:
        """Remember what the databases mention that were published, before their copies go."""
        for change in outcome.changes:
            for path in (change.source, change.target) if isinstance(change, Renamed) else ():
                self._mentions.forget(path)
        places = {change.path for change in outcome.changes if isinstance(change, Set)}
        self._mentions.know({run_of(path) for path in places} - {b""})
        published = {plan.stands_at.get(path, path) for path in places} & cut.frozen.keys()
        if published:
            self._mentions.know({join(RUNS, name) for name in self.index.stamps(RUNS)})
        for path in published:
            self._after_absent.pop(path, None)
            self._mentions.see(path, cut.frozen[path].path)

    def see_late(self, plan: Plan, paths: AbstractSet[RelPath]) -> None:
        """Remember the inodes of ``paths``: data that did not come, and may have older names."""
        at = plan.stands_at
        seen = {at.get(d.path, d.path): d.seen.inode for d in plan.files if d.seen is not None}
        seen |= self.only_copies.beneath
        late = {at.get(path, path) for path in paths} | self.only_copies.beneath.keys()
        self.late = {p: inode for p, inode in (self._late | seen).items() if p in late}

    @property
    def late(self) -> dict[RelPath, int]:
        """The inodes of what did not come with the last batch, by where it stands."""
        return self._late

    @late.setter
    def late(self, late: dict[RelPath, int]) -> None:
        self._late = late
        self.only_copies.late = {inode: path for path, inode in late.items()}

    def renamed_ones(self, late: AbstractSet[RelPath], plan: Plan) -> set[RelPath]:
        """Return where that of ``late`` stands now that ``plan`` brings under another name."""
        inodes = {self._late.get(path) for path in late}
        found = (d.path for d in plan.files if d.seen is not None and d.seen.inode in inodes)
        return {plan.stands_at.get(path, path) for path in found}

    def failing(self) -> set[RelPath]:
        """Return the runs with data that cannot come, though they are still there."""
        told = {p.path for p in self.problems.values() if p.kind in LASTING}
        promised = filter(self.order.is_promised, told)
        with on_this_machine():
            return {scope_of(path) for path in promised if self._differs(path)}

    def _differs(self, path: RelPath) -> bool:
        known, seen = self.index.known(path), self.cuts.scanner.see(path)
        return seen is not None and (known is None or known.stamp != seen)

    def take_problems(self, plan: Plan, outcome: Outcome) -> None:
        """Forget the problems of what was pushed, and take those that its ``outcome`` tells."""
        left = outcome.deferred | outcome.retry | outcome.held | outcome.as_it_came.keys()
        parts = (plan.files, plan.directories, plan.links, plan.removals, plan.revoked)
        for difference in chain(*parts):
            if (path := difference.path) not in left:
                self.problems.pop(path, None)
                self.problems.pop(plan.stands_at.get(path, path), None)
        self.problems.update({p.path: p for p in outcome.problems})
        self._behind |= {p.path for p in outcome.problems if p.kind == BEHIND}
        self._behind &= self.problems.keys()

    def is_behind_anew(self, outcome: Outcome) -> bool:
        """Whether a file is behind of which the last checkpoints do not say so."""
        behind = (problem.path for problem in outcome.problems if problem.kind == BEHIND)
        told = {path for path, problem in self.problems.items() if problem.kind == BEHIND}
        return any(path not in told for path in behind)


def _came_from(plan: Plan) -> dict[RelPath, RelPath]:
    """Return the sources of the renames of ``plan``, and of those that it awaits, by targets."""
    came_from = {move.target: move.source for move in plan.moves}
    return came_from | {target: source for source, target in plan.awaited_moves}


def _moves_of_damaged(
    found: Mapping[RelPath, Difference],
) -> set[tuple[RelPath, RelPath]]:
    """Return where what came damaged may have been renamed to, also where nobody told of that.

    Sent as a new file it would go back, and what OneData has of it, which may be mended, would go.
    """
    gone = {p: d.known.stamp for p, d in found.items() if not d.seen and is_damaged_row(d.known)}
    if not gone:
        return set()
    new = {d.seen.inode: path for path, d in found.items() if d.seen and d.known is None}
    return {(p, new[old.inode]) for p, old in gone.items() if old and old.inode in new}


def _without(plan: Plan, left: AbstractSet[RelPath]) -> Plan:
    """Leave removals of ``left``, and renames from there, to a later batch."""
    removals = {d.path for d in plan.removals if d.path not in left}
    moves = {(m.source, m.target) for m in plan.moves if m.source not in left}
    return restricted(plan, removals, moves)
