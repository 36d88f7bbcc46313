"""Which deletions a batch carries out, and which are held until a person decides.

The rule is ``core.guard``'s; here stands what it needs to know across batches, and the durable
record of what is held. Engine's thread only, but for ``held``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass

from onesync.core.dirty import Due
from onesync.core.guard import LIMIT, Bound, absences, arrived, rule, tops
from onesync.core.model import Kind, Problem, RelPath, lies_in, show
from onesync.core.plan import Difference
from onesync.index import Index
from onesync.local import on_this_machine
from onesync.marks import Marks
from onesync.scanner import Scanner

log = logging.getLogger(__name__)

HELD = "held_deletions"
_NAMED = 5


@dataclass(frozen=True, slots=True)
class Held:
    """What is held: the tops of it, and the number of rows of the index at and beneath them."""

    paths: frozenset[RelPath] = frozenset()
    count: int = 0

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


class Deletions:
    """The guard of one working copy. ``held`` may be read by any thread."""

    def __init__(self, index: Index, scanner: Scanner, marks: Marks, bound: Bound) -> None:
        """Go on with what the index says is held in a copy that is staged in."""
        self._index = index
        self._scanner = scanner
        self._marks = marks
        self._bound = bound
        self._believed: set[RelPath] = set()
        self.held = Held()
        if index.get("staged") is not None:
            self._load()

    def judge(
        self,
        found: dict[RelPath, Difference],
        looked: Due,
        settled: Set[RelPath],
        drain: Callable[[], None],
    ) -> dict[RelPath, Difference]:
        """Return what of ``found`` may be planned: all but what is held.

        Args:
            found: the differences of a cut.
            looked: what the cut looked at.
            settled: paths whose absence is settled: awaited removals and sources of renames.
            drain: waits until the watcher told all that happened before.
        """
        self._believed |= self._marks.take_deleted()
        missing = absences(found)
        back = self._reappeared(missing, looked)
        known = self.held.paths - back
        fresh = {path for path in missing if not lies_in(path, known)}
        more = self._rule(found, fresh, settled, known)
        if more:
            # Something may have been deleted while the scan was going on.
            drain()
            self._believed |= self._marks.take_deleted()
            more = self._rule(found, fresh, settled, known)
        believed = self._believed | settled
        kept = tops({path for path in known if not lies_in(path, believed)} | more)
        self._keep(kept)
        return {p: d for p, d in found.items() if not lies_in(p, kept)} if kept else found

    def _rule(
        self,
        found: dict[RelPath, Difference],
        fresh: set[RelPath],
        settled: Set[RelPath],
        known: Set[RelPath],
    ) -> set[RelPath]:
        """Return what is to be held too; all that is unexplained while anything is held."""
        believed = self._believed | settled
        if all(lies_in(path, believed) for path in fresh):
            return set()
        bound = 0 if known else self._bound.of(self._index.count())
        return rule(fresh, believed, self._index.beneath, arrived(found), bound)

    def _reappeared(self, missing: Set[RelPath], looked: Due) -> set[RelPath]:
        """Return what is held and was seen to stand there again."""
        return {
            path
            for path in self.held.paths
            if (path in looked.paths or lies_in(path, looked.trees))
            and not lies_in(path, missing)
            and self._is_back(path)
        }

    def _is_back(self, path: RelPath) -> bool:
        known = self._index.known(path)
        if known is None:
            return True
        seen = self._scanner.look(path)
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
                log.error(problem.text)
        else:
            log.info("fewer deletions are held", extra={"held": self.held.count})

    def _load(self) -> None:
        paths = self._index.held()
        self.held = Held(paths, self._index.count_beneath(paths))

    def done(self, removals: Set[RelPath], moves: Iterable[tuple[RelPath, RelPath]]) -> None:
        """Forget explanations that are used up, when a batch is committed.

        What the next batch removes needs none; what its renames will carry along is still to come.
        """
        coming = {target for _, target in moves}
        with on_this_machine():
            self._believed = {
                path
                for path in tops(self._believed)
                if path not in removals and (lies_in(path, coming) or not self._is_back(path))
            }
        if self.held.paths and self._index.held() != self.held.paths:
            self._load()  # a rename carried it along, or it was written anew

    def failed(self) -> None:
        """Keep the explanations for the next try, as long as they are not too many."""
        if len(self._believed) > LIMIT:
            self._believed = {p for p in tops(self._believed) if not self._is_back(p)}

    def accept(self, paths: Iterable[RelPath]) -> None:
        """Let those of ``paths`` go that are held."""
        accepted = self.held.paths.intersection(paths)
        self._believed |= accepted
        self._marks.again(accepted)
