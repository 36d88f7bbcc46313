"""What others put into the folder or the working copy never leads out of the two roots.

One test for each class of attack: forged manifests, intents and undo files, planted links, special
files, bombs, and names that a terminal would obey.
"""

from __future__ import annotations

import gzip
import json
import logging
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import pytest
from blake3 import blake3

from onesync import working_copy
from onesync.clock import SystemClock
from onesync.core.blocks import BlockHasher, Blocks
from onesync.core.chain import Damaged, Noted, Position, Set, apply, decode
from onesync.core.claims import Claim, Held, Record, judge
from onesync.core.model import STATUS_FOLDER, Entry, Kind, Problem, RelPath, show
from onesync.core.tree import Tree
from onesync.index import Index
from onesync.intent import INTENTS, Intent
from onesync.journal import LineFormatter
from onesync.local import digest_local, stamp_of
from onesync.manifest import MANIFEST, Manifest
from onesync.pins import Pins
from onesync.recovery import REFUSED, TORN, settle
from onesync.replica.door import Listed, Ours, Replica
from onesync.replica.folder import FolderReplica
from onesync.snapshot import Snapshots, Taken, is_database
from onesync.stagein import Conflict, StageIn
from tests.memory import MemoryReplica, Tabled
from tests.node import picture

EVIL = "\x1b[2J\x1b]0;owned\x07\r\n\u202e\x9b"
PLACE = Position(3, 7)
FILE = Entry(Kind.FILE, 7, 1, 0o644, blake3(b"content").hexdigest())


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as made:
        yield made


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory that nothing may change; checked by ``unharmed``."""
    path = tmp_path / "outside"
    (path / "inner").mkdir(parents=True)
    (path / "file").write_bytes(b"precious")
    (path / "inner" / "file").write_bytes(b"precious")
    return path


@pytest.fixture
def folder(tmp_path: Path, outside: Path) -> Path:
    """A replica in which somebody swapped a directory and a file for links to ``outside``."""
    path = tmp_path / "replica"
    (path / "plain").mkdir(parents=True)
    (path / "plain" / "file").write_bytes(b"content")
    (path / "door").symlink_to(outside)
    (path / "alias").symlink_to(outside / "file")
    return path


@pytest.fixture
def work(tmp_path: Path) -> Path:
    path = tmp_path / "work"
    path.mkdir()
    return path


# -- forged manifests ---------------------------------------------------------------------------


def checkpoint(*lines: object) -> bytes:
    """A whole checkpoint file with these lines, whatever they are."""
    header = {
        "onesync": "checkpoint", "format": 1, "folder": "f", "epoch": 1, "sequence": 1,
        "previous": None, "writer": "w", "time": "t", "why": "base",
    }  # fmt: skip
    body = b"".join(json.dumps(line).encode() + b"\n" for line in (header, *lines))
    end = {"end": len(lines), "digest": blake3(body).hexdigest()}
    return gzip.compress(body + json.dumps(end).encode() + b"\n")


GOOD = {"path": "a", "kind": "file", "mtime_ns": 1, "mode": 0o644, "size": 1, "digest": "ab"}


def test_the_forger_writes_whole_checkpoints() -> None:
    assert decode(checkpoint(GOOD)).changes[0] == Set(b"a", Entry(Kind.FILE, 1, 1, 0o644, "ab"))


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "..", "a/../../b", "./a", "a/", "a//b", "", "nul\0", "x" * 256,
     "a/" * 2048 + "b",
     ".deployment_status_do_not_delete/lock", "a/.onesync~1"],
)  # fmt: skip
@pytest.mark.parametrize("line", ["path", "gone", "renamed", "to"])
def test_a_path_that_no_user_file_can_have_is_refused(path: str, line: str) -> None:
    whole: dict[str, object] = {"renamed": "a", "to": "b"} if line in ("renamed", "to") else {}
    forged = {**(GOOD if line == "path" else whole), line: path}
    with pytest.raises(Damaged, match="path"):
        decode(checkpoint(forged))


@pytest.mark.parametrize(
    "field",
    [{"mode": 0o4755}, {"mode": 0o1777}, {"size": -1}, {"size": 1 << 63}, {"mtime_ns": 1 << 70},
     {"size": 1.5}, {"kind": "device"}, {"mtime_ns": True}, {"digest": "\ud800"}],
)  # fmt: skip
def test_what_is_never_restored_is_refused(field: dict[str, object]) -> None:
    with pytest.raises(Damaged):
        decode(checkpoint({**GOOD, **field}))


def test_a_bomb_is_not_unpacked() -> None:
    with pytest.raises(Damaged, match="too large"):
        decode(gzip.compress(bytes(80 << 20), 1))


def test_a_line_that_is_nested_for_ever_is_refused() -> None:
    body = b"[" * 100_000 + b"\n"
    with pytest.raises(Damaged, match="not JSON"):
        decode(gzip.compress(body + b'{"end":0,"digest":"x"}\n'))


def test_the_last_of_two_lines_for_one_path_counts() -> None:
    tree = Tree()
    apply(tree, decode(checkpoint(GOOD, {**GOOD, "size": 2})).changes)
    assert tree == {b"a": Entry(Kind.FILE, 2, 1, 0o644, "ab")}


def stage_in(
    folder: Path, work: Path, pool: ThreadPoolExecutor, tree: dict[RelPath, Entry]
) -> list[Problem]:
    replica = FolderReplica(os.fsencode(folder))
    staged = StageIn(replica, os.fsencode(work), pool, lambda *_: None, Tabled()).run(Tree(tree))
    return staged.problems


@pytest.mark.parametrize("above", [b"gate", b"gate/inner"])
def test_nothing_is_written_through_a_link_of_the_manifest(
    folder: Path, work: Path, outside: Path, pool: ThreadPoolExecutor, above: bytes
) -> None:
    before = picture(outside)
    (folder / os.fsdecode(above)).mkdir(parents=True)
    (folder / os.fsdecode(above) / "new").write_bytes(b"content")
    tree = {
        b"gate": Entry(Kind.LINK, target=os.fsencode(outside)),
        b"gate/inner": Entry(Kind.DIRECTORY, 0, 1, 0o700),
        above + b"/new": FILE,
    }
    problems = stage_in(folder, work, pool, tree)
    assert {p.path for p in problems if p.kind == "misplaced"} == {b"gate/inner", above + b"/new"}
    assert os.readlink(work / "gate") == str(outside)
    assert picture(outside) == before


def test_nothing_is_written_beneath_a_file_of_the_manifest(
    folder: Path, work: Path, pool: ThreadPoolExecutor
) -> None:
    problems = stage_in(folder, work, pool, {b"plain/file": FILE, b"plain/file/inner": FILE})
    assert [(p.path, p.kind) for p in problems] == [(b"plain/file/inner", "misplaced")]
    assert (work / "plain" / "file").read_bytes() == b"content"


# -- links planted while onesync runs -----------------------------------------------------------


def test_stage_in_follows_no_link_of_the_working_copy(
    folder: Path, work: Path, outside: Path, pool: ThreadPoolExecutor
) -> None:
    outside.chmod(0o750)
    before = picture(outside), outside.stat().st_mode
    (work / "plain").symlink_to(outside)
    with pytest.raises(Conflict):
        stage_in(folder, work, pool, {b"plain": Entry(Kind.DIRECTORY, 0, 1, 0o700)})
    assert (picture(outside), outside.stat().st_mode) == before


def test_stage_in_reads_through_no_link_of_the_replica(
    folder: Path, work: Path, pool: ThreadPoolExecutor
) -> None:
    problems = stage_in(folder, work, pool, {b"alias": FILE})
    assert [(p.path, p.kind) for p in problems] == [(b"alias", "missing")]
    assert {path.name for path in work.iterdir()} == {"plain"}


PRECIOUS = b"precious"
SOURCE = b"precious and more"


def blocks_of(content: bytes) -> Blocks:
    hasher = BlockHasher(65_536)
    hasher.update(content)
    return hasher.blocks()


def _as_ours(path: RelPath) -> tuple[RelPath, Ours]:
    """Return what lets the directory of ``path`` go, and that of its content alone."""
    directory, _, name = path.rpartition(b"/")
    return directory, {b"": [name]}


def _nothing(_: object) -> None:
    """Leave out that something stays, which tells nothing of what a link leads to."""


CALLS: dict[str, Callable[[FolderReplica, bytes, bytes], object]] = {
    "look": lambda r, p, s: r.look(p),
    "look_at": lambda r, p, s: r.look_at([p])[0],
    "list": lambda r, p, s: r.list(p.rpartition(b"/")[0] or p),
    "names": lambda r, p, s: r.names(p.rpartition(b"/")[0] or p),
    "read": lambda r, p, s: r.read(p),
    "digest": lambda r, p, s: r.digest(p),
    "arrived": lambda r, p, s: r.arrived([p]),
    "fetch": lambda r, p, s: r.fetch(p, s + b".new", 0o644, 1),
    "put": lambda r, p, s: r.put(s, p + b".new"),
    "write_new": lambda r, p, s: r.write_new(p + b".new", b"x"),
    "overwrite": lambda r, p, s: r.overwrite(p, b"x"),
    "make_directory": lambda r, p, s: r.make_directory(p + b".new"),
    "remove": lambda r, p, s: r.remove(p),
    "remove_ours": lambda r, p, s: _nothing(r.remove_ours(p, {})),
    "remove_ours of": lambda r, p, s: _nothing(r.remove_ours(*_as_ours(p))),
    "unlink": lambda r, p, s: r.unlink(p),
    "rename away": lambda r, p, s: r.rename(p, b"stolen"),
    "rename in": lambda r, p, s: r.rename(b"plain/file", p + b".new"),
    "truncate": lambda r, p, s: r.truncate(p, 0),
    "append": lambda r, p, s: r.append(s, p, 8, blake3(PRECIOUS).hexdigest()),
    "write_undo of": lambda r, p, s: r.write_undo(p, b"copied", 8, blocks_of(PRECIOUS), (0,)),
    "write_undo in": lambda r, p, s: r.write_undo(
        b"plain/file", p + b".new", 7, blocks_of(b"content"), (0,)
    ),
    "patch": lambda r, p, s: r.patch(s, p, blocks_of(SOURCE), (0,), len(SOURCE)),
    "undo of": lambda r, p, s: r.undo(p, b"undo", 8),
    "undo by": lambda r, p, s: r.undo(b"plain/eight", p + b".undo", 8),
}
NO_PATHS = {"identify", "walk_anew", "compare"}
"""Of the replica's calls those that take no path of it."""


