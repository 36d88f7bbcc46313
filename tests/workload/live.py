"""A live session of Scipion: every way in which a project is written, all at once.

``python -m tests.workload.live ROOT --seconds N --factor F --seed S`` runs it alone. Rates are
those of a project of 750 movies, ``factor`` times as fast; sizes are smaller where the real ones
would fill a test machine. SQLite is opened by this process alone and a database's file is opened by
nothing else here: closing any descriptor of it would drop SQLite's locks.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import mmap
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from tests.workload import content, databases
from tests.workload.content import BLOCK
from tests.workload.names import ODD_NAMES
from tests.workload.record import Recorder
from tests.workload.runs import KEPT, Making, Run
from tests.workload.stage import Stage, free

STACK_PARTICLE = 4 * BLOCK
PATCHED_BLOCKS = 512
STRIDE = 37
"""Patches go through the blocks by this step, which has no common divisor with their number."""
MAPPED_BLOCKS = 1024
SPARSE_BLOCKS = 4096
CLASSES = 1_638_400
_AT_FDCWD = -100
_EXCHANGE = 2
_COPY = "import shutil, sys; shutil.copyfile(sys.argv[1], sys.argv[2])"

MOTION = Making(3_110_000, 2.0, ((".log", 3000), (".png", 60_000), (".shifts", 25_000)), 4.0)
CTF = Making(263_000, 0.5, ((".avrot", 30_000), (".psd", 131_000), (".xmd", 2000)), 4.0)
PICK = Making(40_000, 0.2, ((".star", 8000), (".box", 2000), (".cbox", 4000)), 4.0)
EXTRACT = Making(656_000, 1.0, ((".coords", 6000),), 4.0)
RESTARTED = Making(90_000, 0.0, ((".star", 5000),), 1.0)

Actor = Callable[[Stage], None]


def folder(stage: Stage, name: str) -> Path:
    """Return the ``extra`` of the run ``name``."""
    path = stage.root / "Runs" / name / "extra"
    path.mkdir(parents=True, exist_ok=True)
    return path


# -- streaming runs ------------------------------------------------------------------------------


def camera(stage: Stage) -> None:
    """Movies grow outside; the import links each one and adds its row."""
    extra = folder(stage, "000001_Import")
    rows = extra.parent / "movies.sqlite"
    for number in itertools.count(1):
        movie = stage.outside / f"movie_{number:06d}.tif"
        with movie.open("wb") as file:
            for _ in range(4):
                file.write(os.urandom(1000))
                stage.wait(0.5)
        link = extra / movie.name
        link.symlink_to(movie)
        stage.commit(rows, databases.add(number, stage.name_of(link), 1))
        if not stage.wait(2.0):
            return


def streaming(name: str, number: int, making: Making, workers: int) -> Actor:
    """Return the actor of a run with so many workers and its step engine."""

    def act(stage: Stage) -> None:
        run = Run(stage, name, making, number)
        run.make_folders()
        numbers = itertools.count(1)
        threads = [
            threading.Thread(target=_work, args=(run, numbers), name=f"{name} {n}")
            for n in range(workers)
        ]
        for thread in threads:
            thread.start()
        _step_engine(run)
        for thread in threads:
            thread.join()

    return act


def _work(run: Run, numbers: itertools.count[int]) -> None:
    while run.stage.wait(run.making.every / 2):
        item = next(numbers)
        run.make_item(item)
        if item % 7 == 0 and item > KEPT:
            run.take_back(item - KEPT)


def _step_engine(run: Run) -> None:
    """Write run.stdout through one descriptor, and rebuild the steps now and then."""
    path = run.folder / "logs" / "run.stdout"
    while not run.steps.exists():
        if not run.stage.wait(0.2):
            return
    with path.open("a", buffering=1) as output:
        for number in itertools.count(1):
            output.write(f"{number} {'output of a tool ' * 12}\r{number} done\n")
            if not run.stage.wait(0.5):
                return
            if number % 12 == 0:
                run.rebuild_steps()


def restart(stage: Stage) -> None:
    """A run that is removed and begun anew under the same names, at times with the same look."""
    run = Run(stage, "000020_Restarted", RESTARTED, 20)
    run.make_folders()
    while True:
        for item in range(1, 16):
            run.make_item(item)
            if not stage.wait(0.2):
                return
        seen = {n: run.path_of(n).stat().st_mtime_ns for n in range(1, 16, 3)}
        if not stage.wait(5.0):
            return
        run.begin_anew()
        _begin_with_old_times(run, seen)


def _begin_with_old_times(run: Run, seen: dict[int, int]) -> None:
    """Write some items anew with other bytes, but the size and the time that they had."""
    for item, mtime_ns in seen.items():
        path = run.path_of(item)
        run.stage.write(path, run.making.size, run.life)
        os.utime(path, ns=(mtime_ns, mtime_ns))


def restart_large(stage: Stage) -> None:
    """A run of many files is removed at full speed and begun anew at once under the same names."""
    run = Run(stage, "000029_Large", RESTARTED, 29)
    run.make_folders()
    seen: dict[int, int] = {}
    for part in (0.4, 0.7, 1.0):
        _make_parts(run, seen)
        for item in range(1, 16):
            run.make_item(item)
        if not stage.wait_until(part):
            return
        seen = {n: _part(run, n).stat().st_mtime_ns for n in range(0, stage.many // 4, 10)}
        run.begin_anew()


def _make_parts(run: Run, seen: dict[int, int]) -> None:
    """Write the parts of one life; those ``seen`` get the times that they had in the last one."""
    for number in range(run.stage.many // 4):
        path = _part(run, number)
        run.stage.write_as(path, run.stage.name_of(path), 2000, run.life)
        if number in seen:
            os.utime(path, ns=(seen[number], seen[number]))


def _part(run: Run, number: int) -> Path:
    return run.extra / f"part_{number:05d}.dat"


# -- files that change inside --------------------------------------------------------------------


def growing_stack(stage: Stage) -> None:
    """The header with the new count first, then the particle; and a stack without a header."""
    extra = folder(stage, "000010_Stacks")
    path, plain = extra / "particles.mrcs", extra / "plain.stk"
    name = stage.name_of(path)
    with path.open("wb") as stack, plain.open("ab") as tail:
        for number in range(1, 3000):
            stack.seek(0)
            stack.write(content.block(content.key_of(name), number, 0, 0))
            stack.seek(0, os.SEEK_END)
            stack.write(_particle(name, number, stack.tell()))
            stack.flush()
            tail.write(_particle(stage.name_of(plain), 1, tail.tell()))
            tail.flush()
            stage.closed(path, number, STACK_PARTICLE + BLOCK)
            stage.closed(plain, 1, STACK_PARTICLE)
            if not stage.wait(0.05 if number % 50 else 5.0):
                return


def _particle(name: str, generation: int, offset: int) -> bytes:
    key = content.key_of(name)
    return b"".join(
        content.block(key, generation, at, 0)
        for at in range(offset, offset + STACK_PARTICLE, BLOCK)
    )


def patched(stage: Stage) -> None:
    """One block after the other is written anew in place, in an order that can be checked."""
    path = folder(stage, "000011_Patched") / "patched.mrcs"
    name, total = stage.name_of(path), PATCHED_BLOCKS * BLOCK
    stage.write(path, total, 0)
    key = content.key_of(name)
    with path.open("r+b", buffering=0) as file:
        for patch in itertools.count(1):
            offset = patch * STRIDE % PATCHED_BLOCKS * BLOCK
            file.seek(offset)
            file.write(content.block(key, patch, offset, total))
            stage.recorder.write("patched", name, patch, BLOCK)
            if not stage.wait(0.02 if patch % 100 else 4.0):
                return


def mapped(stage: Stage) -> None:
    """Pages change through a shared map, without msync; the file is closed after a while."""
    path = folder(stage, "000012_Mapped") / "mapped.mrcs"
    total = MAPPED_BLOCKS * BLOCK
    stage.write(path, total, 0)
    key = content.key_of(stage.name_of(path))
    number = 0
    while stage.wait(1.0):
        with path.open("r+b") as file, mmap.mmap(file.fileno(), total) as pages:
            for _ in range(30):
                number += 1
                offset = number * STRIDE % MAPPED_BLOCKS * BLOCK
                pages[offset : offset + BLOCK] = content.block(key, number, offset, total)
                stage.wait(0.5)
        stage.recorder.write("patched", stage.name_of(path), number, 30 * BLOCK)


def sparse_fill(stage: Stage) -> None:
    """One byte at the end makes the file, four threads fill it at random."""
    extra = folder(stage, "000013_Sparse")
    for number in itertools.count(1):
        path = extra / f"sparse_{number:03d}.stk"
        total = SPARSE_BLOCKS * BLOCK
        key = content.key_of(stage.name_of(path))
        with path.open("wb") as file:
            file.truncate(total)
        order = list(range(0, SPARSE_BLOCKS, 32))
        stage.chance(path.name).shuffle(order)
        threads = [
            threading.Thread(target=_fill, args=(stage, path, key, total, order[n::4]))
            for n in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stage.closed(path, 1, total)
        if not stage.wait(30.0):
            return


def _fill(stage: Stage, path: Path, key: bytes, total: int, blocks: list[int]) -> None:
    with path.open("r+b", buffering=0) as file:
        for number in blocks:
            start = number * BLOCK
            offsets = range(start, start + 32 * BLOCK, BLOCK)
            file.seek(start)
            file.write(b"".join(content.block(key, 1, at, total) for at in offsets))
            stage.wait(0.2)


def iterations(stage: Stage) -> None:
    """Stars by temporary and rename, classes in place, a set in one large transaction."""
    extra = folder(stage, "000014_Classes")
    rows = extra.parent / "classes.sqlite"
    data = {n: b"".join(content.pieces(_classes(stage), n, CLASSES)) for n in (1, 2)}
    for number in itertools.count(1):
        for part in range(4):
            final = extra / f"run_it{number % 5:03d}_{part}.star"
            draft = final.with_suffix(".star.tmp")
            stage.write_as(draft, stage.name_of(final), 180_000, number)
            draft.rename(final)
            stage.closed(final, number, 180_000)
        data[number] = b"".join(content.pieces(_classes(stage), number, CLASSES))
        _overwrite(extra / "classes.mrcs", data.pop(number))
        stage.closed(extra / "classes.mrcs", number, CLASSES)
        path = stage.name_of(extra / "classes.mrcs")
        stage.commit(rows, databases.fill([(n, path, number) for n in range(5000)]))
        if not stage.wait(20.0):
            return


def _classes(stage: Stage) -> str:
    return stage.name_of(stage.root / "Runs/000014_Classes/extra/classes.mrcs")


def _overwrite(path: Path, data: bytes) -> None:
    """Write a file anew in place, in large pieces, without truncating it."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o644), "wb", buffering=0) as file:
        for start in range(0, len(data), 1 << 20):
            file.write(data[start : start + (1 << 20)])


