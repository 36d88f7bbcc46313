"""Puts the parts together, and is what the world sees: signals, systemd, status, metrics.

Threads: *main* waits for signals and pings systemd; *engine* deploys, syncs and undeploys, and is
the only one that plans, commits and writes the index; *beat* keeps the lock's heartbeat; the
watcher's, the control socket's and the metrics server's are their modules' own.
"""

from __future__ import annotations

import errno
import fcntl
import getpass
import logging
import os
import platform
import resource
import select
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from onesync import __version__
from onesync.beneath import open_beneath
from onesync.clock import SystemClock
from onesync.control import FORMAT, ControlServer, StatusFile
from onesync.core.claims import (
    REMEMBERED_NAME,
    BadRecord,
    Remembered,
    decode_remembered,
    encode_remembered,
)
from onesync.core.model import Problem, RelPath, show
from onesync.core.page import page
from onesync.core.view import Look
from onesync.engine import Engine
from onesync.errors import (
    ConfigurationError,
    DeployedElsewhere,
    Exit,
    Halted,
    IndexDamaged,
    MountNotThere,
    OnesyncError,
    StateDirFailed,
)
from onesync.exposition import Exposition, Textfile, Tls
from onesync.index import keep_damaged, open_index
from onesync.local import give_memory_back, sync_directory, use_one_heap
from onesync.lock import Claimant, Lock
from onesync.metrics import Metrics, last_word
from onesync.progress import Progress
from onesync.recent import Recent
from onesync.replica.children import ChildrenReplica
from onesync.settings import Reloaded, Settings, reloaded
from onesync.systemd import RELOAD_SIGNAL, STOP_SIGNALS, Notifier, shutdown_job

log = logging.getLogger(__name__)

_PROCESSES = 2
_LOOKS = 6
"""So many looks the lock takes at once."""
_WAKE = signal.SIGUSR1
"""What wakes main up where nobody asks for a stop: something changed that the status tells."""
_TICK_SECONDS = 0.5
_ANSWER_SECONDS = 10.0
"""Who asks for something is told after so long that it comes later."""
_PUBLISHING_SHARE = 0.05
"""So much of the time the status takes at most while something is pending."""
_LATEST_SECONDS = 5.0
"""However long the status takes: systemd must hear in time that there is somebody."""
_FOREVER = 86_400.0
_RETIRED_SECONDS = 60.0
"""After so long a rest the processes that talk to the mount go, until something is marked."""
_WEDGED_SECONDS = 900.0
"""An engine that neither ticks nor sees a call advance for so long will never go on."""
_STARTING = ("starting", "locking", "staging_in", "cleaning")
_PATIENCE_SECONDS = 120.0
_HANDOVER_SECONDS = 60.0
"""Who asks for a handover, as an upgrade does, waits no longer, however much is left."""
_MEASURED_PATHS = 10_000
_NAMED_PATHS = 20


