"""Large files on the FUSE stand-in: little is written for little change, and no death tears one."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from blake3 import blake3

from onesync.core.model import STATUS_FOLDER
from tests.node import SOON, Node, picture
from tests.standin.mounted import Mounted
from tests.test_program import names_of_ours

pytestmark = pytest.mark.fuse
MEGABYTE = 1_000_000
STACK = "particles.mrcs"
_PIECE = 64 << 10


@pytest.fixture
def store(mounted: Mounted) -> Path:
    return mounted.path / "project"


@pytest.fixture
def one(nodes: list[Node]) -> Node:
    nodes[0].configure(mount__require_fuse=True)
    nodes[0].deploy()
    return nodes[0]


def change(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def in_the_middle(stack: Path) -> None:
    change(stack, (1 << 29) + 12345, os.urandom(MEGABYTE))


def in_pieces(stack: Path) -> None:
    """As many small images are written anew, all over the stack."""
    for number in range(16):
        change(stack, (number << 26) + 12345, os.urandom(MEGABYTE // 16))


def at_the_end(stack: Path) -> None:
    change(stack, 1 << 30, os.urandom(MEGABYTE))


def with_its_header(stack: Path) -> None:
    """As RELION appends: the new count first, then the image."""
    change(stack, 0, os.urandom(1024))
    at_the_end(stack)


@pytest.mark.parametrize("edit", [in_the_middle, in_pieces, at_the_end, with_its_header])
def test_a_megabyte_changed_in_a_gigabyte_writes_a_few(
    one: Node, nodes: list[Node], mounted: Mounted, edit: Callable[[Path], None]
) -> None:
    two = nodes[1]
    stack = one.work / STACK
    with stack.open("wb") as file:
        file.write(os.urandom(3 * MEGABYTE))
        file.truncate(1 << 30)
    assert one.flush() == 0, one.log()
    mounted.reset()
    edit(stack)
    assert one.flush() == 0, one.log()
    counts = mounted.counts()
    assert counts["bytes_written"] < 9 * MEGABYTE
    assert counts.get("read", 0) < 50, "the replica is not read again"
    digest = _digest(stack)
    assert one.end() == 0, one.log()
    assert names_of_ours(mounted.backing) == []
    two.deploy()
    assert _digest(two.work / STACK) == digest
    assert (two.work / STACK).stat().st_blocks * 512 < 100 * MEGABYTE, "its holes are restored"
    assert two.end() == 0, two.log()


def _digest(path: Path) -> tuple[int, str]:
    """Return a file's length and a digest of what is not zero in it; holes need not be read."""
    size, offset, hasher = path.stat().st_size, 0, blake3()
    with path.open("rb") as file:
        while offset < size and (offset := _data_from(file.fileno(), offset)) < size:
            offset -= offset % _PIECE
            piece = os.pread(file.fileno(), _PIECE, offset)
            if any(piece):
                hasher.update(b"%d " % offset + piece)
            offset += _PIECE
    return size, hasher.hexdigest()


def _data_from(fd: int, offset: int) -> int:
    """Return where data are, from ``offset`` on; the file's end where there are none."""
    try:
        return os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return os.fstat(fd).st_size


@pytest.mark.parametrize("left", [0, 10, 1_500_000, 2_000_000 + 4096])
@pytest.mark.parametrize("grown", [4, 3 * MEGABYTE])
def test_what_grows_where_somebody_cut_it_comes_whole(one: Node, left: int, grown: int) -> None:
    """Written behind what is left it would have the right size, and zeros in it."""
    path = one.work / STACK
    path.write_bytes(os.urandom(2_000_000))
    assert one.flush() == 0, one.log()
    os.truncate(one.store / STACK, left)
    change(path, 2_000_000, os.urandom(grown))
    assert one.flush() == 0, one.log()
    assert (one.store / STACK).read_bytes() == path.read_bytes()
    assert one.end() == 0, one.log()


