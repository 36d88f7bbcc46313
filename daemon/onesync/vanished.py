"""What the index says OneData has, and somebody else moved or removed there.

The mount tells of it only where something is to be put, changed, renamed or removed. Then what lies
on the way there is looked at afresh, and what is gone is doubted with all beneath it: the working
copy is the truth, so it is made and sent again. Engine's thread only.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from onesync.core.model import Kind, RelPath, is_doubted, lies_in, parent_of, show
from onesync.index import Index
from onesync.patience import comes
from onesync.replica.door import Replica
from onesync.workers import each

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Vanished:
    """The paths at which the mount said that something is not there. The fields are its parts."""

    replica: Replica
    index: Index
    pool: ThreadPoolExecutor
    _met: set[RelPath] = field(default_factory=set)

    @property
    def suspected(self) -> bool:
        """Whether there is something to look for."""
        return bool(self._met)

    def met(self, paths: Iterable[RelPath]) -> None:
        """Remember ``paths``, where something that was needed is not there."""
        self._met.update(paths)

    def find(self) -> dict[RelPath, int]:
        """Doubt what is gone at and above the paths that were met, with all beneath it.

        Returns its tops, and how much lay at and beneath each.
        """
        gone = self._gone()
        self._met.clear()
        tops = {path for path in gone if not lies_in(parent_of(path), gone)}
        found = {top: self.index.doubt_tree(top) for top in sorted(tops)}
        for top, count in found.items():
            fields = {"path": show(top), "entries": count}
            log.warning("OneData does not have it any more, it is sent again", extra=fields)
        return found

    def _gone(self) -> set[RelPath]:
        """Return what is not there, or is something else, though it was looked at for a while."""
        left = self._expected()

        def are_there() -> bool:
            nonlocal left
            found = each(self.pool, self.replica.look, left)
            looked = zip(left.items(), found, strict=True)
            left = {path: kind for (path, kind), one in looked if one is None or one.kind != kind}
            return not left

        self.replica.walk_anew()
        return set() if comes(are_there) else set(left)

    def _expected(self) -> dict[RelPath, Kind]:
        """Return what OneData should have at and above the paths that were met."""
        places: set[RelPath] = set()
        for path in self._met:
            while path and path not in places:
                places.add(path)
                path = parent_of(path)
        rows = {path: self.index.known(path) for path in places}
        return {
            path: known.entry.kind
            for path, known in rows.items()
            if known is not None
            and known.entry.kind is not Kind.LINK
            # Of all others it is known already that OneData may not have them.
            and not (known.stamp is None or is_doubted(known.stamp))
        }
