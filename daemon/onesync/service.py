"""Puts the parts together: start, the life of a deployment, ordered stop.

Threads: *main* waits for signals and pings systemd; *life* (the engine's) deploys, syncs and
undeploys; *beat* keeps the lock's heartbeat; the watcher's, the control socket's and the metrics
server's are their modules' own. Only *life* plans, commits and writes the index.
"""

from __future__ import annotations

import fcntl
import getpass
import json
import logging
import os
import platform
import signal
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pathspec

from onesync import __version__, recovery
from onesync.clock import SystemClock
from onesync.control import ControlServer, StatusFile
from onesync.core.chain import Change, Gone, Head, Position, Set
from onesync.core.claims import LockTimes, Remembered
from onesync.core.dirty import DirtySet
from onesync.core.model import STATUS_FOLDER, Entry, Kind, Problem, RelPath, join, show
from onesync.engine import MANIFEST, Chain, Engine, Marks, read_head
from onesync.errors import (
    ConfigurationError,
    DeployedElsewhere,
    Exit,
    FlushNotFinished,
    Halted,
    LockLost,
    MountNotThere,
    OnesyncError,
)
from onesync.index import Index
from onesync.lock import Claimant, Lock
from onesync.metrics import Metrics
from onesync.push import INTENTS
from onesync.replica.children import ChildrenReplica
from onesync.scanner import Scanner
from onesync.settings import Settings
from onesync.stagein import Staged, StageIn
from onesync.systemd import Notifier, shutdown_job
from onesync.watcher import choose_watcher

log = logging.getLogger(__name__)

FOLDER = STATUS_FOLDER + b"/folder.json"
_BACKOFF_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
_FLUSH_SECONDS = 480.0
_DRAIN_SECONDS = 30.0
"""How long the final flush retries on a mount that fails before it leaves with the lock kept."""


