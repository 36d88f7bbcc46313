"""Which deletions a batch carries out, and which are held until a person decides.

The rule is ``core.guard``'s; here stands what it needs to know across batches, and the durable
record of what is held. Engine's thread only, but for ``held``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass

from blake3 import blake3

from onesync.core.dirty import Due
from onesync.core.guard import LIMIT, Bound, absences, arrived, carried, outstanding, rule, tops
from onesync.core.model import Kind, Problem, RelPath, lies_in, parent_of, show
from onesync.core.plan import Difference
from onesync.errors import StateDirFailed
from onesync.index import Index
from onesync.local import on_this_machine
from onesync.marks import Marks
from onesync.scanner import Scanner

log = logging.getLogger(__name__)

HELD = "held_deletions"
_NAMED = 5
_PATIENCE_SECONDS = 10.0
"""So long after events were dropped what is unexplained waits, and is not held yet: whoever deletes
a large run deletes its directories last, which explains all that was in them."""


@dataclass(frozen=True, slots=True)
class Held:
    """What is held: the tops of it, and the number of rows of the index at and beneath them."""

    paths: frozenset[RelPath] = frozenset()
    count: int = 0

    def fingerprint(self) -> str:
        """Return what tells these paths from any others."""
        return fingerprint(self.paths)

    def problems(self) -> list[Problem]:
        """Return one problem that sums it up, or none."""
        if not self.paths:
            return []
        names = ", ".join(show(path) for path in sorted(self.paths)[:_NAMED])
        more = ", …" if len(self.paths) > _NAMED else ""
        text = (
            f"{self.count} files and directories are missing from the working directory although"
            f" nobody was seen deleting them ({names}{more}); they are kept in OneData. 'onesync"
            " resume' lists them, 'onesync resume --accept-deletions' lets them go; stop and start"
            " the service to bring them back."
        )
        return [Problem(b"", HELD, text)]


def fingerprint(paths: Iterable[RelPath]) -> str:
    """Return what tells a set of paths from any other."""
    return blake3(b"\0".join(sorted(paths))).hexdigest()


class Deletions:
    """The guard of one working copy. ``held`` may be read by any thread.

    ``bound`` is what may go unexplained; the engine changes it with the configuration.
    """

    def __init__(
        self,
        index: Index,
        scanner: Scanner,
        marks: Marks,
        bound: Bound,
        now: Callable[[], float],
    ) -> None:
        """Go on with what the index says is held, and explained, in a copy that is staged in.

        ``now`` are seconds on CLOCK_BOOTTIME.
        """
        self._index = index
        self._scanner = scanner
        self._marks = marks
        self.bound = bound
        self._now = now
        self._believed: set[RelPath] = set()
        self._remembered: Set[RelPath] = frozenset()
        self._settled: Set[RelPath] = frozenset()
        self._waiting: set[RelPath] = set()
        self._overflows = 0
        self._patient_until = 0.0
        self.held = Held()
        if index.get("staged") is not None:
            self._load()
            self._remembered = index.explained()
            self._believed |= self._remembered

    def judge(
        self,
        found: dict[RelPath, Difference],
        looked: Due,
        settled: Set[RelPath],
        drain: Callable[[], None],
        *,
        at_once: bool,
    ) -> dict[RelPath, Difference]:
        """Return what of ``found`` may be planned: all but what is held.

        Args:
            found: the differences of a cut.
            looked: what the cut looked at.
            settled: paths whose absence is settled: awaited removals and sources of renames.
            drain: waits until the watcher told all that happened before.
            at_once: nothing waits for its explanation: what has none now is held.
        """
        self._settled = settled
        self._hear()
        missing = absences(found)
        known = self.held.paths - self._reappeared(self.held.paths, missing, looked)
        self._waiting -= self._reappeared(self._waiting, missing, looked)
        fresh = {path for path in missing if not lies_in(path, known)}
        more = self._rule(found, fresh, known)
        if more:
            # Something may have been deleted while the scan was going on.
            drain()
            self._hear()
            more = self._rule(found, fresh, known)
        self._remember()
        held, waiting = self._unexplained(known), self._unexplained(self._waiting) | more
        if at_once or self._now() >= self._patient_until:
            held, waiting = held | waiting, set()
        self._keep(tops(held))
        self._wait_for(tops(waiting))
        left_out = self.held.paths | self._waiting
        return {p: d for p, d in found.items() if not lies_in(p, left_out)} if left_out else found

    def _unexplained(self, paths: Set[RelPath]) -> set[RelPath]:
        believed = self._believed | self._settled
        return {path for path in paths if not lies_in(path, believed)}

    def is_explained(self, path: RelPath) -> bool:
        """Whether somebody was seen deleting or moving ``path``, or what it lay in."""
        return lies_in(path, self._believed)

    def _wait_for(self, waiting: set[RelPath]) -> None:
        """Look at ``waiting`` again with the next batch."""
        if waiting and not self._waiting:
            log.info("unexplained absences wait for an explanation", extra={"tops": len(waiting)})
        self._waiting = waiting
        self._marks.again(waiting)

    def _hear(self) -> None:
        """Take what was explained, and notice whether explanations may have been lost."""
        self._believed |= self._marks.take_deleted()
        if self._marks.overflows != self._overflows:
            self._overflows = self._marks.overflows
            self._patient_until = self._now() + _PATIENCE_SECONDS

    def _rule(
        self, found: dict[RelPath, Difference], fresh: set[RelPath], known: Set[RelPath]
    ) -> set[RelPath]:
        """Return what has no explanation; all that has none while anything is held or waits."""
        if not self._unexplained(fresh):
            return set()
        bound = 0 if known or self._waiting else self.bound.of(self._index.count())
        believed = self._believed | self._settled
        return rule(fresh, believed, self._index.beneath, arrived(found), bound)

    def _reappeared(self, paths: Set[RelPath], missing: Set[RelPath], looked: Due) -> set[RelPath]:
        """Return which of ``paths`` were seen to stand there again."""
        return {
            path
            for path in paths
            if (path in looked.paths or lies_in(path, looked.trees))
            and not lies_in(path, missing)
            and self._is_back(path)
        }

    def _is_back(self, path: RelPath) -> bool:
        known = self._index.known(path)
        if known is None:
            return True
        seen = self._scanner.see(path)
        if seen is None:
            return False
        return seen.kind is Kind.DIRECTORY or known.entry.kind is not Kind.DIRECTORY

    def _keep(self, kept: set[RelPath]) -> None:
        before = self.held.paths
        if kept == before:
            return
        self._index.hold(kept - before, before - kept)
        self._load()
        if kept - before:
            for problem in self.held.problems():
                log.error(problem.text, extra={"event": "deletions held"})
        else:
            log.info("fewer deletions are held", extra={"held": self.held.count})

    def _load(self) -> None:
        paths = self._index.held()
        self.held = Held(paths, self._index.count_beneath(paths))

    def done(
        self,
        removals: Set[RelPath],
        coming: Iterable[tuple[RelPath, RelPath]],
        renamed: Iterable[tuple[RelPath, RelPath]] = (),
        kept: Set[RelPath] = frozenset(),
    ) -> None:
        """Forget explanations that are used up, when a batch is committed.

        Args:
            removals: what the next batch removes, which needs no explanation any more.
            coming: the renames of the next batch; what they will carry along is still to come, and
                so is what was deleted beneath before.
            renamed: the renames of this one, which carried along what was gone beneath.
            kept: removals that wait longer than for the next batch.
        """
        # One that is told of and not yet looked at comes, too.
        coming = {*coming, *self._marks.moves()}
        sources = {source for source, _ in coming}
        targets = {target for _, target in coming}
        moved = dict(renamed)
        # A removal that waits for this batch is explained no more; a rename above takes it along.
        above = sources | moved.keys()
        self._believed |= {p for p in self._settled if above and lies_in(parent_of(p), above)}
        self._settled = removals | sources
        self._believed |= kept
        if moved:
            self._believed |= carried(self._believed, moved)
        told = self._believed - removals
        with on_this_machine():
            self._believed = outstanding(
                told, lambda path: not lies_in(path, targets) and self._is_back(path)
            )
        # What was deleted beneath a source is told of by that alone only until it is renamed.
        self._believed |= {path for path in told if lies_in(path, sources)}
        self._remember()
        if self.held.paths and self._index.held() != self.held.paths:
            self._load()  # a rename carried it along, or it was written anew

    def remember(self) -> None:
        """Keep the explanations for the next try or the next life, as long as nothing is pushed.

        Where the state directory fails, a later call does it.
        """
        self._hear()
        if len(self._believed) > LIMIT:
            self._believed = tops(self._believed)
        try:
            if self._index.get("staged") is not None:
                self._remember()
        except StateDirFailed as error:
            log.warning("explained deletions not recorded", extra={"reason": str(error)})

    def _remember(self) -> None:
        """Bring what the index remembers up to date: one transaction where anything changed."""
        if not (self._believed or self._settled or self._remembered):
            return
        explained = frozenset(tops(self._believed | self._settled))
        if explained != self._remembered:
            self._index.explain(explained - self._remembered, self._remembered - explained)
            self._remembered = explained

    def accept(self, paths: Iterable[RelPath]) -> None:
        """Let those of ``paths`` go that are held."""
        accepted = self.held.paths.intersection(paths)
        self._believed |= accepted
        self._marks.again(accepted)
