"""The program as a process on a plain folder: deploy, sync, undeploy, and start again."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from pathlib import Path

import pytest

from tests.node import SOON, Node, picture


@pytest.fixture(autouse=True)
def _is_started_as_by_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process has an interpreter of its own, which imports what it runs."""
    monkeypatch.setattr(Node, "is_forked", False)


def fill(work: Path) -> None:
    """Make a small project with everything that a tree can hold today."""
    extra = work / "Runs" / "000001_Import" / "extra"
    extra.mkdir(parents=True)
    (work / "empty").mkdir(mode=0o750)
    (extra / "mic_1.mrc").write_bytes(os.urandom(300_000))
    (extra / "script.sh").write_bytes(b"#!/bin/sh\n")
    (extra / "script.sh").chmod(0o755)
    (extra / "DONE").mkdir()
    (extra / "DONE" / "mic_1.TXT").touch()
    os.utime(extra / "mic_1.mrc", ns=(1, 1_600_000_000_123_456_789))
    (extra / "movie.tif").symlink_to("/data/movies/a b.tif")
    (work / "input").symlink_to("Runs/000001_Import/extra")
    Path(os.fsdecode(os.fsencode(extra) + b"/odd \xff\nname")).write_bytes(b"x")
    with sqlite3.connect(work / "project.sqlite") as db:
        db.execute("CREATE TABLE Objects (id INTEGER)")
        db.executemany("INSERT INTO Objects VALUES (?)", [(n,) for n in range(100)])
    db.close()


def names_of_ours(store: Path) -> list[str]:
    """Return the paths with a name of ours below, also while a daemon is tidying them."""
    walked = os.walk(store)  # passes over what goes meanwhile, which rglob does not
    named = ((top, name) for top, *kinds in walked for names in kinds for name in names)
    return [os.path.join(top, name) for top, name in named if name.startswith(".onesync~")]


def test_a_second_node_gets_the_identical_tree(nodes: list[Node], store: Path) -> None:
    one, two = nodes
    one.deploy()
    fill(one.work)
    assert one.flush() == 0, one.log()
    assert (store / "Runs/000001_Import/extra/mic_1.mrc").stat().st_size == 300_000
    expected = picture(one.work)
    assert one.end() == 0, one.log()
    assert names_of_ours(store) == []
    assert not (store / ".deployment_status_do_not_delete" / "lock").exists()
    two.deploy()
    assert picture(two.work) == expected
    assert two.end() == 0, two.log()


def test_changes_renames_and_deletions_reach_the_replica(nodes: list[Node], store: Path) -> None:
    one, two = nodes
    one.deploy()
    fill(one.work)
    assert one.flush() == 0, one.log()
    extra = one.work / "Runs" / "000001_Import" / "extra"
    inode = (store / "Runs/000001_Import/extra/mic_1.mrc").stat().st_ino
    (extra / "script.sh").write_bytes(b"#!/bin/sh\necho changed\n")
    (extra / "DONE" / "mic_1.TXT").unlink()
    (extra / "movie.tif").unlink()
    (extra / "movie.tif").write_bytes(b"now a file")
    (one.work / "Runs").rename(one.work / "Runs2")
    assert one.flush() == 0, one.log()
    moved = store / "Runs2" / "000001_Import" / "extra"
    assert (moved / "script.sh").read_bytes() == b"#!/bin/sh\necho changed\n"
    assert (moved / "mic_1.mrc").stat().st_ino == inode, "renamed, not sent again"
    assert not (store / "Runs").exists()
    assert not (moved / "DONE" / "mic_1.TXT").exists()
    expected = picture(one.work)
    assert one.end() == 0, one.log()
    two.deploy()
    assert picture(two.work) == expected
    assert two.end() == 0, two.log()


def test_a_killed_daemon_goes_on_where_it_was(nodes: list[Node]) -> None:
    one, two = nodes
    one.deploy()
    fill(one.work)
    assert one.flush() == 0, one.log()
    one.end(signal.SIGKILL)
    (one.work / "while_down").write_bytes(b"precious")
    (one.work / "Runs/000001_Import/extra/script.sh").unlink()
    one.deploy()
    assert one.flush() == 0, one.log()
    expected = picture(one.work)
    assert one.end() == 0, one.log()
    two.deploy()
    assert picture(two.work) == expected
    assert two.end() == 0, two.log()


def test_a_folder_deployed_elsewhere_is_refused_with_the_story(nodes: list[Node]) -> None:
    one, two = nodes
    one.deploy()
    two.start()
    assert two.process is not None
    assert two.process.wait(30) == 11
    assert "holds it since" in two.log()
    assert list(two.work.iterdir()) == []
    assert one.end() == 0, one.log()


def test_handover_keeps_the_lock_and_goes_on(nodes: list[Node], store: Path) -> None:
    one, two = nodes
    one.deploy()
    fill(one.work)
    assert one.command("handover").returncode == 0
    assert one.process is not None
    assert one.process.wait(30) == 0, one.log()
    assert (store / ".deployment_status_do_not_delete" / "lock").exists()
    two.start()
    assert two.process is not None
    assert two.process.wait(30) == 11
    one.deploy()
    assert one.end() == 0, one.log()


def test_redeploying_after_a_clean_undeploy_keeps_the_copy(nodes: list[Node]) -> None:
    one, _ = nodes
    one.deploy()
    fill(one.work)
    assert one.end() == 0, one.log()
    expected = picture(one.work)
    inode = (one.work / "Runs/000001_Import/extra/mic_1.mrc").stat().st_ino
    one.deploy()
    assert picture(one.work) == expected
    assert (one.work / "Runs/000001_Import/extra/mic_1.mrc").stat().st_ino == inode
    assert one.end() == 0, one.log()


def test_a_foreign_working_copy_is_left_alone(nodes: list[Node]) -> None:
    one, _ = nodes
    (one.work / "mine").write_bytes(b"precious")
    one.start()
    assert one.process is not None
    assert one.process.wait(30) == 13
    assert (one.work / "mine").read_bytes() == b"precious"
    assert "not empty" in one.log()


def test_unlock_frees_the_folder_of_a_dead_node(tmp_path: Path, store: Path) -> None:
    times = {
        "mount__io_timeout_seconds": 2,
        "lock__beat_seconds": 0.5,
        "lock__warn_seconds": 1,
        "lock__suspend_seconds": 4.5,
        "lock__dead_seconds": 6,
    }
    dead = Node(tmp_path / "dead", store, **times)
    other = Node(tmp_path / "other", store, **times)
    dead.deploy()
    refused = other.command("unlock", "--epoch", "1")
    assert refused.returncode == 11, refused.stderr
    assert "alive" in refused.stderr
    dead.end(signal.SIGKILL)
    freed = other.command("unlock", "--epoch", "1")
    assert (freed.returncode, "epoch 1" in freed.stdout) == (0, True), freed.stderr
    other.deploy()
    assert other.end() == 0, other.log()


def test_a_flush_does_not_wait_for_the_pause_between_batches(nodes: list[Node]) -> None:
    one, _ = nodes
    one.configure(batch__min_interval_seconds=3600)
    one.deploy()
    for number in range(3):
        (one.work / f"file{number}").write_bytes(b"x")
        deadline = time.monotonic() + SOON
        while one.status()["pending_paths"] == 0:
            assert time.monotonic() < deadline, one.log()
        assert one.flush() == 0, one.log()
        assert (one.store / f"file{number}").read_bytes() == b"x"
    assert one.end() == 0, one.log()
