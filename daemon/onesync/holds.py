"""What a batch holds back because of what did not come: markers, databases, removals, renames."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from onesync.core.model import Kind, RelPath, is_beneath, is_unconfirmed, lies_in
from onesync.core.ordering import PublishOrder, is_in_scope, run_of, scope_of, scopes_of
from onesync.core.plan import Difference, Named, Plan, staying
from onesync.mentions import by_run, leading, linked, mentioned, runs_leading
from onesync.outcome import Outcome

_PATIENCE_SECONDS = 10.0
_PATIENCE_BATCHES = 5


_NamedBefore = Callable[[AbstractSet[RelPath], AbstractSet[RelPath]], AbstractSet[RelPath]]


@dataclass(slots=True)
class ProjectWait:
    """How long the project's databases have waited: in batches of any length, and seconds.

    Their rows may name the files of any run, and there may be many runs: what one of them lacks
    must not hold back the whole project for ever.

    Attributes:
        since: when (monotonic) the wait began; None while there is none.
        batches: so many have held them back since.
    """

    since: float | None = None
    batches: int = 0

    def is_over(self, now: float) -> bool:
        """Whether they have waited long enough."""
        is_long = self.since is not None and now - self.since >= _PATIENCE_SECONDS
        return is_long and self.batches >= _PATIENCE_BATCHES

    def was(self, is_held: bool, now: float) -> None:
        """Take over whether a batch held a database of the project back."""
        self.since = (self.since or now) if is_held else None
        self.batches = self.batches + 1 if is_held else 0


@dataclass(slots=True)
class _Lack:
    """The runs whose databases wait, for what some of the snapshots may name.

    Attributes:
        databases: of which something did not come.
        missing: those of which OneData has no version of it, so that others' databases wait too.
        renaming: where something is renamed by the next batch.
        snapshots: places of the snapshots that may name it, by their databases.
        held: those that wait, and for which ``state`` of this that was found out.
    """

    databases: set[RelPath] = field(default_factory=set)
    missing: set[RelPath] = field(default_factory=set)
    renaming: set[RelPath] = field(default_factory=set)
    snapshots: Mapping[RelPath, bytes] = field(default_factory=dict)
    held: tuple[tuple[int, ...], AbstractSet[RelPath]] = ((0, 0, 0), frozenset())

    def state(self) -> tuple[int, ...]:
        """Return what tells whether anything was added: nothing is ever taken away."""
        return len(self.databases), len(self.missing), len(self.renaming)


class Holds:
    """What of one batch waits, by the runs that it belongs to. Told by the push's workers.

    Snapshots that waited for the data of their cut are older than what came since: they wait for no
    more than for that. Others may be younger than anything that this batch knows of.

    Attributes:
        outcome: is told what is deferred, and what of the data is lacking.
        after_absent: the databases that wait for new ones which the cut left out, or for names
            that are still those of others.
    """

    def __init__(
        self,
        named: AbstractSet[RelPath] | None,
        waiting: AbstractSet[RelPath],
        promised: AbstractSet[RelPath],
        wait: ProjectWait,
        failing: AbstractSet[RelPath],
        links: Callable[[], Iterable[tuple[RelPath, bytes]]],
        named_by: Named,
        named_before: _NamedBefore,
        stay_a_while: Callable[[AbstractSet[RelPath]], AbstractSet[RelPath]],
        databases_at: Callable[[AbstractSet[RelPath]], Iterable[RelPath]],
        absent: AbstractSet[RelPath],
        impatient: AbstractSet[RelPath],
        order: PublishOrder,
    ) -> None:
        """Hold nothing back yet.

        Args:
            named: what of the data the snapshots may name that waited; None where none did.
            waiting: the databases of those, and what the cut left out with them.
            promised: the markers that wait for ``named`` alone.
            wait: how long the project's databases have waited.
            failing: runs with data that cannot come.
            links: returns path and target of every link that rows may name.
            named_by: returns which of some runs the rows of databases in OneData may name.
            named_before: returns which of what turned into another kind of thing the rows of some
                databases in OneData may name.
            stay_a_while: returns which of those may stay for others than late data.
            databases_at: returns the databases that OneData may have at and beneath some paths.
            absent: new databases that the cut left out; who may name them is taken anew.
            impatient: databases that waited long enough for such ones.
            order: tells what nobody names: it holds nothing back.
        """
        self.outcome = Outcome()
        self._named = named
        self._waiting = waiting
        self._promised = promised
        self._failing = set(failing)
        self._links = links
        self._named_by = named_by
        self._named_before = named_before
        self._stay_a_while = stay_a_while
        self._named_for_a_while: set[RelPath] = set()
        self._databases_at = databases_at
        self._absent = absent
        self._impatient = impatient
        self._order = order
        self.after_absent: set[RelPath] = set()
        self._put_off: set[RelPath] = set()
        self._with_what_stays: AbstractSet[RelPath] = frozenset()
        self._new: set[RelPath] = set()
        self._stands_at: Mapping[RelPath, RelPath] = {}
        self._for_fresh = _Lack()
        self._for_old = self._for_fresh if named is None else _Lack()
        self._lacking: set[RelPath] = set()
        self._late: set[RelPath] = set()
        self._late_for_data: AbstractSet[RelPath] = frozenset()
        self._waits: tuple[tuple[int, ...], AbstractSet[RelPath]] | None = None
        self._markers: set[RelPath] = set()
        self._promised_markers: set[RelPath] = set()
        self._project_waits = not wait.is_over(time.monotonic())
        self._guard = threading.Lock()

    def is_named(self, path: RelPath) -> bool:
        """Whether the snapshots that waited may name ``path``, or any where none did."""
        return self._named is None or path in self._named

    def defer(self, path: RelPath) -> None:
        """Leave data to the next batch: it holds back the markers of its run, and databases."""
        self.outcome.deferred.add(path)
        self._lack(path)

    def put_off(self, path: RelPath) -> None:
        """Hold back the markers of the run of what has the name of another thing, and who names it.

        Databases are taken anew: those that waited for it might wait for each other.
        """
        self._put_off.add(path)
        self._markers.add(scope_of(path))
        self._promised_markers.add(scope_of(path))

    def take_up(self, path: RelPath) -> None:
        """Bring data that was deferred, after all; what waits for them waits on."""
        self.outcome.deferred.discard(path)
        self.outcome.lacking.discard(path)
        self._lacking.discard(path)

    def leave_behind(self, path: RelPath, *, is_missing: bool) -> None:
        """Hold back the markers and databases of the run of what did not come.

        Where it ``is_missing``, for OneData has no version of that file, also those of the project
        and all that mention the run. For older versions they do not wait: of many runs one has
        nearly always a file that changes while it is copied.
        """
        self._lack(path)
        self._leave(path, is_missing=is_missing)

    def fail(self, path: RelPath) -> None:
        """Hold back the markers of the run of what cannot come, for as long as it cannot.

        Nobody knows how long that is, so the databases do not wait: theirs are the rows of all else
        in the run, and the checkpoint tells what is missing.
        """
        self._failing.add(scope_of(path))

    def is_kept(self, path: RelPath) -> bool:
        """Whether the marker ``path`` waits for data that cannot come."""
        return scope_of(path) in self._failing

    def let_wait(self, path: RelPath) -> None:
        """Hold back the databases alone: what did not come waits for a marker."""
        self._leave(path, is_missing=True)

    def _leave(self, path: RelPath, *, is_missing: bool) -> None:
        if self._order.is_unnamed(path):
            return
        for lack in (self._for_fresh, self._for_old) if self.is_named(path) else (self._for_fresh,):
            lack.databases.add(scope_of(path))
            if is_missing:
                lack.missing.add(scope_of(path))

    def _lack(self, path: RelPath) -> None:
        if self._order.is_unnamed(path):
            return
        self._markers.add(scope_of(path))
        self._lacking.add(path)
        if self.is_named(path):
            self._promised_markers.add(scope_of(path))
            self.outcome.lacking.add(path)

    def begin_databases(
        self,
        snapshots: Mapping[RelPath, bytes],
        markers: Iterable[RelPath],
        plan: Plan,
    ) -> None:
        """Hold back those ``snapshots`` (places, by their databases) whose rows may name late data.

        They wait for no other data, and neither do the ``markers``, which wait for those of their
        run, and the renames of ``plan``, which wait for what they are to carry along.
        """
        is_old = {path: self._named is None or path in self._waiting for path in snapshots}
        old = {path: at for path, at in snapshots.items() if is_old[path]}
        fresh = {path: at for path, at in snapshots.items() if not is_old[path]}
        self._for_fresh.snapshots, self._for_old.snapshots = fresh, old  # one where none waited
        self._stands_at = plan.stands_at
        self._new = {d.path for d in plan.files if d.path in snapshots and _is_new(d)}
        late = self._late_data(self.outcome.lacking)
        runs = {run for of in late.values() for run in map(scope_of, of)}
        sources = {move.source for move in plan.moves}
        needed = {run for run in map(scope_of, markers) if run in runs}
        carried = (of for path, of in late.items() if lies_in(path, sources))
        needed |= {run for of in carried for run in map(scope_of, of)}
        if runs and old:
            needed |= self._find_late(old, late, runs)
        self.outcome.lacking -= {
            p for p, of in late.items() if needed.isdisjoint(map(scope_of, of))
        }
        self.outcome.is_late = bool(needed)
        if fresh:
            self._find_late_fresh(fresh)
        self._late_for_data = set(self._late)
        self.after_absent = self._who_waits_for(self._absent | self._put_off) - self._impatient
        self._late |= self.after_absent

    def _who_waits_for(self, paths: AbstractSet[RelPath]) -> set[RelPath]:
        """Return the databases that may name what is absent; not those that waited before it was.

        These are older.
        """
        if not paths:
            return set()
        return set(self._who_names(self._for_fresh.snapshots, self._with_links(paths)))

    def named_as_before(self, plan: Plan, turned: AbstractSet[RelPath]) -> AbstractSet[RelPath]:
        """Return what of ``turned`` rows may name that this batch does not replace, by now."""
        snapshots = {**self._for_old.snapshots, **self._for_fresh.snapshots}
        held = {path for path in snapshots if self.is_held(path, is_database=True)}
        # Late data come; others may be locked, or change, for ever.
        late = held & self._late_for_data
        others = (held - late).union(self._databases_at(self.waiting(plan)))
        self._named_for_a_while |= self._named_before(others, turned)
        return self._named_before(late, turned) | self._stay_a_while(self._named_for_a_while)

    def stay(self, beneath: AbstractSet[RelPath], tops: AbstractSet[RelPath]) -> None:
        """Hold back all that waits for what lies ``beneath`` things that stay as they were.

        Removals, and sources of renames, that are ``tops`` stay with them. However long that takes:
        those that name what stays have to come first.
        """
        for path in beneath:
            self.take_up(path)
            self.put_off(path)
        self._with_what_stays = tops
        self._waits = None
        self.after_absent |= self._who_waits_for(beneath)
        self._late |= self.after_absent

    def _with_links(self, paths: AbstractSet[RelPath]) -> AbstractSet[RelPath]:
        """Return ``paths`` with the links that lead there, and the runs of such links."""
        runs = {scope_of(path) for path in paths} - {b""}
        return paths | leading(self._links(), paths) | self._through_links(runs)

    def _late_data(self, lacking: AbstractSet[RelPath]) -> dict[RelPath, set[RelPath]]:
        """Return what of ``lacking`` is left to the next batch, with its names."""
        return {path: self._names_of(path) for path in lacking & self.outcome.deferred}

    def _names_of(self, path: RelPath) -> set[RelPath]:
        """Return the names of ``path`` in OneData, and in the working copy."""
        return {path, self._stands_at.get(path, path)}

    def _find_late_fresh(self, fresh: Mapping[RelPath, bytes]) -> None:
        """Let those wait that may name any late data, or one of the older snapshots."""
        late = self._late_data(self._lacking)
        named = {name for names in late.values() for name in names}
        runs = {scope_of(name) for name in named}
        named |= {n for path in self._waiting if scope_of(path) for n in self._names_of(path)}
        if named:
            named |= leading(self._links(), named)
            more = self._through_links(runs | {scope_of(path) for path in self._waiting} - {b""})
            self._late |= self._who_names(fresh, named | more).keys()

    def _find_late(
        self,
        snapshots: Mapping[RelPath, bytes],
        late: Mapping[RelPath, AbstractSet[RelPath]],
        runs: set[RelPath],
    ) -> set[RelPath]:
        """Find the databases that wait for ``late`` data of ``runs``; returns the runs they do."""
        through_links = self._through_links(runs) - runs
        names = {name for of in late.values() for name in of}
        names |= leading(self._links(), names)
        named = self._who_names(snapshots, names | through_links)
        self._late = set(named)
        waited_for = {path for of in named.values() for path in of}
        if waited_for & through_links:
            return runs
        return {scope_of(path) for path in waited_for & names}

    def _through_links(self, runs: AbstractSet[RelPath]) -> set[RelPath]:
        """Return the runs whose links lead into ``runs``, at once or through others."""
        links = list(self._links())
        found: set[RelPath] = set()
        new: AbstractSet[RelPath] = runs
        while new and b"" not in new:  # what lies outside of the runs counts as named by all
            new = {scope_of(path) for path in linked(links, new)} - runs - found
            found |= new
        return found

    def _who_names(
        self, snapshots: Mapping[RelPath, bytes], paths: AbstractSet[RelPath]
    ) -> dict[RelPath, set[RelPath]]:
        """Return the databases that may name any of ``paths``, each with those that it may.

        Whole runs may be among them. A database may name all in its own run, and with one that
        waits those wait that may name it. What lies outside of the runs counts as named by all.
        """
        found: dict[RelPath, set[RelPath]] = {}
        new, seen = set(paths), set(paths)
        while new:
            grouped = by_run(new)
            for path in snapshots.keys() - found.keys():
                of = mentioned(snapshots[path], grouped)
                if own := grouped.get(scope_of(path)):
                    of |= own
                if of:
                    found[path] = of
            new = {n for path in found if scope_of(path) for n in self._names_of(path)} - seen
            seen |= new
        return found

    def who_names(self, runs: AbstractSet[RelPath]) -> set[RelPath]:
        """Return those of the databases that may name what lies in ``runs``."""
        snapshots = {**self._for_old.snapshots, **self._for_fresh.snapshots}
        return set(self._who_names(snapshots, runs | self._through_links(runs)))

    def _held(self, lack: _Lack) -> AbstractSet[RelPath]:
        """Return the databases that wait for what ``lack`` tells now."""
        with self._guard:
            state = lack.state()
            if lack.held[0] != state:
                lack.held = state, self._find_held(lack)
            return lack.held[1]

    def _find_held(self, lack: _Lack) -> set[RelPath]:
        of_runs = {path: at for path, at in lack.snapshots.items() if scope_of(path)}
        held = {path for path in lack.snapshots if self._is_lacking(path, lack)}
        runs = lack.missing | lack.renaming
        if runs and of_runs:
            held |= self._who_names(of_runs, runs | self._through_links(runs)).keys()
        if new := {path for path in held & self._new if scope_of(path)}:
            names = {name for path in new for name in self._names_of(path)}
            snapshots = lack.snapshots if self._project_waits else of_runs
            held |= self._who_names(snapshots, self._with_links(names)).keys()
        return held

    def _is_lacking(self, path: RelPath, lack: _Lack) -> bool:
        """Whether something did not come in the run of ``path``, or in any for the project's."""
        if not scope_of(path):
            return self._holds_project(lack) or run_of(path) in lack.databases
        return is_in_scope(path, lack.renaming) or scope_of(path) in lack.databases

    def await_renames(self, moves: Iterable[tuple[RelPath, RelPath]]) -> None:
        """Hold back what may name the targets of renames that the next batch does."""
        renamed = scopes_of(moves)
        self._markers |= renamed
        self._for_fresh.renaming = renamed

    def await_targets(self, plan: Plan) -> None:
        """Hold back what may name the targets of renames that wait, in whichever run they are."""
        while True:
            waits = self.waiting(plan)
            waiting = [move for move in plan.moves if move.source in waits]
            sources = {move.source for move in waiting}
            more = {scope_of(move.target) for move in waiting}
            more |= {scope_of(path) for path in plan.stands_at if lies_in(path, sources)}
            known = self._markers & self._promised_markers & self._for_old.databases
            if more <= known & self._for_fresh.databases:
                return
            self._markers |= more
            self._promised_markers |= more
            for lack in (self._for_old, self._for_fresh):
                lack.renaming |= more & {b""}  # what lies outside of the runs all rows may name
                lack.databases |= more
                lack.missing |= more

    def is_late(self, database: RelPath) -> bool:
        """Whether data were left to the next batch that rows of ``database`` may name."""
        return database in self._late

    def is_held(self, path: RelPath, *, is_database: bool) -> bool:
        """Whether data that ``path`` promises did not come."""
        if path in self._late:
            return True
        if is_database:
            is_fresh = path in self._for_fresh.snapshots
            return path in self._held(self._for_fresh if is_fresh else self._for_old)
        markers = self._promised_markers if path in self._promised else self._markers
        return scope_of(path) in markers

    def waiting(self, plan: Plan) -> AbstractSet[RelPath]:
        """Return the removals of ``plan``, and the sources of its renames, that a later batch does.

        For databases are held back that do not name them any more, or that these carry along; not
        the fresh ones: where snapshots waited, removals and renames are older than those, and than
        what OneData has of the others.
        """
        state = self._for_old.state()
        if self._waits is None or self._waits[0] != state:
            self._waits = state, self._find_waiting(plan)
        return self._waits[1]

    def _find_waiting(self, plan: Plan) -> set[RelPath]:
        sources = {move.source for move in plan.moves}
        removals = {d.path for d in plan.removals if d.seen is None}
        tops = removals | sources
        if self.outcome.is_late:
            return tops
        lack = self._for_old
        held = self._held(lack) | (self._late & lack.snapshots.keys())
        through = runs_leading(list(self._links()), removals) if held and removals else {}
        runs = {run_of(top) for top in tops}.union(*through.values())
        named = self._named_by(held, runs) if held else frozenset()
        carried = {top for top in sources if any(is_beneath(s, top) for s in list(lack.databases))}
        waiting = carried | self._with_what_stays
        waiting |= {
            top
            for top in tops
            if run_of(top) in named or top in self._late or self._is_lacking(top, lack)
        }
        of_links = named | set(map(scope_of, held))
        waiting |= {top for top, of in through.items() if not of_links.isdisjoint(of)}
        # With a removal that waits what it removes stays as it was, and so may rows.
        new = waiting
        while new:
            with_them = {path for path in removals - waiting if lies_in(path, new & sources)}
            waiting |= with_them
            stay = (new | with_them) - sources
            new = staying(tops - waiting, stay, self._databases_at, self._named_by)
            waiting |= new
        return waiting

    def _holds_project(self, lack: _Lack) -> bool:
        """Whether the databases of the project wait for what they may name in any run."""
        if b"" in lack.databases or b"" in lack.renaming:
            return True
        return self._project_waits and bool(lack.missing | lack.renaming)


def _is_new(difference: Difference) -> bool:
    """Whether the last checkpoint has no file under that name."""
    known = difference.known
    return known is None or is_unconfirmed(known.entry) or known.entry.kind is not Kind.FILE
