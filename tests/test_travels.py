"""A large file that is rewritten travels across batches: old or new, and it holds back nobody."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from onesync.core.model import STATUS_FOLDER
from tests.node import SOON, Node, picture
from tests.standin.mounted import Mounted
from tests.test_program import names_of_ours

pytestmark = pytest.mark.fuse
STACK = "Runs/000001_ProtMock/extra/particles.mrcs"
SIZE = 20_000_000
STATUS = os.fsdecode(STATUS_FOLDER)


@pytest.fixture
def store(mounted: Mounted) -> Path:
    return mounted.path / "project"


@pytest.fixture
def old() -> bytes:
    return os.urandom(SIZE)


@pytest.fixture
def new() -> bytes:
    return os.urandom(SIZE)


@pytest.fixture
def one(nodes: list[Node], old: bytes) -> Node:
    """A node whose replica has the old version, and which makes short rounds."""
    node = nodes[0]
    # What is written all the time is pushed so often, and what a round left half way goes on then.
    node.configure(mount__require_fuse=True, push__round_seconds=0.3, batch__max_delay_seconds=10.0)
    node.deploy()
    (node.work / STACK).parent.joinpath("DONE").mkdir(parents=True)
    (node.work / STACK).write_bytes(old)
    assert node.flush() == 0, node.log()
    return node


@pytest.fixture
def replica(mounted: Mounted) -> Path:
    """The replica's version, without the mount."""
    return mounted.backing / "project" / STACK


def content(replica: Path) -> bytes:
    """What stands there; nothing does in the moment of a rename."""
    try:
        return replica.read_bytes()
    except FileNotFoundError:
        return b""


def temporaries(replica: Path) -> list[Path]:
    return list(replica.parent.glob(".onesync~*"))


def arrived(replica: Path) -> int:
    """How many bytes of the new version are there."""
    try:
        return max((path.stat().st_size for path in temporaries(replica)), default=0)
    except FileNotFoundError:
        return 0


def intents(mounted: Mounted) -> list[str]:
    return os.listdir(mounted.backing / "project" / STATUS / "intent")


def checkpoints(mounted: Mounted) -> int:
    return len(os.listdir(mounted.backing / "project" / STATUS / "manifest"))


def behind(node: Node) -> list[str]:
    return [p["text"] for p in node.status()["problems"] if p["kind"] == "behind"]


def rewrite(node: Node, mounted: Mounted, content: bytes) -> None:
    """Begin a travel, and wait until it is told."""
    mounted.latency(0.05)
    (node.work / STACK).write_bytes(content)
    node.wait_until(lambda: any("bytes came so far" in text for text in behind(node)))


def restored(mounted: Mounted, home: Path) -> Node:
    """Deploy what a node that was lost has left, elsewhere."""
    shutil.copytree(mounted.backing / "project", home / "copy")
    (home / "copy" / STATUS / "lock").unlink()
    other = Node(home / "other", home / "copy")
    other.deploy()
    return other


def test_others_arrive_while_it_travels_and_then_it_is_there(
    one: Node, mounted: Mounted, replica: Path, old: bytes, new: bytes
) -> None:
    rewrite(one, mounted, new)
    marker = one.work / STACK
    (marker.parent / "small").write_bytes(b"small")
    (marker.parent / "DONE" / "marker.TXT").touch()
    one.wait_until((replica.parent / "DONE" / "marker.TXT").exists)
    assert (replica.parent / "small").exists()
    assert replica.read_bytes() == old
    assert 0 < arrived(replica) < SIZE
    mounted.latency(0)
    one.wait_until(lambda: content(replica) == new)
    one.wait_until(lambda: behind(one) == [])
    one.wait_until(lambda: intents(mounted) == [])
    assert temporaries(replica) == []
    assert mounted.counts()["bytes_written"] < 2.2 * SIZE, "the old and the new, each once"
    assert one.end() == 0, one.log()
    assert names_of_ours(mounted.backing) == []


