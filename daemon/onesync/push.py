"""Carries out a plan on the replica.

Transfer is not publishing: content travels into a temporary beside its target, and only when all of
a batch's content has arrived are the names changed, stage by stage. The batch's intent, written
first, names every temporary and every aside, so that any node can settle a half-done batch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from onesync.core.chain import Change, Gone, Position, Renamed, Set
from onesync.core.model import (
    RESERVED_PREFIX,
    STATUS_FOLDER,
    Entry,
    Kind,
    Problem,
    RelPath,
    Stamp,
    join,
    parent_of,
    show,
)
from onesync.core.ordering import Stage, is_held, scope_of, stage_of
from onesync.core.plan import Difference, Plan
from onesync.errors import OnesyncError
from onesync.replica.door import Copied, Replica

INTENTS = STATUS_FOLDER + b"/intent"


@dataclass(slots=True)
class Intent:
    """What a batch is about to do, in pairs of paths.

    Attributes:
        position: the checkpoint that will commit it.
        new: (target, temporary) of every file whose content travels.
        replace: (target, aside) of files whose old version goes aside.
        remove: (path, aside).
        rename: (source, target).
    """

    position: Position
    new: list[tuple[RelPath, RelPath]] = field(default_factory=list)
    replace: list[tuple[RelPath, RelPath]] = field(default_factory=list)
    remove: list[tuple[RelPath, RelPath]] = field(default_factory=list)
    rename: list[tuple[RelPath, RelPath]] = field(default_factory=list)

    _PARTS = ("new", "replace", "remove", "rename")

    def encode(self) -> bytes:
        """Return the intent's file content: format 1, JSON, paths without loss."""
        parts = {
            name: [[_text(path) for path in pair] for pair in getattr(self, name)]
            for name in self._PARTS
        }
        head = {"onesync": "intent", "format": 1}
        place = {"epoch": self.position.epoch, "sequence": self.position.sequence}
        return json.dumps({**head, **place, **parts}).encode()

    @classmethod
    def decode(cls, content: bytes) -> Intent:
        """Read an intent. Raises ValueError on anything else."""
        found = json.loads(content)
        if not isinstance(found, dict) or (found.get("onesync"), found.get("format")) != (
            "intent",
            1,
        ):
            raise ValueError("not an intent of format 1")
        intent = cls(Position(int(found["epoch"]), int(found["sequence"])))
        for name in cls._PARTS:
            getattr(intent, name).extend((_raw(a), _raw(b)) for a, b in found[name])
        return intent

    @property
    def path(self) -> RelPath:
        """Where on the replica it stands."""
        return join(INTENTS, b"E%06d-%06d.json" % (self.position.epoch, self.position.sequence))


def _text(path: RelPath) -> str:
    return path.decode("utf-8", "surrogateescape")


def _raw(text: str) -> RelPath:
    path = text.encode("utf-8", "surrogateescape")
    if path.startswith(b"/") or b".." in path.split(b"/") or b"\0" in path or not path:
        raise ValueError("a path leaves the folder")
    return path


@dataclass(slots=True)
class Outcome:
    """What a push achieved.

    Attributes:
        changes: to be committed, in order.
        stamps: the stamps that the sources had.
        retry: paths that stay dirty.
        problems: what went wrong with single paths.
        files: how many files were published.
        size: bytes of them.
    """

    changes: list[Change] = field(default_factory=list)
    stamps: dict[RelPath, Stamp] = field(default_factory=dict)
    retry: set[RelPath] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)
    files: int = 0
    size: int = 0


@dataclass(frozen=True, slots=True)
class _Ready:
    difference: Difference
    temporary: RelPath
    copied: Copied
    stamp: Stamp
    stage: Stage


