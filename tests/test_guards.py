"""What is deleted in OneData, and what is held: only positive evidence deletes."""

from __future__ import annotations

import os
import shutil
import signal
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from onesync.control import ask
from onesync.deletions import fingerprint
from onesync.manifest import read_head
from onesync.replica.folder import FolderReplica
from tests.node import SOON, Node, picture
from tests.test_prometheus import free_port, listening

QUEUE = 16_384


@pytest.fixture
def one(nodes: list[Node]) -> Node:
    """A deployed node with two runs of 60 files each in OneData."""
    node = nodes[0]
    node.deploy()
    for run in ("one", "two"):
        fill_run(node.work / "Runs" / run)
    assert node.flush() == 0, node.log()
    return node


def fill_run(run: Path, content: bytes = b"1") -> None:
    (run / "extra").mkdir(parents=True)
    for number in range(60):
        (run / "extra" / f"mic_{number:02d}.mrc").write_bytes(content)


def files_in(root: Path) -> set[str]:
    found = (p.relative_to(root) for p in root.rglob("*") if not p.is_dir())
    return {str(path) for path in found if not str(path).startswith(".")}


def held(node: Node) -> int:
    count = node.status()["held_deletions"]
    assert isinstance(count, int)
    return count


def lose_events(node: Node, act: Callable[[], object]) -> None:
    """Do ``act`` while the kernel's queue of events is full."""
    (node.work / "a").touch()
    (node.work / "b").touch()
    assert node.flush() == 0, node.log()
    node.pause()
    for _ in range(QUEUE // 2 + 100):
        for name in ("a", "b"):
            (node.work / name).chmod(0o644)
    act()
    node.go_on()
    assert node.flush() in (0, 3), node.log()
    assert "kernel events were dropped" in node.log()


# -- a copy that came back empty or half ----------------------------------------------------------


@pytest.mark.parametrize(
    "lost",
    [slice(0, None), slice(2, None), slice(0, None, 2), slice(60, None)],
    ids=["all", "nearly all", "every second", "one run"],
)
def test_a_copy_that_came_back_empty_or_half_deletes_nothing(
    one: Node, store: Path, lost: slice
) -> None:
    before, whole = files_in(store), picture(one.work)
    one.end(signal.SIGKILL)
    missing = sorted((one.work / "Runs").rglob("*.mrc"))[lost]
    for path in missing:
        path.unlink()
    one.deploy()
    (one.work / "new").write_bytes(b"work goes on")
    assert one.flush() == 3, one.log()
    assert files_in(store) == before | {"new"}
    status = one.status()
    assert (status["phase"], status["held_deletions"]) == ("syncing", len(missing))
    assert [p["kind"] for p in status["problems"]] == ["held_deletions"]
    listed = one.command("resume")
    assert listed.returncode == 3, listed.stderr
    assert set(listed.stdout.split()) == before - files_in(one.work)
    # A final flush records it and ends clean; the next deployment brings everything back.
    assert one.end() == 0, one.log()
    assert files_in(store) == before | {"new"}
    one.deploy()
    assert (held(one), one.command("resume").returncode) == (0, 0)
    (one.work / "new").unlink()
    assert {p: v[:2] for p, v in picture(one.work).items() if v[0] == "file"} == {
        p: v[:2] for p, v in whole.items() if v[0] == "file"
    }
    assert one.end() == 0, one.log()


def test_an_emptied_root_deletes_nothing_and_another_node_gets_it_all(
    one: Node, nodes: list[Node], store: Path
) -> None:
    before = files_in(store)
    one.end(signal.SIGKILL)
    shutil.rmtree(one.work / "Runs")
    one.deploy()
    assert one.flush() == 3
    assert held(one) == 125, "all entries: 120 files and 5 directories"
    assert one.end() == 0, one.log()
    assert files_in(store) == before
    nodes[1].deploy()
    assert files_in(nodes[1].work) == before
    assert nodes[1].end() == 0


def test_held_deletions_outlive_a_restart_and_are_said_once(one: Node, store: Path) -> None:
    before = files_in(store)
    one.end(signal.SIGKILL)
    hidden = one.home / "hidden"
    (one.work / "Runs" / "one" / "extra").rename(hidden)
    shutil.rmtree(one.work / "Runs" / "two")
    one.deploy()
    assert one.flush() == 3
    assert one.log().count("are missing from the working directory") == 1
    one.end(signal.SIGKILL)
    # Half of it is back: what remains is no longer much, but was never accepted.
    hidden.rename(one.work / "Runs" / "one" / "extra")
    one.deploy()
    assert one.flush() == 3
    assert held(one) == 62
    assert files_in(store) == before
    assert one.end() == 0, one.log()


def test_accepted_deletions_are_carried_out(one: Node, store: Path) -> None:
    one.end(signal.SIGKILL)
    shutil.rmtree(one.work / "Runs")
    one.deploy()
    assert one.flush() == 3
    listed = one.command("resume").stdout
    accepted = one.command("resume", "--accept-deletions")
    assert accepted.returncode == 0, accepted.stderr
    # It shows first what goes.
    assert accepted.stdout.startswith(listed)
    assert "these 125 paths leave" in accepted.stdout.removeprefix(listed)
    assert one.flush() == 0, one.log()
    assert files_in(store) == set()
    assert held(one) == 0
    assert one.end() == 0, one.log()


def test_only_what_was_shown_is_let_go(one: Node, store: Path) -> None:
    before = files_in(store)
    one.end(signal.SIGKILL)
    shutil.rmtree(one.work / "Runs" / "two")
    hidden = one.home / "hidden"
    (one.work / "Runs" / "one").rename(hidden)
    one.deploy()
    assert one.flush() == 3
    shown = fingerprint([b"Runs/one"])  # as if the other one had been noticed later
    socket = one.home / "run" / "control.sock"
    assert ask(socket, "accept_deletions", SOON, shown=shown) == {"ok": False, "accepted": None}
    assert ask(socket, "accept_deletions", SOON)["ok"] is False
    assert one.flush() == 3
    assert files_in(store) == before
    hidden.rename(one.work / "Runs" / "one")
    one.wait_until(lambda: held(one) == 62)
    shown = fingerprint([b"Runs/two"])
    assert ask(socket, "accept_deletions", SOON, shown=shown) == {"ok": True, "accepted": 62}
    assert one.flush() == 0, one.log()
    assert {path.split("/")[1] for path in files_in(store)} == {"one"}
    assert one.command("resume", "--accept-deletions").returncode == 0
    assert one.end() == 0, one.log()


def test_names_that_are_held_say_nothing_to_the_terminal(nodes: list[Node]) -> None:
    one = nodes[0]
    one.configure(guards__unexplained_deletions=0, guards__unexplained_percent=0)
    one.deploy()
    name = "red \x1b[31m\nOK \u202e"
    (one.work / name).write_bytes(b"1")
    assert one.flush() == 0, one.log()
    one.end(signal.SIGKILL)
    (one.work / name).unlink()
    one.deploy()
    assert one.flush() == 3
    shown = "red \\x1b[31m\\nOK \\u202e"
    assert one.command("resume").stdout == f"{shown}\n"
    assert shown in one.status()["problems"][0]["text"]
    assert shown in one.log().replace("\\\\", "\\")
    assert "\x1b" not in one.log()
    accepted = one.command("resume", "--accept-deletions").stdout
    assert accepted.splitlines()[0] == shown
    assert len(accepted.splitlines()) == 2
    assert one.end() == 0, one.log()


def test_what_is_held_is_told_everywhere_and_a_final_flush_ends_clean(
    one: Node, store: Path
) -> None:
    one.end(signal.SIGKILL)
    shutil.rmtree(one.work / "Runs")
    one.configure(metrics__listen=f"127.0.0.1:{free_port()}")
    one.deploy()
    assert one.flush() == 3
    metrics = scrape(one)
    assert "onesync_held_deletions 125.0" in metrics
    assert 'onesync_problems{kind="held_deletions"} 1.0' in metrics
    assert 'onesync_phase{onesync_phase="syncing"} 1.0' in metrics
    (problem,) = one.status()["problems"]
    assert (problem["path"], problem["kind"]) == ("", "held_deletions")
    assert problem["text"].startswith("125 files and directories are missing")
    assert one.log().count("125 files and directories are missing") == 1
    assert one.end() == 0, one.log()
    assert noted(store) == [(b"", "held_deletions", problem["text"])]
    left = one.status()
    assert (left["phase"], left["held_deletions"]) == ("stopped", 125)
    # Brought back by the next stage-in it is no problem any more.
    one.deploy()
    assert one.status()["problems"] == []
    assert "onesync_held_deletions 0.0" in scrape(one)
    (one.work / "new").write_bytes(b"1")
    assert one.end() == 0, one.log()
    assert noted(store) == []


def scrape(node: Node) -> str:
    with urllib.request.urlopen(f"http://{listening(node)}/metrics", timeout=SOON) as answer:
        text: str = answer.read().decode()
    return text


def noted(store: Path) -> list[tuple[bytes, str, str]]:
    """The problems that the newest checkpoint tells of, as another node reads them."""
    head = read_head(FolderReplica(os.fsencode(store)))
    assert head is not None
    return [(p.path, p.kind, p.text) for p in head.problems.values()]


def test_what_reappears_is_held_no_longer(one: Node, store: Path) -> None:
    before = files_in(store)
    one.end(signal.SIGKILL)
    hidden = one.home / "hidden"
    (one.work / "Runs").rename(hidden)
    one.deploy()
    assert one.flush() == 3
    assert held(one) == 125
    hidden.rename(one.work / "Runs")
    one.wait_until(lambda: held(one) == 0)
    assert one.flush() == 0, one.log()
    assert files_in(store) == before
    (one.work / "Runs" / "one" / "extra" / "mic_00.mrc").unlink()
    assert one.flush() == 0
    assert files_in(store) == before - {"Runs/one/extra/mic_00.mrc"}
    assert one.end() == 0, one.log()


def test_a_directory_that_became_a_link_while_nobody_watched_is_held(
    one: Node, store: Path
) -> None:
    before = files_in(store)
    one.end(signal.SIGKILL)
    (one.work / "Runs").rename(one.home / "elsewhere")
    (one.work / "Runs").symlink_to(one.home / "elsewhere")
    one.deploy()
    assert one.flush() == 3
    assert (held(one), files_in(store)) == (125, before)
    assert one.command("resume", "--accept-deletions").returncode == 0
    assert one.flush() == 0, one.log()
    assert files_in(store) == set()
    assert f"Runs -> {one.home}/elsewhere" in one.command("manifest", "links").stdout
    assert one.end() == 0, one.log()


def test_what_is_held_goes_along_with_a_rename_and_with_a_deletion_above(
    one: Node, store: Path
) -> None:
    one.end(signal.SIGKILL)
    for run in ("one", "two"):
        for path in sorted((one.work / "Runs" / run / "extra").iterdir())[2:]:
            path.unlink()
    one.deploy()
    assert one.flush() == 3
    assert held(one) == 116
    (one.work / "Runs" / "one").rename(one.work / "Runs" / "renamed")
    assert one.flush() == 3
    assert len(list((store / "Runs" / "renamed" / "extra").iterdir())) == 60
    assert held(one) == 116
    # What a person deletes above it, with the kernel as the witness, is deleted.
    shutil.rmtree(one.work / "Runs" / "renamed")
    assert one.flush() == 3
    assert not (store / "Runs" / "renamed").exists()
    assert held(one) == 58
    assert one.end() == 0, one.log()


# -- nobody is asked ------------------------------------------------------------------------------


def test_who_deletes_everything_is_never_asked(one: Node, store: Path) -> None:
    shutil.rmtree(one.work / "Runs")
    assert one.flush() == 0, one.log()
    assert files_in(store) == set()
    assert "are missing" not in one.log()
    assert one.end() == 0


def test_a_run_deleted_while_events_are_lost_is_not_asked_about(one: Node, store: Path) -> None:
    lose_events(one, lambda: shutil.rmtree(one.work / "Runs"))
    assert one.flush() == 0, one.log()
    assert files_in(store) == {"a", "b"}
    assert "are missing" not in one.log()
    assert one.end() == 0, one.log()


def test_files_of_a_directory_that_stays_deleted_while_events_are_lost_are_held(
    one: Node, store: Path
) -> None:
    before = files_in(store)

    def delete() -> None:
        for path in (one.work / "Runs").rglob("*.mrc"):
            path.unlink()

    lose_events(one, delete)
    assert one.flush() == 3, one.log()
    assert held(one) == 120
    assert files_in(store) == before | {"a", "b"}
    assert one.command("resume", "--accept-deletions").returncode == 0
    assert one.flush() == 0, one.log()
    assert files_in(store) == {"a", "b"}
    assert one.end() == 0, one.log()


def test_a_protocol_restart_is_never_asked_about(one: Node, store: Path) -> None:
    for content in (b"2", b"3"):
        for run in ("one", "two"):
            shutil.rmtree(one.work / "Runs" / run)
            (one.work / "Runs" / run / "extra").mkdir(parents=True)
            (one.work / "Runs" / run / "extra" / "mic_00.mrc").write_bytes(content)
    assert one.flush() == 0, one.log()
    assert files_in(store) == {f"Runs/{run}/extra/mic_00.mrc" for run in ("one", "two")}
    assert (store / "Runs/one/extra/mic_00.mrc").read_bytes() == b"3"
    assert "are missing" not in one.log()
    assert one.end() == 0


def test_a_run_that_is_moved_and_then_deleted_is_never_asked_about(one: Node, store: Path) -> None:
    (one.work / "Runs").rename(one.work / "Trash")
    for path in (one.work / "Trash").rglob("*.mrc"):
        path.unlink()
    assert one.flush() == 0, one.log()
    assert files_in(store) == set()
    assert "are missing" not in one.log()
    assert one.end() == 0


def test_a_run_that_is_deleted_in_and_then_moved_is_never_asked_about(
    one: Node, store: Path
) -> None:
    one.pause()  # so that one batch sees all of it
    for path in sorted((one.work / "Runs").rglob("*.mrc"))[:-1]:
        path.unlink()
    (one.work / "Runs").rename(one.work / "Moved")
    one.go_on()
    assert one.flush() == 0, one.log()
    assert files_in(store) == {"Moved/two/extra/mic_59.mrc"}
    assert "are missing" not in one.log()
    assert one.end() == 0


def test_a_run_renamed_while_nobody_watched_is_never_asked_about(one: Node, store: Path) -> None:
    one.end(signal.SIGKILL)
    (one.work / "Runs").rename(one.work / "Renamed")
    one.deploy()
    assert one.flush() == 0, one.log()
    assert {path.split("/")[0] for path in files_in(store)} == {"Renamed"}
    assert len(files_in(store)) == 120
    assert one.end() == 0, one.log()


def test_few_deletions_while_nobody_watched_are_carried_out(one: Node, store: Path) -> None:
    before = files_in(store)
    one.end(signal.SIGKILL)
    few = sorted((one.work / "Runs").rglob("*.mrc"))[:30]
    for path in few:
        path.unlink()
    one.deploy()
    assert one.flush() == 0, one.log()
    assert files_in(store) == before - {str(path.relative_to(one.work)) for path in few}
    assert one.end() == 0, one.log()


def test_the_operator_sets_the_bound(one: Node, store: Path) -> None:
    one.end(signal.SIGKILL)
    (one.work / "Runs" / "one" / "extra" / "mic_00.mrc").unlink()
    one.configure(guards__unexplained_deletions=0, guards__unexplained_percent=0)
    one.deploy()
    assert one.flush() == 3
    assert held(one) == 1
    one.end(signal.SIGKILL)
    assert os.path.exists(store / "Runs" / "one" / "extra" / "mic_00.mrc")
