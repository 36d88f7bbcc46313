"""What is renamed to a name that onesync keeps for itself is not deleted in OneData.

It cannot come under that name, and OneData has it nowhere else: it stays there under its old one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.node import SOON, Node

Act = Callable[[Path], None]


def in_place(work: Path) -> None:
    (work / "data").rename(work / ".onesync~data")
    (work / "run").rename(work / ".onesync~run")


def into_one(work: Path) -> None:
    (work / ".onesync~all").mkdir()
    (work / "data").rename(work / ".onesync~all" / "data")
    (work / "run").rename(work / ".onesync~all" / "run")


def into_the_status_folder(work: Path) -> None:
    folder = work / ".deployment_status_do_not_delete"
    folder.mkdir()
    (work / "data").rename(folder / "data")
    (work / "run").rename(folder / "run")


def by_a_link(work: Path) -> None:
    (work / ".onesync~data").hardlink_to(work / "data")
    (work / "data").unlink()
    (work / "run").rename(work / ".onesync~run")


@pytest.fixture
def node(nodes: list[Node]) -> Node:
    node = nodes[0]
    node.deploy()
    (node.work / "data").write_bytes(b"precious")
    (node.work / "run").mkdir()
    (node.work / "run" / "a").write_bytes(b"1")
    (node.work / "run" / "b").write_bytes(b"2")
    assert node.flush() == 0, node.log()
    return node


def batches_go_by(node: Node) -> None:
    """Let the next batches come: each carries out what the one before saw."""
    for number in range(3):
        path = f"passes {number}"
        (node.work / path).write_bytes(b"x")
        comes(node.store / path, b"x", node)
    time.sleep(0.5)


def comes(path: Path, content: bytes, node: Node) -> None:
    deadline = time.monotonic() + SOON
    while not path.exists() or path.read_bytes() != content:
        assert time.monotonic() < deadline, node.log()
        time.sleep(0.02)


@pytest.mark.parametrize("is_flushed", [False, True])
@pytest.mark.parametrize("act", [in_place, into_one, into_the_status_folder, by_a_link])
def test_the_old_name_stays(node: Node, act: Act, is_flushed: bool) -> None:
    act(node.work)
    if is_flushed:
        assert node.flush() == 3, node.log()
    batches_go_by(node)
    assert (node.store / "data").read_bytes() == b"precious"
    assert (node.store / "run" / "a").read_bytes() == b"1"
    assert any(p["kind"] == "reserved" for p in node.status()["problems"])


def test_what_comes_back_is_as_it_was(node: Node) -> None:
    in_place(node.work)
    batches_go_by(node)
    assert (node.store / "data").exists()
    (node.work / ".onesync~data").rename(node.work / "data")
    (node.work / ".onesync~run").rename(node.work / "other")
    comes(node.store / "other" / "a", b"1", node)
    assert node.flush() == 0, node.log()
    assert (node.store / "data").read_bytes() == b"precious"
    assert not (node.store / "run").exists()


def test_what_is_deleted_there_goes(node: Node) -> None:
    in_place(node.work)
    batches_go_by(node)
    (node.work / ".onesync~data").unlink()
    deadline = time.monotonic() + SOON
    while (node.store / "data").exists():
        assert time.monotonic() < deadline, node.log()
        time.sleep(0.05)
    assert (node.store / "run" / "a").exists()


def test_what_is_made_anew_in_its_place_takes_nothing_away(node: Node) -> None:
    """Of a run that is put aside and begun anew what it had before is only here."""
    in_place(node.work)
    (node.work / "run").mkdir()
    (node.work / "run" / "a").write_bytes(b"new")
    (node.work / "run" / "c").write_bytes(b"3")
    batches_go_by(node)
    assert node.flush() == 3, node.log()
    assert (node.store / "run" / "a").read_bytes() == b"1"
    assert (node.store / "run" / "b").read_bytes() == b"2"
    assert (node.store / "run" / "c").read_bytes() == b"3"
    (node.work / ".onesync~run").rename(node.work / "before")
    comes(node.store / "before" / "b", b"2", node)
    assert node.flush() == 3, "the other one has its name still"
    comes(node.store / "run" / "a", b"new", node)


def test_a_rename_while_the_node_is_off(node: Node) -> None:
    assert node.command("handover").returncode == 0, node.log()
    node.wait()
    into_one(node.work)
    node.deploy()
    batches_go_by(node)
    assert (node.store / "data").read_bytes() == b"precious"
    assert (node.store / "run" / "b").read_bytes() == b"2"
