"""One batch at a time: cut, plan, push, checkpoint, index. Engine's thread only."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from types import MappingProxyType
from typing import Protocol

from onesync import recovery
from onesync.core.blocks import Blocks
from onesync.core.chain import Change, Noted, Renamed, Set, follow
from onesync.core.dirty import Due
from onesync.core.model import (
    Entry,
    Kind,
    Problem,
    RelPath,
    Stamp,
    is_unconfirmed,
    join,
    lies_in,
    lost_stamp,
    parent_of,
)
from onesync.core.ordering import PublishOrder, scope_of
from onesync.core.plan import Difference, Plan
from onesync.core.trouble import is_full, is_missing
from onesync.cut import Cut, Cuts
from onesync.deletions import Deletions
from onesync.errors import LocalError, MountNotThere, NotArrived
from onesync.holds import Holds
from onesync.index import Index
from onesync.local import digests_of_part, on_this_machine, write_out
from onesync.manifest import Manifest, Written
from onesync.marks import Marks
from onesync.only_copies import OnlyCopies
from onesync.outcome import Outcome
from onesync.pins import Pins
from onesync.planning import Awaited, Planning
from onesync.push import Push
from onesync.replica.door import Replica
from onesync.tidying import Tidying
from onesync.travels import Travels
from onesync.unverified import Unverified
from onesync.vanished import Vanished
from onesync.waiting import Waiting, remove_copies, what_waits

log = logging.getLogger(__name__)

_ROUNDS = 6
_PACE = 4.0
"""A growing file rests for so many times as long as its last push took: it eats a fifth at most."""

_PORTION_SECONDS = 0.5
_PORTION_PER_CUT = 1.0
"""After so long, or so many times as long as looking took, a batch begins no more data files: those
that came meanwhile wait for its end."""

_LOOKED_AT_ONCE = 1000
"""Of data that were left as they were seen a batch looks at so many, or at twice as many as the
last one brought: what many have to wait for must not take its time."""

_CUTS_IN_VAIN = 3
_CUTS_FOR_ALL = 12
"""From so many cuts on whose data came in part, and then no more, each batch goes on for twice as
long as the one before, and the last takes all: if the third did, others might wait for minutes."""

_WHOLE_FILES = 100
"""So few files are not left to the next batch where something became another kind of thing."""

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
        """Of ``total`` files so many were read back, or looked up."""

    def differed(self, files: int) -> None:
        """So many files in OneData were not what had been pushed; they are sent anew."""


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
        planning: what a batch does about what it found.
        tidying: what the last batches left behind goes.
        vanished: what somebody else took out of OneData.
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
    planning: Planning = field(init=False)
    tidying: Tidying = field(init=False)
    vanished: Vanished = field(init=False)
    _half_done: bool = False
    _is_full: bool = False
    _unrecorded: Callable[[], None] | None = None
    _unsteady: dict[RelPath, float] = field(default_factory=dict)
    _is_behind: bool = False
    _waiting: Waiting | None = None
    _in_vain: int = 0
    _looks_at: int = 0
    _stamps: dict[RelPath, Stamp] = field(default_factory=dict)
    _sent: dict[RelPath, bool] = field(default_factory=dict)
    _kept: set[RelPath] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Begin with nothing planned and nothing to be tidied."""
        self.planning = Planning(
            self.index,
            self.cuts,
            self.deletions,
            self.only_copies,
            self.order,
            self.problems,
        )
        self.vanished = Vanished(self.replica, self.index, self.pool)
        tell = self.marks.arrived.set
        self.tidying = Tidying(self.lanes, self._note, self.vanished.met, tell)

    def batch(self, *, everything: bool = False) -> bool:
        """Do one batch; returns whether anything was committed.

        Raises OSError or OnesyncError where the mount fails as a whole: what was taken is dirty
        again and the next call settles the replica first. What is suspected is verified first.
        Where it fails because something is not there that OneData had, it is done again with that.
        """
        try:
            return self._one_batch(everything)
        except OSError as error:
            if not (is_missing(error) and self._finds_vanished()):
                raise
        return self._one_batch(everything)

    def _one_batch(self, everything: bool) -> bool:
        self.left = set()
        try:
            with self._unless_it_fails():
                self.tidying.collect()
            if self.unverified.next_due() == 0:
                self._verify()
            self._finds_vanished()
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
            if self.left or self.awaits():
                continue
            self._tidied()
            if not self.vanished.suspected:
                break
        # What is not dirty any more, or failed, travels no further.
        self._tidied()
        self.travels.end_beneath(b"")

    def awaits(self) -> bool:
        """Whether the next batch has second halves to do."""
        return bool(self.planning.awaited.paths())

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

    def find_lost(self) -> bool:
        """Look up all that OneData should hold; returns whether some of it is to be sent anew."""
        self.may_write()
        self._prepare()
        lost = self.unverified.find_lost(self._is_as_pushed, self._left_of, self.events.advanced)
        self._send_anew(self.unverified.doubt(lost))
        return bool(lost)

    def _left_of(self, path: RelPath, size: int) -> set[str]:
        return digests_of_part(join(self.root, path), size)

    @on_this_machine()
    def _is_as_pushed(self, path: RelPath) -> bool:
        known = self.index.known(path)
        return known is not None and self.cuts.scanner.see(path) == known.stamp

    def _verify(self) -> None:
        """Verify some of what was pushed lately; all of it where it is suspected."""
        self.may_write()
        self._prepare()
        self._send_anew(self.unverified.look())

    def suspect(self) -> None:
        """Let all be read back that came lately, before anything more is pushed."""
        self.unverified.suspect()
        self.travels.suspect()

    def _finds_vanished(self) -> bool:
        """Let all be sent again that OneData had and has no more; returns whether there is any."""
        if not self.vanished.suspected:
            return False
        self.may_write()
        return self._prepare()

    def _prepare(self) -> bool:
        """See to it that the replica is the right one, is settled, and holds what it should.

        Returns whether something has vanished there.
        """
        if self.check_mount():
            self.suspect()
        if self._half_done:
            self._tidied()
            self.settle()
        if self.travels.suspected:
            self.travels.mend()
        while self.unverified.suspected:
            self._send_anew(self.unverified.look())
        found = self.vanished.find() if self.vanished.suspected else {}
        for top in found:
            self.travels.end_beneath(top)
            self.marks.tree_changed(top)
        if found:
            self.events.differed(sum(found.values()))
        return bool(found)

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
            for path in filter(self._is_directory, differing):
                self.marks.tree_changed(path)
            self.events.differed(len(differing))

    def _is_directory(self, path: RelPath) -> bool:
        known = self.index.known(path)
        return known is not None and known.entry.kind is Kind.DIRECTORY

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
            self.planning.committed,
            self.pool,
            self._published,
            self.travels.intents(),
            self._note,
        )
        self.travels.mend()
        for sentence in told:
            log.warning("half-done batch settled", extra={"what": sentence})
        self._half_done = False

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
        due = self._take(everything)
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
                self.planning.forget_gone(cut.looked)
                plan = self.planning.plan(cut, self._waiting, everything=everything)
                if self._is_in_vain(plan, cut):
                    self._let_go()
                    earlier = cut
                    cut = self.cuts.take(
                        cut.looked, self.planning.awaited.paths(), pins, as_is=everything
                    )
                    cut.backlog = _not_looked_at(earlier.backlog, cut.looked)
                    plan = self.planning.plan(cut, self._waiting, everything=everything)
            self.left |= cut.deferred - cut.lost
            if plan.empty:
                self.planning.project_wait.was(self.planning.lacks_project(cut), time.monotonic())
                self._await(plan, Outcome())
                self.planning.see_late(plan, cut.backlog)
                self._put_off()
                self._let_go()
                remove_copies(cut.frozen.values())
                self._explained()
                return False
            cut.seconds = time.monotonic() - began
            self._identify()
            return self._push(plan, cut, pins, everything)

    def _take(self, everything: bool) -> Due:
        first = self._waiting.data if self._waiting is not None else frozenset[RelPath]()
        backlog = None if everything or self._in_vain >= _CUTS_FOR_ALL else self._looks_at
        return self.marks.take(everything, resting=everything, backlog=backlog, first=first)

    def _is_in_vain(self, plan: Plan, cut: Cut) -> bool:
        """Whether what the waiting snapshots may name went: they are taken anew.

        What they do not name may go, as temporaries do, or have another name.
        """
        if self._waiting is None:
            return False
        coming = self._waiting.coming(plan) | cut.backlog
        if not (gone := self._waiting.data - coming):
            return False
        if self._waiting.may_name(gone | self._gone_above(gone), self.planning.links(plan)):
            return True
        renamed = self.planning.renamed_ones(gone, plan)
        self._waiting = replace(self._waiting, data=(self._waiting.data & coming) | renamed)
        return False

    def _gone_above(self, gone: AbstractSet[RelPath]) -> set[RelPath]:
        """Return the directories that went together with what is ``gone`` from them."""
        found: set[RelPath] = set()
        above = {parent_of(path) for path in gone}
        while above:
            found |= self.cuts.scanner.gone(above - {b""})
            above = {parent_of(path) for path in above & found}
        return found

    def _cut(self, due: Due, pins: Pins, everything: bool) -> Cut:
        # What is told of after the last look is neither looked at nor in the backlog then.
        backlog = self.marks.backlog()
        cut = self._look(due, pins, everything)
        cut.backlog = _not_looked_at(backlog, cut.looked)
        return cut

    def _look(self, due: Due, pins: Pins, everything: bool) -> Cut:
        waiting, awaited = self._waiting, self.planning.awaited.paths()
        if waiting is not None:
            frozen, runs = waiting.frozen, waiting.runs()
            return self.cuts.take(due, awaited, pins, as_is=False, waiting=frozen, runs=runs)
        if everything or awaited or self.cuts.is_needed(due):
            return self.cuts.take(due, awaited, pins, as_is=everything)
        return self.cuts.plain(due)

    def _keep(self, cut: Cut, plan: Plan, push: Push) -> None:
        """Let snapshots of ``cut`` wait; count the cuts whose databases did not come with them."""
        outcome = push.outcome
        waits = not self.planning.project_wait.is_over(time.monotonic())
        waiting = what_waits(
            self._waiting,
            cut,
            plan,
            outcome,
            project_waits=waits,
            who_names=push.who_names,
            may_name=self.planning.may_name,
            after_absent=push.after_absent(),
        )
        if not outcome.is_late:
            self._in_vain = 0
        elif self._waiting is None:
            self._in_vain += 1
        self._waiting = waiting
        kept = waiting.frozen if waiting is not None else {}
        remove_copies(item for path, item in cut.frozen.items() if path not in kept)

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
            due = self.marks.take(everything=True, resting=True, backlog=None)
            cut = self.cuts.plain(due, self.planning.awaited.removals)
            removals = self.planning.removals_alone(cut)
        if removals:
            self._remove_alone(removals, cut)
            self.left |= due.paths | due.trees
        self.marks.give_back()
        return bool(removals)

    def _remove_alone(self, removals: list[Difference], cut: Cut) -> None:
        awaited = self.planning.awaited
        self._identify()
        with Pins(self.root) as pins:
            late, left_out = self.planning.late, self.only_copies.left_out
            self._push(Plan(removals=removals), cut, pins, True)
            # This batch brought nothing of them.
            self.planning.late, self.only_copies.left_out = late, left_out
        self._tidied()
        gone = {difference.path for difference in removals}
        self.planning.awaited = Awaited(awaited.removals - gone, awaited.moves)
        log.info("deletions made room in OneData", extra={"removals": len(gone)})

    def _push(self, plan: Plan, cut: Cut, pins: Pins, everything: bool) -> bool:
        waiting = self._waiting
        holds = Holds(
            named=waiting.named(plan) if waiting is not None else None,
            waiting=waiting.databases(plan) | cut.deferred if waiting is not None else set(),
            promised=waiting.promised(plan) if waiting is not None else set(),
            wait=self.planning.project_wait,
            failing=self.planning.failing(),
            links=partial(self.planning.links, plan),
            named_by=self.planning.named,
            named_before=partial(self.planning.named_before, plan),
            stay_a_while=self.planning.stay_a_while,
            databases_at=partial(self.planning.databases_at, cut),
            absent=self.planning.absent(cut, plan) - self.only_copies.named,
            impatient=self.planning.impatient(),
            order=self.order,
        )
        for path in self._left_out(plan, cut, everything):
            holds.defer(path)
        for path in self.planning.hold_back(self.only_copies.beneath.keys()):
            holds.put_off(path)
        push = Push(
            self.replica,
            self.root,
            self.manifest.position,
            self.pool,
            self.order,
            self.may_write,
            self.index.beneath,
            self.index.blocks,
            self.index.damaged,
            self._is_waited_for,
            self.travels.get,
            self.only_copies.lacking(plan),
            partial(self.planning.stay_with, cut),
            holds,
            seconds=None if everything else self.round_seconds,
            portion_seconds=None if everything else self._portion_seconds(plan, cut),
        )
        with self._unless_it_fails():
            self.tidying.make_way(plan, holds.outcome.deferred)
        self._half_done = True
        try:
            return self._push_and_commit(push, plan, cut, pins)
        except (OSError, NotArrived) as error:
            if is_missing(error) or isinstance(error, NotArrived):
                self.vanished.met(plan.paths())
            raise
        finally:
            self.planning.taken |= push.taken

    def _left_out(self, plan: Plan, cut: Cut, everything: bool) -> set[RelPath]:
        """Return the data that a batch leaves to the next ones from the beginning.

        That is what it did not look at, and what is new at a name that is still to be unlinked;
        not where there is nothing else to be done meanwhile.
        """
        left = cut.backlog - cut.found.keys()
        leaving = set[RelPath]() if everything else self.tidying.leaving()
        in_the_way = {d.path for d in plan.files if d.path in leaving and d.path not in cut.frozen}
        in_the_way = {path for path in in_the_way if not self.cuts.is_promise(path)}
        return left | in_the_way if plan.paths() - in_the_way else left

    def _push_and_commit(self, push: Push, plan: Plan, cut: Cut, pins: Pins) -> bool:
        began = time.monotonic()
        outcome = self._carry_out(push, plan, cut, pins)
        plan = self.only_copies.leave(plan, push.stayed)
        self.index.still_damaged(outcome.as_it_came)
        committed = (
            bool(outcome.changes)
            or push.leftovers.begins_travel()
            or self.planning.is_behind_anew(outcome)
        )
        if committed:
            outcome.problems += cut.unread
            self._commit(outcome)
        # Told when the checkpoint tells it too: a node that finds this batch dead knows no more.
        self.planning.take_problems(plan, outcome)
        self.only_copies.left_out = outcome.left_out
        self.vanished.met(outcome.missing)
        self.planning.see_late(plan, outcome.deferred | outcome.lacking | outcome.retry)
        self._kept |= outcome.kept
        self.events.pushed(outcome.files, outcome.size)
        self._mark_what_is_left(plan, cut, outcome)
        self.travels.end({d.path for d in plan.files} - outcome.deferred - outcome.travels.keys())
        self.travels.advance(outcome.travels)
        renamed = [(c.source, c.target) for c in outcome.changes if isinstance(c, Renamed)]
        self._explained(renamed)
        leaves_more = push.leftovers.tidy()
        for problem in push.leftovers.problems:
            self._note(problem)
        push.leftovers.problems.clear()
        self._half_done = False
        self.planning.see_published(plan, cut, outcome)
        self.planning.waited_for_absent(push.after_absent())
        self._keep(cut, plan, push)
        self._is_behind = bool(outcome.deferred) or self._waiting is not None
        self._log(plan, outcome, cut.seconds, time.monotonic() - began)
        if leaves_more:
            with self._unless_it_fails():
                self.tidying.begin(push.leftovers)
        return committed

    def _explained(self, renamed: Sequence[tuple[RelPath, RelPath]] = ()) -> None:
        """Forget the explanations that are used up."""
        awaited = self.planning.awaited
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
        self._write_out()
        written = self.manifest.write(changes, "incremental")
        self._record(written, changes, outcome.stamps, outcome.blocks, self._sent)

    def _write_out(self) -> None:
        """Let the disk here have what OneData is to have, or a power cut would set that back.

        What would be missing or empty here afterwards would go, or become empty, there.
        """
        try:
            write_out(self.root)
        except LocalError as error:
            log.warning(
                "The disk of the working directory does not take what is written: %s. OneData gets"
                " all the same what can be read; look after the disk.",
                error.strerror,
            )

    def _mark_what_is_left(self, plan: Plan, cut: Cut, outcome: Outcome) -> None:
        held = {plan.stands_at.get(path, path) for path in outcome.held}
        project_held = any(not scope_of(path) for path in held & cut.frozen.keys())
        self._await(plan, outcome, project_held=project_held)
        now = time.monotonic()
        self.planning.project_wait.was(project_held or self.planning.lacks_project(cut), now)
        # What rests goes on changing.
        resting = {p for p in self._unsteady if p in outcome.growing or self.marks.rests(p)}
        self._unsteady = {p: self._unsteady.get(p, now) for p in outcome.retry | resting}
        # What waited may have changed since its snapshot was taken.
        waited = set(self._waiting.frozen) if self._waiting is not None else set()
        untouched = outcome.deferred - plan.stands_at.keys()
        later = (outcome.deferred - untouched) | outcome.held | waited
        left = outcome.retry | outcome.postponed | later | untouched
        self.left |= {plan.stands_at.get(path, path) for path in left}
        self.marks.later(later)
        self.marks.untouched(untouched)
        self._put_off()
        self._looks_at = max(_LOOKED_AT_ONCE, 2 * outcome.files)
        self.marks.again(outcome.retry)
        for path, seconds in outcome.growing.items():
            self.marks.growing(path, _PACE * seconds)
        for move in plan.moves:
            self.marks.tree_changed(move.target)
            # What changed beneath it, before or after the rename, is seen under its new name only.
            self.left.add(move.target)

    def _put_off(self) -> None:
        """Mark again what takes another's name that has to stay."""
        for path in self.only_copies.put_off:
            self.marks.tree_changed(path)
        self.left |= self.only_copies.put_off

    def _portion_seconds(self, plan: Plan, cut: Cut) -> float | None:
        # What turned waits for those that wait for what is left, and others wait for that.
        is_whole = len(plan.files) <= _WHOLE_FILES and bool(plan.turned())
        if self._in_vain >= _CUTS_FOR_ALL or is_whole:
            return None
        times = 1 << max(0, self._in_vain + 1 - _CUTS_IN_VAIN)
        return times * max(_PORTION_SECONDS, _PORTION_PER_CUT * cut.seconds)

    def _await(self, plan: Plan, outcome: Outcome, *, project_held: bool = False) -> None:
        """Leave second halves to the next batch, which comes at once then."""
        self.planning.leave(plan, outcome, project_held=project_held)
        if self.awaits():
            self.marks.arrived.set()

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

    def _released(self) -> set[RelPath]:
        """Return, once, the markers that need to wait no longer: they are to be looked at again."""
        failing = self.planning.failing() if self._kept else set()
        free = {path for path in self._kept if scope_of(path) not in failing}
        self._kept -= free
        return free


def _not_looked_at(backlog: AbstractSet[RelPath], looked: Due) -> set[RelPath]:
    return {path for path in backlog - looked.paths if not lies_in(path, looked.trees)}