def test_a_death_in_the_middle_leaves_the_old(
    one: Node, mounted: Mounted, replica: Path, tmp_path: Path, old: bytes, new: bytes
) -> None:
    rewrite(one, mounted, new)
    one.end(signal.SIGKILL)
    mounted.latency(0)
    assert arrived(replica) > 0
    other = restored(mounted, tmp_path)
    assert (other.work / STACK).read_bytes() == old
    [text] = behind(other)
    assert "what came later never reached OneData" in text
    assert other.end() == 0, other.log()
    assert names_of_ours(tmp_path / "copy") == []
    assert os.listdir(tmp_path / "copy" / STATUS / "intent") == []
    one.deploy()
    assert one.flush() == 0, one.log()
    assert replica.read_bytes() == new
    assert behind(one) == []
    assert temporaries(replica) == []
    assert intents(mounted) == []


@pytest.mark.parametrize("operation", ["aside", "publish", "checkpoint", "tidy"])
def test_a_death_while_it_is_published_leaves_old_or_new(
    one: Node,
    mounted: Mounted,
    replica: Path,
    tmp_path: Path,
    old: bytes,
    new: bytes,
    operation: str,
) -> None:
    rewrite(one, mounted, new)
    if operation in ("aside", "publish"):
        nth = {"aside": 1, "publish": 2}[operation]
        mounted.fail("rename", errno.EIO, nth=nth, times=-1, pattern="particles.mrcs|onesync~")
    elif operation == "checkpoint":
        before = arrived(replica)
        one.wait_until(lambda: arrived(replica) > before)
        mounted.fail("create", errno.EIO, times=-1, pattern="manifest/")
    else:
        mounted.fail("unlink", errno.EIO, times=-1, pattern="onesync~")
    mounted.latency(0)
    one.wait_for_phase("backing_off")
    one.end(signal.SIGKILL)
    mounted.clear()
    other = restored(mounted, tmp_path)
    expected = new if operation == "tidy" else old
    assert (other.work / STACK).read_bytes() == expected
    assert other.end() == 0, other.log()
    assert names_of_ours(tmp_path / "copy") == []
    one.deploy()
    assert one.flush() == 0, one.log()
    assert replica.read_bytes() == new
    assert temporaries(replica) == []
    assert intents(mounted) == []


def test_a_failed_batch_does_not_lose_what_has_come(
    one: Node, mounted: Mounted, replica: Path, new: bytes
) -> None:
    rewrite(one, mounted, new)
    [temporary] = temporaries(replica)
    inode = temporary.stat().st_ino
    mounted.fail("write", errno.EIO, times=2, pattern="onesync~")
    one.wait_for_phase("backing_off")
    mounted.latency(0)
    one.wait_until(lambda: content(replica) == new)
    assert replica.stat().st_ino == inode
    assert one.end() == 0, one.log()
    assert names_of_ours(mounted.backing) == []
    assert intents(mounted) == []


def test_what_is_rewritten_again_is_begun_anew(
    one: Node, mounted: Mounted, replica: Path, old: bytes, new: bytes
) -> None:
    rewrite(one, mounted, os.urandom(SIZE))
    [first] = temporaries(replica)
    (one.work / STACK).write_bytes(new)
    one.wait_until(lambda: not first.exists())
    assert replica.read_bytes() == old
    mounted.latency(0)
    one.wait_until(lambda: content(replica) == new)
    assert one.end() == 0, one.log()
    assert names_of_ours(mounted.backing) == []
    assert intents(mounted) == []


def test_what_is_rewritten_again_rests_before_it_is_begun_anew(
    one: Node, mounted: Mounted, replica: Path, old: bytes
) -> None:
    rewrite(one, mounted, os.urandom(SIZE))
    one.wait_until(lambda: arrived(replica) > SIZE / 4)
    (one.work / STACK).write_bytes(os.urandom(SIZE))
    one.wait_until(lambda: any("after a rest" in text for text in behind(one)))
    mounted.latency(0)
    (one.work / "later").write_bytes(b"later")
    one.wait_until((mounted.backing / "project" / "later").exists)
    assert temporaries(replica) == []
    assert replica.read_bytes() == old


