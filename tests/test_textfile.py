"""What is told of a daemon that is gone: the file for node_exporter's textfile collector."""

from __future__ import annotations

import re
import signal
import subprocess
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Gauge

from onesync.exposition import Textfile
from tests.node import Node
from tests.test_deploy import forget_lock

FOLDER = "onesync"
"""The name of a test's configuration file, without ".toml"."""


@pytest.fixture
def told(tmp_path: Path) -> Path:
    (tmp_path / "textfile").mkdir()
    return tmp_path / "textfile"


@pytest.fixture
def node(nodes: list[Node], told: Path) -> Node:
    nodes[0].configure(metrics__textfile_dir=told)
    return nodes[0]


def values(place: Path, folder: str = FOLDER) -> dict[str, float]:
    text = (place / f"onesync-{folder}.prom").read_text()
    pattern = rf'^onesync_last_exit_(\w+){{folder="{folder}",port="\d+"}} (\S+)$'
    return {name: float(value) for name, value in re.findall(pattern, text, re.MULTILINE)}


def test_a_daemon_that_undeployed_says_so_and_is_silent_while_it_runs(
    node: Node, told: Path
) -> None:
    node.deploy()
    (node.work / "a").write_text("1")
    assert node.end() == 0, node.log()
    left = values(told)
    assert left.pop("timestamp_seconds") >= left.pop("success_timestamp_seconds") > 0
    assert left.pop("flush_duration_seconds") > 0
    assert left == {"code": 0, "clean": 1, "pending_paths": 0, "pending_bytes": 0}
    assert [file.name for file in told.iterdir()] == [f"onesync-{FOLDER}.prom"]
    node.deploy()
    assert not list(told.iterdir()), "a daemon that lives left no last word"
    node.end(signal.SIGKILL)
    assert not list(told.iterdir()), "and one that was killed could not"


def test_what_cleaning_removed_does_not_count_as_pending(node: Node, told: Path) -> None:
    node.configure(metrics__textfile_dir=told, undeploy__clean_working_dir=True)
    node.deploy()
    (node.work / "directory").mkdir()
    for name in ("a", "b", "directory/c"):
        (node.work / name).write_text(name)
    assert node.end() == 0, node.log()
    assert not list(node.work.iterdir())
    assert values(told)["pending_paths"] == 0


def test_a_final_flush_that_did_not_finish_tells_what_is_pending(node: Node, told: Path) -> None:
    node.configure(metrics__textfile_dir=told, undeploy__flush_retry_seconds=0.5)
    node.deploy()
    assert node.flush() == 0
    node.store.rename(node.store.with_name("away"))
    (node.work / "file").write_bytes(bytes(1000))
    assert node.end() == 10, node.log()
    left = values(told)
    assert (left["code"], left["clean"]) == (10, 0)
    assert left["pending_paths"] >= 1
    assert left["pending_bytes"] >= 1000
    assert left["success_timestamp_seconds"] > 0


def test_a_daemon_that_handed_over_left_as_it_should(node: Node, told: Path) -> None:
    node.deploy()
    (node.work / "a").write_text("1")
    assert node.command("handover").returncode == 0, node.log()
    assert node.wait() == 0
    left = values(told)
    assert (left["code"], left["clean"], left["pending_paths"]) == (0, 1, 0)


def test_a_lock_that_was_lost_is_told(node: Node, told: Path) -> None:
    node.configure(metrics__textfile_dir=told, lock__beat_seconds=0.5)
    node.deploy()
    forget_lock(node.store)
    assert node.wait() == 12, node.log()
    assert (values(told)["code"], values(told)["clean"]) == (12, 0)


def test_each_folder_of_a_node_has_a_file_of_its_own(nodes: list[Node], told: Path) -> None:
    one, two = nodes
    for node in nodes:
        node.configure(metrics__textfile_dir=told, metrics__folder=node.home.name)
    one.deploy()
    assert two.refusal() == 11, two.log()
    assert values(told, "two")["code"] == 11
    assert one.end() == 0, one.log()
    assert (values(told, "one")["code"], values(told, "two")["code"]) == (0, 11)


def test_promtool_finds_nothing_to_mend(node: Node, told: Path) -> None:
    node.deploy()
    assert node.end() == 0, node.log()
    text = (told / f"onesync-{FOLDER}.prom").read_bytes()
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, check=False
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")


def _one() -> CollectorRegistry:
    registry = CollectorRegistry()
    Gauge("one", "One", registry=registry).set(1)
    return registry


def test_readers_see_all_or_nothing(told: Path) -> None:
    textfile = Textfile(told, "a")
    final = told / "onesync-a.prom"
    final.write_text("old")
    (told / "onesync-a.new").write_text("of one that died here")
    final.chmod(0o600)
    (told / "reader").hardlink_to(final)
    textfile.write(_one())
    assert (told / "reader").read_text() == "old", "it was replaced, not written over"
    assert "one 1.0" in final.read_text()
    assert final.stat().st_mode & 0o777 == 0o644, "node_exporter is another user"
    assert {file.name for file in told.iterdir()} == {"reader", "onesync-a.prom"}


def test_no_link_is_followed(told: Path) -> None:
    victim = told / "victim"
    victim.write_text("precious")
    for name in ("onesync-a.prom", "onesync-a.new"):
        (told / name).symlink_to(victim)
    Textfile(told, "a").write(_one())
    assert victim.read_text() == "precious"
    assert "one 1.0" in (told / "onesync-a.prom").read_text()
    assert not (told / "onesync-a.prom").is_symlink()


def test_a_directory_that_is_gone_ends_nothing(
    told: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told.rmdir()
    textfile = Textfile(told, "a")
    textfile.remove()
    textfile.write(_one())
    assert caplog.messages == ["textfile not written"]


def test_a_directory_that_is_not_there_is_refused_at_the_door(node: Node, told: Path) -> None:
    told.rmdir()
    assert node.refusal() == 78
    assert f"metrics.textfile_dir {told} is not a directory" in node.log()
