"""What is measured: each scenario for every tool in turn, on a mount of its own."""

from __future__ import annotations

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from blake3 import blake3

from onesync import control
from tests.bench.known import known_tree
from tests.bench.mounts import Mount, calls_of, disk, passthrough, standin
from tests.bench.tools import (
    Copy,
    Lsyncd,
    LsyncdDelta,
    Onesync,
    Place,
    Rclone,
    RcloneMany,
    RcloneRenames,
    RcloneUnchecked,
    Rsync,
    RsyncAppend,
    RsyncDelta,
    Tool,
    Unison,
    Used,
)
from tests.bench.usage import Watch, cpu_seconds
from tests.node import Node, as_a_unit

MEBIBYTE = 1 << 20
_DIRECTORIES = 20
_SMALL = 4096
_MEMORY = Path("/dev/shm")
_STATUS_FOLDER = ".deployment_status_do_not_delete"
_SERIALISED = 3
"""Calls of a new file that the kernel makes one by one in a directory, created in place."""
_NEW_CALLS, _STAGED_CALLS = 6, 5
"""Look, create, attributes, write, flush, release; look, open, read, flush, release."""
_AT_ONCE = 64
"""Calls that the mounts serve at a time."""
SETTLE_SECONDS = 2.0
"""After so many seconds of rest onesync brings a file; the default."""

SPREAD = "directories: "
Make = Callable[[Place], Tool]
Burst = Callable[[Path, int], float]
_PLAIN: tuple[Make, ...] = (Onesync, Rsync, Rclone, Copy)
_MANY_AT_ONCE: tuple[Make, ...] = (Onesync, Rclone, RcloneMany, RcloneUnchecked)


@dataclass(frozen=True)
class Size:
    """How much of everything; ``serial`` files for tools that bring one after the other."""

    small: int
    serial: int
    staged: int
    large: int
    huge: int
    several: int
    renamed: int
    saved: int
    burst: int
    files: tuple[int, ...]
    latencies: tuple[float, ...]
    directories: tuple[int, ...]
    entries: tuple[int, ...]
    scale: tuple[tuple[str, int], ...]


QUICK = Size(
    small=100,
    serial=10,
    staged=100,
    large=64 * MEBIBYTE,
    huge=128 * MEBIBYTE,
    several=4,
    renamed=200,
    saved=1,
    burst=1000,
    files=(30, 100),
    latencies=(0.0, 0.01),
    directories=(1, 20),
    entries=(1000, 10_000),
    scale=(("fold", 10_000), ("daemon", 1000), ("watched", 1000), ("staged", 1000)),
)
FULL = Size(
    small=1000,
    serial=100,
    staged=5000,
    large=1024 * MEBIBYTE,
    huge=4096 * MEBIBYTE,
    several=8,
    renamed=5000,
    saved=6,
    burst=100_000,
    files=(100, 400, 1600),
    latencies=(0.0, 0.002, 0.005, 0.01, 0.02, 0.03),
    directories=(1, 5, 20, 80),
    entries=(10_000, 100_000, 1_000_000),
    scale=(
        ("fold", 1_000_000),
        ("daemon", 10_000),
        ("daemon", 1_000_000),
        ("watched", 100_000),
        ("staged", 1_000_000),
    ),
)


@dataclass
class Row:
    """One measurement. Bytes and calls are the mount's; ``files`` is what they are divided by.

    ``slowed`` is by what part the one who writes the files takes longer.
    """

    scenario: str
    tool: str
    latency: float
    files: int
    seconds: float
    calls: int
    written: int
    read: int
    cpu: float
    memory: int
    note: str = ""
    slowed: float | None = None

    @property
    def seconds_each(self) -> float:
        return self.seconds / self.files

    @property
    def calls_each(self) -> float:
        return self.calls / self.files


