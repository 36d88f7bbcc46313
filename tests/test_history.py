"""``onesync log``, ``show`` and ``find``: what happened to a folder, where a path of it stands."""

from __future__ import annotations

import re
import shutil

import pytest

from onesync.core.model import STATUS_FOLDER
from onesync.errors import Exit
from tests.node import Node

MANIFEST = f"{STATUS_FOLDER.decode()}/manifest"


def said(node: Node, *words: str) -> list[str]:
    answer = node.command(*words)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.splitlines()


@pytest.fixture
def one(nodes: list[Node]) -> Node:
    """A node with two checkpoints of its own: three files, then one renamed and one removed."""
    node = nodes[0]
    node.configure(push__exclude=["*.tmp"])
    node.deploy()
    for name in ("stays", "goes", "old name"):
        (node.work / name).write_bytes(b"12345")
    (node.work / "link").symlink_to("stays")
    assert node.flush() == 0, node.log()
    (node.work / "goes").unlink()
    (node.work / "old name").rename(node.work / "new\nname")
    assert node.flush() == 0, node.log()
    return node


def test_the_log_lists_deployments_and_checkpoints(one: Node) -> None:
    lines = said(one, "log")
    assert re.fullmatch(r"E000001 \S+ deployed: \S+ on \S+; not ended", lines[0])
    assert any(re.search(r"incremental: 3 files, 15 bytes, 1 directories", x) for x in lines)
    assert any("1 gone" in line and "1 renamed" in line for line in lines)
    assert one.end() == Exit.CLEAN, one.log()
    lines = said(one, "log")
    assert lines[0].endswith("; undeployed")
    assert " final: nothing" in lines[-1]


def test_a_torn_checkpoint_is_listed_as_such(one: Node) -> None:
    newest = max((one.store / MANIFEST).iterdir())
    newest.write_bytes(newest.read_bytes()[:-1])
    stem = newest.name.removesuffix(".jsonl.gz")
    assert said(one, "log")[-1] == f"{stem} cannot be read: it is torn or newer"
    refused = one.command("show", stem)
    assert refused.returncode == Exit.HALTED
    assert "torn" in refused.stderr


def test_a_checkpoint_shows_what_it_changed(one: Node) -> None:
    stems = [line.split()[0] for line in said(one, "log") if "renamed" in line]
    shown = said(one, "show", stems[0])
    assert sorted(shown) == ["- goes", "> old name -> new\\nname"]
    assert said(one, "show", f"{stems[0]}.jsonl.gz") == shown
    missing = one.command("show", "E000009-000009")
    assert missing.returncode == Exit.HALTED
    assert "onesync log" in missing.stderr


def test_a_path_is_found_on_every_side(one: Node) -> None:
    found = said(one, "find", "stays")
    assert found[:4] == [
        f"{side:12} file of 5 bytes" for side in ("here", "index", "checkpoint", "OneData")
    ]
    assert found[-1] == "OneData has it as it is here."
    assert said(one, "find", "goes")[-1] == "Nobody knows it."
    (one.store / "theirs").write_bytes(b"x")
    assert "Somebody else put it" in said(one, "find", "theirs")[-1]
    (one.work / "left.tmp").write_bytes(b"")
    assert "push.exclude" in said(one, "find", "left.tmp")[-1]
    (one.store / "stays").write_bytes(b"123")
    assert "has 3 bytes, and the newest checkpoint says 5" in said(one, "find", "stays")[-1]


def test_what_waits_is_said_to_wait(one: Node) -> None:
    one.pause()
    (one.work / "stays").write_bytes(b"changed")
    assert "not seen yet" in said(one, "find", "stays")[-1]  # the daemon says nothing
    one.go_on()
    one.configure(batch__settle_seconds=600, batch__max_delay_seconds=600)
    assert one.end() == Exit.CLEAN, one.log()
    one.deploy()
    assert one.flush() == 0, one.log()  # or the first scan takes it along
    (one.work / "stays").write_bytes(b"changed again")
    while said(one, "find", "stays")[-1] != "It changed here and waits to be pushed.":
        assert one.running(), one.log()


def test_a_problem_is_told_with_its_path(one: Node) -> None:
    (one.store / "taken").write_bytes(b"theirs")
    (one.work / "taken").write_bytes(b"mine")
    assert one.flush() == 3
    assert "onesync did not put there" in " ".join(said(one, "find", "taken"))


def test_nothing_is_deployed_here(one: Node, nodes: list[Node]) -> None:
    assert one.end() == Exit.CLEAN, one.log()
    shutil.rmtree(one.work)
    shutil.rmtree(one.home / "state")
    (one.home / "state").mkdir()
    one.work.mkdir()
    assert "Nothing is deployed here" in said(one, "find", "stays")[-1]


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../up", ".deployment_status_do_not_delete/x"])
def test_no_path_of_the_folder_is_refused(nodes: list[Node], path: str) -> None:
    refused = nodes[0].command("find", path)
    assert refused.returncode == Exit.CONFIGURATION
    assert "no path beneath" in refused.stderr
