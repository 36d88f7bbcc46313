"""`onesync scrub` mends in OneData what the working copy has a good copy of, and nothing else."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from onesync import inspect
from onesync.configuration import load
from onesync.core.chain import Head, Position
from onesync.inspect import find_damage, verify_folder
from onesync.intent import Intent
from onesync.replica.children import ChildrenReplica
from onesync.settings import Settings
from onesync.verify import Finding
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
    stored = (store / MIC).stat()
    two.pause()
    (two.work / MIC).chmod(0o600)  # which makes it no better
    os.utime(two.work / MIC)
    two.go_on()
    assert two.command("scrub").returncode == 3
    assert ((store / MIC).stat().st_ino, (store / MIC).stat().st_mtime_ns) == (
        stored.st_ino,
        stored.st_mtime_ns,
    )
    content = os.urandom(size)
    (two.work / MIC).write_bytes(content)
    assert two.flush() == 0
    assert two.command("scrub").returncode == 0
    assert (store / MIC).read_bytes() == content


def test_what_another_kind_of_thing_stands_in_the_way_of_is_not_said_to_be_sent(
    one: Node, store: Path
) -> None:
    shutil.rmtree(store / "Runs/000001_Import/extra")
    (store / "Runs/000001_Import/extra").write_bytes(b"of somebody else")
    assert "extra is a file in OneData now" in one.command("verify").stdout
    done = one.command("scrub")
    assert (done.returncode, done.stdout) == (3, "")
    assert "extra is a file in OneData now: not sent, for what stands at" in done.stderr
    assert f"{MIC} is missing: not sent, for what stands at" in done.stderr
    assert (store / "Runs/000001_Import/extra").read_bytes() == b"of somebody else"
    (store / "Runs/000001_Import/extra").unlink()
    assert one.flush() == 0
    assert one.command("scrub").returncode == 0
    assert one.command("verify", "--content").returncode == 0


def test_scrub_needs_the_daemon(nodes: list[Node]) -> None:
    done = nodes[0].command("scrub")
    assert done.returncode == 1
    assert "not running" in done.stderr


# -- beside a live project ------------------------------------------------------------------------


@pytest.fixture
def beside(one: Node, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], None]], None]:
    """Has something done each time that the manifest was read; it is told how often that was."""

    def begin(act: Callable[[int], None]) -> None:
        read, times = inspect._head, iter(range(1, 99))

        def then(replica: ChildrenReplica) -> Head:
            head = read(replica)
            act(next(times))
            return head

        monkeypatch.setattr(inspect, "_head", then)

    monkeypatch.setattr(inspect, "_PAUSES", (0.0,) * len(inspect._PAUSES))
    (one.work / "other").write_bytes(b"other" * 1000)
    assert one.flush() == 0
    return begin


def settings_of(node: Node) -> Settings:
    return load(node.config, None)


def damage(node: Node) -> list[list[tuple[bytes, str]]]:
    """Return what can be mended, what is lost and what never held still."""
    found = find_damage(settings_of(node), lambda *_: None, lambda _: None)
    return [[(finding.path, finding.text) for finding in part] for part in found]


def differences(node: Node) -> list[Finding]:
    return verify_folder(settings_of(node), True, lambda *_: None, lambda _: None)


def pushes(node: Node, only_at: int | None = None) -> Callable[[int], None]:
    """Return what changes, adds, moves and removes files, and waits until OneData has it."""

    def act(number: int) -> None:
        if only_at in (None, number):
            (node.work / "other").write_bytes(os.urandom(5000))
            (node.work / f"new{number}").write_bytes(b"new")
            (node.work / MIC).unlink(missing_ok=True)
            (node.work / "Runs/000001_Import/logs").mkdir(exist_ok=True)
            (node.work / "Runs/000001_Import/logs").rename(node.work / f"logs{number}")
            assert node.flush() == 0, node.log()

    return act


@pytest.mark.parametrize("at", [1, 2])
def test_what_is_pushed_or_removed_meanwhile_is_neither_damaged_nor_lost(
    one: Node, beside: Callable[[Callable[[int], None]], None], at: int
) -> None:
    (one.store / "project.sqlite").write_bytes(b"short")
    beside(pushes(one, at))
    assert damage(one) == [[(b"project.sqlite", damage_of(one, b"project.sqlite"))], [], []]


def damage_of(one: Node, path: bytes) -> str:
    size = (one.store / os.fsdecode(path)).stat().st_size
    found = next(f for f in differences(one) if f.path == path and f.where == "replica")
    assert found.text.startswith(f"has {size} of ")
    return found.text


def test_what_is_pushed_or_removed_meanwhile_is_no_difference(
    one: Node, beside: Callable[[Callable[[int], None]], None]
) -> None:
    beside(pushes(one, 1))
    assert differences(one) == []


def test_what_changes_whenever_it_is_looked_at_is_told_as_such(
    one: Node, beside: Callable[[Callable[[int], None]], None]
) -> None:
    looks: list[int] = []
    push = pushes(one)

    def act(number: int) -> None:
        looks.append(number)
        push(number)

    beside(act)
    mendable, lost, moving = damage(one)
    assert (mendable, lost) == ([], [])
    assert [path for path, _ in moving] == [b"other"]
    assert "in the middle of a change" in moving[0][1]
    assert len(looks) == 1 + len(inspect._PAUSES), "it does not look for ever"


def test_what_a_batch_under_way_changes_is_not_called_lost(
    one: Node, beside: Callable[[Callable[[int], None]], None]
) -> None:
    """It was replaced, and the checkpoint is yet to come."""
    other = one.store / "other"
    whole = other.read_bytes()
    intent = Intent(Position(99, 1), replace=[(b"other", b".onesync~E000099-000001~1")])
    note = one.store / os.fsdecode(intent.path)

    def act(number: int) -> None:
        if number == 1:
            note.write_bytes(intent.encode())
            other.unlink()
        elif number == 3:
            other.write_bytes(whole)
            note.unlink()

    beside(act)
    assert damage(one) == [[], [], []]


def test_a_scrub_that_finds_nothing_reads_the_manifest_once(
    one: Node, beside: Callable[[Callable[[int], None]], None]
) -> None:
    looks: list[int] = []
    beside(looks.append)
    assert damage(one) == [[], [], []]
    assert looks == [1]
