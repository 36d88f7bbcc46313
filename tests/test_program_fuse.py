"""The program as a process on the FUSE stand-in for OneData."""

from __future__ import annotations

import errno
import json
import os
import pty
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from onesync.core.model import STATUS_FOLDER, Kind
from onesync.replica.door import Listed
from onesync.replica.folder import FolderReplica
from tests.campaign.process import wait_for_children_of
from tests.node import SOON, Node, picture
from tests.standin.mounted import Mounted
from tests.test_program import fill, names_of_ours

pytestmark = pytest.mark.fuse


@pytest.fixture
def store(mounted: Mounted) -> Path:
    return mounted.path / "project"


@pytest.fixture(autouse=True)
def _strict(nodes: list[Node]) -> None:
    for node in nodes:
        node.configure(mount__require_fuse=True, mount__io_timeout_seconds=2)


def flush_at_last(node: Node) -> None:
    """Flush again and again until all is there."""
    deadline = time.monotonic() + SOON
    while node.flush() != 0:
        assert time.monotonic() < deadline, node.log()


def another_node_gets_it(one: Node, two: Node, mounted: Mounted) -> None:
    expected = picture(one.work)
    assert one.end() == 0, one.log()
    assert names_of_ours(mounted.backing) == []
    two.deploy()
    assert picture(two.work) == expected
    assert two.end() == 0, two.log()


def test_a_second_node_gets_the_identical_tree(nodes: list[Node], mounted: Mounted) -> None:
    one, two = nodes
    one.deploy()
    fill(one.work)
    assert one.flush() == 0, one.log()
    another_node_gets_it(one, two, mounted)


def test_a_failing_mount_loses_nothing_and_is_recovered_from(
    nodes: list[Node], mounted: Mounted
) -> None:
    one, two = nodes
    one.deploy()
    mounted.fail("write", errno.EIO, times=3)
    mounted.fail("rename", errno.EIO, nth=2, times=2)
    fill(one.work)
    flush_at_last(one)
    another_node_gets_it(one, two, mounted)


def test_status_answers_while_the_mount_hangs_and_work_goes_on_after(
    nodes: list[Node], mounted: Mounted
) -> None:
    one, _ = nodes
    one.deploy()
    mounted.hang()
    (one.work / "file").write_bytes(b"precious")
    one.wait_for_phase("backing_off")
    assert one.status()["pending_paths"] > 0
    mounted.release()
    flush_at_last(one)
    assert (mounted.backing / "project" / "file").read_bytes() == b"precious"
    assert one.end() == 0, one.log()


def test_nothing_changed_costs_no_call(nodes: list[Node], mounted: Mounted) -> None:
    one, _ = nodes
    one.configure(mount__io_timeout_seconds=60)  # no heartbeat comes meanwhile
    one.deploy()
    fill(one.work)
    assert one.flush() == 0
    mounted.reset()
    assert one.flush() == 0
    assert mounted.counts().get("write", 0) == 0
    assert one.end() == 0, one.log()


def test_no_mount_is_exit_14_and_nothing_is_written(nodes: list[Node], mounted: Mounted) -> None:
    one, _ = nodes
    mounted.stop()
    (mounted.path / "project").mkdir()
    one.start()
    assert one.process is not None
    assert one.process.wait(30) == 14
    assert os.listdir(mounted.path / "project") == []


def test_status_is_printed_within_a_second_while_the_mount_hangs(
    nodes: list[Node], mounted: Mounted
) -> None:
    one, _ = nodes
    one.is_forked = False
    one.deploy()
    assert one.flush() == 0, "nothing else is pending"
    mounted.hang()
    (one.work / "file").write_bytes(b"precious")
    one.wait_for_phase("backing_off")
    worked = []  # of its processor time: it waits for nothing, and the machine may be busy
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert json.loads(one.command("status", "--json").stdout)["pending_paths"] == 1
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        worked.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(worked) < 1, worked
    mounted.release()
    assert one.end() == 0, one.log()


