"""What runs out or breaks on the node: watches, the kernel's queue, disks, descriptors, clocks."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pyinotify
import pytest

from onesync import watcher as watchers
from onesync.core.model import STATUS_FOLDER
from onesync.errors import IndexDamaged, StateDirFailed
from onesync.index import Index, open_index
from onesync.watcher import InotifyWatcher, _Event
from tests.machine import lacks
from tests.node import SOON, Node, picture
from tests.standin.mounted import Mounted
from tests.test_watchers import Told, wait_for


class PrefixedNode(Node):
    """A node whose program is started by another one."""

    prefix: tuple[str, ...] = ()
    environment: dict[str, str] = {}  # noqa: RUF012 - replaced, never changed

    def start(self) -> None:
        if not self.prefix and not self.environment:
            super().start()
            return
        log = (self.home / "log").open("ab")
        command = [sys.executable, "-m", "onesync.program", "run", "--config", str(self.config)]
        self.process = subprocess.Popen(
            [*self.prefix, *command], stderr=log, stdout=log, env={**os.environ, **self.environment}
        )


@pytest.fixture
def node(tmp_path: Path, store: Path) -> Iterator[PrefixedNode]:
    made = PrefixedNode(tmp_path / "node", store)
    yield made
    if made.running():
        assert made.process is not None
        made.process.send_signal(signal.SIGCONT)
        made.end(signal.SIGKILL)


def problems(node: Node) -> dict[str, str]:
    """The texts of the node's problems by kind."""
    return {problem["kind"]: problem["text"] for problem in node.status()["problems"]}


def user_files(folder: Path) -> dict[bytes, Any]:
    """What a folder holds beside onesync's own; times are the manifest's."""
    found = picture(folder).items()
    return {path: item[:2] for path, item in found if not path.startswith(STATUS_FOLDER)}


def same(node: Node) -> bool:
    try:
        return user_files(node.work) == user_files(node.store)
    except FileNotFoundError:
        return False  # just now


# -- watches ------------------------------------------------------------------------------------


class FewWatches(InotifyWatcher):
    """As where the kernel gives no more than ``most`` watches."""

    most = 2

    def _add(self, fd: int) -> int:
        watch = super()._add(fd)
        is_new = watch not in self._paths and watch != self._cookie_watch
        if is_new and len(self._paths) >= self.most + (self._cookie_watch < 0):
            self._manager._inotify_wrapper.inotify_rm_watch(self._manager.get_fd(), watch)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return watch


@pytest.fixture
def few(tmp_path: Path) -> Iterator[tuple[Path, Told, FewWatches]]:
    root = tmp_path / "root"
    for name in ("a/b/c", "d/e"):
        (root / name).mkdir(parents=True)
    told = Told()
    watcher = FewWatches(os.fsencode(root), os.fsencode(tmp_path / "cookie"), told, 0.1)
    watcher.start()
    yield root, told, watcher
    watcher.stop()


def test_what_cannot_be_watched_is_polled_and_told_once(
    few: tuple[Path, Told, FewWatches],
) -> None:
    root, told, watcher = few
    assert (watcher.watches(), watcher.polled()) == (2, 4)
    assert ["No space" in reason for reason in told.refused.values()] == [True]
    every = [b"a/b/c/new", b"d/e/new", b"a/new"]
    for path in every:
        (root / os.fsdecode(path)).write_bytes(b"1")
    wait_for(lambda: all(map(told.covers, every)), told)
    (root / "d" / "later" / "on").mkdir(parents=True)
    told.forget()
    (root / "d" / "later" / "on" / "new").write_bytes(b"1")
    wait_for(lambda: told.covers(b"d/later/on/new"), told)
    assert len(told.refused) == 1
    told.forget()
    assert watcher.drain(SOON)  # a database's snapshot may name what nobody told of
    assert all(map(told.covers, every))


def test_what_can_be_watched_again_is_polled_no_more(few: tuple[Path, Told, FewWatches]) -> None:
    root, told, watcher = few
    (root / "d" / "later" / "on").mkdir(parents=True)
    watcher.most = 100
    wait_for(lambda: (watcher.polled(), watcher.watches()) == (0, 8), told)
    assert watcher.drain(SOON)
    told.forget()
    (root / "d" / "later" / "on" / "new").write_bytes(b"1")
    assert watcher.drain(SOON)
    assert (told.paths, told.trees) == ({b"d/later/on/new"}, set())


