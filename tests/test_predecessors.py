"""Replays of how the predecessors lost the master copy, and of what comes near to it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import time
from contextlib import closing
from pathlib import Path

import pytest

from onesync import lost_copy, working_copy
from onesync.core.model import STATUS_FOLDER
from onesync.errors import StateDirFailed
from onesync.index import Index
from onesync.scanner import Scanner
from tests.node import SOON, Node
from tests.standin.mounted import Mounted

STATUS = os.fsdecode(STATUS_FOLDER)
FILES = 51
KILLED = -signal.SIGKILL


def names_in(root: Path) -> set[str]:
    found = (p.relative_to(root) for p in root.rglob("*") if not p.is_dir())
    return {str(path) for path in found if not str(path).startswith(".")}


def fill(folder: Path) -> set[str]:
    (folder / "Runs").mkdir()
    for number in range(FILES):
        (folder / "Runs" / f"mic_{number:02d}.mrc").write_bytes(b"%d" % number)
    return names_in(folder)


def is_locked(store: Path) -> bool:
    return (store / STATUS / "lock").exists()


# -- a stage-in that dies --


def test_a_stage_in_that_dies_after_2_of_51_files_deletes_nothing(
    nodes: list[Node], store: Path
) -> None:
    one, two = nodes
    before = fill(store)
    one.configure(push__workers=1)
    one.start_dying("onesync.stagein", "StageIn", "_fetch", 3)
    assert one.wait() == KILLED
    assert len(names_in(one.work)) == 2
    assert is_locked(store)
    # As their cron job did: a push from what is there. Nobody pushes before all is there.
    assert one.command("flush").returncode == 1
    assert names_in(store) == before
    one.start_dying("onesync.stagein", "StageIn", "_fetch", FILES)
    assert one.wait() == KILLED
    assert names_in(store) == before
    one.deploy()
    assert names_in(one.work) == before
    assert one.end() == 0, one.log()
    assert names_in(store) == before
    two.deploy()
    assert names_in(two.work) == before
    assert two.end() == 0, two.log()


def test_a_copy_that_holds_2_of_51_files_deletes_nothing(nodes: list[Node], store: Path) -> None:
    one, _ = nodes
    before = fill(store)
    one.deploy()
    one.end(signal.SIGKILL)
    for path in sorted((one.work / "Runs").iterdir())[2:]:
        path.unlink()
    one.deploy()
    assert one.flush() == 3, one.log()
    assert one.end() == 0, one.log()
    assert names_in(store) == before


# -- a push that does not happen, and a clean-up that does --


@pytest.mark.fuse
def test_what_could_not_be_pushed_is_never_cleaned_away(
    nodes: list[Node], mounted: Mounted
) -> None:
    one, two = nodes
    one.store = two.store = mounted.path / "project"
    two.configure(mount__require_fuse=True)
    one.configure(
        mount__require_fuse=True,
        undeploy__clean_working_dir=True,
        undeploy__flush_retry_seconds=0.5,
    )
    one.deploy()
    (one.work / "pushed").write_bytes(b"1")
    assert one.flush() == 0, one.log()
    # Nobody is there to push to, but a bare directory that takes everything.
    mounted.stop()
    one.store.mkdir()
    (one.work / "precious").write_bytes(b"the only good copy")
    assert one.end() == 10, one.log()
    assert names_in(one.work) == {"pushed", "precious"}
    assert list(one.store.iterdir()) == []
    one.store.rmdir()
    mounted.start()
    assert is_locked(one.store)
    one.deploy()
    assert one.end() == 0, one.log()
    assert names_in(one.work) == set()
    assert (one.store / "precious").read_bytes() == b"the only good copy"
    two.deploy()
    assert (two.work / "precious").read_bytes() == b"the only good copy"
    assert two.end() == 0


@pytest.mark.parametrize("calls", [1, 3, 8])
def test_a_death_while_cleaning_never_becomes_deletions(
    nodes: list[Node], store: Path, calls: int
) -> None:
    one, two = nodes
    one.configure(undeploy__clean_working_dir=True)
    one.start_dying("onesync.working_copy", "_Removal", "remove", calls)
    one.wait_for_phase("syncing")
    for name in ("a/b/c", "d"):
        (one.work / name).mkdir(parents=True)
    for name in ("a/1", "a/b/2", "a/b/c/3", "d/4"):
        (one.work / name).write_bytes(name.encode())
    assert one.end() == KILLED, one.log()
    expected = {"a/1", "a/b/2", "a/b/c/3", "d/4"}
    assert names_in(store) == expected
    assert is_locked(store)
    one.start()
    assert one.wait() == 0, one.log()
    assert (list(one.work.iterdir()), is_locked(store)) == ([], False)
    assert names_in(store) == expected
    two.deploy()
    assert names_in(two.work) == expected
    assert two.end() == 0, two.log()


def test_what_changed_before_it_was_cleaned_is_kept(nodes: list[Node], store: Path) -> None:
    one, _ = nodes
    one.configure(undeploy__clean_working_dir=True)
    one.start_dying("onesync.working_copy", "_Removal", "remove", 1)
    one.wait_for_phase("syncing")
    (one.work / "a").write_bytes(b"old")
    (one.work / "b").mkdir()
    (one.work / "c").mkdir()
    assert one.end() == KILLED, one.log()
    (one.work / "a").write_bytes(b"new")
    (one.work / "b").rmdir()
    (one.work / "b").symlink_to("c")
    assert one.refusal() == 13
    assert "removed, and were kept in the working directory: a, b" in one.log()
    assert ((one.work / "a").read_bytes(), (store / "a").read_bytes()) == (b"new", b"old")
    assert (one.work / "b").is_symlink()
    assert (store / "b").is_dir()
    assert not is_locked(store)


def test_a_directory_that_went_while_it_was_cleaned_is_clean(
    nodes: list[Node], store: Path
) -> None:
    one, _ = nodes
    one.configure(undeploy__clean_working_dir=True)
    one.start_dying("onesync.working_copy", "_Removal", "remove", 1)
    one.wait_for_phase("syncing")
    (one.work / "a").write_bytes(b"1")
    assert one.end() == KILLED, one.log()
    shutil.rmtree(one.work)
    one.start()
    assert one.wait() == 0, one.log()
    assert (names_in(store), is_locked(store)) == ({"a"}, False)


def test_cleaning_may_die_at_every_entry(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one process: whatever the number of entries removed, the next try removes the rest."""
    one, _ = nodes
    one.deploy()
    (one.work / "a" / "b").mkdir(parents=True)
    for name in ("a/1", "a/b/2", "a/b/3"):
        (one.work / name).write_bytes(b"1")
    assert one.end() == 0, one.log()
    whole = Index(one.home / "state" / "index.sqlite")
    rows = sorted(path for path, _ in whole.beneath(b"") if path)
    real = working_copy._Removal.remove
    for number in range(len(rows)):
        copy = one.home / f"copy{number}"
        copied = Index(one.home / f"index{number}.sqlite")
        shutil.copytree(one.work, copy, symlinks=True)
        copied.replace(
            (path, known.entry, Scanner(os.fsencode(copy), whole, lambda _: False).look(path))
            for path, known in whole.beneath(b"")
            if path
        )
        left = [number]

        def dying(*arguments: object, left: list[int] = left) -> bool:
            if left[0] == 0:
                raise InterruptedError
            left[0] -= 1
            return real(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(working_copy._Removal, "remove", dying)
        with pytest.raises(InterruptedError):
            working_copy.clean(os.fsencode(copy), copied, one.home, lambda _: None)
        monkeypatch.setattr(working_copy._Removal, "remove", real)
        assert len(list(copy.rglob("*"))) == len(rows) - number
        assert working_copy.clean(os.fsencode(copy), copied, one.home, lambda _: None).kept == []
        assert list(copy.iterdir()) == []
        copied.close()
    whole.close()


# -- a working copy that is gone or another one --


def deployed_with_unsynced(node: Node) -> None:
    """Deployed, ``safe`` in OneData, and ``lost`` not when the node died."""
    node.configure(batch__settle_seconds=30)
    node.deploy()
    (node.work / "safe").write_bytes(b"1")
    assert node.flush() == 0, node.log()
    write_unsynced(node)
    node.end(signal.SIGKILL)


def write_unsynced(node: Node) -> None:
    """Write ``lost``, and wait until the daemon knows of it."""
    (node.work / "lost").write_bytes(b"2")
    deadline = time.monotonic() + SOON
    while "lost" not in json.loads((node.home / "state" / "status.json").read_text())["pending"]:
        assert time.monotonic() < deadline, node.log()
        time.sleep(0.05)


@pytest.mark.parametrize("how", ["gone", "another"])
def test_a_lost_copy_halts_and_what_it_had_is_named(
    nodes: list[Node], store: Path, how: str
) -> None:
    one, _ = nodes
    deployed_with_unsynced(one)
    kept = one.home / "kept"
    one.work.rename(kept)
    if how == "another":
        one.work.mkdir()
    for _ in range(2):
        assert one.refusal() == 13
        problem = one.status()["problems"][0]
        assert problem["kind"] == "WorkingCopyLost"
        assert "not yet there were 1 paths: lost." in problem["text"]
    assert (names_in(store), is_locked(store)) == ({"safe"}, True)
    assert one.work.exists() == (how == "another")
    if how == "another":
        one.work.rmdir()
    kept.rename(one.work)
    one.deploy()
    assert one.end() == 0, one.log()
    assert names_in(store) == {"safe", "lost"}


@pytest.mark.parametrize("how", ["gone", "another"])
def test_a_lost_copy_is_staged_in_anew_where_the_operator_wants_it(
    nodes: list[Node], store: Path, how: str
) -> None:
    one, _ = nodes
    deployed_with_unsynced(one)
    shutil.rmtree(one.work)
    if how == "another":
        shutil.copytree(store, one.work, ignore=lambda _, names: names)  # a new, empty directory
    assert one.refusal() == 13
    one.configure(stagein__lost_copy="restage")
    one.deploy()
    assert (names_in(one.work), names_in(store)) == ({"safe"}, {"safe"})
    (report,) = (one.home / "state").glob("lost-*.json")
    found = json.loads(report.read_text())
    assert (found["onesync"], found["format"]) == ("lost", 1)
    assert (found["paths"], found["names"]) == (1, ["lost"])
    (one.work / "more").write_bytes(b"3")
    assert one.end() == 0, one.log()
    assert names_in(store) == {"safe", "more"}


def test_the_report_of_a_lost_copy_is_kept_when_the_next_one_is_lost_too(
    nodes: list[Node],
) -> None:
    one, _ = nodes
    deployed_with_unsynced(one)
    one.configure(stagein__lost_copy="restage")
    told = []
    for _ in range(3):  # nothing is pushed between them: all three are of one checkpoint
        shutil.rmtree(one.work)
        one.deploy()
        told.append({path: path.read_text() for path in (one.home / "state").glob("lost-*.json")})
        one.end(signal.SIGKILL)
    first, second, third = told
    assert [json.loads(text)["names"] for text in first.values()] == [["lost"]]
    assert first.items() < second.items() < third.items()
    one.deploy()
    assert one.end() == 0, one.log()


def test_the_report_of_a_lost_copy_is_on_the_disk_before_the_index_forgets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []

    def synced(fd: int) -> None:
        happened.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name)

    with closing(Index(tmp_path / "index.sqlite")) as index:
        index.set(staged="d", head_name="E000001-000002.jsonl.gz")
        monkeypatch.setattr(os, "fsync", synced)
        monkeypatch.setattr(index, "replace", lambda *_, **__: happened.append("forgotten"))
        unsynced = lost_copy.remembered(index, None)
        lost_copy.give_up(index, os.fsencode(tmp_path / "work"), tmp_path, unsynced)
    file, directory, forgotten = happened
    assert file.startswith("lost")
    assert (directory, forgotten) == (tmp_path.name, "forgotten")


