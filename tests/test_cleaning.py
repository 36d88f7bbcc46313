"""Cleaning as the plain user that the daemon is: what root would be let do may be refused."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from blake3 import blake3

from onesync import working_copy
from onesync.core.model import Entry, Kind, Known, Stamp
from onesync.index import Index
from onesync.local import stamp_of

NOBODY = 65534
CONTENT = b"precious"
only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes what is somebody else's")


def as_plain_user(act: Callable[[], object]) -> object:
    """Return what ``act`` returns in a process that is not root's."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setresgid(NOBODY, NOBODY, NOBODY)
                os.setresuid(NOBODY, NOBODY, NOBODY)
            os.write(writer, json.dumps(act()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        told = answer.read()
    os.waitpid(child, 0)
    return json.loads(told or '"it failed"')


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory of the plain user's, with ``work`` in it; every user reaches it."""
    with tempfile.TemporaryDirectory() as path:
        made = Path(path)
        made.chmod(0o755)
        (made / "work" / "Runs" / "one").mkdir(parents=True)
        for name in ("file", "Runs/file", "Runs/one/file"):
            (made / "work" / name).write_bytes(CONTENT)
        if os.geteuid() == 0:
            for place in (made, *made.rglob("*")):
                os.chown(place, NOBODY, NOBODY)
        yield made
        for folder, _, _ in os.walk(made / "work"):
            os.chmod(folder, 0o755)


def known_in(work: Path) -> list[tuple[bytes, Known]]:
    return [(os.fsencode(path.relative_to(work)), known(path)) for path in work.rglob("*")]


def known(path: Path) -> Known:
    if path.is_symlink():
        target = os.fsencode(path.readlink())
        return Known(Entry(Kind.LINK, target=target), stamp_of(path.lstat(), Kind.LINK, target))
    if path.is_dir():
        return Known(Entry(Kind.DIRECTORY), stamp(path, Kind.DIRECTORY))
    entry = Entry(Kind.FILE, len(CONTENT), 1, 0o644, blake3(CONTENT).hexdigest())
    return Known(entry, stamp(path, Kind.FILE))


def stamp(path: Path, kind: Kind) -> Stamp:
    return stamp_of(path.lstat(), kind)


def cleaned(
    home: Path, rows: list[tuple[bytes, Known]], told: Callable[[int], None] = lambda _: None
) -> object:
    """Clean as the plain user; returns how many entries went and what was kept."""

    def clean() -> object:
        index = Index(home / "index.sqlite")
        index.replace([(path, row.entry, row.stamp) for path, row in rows])
        done = working_copy.clean(os.fsencode(home / "work"), index, home, told)
        return [done.removed, [os.fsdecode(path) for path in done.kept]]

    return as_plain_user(clean)


@pytest.mark.parametrize("mode", [0o555, 0o444, 0o000])
def test_directories_of_ours_that_are_read_only_go(home: Path, mode: int) -> None:
    work = home / "work"
    rows = known_in(work)
    for place in (work / "Runs" / "one", work / "Runs"):
        place.chmod(mode)
    assert cleaned(home, rows) == [5, []]
    assert list(work.iterdir()) == []


@only_root
def test_what_lies_in_somebody_elses_directory_is_kept(home: Path) -> None:
    work = home / "work"
    rows = known_in(work)
    os.chown(work / "Runs", 0, 0)
    assert cleaned(home, rows) == [2, ["Runs", "Runs/file", "Runs/one"]]
    assert (work / "Runs" / "file").read_bytes() == CONTENT
    assert (work / "Runs").stat().st_mode & 0o777 == 0o755


@only_root
def test_what_may_not_even_be_looked_at_is_kept(home: Path) -> None:
    work = home / "work"
    rows = known_in(work)
    os.chown(work / "Runs", 0, 0)
    (work / "Runs").chmod(0o700)
    assert cleaned(home, rows) == [1, ["Runs", "Runs/file", "Runs/one", "Runs/one/file"]]
    (work / "Runs").chmod(0o755)


def test_no_link_is_followed_to_a_directory_that_is_made_writable(home: Path) -> None:
    work, outside = home / "work", home / "outside"
    rows = known_in(work)
    (work / "Runs").rename(outside)
    (work / "Runs").symlink_to(outside)
    outside.chmod(0o555)
    assert cleaned(home, rows) == [1, ["Runs"]]
    assert outside.stat().st_mode & 0o777 == 0o555
    outside.chmod(0o755)


def test_a_file_system_that_is_mounted_in_it_is_kept(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = known_in(home / "work")

    def is_busy(name: bytes, **_: int) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy", name)

    monkeypatch.setattr(os, "rmdir", is_busy)
    assert cleaned(home, rows) == [3, ["Runs", "Runs/one"]]


def with_other_names(work: Path) -> list[tuple[bytes, Known]]:
    """Give a file two more names; returns the rows of all that is there then."""
    (work / "Runs" / "other").hardlink_to(work / "file")
    (work / "other").hardlink_to(work / "file")
    return known_in(work)


def test_all_names_of_a_file_go(home: Path) -> None:
    rows = with_other_names(home / "work")
    assert cleaned(home, rows) == [7, []]
    assert list((home / "work").iterdir()) == []


@pytest.mark.parametrize("how", ["written", "dated back", "mode", "attribute"])
def test_what_changes_between_two_names_of_a_file_is_kept(home: Path, how: str) -> None:
    """The first name is gone: what is written then stands under the others alone."""
    work = home / "work"
    rows = with_other_names(work)
    left = [how]

    def told(_: int) -> None:
        if left and not (work / "Runs" / "other").exists():
            edit(work / "file", left.pop())

    assert cleaned(home, rows, told) == [5, ["file", "other"]]
    is_edited = how in ("written", "dated back")
    assert (work / "other").read_bytes() == (b"mistaken" if is_edited else CONTENT)


def test_what_is_written_beside_the_unlink_of_another_name_is_kept(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = home / "work"
    rows = with_other_names(work)
    real, left = os.unlink, ["written"]

    def unlink(name: bytes, **places: int) -> None:
        real(name, **places)
        if left and not (work / "Runs" / "other").exists():
            edit(work / "file", left.pop())

    monkeypatch.setattr(os, "unlink", unlink)
    assert cleaned(home, rows) == [5, ["file", "other"]]
    assert (work / "other").read_bytes() == b"mistaken"


def edit(file: Path, how: str) -> None:
    before = file.stat()
    if how == "mode":
        file.chmod(0o600)
    elif how == "attribute":
        os.setxattr(file, "user.mine", b"1")
    else:
        file.write_bytes(b"mistaken")
    if how == "dated back":
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_an_edit_through_any_name_of_a_file_keeps_all_of_them(home: Path) -> None:
    work = home / "work"
    rows = with_other_names(work)
    (work / "Runs" / "other").write_bytes(b"mistaken")
    assert cleaned(home, rows) == [3, ["Runs", "Runs/other", "file", "other"]]


def test_cleaning_that_ended_between_two_names_of_a_file_is_finished(home: Path) -> None:
    work = home / "work"
    rows = with_other_names(work)
    (work / "Runs" / "other").unlink()
    assert cleaned(home, rows) == [6, []]


@pytest.mark.parametrize("how", ["dated back", "attribute"])
def test_what_changed_after_cleaning_ended_between_two_names_is_kept(home: Path, how: str) -> None:
    work = home / "work"
    rows = with_other_names(work)
    (work / "Runs" / "other").unlink()
    edit(work / "other", how)
    assert cleaned(home, rows) == [4, ["file", "other"]]


def test_a_link_that_was_renamed_goes(home: Path) -> None:
    """That changes its ctime, and nothing of it that OneData has."""
    link = home / "work" / "link"
    link.symlink_to("file")
    rows = known_in(home / "work")
    link.rename(home / "work" / "renamed")
    (home / "work" / "renamed").rename(link)
    assert cleaned(home, rows) == [6, []]


@pytest.mark.parametrize("mode", [0o755, 0o300])
def test_what_is_committed_meanwhile_is_kept(home: Path, mode: int) -> None:
    """A log that came since, or that no listing tells of, has what the database has not yet."""
    work = home / "work"
    database = work / "Runs" / "run.db"
    with closing(sqlite3.connect(database, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("CREATE TABLE t (v)")
    if os.geteuid() == 0:
        os.chown(database, NOBODY, NOBODY)
    content = database.read_bytes()
    entry = Entry(Kind.FILE, len(content), 1, 0o644, blake3(content).hexdigest())
    rows = dict(known_in(work)) | {b"Runs/run.db": Known(entry, stamp(database, Kind.FILE))}
    held: list[sqlite3.Connection] = []

    def commit(_: int = 0) -> None:
        if not held:
            held.append(sqlite3.connect(database, isolation_level=None))
            held[0].execute("INSERT INTO t VALUES ('mine')")

    def clean() -> object:
        index = Index(home / "index.sqlite")
        index.replace([(path, row.entry, row.stamp) for path, row in rows.items()])
        if mode != 0o755:
            commit()
            database.parent.chmod(mode)
        done = working_copy.clean(os.fsencode(work), index, home, commit)
        return [os.fsdecode(path) for path in done.kept]

    sides = [f"Runs/run.db{suffix}" for suffix in ("", "-shm", "-wal")]
    assert as_plain_user(clean) == ["Runs", *sides]
    database.parent.chmod(0o755)
    with closing(sqlite3.connect(database)) as db:
        assert db.execute("SELECT v FROM t").fetchall() == [("mine",)]
