"""One batch at a time: cut, plan, push, checkpoint, index. Engine's thread only."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from onesync import recovery
from onesync.core.blocks import Blocks
from onesync.core.chain import Change, Noted, Renamed, Set, follow
from onesync.core.dirty import Due
from onesync.core.guard import certainly_gone
from onesync.core.model import (
    Entry,
    Kind,
    Problem,
    RelPath,
    Stamp,
    is_beneath,
    is_unconfirmed,
    join,
    lies_in,
    lost_stamp,
    parent_of,
    renamed_path,
)
from onesync.core.ordering import DATA, RUNS, PublishOrder, is_in_scope, scope_of, scopes_of
from onesync.core.plan import Difference, Move, Plan, Promises, make_plan, portioned, restricted
from onesync.core.renames import renames_among
from onesync.core.trouble import is_full
from onesync.cut import Cut, Cuts
from onesync.deletions import Deletions
from onesync.errors import MountNotThere, NotArrived
from onesync.holds import Holds, ProjectWait
from onesync.index import Index
from onesync.local import on_this_machine
from onesync.manifest import Manifest, Written
from onesync.marks import Marks
from onesync.mentions import Published
from onesync.only_copies import OnlyCopies
from onesync.outcome import BEHIND, LASTING, NAME_REFUSED, Outcome
from onesync.pins import Pins
from onesync.push import Push
from onesync.replica.door import Replica
from onesync.tidying import Tidying
from onesync.travels import Travels
from onesync.unverified import Unverified
from onesync.waiting import Waiting, what_waits

log = logging.getLogger(__name__)

_ROUNDS = 6
_PACE = 4.0
"""A growing file rests for so many times as long as its last push took: it eats a fifth at most."""

_PORTION_SECONDS = 1.0
_PORTION_PER_CUT = 2.0
"""After so long, or so many times as long as looking took, a batch begins no more data files: those
that came meanwhile wait for its end, and those that are left are looked at again."""

_CUTS_IN_VAIN = 3
"""After so many cuts whose data came in part, and then no more, a batch takes all."""

_REMOVED_AT_ONCE = 2000
"""A batch removes no more than so many, for each is five calls and new data wait meanwhile."""

_COPIED_AT_MOST = 16 << 20
_COPIED_FILES = 1000
"""What has more bytes or names together is rather renamed than sent again."""

_WAITED_SECONDS = 10.0
"""So long the databases of a run wait for a file that changes whenever it is copied."""


class Events(Protocol):
    """What batches tell the world; called from the engine's thread."""

    def pushed(self, files: int, size: int) -> None:
        """A batch published ``files`` files of ``size`` bytes together."""

    def committed(self, name: str, wall_seconds: float) -> None:
        """A checkpoint stands, since ``wall_seconds`` (seconds since 1970)."""

    def synced(self, seconds: float, waited: Sequence[float]) -> None:
        """A batch that took so long was committed; each path had ``waited`` so many seconds."""

    def advanced(self, done: int, total: int) -> None:
        """Of ``total`` files that were only believed so many were read back."""

    def differed(self, files: int) -> None:
        """So many files in OneData were not what had been pushed; they are sent anew."""


@dataclass(slots=True)
class _Awaited:
    """Second halves that the next batch does, when its databases are newer."""

    removals: frozenset[RelPath] = frozenset()
    moves: frozenset[tuple[RelPath, RelPath]] = frozenset()

    def paths(self) -> set[RelPath]:
        return set(self.removals) | {end for pair in self.moves for end in pair}


