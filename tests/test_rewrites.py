"""What is written without a trace in size and times reaches OneData all the same."""

from __future__ import annotations

import mmap
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from blake3 import blake3

from onesync.core.chain import Set
from onesync.core.model import DAMAGED_NS, STATUS_FOLDER, Entry, Kind, is_doubted
from onesync.index import Index
from onesync.rewrites import Rewrites
from onesync.scanner import Scanner
from tests.node import SOON, Node
from tests.standin.mounted import Mounted

PAGES = pytest.mark.parametrize("pages", [1, 1000], ids=["small", "patched"])


@pytest.fixture
def memory() -> Iterator[Path]:
    """Return a directory whose files no store into a map dates: no page goes to a disk."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as top:
        yield Path(top)


@pytest.fixture
def node(memory: Path, store: Path) -> Iterator[Node]:
    one = Node(memory / "one", store)
    one.configure(mount__io_timeout_seconds=120)
    one.deploy()
    yield one
    if one.running():
        assert one.end() == 0, one.log()


@contextmanager
def storing_once_more(node: Node, path: Path) -> Iterator[None]:
    """Push a page that is stored into, and store into it again after the block."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[0] = 1
        assert node.flush() == 0, node.log()
        before = path.stat()
        inode = os.open(path, os.O_PATH)
        yield
        mapped[1] = 2
    after = os.fstat(inode)
    os.close(inode)
    assert (after.st_mtime_ns, after.st_size) == (before.st_mtime_ns, before.st_size)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""  # in the moment in which it is replaced


@PAGES
def test_a_store_into_a_page_that_was_pushed_dirty_is_pushed_too(node: Node, pages: int) -> None:
    path = node.work / "micrograph.mrc"
    path.write_bytes(bytes(pages * mmap.PAGESIZE))
    os.link(path, node.work / "other-name.mrc")
    assert node.flush() == 0, node.log()
    with storing_once_more(node, path):
        pass
    assert node.flush() == 0, node.log()
    assert path.read_bytes()[:2] == b"\1\2"
    for name in ("micrograph.mrc", "other-name.mrc"):
        assert (node.store / name).read_bytes() == path.read_bytes(), name


@PAGES
@pytest.mark.parametrize("is_new", [True, False], ids=["new", "known"])
def test_a_store_into_a_map_that_stays_open_is_found_by_the_next_rescan(
    nodes: list[Node], pages: int, is_new: bool
) -> None:
    """A map may be open for days: its end tells of it too late."""
    node = nodes[0]
    node.configure(mount__io_timeout_seconds=120, batch__rescan_seconds=1)
    node.deploy()
    path = node.work / "micrograph.mrc"
    path.write_bytes(bytes(pages * mmap.PAGESIZE))
    if not is_new:
        assert node.flush() == 0, node.log()
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        for number in (1, 1, 2, 3):
            mapped[number] = number
            deadline = time.monotonic() + SOON
            while _content(node.store / path.name)[number : number + 1] != bytes([number]):
                assert time.monotonic() < deadline, node.log()
                time.sleep(0.05)
            assert node.flush() == 0, node.log()
    assert node.end() == 0, node.log()


@PAGES
def test_nobody_has_to_ask_for_it(node: Node, pages: int) -> None:
    path = node.work / "micrograph.mrc"
    path.write_bytes(bytes(pages * mmap.PAGESIZE))
    with storing_once_more(node, path):
        pass
    deadline = time.monotonic() + SOON
    stored = node.store / path.name
    while _content(stored) != path.read_bytes():
        assert time.monotonic() < deadline, node.log()
        time.sleep(0.05)


@PAGES
@pytest.mark.parametrize("is_renamed", ["before", "after"])
def test_a_rename_of_its_directory_does_not_hide_it(
    node: Node, pages: int, is_renamed: str
) -> None:
    old, new = node.work / "old", node.work / "new"
    old.mkdir()
    (old / "micrograph.mrc").write_bytes(bytes(pages * mmap.PAGESIZE))
    with storing_once_more(node, old / "micrograph.mrc"):
        node.pause()
        if is_renamed == "before":
            old.rename(new)
    if is_renamed == "after":
        old.rename(new)
    node.go_on()
    for _ in range(2):
        assert node.flush() == 0, node.log()
    assert (node.store / "new" / "micrograph.mrc").read_bytes()[:2] == b"\1\2"


