"""What a batch holds back because of what did not come: markers, databases, removals, renames."""

from __future__ import annotations

import time
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from onesync.core.model import RelPath, is_beneath, lies_in
from onesync.core.ordering import is_in_scope, scope_of, scopes_of
from onesync.core.plan import Move, Plan
from onesync.outcome import Outcome

_WHILE_CHANGING_SECONDS = 3.0
_WHILE_MISSING_SECONDS = 10.0


@dataclass(slots=True)
class ProjectWait:
    """How long the project's databases have waited, batch after batch.

    Their rows may name the files of any run, and of many runs one nearly always has a file that
    changes while it is copied, or a new rename: waiting until none has would take for ever.

    Attributes:
        since: when (monotonic) the wait began; None while there is none.
        missing_since: when the wait began for what is missing: new files, names to be renamed to.
    """

    since: float | None = None
    missing_since: float | None = None

    def is_for_changing(self, now: float) -> bool:
        """Whether to wait for files that change inside, whose old versions are there."""
        return self.since is None or now - self.since < _WHILE_CHANGING_SECONDS

    def is_for_missing(self, now: float) -> bool:
        """Whether to wait for what is missing."""
        return self.missing_since is None or now - self.missing_since < _WHILE_MISSING_SECONDS

    def was(self, held: bool, missing: bool, is_late: bool, now: float) -> None:
        """Take over whether a batch held a database of the project back, and for what.

        Where all databases were late it is not known what of the rest would be missing.
        """
        self.since = (self.since or now) if held else None
        if not is_late:
            self.missing_since = (self.missing_since or now) if held and missing else None


class Holds:
    """What of one batch waits, by the runs that it belongs to. Told by the push's workers."""

    def __init__(
        self,
        outcome: Outcome,
        named: AbstractSet[RelPath] | None,
        promised: AbstractSet[RelPath],
        wait: ProjectWait,
    ) -> None:
        """Hold nothing back yet.

        Args:
            outcome: is told what is deferred, and what of the data is lacking.
            named: what of the data the databases may name that are pushed; None is all.
            promised: the markers that wait for ``named`` alone.
            wait: how long the project's databases have waited.
        """
        now = time.monotonic()
        self._outcome = outcome
        self._named = named
        self._promised = promised
        self._markers: set[RelPath] = set()
        self._promised_markers: set[RelPath] = set()
        self._databases: set[RelPath] = set()
        self._renaming: set[RelPath] = set()
        self._is_missing = False
        self._waits_for_changing = wait.is_for_changing(now)
        self._waits_for_missing = wait.is_for_missing(now)
        self._has_project = False

    def is_named(self, path: RelPath) -> bool:
        """Whether the databases of this batch may name ``path``."""
        return self._named is None or path in self._named

    def defer(self, path: RelPath) -> None:
        """Leave data to the next batch: it holds back the markers of its run, and databases."""
        self._outcome.deferred.add(path)
        self._lack(path)

    def take_up(self, path: RelPath) -> None:
        """Bring data that was deferred, after all; what waits for them waits on."""
        self._outcome.deferred.discard(path)
        self._outcome.lacking.discard(path)

    def leave_behind(self, path: RelPath, *, is_missing: bool) -> None:
        """Hold back the markers and databases of the run of what did not come.

        It ``is_missing`` where OneData has none of its versions.
        """
        self._lack(path)
        if self.is_named(path):
            self._databases.add(scope_of(path))
            self._is_missing |= is_missing

    def _lack(self, path: RelPath) -> None:
        self._markers.add(scope_of(path))
        if self.is_named(path):
            self._promised_markers.add(scope_of(path))
            self._outcome.lacking.add(path)

    def begin_databases(self, databases: Iterable[RelPath]) -> None:
        """Hold all ``databases`` back where data are late that any row of any of them may name."""
        self._has_project = any(not scope_of(path) for path in databases)
        self._outcome.is_late = not self._outcome.lacking.isdisjoint(self._outcome.deferred)

    def await_renames(self, moves: Iterable[tuple[RelPath, RelPath]]) -> None:
        """Hold back what may name the targets of renames that the next batch does."""
        renamed = scopes_of(moves)
        self._markers |= renamed
        if self._named is None:
            self._renaming = renamed

    def await_targets(self, plan: Plan) -> None:
        """Hold back what may name the targets of renames that wait, in whichever run they are."""
        while True:
            waiting = [move for move in plan.moves if self.move_waits(move)]
            sources = {move.source for move in waiting}
            more = {scope_of(move.target) for move in waiting}
            more |= {scope_of(path) for path in plan.stands_at if lies_in(path, sources)}
            if more <= self._markers & self._promised_markers & self._databases:
                return
            self._renaming |= more & {b""}  # what lies outside of the runs all rows may name
            self._markers |= more
            self._promised_markers |= more
            self._databases |= more
            self._is_missing = True

    def databases_wait(self) -> bool:
        """Whether data were left to the next batch that any row of any database may name."""
        return self._outcome.is_late

    def is_held(self, path: RelPath, *, is_database: bool) -> bool:
        """Whether data that ``path`` promises did not come."""
        if is_database:
            is_lacking = self._names_renamed(path) or scope_of(path) in self._databases
            return is_lacking or (not scope_of(path) and self._holds_project())
        markers = self._promised_markers if path in self._promised else self._markers
        return scope_of(path) in markers

    def removal_waits(self, path: RelPath) -> bool:
        """Whether the databases that do not name ``path`` any more were held back."""
        waits = self.databases_wait() or self.is_held(path, is_database=True)
        return waits or (self._has_project and self._holds_project())

    def move_waits(self, move: Move) -> bool:
        """Whether databases of the runs that ``move`` leaves, or carries along, were held back."""
        carried = (is_beneath(scope, move.source) for scope in self._databases)
        return self.removal_waits(move.source) or any(carried)

    def is_missing(self) -> bool:
        """Whether what databases wait for is missing, and not only older than it should be."""
        return self._is_missing or bool(self._renaming)

    def _holds_project(self) -> bool:
        if self.is_missing():
            return self._waits_for_missing
        return bool(self._databases) and self._waits_for_changing

    def _names_renamed(self, path: RelPath) -> bool:
        """Whether rows may name the new name of what the next batch renames."""
        return is_in_scope(path, self._renaming)