@pytest.fixture
def reached(
    folder: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, bytes], bool]:
    """Make a call on a path; returns whether it revealed or changed anything.

    What it may reveal or change stands in ``outside``, and likewise in ``real``, in the folder.
    """
    source = folder.parent / "source"
    source.write_bytes(SOURCE)
    old = undo_file(b"x" * 8, length=8)
    (folder / "undo").write_bytes(old)
    (folder / "plain" / "eight").write_bytes(b"eight...")
    for file in (outside / "file", outside / "inner" / "file"):
        file.with_name("file.undo").write_bytes(old)
        os.setxattr(file, "user.progress", b"100%")
    (folder / "alias.undo").symlink_to(outside / "file.undo")
    shutil.copytree(outside, folder / "real")
    monkeypatch.setattr("onesync.replica.folder._PROGRESS", "user.progress")

    def reached(name: str, path: bytes) -> bool:
        before = picture(folder.parent)
        result = None
        with suppress(OSError):
            result = CALLS[name](FolderReplica(os.fsencode(folder)), path, os.fsencode(source))
        is_told = bool(result) and result not in ((False,), Listed(path, Kind.LINK, 0))
        return is_told or picture(folder.parent) != before

    return reached


def test_every_call_on_the_replica_is_attacked() -> None:
    calls = {name for name in vars(Replica) if not name.startswith("_")}
    assert {name.split()[0] for name in CALLS} == calls - NO_PATHS