def test_a_huge_file_is_compared_across_batches(
    one: Node, mounted: Mounted, replica: Path, old: bytes
) -> None:
    """Only its header changes: all of it is read here, and little is sent."""
    path = one.work / STACK
    os.truncate(path, 1 << 30)
    assert one.flush() == 0, one.log()
    one.configure(mount__require_fuse=True, push__round_seconds=0.05)
    assert one.command("handover").returncode == 0
    assert one.process is not None
    one.process.wait(SOON)
    one.deploy()
    mounted.reset()
    with path.open("r+b") as file:
        file.write(b"header")
    one.wait_until(lambda: any("still compared" in text for text in behind(one)))
    (one.work / "later").write_bytes(b"later")
    one.wait_until((mounted.backing / "project" / "later").exists)
    assert replica.open("rb").read(6) == old[:6]
    one.wait_until(lambda: replica.open("rb").read(6) == b"header")
    one.wait_until(lambda: behind(one) == [])
    assert mounted.counts()["bytes_written"] < 5_000_000


@pytest.mark.parametrize("leave", ["flush", "undeploy", "handover"])
def test_a_flush_brings_it_to_its_end(
    one: Node, nodes: list[Node], mounted: Mounted, replica: Path, new: bytes, leave: str
) -> None:
    rewrite(one, mounted, new)
    mounted.latency(0.001)
    if leave == "flush":
        assert one.flush() == 0, one.log()
        assert behind(one) == []
    elif leave == "handover":
        assert one.command("handover").returncode == 0
        assert one.process is not None
        one.process.wait(SOON)
    else:
        assert one.end() == 0, one.log()
    assert replica.read_bytes() == new
    assert temporaries(replica) == []
    assert intents(mounted) == []
    if leave == "undeploy":
        expected = picture(one.work)
        nodes[1].deploy()
        assert picture(nodes[1].work) == expected
        assert behind(nodes[1]) == []


@pytest.mark.parametrize("change", ["removed", "renamed", "its directory", "a directory", "back"])
def test_what_becomes_of_a_travel_whose_target_goes(
    one: Node, nodes: list[Node], mounted: Mounted, replica: Path, old: bytes, change: str
) -> None:
    rewrite(one, mounted, os.urandom(SIZE))
    path = one.work / STACK
    if change == "removed":
        path.unlink()
    elif change == "renamed":
        path.rename(path.with_name("other"))
    elif change == "its directory":
        path.parent.rename(path.parent.with_name("elsewhere"))
    elif change == "a directory":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(old)
    (one.work / "later").write_bytes(b"later")
    one.wait_until((mounted.backing / "project" / "later").exists)
    mounted.latency(0)
    assert one.flush() == 0, one.log()
    assert names_of_ours(mounted.backing) == []
    assert intents(mounted) == []
    expected = picture(one.work)
    assert one.end() == 0, one.log()
    nodes[1].deploy()
    assert picture(nodes[1].work) == expected


@contextmanager
def written_all_the_time(path: Path, places: Callable[[], int]) -> Iterator[set[bytes]]:
    """Write in one place after the other; yields what was ever written, and the first head."""
    begun, ended = threading.Event(), threading.Event()
    pieces = {path.read_bytes()[:1000]}

    def write() -> None:
        # However much runs beside: what nobody writes for a while is copied as it is.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), -15)
        with path.open("r+b", buffering=0) as file:
            while not ended.wait(0.001):
                piece = os.urandom(1000)
                pieces.add(piece)
                os.pwrite(file.fileno(), piece, places())
                begun.set()

    thread = threading.Thread(target=write)
    thread.start()
    assert begun.wait(SOON)
    try:
        yield pieces
    finally:
        ended.set()
        thread.join()


def names_it(node: Node, name: str) -> None:
    with closing(sqlite3.connect(node.work / "Runs/000001_ProtMock/particles.sqlite")) as rows:
        rows.execute(f"CREATE TABLE Objects AS SELECT '{name}' AS name")