def test_without_heartbeats_writing_is_suspended_and_resumes_by_itself(
    nodes: list[Node], mounted: Mounted
) -> None:
    one, _ = nodes
    one.configure(
        mount__require_fuse=True,
        mount__io_timeout_seconds=2,
        lock__beat_seconds=0.5,
        lock__warn_seconds=1,
        lock__suspend_seconds=5,
        lock__dead_seconds=10,
    )
    one.deploy()
    mounted.hang()
    (one.work / "file").write_bytes(b"precious")
    one.wait_for_phase("suspended")
    assert "heartbeat not confirmed" in one.log()
    mounted.release()
    one.wait_for_phase("syncing")
    assert one.flush() == 0, one.log()
    assert (mounted.backing / "project" / "file").read_bytes() == b"precious"
    assert one.end() == 0, one.log()


def test_a_terminal_shows_a_bar(nodes: list[Node], mounted: Mounted) -> None:
    one, _ = nodes
    for number in range(30):
        (mounted.backing / "project" / f"{number}").write_bytes(b"x")
    mounted.latency(0.01)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "onesync.program", "run", "--config", str(one.config)]
    one.process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    one.wait_for_phase("syncing")
    mounted.latency(0)
    shown = os.read(ours, 1 << 20).decode("utf-8", "replace")
    assert "staging in" in shown
    assert "/30" in shown
    one.process.terminate()
    assert one.process.wait(SOON) == 0
    os.close(ours)


def test_what_is_appended_to_a_large_file_is_all_that_is_written(
    nodes: list[Node], mounted: Mounted
) -> None:
    one, two = nodes
    one.deploy()
    stack = one.work / "particles.mrcs"
    stack.write_bytes(os.urandom(30_000_000))
    assert one.flush() == 0, one.log()
    mounted.reset()
    with stack.open("ab") as file:
        file.write(os.urandom(1_000_000))
    assert one.flush() == 0, one.log()
    counts = mounted.counts()
    assert counts["bytes_written"] < 1_100_000
    assert counts.get("read", 0) < 10, "the replica is not read again"
    expected = picture(one.work)
    assert one.end() == 0, one.log()
    two.deploy()
    assert picture(two.work) == expected
    assert two.end() == 0, two.log()


def test_a_death_while_appending_leaves_the_last_checkpoint(
    nodes: list[Node], mounted: Mounted
) -> None:
    one, two = nodes
    one.deploy()
    stack = one.work / "particles.mrcs"
    stack.write_bytes(b"old" * 1_000_000)
    assert one.flush() == 0, one.log()
    checkpoints = set((mounted.backing / "project").glob("*/manifest/*"))
    mounted.fail("create", errno.EIO, times=-1, pattern="manifest/")
    with stack.open("ab") as file:
        file.write(b"new" * 100_000)
    replica = mounted.backing / "project" / "particles.mrcs"
    deadline = time.monotonic() + SOON
    while replica.stat().st_size == 3_000_000:
        assert time.monotonic() < deadline, one.log()
        time.sleep(0.01)
    one.end(signal.SIGKILL)
    assert set((mounted.backing / "project").glob("*/manifest/*")) == checkpoints
    mounted.clear()
    (mounted.backing / "project" / os.fsdecode(STATUS_FOLDER) / "lock").unlink()
    two.deploy()
    assert (two.work / "particles.mrcs").read_bytes() == b"old" * 1_000_000
    assert two.status()["problems"] == []
    assert two.end() == 0, two.log()