class Service:
    """One deployment's daemon."""

    def __init__(self, settings: Settings, load_anew: Callable[[], Settings]) -> None:
        """Build the parts; no mount is touched. Raises an OnesyncError.

        ``load_anew`` reads the configuration once more; it raises OnesyncError.
        """
        self._settings = settings
        self._load_anew = load_anew
        self._clock = SystemClock()
        self._owner = own_state_dir(settings.state_dir)
        patience = settings.mount.io_timeout_seconds
        target = os.fsencode(settings.onedata_dir)
        threads = max(1, settings.push.workers // _PROCESSES)
        limit = settings.push.bandwidth_limit or None
        places = {"working_dir": settings.working_dir, "state_dir": settings.state_dir}
        self._metrics = Metrics(settings.metrics.folder, settings.lock_times(), places)
        called = self._metrics.called
        self._replica = ChildrenReplica(
            target, _PROCESSES, threads, patience, self._on_call, limit, called
        )
        self._lock_lane = ChildrenReplica(target, 1, _LOOKS, patience, self._on_call, called=called)
        self._notifier = Notifier()
        self._progress = Progress(self._notifier)
        self._status_file = StatusFile(settings.state_dir)
        self._fatal: Problem | None = None
        self._exposition: Exposition | None = None
        self._last_checkpoint: dict[str, Any] | None = None
        self._recent = Recent(self._clock)
        self._alive_at = time.monotonic()
        self._textfile: Textfile | None = None
        if settings.metrics.textfile_dir is not None:
            self._textfile = Textfile(settings.metrics.textfile_dir, settings.metrics.folder)
        self._succeeded_at = 0.0
        self._staging_since: float | None = None
        self._flushing_since: float | None = None
        self._main = threading.main_thread().ident
        self._is_resting = False
        self._is_told_ending = False
        self._leaves_by = float("inf")
        self._was_at_rest = False
        self._rests_since = float("inf")
        self._is_retired = False
        self._published_seconds = 0.0
        self._publishing = threading.Lock()
        self._has_left = False
        self._outcome: Future[Exit] = Future()
        claim = _ClaimFile(settings.state_dir / REMEMBERED_NAME)
        self._engine = Engine(
            settings,
            self._clock,
            open_index(settings.state_dir / "index.sqlite"),
            self._replica,
            make_lock(settings, self._lock_lane, self._clock, claim),
            self.keeps_at_shutdown,
            self,
            self._status_file.read(),
        )

    # -- main thread ----------------------------------------------------------------------------

    def run(self) -> Exit:
        """Deploy, sync, undeploy; returns the exit code. Main thread."""
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS | {_WAKE, RELOAD_SIGNAL})
        use_one_heap()
        # Descriptors keep new files readable until they are pushed (pins).
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        threading.excepthook = self._thread_died
        self._exposition = exposition = self._expose()
        control = ControlServer(
            self._settings.runtime_dir / "control.sock",
            {
                "status": self._on_status,
                "flush": self._on_flush,
                "pause": self._on_pause,
                "extend": self._on_extend,
                "reload": self._on_reload,
                "doubt": self._on_doubt,
                "find": self._on_find,
                "flights": self._on_flights,
                "accept_deletions": self._on_accept_deletions,
                "handover": self._on_handover,
            },
        )
        control.start()
        self._lock_lane.warm()
        self._replica.warm(all_of_them=True)
        threading.Thread(target=self._live, name="engine", daemon=True).start()
        threading.Thread(target=self._watch_mounts, name="mounts", daemon=True).start()
        asked = False
        while not self._outcome.done():
            came = _signal_came(self._patience(ending=self._engine.is_ending()))
            self._is_resting = False
            if came in STOP_SIGNALS:
                if asked:
                    log.error("second signal: left at once, lock and local data kept")
                    self._end(Exit.FLUSH_NOT_FINISHED)
                asked = True
                self._engine.stop()
            elif came == RELOAD_SIGNAL:
                self._reload()
            if time.monotonic() >= self._leaves_by:
                self._leave_at_once()
            self._retire()
            self._tick(ending=self._engine.is_ending())
        code = self._outcome.result()
        self._leave_word(code)
        self._leave_textfile(code, exposition.port)
        control.stop()
        exposition.stop()
        self._replica.close()
        self._lock_lane.close()
        return code

    def adopt(self) -> None:
        """Claim the folder that was made known to the index, and leave with the lock kept.

        Raises an OnesyncError. Main thread.
        """
        try:
            self._engine.adopt()
            self._leave_word(Exit.CLEAN)
        finally:
            self._replica.close()
            self._lock_lane.close()

    def _expose(self) -> Exposition:
        """Serve the metrics and the page; raises ConfigurationError."""
        wanted = self._settings.metrics
        tls = None
        if wanted.tls_certificate is not None and wanted.tls_key is not None:
            tls = Tls(wanted.tls_certificate, wanted.tls_key, wanted.tls_client_authorities)
        found = Exposition(
            self._metrics.registry, wanted.listen, tls, self._update_metrics, self._page
        )
        if self._textfile is not None:
            self._textfile.remove()
        return found

    def _patience(self, *, ending: bool) -> float:
        """Return the seconds after which main has something to do though nobody wakes it."""
        self._is_resting = True  # before the look, or what changes just now wakes nobody
        was_at_rest, self._was_at_rest = self._was_at_rest, self._engine.is_at_rest()
        # Not at the first look: the rest has to be published too.
        if ending or not (was_at_rest and self._was_at_rest):
            self._rests_since = time.monotonic()
            self._is_resting = False  # each file of a stage-in would wake main, to publish
            share = min(self._published_seconds / _PUBLISHING_SHARE, _LATEST_SECONDS)
            return max(_TICK_SECONDS, share)
        due = self._notifier.next_due()
        retiring = self._rests_since + _RETIRED_SECONDS - time.monotonic()
        soonest = min(_FOREVER if due is None else due, _FOREVER if self._is_retired else retiring)
        return max(_TICK_SECONDS, soonest)

    def _retire(self) -> None:
        """Give memory back after a long rest; have a child again as soon as something is marked.

        The lock's child stays: a beat must not depend on whether a process can be started.
        """
        rests = self._was_at_rest and self._engine.is_at_rest()
        if self._is_retired and not rests:
            self._is_retired = False
            self._replica.warm()
        elif rests and time.monotonic() >= self._rests_since + _RETIRED_SECONDS:
            self._replica.retire()
            if not self._is_retired:
                give_memory_back()
            self._is_retired = True

    def _stirred(self) -> None:
        """Wake main where it rests: there is something new. Any thread."""
        if self._is_resting:
            self._is_resting = False
            self._wake()

    def _wake(self) -> None:
        if self._main is not None:
            signal.pthread_kill(self._main, _WAKE)

    def _watch_mounts(self) -> None:
        """Notice that the mount is taken away: the kernel tells of each change of its table."""
        with open("/proc/self/mountinfo", "rb") as table:
            changes = select.poll()
            changes.register(table, select.POLLPRI)
            while True:
                changes.poll()
                self._engine.glance()

    def _tick(self, *, ending: bool) -> None:
        self._engine.glance()  # what changed while the engine looked itself
        silent = time.monotonic() - self._alive_at
        if silent < _WEDGED_SECONDS:
            self._notifier.watchdog()
        # Every bounded wait is shorter than this, and work that advances starts it anew. A stop
        # counts from the signal on: the batch under way must end before the final flush begins.
        patience = _PATIENCE_SECONDS + 2 * self._settings.mount.io_timeout_seconds
        if ending and not self._is_told_ending:
            self._is_told_ending = True
            self._notifier.stopping()
        if (ending or self._engine.phase in _STARTING) and silent < patience:
            self._notifier.extend(patience)
        self._publish()

    def _publish(self, *, is_last: bool = False) -> None:
        """Write the status, in whatever thread; after the last word there is no other one."""
        with self._publishing:
            if self._has_left:
                return
            began = time.monotonic()
            self._status_file.write(self._look().document)
            self._published_seconds = time.monotonic() - began
            self._has_left = is_last

    def _update_metrics(self) -> None:
        engine = self._engine
        self._metrics.remote_allowed.set(self._replica.allowed)
        lanes = (self._replica, self._lock_lane)
        self._metrics.remote_silent.set(max(lane.silent_seconds() for lane in lanes))
        self._metrics.update(self.status(), engine.marks.overflows, engine.mount.folder_id)

    def _look(self) -> Look:
        """Return the status as of now, noted for the page."""
        look = Look(self.status(), time.time(), True)
        self._recent.looked(look)
        return look

    def _page(self) -> bytes:
        look = self._look()
        return page(self._settings.metrics.folder, look, self._recent.past(look))

    def _leave_word(self, code: Exit) -> None:
        self._engine.phase = {Exit.CLEAN: "stopped", Exit.LOCK_LOST: "fenced"}.get(code, "halted")
        self._progress.end()
        self._publish(is_last=True)

    def _leave_textfile(self, code: Exit, port: int) -> None:
        """Tell how it went where the server cannot be asked any more."""
        if self._textfile is None:
            return
        since = self._flushing_since
        flushed = 0.0 if since is None else time.monotonic() - since
        labels = {"folder": self._settings.metrics.folder, "port": str(port)}
        self._textfile.write(last_word(labels, code, self.status(), self._succeeded_at, flushed))

    def _leave_at_once(self) -> None:
        """End a handover that lasts: the next life settles what is under way, as after a death."""
        if self._outcome.done():
            return
        text = "the mount is slow, what is left follows with the next start"
        told = {"handover": True, "reason": text, "pending": len(self._engine.marks)}
        log.warning("left with the lock kept", extra=told)
        self._end(Exit.CLEAN)

    def _end(self, code: Exit) -> None:
        if not self._outcome.done():
            self._outcome.set_result(code)
        self._wake()

    def _thread_died(self, died: threading.ExceptHookArgs) -> None:
        """End the daemon where any of its threads ended by a failure: nothing works by half."""
        name = died.thread.name if died.thread is not None else "unknown"
        if self._outcome.done():
            return
        error = died.exc_value
        log.critical("unexpected", exc_info=error, extra={"dead": name})
        self._fatal = Problem(
            b"",
            "unexpected",
            f"An unexpected failure in the thread {name}: {error!r}. Nothing is lost, the lock and"
            " all local data are kept; systemd starts onesync again, and it goes on.",
        )
        self._end(Exit.UNEXPECTED)

    # -- engine's thread ------------------------------------------------------------------------

    def _live(self) -> None:
        try:
            code = self._engine.live()
        except OnesyncError as error:
            told = {"event": "ended", "kind": type(error).__name__, "code": int(error.code)}
            log.error(str(error), extra=told)  # noqa: TRY400 - a sentence for a person, not a trace
            self._fatal = Problem(b"", type(error).__name__, str(error))
            code = error.code
            if isinstance(error, IndexDamaged):
                keep_damaged(self._settings.state_dir / "index.sqlite", error)
        except BaseException as error:
            log.exception("unexpected")
            self._fatal = Problem(b"", "unexpected", f"An unexpected failure: {error!r}.")
            code = Exit.UNEXPECTED
        self._end(code)

    def pushed(self, files: int, size: int) -> None:
        """Count a batch."""
        self._metrics.pushed_files.inc(files)
        self._metrics.pushed_bytes.inc(size)
        self._recent.pushed(files, size)

    def committed(self, name: str, wall_seconds: float) -> None:
        """Remember the newest checkpoint."""
        self._last_checkpoint = {"name": name, "at": wall_seconds}
        self._metrics.last_checkpoint_timestamp.set(wall_seconds)
        self._recent.committed(name)

    def differed(self, files: int) -> None:
        """Count files that did not arrive."""
        self._metrics.verify_failures.inc(files)

    def failed(self, kind: str) -> None:
        """Count a failed batch."""
        self._metrics.failed(kind)

    def succeeded(self) -> None:
        """Remember when it went well."""
        self._succeeded_at = time.time()
        self._metrics.succeeded(self._succeeded_at)

    def synced(self, seconds: float, waited: Sequence[float]) -> None:
        """Count what a batch took, and what waited for it."""
        self._metrics.synced(seconds, waited)
        self._recent.synced(seconds, max(waited, default=0.0))

    def phase_changed(self, phase: str) -> None:
        """Tell systemd; the first time that the folder is synced is its start."""
        self.alive()
        self._progress.phase(phase)
        self._time_phases(phase)
        self._publish()
        if phase == "syncing":
            self._notifier.ready()

    def _time_phases(self, phase: str) -> None:
        now = time.monotonic()
        if phase == "staging_in":
            self._staging_since = now
        elif phase == "syncing" and self._staging_since is not None:
            self._metrics.stage_in_duration.observe(now - self._staging_since)
            self._staging_since = None
        elif phase == "flushing":
            self._flushing_since = now
        self._metrics.progress = (0, 0)

    def rescanned(self, reason: str) -> None:
        """Count a rescan."""
        self._metrics.rescans.labels(reason).inc()

    def advanced(self, done: int, total: int) -> None:
        """Show progress."""
        self._metrics.progress = done, total
        self._progress.advanced(done, total)

    def alive(self) -> None:
        """Remember that the engine goes on."""
        self._alive_at = time.monotonic()
        self._stirred()

    def _on_call(self, size: int) -> None:
        self._alive_at = time.monotonic()
        self._progress.copied(size)

    def keeps_at_shutdown(self) -> bool:
        """Whether the deployment outlives a stop: the machine goes, and that is to keep it.

        Where systemd does not say, it is a stop as any other: everything is flushed.
        """
        try:
            job = shutdown_job()
        except TimeoutError as error:
            log.warning("taken for a stop, not for a reboot", extra={"reason": str(error)})
            return False
        if job == "reboot":
            return self._settings.undeploy.on_reboot == "keep"
        return job == "poweroff" and self._settings.undeploy.on_poweroff == "keep"

    # -- control's threads ----------------------------------------------------------------------

    def _on_status(self, _: dict[str, Any]) -> dict[str, Any]:
        return self.status()

    def _on_flush(self, _: dict[str, Any]) -> dict[str, Any]:
        try:
            flushed = self._engine.ask_flush().result()
        except (OSError, OnesyncError) as error:
            return {"ok": False, "reason": str(error)}
        return {"ok": True, "problems": flushed.problems}

    def _on_pause(self, request: dict[str, Any]) -> dict[str, Any]:
        seconds = float(request.get("seconds", 0))
        return self._asked(lambda: {"was_paused": self._engine.pause(seconds)})

    def _on_extend(self, request: dict[str, Any]) -> dict[str, Any]:
        until = request.get("until")
        at = None if until is None else float(until)
        seconds = float(request.get("seconds", 0))
        return self._asked(lambda: {"until": self._engine.extend(at, seconds)})

    def _on_reload(self, _: dict[str, Any]) -> dict[str, Any]:
        try:
            found = self._reloaded()
        except OnesyncError as error:
            return {"ok": False, "reason": str(error)}
        told = {"applied": found.applied, "restart": found.restart}
        return self._asked(lambda: self._follow(found)) | told

    def _reload(self) -> None:
        """Read the configuration once more, for a signal: who sent it reads the log."""
        try:
            found = self._reloaded()
        except OnesyncError as error:
            log.error("the configuration was not reloaded", extra={"reason": str(error)})  # noqa: TRY400 - a sentence for a person
            return
        self._engine.ask(lambda: self._follow(found))

    def _reloaded(self) -> Reloaded:
        try:
            found = reloaded(self._settings, self._load_anew())
        except OnesyncError:
            self._metrics.reloaded(is_good=False)
            raise
        self._metrics.reloaded(is_good=True)
        return found

    def _follow(self, found: Reloaded) -> None:
        """Follow what changed in the configuration. Engine's thread."""
        self._engine.reconfigure(found.settings)
        self._settings = found.settings
        told = {"applied": list(found.applied), "restart": list(found.restart)}
        log.info("the configuration was reloaded", extra=told)

    def _asked(self, act: Callable[[], dict[str, Any] | None]) -> dict[str, Any]:
        """Let the engine do something, and answer what came of it."""
        try:
            found = self._engine.ask(act).result(_ANSWER_SECONDS)
        except TimeoutError:
            return {"ok": True, "is_later": True}
        except OnesyncError as error:
            return {"ok": False, "reason": str(error)}
        except Exception as error:
            log.exception("unexpected")
            return {"ok": False, "reason": f"an unexpected failure: {error!r}"}
        return {"ok": True, **(found or {})}

    def _on_doubt(self, request: dict[str, Any]) -> dict[str, Any]:
        self._engine.doubt(str(request.get("path", "")).encode("utf-8", "surrogateescape"))
        return {"ok": True}

    def _on_find(self, request: dict[str, Any]) -> dict[str, Any]:
        path = str(request.get("path", "")).encode("utf-8", "surrogateescape")
        told = [problem.text for problem in self._engine.problems() if problem.path == path]
        problem = told[0] if told else None
        return {"pending": self._engine.marks.is_pending(path), "problem": problem}

    def _on_flights(self, _: dict[str, Any]) -> dict[str, Any]:
        """Return the files on their way, the longest first, the other calls, how many may go."""
        calls = self._replica.under_way()
        now = time.monotonic()
        flights = {id(flight): (method, flight) for method, flight in calls if flight is not None}
        told = [
            {
                "path": show(flight.path),
                "call": method,
                "is_fetched": flight.is_fetched,
                "size": flight.size,
                "moved": flight.moved,
                "seconds": now - flight.began,
            }
            for method, flight in sorted(flights.values(), key=lambda item: item[1].began)
        ]
        others = Counter(method for method, flight in calls if flight is None)
        return {"files": told, "others": dict(others), "allowed": self._replica.allowed}

    def _on_accept_deletions(self, request: dict[str, Any]) -> dict[str, Any]:
        accepted = self._engine.accept_deletions(str(request.get("shown")))
        return {"ok": accepted is not None, "accepted": accepted}

    def _on_handover(self, _: dict[str, Any]) -> dict[str, Any]:
        if not self._engine.is_ending():  # an undeployment goes on to its end
            self._leaves_by = time.monotonic() + _HANDOVER_SECONDS
        self._engine.handover()
        self._wake()
        code = self._outcome.result()
        reason = self._fatal.text if self._fatal else ""
        return {"ok": code is Exit.CLEAN, "reason": reason, "pending": len(self._engine.marks)}

    # -- status ---------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Return the status document; never touches the mount. Any thread."""
        engine = self._engine
        oldest = engine.marks.oldest()
        now = time.time()
        state = engine.lock.state() if engine.lock.is_held() else None
        age = engine.lock.age()
        if age == float("inf"):
            state = None  # taken, and no beat of it confirmed yet
        problems = [self._fatal] if self._fatal else []
        problems += engine.conditions() + self._unseen() + engine.problems()
        return {
            "format": FORMAT,
            "phase": engine.phase,
            "epoch": state.epoch if state else None,
            "deployment_id": state.deployment_id if state else None,
            "pending_paths": len(engine.marks),
            "pending_bytes": self._pending_bytes(),
            "pending": [show(path) or "." for path in engine.marks.pending(_NAMED_PATHS)],
            "held_deletions": engine.held.count,
            "moved_bytes": self._progress.moved(),
            "progress": self._progress.told(),
            "oldest_unsynced_at": None if oldest is None else now - self._clock.boottime() + oldest,
            "last_checkpoint": self._last_checkpoint,
            "lock": {
                "beat": state.beat,
                "confirmed_at": now - age,
                "released": engine.lock.is_released,
            }
            if state
            else None,
            "watches": {"kernel": engine.watches(), "polled": engine.polled()},
            "mount": {"path": str(self._settings.onedata_dir), "up": engine.mount.up},
            "expires_at": engine.expires_at(),
            "paused_until": engine.paused_until(),
            "problems": [{"path": show(p.path), "kind": p.kind, "text": p.text} for p in problems],
        }

    def _unseen(self) -> list[Problem]:
        trouble = self._exposition.trouble if self._exposition else ""
        return [Problem(b"", "no_metrics", trouble)] if trouble else []

    def _pending_bytes(self) -> int:
        """Return the bytes of the pending files that are known, of the first 10,000."""
        try:
            root = os.open(self._settings.working_dir, os.O_PATH | os.O_DIRECTORY)
        except OSError:
            return 0
        try:
            return sum(_size_of(root, path) for path in self._engine.marks.pending(_MEASURED_PATHS))
        finally:
            os.close(root)


