"""What a project of N entries costs: ``python -m tests.bench.scale ROW N``.

Every row prints one JSON object: seconds of CPU and of the clock, and memory in MB. A tree of empty
files stands for the project; index and manifest are filled without a stage-in, with what one would
have left. ``daemon`` runs the whole program on such a state. Nothing is asserted here: counts are,
in ``test_scale.py``.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from onesync.clock import SystemClock
from onesync.core.chain import Change, Header, Position, Set, base_name, encode, find_head
from onesync.core.model import Entry, Kind, RelPath, Stamp, join
from onesync.index import Index
from onesync.local import stamp_of
from onesync.manifest import MANIFEST, Manifest, read_head
from onesync.replica.folder import FolderReplica
from onesync.scanner import Scanner
from onesync.stored_tree import stored_trees
from tests.apart import grown_kib
from tests.bench.usage import memory_of
from tests.node import Node

PLACE = Path(os.environ.get("ONESYNC_SCALE", "/dev/shm/onesync-scale"))
FILES_IN_ONE = 100
IDLE_SECONDS = 20.0
RETIRED_SECONDS = 70.0
Row = tuple[RelPath, Entry, Stamp | None]


def make_tree(root: Path, entries: int, in_one: int = FILES_IN_ONE) -> None:
    """Make ``entries`` files and directories, ``in_one`` files in each directory."""
    made = 0
    for number in range(entries):
        directory = root / f"Runs/{number // 50:06d}_ProtScale" / f"extra{number % 50:02d}"
        directory.mkdir(parents=True, exist_ok=True)
        above = os.open(directory, os.O_RDONLY)
        try:
            for name in range(in_one):
                flags = os.O_CREAT | os.O_WRONLY
                os.close(os.open(f"micrograph_{made + name:08d}.mrc", flags, 0o644, dir_fd=above))
        finally:
            os.close(above)
        made += in_one + 1
        if made >= entries:
            return


def walk(root: Path) -> Iterator[Row]:
    """Yield what a stage-in would have left in the index, with a digest that packs as real ones."""
    top = os.fsencode(root)
    waiting: list[RelPath] = [b""]
    while waiting:
        directory = waiting.pop()
        with os.scandir(join(top, directory) if directory else top) as items:
            for item in items:
                path = join(directory, item.name)
                status = item.stat(follow_symlinks=False)
                kind = Kind.DIRECTORY if item.is_dir(follow_symlinks=False) else Kind.FILE
                if kind is Kind.DIRECTORY:
                    waiting.append(path)
                stamp = stamp_of(status, kind)
                entry = Entry(kind, stamp.size, stamp.mtime_ns, stamp.mode)
                if kind is Kind.FILE:
                    entry = replace(entry, digest=os.urandom(32).hex())
                yield path, entry, stamp


def tree(entries: int) -> Path:
    """Return a tree of ``entries`` entries with its index and its base, made once."""
    place = PLACE / str(entries)
    if not (place / "done").exists():
        # In a process of its own: it takes more memory than most of what is measured here.
        grown_kib(partial(_make, place, entries))
    return place


def _make(place: Path, entries: int) -> None:
    shutil.rmtree(place, ignore_errors=True)
    (place / "work").mkdir(parents=True)
    make_tree(place / "work", entries)
    with closing(Index(place / "index.sqlite")) as index:
        index.replace(walk(place / "work"), staged="x")
        changes: list[Change] = [Set(p, k.entry) for p, k in index.beneath(b"") if p]
    header = Header("f", Position(1, 1), None, "w", "2026-01-01T00:00:00", "base")
    (place / "base").write_bytes(encode(header, changes))
    (place / "done").touch()


# -- rows: each in a process of its own ------------------------------------------------------------


def rescan(entries: int) -> dict[str, Any]:
    """Rescan everything where nothing changed."""
    place = tree(entries)
    with closing(Index(place / "index.sqlite")) as index:
        scanner = Scanner(os.fsencode(place / "work"), index, lambda _: False)
        with measured() as found:
            differences = list(scanner.scan((), [b""]))
        first, cpu = found, found["cpu_seconds"]
        with measured() as found:
            differences = list(scanner.scan((), [b""]))
        found["first_cpu_seconds"], found["first_seconds"] = cpu, first["seconds"]
        assert set(differences) <= {b""}
    return found


def fold(entries: int) -> dict[str, Any]:
    """Find the head of a manifest that is one base, as a stage-in does, and read its tree once."""
    place = tree(entries)
    name = base_name(Position(1, 1))
    with stored_trees(place) as stored, measured() as found:
        head = find_head([name], lambda asked: _read(place, asked, name), make_tree=stored)
        assert head is not None
        assert sum(1 for _ in head.tree) >= entries
    return found


def _read(place: Path, asked: str, name: str) -> bytes:
    if asked != name:
        raise FileNotFoundError(asked)
    return (place / "base").read_bytes()


def base(entries: int) -> dict[str, Any]:
    """Encode a base from the index."""
    place = tree(entries)
    header = Header("f", Position(1, 1), None, "w", "2026-01-01T00:00:00", "base")
    with closing(Index(place / "index.sqlite")) as index, measured() as found:
        found["bytes"] = len(encode(header, (Set(p, e) for p, e in index.entries() if p)))
    return found


def opened(entries: int) -> dict[str, Any]:
    """Open the index."""
    place = tree(entries)
    with measured() as found, closing(Index(place / "index.sqlite")):
        pass
    found["index_mb"] = round((place / "index.sqlite").stat().st_size / 1e6, 1)
    return found


def commit(entries: int) -> dict[str, Any]:
    """Commit ten batches of a hundred files into the index of ``entries`` rows."""
    place = tree(entries)
    copy = place / "copy.sqlite"
    shutil.copy(place / "index.sqlite", copy)
    with closing(Index(copy)) as index, measured() as found:
        for batch in range(10):
            rows = [(b"new/%d/%d" % (batch, n), Entry(Kind.FILE, digest="ab")) for n in range(100)]
            stamps = {path: Stamp(Kind.FILE, 1, 0, 0, 0, 0) for path, _ in rows}
            index.commit([Set(*row) for row in rows], stamps, pushed={p: False for p, _ in rows})
    copy.unlink()
    return found


# -- the whole program -----------------------------------------------------------------------------


def daemon(entries: int) -> dict[str, Any]:
    """Start on a deployed project, idle, flush, stop."""
    return _lived(entries, FILES_IN_ONE)


def watched(entries: int) -> dict[str, Any]:
    """As ``daemon``, in a tree of nothing but directories."""
    return _lived(entries, 0)


def staged(entries: int) -> dict[str, Any]:
    """Stage in by manifest what a stage-in that died had brought: all but the copying."""
    with _home() as home:
        node = deployed(home, entries, FILES_IN_ONE)
        make_tree(node.store, entries)
        with closing(Index(home / "state" / "index.sqlite")) as index:
            begun = {"staging": index.get("head_name"), "stager": index.get("staged")}
            index.replace((), staged=None, **begun)
        return _staged(node)


def first(entries: int) -> dict[str, Any]:
    """Stage in what no manifest knows."""
    with _home() as home:
        make_tree(home / "store", entries)
        return _staged(Node(home, home / "store", mount__io_timeout_seconds=120))


def _staged(node: Node) -> dict[str, Any]:
    began = time.monotonic()
    node.start()
    patiently(lambda: node.status()["phase"] in ("staging_in", "syncing"))
    found: dict[str, Any] = {"resident_mb": []}
    while node.status()["phase"] == "staging_in":
        found["resident_mb"].append(_memory(node, "VmRSS"))
        time.sleep(5)
    found["staged_seconds"] = round(time.monotonic() - began, 1)
    found["peaks_mb"] = _memory(node, "VmHWM")
    patiently(lambda: node.status()["phase"] == "syncing" and not node.status()["pending_paths"])
    found["synced_mb"] = _memory(node, "VmRSS")
    assert node.process is not None
    node.process.send_signal(signal.SIGTERM)
    assert node.process.wait(600) == 0, node.log()
    return found


def _lived(entries: int, in_one: int) -> dict[str, Any]:
    with _home() as home:
        return live(deployed(home, entries, in_one))


@contextmanager
def _home() -> Iterator[Path]:
    PLACE.mkdir(exist_ok=True)
    home = Path(tempfile.mkdtemp(dir=PLACE))
    try:
        yield home
    finally:
        shutil.rmtree(home)


def deployed(home: Path, entries: int, in_one: int) -> Node:
    """Return a node that stopped with the lock kept and has ``entries`` entries in its index."""
    (home / "store").mkdir()
    patient = {"mount__io_timeout_seconds": 120, "batch__rescan_seconds": 86_400}
    node = Node(home, home / "store", **patient)
    node.deploy()
    handed_over = node.command("handover")
    assert handed_over.returncode == 0, handed_over.stderr + node.log()
    assert node.wait() == 0
    make_tree(node.work, entries, in_one)
    replica = FolderReplica(os.fsencode(node.store), lambda _: None)
    with closing(Index(home / "state" / "index.sqlite")) as index:
        names = ("staged", "head_name", "head_digest", "epoch", "sequence")
        kept = {name: index.get(name) for name in (*names, "root_inode", "root_birth")}
        index.replace(walk(node.work), **kept)
        head = read_head(replica)
        assert head is not None
        epoch = head.position.epoch
        manifest = Manifest(replica, SystemClock(), head.folder_id, head, epoch, "w", ())
        manifest.position = Position(epoch, head.position.sequence + 1)
        rows = (Set(path, known.entry) for path, known in index.beneath(b"") if path)
        written = manifest.write(rows, "base")
        index.set(head_name=written.name, head_digest=written.digest)
    assert replica.look(join(MANIFEST, written.name.encode())) is not None
    return node


def live(node: Node) -> dict[str, Any]:
    """Return what a start, a rest, a flush and a stop of the program cost."""
    began = time.monotonic()
    node.start()
    found: dict[str, Any] = {}
    patiently(lambda: node.status()["phase"] == "syncing")
    found["started_seconds"] = round(time.monotonic() - began, 1)
    patiently(lambda: node.status()["pending_paths"] == 0)
    found["scanned_seconds"] = round(time.monotonic() - began, 1)
    found["start_peak_mb"] = _memory(node, "VmHWM")
    time.sleep(RETIRED_SECONDS)
    found["idle_rss_mb"] = _memory(node, "VmRSS")
    found["idle_once_mb"] = round(memory_of(_processes(node)) / 1e6, 1)
    found["each_rss_mb"] = [_kilobytes(pid, "VmRSS") // 1000 for pid in _processes(node)]
    before, wakes = _cpu(node), _wakes(node)
    time.sleep(IDLE_SECONDS)
    found["idle_cpu_percent"] = round(100 * (_cpu(node) - before) / IDLE_SECONDS, 3)
    found["idle_wakes_per_second"] = round((_wakes(node) - wakes) / IDLE_SECONDS, 2)
    before, began = _cpu(node), time.monotonic()
    assert node.flush() == 0
    found["flush_seconds"] = round(time.monotonic() - began, 1)
    found["flush_cpu_seconds"] = round(_cpu(node) - before, 1)
    found["flush_peak_mb"] = _memory(node, "VmHWM")
    found["rested_rss_mb"] = _memory(node, "VmRSS")
    before, began = _cpu(node), time.monotonic()
    assert node.process is not None
    node.process.send_signal(signal.SIGTERM)
    assert node.process.wait(600) == 0
    found["stop_seconds"] = round(time.monotonic() - began, 1)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    found["life_cpu_seconds"] = round(used.ru_utime + used.ru_stime, 1)
    return found


def patiently(condition: Callable[[], bool], seconds: float = 900) -> None:
    """Wait for ``condition``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _processes(node: Node) -> list[int]:
    assert node.process is not None
    found = [node.process.pid]
    for pid in found:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):  # it ended just now
                found += map(int, (thread / "children").read_text().split())
    return found