def _removed_slowly(node: Node, mounted: Mounted) -> Path:
    """Remove files in one batch; OneData hangs over the first, and the last waits behind it."""
    # So long that a busy machine does not make two batches of them.
    node.configure(mount__io_timeout_seconds=20, batch__settle_seconds=0.5)
    node.deploy()
    files = [node.work / directory / "name" for directory in "abcde"]
    for file in files:
        file.parent.mkdir()
        file.write_bytes(b"old")
    assert node.flush() == 0, node.log()
    mounted.hang_at("unlink", pattern="/a/name$")
    node.pause()
    for file in files:
        file.unlink()
    node.go_on()
    stored = mounted.backing / "project"
    node.wait_until(lambda: not any((stored / directory / "name").exists() for directory in "bcd"))
    assert (stored / "e" / "name").exists()
    return files[-1]


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_name_is_used_again_while_what_had_it_still_goes(
    nodes: list[Node], mounted: Mounted, kind: str
) -> None:
    one, two = nodes
    name = _removed_slowly(one, mounted)
    new = name if kind == "file" else name / "inner"
    new.parent.mkdir(exist_ok=True)
    new.write_bytes(b"new")
    batches = one.log().count("batch")
    until = time.monotonic() + 2.0  # several times the settle time
    while time.monotonic() < until:
        assert one.log().count("batch") == batches, "a batch met what was still there"
        time.sleep(0.02)
    mounted.release()
    assert one.flush() == 0, one.log()
    assert one.status()["problems"] == []
    stored = mounted.backing / "project" / new.relative_to(one.work)
    assert stored.read_bytes() == b"new"
    assert one.end() == 0, one.log()
    two.deploy()
    assert (two.work / new.relative_to(one.work)).read_bytes() == b"new"
    assert two.end() == 0, two.log()


def test_others_go_on_while_a_removed_file_still_goes(nodes: list[Node], mounted: Mounted) -> None:
    one, _ = nodes
    name = _removed_slowly(one, mounted)
    (one.work / "new").write_bytes(b"new")
    stored = mounted.backing / "project"
    one.wait_until(lambda: (stored / "new").exists())
    assert (stored / "e" / "name").exists(), "it still goes"
    name.parent.rename(one.work / "renamed")  # waits for it: it would go with its directory
    mounted.release()
    assert one.flush() == 0, one.log()
    assert os.listdir(stored / "renamed") == []
    assert one.end() == 0, one.log()
    assert names_of_ours(mounted.backing) == []


def test_a_removed_file_goes_though_its_node_died_over_it(
    nodes: list[Node], mounted: Mounted
) -> None:
    one, _ = nodes
    one.deploy()
    (one.work / "file").write_bytes(b"old")
    assert one.flush() == 0, one.log()
    mounted.fail("unlink", errno.EIO, pattern="/file$", times=-1)
    (one.work / "file").unlink()
    one.wait_for_phase("backing_off")
    one.end(signal.SIGKILL)
    wait_for_children_of(one)
    mounted.clear()
    assert (mounted.backing / "project" / "file").exists()
    one.deploy()
    assert not (one.work / "file").exists()
    assert not (mounted.backing / "project" / "file").exists()
    assert one.end() == 0, one.log()


def test_when_the_program_is_killed_its_children_go_no_further(
    nodes: list[Node], mounted: Mounted
) -> None:
    """A late call of the dead could meet those of the next life."""
    one, _ = nodes
    one.deploy()
    mounted.start_log()
    mounted.hang_at("create", pattern="file")
    (one.work / "file").write_bytes(b"precious")
    one.wait_until(lambda: any(call.path.endswith("/file") for call in mounted.log()))
    one.end(signal.SIGKILL)
    mounted.release()
    wait_for_children_of(one)
    late = {call.operation for call in mounted.log() if call.path.endswith("/file")}
    assert late <= {"getattr", "create", "flush", "release"}, "only what was in flight"