@pytest.mark.parametrize("path", [b"real/file", b"real/inner/file"])
@pytest.mark.parametrize("name", CALLS)
def test_every_call_on_the_replica_reaches_what_no_link_leads_to(
    reached: Callable[[str, bytes], bool], name: str, path: bytes
) -> None:
    """Or else the next test would prove nothing."""
    assert reached(name, path)


@pytest.mark.parametrize("path", [b"door/file", b"door/inner/file", b"../outside/file", b"alias"])
@pytest.mark.parametrize("name", CALLS)
def test_no_call_on_the_replica_goes_through_a_link(
    reached: Callable[[str, bytes], bool], outside: Path, name: str, path: bytes
) -> None:
    before = picture(outside)
    was_reached = reached(name, path)
    assert picture(outside) == before
    # A link itself may be removed or renamed, and beside it all is the folder's own.
    own = ("remove", "remove_ours", "remove_ours of", "unlink", "rename away")
    beside = ("rename in", "put", "write_new", "make_directory", "write_undo in")
    assert not was_reached or (path == b"alias" and name in (*own, *beside))


def test_cleaning_removes_nothing_behind_a_link(work: Path, outside: Path, tmp_path: Path) -> None:
    (work / "door").mkdir()
    (work / "door" / "file").write_bytes(b"precious")
    entry = Entry(Kind.FILE, 8, 1, 0o644, blake3(b"precious").hexdigest())
    index = Index(tmp_path / "index.sqlite")
    stamp = stamp_of(os.lstat(outside / "file"), Kind.FILE)
    index.replace([(b"door/file", entry, stamp)])
    (work / "door" / "file").unlink()
    (work / "door").rmdir()
    (work / "door").symlink_to(outside)
    before = picture(outside)
    assert working_copy.clean(os.fsencode(work), index, tmp_path, lambda _: None).removed == 0
    assert working_copy._open_parent(os.fsencode(work), b"door/file") is None
    assert picture(outside) == before