class Push:
    """One batch on its way to the replica. Used by one thread; works with several."""

    def __init__(
        self,
        replica: Replica,
        root: bytes,
        position: Position,
        pool: ThreadPoolExecutor,
        may_write: Callable[[], None],
        reclaimed: frozenset[RelPath] = frozenset(),
    ) -> None:
        """Prepare a batch.

        Args:
            replica: the door.
            root: absolute path of the working copy.
            position: of the checkpoint that will commit the batch.
            pool: the workers.
            may_write: raises LockLost or MountNotThere when nothing may be written any more; asked
                before every change of the replica.
            reclaimed: new files that an earlier batch of ours published and did not commit.
        """
        self._replica = replica
        self._root = root
        self._pool = pool
        self._may_write = may_write
        self._reclaimed = reclaimed
        self.intent = Intent(position)
        self.outcome = Outcome()
        self._count = 0
        self._leftover: list[RelPath] = []

    def carry_out(self, plan: Plan, snapshots: dict[RelPath, bytes]) -> Outcome:
        """Push ``plan``; ``snapshots`` maps databases to their snapshots' absolute paths.

        Raises OSError or an OnesyncError where the mount fails as a whole; the replica then needs
        ``recovery``.
        """
        self._prepare(plan)
        self._may_write()
        self._replica.write_new(self.intent.path, self.intent.encode())
        # What changed its kind clears its name before the new thing takes it.
        self._remove(d for d in plan.removals if d.seen is not None)
        self._make_directories(plan.directories)
        ready = self._transfer(plan.files, snapshots)
        self._publish_all(ready, plan)
        for difference in plan.links + plan.metadata:
            self._record(difference.path, _entry(_seen(difference)), _seen(difference))
        self._second_halves(plan)
        return self.outcome

    def tidy(self) -> None:
        """Remove the asides and the intent: the checkpoint stands, they are not needed."""
        pairs = self.intent.replace + self.intent.remove
        gone = [aside for _, aside in pairs] + self._leftover
        list(self._pool.map(self._replica.remove, gone))
        self._replica.remove(self.intent.path)

    def _prepare(self, plan: Plan) -> None:
        for difference in plan.files:
            self.intent.new.append((difference.path, self._name_beside(difference.path)))
            known = difference.known
            replaces = known is not None and known.entry.kind is Kind.FILE
            if replaces or difference.path in self._reclaimed:
                aside = self._name_beside(difference.path)
                self.intent.replace.append((difference.path, aside))
        for difference in plan.removals:
            if difference.known is not None and difference.known.entry.kind is not Kind.LINK:
                aside = self._name_beside(difference.path)
                self.intent.remove.append((difference.path, aside))
        moves = [m for m in plan.moves if m.kind is not Kind.LINK]
        self.intent.rename.extend((m.source, m.target) for m in moves)

    def _name_beside(self, path: RelPath) -> RelPath:
        self._count += 1
        place = self.intent.position
        tag = b"E%06d-%06d~%d" % (place.epoch, place.sequence, self._count)
        return join(parent_of(path), RESERVED_PREFIX + tag)

    def _make_directories(self, directories: list[Difference]) -> None:
        for difference in sorted(directories, key=lambda d: d.path.count(b"/")):
            self._may_write()
            try:
                self._replica.make_directory(difference.path)
            except FileExistsError:
                found = self._replica.look(difference.path)
                if found is None or found.kind is not Kind.DIRECTORY:
                    self._occupied(difference.path)
                    continue
            self._record(difference.path, _entry(_seen(difference)), _seen(difference))

    def _transfer(self, files: list[Difference], snapshots: dict[RelPath, bytes]) -> list[_Ready]:
        temporaries = dict(self.intent.new)

        def transfer(difference: Difference) -> _Ready | None:
            source = snapshots.get(difference.path, self._root + b"/" + difference.path)
            return self._copy(difference, source, temporaries[difference.path])

        found = self._pool.map(transfer, files)
        return [ready for ready in found if ready is not None]

    def _copy(self, difference: Difference, source: bytes, temporary: RelPath) -> _Ready | None:
        path = difference.path
        self._may_write()
        try:
            copied = self._replica.put(source, temporary)
        except (FileNotFoundError, InterruptedError, NotADirectoryError):
            self.outcome.retry.add(path)  # gone or changed its kind since the scan: still dirty
            return None
        except PermissionError:
            text = f"{show(path)} cannot be read; everything else is pushed, mend its mode."
            self.outcome.problems.append(Problem(path, "unreadable", text))
            return None
        snapshot = not source.endswith(path)
        if not copied.steady:
            self.outcome.retry.add(path)
            if not _is_prefix(difference, copied):
                self._replica.remove(temporary)
                return None
        stamp = _seen(difference) if snapshot else copied.before
        assert stamp is not None
        stage = stage_of(path, size=copied.size, is_database=snapshot)
        return _Ready(difference, temporary, copied, stamp, stage)

    def _publish_all(self, ready: list[_Ready], plan: Plan) -> None:
        held = {scope_of(path) for path in self.outcome.retry}
        held |= {scope_of(target) for _, target in plan.awaited_moves}
        for stage in Stage:
            batch = [item for item in ready if item.stage is stage]
            list(self._pool.map(lambda item: self._publish(item, held), batch))

    def _publish(self, item: _Ready, held: set[RelPath]) -> None:
        path, known = item.difference.path, item.difference.known
        entry = Entry(
            Kind.FILE, item.copied.size, item.stamp.mtime_ns, item.stamp.mode, item.copied.digest
        )
        if is_held(path, item.stage, held):
            self.outcome.retry.add(path)
            self._replica.remove(item.temporary)
            return
        same = known is not None and known.entry.kind is Kind.FILE
        if same and known is not None and known.entry.digest == entry.digest:
            self._replica.remove(item.temporary)
            self._record(path, entry, item.stamp)
            return
        if self._change_names(path, item.temporary, dict(self.intent.replace).get(path)):
            self._confirm(path, item.copied.size)
            self._record(path, entry, item.stamp)
            self.outcome.files += 1
            self.outcome.size += item.copied.size

    def _change_names(self, path: RelPath, temporary: RelPath, aside: RelPath | None) -> bool:
        self._may_write()
        try:
            if aside is not None:
                self._replica.rename(path, aside)
        except FileNotFoundError:
            pass  # somebody removed it in the replica: the new version takes its place
        try:
            self._replica.rename(temporary, path)
        except FileExistsError:
            # The temporary stays until the batch is tidied: that it is there tells recovery that
            # what stands at the target is not ours.
            self._occupied(path)
            self._leftover.append(temporary)
            return False
        return True

    def _confirm(self, path: RelPath, size: int) -> None:
        found = self._replica.look(path)
        if found is None or found.size != size:
            raise OnesyncError(
                f"{show(path)} does not have its {size} bytes in OneData after the push; nothing"
                " was committed, the batch is done again."
            )

    def _second_halves(self, plan: Plan) -> None:
        for move in plan.moves:
            self._may_write()
            if move.kind is not Kind.LINK:
                self._replica.rename(move.source, move.target)
            self.outcome.changes.append(Renamed(move.source, move.target))
        self._remove(d for d in plan.removals if d.seen is None)

    def _remove(self, differences: Iterable[Difference]) -> None:
        asides = dict(self.intent.remove)
        for difference in differences:
            self._may_write()
            aside = asides.get(difference.path)
            if aside is not None and self._replica.look(difference.path) is not None:
                self._replica.rename(difference.path, aside)
            self.outcome.changes.append(Gone(difference.path))

    def _record(self, path: RelPath, entry: Entry, stamp: Stamp) -> None:
        self.outcome.changes.append(Set(path, entry))
        self.outcome.stamps[path] = stamp

    def _occupied(self, path: RelPath) -> None:
        text = (
            f"Something that onesync did not put there stands at {show(path)} in OneData; it is"
            " kept, and so is the working copy's. Rename one of them."
        )
        self.outcome.problems.append(Problem(path, "occupied", text))


def _seen(difference: Difference) -> Stamp:
    assert difference.seen is not None
    return difference.seen


def _entry(stamp: Stamp) -> Entry:
    if stamp.kind is Kind.LINK:
        return Entry(Kind.LINK, target=stamp.target)
    return Entry(stamp.kind, mtime_ns=stamp.mtime_ns, mode=stamp.mode)


def _is_prefix(difference: Difference, copied: Copied) -> bool:
    """Whether a copy of a file in motion may be published: a first or longer version of it."""
    known = difference.known
    return copied.size > 0 and (known is None or copied.size > known.entry.size)
