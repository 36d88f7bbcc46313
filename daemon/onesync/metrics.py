"""Every metric, on a registry of its own. They are brought up to date when somebody asks."""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from threading import Lock
from types import MappingProxyType
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Enum,
    Gauge,
    Info,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from onesync import __version__
from onesync.core.claims import LockTimes
from onesync.core.trouble import judge
from onesync.errors import Exit, LocalError

PHASES = (
    "starting", "locking", "staging_in", "syncing", "backing_off", "suspended", "paused",
    "flushing", "cleaning", "halted", "fenced", "stopped",
)  # fmt: skip

_CALLS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 120)
_PUSHES = (0.1, 0.3, 1, 2, 5, 10, 30, 60, 300, 1800)
_WAITS = (1, 2, 3, 5, 10, 20, 30, 60, 300, 900, 3600)
_STAGE_INS = (1, 10, 60, 300, 900, 3600, 14_400, 43_200)
_WATCH_LIMIT = Path("/proc/sys/fs/inotify/max_user_watches")

disable_created_metrics()  # type: ignore[no-untyped-call]


class Durations(Collector):
    """A histogram whose observations cost half a microsecond, and many at once less. Any thread.

    The library's own takes four times as long: it has a lock of its own for each bucket.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        name: str,
        text: str,
        buckets: Sequence[float],
        label: str | None = None,
    ) -> None:
        """Register it; ``buckets`` are upper bounds in seconds, rising."""
        self._name, self._text, self._label = name, text, label
        self._buckets = tuple(buckets)
        self._guard = Lock()
        self._series: dict[str, tuple[list[int], list[float]]] = {}
        if label is None:
            self._series[""] = self._empty()
        registry.register(self)

    def observe(self, seconds: float, label: str = "") -> None:
        """Count one duration."""
        place = bisect_left(self._buckets, seconds)
        with self._guard:
            series = self._series.get(label)
            if series is None:
                series = self._series[label] = self._empty()
            series[0][place] += 1
            series[1][0] += seconds

    def observe_all(self, many: Sequence[float]) -> None:
        """Count many durations."""
        places = [bisect_left(self._buckets, seconds) for seconds in many]
        with self._guard:
            counts, total = self._series[""]
            for place in places:
                counts[place] += 1
            total[0] += sum(many)

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """Return what a scrape shows."""
        bounds = [*(f"{bucket:g}" for bucket in self._buckets), "+Inf"]
        labels = [] if self._label is None else [self._label]
        family = HistogramMetricFamily(self._name, self._text, labels=labels)
        with self._guard:
            series = {label: (list(c), t[0]) for label, (c, t) in self._series.items()}
        for label, (counts, total) in series.items():
            risen = list(zip(bounds, map(float, accumulate(counts)), strict=True))
            family.add_metric([label] if labels else [], risen, total)
        return [family]

    def _empty(self) -> tuple[list[int], list[float]]:
        return [0] * (len(self._buckets) + 1), [0.0]


class Metrics:
    """The daemon's metrics. Any thread.

    Attributes:
        progress: files done, and in all, of the phase.
    """

    def __init__(
        self,
        folder: str = "",
        times: LockTimes | None = None,
        places: Mapping[str, Path] = MappingProxyType({}),
    ) -> None:
        """Register every metric.

        Args:
            folder: what the folder is called.
            times: the lock's, in seconds.
            places: local directories whose room is told, by the name that their label has.
        """
        self.registry = CollectorRegistry()
        self.progress = (0, 0)
        self._folder = folder
        self._places = places
        self._guard = Lock()
        self._overflows = 0
        self._kinds: set[str] = set()
        self._make_infos()
        self._make_backlog()
        self._make_pushes()
        self._make_lock(times)
        self._make_node()

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"onesync_{name}", text, labels, registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"onesync_{name}", text, labels, registry=self.registry)

    def _durations(
        self, name: str, text: str, buckets: Sequence[float], label: str | None = None
    ) -> Durations:
        return Durations(self.registry, f"onesync_{name}_duration_seconds", text, buckets, label)

    def _make_infos(self) -> None:
        build = Info("onesync_build", "Version of onesync", registry=self.registry)
        build.info({"version": __version__})
        self._info = Info("onesync_folder", "The folder that is deployed", registry=self.registry)
        self._info.info({"folder": self._folder, "folder_id": ""})
        self.expiry = self._gauge(
            "expiry_timestamp_seconds", "When the deployment ends by itself; 0: never"
        )
        self.reload_successful = self._gauge(
            "config_last_reload_successful", "Whether the configuration that was read last is good"
        )
        self.reload_timestamp = self._gauge(
            "config_last_reload_success_timestamp_seconds",
            "When a good configuration was last read",
        )
        self.reloaded(is_good=True)
        self.phase = Enum("onesync_phase", "Phase", states=PHASES, registry=self.registry)
        self.done_files = self._gauge("phase_done_files", "Files of the phase that are done")
        self.known_files = self._gauge("phase_known_files", "Files of the phase in all")

    def _make_backlog(self) -> None:
        self.pending_paths = self._gauge("pending_paths", "Paths that may differ from the replica")
        self.pending_bytes = self._gauge("pending_bytes", "Bytes known to wait for a push")
        self.oldest_unsynced_timestamp = self._gauge(
            "oldest_unsynced_timestamp_seconds", "When the oldest unsynced change was seen; 0: none"
        )
        self.last_checkpoint_timestamp = self._gauge(
            "last_checkpoint_timestamp_seconds",
            "When the newest checkpoint was committed; 0: none since the start",
        )
        self.last_success_timestamp = self._gauge(
            "last_success_timestamp_seconds",
            "When a batch last ended well, also with nothing to push; 0: none since the start",
        )
        self.problems = self._gauge(
            "problems", "Paths that have a problem, or what is wrong", "kind"
        )
        self.held_deletions = self._gauge(
            "held_deletions", "Paths that are missing unexplained and are kept in the replica"
        )

    def _make_pushes(self) -> None:
        self.pushed_files = self._counter("pushed_files", "Files published in the replica")
        self.pushed_bytes = self._counter("pushed_bytes", "Bytes of files published in the replica")
        self.push_attempts = self._counter("push_attempts", "Batches, also those that failed")
        self.push_errors = self._counter("push_errors", "Batches that failed", "kind")
        self.verify_failures = self._counter(
            "verify_failures", "Files in OneData that were not what had been pushed"
        )
        self.push_duration = self._durations(
            "push", "From a batch's look at what changed to its commit", _PUSHES
        )
        self.sync_delay = Durations(
            self.registry,
            "onesync_sync_delay_seconds",
            "From the first sign of a change to its commit",
            _WAITS,
        )
        self.stage_in_duration = self._durations(
            "stage_in", "From the claim until the working copy was complete", _STAGE_INS
        )
        self.remote_duration = self._durations(
            "remote_operation", "Calls on the mount, as the daemon waits for them", _CALLS, "op"
        )
        self.remote_allowed = self._gauge(
            "remote_operations_allowed", "Small calls on the mount that may be under way at once"
        )
        self.remote_silent = self._gauge(
            "remote_silent_seconds",
            "So long a call that is under way on the mount has not advanced; 0: none is",
        )
        self.remote_errors = self._counter(
            "remote_errors", "Calls on the mount that failed", "op", "kind"
        )

    def _make_lock(self, times: LockTimes | None) -> None:
        self.lock_held = self._gauge("lock_held", "Whether the folder's lock was taken")
        self.epoch = self._gauge("lock_epoch", "Epoch of our claim; 0: none")
        self.lock_beat_timestamp = self._gauge(
            "lock_beat_timestamp_seconds", "When the lock's last heartbeat was confirmed"
        )
        for name, text in (
            ("beat", "The lock's heartbeat is sent so often"),
            ("warn", "So long without a heartbeat is worth a warning"),
            ("suspend", "After so long without a heartbeat nothing is written"),
            ("dead", "After so long without a heartbeat others may take the folder"),
        ):
            limit = self._gauge(f"lock_{name}_seconds", text)
            limit.set(getattr(times, name) if times is not None else 0)

    def _make_node(self) -> None:
        ProcessCollector(registry=self.registry)
        self.mount_up = self._gauge("mount_up", "Whether the mount answered last time")
        self.watches = self._gauge("inotify_watches", "Directories that the kernel watches")
        self.watch_limit = self._gauge(
            "inotify_watch_limit", "Watches that the kernel gives to one user"
        )
        self.polled = self._gauge(
            "polled_directories", "Directories polled, for want of kernel watches"
        )
        self.rescans = self._counter("rescans", "Scans of the whole working copy", "reason")
        self.overflows = self._counter("inotify_overflows", "Times the kernel dropped events")
        self.available = self._gauge(
            "directory_available_bytes", "Room where a local directory is", "directory"
        )
        self.size = self._gauge(
            "directory_size_bytes",
            "Size of the file system that a local directory is on",
            "directory",
        )

    def reloaded(self, *, is_good: bool) -> None:
        """Remember how the configuration was that was read just now."""
        self.reload_successful.set(is_good)
        if is_good:
            self.reload_timestamp.set(time.time())

    def synced(self, seconds: float, waited: Sequence[float]) -> None:
        """Count a batch that took so long, and how long each path had waited at its end."""
        self.push_duration.observe(seconds)
        self.sync_delay.observe_all(waited)

    def succeeded(self, wall_seconds: float) -> None:
        """Count a batch, or a step of the last flush, that ended well then (since 1970)."""
        self.push_attempts.inc()
        self.last_success_timestamp.set(wall_seconds)

    def failed(self, kind: str) -> None:
        """Count a batch that failed."""
        self.push_attempts.inc()
        self.push_errors.labels(kind).inc()

    def called(self, op: str, seconds: float, error: Exception | None) -> None:
        """Count a call on the mount.

        That a name is taken, or that nothing stands there, is an answer like any other, but where
        the folder itself is looked for; what is wrong with a local file does not count.
        """
        self.remote_duration.observe(seconds, op)
        if error is None or isinstance(error, LocalError):
            return
        if op != "identify" and isinstance(error, FileExistsError | FileNotFoundError):
            return
        self.remote_errors.labels(op, judge(error).kind).inc()

    def update(self, status: dict[str, Any], overflows: int, folder_id: str | None) -> None:
        """Take over what the status document says, and how many overflows there were so far."""
        with self._guard:  # of two scrapes at once each would count the same overflows
            self._update(status, overflows, folder_id)

    def _update(self, status: dict[str, Any], overflows: int, folder_id: str | None) -> None:
        self.overflows.inc(overflows - self._overflows)
        self._overflows = overflows
        self._info.info({"folder": self._folder, "folder_id": folder_id or ""})
        self.phase.state(status["phase"])
        done, known = self.progress
        self.done_files.set(done)
        self.known_files.set(known)
        self.pending_paths.set(status["pending_paths"])
        self.pending_bytes.set(status["pending_bytes"])
        self.oldest_unsynced_timestamp.set(status["oldest_unsynced_at"] or 0)
        self.expiry.set(status["expires_at"] or 0)
        self.mount_up.set(status["mount"]["up"])
        self.epoch.set(status["epoch"] or 0)
        self.lock_held.set(status["lock"] is not None)
        if status["lock"] is not None:
            self.lock_beat_timestamp.set(status["lock"]["confirmed_at"])
        self.held_deletions.set(status["held_deletions"])
        self.watches.set(status["watches"]["kernel"])
        self.polled.set(status["watches"]["polled"])
        self._update_problems([problem["kind"] for problem in status["problems"]])
        self._update_node()

    def _update_problems(self, kinds: list[str]) -> None:
        self._kinds.update(kinds)  # one that is over is 0 from then on, and not what it was last
        for kind in list(self._kinds):
            self.problems.labels(kind).set(kinds.count(kind))

    def _update_node(self) -> None:
        self.watch_limit.set(_watch_limit())
        for name, place in self._places.items():
            available, size = _room(place)
            self.available.labels(name).set(available)
            self.size.labels(name).set(size)


def last_word(
    labels: Mapping[str, str],
    code: Exit,
    status: dict[str, Any],
    succeeded_at: float,
    flush_seconds: float,
) -> CollectorRegistry:
    """Return what is told of a daemon that is gone.

    Args:
        labels: by which it is known.
        code: of its exit.
        status: its last status document.
        succeeded_at: when a batch last ended well, in seconds since 1970; 0: none.
        flush_seconds: how long the final flush took, with what follows it; 0: there was none.
    """
    registry = CollectorRegistry()

    def tell(name: str, text: str, value: float) -> None:
        gauge = Gauge(f"onesync_last_exit_{name}", text, list(labels), registry=registry)
        gauge.labels(**labels).set(value)

    tell("timestamp_seconds", "When onesync left", time.time())
    tell("code", "Its exit code", code)
    tell("clean", "Whether it undeployed, or handed over as it should", code is Exit.CLEAN)
    tell("success_timestamp_seconds", "When a batch last ended well; 0: none", succeeded_at)
    tell("pending_paths", "Paths that may differ from the replica", status["pending_paths"])
    tell("pending_bytes", "Bytes known not to be in the replica", status["pending_bytes"])
    tell("flush_duration_seconds", "What the final flush took; 0: none", flush_seconds)
    return registry


def _watch_limit() -> int:
    try:
        return int(_WATCH_LIMIT.read_text())
    except (OSError, ValueError):
        return 0


def _room(place: Path) -> tuple[float, float]:
    """Return the bytes that are free for us, and all; NaN where that cannot be told."""
    try:
        found = os.statvfs(place)
    except OSError:
        return float("nan"), float("nan")
    return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
