"""A live session on a slow mount: what OneData holds is consistent at any instant, and at the end.

ONESYNC_SESSION_SECONDS and ONESYNC_SESSION_FACTOR set length and speed, ONESYNC_SESSION_EVERY the
seconds from instant to instant, ONESYNC_SESSION_REPORT a file for the numbers; with
ONESYNC_SESSION_TELLS=1 the mount tells what has arrived, as OneData.
No time is asserted; what is written for each byte that changed is.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from onesync.settings import BatchSettings
from tests.node import Node, as_a_unit
from tests.standin.passthrough import Passthrough
from tests.workload.oracle import (
    PATIENCE,
    Instants,
    Seen,
    check_end,
    check_tree,
    deploy_patiently,
    wait_patiently,
)
from tests.workload.record import Reader, Record
from tests.workload.report import Memory, Report, Span, Staleness, fill, fill_staleness, pace

SECONDS = float(os.environ.get("ONESYNC_SESSION_SECONDS", "120"))
FACTOR = os.environ.get("ONESYNC_SESSION_FACTOR", "1")
TELLS = os.environ.get("ONESYNC_SESSION_TELLS") == "1"
SEED = os.environ.get("ONESYNC_SESSION_SEED", "1")
LATENCY = 0.002
EVERY = float(os.environ.get("ONESYNC_SESSION_EVERY", max(5.0, SECONDS / 240)))
WHOLE = 1200.0
"""So many seconds have as many files at once, and deaths, as the specification says."""
MANY = 20_000
DEATHS = 10
TURN = 10.0
TURNS = max(1, 2 * int(SECONDS // 200))
PACE: dict[str, object] = {
    "batch__settle_seconds": BatchSettings().settle_seconds,
    "batch__min_interval_seconds": BatchSettings().min_interval_seconds,
}
_MOST_WRITTEN = 1.5
NICE = 10
"""With the scheduling of the unit."""

_REPOSITORY = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.session,
    pytest.mark.timeout(int(4 * SECONDS + 4 * PATIENCE)),
]


class Session:
    """The actors as a process of their own."""

    def __init__(self, root: Path, home: Path, seconds: float) -> None:
        home.mkdir()
        self.record = home / "record.jsonl"
        words = ["--seconds", str(seconds), "--factor", FACTOR, "--seed", SEED]
        words += ["--many", str(int(MANY * max(TURN, seconds) / WHOLE))]
        places = ["--outside", str(home), "--record", str(self.record)]
        self._log = home / "log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.workload.live", str(root), *words, *places],
                cwd=_REPOSITORY,
                stderr=log,
            )

    def goes_on(self) -> bool:
        return self.process.poll() is None

    def end(self) -> None:
        """Wait for the end; every actor must have played to it."""
        assert self.process.wait(PATIENCE) == 0, self._log.read_text()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@dataclass
class Times:
    """When this test disturbed the daemon (monotonic, begin and end)."""

    holds: list[Span] = field(default_factory=list)
    outages: list[Span] = field(default_factory=list)


@pytest.fixture
def mounted() -> Iterator[Passthrough]:
    """OneData is elsewhere: its storage must not wait for the disk that the actors write to."""
    with in_memory() as home, Passthrough(home, tells=TELLS) as mount:
        (mount.backing / "project").mkdir()
        yield mount


@contextmanager
def in_memory() -> Iterator[Path]:
    """Yield a directory in memory, with names without end: an instant is a tree of hard links."""
    with tempfile.TemporaryDirectory() as home:
        options = ["-t", "tmpfs", "-o", "size=90%,nr_inodes=0"]
        subprocess.run(["mount", *options, "session", home], check=True)
        try:
            yield Path(home)
        finally:
            subprocess.run(["umount", home], check=True)


@contextmanager
def held(mounted: Passthrough, times: Times) -> Iterator[None]:
    """Let no call on the mount go through, and wait for those that are on their way."""
    began = time.monotonic()
    mounted.hang()
    time.sleep(0.1)
    try:
        yield
    finally:
        mounted.release()
        times.holds.append((began, time.monotonic()))


@pytest.fixture
def one(tmp_path: Path, mounted: Passthrough) -> Iterator[Node]:
    node = Node(tmp_path / "one", mounted.path / "project", mount__require_fuse=True, **PACE)
    node.within = as_a_unit(NICE)
    yield node
    if node.running():
        node.end(signal.SIGKILL)


@pytest.fixture
def two(tmp_path: Path, mounted: Passthrough) -> Iterator[Node]:
    node = Node(tmp_path / "two", mounted.path / "project", mount__require_fuse=True, **PACE)
    yield node
    if node.running():
        node.end(signal.SIGKILL)


def test_a_live_session(tmp_path: Path, mounted: Passthrough, one: Node, two: Node) -> None:
    folder = mounted.backing / "project"
    instants = Instants(folder, mounted.backing.parent)
    mounted.latency(LATENCY)
    deploy_patiently(one)
    mounted.reset()
    report, seen, times = Report(seconds=SECONDS), Seen(), Times()
    session = Session(one.work, tmp_path / "outside", SECONDS)
    staleness = Staleness(session.record, folder)
    memory = Memory(lambda: one.process.pid if one.process else None)
    staleness.start()
    memory.start()
    try:
        watch(session, mounted, one, instants, report, times)
        session.end()
        accept(one, report)
    finally:
        session.kill()
    report.longest_flush = undeploy(one)
    report.never_arrived = staleness.finish()
    report.peak_memory = memory.finish()
    counts = mounted.counts()
    report.bytes_written = counts.pop("bytes_written", 0)
    report.calls = counts
    fill(report, staleness.records)
    fill_staleness(report, staleness.ages, times.holds, times.outages)
    tell(report)
    two.start()  # beside the judging: it waits for the slow mount most of the time
    wrong = instants.judge(mounted.backing.parent, seen)
    sys.stdout.write(f"{seen.files:,} files of {len(instants.copies)} instants were judged\n")
    wait_patiently(two)
    last = check_tree(two.work, seen) + check_end(one.work, two.work)
    wrong += [f"at the end: {sentence}" for sentence in last]
    assert seen.rows > 0
    assert seen.markers > 0
    sys.stdout.write(f"{len(seen.notes)} promises were behind\n")
    assert report.written_per_changed is not None
    assert report.written_per_changed <= _MOST_WRITTEN
    assert two.status()["problems"] == [], two.log()
    assert not wrong, "\n".join(wrong)


def test_the_pace_of_writers(tmp_path: Path, mounted: Passthrough) -> None:
    """The actors in turns with and without onesync: a machine's own moods last longer."""
    mounted.latency(LATENCY)
    alone: list[list[Record]] = []
    beside: list[list[Record]] = []
    for number in range(TURNS):
        turns = [(alone, act_alone), (beside, act_beside)]
        for found, act in turns if number % 2 else reversed(turns):
            found.append(act(tmp_path / f"{act.__name__}-{number}", mounted))
    without, with_it = (pace(*turns) for turns in (alone, beside))
    ratios = sorted(pace(two) / pace(one) - 1 for one, two in zip(alone, beside, strict=True))
    told = f"pace of writers: {1000 * without:.1f} ms, beside onesync {1000 * with_it:.1f} ms"
    each = " ".join(f"{ratio:+.0%}" for ratio in ratios)
    sys.stdout.write(f"\n{told} ({with_it / without - 1:+.0%}; by turns {each})\n")


