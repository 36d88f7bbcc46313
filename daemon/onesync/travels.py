"""Whole copies of large files that travel across batches, into temporaries beside their targets.

Under a name of the replica stands old or new: while the new version travels the old one stays, in
the replica and in the index. The intent of the batch that began a copy stands until the copy is
published or given up, so that any node can remove it by name. Engine's thread only; push's workers
call ``get``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from onesync.core.model import RelPath, is_beneath
from onesync.replica.door import Copied, Replica


@dataclass(frozen=True, slots=True)
class Travel:
    """One copy on its way.

    Attributes:
        temporary: where it comes.
        intent: path of the intent that names the temporary.
        copied: how far it has come.
        seconds: how long it has taken so far.
    """

    temporary: RelPath
    intent: RelPath
    copied: Copied
    seconds: float


class Travels:
    """Those of one process, by their targets, as of its last batch that succeeded."""

    def __init__(self, replica: Replica) -> None:
        """Begin with none: those of an earlier process were removed by their intents."""
        self._replica = replica
        self._travels: dict[RelPath, Travel] = {}
        self.suspected = False

    def get(self, path: RelPath) -> Travel | None:
        """Return the copy that travels to ``path``."""
        return self._travels.get(path)

    def intents(self) -> dict[RelPath, RelPath]:
        """Return the intents by the temporaries that they stand for."""
        return {travel.temporary: travel.intent for travel in self._travels.values()}

    def advance(self, travels: Mapping[RelPath, Travel]) -> None:
        """Take over how far the copies came in a batch that succeeded."""
        self._travels.update(travels)

    def end(self, paths: Iterable[RelPath]) -> None:
        """Forget the copies to ``paths``, and remove what is left of them."""
        for path in [path for path in paths if path in self._travels]:
            travel = self._travels[path]
            self._replica.remove(travel.temporary)
            others = (other for target, other in self._travels.items() if target != path)
            if all(other.intent != travel.intent for other in others):
                self._replica.remove(travel.intent)
            del self._travels[path]

    def end_beneath(self, top: RelPath) -> None:
        """Give up every copy to ``top`` or what is beneath it."""
        self.end([path for path in self._travels if is_beneath(path, top)])

    def suspect(self) -> None:
        """Let what came be read back before it goes on: the mount may have lost some of it."""
        self.suspected = bool(self._travels)

    def mend(self) -> None:
        """Cut each copy to what it had before a batch that failed; give up what lost some of it."""
        for path, travel in list(self._travels.items()):
            if not self._is_mended(travel):
                self.end([path])
        self.suspected = False

    def _is_mended(self, travel: Travel) -> bool:
        copied = travel.copied
        found = self._replica.look(travel.temporary)
        if found is None or found.size < copied.size:
            return False
        if found.size > copied.size:
            self._replica.truncate(travel.temporary, copied.size)
        if not self.suspected:
            return True
        return self._replica.digest(travel.temporary) == (copied.digest, copied.size)
