"""That what is told of a tool is what it did: by tools that are no more than what they tell."""

from __future__ import annotations

import json
import os
import signal
import sys
import tomllib
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest

from onesync.settings import Settings
from tests.bench import __main__ as program
from tests.bench import report, scenarios
from tests.bench.scenarios import QUICK, Bench, Row
from tests.bench.targets import NEW, TARGETS
from tests.bench.tools import Onesync, Place, Rclone, RcloneMany, Tool, Used
from tests.bench.usage import Watch
from tests.node import Node


class _Mount:
    """A mount that counts nothing."""

    def __init__(self, home: Path) -> None:
        self.path = self.backing = home

    def __enter__(self) -> _Mount:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is mounted."""

    def counts(self) -> dict[str, int]:
        return {}

    def reset(self) -> None:
        """Nothing is counted."""

    def latency(self, seconds: float) -> None:
        """Nothing takes time."""


class _Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


_PUSH, _FILL = 5.0, 2.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    """A clock that goes on only by what is done."""
    clock = _Clock()

    def fill(*_: object) -> None:
        clock.now += _FILL

    def burst(*_: object) -> float:
        clock.now += _FILL
        return _FILL

    monkeypatch.setattr(scenarios, "time", SimpleNamespace(monotonic=clock.monotonic))
    monkeypatch.setattr(Bench, "_fill", fill)
    monkeypatch.setattr(Bench, "_warm_up", lambda _: None)
    monkeypatch.setattr(scenarios, "_burst", burst)
    return clock


def _tool(tmp_path: Path, clock: _Clock) -> Tool:
    class Known(Tool):
        def push(self) -> Used:
            clock.now += _PUSH
            return Used(_PUSH, 1.0, 0)

    return Known(Place(tmp_path / "project", _Mount(tmp_path / "mount")))


def test_a_push_counts_once_beside_the_writing_of_its_files(tmp_path: Path, clock: _Clock) -> None:
    bench, tool = Bench(tmp_path, QUICK, lambda _: None), _tool(tmp_path, clock)
    row: Row = bench._measured("x", tool, 0, 10, bench._filled(tool, 10, 1))
    assert row.seconds == _FILL + _PUSH


def test_so_it_does_after_a_burst(tmp_path: Path, clock: _Clock) -> None:
    bench, tool = Bench(tmp_path, QUICK, lambda _: None), _tool(tmp_path, clock)
    assert bench._brought(tool, 10).seconds == _FILL + _PUSH


def _row(scenario: str, tool: str = "onesync", seconds: float = 1.0) -> Row:
    return Row(scenario, tool, 0.01, 100, seconds, 0, 0, 0, 0, 0)


def test_a_scenario_that_fails_is_told_and_the_others_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Bench) -> None:
        raise AssertionError("unison: it does not end\nand its log")

    def succeed(bench: Bench) -> None:
        bench._found(_row("directory renamed"))

    written: list[tuple[list[Row], dict[str, str]]] = []
    readme = tmp_path / "README.md"
    readme.write_text("as it was")
    monkeypatch.setattr(Bench, "changed", fail)
    monkeypatch.setattr(Bench, "renamed", succeed)
    monkeypatch.setattr(program, "_SCENARIOS", ("changed", "renamed"))
    monkeypatch.setattr(program, "_NEEDED", ())
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(program, "_write", lambda *found: written.append(found[:2]))
    (tmp_path / "bench.md").write_text("")
    words = ["bench", "--out", str(tmp_path), "--readme", str(readme)]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        program.main()
    rows, failed = written[-1]
    assert [row.scenario for row in rows] == ["directory renamed"]
    assert failed == {"changed": "AssertionError: unison: it does not end"}
    assert "changed failed" in str(ended.value.code)
    assert readme.read_text() == "as it was"
    table = report.table(rows, failed)
    assert "directory renamed" in table
    assert "**changed** broke off" in table
    assert json.loads(report.as_json(rows, failed, ""))["failed"] == failed


def test_targets_are_measured_against_rclone_with_32_transfers() -> None:
    many = RcloneMany.name
    rows = [_row(NEW), _row(NEW, Rclone.name, 8.0), _row(NEW, many, 4.0), _row(NEW, "rsync", 90.0)]
    measured = {target.what: target.measured(rows) for target in TARGETS}
    assert Rclone.at_once == "32"
    assert measured["a new small file: times rclone's speed"] == 8.0
    assert measured["a new small file: times rsync's speed"] == 90.0
    assert "; --transfers 64" in report.summary(rows)  # whose number it is, where it is told


def test_all_of_onesync_that_is_measured_is_as_by_default_but_what_is_said(
    tmp_path: Path,
) -> None:
    tool = Onesync(Place(tmp_path / "project", _Mount(tmp_path / "mount")))
    told = tomllib.loads(tool.node.config.read_text())
    places = {name: told[name] for name in ("working_dir", "onedata_dir")}
    default = asdict(Settings(**places, state_dir=tmp_path, runtime_dir=tmp_path))
    differ = {
        f"{section}.{key}"
        for section, keys in told.items()
        if isinstance(keys, dict)
        for key, value in keys.items()
        if value != default[section][key]
    }
    assert differ == {"mount.io_timeout_seconds", "lock.settle_seconds", "metrics.listen"}


def test_onesync_is_asked_nothing_while_it_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(_: Node) -> None:
        raise AssertionError("an answer takes the daemon time that would count")

    place = Place(tmp_path / "project", _Mount(tmp_path / "mount"))
    (place.store / "file").write_bytes(b"content")
    tool = Onesync(place, mount__require_fuse=False)
    monkeypatch.setattr(Node, "status", asked)
    try:
        used = tool.pull()
    finally:
        tool.stop()
    assert (place.work / "file").read_bytes() == b"content"
    assert 0 < float(used.note.split()[0]) <= round(used.seconds, 1)


def test_memory_is_looked_at_twice_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    class Over:
        def wait(self, seconds: float) -> bool:
            pauses.append(seconds)
            return len(pauses) > 3

    watch = Watch(os.getpid())
    monkeypatch.setattr(watch, "_over", Over())
    watch._sample()
    assert pauses == [0.05, 0.5, 0.5, 0.5]
