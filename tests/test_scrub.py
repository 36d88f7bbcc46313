"""`onesync scrub` mends in OneData what the working copy has a good copy of, and nothing else."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.node import Node, picture
from tests.test_program import fill

MIC = "Runs/000001_Import/extra/mic_1.mrc"


@pytest.fixture
def one(nodes: list[Node]) -> Node:
    nodes[0].configure(verify__content="none")  # or the daemon might find the damage first
    nodes[0].deploy()
    fill(nodes[0].work)
    assert nodes[0].flush() == 0
    return nodes[0]


def undeployed_and_restored(one: Node, two: Node) -> None:
    expected = picture(one.work)
    assert one.end() == 0, one.log()
    two.deploy()
    assert picture(two.work) == expected
    assert two.status()["problems"] == []
    assert two.end() == 0, two.log()


def test_nothing_is_sent_where_nothing_is_damaged(one: Node, store: Path) -> None:
    before = (store / MIC).stat()
    done = one.command("scrub")
    assert (done.returncode, done.stdout) == (0, "No damage.\n")
    assert (store / MIC).stat().st_ino == before.st_ino


def test_what_is_damaged_is_sent_anew(nodes: list[Node], one: Node, store: Path) -> None:
    size = (store / MIC).stat().st_size
    (store / MIC).write_bytes(bytes(size))
    (store / "project.sqlite").write_bytes((store / "project.sqlite").read_bytes()[:5000])
    shutil.rmtree(store / "Runs/000001_Import/extra/DONE")
    done = one.command("scrub")
    assert done.returncode == 0, done.stderr + one.log()
    assert done.stdout.count("sent anew") == 4
    assert one.command("verify", "--content").returncode == 0
    undeployed_and_restored(one, nodes[1])


def test_what_is_bad_on_both_sides_is_told_and_kept(
    nodes: list[Node], one: Node, store: Path
) -> None:
    assert one.end() == 0
    size = (store / MIC).stat().st_size
    (store / MIC).write_bytes(bytes(size))
    two = nodes[1]
    two.deploy()
    assert [p["kind"] for p in two.status()["problems"]] == ["changed_outside"]
    done = two.command("scrub")
    assert done.returncode == 3
    assert "has no good one" in done.stderr
    assert (store / MIC).read_bytes() == bytes(size)
    content = os.urandom(size)
    (two.work / MIC).write_bytes(content)
    assert two.flush() == 0
    assert two.command("scrub").returncode == 0
    assert (store / MIC).read_bytes() == content


def test_scrub_needs_the_daemon(nodes: list[Node]) -> None:
    done = nodes[0].command("scrub")
    assert done.returncode == 1
    assert "not running" in done.stderr
