"""The program on a mount that loses bytes, runs full, goes, comes back, and is another one."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from onesync.core.model import STATUS_FOLDER
from onesync.replica.folder import FolderReplica
from tests.node import Node, picture
from tests.standin.mounted import Mounted
from tests.test_acts import metrics
from tests.test_program import names_of_ours
from tests.test_prometheus import free_port

pytestmark = pytest.mark.fuse

CONTENT = b"precious" * 1000
BUFFER = 1 << 20
QUICKLY_DEAD = {
    "mount__io_timeout_seconds": 2,
    "lock__beat_seconds": 0.5,
    "lock__warn_seconds": 1,
    "lock__suspend_seconds": 4.5,
    "lock__dead_seconds": 6,
}


@pytest.fixture
def store(mounted: Mounted) -> Path:
    return mounted.path / "project"


@pytest.fixture
def one(nodes: list[Node]) -> Node:
    node = nodes[0]
    node.configure(mount__require_fuse=True, mount__io_timeout_seconds=5)
    return node


def flushed(node: Node) -> None:
    """Flush until it succeeds: errors may come first."""
    node.wait_until(lambda: node.flush() == 0)


def troubles(node: Node) -> list[str]:
    """The kinds of what holds everything up, as the status tells them."""
    found = [p for p in node.status()["problems"] if not p["path"]]
    assert all(p["text"].strip() for p in found)
    return [p["kind"] for p in found]


def is_up(node: Node) -> bool:
    mount: dict[str, Any] = node.status()["mount"]
    return bool(mount["up"])


def silent_seconds(node: Node) -> float:
    found = re.search(r"^onesync_remote_silent_seconds (.+)$", metrics(node), re.MULTILINE)
    assert found is not None
    return float(found[1])


def unverified(node: Node) -> int:
    """How many files are not known to have arrived."""
    with closing(sqlite3.connect(node.home / "state" / "index.sqlite")) as index:
        query = "SELECT count(*) FROM unverified WHERE is_read >= 0"
        return int(index.execute(query).fetchone()[0])


def lose(mounted: Mounted, node: Node, name: str, content: bytes, place: str = "") -> None:
    """Push a new file whose bytes the client drops silently; every call succeeds.

    ``place`` is in the name under which it travels, where that is not its own.
    """
    drop(mounted, node, name, content, place or name)
    node.wait_until(lambda: node.status()["pending_paths"] == 0)
    mounted.buffer(0)


def drop(mounted: Mounted, node: Node, name: str, content: bytes, place: str) -> None:
    mounted.buffer(BUFFER)
    mounted.hang_at("fsync", pattern=place)
    mounted.start_log()
    (node.work / name).write_bytes(content)
    # The file is there, its bytes still are in the buffer: it hangs just before they are stored.
    node.wait_until(
        lambda: [c for c in mounted.log() if c.operation == "fsync" and place in c.path]
    )
    mounted.stop_log()
    mounted.lose_connection(keep_sizes=True)
    mounted.release()


@pytest.mark.parametrize("operation", ["mkdir", "create"])
def test_after_a_connection_error_lost_bytes_are_found_and_sent_anew(
    one: Node, mounted: Mounted, operation: str
) -> None:
    one.deploy()
    lose(mounted, one, "file", CONTENT)
    stored = mounted.backing / "project" / "file"
    assert stored.read_bytes() != CONTENT, "nobody noticed yet"
    mounted.fail(operation, errno.ETIMEDOUT, pattern="other")
    (one.work / "other").mkdir()
    (one.work / "other" / "file").write_bytes(b"x")
    flushed(one)
    assert stored.read_bytes() == CONTENT
    assert "OneData does not hold what was pushed" in one.log()
    assert one.end() == 0, one.log()
    assert names_of_ours(mounted.backing) == []


@pytest.mark.parametrize("ends", [False, True])
def test_after_a_connection_error_what_was_only_believed_is_read_back(
    one: Node, mounted: Mounted, ends: bool
) -> None:
    one.deploy()
    lose(mounted, one, "file", CONTENT)
    stored = mounted.backing / "project" / "file"
    one.wait_until(lambda: unverified(one) == 0)
    assert stored.read_bytes() != CONTENT, "the mount cannot tell, and nobody noticed"
    mounted.fail("mkdir", errno.ETIMEDOUT, pattern="other")
    (one.work / "other").mkdir()
    (one.work / "other" / "file").write_bytes(b"x")
    if not ends:
        one.wait_until(lambda: stored.exists() and stored.read_bytes() == CONTENT)
    assert one.end() == 0, one.log()
    assert stored.read_bytes() == CONTENT
    assert (mounted.backing / "project" / "other" / "file").read_bytes() == b"x"
    assert names_of_ours(mounted.backing) == []


def test_lost_bytes_are_found_at_the_next_start(one: Node, mounted: Mounted) -> None:
    one.deploy()
    lose(mounted, one, "file", CONTENT)
    one.end(signal.SIGKILL)
    stored = mounted.backing / "project" / "file"
    assert stored.read_bytes() != CONTENT
    one.deploy()
    one.wait_until(lambda: stored.exists() and stored.read_bytes() == CONTENT)
    assert one.end() == 0, one.log()


def test_a_database_is_read_back_without_any_error(
    one: Node, mounted: Mounted, tmp_path: Path
) -> None:
    one.deploy()
    # Outside of the working copy: the round that verifies it would begin a long pause.
    with sqlite3.connect(tmp_path / "source") as db:
        db.execute("CREATE TABLE Objects (id INTEGER)")
        db.executemany("INSERT INTO Objects VALUES (?)", [(n,) for n in range(1000)])
    db.close()
    content = (tmp_path / "source").read_bytes()
    lose(mounted, one, "project.sqlite", content, ".onesync~")
    stored = mounted.backing / "project" / "project.sqlite"
    assert stored.read_bytes() != content, "nobody noticed yet"
    one.wait_until(lambda: stored.exists() and stored.read_bytes() == content)
    assert one.end() == 0, one.log()


def test_undeploy_finds_what_was_lost(one: Node, mounted: Mounted) -> None:
    one.configure(mount__require_fuse=True, verify__content="all")
    one.deploy()
    lose(mounted, one, "file", CONTENT)
    assert one.end() == 0, one.log()
    assert (mounted.backing / "project" / "file").read_bytes() == CONTENT


@pytest.mark.parametrize("profile", ["18.02", "21.02"])
def test_undeploy_waits_until_onedata_says_that_it_has_it_all(tmp_path: Path, profile: str) -> None:
    with Mounted(tmp_path / "onedata", profile=profile) as mounted:
        (mounted.backing / "project").mkdir()
        node = Node(tmp_path / "node", mounted.path / "project")
        mounted.lag(8)
        node.deploy()
        for name in ("one", "two"):
            (node.work / name).write_bytes(CONTENT)
        flushed(node)
        mounted.start_log()
        assert node.end() == 0, node.log()
        calls = mounted.log()
    asked = [c for c in calls if c.arguments.get("name") == "org.onedata.replication_progress"]
    # It was not there when it was asked for first, and nothing was read back instead.
    assert all(len([c for c in asked if c.path == f"/project/{n}"]) > 1 for n in ("one", "two"))
    assert not [c for c in calls if c.operation == "read" and "deployment_status" not in c.path]
    released = next(c for c in calls if c.operation == "unlink" and c.path.endswith("/lock"))
    assert asked[-1].number < released.number


def test_what_is_written_while_the_final_flush_waits_for_onedata_comes_too(tmp_path: Path) -> None:
    with Mounted(tmp_path / "onedata", profile="21.02") as mounted:
        (mounted.backing / "project").mkdir()
        one, two = (Node(tmp_path / name, mounted.path / "project") for name in ("one", "two"))
        mounted.lag(5)
        one.deploy()
        (one.work / "early").write_bytes(CONTENT)
        flushed(one)
        mounted.start_log()
        assert one.process is not None
        one.process.terminate()
        one.wait_until(lambda: any("replication" in str(c.arguments) for c in mounted.log()))
        (one.work / "late").write_bytes(CONTENT)
        assert one.wait() == 0, one.log()
        two.deploy()
        assert picture(two.work) == picture(one.work)
        assert two.end() == 0, two.log()


def test_a_final_flush_of_what_never_rests_does_not_claim_to_be_one(nodes: list[Node]) -> None:
    one, two = nodes
    one.configure(undeploy__flush_retry_seconds=1)
    one.deploy()
    over = threading.Event()

    def write() -> None:
        number = 0
        while not over.wait(0.002):
            (one.work / f"file{number}").write_bytes(b"%d" % number)
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        one.wait_until(lambda: (one.store / "file3").exists())
        assert one.end() == 10, one.log()
    finally:
        over.set()
        writer.join()
    assert "changes all the time" in one.log()
    one.deploy()
    assert one.end() == 0, one.log()
    two.deploy()
    assert picture(two.work) == picture(one.work)
    assert two.end() == 0, two.log()


@pytest.mark.parametrize("size", [8000, 8 << 20], ids=["replaced", "patched"])
def test_no_version_goes_before_its_successor_is_safe(tmp_path: Path, size: int) -> None:
    """The client drops the new bytes, every call succeeds, and the node is lost for good."""
    with Mounted(tmp_path / "onedata", profile="21.02") as mounted:
        (mounted.backing / "project").mkdir()
        one, two = (Node(tmp_path / name, mounted.path / "project") for name in ("one", "two"))
        for node in (one, two):
            node.configure(**QUICKLY_DEAD)
        one.deploy()
        old = os.urandom(size)
        (one.work / "file").write_bytes(old)
        flushed(one)
        one.wait_until(lambda: not unverified(one))
        new = os.urandom(4000) + old[4000:]
        drop(mounted, one, "file", new, ".onesync~" if size < 1 << 20 else "project/file")
        mounted.start_log()
        is_asked = "org.onedata.replication_progress"
        one.wait_until(lambda: is_asked in {c.arguments.get("name") for c in mounted.log()})
        one.end(signal.SIGKILL)
        mounted.buffer(0)
        assert two.command("unlock", "--epoch", "1").returncode == 0
        two.deploy()
        assert (two.work / "file").read_bytes() == old
        assert two.status()["problems"] == []
        assert two.end() == 0, two.log()


@pytest.mark.parametrize("told_at", ["write", "fsync", "close"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_space_loses_nothing_and_goes_on_by_itself(
    one: Node, mounted: Mounted, told_at: str, number: int
) -> None:
    one.deploy()
    (one.work / "old").write_bytes(b"old")
    flushed(one)
    mounted.quota(100_000, number, at=told_at)
    (one.work / "old").write_bytes(b"newer and longer")
    (one.work / "large").write_bytes(os.urandom(300_000))
    (one.work / "removed").write_bytes(b"x")
    one.wait_for_phase("backing_off")
    assert troubles(one) == [errno.errorcode[number]]
    assert "Raise the quota" in one.status()["problems"][0]["text"]
    assert one.status()["pending_paths"] > 0
    assert is_up(one), "it answers: it is full, not gone"
    (one.work / "removed").unlink()
    mounted.quota(None)
    expected = picture(one.work)
    one.wait_until(lambda: one.status()["pending_paths"] == 0)
    assert troubles(one) == []
    assert (mounted.backing / "project" / "large").stat().st_size == 300_000
    assert one.end() == 0, one.log()
    assert names_of_ours(mounted.backing) == []
    left = {os.fsdecode(path) for path in picture(mounted.backing / "project")}
    assert {p for p in left if not p.startswith(".")} == set(map(os.fsdecode, expected))


def used(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("number", "told_at"),
    [(errno.ENOSPC, "write"), (errno.EDQUOT, "fsync"), (errno.EDQUOT, "close")],
)
def test_what_is_deleted_makes_room_in_a_full_space(
    one: Node, mounted: Mounted, number: int, told_at: str
) -> None:
    project = mounted.backing / "project"
    one.deploy()
    (one.work / "Runs" / "one").mkdir(parents=True)
    for name in ("first", "second"):
        (one.work / "Runs" / "one" / name).write_bytes(os.urandom(150_000))
    (one.work / "kept").write_bytes(os.urandom(150_000))
    flushed(one)
    mounted.quota(used(mounted.backing) + 60_000, number, at=told_at)
    content = os.urandom(290_000)
    (one.work / "large").write_bytes(content)
    (one.work / "kept").rename(one.work / "renamed")
    one.wait_for_phase("backing_off")
    assert troubles(one) == [errno.errorcode[number]]
    assert "delete something here" in one.status()["problems"][0]["text"]
    shutil.rmtree(one.work / "Runs")
    # Nobody raises the quota: what the user deleted is what lets the rest go on.
    one.wait_until(lambda: one.status()["pending_paths"] == 0 and (project / "renamed").exists())
    assert "deletions made room" in one.log()
    assert troubles(one) == []
    assert (project / "large").read_bytes() == content
    assert not (project / "Runs").exists()
    assert one.end() == 0, one.log()
    assert names_of_ours(mounted.backing) == []
    stored, work = (picture(folder) for folder in (project, one.work))
    assert {p: v[:2] for p, v in stored.items() if not p.startswith(STATUS_FOLDER)} == {
        p: v[:2] for p, v in work.items()
    }


def test_what_only_has_a_name_of_our_own_makes_no_room(one: Node, mounted: Mounted) -> None:
    project = mounted.backing / "project"
    one.deploy()
    (one.work / "aside").mkdir()
    for name in ("removed", "data", "aside/data"):
        (one.work / name).write_bytes(os.urandom(150_000))
    flushed(one)
    mounted.quota(used(mounted.backing) + 60_000, errno.ENOSPC, at="write")
    (one.work / "large").write_bytes(os.urandom(190_000))
    one.wait_for_phase("backing_off")
    (one.work / "data").rename(one.work / ".onesync~data")
    (one.work / "aside").rename(one.work / ".onesync~aside")
    (one.work / "removed").unlink()
    one.wait_until(lambda: (project / "large").exists() and one.status()["pending_paths"] == 0)
    assert "deletions made room" in one.log()
    assert not (project / "removed").exists()
    for name in ("data", "aside/data"):
        content = (one.work / f".onesync~{name}").read_bytes()
        assert (project / name).read_bytes() == content, "it is nowhere else"


def test_a_mount_that_became_read_only_is_waited_for(one: Node, mounted: Mounted) -> None:
    one.deploy()
    mounted.read_only()
    (one.work / "file").write_bytes(CONTENT)
    one.wait_for_phase("backing_off")
    assert troubles(one) == ["EROFS"]
    mounted.read_only(False)
    one.wait_until(lambda: one.status()["pending_paths"] == 0)
    assert (mounted.backing / "project" / "file").read_bytes() == CONTENT
    assert one.end() == 0, one.log()


def test_a_name_that_onedata_refuses_is_a_problem_of_its_own(one: Node, mounted: Mounted) -> None:
    one.deploy()
    mounted.fail("create", errno.EINVAL, times=-1, pattern="odd")
    (one.work / "odd").write_bytes(b"x")
    (one.work / "good").write_bytes(b"x")
    assert one.flush() == 3, one.log()
    assert [(p["path"], p["kind"]) for p in one.status()["problems"]] == [("odd", "name_refused")]
    assert (mounted.backing / "project" / "good").exists()
    assert not (mounted.backing / "project" / "odd").exists()
    mounted.clear()
    assert one.end() == 0, one.log()
    assert (mounted.backing / "project" / "odd").exists(), "the last look takes it along"


def unmount(mounted: Mounted) -> None:
    subprocess.run(["fusermount3", "-uz", str(mounted.path)], check=True)


def test_nothing_is_written_into_a_bare_directory(one: Node, mounted: Mounted) -> None:
    # Beats go on: the lock file that is not there either must not be taken for deleted.
    one.configure(mount__require_fuse=True, mount__io_timeout_seconds=2)
    one.deploy()
    (one.work / "before").write_bytes(b"x")
    flushed(one)
    unmount(mounted)
    bare = mounted.path / "project"
    bare.mkdir()
    (one.work / "file").write_bytes(CONTENT)
    one.wait_for_phase("backing_off")
    one.wait_until(lambda: "heartbeat not confirmed" in one.log())
    assert not is_up(one)
    assert troubles(one) == ["MountNotThere"]
    assert list(bare.iterdir()) == []
    assert one.running()
    bare.rmdir()
    mounted.stop()
    mounted.start()
    flushed(one)
    assert (mounted.backing / "project" / "file").read_bytes() == CONTENT
    assert one.end() == 0, one.log()


def test_a_bare_directory_in_the_middle_of_a_batch_gets_nothing(
    one: Node, mounted: Mounted
) -> None:
    one.configure(mount__require_fuse=False, mount__io_timeout_seconds=5)
    one.deploy()
    for number in range(20):
        (one.work / f"{number}").mkdir()
        (one.work / f"{number}" / "file").write_bytes(CONTENT)
    mounted.hang_at("create", pattern="19/file")
    one.wait_until((mounted.backing / "project" / "1" / "file").exists)
    unmount(mounted)
    bare = mounted.path / "project"
    bare.mkdir()
    one.wait_for_phase("backing_off")
    assert list(bare.iterdir()) == []
    mounted.release()
    bare.rmdir()
    mounted.stop()
    mounted.start()
    flushed(one)
    assert one.end() == 0, one.log()
    assert list(mounted.backing.rglob("file")) != []
    stored = {p.read_bytes() for p in (mounted.backing / "project").glob("*/file")}
    assert stored == {CONTENT}


def test_a_call_that_does_not_answer_is_told_before_it_is_given_up(
    one: Node, mounted: Mounted
) -> None:
    listen = f"127.0.0.1:{free_port()}"
    one.configure(mount__require_fuse=True, metrics__listen=listen)
    one.deploy()
    flushed(one)
    assert silent_seconds(one) < 1
    mounted.hang_at("create", pattern="file", times=1)
    (one.work / "file").write_bytes(CONTENT)
    one.wait_until(lambda: silent_seconds(one) > 2)
    assert one.status()["phase"] == "syncing"
    mounted.release()
    flushed(one)
    assert silent_seconds(one) < 1
    assert one.end() == 0, one.log()


def test_another_folder_at_the_same_place_is_left_alone(one: Node, mounted: Mounted) -> None:
    one.deploy()
    project, ours = mounted.backing / "project", mounted.backing / "ours"
    mounted.stop()
    project.rename(ours)
    status = project / os.fsdecode(STATUS_FOLDER)
    status.mkdir(parents=True)
    (status / "folder.json").write_text('{"onesync":"folder","format":1,"folder_id":"other"}')
    before = picture(project)
    mounted.start()
    (one.work / "file").write_bytes(CONTENT)
    one.wait_for_phase("backing_off")
    one.wait_until(lambda: "is not the folder that was deployed" in one.log())
    assert not is_up(one)
    mounted.stop()
    assert picture(project) == before
    for path in (status / "folder.json", status, project):
        path.unlink() if path.is_file() else path.rmdir()
    ours.rename(project)
    mounted.start()
    flushed(one)
    assert (project / "file").read_bytes() == CONTENT
    assert one.end() == 0, one.log()


def test_an_idle_daemon_notices_that_the_mount_is_gone_and_back(
    one: Node, mounted: Mounted
) -> None:
    one.deploy()
    flushed(one)
    calls = mounted.calls()
    time.sleep(2)
    assert mounted.calls() == calls, "noticing costs the mount nothing"
    mounted.stop()
    one.wait_for_phase("backing_off")
    assert not is_up(one)
    assert troubles(one) == ["MountNotThere"]
    mounted.start()
    one.wait_for_phase("syncing")
    assert is_up(one)
    assert troubles(one) == []
    assert one.end() == 0, one.log()


def test_a_client_that_dies_and_is_mounted_again(one: Node, mounted: Mounted) -> None:
    one.deploy()
    lose(mounted, one, "file", CONTENT)
    mounted.kill()
    (one.work / "other").write_bytes(CONTENT)
    one.wait_for_phase("backing_off")
    assert not is_up(one)
    mounted.remount()
    flushed(one)
    for name in ("file", "other"):
        assert (mounted.backing / "project" / name).read_bytes() == CONTENT, name
    assert "the mount was mounted anew" in one.log()
    assert one.end() == 0, one.log()


def test_a_mount_exchanged_unseen_is_noticed(one: Node, mounted: Mounted) -> None:
    one.deploy()
    lose(mounted, one, "file", CONTENT)
    mounted.stop()
    mounted.start()
    (one.work / "other").write_bytes(CONTENT)
    flushed(one)
    one.wait_until(lambda: "the mount was mounted anew" in one.log())
    flushed(one)
    assert (mounted.backing / "project" / "file").read_bytes() == CONTENT
    assert one.end() == 0, one.log()


def test_a_stop_on_a_hung_mount_ends_in_bounded_time(one: Node, mounted: Mounted) -> None:
    one.configure(
        mount__require_fuse=True, mount__io_timeout_seconds=2, undeploy__flush_retry_seconds=3
    )
    one.deploy()
    (one.work / "file").write_bytes(CONTENT)
    mounted.hang()
    one.wait_for_phase("backing_off")
    assert troubles(one) == ["MountHung"]
    assert one.end() == 10
    assert "the lock and all local data are kept" in one.log()
    mounted.release()
    assert (mounted.backing / "project" / os.fsdecode(STATUS_FOLDER) / "lock").exists()
    one.deploy()
    assert one.end() == 0, one.log()
    assert (mounted.backing / "project" / "file").read_bytes() == CONTENT


def test_the_folder_is_identified_with_one_look_up(mounted: Mounted) -> None:
    replica = FolderReplica(os.fsencode(mounted.path / "project"))
    first = replica.identify()
    mounted.reset()
    assert replica.identify() == first
    assert mounted.calls() == 1, mounted.counts()
