"""Stage-in of what the manifest knows: it is opened without a look, whatever stands there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest
from blake3 import blake3

from onesync import stagein
from onesync.core.model import Entry, Kind
from onesync.core.tree import Tree
from onesync.errors import LocalError
from onesync.local import Digested
from onesync.replica.door import Copied, Listed, Replica
from onesync.replica.folder import FolderReplica
from onesync.stagein import Conflict, Staged, StageIn, _Parent
from tests.memory import MemoryReplica, Tabled

KNOWN = Entry(Kind.FILE, 3, 10**18, 0o644, blake3(b"abc").hexdigest())


class Unseen(MemoryReplica):
    """Takes every name for a file that it may, and remembers which it looked at."""

    def __init__(self, stale: Set[bytes] = frozenset()) -> None:
        super().__init__()
        self.looked: list[bytes] = []
        self._stale = stale

    def look(self, path: bytes) -> Listed | None:
        self.looked.append(path)
        return super().look(path)

    def list(self, path: bytes, known: Mapping[bytes, Kind] = MappingProxyType({})) -> list[Listed]:
        told = [] if path else [Listed(name, Kind.FILE, 0) for name in self._stale]
        for inner in MemoryReplica.list(self, path):
            told.append(Listed(inner.name, known[inner.name], 0) if inner.name in known else inner)
        self.looked.clear()
        return told


def staged_in(
    replica: Replica,
    work: Path,
    rows: Tabled,
    tree: Tree | None = None,
    advanced: Callable[[int, int], None] = lambda *_: None,
) -> Staged:
    work.mkdir()
    with ThreadPoolExecutor(2) as pool:
        root = os.fsencode(work)
        stage_in = StageIn(replica, root, pool, advanced, rows, asked={b"known"})
        return stage_in.run(tree or Tree({b"known": KNOWN}))


def test_a_known_file_is_opened_without_a_look(tmp_path: Path) -> None:
    replica = Unseen()
    replica.write_new(b"known", b"abc")
    staged = staged_in(replica, tmp_path / "work", Tabled())
    assert staged.problems == []
    assert staged.fetched == {b"known"}
    assert (tmp_path / "work" / "known").read_bytes() == b"abc"
    assert replica.looked == []


def test_a_known_directory_that_is_none_any_more_is_made(tmp_path: Path) -> None:
    """It is listed without a look, whatever stands there."""
    replica = Unseen()
    replica.write_new(b"d", b"a file")
    tree = Tree({b"d": Entry(Kind.DIRECTORY, mode=0o755), b"d/known": KNOWN})
    rows = Tabled()
    staged = staged_in(replica, tmp_path / "work", rows, tree)
    assert [(p.path, p.kind) for p in staged.problems] == [(b"d/known", "missing")]
    assert rows.put_in[b"d/known"] == (KNOWN, None)
    assert [path.name for path in (tmp_path / "work").rglob("*")] == ["d"]


@pytest.mark.parametrize("kind", ["nothing", "directory"])
def test_a_known_file_that_is_none_any_more_is_missing(tmp_path: Path, kind: str) -> None:
    replica = Unseen(stale=frozenset({b"known"} if kind == "nothing" else ()))
    if kind == "directory":
        replica.make_directory(b"known")
    rows = Tabled()
    staged = staged_in(replica, tmp_path / "work", rows)
    assert [(p.path, p.kind) for p in staged.problems] == [(b"known", "missing")]
    assert rows.put_in == {b"known": (KNOWN, None)}
    assert staged.fetched == set()
    assert os.listdir(tmp_path / "work") == []


def test_a_directory_that_somebody_removes_meanwhile_is_no_failure_of_this_machine(
    tmp_path: Path,
) -> None:
    """It is tried again, and the directory is made anew: nobody has to decide anything."""
    (tmp_path / "folder" / "d").mkdir(parents=True)
    (tmp_path / "folder" / "d" / "known").write_bytes(b"abc")
    replica = FolderReplica(os.fsencode(tmp_path / "folder"))
    tree = Tree({b"d": Entry(Kind.DIRECTORY, mode=0o755), b"d/known": KNOWN})

    def remove(done: int, count: int) -> None:
        if not done:
            shutil.rmtree(tmp_path / "work" / "d")

    with pytest.raises(FileNotFoundError) as caught:
        staged_in(replica, tmp_path / "work", Tabled(), tree, remove)
    assert not isinstance(caught.value, LocalError)


class Exchanged(FolderReplica):
    """Lets somebody put a link to ``target`` in the place of each file that was fetched."""

    target: Path

    def fetch(
        self,
        path: bytes,
        destination: bytes,
        mode: int,
        mtime_ns: int | None,
        goes_on: bool = False,
    ) -> Copied:
        copied = super().fetch(path, destination, mode, mtime_ns, goes_on)
        os.unlink(destination)
        os.symlink(self.target, destination)
        return copied


def test_a_link_in_the_place_of_a_file_that_gets_attributes_changes_nothing_outside(
    tmp_path: Path,
) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"precious")
    outside.chmod(0o600)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "known").write_bytes(b"abc")
    replica = Exchanged(os.fsencode(tmp_path / "folder"))
    replica.target = outside
    tree = Tree({b"known": replace(KNOWN, mode=0o777, xattrs=((b"user.a", b"1"),))})
    with pytest.raises(LocalError):
        staged_in(replica, tmp_path / "work", Tabled(), tree)
    assert outside.stat().st_mode & 0o7777 == 0o600
    assert os.listxattr(outside) == []


@pytest.mark.parametrize(
    ("stored", "told"),
    [
        (b"x" * 999, "is shorter than the manifest says (999 of 1000 bytes)"),
        (bytes(600) + b"x" * 400, "begins with zeros"),
        (b"y" * 1000, "is not what the manifest says (1000 of 1000 bytes)"),
        (b"x" * 1001, "is not what the manifest says (1001 of 1000 bytes)"),
    ],
    ids=["short", "hollow", "another", "longer"],
)
def test_what_came_damaged_is_told_apart_as_far_as_it_shows(
    tmp_path: Path, stored: bytes, told: str
) -> None:
    content = b"x" * 1000
    replica = Unseen()
    replica.write_new(b"known", stored)
    tree = Tree({b"known": Entry(Kind.FILE, 1000, 10**18, 0o644, blake3(content).hexdigest())})
    staged = staged_in(replica, tmp_path / "work", Tabled(), tree)
    assert [(p.path, p.kind) for p in staged.problems] == [(b"known", "changed_outside")]
    assert told in staged.problems[0].text
    assert (tmp_path / "work" / "known").read_bytes() == stored, "it is kept"


@pytest.mark.parametrize("what", ["fifo", "directory", "link", "other name", "longer"])
def test_what_stands_in_the_place_of_a_begun_copy_is_never_written_into(
    tmp_path: Path, what: str
) -> None:
    (tmp_path / "folder").mkdir()
    content = b"new content"
    (tmp_path / "folder" / "file").write_bytes(content)
    outside, place = tmp_path / "outside", tmp_path / "begun"
    outside.write_bytes(b"precious")
    if what == "fifo":
        os.mkfifo(place)
    elif what == "link":
        place.symlink_to(outside)
    elif what == "other name":
        place.hardlink_to(outside)
    elif what == "longer":
        place.write_bytes(content + b" and more")
    else:
        place.mkdir()
    replica = FolderReplica(os.fsencode(tmp_path / "folder"))
    if what == "directory":
        with pytest.raises(LocalError):
            replica.fetch(b"file", bytes(place), 0o600, None, goes_on=True)
    else:
        copied = replica.fetch(b"file", bytes(place), 0o600, None, goes_on=True)
        assert (copied.digest, copied.size) == (blake3(content).hexdigest(), len(content))
        assert not place.is_symlink()
        assert place.read_bytes() == content
    assert outside.read_bytes() == b"precious"


class Taken(FolderReplica):
    """Lets somebody make a file of his own where one that was fetched just now is to stand."""

    target: Path
    content = b"somebody's own"

    def fetch(
        self,
        path: bytes,
        destination: bytes,
        mode: int,
        mtime_ns: int | None,
        goes_on: bool = False,
    ) -> Copied:
        copied = super().fetch(path, destination, mode, mtime_ns, goes_on)
        self.target.write_bytes(self.content)
        return copied


def _folder_with(tmp_path: Path, count: int) -> Tree:
    """Make a folder of ``count`` files in a directory, and return the tree of it."""
    tree = Tree({b"d": Entry(Kind.DIRECTORY, mode=0o755)})
    (tmp_path / "folder" / "d").mkdir(parents=True)
    for number in range(count):
        (tmp_path / "folder" / "d" / f"f{number}").write_bytes(b"abc")
        tree.put(b"d/f%d" % number, KNOWN)
    return tree


def test_a_small_file_in_a_new_directory_is_given_its_name_and_nothing_else_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of an earlier stage-in can lie there, and the kernel tells what somebody puts."""
    opened: list[bytes] = []

    class Parent(_Parent):
        def __enter__(self) -> int:
            opened.append(self._path)
            return super().__enter__()

    def digested(source: bytes) -> Digested:
        raise AssertionError(f"{source!r} was read")

    tree = _folder_with(tmp_path, 20)
    monkeypatch.setattr(stagein, "_Parent", Parent)
    monkeypatch.setattr(stagein, "digest_local", digested)
    replica = FolderReplica(os.fsencode(tmp_path / "folder"))
    staged = staged_in(replica, tmp_path / "work", Tabled(), tree)
    assert staged.problems == []
    assert sorted(opened) == sorted(tree)  # once each, the directory to be made
    assert len(os.listdir(tmp_path / "work" / "d")) == 20


@pytest.mark.parametrize("can_refuse", [True, False])
@pytest.mark.parametrize("content", [b"somebody's own", b"abc"])
def test_what_somebody_puts_in_the_place_of_a_file_is_never_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, can_refuse: bool
) -> None:
    def refused(*_: object) -> None:
        raise NotImplementedError

    tree = _folder_with(tmp_path, 1)
    replica = Taken(os.fsencode(tmp_path / "folder"))
    replica.target, replica.content = tmp_path / "work" / "d" / "f0", content
    if not can_refuse:
        monkeypatch.setattr(stagein, "rename_new", refused)
    if content == b"abc":  # the very file that is to stand there
        staged_in(replica, tmp_path / "work", Tabled(), tree)
    else:
        with pytest.raises(Conflict):
            staged_in(replica, tmp_path / "work", Tabled(), tree)
    assert replica.target.read_bytes() == content
