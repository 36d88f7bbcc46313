"""Directories that somebody moves or deletes in OneData while the folder is deployed."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from onesync.core.model import STATUS_FOLDER
from onesync.core.names import unescape
from tests.node import Node
from tests.standin.mounted import Mounted

pytestmark = pytest.mark.fuse

TOLD = "OneData does not have it any more, it is sent again"


@pytest.fixture
def store(mounted: Mounted) -> Path:
    return mounted.path / "project"


@pytest.fixture
def one(nodes: list[Node]) -> Node:
    """A node with a nested directory that is in OneData."""
    node = nodes[0]
    node.configure(mount__require_fuse=True, undeploy__flush_retry_seconds=10)
    node.deploy()
    deep = node.work / "sub" / "deep"
    deep.mkdir(parents=True)
    (node.work / "elsewhere").write_bytes(b"elsewhere")
    for folder in (deep.parent, deep):
        (folder / "empty").mkdir()
        (folder / "first").write_bytes(b"first")
        (folder / "überall@").write_bytes(b"an odd name")
        (folder / "kept").write_bytes(b"kept")
        (folder / "large").write_bytes(os.urandom(3 << 20))
        (folder / "link").symlink_to("first")
        commit(folder / "rows.sqlite", 1)
    assert node.flush() == 0, node.log()
    return node


def commit(database: Path, row: int) -> None:
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS items (name TEXT)")
        connection.execute("INSERT INTO items VALUES (?)", (f"row {row}",))
        connection.commit()


def held_in(top: Path) -> dict[str, bytes | None]:
    """Return the files with their bytes, and the directories, but for what is onesync's own."""
    status = os.fsdecode(STATUS_FOLDER)
    paths = {path.relative_to(top): path for path in top.rglob("*") if not path.is_symlink()}
    return {
        str(place.with_name(own_name(place.name))): path.read_bytes() if path.is_file() else None
        for place, path in paths.items()
        if place.parts[0] != status
    }


def own_name(stored: str) -> str:
    return os.fsdecode(unescape(os.fsencode(stored)) or os.fsencode(stored))


def undeployed_as_it_is(node: Node, mounted: Mounted) -> None:
    expected = held_in(node.work)
    assert node.flush() == 0, node.log()
    assert held_in(mounted.path / "project") == expected
    assert node.status()["problems"] == []
    assert node.end() == 0, node.log()
    assert held_in(mounted.path / "project") == expected
    assert "changes all the time" not in node.log()


# -- what is done about it -------------------------------------------------------------------------


def deleted(folder: Path, _: Path) -> None:
    shutil.rmtree(folder)


def moved_out(folder: Path, outside: Path) -> None:
    folder.rename(outside / folder.name)


def new_file(folder: Path) -> None:
    (folder / "new").write_bytes(b"new")


def new_directory(folder: Path) -> None:
    (folder / "made" / "within").mkdir(parents=True)
    (folder / "made" / "within" / "new").write_bytes(b"new")


def deletion(folder: Path) -> None:
    (folder / "first").unlink()


def deletion_of_a_directory(folder: Path) -> None:
    (folder / "empty").rmdir()


def deletion_and_new_file(folder: Path) -> None:
    deletion(folder)
    new_file(folder)


def rename_into_it(folder: Path) -> None:
    (folder.parents[folder.name == "deep"] / "elsewhere").rename(folder / "came")


def rename_within_it(folder: Path) -> None:
    (folder / "first").rename(folder / "second")


def rename_of_it(folder: Path) -> None:
    folder.rename(folder.with_name("renamed"))


def change(folder: Path) -> None:
    (folder / "first").write_bytes(b"changed")


def the_same_again(folder: Path) -> None:
    (folder / "first").write_bytes(b"first")


def growth(folder: Path) -> None:
    with (folder / "large").open("ab") as file:
        file.write(b"more")


def change_inside(folder: Path) -> None:
    with (folder / "large").open("r+b") as file:
        file.seek(1 << 20)
        file.write(b"other")


def row(folder: Path) -> None:
    commit(folder / "rows.sqlite", 2)


ACTS = [
    new_file,
    new_directory,
    deletion,
    deletion_of_a_directory,
    deletion_and_new_file,
    rename_into_it,
    rename_within_it,
    rename_of_it,
    change,
    growth,
    change_inside,
    row,
]


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("place", ["sub", "sub/deep"])
@pytest.mark.parametrize("lose", [deleted, moved_out])
def test_what_is_beneath_is_sent_again(
    one: Node,
    mounted: Mounted,
    lose: Callable[[Path, Path], None],
    place: str,
    act: Callable[[Path], None],
) -> None:
    outside = mounted.path / "outside"
    outside.mkdir()
    lose(one.store / place, outside)
    before = held_in(outside)
    act(one.work / place)
    undeployed_as_it_is(one, mounted)
    assert held_in(outside) == before, "what is outside of the folder is nobody's of ours"
    assert one.log().count(TOLD) == 1


def test_an_empty_directory_is_made_again(one: Node, mounted: Mounted) -> None:
    (one.store / "sub" / "empty").rmdir()
    new_file(one.work / "sub" / "empty")
    undeployed_as_it_is(one, mounted)


def test_what_is_above_is_made_again(one: Node, mounted: Mounted) -> None:
    shutil.rmtree(one.store / "sub")
    new_file(one.work / "sub" / "deep")
    undeployed_as_it_is(one, mounted)
    assert one.log().count(TOLD) == 1


