"""Another OneData folder stands at the path than the one that this node's state is of."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from onesync.core.model import STATUS_FOLDER
from tests.node import Node, picture

STATUS = os.fsdecode(STATUS_FOLDER)


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    return made(tmp_path / "A")


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return made(tmp_path / "B")


@pytest.fixture
def one(tmp_path: Path, ours: Path) -> Iterator[Node]:
    """A node at whose path ``ours`` stands."""
    place = tmp_path / "store"
    place.symlink_to(ours)
    node = Node(tmp_path / "one", place)
    yield node
    if node.running():
        node.end(signal.SIGKILL)


@pytest.fixture
def two(tmp_path: Path, other: Path) -> Iterator[Node]:
    """The node of the folder ``other``."""
    node = Node(tmp_path / "two", other)
    yield node
    if node.running():
        node.end(signal.SIGKILL)


def made(path: Path) -> Path:
    path.mkdir()
    return path


def mount(node: Node, folder: Path) -> None:
    node.store.unlink()
    node.store.symlink_to(folder)


def folder_id(folder: Path) -> str:
    return str(json.loads((folder / STATUS / "folder.json").read_text())["folder_id"])


def heads(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / STATUS / "manifest").iterdir())


def died_with_unsent_work(node: Node) -> None:
    """Its last checkpoint is the third."""
    node.deploy()
    for name in ("file", "more"):
        (node.work / name).write_bytes(b"project A")
        assert node.flush() == 0, node.log()
    node.end(signal.SIGKILL)
    (node.work / "unsent").write_bytes(b"precious")


def lived(node: Node) -> None:
    """Its last checkpoint is the third."""
    node.deploy()
    (node.work / "file").write_bytes(b"project B")
    assert node.flush() == 0, node.log()
    assert node.end() == 0, node.log()


def lose_index(node: Node) -> None:
    for path in (node.home / "state").glob("index.sqlite*"):
        path.unlink()


def forget_folder(node: Node) -> None:
    """Leave the state as an earlier onesync did."""
    state = node.home / "state"
    claim = json.loads((state / "claim.json").read_text())
    del claim["folder_id"]
    (state / "claim.json").write_text(json.dumps(claim))
    with closing(sqlite3.connect(state / "index.sqlite")) as index, index:
        index.execute("DELETE FROM meta WHERE key = 'folder_id'")


def refuses(node: Node, ours: Path, other: Path) -> None:
    """It leaves the other folder alone, and goes on where it was as soon as its own is back."""
    mount(node, other)
    before = picture(other)
    for _ in range(2):
        assert node.refusal() == 13, node.log()
        assert f"folder {folder_id(ours)}" in node.log()
        assert f"is the folder {folder_id(other)}; nothing was changed" in node.log()
        assert picture(other) == before
    mount(node, ours)
    node.deploy()
    assert node.end() == 0, node.log()
    assert (ours / "unsent").read_bytes() == b"precious"
    assert not (ours / STATUS / "lock").exists()


def test_another_folder_at_a_restart_is_left_alone(
    one: Node, two: Node, ours: Path, other: Path
) -> None:
    died_with_unsent_work(one)
    lived(two)
    assert heads(ours)[-1] == heads(other)[-1]
    refuses(one, ours, other)


def test_another_folder_is_left_alone_where_the_index_was_lost(
    one: Node, two: Node, ours: Path, other: Path
) -> None:
    died_with_unsent_work(one)
    one.deploy()  # the first claim of a new folder is older than its name
    one.end(signal.SIGKILL)
    lived(two)
    lose_index(one)
    refuses(one, ours, other)


def test_a_state_of_an_earlier_onesync_is_bound_to_its_folder(
    one: Node, two: Node, ours: Path, other: Path
) -> None:
    died_with_unsent_work(one)
    forget_folder(one)
    one.deploy()
    assert one.flush() == 0
    one.end(signal.SIGKILL)
    lived(two)
    refuses(one, ours, other)


def test_a_bare_directory_is_not_the_folder_that_was_deployed(
    one: Node, ours: Path, other: Path
) -> None:
    died_with_unsent_work(one)
    mount(one, other)
    assert one.refusal() == 14, one.log()
    assert f"it is not the OneData folder {folder_id(ours)}" in one.log()
    assert list(other.iterdir()) == []
    mount(one, ours)
    one.deploy()
    assert one.end() == 0, one.log()
    assert (ours / "unsent").read_bytes() == b"precious"


def test_the_claim_tells_a_folder_that_lost_its_record(one: Node, ours: Path) -> None:
    died_with_unsent_work(one)
    known = folder_id(ours)
    (ours / STATUS / "folder.json").unlink()
    one.deploy()
    assert folder_id(ours) == known
    assert one.end() == 0, one.log()
    assert (ours / "unsent").read_bytes() == b"precious"


def test_a_cleaning_is_not_finished_beside_another_folder(
    one: Node, two: Node, ours: Path, other: Path
) -> None:
    one.configure(undeploy__clean_working_dir=True)
    one.start_dying("onesync.working_copy", "_Removal", "remove", 2)
    one.wait_for_phase("syncing")
    for number in range(5):
        (one.work / f"{number}").write_bytes(b"project A")
    assert one.flush() == 0, one.log()
    assert one.end() == -signal.SIGKILL
    two.deploy()
    (two.work / "file").write_bytes(b"project B")
    assert two.flush() == 0, two.log()
    mount(one, other)
    assert one.refusal() == 13, one.log()
    assert f"is the folder {folder_id(other)}; nothing was changed" in one.log()
    assert (ours / STATUS / "lock").exists()
    assert two.end() == 0, "its lock is still there"
    mount(one, ours)
    one.start()
    assert one.wait() == 0, one.log()
    assert not (ours / STATUS / "lock").exists()


def test_half_of_another_folder_is_not_staged_in_to_the_end(
    one: Node, two: Node, ours: Path, other: Path
) -> None:
    lived(two)
    one.deploy()
    (one.work / "only A").write_bytes(b"project A")
    assert one.flush() == 0
    assert one.end() == 0, one.log()
    assert heads(ours)[-1] == heads(other)[-1]
    (one.work / "only A").unlink()
    (ours / "second").write_bytes(b"project A")
    one.configure(push__workers=1)
    one.start_after(
        "import onesync.stagein\n"
        "from onesync.errors import StopRequested\n"
        "def stops(*_): raise StopRequested\n"
        "onesync.stagein.StageIn._finish = stops\n"
    )
    assert one.wait() == 0, one.log()
    assert (one.work / "only A").exists()
    mount(one, other)
    before = set(other.iterdir())
    assert one.refusal() == 13, one.log()
    assert "half of another folder" in one.log()
    assert set(other.iterdir()) == before
    for path in one.work.iterdir():
        path.unlink()
    one.deploy()
    assert {path.name for path in one.work.iterdir()} == {"file"}
    assert one.end() == 0, one.log()


def test_a_copy_of_the_folder_that_went_on_by_itself_is_not_taken_for_it(
    one: Node, two: Node, ours: Path, other: Path
) -> None:
    one.deploy()
    assert one.end() == 0, one.log()
    shutil.copytree(ours, other, dirs_exist_ok=True)
    died_with_unsent_work(one)
    lived(two)
    assert heads(ours)[-1] == heads(other)[-1]
    mount(one, other)
    assert one.refusal() == 13, one.log()
    assert "ended elsewhere" in one.log()
    assert {path.name for path in other.iterdir()} == {STATUS, "file"}
    assert (other / "file").read_bytes() == b"project B"


def test_after_a_clean_end_another_folder_is_welcome(
    one: Node, two: Node, ours: Path, other: Path
) -> None:
    lived(two)
    one.deploy()
    (one.work / "only A").write_bytes(b"project A")
    assert one.end() == 0, one.log()
    mount(one, other)
    one.deploy()
    assert picture(one.work) == picture(two.work)
    assert one.end() == 0, one.log()
    assert (ours / "only A").exists()