def test_a_new_file_whose_head_changes_all_the_time_comes_as_it_was_once(
    one: Node, mounted: Mounted, replica: Path, new: bytes
) -> None:
    """With the database that names it; none of it is sent in vain."""
    path, there = (one.work / STACK).with_name("new.mrcs"), replica.with_name("new.mrcs")
    database = mounted.backing / "project" / "Runs/000001_ProtMock/particles.sqlite"
    path.write_bytes(new)
    mounted.reset()
    with written_all_the_time(path, lambda: 0) as heads:
        names_it(one, "new.mrcs")
        one.wait_until(lambda: database.exists() and there.stat().st_size == SIZE)
        one.wait_until(lambda: content(there)[:1000] not in ({new[:1000]} | {b""}))
        found = content(there)
        assert found[:1000] in heads
        assert found[1000:] == new[1000:]
    one.wait_until(lambda: content(there) == path.read_bytes())
    assert mounted.counts()["bytes_written"] < 1.5 * SIZE


def test_a_new_file_that_changes_everywhere_is_told_of_and_sent_when_it_rests(
    one: Node, mounted: Mounted, replica: Path, new: bytes
) -> None:
    """OneData has the beginning of it meanwhile, so rows that name it need not wait for ever."""
    path, there = (one.work / STACK).with_name("new.mrcs"), replica.with_name("new.mrcs")
    database = mounted.backing / "project" / "Runs/000001_ProtMock/particles.sqlite"
    mounted.latency(0.01)  # or it might be copied between two writes
    path.write_bytes(new)
    chance = random.Random(0)
    with written_all_the_time(path, lambda: chance.randrange(SIZE - 1000)):
        names_it(one, "new.mrcs")
        # While the disk is busy nobody writes, and it is copied as it is: that is no failure.
        one.wait_until(lambda: database.exists() and "new.mrcs" in " ".join(behind(one)), 90)
        mounted.latency(0)
        mounted.reset()
        for number in range(5):
            (one.work / f"other_{number}").write_bytes(b"other")
            one.wait_until((mounted.backing / "project" / f"other_{number}").exists)
        assert mounted.counts()["bytes_written"] < SIZE
    one.wait_until(lambda: content(there) == path.read_bytes(), 90)
    one.wait_until(lambda: behind(one) == [])


def test_what_a_lost_connection_took_out_of_a_travel_is_sent_again(
    one: Node, mounted: Mounted, replica: Path, old: bytes, new: bytes
) -> None:
    """Its size tells nothing: the client dropped what it had said it had."""
    rewrite(one, mounted, new)
    [temporary] = temporaries(replica)
    with temporary.open("r+b") as file:
        file.write(bytes(100_000))
    mounted.remount()
    one.wait_until(lambda: content(replica) not in (old, b""))
    assert content(replica) == new
    assert one.end() == 0, one.log()
    assert names_of_ours(mounted.backing) == []
    assert intents(mounted) == []


def test_what_an_unknown_result_committed_is_not_behind(
    one: Node, mounted: Mounted, replica: Path, new: bytes
) -> None:
    """The checkpoint with the whole file stands, though nobody could read it back."""
    rewrite(one, mounted, new)
    mounted.fail("fsync", errno.EIO, pattern="manifest/", applied=True)
    mounted.latency(0)
    one.wait_for_phase("backing_off")
    one.wait_for_phase("syncing")
    assert replica.read_bytes() == new
    one.wait_until(lambda: behind(one) == [])


def test_a_base_after_a_restart_says_what_is_behind(
    one: Node, mounted: Mounted, replica: Path, tmp_path: Path, old: bytes, new: bytes
) -> None:
    rewrite(one, mounted, new)
    one.end(signal.SIGKILL)
    torn = mounted.backing / "project" / STATUS / "manifest" / "E000001-999999.jsonl.gz"
    torn.write_bytes(b"torn: the next owner begins with a base")
    mounted.latency(0)
    mounted.fail("write", errno.EIO, times=-1, pattern="onesync~")
    one.deploy()
    one.end(signal.SIGKILL)
    other = restored(mounted, tmp_path)
    assert (other.work / STACK).read_bytes() == old
    assert len(behind(other)) == 1
    assert other.end() == 0, other.log()


# -- names that change in turn ---------------------------------------------------------------------