def test_a_restored_file_is_patched_too(one: Node, nodes: list[Node], mounted: Mounted) -> None:
    (one.work / STACK).write_bytes(os.urandom(20 * MEGABYTE))
    assert one.end() == 0, one.log()
    two = nodes[1]
    two.deploy()
    mounted.reset()
    change(two.work / STACK, 5 * MEGABYTE, b"changed")
    assert two.flush() == 0, two.log()
    assert mounted.counts()["bytes_written"] < MEGABYTE / 4
    expected = picture(two.work)
    assert two.end() == 0, two.log()
    one.deploy()
    assert picture(one.work) == expected


def as_an_earlier_onesync_wrote_it(index: Path, stack: Path, size: int) -> None:
    """Let ``index`` know the blocks of ``stack`` as one before XXH3 did, and nothing else."""
    content = stack.read_bytes()
    blocks = [content[start : start + size] for start in range(0, len(content), size)]
    digests = b"".join(blake3(block).digest(length=16) for block in blocks)
    with closing(sqlite3.connect(index)) as db:
        db.execute("DROP TABLE block_digests")
        row = (blake3(content).hexdigest(), size, digests)
        db.execute("INSERT INTO blocks VALUES (?, ?, ?)", row)
        db.commit()


def test_what_an_earlier_onesync_sent_is_patched_by_a_later_one(
    one: Node, mounted: Mounted
) -> None:
    path, index = one.work / STACK, one.home / "state" / "index.sqlite"
    path.write_bytes(os.urandom(5 * MEGABYTE))
    assert one.flush() == 0, one.log()
    one.end(signal.SIGKILL)
    as_an_earlier_onesync_wrote_it(index, path, 16 << 10)
    one.deploy()
    for place in (MEGABYTE, 3 * MEGABYTE):  # by old digests, then by new ones
        mounted.reset()
        change(path, place, b"changed")
        assert one.flush() == 0, one.log()
        assert (mounted.backing / "project" / STACK).read_bytes() == path.read_bytes()
        assert mounted.counts()["bytes_written"] < MEGABYTE / 4
        with closing(sqlite3.connect(index)) as db:
            found = db.execute("SELECT digest, algorithm, size FROM block_digests").fetchall()
        digest = blake3(path.read_bytes()).hexdigest()
        assert (digest, "xxh3-128", 16 << 10) in found
    assert one.end() == 0, one.log()


