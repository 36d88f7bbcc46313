"""A node that lost its index: the claim tells alone that a deployment is there."""

from __future__ import annotations

import os
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest

from onesync.core.model import STATUS_FOLDER
from tests.node import Node

STATUS = os.fsdecode(STATUS_FOLDER)
ENDLESS = """
import time
import onesync.deploy
def compares_for_ever(root, scanner, tree, pool, advanced, damaged):
    while True:
        advanced(0, 1)
        time.sleep(0.01)
onesync.deploy.rebuild = compares_for_ever
"""
REFUSED = """
import onesync.deploy
from onesync.errors import {error}
def refuses(*arguments):
    raise {error}("a person must decide")
onesync.deploy.rebuild = refuses
"""


@pytest.fixture
def one(nodes: list[Node]) -> Node:
    """A node that died with unsent work, and lost its index."""
    one, _ = nodes
    one.deploy()
    (one.work / "file").write_bytes(b"old")
    assert one.flush() == 0, one.log()
    one.end(signal.SIGKILL)
    (one.work / "unsent").write_bytes(b"precious")
    for path in (one.home / "state").glob("index.sqlite*"):
        path.unlink()
    return one


def is_locked(store: Path) -> bool:
    return (store / STATUS / "lock").exists()


def is_told(node: Node, known: str, text: str) -> bool:
    """Whether the log has ``text`` after what it was ``known`` to tell."""
    return text in node.log().removeprefix(known)


def goes_on(node: Node, store: Path) -> None:
    """The deployment is still this node's, and brings what was not sent."""
    node.configure()
    node.deploy()
    assert node.end() == 0, node.log()
    assert (store / "unsent").read_bytes() == b"precious"
    assert not is_locked(store)


def test_a_stop_while_a_lost_index_is_made_anew_keeps_the_deployment(
    one: Node, store: Path
) -> None:
    for _ in range(2):
        known = one.log()
        one.start_after(ENDLESS)
        one.wait_until(partial(is_told, one, known, "index lost"))
        assert one.end() == 10, one.log()
        assert "goes on with the next start on this node" in one.log()
        assert is_locked(store)
    goes_on(one, store)


@pytest.mark.parametrize(("error", "code"), [("Halted", 13), ("ConfigurationError", 78)])
def test_a_refusal_while_a_lost_index_is_made_anew_keeps_the_deployment(
    one: Node, store: Path, error: str, code: int
) -> None:
    one.start_after(REFUSED.format(error=error))
    assert one.wait() == code, one.log()
    assert is_locked(store)
    goes_on(one, store)


def test_stops_while_the_lock_is_taken_again_keep_the_deployment(one: Node, store: Path) -> None:
    one.configure(lock__settle_seconds=60)
    for number in range(3):
        one.start()
        claim = store / STATUS / "epochs" / f"{number + 2:06}"
        one.wait_until(claim.exists)
        assert one.end() == 10, one.log()
        assert "goes on with the next start on this node" in one.log()
        assert is_locked(store)
    goes_on(one, store)


def test_an_only_copy_outlives_the_loss_of_the_index_under_its_old_name(
    one: Node, store: Path
) -> None:
    (one.work / "file").rename(one.work / "moved")
    (one.work / "file").write_bytes(b"another one")
    (store / "moved").mkdir()
    (store / "moved" / "theirs").touch()
    one.deploy()
    assert one.flush() != 0
    assert (store / "unsent").read_bytes() == b"precious"
    assert (store / "file").read_bytes() == b"old", "no other node can have it any more"
    (store / "moved" / "theirs").unlink()
    (store / "moved").rmdir()
    assert one.flush() == 0, one.log()
    assert (store / "moved").read_bytes() == b"old"
    assert (store / "file").read_bytes() == b"another one"
    assert one.end() == 0, one.log()


def lost(node: Node) -> None:
    """End a node, and lose its index."""
    node.end(signal.SIGKILL)
    for path in (node.home / "state").glob("index.sqlite*"):
        path.unlink()


def test_what_is_not_here_stays_in_onedata_also_where_that_reads_back_differently(
    nodes: list[Node], store: Path
) -> None:
    one = nodes[0]
    one.configure(undeploy__clean_working_dir=True)
    one.deploy()
    for number in range(20):
        (one.work / f"{number}").write_bytes(b"%d" % number)
    (one.work / "absent").write_bytes(b"first")
    assert one.flush() == 0, one.log()
    lost(one)
    # A disk that fails takes the index and a file with it; somebody changed that in OneData.
    (one.work / "absent").unlink()
    (store / "absent").write_bytes(b"uploaded since, and the only one")
    one.deploy()
    told = [p for p in one.status()["problems"] if p["kind"] == "absent"]
    assert told
    assert "They stay in OneData" in told[0]["text"]
    assert one.end() == 0, one.log()
    assert (store / "absent").read_bytes() == b"uploaded since, and the only one"


def test_what_is_not_here_stays_in_onedata_when_its_directory_is_removed(
    nodes: list[Node], store: Path
) -> None:
    one, two = nodes
    one.deploy()
    (one.work / "run").mkdir()
    for name in ("here", "absent"):
        (one.work / "run" / name).write_bytes(name.encode())
    assert one.flush() == 0, one.log()
    lost(one)
    (one.work / "run" / "absent").unlink()
    one.deploy()
    shutil.rmtree(one.work / "run")
    for _ in range(2):
        one.flush()
    assert not (store / "run" / "here").exists()
    assert (store / "run" / "absent").read_bytes() == b"absent", one.log()
    assert one.end() == 0, one.log()
    two.deploy()
    assert (two.work / "run" / "absent").read_bytes() == b"absent"
    assert two.end() == 0, two.log()


@pytest.mark.parametrize("is_restored", [True, False])
def test_what_came_damaged_is_known_again_or_sent_as_a_whole(
    nodes: list[Node], store: Path, is_restored: bool
) -> None:
    one, two = nodes
    one.deploy()
    (one.work / "stack.mrc").write_bytes(b"good")
    assert one.end() == 0, one.log()
    (store / "stack.mrc").write_bytes(b"\0\0\0\0")
    two.deploy()
    lost(two)
    if is_restored:
        (two.work / "stack.mrc").write_bytes(b"good")
    two.deploy()
    if not is_restored:
        (store / "stack.mrc").write_bytes(b"good")  # what was late came
        (two.work / "stack.mrc").chmod(0o600)
    assert two.flush() == (0 if is_restored else 3), two.log()
    assert (store / "stack.mrc").read_bytes() == b"good"
    assert two.end() == 0, two.log()
