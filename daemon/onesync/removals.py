"""What a removal takes out of the replica: what is known there, never what somebody put there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from onesync.core.model import Kind, Known, Problem, RelPath, join, name_of, parent_of, show
from onesync.core.plan import Difference
from onesync.outcome import NEWCOMER
from onesync.patience import comes
from onesync.replica.door import Ours, Replica
from onesync.workers import each

_LONGEST = 150
"""So much of a name is kept in the one that it has beside itself."""

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
        miss: Callable[[RelPath], None],
    ) -> None:
        """Look by ``pool``; ``note`` is told what somebody else put into a directory of ours.

        ``known_beneath`` returns the index's rows at and beneath a path; ``miss`` is told which
        directories are gone already.
        """
        self._replica = replica
        self._pool = pool
        self._known_beneath = known_beneath
        self._note = note
        self._miss = miss

    def tops(self, removals: list[Difference]) -> list[dict[RelPath, Ours]]:
        """Return what each removal takes out of the replica, and what of that is ours.

        What somebody else put there stays, as far as a listing shows it now; ``take_out`` finds the
        rest.
        """
        ours = [_kinds_by_parent(self._known_beneath(d.path)) for d in removals]
        tops = each(self._pool, self._to_remove, removals, ours)
        return [
            {top: _ours_at(top, kinds) for top in found}
            for found, kinds in zip(tops, ours, strict=True)
        ]

    def _to_remove(self, difference: Difference, ours: _Kinds) -> list[RelPath]:
        known = difference.known
        if known is None or known.entry.kind is Kind.LINK:
            return []
        if known.entry.kind is Kind.FILE:
            return [difference.path]
        return self._wholly_known(difference.path, ours)

    def _wholly_known(self, top: RelPath, ours: _Kinds) -> list[RelPath]:
        """Return the tops of what is ``ours`` at and beneath the directory ``top``.

        What has the name of a file of ours is taken for that.
        """
        found: dict[RelPath, list[RelPath]] = {}
        kept: set[RelPath] = set()
        gone: set[RelPath] = set()
        waiting = [top]
        while waiting:
            directory = waiting.pop()
            known = ours.get(directory, {})
            files = {name for name, kind in known.items() if kind is Kind.FILE}
            try:
                items = self._replica.list(directory, dict.fromkeys(files, Kind.FILE))
            except (FileNotFoundError, NotADirectoryError):
                gone.add(directory)
                self._miss(directory)
                continue
            strange = [join(directory, item.name) for item in items if item.name not in known]
            for path in strange:
                self._note(newcomer(path))
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


def take_out(replica: Replica, path: RelPath, aside: RelPath, ours: Ours) -> list[Problem]:
    """Remove of what went ``aside`` from ``path`` what is ``ours``; its checkpoint stands.

    What others put there after the look, or what no listing showed, comes back: under its own name,
    or beside that where something new stands there. Returns a problem for each.
    """
    left: Sequence[RelPath] = ()

    def is_gone() -> bool:
        nonlocal left
        left = replica.remove_ours(aside, ours)
        return not left

    # A file that was closed just now may stand there under another name for a moment.
    if comes(is_gone):
        return []
    place = _bring_back(replica, path, aside)
    return [
        newcomer(join(place, inner) if inner else place, is_seen=inner not in ours)
        for inner in left
    ]


def kept_beside(replica: Replica, path: RelPath, aside: RelPath) -> Problem:
    """Bring back what went ``aside`` from ``path`` as a file of ours, and is somebody's directory.

    Something new stands there by now, mostly. Returns what is to be told of it.
    """
    return newcomer(_bring_back(replica, path, aside))


def _bring_back(replica: Replica, path: RelPath, aside: RelPath) -> RelPath:
    """Rename ``aside`` to ``path``, or to a free name beside it; returns that."""
    place, number = path, 0
    while True:
        try:
            replica.rename(aside, place)
        except FileExistsError:
            number += 1
            place = join(parent_of(path), name_of(path)[:_LONGEST] + b"~kept~%d" % number)
        else:
            return place


def newcomer(path: RelPath, *, is_seen: bool = True) -> Problem:
    """Return what is told of what others put at ``path``, or into it where no listing shows it."""
    if is_seen:
        text = f"{show(path)} was put into OneData by somebody else; it is kept there."
    else:
        text = (
            f"{show(path)} was deleted, but holds something in OneData that onesync did not put"
            " there; that is kept there."
        )
    return Problem(path, NEWCOMER, text)


def _ours_at(top: RelPath, kinds: _Kinds) -> Ours:
    """Return what is ours at ``top`` and beneath."""
    ours: dict[RelPath, list[bytes]] = {}
    is_directory = kinds.get(parent_of(top), {}).get(name_of(top)) is Kind.DIRECTORY
    waiting = [b""] if is_directory else []
    while waiting:
        inner = waiting.pop()
        known = kinds.get(join(top, inner) if inner else top, {})
        ours[inner] = [name for name, kind in known.items() if kind is Kind.FILE]
        waiting += [join(inner, n) for n, kind in known.items() if kind is Kind.DIRECTORY]
    return ours


def _kinds_by_parent(rows: Iterable[tuple[RelPath, Known]]) -> _Kinds:
    """Return the kinds of what OneData holds of ``rows`` and was here: no links.

    What this node never had does not go with the directory that it would lie in.
    """
    kinds: _Kinds = {}
    for path, known in rows:
        if known.entry.kind is not Kind.LINK and known.stamp is not None:
            kinds.setdefault(parent_of(path), {})[name_of(path)] = known.entry.kind
    return kinds
