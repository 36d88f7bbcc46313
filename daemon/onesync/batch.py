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
from onesync.core.model import (
    Entry,
    Kind,
    Problem,
    RelPath,
    Stamp,
    is_beneath,
    is_unconfirmed,
    join,
    lost_stamp,
    show,
)
from onesync.core.ordering import DATA, SIDECARS, PublishOrder, database_of
from onesync.core.plan import Difference, Move, Plan, make_plan
from onesync.index import Index
from onesync.manifest import Manifest, Written
from onesync.marks import Marks
from onesync.pins import Pins
from onesync.push import Outcome, Push
from onesync.replica.door import Replica
from onesync.replica.folder import digest_local
from onesync.scanner import Scanner
from onesync.snapshot import Snapshots

log = logging.getLogger(__name__)

_SNAPSHOT_SECONDS = 600.0
_ROUNDS = 6
_STRICT_ROUNDS = 3


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
    snapshots: Snapshots = field(default_factory=Snapshots)
    left: set[RelPath] = field(default_factory=set)
    _awaited: _Awaited = field(default_factory=_Awaited)
    _half_done: bool = False
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
        told = recovery.settle(self.replica, self.manifest.committed, self._published)
        for sentence in told:
            log.warning("half-done batch settled", extra={"what": sentence})
        self._half_done = False

    def _published(self, published: dict[RelPath, Kind]) -> None:
        """Remember what a dead batch of ours published: the next one replaces or removes it."""
        new = {p: k for p, k in published.items() if self.index.known(p) is None}
        stamps = {path: lost_stamp(kind) for path, kind in new.items()}
        self.index.commit([Set(path, Entry(kind)) for path, kind in new.items()], stamps)

    def base(self) -> None:
        """Write the whole tree as a checkpoint of its own, and let go of the oldest ones."""
        tree: list[Change] = [
            Set(path, known.entry)
            for path, known in self.index.beneath(b"")
            if path and not is_unconfirmed(known.entry)
        ]
        self.commit([*tree, *map(Noted, self.problems.values())], {}, "base")
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
        with Pins(self.root) as pins:
            if everything or self.awaits() or self._needs_cut(due[0]):
                due.append(self.marks.take(everything=True))
                frozen, differences = self._cut(due, pins)
            else:
                frozen, differences = {}, self._look(due[0])
            plan = self._plan(differences, due)
            if plan.empty:
                self._await(plan, set())
                return False
            self.check_mount()
            return self._push(plan, frozen, pins)

    def _cut(
        self, due: list[Due], pins: Pins
    ) -> tuple[dict[RelPath, _Frozen], dict[RelPath, Difference]]:
        """Look, hold what is there, snapshot the databases, and look at what changed meanwhile.

        Whatever a row of a snapshot can name was seen by the first look, or changed since and was
        told. Should such a file have come and gone in between, everything is done once more.
        """
        found = self._look(_joined(due))
        frozen: dict[RelPath, _Frozen] = {}
        late = due[-1]
        for number in range(_ROUNDS):
            earlier = _all_paths(due)
            databases = self._databases(_all_paths(due) | found.keys())
            pins.add(_files(found) - databases)
            frozen = self._freeze(databases)
            self.drain()
            late = self.marks.take(everything=True)
            due.append(late)
            late_found = self._look(late)
            found = _over(found, late, late_found)
            pins.add(_files(late_found) - databases)
            # What came only after the first look, and went, lived for milliseconds: after a few
            # tries it is taken for what it nearly always is, a temporary that no row names.
            strict = number < _STRICT_ROUNDS
            if not self._came_and_went(late.paths if strict else late.paths & earlier, pins):
                break
            self._let_go_of_gone(found, pins)
        else:
            # Too much comes and goes: data are pushed, what promises them waits.
            frozen = {}
            for path in [path for path in _files(found) if self._is_marker(path)]:
                del found[path]
                self._defer(path)
        self._complete(found, frozen, pins, late.paths if late.trees else None)
        return frozen, found

    def _look(self, due: Due) -> dict[RelPath, Difference]:
        found = self.scanner.scan(due.paths | self._awaited.paths(), due.trees)
        found.pop(b"", None)
        return found

    def _came_and_went(self, paths: Iterable[RelPath], pins: Pins) -> bool:
        """Whether a snapshot may name one of ``paths`` and nobody holds what it was."""
        return any(
            path not in pins
            and database_of(path) not in self.marks.databases
            and self.scanner.look(path) is None
            and self.index.known(path) is None
            for path in paths
        )

    def _let_go_of_gone(self, found: dict[RelPath, Difference], pins: Pins) -> None:
        """Begin a new cut: what is gone before it is not part of it."""
        for path in list(pins):
            if self.scanner.look(path) is None:
                pins.release(path)
                if (gone := found.get(path)) is not None and gone.seen is not None:
                    del found[path]

    def _complete(
        self,
        found: dict[RelPath, Difference],
        frozen: dict[RelPath, _Frozen],
        pins: Pins,
        told: Iterable[RelPath] | None,
    ) -> None:
        """Turn what two looks found into what the batch is to push, in place.

        ``told`` are the paths of the second look where it walked trees: a marker that only this
        walk came upon may be younger than the walk of its data.
        """
        for path in pins:
            if self.scanner.look(path) is None:
                # Deleted since the first look: pushed as it was, removed by a later batch.
                found[path] = Difference(path, self.index.known(path), pins.stamp(path))
                self.marks.again([path])
        self._sort_out(found, frozen, told)
        for path, item in frozen.items():
            known = self.index.known(path)
            if known is not None and (known.entry.digest, known.stamp) == (item.digest, item.stamp):
                found.pop(path, None)
            elif path not in found or found[path].seen is not None:
                found[path] = Difference(path, known, item.stamp)

    def _needs_cut(self, due: Due) -> bool:
        """Whether anything due promises other files: then whatever is dirty goes with it."""
        if due.trees or due.moves:
            return True
        return any(self._is_marker(path) or self._is_database(path) for path in due.paths)

    def _is_database(self, path: RelPath) -> bool:
        found = path not in self._impostors and snapshot.is_database(join(self.root, path))
        if found:
            self.marks.databases.add(path)
        else:
            self.marks.databases.discard(path)
        return found

    def _databases(self, paths: set[RelPath]) -> set[RelPath]:
        """Return the databases among ``paths`` and those that they are sidecars of."""
        candidates = paths | {base for path in paths if (base := database_of(path))}
        self._impostors -= candidates
        return {path for path in candidates if self._is_database(path)}

    def _freeze(self, databases: set[RelPath]) -> dict[RelPath, _Frozen]:
        """Snapshot ``databases``.

        The project's first and the sets last: a row must not name what its database's snapshot
        could not know yet.
        """
        found = sorted(databases, key=lambda p: (-self.order.group_of(p, is_database=True), p))
        before = [(path, self.scanner.look(path)) for path in found]
        for path in found:
            self._remember_sidecars(path)
        places = [bytes(self.spool / f"{number}.snapshot") for number in range(len(found))]
        sources = [join(self.root, path) for path in found]
        pairs = list(zip(sources, places, strict=True))
        frozen = {}
        for (path, stamp), place, result in zip(
            before, places, self.snapshots.take(pairs, _SNAPSHOT_SECONDS), strict=True
        ):
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

    def _sort_out(
        self,
        found: dict[RelPath, Difference],
        frozen: dict[RelPath, _Frozen],
        told: Iterable[RelPath] | None,
    ) -> None:
        """Leave sidecars out, and what is too late for this batch's cut."""
        told = None if told is None else set(told)
        for path, difference in list(found.items()):
            if difference.seen is None or difference.seen.kind is not Kind.FILE:
                continue
            base = database_of(path)
            if base is not None and self._is_database(base):
                del found[path]
                if self._sidecars.get(path) != difference.seen and base not in frozen:
                    self._defer(base)
                continue
            young = told is not None and path not in told and self._is_marker(path)
            if young or (path not in frozen and self._is_database(path)):
                del found[path]
                self._defer(path)

    def _is_marker(self, path: RelPath) -> bool:
        return self.order.group_of(path, is_database=False) != DATA

    def _defer(self, path: RelPath) -> None:
        self.left.add(path)
        self.marks.again([path])

    def _push(self, plan: Plan, frozen: dict[RelPath, _Frozen], pins: Pins) -> bool:
        push = Push(
            self.replica,
            self.root,
            self.manifest.position,
            self.pool,
            self.order,
            self.may_write,
            lambda top: (path for path, _ in self.index.beneath(top)),
        )
        self._half_done = True
        try:
            return self._push_and_commit(push, plan, frozen, pins)
        except OSError as error:
            self.events.failed(error.strerror or "unknown")
            raise

    def _push_and_commit(
        self, push: Push, plan: Plan, frozen: dict[RelPath, _Frozen], pins: Pins
    ) -> bool:
        snapshots = {path: item.path for path, item in frozen.items()}
        outcome = push.carry_out(plan, snapshots, pins.sources())
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


def _joined(due: list[Due]) -> Due:
    trees = frozenset(tree for part in due for tree in part.trees)
    moves = tuple(pair for part in due for pair in part.moves)
    return Due(frozenset(_all_paths(due)), trees, moves, ())


def _files(found: dict[RelPath, Difference]) -> set[RelPath]:
    return {
        path
        for path, difference in found.items()
        if difference.seen is not None and difference.seen.kind is Kind.FILE
    }


def _over(
    found: dict[RelPath, Difference], late: Due, late_found: dict[RelPath, Difference]
) -> dict[RelPath, Difference]:
    """Return what holds after the second look, which speaks of all that ``late`` names."""
    kept = {
        path: difference
        for path, difference in found.items()
        if path not in late.paths and not any(is_beneath(path, tree) for tree in late.trees)
    }
    return kept | late_found