@pytest.mark.parametrize("cause", ["quota", "read_only", "read_only_and_idle"])
def test_a_flush_that_cannot_finish_keeps_the_lock_and_says_so(
    nodes: list[Node], mounted: Mounted, cause: str
) -> None:
    one, _ = nodes
    one.configure(
        mount__require_fuse=True, mount__io_timeout_seconds=2, undeploy__flush_retry_seconds=2
    )
    one.deploy()
    if cause == "quota":
        mounted.fail("write", errno.EDQUOT, times=-1)
    else:
        mounted.read_only()
    if cause != "read_only_and_idle":
        (one.work / "file").write_bytes(b"precious")
    assert one.end() == 10
    assert "The final flush could not finish" in one.log()
    assert "the lock and all local data are kept" in one.log()
    assert (mounted.backing / "project" / os.fsdecode(STATUS_FOLDER) / "lock").exists()
    mounted.clear()
    mounted.read_only(False)
    one.deploy()
    assert one.end() == 0, one.log()
    if cause != "read_only_and_idle":
        assert (mounted.backing / "project" / "file").read_bytes() == b"precious"


def test_a_new_small_file_costs_a_known_number_of_calls(
    nodes: list[Node], mounted: Mounted
) -> None:
    one, _ = nodes
    one.configure(mount__io_timeout_seconds=60)  # no heartbeat comes meanwhile
    one.deploy()
    folders = [one.work / "Runs" / f"{number:06}_X" / "extra" for number in range(4)]
    for folder in folders:
        folder.mkdir(parents=True)
    assert one.flush() == 0, one.log()
    mounted.reset()
    for number in range(200):
        (folders[number % 4] / f"mic_{number}").write_bytes(b"x" * 4096)
    assert one.flush() == 0, one.log()
    counts = mounted.counts()
    written = counts.pop("bytes_written")
    assert written < 200 * 4096 * 1.2
    of_the_batches = 250
    assert sum(counts.values()) <= 200 * 8 + of_the_batches, counts


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_death_while_a_link_changes_its_kind_leaves_the_link(
    nodes: list[Node], mounted: Mounted, kind: str
) -> None:
    one, two = nodes
    one.deploy()
    (one.work / "thing").symlink_to("somewhere")
    assert one.flush() == 0, one.log()
    mounted.fail("create", errno.EIO, times=-1, pattern="manifest/")
    (one.work / "thing").unlink()
    if kind == "file":
        (one.work / "thing").write_bytes(b"x")
    else:
        (one.work / "thing").mkdir()
        (one.work / "thing" / "inner").write_bytes(b"x")
    one.wait_for_phase("backing_off")
    one.end(signal.SIGKILL)
    project = mounted.backing / "project"
    assert (project / "thing").exists()
    mounted.clear()
    (project / os.fsdecode(STATUS_FOLDER) / "lock").unlink()
    two.deploy()
    assert os.readlink(two.work / "thing") == "somewhere"
    assert two.status()["problems"] == []
    assert not (project / "thing").exists()
    assert two.end() == 0, two.log()


def test_what_was_uploaded_beneath_a_link_is_left_and_told(
    nodes: list[Node], mounted: Mounted
) -> None:
    one, two = nodes
    one.deploy()
    (one.work / "thing").symlink_to("somewhere")
    assert one.end() == 0, one.log()
    uploaded = mounted.backing / "project" / "thing"
    uploaded.mkdir()
    (uploaded / "new").write_bytes(b"by somebody")
    two.deploy()
    assert os.readlink(two.work / "thing") == "somewhere"
    assert [p["kind"] for p in two.status()["problems"]] == ["newcomer"]
    assert two.end() == 0, two.log()
    assert (uploaded / "new").read_bytes() == b"by somebody"


def test_a_look_is_one_call_and_fresh(mounted: Mounted) -> None:
    replica = FolderReplica(os.fsencode(mounted.path / "project"))
    file = mounted.backing / "project" / "file"
    file.write_bytes(b"one")
    assert replica.look(b"file") == Listed(b"file", Kind.FILE, 3)
    file.write_bytes(b"four")
    mounted.reset()
    assert replica.look(b"file") == Listed(b"file", Kind.FILE, 4)
    assert mounted.counts() == {"getattr": 1}