# -- forged intents and undo files --------------------------------------------------------------


def known(path: RelPath) -> Entry | None:
    """What the checkpoint has."""
    return {b"data/file": FILE, b"data": Entry(Kind.DIRECTORY)}.get(path)


@pytest.fixture
def replica() -> MemoryReplica:
    made = MemoryReplica()
    for path in (STATUS_FOLDER, INTENTS, MANIFEST, STATUS_FOLDER + b"/epochs", b"data"):
        made.make_directory(path)
    made.write_new(STATUS_FOLDER + b"/lock", b"HOST: us")
    made.write_new(STATUS_FOLDER + b"/epochs/1", b"")
    made.write_new(b"data/file", b"content")
    return made


def everything(replica: MemoryReplica) -> dict[RelPath, bytes | None]:
    return {p: c for p, c in replica._tree.items() if INTENTS not in p and REFUSED not in p}


LOCK = ".deployment_status_do_not_delete/lock"
EPOCHS = ".deployment_status_do_not_delete/epochs"
BESIDE = ".deployment_status_do_not_delete/.onesync~1"


@pytest.mark.parametrize(
    "part",
    [
        {"create": [[LOCK, 1 << 40, "x"]]},
        {"create": [["/etc/passwd", 1, "x"]]},
        {"create": [["data/file", "many", "x"]]},
        {"make": [EPOCHS], "promise": [EPOCHS]},
        {"make": ["../outside"], "promise": ["../outside"]},
        {"new": [["data/new", LOCK]]},
        {"new": [["data/new", "data/file"]]},
        {"new": [["data/new", ".onesync~1"]]},
        {"replace": [["data/file", "data/../.onesync~1"]]},
        {"replace": [[LOCK, BESIDE]]},
        {"remove": [[EPOCHS, BESIDE]]},
        {"remove": [["data", "data"]]},
        {"remove": [["data", ""]]},
        {"gone": [[LOCK, 1, "x"]]},
        {"gone": [["../outside", 1, "x"]]},
        {"gone": [["data/file", -1, "x"]]},
        {"rename": [["data", EPOCHS]]},
        {"rename": [["data", "/tmp/stolen"]]},
        {"append": [["data/file", 0]]},
        {"append": [["data/file", -1]]},
        {"append": [["data/theirs", 0]]},
        {"patch": [["data/theirs", "data/.onesync~1"]]},
        {"patch": [["data/file", "data/theirs"]]},
        {"epoch": 99},
        {"sequence": "7"},
        {"new": 7},
        {"onesync": "something"},
    ],
)
def test_a_forged_intent_is_refused_by_name_and_kept(
    replica: MemoryReplica, pool: ThreadPoolExecutor, part: dict[str, object]
) -> None:
    replica.write_new(b"data/theirs", b"theirs")
    before = everything(replica)
    intent = Intent(PLACE)
    forged = json.dumps({**json.loads(intent.encode()), **part}).encode()
    replica.write_new(intent.path, forged)
    told = settle(replica, Position(3, 6), known, pool)
    assert everything(replica) == before
    assert [replica.read(REFUSED + b"/" + i.name) for i in replica.list(REFUSED)] == [forged]
    assert ["E000003-000007.json was refused" in sentence for sentence in told] == [True]
    assert settle(replica, Position(3, 6), known, pool) == []


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"onesync": "intent", "format": "x"}'])
def test_an_intent_that_cannot_be_one_is_kept(
    replica: MemoryReplica, pool: ThreadPoolExecutor, content: bytes
) -> None:
    replica.write_new(INTENTS + b"/E000003-000007.json", content)
    assert len(settle(replica, None, known, pool)) == 1
    assert [replica.read(REFUSED + b"/" + i.name) for i in replica.list(REFUSED)] == [content]


