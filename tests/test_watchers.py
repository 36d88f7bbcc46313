"""One contract for both watchers: whatever changes is covered by a mark."""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from onesync import watcher as watchers
from onesync.core.model import RelPath, is_beneath
from onesync.watcher import InotifyWatcher, PollingWatcher, Watcher
from tests.machine import lacks
from tests.node import SOON


class Told:
    """A sink that remembers; ``gate`` can hold the watcher's thread."""

    def __init__(self) -> None:
        self.paths: set[RelPath] = set()
        self.gone: set[RelPath] = set()
        self.trees: set[RelPath] = set()
        self.moves: set[tuple[RelPath, RelPath]] = set()
        self.refused: dict[RelPath, str] = {}
        self.overflows = 0
        self.batches: list[object] = []
        self.gate = threading.Event()
        self.gate.set()
        self.waits = threading.Event()

    def changed(self, path: RelPath) -> None:
        if not self.gate.is_set():
            self.waits.set()
        self.gate.wait()
        self.paths.add(path)

    def touched(self, paths: Mapping[RelPath, bool]) -> None:
        self.batches.append(dict(paths))
        for path in paths:
            self.changed(path)

    def deleted(self, path: RelPath) -> None:
        self.changed(path)
        self.gone.add(path)
        self.batches.append(path)

    def moved(self, source: RelPath, target: RelPath) -> None:
        self.paths |= {source, target}
        self.moves.add((source, target))
        self.batches.append((source, target))

    def tree_changed(self, path: RelPath) -> None:
        self.trees.add(path)

    def overflowed(self) -> None:
        self.overflows += 1
        self.trees.add(b"")

    def unwatched(self, path: RelPath, reason: str) -> None:
        self.refused[path] = reason

    def covers(self, path: RelPath) -> bool:
        return path in self.paths or any(is_beneath(path, tree) for tree in self.trees)

    def forget(self) -> None:
        self.paths.clear()
        self.trees.clear()
        self.moves.clear()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "root"
    (path / "dir").mkdir(parents=True)
    (path / "empty").mkdir()
    (path / "old link").symlink_to("nowhere")
    (path / "file").write_bytes(b"1")
    (path / "dir" / "inner").write_bytes(b"1")
    return path


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture(params=["inotify", "polling"])
def watcher(
    request: pytest.FixtureRequest, root: Path, tmp_path: Path, told: Told
) -> Iterator[Watcher]:
    made: Watcher
    if request.param == "inotify":
        made = InotifyWatcher(os.fsencode(root), os.fsencode(tmp_path / "cookie"), told)
    else:
        made = PollingWatcher(os.fsencode(root), told, 0.1)
    made.start()
    yield made
    told.gate.set()
    made.stop()


@pytest.fixture
def inotify(root: Path, tmp_path: Path, told: Told) -> Iterator[InotifyWatcher]:
    made = InotifyWatcher(os.fsencode(root), os.fsencode(tmp_path / "cookie"), told)
    made.start()
    yield made
    told.gate.set()
    made.stop()


def wait_for(condition: Callable[[], bool], told: Told) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline, (told.paths, told.trees)
        time.sleep(0.01)


def rewrite_in_its_time(path: Path) -> None:
    before = path.stat()
    path.write_bytes(b"2")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def retarget(path: Path) -> None:
    path.unlink()
    path.symlink_to("elsewhere")


def exchange(one: Path, other: Path) -> None:
    """Rename each to the other's name in one call."""
    libc = ctypes.CDLL(None, use_errno=True)
    at_cwd, exchange_flag = -100, 2
    paths = (os.fsencode(one), os.fsencode(other))
    if libc.renameat2(at_cwd, paths[0], at_cwd, paths[1], exchange_flag) != 0:
        lacks(f"cannot exchange here: {os.strerror(ctypes.get_errno())}")


