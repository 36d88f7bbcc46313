"""What onesync costs the mount, counted exactly; the times are ``make bench``'s to tell."""

from __future__ import annotations

import os
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from onesync.core.model import STATUS_FOLDER
from tests.node import SOON, Node
from tests.standin.log import Call, rounds
from tests.standin.mounted import Mounted

pytestmark = pytest.mark.fuse

MEBIBYTE = 1 << 20
_FOLDERS = 20
_CHECKPOINTS = f"{os.fsdecode(STATUS_FOLDER)}/manifest"


@pytest.fixture
def store(mounted: Mounted) -> Path:
    return mounted.path / "project"


@pytest.fixture
def node(nodes: list[Node]) -> Iterator[Node]:
    """A node whose heartbeat does not come while calls are counted, nor a batch but by a flush."""
    one, _ = nodes
    one.configure(mount__io_timeout_seconds=120, batch__settle_seconds=60)
    yield one
    if one.running():
        assert one.end() == 0, one.log()


def _calls(mounted: Mounted, act: Callable[[], object]) -> list[Call]:
    """Return the calls that are made while something is done."""
    mounted.start_log()
    act()
    mounted.stop_log()
    return mounted.log()


def _flushed(node: Node) -> None:
    assert node.flush() == 0, node.log()


def _of_data(calls: list[Call]) -> Counter[str]:
    """Count the operations outside the status folder, the project's own folder left out."""
    inside = "/project/" + os.fsdecode(STATUS_FOLDER)
    paths = ("/", "/project", inside)
    return Counter(
        call.operation
        for call in calls
        if call.path not in paths and not call.path.startswith(inside + "/")
    )


def _beside_checkpoints(calls: list[Call]) -> Counter[str]:
    return Counter(call.operation for call in calls if _CHECKPOINTS not in call.path)


def _folders(top: Path) -> list[Path]:
    folders = [top / "Runs" / f"{number:06}_X" / "extra" for number in range(_FOLDERS)]
    for folder in folders:
        folder.mkdir(parents=True)
    return folders


def _fill(folders: list[Path], number: int) -> None:
    for index in range(number):
        (folders[index % len(folders)] / f"mic_{index}").write_bytes(os.urandom(4096))


def test_a_new_small_file_is_eight_calls(node: Node, mounted: Mounted) -> None:
    node.deploy()
    folders = _folders(node.work)
    _flushed(node)

    node.pause()  # so that all come in one batch: each walks to its directories
    _fill(folders, 200)

    def create() -> None:
        node.go_on()
        _flushed(node)

    calls = _calls(mounted, create)
    of_data = _of_data(calls)
    looked_for_folders = 3 * _FOLDERS  # once for each child process, and once for the sizes
    assert of_data.total() <= 200 * 8 + 3 * looked_for_folders, of_data
    assert of_data["create"] == 200
    assert of_data["rename"] == 0
    assert len(calls) <= 200 * 9, Counter(call.operation for call in calls)


@pytest.mark.parametrize("folders", [1, 4, 16])
def test_new_files_come_side_by_side_in_as_many_directories_as_there_are(
    node: Node, mounted: Mounted, folders: int
) -> None:
    """The kernel lets one file be made in a directory at a time; more directories, more at once."""
    node.deploy()
    tops = _folders(node.work)[:folders]
    _flushed(node)
    node.pause()
    _fill(tops, 8 * folders)
    mounted.delay_at("create", 0.05, times=-1, pattern="mic_")

    def push() -> None:
        node.go_on()
        _flushed(node)

    calls = _calls(mounted, push)
    mounted.clear()
    creates = [c for c in calls if c.operation == "create" and "mic_" in c.path]
    assert len(creates) == 8 * folders
    assert _most_at_once(creates) == folders


def test_a_file_that_is_removed_is_two_calls(node: Node, mounted: Mounted) -> None:
    node.deploy()
    folders = _folders(node.work)
    _fill(folders, 200)
    _flushed(node)

    def remove() -> None:
        for folder in folders:
            for file in folder.iterdir():
                file.unlink()
        _flushed(node)

    of_data = _of_data(_calls(mounted, remove))
    looked_for_folders = 3 * _FOLDERS  # once for each child process, and once for the sizes
    assert of_data.total() <= 200 * 2 + 3 * looked_for_folders, of_data
    assert of_data["unlink"] == 200
    assert of_data["rename"] == 0


