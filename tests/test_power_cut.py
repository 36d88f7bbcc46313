"""The power goes while the working copy is in use: its disk has what had got there, no more.

The disk is a real ext4 in a file; at the cut a copy of that file is what is left.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.bench.usage import descendants
from tests.machine import lacks
from tests.node import SOON, Node, picture
from tests.standin.mounted import Mounted

pytestmark = pytest.mark.fuse

_OPTIONS = "loop,commit=300"
"""The kernel alone writes nothing before the test has ended."""


class Disk:
    """A disk of its own."""

    def __init__(self, home: Path, maker: str) -> None:
        self.path = home / "disk"
        self._image = home / "image"
        self.path.mkdir()
        with self._image.open("wb") as image:
            image.truncate(64 << 20)
        _run(maker, "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", self._image)

    def mount(self) -> None:
        _run("mount", "-o", _OPTIONS, self._image, self.path)

    def cut(self, node: Node, mounted: Mounted) -> None:
        """Cut the power of ``node``; when it comes back the disk is as it was, the mount well."""
        left = self._image.with_name("left")
        assert node.process is not None
        processes = descendants(node.process.pid)
        for process in processes:
            os.kill(process, signal.SIGSTOP)  # a copy of what changes meanwhile was never there
        shutil.copyfile(self._image, left)
        node.end(signal.SIGKILL)
        for process in processes[1:]:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        mounted.clear()
        self.umount()
        left.rename(self._image)
        self.mount()

    def umount(self) -> None:
        deadline = time.monotonic() + SOON
        while subprocess.run(["umount", self.path], capture_output=True, check=False).returncode:
            assert time.monotonic() < deadline, "somebody has it in use"
            time.sleep(0.05)


def _run(*words: str | Path) -> None:
    subprocess.run(words, check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    maker = shutil.which("mkfs.ext4", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if os.geteuid() != 0 or maker is None:
        lacks("needs root and e2fsprogs")
    made = Disk(tmp_path, maker)
    try:
        made.mount()
    except subprocess.CalledProcessError as error:
        # The kernel is not ours to choose, whoever runs the tests.
        pytest.skip(f"this kernel mounts no ext4: {error.stderr.decode()}")
    yield made
    made.umount()


@pytest.fixture
def one(disk: Disk, mounted: Mounted, tmp_path: Path, state: str) -> Iterator[Node]:
    node = Node((disk.path if state == "beside it" else tmp_path) / "one", mounted.path / "project")
    node.work = disk.path / "work"
    node.work.mkdir()
    node.configure(mount__require_fuse=True)
    yield node
    if node.running():
        node.end(signal.SIGKILL)


def contents(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    found = {str(path.relative_to(folder)): path.read_bytes() for path in paths}
    return {path: content for path, content in found.items() if not path.startswith(".")}


@pytest.mark.parametrize("state", ["beside it", "elsewhere"])
def test_what_a_flush_told_to_be_safe(disk: Disk, one: Node, mounted: Mounted) -> None:
    """What would be missing or empty here would be deleted or emptied in OneData."""
    one.deploy()
    (one.work / "grows").write_bytes(b"old")
    (one.work / "kept").write_bytes(b"kept")
    assert one.flush() == 0, one.log()
    os.sync()
    (one.work / "grows").write_bytes(b"rewritten in place" * 1000)
    (one.work / "new").write_bytes(b"a result" * 1000)
    (one.work / "Runs" / "one").mkdir(parents=True)
    (one.work / "Runs" / "one" / "file").write_bytes(b"in a directory of its own")
    (one.work / "temporary").write_bytes(b"renamed")
    (one.work / "temporary").rename(one.work / "other")
    (one.work / "kept").rename(one.work / "moved")
    assert one.flush() == 0, one.log()
    told = contents(mounted.backing / "project")
    disk.cut(one, mounted)
    one.deploy()
    assert one.flush() == 0, one.log()
    assert contents(one.work) == told
    assert one.end() == 0, one.log()
    assert contents(mounted.backing / "project") == told


@pytest.mark.parametrize("state", ["beside it", "elsewhere"])
@pytest.mark.parametrize("is_first", [True, False])
def test_what_was_staged_in(disk: Disk, one: Node, mounted: Mounted, is_first: bool) -> None:
    store = mounted.backing / "project"
    for number in range(20):
        (store / f"master {number}").write_bytes(os.urandom(20_000))
    if not is_first:
        one.deploy()
        assert one.end() == 0, one.log()
        os.sync()
        for number in range(6):
            (store / f"uploaded {number}").write_bytes(os.urandom(20_000))
    master = contents(store)
    one.deploy()
    assert contents(one.work) == master
    disk.cut(one, mounted)
    one.deploy()
    assert one.flush() == 0, one.log()
    assert contents(one.work) == master
    assert one.end() == 0, one.log()
    assert contents(store) == master


@pytest.mark.parametrize("state", ["beside it", "elsewhere"])
@pytest.mark.parametrize("has_names", [True, False])
def test_a_stage_in_goes_on(disk: Disk, one: Node, mounted: Mounted, has_names: bool) -> None:
    """What has its name has its bytes, too; without them it would be somebody else's file."""
    store = mounted.backing / "project"
    for number in range(40):
        (store / f"master {number}").write_bytes(os.urandom(20_000))
    one.deploy()
    assert one.end() == 0, one.log()
    master = picture(one.work)
    shutil.rmtree(one.work)
    shutil.rmtree(one.home / "state")
    one.work.mkdir()
    (one.home / "state").mkdir()
    os.sync()
    mounted.hang_at("open", pattern="/master 7$", times=1)
    one.start()
    wait_for_names(one.work, 10)
    if has_names:
        _fsync_directory(one.work)
    disk.cut(one, mounted)
    one.deploy()
    assert picture(one.work) == master
    assert one.end() == 0, one.log()
    assert contents(store) == {os.fsdecode(path): _bytes(store, path) for path in master}


def _bytes(store: Path, path: bytes) -> bytes:
    return (store / os.fsdecode(path)).read_bytes()


_FAILS = """
from onesync import batch
from onesync.errors import LocalError

def fails(directory):
    raise LocalError(5, "Input/output error", directory)

batch.write_out = fails
"""


@pytest.mark.parametrize("state", ["elsewhere"])
def test_a_disk_that_fails_keeps_nothing_from_onedata(one: Node, mounted: Mounted) -> None:
    one.start_after(_FAILS)
    one.wait_for_phase("syncing")
    (one.work / "file").write_bytes(b"whoever can read it")
    assert one.flush() == 0, one.log()
    assert (mounted.backing / "project" / "file").read_bytes() == b"whoever can read it"
    assert "does not take what is written: Input/output error" in one.log()
    assert one.end() == 0, one.log()


def _fsync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def wait_for_names(folder: Path, least: int) -> None:
    deadline = time.monotonic() + SOON
    while sum(not name.startswith(".") for name in os.listdir(folder)) < least:
        assert time.monotonic() < deadline
        time.sleep(0.02)
