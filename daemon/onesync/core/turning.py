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
    _over: AbstractSet[RelPath] = frozenset()

    def stay(self, waiting: AbstractSet[RelPath], now: float) -> set[RelPath]:
        """Return those that are ``waiting`` (for rows) and may do so yet."""
        runs = {scope_of(path) for path in waiting}
        self._since = {run: self._since.get(run, now) for run in runs}
        self._over = {run for run, since in self._since.items() if now - since >= self.seconds}
        return {path for path in waiting if scope_of(path) not in self._over}

    def began_anew(self) -> None:
        """Let runs wait anew for which a batch waited no longer."""
        for run in self._over:
            self._since.pop(run, None)