def _signal_came(seconds: float) -> int | None:
    """Wait for a signal that means something, or to be woken up; returns which came, if any.

    CPython's sigtimedwait answers with nonsense where it was interrupted and its time was up, as
    after SIGSTOP and SIGCONT or a suspended machine: only a signal that was asked for counts.
    """
    wanted = STOP_SIGNALS | {_WAKE, RELOAD_SIGNAL}
    found = signal.sigtimedwait(wanted, seconds)
    return found.si_signo if found is not None and found.si_signo in wanted else None


class _ClaimFile:
    """``claim.json`` in the state directory: the claim by which a later life knows this one."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> Remembered | None:
        """Return what was remembered. Raises Halted when it cannot be read."""
        try:
            return decode_remembered(self._path.read_text())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _state_dir_failed(self._path, error) from error
        except (BadRecord, UnicodeDecodeError) as error:
            raise Halted(
                f"{self._path} cannot be read ({error}); nothing was changed. Remove it if this"
                " node's deployment is over; 'onesync unlock' frees the folder."
            ) from error

    def write(self, remembered: Remembered) -> None:
        """Write it durably; readers see the old or the new one."""
        temporary = self._path.with_suffix(".new")
        try:
            with temporary.open("w") as file:
                file.write(encode_remembered(remembered))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path)
            sync_directory(self._path.parent)
        except OSError as error:
            raise _state_dir_failed(self._path, error) from error


def unlock_folder(settings: Settings, epoch: int) -> list[str]:
    """End the dead claim ``epoch``; returns what was removed. Blocks for the time of the watch.

    Raises DeployedElsewhere when it lives, Halted when there is no such open claim.
    """
    replica = ChildrenReplica(
        os.fsencode(settings.onedata_dir), 1, 2, settings.mount.io_timeout_seconds
    )
    try:
        return make_lock(settings, replica, SystemClock(), None).unlock(epoch)
    except OSError as error:
        raise MountNotThere(
            f"The OneData folder {settings.onedata_dir} cannot be reached ({error.strerror});"
            " nothing was removed. Mount it, then try again."
        ) from error
    finally:
        replica.close()


def lock_to_look_at(settings: Settings, replica: ChildrenReplica) -> Lock:
    """Return the lock with what this node remembers of it, for looks alone. Raises Halted."""
    claim = _ClaimFile(settings.state_dir / REMEMBERED_NAME)
    return make_lock(settings, replica, SystemClock(), claim)


def make_lock(
    settings: Settings, replica: ChildrenReplica, clock: SystemClock, claim: _ClaimFile | None
) -> Lock:
    """Return the lock of this node's deployment; ``claim`` None only looks."""
    claimant = Claimant(
        host=platform.node(),
        boot_id=_read("/proc/sys/kernel/random/boot_id"),
        machine_id=_read("/etc/machine-id"),
        user=getpass.getuser(),
        working_dir=str(settings.working_dir.resolve()),
        replica_dir=str(settings.onedata_dir),
        version=__version__,
    )
    times = settings.lock_times()
    if claim is None:
        return Lock(replica, clock, times, claimant, None)
    workers = ThreadPoolExecutor(_LOOKS, thread_name_prefix="lock")
    return Lock(replica, clock, times, claimant, claim.read(), claim.write, workers)


def _state_dir_failed(path: Path, error: OSError) -> StateDirFailed:
    return StateDirFailed(
        f"{path} cannot be read or written ({error.strerror}); nothing is lost. Make room in"
        " state_dir or mend its disk: onesync then goes on by itself."
    )


def own_state_dir(state_dir: Path) -> int:
    """Hold a flock on the state directory for as long as the process lives; returns its fd."""
    try:
        fd = os.open(state_dir / "owner", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise _state_dir_failed(state_dir, error) from error
        raise ConfigurationError(
            f"state_dir {state_dir} cannot be written ({error.strerror}); nothing was changed. Name"
            " a directory that onesync may write."
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise DeployedElsewhere(
            f"Another onesync of this node uses {state_dir}; nothing was changed. Stop it first."
        ) from None
    return fd


def _size_of(root: int, path: RelPath) -> int:
    try:
        fd = open_beneath(root, path, os.O_PATH)
    except OSError:
        return 0
    try:
        return os.fstat(fd).st_size
    finally:
        os.close(fd)


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return "unknown"