class Service:
    """One deployment's daemon."""

    def __init__(self, settings: Settings) -> None:
        """Build the parts that need no mount. Raises ConfigurationError or Halted."""
        self.settings = settings
        self.clock = SystemClock()
        self.root = os.fsencode(settings.working_dir.resolve())
        self.state_dir = settings.state_dir
        self._flock = _claim_state_dir(self.state_dir)
        self.index = Index(self.state_dir / "index.sqlite")
        patience = settings.mount.io_timeout_seconds
        target = os.fsencode(settings.onedata_dir)
        self.replica = ChildrenReplica(target, 2, max(1, settings.push.workers // 2), patience)
        self._lock_lane = ChildrenReplica(target, 1, 2, patience)
        self.pool = ThreadPoolExecutor(settings.push.workers, thread_name_prefix="push")
        self.metrics = Metrics()
        self.notifier = Notifier()
        self.status_file = StatusFile(self.state_dir)
        self.marks = Marks(
            DirtySet(settings.batch.settle_seconds, settings.batch.max_delay_seconds), self.clock
        )
        self.phase = "starting"
        self.problems: dict[RelPath, Problem] = {}
        self.engine: Engine | None = None
        self.lock: Lock | None = None
        self._device: int | None = None
        self._last_checkpoint: dict[str, Any] | None = None
        self._mount_up = False
        self._lost: LockLost | None = None
        self._stop = threading.Event()
        self._handover = threading.Event()
        self._asked: list[Future[dict[str, Any]]] = []
        self._guard = threading.Lock()

    # -- events of the engine -------------------------------------------------------------------

    def pushed(self, files: int, size: int) -> None:
        """Count a batch."""
        self.metrics.pushed_files.inc(files)
        self.metrics.pushed_bytes.inc(size)

    def committed(self, name: str, wall_seconds: float) -> None:
        """Remember the newest checkpoint."""
        self._last_checkpoint = {"name": name, "at": wall_seconds}
        self.metrics.last_checkpoint_timestamp.set(wall_seconds)

    def failed(self, kind: str) -> None:
        """Count a failed batch."""
        self.metrics.push_errors.labels(kind).inc()

    # -- main thread ----------------------------------------------------------------------------

    def run(self) -> Exit:
        """Deploy, sync, undeploy; returns the exit code. Main thread."""
        signals = {signal.SIGTERM, signal.SIGINT}
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        self.metrics.serve(self.settings.metrics.listen)
        control = ControlServer(
            self.settings.runtime_dir / "control.sock",
            {"status": self._on_status, "flush": self._on_flush, "handover": self._on_handover},
        )
        control.start()
        outcome: Future[Exit] = Future()
        life = threading.Thread(target=self._guarded_life, args=(outcome,), name="life")
        life.daemon = True
        life.start()
        while life.is_alive():
            if signal.sigtimedwait(signals, 0.5) is not None:
                if self._stop.is_set():
                    log.error("second signal: left at once, lock and local data kept")
                    outcome.set_result(Exit.FLUSH_NOT_FINISHED)
                    break
                self._stop.set()
                self.marks.arrived.set()
                self.notifier.stopping()
            self.notifier.watchdog()
            self._publish_status()
        code = outcome.result()
        self._set_phase({Exit.CLEAN: "stopped", Exit.LOCK_LOST: "fenced"}.get(code, "halted"))
        self._publish_status()
        control.stop()
        self.metrics.stop()
        self.replica.close()
        self._lock_lane.close()
        return code

    def _guarded_life(self, outcome: Future[Exit]) -> None:
        try:
            code = self._life()
        except OnesyncError as error:
            log.error(str(error))  # noqa: TRY400 - a sentence for a person, not a trace
            self.problems[b""] = Problem(b"", type(error).__name__, str(error))
            code = error.code
        except BaseException as error:
            log.exception("unexpected")
            self.problems[b""] = Problem(b"", "unexpected", repr(error))
            code = Exit.UNEXPECTED
        if not outcome.done():
            outcome.set_result(code)

    # -- life thread ----------------------------------------------------------------------------

    def _life(self) -> Exit:
        self._look_at_mount()
        self._set_phase("locking")
        lock = self.lock = self._make_lock()
        resumed = self.index.get("deployment_id") if self.index.get("staged") else None
        self._refuse_foreign_working_copy()
        epoch = lock.acquire(self.settings.lock.wait_seconds)
        self._remember(staged=self.index.get("staged"))
        beating = threading.Event()
        threading.Thread(target=self._beat, args=(beating,), name="beat", daemon=True).start()
        try:
            self._set_phase("staging_in")
            folder_id = self._open_folder()
            head = read_head(self.replica)
            settled = recovery.settle(self.replica, head.position if head else None)
            same = resumed is not None and resumed == lock.state().deployment_id
            self.engine = engine = self._make_engine(folder_id, head, epoch)
            if same and head is not None:
                engine.take_settled(settled)
                self._catch_up(head)
            else:
                self._stage_in(head)
            return self._sync(engine)
        finally:
            beating.set()

    def _sync(self, engine: Engine) -> Exit:
        watcher = choose_watcher(self.root, os.fsencode(self.state_dir / "cookie"), self.marks)
        watcher.start()
        try:
            # Watch before scan: what changed before the watches stood is found by this one.
            self.marks.tree_changed(b"")
            self._count_rescan("start")
            self._set_phase("syncing")
            self.notifier.ready()
            self._loop(engine)
            watcher.drain(_DRAIN_SECONDS)
            return self._leave(engine)
        finally:
            watcher.stop()

    def _loop(self, engine: Engine) -> None:
        failures = 0
        rescan = self.clock.boottime() + self.settings.batch.rescan_seconds
        while not self._stop.is_set():
            self._wait(engine, failures)
            if self._lost is not None:
                raise self._lost
            if self.clock.boottime() >= rescan:
                rescan = self.clock.boottime() + self.settings.batch.rescan_seconds
                self._count_rescan("interval")
                self.marks.tree_changed(b"")
            failures = self._try_batch(engine, failures)
            self._answer_flushes(engine, failures)

    def _try_batch(self, engine: Engine, failures: int) -> int:
        try:
            engine.batch(everything=bool(self._asked))
            if engine.compaction_due():
                engine.base()
        except (OSError, MountNotThere) as error:
            self._mount_up = not isinstance(error, MountNotThere)
            self._set_phase("backing_off")
            if failures == 0:
                log.warning("batch failed, tried again", extra={"reason": str(error)})
            return failures + 1
        if failures:
            log.info("recovered", extra={"failures": failures})
        self._mount_up = True
        self._set_phase("syncing")
        return 0

    def _wait(self, engine: Engine, failures: int) -> None:
        if failures:
            self._stop.wait(_BACKOFF_SECONDS[min(failures, len(_BACKOFF_SECONDS)) - 1])
            return
        if self._asked:
            return
        due = self.marks.next_due()
        if engine.awaits():
            due = self.settings.batch.min_interval_seconds
        pause = self.settings.batch.min_interval_seconds if due is not None else None
        patience = min(self.settings.batch.rescan_seconds, 60.0 if due is None else max(due, 0.0))
        self.marks.arrived.wait(patience)
        self.marks.arrived.clear()
        if pause is not None and not self._asked:
            self._stop.wait(min(pause, self.marks.next_due() or 0.0))

    def _leave(self, engine: Engine) -> Exit:
        """Flush, then keep or release the deployment."""
        keep = self._handover.is_set() or self._keeps_at_shutdown()
        self._set_phase("flushing")
        self._flush_until_done(engine)
        lock = self.lock
        assert lock is not None
        if keep:
            self._remember(staged="yes")
            return Exit.CLEAN
        self._retry(engine.final)
        name = engine.chain.head[0] if engine.chain.head else None
        self.index.set(staged=None, undeployed=name)
        self._set_phase("cleaning")
        self._retry(lambda: lock.release(name))
        return Exit.CLEAN

    def _flush_until_done(self, engine: Engine) -> None:
        self.marks.tree_changed(b"")
        self._count_rescan("final")
        self._retry(engine.clean_to)

    def _retry(self, act: Callable[[], object]) -> None:
        deadline = self.clock.boottime() + _FLUSH_SECONDS
        failures = 0
        while True:
            self.notifier.extend(120)
            try:
                act()
            except (OSError, MountNotThere) as error:
                pause = _BACKOFF_SECONDS[min(failures, len(_BACKOFF_SECONDS) - 1)]
                if self.clock.boottime() + pause > deadline:
                    raise FlushNotFinished(
                        f"The final flush could not finish ({error}); the lock and all local data"
                        " are kept. Mend the mount and start the service again on this node."
                    ) from error
                failures += 1
                time.sleep(pause)
            else:
                return

    def _keeps_at_shutdown(self) -> bool:
        job = shutdown_job()
        if job == "reboot":
            return self.settings.undeploy.on_reboot == "keep"
        return job == "poweroff" and self.settings.undeploy.on_poweroff == "keep"

    # -- deploying ------------------------------------------------------------------------------

    def _look_at_mount(self) -> None:
        """Check what stands at the replica's path; raises MountNotThere. One call on the mount."""
        try:
            identity = self.replica.identify()
        except OSError as error:
            raise MountNotThere(
                f"The OneData folder {self.settings.onedata_dir} cannot be reached"
                f" ({error.strerror}); nothing was changed. Mount it, then start again."
            ) from error
        if self.settings.mount.require_fuse and not identity.is_fuse:
            raise MountNotThere(
                f"{self.settings.onedata_dir} is not on a FUSE mount, so OneData is not mounted"
                " there; nothing was changed. Mount it, or set mount.require_fuse = false."
            )
        if self.settings.mount.require_fuse and identity.is_mount_root:
            raise ConfigurationError(
                f"{self.settings.onedata_dir} is the top of its mount, where OneData lists spaces;"
                " nothing was changed. Name a folder inside a space."
            )
        if self._device is not None and identity.device != self._device:
            log.warning("the mount was mounted anew")
        self._device = identity.device
        self._mount_up = True

    def _check_mount(self) -> None:
        self._look_at_mount()
        expected = self.index.get("folder_id")
        try:
            found = json.loads(self.replica.read(FOLDER)).get("folder_id")
        except FileNotFoundError:
            found = None
        if found != expected:
            raise MountNotThere(
                f"{self.settings.onedata_dir} is not the folder that was deployed; nothing is"
                " written. Mount the right one."
            )

    def _open_folder(self) -> str:
        """Make the status folder's parts; returns the folder's id."""
        for path in (MANIFEST, INTENTS):
            with suppress(FileExistsError):
                self.replica.make_directory(path)
        try:
            found = json.loads(self.replica.read(FOLDER))
        except FileNotFoundError:
            found = {"onesync": "folder", "format": 1, "folder_id": uuid.uuid4().hex}
            self.replica.write_new(FOLDER, json.dumps(found).encode())
        if found.get("format") != 1:
            raise Halted(
                f"The status folder has format {found.get('format')}, which this onesync does not"
                " know; nothing was changed. Install a newer onesync."
            )
        self.index.set(folder_id=found["folder_id"])
        return str(found["folder_id"])

    def _make_lock(self) -> Lock:
        remembered = None
        if (deployment := self.index.get("deployment_id")) is not None:
            epoch, beat = self.index.get("lock_epoch"), self.index.get("lock_beat")
            remembered = Remembered(deployment, int(epoch or 0), int(beat or 0))
        return _lock(self.settings, self._lock_lane, self.clock, remembered)

    def _remember(self, **more: str | None) -> None:
        assert self.lock is not None
        state = self.lock.state()
        self.index.set(
            deployment_id=state.deployment_id,
            lock_epoch=str(state.epoch),
            lock_beat=str(state.beat),
            **more,
        )

    def _refuse_foreign_working_copy(self) -> None:
        known = self.index.get("deployment_id") is not None
        if not known and os.listdir(self.root):
            raise Halted(
                f"The working directory {show(self.root)} is not empty and not onesync's; nothing"
                " was changed. Empty it or name another one."
            )

    def _make_engine(self, folder_id: str, head: Head | None, epoch: int) -> Engine:
        spool = self.state_dir / "spool"
        spool.mkdir(exist_ok=True)
        spec = pathspec.PathSpec.from_lines("gitignore", self.settings.push.exclude)
        scanner = Scanner(self.root, self.index, lambda path: spec.match_file(os.fsdecode(path)))
        assert self.lock is not None
        return Engine(
            replica=self.replica,
            root=self.root,
            spool=spool,
            index=self.index,
            scanner=scanner,
            marks=self.marks,
            lock=self.lock,
            clock=self.clock,
            pool=self.pool,
            chain=Chain(folder_id, (head.name, head.digest) if head else None, Position(epoch, 1)),
            writer=f"onesync {__version__} on {platform.node()}",
            events=self,
            check_mount=self._check_mount,
            problems=self.problems,
        )

    def _catch_up(self, head: Head) -> None:
        """Resume on this node: what the chain has and the index lacks is taken over as dirty."""
        known = {path: row.entry for path, row in self.index.beneath(b"") if path}
        changes: list[Change] = [Gone(p) for p in sorted(known) if p not in head.tree]
        changes += [Set(p, e) for p, e in head.tree.items() if known.get(p) != e]
        if changes:
            log.info("resumed behind the manifest", extra={"paths": len(changes)})
            self.index.commit(changes, {})

    def _stage_in(self, head: Head | None) -> None:
        self._retire_old_copy()
        manifest = head.tree if head else {}
        staged = StageIn(self.replica, self.root, self.pool, self._on_staged).run(manifest)
        for problem in staged.problems:
            self.problems[problem.path] = problem
            log.warning(problem.text)
        self.index.replace((p, e, s) for p, (e, s) in staged.tree.items())
        self._first_checkpoint(head, manifest, staged)
        self._remember(staged="yes", undeployed=None)

    def _first_checkpoint(
        self, head: Head | None, manifest: dict[RelPath, Entry], staged: Staged
    ) -> None:
        engine = self.engine
        assert engine is not None
        if head is None or any(manifest.get(p) != e for p, (e, _) in staged.tree.items()):
            engine.base()

    def _retire_old_copy(self) -> None:
        """Make way for stage-in: a half-staged copy stays, a cleanly undeployed one too."""
        engine = self.engine
        assert engine is not None
        if self.index.get("undeployed") is None:
            return
        edited = [
            path
            for path, difference in engine.scanner.scan((), [b""]).items()
            if path and difference.seen is not None and difference.seen.kind is not Kind.DIRECTORY
        ]
        if edited:
            raise Halted(
                f"{len(edited)} files in the working directory changed after the last undeploy"
                f" (first: {show(min(edited))}); nothing was overwritten. Move them away, then"
                " start again."
            )
        for path, known in list(self.index.beneath(b"")):
            if known.entry.kind is not Kind.DIRECTORY:
                self._forget_old(path, known.entry)

    def _forget_old(self, path: RelPath, entry: Entry) -> None:
        """Remove a file of an earlier deployment that the manifest may hold differently now."""
        local = join(self.root, path)
        with suppress(FileNotFoundError):
            status = os.lstat(local)
            if (status.st_size, status.st_mtime_ns) != (entry.size, entry.mtime_ns):
                os.unlink(local)

    def _on_staged(self, done: int, total: int, size: int) -> None:
        self.notifier.status(f"staging in: {done} of {total} files")
        self.notifier.extend(120)

    # -- beat thread ----------------------------------------------------------------------------

    def _beat(self, ended: threading.Event) -> None:
        lock = self.lock
        assert lock is not None
        while not ended.wait(lock.times.beat):
            try:
                lock.check()
                lock.beat(self._last_checkpoint["name"] if self._last_checkpoint else None)
                self.metrics.lock_beat_timestamp.set(time.time())
            except LockLost as error:
                self._lost = error
                self.marks.arrived.set()
                return
            except (OSError, MountNotThere) as error:
                log.warning("heartbeat not confirmed", extra={"reason": str(error)})

    # -- control --------------------------------------------------------------------------------

    def _on_status(self, _: dict[str, Any]) -> dict[str, Any]:
        return self.status()

    def _on_flush(self, _: dict[str, Any]) -> dict[str, Any]:
        future: Future[dict[str, Any]] = Future()
        with self._guard:
            self._asked.append(future)
        self.marks.arrived.set()
        return future.result()

    def _on_handover(self, _: dict[str, Any]) -> dict[str, Any]:
        self._handover.set()
        os.kill(os.getpid(), signal.SIGTERM)
        return {"ok": True}

    def _answer_flushes(self, engine: Engine, failures: int) -> None:
        with self._guard:
            asked, self._asked = self._asked, []
        if not asked:
            return
        try:
            if failures:
                raise MountNotThere("the mount does not answer; the changes are kept locally")
            engine.clean_to()
            reply: dict[str, Any] = {
                "ok": True,
                "problems": [p.text for p in self.problems.values()],
            }
        except (OSError, OnesyncError) as error:
            reply = {"ok": False, "reason": str(error)}
        for future in asked:
            future.set_result(reply)

    # -- status ---------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Return the status document; never touches the mount. Any thread."""
        oldest = self.marks.oldest()
        lock = self.lock
        state = lock.state() if lock is not None and lock.is_held() else None
        return {
            "phase": self.phase,
            "epoch": state.epoch if state else None,
            "deployment_id": state.deployment_id if state else None,
            "pending_paths": len(self.marks),
            "pending_bytes": 0,
            "oldest_unsynced_at": None
            if oldest is None
            else time.time() - (self.clock.boottime() - oldest),
            "last_checkpoint": self._last_checkpoint,
            "lock": {"beat": state.beat} if state else None,
            "mount": {"path": str(self.settings.onedata_dir), "up": self._mount_up},
            "problems": [
                {"path": show(p.path), "kind": p.kind, "text": p.text}
                for p in list(self.problems.values())
            ],
        }

    def _publish_status(self) -> None:
        status = self.status()
        self.metrics.update(status)
        self.status_file.write(status)

    def _set_phase(self, phase: str) -> None:
        if phase != self.phase:
            log.info("phase", extra={"phase": phase})
            self.notifier.status(phase)
        self.phase = phase

    def _count_rescan(self, reason: str) -> None:
        self.metrics.rescans.labels(reason).inc()


def unlock_folder(settings: Settings, epoch: int) -> list[str]:
    """End the dead claim ``epoch``; returns what was removed. Blocks for the time of the watch.

    Raises DeployedElsewhere when it lives, Halted when there is no such open claim.
    """
    timeout = settings.mount.io_timeout_seconds
    replica = ChildrenReplica(os.fsencode(settings.onedata_dir), 1, 2, timeout)
    try:
        return _lock(settings, replica, SystemClock(), None).unlock(epoch)
    except OSError as error:
        raise MountNotThere(
            f"The OneData folder {settings.onedata_dir} cannot be reached ({error.strerror});"
            " nothing was removed. Mount it, then try again."
        ) from error
    finally:
        replica.close()


def _lock(
    settings: Settings, replica: ChildrenReplica, clock: SystemClock, remembered: Remembered | None
) -> Lock:
    times = LockTimes.from_timeout(settings.mount.io_timeout_seconds, settings.lock.settle_seconds)
    claimant = Claimant(
        host=platform.node(),
        boot_id=_read("/proc/sys/kernel/random/boot_id"),
        machine_id=_read("/etc/machine-id"),
        user=getpass.getuser(),
        working_dir=str(settings.working_dir.resolve()),
        replica_dir=str(settings.onedata_dir),
        version=__version__,
    )
    return Lock(replica, clock, times, claimant, remembered)


def _claim_state_dir(state_dir: Path) -> int:
    fd = os.open(state_dir / "owner", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise DeployedElsewhere(
            f"Another onesync of this node uses {state_dir}; nothing was changed. Stop it first."
        ) from None
    return fd


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return "unknown"
