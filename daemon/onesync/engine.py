"""The one loop and its phases: deploy, sync, undeploy. Everything here runs in one thread.

What others may ask of it meanwhile (``stop``, ``handover``, ``ask_flush``, the status' attributes)
is safe from any thread.
"""

from __future__ import annotations

import json
import logging
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, Protocol, TypeVar

from pathspec import PathSpec

from onesync import __version__, lost_copy, working_copy
from onesync.batch import Batches, Events
from onesync.core.chain import Head, Noted
from onesync.core.claims import Ours
from onesync.core.clock import Clock
from onesync.core.dirty import DirtySet
from onesync.core.guard import Bound
from onesync.core.model import Problem, RelPath, show
from onesync.core.ordering import DATA, PublishOrder
from onesync.core.trouble import Reaction, judge, pause_seconds
from onesync.core.view import age_text
from onesync.cut import Cuts
from onesync.deletions import Deletions, Held
from onesync.deploy import Deploy
from onesync.errors import (
    ConfigurationError,
    Exit,
    FlushNotFinished,
    Halted,
    IndexDamaged,
    LocalError,
    LockLost,
    MountNotThere,
    OnesyncError,
    StateDirFailed,
    StopRequested,
    Suspended,
    WorkingCopyLost,
)
from onesync.expiry import Expiry
from onesync.heartbeat import Heartbeat
from onesync.index import Index
from onesync.lock import Lock
from onesync.manifest import Manifest
from onesync.marks import Marks
from onesync.mount import Mount
from onesync.only_copies import OnlyCopies
from onesync.orders import Flushed, Orders
from onesync.replica.door import Replica
from onesync.replica.leased import leased
from onesync.scanner import Scanner
from onesync.settings import Settings
from onesync.travels import Travels
from onesync.unverified import Unverified
from onesync.watcher import Watcher, choose_watcher

log = logging.getLogger(__name__)

T = TypeVar("T")

_FINAL_ROUNDS = 5
"""What is written while the final flush waits for OneData is brought too, but not for ever."""
_HANDOVER_SECONDS = 60.0
_DRAIN_SECONDS = 30.0
_SECOND_HALF = 0.25
"""This part of the pause between batches stays where deletions or renames wait for the next one:
what is dirty waits with them."""
_TICK_SECONDS = 300.0


class Observer(Events, Protocol):
    """What the engine tells the world; called from its thread."""

    def phase_changed(self, phase: str) -> None:
        """The deployment is in this phase now."""

    def succeeded(self) -> None:
        """A batch, or a step of the last flush, ended well; perhaps there was nothing to do."""

    def failed(self, kind: str) -> None:
        """A batch failed for a reason of this kind (``core.trouble.Trouble``)."""

    def rescanned(self, reason: str) -> None:
        """The whole working copy is about to be scanned."""

    def advanced(self, done: int, total: int) -> None:
        """``done`` of ``total`` files of the phase are done."""

    def alive(self) -> None:
        """The engine goes on."""


