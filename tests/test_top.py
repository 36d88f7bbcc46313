"""How far it is: the files on their way, and the bars of commands that take long."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from onesync.control import ask
from onesync.core.view import rows_of
from tests.node import SOON, Node
from tests.standin.mounted import Mounted
from tests.terminal import Terminal

pytestmark = pytest.mark.fuse

EVIL = b"evil \x1b[31m[red]\n\xff"


@pytest.fixture
def node(tmp_path: Path, mounted: Mounted) -> Iterator[Node]:
    """A node whose folder on a mount holds 30 files."""
    for number in range(30):
        (mounted.backing / "project" / f"{number:02}").write_bytes(b"x" * 1000)
    made = Node(tmp_path / "node", mounted.path / "project", mount__require_fuse=True)
    yield made
    if mounted.running():
        mounted.release()
    if made.running():
        made.end(9)


def until(condition: Callable[[], object], told: Callable[[], object]) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline, told()
        time.sleep(0.02)


def on_their_way(node: Node) -> list[dict[str, object]]:
    found = ask(node.home / "run" / "control.sock", "flights", SOON)["files"]
    assert isinstance(found, list)
    return found


def test_a_file_on_its_way_to_onedata_is_shown(node: Node, mounted: Mounted) -> None:
    node.deploy()
    assert on_their_way(node) == []
    mounted.hang_at("fsync", pattern="/.onesync~")
    node.pause()  # it is seen when it is whole
    (node.work / "big").write_bytes(b"x" * 3_000_000)
    node.go_on()
    until(lambda: [f for f in on_their_way(node) if f["moved"] == 3_000_000], node.log)
    (found,) = on_their_way(node)
    assert (found["path"], found["size"], found["is_fetched"]) == ("big", 3_000_000, False)
    shown = node.command("top", "--once")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("1 files on their way, other calls: ")
    assert shown.stdout.splitlines()[0].endswith("small ones: at most 64 at once")
    assert "to OneData" in shown.stdout
    assert "3.0 MB of 3.0 MB" in shown.stdout
    assert shown.stdout.split()[-1] == "big"
    mounted.release()
    assert node.flush() == 0, node.log()
    assert on_their_way(node) == []
    assert node.end() == 0, node.log()


def test_a_file_that_is_staged_in_is_shown(node: Node, mounted: Mounted) -> None:
    mounted.hang_at("read", pattern="/project/29$")
    node.start()
    until(lambda: node.running() and (node.home / "run" / "control.sock").exists(), node.log)
    until(lambda: [f["path"] for f in on_their_way(node)] == ["29"], node.log)
    assert on_their_way(node)[0]["is_fetched"]
    assert "from OneData" in node.command("top", "--once").stdout
    mounted.release()
    node.wait_for_phase("syncing")
    assert node.end() == 0, node.log()


def test_names_are_escaped_and_it_is_drawn_in_place(node: Node, mounted: Mounted) -> None:
    node.deploy()
    mounted.hang_at("fsync", pattern="onesync=1=evil")
    Path(os.fsdecode(os.fsencode(node.work) + b"/" + EVIL)).write_bytes(b"x")
    until(lambda: on_their_way(node), node.log)
    with Terminal(node, "top", "--interval", "0.1", columns=160) as terminal:
        until(lambda: "evil \\x1b[31m[red]\\n\\xff" in terminal.text(), terminal.raw)
        drawn = terminal.raw().count("evil")
        until(lambda: terminal.raw().count("evil") > drawn + 2, terminal.raw)
        assert terminal.text().count("evil") == 1, terminal.text()
        terminal.type(b"\x03")
        assert terminal.wait() == 0, terminal.raw()
    assert not terminal.hides_cursor()
    mounted.release()
    assert node.end() == 0, node.log()


def test_nobody_is_asked_where_nothing_runs(node: Node) -> None:
    refused = node.command("top", "--once")
    assert refused.returncode == 1
    assert "onesync is not running here" in refused.stderr


def test_a_flush_shows_how_much_is_left(node: Node, mounted: Mounted) -> None:
    node.configure(mount__require_fuse=True, batch__settle_seconds=3600)
    node.deploy()
    mounted.hang_at("fsync", pattern="new")
    (node.work / "new").write_bytes(b"x")
    until(lambda: node.status()["pending_paths"], node.log)
    with Terminal(node, "flush") as terminal:
        until(lambda: "flush" in terminal.text() and "0/" in terminal.text(), terminal.raw)
        mounted.release()
        assert terminal.wait() == 0, terminal.raw()
    assert terminal.text().strip() == "", "the bar goes"
    assert node.end() == 0, node.log()


@pytest.mark.parametrize("words", [("verify", "--content"), ("scrub",)])
def test_a_command_that_reads_all_shows_how_far_it_is(node: Node, words: tuple[str, ...]) -> None:
    node.deploy()
    assert node.flush() == 0, node.log()
    with Terminal(node, *words) as terminal:
        assert terminal.wait() == 0, terminal.raw()
    assert words[0] in terminal.raw()
    assert "30/30" in terminal.raw()
    assert re.search(r"[36]0\.0 kB, .* [kM]?B/s", terminal.raw())
    piped = node.command(*words)
    assert (piped.returncode, piped.stderr) == (0, "")
    assert piped.stdout in ("No differences.\n", "No damage.\n")
    assert node.end() == 0, node.log()


def test_rows_are_what_a_person_reads() -> None:
    file = {"path": "a\n", "is_fetched": True, "size": 2_000_000, "moved": 1_000_000, "seconds": 2}
    (row,) = rows_of([file])
    told = (row.way, row.path, row.moved, row.seconds, row.rate)
    assert told == ("from OneData", "a\\n", "1.0 MB of 2.0 MB", "2 s", "500.0 kB/s")