def test_events_that_are_lost_while_no_descriptor_is_left_are_made_up_for(
    tmp_path: Path,
) -> None:
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    told = Told()
    watcher = InotifyWatcher(os.fsencode(root), os.fsencode(tmp_path / "cookie"), told)
    watcher._watch_tree(b"")
    (root / "a" / "new").mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        watcher._take(_Event(-1, pyinotify.IN_Q_OVERFLOW, 0, b""))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert watcher.polled() > 0
    watcher._poll()
    assert set(watcher._paths.values()) == {b"", b"a", b"a/new"}
    assert watcher.polled() == 0
    watcher.stop()


def test_what_is_gone_is_polled_no_more(few: tuple[Path, Told, FewWatches]) -> None:
    root, told, watcher = few
    shutil.rmtree(root / "a")
    shutil.rmtree(root / "d")
    wait_for(lambda: (watcher.polled(), watcher.watches()) == (0, 1), told)


def test_what_is_deleted_where_nobody_watches_is_told(few: tuple[Path, Told, FewWatches]) -> None:
    root, told, watcher = few
    for name in ("d/e/1", "d/e/2", "a/b/c/3", "a/b/c/4", "a/b/5"):
        (root / name).write_bytes(b"1")
    assert watcher.drain(SOON)
    told.gone.clear()
    (root / "d" / "e" / "1").unlink()
    (root / "a" / "b" / "5").rename(root / "elsewhere")
    shutil.rmtree(root / "a" / "b" / "c")
    (root / "a" / "b" / "c").mkdir()  # as a protocol that runs again does
    assert watcher.drain(SOON)
    assert told.gone == {b"a/b/c/3", b"a/b/c/4", b"d/e/1", b"a/b/5"}
    told.gone.clear()
    shutil.rmtree(root / "a")
    assert watcher.drain(SOON)
    assert b"a" in told.gone


def test_what_a_rename_took_along_is_told_when_it_goes(few: tuple[Path, Told, FewWatches]) -> None:
    root, told, watcher = few
    (root / "a" / "b" / "c" / "1").write_bytes(b"1")
    (root / "d" / "e" / "2").write_bytes(b"1")
    assert watcher.drain(SOON)
    (root / "a").rename(root / "was a")
    (root / "d").rename(root / "was d")
    (root / "was a" / "b" / "c" / "1").unlink()
    (root / "was d" / "e" / "2").unlink()
    assert watcher.drain(SOON)
    assert told.gone >= {b"was a/b/c/1", b"was d/e/2"}


@contextmanager
def mounted_over(place: Path, *options: str) -> Iterator[None]:
    if subprocess.run(["mount", *options, place], check=False, capture_output=True).returncode:
        lacks("needs root to mount", but_root_has=True)
    try:
        yield
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("how", ["another", "bind"])
def test_what_a_mount_hides_was_not_deleted(
    few: tuple[Path, Told, FewWatches], tmp_path: Path, how: str
) -> None:
    root, told, watcher = few
    other = tmp_path / "other"
    other.mkdir()
    options = ["--bind", str(other)] if how == "bind" else ["-t", "tmpfs", "none"]
    for name in ("d/e/1", "a/b/c/2"):
        (root / name).write_bytes(b"1")
    assert watcher.drain(SOON)
    for hidden in ("d/e", "a/b"):
        with mounted_over(root / hidden, *options):
            (root / hidden / "new").write_bytes(b"1")
            assert watcher.drain(SOON)
        assert watcher.drain(SOON)
        with mounted_over(root / hidden, *options):  # its device may have the same number
            (root / hidden / "new").unlink(missing_ok=True)
            assert watcher.drain(SOON)
    assert watcher.drain(SOON)
    assert told.gone == set()
    (root / "d" / "e" / "1").unlink()
    assert watcher.drain(SOON)
    assert told.gone == {b"d/e/1"}