def test_a_report_that_cannot_be_written_forgets_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with closing(Index(tmp_path / "index.sqlite")) as index:
        index.set(staged="d", head_name="E000001-000002.jsonl.gz")
        monkeypatch.setattr(os, "fsync", full)
        unsynced = lost_copy.remembered(index, None)
        with pytest.raises(StateDirFailed, match="nothing was forgotten"):
            lost_copy.give_up(index, os.fsencode(tmp_path / "work"), tmp_path, unsynced)
        assert index.get("staged") == "d"
    assert list(tmp_path.glob("lost-*")) == []


def test_a_lost_copy_is_never_staged_in_over_something_else(nodes: list[Node], store: Path) -> None:
    one, _ = nodes
    deployed_with_unsynced(one)
    shutil.rmtree(one.work)
    one.work.mkdir()
    (one.work / "mine").write_bytes(b"precious")
    one.configure(stagein__lost_copy="restage")
    assert one.refusal() == 13
    assert (names_in(one.work), names_in(store)) == ({"mine"}, {"safe"})
    assert is_locked(store)
    (one.work / "mine").unlink()
    one.deploy()
    (report,) = (one.home / "state").glob("lost-*.json")
    assert json.loads(report.read_text())["names"] == ["lost"]
    assert one.end() == 0, one.log()