CHANGES: dict[str, tuple[Callable[[Path], object], set[bytes]]] = {
    "created": (lambda root: (root / "new").write_bytes(b""), {b"new"}),
    "written": (lambda root: (root / "file").write_bytes(b"longer"), {b"file"}),
    "deleted": (lambda root: (root / "file").unlink(), {b"file"}),
    "renamed": (lambda root: (root / "file").rename(root / "other"), {b"file", b"other"}),
    "moved down": (
        lambda root: (root / "file").rename(root / "dir" / "file"),
        {b"file", b"dir/file"},
    ),
    "mode": (lambda root: (root / "file").chmod(0o600), {b"file"}),
    "time": (lambda root: os.utime(root / "file", (1, 1)), {b"file"}),
    "rewritten in its time": (lambda root: rewrite_in_its_time(root / "file"), {b"file"}),
    "directory made": (lambda root: (root / "made").mkdir(), {b"made"}),
    "directory renamed": (lambda root: (root / "dir").rename(root / "moved"), {b"dir", b"moved"}),
    "directory gone": (lambda root: shutil.rmtree(root / "dir"), {b"dir", b"dir/inner"}),
    "link made": (lambda root: (root / "link").symlink_to("nowhere"), {b"link"}),
    "link retargeted": (lambda root: retarget(root / "old link"), {b"old link"}),
    "directory put over an empty one": (
        lambda root: (root / "dir").rename(root / "empty"),
        {b"dir", b"empty/inner"},
    ),
    "odd names": (
        lambda root: (root / os.fsdecode(b"\xff new\nline")).write_bytes(b"x"),
        {b"\xff new\nline"},
    ),
}


@pytest.mark.usefixtures("watcher")
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_covered(root: Path, told: Told, name: str) -> None:
    change, expected = CHANGES[name]
    change(root)
    wait_for(lambda: all(map(told.covers, expected)), told)


@pytest.mark.usefixtures("watcher")
def test_what_is_made_in_a_brand_new_tree_is_covered(root: Path, told: Told) -> None:
    made = []
    for number in range(20):
        path = root / f"{number}" / "b" / "c"
        path.mkdir(parents=True)
        (path / "file").write_bytes(b"1")
        made.append(os.fsencode(f"{number}/b/c/file"))
    wait_for(lambda: all(map(told.covers, made)), told)
    told.forget()
    for number in range(20):
        (root / f"{number}" / "b" / "c" / "file").write_bytes(b"changed")
    wait_for(lambda: all(map(told.covers, made)), told)


@pytest.mark.usefixtures("watcher")
def test_a_tree_moved_in_is_covered_and_watched(root: Path, told: Told, tmp_path: Path) -> None:
    (tmp_path / "tree" / "deep").mkdir(parents=True)
    (tmp_path / "tree" / "deep" / "file").write_bytes(b"1")
    (tmp_path / "tree").rename(root / "tree")
    wait_for(lambda: told.covers(b"tree/deep/file"), told)
    told.forget()
    (root / "tree" / "deep" / "file").write_bytes(b"changed")
    wait_for(lambda: told.covers(b"tree/deep/file"), told)


@pytest.mark.usefixtures("watcher")
def test_a_renamed_directory_tells_by_its_new_name(root: Path, told: Told) -> None:
    (root / "dir").rename(root / "moved")
    wait_for(lambda: told.covers(b"moved"), told)
    told.forget()
    (root / "moved" / "inner").write_bytes(b"changed")
    wait_for(lambda: told.covers(b"moved/inner"), told)