def test_a_directory_among_the_intents_stops_nothing(
    replica: MemoryReplica, pool: ThreadPoolExecutor
) -> None:
    replica.make_directory(INTENTS + b"/E000003-000007.json")
    assert len(settle(replica, None, known, pool)) == 1
    assert settle(replica, None, known, pool) == []


def test_what_the_checkpoint_has_is_never_taken_back(
    replica: MemoryReplica, pool: ThreadPoolExecutor
) -> None:
    intent = Intent(PLACE, make=[b"data"], promise=[b"data", b"data/file"])
    intent.create.append((b"data/file", 1 << 40, "x"))
    replica.write_new(intent.path, intent.encode())
    settle(replica, None, known, pool)
    assert replica.read(b"data/file") == b"content"


def test_a_directory_that_is_taken_back_is_kept_with_what_is_in_it(
    replica: MemoryReplica, pool: ThreadPoolExecutor
) -> None:
    replica.make_directory(b"other")
    replica.write_new(b"other/theirs", b"theirs")
    intent = Intent(PLACE, make=[b"other"], promise=[b"other"])
    replica.write_new(intent.path, intent.encode())
    settle(replica, None, known, pool)
    (kept,) = replica.list(TORN)
    assert replica.read(TORN + b"/" + kept.name + b"/theirs") == b"theirs"


def undo_file(old: bytes, **fields: object) -> bytes:
    head = {
        "onesync": "undo", "format": 1, "length": 1 << 20, "block_size": 65_536, "blocks": [0],
        "digest": blake3(old).hexdigest(), **fields,
    }  # fmt: skip
    return b"%019d\n" % (20 + len(old)) + old + json.dumps(head).encode()


@pytest.mark.parametrize(
    "fields",
    [{"length": 0}, {"length": 1 << 50}, {"blocks": [-1]}, {"blocks": [1 << 40]}, {"blocks": [16]},
     {"blocks": [0, 0]}, {"blocks": ["0"]}, {"blocks": 0}, {"block_size": 0}, {"block_size": -1},
     {"block_size": 1 << 40}, {"digest": "x"}, {"format": 2}],
)  # fmt: skip
def test_an_undo_file_with_hostile_numbers_changes_nothing(
    folder: Path, fields: dict[str, object]
) -> None:
    content = bytes(1 << 20)
    (folder / "stack").write_bytes(content)
    (folder / "undo").write_bytes(undo_file(b"x" * 65_536, **fields))
    replica = FolderReplica(os.fsencode(folder))
    assert not replica.undo(b"stack", b"undo", 1 << 20)
    assert (folder / "stack").read_bytes() == content
    (folder / "undo").write_bytes(undo_file(b"x" * 65_536))
    assert replica.undo(b"stack", b"undo", 1 << 20)
    assert (folder / "stack").read_bytes() == b"x" * 65_536 + content[65_536:]


def test_forged_bases_of_the_future_remove_no_checkpoint(replica: MemoryReplica) -> None:
    manifest = Manifest(replica, SystemClock(), "f", None, 1, "w", ())
    for _ in range(5):
        manifest.write([], "base")
    for number in range(3):
        replica.write_new(MANIFEST + b"/E999999-00000%d.base.jsonl.gz" % number, b"x")
    manifest.remove_old()
    names = {item.name for item in replica.list(MANIFEST)}
    assert {b"E000001-00000%d.base.jsonl.gz" % n for n in (3, 4, 5)} <= names
    assert b"E000001-000001.base.jsonl.gz" not in names


# -- special files and databases ----------------------------------------------------------------


def test_a_fifo_hangs_nobody(work: Path, folder: Path) -> None:
    os.mkfifo(work / "pipe")
    os.mkfifo(folder / "pipe")
    pipe = os.fsencode(work / "pipe")
    assert not is_database(pipe)
    with Pins(os.fsencode(work)) as pins:
        pins.add([b"pipe"])
        assert b"pipe" not in pins
    replica = FolderReplica(os.fsencode(folder))
    for call in (
        digest_local,
        lambda p: replica.put(p, b"new"),
        lambda p: replica.fetch(b"pipe", p + b"2", 0, 0),
    ):
        with pytest.raises(InterruptedError):
            call(pipe)
    assert replica.read(b"pipe") == b""
    assert replica.list(b"") != []
    assert not take(work / "pipe", work / "copy").taken


