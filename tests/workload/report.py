"""What a session cost: staleness, bytes on the mount, locks, the writers' pace, memory."""

from __future__ import annotations

import json
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.workload import content, databases
from tests.workload.record import Reader, Record

SMALL = 1_000_000
SLOWEST = 15
Span = tuple[float, float]


@dataclass
class Report:
    """The numbers of one session; times in seconds, sizes in bytes, None where not measured."""

    seconds: float = 0.0
    staleness_p50: float | None = None
    staleness_p99: float | None = None
    staleness_large_p99: float | None = None
    staleness_databases_p99: float | None = None
    staleness_over_death: float | None = None
    arrived: int = 0
    never_arrived: int = 0
    bytes_changed: int = 0
    bytes_written: int = 0
    written_per_changed: float | None = None
    longest_lock: float | None = None
    peak_memory: int = 0
    longest_flush: float | None = None
    instants: int = 0
    deaths: int = 0
    asked: int = 0
    calls: dict[str, int] = field(default_factory=dict)
    slowest: list[tuple[float, str, str]] = field(default_factory=list)
    runs: dict[str, tuple[int, float, float]] = field(default_factory=dict)
    """Small files by run: how many, and their staleness, p50 and p99."""

    def table(self) -> str:
        """Return the numbers for people."""
        rows = [(k, v) for k, v in asdict(self).items() if k not in ("calls", "slowest", "runs")]
        rows += [(f"calls: {name}", count) for name, count in sorted(self.calls.items())]
        lines = [f"{name:24} {_shown(name, value)}" for name, value in rows]
        lines += [f"{seconds:6.1f} s {deed} {path}" for seconds, deed, path in self.slowest]
        for name, (count, middle, late) in sorted(self.runs.items()):
            lines.append(f"{name:32} {count:6,} small files, p50 {middle:6.2f} p99 {late:6.2f} s")
        return "\n".join(lines)

    def write(self, path: Path) -> None:
        """Write the numbers as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")


def _shown(name: str, value: object) -> str:
    if value is None:
        return "-"
    if name.startswith(("bytes", "peak")) and isinstance(value, int):
        return f"{value / 1e6:,.1f} MB"
    return f"{value:,.3f}" if isinstance(value, float) else f"{value:,}"


def quantile(values: Iterable[float], part: float) -> float | None:
    """Return the value below which ``part`` of all lie; None of none."""
    found = sorted(values)
    return found[min(len(found) - 1, int(part * len(found)))] if found else None


@dataclass(frozen=True, slots=True)
class Age:
    """When what a record tells of was seen in the folder."""

    record: Record
    seen: float

    def overlap(self, spans: Iterable[Span]) -> float:
        """Return how much of the time in between lies in ``spans``."""
        begin, end = self.record.time, self.seen
        return sum(max(0.0, min(end, b) - max(begin, a)) for a, b in spans)


class Staleness(threading.Thread):
    """Looks at the folder behind the mount for what the actors finished, and keeps the ages."""

    def __init__(self, record: Path, folder: Path, interval: float = 0.2) -> None:
        super().__init__(daemon=True)
        self._reader = Reader(record)
        self._folder = folder
        self._interval = interval
        self._ended = threading.Event()
        self._pending: dict[str, list[Record]] = {}
        self.records: list[Record] = []
        self.ages: list[Age] = []

    def run(self) -> None:
        """Look until ``finish``."""
        while not self._ended.wait(self._interval):
            self.look()

    def finish(self) -> int:
        """End after a last look; returns how many are missing still."""
        self._ended.set()
        self.join()
        self.look()
        return sum(map(len, self._pending.values()))

    def look(self) -> None:
        """Take in new records and see which of the pending ones are there now."""
        for record in self._reader.more():
            self._take(record)
        for path in list(self._pending):
            now = time.monotonic()
            there = self._is_there(path)
            if there is None:
                continue
            waiting = self._pending[path]
            self.ages += [Age(r, now) for r in waiting if r.generation <= there]
            waiting[:] = [r for r in waiting if r.generation > there]
            if not waiting:
                del self._pending[path]

    def _take(self, record: Record) -> None:
        self.records.append(record)
        if record.deed == "removed":
            for path in [p for p in self._pending if f"{p}/".startswith(f"{record.path}/")]:
                # It never came; it was waited for until it went, or had come since the last look.
                self.ages += [Age(waiting, record.time) for waiting in self._pending.pop(path)]
        elif record.deed in ("closed", "committed", "probed"):
            self._pending.setdefault(record.path, []).append(record)

    def _is_there(self, path: str) -> int | None:
        """Return the generation that stands in the folder."""
        place = self._folder / path
        newest = self._pending[path][-1]
        try:
            if newest.deed != "closed":
                life, counted = databases.count_in_header(place)
                return (life << 32) + counted
            if newest.size == 0:
                return newest.generation if place.exists() else None
            found = content.first_generation(place)
            if found is None:
                return None
            generation, total = found
            return generation if not total or place.stat().st_size == total else None
        except OSError:
            return None


class Memory(threading.Thread):
    """The most memory that a process and all its children held, shared pages divided."""

    def __init__(self, current: Callable[[], int | None], interval: float = 1.0) -> None:
        """``current`` returns the process that is looked at now."""
        super().__init__(daemon=True)
        self._current = current
        self._interval = interval
        self._ended = threading.Event()
        self.peak = 0

    def run(self) -> None:
        """Look until ``finish``."""
        while not self._ended.wait(self._interval):
            top = self._current()
            if top is not None:
                self.peak = max(self.peak, sum(map(memory_of, family_of(top))))

    def finish(self) -> int:
        """End; returns the peak in bytes."""
        self._ended.set()
        self.join()
        return self.peak


def family_of(top: int) -> list[int]:
    """Return a process and all that descend from it."""
    parents: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                stat = Path("/proc", name, "stat").read_text()
            except OSError:
                continue
            parents.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(name))
    family = [top]
    for member in family:
        family += parents.get(member, [])
    return family


def memory_of(process: int) -> int:
    """Return the proportional set size in bytes; 0 for a process that is gone."""
    try:
        lines = Path("/proc", str(process), "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def fill_staleness(report: Report, ages: list[Age], holds: list[Span], outages: list[Span]) -> None:
    """Compute the ages.

    The time in which this test held the mount (``holds``) does not count; what waited while the
    daemon was dead and deploying again (``outages``) is told apart.
    """
    report.arrived = len(ages)
    calm = [age for age in ages if not age.overlap(outages)]
    counted = [(age.record, age.seen - age.record.time - age.overlap(holds)) for age in calm]
    files = [(r.size, seconds) for r, seconds in counted if r.deed == "closed"]
    small = [seconds for size, seconds in files if size <= SMALL]
    report.staleness_p50, report.staleness_p99 = quantile(small, 0.5), quantile(small, 0.99)
    report.staleness_large_p99 = quantile((s for size, s in files if size > SMALL), 0.99)
    report.staleness_databases_p99 = quantile(
        (seconds for record, seconds in counted if record.deed != "closed"), 0.99
    )
    slow = sorted(((s, r.deed, r.path) for r, s in counted), reverse=True)
    report.slowest = list({path: (s, deed, path) for s, deed, path in reversed(slow)}.values())
    report.slowest = sorted(report.slowest, reverse=True)[:SLOWEST]
    report.runs = _by_run([(r, s) for r, s in counted if r.deed == "closed" and r.size <= SMALL])
    report.staleness_over_death = max(
        (age.seen - age.record.time for age in ages if age.overlap(outages)), default=None
    )


def _by_run(counted: list[tuple[Record, float]]) -> dict[str, tuple[int, float, float]]:
    runs: dict[str, list[float]] = {}
    for record, seconds in counted:
        runs.setdefault("/".join(record.path.split("/")[:2]), []).append(seconds)
    return {
        name: (len(found), quantile(found, 0.5) or 0.0, quantile(found, 0.99) or 0.0)
        for name, found in runs.items()
    }


def fill(report: Report, records: list[Record]) -> None:
    """Compute what the records tell."""
    report.bytes_changed = sum(record.size for record in records)
    if report.bytes_changed:
        report.written_per_changed = report.bytes_written / report.bytes_changed
    report.longest_lock = longest(records)


def longest(records: list[Record]) -> float | None:
    """Return how long the database that is written all the time was locked, in seconds."""
    return max((r.took for r in records if r.deed == "probed"), default=None)


def pace(*sessions: list[Record]) -> float:
    """Return the median seconds of the piece of work that is done again and again.

    But for each session's first, which meets the start of all actors.
    """
    took = [[record.took for record in records if record.deed == "paced"] for records in sessions]
    return statistics.median(seconds for found in took for seconds in found[1:])