def test_links_are_not_followed(root: Path, told: Told, watcher: Watcher, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (root / "door").symlink_to(outside)
    wait_for(lambda: told.covers(b"door"), told)
    told.forget()
    (outside / "secret").write_bytes(b"x")
    (root / "last").write_bytes(b"x")
    wait_for(lambda: told.covers(b"last"), told)
    assert not told.covers(b"door/secret")


@pytest.mark.usefixtures("watcher")
def test_our_own_names_are_not_told(root: Path, told: Told) -> None:
    ours = [".onesync~1", ".onesync~tree", ".deployment_status_do_not_delete", "dir/.onesync~2"]
    for name in ours:
        (root / name).mkdir()
        (root / name / "inner").write_bytes(b"x")
    (root / "last").write_bytes(b"x")
    wait_for(lambda: told.covers(b"last"), told)
    assert not any(is_beneath(path, os.fsencode(name)) for path in told.paths for name in ours)
    assert told.trees <= set(map(os.fsencode, ours)), "to be looked at, and no more"


@pytest.mark.usefixtures("watcher")
@pytest.mark.parametrize("name", ["file", "dir"])
def test_one_of_our_own_names_is_looked_at_when_it_comes_and_goes(
    root: Path, told: Told, name: str
) -> None:
    """Or what was renamed to it would be deleted in OneData, where it is nowhere else."""
    for one, other in ((name, ".onesync~x"), (".onesync~x", name)):
        (root / one).rename(root / other)
        wait_for(lambda: b".onesync~x" in told.trees, told)
        wait_for(lambda: told.covers(os.fsencode(name)), told)
        told.forget()


@pytest.mark.usefixtures("watcher")
def test_a_file_in_an_old_directory_marks_no_tree(root: Path, told: Told) -> None:
    (root / "dir" / "new").write_bytes(b"x")
    wait_for(lambda: told.covers(b"dir/new"), told)
    assert not told.trees


@pytest.mark.usefixtures("watcher")
def test_exchanged_directories_tell_by_their_new_names(root: Path, told: Told) -> None:
    (root / "empty" / "other").write_bytes(b"1")
    wait_for(lambda: told.covers(b"empty/other"), told)
    exchange(root / "dir", root / "empty")
    wait_for(lambda: told.covers(b"empty") and told.covers(b"dir"), told)
    told.forget()
    (root / "dir" / "other").write_bytes(b"changed")
    (root / "empty" / "inner").write_bytes(b"changed")
    wait_for(lambda: told.covers(b"dir/other") and told.covers(b"empty/inner"), told)


def test_drained_means_told(root: Path, told: Told, watcher: Watcher) -> None:
    for number in range(500):
        (root / f"{number}").write_bytes(b"1")
    assert watcher.drain(SOON)
    assert all(told.covers(b"%d" % number) for number in range(500))


def test_a_kernel_rename_is_told_as_a_pair(root: Path, told: Told, inotify: InotifyWatcher) -> None:
    (root / "dir").rename(root / "moved")
    (root / "file").rename(root / "moved" / "file")
    assert inotify.drain(SOON)
    assert told.moves == {(b"dir", b"moved"), (b"file", b"moved/file")}


def test_what_leaves_is_told_and_watched_no_more(
    root: Path, told: Told, inotify: InotifyWatcher, tmp_path: Path
) -> None:
    (root / "dir").rename(tmp_path / "away")
    assert inotify.drain(SOON)
    assert told.covers(b"dir")
    told.forget()
    (tmp_path / "away" / "inner").write_bytes(b"changed")
    assert inotify.drain(SOON)
    assert told.paths == set()


@contextmanager
def held(root: Path, told: Told) -> Iterator[None]:
    """Hold the watcher's thread, so that it finds all that happens meanwhile at once."""
    told.gate.clear()
    (root / "file").write_bytes(b"holds the watcher's thread")
    assert told.waits.wait(SOON), "it rests for a while after each reading"
    yield
    told.gate.set()


def test_a_name_taken_again_at_once_is_watched(
    root: Path, told: Told, inotify: InotifyWatcher, tmp_path: Path
) -> None:
    with held(root, told):
        (root / "dir").rename(tmp_path / "away")
        (root / "dir").mkdir()
    assert inotify.drain(SOON)
    assert told.covers(b"dir/inner")
    told.forget()
    (root / "dir" / "new").write_bytes(b"1")
    assert inotify.drain(SOON)
    assert told.covers(b"dir/new")


def test_a_directory_that_became_a_link_is_no_failure(
    root: Path, told: Told, inotify: InotifyWatcher, tmp_path: Path
) -> None:
    before = inotify.watches()
    with held(root, told):
        (root / "made").mkdir()
        (root / "made").rmdir()
        (root / "made").symlink_to(tmp_path)
    assert inotify.drain(SOON)
    assert told.covers(b"made")
    assert told.refused == {}
    assert inotify.watches() == before


def overflow(root: Path) -> None:
    """Make more events than the kernel's queue holds."""
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    # Alternating names: the kernel merges equal events that follow each other.
    script = (
        "import os, sys\n"
        f"for _ in range({limit // 2 + 1000}):\n"
        "    os.utime(sys.argv[1]); os.utime(sys.argv[2])\n"
    )
    names = [root / "dir" / "inner", root / "file"]
    subprocess.run([sys.executable, "-c", script, *names], check=True)


def test_a_directory_renamed_during_an_overflow_keeps_its_new_name(
    root: Path, told: Told, inotify: InotifyWatcher
) -> None:
    (root / "dir" / "sub").mkdir()
    assert inotify.drain(SOON)
    with held(root, told):
        overflow(root)
        (root / "dir" / "sub").rename(root / "empty" / "sub")
    wait_for(lambda: told.overflows > 0, told)
    (root / "dir").rename(root / "moved")
    assert inotify.drain(SOON)
    told.forget()
    (root / "empty" / "sub" / "file").write_bytes(b"1")
    assert inotify.drain(SOON)
    assert told.covers(b"empty/sub/file")


def test_writers_do_not_wake_the_watcher_with_every_change(
    root: Path, told: Told, tmp_path: Path
) -> None:
    rest = 0.2
    watcher = InotifyWatcher(os.fsencode(root), os.fsencode(tmp_path / "c"), told, rest=rest)
    watcher.start()
    try:
        task = Path(f"/proc/self/task/{watcher._thread.native_id}/status")
        began, before = time.monotonic(), sleeps(task)
        for number in range(2000):
            (root / "dir" / f"{number}").write_bytes(b"1")
        assert watcher.drain(SOON)
        took = time.monotonic() - began
        # Some more, for locks that it waits for.
        assert sleeps(task) - before < 100 + 2 * took / watchers._BURST_REST_SECONDS
        assert all(told.covers(b"dir/%d" % number) for number in range(2000))
    finally:
        watcher.stop()


def sleeps(status: Path) -> int:
    """Return how often a thread has gone to sleep."""
    words = status.read_text().split()
    return int(words[words.index("voluntary_ctxt_switches:") + 1])


def test_a_rest_ends_when_somebody_waits(root: Path, told: Told, tmp_path: Path) -> None:
    watcher = InotifyWatcher(os.fsencode(root), os.fsencode(tmp_path / "c"), told, rest=10 * SOON)
    watcher.start()
    for name in ("first", "second"):
        (root / name).write_bytes(b"1")
        assert watcher.drain(SOON)
        assert told.covers(name.encode())
    watcher.stop()
    assert not watcher._thread.is_alive()


@pytest.fixture
def without_end(
    root: Path, told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[InotifyWatcher]:
    """A watcher for which each burst goes on until somebody waits for it."""
    monkeypatch.setattr(watchers, "_BURST_BYTES", 0)
    monkeypatch.setattr(watchers, "_GATHERED_SECONDS", 10 * SOON)
    watcher = InotifyWatcher(os.fsencode(root), os.fsencode(tmp_path / "cookie"), told)
    watcher.start()
    yield watcher
    watcher.stop()
    assert not watcher._thread.is_alive()


def test_what_comes_while_a_burst_is_taken_apart_is_gathered_too(
    root: Path, told: Told, inotify: InotifyWatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who writes needs the processor, however long the burst lasts."""
    rounds = 5
    gathered: list[int] = []
    gather, take_all = inotify._gather, inotify._take_all

    def counted(wake: select.poll) -> None:
        gathered.append(len(told.paths))
        gather(wake)

    def taken(events: bytes) -> None:
        take_all(events)
        if len(told.paths) <= rounds:
            (root / f"{len(told.paths)}").touch()

    monkeypatch.setattr(inotify, "_gather", counted)
    monkeypatch.setattr(inotify, "_take_all", taken)
    (root / "new").touch()
    wait_for(lambda: len(told.paths) > rounds, told)
    assert set(range(rounds + 1)) <= set(gathered)


def test_of_a_burst_nothing_is_taken_apart_until_somebody_waits(
    root: Path, told: Told, without_end: InotifyWatcher
) -> None:
    (root / "file").touch()
    wait_for(lambda: without_end._untold_bytes > 0, told)
    before = without_end._untold_bytes
    (root / "dir" / "inner").touch()
    wait_for(lambda: without_end._untold_bytes > before, told)
    assert not told.paths
    assert without_end.drain(SOON)
    assert told.covers(b"file")
    assert told.covers(b"dir/inner")


def test_a_drain_whose_end_was_read_already_waits_for_no_burst(
    root: Path, told: Told, without_end: InotifyWatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    cookies = without_end._cookies
    drained: list[bool] = []
    second = threading.Thread(target=lambda: drained.append(without_end.drain(SOON)))
    take_all = without_end._take_all

    def taken(events: bytes) -> None:
        if b"file" in events and not second.is_alive():
            second.start()
            wait_for(lambda: bool(os.listdir(cookies)), told)
        take_all(events)

    monkeypatch.setattr(without_end, "_take_all", taken)
    (root / "file").touch()
    assert without_end.drain(SOON)
    second.join()
    assert drained == [True]


def test_the_end_needs_no_cookie(root: Path, told: Told, tmp_path: Path) -> None:
    watcher = InotifyWatcher(os.fsencode(root), os.fsencode(tmp_path / "cookie"), told)
    watcher.start()
    shutil.rmtree(tmp_path / "cookie")
    assert not watcher.drain(SOON)
    watcher.stop()
    assert not watcher._thread.is_alive()


def test_one_that_never_began_can_be_stopped(root: Path, told: Told, tmp_path: Path) -> None:
    InotifyWatcher(os.fsencode(root), os.fsencode(tmp_path / "cookie"), told).stop()


def test_an_overflow_is_told_and_nothing_stays_unwatched(
    root: Path, told: Told, inotify: InotifyWatcher
) -> None:
    with held(root, told):
        overflow(root)
        (root / "made in the dark").mkdir()
    wait_for(lambda: told.overflows > 0, told)
    assert inotify.drain(SOON)
    told.forget()
    (root / "made in the dark" / "file").write_bytes(b"1")
    wait_for(lambda: told.covers(b"made in the dark/file"), told)


def test_what_was_deleted_is_told_apart_from_what_changed(
    root: Path, told: Told, inotify: InotifyWatcher
) -> None:
    (root / "dir" / "inner").rename(root.parent / "away")
    (root / "old link").unlink()
    (root / "empty").rmdir()
    (root / "file").write_bytes(b"2")
    assert inotify.drain(SOON)
    assert told.gone == {b"dir/inner", b"old link", b"empty"}
    assert told.covers(b"file")
    (root / "dir").rename(root.parent / "gone")
    assert inotify.drain(SOON)
    assert b"dir" in told.gone


def test_directories_deleted_during_an_overflow_are_told(
    root: Path, told: Told, inotify: InotifyWatcher
) -> None:
    (root / "dir" / "sub").mkdir()
    assert inotify.drain(SOON)
    with held(root, told):
        overflow(root)
        shutil.rmtree(root / "dir" / "sub")
        (root / "dir" / "sub").mkdir()
        (root / "dir" / "inner").unlink()
    wait_for(lambda: told.overflows > 0, told)
    assert inotify.drain(SOON)
    assert told.gone == {b"dir/sub"}, "its watch is dead; of a file nobody knows"


def test_directories_that_somebody_holds_open_are_told_too(
    root: Path, told: Told, inotify: InotifyWatcher
) -> None:
    for name in ("sub", "sub/deep", "away", "moved", "closed", "closed/kept"):
        (root / "dir" / name).mkdir()
    assert inotify.drain(SOON)
    fd = os.open(root / "dir" / "sub", os.O_RDONLY)
    try:
        with held(root, told):
            overflow(root)
            shutil.rmtree(root / "dir" / "sub")
            (root / "dir" / "sub" / "deep").mkdir(parents=True)
            (root / "dir" / "away").rename(root.parent / "away")
            (root / "dir" / "moved").rename(root / "empty" / "moved")
            (root / "dir" / "closed").chmod(0)
        wait_for(lambda: told.overflows > 0, told)
        assert inotify.drain(SOON)
        assert told.gone == {b"dir/sub", b"dir/sub/deep", b"dir/away"}
        (root / "empty" / "moved" / "file").write_bytes(b"1")
        (root / "dir" / "sub" / "file").write_bytes(b"1")
        wait_for(lambda: told.covers(b"empty/moved/file"), told)
        wait_for(lambda: told.covers(b"dir/sub/file"), told)
    finally:
        os.close(fd)
        (root / "dir" / "closed").chmod(0o755)


def test_a_directory_that_a_mount_hides_is_not_a_deleted_one(
    root: Path, told: Told, inotify: InotifyWatcher
) -> None:
    (root / "empty" / "inside").mkdir()
    assert inotify.drain(SOON)
    with held(root, told):
        overflow(root)
        mount = ["mount", "-t", "tmpfs", "none", str(root / "empty")]
        if subprocess.run(mount, check=False, capture_output=True).returncode:
            lacks("needs root to mount a tmpfs", but_root_has=True)
    try:
        wait_for(lambda: told.overflows > 0, told)
        assert inotify.drain(SOON)
        assert told.gone == set()
    finally:
        subprocess.run(["umount", str(root / "empty")], check=True)


def test_an_unmounted_directory_is_not_a_deleted_one(
    root: Path, told: Told, tmp_path: Path
) -> None:
    mount = ["mount", "-t", "tmpfs", "none", str(root / "empty")]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        lacks("needs root to mount a tmpfs", but_root_has=True)
    (root / "empty" / "inside").mkdir()
    watcher = InotifyWatcher(os.fsencode(root), os.fsencode(tmp_path / "cookie"), told)
    watcher.start()
    try:
        with held(root, told):
            overflow(root)
            subprocess.run(["umount", str(root / "empty")], check=True)
        wait_for(lambda: told.overflows > 0, told)
        assert watcher.drain(SOON)
        assert told.gone == set()
    finally:
        told.gate.set()
        watcher.stop()


@contextmanager
def held_up(inotify: InotifyWatcher, root: Path, told: Told) -> Iterator[None]:
    """Let all that is done in a block lie in the kernel's queue before the watcher reads it."""
    assert inotify.drain(SOON)
    told.gate.clear()
    (root / "file").touch()
    assert told.waits.wait(SOON)
    told.batches.clear()
    yield
    told.gate.set()
    assert inotify.drain(SOON)


def test_what_the_kernel_tells_of_a_name_at_once_is_told_once(
    root: Path, told: Told, inotify: InotifyWatcher
) -> None:
    with held_up(inotify, root, told):
        for number in range(50):
            with (root / "dir" / f"f{number}").open("wb", buffering=0) as file:
                file.write(b"1")
                file.write(b"2")
        (root / "dir" / "inner").chmod(0o600)
        (root / ".onesync~ours").touch()
    written = {b"dir/f%d" % number: True for number in range(50)}
    assert told.batches == [{**written, b"dir/inner": False}]


def test_what_is_told_at_once_keeps_its_place_among_renames_and_deletions(
    root: Path, told: Told, inotify: InotifyWatcher
) -> None:
    with held_up(inotify, root, told):
        (root / "a").write_bytes(b"1")
        (root / "a").rename(root / "b")
        (root / "a").write_bytes(b"2")
        (root / "a").unlink()
        (root / "dir" / "inner").write_bytes(b"2")
        (root / "dir").rename(root / "there")
        (root / "there" / "inner").write_bytes(b"3")
        (root / "a").write_bytes(b"3")
    assert told.batches == [
        {b"a": True},
        (b"a", b"b"),
        {b"a": True},
        b"a",
        {b"dir/inner": True},
        (b"dir", b"there"),
        {b"there/inner": True, b"a": True},
    ]