@pytest.fixture
def none(tmp_path: Path) -> Iterator[tuple[Path, Told, FewWatches]]:
    """A watcher without a watch but that of the cookies, which polls when it is asked."""
    root = tmp_path / "root"
    for name in ("a/1", "a/2", "b/c/1", "b/c/2"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"1")
    told = Told()
    watcher = FewWatches(os.fsencode(root), os.fsencode(tmp_path / "cookie"), told, 60.0)
    watcher.most = 0
    watcher.start()
    yield root, told, watcher
    watcher.stop()


@pytest.mark.parametrize("is_empty", [True, False], ids=["empty", "half"])
def test_a_root_that_somebody_swapped_tells_no_deletions(
    none: tuple[Path, Told, FewWatches], tmp_path: Path, *, is_empty: bool
) -> None:
    root, told, watcher = none
    root.rename(tmp_path / "aside")
    root.mkdir()
    if not is_empty:
        (root / "a").mkdir()
        (root / "a" / "1").write_bytes(b"1")
        (root / "b" / "c").mkdir(parents=True)
    assert watcher.drain(SOON)
    (tmp_path / "aside" / "b" / "c" / "1").unlink()
    root.rename(tmp_path / "other")
    (tmp_path / "aside").rename(root)
    assert watcher.drain(SOON)
    assert told.gone == set()
    (root / "a" / "2").unlink()
    assert watcher.drain(SOON)
    assert told.gone == {b"a/2"}


def test_a_root_that_was_away_is_polled_on(
    none: tuple[Path, Told, FewWatches], tmp_path: Path
) -> None:
    root, told, watcher = none
    root.rename(tmp_path / "aside")
    assert watcher.drain(SOON)
    (tmp_path / "aside").rename(root)
    told.forget()
    assert watcher.drain(SOON)
    assert watcher.polled() == 4
    assert told.covers(b"a/1")