def _kilobytes(pid: int, key: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def _memory(node: Node, key: str) -> float:
    return round(sum(_kilobytes(pid, key) for pid in _processes(node)) / 1e3, 1)


def _cpu(node: Node) -> float:
    ticks = 0
    for pid in _processes(node):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _wakes(node: Node) -> int:
    total = 0
    for pid in _processes(node):
        for status in Path(f"/proc/{pid}/task").glob("*/status"):
            lines = status.read_text().splitlines()
            total += next(int(x.split()[1]) for x in lines if x.startswith("voluntary_ctxt"))
    return total


@contextmanager
def measured() -> Iterator[dict[str, Any]]:
    """Measure a block of this process."""
    found: dict[str, Any] = {"before_mb": _kilobytes(os.getpid(), "VmRSS") // 1000}
    began, cpu = time.monotonic(), time.process_time()
    yield found
    found["cpu_seconds"] = round(time.process_time() - cpu, 2)
    found["seconds"] = round(time.monotonic() - began, 2)
    found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000


ROWS = {
    row.__name__: row
    for row in (rescan, fold, base, opened, commit, daemon, watched, staged, first)
}


def main() -> None:
    """Measure one row, or all of those that need no daemon."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # each daemon would be compiled anew
    names, entries = sys.argv[1].split(","), int(sys.argv[2])
    for name in names:
        child = os.fork()
        if not child:
            found = ROWS[name](entries)
            print(json.dumps({"row": name, "entries": entries, **found}), flush=True)  # noqa: T201
            return
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
