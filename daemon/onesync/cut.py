"""The consistent cut that a batch is made of.

What is dirty is looked at and held open; then the databases are snapshotted; then the watcher is
drained and what changed meanwhile is looked at too. So whatever a row or a marker of the cut
promises was seen, and can be read even when it is deleted before it travels. Engine's thread only.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path

from onesync import snapshot
from onesync.core.dirty import Due
from onesync.core.model import (
    Kind,
    Known,
    Problem,
    RelPath,
    Stamp,
    is_damaged_row,
    join,
    lies_in,
    parent_of,
    show,
)
from onesync.core.ordering import DATA, SIDECARS, PublishOrder, database_of, scope_of
from onesync.core.plan import Difference
from onesync.core.trouble import Reaction, judge_source
from onesync.index import Index
from onesync.local import digest_local
from onesync.marks import Marks
from onesync.outcome import DATABASE_BUSY, NOT_COPIED, SPOOL_FULL, UNREADABLE
from onesync.pins import Pins
from onesync.rewrites import Rewrites
from onesync.scanner import Scanner
from onesync.snapshot import Snapshots, Taken, Traces

_SNAPSHOT_SECONDS = 600.0
_REBUILD_SECONDS = 30.0
"""So long OneData keeps the last good version of a database that is momentarily none."""
_ROUNDS = 6
_STRICT_ROUNDS = 3
_LOST_SECONDS = 60.0
"""After so long a database that the disk did not give is tried again."""
_FULL = ("database or disk is full", os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))


@dataclass(frozen=True, slots=True)
class Frozen:
    """A database's snapshot.

    Attributes:
        path: absolute path of the snapshot.
        stamp: what the database looked like before it was taken.
        digest: of the snapshot's bytes.
        traces: what commits leave, from then.
    """

    path: bytes
    stamp: Stamp
    digest: str
    traces: Traces


@dataclass(slots=True)
class Cut:
    """What a batch may push.

    Attributes:
        found: where the working copy differs from the index.
        frozen: the databases' snapshots.
        moves: (source, target) pairs that the kernel told as one rename.
        deferred: paths that wait for the next cut; they are marked again.
        seconds: how long it took, for the log.
        looked: the paths and trees that were looked at.
        backlog: data that it did not look at: nobody told of them when it began.
        taken_back: sidecars that OneData has and that are let go, whether or not they are gone.
        turned: what became another kind since the first look: the snapshots and markers may be
            older than that.
        lost: databases among the deferred that the disk does not give: they are not waited for.
        unread: what is told of these, and of all else that cannot be read.
    """

    found: dict[RelPath, Difference]
    looked: Due
    frozen: dict[RelPath, Frozen] = field(default_factory=dict)
    moves: set[tuple[RelPath, RelPath]] = field(default_factory=set)
    deferred: set[RelPath] = field(default_factory=set)
    seconds: float = 0.0
    taken_back: set[RelPath] = field(default_factory=set)
    backlog: set[RelPath] = field(default_factory=set)
    turned: AbstractSet[RelPath] = frozenset()
    lost: AbstractSet[RelPath] = frozenset()
    unread: tuple[Problem, ...] = ()


@dataclass(slots=True)
class Cuts:
    """Makes one cut after the other. The fields are its parts.

    Attributes:
        drain: waits until the watcher told all that happened before.
        boottime: seconds on CLOCK_BOOTTIME.
        problems: databases that could not be copied are added.
        awaited_moves: renames that the next batch carries out.
    """

    root: bytes
    spool: Path
    index: Index
    scanner: Scanner
    marks: Marks
    order: PublishOrder
    drain: Callable[[], None]
    boottime: Callable[[], float]
    problems: dict[RelPath, Problem]
    snapshots: Snapshots = field(default_factory=Snapshots)
    awaited_moves: AbstractSet[tuple[RelPath, RelPath]] = frozenset()
    _rewrites: Rewrites = field(init=False)
    _deferred: set[RelPath] = field(default_factory=set)
    _sidecars: dict[RelPath, Stamp] = field(default_factory=dict)
    _impostors: set[RelPath] = field(default_factory=set)
    _lookalikes: set[RelPath] = field(default_factory=set)
    _bad_since: dict[RelPath, float] = field(default_factory=dict)
    _taken: dict[RelPath, tuple[str, bytes | None]] = field(default_factory=dict)
    _unchanged: set[RelPath] = field(default_factory=set)
    _unread: dict[RelPath, OSError] = field(default_factory=dict)
    _lost: dict[RelPath, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._rewrites = Rewrites(self.root, self.index, self.scanner)

    def plain(self, due: Due, awaited: AbstractSet[RelPath] = frozenset()) -> Cut:
        """Look at what is due and ``awaited`` alone: it promises nothing."""
        found = self._look(due, awaited)
        self._leave_out_unread(found)
        cut = Cut(found, due, moves=set(due.moves))
        cut.unread = self._problems_of_unread(found, due)
        return cut

    def take(
        self,
        first: Due,
        awaited: set[RelPath],
        pins: Pins,
        *,
        as_is: bool,
        waiting: Mapping[RelPath, Frozen] | None = None,
        runs: AbstractSet[RelPath] = frozenset(),
    ) -> Cut:
        """Cut all that is dirty now, with what is ``first`` and ``awaited``; ``pins`` hold it.

        ``as_is`` takes a database also in the moment in which it is being rebuilt. Those whose
        snapshots of an earlier cut are ``waiting`` are not taken anew, and neither are the others
        of ``runs``, which would wait with them.
        """
        self._deferred, self._unchanged, self._unread = set(), set(), {}
        self.drain()  # or what went before would seem to go while the databases are copied
        due = [first, self.marks.take(everything=True, resting=as_is)]
        found = self._look(_joined(due), awaited)
        turned_before = _turned(found)
        self._rewrites.all_is_told()
        databases = self._databases(_all_paths(due) | found.keys() | self._lost.keys())
        self._pin(pins, found, _files(found) - databases)
        old = {} if waiting is None else waiting
        frozen: dict[RelPath, Frozen] = {}
        went, young = set[RelPath](), set[RelPath]()
        for number in range(_ROUNDS):
            earlier = _all_paths(due)
            fresh = {p for p in databases - old.keys() if scope_of(p) not in runs}
            fresh -= self._lost_lately(as_is=as_is)
            frozen = {**old, **self._freeze(fresh, as_is, old)}
            self.drain()
            late = self.marks.take(everything=True, resting=as_is)
            due.append(late)
            late_found = self._look(late, self._known_parents(late.paths))
            # What was gone already before the snapshot is told of late, no more.
            strict = number < _STRICT_ROUNDS
            came = late.paths - (earlier - found.keys() - (late.written if strict else set()))
            young = self._come_upon(found, late, late_found)
            turned = self._turned_away(late_found, pins)
            _renew(found, late, late_found)
            told = late.paths | late_found.keys()
            databases = (databases - told) | self._databases(told)
            self._pin(pins, found, _files(late_found) - databases)
            # What came only after the first look, and went, lived for milliseconds: after a few
            # tries it is taken for what it nearly always is, a temporary that no row names.
            went = self._came_and_went(came if strict else came & earlier, pins)
            went |= set(map(scope_of, turned))
            if waiting is not None and frozen.keys() == old.keys():
                # Those snapshots are older than anything that came since.
                went &= set(map(scope_of, self._markers(found, databases)))
            if not went:
                break
            self._let_go_of_gone(found, pins, late, turned)
        else:
            # Too much comes and goes: data are pushed, what promises them waits.
            frozen, self._unchanged = dict(old), set()
            for path in self._markers(found, databases):
                if scope_of(path) in went:
                    del found[path]
                    self._defer(path)
        self._keep_what_went(found, pins, _joined(due[2:]))
        databases = databases - self._impostors
        self._sort_out(found, frozen, databases, young)
        self._add_frozen(found, frozen)
        self._look_again(frozen)
        for path in databases - frozen.keys() - self._unchanged - self._lost.keys():
            self._defer(path)  # with a log it may look as it did: nothing found tells of it
        lost = self._still_lost(frozen, as_is=as_is)
        taken_back = self._take_back_sidecars(found, awaited | frozen.keys())
        looked = _joined(due)
        cut = Cut(found, looked, frozen, set(looked.moves), self._deferred, taken_back=taken_back)
        cut.turned = _turned(found) - turned_before
        cut.lost = lost
        cut.unread = self._problems_of_unread(found, looked)
        return cut

    def _pin(
        self, pins: Pins, found: dict[RelPath, Difference], paths: AbstractSet[RelPath]
    ) -> None:
        """Hold ``paths``; what went since it was seen is not found any more.

        Data before what promises them: who takes both back takes the marker first, so a marker that
        is still there has its data held.
        """
        for path in pins.add(sorted(paths, key=self._group_of)):
            if found[path].known is None:
                del found[path]

    def _look(self, due: Due, awaited: AbstractSet[RelPath]) -> dict[RelPath, Difference]:
        # A directory that took the name of another one brought its content along: inode numbers
        # come back, so its own look does not tell.
        taken = {target for _, target in due.moves if self._was_directory(target)}
        found = self.scanner.scan(due.paths | awaited, due.trees | taken, passes_over=True)
        found.pop(b"", None)
        self._leave_scratch(found, due, awaited)
        if rewritten := self._rewritten(due):
            found |= self.scanner.scan(rewritten, (), passes_over=True)
        return found

    def _was_directory(self, path: RelPath) -> bool:
        known = self.index.known(path)
        return known is not None and known.entry.kind is Kind.DIRECTORY

    def _rewritten(self, due: Due) -> set[RelPath]:
        """Return the files that were written and look as they were pushed, where they stand."""
        files = {
            path
            for path in due.written
            if database_of(path) not in self.marks.databases and not self._is_database(path)
        }
        rows = self._rewrites.find(files, self.awaited_moves | set(due.moves))
        return rows - self.scanner.gone(rows)

    def _leave_scratch(
        self, found: dict[RelPath, Difference], due: Due, awaited: AbstractSet[RelPath]
    ) -> None:
        """Leave the scratch that was come upon in a tree to marks of its own, until it settles."""
        renamed = {target for _, target in due.moves}
        for path in filter(self.order.is_scratch, _files(found) - due.paths - awaited):
            if lies_in(path, renamed):
                continue
            if not self.marks.is_worked_on(path):
                self.marks.changed(path)
            if self.marks.is_worked_on(path):  # else there are too many, and it goes now
                del found[path]

    def _known_parents(self, paths: Iterable[RelPath]) -> set[RelPath]:
        """Return the directories of ``paths``, but for new ones, which would be walked.

        A snapshot itself may make and remove sidecars, which dates their directory anew.
        """
        parents = {(path, self.index.known(path)) for path in map(parent_of, paths)}
        return {path for path, row in parents if row and row.entry.kind is Kind.DIRECTORY}

    def _came_and_went(self, paths: Iterable[RelPath], pins: Pins) -> set[RelPath]:
        """Return the runs of those of ``paths`` that a snapshot may name and nobody holds."""
        nameable = {
            path
            for path in paths
            if path not in pins
            and not self.order.is_scratch(path)
            and database_of(path) not in self.marks.databases
        }
        gone = self.scanner.gone(nameable)
        return {scope_of(path) for path in gone if self.index.known(path) is None}

    def _come_upon(
        self,
        found: Mapping[RelPath, Difference],
        late: Due,
        late_found: Mapping[RelPath, Difference],
    ) -> set[RelPath]:
        """Return the markers that nobody told of and that the walk of the last look came upon.

        They may be younger than the look at their data, which nobody told of either.
        """
        return {
            path
            for path, difference in (late_found.items() if late.trees else ())
            if path not in late.paths and found.get(path) != difference and self._is_marker(path)
        }

    def _markers(
        self, found: dict[RelPath, Difference], databases: AbstractSet[RelPath]
    ) -> list[RelPath]:
        """Return the files of ``found`` that promise data of their run, but for ``databases``."""
        return [path for path in _files(found) - databases if self._is_marker(path)]

    def _turned_away(self, late_found: Mapping[RelPath, Difference], pins: Pins) -> set[RelPath]:
        """Return the pinned files that OneData does not have and whose place something else took.

        They cannot be pushed as they were beside that, and snapshots may name both.
        """
        seen = ((path, difference.seen) for path, difference in late_found.items())
        others = {path for path, stamp in seen if stamp and stamp.kind is not Kind.FILE}
        return {path for path in others if path in pins and not self._has_file(path)}

    def _has_file(self, path: RelPath) -> bool:
        known = self.index.known(path)
        return known is not None and known.entry.kind is Kind.FILE

    def _let_go_of_gone(
        self,
        found: dict[RelPath, Difference],
        pins: Pins,
        late: Due,
        turned: AbstractSet[RelPath],
    ) -> None:
        """Begin a new cut: what is gone before it, or ``turned``, is not part of it."""
        for path in turned:
            pins.release(path)
        for path in self._gone(pins, late):
            pins.release(path)
            if (gone := found.get(path)) is not None and gone.seen is not None:
                del found[path]

    def _keep_what_went(self, found: dict[RelPath, Difference], pins: Pins, late: Due) -> None:
        """Push what was deleted since the first look as it was; a later batch removes it."""
        for path in self._gone(pins, late):
            found[path] = Difference(path, self.index.known(path), pins.stamp(path))
            self.marks.again([path])

    def _gone(self, pins: Pins, late: Due) -> set[RelPath]:
        """Return what is pinned and has no name any more, by what was told since.

        Each look costs, and most of thousands of pins were told nothing of.
        """
        tops = late.paths | late.trees
        return self.scanner.gone({path for path in pins if lies_in(path, tops)})

    def _look_again(self, frozen: Mapping[RelPath, Frozen]) -> None:
        """Mark again what is younger than its snapshot: its mark was taken with the last look."""
        for path, item in frozen.items():
            if snapshot.traces_of(join(self.root, path)) != item.traces:
                self.marks.again([path])

    def _add_frozen(self, found: dict[RelPath, Difference], frozen: dict[RelPath, Frozen]) -> None:
        for path, item in frozen.items():
            known = self.index.known(path)
            if self._is_as_known(known, item):
                found.pop(path, None)
            elif path not in found or found[path].seen is not None:
                found[path] = Difference(path, known, item.stamp)

    def _is_as_known(self, known: Known | None, item: Frozen) -> bool:
        """Whether a snapshot holds nothing new; of what came damaged: nothing was committed to it.

        The good version that the manifest tells of is new then: OneData has another one.
        """
        if is_damaged_row(known):
            return self.index.came_damaged(item.digest)
        return known is not None and (known.entry.digest, known.stamp) == (item.digest, item.stamp)

    def is_needed(self, due: Due) -> bool:
        """Whether anything due promises other files: then whatever is dirty goes with it."""
        self._unread = {}
        if due.trees or due.moves or any(map(self._is_marker, due.paths)):
            return True
        return bool(self._databases(due.paths))

    def _is_database(self, path: RelPath) -> bool:
        if self.scanner.is_hidden(path):
            return False  # nobody can tell, and it is not among what was found
        found = path not in self._impostors and self._has_header(path)
        if found:
            self.marks.databases.add(path)
        else:
            self.marks.databases.discard(path)
        return found

    def _has_header(self, path: RelPath) -> bool:
        was_one = path in self._taken
        try:
            found = snapshot.is_database(join(self.root, path), was_one=was_one)
        except OSError as error:
            if judge_source(error).reaction is not Reaction.PATH:
                raise
            self._unread[path] = error
            return was_one
        self._unread.pop(path, None)
        return found

    def _databases(self, paths: AbstractSet[RelPath]) -> set[RelPath]:
        """Return the databases among ``paths`` and those that they are sidecars of."""
        candidates = paths | {base for path in paths if (base := database_of(path))}
        self._impostors -= candidates
        return {path for path in candidates if self._is_database(path)}

    def _freeze(
        self, databases: set[RelPath], as_is: bool, waiting: Mapping[RelPath, Frozen]
    ) -> dict[RelPath, Frozen]:
        """Snapshot ``databases``, beside those that are ``waiting``.

        The project's first and the sets last: a row must not name what its database's snapshot
        could not know yet.
        """
        for path in databases:
            self._remember_sidecars(path)
        self._unchanged = set(filter(self._is_unchanged, databases))
        self._not_busy(self._unchanged)
        changed = databases - self._unchanged
        found = sorted(changed, key=lambda p: (-self.order.group_of(p, is_database=True), p))
        sources = [join(self.root, path) for path in found]
        before = [
            (self.scanner.see(p), snapshot.state_of(source), snapshot.traces_of(source))
            for p, source in zip(found, sources, strict=True)
        ]
        taken = {item.path for item in waiting.values()}
        free = (bytes(self.spool / f"{number}.snapshot") for number in count())
        places = list(islice((place for place in free if place not in taken), len(found)))
        pairs = list(zip(sources, places, strict=True))
        results = self.snapshots.take(pairs, _SNAPSHOT_SECONDS)
        frozen = {}
        for path, (source, place), (stamp, state, traces), result in zip(
            found, pairs, before, results, strict=True
        ):
            if stamp is None or self._waits(path, result, as_is):
                continue
            if not result.taken:
                self._take_for_plain(path)
            elif (digest := self._digest_of(path, place)) is not None:
                frozen[path] = Frozen(place, stamp, digest, traces)
                is_same = state == snapshot.state_of(source)
                self._taken[path] = (digest, state if is_same else None)
                self._lookalikes.discard(path)
        self._not_busy(frozen)
        return frozen

    def _digest_of(self, path: RelPath, place: bytes) -> str | None:
        """Digest the snapshot of ``path``, which may share content that the disk does not give."""
        try:
            return digest_local(place).digest
        except OSError as error:
            if judge_source(error).reaction is Reaction.PATH:
                self._note_lost(path, error)
            else:
                self._not_frozen(path, error.strerror or repr(error))
            return None

    def _waits(self, path: RelPath, result: Taken, as_is: bool) -> bool:
        """Whether nothing of ``path`` goes now, and say so where its writer can do something."""
        if result.lost:
            self._note_lost(path, OSError(result.lost, os.strerror(result.lost)))
            return True
        is_busy = result.is_database and not result.taken
        waits = is_busy or self._keeps_last_good(path, is_good=result.taken and result.has_rows)
        if waits and not result.taken:
            self._not_frozen(path, result.reason)
        return waits and not (result.taken and as_is)

    def _is_unchanged(self, path: RelPath) -> bool:
        """Whether OneData has the database as it is: it was only opened, or locked and let go.

        Its stamp alone does not tell: two commits may have the same time.
        """
        known = self.index.known(path)
        digest, state = self._taken.get(path, ("", None))
        source = join(self.root, path)
        if is_damaged_row(known):
            return self.scanner.see(path) == known.stamp and not snapshot.has_journal(source)
        if known is None or state is None or known.entry.digest != digest:
            return False
        now = snapshot.state_of(source)
        return now == state and self.scanner.see(path) == known.stamp

    def _keeps_last_good(self, path: RelPath, *, is_good: bool) -> bool:
        """Whether ``path`` became no good so lately that OneData keeps its last good version.

        Scipion drops and fills steps.sqlite anew, and commits in between. It copies another
        database over run.db, and no lock tells when half of it is there. Whether a former process
        pushed a good one nobody knows: it counts as one.
        """
        known = self.index.known(path)
        has_version = known is not None and known.entry.kind is Kind.FILE
        if is_good or not has_version or path in self._lookalikes:
            self._bad_since.pop(path, None)
            return False
        now = self.boottime()
        return now - self._bad_since.setdefault(path, now) < _REBUILD_SECONDS

    def _take_for_plain(self, path: RelPath) -> None:
        """Let ``path`` be a file like any other, until it is a good database (again)."""
        self._not_busy([path])
        self._impostors.add(path)
        self._lookalikes.add(path)
        self._taken.pop(path, None)
        self.marks.databases.discard(path)

    def _not_frozen(self, path: RelPath, reason: str) -> None:
        kind = DATABASE_BUSY
        text = f"The database {show(path)} could not be copied ({reason}); it is tried again."
        if reason in _FULL:
            kind = SPOOL_FULL
            text += f" All else goes on: make room in {self.spool.parent}."
        self.problems[path] = Problem(path, kind, text)

    def _not_busy(self, paths: Iterable[RelPath]) -> None:
        for path in paths:
            problem = self.problems.get(path)
            if problem is not None and problem.kind in NOT_COPIED | {UNREADABLE}:
                del self.problems[path]

    def _remember_sidecars(self, base: RelPath) -> None:
        for suffix in SIDECARS:
            stamp = self.scanner.see(base + suffix)
            if stamp is None:
                self._sidecars.pop(base + suffix, None)
            else:
                self._sidecars[base + suffix] = stamp

    def _sort_out(
        self,
        found: dict[RelPath, Difference],
        frozen: dict[RelPath, Frozen],
        databases: AbstractSet[RelPath],
        young: AbstractSet[RelPath],
    ) -> None:
        """Leave out sidecars, what may be a database, and what is too ``young``, in place."""
        self._leave_out_unread(found)
        for path, difference in list(found.items()):
            if difference.seen is None or difference.seen.kind is not Kind.FILE:
                continue
            base = database_of(path)
            if base is not None and self.scanner.is_hidden(base):
                del found[path]  # it may be a database
                continue
            if base is not None and base in databases:
                del found[path]
                is_late = self._sidecars.get(path) != difference.seen and base not in frozen
                if is_late and base not in self._lost:
                    self._defer(base)
                continue
            if path in young or (path not in frozen and path in databases):
                del found[path]
                if path not in self._lost:
                    self._defer(path)

    def _leave_out_unread(self, found: dict[RelPath, Difference]) -> None:
        """Leave out what may be a database, for its header cannot be read, with its sidecars."""
        for path, difference in list(found.items()):
            if difference.seen is None or not self._unread.keys() & {path, database_of(path)}:
                continue
            del found[path]
            place = path if path in self._unread else database_of(path) or path
            self._note_unread(place, self._unread[place])

    def _note_unread(self, path: RelPath, error: OSError) -> None:
        """Tell that the disk does not give what ``path`` holds: it waits for a person."""
        text = f"{show(path)}: {judge_source(error).text}"
        self.problems[path] = Problem(path, UNREADABLE, text)

    def _note_lost(self, path: RelPath, error: OSError) -> None:
        """Tell so of a database, which is not marked: each try reads it up to there."""
        self._note_unread(path, error)
        self._lost[path] = self.boottime() + _LOST_SECONDS

    def _lost_lately(self, *, as_is: bool) -> set[RelPath]:
        """Return the databases that the disk did not give just now: only a flush tries again."""
        now = self.boottime()
        return set() if as_is else {path for path, until in self._lost.items() if until > now}

    def _still_lost(self, frozen: Mapping[RelPath, Frozen], *, as_is: bool) -> set[RelPath]:
        """Return the databases that cannot be read; what OneData's versions name has to stay."""
        for path in self.scanner.gone(self._lost) | (self._lost.keys() & frozen.keys()):
            del self._lost[path]
        for path in self._lost.keys() & (self._unchanged | self._impostors):
            del self._lost[path]
        if not as_is:  # or a flush, and a stop, would wait for it for ever
            self._deferred |= self._lost.keys()
        return set(self._lost)

    def _problems_of_unread(
        self, found: Mapping[RelPath, Difference], looked: Due
    ) -> tuple[Problem, ...]:
        """Return what cannot be read now; forget it of what is as OneData has it after all."""
        told = looked.paths | looked.trees
        unread = self._unread.keys() | self._lost.keys()
        for path, problem in list(self.problems.items()):
            is_over = path not in unread and path not in found and lies_in(path, told)
            if problem.kind == UNREADABLE and is_over:
                del self.problems[path]
        problems = (self.problems.get(path) for path in sorted(unread))
        return tuple(p for p in problems if p is not None and p.kind == UNREADABLE)

    def _take_back_sidecars(
        self, found: dict[RelPath, Difference], paths: Iterable[RelPath]
    ) -> set[RelPath]:
        """Let go what was pushed as a file before the file beside it became a database."""
        taken_back: set[RelPath] = set()
        for base in {database_of(path) or path for path in paths}:
            rows = {base + suffix: self.index.known(base + suffix) for suffix in SIDECARS}
            if any(rows.values()) and self._is_database(base):
                gone = {p: Difference(p, row, None) for p, row in rows.items() if row is not None}
                found.update(gone)
                taken_back |= gone.keys()
        return taken_back

    def is_promise(self, path: RelPath) -> bool:
        """Whether ``path`` is that of a marker or a database, or was while this process runs."""
        return self._is_marker(path) or path in self._taken

    def _is_marker(self, path: RelPath) -> bool:
        return self._group_of(path) != DATA

    def _group_of(self, path: RelPath) -> int:
        return self.order.group_of(path, is_database=False)

    def _defer(self, path: RelPath) -> None:
        self._deferred.add(path)
        self.marks.again([path])


def _all_paths(due: Iterable[Due]) -> set[RelPath]:
    return {path for part in due for path in part.paths}


def _joined(due: list[Due]) -> Due:
    trees = frozenset(tree for part in due for tree in part.trees)
    moves = tuple(pair for part in due for pair in part.moves)
    written = frozenset(path for part in due for path in part.written)
    return Due(frozenset(_all_paths(due)), trees, moves, (), written)


def _files(found: dict[RelPath, Difference]) -> set[RelPath]:
    return {
        path
        for path, difference in found.items()
        if difference.seen is not None and difference.seen.kind is Kind.FILE
    }


def _turned(found: Mapping[RelPath, Difference]) -> set[RelPath]:
    """Return what is another kind of thing than OneData has."""
    return {path for path, difference in found.items() if difference.is_another_kind}


def _renew(
    found: dict[RelPath, Difference], late: Due, late_found: dict[RelPath, Difference]
) -> None:
    """Let ``found`` hold what holds after another look, which speaks of all that ``late`` names."""
    for path in late.paths:
        found.pop(path, None)
    if late.trees:
        for path in [path for path in found if lies_in(path, late.trees)]:
            del found[path]
    found.update(late_found)