def test_who_drains_lets_all_be_looked_at_once(
    none: tuple[Path, Told, FewWatches], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, watcher = none
    assert watcher.drain(SOON)  # the first look is not by the clock any more
    looks: list[int] = []
    look = watcher._poll

    def counted() -> None:
        looks.append(1)
        look()

    monkeypatch.setattr(watcher, "_poll", counted)
    for _ in range(20):
        assert watcher.drain(SOON)
    assert len(looks) == 20


def test_what_goes_while_it_is_looked_at_is_polled_no_more(
    none: tuple[Path, Told, FewWatches], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _, watcher = none
    (root / "late").mkdir()
    watch = watcher._watch

    def goes(path: bytes) -> int:
        result = watch(path)
        if path == b"late" and (root / "late").exists():
            (root / "late").rmdir()
        return result

    monkeypatch.setattr(watcher, "_watch", goes)
    for _ in range(2):
        assert watcher.drain(SOON)
    assert not (root / "late").exists()
    assert watcher.polled() == 4


def test_events_that_come_during_a_long_look_are_read(
    few: tuple[Path, Told, FewWatches], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, told, watcher = few
    monkeypatch.setattr(watchers, "_READ_AFTER", 1)
    read: list[int] = []
    directories = watcher._directories

    def slow(path: bytes) -> list[bytes]:
        if not read:
            (root / "seen").write_bytes(b"1")  # the root is watched
        found = directories(path)
        read.append(len(watcher._untold))
        return found

    assert watcher.drain(SOON)
    told.forget()
    monkeypatch.setattr(watcher, "_directories", slow)
    assert watcher.drain(SOON)
    assert any(read)
    wait_for(lambda: b"seen" in told.paths, told)


def test_a_drain_on_a_disk_that_is_read_only_says_so(tmp_path: Path) -> None:
    root, cookies = tmp_path / "root", tmp_path / "cookie"
    root.mkdir()
    cookies.mkdir()
    told = Told()
    with mounted_over(cookies, "-t", "tmpfs", "none"):
        watcher = FewWatches(os.fsencode(root), os.fsencode(cookies), told, 60.0)
        watcher.start()
        subprocess.run(["mount", "-o", "remount,ro", cookies], check=True)
        assert not watcher.drain(SOON)
        assert watcher._waiting == {}
        watcher.stop()


def test_a_drain_without_any_watch_tells_all(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (root / "a" / "1").write_bytes(b"1")
    told = Told()
    watcher = FewWatches(os.fsencode(root), os.fsencode(tmp_path / "cookie"), told, 60.0)
    watcher.most = -1  # not even the cookies'
    watcher.start()
    assert (watcher.watches(), watcher.polled()) == (0, 2)
    (root / "a" / "1").unlink()
    (root / "new").write_bytes(b"1")
    assert watcher.drain(SOON)
    watcher.stop()
    assert told.covers(b"new")
    assert told.gone == {b"a/1"}


def may_limit_watches() -> bool:
    script = "echo 100 > /proc/sys/user/max_inotify_watches"
    done = subprocess.run(["unshare", "-Ur", "sh", "-c", script], capture_output=True, check=False)
    return done.returncode == 0


def limited_to(watches: int, node: PrefixedNode) -> None:
    if not may_limit_watches():
        reason = "needs user namespaces with a limit of watches of their own"
        lacks(reason, but_root_has=True)
    limit = f"echo {watches} > /proc/sys/user/max_inotify_watches"
    node.prefix = ("unshare", "-Ur", "sh", "-c", f'{limit}; exec "$@"', "sh")


def test_what_a_mount_hides_where_nobody_watches_is_kept(
    node: PrefixedNode, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    for run in range(3):
        (node.store / f"{run}").mkdir()
        for number in range(300):
            (node.store / f"{run}" / f"{number}").touch()
    node.configure(guards__unexplained_deletions=10)
    limited_to(0, node)
    node.deploy()
    with mounted_over(node.work / "1", "--bind", str(tmp_path / "other")):
        assert node.flush() == 3
        assert node.status()["held_deletions"] == 300
    assert len(list((node.store / "1").iterdir())) == 300
    node.wait_until(lambda: node.flush() == 0)
    assert node.end() == 0, node.log()
    assert same(node)


@pytest.mark.parametrize("watches", [0, 5])
def test_who_deletes_a_run_where_nobody_watches_is_asked_nothing(
    node: PrefixedNode, watches: int
) -> None:
    for run in range(10):
        (node.store / f"{run}").mkdir()
        for number in range(200):
            (node.store / f"{run}" / f"{number}").touch()
    limited_to(watches, node)
    node.deploy()
    for run in range(9):
        shutil.rmtree(node.work / f"{run}")
    (node.work / "0").mkdir()
    (node.work / "0" / "new").touch()
    node.wait_until(lambda: same(node))  # nobody asked for a flush
    shutil.rmtree(node.work / "9")
    assert node.flush() == 0
    status = node.status()
    assert (status["held_deletions"], status["phase"]) == (0, "syncing")
    assert same(node)
    assert node.end() == 0, node.log()


def test_a_node_with_few_watches_misses_nothing_and_says_so(node: PrefixedNode) -> None:
    for number in range(10):
        (node.store / f"{number}").mkdir()
    limited_to(5, node)
    node.deploy()
    assert node.status()["watches"] == {"kernel": 4, "polled": 7}
    assert "fs.inotify.max_user_watches" in problems(node)["unwatched"]
    assert node.log().count("not all can be watched") == 1
    for number in range(10):
        (node.work / f"{number}" / "new").write_bytes(b"1")
    node.wait_until(lambda: same(node))  # nobody asked for a flush
    assert node.flush() == 0
    assert node.process is not None
    command = ["nsenter", "--user", "--target", str(node.process.pid), "sh", "-c"]
    raise_limit = "echo 1000 > /proc/sys/user/max_inotify_watches"
    subprocess.run([*command, raise_limit], check=True)
    node.wait_until(lambda: node.status()["watches"] == {"kernel": 11, "polled": 0})
    assert "unwatched" not in problems(node)
    assert node.end() == 0, node.log()


def test_a_burst_beyond_the_kernels_queue_loses_nothing(node: PrefixedNode) -> None:
    for name in ("old", *(f"kept {number}" for number in range(9))):
        (node.store / name).write_bytes(b"1")
    node.deploy()
    node.pause()
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    for name in ("one", "two"):
        (node.work / name).write_bytes(b"1")
    for _ in range(limit // 2):
        os.utime(node.work / "one")
        os.utime(node.work / "two")
    (node.work / "in" / "the" / "dark").mkdir(parents=True)
    (node.work / "in" / "the" / "dark" / "new").write_bytes(b"1")
    (node.work / "old").unlink()
    node.go_on()
    node.wait_until(lambda: same(node))
    assert "kernel events were dropped" in node.log()
    # That it was suspended for a while is no stop.
    assert node.status()["phase"] == "syncing"
    (node.work / "in" / "the" / "dark" / "new").write_bytes(b"22")
    node.wait_until(lambda: same(node))
    assert node.end() == 0, node.log()


# -- disks --------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB of its own."""
    path = tmp_path / "small"
    path.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "small", str(path)],
        capture_output=True,
        check=False,
    )
    if made.returncode != 0:
        lacks("needs root to mount a small file system", but_root_has=True)
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(path: Path) -> None:
    """Leave no room."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    assert os.statvfs(path.parent).f_bavail == 0


def test_a_full_state_directory_holds_everything_back_until_there_is_room(
    node: PrefixedNode, small_disk: Path
) -> None:
    node.configure(state_dir=small_disk)
    node.deploy()
    (node.work / "before").write_bytes(b"1")
    assert node.flush() == 0
    fill(small_disk / "filler")
    for number in range(300):
        (node.work / f"{number}").write_bytes(b"%d" % number)
    (node.work / "before").unlink()
    with closing(sqlite3.connect(node.work / "project.sqlite")) as db:
        db.execute("CREATE TABLE t (x)")
    node.wait_until(lambda: "StateDirFailed" in problems(node))
    assert str(small_disk) in problems(node)["StateDirFailed"]
    assert node.flush() == 1
    assert node.running()
    (small_disk / "filler").unlink()
    node.wait_until(lambda: same(node))
    assert node.flush() == 0, node.log()
    assert problems(node) == {}
    assert node.end() == 0, node.log()


def test_a_full_spool_holds_back_databases_alone(node: PrefixedNode, small_disk: Path) -> None:
    spool = node.home / "state" / "spool"
    spool.mkdir()
    subprocess.run(["mount", "--bind", str(small_disk), str(spool)], check=True)
    try:
        keeps_to_the_spool(node, small_disk)
    finally:
        subprocess.run(["umount", "--lazy", str(spool)], check=True)


def keeps_to_the_spool(node: PrefixedNode, small_disk: Path) -> None:
    node.deploy()
    with closing(sqlite3.connect(node.work / "other.db", isolation_level=None)) as db:
        db.execute("CREATE TABLE t (x)")
        db.execute("INSERT INTO t VALUES (zeroblob(3000000))")
    (node.work / "file").write_bytes(b"1")
    node.wait_until(lambda: (node.store / "file").exists())
    node.wait_until(lambda: "spool_full" in problems(node))
    assert not (node.store / "other.db").exists()
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    node.wait_until(lambda: (node.store / "other.db").exists())
    assert node.flush() == 0
    assert node.end() == 0, node.log()


def allow_files_of(node: Node, size: int) -> None:
    """With 0 every write of the daemon to a file fails, which SQLite calls an I/O error."""
    assert node.process is not None
    pid = node.process.pid
    # Those that the daemon starts meanwhile inherit it.
    lists = Path(f"/proc/{pid}/task").glob("*/children") if size else []
    children = [int(child) for found in lists for child in found.read_text().split()]
    for one in (pid, *children):
        resource.prlimit(one, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def test_a_state_directory_that_fails_is_waited_for(node: PrefixedNode) -> None:
    node.deploy()
    allow_files_of(node, 0)
    for number in range(20):
        (node.work / f"{number}").write_bytes(b"%d" % number)
    node.wait_until(lambda: "StateDirFailed" in problems(node))
    assert node.flush() == 1
    allow_files_of(node, resource.RLIM_INFINITY)
    node.wait_until(lambda: problems(node) == {} and same(node))
    assert node.flush() == 0, node.log()
    assert node.end() == 0, node.log()


def test_a_checkpoint_that_the_index_missed_is_taken_over_by_the_next_life(
    node: PrefixedNode,
) -> None:
    node.deploy()
    allow_files_of(node, 0)
    (node.work / "new").write_bytes(b"1")
    node.wait_until(lambda: "StateDirFailed" in problems(node))
    assert node.end(signal.SIGKILL) != 0
    (node.work / "new").write_bytes(b"22")
    node.deploy()
    assert node.flush() == 0, node.log()
    assert same(node)
    assert node.end() == 0, node.log()


def test_a_full_working_directory_halts_and_goes_on_where_it_was(
    node: PrefixedNode, small_disk: Path
) -> None:
    work = small_disk / "work"
    work.mkdir()
    (node.store / "first").write_bytes(b"1" * 1_500_000)
    (node.store / "second").write_bytes(b"2" * 1_400_000)
    node.deploy()
    assert node.end() == 0, node.log()
    lose(node.home / "state")
    node.work = work
    node.configure(working_dir=work, push__workers=1)
    assert node.refusal() == 13, node.log()
    assert "No space left on device" in node.log()
    assert node.log().count("then start again: it goes on where it was") == 1
    assert "by itself" not in node.log()
    finished = (work / "first").stat().st_ino
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    node.deploy()
    assert (work / "first").stat().st_ino == finished
    assert same(node)
    assert node.end() == 0, node.log()


# -- the index ----------------------------------------------------------------------------------


def zeros_in_the_middle(path: Path) -> None:
    with path.open("r+b") as file:
        size = path.stat().st_size
        file.seek(size // 4)
        file.write(bytes(size // 2))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "zeros": zeros_in_the_middle,
    "no database": lambda path: path.write_bytes(b"text" * 5000),
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_index_is_kept_and_an_empty_one_made(tmp_path: Path, name: str) -> None:
    path = tmp_path / "index.sqlite"
    index = Index(path)
    index.set(**{f"key{number}": "x" * 200 for number in range(300)})
    index.close()
    DAMAGES[name](path)
    damaged = path.read_bytes()
    with pytest.raises(IndexDamaged, match="damaged"):
        Index(path)
    for _ in range(2):
        path.write_bytes(damaged)
        index = open_index(path)
        assert index.get("key1") is None
        index.close()
    kept = sorted(tmp_path.glob("index.sqlite.damaged-?"))
    assert [item.read_bytes() for item in kept] == [damaged, damaged]


def test_a_row_that_no_index_writes_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite"
    index = Index(path)
    index._db.execute(
        "INSERT INTO entry (name, parent, kind, size, mtime_ns, mode, digest, target)"
        " VALUES (x'61', x'', 'sock', 0, 0, 0, '', x'')"
    )
    with pytest.raises(IndexDamaged):
        index.known(b"a")
    with pytest.raises(IndexDamaged):
        list(index.entries())


def test_a_statement_that_finds_no_room_changes_nothing(small_disk: Path) -> None:
    index = Index(small_disk / "index.sqlite")
    index.set(key="old")
    fill(small_disk / "filler")
    with pytest.raises(StateDirFailed, match="Make room"):
        index.set(**{f"key{number}": "x" * 2000 for number in range(100)}, key="new")
    (small_disk / "filler").unlink()
    assert index.get("key") == "old"
    index.set(key="new")
    assert index.get("key") == "new"


LONG = "a long name " * 18
UNREADABLE = r"/index\.sqlite(-wal)?$"


@pytest.fixture
def state_on_fuse(node: PrefixedNode, mounted: Mounted) -> PrefixedNode:
    """A node whose state directory is a mount that can fail, with more rows than SQLite keeps."""
    folder = node.store / LONG / LONG
    folder.mkdir(parents=True)
    for number in range(1200):
        (folder / f"{LONG}{number}").write_bytes(b"1")
    state = mounted.path / "state"
    state.mkdir()
    node.configure(state_dir=state)
    node.deploy()
    return node


@pytest.mark.fuse
def test_an_index_that_cannot_be_read_ends_a_start_and_nothing_is_lost(
    state_on_fuse: PrefixedNode, mounted: Mounted
) -> None:
    node = state_on_fuse
    node.end(signal.SIGKILL)
    (node.work / "new").write_bytes(b"2")
    stored = user_files(node.store)
    mounted.fail("read", errno.EIO, times=-1, pattern=UNREADABLE)
    assert node.refusal() == 1
    assert "index.sqlite cannot be read or written (disk I/O error)" in node.log()
    assert "mend its disk" in node.log()
    assert "Traceback" not in node.log()
    assert not list((mounted.backing / "state").glob("*damaged*"))
    assert user_files(node.store) == stored
    mounted.clear()
    node.deploy()
    node.wait_until(lambda: same(node))
    assert node.end() == 0, node.log()


@pytest.mark.fuse
def test_an_index_that_cannot_be_read_for_a_while_is_waited_for(
    state_on_fuse: PrefixedNode, mounted: Mounted
) -> None:
    node = state_on_fuse
    assert node.flush() == 0, node.log()
    index = mounted.path / "state" / "index.sqlite"
    with closing(sqlite3.connect(index)) as another:  # after its commit SQLite reads anew
        another.execute("UPDATE meta SET value = value WHERE key = 'format'")
        another.commit()
    mounted.fail("read", errno.EIO, times=-1, pattern=UNREADABLE)
    for path in (index, index.with_name("index.sqlite-wal")):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    (node.work / "new").write_bytes(b"2")
    (node.work / LONG / LONG / f"{LONG}17").unlink()
    assert node.flush() == 1
    node.wait_until(lambda: "StateDirFailed" in problems(node))
    assert "mend its disk" in problems(node)["StateDirFailed"]
    assert node.running()
    mounted.clear()
    node.wait_until(lambda: same(node))
    assert node.flush() == 0, node.log()
    assert problems(node) == {}
    assert "Traceback" not in node.log()
    assert node.end() == 0, node.log()


@pytest.fixture
def on_fuse(tmp_path: Path, mounted: Mounted) -> Iterator[PrefixedNode]:
    made = PrefixedNode(tmp_path / "node", mounted.path / "project")
    yield made
    if made.running():
        made.end(signal.SIGKILL)


def lose(state: Path) -> None:
    for path in state.glob("index.sqlite*"):
        path.unlink()


def damage(state: Path) -> None:
    with closing(sqlite3.connect(state / "index.sqlite")) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    zeros_in_the_middle(state / "index.sqlite")


@pytest.mark.fuse
@pytest.mark.parametrize("harm", [lose, damage])
def test_a_lost_index_is_made_anew_by_comparing_contents(
    on_fuse: PrefixedNode, mounted: Mounted, harm: Callable[[Path], None]
) -> None:
    node, store = on_fuse, mounted.backing / "project"
    node.deploy()
    (node.work / "dir").mkdir()
    (node.work / "dir" / "large").write_bytes(os.urandom(3_000_000))
    for name in ("small", "edited", "removed", "linked"):
        (node.work / "dir" / name).write_bytes(b"1" * 10_000)
    os.link(node.work / "dir" / "linked", node.work / "other name")
    (node.work / "link").symlink_to("dir/large")
    with closing(sqlite3.connect(node.work / "project.sqlite")) as db:
        db.execute("CREATE TABLE t (x)")
    assert node.flush() == 0, node.log()
    node.end(signal.SIGKILL)
    (node.work / "dir" / "edited").write_bytes(b"2" * 10_000)
    (node.work / "new").write_bytes(b"3")
    (node.work / "dir" / "removed").unlink()
    harm(node.home / "state")
    mounted.reset()
    node.deploy()
    assert node.flush() == 0, node.log()
    assert mounted.counts()["bytes_written"] < 100_000
    assert (store / "dir" / "edited").read_bytes() == b"2" * 10_000
    assert (store / "new").read_bytes() == b"3"
    # Nobody knows whether it was deleted here: it stays.
    assert (store / "dir" / "removed").read_bytes() == b"1" * 10_000
    assert "dir/removed" in problems(node)["absent"]
    with (node.work / "dir" / "large").open("r+b") as file:
        file.write(b"patched")
    mounted.reset()
    assert node.flush() == 0, node.log()
    assert mounted.counts()["bytes_written"] < 1_000_000
    assert bool(list((node.home / "state").glob("*.damaged-1"))) == (harm is damage)
    assert node.end() == 0, node.log()
    assert (store / "dir" / "large").read_bytes() == (node.work / "dir" / "large").read_bytes()


def test_a_working_directory_without_index_and_claim_is_foreign(node: PrefixedNode) -> None:
    node.deploy()
    (node.work / "new").write_bytes(b"1")
    assert node.flush() == 0
    node.end(signal.SIGKILL)
    lose(node.home / "state")
    claim = (node.home / "state" / "claim.json").read_bytes()
    (node.home / "state" / "claim.json").unlink()
    assert node.refusal() == 13
    assert "not empty and not onesync's" in node.log()
    (node.home / "state" / "claim.json").write_bytes(claim)
    node.deploy()
    assert node.end() == 0, node.log()


def test_a_claim_that_was_ended_makes_no_foreign_directory_ours(
    node: PrefixedNode, tmp_path: Path
) -> None:
    node.deploy()
    assert node.end() == 0, node.log()
    lose(node.home / "state")
    (node.work / "mine").write_bytes(b"precious")
    assert node.refusal() == 13
    assert "not empty and not onesync's" in node.log()
    assert not (node.store / "mine").exists()
    other = Node(tmp_path / "other", node.store)
    other.deploy()  # the lock was let go
    assert other.end() == 0, other.log()


# -- descriptors and clocks ---------------------------------------------------------------------


def test_few_descriptors_are_enough(node: PrefixedNode) -> None:
    for number in range(60):
        (node.store / f"{number}").mkdir()
        (node.store / f"{number}" / "old").write_bytes(b"1")
    node.prefix = ("prlimit", "--nofile=64:64")
    node.deploy()
    for number in range(60):
        for name in range(5):
            (node.work / f"{number}" / f"new {name}").write_bytes(b"%d" % name)
    with closing(sqlite3.connect(node.work / "project.sqlite")) as db:
        db.execute("CREATE TABLE t (x)")
    assert node.flush() == 0, node.log()
    assert same(node)
    assert node.end() == 0, node.log()


@pytest.mark.fuse
def test_few_descriptors_are_enough_where_all_calls_are_under_way_at_once(
    on_fuse: PrefixedNode, mounted: Mounted
) -> None:
    for number in range(60):
        folder = mounted.backing / "project" / f"{number}"
        folder.mkdir()
        (folder / "old").write_bytes(b"1")
    mounted.delay_at("read", 0.1, times=-1, pattern="old")
    on_fuse.prefix = ("prlimit", "--nofile=64:64")
    on_fuse.deploy()
    assert same(on_fuse)
    assert on_fuse.end() == 0, on_fuse.log()


WALL = """
import os, time
def wall():
    with open(os.environ["WALL"]) as file:
        return real() + int(file.read() or 0) * 10**9
real, time.time_ns = time.time_ns, wall
time.time = lambda: time.time_ns() / 1e9
"""


def test_a_clock_that_jumps_decides_nothing(node: PrefixedNode, tmp_path: Path) -> None:
    wall = tmp_path / "wall"
    wall.write_text("0")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(WALL)
    node.environment = {"PYTHONPATH": str(tmp_path / "site"), "WALL": str(wall)}
    node.configure(lock__beat_seconds=1, lock__warn_seconds=60, lock__suspend_seconds=120)
    node.deploy()
    years = 10 * 365 * 86_400
    for number, jump in enumerate((years, -3 * years, 0)):
        wall.write_text(str(jump))
        path = node.work / f"{number}"
        path.write_bytes(b"1")
        os.utime(path, ns=(1, time.time_ns() + jump * 10**9))
        (node.work / "same").write_bytes(b"%d" % number)
        os.utime(node.work / "same", (1, 1))
        assert node.flush() == 0, node.log()
        assert same(node)
        assert node.status()["phase"] == "syncing"
        beat = node.status()["lock"]["beat"]
        node.wait_until(lambda beat=beat: node.status()["lock"]["beat"] > beat)  # type: ignore[misc]
    wall.write_text(str(-years))
    node.end(signal.SIGKILL)
    node.deploy()
    assert same(node)
    assert node.end() == 0, node.log()
    other = Node(tmp_path / "other", node.store)
    other.deploy()
    assert picture(other.work) == picture(node.work)
    assert other.end() == 0, other.log()
