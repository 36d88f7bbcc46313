"""What a batch holds back because of what did not come: markers, databases, removals, renames."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from onesync.core.model import RelPath, is_beneath, is_unconfirmed, lies_in
from onesync.core.ordering import is_in_scope, run_of, scope_of, scopes_of
from onesync.core.plan import Difference, Move, Plan
from onesync.mentions import by_run, linked, mentioned
from onesync.outcome import Outcome

_PATIENCE_SECONDS = 10.0
_PATIENCE_BATCHES = 5


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
    """

    databases: set[RelPath] = field(default_factory=set)
    missing: set[RelPath] = field(default_factory=set)
    renaming: set[RelPath] = field(default_factory=set)


class Holds:
    """What of one batch waits, by the runs that it belongs to. Told by the push's workers.

    Snapshots that waited for the data of their cut are older than what came since: they wait for no
    more than for that. Others may be younger than anything that this batch knows of.

    Attributes:
        outcome: is told what is deferred, and what of the data is lacking.
        after_absent: the databases that wait for new ones which the cut left out.
    """

    def __init__(
        self,
        named: AbstractSet[RelPath] | None,
        waiting: AbstractSet[RelPath],
        promised: AbstractSet[RelPath],
        wait: ProjectWait,
        failing: AbstractSet[RelPath],
        links: Callable[[], Iterable[tuple[RelPath, bytes]]],
        may_name: Callable[[RelPath, RelPath], bool],
        named_by: Callable[[AbstractSet[RelPath], AbstractSet[RelPath]], AbstractSet[RelPath]],
        absent: AbstractSet[RelPath],
    ) -> None:
        """Hold nothing back yet.

        Args:
            named: what of the data the snapshots may name that waited; None where none did.
            waiting: the databases of those, and what the cut left out with them.
            promised: the markers that wait for ``named`` alone.
            wait: how long the project's databases have waited.
            failing: runs with data that cannot come.
            links: returns path and target of every link that rows may name.
            may_name: whether rows of a database in OneData may name what lies in a run.
            named_by: returns which of some runs the databases may name that are among removals.
            absent: new databases that the cut left out; who may name them is taken anew.
        """
        self.outcome = Outcome()
        self._named = named
        self._waiting = waiting
        self._promised = promised
        self._failing = set(failing)
        self._links = links
        self._may_name = may_name
        self._named_by = named_by
        self._absent = absent
        self.after_absent: set[RelPath] = set()
        self._new: set[RelPath] = set()
        self._old: Mapping[RelPath, bytes] = {}
        self._fresh: Mapping[RelPath, bytes] = {}
        self._stands_at: Mapping[RelPath, RelPath] = {}
        self._for_fresh = _Lack()
        self._for_old = self._for_fresh if named is None else _Lack()
        self._lacking: set[RelPath] = set()
        self._late: set[RelPath] = set()
        self._mentioning: dict[tuple[AbstractSet[RelPath], AbstractSet[RelPath]], set[RelPath]] = {}
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
        for lack in (self._for_fresh, self._for_old) if self.is_named(path) else (self._for_fresh,):
            lack.databases.add(scope_of(path))
            if is_missing:
                lack.missing.add(scope_of(path))

    def _lack(self, path: RelPath) -> None:
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
        self._old = {path: at for path, at in snapshots.items() if is_old[path]}
        self._fresh = {path: at for path, at in snapshots.items() if not is_old[path]}
        self._stands_at = plan.stands_at
        self._new = {d.path for d in plan.files if d.path in snapshots and _is_new(d)}
        late = self._late_data(self.outcome.lacking)
        runs = {run for of in late.values() for run in map(scope_of, of)}
        sources = {move.source for move in plan.moves}
        needed = {run for run in map(scope_of, markers) if run in runs}
        carried = (of for path, of in late.items() if lies_in(path, sources))
        needed |= {run for of in carried for run in map(scope_of, of)}
        if runs and self._old:
            needed |= self._find_late(self._old, late, runs)
        self.outcome.lacking -= {
            p for p, of in late.items() if needed.isdisjoint(map(scope_of, of))
        }
        self.outcome.is_late = bool(needed)
        if self._fresh:
            self._find_late_fresh()
        if self._absent:
            self.after_absent = set(self._who_names(snapshots, self._absent))
            self._late |= self.after_absent

    def _late_data(self, lacking: AbstractSet[RelPath]) -> dict[RelPath, set[RelPath]]:
        """Return what of ``lacking`` is left to the next batch, with its names."""
        return {path: self._names_of(path) for path in lacking & self.outcome.deferred}

    def _names_of(self, path: RelPath) -> set[RelPath]:
        """Return the names of ``path`` in OneData, and in the working copy."""
        return {path, self._stands_at.get(path, path)}

    def _find_late_fresh(self) -> None:
        """Let those wait that may name any late data, or one of the older snapshots."""
        late = self._late_data(self._lacking)
        named = {name for names in late.values() for name in names}
        runs = {scope_of(name) for name in named}
        named |= {n for path in self._waiting if scope_of(path) for n in self._names_of(path)}
        if named:
            more = self._through_links(runs | {scope_of(path) for path in self._waiting} - {b""})
            self._late |= self._who_names(self._fresh, named | more).keys()

    def _find_late(
        self,
        snapshots: Mapping[RelPath, bytes],
        late: Mapping[RelPath, AbstractSet[RelPath]],
        runs: set[RelPath],
    ) -> set[RelPath]:
        """Find the databases that wait for ``late`` data of ``runs``; returns the runs they do."""
        through_links = self._through_links(runs) - runs
        names = {name for of in late.values() for name in of}
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
        through_links = self._through_links(runs)
        return set(self._who_names({**self._old, **self._fresh}, runs | through_links))

    def _wait_for_names(
        self, lack: _Lack, snapshots: Mapping[RelPath, bytes]
    ) -> AbstractSet[RelPath]:
        """Return the databases of runs that may name what is missing, or is to be renamed."""
        runs = lack.missing | lack.renaming
        of_runs = {path: at for path, at in snapshots.items() if scope_of(path)}
        if not runs or not of_runs:
            return frozenset()
        return self._remembered(of_runs, runs, lambda: runs | self._through_links(runs))

    def _after_new(self, lack: _Lack, snapshots: Mapping[RelPath, bytes]) -> AbstractSet[RelPath]:
        """Return the databases that may name a new one of a run which is held back itself."""
        new = {path for path in self._new & snapshots.keys() if scope_of(path)}
        held = {path for path in new if self._lacks(path, lack, snapshots)}
        names = {name for path in held for name in self._names_of(path)}
        return self._remembered(snapshots, names, lambda: names) if names else frozenset()

    def _remembered(
        self,
        snapshots: Mapping[RelPath, bytes],
        key: AbstractSet[RelPath],
        paths: Callable[[], AbstractSet[RelPath]],
    ) -> AbstractSet[RelPath]:
        """Return who of ``snapshots`` may name ``paths``, which are told apart by their ``key``."""
        both = frozenset(key), frozenset(snapshots)
        with self._guard:
            if both not in self._mentioning:
                self._mentioning[both] = set(self._who_names(snapshots, paths()))
            return self._mentioning[both]

    def await_renames(self, moves: Iterable[tuple[RelPath, RelPath]]) -> None:
        """Hold back what may name the targets of renames that the next batch does."""
        renamed = scopes_of(moves)
        self._markers |= renamed
        self._for_fresh.renaming = renamed

    def await_targets(self, plan: Plan) -> None:
        """Hold back what may name the targets of renames that wait, in whichever run they are."""
        while True:
            waiting = [move for move in plan.moves if self.move_waits(move)]
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
        if is_database and path in self._fresh:
            return self._waits(path, self._for_fresh, self._fresh)
        if is_database:
            return self._waits(path, self._for_old, self._old)
        markers = self._promised_markers if path in self._promised else self._markers
        return scope_of(path) in markers

    def _waits(self, path: RelPath, lack: _Lack, snapshots: Mapping[RelPath, bytes]) -> bool:
        if self._lacks(path, lack, snapshots):
            return True
        may_wait = bool(scope_of(path)) or self._project_waits
        return may_wait and path in self._after_new(lack, snapshots)

    def _lacks(self, path: RelPath, lack: _Lack, snapshots: Mapping[RelPath, bytes]) -> bool:
        if not scope_of(path):
            return self._holds_project(lack)
        waits = is_in_scope(path, lack.renaming) or scope_of(path) in lack.databases
        return waits or path in self._wait_for_names(lack, snapshots)

    def waiting_removals(self, paths: Iterable[RelPath]) -> set[RelPath]:
        """Return those of ``paths`` that go later: with them, what databases among them name."""
        rest = set(paths)
        waiting = {path for path in rest if self.removal_waits(path)}
        while waiting and (rest := rest - waiting):
            named = self._named_by(waiting, {run_of(path) for path in rest})
            if not (more := {path for path in rest if run_of(path) in named}):
                break
            waiting |= more
        return waiting

    def removal_waits(self, path: RelPath) -> bool:
        """Whether databases were held back that do not name ``path`` any more."""
        waits = self.outcome.is_late or path in self._late
        waits = waits or self._waits(path, self._for_old, self._old)
        return waits or any(self._may_be_named(path, database) for database in self._held())

    def _may_be_named(self, path: RelPath, database: RelPath) -> bool:
        """Whether OneData's version of ``database`` may name ``path``; the project's may all."""
        return not scope_of(database) or self._may_name(database, scope_of(path))

    def _held(self) -> list[RelPath]:
        """Return the databases that are held back, as far as it is known now.

        Not the fresh ones: where snapshots waited, removals and renames are older than those, and
        than what OneData has of the others.
        """
        return [path for path in self._old if self.is_held(path, is_database=True)]

    def move_waits(self, move: Move, waiting: AbstractSet[RelPath] = frozenset()) -> bool:
        """Whether databases of the runs that ``move`` leaves, or carries along, were held back.

        Or may be named by databases among the removals that are ``waiting``.
        """
        if waiting and self._named_by(waiting, {run_of(move.source)}):
            return True
        carried = (is_beneath(scope, move.source) for scope in list(self._for_old.databases))
        return self.removal_waits(move.source) or any(carried)

    def _holds_project(self, lack: _Lack) -> bool:
        """Whether the databases of the project wait for what they may name in any run."""
        if b"" in lack.databases or b"" in lack.renaming:
            return True
        return self._project_waits and bool(lack.missing | lack.renaming)


def _is_new(difference: Difference) -> bool:
    """Whether the last checkpoint has nothing under that name."""
    return difference.known is None or is_unconfirmed(difference.known.entry)