def test_nothing_changed_is_no_call(node: Node, mounted: Mounted) -> None:
    node.configure(mount__io_timeout_seconds=120, batch__rescan_seconds=0.2)
    node.deploy()
    node.pause()
    _fill(_folders(node.work), 200)
    node.go_on()
    _flushed(node)  # in one batch: it is verified in one round
    wait_until_verified(node)
    for _ in range(3):
        assert [(c.operation, c.path) for c in _calls(mounted, lambda: _flushed(node))] == []


def test_a_file_that_was_opened_to_be_written_and_left_as_it_was_is_no_call(
    node: Node, mounted: Mounted
) -> None:
    node.deploy()
    path = node.work / "run.stdout"
    path.write_bytes(b"line")
    _flushed(node)
    wait_until_verified(node)

    def reopen() -> None:
        for _ in range(3):
            path.open("r+b").close()
            _flushed(node)

    assert [(c.operation, c.path) for c in _calls(mounted, reopen)] == []


def wait_until_verified(node: Node) -> None:
    """Wait until nothing that was pushed is still to be verified; that is done once."""
    deadline = time.monotonic() + 2 * SOON  # what is young at a round waits for the next one
    uri = f"file:{node.home / 'state' / 'index.sqlite'}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True)) as index:
        left = "SELECT count(*) FROM unverified WHERE is_read >= 0"
        while index.execute(left).fetchone() != (0,):
            assert time.monotonic() < deadline, node.log()
            time.sleep(0.1)


@pytest.mark.parametrize("place", ["end", "middle"])
def test_a_mebibyte_that_changed_is_all_that_is_written(
    node: Node, mounted: Mounted, place: str
) -> None:
    node.deploy()
    stack = node.work / "particles.mrcs"
    with stack.open("wb") as file:
        for _ in range(96):
            file.write(os.urandom(MEBIBYTE))
    _flushed(node)
    mounted.reset()
    with stack.open("r+b") as file:
        file.seek(96 * MEBIBYTE if place == "end" else 47 * MEBIBYTE + 12345)
        file.write(os.urandom(MEBIBYTE))
    calls = _calls(mounted, lambda: _flushed(node))
    written = mounted.counts()["bytes_written"]
    read = sum(c.arguments["size"] for c in calls if c.operation == "read" and "mrcs" in c.path)
    changed = MEBIBYTE if place == "end" else 2 * MEBIBYTE  # its old blocks, kept beside it
    assert written <= changed + MEBIBYTE // 4
    assert read <= (0 if place == "end" else 2 * MEBIBYTE)
    assert (mounted.backing / "project" / stack.name).read_bytes() == stack.read_bytes()


def test_a_directory_that_is_renamed_is_renamed(node: Node, mounted: Mounted) -> None:
    project = mounted.backing / "project"
    _put(project / "Runs" / "000001_X", 5000)
    node.deploy()
    _flushed(node)

    def rename() -> None:
        (node.work / "Runs" / "000001_X").rename(node.work / "Runs" / "000001_Y")
        _flushed(node)

    calls = _calls(mounted, rename)
    beside = _beside_checkpoints(calls)
    assert beside.total() <= 20, beside
    assert beside["rename"] == 1
    assert len(list((project / "Runs" / "000001_Y").iterdir())) == 5000


def _put(folder: Path, number: int) -> None:
    folder.mkdir(parents=True)
    for index in range(number):
        (folder / f"mic_{index}").write_bytes(b"x" * 100)


def test_what_a_batch_writes_grows_with_it_and_not_with_the_project(
    nodes: list[Node], mounted: Mounted
) -> None:
    written: list[dict[int, int]] = []
    for node, known in zip(nodes, (10, 3000), strict=True):
        project = mounted.backing / "project"
        _put(project / f"{known} files", known)
        node.configure(mount__io_timeout_seconds=120)
        node.deploy()
        _flushed(node)
        written.append({new: _written_for(node, mounted, new) for new in (1, 100)})
        assert node.end() == 0, node.log()
    small, large = written
    for new in (1, 100):  # where they come in two batches it is some hundred bytes more
        assert large[new] <= small[new] + 2000, written


