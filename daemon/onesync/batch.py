"""One batch at a time: snapshot, scan, plan, push, checkpoint, index.

A batch is a consistent cut. The databases are snapshotted first; then the watcher is drained and
the tree scanned, so every file that a database's row names is seen; then everything is pushed in
the publish order. Engine's thread only.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from onesync import recovery, snapshot
from onesync.core.chain import Change, Noted, Set
from onesync.core.dirty import Due
from onesync.core.model import Kind, Problem, RelPath, Stamp, join, show
from onesync.core.ordering import DATA, SIDECARS, PublishOrder, database_of
from onesync.core.plan import Difference, Move, Plan, make_plan
from onesync.index import Index
from onesync.manifest import Manifest, Written
from onesync.marks import Marks
from onesync.push import Outcome, Push
from onesync.replica.door import Replica
from onesync.replica.folder import digest_local
from onesync.scanner import Scanner

log = logging.getLogger(__name__)

_SNAPSHOT_SECONDS = 600.0
_ROUNDS = 6


class Events(Protocol):
    """What batches tell the world; called from the engine's thread."""

    def pushed(self, files: int, size: int) -> None:
        """A batch published ``files`` files of ``size`` bytes together."""

    def committed(self, name: str, wall_seconds: float) -> None:
        """A checkpoint stands, since ``wall_seconds`` (seconds since 1970)."""

    def failed(self, kind: str) -> None:
        """A batch failed for a reason of this kind."""


@dataclass(slots=True)
class _Awaited:
    """Second halves that the next batch does, when its databases are newer."""

    removals: frozenset[RelPath] = frozenset()
    moves: frozenset[tuple[RelPath, RelPath]] = frozenset()

    def paths(self) -> set[RelPath]:
        return set(self.removals) | {end for pair in self.moves for end in pair}


@dataclass(frozen=True, slots=True)
class _Frozen:
    """A database's snapshot, and what its source looked like before it was taken."""

    path: bytes
    stamp: Stamp
    digest: str


