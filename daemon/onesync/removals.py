"""What a removal takes out of the replica: what is known there, never what somebody put there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from onesync.core.model import Kind, Known, Problem, RelPath, join, name_of, parent_of, show
from onesync.core.plan import Difference
from onesync.outcome import NEWCOMER
from onesync.replica.door import Replica
from onesync.workers import each

_Kinds = dict[RelPath, dict[bytes, Kind]]
"""The kinds of what lies in directories, by directory and name."""


class Removals:
    """Looks into directories that are to go. Used by one thread; works with several."""

    def __init__(
        self,
        replica: Replica,
        pool: ThreadPoolExecutor,
        known_beneath: Callable[[RelPath], Iterable[tuple[RelPath, Known]]],
        note: Callable[[Problem], None],
    ) -> None:
        """Look by ``pool``; ``note`` is told what somebody else put into a directory of ours.

        ``known_beneath`` returns the index's rows at and beneath a path.
        """
        self._replica = replica
        self._pool = pool
        self._known_beneath = known_beneath
        self._note = note

    def tops(self, removals: list[Difference]) -> list[list[RelPath]]:
        """Return what each removal takes out of the replica: never what somebody put there."""
        ours = [_kinds_by_parent(self._known_beneath(d.path)) for d in removals]
        tops = each(self._pool, self._to_remove, removals, ours)
        # The looks of one listing come one by one, these side by side.
        files = [
            (number, join(parent, name))
            for number, difference in enumerate(removals)
            if difference.removes_directory
            for parent, kinds in ours[number].items()
            for name, kind in kinds.items()
            if kind is Kind.FILE
        ]
        found = each(self._pool, self._replica.look, [path for _, path in files])
        for number in {
            number
            for (number, _), item in zip(files, found, strict=True)
            if item is not None and item.kind is not Kind.FILE
        }:
            tops[number] = self._wholly_known(removals[number].path, ours[number], looks=True)
        return tops

    def _to_remove(self, difference: Difference, ours: _Kinds) -> list[RelPath]:
        known = difference.known
        if known is None or known.entry.kind is Kind.LINK:
            return []
        if known.entry.kind is Kind.FILE:
            return [difference.path]
        return self._wholly_known(difference.path, ours)

    def _wholly_known(self, top: RelPath, ours: _Kinds, *, looks: bool = False) -> list[RelPath]:
        """Return the tops of what is ``ours`` at and beneath the directory ``top``.

        Unless it ``looks``, what has the name of a file of ours is taken for that.
        """
        found: dict[RelPath, list[RelPath]] = {}
        kept: set[RelPath] = set()
        gone: set[RelPath] = set()
        waiting = [top]
        while waiting:
            directory = waiting.pop()
            known = ours.get(directory, {})
            files = set() if looks else {n for n, kind in known.items() if kind is Kind.FILE}
            try:
                items = self._replica.list(directory, dict.fromkeys(files, Kind.FILE))
            except (FileNotFoundError, NotADirectoryError):
                gone.add(directory)
                continue
            strange = [join(directory, item.name) for item in items if item.name not in known]
            for path in strange:
                text = f"{show(path)} was put into OneData by somebody else; it is kept there."
                self._note(Problem(path, NEWCOMER, text))
            if strange:
                kept.add(directory)
            own = [item for item in items if item.name in known]
            found[directory] = [join(directory, item.name) for item in own]
            waiting += [join(directory, i.name) for i in own if i.kind is Kind.DIRECTORY]
        # From the lowest up: what holds something that is kept is kept itself.
        for directory in reversed(found):
            if directory in kept and directory != top:
                kept.add(parent_of(directory))
        inner = [path for directory, paths in found.items() if directory in kept for path in paths]
        tops = inner if top in kept else [top]
        return [path for path in tops if path not in kept and path not in gone]


def _kinds_by_parent(rows: Iterable[tuple[RelPath, Known]]) -> _Kinds:
    kinds: _Kinds = {}
    for path, known in rows:
        kinds.setdefault(parent_of(path), {})[name_of(path)] = known.entry.kind
    return kinds