def test_what_came_damaged_does_not_go_back_where_it_was_only_opened(nodes: list[Node]) -> None:
    one, two = nodes
    one.deploy()
    (one.work / "stack.mrc").write_bytes(b"good")
    assert one.end() == 0, one.log()
    (two.store / "stack.mrc").write_bytes(b"\0\0\0\0")
    two.deploy()
    assert [p["kind"] for p in two.status()["problems"]] == ["changed_outside"]
    (two.store / "stack.mrc").write_bytes(b"good")
    (two.work / "stack.mrc").open("r+b").close()
    assert two.flush() in (0, 3), two.log()
    assert (two.store / "stack.mrc").read_bytes() == b"good"
    assert [p["kind"] for p in two.status()["problems"]] == ["changed_outside"]
    assert two.end() == 0, two.log()


@pytest.mark.fuse
def test_what_is_stored_beside_the_final_checkpoint_is_in_the_one_after_it(
    memory: Path, mounted: Mounted
) -> None:
    folder = mounted.path / "project"
    one, two = (Node(memory / name, folder, undeploy__clean_working_dir=True) for name in "ab")
    one.deploy()
    path = one.work / "micrograph.mrc"
    path.write_bytes(bytes(mmap.PAGESIZE))
    with storing_once_more(one, path):
        mounted.hang_at("create", pattern=f"{os.fsdecode(STATUS_FOLDER)}/manifest/")
        mounted.start_log()
        assert one.process is not None
        one.process.terminate()
        deadline = time.monotonic() + SOON
        while not any(c.operation == "create" and "/manifest/" in c.path for c in mounted.log()):
            assert time.monotonic() < deadline, one.log()
            time.sleep(0.02)
    mounted.release()
    assert one.wait() == 0, one.log()
    two.deploy()
    assert (two.work / "micrograph.mrc").read_bytes()[:2] == b"\1\2"
    assert two.end() == 0, two.log()


@pytest.mark.parametrize("is_all_told", [False, True])
def test_what_was_renamed_is_looked_for_until_the_rename_is_told(
    tmp_path: Path, is_all_told: bool
) -> None:
    (tmp_path / "work" / "old").mkdir(parents=True)
    (tmp_path / "work" / "old" / "micrograph.mrc").write_bytes(b"written")
    root, path = os.fsencode(tmp_path / "work"), b"old/micrograph.mrc"
    with closing(Index(tmp_path / "index.sqlite")) as index:
        scanner = Scanner(root, index, lambda _: False)
        stamp = scanner.look(path)
        assert stamp is not None
        pushed = Entry(Kind.FILE, stamp.size, stamp.mtime_ns, stamp.mode, "another digest")
        index.commit([Set(path, pushed)], {path: stamp})
        os.rename(os.path.join(root, b"old"), os.path.join(root, b"new"))
        rewrites = Rewrites(root, index, scanner)
        assert rewrites.find({path}, ()) == set()
        if is_all_told:
            rewrites.all_is_told()
        found = rewrites.find(set(), [(b"old", b"new")])
        assert found == (set() if is_all_told else {path})


@pytest.mark.parametrize("is_as_it_came", [True, False])
def test_what_came_damaged_is_sent_whole_where_it_was_written_without_a_trace(
    tmp_path: Path, is_as_it_came: bool
) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "stack.mrc").write_bytes(b"good")
    root, path, good = os.fsencode(tmp_path / "work"), b"stack.mrc", blake3(b"good").hexdigest()
    with closing(Index(tmp_path / "index.sqlite")) as index:
        scanner = Scanner(root, index, lambda _: False)
        stamp = scanner.look(path)
        assert stamp is not None
        entry = Entry(Kind.FILE, 4, stamp.mtime_ns - DAMAGED_NS, stamp.mode, good)
        index.commit([Set(path, entry)], {path: stamp})
        index.remember_damaged([good if is_as_it_came else blake3(bytes(4)).hexdigest()])
        found = Rewrites(root, index, scanner).find({path}, ())
        known = index.known(path)
        assert known is not None
        assert found == (set() if is_as_it_came else {path})
        assert is_doubted(known.stamp) is not is_as_it_came
