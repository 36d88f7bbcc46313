"""What must hold of OneData at any instant, and at the end.

An instant is a copy of the folder as it stood while no call on the mount returned. It is restored
by the program itself, on a node of its own, and judged by what its files and rows say of
themselves: nothing is asked of the session that is still going on.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import stat
import subprocess
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePath

from blake3 import blake3

from onesync.core.chain import Position, parse_name
from onesync.core.model import RESERVED_PREFIX, STATUS_FOLDER, is_user_path
from onesync.core.ordering import SIDECARS, database_of
from onesync.intent import Intent, Torn
from tests.campaign.process import wait_for_children_of
from tests.node import Node
from tests.workload import content, databases
from tests.workload.content import BLOCK, Verdict
from tests.workload.live import PATCHED_BLOCKS, STACK_PARTICLE, STRIDE

PATIENCE = 300.0
_RESTORED_BESIDE = 2
"""What one waits for, the other one works in."""
_RESTORED_WITH = 2
"""Nobody waits for memory: more workers only wait for each other (a third of the time)."""
_LINKS = "Runs/000001_Import/extra"
"""What is there is links alone."""
_OF_NO_BLOCKS = ("Logs/", "Runs/000027_Odd/")
_MAGIC = b"SQLite format 3\0"
_MISSING = "it is not there"
_GROWING_KINDS = {"missing", "changed_outside", "manifest_damaged"}


@dataclass
class Seen:
    """What the instants have shown so far.

    Attributes:
        counters: the newest (life, transactions) of each database.
        rows: rows with their files, in the last instant.
        markers: markers with their files, in the last instant.
        files: files that were judged, in all.
        notes: what was behind but not wrong.
    """

    counters: dict[str, tuple[int, int]] = field(default_factory=dict)
    rows: int = 0
    markers: int = 0
    files: int = 0
    notes: list[str] = field(default_factory=list)


def deploy_patiently(node: Node) -> None:
    """Start a node, and wait longer than the small tests do until it syncs."""
    node.start()
    wait_patiently(node)


def wait_patiently(node: Node) -> None:
    """Wait until a node that was started syncs."""
    deadline = time.monotonic() + PATIENCE
    while node.status()["phase"] != "syncing" or not node.running():
        assert node.running(), node.log()
        assert time.monotonic() < deadline, node.log()
        time.sleep(0.1)


class Instants:
    """Copies of the folder as it stood at instants; what did not change is there once only."""

    def __init__(self, folder: Path, home: Path) -> None:
        """Copy ``folder`` into directories below ``home``, which must be on one file system."""
        self._folder = folder
        self._home = home
        self._stamps: dict[str, tuple[int, ...]] = {}
        self.copies: list[Path] = []

    def take(self) -> None:
        """Copy the folder; nothing may change it meanwhile."""
        copy = self._home / f"instant{len(self.copies) + 1}"
        before = self.copies[-1] if self.copies else None
        stamps: dict[str, tuple[int, ...]] = {}
        for directory, _, names in os.walk(self._folder):
            inner = os.path.relpath(directory, self._folder)
            (copy / inner).mkdir()
            for name in names:
                path = os.path.join(inner, name)
                status = os.lstat(self._folder / path)
                stamps[path] = (status.st_ino, status.st_ctime_ns, status.st_size)
                if before is not None and stamps[path] == self._stamps.get(path):
                    os.link(before / path, copy / path)
                else:
                    shutil.copy2(self._folder / path, copy / path)
        self._stamps = stamps
        self.copies.append(copy)

    def judge(self, home: Path, seen: Seen) -> list[str]:
        """Return a sentence for all that is wrong with any instant, in their order.

        The copies go; the first that is wrong stays restored, below ``home``: more would not find
        room.
        """
        wrong: list[str] = []
        left = iter(self.copies)
        with ThreadPoolExecutor(_RESTORED_BESIDE) as beside:
            # Two are restored, or one is while another one is judged: more would take more room.
            coming = deque(beside.submit(_restore, home, c) for c in islice(left, _RESTORED_BESIDE))
            for copy in self.copies:
                restored = coming.popleft().result()
                found = restored.check(seen) + check_as_browsed(copy)
                restored.leave()
                if wrong or not found:
                    shutil.rmtree(restored.place)
                wrong += [f"{copy.name}: {sentence}" for sentence in found]
                shutil.rmtree(copy)
                coming += [beside.submit(_restore, home, c) for c in islice(left, 1)]
        return wrong


@dataclass(frozen=True, slots=True)
class _Restored:
    """A copy of the folder that was deployed on a node of its own, which is dead now."""

    place: Path
    work: Path
    problems: list[dict[str, str]]

    def check(self, seen: Seen) -> list[str]:
        """Return a sentence for all that is wrong."""
        folder = self.place / "copy"
        wrong = [p["text"] for p in self.problems if p["kind"] in _GROWING_KINDS]
        wrong = [text for text in wrong if not self._is_being_written(text)]
        wrong += [f"{name} is a temporary" for name in _temporaries(folder, self.work)]
        wrong += [f"{name} stands beside its database in OneData" for name in _sidecars(folder)]
        return wrong + check_tree(self.work, seen)

    def leave(self) -> None:
        """Let go of the copy."""
        subprocess.run(["umount", self.place / "copy"], check=True)

    def _is_being_written(self, text: str) -> bool:
        """Whether a problem is that the newest checkpoint was on its way at the instant."""
        torn = re.search(r"(E\d+-)(\d+\S*): it is cut short", text)
        manifest = self.place / "copy" / os.fsdecode(STATUS_FOLDER) / "manifest"
        names = [path.name for path in manifest.iterdir()]
        return torn is not None and "".join(torn.groups()) == max(
            name for name in names if name.startswith(torn[1])
        )


def _restore(home: Path, copy: Path) -> _Restored:
    """Let the program itself restore ``copy``.

    Whoever deploys it changes it, and files are shared with the other copies: so it is the lower
    part of an overlay. A copy of its own would not find room in memory.
    """
    place = home / f"restored-{copy.name}"
    for name in ("changed", "new", "copy"):
        (place / name).mkdir(parents=True)
    parts = f"lowerdir={copy},upperdir={place}/changed,workdir={place}/new,redirect_dir=on"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", parts, place / "copy"], check=True)
    (place / "copy" / os.fsdecode(STATUS_FOLDER) / "lock").unlink(missing_ok=True)
    node = Node(place / "node", place / "copy", push__workers=_RESTORED_WITH)
    try:
        return _Restored(place, node.work, _problems_of(node))
    except BaseException:
        subprocess.run(["umount", place / "copy"], check=True)
        raise


def _problems_of(node: Node) -> list[dict[str, str]]:
    """Return what a node tells when it has deployed; it is dead then, and all its processes."""
    try:
        deploy_patiently(node)
        found: list[dict[str, str]] = node.status()["problems"]
        return found
    finally:
        if node.running():
            node.end(signal.SIGKILL)
        wait_for_children_of(node)


def check_tree(work: Path, seen: Seen) -> list[str]:
    """Return a sentence for each invariant that a restored project breaks."""
    judged = {name: judge(work / name, name) for name in _files(work)}
    wrong = [f"{name}: {text}" for name, text in judged.items() if text]
    whole = _Whole(work, seen)
    wrong += _check_markers(work, whole, seen)
    wrong += _check_databases(work, list(judged), whole, seen)
    wrong += [f"{name} stands beside its database" for name in _sidecars(work)]
    seen.files += len(judged)
    return wrong


def check_as_browsed(folder: Path) -> list[str]:
    """Return a sentence for each marker and row in the folder itself that has no data there.

    In the moment of a rename they may, which the intent of a batch without a checkpoint tells of; a
    database whose blocks are being
    changed is none at that moment, and links are in the manifest alone.
    """
    intents = _intents(folder)
    patched = {target for intent in intents for target, _ in intent.patch}
    moving = [target for intent in intents for target, _ in intent.replace]
    moving += [path for intent in intents for pair in intent.rename for path in pair]
    whole = _Whole(folder, Seen(), (*map(os.fsdecode, moving), _LINKS))
    names = [
        name
        for name in _files(folder)
        if is_user_path(os.fsencode(name)) and os.fsencode(name) not in patched
    ]
    wrong = _check_markers(folder, whole, Seen()) + _check_databases(folder, names, whole, Seen())
    return [f"as browsed: {text}" for text in wrong]


def _intents(folder: Path) -> list[Intent]:
    """Return those of the batch that has no checkpoint yet: others only have something to tidy."""
    status = folder / os.fsdecode(STATUS_FOLDER)
    named = [parse_name(path.name) for path in (status / "manifest").glob("*")]
    newest = max((place[0] for place in named if place is not None), default=Position(0, 0))
    found = []
    for path in (status / "intent").glob("*.json"):
        try:
            intent = Intent.decode(path.read_bytes())
        except Torn:
            continue  # it is being written: nothing that it names was begun
        if intent.position > newest:
            found.append(intent)
    return found


def judge(path: Path, name: str) -> str:
    """Return what is wrong with the file ``name`` of the project by itself; "" if nothing is."""
    if path.name == "run.stdout":
        return _judge_lines(path)
    if name.startswith(_OF_NO_BLOCKS) or _is_database(path):
        return ""
    found = content.content_of(path)
    if found.key and found.key not in map(content.key_of, _written_as(name)):
        return "its blocks are those of another file"
    if found.verdict in (Verdict.WHOLE, Verdict.PREFIX):
        return ""
    if path.name == "particles.mrcs":
        return _judge_stack(found)
    if path.name == "patched.mrcs":
        return _judge_patches(found)
    if path.name == "mapped.mrcs" and found.verdict in (Verdict.MIXED, Verdict.TORN):
        return ""  # no stamp and no event tells of a write through a map
    if path.name.startswith("sparse_") and found.verdict is Verdict.ZERO:
        return ""  # is being filled
    return f"{found.verdict} {found.where}"


def _written_as(name: str) -> list[str]:
    """Return the paths that the blocks of a file may name; the actors tell why."""
    path = PurePath(name)
    run = PurePath(*path.parts[:2])
    if path.name.startswith("temp_"):
        return [path.name]
    if path.parts[2:3] == ("tmp",):
        item = path.parent.name.removeprefix("movie_")
        return [str(run / "extra" / f"item_{item}.mrc")]
    if run.name == "000021_Renamed":
        return [f"A{path.stem}"]
    if run.name == "000028_Many":
        return [f"{path.parent.name}{path.stem}"]
    if path.name.endswith(".swp"):
        return [str(path.with_name(path.stem.removeprefix(".")))]
    if path.name == "linked.json~":
        return [str(path.with_name(n)) for n in ("linked.json", "settings.json")]
    return [name.removesuffix("~").removesuffix(".tmp")]


def _judge_stack(found: content.Content) -> str:
    """The header counts as many images as there are, or the one more that is being written."""
    if found.verdict is not Verdict.MIXED:
        return f"{found.verdict} {found.where}"
    header, images = found.generations[0], found.generations[1:]
    blocks = STACK_PARTICLE // BLOCK
    expected = [number // blocks + 1 for number in range(len(images))]
    if list(images) != expected or not (header - 1) * blocks <= len(images) <= header * blocks:
        return f"a header of {header} images before {len(images) / blocks} images"
    return ""


def _judge_patches(found: content.Content) -> str:
    """Each block holds the newest patch of it, as of the newest patch of all."""
    if found.verdict is not Verdict.MIXED:
        return f"{found.verdict} {found.where}"
    newest = max(found.generations)
    expected = [0] * PATCHED_BLOCKS
    for patch in range(max(1, newest - PATCHED_BLOCKS + 1), newest + 1):
        expected[patch * STRIDE % PATCHED_BLOCKS] = patch
    size = len(found.generations)
    if list(found.generations) == expected[:size]:
        return ""
    different = sum(a != b for a, b in zip(found.generations, expected, strict=False))
    return f"mixed: {different} blocks are not those of the time of patch {newest}"


def _judge_lines(path: Path) -> str:
    """Lines are numbered; only the last one may be cut."""
    lines = path.read_bytes().split(b"\n")[:-1]
    numbers = [line.partition(b" ")[0] for line in lines]
    wanted = [b"%d" % number for number in range(1, len(lines) + 1)]
    return "" if numbers == wanted else "lines are missing or doubled"


class _Whole:
    """Tells whether a file is there, whole and new enough; reads each file once."""

    def __init__(self, work: Path, seen: Seen, excused: tuple[str, ...] = ()) -> None:
        """``excused`` and what lies beneath may be missing."""
        self._work = work
        self._seen = seen
        self._excused = excused
        self._known: dict[str, tuple[str, int]] = {}

    def lacks(self, name: str, generation: int) -> str:
        """Return what is wrong with the file that a row or marker promises."""
        if not name:
            return ""
        if name not in self._known:
            self._known[name] = self._look(name)
        text, found = self._known[name]
        if text == _MISSING and self._may_be_missing(name):
            return ""
        if not text and found < generation:
            return f"it is of generation {found}, {generation} was promised"
        if not text and found > generation:
            self._seen.notes.append(f"a promise of {name} is behind: {generation} of {found}")
        return text

    def _may_be_missing(self, name: str) -> bool:
        return any(f"{name}/".startswith(f"{path}/") for path in self._excused)

    def _look(self, name: str) -> tuple[str, int]:
        path = self._work / name
        if path.is_symlink():
            return "", 1
        if not path.is_file():
            return _MISSING, 0
        found = content.content_of(path)
        generation = max(found.generations, default=0)
        return (
            "" if found.verdict is Verdict.WHOLE else f"{found.verdict} {found.where}"
        ), generation


def _check_markers(work: Path, whole: _Whole, seen: Seen) -> list[str]:
    wrong = []
    seen.markers = 0
    for marker in work.glob("Runs/*/extra/DONE/*"):
        if os.fsencode(marker.name).startswith(RESERVED_PREFIX):
            continue  # what is about to go has no name of the project's any more
        name = os.path.relpath(marker.parents[1] / f"{marker.stem}.mrc", work)
        seen.markers += 1
        if text := whole.lacks(name, 1):
            wrong.append(f"the marker {marker.relative_to(work)} stands, but {name}: {text}")
    return wrong


def _check_databases(work: Path, names: list[str], whole: _Whole, seen: Seen) -> list[str]:
    wrong = []
    seen.rows = 0
    for name in names:
        if _is_database(work / name):
            wrong += _check_database(work, name, whole, seen)
    # A name whose database turned into something else lost what it said.
    for name, counter in seen.counters.items():
        if (work / name).exists() and not _is_database(work / name):
            wrong.append(f"{name} was a database at {counter} and is none now")
    return wrong


def _check_database(work: Path, name: str, whole: _Whole, seen: Seen) -> list[str]:
    try:
        state = databases.read(work / name)
    except (sqlite3.Error, AssertionError) as error:
        return [f"{name}: {error}"]
    wrong = []
    older = seen.counters.get(name, (0, 0))
    if state.counter < older:
        wrong.append(f"{name} went back from {older} to {state.counter}")
    seen.counters[name] = max(older, state.counter)
    if state.size is not None and state.size != len(state.rows):
        wrong.append(f"{name} has {len(state.rows)} rows and says {state.size}")
    for _, path, generation in set(state.rows):
        if text := whole.lacks(path, generation):
            wrong.append(f"a row of {name} names {path}: {text}")
    seen.rows += len(state.rows)
    return wrong


def check_end(work: Path, restored: Path) -> list[str]:
    """Return a sentence for each path in which two projects differ.

    Bytes, modes, nanosecond times, links and empty directories count; absolute links into the
    project follow it to its new place. What SQLite keeps beside a database stays behind.
    """
    one, two = dict(_picture(work)), dict(_picture(restored))
    for path in list(one):
        base = database_of(path)
        if base in one and _is_database(work / os.fsdecode(base)):
            del one[path]
    wrong = []
    for path in sorted(one.keys() | two.keys()):
        expected = _relocated(one.get(path), work, restored)
        if expected != two.get(path):
            wrong.append(f"{path!r}: {expected} became {two.get(path)}")
    return wrong


def _picture(root: Path) -> Iterator[tuple[bytes, tuple[object, ...]]]:
    top = os.fsencode(root)
    for directory, directories, files in os.walk(top):
        for name in directories + files:
            path = os.path.join(directory, name)
            status = os.lstat(path)
            look = oct(stat.S_IMODE(status.st_mode)), status.st_mtime_ns
            key = os.path.relpath(path, top)
            if stat.S_ISLNK(status.st_mode):
                yield key, ("link", os.readlink(path))
            elif stat.S_ISDIR(status.st_mode):
                yield key, ("dir", *look)
            elif stat.S_ISREG(status.st_mode):
                yield key, ("file", status.st_size, _digest(path), *look)


def _relocated(entry: tuple[object, ...] | None, old: Path, new: Path) -> tuple[object, ...] | None:
    if entry is None or entry[0] != "link":
        return entry
    target = entry[1]
    assert isinstance(target, bytes)
    start = os.fsencode(old)
    if target == start or target.startswith(start + b"/"):
        return ("link", os.fsencode(new) + target[len(start) :])
    return entry


def _digest(path: bytes) -> str:
    digest = blake3()
    with open(path, "rb") as file:
        while data := file.read(1 << 20):
            digest.update(data)
    return digest.hexdigest(8)


def _files(work: Path) -> Iterator[str]:
    for directory, _, names in os.walk(work):
        for name in names:
            path = os.path.join(directory, name)
            if stat.S_ISREG(os.lstat(path).st_mode):
                yield os.path.relpath(path, work)


def _is_database(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except (FileNotFoundError, IsADirectoryError):
        return False


def _sidecars(root: Path) -> list[str]:
    found = []
    for name in _files(root):
        base = database_of(os.fsencode(name))
        if name.endswith(tuple(map(os.fsdecode, SIDECARS))) and base is not None:
            path = root / os.fsdecode(base)
            if not os.fsencode(name).startswith(STATUS_FOLDER) and _is_database(path):
                found.append(name)
    return found


def _temporaries(*roots: Path) -> list[str]:
    prefix = os.fsdecode(RESERVED_PREFIX)
    return [name for root in roots for name in _files(root) if prefix in name]