def test_a_burst_delays_nobody_and_rows_wait_for_it(nodes: list[Node], mounted: Mounted) -> None:
    one, _ = nodes
    one.deploy()
    many, few = (one.work / "Runs" / name / "extra" for name in ("000001_Many", "000002_Few"))
    many.mkdir(parents=True)
    few.mkdir(parents=True)
    assert one.flush() == 0, one.log()
    mounted.latency(0.01)  # thirty milliseconds a file: what the kernel serialises in a directory
    for number in range(200):
        (many / f"item_{number}").write_bytes(b"x" * 100)
    with closing(sqlite3.connect(one.work / "project.sqlite")) as rows:
        rows.execute("CREATE TABLE items (path TEXT)")
        names = [(f"Runs/000001_Many/extra/item_{number}",) for number in range(200)]
        rows.executemany("INSERT INTO items VALUES (?)", names)
        rows.commit()
    (few / "file").write_bytes(b"y")
    replica = mounted.backing / "project"
    one.wait_until(lambda: (replica / few.relative_to(one.work) / "file").exists())
    arrived = len(list((replica / many.relative_to(one.work)).glob("item_*")))
    assert arrived < 200, "the burst goes on while others arrive"
    one.wait_until(lambda: (replica / "project.sqlite").exists())
    arrived = len(list((replica / many.relative_to(one.work)).glob("item_*")))
    assert arrived == 200, "what the rows name is there before them"
    assert re.search("deferred=[1-9]", one.log())


def test_a_deleted_directory_delays_nobody_and_leaves_nothing(
    nodes: list[Node], mounted: Mounted
) -> None:
    one, _ = nodes
    one.deploy()
    run = one.work / "Runs" / "000001_Many"
    (run / "extra").mkdir(parents=True)
    for number in range(100):
        (run / "extra" / f"item_{number}").write_bytes(b"x")
    assert one.flush() == 0, one.log()
    mounted.latency(0.02)  # four seconds for what was in the directory
    replica = mounted.backing / "project"
    # One batch finds it gone as a whole, on a busy machine too.
    assert one.command("pause", "--for", "1h").returncode == 0
    one.wait_for_phase("paused")
    shutil.rmtree(run / "extra")
    one.wait_until(lambda: one.status()["pending_paths"] >= 100)
    assert one.command("resume").returncode == 0
    one.wait_until(lambda: len(names_of_ours(replica / "Runs")) > 0)
    (one.work / "new").write_bytes(b"y")
    one.wait_until(lambda: (replica / "new").exists())
    assert names_of_ours(replica / "Runs"), "it is tidied meanwhile"
    run.rename(run.with_name("000001_Renamed"))
    assert one.flush() == 0, one.log()
    mounted.latency(0)
    assert names_of_ours(mounted.backing) == []
    assert os.listdir(replica / "Runs") == ["000001_Renamed"]
    assert one.end() == 0, one.log()


@pytest.mark.parametrize("backlog", ["small files", "a large file"])
def test_a_handover_ends_however_slow_the_mount_is(
    nodes: list[Node], mounted: Mounted, backlog: str
) -> None:
    """An upgrade waits for it; what did not come in time follows in the next life."""
    one, two = nodes
    one.start_after("from onesync import service; service._HANDOVER_SECONDS = 2.0")
    one.wait_for_phase("syncing")
    mounted.latency(0.2)
    if backlog == "small files":
        for number in range(1000):
            (one.work / f"{number}").write_bytes(b"%d" % number)
    else:
        (one.work / "large").write_bytes(os.urandom(50_000_000))
    began = time.monotonic()
    left = one.command("handover")
    assert left.returncode == 0, left.stderr
    assert one.wait() == 0, one.log()
    assert time.monotonic() - began < 10
    assert "is not in OneData yet and follows with the next start" in left.stdout
    assert one.log().count("left with the lock kept") == 1
    mounted.latency(0)
    assert (mounted.backing / "project" / os.fsdecode(STATUS_FOLDER) / "lock").exists()
    expected = picture(one.work)
    one.deploy()
    assert one.end() == 0, one.log()
    two.deploy()
    assert picture(two.work) == expected
    assert names_of_ours(mounted.backing) == []