@dataclass(slots=True)
class Batches:
    """See the module. The fields are its parts; none is changed by others while it runs.

    Attributes:
        drain: waits until the watcher told all that happened before.
        may_write: raises LockLost or MountNotThere when nothing may be written.
        check_mount: raises MountNotThere when the replica is not the one that was deployed.
        problems: what went wrong with single paths, until they are pushed.
        left: what the last batch took and could not commit.
    """

    replica: Replica
    root: bytes
    spool: Path
    index: Index
    scanner: Scanner
    marks: Marks
    manifest: Manifest
    order: PublishOrder
    pool: ThreadPoolExecutor
    events: Events
    drain: Callable[[], None]
    may_write: Callable[[], None]
    check_mount: Callable[[], None]
    problems: dict[RelPath, Problem]
    left: set[RelPath] = field(default_factory=set)
    _awaited: _Awaited = field(default_factory=_Awaited)
    _half_done: bool = False
    _reclaimed: set[RelPath] = field(default_factory=set)
    _sidecars: dict[RelPath, Stamp] = field(default_factory=dict)
    _stamps: dict[RelPath, Stamp] = field(default_factory=dict)
    _impostors: set[RelPath] = field(default_factory=set)

    def batch(self, *, everything: bool = False) -> bool:
        """Do one batch; returns whether anything was committed.

        Raises OSError or OnesyncError where the mount fails as a whole: what was taken is dirty
        again and the next call settles the replica first.
        """
        self.left = set()
        try:
            committed = self._batch(everything)
        except BaseException:
            self.marks.give_back()
            raise
        self.marks.done()
        return committed

    def clean(self) -> None:
        """Batch until what was dirty at the call is committed, or keeps changing (``left``)."""
        for _ in range(_ROUNDS):
            self.batch(everything=True)
            if not self.left and not self.awaits():
                break

    def awaits(self) -> bool:
        """Whether the next batch has second halves to do."""
        return bool(self._awaited.paths())

    def settle(self) -> None:
        """Bring the replica back to the last checkpoint after a batch that died half way."""
        unfinished = self.manifest.unfinished()
        if unfinished is not None:
            checkpoint, written = unfinished
            is_base = checkpoint.header.why == "base"
            self._record(written, () if is_base else checkpoint.changes, self._stamps)
        self.take_settled(recovery.settle(self.replica, self.manifest.committed))
        self._half_done = False

    def take_settled(self, settled: recovery.Settled) -> None:
        """Remember what a dead batch of ours published: the next one may replace it."""
        for sentence in settled.told:
            log.warning("half-done batch settled", extra={"what": sentence})
        self._reclaimed |= settled.published

    def base(self) -> None:
        """Write the whole tree as a checkpoint of its own, and let go of the oldest ones."""
        tree = [Set(path, known.entry) for path, known in self.index.beneath(b"") if path]
        self.commit(tree, {}, "base")
        self.manifest.remove_old()

    def commit(self, changes: Sequence[Change], stamps: dict[RelPath, Stamp], why: str) -> None:
        """Write one checkpoint that needs no push, and record it."""
        self.may_write()
        self.check_mount()
        if self._half_done:
            self.settle()
        recorded = [] if why == "base" else list(changes)
        self._half_done = True
        self._stamps = stamps
        self._record(self.manifest.write(changes, why), recorded, stamps)
        self._half_done = False

    def _batch(self, everything: bool) -> bool:
        due = [self.marks.take(everything)]
        if not (due[0].paths or due[0].trees or self.awaits()):
            return False
        self.may_write()
        if self._half_done:
            self.check_mount()
            self.settle()
        frozen: dict[RelPath, _Frozen] = {}
        if everything or self.awaits() or self._needs_cut(due[0]):
            due.append(self.marks.take(everything=True))
            frozen = self._freeze(_all_paths(due))
            self.drain()
            due.append(self.marks.take(everything=True))
        differences = self._differences(due, frozen)
        plan = self._plan(differences, due)
        if plan.empty:
            self._await(plan, set())
            return False
        self.check_mount()
        return self._push(plan, frozen)

    def _needs_cut(self, due: Due) -> bool:
        """Whether anything due promises other files: then whatever is dirty goes with it."""
        if due.trees or due.moves:
            return True
        return any(
            self.order.group_of(path, is_database=False) != DATA or self._is_database(path)
            for path in due.paths
        )

    def _is_database(self, path: RelPath) -> bool:
        found = path not in self._impostors and snapshot.is_database(join(self.root, path))
        if found:
            self.marks.databases.add(path)
        else:
            self.marks.databases.discard(path)
        return found

    def _freeze(self, paths: set[RelPath]) -> dict[RelPath, _Frozen]:
        """Snapshot the databases among ``paths`` and those that they are sidecars of.

        The project's first and the sets last: a row must not name what its database's snapshot
        could not know yet.
        """
        candidates = paths | {base for path in paths if (base := database_of(path))}
        self._impostors -= candidates
        found = [path for path in candidates if self._is_database(path)]
        found.sort(key=lambda p: (-self.order.group_of(p, is_database=True), p))
        before = [(path, self.scanner.look(path)) for path in found]
        for path in found:
            self._remember_sidecars(path)
        places = [bytes(self.spool / f"{number}.snapshot") for number in range(len(found))]
        sources = [join(self.root, path) for path in found]
        taken = snapshot.take(list(zip(sources, places, strict=True)), _SNAPSHOT_SECONDS)
        frozen = {}
        for (path, stamp), place, result in zip(before, places, taken, strict=True):
            if result.taken and stamp is not None:
                frozen[path] = _Frozen(place, stamp, digest_local(place).digest)
            elif not result.is_database:
                self._impostors.add(path)
            elif stamp is not None:
                self._not_frozen(path, result.reason)
        return frozen

    def _not_frozen(self, path: RelPath, reason: str) -> None:
        text = f"The database {show(path)} could not be copied ({reason}); it is tried again."
        self.problems[path] = Problem(path, "database_busy", text)

    def _remember_sidecars(self, base: RelPath) -> None:
        for suffix in SIDECARS:
            stamp = self.scanner.look(base + suffix)
            if stamp is None:
                self._sidecars.pop(base + suffix, None)
            else:
                self._sidecars[base + suffix] = stamp

    def _differences(
        self, due: list[Due], frozen: dict[RelPath, _Frozen]
    ) -> dict[RelPath, Difference]:
        trees = frozenset().union(*(part.trees for part in due))
        paths = _all_paths(due) | self._awaited.paths() | frozen.keys()
        found = self.scanner.scan(paths, trees)
        found.pop(b"", None)
        self._sort_out_databases(found, frozen)
        for path, item in frozen.items():
            known = self.index.known(path)
            if known is not None and (known.entry.digest, known.stamp) == (item.digest, item.stamp):
                found.pop(path, None)
            elif path not in found or found[path].seen is not None:
                found[path] = Difference(path, known, item.stamp)
        return found

    def _sort_out_databases(
        self, found: dict[RelPath, Difference], frozen: dict[RelPath, _Frozen]
    ) -> None:
        """Leave sidecars out, and databases that were found too late for this batch's cut."""
        for path, difference in list(found.items()):
            if difference.seen is None or difference.seen.kind is not Kind.FILE:
                continue
            base = database_of(path)
            if base is not None and self._is_database(base):
                del found[path]
                if self._sidecars.get(path) != difference.seen and base not in frozen:
                    self._defer(base)
            elif path not in frozen and self._is_database(path):
                # Its snapshot would be younger than the scan: the next batch takes it first.
                del found[path]
                self._defer(path)

    def _defer(self, path: RelPath) -> None:
        self.left.add(path)
        self.marks.again([path])

    def _push(self, plan: Plan, frozen: dict[RelPath, _Frozen]) -> bool:
        push = Push(
            self.replica,
            self.root,
            self.manifest.position,
            self.pool,
            self.order,
            self.may_write,
            lambda top: (path for path, _ in self.index.beneath(top)),
            frozenset(self._reclaimed),
        )
        self._half_done = True
        try:
            return self._push_and_commit(push, plan, frozen)
        except OSError as error:
            self.events.failed(error.strerror or "unknown")
            raise

    def _push_and_commit(self, push: Push, plan: Plan, frozen: dict[RelPath, _Frozen]) -> bool:
        outcome = push.carry_out(plan, {path: item.path for path, item in frozen.items()})
        self._take_problems(plan, outcome)
        if outcome.changes:
            noted = [Noted(problem) for problem in outcome.problems]
            self.may_write()
            self._stamps = outcome.stamps
            written = self.manifest.write([*outcome.changes, *noted], "incremental")
            self._record(written, outcome.changes, outcome.stamps)
        self.events.pushed(outcome.files, outcome.size)
        self._await(plan, outcome.postponed)
        self.left |= outcome.retry | outcome.postponed
        self.marks.again(outcome.retry | outcome.growing)
        for move in plan.moves:
            self.marks.tree_changed(move.target)
        push.tidy()
        self._reclaimed -= {difference.path for difference in plan.files}
        self._half_done = False
        for item in frozen.values():
            Path(os.fsdecode(item.path)).unlink(missing_ok=True)
        return bool(outcome.changes)

    def _record(
        self, written: Written, changes: Iterable[Change], stamps: dict[RelPath, Stamp]
    ) -> None:
        self.index.commit(
            changes,
            stamps,
            head_name=written.name,
            head_digest=written.digest,
            epoch=str(written.position.epoch),
            sequence=str(written.position.sequence),
        )
        self.events.committed(written.name, written.wall_seconds)

    def _take_problems(self, plan: Plan, outcome: Outcome) -> None:
        for difference in plan.files + plan.directories + plan.links + plan.removals:
            self.problems.pop(difference.path, None)
        self.problems.update({p.path: p for p in outcome.problems})

    def _await(self, plan: Plan, postponed: set[RelPath]) -> None:
        self._awaited = _Awaited(plan.awaited_removals | postponed, plan.awaited_moves)
        if self.awaits():
            self.marks.arrived.set()

    def _plan(self, differences: dict[RelPath, Difference], due: list[Due]) -> Plan:
        pairs = {pair for part in due for pair in part.moves} | self._awaited.moves
        renames = self._renames(differences, pairs)
        return make_plan(differences, renames, self._awaited.removals, self._awaited.moves)

    def _renames(
        self, differences: dict[RelPath, Difference], pairs: set[tuple[RelPath, RelPath]]
    ) -> list[Move]:
        """Find renames: the kernel's pairs lead there, and inode and stamp agree."""
        came_from = {target: source for source, target in pairs}
        found = []
        for target in came_from:
            come = differences.get(target)
            passed = {target}
            source = came_from.get(target)
            # Renamed more than once since the last batch: back along the pairs.
            while come is not None and source is not None and source not in passed:
                gone = differences.get(source)
                if gone is not None and come.seen is not None and _is_rename(gone, come):
                    found.append(Move(source, target, come.seen.kind, come.seen))
                    break
                passed.add(source)
                source = came_from.get(source)
        return found


def _is_rename(gone: Difference, come: Difference) -> bool:
    seen, old = come.seen, gone.known.stamp if gone.known is not None else None
    if gone.seen is not None or come.known is not None or seen is None or old is None:
        return False
    if seen.kind is Kind.LINK or (seen.kind, seen.inode) != (old.kind, old.inode):
        return False
    same = (old.size, old.mtime_ns) == (seen.size, seen.mtime_ns)
    return seen.kind is Kind.DIRECTORY or same


def _all_paths(due: Iterable[Due]) -> set[RelPath]:
    return {path for part in due for path in part.paths}
