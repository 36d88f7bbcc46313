"""Carries out a plan on the replica.

Transfer is not publishing: content travels into a temporary beside its target, and only when all of
a batch's content has arrived are the names changed, stage by stage. The batch's intent, written
first, names every temporary and every aside, so that any node can settle a half-done batch.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable, Mapping
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
from onesync.core.ordering import DATA, SIDECARS, PublishOrder, scope_of
from onesync.core.plan import Difference, Plan
from onesync.errors import OnesyncError
from onesync.replica.door import Copied, Replica
from onesync.replica.folder import digest_local

INTENTS = STATUS_FOLDER + b"/intent"
_APPEND_FROM = 1 << 20
"""Smaller files are copied whole: one more look at them costs as much as their bytes."""


@dataclass(slots=True)
class Intent:
    """What a batch is about to do, in pairs of paths.

    Attributes:
        position: the checkpoint that will commit it.
        new: (target, temporary) of every file whose content travels.
        replace: (target, aside) of files whose old version goes aside.
        remove: (path, aside).
        rename: (source, target).
        make: directories.
        promise: those of ``new`` that promise other entries (markers, databases): without a
            checkpoint they must not stand.
        append: (path, committed length) of files that may be written beyond it.
    """

    position: Position
    new: list[tuple[RelPath, RelPath]] = field(default_factory=list)
    replace: list[tuple[RelPath, RelPath]] = field(default_factory=list)
    remove: list[tuple[RelPath, RelPath]] = field(default_factory=list)
    rename: list[tuple[RelPath, RelPath]] = field(default_factory=list)
    make: list[RelPath] = field(default_factory=list)
    promise: list[RelPath] = field(default_factory=list)
    append: list[tuple[RelPath, int]] = field(default_factory=list)

    _PARTS = ("new", "replace", "remove", "rename")
    _SINGLE = ("make", "promise")

    def encode(self) -> bytes:
        """Return the intent's file content: format 1, JSON, paths without loss."""
        parts = {
            name: [[_text(path) for path in pair] for pair in getattr(self, name)]
            for name in self._PARTS
        }
        head = {"onesync": "intent", "format": 1}
        place = {"epoch": self.position.epoch, "sequence": self.position.sequence}
        single = {name: [_text(path) for path in getattr(self, name)] for name in self._SINGLE}
        lengths = {"append": [[_text(path), length] for path, length in self.append]}
        return json.dumps({**head, **place, **parts, **single, **lengths}).encode()

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
        for name in cls._SINGLE:
            getattr(intent, name).extend(map(_raw, found[name]))
        intent.append.extend((_raw(path), int(length)) for path, length in found["append"])
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
        retry: paths that could not be published and stay dirty.
        growing: paths that were published as far as they had come and stay dirty.
        postponed: removals that wait, because databases of their run were held back.
        problems: what went wrong with single paths.
        files: how many files were published.
        size: bytes of them.
    """

    changes: list[Change] = field(default_factory=list)
    stamps: dict[RelPath, Stamp] = field(default_factory=dict)
    retry: set[RelPath] = field(default_factory=set)
    growing: set[RelPath] = field(default_factory=set)
    postponed: set[RelPath] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)
    files: int = 0
    size: int = 0


@dataclass(frozen=True, slots=True)
class _Ready:
    """Content that is in the replica; ``temporary`` is None where the old content serves."""

    difference: Difference
    temporary: RelPath | None
    copied: Copied
    stamp: Stamp
    group: int
    is_database: bool


class Push:
    """One batch on its way to the replica. Used by one thread; works with several."""

    def __init__(
        self,
        replica: Replica,
        root: bytes,
        position: Position,
        pool: ThreadPoolExecutor,
        order: PublishOrder,
        may_write: Callable[[], None],
        known_beneath: Callable[[RelPath], Iterable[RelPath]],
    ) -> None:
        """Prepare a batch.

        Args:
            replica: the door.
            root: absolute path of the working copy.
            position: of the checkpoint that will commit the batch.
            pool: the workers.
            order: in which groups files are published.
            may_write: raises LockLost or MountNotThere when nothing may be written any more; asked
                before every change of the replica.
            known_beneath: the index's paths at and beneath a path.
        """
        self._replica = replica
        self._root = root
        self._pool = pool
        self._order = order
        self._may_write = may_write
        self._known_beneath = known_beneath
        self.intent = Intent(position)
        self.outcome = Outcome()
        self._count = 0
        self._leftover: list[RelPath] = []
        self._asides: dict[RelPath, RelPath] = {}
        self._removes: dict[RelPath, list[RelPath]] = {}
        self._held: set[RelPath] = set()
        self._guard = threading.Lock()

    def carry_out(
        self,
        plan: Plan,
        snapshots: Mapping[RelPath, bytes],
        pinned: Mapping[RelPath, bytes],
    ) -> Outcome:
        """Push ``plan``.

        ``snapshots`` maps databases to their snapshots' absolute paths, ``pinned`` files to
        absolute paths under which they can be read even when they are gone. Raises OSError or an
        OnesyncError where the mount fails as a whole; the replica then needs ``recovery``.
        """
        self._prepare(plan, snapshots)
        self._may_write()
        self._replica.write_new(self.intent.path, self.intent.encode())
        # What changed its kind clears its name before the new thing takes it.
        for difference in plan.removals:
            if difference.seen is not None:
                self._remove(difference)
        self._make_directories(plan.directories)
        self._publish_all(self._transfer(plan.files, snapshots, pinned), plan)
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

    def _prepare(self, plan: Plan, snapshots: Mapping[RelPath, bytes]) -> None:
        for difference in plan.files:
            path, known = difference.path, difference.known
            self.intent.new.append((path, self._name_beside(path)))
            if self._order.group_of(path, is_database=path in snapshots) != DATA:
                self.intent.promise.append(path)
            if known is not None and known.entry.kind is Kind.FILE:
                if path not in snapshots and _may_append(difference):
                    self.intent.append.append((path, known.entry.size))
                aside = self._name_beside(difference.path)
                self.intent.replace.append((difference.path, aside))
        for difference in plan.removals:
            self._removes[difference.path] = self._to_remove(difference)
            for path in self._removes[difference.path]:
                self.intent.remove.append((path, self._name_beside(path)))
        self._asides = dict(self.intent.replace + self.intent.remove)
        self.intent.make.extend(difference.path for difference in plan.directories)
        moves = [m for m in plan.moves if m.kind is not Kind.LINK]
        self.intent.rename.extend((m.source, m.target) for m in moves)

    def _to_remove(self, difference: Difference) -> list[RelPath]:
        """Return what a removal takes out of the replica: never what somebody put there."""
        known = difference.known
        if known is None or known.entry.kind is Kind.LINK:
            return []
        if known.entry.kind is Kind.FILE:
            return [difference.path]
        ours = set(self._known_beneath(difference.path))
        return self._wholly_known(difference.path, ours)[0]

    def _wholly_known(self, top: RelPath, ours: set[RelPath]) -> tuple[list[RelPath], bool]:
        """Return the tops of what is ``ours`` beneath ``top``, and whether that is all."""
        tops: list[RelPath] = []
        whole = True
        try:
            items = self._replica.list(top)
        except (FileNotFoundError, NotADirectoryError):
            return [], True
        for item in items:
            path = join(top, item.name)
            if path not in ours:
                text = f"{show(path)} was put into OneData by somebody else; it is kept there."
                self.outcome.problems.append(Problem(path, "newcomer", text))
                whole = False
            elif item.kind is Kind.DIRECTORY:
                inner, complete = self._wholly_known(path, ours)
                tops += inner
                whole &= complete
            else:
                tops.append(path)
        return ([top], True) if whole else (tops, False)

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

    def _transfer(
        self,
        files: list[Difference],
        snapshots: Mapping[RelPath, bytes],
        pinned: Mapping[RelPath, bytes],
    ) -> list[_Ready]:
        temporaries = dict(self.intent.new)

        def transfer(difference: Difference) -> _Ready | None:
            path = difference.path
            snapshot = snapshots.get(path)
            source = snapshot or pinned.get(path) or join(self._root, path)
            group = self._order.group_of(path, is_database=snapshot is not None)
            ready = self._copy(difference, source, temporaries[path], snapshot is not None, group)
            # A version that the replica holds already keeps every promise that rows make of it.
            if ready is None and path in self.outcome.retry and difference.known is None:
                self._held.add(scope_of(path))
            return ready

        found = self._pool.map(transfer, files)
        return [ready for ready in found if ready is not None]

    def _copy(
        self, difference: Difference, source: bytes, temporary: RelPath, frozen: bool, group: int
    ) -> _Ready | None:
        """Bring one file's content; ``frozen`` sources are snapshots, whose stamp is the plan's."""
        path, known = difference.path, difference.known
        self._may_write()
        try:
            copied = self._same_content(difference, source)
            appended = None if copied or frozen else self._append(difference, source)
            transfers = copied is None and appended is None
            copied = copied or appended or self._replica.put(source, temporary)
        except (FileNotFoundError, InterruptedError, NotADirectoryError):
            self.outcome.retry.add(path)  # gone or changed its kind since the scan: still dirty
            return None
        except PermissionError:
            text = f"{show(path)} cannot be read; everything else is pushed, mend its mode."
            self.outcome.problems.append(Problem(path, "unreadable", text))
            return None
        if not copied.steady and not frozen:
            grown = known is None or copied.size > known.entry.size
            if not (copied.prefix and grown):
                self.outcome.retry.add(path)
                if appended is not None and known is not None:
                    self._replica.truncate(path, known.entry.size)
                else:
                    self._replica.remove(temporary)
                return None
            self.outcome.growing.add(path)
        stamp = _seen(difference) if frozen else copied.before
        assert stamp is not None
        return _Ready(difference, temporary if transfers else None, copied, stamp, group, frozen)

    def _append(self, difference: Difference, source: bytes) -> Copied | None:
        """Write beyond the committed length of a large file that grew, where nobody reads yet."""
        known = difference.known
        if known is None or not _may_append(difference):
            return None
        entry = known.entry
        copied = self._replica.append(source, difference.path, entry.size, entry.digest)
        if copied is not None:
            self._confirm(difference.path, copied.size)
            self._tally(copied.size - entry.size)
        return copied

    def _same_content(self, difference: Difference, source: bytes) -> Copied | None:
        """Return what a copy would give when the replica holds these very bytes already.

        A changed mode or time, or a file written anew with the same content, is read once locally
        instead of sent.
        """
        known = difference.known
        if known is None or known.entry.kind is not Kind.FILE:
            return None
        if os.lstat(source).st_size != known.entry.size:
            return None
        copied = digest_local(source)
        same = copied.steady and copied.digest == known.entry.digest
        return copied if same else None

    def _publish_all(self, ready: list[_Ready], plan: Plan) -> None:
        self._held |= {scope_of(target) for _, target in plan.awaited_moves}
        for group in self._order.groups:
            batch = [item for item in ready if item.group == group]
            list(self._pool.map(self._publish, batch))

    def _publish(self, item: _Ready) -> None:
        path = item.difference.path
        if item.group != DATA and scope_of(path) in self._held:
            self.outcome.retry.add(path)
            if item.temporary is not None:
                self._replica.remove(item.temporary)
            return
        entry = Entry(
            Kind.FILE, item.copied.size, item.stamp.mtime_ns, item.stamp.mode, item.copied.digest
        )
        if item.temporary is None:
            self._record(path, entry, item.stamp)
            return
        if item.is_database:
            self._remove_strays(path)
        if self._change_names(path, item.temporary, self._asides.get(path)):
            self._confirm(path, item.copied.size)
            self._record(path, entry, item.stamp)
            self._tally(item.copied.size)

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

    def _tally(self, size: int) -> None:
        with self._guard:
            self.outcome.files += 1
            self.outcome.size += size

    def _remove_strays(self, path: RelPath) -> None:
        """A journal of another version beside a database would undo what it holds."""
        for suffix in SIDECARS:
            self._may_write()
            self._replica.remove(path + suffix)

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
        for difference in plan.removals:
            if difference.seen is not None:
                continue
            if scope_of(difference.path) in self._held:
                # The databases that do not name it any more were held back: so is its removal.
                self.outcome.postponed.add(difference.path)
            else:
                self._remove(difference)

    def _remove(self, difference: Difference) -> None:
        for path in self._removes[difference.path]:
            self._may_write()
            if self._replica.look(path) is not None:
                self._replica.rename(path, self._asides[path])
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


def _may_append(difference: Difference) -> bool:
    known, seen = difference.known, difference.seen
    if known is None or seen is None or known.entry.kind is not Kind.FILE:
        return False
    return bool(known.entry.digest) and _APPEND_FROM <= known.entry.size < seen.size


def _seen(difference: Difference) -> Stamp:
    assert difference.seen is not None
    return difference.seen


def _entry(stamp: Stamp) -> Entry:
    if stamp.kind is Kind.LINK:
        return Entry(Kind.LINK, target=stamp.target)
    return Entry(stamp.kind, mtime_ns=stamp.mtime_ns, mode=stamp.mode)
