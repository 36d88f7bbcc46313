"""How long what became another kind of thing waits for newer rows. Pure.

What replaces a file by a file leaves something that rows may name. A directory that takes a file's
place, a link, or a file in a directory's, does not. It cannot simply go a batch later, as what was
deleted does, for rows of now may name what is in it.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from onesync.core.model import RelPath
from onesync.core.ordering import scope_of


@dataclass(slots=True)
class Turning:
    """Since when the runs wait in which something turned. Engine's thread.

    Attributes:
        seconds: so long (monotonic) each waits at most: a database may be locked for hours.
    """

    seconds: float
    _since: dict[RelPath, float] = field(default_factory=dict)
    _asked: set[RelPath] = field(default_factory=set)
    _over: set[RelPath] = field(default_factory=set)

    def stay(self, waiting: AbstractSet[RelPath], now: float) -> set[RelPath]:
        """Return those that are ``waiting`` (for rows) and may do so yet; any number of times."""
        runs = {scope_of(path) for path in waiting}
        self._asked |= runs
        since = {run: self._since.setdefault(run, now) for run in runs}
        self._over |= {run for run in runs if now - since[run] >= self.seconds}
        return {path for path in waiting if scope_of(path) not in self._over}

    def began_anew(self) -> None:
        """End a batch: what it did not ask for, or waited for no longer, may wait anew."""
        waits = self._asked - self._over
        self._since = {run: since for run, since in self._since.items() if run in waits}
        self._asked, self._over = set(), set()