@dataclass(slots=True)
class Batches:
    """See the module. The fields are its parts; none is changed by others while it runs.

    Attributes:
        may_write: raises LockLost or MountNotThere when nothing may be written.
        check_mount: raises MountNotThere when the replica is not the one that was deployed;
            returns whether it was mounted anew since the last time.
        unverified: what was pushed and is not yet known to have arrived.
        is_read: whether a file is read back some seconds after it was pushed, told whether it is a
            database.
        problems: what went wrong with single paths, until they are pushed.
        travels: whole copies that take more than one batch.
        only_copies: removals that wait, for OneData has what they remove nowhere else.
        round_seconds: so long a large file travels in one batch.
        lanes: so many files are removed at once beside the batches.
        pause: waits for so many seconds.
        left: what the last batch took and could not commit.
        tidying: what the last batches left behind goes.
    """

    replica: Replica
    root: bytes
    index: Index
    marks: Marks
    cuts: Cuts
    deletions: Deletions
    manifest: Manifest
    order: PublishOrder
    pool: ThreadPoolExecutor
    events: Events
    may_write: Callable[[], None]
    check_mount: Callable[[], bool]
    problems: dict[RelPath, Problem]
    unverified: Unverified
    is_read: Callable[[bool], bool]
    travels: Travels
    only_copies: OnlyCopies
    round_seconds: float
    lanes: int
    pause: Callable[[float], None]
    left: set[RelPath] = field(default_factory=set)
    tidying: Tidying = field(init=False)
    _awaited: _Awaited = field(default_factory=_Awaited)
    _half_done: bool = False
    _is_full: bool = False
    _unrecorded: Callable[[], None] | None = None
    _unsteady: dict[RelPath, float] = field(default_factory=dict)
    _project_wait: ProjectWait = field(default_factory=ProjectWait)
    _is_behind: bool = False
    _behind: set[RelPath] = field(default_factory=set)
    _waiting: Waiting | None = None
    _in_vain: int = 0
    _stamps: dict[RelPath, Stamp] = field(default_factory=dict)
    _sent: dict[RelPath, bool] = field(default_factory=dict)
    _renaming: set[RelPath] = field(default_factory=set)
    _mentions: Published = field(default_factory=Published)
    _kept: set[RelPath] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Begin with nothing to be tidied."""
        self.tidying = Tidying(self.lanes, self._note, self.marks.arrived.set)

    def batch(self, *, everything: bool = False) -> bool:
        """Do one batch; returns whether anything was committed.

        Raises OSError or OnesyncError where the mount fails as a whole: what was taken is dirty
        again and the next call settles the replica first. What is suspected is verified first.
        """
        self.left = set()
        try:
            with self._unless_it_fails():
                self.tidying.collect()
            if self.unverified.next_due() == 0:
                self._verify()
            began = time.monotonic()
            committed = self._make_room() or self._batch(everything)
        except BaseException as error:
            self._is_full = is_full(error)
            self.marks.give_back()
            self.deletions.remember()
            self._let_go()
            raise
        if committed:
            self.events.synced(time.monotonic() - began, self.marks.waited(self.left))
        self.marks.done()
        released = self.only_copies.released() | self._released()
        self.left |= released
        self.marks.again(released)
        return committed

    def clean(self) -> None:
        """Batch until what was dirty at the call is committed, or keeps changing (``left``)."""
        for _ in range(_ROUNDS):
            self.batch(everything=True)
            if not self.left and not self.awaits():
                break
        # What is not dirty any more, or failed, travels no further.
        self._tidied()
        self.travels.end_beneath(b"")

    def awaits(self) -> bool:
        """Whether the next batch has second halves to do."""
        return bool(self._awaited.paths())

    def is_behind(self) -> bool:
        """Whether the last batch left data to the next one."""
        return self._is_behind

    def finish(self, *, is_only_copy: bool = False) -> None:
        """Verify all that was pushed. Raises NotArrived where some of it is to be sent anew.

        Where OneData's will be the only copy (``is_only_copy``) nothing is merely believed.
        """
        self._prepare()
        differing = self.unverified.finish(self.pause)
        if is_only_copy:
            differing |= self.unverified.read_believed(self.events.advanced)
        self._send_anew(differing)
        if differing:
            raise NotArrived(
                f"{len(differing)} files did not arrive in OneData as they were pushed; they are"
                " sent anew."
            )

    def _verify(self) -> None:
        """Verify some of what was pushed lately; all of it where it is suspected."""
        self.may_write()
        self._prepare()
        self._send_anew(self.unverified.look())

    def suspect(self) -> None:
        """Let all be read back that came lately, before anything more is pushed."""
        self.unverified.suspect()
        self.travels.suspect()

    def _prepare(self) -> None:
        """See to it that the replica is the right one, is settled, and holds what it should."""
        if self.check_mount():
            self.suspect()
        if self._half_done:
            self._tidied()
            self.settle()
        if self.travels.suspected:
            self.travels.mend()
        while self.unverified.suspected:
            self._send_anew(self.unverified.look())

    @contextmanager
    def _unless_it_fails(self) -> Iterator[None]:
        """Let the replica be settled where something came in the way of what is tidied beside."""
        try:
            yield
        except BaseException:
            self._half_done = True  # the intents stand: they are settled as a dead batch's
            raise

    def _tidied(self) -> None:
        """Wait until what the last batches put aside is gone; raises what came in its way."""
        with self._unless_it_fails():
            self.tidying.end()

    def _note(self, problem: Problem) -> None:
        self.problems[problem.path] = problem

    def _links(self, plan: Plan) -> Iterator[tuple[RelPath, bytes]]:
        """Yield path and target of every link that a batch of ``plan`` leaves or makes."""
        yield from ((d.path, d.seen.target) for d in plan.links if d.seen is not None)
        moved = {move.source: move.target for move in plan.moves}
        for path, target in self.index.links():
            yield path, target
            if lies_in(path, moved.keys()):
                yield renamed_path(path, moved), target

    def _may_name(self, database: RelPath, run: RelPath) -> bool:
        """Whether rows of ``database`` in OneData may name what lies in ``run``."""
        return self._committed(database) is not None and self._mentions.may_name(database, run)

    def _late_copies(self, plan: Plan, outcome: Outcome) -> set[RelPath]:
        """Return the names in OneData that may be older ones of what was left to the next batch."""
        late = (d.seen for d in plan.files if d.path in outcome.deferred)
        inodes = {seen.inode for seen in late if seen is not None}
        return {old for inode in inodes for old, _ in self.index.by_inode(inode)}

    def _see_published(self, plan: Plan, cut: Cut, outcome: Outcome) -> None:
        """Remember what the databases mention that were published, before their copies go."""
        for change in outcome.changes:
            for path in (change.source, change.target) if isinstance(change, Renamed) else ():
                self._mentions.forget(path)
        places = {change.path for change in outcome.changes if isinstance(change, Set)}
        published = {plan.stands_at.get(path, path) for path in places} & cut.frozen.keys()
        runs = {join(RUNS, name) for name in self.index.stamps(RUNS)} if published else set()
        for path in published:
            self._mentions.see(path, cut.frozen[path].path, runs)

    def _identify(self) -> None:
        """Look, between cut and push, whether the replica is still the one that the plan is for."""
        if self.check_mount():
            self.suspect()
        if self._is_suspected():
            # What is changed in place must not be built on what may have been lost.
            raise MountNotThere(
                "OneData was mounted anew; what was pushed lately is read back before anything more"
                " is pushed."
            )

    def _is_suspected(self) -> bool:
        return self.unverified.suspected or self.travels.suspected

    def _send_anew(self, differing: set[RelPath]) -> None:
        if differing:
            self.marks.again(differing)
            self.events.differed(len(differing))

    def settle(self) -> None:
        """Bring the replica back to the last checkpoint after a batch that died half way."""
        if self._unrecorded is not None:
            self._unrecorded()
        unfinished = self.manifest.unfinished()
        if unfinished is not None:
            checkpoint, written = unfinished
            is_base = checkpoint.header.why == "base"
            changes = () if is_base else checkpoint.changes
            self._record(written, changes, self._stamps, pushed=self._sent)
        told = recovery.settle(
            self.replica,
            self.manifest.committed,
            self._committed,
            self.pool,
            self._published,
            self.travels.intents(),
            self._note,
        )
        self.travels.mend()
        for sentence in told:
            log.warning("half-done batch settled", extra={"what": sentence})
        self._half_done = False

    def _committed(self, path: RelPath) -> Entry | None:
        """Return what the last checkpoint has at ``path``."""
        known = self.index.known(path)
        return None if known is None or is_unconfirmed(known.entry) else known.entry

    def _published(self, published: dict[RelPath, Entry]) -> None:
        """Remember what a dead batch of ours published: the next one records or removes it."""
        new = {p: entry for p, entry in published.items() if self.index.known(p) is None}
        stamps = {path: lost_stamp(entry.kind) for path, entry in new.items()}
        self.index.commit([Set(path, entry) for path, entry in new.items()], stamps)

    def base(self) -> None:
        """Write the whole tree as a checkpoint of its own, and let go of the oldest ones."""
        tree = (
            Set(path, entry)
            for path, entry in self.index.entries()
            if path and not is_unconfirmed(entry)
        )
        noted = [Noted(problem) for problem in self.problems.values()]
        self.commit(chain(tree, noted), {}, "base")
        oldest = self.manifest.remove_old()
        if oldest is not None:
            recovery.remove_torn(self.replica, oldest)
        self.index.remember_blocks({})

    def commit(self, changes: Iterable[Change], stamps: dict[RelPath, Stamp], why: str) -> None:
        """Write one checkpoint that needs no push, and record it."""
        self.may_write()
        self._prepare()
        recorded: list[Change] = []
        if why != "base":  # a base takes its changes as they come, and changes no row
            changes = recorded = list(changes)
        self._half_done = True
        self._stamps, self._sent = stamps, {}
        self._record(self.manifest.write(changes, why), recorded, stamps)
        self._half_done = False

    def _batch(self, everything: bool) -> bool:
        self._is_behind = False
        due = self.marks.take(everything, resting=everything)
        if not (due.paths or due.trees or self.awaits() or self._half_done):
            return False
        self.may_write()
        if self._half_done or self._is_suspected():
            self._prepare()
        began = time.monotonic()
        with on_this_machine():
            self.cuts.scanner.verify_root()
            if everything:
                self._let_go()
        with Pins(self.root) as pins:
            with on_this_machine():
                cut = self._cut(due, pins, everything)
                self._forget_renamed(due)
                plan = self._plan(cut, everything)
                if self._waiting is not None and not self._waiting.comes_with(plan):
                    self._let_go()
                    cut = self.cuts.take(cut.looked, self._awaited.paths(), pins, as_is=everything)
                    plan = self._plan(cut, everything)
            self.left |= cut.deferred
            if plan.empty:
                self._project_wait.was(self._lacks_project(cut), time.monotonic())
                self._await(plan)
                self._let_go()
                self._explained()
                return False
            cut.seconds = time.monotonic() - began
            self._identify()
            return self._push(plan, cut, pins, everything)

    def _cut(self, due: Due, pins: Pins, everything: bool) -> Cut:
        waiting, awaited = self._waiting, self._awaited.paths()
        if waiting is not None:
            return self.cuts.take(due, awaited, pins, as_is=False, waiting=waiting.frozen)
        if everything or awaited or self.cuts.is_needed(due):
            return self.cuts.take(due, awaited, pins, as_is=everything)
        return self.cuts.plain(due)

    def _keep(self, cut: Cut, plan: Plan, push: Push) -> None:
        """Let snapshots of ``cut`` wait; count the cuts whose databases did not come with them."""
        outcome = push.outcome
        waits = not self._project_wait.is_over(time.monotonic())
        waiting = what_waits(
            self._waiting,
            cut,
            plan,
            outcome,
            project_waits=waits,
            who_names=push.who_names,
            may_name=self._may_name,
        )
        if not outcome.is_late:
            self._in_vain = 0
        elif self._waiting is None:
            self._in_vain += 1
        self._waiting = waiting
        kept = waiting.frozen if waiting is not None else {}
        for path, item in cut.frozen.items():
            if path not in kept:
                Path(os.fsdecode(item.path)).unlink(missing_ok=True)

    def _let_go(self) -> None:
        """Let the databases that wait be taken anew."""
        if self._waiting is not None:
            self.marks.later(set(self._waiting.frozen))
            self._waiting.let_go()
            self._waiting = None

    def _make_room(self) -> bool:
        """Where the last batch found no space, carry out deletions alone; returns whether any.

        What is deleted here must be able to make room there, or a full space would stay full. All
        else stays dirty, also the databases that may still name what goes: they need the room.
        """
        if not self._is_full:
            return False
        self._is_full = False
        self.may_write()
        self._prepare()
        with on_this_machine():
            self.cuts.scanner.verify_root()
            # Or where something was renamed to might not be known yet.
            self.cuts.drain()
            due = self.marks.take(everything=True, resting=True)
            cut = self.cuts.plain(due, self._awaited.removals)
            removals = self._removals_alone(cut)
        if removals:
            self._remove_alone(removals, cut)
            self.left |= due.paths | due.trees
        self.marks.give_back()
        return bool(removals)

    def _remove_alone(self, removals: list[Difference], cut: Cut) -> None:
        awaited = self._awaited
        self._identify()
        with Pins(self.root) as pins:
            self._push(Plan(removals=removals), cut, pins, True)
        self._tidied()
        gone = {difference.path for difference in removals}
        self._awaited = _Awaited(awaited.removals - gone, awaited.moves)
        log.info("deletions made room in OneData", extra={"removals": len(gone)})

    def _removals_alone(self, cut: Cut) -> list[Difference]:
        found = self.deletions.judge(
            cut.found, cut.looked, self._awaited.removals, self.cuts.drain, at_once=False
        )
        renamed = {source for source, _ in cut.moves | self._awaited.moves}
        gone = certainly_gone(found, self.index.beneath)
        return [gone[path] for path in sorted(gone) if not lies_in(path, renamed)]

    def _push(self, plan: Plan, cut: Cut, pins: Pins, everything: bool) -> bool:
        waiting = self._waiting
        holds = Holds(
            named=waiting.named(plan) if waiting is not None else None,
            promised=waiting.promised(plan) if waiting is not None else set(),
            wait=self._project_wait,
            failing=self._failing(),
            links=partial(self._links, plan),
            may_name=self._may_name,
        )
        push = Push(
            self.replica,
            self.root,
            self.manifest.position,
            self.pool,
            self.order,
            self.may_write,
            self.index.beneath,
            self.index.blocks,
            self._is_waited_for,
            self.travels.get,
            self.only_copies.lacking(),
            holds,
            seconds=None if everything else self.round_seconds,
            portion_seconds=None if everything else self._portion_seconds(cut),
        )
        with self._unless_it_fails():
            self.tidying.make_way(plan)
        self._half_done = True
        return self._push_and_commit(push, plan, cut, pins)

    def _push_and_commit(self, push: Push, plan: Plan, cut: Cut, pins: Pins) -> bool:
        began = time.monotonic()
        outcome = self._carry_out(push, plan, cut, pins)
        committed = (
            bool(outcome.changes) or push.leftovers.begins_travel() or self._is_behind_anew(outcome)
        )
        if committed:
            self._commit(outcome)
        # Told when the checkpoint tells it too: a node that finds this batch dead knows no more.
        self._take_problems(plan, outcome)
        self.only_copies.left_out(outcome.left_out)
        self.only_copies.late = self._late_copies(plan, outcome)
        self._kept |= outcome.kept
        self.events.pushed(outcome.files, outcome.size)
        self._mark_what_is_left(plan, cut, outcome)
        self.travels.end({d.path for d in plan.files} - outcome.deferred - outcome.travels.keys())
        self.travels.advance(outcome.travels)
        renamed = [(c.source, c.target) for c in outcome.changes if isinstance(c, Renamed)]
        self._explained(renamed)
        leaves_more = push.leftovers.tidy()
        self._half_done = False
        self._see_published(plan, cut, outcome)
        self._keep(cut, plan, push)
        self._is_behind = bool(outcome.deferred) or self._waiting is not None
        self._log(plan, outcome, cut.seconds, time.monotonic() - began)
        if leaves_more:
            with self._unless_it_fails():
                self.tidying.begin(push.leftovers)
        return committed

    def _explained(self, renamed: Sequence[tuple[RelPath, RelPath]] = ()) -> None:
        """Forget the explanations that are used up."""
        awaited = self._awaited
        self.deletions.done(awaited.removals, awaited.moves, renamed, self.only_copies.taken_out())

    def _carry_out(self, push: Push, plan: Plan, cut: Cut, pins: Pins) -> Outcome:
        names = {place: path for path, place in plan.stands_at.items()}
        snapshots = {names.get(path, path): item.path for path, item in cut.frozen.items()}
        places = {place: join(self.root, place) for place in names} | pins.sources()
        pinned = {names.get(path, path): place for path, place in places.items()}
        self.may_write()
        with self._unless_it_fails():
            self.tidying.end_travels()
        gone = [d.path for d in plan.removals + plan.revoked]
        for top in gone + [move.source for move in plan.moves]:
            self.travels.end_beneath(top)
        arrive = partial(self.unverified.arrive, pause=self.pause)
        return push.carry_out(plan, snapshots, pinned, arrive)

    def _commit(self, outcome: Outcome) -> None:
        changes = [*outcome.changes, *map(Noted, outcome.problems)]
        read = {path: self.is_read(is_database) for path, is_database in outcome.sent.items()}
        arrived = outcome.overwritten.keys() if outcome.is_told else set()
        self._stamps = outcome.stamps
        self._sent = {p: is_read for p, is_read in read.items() if is_read or p not in arrived}
        written = self.manifest.write(changes, "incremental")
        self._record(written, changes, outcome.stamps, outcome.blocks, self._sent)

    def _mark_what_is_left(self, plan: Plan, cut: Cut, outcome: Outcome) -> None:
        held = {plan.stands_at.get(path, path) for path in outcome.held}
        project_held = any(not scope_of(path) for path in held & cut.frozen.keys())
        self._await(plan, outcome.postponed, outcome.postponed_moves, project_held=project_held)
        now = time.monotonic()
        self._project_wait.was(project_held or self._lacks_project(cut), now)
        # What rests goes on changing.
        resting = {p for p in self._unsteady if p in outcome.growing or self.marks.rests(p)}
        self._unsteady = {p: self._unsteady.get(p, now) for p in outcome.retry | resting}
        # What waited may have changed since its snapshot was taken.
        waited = set(cut.frozen) if self._waiting is not None else set()
        later = outcome.deferred | outcome.held | waited
        left = outcome.retry | outcome.postponed | later
        self.left |= {plan.stands_at.get(path, path) for path in left}
        self.marks.later(later)
        self.marks.again(outcome.retry)
        for path, seconds in outcome.growing.items():
            self.marks.growing(path, _PACE * seconds)
        for move in plan.moves:
            self.marks.tree_changed(move.target)
            # What changed beneath it, before or after the rename, is seen under its new name only.
            self.left.add(move.target)

    def _is_behind_anew(self, outcome: Outcome) -> bool:
        """Whether a file is behind of which the last checkpoints do not say so."""
        behind = (problem.path for problem in outcome.problems if problem.kind == BEHIND)
        told = {path for path, problem in self.problems.items() if problem.kind == BEHIND}
        return any(path not in told for path in behind)

    def _portion_seconds(self, cut: Cut) -> float | None:
        if self._in_vain >= _CUTS_IN_VAIN:
            return None
        return max(_PORTION_SECONDS, _PORTION_PER_CUT * cut.seconds)

    def _is_waited_for(self, path: RelPath) -> bool:
        now = time.monotonic()
        return now - self._unsteady.get(path, now) < _WAITED_SECONDS

    def _log(self, plan: Plan, outcome: Outcome, cutting: float, pushing: float) -> None:
        fields = {
            "checkpoint": self.manifest.head[0] if self.manifest.head else None,
            "changes": len(outcome.changes),
            "files": outcome.files,
            "bytes": outcome.size,
            "removals": len(plan.removals) + len(plan.revoked),
            "renames": len(plan.moves),
            "retried": len(outcome.retry),
            "deferred": len(outcome.deferred),
            "held": len(outcome.held),
            "cut_seconds": round(cutting, 3),
            "push_seconds": round(pushing, 3),
        }
        log.info("batch", extra=fields)

    def _record(
        self,
        written: Written,
        changes: Sequence[Change],
        stamps: dict[RelPath, Stamp],
        blocks: Mapping[str, Blocks] = MappingProxyType({}),
        pushed: Mapping[RelPath, bool] = MappingProxyType({}),
    ) -> None:
        # A checkpoint that stands and is not in the index yet is recorded before anything else.
        self._unrecorded = lambda: self._record(written, changes, stamps, blocks, pushed)
        self.index.commit(
            changes,
            stamps,
            blocks,
            pushed,
            head_name=written.name,
            head_digest=written.digest,
            epoch=str(written.position.epoch),
            sequence=str(written.position.sequence),
        )
        self._unrecorded = None
        for change in changes:
            follow(self.problems, change)
        self.unverified.pushed(pushed)
        self.events.committed(written.name, written.wall_seconds)

    def _take_problems(self, plan: Plan, outcome: Outcome) -> None:
        left = outcome.deferred | outcome.retry | outcome.held
        parts = (plan.files, plan.directories, plan.links, plan.removals, plan.revoked)
        for difference in chain(*parts):
            if difference.path not in left:
                self.problems.pop(difference.path, None)
        self.problems.update({p.path: p for p in outcome.problems})
        self._behind |= {p.path for p in outcome.problems if p.kind == BEHIND}
        self._behind &= self.problems.keys()

    def _await(
        self,
        plan: Plan,
        postponed: AbstractSet[RelPath] = frozenset(),
        postponed_moves: AbstractSet[tuple[RelPath, RelPath]] = frozenset(),
        *,
        project_held: bool = False,
    ) -> None:
        removals = plan.awaited_removals | postponed
        new = plan.awaited_moves - self._awaited.moves
        self._awaited = _Awaited(removals, plan.awaited_moves | postponed_moves)
        self.cuts.awaited_moves = self._awaited.moves
        if self.awaits():
            self.marks.arrived.set()
        self._renaming = scopes_of(new) | ({b""} if new and project_held else set())

    def _forget_renamed(self, due: Due) -> None:
        """Let go of refused names that are gone: they were renamed, as they had to be."""
        for path in self._refused():
            told = lies_in(path, due.paths | due.trees)
            if told and self.cuts.scanner.look(path) is None:
                del self.problems[path]

    def _refused(self) -> set[RelPath]:
        return {p.path for p in self.problems.values() if p.kind == NAME_REFUSED}

    def _plan(self, cut: Cut, everything: bool) -> Plan:
        # In a directory that OneData refused nothing can be kept until it is tried again.
        closed = self._refused() - cut.found.keys()
        open_to = {p: d for p, d in cut.found.items() if not lies_in(parent_of(p), closed)}
        open_to |= self._no_longer_behind(cut)
        renames = renames_among(open_to, cut.moves | self._awaited.moves)
        copied = self._rather_copied(renames)
        renames = [move for move in renames if move not in copied]
        settled = self._awaited.removals | {move.source for move in renames} | cut.taken_back
        found = self.deletions.judge(
            open_to, cut.looked, settled, self.cuts.drain, at_once=everything
        )
        awaited = self._awaited
        plan = make_plan(
            found, renames, awaited.removals, awaited.moves, self.index.known, cut.frozen.keys()
        )
        if self._waiting is not None:
            plan = restricted(plan, self._waiting.removals, self._waiting.moves)
        else:
            plan = self._without_named(plan, cut)
        plan = self.only_copies.stay(plan, cut.found.keys() - open_to.keys())
        promises = Promises(cut.found, self.index.beneath, self.cuts.is_promise)
        plan = promises.first(plan)
        plan = promises.revoked(plan if everything else portioned(plan, _REMOVED_AT_ONCE))
        return replace(plan, removals=plan.removals + self._stale(plan.moves))

    def _failing(self) -> set[RelPath]:
        """Return the runs with data that cannot come, though they are still there."""
        told = {p.path for p in self.problems.values() if p.kind in LASTING}
        promised = filter(self.order.is_promised, told)
        with on_this_machine():
            return {scope_of(path) for path in promised if self._differs(path)}

    def _differs(self, path: RelPath) -> bool:
        known, seen = self.index.known(path), self.cuts.scanner.look(path)
        return seen is not None and (known is None or known.stamp != seen)

    def _released(self) -> set[RelPath]:
        """Return, once, the markers that need to wait no longer: they are to be looked at again."""
        failing = self._failing() if self._kept else set()
        free = {path for path in self._kept if scope_of(path) not in failing}
        self._kept -= free
        return free

    def _no_longer_behind(self, cut: Cut) -> dict[RelPath, Difference]:
        """Return what was behind, and is here now as OneData has it: that is to be told.

        Not of what a dead node left behind: as OneData has it is all that there is of it.
        """
        found = {}
        for path in self._behind & self.problems.keys():
            is_looked_at = path in cut.looked.paths or lies_in(path, cut.looked.trees)
            if self.problems[path].kind != BEHIND or path in cut.found or not is_looked_at:
                continue
            known, seen = self.index.known(path), self.cuts.scanner.look(path)
            if known is not None and seen is not None and known.stamp == seen:
                found[path] = Difference(path, known, seen)
        return found

    def _stale(self, moves: Iterable[Move]) -> list[Difference]:
        """Return the removals of databases and markers that are gone from directories renamed now.

        Carried along, they would stand there with rows that name the old directory.
        """
        beneath = (
            (path, known, renamed_path(path, {move.source: move.target}))
            for move in moves
            if move.kind is Kind.DIRECTORY
            for path, known in self.index.beneath(move.source)
        )
        return [
            Difference(path, known, None)
            for path, known, now in beneath
            if known.entry.kind is Kind.FILE
            and self.order.group_of(path, is_database=False) != DATA
            and (self.deletions.is_explained(path) or self.deletions.is_explained(now))
            and self.cuts.scanner.look(now) is None
        ]

    def _lacks_project(self, cut: Cut) -> bool:
        """Whether ``cut`` left out a database of the project that OneData has."""
        outside = (path for path in cut.deferred if not scope_of(path))
        return any(self._committed(path) is not None for path in outside)

    def _without_named(self, plan: Plan, cut: Cut) -> Plan:
        """Leave second halves of runs whose databases the cut left out: OneData's may name them.

        Those of the project name files of all runs, but these are not held back for ever.
        """
        came_from = {m.target: m.source for m in plan.moves}
        came_from |= {target: source for source, target in plan.awaited_moves}
        here = {renamed_path(path, came_from): path for path in cut.deferred}
        left = {old: path for old, path in here.items() if self._committed(old) is not None}
        if not left:
            return plan
        scopes = {scope_of(path) for path in chain(left.keys(), left.values())}
        if b"" in scopes and not self._project_wait.is_over(time.monotonic()):
            return restricted(plan, set(), set())

        def waits(path: RelPath) -> bool:
            run = scope_of(path)
            named = (self._may_name(database, run) for database in left if scope_of(database))
            return run in scopes or any(named)

        removals = {d.path for d in plan.removals if not waits(d.path)}
        moves = {
            (m.source, m.target)
            for m in plan.moves
            if not waits(m.source) and not any(is_beneath(path, m.source) for path in left)
        }
        return restricted(plan, removals, moves)

    def _rather_copied(self, renames: list[Move]) -> set[Move]:
        """Return the renames that are better brought as new files and removals.

        Databases wait for new renames of their run, the project's for all, and a new one in each
        batch would keep them waiting for ever. So every second batch copies, where that is cheap.
        """
        again = {
            move
            for move in renames
            if any(is_in_scope(end, self._renaming) for end in (move.source, move.target))
            and (move.source, move.target) not in self._awaited.moves
        }
        beneath = (known for move in again for _, known in self.index.beneath(move.source))
        size = 0
        for number, known in enumerate(beneath):
            size += known.entry.size
            if size > _COPIED_AT_MOST or number >= _COPIED_FILES:
                return set()
        return again