def take(source: Path, target: Path) -> Taken:
    snapshots = Snapshots()
    try:
        (taken,) = snapshots.take([(os.fsencode(source), os.fsencode(target))], 30)
    finally:
        snapshots.close()
    return taken


@pytest.fixture
def hot(work: Path) -> Path:
    """A database with the journal of a writer that died."""
    script = (
        "import os, sqlite3, sys\n"
        "db = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "db.execute('CREATE TABLE t (x)'); db.execute(\"INSERT INTO t VALUES ('committed')\")\n"
        "db.execute('PRAGMA cache_size=1'); db.execute('BEGIN')\n"
        "for n in range(2000): db.execute('INSERT INTO t VALUES (?)', ('x' * 500,))\n"
        "os._exit(0)\n"
    )
    path = work / "hot.sqlite"
    subprocess.run([sys.executable, "-c", script, path], check=True)
    assert (work / "hot.sqlite-journal").exists()
    return path


def test_what_dead_writers_left_is_rolled_back_in_the_copy_alone(work: Path, hot: Path) -> None:
    before = picture(work)
    copy = work.parent / "copy"
    assert take(hot, copy).taken
    with closing(sqlite3.connect(copy)) as db:
        assert db.execute("SELECT * FROM t").fetchall() == [("committed",)]
    assert picture(work) == before
    assert not copy.with_name("copy-journal").exists()


def test_a_journal_that_names_another_file_deletes_nothing(
    work: Path, hot: Path, outside: Path
) -> None:
    name = os.fsencode(outside / "file")
    tail = name + len(name).to_bytes(4, "big") + sum(name).to_bytes(4, "big")
    with (work / "hot.sqlite-journal").open("ab") as journal:
        journal.write(bytes(4) + tail + bytes.fromhex("d9d505f920a163d7"))
    before = picture(outside)
    taken = take(hot, work.parent / "copy")
    assert (taken.taken, taken.is_database, "journal names another" in taken.reason) == (
        False, True, True,
    )  # fmt: skip
    assert picture(outside) == before
    assert not (work.parent / "copy").exists()


def test_a_database_behind_a_link_is_not_copied(work: Path, outside: Path) -> None:
    with closing(sqlite3.connect(outside / "secret.sqlite")) as db:
        db.execute("CREATE TABLE t (x)")
    (work / "door").symlink_to(outside)
    (work / "alias").symlink_to(outside / "secret.sqlite")
    for path in (work / "alias", work / "door" / "secret.sqlite"):
        assert not is_database(os.fsencode(path))
        assert not take(path, work.parent / "copy").taken
    assert not (work.parent / "copy").exists()


# -- names that a terminal would obey -----------------------------------------------------------


def is_harmless(text: str) -> bool:
    return all(c.isprintable() for c in text)


def test_no_name_reaches_a_log_unescaped() -> None:
    record = logging.LogRecord("x", logging.WARNING, "", 1, EVIL, (), None)
    record.path, record.reason = os.fsencode(EVIL), EVIL
    assert is_harmless(LineFormatter().format(record))
    assert is_harmless(show(os.fsencode(EVIL) + b"\xff"))


def test_no_problem_of_a_manifest_reaches_a_person_unescaped() -> None:
    problems: dict[RelPath, Problem] = {}
    apply(Tree(), [Noted(Problem(b"a", EVIL, EVIL))], problems)
    assert is_harmless(problems[b"a"].text + problems[b"a"].kind)


def test_no_field_of_a_lock_reaches_a_person_unescaped() -> None:
    record = Record("d", 1, EVIL, "b", "m", EVIL, EVIL, "/r", EVIL, "1")
    verdicts = [
        judge([Claim(1, record, None)], {"BEAT": EVIL}, None, None),
        judge([], {"HOST": EVIL}, None, None),
        judge([], None, EVIL, None),
    ]
    assert [isinstance(v, Held) and is_harmless(v.story) for v in verdicts] == [True] * 3


def test_setuid_of_a_source_never_travels(work: Path) -> None:
    (work / "tool").write_bytes(b"1")
    (work / "tool").chmod(0o6755)
    assert stamp_of(os.lstat(work / "tool"), Kind.FILE).mode == 0o755
    assert stat.S_IMODE(os.lstat(work / "tool").st_mode) == 0o6755