def test_the_next_node_has_it(nodes: list[Node], one: Node, mounted: Mounted) -> None:
    """Of what was deleted here meanwhile, too, the manifest says nothing any more."""
    shutil.rmtree(one.store / "sub")
    shutil.rmtree(one.work / "sub" / "deep")
    deletion_and_new_file(one.work / "sub")
    undeployed_as_it_is(one, mounted)
    two = nodes[1]
    two.deploy()
    assert held_in(two.work) == held_in(one.work)
    assert two.status()["problems"] == []
    assert two.end() == 0, two.log()


def test_it_is_told_where_something_else_stands_there(one: Node, mounted: Mounted) -> None:
    shutil.rmtree(one.store / "sub")
    (one.store / "sub").write_bytes(b"somebody's")
    new_file(one.work / "sub")
    (one.work / "other").write_bytes(b"other")
    assert one.flush() == 3, one.log()
    assert [p["kind"] for p in one.status()["problems"]] == ["occupied"]
    kept = {"sub": b"somebody's", "other": b"other", "elsewhere": b"elsewhere"}
    assert held_in(one.store) == kept
    (one.store / "sub").unlink()
    undeployed_as_it_is(one, mounted)


@pytest.mark.parametrize("stands", ["a file", "a link"])
def test_a_stop_ends_where_something_else_stands_there(
    one: Node, mounted: Mounted, stands: str
) -> None:
    shutil.rmtree(one.store / "sub")
    stored = mounted.backing / "project" / "sub"
    if stands == "a file":
        stored.write_bytes(b"somebody's")
    else:
        stored.symlink_to("elsewhere")
    deletion_and_new_file(one.work / "sub")
    change_inside(one.work / "sub")
    assert one.end() == 0, one.log()
    assert [p["kind"] for p in one.status()["problems"]] == ["occupied"]
    assert stored.is_symlink() == (stands == "a link")
    assert stored.read_bytes() in (b"somebody's", b"elsewhere")


def test_it_comes_by_itself(one: Node) -> None:
    shutil.rmtree(one.store / "sub")
    new_file(one.work / "sub" / "deep")
    one.wait_until((one.store / "sub" / "deep" / "new").exists)
    one.wait_until(lambda: one.status()["pending_paths"] == 0)
    assert held_in(one.store) == held_in(one.work)
    assert one.status()["phase"] == "syncing"


def test_it_comes_after_a_death(one: Node, mounted: Mounted) -> None:
    one.end(signal.SIGKILL)
    shutil.rmtree(one.store / "sub")
    new_file(one.work / "sub" / "deep")
    one.deploy()
    undeployed_as_it_is(one, mounted)


def test_a_new_version_that_travels_there_begins_anew(one: Node, mounted: Mounted) -> None:
    limit: dict[str, object] = {"push__bandwidth_limit": 1_000_000, "push__round_seconds": 0.5}
    one.end(signal.SIGKILL)
    one.configure(mount__require_fuse=True, undeploy__flush_retry_seconds=10, **limit)
    one.deploy()
    (one.work / "sub" / "large").write_bytes(os.urandom(3 << 20))
    one.wait_until(lambda: [p["kind"] for p in one.status()["problems"]] == ["behind"])
    moved_out(one.store / "sub", mounted.path)
    undeployed_as_it_is(one, mounted)
    assert one.log().count(TOLD) == 1


def test_a_large_file_alone_is_sent_again(one: Node, mounted: Mounted) -> None:
    (one.store / "sub" / "large").unlink()
    growth(one.work / "sub")
    undeployed_as_it_is(one, mounted)


@pytest.mark.parametrize("act", [new_file, the_same_again])
def test_what_was_missing_at_the_deployment_is_made_again(
    nodes: list[Node], one: Node, mounted: Mounted, act: Callable[[Path], None]
) -> None:
    assert one.end() == 0, one.log()
    shutil.rmtree(one.store / "sub" / "deep")
    two = nodes[1]
    two.configure(mount__require_fuse=True, undeploy__flush_retry_seconds=10)
    two.deploy()
    (two.work / "sub" / "deep").mkdir(exist_ok=True)
    act(two.work / "sub" / "deep")
    assert two.flush() == 3, "it tells what is still missing"
    assert held_in(two.store) == held_in(two.work), two.log()
    assert two.end() == 0, two.log()


# -- while a batch is under way --------------------------------------------------------------------


@pytest.mark.parametrize("is_replaced", [False, True], ids=["moved out", "replaced"])
def test_what_goes_to_a_directory_while_it_is_moved_out_is_not_taken_for_pushed(
    one: Node, mounted: Mounted, is_replaced: bool
) -> None:
    outside = mounted.path / "outside"
    outside.mkdir()
    stored = mounted.backing / "project" / "sub"
    one.pause()
    (one.work / "sub" / "empty" / "new").write_bytes(b"new")
    (one.work / "sub" / "deep" / "slow").write_bytes(b"slow")
    mounted.delay_at("create", 3.0, pattern="slow")
    one.go_on()
    one.wait_until(lambda: (stored / "empty" / "new").exists())
    (one.store / "sub" / "empty").rename(outside / "empty")
    if is_replaced:
        (one.store / "sub" / "empty").mkdir()
    assert not (stored / "deep" / "slow").exists(), "the batch is not under way any more"
    one.wait_until(lambda: (stored / "empty" / "new").exists())
    undeployed_as_it_is(one, mounted)
