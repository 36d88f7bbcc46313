"""Carries out a plan on the replica.

Transfer is not publishing: content travels into a temporary beside its target, and only when all of
a batch's content has arrived are the names changed, stage by stage. The batch's intent, written
first, names every temporary and every aside, so that any node can settle a half-done batch.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, zip_longest

from onesync.core.blocks import PATCH_FROM, Blocks
from onesync.core.chain import Gone, Position, Renamed, Set
from onesync.core.model import (
    Entry,
    Kind,
    Known,
    Problem,
    RelPath,
    Stamp,
    doubted_stamp,
    is_beneath,
    join,
    lies_in,
    parent_of,
    renamed_path,
    show,
)
from onesync.core.ordering import DATA, SIDECARS, PublishOrder, spread
from onesync.core.plan import Difference, Plan, only_beneath, without_beneath
from onesync.core.trouble import Reaction, is_missing, judge, judge_source
from onesync.errors import LocalError, NotArrived, OnesyncError
from onesync.holds import Holds
from onesync.intent import Intent
from onesync.lanes import Lanes
from onesync.leftovers import Leftovers
from onesync.local import is_another, on_this_machine, open_source, read_xattrs
from onesync.outcome import BEHIND, NAME_REFUSED, OCCUPIED, REFUSED, UNREADABLE, Outcome
from onesync.patience import comes
from onesync.preparation import CREATED_AT_MOST, Preparation
from onesync.removals import Removals
from onesync.replica.door import Listed, NameRefused, Replica
from onesync.snapshot import HEADER
from onesync.transfer import (
    AsItCame,
    Brought,
    NameTaken,
    Source,
    Travelling,
    replaces,
    transfer,
)
from onesync.travels import Travel
from onesync.workers import each

log = logging.getLogger(__name__)

_LANES = 4
"""So many workers go on with data while the others publish. Most of it lies in one directory,
where the kernel makes one name after the other."""

_IN_ONE_DIRECTORY = 4
"""So many workers bring small files into one directory: more would wait there for each other."""

_SHARE_OF_REPLACING = 1 / 3
"""What replaces files is begun in this first part of a batch's time for data: when all has come,
each takes two renames more, which wait for each other as its creation did."""

_AT_ONCE = 256
"""There are no more workers than that."""

_LOOKED_AT_ONCE = 10
"""So many files of one directory are looked at one after the other, before their commit."""

_PORTION_FILES = 1000
_PORTIONS = 8
"""A batch that may leave data to others prepares no more than so many, or such a part of all: also
what it would hardly come to costs."""


@dataclass(frozen=True, slots=True)
class _Ready:
    """Content that waits to be published."""

    difference: Difference
    brought: Brought
    stamp: Stamp
    group: int
    is_database: bool
    xattrs: tuple[tuple[bytes, bytes], ...]


_StayWith = Callable[[Plan, AbstractSet[RelPath]], tuple[set[RelPath], set[RelPath]]]


class Push:
    """One batch on its way to the replica. Used by one thread; works with several.

    Attributes:
        outcome: what it achieved.
        taken: the targets of renames that it met in OneData.
        stayed: what is another kind of thing by now, and has to stay for rows that name it.
    """

    def __init__(
        self,
        replica: Replica,
        root: bytes,
        position: Position,
        pool: ThreadPoolExecutor,
        order: PublishOrder,
        may_write: Callable[[], None],
        known_beneath: Callable[[RelPath], Iterable[tuple[RelPath, Known]]],
        blocks_of: Callable[[str], Blocks | None],
        damaged: Callable[[], AbstractSet[str]],
        is_waited_for: Callable[[RelPath], bool],
        travel_to: Callable[[RelPath], Travel | None],
        lacking: Mapping[int, RelPath],
        stay_with: _StayWith,
        holds: Holds,
        seconds: float | None,
        portion_seconds: float | None,
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
            known_beneath: the index's rows at and beneath a path.
            blocks_of: the digests of a large file's blocks, by the file's digest.
            damaged: the digests of what came damaged from the replica.
            is_waited_for: whether databases wait for a file that changed while it was copied.
            travel_to: the copy that earlier batches began, by its target.
            lacking: what the replica does not have whole, by inode.
            stay_with: returns what has to stay of a plan with what turned and stays: what else
                turned, and removals and sources of renames.
            holds: what of the batch waits; its outcome is the push's.
            seconds: so long a large file travels before it goes on in the next batch; None brings
                all to their end, however long that takes.
            portion_seconds: after so long no more data files are begun: they are left to the next
                batch, and what came meanwhile need not wait for them; None brings all.
        """
        self.intent = Intent(position)
        self.removal = Intent(position, is_removal=True)
        self.outcome = holds.outcome
        self.taken: set[RelPath] = set()
        self.stayed: set[RelPath] = set()
        self.leftovers = Leftovers(replica, pool, order, self.intent, self.removal, self.outcome)
        self._replica = replica
        self._root = root
        self._pool = pool
        self._order = order
        self._may_write = may_write
        self._prepared = Preparation(
            root,
            pool,
            order,
            self.intent,
            self.removal,
            Removals(replica, pool, known_beneath, self._note, self.outcome.missing.add),
            blocks_of,
            damaged,
            travel_to,
            lacking,
        )
        self._holds = holds
        self._is_waited_for = is_waited_for
        self._travel_to = travel_to
        self._stay_with = stay_with
        self._seconds = seconds
        self._portion_seconds = portion_seconds
        self._began = 0.0
        self._notes = 0
        self._pinned: Mapping[RelPath, bytes] = {}
        self._ranks: Mapping[RelPath, int | None] = {}
        self._to_confirm: list[tuple[RelPath, int]] = []
        self._unsent: set[RelPath] = set()
        self._refused: set[RelPath] = set()
        self._renamed: dict[RelPath, RelPath] = {}
        self._guard = threading.Lock()

    def carry_out(
        self,
        plan: Plan,
        snapshots: Mapping[RelPath, bytes],
        pinned: Mapping[RelPath, bytes],
        arrive: Callable[[Mapping[RelPath, Entry]], bool],
    ) -> Outcome:
        """Push ``plan``.

        ``snapshots`` maps databases to their snapshots' absolute paths, ``pinned`` files to
        absolute paths under which they can be read even when they are gone. ``arrive`` waits until
        OneData has what it is given, and returns whether it said so. Raises OSError or an
        OnesyncError where the mount fails as a whole; the replica then needs ``recovery``.
        """
        self._pinned = pinned
        self._ranks = self._prepared.find_ranks(plan, pinned)
        plan = self._portion(plan, snapshots)
        self._prepared.prepare(plan, snapshots, pinned)
        self._may_write()
        for intent in (self.intent, self.removal):
            if intent.is_needed():
                self._replica.write_new(intent.path, intent.encode())
        each(self._pool, self._remove, plan.revoked)
        turned = plan.turned()
        late = {d.path for d in plan.files if self._is_created_late(d, snapshots)}
        ready = self._transfer(plan, without_beneath(plan, turned), snapshots)
        self._holds.await_renames(plan.awaited_moves)
        ready = self._hold_back_turned(plan, turned, ready, late)
        plan = without_beneath(plan, self.stayed)
        ready += self._turn(only_beneath(plan, turned), snapshots)
        plan = self._without_refused(plan)
        ready = self._without_only_copies(ready, late)
        with self._going_on(plan):
            self._publish_all(ready, plan, snapshots)
            for difference in plan.links + plan.metadata:
                self._record_seen(difference)
            self._second_halves(plan)
            self._await_arrival(arrive)
        self._confirm_written()
        self._follow_renames()
        return self.outcome

    def who_names(self, runs: AbstractSet[RelPath]) -> set[RelPath]:
        """Return those of the databases of the plan that may name what lies in ``runs``."""
        return self._holds.who_names(runs)

    def after_absent(self) -> set[RelPath]:
        """Return those of them that wait for new databases which the cut left out."""
        return self._holds.after_absent

    def _await_arrival(self, arrive: Callable[[Mapping[RelPath, Entry]], bool]) -> None:
        """Wait for what took the place of older bytes: with the checkpoint those go."""
        written = self.outcome.overwritten.items()
        self.outcome.overwritten = {renamed_path(p, self._renamed): e for p, e in written}
        if self.outcome.overwritten:
            self.outcome.is_told = arrive(self.outcome.overwritten)

    def _follow_renames(self) -> None:
        """Tell what lies beneath a renamed directory, and what is to be tidied, by new names."""
        outcome, moved = self.outcome, self._renamed
        if not moved:
            return
        outcome.sent = {renamed_path(p, moved): is_db for p, is_db in outcome.sent.items()}
        told = outcome.problems
        outcome.problems = [replace(p, path=renamed_path(p.path, moved)) for p in told]
        self.leftovers.follow(moved)
        outcome.left_out = {renamed_path(path, moved) for path in outcome.left_out}
        outcome.travels = {
            renamed_path(p, moved): replace(t, temporary=renamed_path(t.temporary, moved))
            for p, t in outcome.travels.items()
        }

    def _portion(self, plan: Plan, snapshots: Mapping[RelPath, bytes]) -> Plan:
        """Leave to the next batch what this one would hardly come to; preparing it costs too."""
        left = self.outcome.deferred
        files = [d for d in plan.files if d.path not in left]
        # What takes another thing's place comes as a whole, after the rest.
        turned = plan.turned()
        data = [d for d in files if self._is_data(d.path, d.path in snapshots)]
        data = [d for d in data if not lies_in(d.path, turned)]
        portion = max(_PORTION_FILES, (len(data) + len(left)) // _PORTIONS)
        if self._portion_seconds is not None and len(data) > portion:
            ordered = sorted(self._in_turns(data), key=self._rank)
            rest = [d for d in ordered[portion:] if not self._comes_with_others(d)]
            for difference in rest:
                self._holds.defer(difference.path)
                self._prepared.lacks(difference)
            files = [d for d in files if d.path not in left]
        return replace(plan, files=files)

    def _rank(self, difference: Difference) -> int:
        """Return how many have to come before: those behind them would take the time in vain."""
        return self._ranks.get(difference.path, 0) or 0

    def _comes_with_others(self, difference: Difference) -> bool:
        """Whether it waits for one that waits for it: none of them can come alone."""
        return self._ranks.get(difference.path, 0) is None

    def _in_turns(self, data: list[Difference]) -> list[Difference]:
        """Return ``data`` in turns over their directories; every second is waited for, if any is.

        What databases wait for lies in a directory of its own, mostly, and is limited by that: the
        rest would wait for it in vain.
        """
        waited_for = spread((d for d in data if self._holds.is_named(d.path)), _path_of)
        rest = spread((d for d in data if not self._holds.is_named(d.path)), _path_of)
        return [d for pair in zip_longest(waited_for, rest) for d in pair if d is not None]

    def _is_data(self, path: RelPath, is_database: bool) -> bool:
        return self._order.group_of(path, is_database=is_database) == DATA

    def _make_directories(self, directories: list[Difference]) -> None:
        levels: dict[int, list[Difference]] = {}
        for difference in directories:
            levels.setdefault(difference.path.count(b"/"), []).append(difference)
        for _, level in sorted(levels.items()):
            each(self._pool, self._make_directory, level)

    def _make_directory(self, difference: Difference) -> None:
        path = difference.path
        if lies_in(path, self._refused):
            return
        self._may_write()
        try:
            self._replica.make_directory(path)
        except NameRefused:
            self._refuse(path)
            return
        except FileExistsError:
            found = self._replica.look(path)
            if found is None or found.kind is not Kind.DIRECTORY:
                with self._guard:
                    self._refused.add(path)
                    self._occupied(path)
                return
        self._record_seen(difference)

    def _without_refused(self, plan: Plan) -> Plan:
        """Return the plan without what lies in directories that OneData cannot have."""

        def good(differences: list[Difference]) -> list[Difference]:
            return [d for d in differences if not lies_in(d.path, self._refused)]

        if self._refused:
            self.outcome.left_out.update(
                d.path for d in plan.files if lies_in(d.path, self._refused)
            )
        return replace(plan, files=good(plan.files), links=good(plan.links))

    def _transfer(
        self, plan: Plan, first: Plan, snapshots: Mapping[RelPath, bytes]
    ) -> list[_Ready]:
        """Transfer ``first``, which is all of ``plan`` but what takes another thing's place."""
        self._make_directories(first.directories)
        data, databases = self._to_transfer(self._without_refused(first), snapshots)
        self._began = time.monotonic()
        found = self._bring_data(data, self._bring_in_time)
        self._begin_databases(plan, snapshots)
        found += each(self._pool, self._bring_database, databases)
        return [ready for ready in found if ready is not None]

    def _turn(self, plan: Plan, snapshots: Mapping[RelPath, bytes]) -> list[_Ready]:
        """Clear the names of what became another kind of thing, and transfer what is to be there.

        All of it: rows of a database that waited for the rest might name what was there before.
        """
        for difference in plan.removals:  # databases before what they name
            self._remove(difference)
        self._make_directories(plan.directories)
        data, databases = self._to_transfer(self._without_refused(plan), snapshots)
        found = self._bring_data(data, self._bring)
        found += each(self._pool, self._bring_database, databases)
        return [ready for ready in found if ready is not None]

    def _to_transfer(
        self, plan: Plan, snapshots: Mapping[RelPath, bytes]
    ) -> tuple[list[Difference], list[Difference]]:
        """Return the data, and the databases, of which content travels before anything is named."""
        now = [d for d in plan.files if not self._is_created_late(d, snapshots)]
        data = [d for d in now if d.path not in snapshots]
        return data, spread((d for d in now if d.path in snapshots), _path_of)

    def _bring_data(
        self, data: list[Difference], bring: Callable[[Difference], _Ready | None]
    ) -> list[_Ready | None]:
        found: list[_Ready | None] = []
        lanes = self._lanes_of(data)
        work = partial(lanes.work, lambda difference: found.append(bring(difference)))
        each(self._pool, lambda _: work(), range(min(len(data), _AT_ONCE)))
        return found

    def _hold_back_turned(
        self,
        plan: Plan,
        turned: AbstractSet[RelPath],
        ready: list[_Ready],
        late: AbstractSet[RelPath],
    ) -> list[_Ready]:
        """Find out what has to stay, though it ``turned`` into another kind of thing.

        Rows of a database may name it that waits for what did not come until now. Returns what of
        all that is ``ready`` need not wait for what stays.
        """
        new = turned
        while new:
            more, tops = self._stay_with(plan, self.stayed)
            beneath = only_beneath(plan, self.stayed)
            self._holds.stay({d.path for d in chain(beneath.files, beneath.links)}, tops)
            going = turned - self.stayed
            coming = {d.path for d in plan.files if lies_in(d.path, going)}
            ready = self._without_only_copies(ready, late, coming)
            self._holds.await_targets(plan)
            new = (more | self._holds.named_as_before(plan, turned)) - self.stayed
            self.stayed |= new
        return ready

    def _begin_databases(self, plan: Plan, snapshots: Mapping[RelPath, bytes]) -> None:
        """Find out which databases, and markers, wait for the data that did not come in time."""
        copies = {d.path: snapshots[d.path] for d in plan.files if d.path in snapshots}
        markers = [d.path for d in plan.files if not self._is_data(d.path, d.path in snapshots)]
        self._holds.begin_databases(copies, set(markers) - copies.keys(), plan)

    def _lanes_of(self, data: list[Difference]) -> Lanes[Difference]:
        """Return ``data`` for several workers; what is waited for takes turns with the rest.

        What replaces files is the first of its directory, for it has less time.
        """
        data = sorted(data, key=lambda d: (self._rank(d), not replaces(d.known)))
        named = [d for d in data if self._holds.is_named(d.path)]
        rest = [d for d in data if not self._holds.is_named(d.path)]
        return Lanes((named, rest), _lane_of, _IN_ONE_DIRECTORY)

    def _without_only_copies(
        self,
        ready: list[_Ready],
        late: AbstractSet[RelPath],
        coming: AbstractSet[RelPath] = frozenset(),
    ) -> list[_Ready]:
        """Leave to a later batch what would replace the only whole copy of another file.

        That may be one of the ``late`` ones, which are created after all data. They do not wait for
        the data that wait for them. Those that are ``coming`` are still to be transferred.
        """
        while True:
            whole = {item.difference.path for item in ready if not item.brought.is_behind} | coming
            ready, waiting = _parted(ready, partial(self._may_replace, whole=whole))
            if not waiting:
                return ready
            for item in waiting:
                self._let_wait(item, late)

    def _may_replace(self, item: _Ready, whole: AbstractSet[RelPath]) -> bool:
        needed = self._prepared.needed_at(item.difference)
        return item.brought.in_place or needed is None or needed in whole

    def _without_refused_ones(self, ready: list[_Ready]) -> list[_Ready]:
        """Leave what would replace the only copy of what just did not get its new name."""
        refused = {problem.path for problem in self.outcome.problems if problem.kind != BEHIND}
        good, waiting = _parted(
            ready, lambda item: self._prepared.needed_at(item.difference) not in refused
        )
        for item in waiting:
            self._let_wait(item)
        return good

    def _let_wait(self, item: _Ready, late: AbstractSet[RelPath] = frozenset()) -> None:
        """Keep the old version, which has to stay; a large new one stays whole beside it."""
        path, brought = item.difference.path, item.brought
        needed = self._prepared.needed_at(item.difference) or path
        if item.is_database or brought.copied.size < PATCH_FROM:
            if needed not in late:
                self._holds.leave_behind(path, is_missing=True)
            elif item.group == DATA:
                # A marker is named by no row, and what waits for databases would hold back the
                # other one, for which this one waits.
                self._holds.let_wait(path)
            if brought.temporary is not None:
                self.leftovers.add(brought.temporary)
        elif brought.temporary is not None:
            travel = self._travel_to(path)
            intent = travel.intent if travel is not None else self.intent.path
            spent = travel.seconds if travel is not None else 0.0
            self.outcome.travels[path] = Travel(brought.temporary, intent, brought.copied, spent)
        self.outcome.growing[path] = 0.0
        text = (
            f"{show(path)} waits: OneData has {show(needed)} only under this name, until it has"
            " come under its own."
        )
        self.outcome.problems.append(Problem(path, BEHIND, text))

    def _bring_in_time(self, difference: Difference) -> _Ready | None:
        """Bring data, unless the batch has lasted long enough."""
        if self._is_time_for(difference):
            return self._bring(difference)
        self._holds.defer(difference.path)
        return None

    def _is_time_for(self, difference: Difference) -> bool:
        if self._portion_seconds is None or self._comes_with_others(difference):
            return True
        is_renamed = replaces(difference.known) and _seen(difference).size < PATCH_FROM
        share = _SHARE_OF_REPLACING if is_renamed else 1.0
        return time.monotonic() < self._began + share * self._portion_seconds

    def _bring_database(self, difference: Difference) -> _Ready | None:
        if self._holds.is_late(difference.path):
            self.outcome.held.add(difference.path)
            return None
        return self._bring(difference)

    @contextmanager
    def _going_on(self, plan: Plan) -> Iterator[None]:
        """Go on with small new data meanwhile; the databases that wait for them wait on."""
        moved = {move.source for move in plan.moves}
        deferred = [d for d in plan.files if d.path in self.outcome.deferred]
        small = [d for d in deferred if self._prepared.sources[d.path].digest is not None]
        left = self._lanes_of([d for d in small if not lies_in(d.path, moved)])
        workers = [self._pool.submit(left.work, self._go_on) for _ in range(_LANES if small else 0)]
        try:
            yield
        finally:
            left.end()
            wait(workers)
        for worker in workers:
            worker.result()

    def _go_on(self, difference: Difference) -> None:
        self._holds.take_up(difference.path)
        ready = self._bring(difference)
        if ready is not None:
            self._publish(ready)

    def _is_created_late(self, difference: Difference, snapshots: Mapping[RelPath, bytes]) -> bool:
        """Whether a file is created under its own name, but after the data that it promises."""
        path = difference.path
        if self._prepared.sources[path].digest is None or path in snapshots:
            return False
        return self._order.group_of(path, is_database=False) != DATA

    def _bring(self, difference: Difference) -> _Ready | None:
        """Bring one file's content; what does not come holds back the databases of its run."""
        path = difference.path
        self._may_write()
        ready = self._try_to_bring(difference, self._prepared.sources[path])
        if ready is None and path in self.outcome.retry:
            # Rows may promise what did not come. A file that changes inside all the time is waited
            # for only a while, or the databases of its run would never come.
            is_missing = self._is_another(difference)
            if is_missing or self._is_waited_for(path):
                self._holds.leave_behind(path, is_missing=is_missing)
        return ready

    def _is_another(self, difference: Difference) -> bool:
        """Whether the file is not the one of which OneData has a version under this name."""
        known, seen = difference.known, difference.seen
        old = known.stamp if known is not None else None
        if old is None or seen is None or old.inode != seen.inode:
            return True
        return is_another(self._prepared.sources[difference.path].local, old)

    def _try_to_bring(self, difference: Difference, source: Source) -> _Ready | None:
        path = difference.path
        began = time.monotonic()
        if _became_database(difference, source):
            self.outcome.retry.add(path)
            return None
        try:
            xattrs = self._xattrs(path)  # first: what cannot be read here is met before a byte goes
            brought = transfer(self._replica, difference, source, self._seconds)
        except NameTaken:
            self._note_occupied(path)
            return None
        except OSError as error:
            self._not_brought(source, path, error)
            return None
        if isinstance(brought, AsItCame):
            self.outcome.as_it_came[path] = brought.stamp
            return None
        if isinstance(brought, Travelling):
            self._note_travelling(difference, brought, time.monotonic() - began)
            return None
        if brought is None:
            self._note_changed(difference, time.monotonic() - began)
            return None
        if brought.undo is not None:
            self.leftovers.add(brought.undo)
        if brought.in_place:
            self._written(difference, brought)
        stamp = _seen(difference) if source.frozen else brought.copied.before
        assert stamp is not None
        group = self._order.group_of(path, is_database=source.frozen)
        if not source.frozen and (brought.is_behind or not brought.copied.steady):
            stamp = self._note_growing(path, brought, stamp, time.monotonic() - began)
        # Once more: they may have changed before the stamp was taken.
        with suppress(LocalError):
            xattrs = self._xattrs(path)
        return _Ready(difference, brought, stamp, group, source.frozen, xattrs)

    def _not_brought(self, source: Source, path: RelPath, error: OSError) -> None:
        """Let one path wait or have a problem; raises ``error`` where it is not about that path."""
        if is_missing(error) or isinstance(error, InterruptedError):
            self.outcome.retry.add(path)  # gone or changed its kind since the scan: still dirty
            if is_missing(error):
                self.outcome.missing.add(path)
            return
        if isinstance(error, NameRefused):
            self._refuse(path)
            return
        is_local = isinstance(error, LocalError)
        is_of_source = is_local and not source.frozen  # a snapshot lies in the spool
        trouble = judge_source(error) if is_of_source else judge(error)
        if is_local and trouble.reaction is Reaction.AGAIN:
            self.outcome.retry.add(path)
        elif trouble.reaction is Reaction.PATH and (is_local or source.undo is None):
            kind = UNREADABLE if is_local else REFUSED
            self._fail(path, kind, f"{show(path)}: {trouble.text}")
        else:
            raise error

    def _xattrs(self, path: RelPath) -> tuple[tuple[bytes, bytes], ...]:
        """Return what ``path`` has now; none where it is gone, which its removal tells."""
        try:
            fd = open_source(self._pinned.get(path) or join(self._root, path))
        except OSError:
            return ()
        try:
            with on_this_machine():
                return read_xattrs(fd)
        finally:
            os.close(fd)

    def _note_travelling(self, difference: Difference, on: Travelling, seconds: float) -> None:
        """Keep a file dirty whose new version goes on in the next batches."""
        path, seen = difference.path, _seen(difference)
        travel = self._travel_to(path)
        so_far = "it is still compared with that"
        changed = not on.steady
        if on.copied is not None:
            temporary = self._prepared.sources[path].temporary
            spent = seconds
            if travel is not None and travel.temporary == temporary:
                changed |= travel.copied.before != seen
                spent += travel.seconds
            intent = travel.intent if travel is not None else self.intent.path
            self.outcome.travels[path] = Travel(temporary, intent, on.copied, spent)
            so_far = f"{on.copied.size} of {seen.size} bytes came so far"
        self.outcome.growing[path] = seconds if changed else 0.0
        text = f"{show(path)} is still travelling: OneData has its version before, {so_far}."
        self.outcome.problems.append(Problem(path, BEHIND, text))

    def _note_changed(self, difference: Difference, seconds: float) -> None:
        """Keep a file dirty that changed while it was copied; dear copies are begun less often.

        So are those of a large file that has changed for long enough. Not of one of which OneData
        has nothing: while it rested its row would come without it.
        """
        path, travel = difference.path, self._travel_to(difference.path)
        round_ = self._seconds
        may_rest = round_ is not None and replaces(difference.known)
        is_large = _seen(difference).size >= PATCH_FROM
        is_dear = bool(travel) or (round_ is not None and seconds >= round_)
        if not may_rest or not (is_dear or (is_large and not self._is_waited_for(path))):
            self.outcome.retry.add(path)
            return
        self.outcome.growing[path] = seconds + (travel.seconds if travel is not None else 0.0)
        text = (
            f"{show(path)} changed while it travelled: OneData has its version before, the copy is"
            " begun anew after a rest."
        )
        self.outcome.problems.append(Problem(path, BEHIND, text))

    def _note_growing(self, path: RelPath, brought: Brought, stamp: Stamp, seconds: float) -> Stamp:
        """Keep a file dirty that is published as far as it came; returns the stamp to remember."""
        # Only a dear one rests: rows that name the rest of it may come with the next batch.
        is_cheap = brought.copied.steady or stamp.size <= CREATED_AT_MOST
        self.outcome.growing[path] = 0.0 if is_cheap else seconds
        if not brought.is_behind:
            return stamp
        size = brought.copied.size
        so_far = f"OneData has {size} of its {max(stamp.size, brought.copied.whole)} bytes so far"
        text = f"{show(path)} is still travelling: {so_far}."
        self.outcome.problems.append(Problem(path, BEHIND, text))
        return replace(stamp, size=size)

    def _publish_all(
        self, ready: list[_Ready], plan: Plan, snapshots: Mapping[RelPath, bytes]
    ) -> None:
        late: dict[int, list[Difference]] = {}
        for difference in plan.files:
            if self._is_created_late(difference, snapshots):
                group = self._order.group_of(difference.path, is_database=False)
                late.setdefault(group, []).append(difference)
        for group in self._order.groups:
            self._holds.await_targets(plan)
            batch = [item for item in ready if item.group == group]
            # What goes to another name comes there first: it may not, and the old one has to stay.
            first, second = _parted(
                batch, lambda item: self._prepared.needed_at(item.difference) is None
            )
            # And a new database before the others, whose rows may name it.
            for items in _parted(first, lambda item: not item.is_database or _is_new(item)):
                each(self._pool, self._publish, spread(items, _place_of))
            rest = self._without_refused_ones(second)
            each(self._pool, self._publish, spread(rest, _place_of))
            each(self._pool, self._create_late, spread(late.get(group, []), _path_of))
            self._confirm_written()

    def _create_late(self, difference: Difference) -> None:
        if self._waits(difference.path, is_database=False):
            return
        ready = self._bring(difference)
        if ready is not None:
            self._publish(ready)

    def _publish(self, item: _Ready) -> None:
        path, brought = item.difference.path, item.brought
        copied = brought.copied
        if item.group != DATA and self._waits(path, is_database=item.is_database):
            if brought.temporary is not None:
                self._replica.remove(brought.temporary)
            return
        if not (brought.in_place or self._put_in_place(item)):
            return
        stamp = item.stamp
        entry = Entry(
            Kind.FILE,
            copied.size,
            stamp.mtime_ns,
            stamp.mode,
            copied.digest,
            group=stamp.inode if stamp.linked else 0,
            xattrs=item.xattrs,
        )
        self._record(path, entry, stamp)
        with self._guard:
            if brought.sent:
                self.outcome.sent[path] = item.is_database
            if path in self._prepared.replaced and (brought.temporary or brought.numbers):
                self.outcome.overwritten[path] = entry
            if (blocks := brought.renewed or copied.blocks) is not None:
                self.outcome.blocks[copied.digest] = blocks

    def _waits(self, path: RelPath, *, is_database: bool) -> bool:
        """Whether a marker or database waits for data; says so in the outcome."""
        if not is_database and self._holds.is_kept(path):
            self.outcome.kept.add(path)
            return True
        if self._holds.is_held(path, is_database=is_database):
            self.outcome.held.add(path)
            return True
        return False

    def _put_in_place(self, item: _Ready) -> bool:
        """Give what was transferred its name, or patch what has it; returns False if occupied."""
        path, brought = item.difference.path, item.brought
        if item.is_database:
            self._remove_strays(path)
        if brought.temporary is None:
            self._may_write()
            self._patch(path, brought)
        elif not self._change_names(path, brought.temporary, self._prepared.replaced.get(path)):
            return False
        self._written(item.difference, brought)
        return True

    def _patch(self, path: RelPath, brought: Brought) -> None:
        source, copied = self._prepared.sources[path], brought.copied
        assert copied.blocks is not None
        if not self._replica.patch(source.local, path, copied.blocks, brought.numbers, copied.size):
            raise OnesyncError(
                f"The snapshot of {show(path)} changed while it was pushed; OneData gets its last"
                " version back, the batch is done again."
            )

    def _change_names(self, path: RelPath, temporary: RelPath, aside: RelPath | None) -> bool:
        self._may_write()
        try:
            if aside is not None:
                self._replica.rename(path, aside, is_file=True)
                self.leftovers.add_replaced(path, aside)
        except FileNotFoundError:
            pass  # somebody removed it in the replica: the new version takes its place
        try:
            self._replica.rename(temporary, path, is_file=True)
        except FileExistsError:
            # The temporary stays until the batch is tidied: that it is there tells recovery that
            # what stands at the target is not ours.
            self._occupied(path)
            self.leftovers.add(temporary)
            return False
        except NameRefused:
            if aside is not None:
                raise  # it stood there: the version that went aside comes back
            self._refuse(path)
            self.leftovers.add(temporary)
            return False
        return True

    def _written(self, difference: Difference, brought: Brought) -> None:
        path = difference.path
        with self._guard:
            self._to_confirm.append((path, brought.copied.size))
            # Of an empty file no byte travels either, but where there was none it came now.
            if brought.in_place and not brought.sent and replaces(difference.known):
                self._unsent.add(path)
            self.outcome.files += 1
            self.outcome.size += brought.sent

    def _remove_strays(self, path: RelPath) -> None:
        """A journal of another version beside a database would undo what it holds."""
        for suffix in SIDECARS:
            self._may_write()
            self._replica.unlink(path + suffix)

    def _confirm(self, written: list[tuple[RelPath, int]]) -> None:
        """Look at files of one directory; raises NotArrived where one has not all its bytes."""
        left = written

        def are_there() -> bool:
            nonlocal left
            found = self._replica.look_at([path for path, _ in left])
            looked = zip(left, found, strict=True)
            left = [item for item, one in looked if not _is_file_of(item[1], one)]
            return not left

        if comes(are_there):
            return
        for path, size in left:
            if path not in self._unsent:
                raise NotArrived(
                    f"{show(path)} does not have its {size} bytes in OneData after the push;"
                    " nothing was committed, the batch is done again."
                )
        for path, _ in left:
            self._doubt(path)

    def _doubt(self, path: RelPath) -> None:
        """Let the next batch send whole what somebody changed in OneData, or removed there."""
        log.warning("OneData does not hold what was pushed", extra={"path": show(path)})
        with self._guard:
            self.outcome.stamps[path] = doubted_stamp(Kind.FILE)
            self.outcome.retry.add(path)
            self.outcome.missing.add(path)  # with all that may have gone with it

    def _confirm_written(self) -> None:
        # Not one by one: a look-up between creates waits for its turn in their directory.
        with self._guard:
            written, self._to_confirm = self._to_confirm, []
        if written:
            # A directory that somebody moved meanwhile would show what went there with it.
            self._replica.walk_anew()
        each(self._pool, self._confirm, _by_directory(written))

    def _second_halves(self, plan: Plan) -> None:
        sources = {move.source for move in plan.moves}
        gone = [difference for difference in plan.removals if difference.seen is None]
        stale = [difference for difference in gone if lies_in(difference.path, sources)]
        gone = [difference for difference in gone if not lies_in(difference.path, sources)]
        waiting = self._holds.waiting(plan)
        self.outcome.postponed.update(d.path for d in gone if d.path in waiting)
        now = [d for d in gone if d.path not in waiting]
        early = [difference for difference in now if difference.path in self._prepared.removes]
        # Files first: databases are among them, which may name all that follows.
        each(self._pool, self._remove, [d for d in early if not d.removes_directory])
        for move in plan.moves:
            if move.source in waiting:
                self.outcome.postponed_moves.add((move.source, move.target))
                continue
            each(self._pool, self._remove, [d for d in stale if is_beneath(d.path, move.source)])
            self._may_write()
            try:
                if move.kind is not Kind.LINK:
                    self._replica.rename(move.source, move.target)
            except NameRefused:
                self._refuse(move.target)  # what it was renamed from stays in OneData until then
                continue
            except OSError as error:
                # What promises it may be there by now: all is undone, once for all of them.
                if isinstance(error, FileExistsError) or lies_in(move.target, self._refused):
                    self.taken |= self._taken_ones(plan) | {move.target}
                raise
            self.outcome.changes.append(Renamed(move.source, move.target))
            self._renamed[move.source] = move.target
        each(self._pool, self._remove, [d for d in early if d.removes_directory])
        # The others go when the checkpoint stands.
        late = spread((d for d in now if d.path not in self._prepared.removes), _path_of)
        self.leftovers.unlink_later([difference.path for difference in late])
        self.outcome.changes.extend(Gone(difference.path) for difference in late)

    def _taken_ones(self, plan: Plan) -> set[RelPath]:
        """Return the targets of the renames that are left where something stands in OneData."""
        left = [m for m in plan.moves if m.source not in self._renamed and m.kind is not Kind.LINK]
        beneath = {m.target for m in left if lies_in(m.target, self._refused)}
        targets = [m.target for m in left if m.target not in beneath]
        found = each(self._pool, self._replica.look, targets)
        return beneath | {t for t, one in zip(targets, found, strict=True) if one is not None}

    def _remove(self, difference: Difference) -> None:
        for path in self._prepared.removes[difference.path]:
            self._may_write()
            aside = self._prepared.removed[path]
            try:
                self._replica.rename(path, aside)
            except (FileNotFoundError, NotADirectoryError):  # somebody removed it in the replica
                self.outcome.missing.add(path)
            else:
                self.leftovers.add_removed(path, aside)
        self.outcome.changes.append(Gone(difference.path))

    def _note(self, problem: Problem) -> None:
        self.outcome.problems.append(problem)

    def _record_seen(self, difference: Difference) -> None:
        """Record a link or directory, which has no content."""
        path, stamp = difference.path, _seen(difference)
        if stamp.kind is Kind.LINK:
            entry = Entry(Kind.LINK, target=stamp.target)
        else:
            entry = Entry(
                stamp.kind, mtime_ns=stamp.mtime_ns, mode=stamp.mode, xattrs=self._xattrs(path)
            )
        self._record(path, entry, stamp)

    def _record(self, path: RelPath, entry: Entry, stamp: Stamp) -> None:
        self.outcome.changes.append(Set(path, entry))
        self.outcome.stamps[path] = stamp

    def _note_occupied(self, path: RelPath) -> None:
        """Tell whoever may have to settle this batch that what stands at ``path`` is not ours."""
        with self._guard:
            self._notes += 1
            note = self.intent.note_of(self._notes)
        self._replica.write_new(note, path)
        self.leftovers.add(note)
        self._occupied(path)

    def _refuse(self, path: RelPath) -> None:
        """Leave ``path``, and what lies beneath it, out: OneData can keep it under no name."""
        text = (
            f"OneData refuses the name of {show(path)} and the one that onesync gave it instead; it"
            " is only in the working copy. Rename it there, everything else is pushed."
        )
        with self._guard:
            self._refused.add(path)
            self._fail(path, NAME_REFUSED, text)

    def _occupied(self, path: RelPath) -> None:
        text = (
            f"Something that onesync did not put there stands at {show(path)} in OneData; it is"
            " kept, and so is the working copy's. Rename one of them."
        )
        self._fail(path, OCCUPIED, text)

    def _fail(self, path: RelPath, kind: str, text: str) -> None:
        """Tell of what cannot come before somebody does something about it."""
        if self._order.is_promised(path):
            self._holds.fail(path)
            text += " New markers of its run wait for it."
        self.outcome.problems.append(Problem(path, kind, text))


def _became_database(difference: Difference, source: Source) -> bool:
    """Whether what was too short for a database when it was cut is one now: it is younger."""
    seen = difference.seen
    if source.frozen or seen is None or seen.size >= len(HEADER):
        return False
    try:
        fd = open_source(source.local)
        try:
            return os.pread(fd, len(HEADER), 0) == HEADER
        finally:
            os.close(fd)
    except OSError:
        return False  # the transfer meets it again, and says so


def _is_file_of(size: int, found: Listed | None) -> bool:
    return found is not None and found.kind is Kind.FILE and found.size == size


def _by_directory(written: list[tuple[RelPath, int]]) -> list[list[tuple[RelPath, int]]]:
    """Return portions that are looked at by one process, which has to walk there."""
    directories: dict[RelPath, list[tuple[RelPath, int]]] = {}
    for item in written:
        directories.setdefault(parent_of(item[0]), []).append(item)
    return [
        items[number : number + _LOOKED_AT_ONCE]
        for items in directories.values()
        for number in range(0, len(items), _LOOKED_AT_ONCE)
    ]


def _parted(
    items: list[_Ready], is_first: Callable[[_Ready], bool]
) -> tuple[list[_Ready], list[_Ready]]:
    """Return those of which it holds, and the others, in their order."""
    parts: tuple[list[_Ready], list[_Ready]] = ([], [])
    for item in items:
        parts[not is_first(item)].append(item)
    return parts


def _is_new(item: _Ready) -> bool:
    return not replaces(item.difference.known)


def _place_of(item: _Ready) -> RelPath:
    return item.difference.path


def _lane_of(difference: Difference) -> RelPath:
    """Return the directory of a small file; a large one stands for itself, for it travels long."""
    is_small = _seen(difference).size <= CREATED_AT_MOST
    return parent_of(difference.path) if is_small else difference.path


def _path_of(difference: Difference) -> RelPath:
    return difference.path


def _seen(difference: Difference) -> Stamp:
    assert difference.seen is not None
    return difference.seen