def _written_for(node: Node, mounted: Mounted, new: int) -> int:
    """Return the bytes that a batch of so many new, empty files writes: intent and checkpoint."""
    (node.work / node.home.name).mkdir(exist_ok=True)
    _flushed(node)
    mounted.reset()
    node.pause()
    for index in range(new):
        (node.work / node.home.name / f"new_{new:03}_{index:03}").touch()
    node.go_on()
    _flushed(node)
    return mounted.counts()["bytes_written"]


@pytest.mark.parametrize("known", [True, False], ids=["known", "newcomers"])
def test_a_small_file_that_is_staged_in_is_six_calls(
    nodes: list[Node], node: Node, mounted: Mounted, known: bool
) -> None:
    _fill(_folders(mounted.backing / "project"), 400)
    if known:
        earlier = nodes[1]
        earlier.deploy()
        assert earlier.end() == 0, earlier.log()
    of_data = _of_data(_calls(mounted, node.deploy))
    looks_at_folders = 16 * _FOLDERS  # listed once, and walked to in each of two processes
    assert of_data.total() <= 400 * (5 if known else 6) + looks_at_folders, of_data
    assert of_data["open"] == of_data["read"] == 400
    if known:
        assert of_data.total() <= 400 * 6, of_data


def test_what_nobody_knew_and_was_staged_in_is_not_sent(
    nodes: list[Node], node: Node, mounted: Mounted
) -> None:
    folder = mounted.backing / "project"
    earlier = nodes[1]
    earlier.deploy()
    (earlier.work / "known").write_bytes(b"x")
    assert earlier.end() == 0, earlier.log()
    for number in range(20):
        (folder / f"{number}").write_bytes(os.urandom(50_000))
    (folder / "large").write_bytes(os.urandom(3 * MEBIBYTE))
    mounted.reset()
    node.deploy()
    assert node.flush() == 0, node.log()
    assert mounted.counts()["bytes_written"] < 20_000, "the claim and the manifest"


@pytest.mark.session
def test_what_precedes_the_first_file_waits_for_few_calls(
    nodes: list[Node], node: Node, mounted: Mounted
) -> None:
    """Claim, probe, head and listing: of the calls those few wait for each other that must."""
    folders = _folders(mounted.backing / "project")
    _fill(folders, 20)
    earlier = nodes[1]
    earlier.deploy()
    assert earlier.end() == 0, earlier.log()
    mounted.delay_at("*", 0.02, times=-1)
    calls = _calls(mounted, node.deploy)
    mounted.clear()
    of_claim = len(calls) - _of_data(calls).total()
    assert of_claim <= 155, Counter(call.operation for call in calls)
    assert rounds(calls) <= 105


def test_large_files_are_staged_in_side_by_side(
    nodes: list[Node], node: Node, mounted: Mounted
) -> None:
    folder = mounted.backing / "project"
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(6):
        (folder / f"stack{number}.mrcs").write_bytes(os.urandom(2 * MEBIBYTE))
        (folder / f"small{number}").write_bytes(b"x")
    earlier = nodes[1]
    earlier.deploy()
    assert earlier.end() == 0, earlier.log()
    mounted.delay_at("read", 0.02, times=-1)
    calls = _calls(mounted, node.deploy)
    mounted.clear()
    of_data = _of_data(calls)
    asked_again = 3  # read(2) asks for the attributes first, once a MiB and at the end
    assert of_data.total() - of_data["read"] <= 12 * 5 + 6 * asked_again
    reads = [call for call in calls if call.operation == "read" and "stack" in call.path]
    assert _most_at_once(reads) == 6
    # A call takes a MiB of pages, and what is read does not begin with one.
    assert len(reads) <= 6 * (2 * 2)


def _most_at_once(calls: list[Call]) -> int:
    """Return with how many files ``calls`` were busy at once."""
    return max(
        len({other.path for other in calls if other.began <= call.began < other.ended})
        for call in calls
    )