def act_alone(home: Path, _: Passthrough) -> list[Record]:
    """Return what the actors do where no onesync runs."""
    session = Session(home, home.with_name(f"{home.name}-outside"), TURN)
    session.end()
    return Reader(session.record).more()


def act_beside(home: Path, mounted: Passthrough) -> list[Record]:
    """Return what the actors do in a working directory that onesync deployed."""
    folder = mounted.path / home.name
    folder.mkdir()
    node = Node(home, folder, mount__require_fuse=True, **PACE)
    node.within = as_a_unit(NICE)
    deploy_patiently(node)
    try:
        session = Session(node.work, home.with_name(f"{home.name}-outside"), TURN)
        session.end()
        undeploy(node)
    finally:
        if node.running():
            node.end(signal.SIGKILL)
    return Reader(session.record).more()


def watch(
    session: Session,
    mounted: Passthrough,
    node: Node,
    instants: Instants,
    report: Report,
    times: Times,
) -> None:
    """Keep an instant every few seconds, to be judged when nothing is measured any more.

    The daemon dies on the way, once in each part of the session but its ends.
    """
    deaths = deaths_from(time.monotonic())
    while session.goes_on():
        began = time.monotonic()
        if deaths and began > deaths[0]:
            deaths.pop(0)
            node.end(signal.SIGKILL)
            report.deaths += 1
        report.instants += 1
        with held(mounted, times):
            instants.take()
        if not node.running():
            assert report.deaths, node.log()
            deploy_patiently(node)
            times.outages.append((began, time.monotonic()))
        accept(node, report)
        time.sleep(max(0.0, began + EVERY - time.monotonic()))


def accept(node: Node, report: Report) -> None:
    """Let go what is held: nobody saw that it was deleted, for the daemon was dead."""
    if node.status()["held_deletions"]:
        assert report.deaths, node.log()
        report.asked += 1
        accepted = node.command("resume", "--accept-deletions")
        assert accepted.returncode == 0, accepted.stderr


def deaths_from(began: float) -> list[float]:
    """Return when the daemon dies in a session that ``began`` then."""
    chance = random.Random(SEED)
    number = max(1, int(DEATHS * SECONDS / WHOLE))
    part = 0.8 * SECONDS / number
    return [began + 0.1 * SECONDS + part * (n + chance.random()) for n in range(number)]


def undeploy(node: Node) -> float:
    """End the daemon as systemd does, and wait for its last flush; returns its seconds."""
    assert node.process is not None
    assert node.running(), node.log()
    began = time.monotonic()
    node.process.send_signal(signal.SIGTERM)
    assert node.process.wait(PATIENCE) == 0, node.log()
    return time.monotonic() - began


def tell(report: Report) -> None:
    """Print the numbers, and write them where asked."""
    sys.stdout.write("\n" + report.table() + "\n")
    if place := os.environ.get("ONESYNC_SESSION_REPORT"):
        report.write(Path(place))