class Bench:
    """Runs scenarios beneath ``home``, and tells each row to ``found``."""

    def __init__(self, home: Path, size: Size, found: Callable[[Row], None]) -> None:
        self._home = home
        self._size = size
        self._found = found
        self._random = random.Random(5)

    def measure(self, name: str) -> str:
        """Measure a scenario; returns "" or in one line how it failed: the others go on."""
        try:
            getattr(self, name)()
        except Exception as error:  # noqa: BLE001 - told in the table, and by the exit code
            traceback.print_exc()
            told = f"{type(error).__name__}: {error}"
            return told.splitlines()[0]
        return ""

    # -- the scenarios --------------------------------------------------------------------------

    def new_and_unchanged(self) -> None:
        """New small files over 20 directories, then nothing changed."""
        for make in (Onesync, Rsync, Lsyncd, Rclone, RcloneMany, Unison, Copy):
            self._new(make, 0.01, self._number(make), "new small files", again=make is not Copy)
        self._floor("new small files", self._size.small, _NEW_CALLS, _SERIALISED)

    def files(self) -> None:
        """Time against the number of files."""
        for number in self._size.files:
            for make in (Onesync, Rclone, Rsync):
                if make is not Rsync or number == self._size.files[0]:
                    self._new(make, 0.01, number, "files")

    def latencies(self) -> None:
        """Time against latency."""
        for latency in self._size.latencies:
            for make in (Onesync, Rclone, Rsync):
                number = self._size.small // 5 if make is not Rsync else self._size.serial // 5
                self._new(make, latency, number, "latency")

    def directories(self) -> None:
        """Time against the number of directories that the files are spread over."""
        for spread in self._size.directories:
            for make in (Onesync, Rclone):
                self._new(make, 0.01, self._size.small // 2, f"{SPREAD}{spread}", spread=spread)

    def staged_in(self) -> None:
        """Small files into an empty working directory; no disk is measured."""
        for make in (Onesync, Rsync, Rclone, RcloneMany, RcloneUnchecked, Unison, Copy):
            number = self._size.staged if make in _MANY_AT_ONCE else self._number(make)
            with self._place(passthrough, _MEMORY) as place:
                self._fill(place.backing, number)
                with _ended(self._published(make, place)) as tool:
                    place.mount.latency(0.01)
                    self._row("stage-in of small files", tool, 0.01, number, tool.pull)
        self._floor("stage-in of small files", self._size.staged, _STAGED_CALLS, 1)

    def scale(self) -> None:
        """What a project of many entries costs where little or nothing happens."""
        for name, entries in self._size.scale:
            command = [sys.executable, "-m", "tests.bench.scale", name, str(entries)]
            told = subprocess.run(command, capture_output=True, check=True, text=True).stdout
            for row in _of_scale(name, entries, json.loads(told)):
                self._found(row)

    def changed(self) -> None:
        """1 MB appended to a large file, then 1 MB changed in its middle."""
        megabyte = 10**6
        for make in (Onesync, Rsync, RsyncAppend, RsyncDelta, Lsyncd, LsyncdDelta, Rclone, Unison):
            with self._equal(
                make, passthrough, lambda top: self._write(top / "stack.mrcs")
            ) as tool:
                stack = tool.place.work / "stack.mrcs"
                with stack.open("ab") as file:
                    file.write(self._random.randbytes(megabyte))
                self._row("1 MB appended", tool, 0, 1, tool.push)
                if make is RsyncAppend:
                    continue
                with stack.open("r+b") as file:
                    file.seek(self._size.large // 2 + 12345)
                    file.write(self._random.randbytes(megabyte))
                _in_another_second(stack)
                self._row("1 MB changed in the middle", tool, 0, 1, tool.push)

    def renamed(self) -> None:
        """A directory that is renamed."""
        number = self._size.renamed
        for make in (Onesync, Rsync, RcloneRenames, Lsyncd, Unison):
            with self._equal(make, passthrough, lambda top: _fill_one(top / "old", number)) as tool:
                (tool.place.work / "old").rename(tool.place.work / "new")
                self._row("directory renamed", tool, 0, 1, tool.push)

    def large(self) -> None:
        """One large file, in both directions; the middle of three turns, in which all take part.

        All lies in memory that was used just now: neither a disk of this machine is measured nor
        how long it takes to get memory for the first time.
        """
        measures = [(way, make) for way in (self._large_out, self._large_in) for make in _PLAIN]
        # How fast a yet larger one goes is asked of who is compared with cp alone.
        measures += [(self._huge_in, make) for make in (Onesync, Copy)]
        turns = [[measure(make) for measure, make in measures] for _ in range(3)]
        for rows in zip(*turns, strict=True):
            self._found(sorted(rows, key=lambda row: row.seconds)[1])

    def _large_out(self, make: Make) -> Row:
        with self._equal(make, passthrough, lambda _: None, _MEMORY) as tool:
            self._write(tool.place.work / "stack.mrcs")
            self._warm_up()
            return self._measured("large file pushed", tool, 0, 1, tool.push)

    def _large_in(self, make: Make) -> Row:
        return self._one_in(make, "large file staged in", self._size.large)

    def _huge_in(self, make: Make) -> Row:
        return self._one_in(make, "file of 4 GB staged in", self._size.huge)

    def _one_in(self, make: Make, name: str, size: int) -> Row:
        with self._place(passthrough, _MEMORY) as place:
            self._write(place.backing / "stack.mrcs", size)
            with _ended(self._published(make, place)) as tool:
                self._warm_up(size)
                return self._measured(name, tool, 0, 1, tool.pull)

    def _warmed_up(self, burst: Callable[[Path, int], float], top: Path, number: int) -> float:
        self._warm_up()
        return burst(top, number)

    def _warm_up(self, size: int = 0) -> None:
        os.sync()  # what a disk has to write yet would be written beside what is measured
        with tempfile.NamedTemporaryFile(dir=_MEMORY) as file:
            for _ in range(2 * (size or self._size.large) // MEBIBYTE):
                file.write(bytes(MEBIBYTE))

    def several(self) -> None:
        """Several large files at once, in both directions."""
        size, number = self._size.large // 32, self._size.several
        for make in _PLAIN:
            with self._equal(make, standin, lambda _: None) as tool:
                self._stacks(tool.place.work, size)
                tool.place.mount.latency(0.01)
                self._row("several large files", tool, 0.01, number, tool.push)
        for make in _PLAIN:
            with self._place(passthrough, _MEMORY) as place:
                self._stacks(place.backing, size)
                with _ended(self._published(make, place)) as tool:
                    place.mount.latency(0.01)
                    self._row("several large files staged in", tool, 0.01, number, tool.pull)

    def _stacks(self, top: Path, size: int) -> None:
        for number in range(self._size.several):
            self._write(top / f"stack{number}.mrcs", size)

    def saved(self) -> None:
        """From saved to in OneData, of one small file at a time: the median."""
        number = self._size.saved
        for make in (Onesync, Lsyncd):
            with self._equal(make, standin, lambda top: self._fill(top, 20)) as tool:
                tool.place.mount.latency(0.01)
                self._row("saved until in OneData, p50", tool, 0.01, number, self._arrivals(tool))

    def burst(self) -> None:
        """A burst of files, and what it does to the one who writes them.

        In memory, and who follows is as polite as onesync's unit makes it. What no tool can do
        without is the kernel telling of each file: that is measured, too.
        """
        number = self._size.burst
        scenario = f"burst of {number:,}"
        self._found(self._floor_of_burst(scenario, number, _MEMORY))
        for make in (Onesync, Lsyncd):
            count = self._of_burst(make)
            _, slowed = self._slowed(make, count, _MEMORY)
            with self._equal(_politely(make), passthrough, lambda _: None, _MEMORY) as tool:
                act = partial(self._brought, tool, count)
                row = self._measured(scenario, tool, 0, count, act)
            row.slowed = slowed
            row.note = row.note or (f"{count:,} files" if count != number else "")
            self._found(row)

    def burst_on_disk(self) -> None:
        """What the same burst does to its writer where a file costs what a disk's system takes."""
        number = self._size.burst
        scenario = f"burst of {number:,} on ext4"
        with disk(_MEMORY) as within:
            self._found(self._floor_of_burst(scenario, number, within))
            for make in (Onesync, Lsyncd):
                count = self._of_burst(make)
                took, slowed = self._slowed(make, count, within)
                name = "onesync" if make is Onesync else Lsyncd.name
                note = "its writing alone" + f"; {count:,} files" * (count != number)
                row = Row(scenario, name, 0, count, took, 0, 0, 0, 0, 0, note, slowed=slowed)
                self._found(row)

    def _of_burst(self, make: Make) -> int:
        # lsyncd takes its time for each file: the fifth part is told for all.
        return self._size.burst if make is Onesync else self._size.burst // 5

    def _floor_of_burst(self, scenario: str, number: int, within: Path) -> Row:
        alone, told = self._by_turns(_burst, _burst_told, number, within)
        return Row(scenario, "floor", 0, number, told, 0, 0, 0, 0, 0, slowed=told / alone - 1)

    def _slowed(self, make: Make, number: int, within: Path) -> tuple[float, float]:
        """Return what a burst takes that is followed, and how much longer that is than alone."""
        followed = partial(self._burst_beside, make, within)
        alone, beside = self._by_turns(_burst, followed, number, within)
        return beside, beside / alone - 1

    def _by_turns(self, one: Burst, other: Burst, number: int, within: Path) -> tuple[float, float]:
        """Return the shortest times of two bursts, of some turns each."""
        with tempfile.TemporaryDirectory(dir=within) as home:
            took = [
                self._warmed_up(burst, Path(home, f"{turn}-{which}"), number)
                for turn in range(_TURNS)
                for which, burst in enumerate((one, other))
            ]
        return min(took[::2]), min(took[1::2])

    def _burst_beside(self, make: Make, within: Path, _: Path, number: int) -> float:
        """Return what a burst takes that is followed; what it brings is left undone."""
        with self._equal(_politely(make), passthrough, lambda _: None, within) as tool:
            self._warm_up()
            took = _burst(tool.place.work / "burst", number)
            tool.kill()
            return took

    def _brought(self, tool: Tool, number: int) -> Used:
        self._warm_up()
        took = _burst(tool.place.work / "burst", number)
        return tool.push().after(took)

    def entries(self) -> None:
        """Memory and a full rescan against the number of entries that are known."""
        for number in self._size.entries:
            with tempfile.TemporaryDirectory(dir=self._home) as home:
                node = known_tree(Path(home), number)
                try:
                    self._found(_rescanned(node, number))
                finally:
                    node.end()

    # -- how each is done -----------------------------------------------------------------------

    def _number(self, make: Make) -> int:
        return self._size.small if make in _MANY_AT_ONCE else self._size.serial

    def _new(
        self,
        make: Make,
        latency: float,
        number: int,
        scenario: str,
        *,
        again: bool = False,
        spread: int = _DIRECTORIES,
    ) -> None:
        with self._equal(make, standin, partial(_directories, spread=spread)) as tool:
            tool.place.mount.latency(latency)
            self._row(scenario, tool, latency, number, self._filled(tool, number, spread))
            if again:
                self._row("nothing changed", tool, latency, number, tool.push)

    def _floor(self, scenario: str, number: int, calls: int, serialised: int) -> None:
        """Tell what the mount itself allows: a directory's files come one after the other."""
        most = max(calls, serialised * number / _DIRECTORIES, calls * number / _AT_ONCE)
        seconds = 0.01 * most
        self._found(Row(scenario, "floor", 0.01, number, seconds, calls * number, 0, 0, 0, 0))

    @contextmanager
    def _place(self, kind: Callable[[Path], Mount], within: Path | None = None) -> Iterator[Place]:
        within = within or self._home
        with tempfile.TemporaryDirectory(dir=within) as home, kind(Path(home, "fuse")) as mount:
            yield Place(Path(home, "project"), mount)

    @contextmanager
    def _equal(
        self,
        make: Make,
        kind: Callable[[Path], Mount],
        fill: Callable[[Path], object],
        within: Path | None = None,
    ) -> Iterator[Tool]:
        """Yield a tool that has begun with both sides the same."""
        with self._place(kind, within) as place:
            fill(place.backing)
            tool = make(place)
            if not isinstance(tool, Onesync):  # which stages in itself
                subprocess.run(["cp", "-a", f"{place.backing}/.", str(place.work)], check=True)
            with _ended(tool):
                tool.start()
                place.mount.reset()
                yield tool

    def _published(self, make: Make, place: Place) -> Tool:
        """Return a tool whose work is in the store already, as its last node left it."""
        if make is Onesync:
            earlier = Onesync(Place(place.home / "earlier" / place.home.name, place.mount))
            earlier.start()
            earlier.stop()
            shutil.rmtree(earlier.place.work)
        return make(place)

    def _row(
        self, scenario: str, tool: Tool, latency: float, files: int, act: Callable[[], Used]
    ) -> None:
        self._found(self._measured(scenario, tool, latency, files, act))

    def _measured(
        self, scenario: str, tool: Tool, latency: float, files: int, act: Callable[[], Used]
    ) -> Row:
        mount = tool.place.mount
        mount.reset()
        used = act()
        if "stage" not in scenario:
            tool.rest()
        counts = mount.counts()
        return Row(
            scenario,
            tool.name,
            latency,
            files,
            used.seconds,
            calls_of(counts),
            counts.get("bytes_written", 0),
            counts.get("bytes_read", -1),
            used.cpu,
            used.memory,
            " ".join(filter(None, (used.note, difference(tool.place)))),
        )

    def _filled(self, tool: Tool, number: int, spread: int) -> Callable[[], Used]:
        """Return what writes files and brings them, for a tool that follows begins at once."""

        def act() -> Used:
            began = time.monotonic()
            self._fill(tool.place.work, number, spread)
            took = time.monotonic() - began  # not within the next line: the push would count twice
            return tool.push().after(took)

        return act

    def _arrivals(self, tool: Tool) -> Callable[[], Used]:
        def act() -> Used:
            took = [self._arrival(tool.place, number) for number in range(self._size.saved)]
            return Used(statistics.median(took) * len(took), 0, 0)

        return act

    def _arrival(self, place: Place, number: int) -> float:
        time.sleep(3 + self._random.random())
        name = f"saved{number}"
        (place.work / name).write_bytes(self._random.randbytes(_SMALL))
        began = time.monotonic()
        there = place.backing / name
        while not there.exists() or there.stat().st_size < _SMALL:
            assert time.monotonic() - began < 120, "it never arrives"
            time.sleep(0.005)
        return time.monotonic() - began

    def _fill(self, top: Path, number: int, spread: int = _DIRECTORIES) -> None:
        _directories(top, spread)
        for index in range(number):
            path = top / f"d{index % spread:02}" / f"f{index}"
            path.write_bytes(self._random.randbytes(_SMALL))

    def _write(self, path: Path, size: int = 0) -> None:
        with path.open("wb") as file:
            for _ in range((size or self._size.large) // MEBIBYTE):
                file.write(self._random.randbytes(MEBIBYTE))


@contextmanager
def _ended(tool: Tool) -> Iterator[Tool]:
    """Let a tool end in a hurry, whatever happens."""
    try:
        yield tool
    finally:
        tool.place.mount.latency(0)
        tool.stop()


def _rescanned(node: Node, number: int) -> Row:
    """Measure three full rescans of a tree in which nothing changed."""
    assert node.process is not None
    before, took = cpu_seconds(node.process.pid), []
    with Watch(node.process.pid) as watch:
        for _ in range(3):
            began = time.monotonic()
            control.ask(node.home / "run" / "control.sock", "flush", 600)
            took.append(time.monotonic() - began)
    cpu = (cpu_seconds(node.process.pid) - before) / 3
    name = "rescan of all entries"
    return Row(name, "onesync", 0, number, statistics.median(took), 0, 0, 0, cpu, watch.memory)


def _directories(top: Path, spread: int = _DIRECTORIES) -> None:
    for number in range(spread):
        (top / f"d{number:02}").mkdir(parents=True, exist_ok=True)


def _fill_one(top: Path, number: int) -> None:
    top.mkdir()
    for index in range(number):
        (top / f"f{index}").write_bytes(b"x" * 100)


def _in_another_second(path: Path) -> None:
    """Let tools that compare sizes and seconds see the change."""
    later = int(path.stat().st_mtime) + 2
    os.utime(path, (later, later))


_TURNS = 5
_BURST_DIRECTORIES = 50
_NICE = 10
"""As onesync's unit has it."""
_WRITER = """
import os, sys, time
top, number = sys.argv[1], int(sys.argv[2])
for folder in range(50):
    os.makedirs(f"{top}/{folder}", exist_ok=True)
began = time.monotonic()
for index in range(number):
    with open(f"{top}/{index % 50}/{index}", "wb", buffering=0) as file:
        file.write(b"x" * 100)
print(time.monotonic() - began)
"""


def _burst(top: Path, number: int) -> float:
    command: Sequence[str] = [sys.executable, "-c", _WRITER, str(top), str(number)]
    return float(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


def _burst_told(top: Path, number: int) -> float:
    """Let the kernel tell of each file, to one who only reads it away, as polite as the rest."""
    folders = [top / str(folder) for folder in range(_BURST_DIRECTORIES)]
    for folder in folders:
        folder.mkdir(parents=True)
    reader = [*as_a_unit(_NICE), sys.executable, "-m", "tests.bench.reader", *map(str, folders)]
    with subprocess.Popen(reader, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            return _burst(top, number)
        finally:
            process.kill()


def _politely(make: Make) -> Make:
    """Return what makes a tool that has the scheduling of onesync's unit."""
    return lambda place: (Onesync if make is Onesync else Lsyncd)(place, _NICE)


def _of_scale(name: str, entries: int, told: dict[str, Any]) -> list[Row]:
    """Return rows of what ``scale`` told.

    Memory is that of all processes; CPU of one that is idle is in per cent of a core.
    """

    def row(what: str, seconds: float, cpu: float, megabytes: float, note: str = "") -> Row:
        return Row(what, "onesync", 0, entries, seconds, 0, 0, 0, cpu, int(megabytes * 1e6), note)

    if name == "fold":
        return [row("manifest folded", told["seconds"], told["cpu_seconds"], told["peak_mb"])]
    if name == "staged":
        listing = f"from {told['resident_mb'][0]} MB on"
        return [
            row(
                "staged in, but for the copying",
                told["staged_seconds"],
                0,
                told["peaks_mb"],
                listing,
            )
        ]
    idle = (
        f"{told['idle_cpu_percent']} % of a core, {told['idle_wakes_per_second']} wake-ups a second"
    )
    # What two processes share counts once.
    rows = [row("idle", 0, told["idle_cpu_percent"], told["idle_once_mb"], idle)]
    if name == "daemon":
        flushed = row("final flush, nothing dirty", told["stop_seconds"], 0, told["flush_peak_mb"])
        rows.append(flushed)
    return rows


def difference(place: Place) -> str:
    """Return how the store's folder differs from ``work``; "" where it does not."""
    here, there = _contents(place.work), _contents(place.backing)
    wrong = [path for path in here.keys() | there.keys() if here.get(path) != there.get(path)]
    return f"{len(wrong)} of {len(here)} differ, such as {min(wrong)}" if wrong else ""


def _contents(top: Path) -> dict[str, str]:
    found = {}
    for folder, directories, files in os.walk(top):
        if _STATUS_FOLDER in directories:
            directories.remove(_STATUS_FOLDER)
        for name in files:
            path = Path(folder, name)
            found[str(path.relative_to(top))] = blake3().update_mmap(path).hexdigest()
    return found
