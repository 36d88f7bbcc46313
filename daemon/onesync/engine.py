"""The one loop that plans and commits: dirty, scan, plan, push, checkpoint, index.

All methods but ``status`` run in the engine's thread. The watcher only marks paths dirty, through
``Marks``; everything else about what changed is decided here, by a scan against the index.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from onesync import recovery, snapshot
from onesync.core.chain import (
    Change,
    Damaged,
    Head,
    Header,
    Noted,
    Position,
    Set,
    base_name,
    checkpoint_name,
    decode,
    encode,
    file_digest,
    find_head,
)
from onesync.core.clock import Clock
from onesync.core.dirty import DirtySet, Due
from onesync.core.model import STATUS_FOLDER, Kind, Problem, RelPath, Stamp, join
from onesync.core.ordering import database_of
from onesync.core.plan import Difference, Move, Plan, make_plan
from onesync.errors import MountNotThere, OnesyncError
from onesync.index import Index
from onesync.lock import Lock
from onesync.push import Outcome, Push
from onesync.replica.door import Replica
from onesync.scanner import Scanner

log = logging.getLogger(__name__)

MANIFEST = STATUS_FOLDER + b"/manifest"
_COMPACT_AT_LEAST = 1 << 20
_SNAPSHOT_SECONDS = 600.0


class Events(Protocol):
    """What the engine tells the world; calls are quick and may come from the engine's thread."""

    def pushed(self, files: int, size: int) -> None:
        """A batch published ``files`` files of ``size`` bytes together."""

    def committed(self, name: str, wall_seconds: float) -> None:
        """A checkpoint stands, since ``wall_seconds`` (seconds since 1970)."""

    def failed(self, kind: str) -> None:
        """A batch failed for a reason of this kind."""


class Marks:
    """The dirty set, shared by the watcher's thread and the engine's."""

    def __init__(self, dirty: DirtySet, clock: Clock) -> None:
        """Guard ``dirty``; times are the clock's boottime."""
        self._dirty = dirty
        self._clock = clock
        self._guard = threading.Lock()
        self.arrived = threading.Event()
        self.overflows = 0

    def changed(self, path: RelPath) -> None:
        """Mark one path (watcher)."""
        with self._guard:
            self._dirty.mark(path, self._clock.boottime())
        self.arrived.set()

    def moved(self, source: RelPath, target: RelPath) -> None:
        """Mark both ends of a rename that the kernel told as a pair (watcher)."""
        with self._guard:
            self._dirty.moved(source, target, self._clock.boottime())
        self.arrived.set()

    def tree_changed(self, path: RelPath) -> None:
        """Mark everything beneath ``path``."""
        with self._guard:
            self._dirty.mark_tree(path, self._clock.boottime())
        self.arrived.set()

    def overflowed(self) -> None:
        """The kernel dropped events: only a whole scan knows (watcher)."""
        self.overflows += 1
        self.tree_changed(b"")

    def unwatched(self, path: RelPath, reason: str) -> None:
        """A directory cannot be watched: rescans find what changes in it (watcher)."""
        log.warning("directory is not watched", extra={"path": path, "reason": reason})
        self.tree_changed(path)

    def take(self, everything: bool) -> Due:
        """Take what is due."""
        with self._guard:
            return self._dirty.take(self._clock.boottime(), everything)

    def give_back(self, due: Due) -> None:
        """Put back what a failed batch took."""
        with self._guard:
            self._dirty.give_back(due, self._clock.boottime())

    def again(self, paths: set[RelPath]) -> None:
        """Mark ``paths`` once more."""
        for path in paths:
            self.changed(path)

    def next_due(self) -> float | None:
        """Return the seconds until something is due, or None."""
        with self._guard:
            return self._dirty.next_due(self._clock.boottime())

    def oldest(self) -> float | None:
        """Return when (boottime) the oldest unsynced path was marked."""
        with self._guard:
            return self._dirty.oldest()

    def __len__(self) -> int:
        with self._guard:
            return len(self._dirty)