def test_a_copy_that_goes_while_it_is_deployed_halts_at_once(
    nodes: list[Node], store: Path
) -> None:
    one, _ = nodes
    one.configure(batch__settle_seconds=30)
    one.deploy()
    (one.work / "safe").write_bytes(b"1")
    assert one.flush() == 0, one.log()
    write_unsynced(one)
    kept = one.home / "kept"
    one.work.rename(kept)
    assert one.command("flush").returncode == 1
    assert one.wait() == 13, one.log()
    assert "is gone" in one.log()
    assert "not yet there were 1 paths: lost." in one.log()
    assert (names_in(store), is_locked(store)) == ({"safe"}, True)
    kept.rename(one.work)
    one.deploy()
    assert one.end() == 0, one.log()
    assert names_in(store) == {"safe", "lost"}


def test_an_index_that_knows_the_inode_alone_goes_on(nodes: list[Node], store: Path) -> None:
    one, _ = nodes
    one.deploy()
    (one.work / "a").write_bytes(b"1")
    assert one.flush() == 0
    one.end(signal.SIGKILL)
    index = Index(one.home / "state" / "index.sqlite")
    assert index.get("root_birth") is not None
    index.set(root_birth=None)  # as in an index of format 2
    index.close()
    one.deploy()
    one.end(signal.SIGKILL)
    index = Index(one.home / "state" / "index.sqlite", readonly=True)
    assert (index.get("root_birth") is not None, index.get("format")) == (True, "5")
    index.close()
    index = Index(one.home / "state" / "index.sqlite")
    index.set(root_birth="1")  # the same inode, on a disk that was formatted anew
    index.close()
    assert one.refusal() == 13
    assert "is not the one that was deployed" in one.log()
    assert names_in(store) == {"a"}
