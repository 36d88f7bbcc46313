"""The program as a process: what a start finds, and how a stop leaves it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from onesync.core.model import STATUS_FOLDER
from tests.node import SOON, Node, picture
from tests.standin.mounted import Mounted
from tests.test_program import fill

STATUS = os.fsdecode(STATUS_FOLDER)


def undeployed(node: Node) -> None:
    assert node.end() == 0, node.log()


def forget_lock(store: Path) -> None:
    """As of old: a person deletes the lock by hand, which frees the folder."""
    (store / STATUS / "lock").unlink()


# -- what a start finds ----------------------------------------------------------------------------


def test_a_folder_of_west_life_gets_its_links(nodes: list[Node], store: Path) -> None:
    (store / "Runs" / "000002_Import" / "extra").mkdir(parents=True)
    (store / "Runs" / "000002_Import" / "extra" / "a.mrc").write_bytes(b"1")
    (store / STATUS).mkdir()
    lines = [
        '"/srv/old machine/project/Runs/000002_Import/extra" "b c.mrc" "a.mrc"',
        '"/srv/old machine/project" "data" "/data/movies of may"',
        '"/srv/old machine/project/no/such/directory/../.." "evil" "/etc"',
    ]
    (store / STATUS / "linklist").write_text("\n".join(lines) + "\n")
    one, two = nodes
    one.deploy()
    extra = one.work / "Runs" / "000002_Import" / "extra"
    assert (extra / "b c.mrc").readlink() == Path("a.mrc")
    assert (one.work / "data").readlink() == Path("/data/movies of may")
    undeployed(one)
    exported = one.command("manifest", "export", "--linklist").stdout
    assert f'"{one.work}/Runs/000002_Import/extra" "b c.mrc" "a.mrc"' in exported
    expected = picture(one.work)
    two.deploy()
    assert picture(two.work) == expected
    undeployed(two)


def test_a_folder_of_scipion_docker_gets_its_links(nodes: list[Node], store: Path) -> None:
    (store / "scipion-docker").mkdir()
    (store / "Runs").mkdir()
    (store / "scipion-docker" / "symlink-dump").write_text(
        "/data/movies ./Runs/movies\n../x ./top\n"
    )
    one, _ = nodes
    one.deploy()
    assert (one.work / "Runs" / "movies").readlink() == Path("/data/movies")
    assert (one.work / "top").readlink() == Path("../x")
    undeployed(one)


def test_absolute_links_follow_the_working_directory(nodes: list[Node]) -> None:
    one, two = nodes
    one.deploy()
    (one.work / "real").mkdir()
    (one.work / "into").symlink_to(one.work / "real")
    (one.work / "whole").symlink_to(one.work)
    (one.work / "out").symlink_to(f"{one.work}-not")
    undeployed(one)
    two.deploy()
    assert (two.work / "into").readlink() == two.work / "real"
    assert (two.work / "whole").readlink() == two.work
    assert (two.work / "out").readlink() == Path(f"{one.work}-not")
    undeployed(two)
    one.deploy()
    assert (one.work / "into").readlink() == one.work / "real"
    undeployed(one)


def test_links_stay_verbatim_where_the_operator_wants_it(nodes: list[Node]) -> None:
    one, two = nodes
    one.deploy()
    (one.work / "into").symlink_to(one.work / "real")
    undeployed(one)
    two.configure(stagein__relocate_links=False)
    two.deploy()
    assert (two.work / "into").readlink() == one.work / "real"
    undeployed(two)


def test_a_copy_left_over_follows_what_others_did_meanwhile(nodes: list[Node]) -> None:
    one, two = nodes
    one.deploy()
    fill(one.work)
    (one.work / "goes").write_bytes(b"1")
    (one.work / "directory").mkdir()
    (one.work / "directory" / "goes").write_bytes(b"1")
    (one.work / "link").symlink_to("goes")
    (one.work / "changes").write_bytes(b"old")
    undeployed(one)
    kept = (one.work / "Runs/000001_Import/extra/mic_1.mrc").stat().st_ino
    two.deploy()
    (two.work / "goes").unlink()
    (two.work / "link").unlink()
    shutil.rmtree(two.work / "directory")
    (two.work / "changes").write_bytes(b"new")
    undeployed(two)
    one.deploy()
    assert picture(one.work) == picture(two.work)
    assert (one.work / "Runs/000001_Import/extra/mic_1.mrc").stat().st_ino == kept
    undeployed(one)
    two.deploy()
    assert picture(two.work) == picture(one.work)
    undeployed(two)


def test_edits_after_an_undeploy_are_listed_and_never_overwritten(nodes: list[Node]) -> None:
    one, two = nodes
    one.deploy()
    (one.work / "file").write_bytes(b"old")
    undeployed(one)
    (one.work / "file").write_bytes(b"edited in vain")
    (one.work / "added").write_bytes(b"too")
    assert one.refusal() == 13
    assert "2 files in the working directory changed after the last undeploy" in one.log()
    assert (one.work / "file").read_bytes() == b"edited in vain"
    two.deploy()
    assert (two.work / "file").read_bytes() == b"old"
    undeployed(two)


def test_a_deployment_that_was_ended_elsewhere_is_never_pushed(
    nodes: list[Node], store: Path
) -> None:
    one, two = nodes
    one.deploy()
    (one.work / "file").write_bytes(b"old")
    assert one.flush() == 0
    one.end(signal.SIGKILL)
    (one.work / "file").write_bytes(b"unsynced on one")
    forget_lock(store)
    two.deploy()
    (two.work / "file").write_bytes(b"newer on two")
    undeployed(two)
    for _ in range(2):
        assert one.refusal() == 13, one.log()
        assert "ended elsewhere" in one.log()
        assert (one.work / "file").read_bytes() == b"unsynced on one"
        assert (store / "file").read_bytes() == b"newer on two"
        assert not (store / STATUS / "lock").exists()


def test_a_lock_deleted_while_the_node_was_down_is_taken_again(
    nodes: list[Node], store: Path
) -> None:
    one, _ = nodes
    one.deploy()
    one.end(signal.SIGKILL)
    (one.work / "while_down").write_bytes(b"precious")
    forget_lock(store)
    one.deploy()
    undeployed(one)
    assert (store / "while_down").read_bytes() == b"precious"


def test_files_that_somebody_put_into_onedata_are_welcome(nodes: list[Node], store: Path) -> None:
    one, two = nodes
    one.deploy()
    (one.work / "dir").mkdir()
    (one.work / "dir" / "ours").write_bytes(b"1")
    assert one.flush() == 0
    (store / "dir" / "theirs").write_bytes(b"uploaded")
    (store / "top").write_bytes(b"uploaded")
    shutil.rmtree(one.work / "dir")
    assert one.flush() == 3, "the newcomer is reported"
    assert not (store / "dir" / "ours").exists()
    undeployed(one)
    two.deploy()
    assert (two.work / "dir" / "theirs").read_bytes() == b"uploaded"
    assert (two.work / "top").read_bytes() == b"uploaded"
    assert not (two.work / "dir" / "ours").exists()
    undeployed(two)


def test_what_somebody_put_into_onedata_goes_there_when_it_is_deleted_here(
    nodes: list[Node], store: Path
) -> None:
    one, two = nodes
    one.deploy()
    undeployed(one)
    (store / "newcomer").write_bytes(b"of somebody else")
    two.deploy()
    (two.work / "newcomer").unlink()
    assert two.flush() == 0, two.log()
    assert not (store / "newcomer").exists()
    undeployed(two)


def test_many_newcomers_are_told_of_by_a_base(nodes: list[Node], store: Path) -> None:
    one, two = nodes
    (store / "first").write_bytes(b"1")
    one.deploy()
    undeployed(one)
    for number in range(5):
        (store / f"new{number}").write_bytes(b"%d" % number)
    two.start_after("import onesync.deploy; onesync.deploy._MOST_FRESH = 4")
    two.wait_for_phase("syncing")
    bases = sorted(path.name for path in (store / STATUS / "manifest").glob("*.base.*"))
    assert bases == ["E000001-000001.base.jsonl.gz", "E000002-000001.base.jsonl.gz"]
    expected = picture(two.work)
    assert len(expected) == 6
    undeployed(two)
    one.deploy()
    assert picture(one.work) == expected
    undeployed(one)


def test_a_file_damaged_in_onedata_is_brought_and_reported_until_it_is_rewritten(
    nodes: list[Node], store: Path
) -> None:
    one, two = nodes
    one.deploy()
    (one.work / "stack.mrc").write_bytes(os.urandom(1000))
    undeployed(one)
    (store / "stack.mrc").write_bytes(bytes(1000))
    for _ in range(2):
        two.deploy()
        told = {problem["kind"] for problem in two.status()["problems"]}
        assert "changed_outside" in told
        undeployed(two)
    two.deploy()
    (two.work / "stack.mrc").write_bytes(b"repaired")
    undeployed(two)
    two.deploy()
    assert two.status()["problems"] == []
    undeployed(two)


@pytest.mark.parametrize("names", [["stack.mrc"], ["stack.mrc", "same.mrc"]])
def test_a_damaged_file_is_told_of_also_when_the_node_died_before_the_end(
    nodes: list[Node], store: Path, names: list[str]
) -> None:
    """What it brought until then has the right size, and must not be taken for finished."""
    one, two = nodes
    one.deploy()
    (one.work / "stack.mrc").write_bytes(os.urandom(1000))
    for name in names[1:]:
        os.link(one.work / "stack.mrc", one.work / name)
    undeployed(one)
    for name in names:
        (store / name).write_bytes(bytes(500) + (store / name).read_bytes()[500:])
    two.start_dying("onesync.stagein", "StageIn", "_finish", 1)
    assert two.wait() == -signal.SIGKILL, two.log()
    assert {path.name for path in two.work.iterdir()} == set(names)
    two.deploy()
    told = {problem["path"]: problem["kind"] for problem in two.status()["problems"]}
    assert told == dict.fromkeys(names, "changed_outside")
    undeployed(two)


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_damaged_file_that_was_mended_in_onedata_is_brought_anew(
    nodes: list[Node], store: Path, is_whole: bool
) -> None:
    one, two = nodes
    one.deploy()
    content = os.urandom(1000)
    (one.work / "stack.mrc").write_bytes(content)
    undeployed(one)
    (store / "stack.mrc").write_bytes(bytes(1000) if is_whole else content[:400])
    two.deploy()
    assert [problem["kind"] for problem in two.status()["problems"]] == ["changed_outside"]
    undeployed(two)
    (store / "stack.mrc").write_bytes(content)
    two.deploy()
    assert (two.work / "stack.mrc").read_bytes() == content
    assert two.status()["problems"] == []
    undeployed(two)
    one.deploy()
    assert picture(one.work) == picture(two.work)
    undeployed(one)


def test_a_file_missing_in_onedata_is_reported_and_not_forgotten(
    nodes: list[Node], store: Path
) -> None:
    one, two = nodes
    one.deploy()
    (one.work / "file").write_bytes(b"1")
    undeployed(one)
    content = (store / "file").read_bytes()
    (store / "file").unlink()
    two.deploy()
    assert {problem["kind"] for problem in two.status()["problems"]} == {"missing"}
    undeployed(two)
    (store / "file").write_bytes(content)  # OneData shows it again
    two.deploy()
    assert (two.work / "file").read_bytes() == b"1"
    assert two.status()["problems"] == []
    undeployed(two)


# -- stage-in, killed and stopped ------------------------------------------------------------------


@pytest.fixture
def slow(tmp_path: Path, mounted: Mounted) -> Iterator[Node]:
    """A node whose folder on a slow mount holds 60 files."""
    project = mounted.backing / "project"
    for number in range(60):
        (project / f"{number:03}").write_bytes(b"%d" % number)
    options = {"mount__require_fuse": True, "push__workers": 2}
    node = Node(tmp_path / "slow", mounted.path / "project", **options)
    yield node
    if node.running():
        node.end(signal.SIGKILL)


def half_staged(node: Node, mounted: Mounted) -> None:
    mounted.latency(0.02)
    node.start()
    deadline = time.monotonic() + SOON
    while len(os.listdir(node.work)) < 10:
        assert time.monotonic() < deadline, node.log()
        time.sleep(0.01)
    assert node.status()["phase"] == "staging_in"


@pytest.mark.fuse
def test_a_killed_stage_in_goes_on_and_pushes_nothing_before_it_is_whole(
    slow: Node, mounted: Mounted
) -> None:
    half_staged(slow, mounted)
    slow.end(signal.SIGKILL)
    present = len(os.listdir(slow.work))
    assert present < 60
    mounted.latency(0)
    slow.deploy()
    assert slow.flush() == 0, slow.log()
    files = [path for path in slow.work.iterdir() if not path.name.startswith(".")]
    assert len(files) == 60
    assert {p.name for p in (mounted.backing / "project").iterdir()} >= {p.name for p in files}
    undeployed(slow)


@pytest.mark.fuse
@pytest.mark.parametrize("is_whole", [True, False], ids=["as it was left", "torn"])
def test_a_large_file_is_brought_on_from_where_a_stage_in_died_over_it(
    tmp_path: Path, mounted: Mounted, is_whole: bool
) -> None:
    size, enough = 16 << 20, 6 << 20
    one, two = (Node(tmp_path / name, mounted.path / "project") for name in ("one", "two"))
    one.deploy()
    (one.work / "stack.mrcs").write_bytes(os.urandom(size))
    undeployed(one)
    mounted.latency(0.01)
    two.start_after("import onesync.stagein; onesync.stagein._GOES_ON_FROM = 1 << 20")
    begun = two.work / ".onesync~"  # and the digest of its path
    deadline = time.monotonic() + SOON
    while sum(p.stat().st_size for p in two.work.glob(f"{begun.name}*")) < enough:
        assert time.monotonic() < deadline, two.log()
        time.sleep(0.01)
    two.end(signal.SIGKILL)
    mounted.latency(0)
    (left,) = two.work.glob(f"{begun.name}*")
    if not is_whole:
        with left.open("r+b") as file:
            file.write(bytes(1000))
    mounted.start_log()
    two.start_after("import onesync.stagein; onesync.stagein._GOES_ON_FROM = 1 << 20")
    two.wait_for_phase("syncing")
    reads = [c for c in mounted.log() if c.operation == "read" and c.path.endswith("stack.mrcs")]
    first = min(call.arguments["offset"] for call in reads)
    assert first >= enough // 2 if is_whole else first == 0
    assert (two.work / "stack.mrcs").read_bytes() == (one.work / "stack.mrcs").read_bytes()
    assert two.status()["problems"] == []
    assert [p.name for p in two.work.iterdir() if "onesync~" in p.name] == []
    undeployed(two)


@pytest.mark.fuse
def test_a_stop_during_stage_in_leaves_at_once_and_frees_the_folder(
    slow: Node, mounted: Mounted
) -> None:
    half_staged(slow, mounted)
    undeployed(slow)
    assert not (mounted.backing / "project" / STATUS / "lock").exists()
    mounted.latency(0)
    slow.deploy()
    undeployed(slow)


# -- how a stop leaves it --------------------------------------------------------------------------


@pytest.mark.parametrize("is_flushed", [True, False])
def test_what_changed_in_a_directory_that_was_renamed_is_flushed_too(
    nodes: list[Node], store: Path, is_flushed: bool
) -> None:
    one, two = nodes
    one.deploy()
    (one.work / "old").mkdir()
    (one.work / "old" / "file").write_bytes(b"old")
    (one.work / "old" / "gone").write_bytes(b"gone")
    assert one.flush() == 0, one.log()
    (one.work / "old" / "file").write_bytes(b"newer")
    (one.work / "old" / "gone").unlink()
    (one.work / "old").rename(one.work / "new")
    if is_flushed:
        assert one.flush() == 0, one.log()
        assert (store / "new" / "file").read_bytes() == b"newer"
        assert os.listdir(store / "new") == ["file"]
        one.end(signal.SIGKILL)
        forget_lock(store)
    else:
        undeployed(one)
    two.deploy()
    assert (two.work / "new" / "file").read_bytes() == b"newer"
    assert os.listdir(two.work / "new") == ["file"]
    undeployed(two)


def test_a_stop_ends_the_wait_for_a_folder_that_is_another_nodes_now(
    nodes: list[Node], store: Path
) -> None:
    one, two = nodes
    one.deploy()
    one.end(signal.SIGKILL)
    (one.work / "late").write_bytes(b"not sent")
    forget_lock(store)
    two.deploy()
    one.configure(lock__wait_seconds=3600)
    one.start()
    one.wait_for_phase("locking")
    assert one.end() == 11, one.log()
    assert "deployed elsewhere" in one.status()["problems"][0]["text"]
    assert (one.work / "late").read_bytes() == b"not sent"
    undeployed(two)
    assert not (store / "late").exists()


def test_cleaning_leaves_an_empty_working_directory(nodes: list[Node]) -> None:
    one, two = nodes
    one.configure(undeploy__clean_working_dir=True)
    one.deploy()
    fill(one.work)
    assert one.flush() == 0
    expected = picture(one.work)
    undeployed(one)
    assert os.listdir(one.work) == []
    two.deploy()
    assert picture(two.work) == expected
    undeployed(two)
    one.deploy()
    assert picture(one.work) == expected
    undeployed(one)


def test_cleaning_removes_all_names_of_a_file(nodes: list[Node]) -> None:
    one, _ = nodes
    one.configure(undeploy__clean_working_dir=True)
    one.deploy()
    (one.work / "a").write_bytes(b"1")
    (one.work / "b").hardlink_to(one.work / "a")
    assert one.flush() == 0
    undeployed(one)
    assert os.listdir(one.work) == []
    one.deploy()
    assert (one.work / "a").samefile(one.work / "b")
    undeployed(one)
    assert os.listdir(one.work) == []


def test_cleaning_keeps_what_onedata_does_not_hold(nodes: list[Node]) -> None:
    one, _ = nodes
    one.configure(undeploy__clean_working_dir=True, push__exclude=["*.tmp"])
    one.deploy()
    (one.work / "file").write_bytes(b"1")
    (one.work / "only_here.tmp").write_bytes(b"precious")
    assert one.end() == 13
    assert os.listdir(one.work) == ["only_here.tmp"]
    assert "only_here.tmp" in one.log()
    assert not (one.store / STATUS / "lock").exists()


def test_cleaning_that_was_killed_is_only_finished(nodes: list[Node], store: Path) -> None:
    one, two = nodes
    one.configure(undeploy__clean_working_dir=True)
    one.deploy()
    for number in range(3000):
        (one.work / f"{number}").touch()
    assert one.flush() == 0
    assert one.process is not None
    one.process.terminate()
    deadline = time.monotonic() + SOON
    while len(os.listdir(one.work)) == 3000:
        assert time.monotonic() < deadline, one.log()
    one.end(signal.SIGKILL)
    assert 0 < len(os.listdir(one.work)) < 3000, "killed too late for this test to mean anything"
    one.start()
    assert one.process.wait(SOON) == 0, one.log()
    assert os.listdir(one.work) == []
    assert not (store / STATUS / "lock").exists()
    two.deploy()
    assert len(os.listdir(two.work)) == 3000
    undeployed(two)


def test_a_second_signal_leaves_at_once_with_the_lock_kept(
    tmp_path: Path, mounted: Mounted
) -> None:
    store = mounted.path / "project"
    options = {"mount__require_fuse": True, "mount__io_timeout_seconds": 2}
    node = Node(tmp_path / "node", store, **options)
    node.deploy()
    mounted.hang()
    (node.work / "file").write_bytes(b"precious")
    assert node.process is not None
    node.process.terminate()
    node.wait_for_phase("flushing")
    assert node.end() == 10
    assert (node.work / "file").read_bytes() == b"precious"
    mounted.release()
    assert (mounted.backing / "project" / STATUS / "lock").exists()
    node.deploy()
    undeployed(node)
    assert (mounted.backing / "project" / "file").read_bytes() == b"precious"


def test_a_lock_that_vanished_ends_the_program(nodes: list[Node], store: Path) -> None:
    one, _ = nodes
    one.configure(lock__beat_seconds=0.5)
    one.deploy()
    forget_lock(store)
    assert one.process is not None
    assert one.process.wait(SOON) == 12
    assert "is lost" in one.log()
    assert one.status()["phase"] == "fenced"


def test_a_working_directory_that_was_swapped_halts_and_deletes_nothing(
    nodes: list[Node], store: Path
) -> None:
    one, _ = nodes
    one.deploy()
    fill(one.work)
    assert one.flush() == 0
    before = picture(store / "Runs")
    one.work.rename(one.home / "away")
    one.work.mkdir()
    assert one.flush() == 1
    assert one.process is not None
    assert one.process.wait(SOON) == 13
    assert "not the one that was deployed" in one.log()
    assert picture(store / "Runs") == before
    one.work.rmdir()
    (one.home / "away").rename(one.work)
    one.deploy()
    undeployed(one)


# -- looking in ------------------------------------------------------------------------------------


def test_verify_lists_what_differs(nodes: list[Node], store: Path) -> None:
    one, _ = nodes
    one.deploy()
    fill(one.work)
    assert one.flush() == 0
    verified = one.command("verify", "--content")
    assert (verified.returncode, verified.stdout) == (0, "No differences.\n"), verified
    mic = "Runs/000001_Import/extra/mic_1.mrc"
    size = (store / mic).stat().st_size
    (store / mic).write_bytes(bytes(size))
    assert one.command("verify").returncode == 0, "sizes agree"
    verified = one.command("verify", "--content")
    assert verified.returncode == 3
    assert f"replica: {mic} has other content" in verified.stdout
    (store / mic).unlink()
    assert f"replica: {mic} is missing" in one.command("verify").stdout
    undeployed(one)


def test_the_manifest_can_be_listed(nodes: list[Node]) -> None:
    one, _ = nodes
    one.deploy()
    fill(one.work)
    undeployed(one)
    listed = one.command("manifest", "ls").stdout
    assert "dir  0750" in listed
    assert "file 0755             10" in listed
    links = one.command("manifest", "links").stdout
    assert "input -> Runs/000001_Import/extra\n" in links
    assert "extra/movie.tif -> /data/movies/a b.tif\n" in links


def test_status_of_a_daemon_that_is_down_is_what_it_left(nodes: list[Node]) -> None:
    one, _ = nodes

    def status() -> dict[str, Any]:
        found = json.loads(one.command("status", "--json").stdout)
        assert isinstance(found, dict)
        return found

    assert status()["phase"] == "stopped"
    one.deploy()
    undeployed(one)
    left = status()
    assert left["phase"] == "stopped"
    assert left["last_checkpoint"]["name"].startswith("E000001-")
    one.deploy()
    one.end(signal.SIGKILL)
    died = status()
    assert (died["phase"], died["problems"][0]["kind"]) == ("stopped", "died")
