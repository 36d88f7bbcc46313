"""What became another kind of thing, and the databases that may name it as it was. Pure.

What replaces a file by a file leaves something that rows may name. A directory that takes a file's
place, a link, or a file in a directory's, does not: it goes when those rows are newer. It cannot
simply be a batch late, as deletions are, for rows of now may name what is in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from onesync.core.model import RelPath
from onesync.core.ordering import scope_of


@dataclass(slots=True)
class Turning:
    """Which paths turned, and what of OneData's databases each waits for. Engine's thread.

    Attributes:
        seconds: so long those of a run wait at most: a database may be locked for hours.
    """

    seconds: float
    _owed: dict[RelPath, set[RelPath]] = field(default_factory=dict)
    _since: dict[RelPath, float] = field(default_factory=dict)
    _over: set[RelPath] = field(default_factory=set)

    def paths(self) -> AbstractSet[RelPath]:
        """Return what turned, as far as it was seen."""
        return self._owed.keys()

    def owed(self) -> set[RelPath]:
        """Return the databases that anything waits for."""
        return {database for of in self._owed.values() for database in of}

    def stay(
        self,
        turned: AbstractSet[RelPath],
        young: AbstractSet[RelPath],
        may_name: Callable[[RelPath], Iterable[RelPath]],
        now: float,
    ) -> set[RelPath]:
        """Return those of ``turned`` that stay as they were.

        Args:
            turned: what is another kind of thing than in OneData.
            young: those of them that had turned when the snapshots were taken: these do not name
                them. The others wait for such ones.
            may_name: returns which of the databases that changed may name in OneData what lies in a
                run.
            now: monotonic.
        """
        new = young - self._owed.keys()
        by_run = {run: frozenset(may_name(run)) for run in {scope_of(path) for path in new}}
        self._owed |= {path: set(by_run[scope_of(path)]) for path in new}
        waiting = {path for path in turned if self._owed.get(path, True)}
        runs = {scope_of(path) for path in waiting}
        self._since = {run: self._since.get(run, now) for run in runs}
        self._over = {run for run, since in self._since.items() if now - since >= self.seconds}
        return {path for path in waiting if scope_of(path) not in self._over}

    def forget(self, paths: Iterable[RelPath]) -> None:
        """Let go of what turned no more, or is what it is in OneData, too."""
        for path in paths:
            self._owed.pop(path, None)

    def went(self, paths: Iterable[RelPath]) -> None:
        """Take over what a batch carried out: runs that waited long enough may wait anew."""
        self.forget(paths)
        for run in self._over:
            self._since.pop(run, None)

    def came(self, databases: AbstractSet[RelPath]) -> None:
        """Take over which ``databases`` name it no more in OneData, or come with what is new."""
        for owed in self._owed.values():
            owed -= databases