def make_database(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("CREATE TABLE Particles (id INTEGER PRIMARY KEY, content BLOB)")
        rows = [(number, os.urandom(1000)) for number in range(20_000)]
        db.execute("BEGIN")
        db.executemany("INSERT INTO Particles VALUES (?, ?)", rows)
        db.execute("COMMIT")


def update(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE Particles SET content = ? WHERE id = 10000", (b"changed" * 100,))


def test_a_database_is_pushed_block_by_changed_block(one: Node, mounted: Mounted) -> None:
    path = one.work / "particles.sqlite"
    make_database(path)
    assert one.flush() == 0, one.log()
    inode = (mounted.backing / "project" / path.name).stat().st_ino
    mounted.reset()
    update(path)
    assert one.flush() == 0, one.log()
    assert mounted.counts()["bytes_written"] < MEGABYTE / 2
    replica = mounted.backing / "project" / path.name
    assert replica.read_bytes() == path.read_bytes()
    assert replica.stat().st_ino == inode


@pytest.mark.parametrize("kind", ["stack", "database"])
@pytest.mark.parametrize("where", ["undo", "first", "second", "checkpoint"])
def test_a_death_while_patching_leaves_the_last_checkpoint(
    one: Node, nodes: list[Node], mounted: Mounted, kind: str, where: str
) -> None:
    two = nodes[1]
    path = one.work / ("particles.sqlite" if kind == "database" else STACK)
    if kind == "database":
        make_database(path)
    else:
        path.write_bytes(os.urandom(20 * MEGABYTE))
    assert one.flush() == 0, one.log()
    old = path.read_bytes()
    if where == "checkpoint":
        mounted.fail("create", errno.EIO, times=-1, pattern="manifest/")
    elif where == "undo":
        mounted.fail("write", errno.EIO, times=-1, pattern=".onesync~")
    else:
        nth = {"first": 1, "second": 2}[where]
        mounted.fail("write", errno.EIO, nth=nth, times=-1, pattern=path.name)
    if kind == "database":
        update(path)
    else:
        change(path, 5 * MEGABYTE, b"changed")
        change(path, 15 * MEGABYTE, b"changed")
    one.wait_for_phase("backing_off")
    one.end(signal.SIGKILL)
    mounted.clear()
    (mounted.backing / "project" / os.fsdecode(STATUS_FOLDER) / "lock").unlink()
    two.deploy()
    assert (two.work / path.name).read_bytes() == old
    assert two.status()["problems"] == []
    assert two.end() == 0, two.log()
    assert names_of_ours(mounted.backing) == []


def test_a_patch_that_failed_is_done_again(one: Node, mounted: Mounted) -> None:
    path = one.work / STACK
    path.write_bytes(os.urandom(20 * MEGABYTE))
    assert one.flush() == 0, one.log()
    mounted.fail("write", errno.EIO, nth=2, times=3, pattern=STACK)
    for megabyte in (3, 9, 15):
        change(path, megabyte * MEGABYTE, b"changed")
    deadline = time.monotonic() + SOON
    replica = mounted.backing / "project" / STACK
    while one.flush() != 0:
        assert time.monotonic() < deadline, one.log()
    assert replica.read_bytes() == path.read_bytes()
    assert names_of_ours(mounted.backing) == []


def test_what_was_changed_in_onedata_is_not_patched_but_replaced(
    one: Node, mounted: Mounted
) -> None:
    path = one.work / STACK
    path.write_bytes(os.urandom(20 * MEGABYTE))
    assert one.flush() == 0, one.log()
    replica = mounted.backing / "project" / STACK
    change(replica, 5 * MEGABYTE, b"by somebody else")
    change(path, 5 * MEGABYTE, b"changed")
    assert one.flush() == 0, one.log()
    assert replica.read_bytes() == path.read_bytes()


def test_a_very_large_file_holds_back_nobody(one: Node, tmp_path: Path, mounted: Mounted) -> None:
    run = one.work / "Runs" / "000001_ProtMock" / "extra"
    (run / "DONE").mkdir(parents=True)
    assert one.flush() == 0, one.log()
    mounted.latency(0.1)
    content = os.urandom(200 * MEGABYTE)
    (run / STACK).write_bytes(content)
    (run / "DONE" / "marker.TXT").touch()
    (run / "small").write_bytes(b"small")
    replica = mounted.backing / "project" / run.relative_to(one.work)
    deadline = time.monotonic() + 2 * SOON
    while not (replica / "DONE" / "marker.TXT").exists():
        assert time.monotonic() < deadline, one.log()
        time.sleep(0.05)
    mounted.latency(1)  # or it might be whole before anybody looked
    assert (replica / "small").exists()
    assert 0 < (replica / STACK).stat().st_size < len(content)
    while not (behind := [p for p in one.status()["problems"] if p["kind"] == "behind"]):
        assert time.monotonic() < deadline, one.log()
        time.sleep(0.05)
    assert "still travelling" in behind[0]["text"]
    one.end(signal.SIGKILL)
    mounted.latency(0)
    shutil.copytree(mounted.backing / "project", tmp_path / "copy")
    (tmp_path / "copy" / os.fsdecode(STATUS_FOLDER) / "lock").unlink()
    other = Node(tmp_path / "other", tmp_path / "copy")
    other.deploy()
    found = (other.work / run.relative_to(one.work) / STACK).read_bytes()
    assert found
    assert content.startswith(found)
    assert any(p["kind"] == "behind" for p in other.status()["problems"])
    assert other.end() == 0, other.log()
    mounted.reset()
    one.deploy()
    assert one.flush() == 0, one.log()
    assert mounted.counts()["bytes_written"] < len(content) - len(found) + MEGABYTE, "it went on"
    assert (replica / STACK).read_bytes() == content
    assert one.status()["problems"] == []
