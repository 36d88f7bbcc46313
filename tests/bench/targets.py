"""What onesync is to reach, and whether it did in this run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tests.bench.scenarios import SETTLE_SECONDS, Row

NEW, STAGED = "new small files", "stage-in of small files"
APPENDED, CHANGED = "1 MB appended", "1 MB changed in the middle"


@dataclass(frozen=True)
class Target:
    """One number. ``at_least`` tells on which side of ``limit`` it is to be."""

    what: str
    limit: float
    unit: str
    measured: Callable[[list[Row]], float | None]
    at_least: bool = False

    def line(self, rows: list[Row]) -> list[str] | None:
        """Return the cells of a table; None where it was not measured."""
        found = self.measured(rows)
        if found is None:
            return None
        met = found >= self.limit if self.at_least else found <= self.limit
        side = "at least" if self.at_least else "at most"
        wanted, got = (f"{number:,.3g}{self.unit}" for number in (self.limit, found))
        return [self.what, f"{side} {wanted}", got, "" if met else "missed"]


def _row(rows: Iterable[Row], scenario: str, tool: str = "onesync", files: int = 0) -> Row | None:
    """Return the quickest row of a tool as the targets mean it, without its other ways."""
    mine = (
        row
        for row in rows
        if (row.scenario, row.tool) == (scenario, tool) and files in (0, row.files)
    )
    return min(mine, key=lambda row: row.seconds_each, default=None)


def _times(scenario: str, tool: str) -> Callable[[list[Row]], float | None]:
    """Return how many times as long as onesync a tool takes for a file."""

    def measured(rows: list[Row]) -> float | None:
        ours, theirs = _row(rows, scenario), _row(rows, scenario, tool)
        return theirs.seconds_each / ours.seconds_each if ours and theirs else None

    return measured


def _of(
    scenario: str, number: Callable[[Row], float | None], files: int = 0
) -> Callable[[list[Row]], float | None]:
    def measured(rows: list[Row]) -> float | None:
        row = _row(rows, scenario, files=files)
        return None if row is None else number(row)

    return measured


def _megabytes(row: Row) -> float:
    return row.written / 1e6


def _memory(row: Row) -> float:
    return row.memory / 1e6


def _slowed(row: Row) -> float | None:
    return None if row.slowed is None else 100 * row.slowed


_MILLION = 1_000_000
_RESCAN, _FOLDED, _IDLE = "rescan of all entries", "manifest folded", "idle"
TARGETS = (
    Target("a new small file: times rsync's speed", 60, "", _times(NEW, "rsync"), at_least=True),
    Target("a new small file: times rclone's speed", 6, "", _times(NEW, "rclone"), at_least=True),
    Target("a new small file: calls", 9, "", _of(NEW, lambda row: row.calls_each)),
    Target("nothing changed: calls", 0, "", _of("nothing changed", lambda row: row.calls_each)),
    Target("rescan of 1,000,000 entries", 6, " s", _of(_RESCAN, lambda row: row.seconds, _MILLION)),
    Target("memory, idle with 10,000 entries", 60, " MB", _of(_IDLE, _memory, 10_000)),
    Target("memory, idle with 1,000,000 entries", 250, " MB", _of(_IDLE, _memory, _MILLION)),
    Target("1 MB appended to 1 GB: written", 9, " MB", _of(APPENDED, _megabytes)),
    Target("1 MB changed in the middle of it: written", 9, " MB", _of(CHANGED, _megabytes)),
    Target("large file pushed: times cp's speed", 0.9, "", _times("large file pushed", "cp"), True),
    Target(
        "large file staged in: times cp's speed",
        0.9,
        "",
        _times("large file staged in", "cp"),
        True,
    ),
    Target(
        "file of 4 GB staged in: times cp's speed",
        0.9,
        "",
        _times("file of 4 GB staged in", "cp"),
        True,
    ),
    Target("a small file staged in: calls", 6, "", _of(STAGED, lambda row: row.calls_each)),
    Target("a small file staged in: times rsync's speed", 60, "", _times(STAGED, "rsync"), True),
    Target("a small file staged in: times rclone's speed", 5, "", _times(STAGED, "rclone"), True),
    Target(
        "saved until in OneData, beyond the settle time",
        0.3,
        " s",
        _of("saved until in OneData, p50", lambda row: row.seconds_each - SETTLE_SECONDS),
    ),
    Target("burst of 100,000: its writer slowed by", 5, " %", _of("burst of 100,000", _slowed)),
    Target(
        "the same on ext4: its writer slowed by", 5, " %", _of("burst of 100,000 on ext4", _slowed)
    ),
    Target(
        "manifest of 1,000,000 entries folded",
        10,
        " s",
        _of(_FOLDED, lambda row: row.seconds, _MILLION),
    ),
    Target(
        "manifest of 1,000,000 entries folded: memory", 400, " MB", _of(_FOLDED, _memory, _MILLION)
    ),
    Target(
        "final flush of 1,000,000 entries, nothing dirty",
        10,
        " s",
        _of("final flush, nothing dirty", lambda row: row.seconds, _MILLION),
    ),
    Target(
        "idle with 100,000 directories: of one core",
        0.5,
        " %",
        _of(_IDLE, lambda r: r.cpu, 100_000),
    ),
)