@dataclass(slots=True)
class _Awaited:
    removals: frozenset[RelPath] = frozenset()
    moves: frozenset[tuple[RelPath, RelPath]] = frozenset()

    def paths(self) -> set[RelPath]:
        return set(self.removals) | {end for pair in self.moves for end in pair}


@dataclass(slots=True)
class Chain:
    """Where the manifest stands for us.

    Attributes:
        folder_id: of the folder.
        head: name and digest of the newest checkpoint; None in a folder without one.
        position: of the next checkpoint.
        since_base: bytes of checkpoints since the last base.
        base_size: bytes of the last base; 0 before the first.
    """

    folder_id: str
    head: tuple[str, str] | None
    position: Position
    since_base: int = 0
    base_size: int = 0


@dataclass(slots=True)
class Engine:
    """See the module. Fields are its parts; none is changed by others while it runs."""

    replica: Replica
    root: bytes
    spool: Path
    index: Index
    scanner: Scanner
    marks: Marks
    lock: Lock
    clock: Clock
    pool: ThreadPoolExecutor
    chain: Chain
    writer: str
    events: Events
    check_mount: Callable[[], None]
    problems: dict[RelPath, Problem] = field(default_factory=dict)
    _awaited: _Awaited = field(default_factory=_Awaited)
    _half_done: bool = False
    _pushing: bool = False
    _reclaimed: set[RelPath] = field(default_factory=set)

    def batch(self, *, everything: bool = False, why: str = "incremental") -> bool:
        """Do one batch; returns whether anything was committed.

        Raises OSError or OnesyncError where the mount fails as a whole: what was taken is dirty
        again and the next call settles the replica first.
        """
        due = self.marks.take(everything)
        try:
            return self._batch(due, why)
        except BaseException:
            self.marks.give_back(due)
            raise

    def settle(self) -> None:
        """Bring the replica back to the last checkpoint after a batch that died half way."""
        self._find_commit_of_unknown_result()
        self.take_settled(recovery.settle(self.replica, self._last_position()))
        self._half_done = False

    def _find_commit_of_unknown_result(self) -> None:
        """A checkpoint whose write or read-back failed may stand all the same."""
        for name in (checkpoint_name(self.chain.position), base_name(self.chain.position)):
            path = join(MANIFEST, name.encode())
            try:
                data = self.replica.read(path)
            except FileNotFoundError:
                continue
            try:
                found = decode(data)
            except Damaged as error:
                # Torn while we wrote it: nobody can have continued it.
                log.warning("torn checkpoint removed", extra={"file": name, "reason": str(error)})
                self.replica.remove(path)
                continue
            # Without stamps its paths count as dirty: the next scan compares them.
            changes = () if found.header.why == "base" else found.changes
            self._record_commit(name, data, found.header.why, changes, {})
            return

    def take_settled(self, settled: recovery.Settled) -> None:
        """Remember what a dead batch of ours published: the next one may replace it."""
        for sentence in settled.told:
            log.warning("half-done batch settled", extra={"what": sentence})
        self._reclaimed |= settled.published

    def clean_to(self) -> bool:
        """Batch until nothing is awaited or dirty any more, as ``flush`` does."""
        committed = False
        for _ in range(3):
            committed |= self.batch(everything=True)
            if not self._awaited.paths() and not len(self.marks):
                break
        return committed

    def base(self) -> None:
        """Write the whole tree as a checkpoint of its own: the first one, or a compaction."""
        tree: list[Change] = [
            Set(path, known.entry) for path, known in self.index.beneath(b"") if path
        ]
        self._commit(tree, {}, why="base")

    def final(self) -> None:
        """Write the checkpoint that says that nothing was left unsynced."""
        self._commit([Noted(problem) for problem in self.problems.values()], {}, why="final")

    def _batch(self, due: Due, why: str) -> bool:
        if not (due.paths or due.trees or self._awaited.paths()):
            return False
        self._may_write()
        self.check_mount()
        if self._half_done:
            self.settle()
        snapshots = self._snapshot(due)
        paths = self._with_databases(due.paths) | self._awaited.paths()
        differences = self.scanner.scan(paths, due.trees)
        differences.pop(b"", None)
        self._drop_sidecars(differences)
        self._snapshot_found(differences, snapshots)
        plan = self._plan(differences, due)
        if plan.empty:
            self._await(plan)
            return False
        return self._push(plan, snapshots, why)

    def _push(self, plan: Plan, snapshots: dict[RelPath, bytes], why: str) -> bool:
        push = Push(
            self.replica,
            self.root,
            self.chain.position,
            self.pool,
            self._may_write,
            frozenset(self._reclaimed),
        )
        self._half_done = self._pushing = True
        try:
            return self._push_and_commit(push, plan, snapshots, why)
        except OSError as error:
            self.events.failed(error.strerror or "unknown")
            raise
        finally:
            self._pushing = False

    def _push_and_commit(
        self, push: Push, plan: Plan, snapshots: dict[RelPath, bytes], why: str
    ) -> bool:
        outcome = push.carry_out(plan, snapshots)
        self._take_problems(plan, outcome)
        if outcome.changes:
            noted = [Noted(problem) for problem in outcome.problems]
            self._commit([*outcome.changes, *noted], outcome.stamps, why)
        self.events.pushed(outcome.files, outcome.size)
        self._await(plan)
        self.marks.again(outcome.retry)
        for move in plan.moves:
            self.marks.tree_changed(move.target)
        push.tidy()
        self._reclaimed -= {difference.path for difference in plan.files}
        self._half_done = False
        for path in snapshots.values():
            Path(os.fsdecode(path)).unlink(missing_ok=True)
        return bool(outcome.changes)

    def _take_problems(self, plan: Plan, outcome: Outcome) -> None:
        for difference in plan.files + plan.directories:
            self.problems.pop(difference.path, None)
        self.problems.update({p.path: p for p in outcome.problems})
        self.problems.update(self.scanner.problems)

    def _await(self, plan: Plan) -> None:
        self._awaited = _Awaited(plan.awaited_removals, plan.awaited_moves)
        if self._awaited.paths():
            self.marks.arrived.set()

    def awaits(self) -> bool:
        """Whether the next batch has second halves to do."""
        return bool(self._awaited.paths())

    def _plan(self, differences: dict[RelPath, Difference], due: Due) -> Plan:
        pairs = set(due.moves) | set(self._awaited.moves)
        renames = self._renames(differences, pairs)
        return make_plan(differences, renames, self._awaited.removals, self._awaited.moves)

    def _renames(
        self, differences: dict[RelPath, Difference], pairs: set[tuple[RelPath, RelPath]]
    ) -> list[Move]:
        """Find renames: the kernel's pair and the inode agree, or inode and stamp do."""
        found = []
        for path, difference in differences.items():
            seen = difference.seen
            if seen is None or difference.known is not None or seen.kind is Kind.LINK:
                continue
            for source, known in self.index.by_inode(seen.inode):
                gone = differences.get(source)
                if gone is None or gone.seen is not None or known.stamp is None:
                    continue
                if known.entry.kind is not seen.kind:
                    continue
                old = (known.stamp.size, known.stamp.mtime_ns)
                same = seen.kind is Kind.DIRECTORY or old == (seen.size, seen.mtime_ns)
                if same and (source, path) in pairs:
                    found.append(Move(source, path, seen.kind, seen))
        return found

    def _with_databases(self, paths: frozenset[RelPath]) -> set[RelPath]:
        """A sidecar that changed means that its database may have."""
        return set(paths) | {base for path in paths if (base := database_of(path))}

    def _drop_sidecars(self, differences: dict[RelPath, Difference]) -> None:
        for path in list(differences):
            base = database_of(path)
            if base is not None and snapshot.is_database(self._local(base)):
                del differences[path]

    def _snapshot(self, due: Due) -> dict[RelPath, bytes]:
        """Snapshot the databases that are due, before the tree is scanned."""
        taken: dict[RelPath, bytes] = {}
        for path in self._with_databases(due.paths):
            self._snapshot_one(path, taken)
        return taken

    def _snapshot_found(
        self, differences: dict[RelPath, Difference], taken: dict[RelPath, bytes]
    ) -> None:
        """Snapshot databases that only the scan found (a rescan, a new directory)."""
        for path, difference in differences.items():
            if difference.seen is not None and difference.seen.kind is Kind.FILE:
                self._snapshot_one(path, taken)

    def _snapshot_one(self, path: RelPath, taken: dict[RelPath, bytes]) -> None:
        source = self._local(path)
        if path in taken or not snapshot.is_database(source):
            return
        target = self.spool / f"{len(taken)}.snapshot"
        reason = snapshot.take(source, bytes(target), _SNAPSHOT_SECONDS)
        if reason is None:
            taken[path] = bytes(target)
        else:
            log.warning("database is pushed as a file", extra={"path": path, "reason": reason})

    def _local(self, path: RelPath) -> bytes:
        return join(self.root, path)

    def _commit(self, changes: list[Change], stamps: dict[RelPath, Stamp], why: str) -> None:
        """Write, read back and record one checkpoint."""
        self._may_write()
        if self._half_done and not self._pushing:
            self.settle()
        self._half_done = True
        position = self.chain.position
        wall = self.clock.wall_ns() / 1e9
        header = Header(
            self.chain.folder_id, position, self.chain.head, self.writer, _iso(wall), why
        )
        data = encode(header, changes)
        name = base_name(position) if why == "base" else checkpoint_name(position)
        path = join(MANIFEST, name.encode())
        self.replica.write_new(path, data)
        if self.replica.read(path) != data:
            raise OnesyncError(
                f"The checkpoint {name} reads back differently from OneData; nothing is lost, the"
                " batch is done again."
            )
        self._record_commit(name, data, why, () if why == "base" else changes, stamps)
        self._half_done = self._pushing
        self.events.committed(name, wall)

    def _record_commit(
        self,
        name: str,
        data: bytes,
        why: str,
        changes: Iterable[Change],
        stamps: dict[RelPath, Stamp],
    ) -> None:
        position = self.chain.position
        self.index.commit(
            changes,
            stamps,
            head_name=name,
            head_digest=file_digest(data),
            epoch=str(position.epoch),
            sequence=str(position.sequence),
        )
        self._advance(name, data, why)

    def _advance(self, name: str, data: bytes, why: str) -> None:
        place = self.chain.position
        self.chain.head = (name, file_digest(data))
        self.chain.position = Position(place.epoch, place.sequence + 1)
        if why == "base":
            self.chain.base_size, self.chain.since_base = len(data), 0
        else:
            self.chain.since_base += len(data)

    def compaction_due(self) -> bool:
        """Whether the checkpoints since the last base outweigh it."""
        return self.chain.since_base > max(_COMPACT_AT_LEAST, self.chain.base_size)

    def _last_position(self) -> Position | None:
        place = self.chain.position
        if self.chain.head is None:
            return None
        return Position(place.epoch, place.sequence - 1)

    def _may_write(self) -> None:
        if not self.lock.may_write():
            raise MountNotThere(
                "The lock's heartbeat could not be confirmed for too long, so nothing is written;"
                " local data are safe, writing goes on when the mount answers again."
            )


def read_head(replica: Replica) -> Head | None:
    """Read the manifest's head from the replica; None in a folder without one."""
    names = [item.name.decode("utf-8", "replace") for item in replica.list(MANIFEST)]
    return find_head(names, lambda name: replica.read(join(MANIFEST, name.encode())))


def _iso(wall: float) -> str:
    return datetime.fromtimestamp(wall, UTC).isoformat(timespec="seconds")