@pytest.fixture
def turned(one: Node) -> Path:
    """Where ``a`` and ``b`` stand in OneData: one comes soon under its new name, one late."""
    place = (one.work / STACK).parent
    (place / "a").write_bytes(b"a" * (SIZE // 10))
    (place / "b").write_bytes(b"b" * SIZE)
    assert one.flush() == 0, one.log()
    return place


MOST = 4


def turn(node: Node, mounted: Mounted, *pairs: tuple[str, str]) -> None:
    """Rename files in turn, on a mount where each takes many rounds."""
    place = (node.work / STACK).parent
    mounted.latency(0.02)
    node.pause()
    for source, target in pairs:
        (place / source).rename(place / target)
    node.go_on()


@pytest.mark.parametrize(
    "pairs",
    [
        [("b", "c"), ("a", "b")],
        [("b", "d"), ("a", "b"), ("d", "a")],
    ],
    ids=["rotated", "swapped"],
)
def test_what_is_renamed_in_turn_is_always_there_whole(
    one: Node,
    mounted: Mounted,
    replica: Path,
    turned: Path,
    pairs: list[tuple[str, str]],
    tmp_path: Path,
) -> None:
    turn(one, mounted, *pairs)
    one.wait_until(lambda: behind(one) != [])
    number = 0
    while behind(one):
        number += 1
        if number > MOST:
            mounted.latency(0)
        mounted.hang()
        time.sleep(0.1)  # for the calls that were on their way
        saved = restored(mounted, tmp_path / str(number))  # what a node that is lost now has left
        mounted.release()
        assert whole_ones(saved) == {b"a", b"b"}
    assert number > 2, one.log()
    mounted.latency(0)
    assert one.flush() == 0, one.log()
    assert whole_ones(one) == {b"a", b"b"}
    there = {path.name: path.read_bytes() for path in replica.parent.iterdir() if path.is_file()}
    assert there == {p.name: p.read_bytes() for p in turned.iterdir() if p.is_file()}
    assert one.end() == 0, one.log()
    assert names_of_ours(mounted.backing) == []


def whole_ones(node: Node) -> set[bytes]:
    """The first bytes of those of ``a`` to ``d`` that a node has whole; a saved one then ends."""
    place = (node.work / STACK).parent
    contents = [path.read_bytes() for path in place.glob("[abcd]")]
    found = {text[:1] for text in contents if len(text) == SIZE // (10 if text[:1] == b"a" else 1)}
    if node.home.name == "other":
        assert node.end() == 0, node.log()
    return found


def test_a_file_that_is_again_what_onedata_has_is_behind_no_more(
    one: Node, mounted: Mounted, replica: Path, old: bytes, new: bytes
) -> None:
    extra = (one.work / STACK).parent
    extra.rename(one.home / "kept")
    extra.mkdir()
    rewrite(one, mounted, new)
    shutil.rmtree(extra)
    (one.home / "kept").rename(extra)  # what a directory carries along keeps all its times
    mounted.latency(0)
    assert one.flush() == 0, one.log()
    assert behind(one) == []
    assert replica.read_bytes() == old
    assert temporaries(replica) == []
    assert one.end() == 0, one.log()
    assert names_of_ours(mounted.backing) == []


def test_directories_that_are_exchanged_and_removed_leave_nothing(
    one: Node, nodes: list[Node], mounted: Mounted
) -> None:
    place = (one.work / STACK).parent
    for name in "AB":
        (place / name).mkdir()
        for number in range(20):
            (place / name / f"{number}").write_bytes(name.encode() * 2000)
    assert one.flush() == 0, one.log()
    for _ in range(5):
        mounted.latency(0.005)
        for source, target in (("A", "C"), ("B", "A"), ("C", "B")):
            (place / source).rename(place / target)
        before = checkpoints(mounted)
        one.wait_until(lambda before=before: checkpoints(mounted) > before)  # type: ignore[misc]
        shutil.rmtree(place / "A")
        (place / "B").rename(place / "A")
        (place / "B").mkdir()
        for number in range(20):
            (place / "B" / f"{number}").write_bytes(b"new" * 700)
    mounted.latency(0)
    expected = picture(one.work)
    assert one.flush() == 0, one.log()
    assert one.status()["problems"] == []
    assert one.end() == 0, one.log()
    nodes[1].deploy()
    assert picture(nodes[1].work) == expected
    assert nodes[1].status()["problems"] == []
    assert nodes[1].end() == 0, nodes[1].log()
