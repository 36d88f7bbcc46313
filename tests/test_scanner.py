"""The scan of a whole tree: equal to a simple one, and what it reads where nothing changed."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onesync.core.chain import Change, Gone, Renamed, Set
from onesync.core.model import Entry, Kind, RelPath, Stamp, join
from onesync.core.plan import Difference
from onesync.index import Index, StampRow
from onesync.local import ToldByKernel, told_by_kernel
from onesync.scanner import Scanner

NAMES = (b"a", b"a-", b"\xff")
PATHS = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map(b"/".join)
ACTS = st.sampled_from(["write", "make", "link", "remove", "name", "mode", "rename", "special"])
STEPS = st.lists(st.tuples(ACTS, PATHS, PATHS), max_size=12)


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def _act(root: bytes, act: str, path: RelPath, other: RelPath) -> None:
    here, there = join(root, path), join(root, other)
    with suppress(OSError):
        if act == "write":
            # A FIFO that nobody reads must not hold up the writer.
            fd = os.open(here, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK)
            with open(fd, "ab") as file:
                file.write(b"x")
        elif act == "make":
            os.mkdir(here)
        elif act == "link":
            os.symlink(other, here)
        elif act == "remove" and os.path.isdir(here) and not os.path.islink(here):
            shutil.rmtree(here)
        elif act == "remove":
            os.unlink(here)
        elif act == "name":
            os.link(here, there, follow_symlinks=False)
        elif act == "mode":
            os.chmod(here, os.lstat(here).st_mode ^ 0o111)
        elif act == "rename":
            os.rename(here, there)
        elif act == "special":
            os.mkfifo(here)


def _simply(scanner: Scanner, index: Index, root: bytes) -> dict[RelPath, Difference]:
    """Compare path by path, in no clever way: every one that stands, and every row."""
    seen: dict[RelPath, Stamp | None] = {}
    for folder, directories, files in os.walk(root):
        for name in directories + files:
            path = os.path.relpath(os.path.join(folder, name), root)
            seen[path] = scanner.look(path)
    known = dict(index.beneath(b""))
    found = {}
    for path in seen.keys() | known.keys():
        stamp, row = seen.get(path), known.get(path)
        # Of a directory that is gone only the directory itself is told.
        above = path.rpartition(b"/")[0]
        if path not in seen and above and not os.path.isdir(join(root, above)):
            continue
        if stamp is None and row is not None and row.stamp is not None:
            found[path] = Difference(path, row, None)
        elif stamp is not None and (row is None or not _is_equal(row.stamp, stamp)):
            found[path] = Difference(path, row, stamp)
    return found


def _is_equal(old: Stamp | None, new: Stamp) -> bool:
    if old is None or old.kind is not new.kind:
        return False
    if old.kind is Kind.LINK:
        return old.target == new.target
    if old.kind is Kind.DIRECTORY:
        return (old.inode, old.mode, old.mtime_ns) == (new.inode, new.mode, new.mtime_ns)
    return old == new


def _commit(index: Index, found: dict[RelPath, Difference]) -> None:
    """Record what was found, as if all of it had been pushed."""
    changes: list[Change] = []
    stamps = {}
    for path in sorted(found):
        seen = found[path].seen
        if seen is None:
            changes.append(Gone(path))
        else:
            digest = "ab" if seen.kind is Kind.FILE else ""
            changes.append(Set(path, Entry(seen.kind, digest=digest, target=seen.target)))
            stamps[path] = seen
    index.commit(changes, stamps)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(STEPS, st.booleans()), min_size=1, max_size=5))
def test_a_scan_finds_what_a_simple_one_finds(
    rounds: list[tuple[list[tuple[str, bytes, bytes]], bool]],
) -> None:
    with tempfile.TemporaryDirectory() as name, closing(Index(Path(name) / "index")) as index:
        root = os.path.join(os.fsencode(name), b"root")
        os.mkdir(root)
        scanner = Scanner(root, index, lambda _: False)
        for steps, is_committed in rounds:
            for act, path, other in steps:
                _act(root, act, path, other)
            expected = _simply(scanner, index, root)
            found = scanner.scan((), [b""])
            again = scanner.scan((), [b""])  # what was agreed on is not looked at again
            for differences in (found, again):
                differences.pop(b"", None)
                assert differences == expected
            fresh = Scanner(root, index, lambda _: False)
            fresh.scan((), [b""])
            assert scanner.problems == fresh.problems, "no more of what went"
            if is_committed:
                _commit(index, found)


@settings(max_examples=25, deadline=None)
@given(
    STEPS,
    st.lists(st.tuples(st.sampled_from(["gone", "renamed", "doubt"]), PATHS, PATHS), max_size=4),
)
def test_no_change_of_the_index_goes_unseen(
    steps: list[tuple[str, bytes, bytes]], changes: list[tuple[str, bytes, bytes]]
) -> None:
    with tempfile.TemporaryDirectory() as name, closing(Index(Path(name) / "index")) as index:
        root = os.path.join(os.fsencode(name), b"root")
        os.mkdir(root)
        scanner = Scanner(root, index, lambda _: False)
        for act, path, other in steps:
            _act(root, act, path, other)
        _commit(index, scanner.scan((), [b""]))
        scanner.scan((), [b""])  # agreed on
        for what, path, other in changes:
            if what == "doubt":
                index.doubt(path)
            else:
                index.commit([Gone(path) if what == "gone" else Renamed(path, other)], {})
            found = scanner.scan((), [b""])
            found.pop(b"", None)
            fresh = Scanner(root, index, lambda _: False)
            assert found == {p: d for p, d in _simply(fresh, index, root).items() if p}


def test_what_is_left_out_is_no_problem_any_more_when_it_is_gone(home: Path) -> None:
    root = home / "root"
    (root / "a").mkdir(parents=True)
    with closing(Index(home / "index")) as index:
        scanner = Scanner(os.fsencode(root), index, lambda _: False)
        for path in ("one", "a/two", "a/.onesync~three", "stays"):
            os.mkfifo(root / path)
        scanner.scan((), [b""])
        assert scanner.problems.keys() == {b"one", b"a/two", b"a/.onesync~three", b"stays"}
        (root / "one").unlink()
        shutil.rmtree(root / "a")
        scanner.scan((), [b"a"])
        assert scanner.problems.keys() == {b"one", b"stays"}, "it looked at this tree alone"
        scanner.scan((), [b""])
        assert scanner.problems.keys() == {b"stays"}


def _fails_at(monkeypatch: pytest.MonkeyPatch, path: Path, number: int) -> None:
    """Let every look at what stands at ``path`` fail."""
    inode = path.stat().st_ino

    def told(status: os.stat_result) -> ToldByKernel:
        if status.st_ino == inode:
            raise OSError(number, os.strerror(number))
        return told_by_kernel(status)

    monkeypatch.setattr("onesync.scanner.told_by_kernel", told)


def test_the_working_directory_itself_is_no_single_problem(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "root").mkdir()
    with closing(Index(home / "index")) as index:
        scanner = Scanner(os.fsencode(home / "root"), index, lambda _: False)
        _fails_at(monkeypatch, home / "root", errno.EIO)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            scanner.scan((), [b""], passes_over=True)
        assert not scanner.problems


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOTCONN, errno.ESTALE, errno.EACCES])
@pytest.mark.parametrize("is_directory", [False, True])
def test_what_cannot_be_looked_at_is_a_problem_of_its_own(
    home: Path, monkeypatch: pytest.MonkeyPatch, number: int, is_directory: bool
) -> None:
    root = home / "root"
    (root / "dir" / "dead").mkdir(parents=True)
    for name in ("dir/dead/inner", "dir/file", "dir/goes", "dir/changes"):
        (root / name).touch()
    hidden = "dir/dead" if is_directory else "dir/file"
    with closing(Index(home / "index")) as index:
        scanner = Scanner(os.fsencode(root), index, lambda _: False)
        _commit(index, {p: d for p, d in scanner.scan((), [b""]).items() if p})
        _fails_at(monkeypatch, root / hidden, number)
        (root / "dir" / "goes").unlink()
        (root / "dir" / "changes").write_bytes(b"x")
        path, found = os.fsencode(hidden), {}
        for paths, trees in (((), [b""]), ([path, b"dir/goes", b"dir/changes"], ())):
            with pytest.raises(OSError, match=os.strerror(number)):
                scanner.scan(paths, trees)
            found = scanner.scan(paths, trees, passes_over=True)
            assert found.keys() - {b"", b"dir"} == {b"dir/goes", b"dir/changes"}
            assert {p: told.kind for p, told in scanner.problems.items()} == {path: "unreadable"}
        assert scanner.gone([path, b"dir/goes"]) == {b"dir/goes"}
        assert scanner.see(path) is None
        assert scanner.is_hidden(path)
        assert not scanner.is_hidden(b"dir/goes")
        _commit(index, found)
        scanner.scan((), [b""], passes_over=True)
        assert scanner.problems.keys() == {path}, "it is looked at again each time"
        monkeypatch.undo()
        assert scanner.scan((), [b""], passes_over=True).keys() <= {b"", b"dir"}
        assert not scanner.problems


def _tree(root: Path) -> None:
    for number in range(20):
        (root / f"{number}").mkdir(parents=True)
        for name in range(50):
            (root / f"{number}" / f"{name}").touch()


def test_where_nothing_changed_no_row_is_read(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _tree(home / "root")
    with closing(Index(home / "index")) as index:
        scanner = Scanner(os.fsencode(home / "root"), index, lambda _: False)
        _commit(index, {p: d for p, d in scanner.scan((), [b""]).items() if p})
        scanner.scan((), [b""])
        real = index.stamps
        asked: list[RelPath] = []

        def counted(path: RelPath) -> dict[bytes, StampRow]:
            asked.append(path)
            return real(path)

        monkeypatch.setattr(index, "stamps", counted)
        assert scanner.scan((), [b""]).keys() <= {b""}
        assert not asked
        (home / "root" / "7" / "new").touch()
        found = scanner.scan((), [b""])
        assert found.keys() - {b""} == {b"7", b"7/new"}
        assert asked == [b"", b"7"], "the top has the time of 7 in it"


def test_what_left_the_index_is_new_though_its_listing_was_agreed_on(home: Path) -> None:
    root = os.path.join(os.fsencode(home), b"root")
    os.makedirs(join(root, b"a/b"))
    Path(os.fsdecode(join(root, b"a/b/c"))).touch()
    for change in (Gone(b"a"), Renamed(b"a", b"z"), None):
        with closing(Index(home / f"index of {change}"[:20])) as index:
            scanner = Scanner(root, index, lambda _: False)
            _commit(index, {p: d for p, d in scanner.scan((), [b""]).items() if p})
            assert scanner.scan((), [b""]).keys() <= {b""}
            if change is None:
                index.doubt(b"a/b/c")
                assert scanner.scan((), [b""]).keys() - {b""} == {b"a/b/c"}
                continue
            index.commit([change], {})
            found = {p: d for p, d in scanner.scan((), [b""]).items() if d.seen is not None}
            assert found.keys() - {b""} == {b"a", b"a/b", b"a/b/c"}