def header_toucher(stage: Stage) -> None:
    """A reader that writes the same header again when it closes, through a link."""
    extra = folder(stage, "000015_Readers")
    for number in range(5):
        stage.write(extra / f"map_{number}.mrc", 200_000)
        (extra / f"link_{number}.mrc").symlink_to(f"map_{number}.mrc")
    while stage.wait(5.0):
        for number in range(5):
            with (extra / f"link_{number}.mrc").open("r+b") as file:
                header = file.read(1024)
                file.seek(0)
                file.write(header)


# -- databases -----------------------------------------------------------------------------------


def write_ahead(stage: Stage) -> None:
    """A database with a write-ahead log, whose connection stays open."""
    path = folder(stage, "000016_Log").parent / "wal.sqlite"
    with closing(databases.connect(path)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        for number in itertools.count(1):
            counted, waited = databases.transact(db, _rows_without_files(number))
            stage.committed(path, counted, waited)
            if not stage.wait(0.2):
                return


def _rows_without_files(number: int) -> databases.Change:
    return databases.fill([(number * 10 + n, "", 0) for n in range(10)])


def copied_over(stage: Stage) -> None:
    """run.db is truncated and overwritten by a copy, as at each launch, by another process."""
    path = folder(stage, "000017_Launched").parent / "logs" / "run.db"
    path.parent.mkdir(exist_ok=True)
    source = stage.outside / "source.sqlite"
    for number in itertools.count(1):
        counted, _ = databases.commit(source, _rows_without_files(number))
        command = [sys.executable, "-S", "-E", "-c", _COPY, str(source), str(path)]
        subprocess.run(command, check=True)
        stage.committed(path, counted, 0.0)
        if not stage.wait(6.0):
            return


def made_anew(stage: Stage) -> None:
    """A database is unlinked and made again under the same name."""
    path = folder(stage, "000018_Anew").parent / "output.sqlite"
    for life in itertools.count(1):
        free(path)
        for number in range(6):
            stage.commit(path, _rows_without_files(number), life)
            if not stage.wait(1.5):
                return


def killed_writer(stage: Stage) -> None:
    """A process that is killed in a transaction leaves a hot journal; the next one rolls back."""
    path = folder(stage, "000019_Killed").parent / "killed.sqlite"
    stage.commit(path, databases.fill([(n, "", 0) for n in range(2000)]))
    while stage.wait(8.0):
        command = [sys.executable, "-m", "tests.workload.killed", str(path)]
        subprocess.run(command, check=False)
        if not stage.wait(4.0):
            break
        stage.commit(path, databases.nothing)
    stage.commit(path, databases.nothing)  # rolls back what the last one left


# -- names and trees -----------------------------------------------------------------------------


def rename_directories(stage: Stage) -> None:
    """A to B and back; A to B and a new A; then both exchanged."""
    extra = folder(stage, "000021_Renamed")
    one, two = extra / "A", extra / "B"
    _fill_folder(stage, one, stage.many // 4, 1)
    for number in itertools.count(2):
        if not stage.wait_until(0.15 * (number - 1)):
            return
        one.rename(two)
        stage.wait(3.0)
        two.rename(one)
        stage.wait(3.0)
        one.rename(two)
        _fill_folder(stage, one, 20, number)
        stage.wait(3.0)
        _exchange(one, two)
        stage.wait(3.0)
        shutil.rmtree(one if len(os.listdir(one)) == 20 else two)
        if two.exists():
            two.rename(one)


def _fill_folder(stage: Stage, path: Path, count: int, generation: int) -> None:
    path.mkdir()
    for number in range(count):
        stage.write_as(path / f"{number}.dat", f"{path.name}{number}", 2000, generation)


def _exchange(one: Path, two: Path) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(one), os.fsencode(two)
    if library.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _EXCHANGE) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


def temporaries(stage: Stage) -> None:
    """Files that live for milliseconds, in ``tmp`` and in the project's root."""
    chance = stage.chance("temporaries")
    tmp = stage.root / "Runs" / "000022_Temporary" / "tmp"
    tmp.mkdir(parents=True)
    while True:
        place = chance.choice([tmp, stage.root])
        path = place / f"temp_{chance.randrange(10**6):06d}"
        stage.write_as(path, path.name, chance.randrange(1024, 65536), 1)
        if not stage.wait(chance.uniform(0.01, 0.5)):
            free(path)
            return
        free(path)
        inner = tmp / f"batch_{chance.randrange(10**6):06d}"
        inner.mkdir()
        (inner / "movie.tif").symlink_to("/data/movies/movie.tif")
        shutil.rmtree(inner)


def save_by_rename(stage: Stage) -> None:
    """As editors do: a swap file, a copy with a tilde, a rename over a file and over a link."""
    extra = folder(stage, "000023_Saved")
    (extra / "linked.json").symlink_to("settings.json")
    for number in itertools.count(1):
        for name in ("settings.json", "linked.json"):
            final = extra / name
            swap = extra / f".{name}.swp"
            stage.write_as(swap, stage.name_of(final), 12_000, number)
            if final.exists():
                shutil.copy(final, extra / f"{name}~", follow_symlinks=True)
            swap.rename(final)
            stage.closed(final, number, 12_000)
        if not stage.wait(10.0):
            return


def rotating_log(stage: Stage) -> None:
    """A log that is rotated through a chain of ten renames."""
    logs = stage.root / "Logs"
    logs.mkdir(exist_ok=True)
    for number in itertools.count(1):
        stage.write_text(logs / "project.log", [f"{number} said something"] * 20, "a")
        if number % 10 == 0:
            for old in range(9, 0, -1):
                _rename_if_there(logs / f"project.log.{old}", logs / f"project.log.{old + 1}")
            _rename_if_there(logs / "project.log", logs / "project.log.1")
        if not stage.wait(1.0):
            return


def _rename_if_there(source: Path, target: Path) -> None:
    if source.exists():
        source.rename(target)


def change_kinds(stage: Stage) -> None:
    """File to link, link to file, directory to link, link elsewhere, file to directory."""
    extra = folder(stage, "000024_Kinds")
    for number in itertools.count(1):
        for place in range(5):
            path = extra / f"thing_{place}"
            _clear(path)
            stage.removed(path)
            kind = (number + place) % 4
            if kind == 0:
                stage.write(path, 9000, number)
            elif kind == 1:
                path.symlink_to(f"/data/movies/a {number}")
            elif kind == 2:
                path.mkdir()
                stage.write(path / "inner", 5000, number)
            else:
                path.symlink_to(extra)
        if not stage.wait(6.0):
            return


def _clear(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        free(path)


def only_metadata(stage: Stage) -> None:
    """Modes, times back, a truncation to the same size, a touch."""
    extra = folder(stage, "000025_Metadata")
    paths = [extra / f"file_{n}.dat" for n in range(6)]
    for path in paths:
        stage.write(path, 30_000)
    for number in itertools.count():
        if not stage.wait(4.0):
            return
        path = paths[number % len(paths)]
        path.chmod(0o600 if number % 2 else 0o755)
        back = path.stat().st_mtime_ns - 10**9
        os.utime(paths[(number + 1) % 6], ns=(back, back))
        os.truncate(paths[(number + 2) % 6], 30_000)
        paths[(number + 3) % 6].touch()


def links(stage: Stage) -> None:
    """Links are made and removed: absolute inside, relative, dangling, chains, to itself."""
    extra = folder(stage, "000026_Links")
    stage.write(extra / "target.dat", 10_000)
    targets = [str(extra), "target.dat", "..", "/", "nothing here", "self", "chain_1", "x" * 4000]
    for number in itertools.count(1):
        for place, target in enumerate(targets):
            path = extra / ("self" if target == "self" else f"chain_{place}")
            free(path)
            if (number + place) % 3:
                path.symlink_to(target)
        if not stage.wait(4.0):
            return


def odd_names(stage: Stage) -> None:
    """Names as no program should give them are made, written, renamed and removed."""
    extra = os.fsencode(folder(stage, "000027_Odd"))
    chance = stage.chance("odd names")
    while True:
        for name in ODD_NAMES:
            with open(os.path.join(extra, name), "wb") as file:
                file.write(os.urandom(100))
        if not stage.wait(10.0):
            return
        for name in chance.sample(ODD_NAMES, 15):
            os.unlink(os.path.join(extra, name))
        kept = os.listdir(extra)
        os.rename(os.path.join(extra, kept[0]), os.path.join(extra, b"renamed " + name_part(kept)))


def name_part(names: list[bytes]) -> bytes:
    """Return a name that is surely short enough to be made longer."""
    return names[0][:200].rstrip()


def delete_many(stage: Stage) -> None:
    """Many files come, and go at once."""
    path = folder(stage, "000028_Many")
    inner = path / "batch"
    if not stage.wait_until(0.2):
        return
    _fill_folder(stage, inner, stage.many, 1)
    (path / "empty").mkdir(exist_ok=True)
    if stage.wait_until(0.6):
        shutil.rmtree(inner)


# -- measuring -----------------------------------------------------------------------------------


def probe(stage: Stage) -> None:
    """Commit in short intervals and record how long each one was kept waiting."""
    path = stage.root / "probe.sqlite"
    with closing(databases.connect(path, 0.0)) as db:
        for number in itertools.count(1):
            before = time.monotonic()
            counted = _commit_patiently(db, number)
            took = time.monotonic() - before
            stage.recorder.write("probed", "probe.sqlite", (1 << 32) + counted, 0, took)
            if stage.stopped.wait(0.05):
                return


def _commit_patiently(db: sqlite3.Connection, number: int) -> int:
    while True:
        try:
            return databases.transact(db, databases.add(number % 100, "", 0))[0]
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            time.sleep(0.001)


def pace(stage: Stage) -> None:
    """Do the same piece of work again and again and record how long it took."""
    extra = folder(stage, "000030_Paced")
    rows = extra.parent / "paced.sqlite"
    for number in itertools.count(1):
        before = time.monotonic()
        # Never written again: what changes all the time would wait for as long as it does.
        place = extra / f"{number:06d}"
        place.mkdir()
        stage.write(place / "large.dat", 1_000_000)
        for part in range(20):
            stage.write(place / f"small_{part}.dat", 4000)
        for _ in range(3):
            stage.commit(rows, databases.nothing)
        stage.recorder.write("paced", "", number, 0, time.monotonic() - before)
        if stage.stopped.wait(1.0):
            return


ACTORS: dict[str, Actor] = {
    "camera": camera,
    "motion": streaming("000002_Motion", 2, MOTION, 2),
    "ctf": streaming("000003_Ctf", 3, CTF, 2),
    "pick": streaming("000004_Pick", 4, PICK, 2),
    "extract": streaming("000005_Extract", 5, EXTRACT, 1),
    "restart": restart,
    "restart large": restart_large,
    "growing stack": growing_stack,
    "patched": patched,
    "mapped": mapped,
    "sparse fill": sparse_fill,
    "iterations": iterations,
    "header toucher": header_toucher,
    "write ahead": write_ahead,
    "copied over": copied_over,
    "made anew": made_anew,
    "killed writer": killed_writer,
    "rename directories": rename_directories,
    "temporaries": temporaries,
    "save by rename": save_by_rename,
    "rotating log": rotating_log,
    "change kinds": change_kinds,
    "only metadata": only_metadata,
    "links": links,
    "odd names": odd_names,
    "delete many": delete_many,
    "probe": probe,
    "pace": pace,
}


def play(stage: Stage, names: list[str]) -> list[str]:
    """Let the actors play until the session is over; returns a sentence for each that failed."""
    failed: list[str] = []

    def act(name: str) -> None:
        try:
            ACTORS[name](stage)
        except Exception as error:  # noqa: BLE001 - every actor's end is told
            failed.append(f"{name}: {error!r}")
            stage.stopped.set()

    threads = [threading.Thread(target=act, args=(name,), name=name) for name in names]
    random.Random(stage.seed).shuffle(threads)
    for thread in threads:
        thread.start()
    stage.stopped.wait(stage.seconds)
    stage.stopped.set()
    for thread in threads:
        thread.join()
    return failed


def main() -> int:
    """Play a session; SIGTERM ends it early, every writer ends its item first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--factor", type=float, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--many",
        type=int,
        default=1000,
        help="so many files are deleted at once, a fourth is renamed or begun anew; really 20,000",
    )
    parser.add_argument("--outside", type=Path, help="movies and scratch; beside ROOT by default")
    parser.add_argument("--record", type=Path, help="what was done when, as JSON lines")
    parser.add_argument("--actor", action="append", choices=sorted(ACTORS), help="only these")
    asked = parser.parse_args()
    root = asked.root.absolute()
    outside = (asked.outside or root.parent / (root.name + "-outside")).absolute()
    for path in (root, outside):
        path.mkdir(parents=True, exist_ok=True)
    recorder = Recorder(asked.record or outside / "record.jsonl")
    stage = Stage(root, outside, recorder, asked.seconds, asked.factor, asked.seed, asked.many)
    signal.signal(signal.SIGTERM, lambda *_: stage.stopped.set())
    failed = play(stage, asked.actor or list(ACTORS))
    recorder.close()
    for sentence in failed:
        sys.stderr.write(sentence + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