class Engine:
    """One deployment's life."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        index: Index,
        replica: Replica,
        lock: Lock,
        keeps_at_shutdown: Callable[[], bool],
        observer: Observer,
        last_status: Mapping[str, Any] | None = None,
    ) -> None:
        """Put the deployment's parts together; the mount is not touched before ``live``.

        ``last_status`` is the status document that the life before this one left.
        """
        self._settings = settings
        self._clock = clock
        self._index = index
        self._replica = leased(replica, self._may_write)
        self._keeps_at_shutdown = keeps_at_shutdown
        self._observer = observer
        self._last_status = last_status
        self._root = os.fsencode(settings.working_dir.resolve())
        self._spool = settings.state_dir / "spool"
        self._pool = ThreadPoolExecutor(settings.push.workers, thread_name_prefix="push")
        push = settings.push
        self._order = PublishOrder(push.publish_order, push.scratch, push.unnamed)
        excluded = PathSpec.from_lines("gitignore", settings.push.exclude)
        self._scanner = Scanner(
            self._root,
            index,
            lambda path: len(excluded) > 0 and excluded.match_file(os.fsdecode(path)),
        )
        self._orders = Orders()
        self._expiry = Expiry(settings.deployment, index, clock)
        self._paused_until = 0.0
        self._ends_by_itself = False
        self._watcher: Watcher | None = None
        self._is_watching = False
        self._heartbeat: Heartbeat | None = None
        self._problems: dict[RelPath, Problem] = {}
        self.lock = lock
        self.mount = Mount(
            self._replica, settings.onedata_dir, settings.mount.require_fuse, clock.boottime
        )
        self.marks = Marks(
            DirtySet(settings.batch.settle_seconds, settings.batch.max_delay_seconds),
            clock,
            lambda path: self._order.group_of(path, is_database=False) != DATA,
            self._order.is_scratch,
        )
        self._deletions = Deletions(
            index, self._scanner, self.marks, _bound(settings), clock.boottime
        )
        self._batches: Batches | None = None
        self._deployment = Deploy(
            settings,
            self._replica,
            index,
            lock,
            self.mount,
            self._scanner,
            self._pool,
            self._spool,
            self._problems,
            self._make_batches,
            self._on_staged,
        )
        self.phase = "starting"
        self.last_checkpoint: str | None = None
        self._trouble: Problem | None = None
        self._reaction = Reaction.LATER
        self._ended = 0.0

    # -- asked by other threads -----------------------------------------------------------------

    def stop(self) -> None:
        """Flush and undeploy."""
        self._ends_by_itself = False
        self._orders.stop.set()
        self._orders.hurry.set()
        self.marks.arrived.set()

    def handover(self) -> None:
        """Flush as far as quickly possible and leave with the lock kept."""
        self._orders.handover.set()
        self.stop()

    def ask_flush(self) -> Future[Flushed]:
        """Commit all that reached the working copy before this call."""
        future = self._orders.ask_flush()
        self.marks.arrived.set()
        return future

    def ask(self, act: Callable[[], T]) -> Future[T]:
        """Let ``act`` be called by the engine's thread between two batches."""
        future = self._orders.ask(act)
        self.marks.arrived.set()
        return future

    def pause(self, seconds: float) -> bool:
        """Push nothing for so long, but for flushes; 0 goes on. Engine's thread (``ask``).

        Returns whether it was paused before.
        """
        was_paused = self._pause_left() > 0
        self._paused_until = self._clock.boottime() + seconds if seconds else 0.0
        if seconds or was_paused:
            log.info("paused" if seconds else "goes on", extra={"seconds": seconds})
        return was_paused

    def extend(self, until: float | None, seconds: float) -> float:
        """Put the deployment's end off (``Expiry.extend``). Engine's thread (``ask``)."""
        return self._expiry.extend(until, seconds)

    def reconfigure(self, settings: Settings) -> None:
        """Follow what changed in the configuration. Engine's thread (``ask``)."""
        self._settings = settings
        self._deletions.bound = _bound(settings)
        self._expiry.reconfigure(settings.deployment)
        self.marks.reconfigure(settings.batch.settle_seconds, settings.batch.max_delay_seconds)
        if self._batches is not None:
            self._batches.round_seconds = settings.push.round_seconds

    def doubt(self, path: RelPath) -> None:
        """Let the next flush send ``path`` anew: OneData's copy was found damaged."""
        with self._orders.guard:
            self._orders.doubted.add(path)

    def accept_deletions(self, shown: str) -> int | None:
        """Let go what is held, if it is what a person was shown (``Held.fingerprint``).

        Returns how many files and directories that are; None where others are held by now.
        """
        held = self.held
        if held.fingerprint() != shown:
            return None
        with self._orders.guard:
            self._orders.accepted |= held.paths
        self.marks.arrived.set()
        return held.count

    @property
    def held(self) -> Held:
        """What is missing unexplained, and is kept in OneData until a person decides."""
        return self._deletions.held

    def problems(self) -> list[Problem]:
        """Return why nothing is pushed, if nothing is, and what is wrong, with one path or many."""
        merged = self._problems | self._scanner.problems
        trouble = [self._trouble] if self._trouble is not None else []
        found = sorted(merged.values(), key=lambda problem: problem.path)
        return trouble + self.held.problems() + found

    def is_ending(self) -> bool:
        """Return whether the deployment is on its way out; any thread."""
        return self._orders.stop.is_set()

    def is_at_rest(self) -> bool:
        """Return whether nothing happens before something is marked or asked for; any thread."""
        if self._orders.flushes:
            return False
        return self.phase == "paused" or (self.phase == "syncing" and not len(self.marks))

    def glance(self) -> None:
        """Notice that the mount is gone; asks the kernel's table, never the mount."""
        with suppress(OSError):  # no descriptor: the next look tells
            if self.mount.up and not self.mount.is_mounted():
                self.mount.up = False
                self.marks.arrived.set()

    def conditions(self) -> list[Problem]:
        """Return what is wrong with this node as a whole, while everything else goes on."""
        found = [self._deployment.absent, self._unwatched()]
        if not self.is_ending():
            found += [self._expiry.problem(), self._paused()]
        return [problem for problem in found if problem is not None]

    def polled(self) -> int:
        """Return how many directories are polled, for want of kernel watches."""
        return self._watcher.polled() if self._watcher is not None else 0

    def watches(self) -> int:
        """Return the number of kernel watches."""
        return self._watcher.watches() if self._watcher is not None else 0

    def expires_at(self) -> float | None:
        """Return when the deployment ends by itself, in seconds since 1970."""
        return self._expiry.at

    def paused_until(self) -> float | None:
        """Return until when nothing is pushed, in seconds since 1970; None where it is."""
        left = self._pause_left()
        return self._clock.wall_ns() / 1e9 + left if left and not self.is_ending() else None

    def _pause_left(self) -> float:
        return max(0.0, self._paused_until - self._clock.boottime())

    def _paused(self) -> Problem | None:
        left = self._pause_left()
        if not left:
            return None
        text = (
            f"Nothing is pushed for another {age_text(left)}, for somebody paused it: what changes"
            " is in the working directory only. 'onesync resume' goes on at once, 'onesync flush'"
            " pushes what there is, and a stop does."
        )
        return Problem(b"", "paused", text)

    def _unwatched(self) -> Problem | None:
        count = self.polled()
        if not count:
            return None
        text = (
            f"{count} directories cannot be watched and are looked at every few seconds instead;"
            " nothing is missed, but it costs. Raise the limit: sysctl"
            " fs.inotify.max_user_watches=1048576."
        )
        return Problem(b"", "unwatched", text)

    # -- told by the batches --------------------------------------------------------------------

    def pushed(self, files: int, size: int) -> None:
        """Pass it on (``batch.Events``)."""
        self._observer.pushed(files, size)

    def committed(self, name: str, wall_seconds: float) -> None:
        """Remember the newest checkpoint and pass it on."""
        self.last_checkpoint = name
        self._observer.committed(name, wall_seconds)

    def synced(self, seconds: float, waited: Sequence[float]) -> None:
        """Pass it on."""
        self._observer.synced(seconds, waited)

    def advanced(self, done: int, total: int) -> None:
        """Pass it on."""
        self._observer.advanced(done, total)
        self._observer.alive()

    def differed(self, files: int) -> None:
        """Pass it on."""
        self._observer.differed(files)

    def _beaten(self, error: Exception | None) -> None:
        if error is None:
            return
        self._orders.hurry.set()  # a pause may last for hours
        if judge(error).is_suspicious:
            self._orders.suspect.set()
            self.mount.up = False  # until the engine has looked itself
        self.marks.arrived.set()

    # -- the life -------------------------------------------------------------------------------

    def live(self) -> Exit:
        """Deploy, sync, undeploy; returns the exit code or raises an OnesyncError."""
        if self._index.get("cleaning") is not None:
            with working_copy.owned(self._root):
                return self._finish_cleaning()
        self._set_phase("starting")
        if self._index.get("staged") is not None:
            self._find_copy()
        with working_copy.owned(self._root):
            return self._live()

    def _live(self) -> Exit:
        self.mount.look()
        try:
            self._deployment.refuse_another_folder()
            if self._expiry.is_over() and not self._has_deployment():
                self._expiry.refuse_past()
            batches = self._deploy()
        except StopRequested:
            return self._stopped()
        except OSError as error:
            raise _mount_failed(error) from error
        try:
            self._sync(batches)
            return self._leave(batches)
        except WorkingCopyLost as lost:
            waiting = self.marks.pending(lost_copy.NAMED)
            unsynced = lost_copy.Unsynced.of(self.last_checkpoint, len(self.marks), waiting)
            raise lost_copy.refused(self._index, lost, unsynced) from lost
        finally:
            self._end_threads()
            self._deletions.remember()
            self._orders.end(OnesyncError("onesync is stopping"))

    def _stopped(self) -> Exit:
        """Tell what becomes of a deployment that was stopped before it was complete."""
        if self._index.get("claimed") is not None:
            raise FlushNotFinished(
                "Stopped before the folder was deployed again; the lock and all local data are"
                " kept, and the deployment goes on with the next start on this node."
            )
        log.info("stopped before the folder was deployed")
        return Exit.CLEAN

    def adopt(self) -> None:
        """Claim the folder whose index was made for it, commit its first checkpoint, and leave.

        The lock is kept: the next start goes on without stage-in. Raises an OnesyncError.
        """
        self._find_copy()
        with working_copy.owned(self._root):
            self._adopt()
        self.marks.tree_changed(b"")  # nobody looked yet what is newer here: the status says so

    def _adopt(self) -> None:
        self.mount.look()
        try:
            self._deployment.refuse_another_folder()
            self._deploy()
        except OSError as error:
            raise _mount_failed(error) from error
        finally:
            self._end_threads()

    def _has_deployment(self) -> bool:
        """Whether something of this node waits to be undeployed: a copy, or a claim at least."""
        return self._index.get("staged") is not None or isinstance(self.lock.holder(), Ours)

    def _find_copy(self) -> None:
        """Make sure of the working copy that was staged in, or give it up where that is wanted."""
        try:
            self._deployment.verify_root()
        except WorkingCopyLost as lost:
            unsynced = lost_copy.remembered(self._index, self._last_status)
            if self._settings.stagein.lost_copy == "refuse":
                raise lost_copy.refused(self._index, lost, unsynced) from lost
            lost_copy.give_up(self._index, self._root, self._settings.state_dir, unsynced)
        else:
            if self._index.get("lost") is not None:
                self._index.set(lost=None)

    def _end_threads(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.stop()
        self._stop_watching()

    def _stop_watching(self) -> None:
        if self._watcher is not None and self._is_watching:
            self._watcher.stop()
        self._is_watching = False

    def _set_phase(self, phase: str) -> None:
        if phase != self.phase:
            log.info("phase", extra={"phase": phase})
        self.phase = phase
        self._observer.phase_changed(phase)

    def _pause(self, seconds: float) -> None:
        """Wait; raises StopRequested when a stop is asked for and nothing waits to be flushed."""
        self._observer.alive()
        if self._index.get("staged") is not None:
            self._clock.sleep(seconds)
        elif self._clock.wait(self._orders.stop, seconds):
            raise StopRequested

    def _gives_up(self, seconds: float) -> bool:
        """Wait while somebody else holds the folder; returns whether a stop is asked for.

        Raises StopRequested then, where nothing here waits to be flushed.
        """
        self._observer.alive()
        is_stopped = self._clock.wait(self._orders.stop, seconds)
        if is_stopped and not self._deployment.may_wait():
            raise StopRequested
        return is_stopped

    # -- deploying ------------------------------------------------------------------------------

    def _deploy(self) -> Batches:
        self._deployment.refuse_foreign()
        self._empty_spool()
        self._set_phase("locking")
        if (adopting := self._index.get("adopting")) is not None:
            self.lock.adopt(json.loads(adopting))
        epoch = self.lock.acquire(self._settings.lock.wait_seconds, self._pause, self._gives_up)
        self._index.set(claimed="yes")
        self._heartbeat = Heartbeat(
            self.lock,
            self._clock,
            lambda: self.last_checkpoint,
            self._beaten,
            self._lane_mount().check,
        )
        self._heartbeat.start()
        try:
            self._set_phase("staging_in")
            self._batches = self._deployment.take_over(epoch)
        except BaseException as error:
            self._end_threads()
            if isinstance(error, StopRequested | Halted | ConfigurationError):
                self._withdraw()
            raise
        self._expiry.begin(self.lock.state().deployment_id)
        return self._batches

    def _empty_spool(self) -> None:
        try:
            self._spool.mkdir(exist_ok=True)
            for left in self._spool.iterdir():
                left.unlink()
        except OSError as error:
            raise self._state_dir_failed(error) from error

    def _lane_mount(self) -> Mount:
        """Return the mount as the lock's own lane knows it."""
        return Mount(
            self.lock.replica,
            self._settings.onedata_dir,
            self._settings.mount.require_fuse,
            self._clock.boottime,
            lambda: self.mount.folder_id,
        )

    def _withdraw(self) -> None:
        """Leave the folder as it was found, unless something of ours here waits for OneData."""
        if self._deployment.is_held_copy():
            return
        try:
            self.lock.release(None, "withdrawn")
            self._index.set(claimed=None)
        except (OSError, OnesyncError) as error:
            log.warning("the lock could not be released", extra={"reason": str(error)})

    def _make_batches(self, folder_id: str, head: Head | None, epoch: int) -> Batches:
        self.last_checkpoint = head.name if head is not None else None
        writer = f"onesync {__version__} on {platform.node()}"
        manifest = Manifest(
            self._replica,
            self._clock,
            folder_id,
            head,
            epoch,
            writer,
            self._working_dirs(),
            self._may_write,
            self._spool,
        )
        cuts = Cuts(
            root=self._root,
            spool=self._spool,
            index=self._index,
            scanner=self._scanner,
            marks=self.marks,
            order=self._order,
            drain=self._drain,
            boottime=self._clock.boottime,
            problems=self._problems,
        )
        return Batches(
            replica=self._replica,
            root=self._root,
            index=self._index,
            marks=self.marks,
            cuts=cuts,
            deletions=self._deletions,
            manifest=manifest,
            order=self._order,
            pool=self._pool,
            events=self,
            may_write=self._may_write,
            check_mount=self.mount.check,
            problems=self._problems,
            unverified=Unverified(self._replica, self._index, self._pool, self._clock.boottime),
            is_read=self._is_read,
            travels=Travels(self._replica),
            only_copies=OnlyCopies(self._index, self._scanner, self._problems),
            round_seconds=self._settings.push.round_seconds,
            lanes=max(1, min(4, self._settings.push.workers // 4)),
            pause=self._pause,
        )

    def _is_read(self, is_database: bool) -> bool:
        wanted = self._settings.verify.content
        return wanted == "all" or (wanted == "databases" and is_database)

    def _state_dir_failed(self, error: OSError) -> StateDirFailed:
        return StateDirFailed(
            f"state_dir {self._settings.state_dir} cannot be written ({error.strerror}); nothing is"
            " lost. Make room there or mend its disk, then start again."
        )

    def _working_dirs(self) -> tuple[bytes, ...]:
        return (os.fsencode(self._settings.working_dir), self._root)

    def _may_write(self) -> None:
        if self._heartbeat is not None and self._heartbeat.lost is not None:
            raise self._heartbeat.lost
        if not self.lock.may_write():
            raise Suspended(
                "The lock's heartbeat could not be confirmed for too long, so nothing is written;"
                f" local data are safe, {self._until_when()}"
            )

    def _until_when(self) -> str:
        """Say until when nothing is written: with the remedy where only a person can help."""
        failed = self._heartbeat.failed if self._heartbeat is not None else None
        trouble = judge(failed) if failed is not None else None
        if trouble is None or trouble.reaction is not Reaction.PERSON:
            return "writing goes on when the mount answers again."
        return f"writing goes on when a beat is confirmed again. {trouble.text}"

    def _on_staged(self, done: int, total: int) -> None:
        self._observer.advanced(done, total)
        self._observer.alive()
        if self._orders.stop.is_set():
            raise StopRequested
        self._may_write()

    # -- syncing --------------------------------------------------------------------------------

    def _sync(self, batches: Batches) -> None:
        self._watcher = choose_watcher(
            self._root, os.fsencode(self._settings.state_dir / "cookie"), self.marks
        )
        self._is_watching = True
        try:
            self._watcher.start()
        except OSError as error:
            raise self._state_dir_failed(error) from error
        # Watch before scan: what changed before the watches stood is found by this one.
        self._rescan("start")
        self._set_phase("syncing")
        failures = 0
        self._ended = -self._settings.batch.min_interval_seconds
        rescanned = self._clock.boottime()
        while not self._orders.stop.is_set():
            self._wait(batches, failures)
            self._orders.carry_out()
            if self._is_over():
                return
            if self._clock.boottime() >= rescanned + self._settings.batch.rescan_seconds:
                rescanned = self._clock.boottime()
                self._rescan("interval")
            failures = self._step(batches, failures)
            self._ended = self._clock.boottime()

    def _is_over(self) -> bool:
        """Whether the deployment's time is over; tells ahead of it."""
        self._expiry.warn()
        if not self._expiry.is_over():
            return False
        log.warning("the deployment's time is over, it is undeployed")
        self.stop()
        self._ends_by_itself = True
        return True

    def _wait(self, batches: Batches, failures: int) -> None:
        """Wait for work, for the next try, or for a tick."""
        self._observer.alive()
        if failures:
            self._clock.wait(self._orders.stop, pause_seconds(self._reaction, failures))
            return
        if self._orders.flushes:
            return
        if (left := self._pause_left()) > 0:
            self._orders.hurry.clear()
            if not self._orders.are_there():
                due = self._expiry.next_due()
                ticks = [left, _TICK_SECONDS, *([due] if due is not None else [])]
                self._clock.wait(self._orders.hurry, min(ticks))
            return
        if batches.is_behind():
            return
        pause = self._settings.batch.min_interval_seconds
        if batches.awaits():
            pause *= _SECOND_HALF
        rest = max(0.0, self._ended + pause - self._clock.boottime())
        due = rest if batches.awaits() else self.marks.next_due()
        tick = self._tick(batches)
        patience = tick if due is None else min(tick, max(due, rest))
        self._clock.wait(self.marks.arrived, patience)
        self.marks.arrived.clear()
        self._observer.alive()
        due = self.marks.next_due()
        if due is not None and not self._orders.flushes:
            rest = max(0.0, self._ended + pause - self._clock.boottime())
            self._clock.wait(self._orders.hurry, max(rest, min(pause, due), 0.05))

    def _tick(self, batches: Batches) -> float:
        """Return after how many seconds there is something to do though nothing changed."""
        due = (batches.unverified.next_due(), self._expiry.next_due())
        regular = min(_TICK_SECONDS, self._settings.batch.rescan_seconds)
        return min([regular, *(seconds for seconds in due if seconds is not None)])

    def _step(self, batches: Batches, failures: int) -> int:
        """Do one batch or the flushes asked for; returns the failures in a row."""
        try:
            self._look_again(batches)
            self._take_accepted()
            is_resting = self._pause_left() > 0 and not self._orders.flushes
            self._may_write()
            if self._orders.flushes:
                self._flush(batches)
            elif not is_resting:
                batches.batch()
            if not is_resting and batches.manifest.compaction_due():
                batches.base()
        except LockLost:
            raise
        except (Halted, ConfigurationError, IndexDamaged) as error:
            self._orders.refuse(error)
            raise
        except (OSError, OnesyncError) as error:
            return self._failed(batches, error, failures)
        if failures:
            log.info("recovered", extra={"failures": failures})
        self._trouble = None
        if not is_resting:
            self._observer.succeeded()
        self._set_phase("paused" if self._pause_left() else "syncing")
        return 0

    def _look_again(self, batches: Batches) -> None:
        """Look whether the mount is there, where somebody met it in trouble meanwhile."""
        if self._orders.suspect.is_set():
            self._orders.suspect.clear()
            batches.suspect()
        if not self.mount.up:
            self._may_write()
            if self.mount.check():
                batches.suspect()

    def _failed(self, batches: Batches, error: Exception, failures: int) -> int:
        self._meet(batches, error)
        self._set_phase("suspended" if isinstance(error, Suspended) else "backing_off")
        if failures == 0 or failures % 10 == 0:
            reason = judge(error).text
            log.warning("not pushed, tried again", extra={"reason": reason, "tries": failures})
        self._orders.refuse(error)
        return failures + 1

    def _meet(self, batches: Batches, error: Exception) -> None:
        """Do what the table says of an error, but for the pause."""
        self._deletions.remember()
        trouble = judge(error)
        self._observer.failed(trouble.kind)
        self._reaction = trouble.reaction
        self._trouble = Problem(b"", trouble.kind, trouble.text)
        if trouble.is_suspicious:
            self.mount.up = False
            batches.suspect()

    def _flush(self, batches: Batches) -> None:
        asked = self._orders.take_flushes()
        with self._orders.guard:
            doubted, self._orders.doubted = self._orders.doubted, set()
        try:
            for path in doubted:
                self._index.doubt(path)
            self._rescan("flush")
            batches.clean()
        except BaseException:
            with self._orders.guard:
                self._orders.flushes += asked
            raise
        left = [f"{show(path)} changes all the time." for path in sorted(batches.left)]
        answer = Flushed([problem.text for problem in self.problems()] + left)
        for future in asked:
            future.set_result(answer)

    def _take_accepted(self) -> None:
        with self._orders.guard:
            accepted, self._orders.accepted = self._orders.accepted, set()
        if accepted:
            log.warning("held deletions were accepted", extra={"tops": len(accepted)})
            self._deletions.accept(accepted)

    def _rescan(self, reason: str) -> None:
        # Before the marks of single paths go: they name what a lost copy had not sent yet.
        self._scanner.verify_root()
        self.marks.tree_changed(b"")
        self._observer.rescanned(reason)

    def _drain(self) -> None:
        if self._watcher is not None and not self._watcher.drain(_DRAIN_SECONDS):
            log.warning("the kernel's events did not drain, everything is scanned")
            self._rescan("drain")

    # -- leaving --------------------------------------------------------------------------------

    def _leave(self, batches: Batches) -> Exit:
        """Flush, then keep or release the deployment."""
        handed_over = self._orders.handover.is_set()
        keep = handed_over or self._keeps_at_shutdown()
        self._set_phase("flushing")
        try:
            flush = partial(self._final_flush, batches, verified=not keep)
            self._retry(batches, flush, _HANDOVER_SECONDS if keep else None)
        except FlushNotFinished as error:
            if not keep:
                raise
            log.warning(str(error))
        if keep:
            log.info("left with the lock kept", extra={"handover": handed_over})
            return Exit.CLEAN
        cleans = self._settings.undeploy.clean_working_dir
        if cleans:
            self._retry(batches, lambda: self._bring_lost(batches), None)
        self._retry(batches, lambda: self._last_checkpoint(batches), None)
        left = {"staged": None, "undeployed": self.last_checkpoint}
        self._retry(batches, lambda: self._index.set(**left), None)
        if cleans:
            self._clean()
        self._retry(batches, lambda: self.lock.release(self.last_checkpoint), None)
        self._index.set(claimed=None, folder_id=None)
        log.info("undeployed", extra={"checkpoint": self.last_checkpoint})
        return self._cleaned()

    def _final_flush(self, batches: Batches, *, verified: bool) -> None:
        self._look_again(batches)
        self._take_accepted()
        self._rescan("final")
        for _ in range(_FINAL_ROUNDS):
            batches.clean()
            if batches.left:
                break
            if not verified:
                return
            cleans = self._settings.undeploy.clean_working_dir
            batches.finish(is_only_copy=cleans)  # which takes a while, in which others may write
            if not self._brings_more(batches):
                return
        restless = show(min(batches.left)) if batches.left else "The working directory"
        raise OnesyncError(f"{restless} changes all the time: end the program that writes there")

    def _bring_lost(self, batches: Batches) -> None:
        """Send anew what OneData lost since it was verified: what is cleaned here is nowhere else.

        Somebody may have removed it there days ago. What cannot be sent is not cleaned.
        """
        for _ in range(_FINAL_ROUNDS):
            if not batches.find_lost():
                return
            self._final_flush(batches, verified=True)
        raise OnesyncError(
            "What is sent to OneData goes from there all the time: end the program that removes it"
        )

    def _last_checkpoint(self, batches: Batches) -> None:
        """Write the final checkpoint, and another one where somebody still wrote meanwhile."""
        while True:
            problems = [Noted(problem) for problem in self.problems()]
            batches.commit(problems, {}, "final")
            if not self._brings_more(batches):
                return
            self._final_flush(batches, verified=True)

    def _brings_more(self, batches: Batches) -> bool:
        """Push what was written since the last batch; returns whether there was anything."""
        self._drain()
        brought = batches.batch(everything=True)
        return brought or bool(batches.left) or batches.awaits() or bool(self.marks)

    def _retry(
        self, batches: Batches | None, act: Callable[[], object], patience: float | None
    ) -> None:
        patience = patience or self._settings.undeploy.flush_retry_seconds
        deadline = self._clock.boottime() + patience
        failures = 0
        while True:
            self._observer.alive()
            try:
                act()
            except (LockLost, Halted, IndexDamaged):
                raise
            except (OSError, OnesyncError) as error:
                if batches is not None:
                    self._meet(batches, error)
                failures += 1
                pause = pause_seconds(judge(error).reaction, failures)
                # Nobody is there who would start it again where it ends by itself.
                if self._clock.boottime() + pause > deadline and not self._ends_by_itself:
                    raise FlushNotFinished(
                        f"The final flush could not finish ({error}); the lock and all local data"
                        " are kept. Mend the cause and start the service again on this node."
                    ) from error
                self._clock.sleep(pause)
            else:
                self._trouble = None
                self._observer.succeeded()
                return

    def _clean(self) -> None:
        """Clean the working directory; durable before the first file goes."""
        self._stop_watching()  # what cleaning removes is nothing that waits for OneData
        self._index.set(cleaning="yes", kept=None)
        self._set_phase("cleaning")
        cleaned = working_copy.clean(
            self._root,
            self._index,
            self._spool,
            lambda done: self._observer.advanced(done, done),
        )
        log.info("working directory cleaned", extra={"removed": cleaned.removed})
        kept = ", ".join(show(path) for path in cleaned.kept[:5])
        self._index.set(kept=kept or None)

    def _cleaned(self) -> Exit:
        """Forget the copy that was cleaned; what it kept is for a person."""
        if self._index.get("cleaning") is None:
            return Exit.CLEAN
        kept = self._index.get("kept")
        if kept is None:
            self._index.replace(())
            self._index.set(cleaning=None, undeployed=None, root_inode=None, root_birth=None)
            return Exit.CLEAN
        self._index.set(cleaning=None)
        raise Halted(
            f"Everything is in OneData and the lock is released, but these are not what OneData"
            f" holds, or may not be removed, and were kept in the working directory: {kept}. Look"
            " at them and move them away before the next deployment."
        )

    def _finish_cleaning(self) -> Exit:
        """A start in CLEANING only finishes it: everything was verified before it began."""
        self._clean()
        self.mount.look()
        self._retry(None, self._release_old, None)
        self._index.set(claimed=None, folder_id=None)
        return self._cleaned()

    def _release_old(self) -> None:
        self._deployment.refuse_another_folder()
        self.lock.release_earlier(self._index.get("undeployed"))


def _bound(settings: Settings) -> Bound:
    return Bound(settings.guards.unexplained_deletions, settings.guards.unexplained_percent)


def _mount_failed(error: OSError) -> OnesyncError:
    """Return how a deployment ends that could not be made complete."""
    trouble = judge(error)
    if isinstance(error, LocalError) and trouble.remedy:
        return Halted(trouble.text_with("then start again: it goes on where it was"))
    if isinstance(error, LocalError):
        return Halted(
            f"The working directory cannot be made complete ({trouble.reason}); what is in OneData"
            " stays as it is. Look at its files; then start again: it goes on where it was."
        )
    text = trouble.text_with("the next start goes on where it was")
    return MountNotThere(f"The folder could not be deployed, OneData is as it was. {text}")
