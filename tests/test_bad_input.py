"""Bad input gets a clear sentence, the right exit code, and changes nothing."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from sqlite3 import connect

import pytest

from onesync.core.model import STATUS_FOLDER
from tests.node import SOON, Node, picture, toml
from tests.standin.mounted import Mounted

STATUS = os.fsdecode(STATUS_FOLDER)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    path.mkdir()
    (path / "theirs").write_bytes(b"precious")
    return path


@pytest.fixture
def node(tmp_path: Path, store: Path) -> Iterator[Node]:
    node = Node(tmp_path / "node", store)
    yield node
    if node.running():
        node.end(9)


def refused(node: Node, code: int, *words: str) -> None:
    """The program must end with ``code`` and say ``words``; nothing changed on either side."""
    before = picture(node.store), picture(node.work)
    assert node.refusal() == code, node.log()
    log = node.log()
    assert "Traceback" not in log
    for word in words:
        assert word in log
    assert (picture(node.store), picture(node.work)) == before


def test_a_working_copy_that_is_not_ours(node: Node) -> None:
    (node.work / "mine").write_bytes(b"precious")
    refused(node, 13, "not empty", "Empty it or name another one")


def test_the_same_directory_twice(node: Node) -> None:
    node.configure(onedata_dir=node.work)
    refused(node, 78, "the same or one lies inside the other")


def test_one_directory_inside_the_other(node: Node) -> None:
    node.configure(onedata_dir=node.work / "inner")
    refused(node, 78, "one lies inside the other")
    (node.store / "work").mkdir()
    node.configure(working_dir=node.store / "work")
    refused(node, 78, "one lies inside the other")


def test_a_link_does_not_hide_that_the_directories_are_the_same(node: Node, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(node.store)
    node.configure(working_dir=tmp_path / "alias")
    refused(node, 78, "one lies inside the other")


def test_a_replica_that_is_missing(node: Node) -> None:
    node.configure(onedata_dir=node.store / "missing")
    refused(node, 14, "cannot be reached", "Mount it")


def test_a_replica_that_is_not_on_fuse(node: Node) -> None:
    node.configure(mount__require_fuse=True)
    refused(node, 14, "not on a FUSE mount")


@pytest.mark.fuse
def test_the_top_of_the_mount(tmp_path: Path, mounted: Mounted) -> None:
    node = Node(tmp_path / "node", mounted.path, mount__require_fuse=True)
    refused(node, 78, "top of its mount", "inside a space")


def test_a_lock_that_is_held(node: Node, tmp_path: Path) -> None:
    other = Node(tmp_path / "other", node.store)
    other.deploy()
    try:
        assert node.refusal() == 11
        assert "deployed elsewhere" in node.log()
        assert "onesync unlock" in node.log()
        assert list(node.work.iterdir()) == []
    finally:
        assert other.end() == 0


def test_a_lock_of_an_old_script(node: Node) -> None:
    (node.store / STATUS).mkdir()
    text = "HOST: old.example.org\nMOUNT: /m\nDIR: /d\nUSER: ada\nDATE: yesterday\n"
    (node.store / STATUS / "lock").write_text(text)
    assert node.refusal() == 11
    assert "old.example.org" in node.log()
    assert (node.store / STATUS / "lock").read_text() == text


def test_a_status_folder_of_a_newer_format(node: Node) -> None:
    (node.store / STATUS).mkdir()
    newer = {"onesync": "folder", "format": 99, "folder_id": "x"}
    (node.store / STATUS / "folder.json").write_text(json.dumps(newer))
    refused(node, 13, "format 99", "Install a newer onesync")


@pytest.mark.parametrize("folder_id", ["\ud800", "\x1b[31mred", "f1", "A" * 32, "0" * 33, 5, None])
def test_a_folder_record_whose_id_onesync_never_wrote(node: Node, folder_id: object) -> None:
    (node.store / STATUS).mkdir()
    record = {"onesync": "folder", "format": 1, "folder_id": folder_id}
    (node.store / STATUS / "folder.json").write_text(json.dumps(record))
    refused(node, 13, "folder.json of the status folder cannot be read", "Restore it from a backup")


def test_a_damaged_checkpoint_is_passed_over_loudly(node: Node) -> None:
    node.deploy()
    (node.work / "first").write_bytes(b"1")
    assert node.flush() == 0
    (node.work / "second").write_bytes(b"2")
    assert node.end() == 0, node.log()
    manifest = node.store / STATUS / "manifest"
    final = max(manifest.iterdir())
    final.write_bytes(final.read_bytes()[:-20])
    node.deploy()
    assert "The manifest is damaged" in node.log()
    kinds = {problem["kind"] for problem in node.status()["problems"]}
    assert "manifest_damaged" in kinds
    assert (node.work / "second").read_bytes() == b"2"
    assert node.end() == 0, node.log()


def test_a_manifest_without_any_good_checkpoint(node: Node) -> None:
    node.deploy()
    assert node.end() == 0, node.log()
    for path in (node.store / STATUS / "manifest").iterdir():
        path.write_bytes(b"zeros")
    before = picture(node.store)
    assert node.refusal() == 13
    assert "No checkpoint of the manifest can be used" in node.log()
    assert not (node.store / STATUS / "lock").exists()
    theirs = {path: item for path, item in before.items() if STATUS_FOLDER not in path}
    now = picture(node.store)
    assert {path: item for path, item in now.items() if STATUS_FOLDER not in path} == theirs


def test_special_files_are_left_out_and_reported(node: Node) -> None:
    node.deploy()
    os.mkfifo(node.work / "pipe")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(os.path.relpath(node.work / "socket"))
    (node.work / "file").write_bytes(b"1")
    flushed = node.command("flush")
    assert flushed.returncode == 3
    assert "pipe is a socket, FIFO or device and is left out" in flushed.stderr
    assert "socket is a socket, FIFO or device" in flushed.stderr
    assert (node.store / "file").read_bytes() == b"1"
    assert not (node.store / "pipe").exists()
    (node.work / "pipe").unlink()
    (node.work / "socket").unlink()
    assert node.flush() == 0, node.log()
    assert node.end() == 0, node.log()


def test_a_name_that_onesync_keeps_for_itself_is_reported(node: Node) -> None:
    node.deploy()
    (node.work / ".onesync~mine").write_bytes(b"1")
    flushed = node.command("flush")
    assert (flushed.returncode, "rename it" in flushed.stderr) == (3, True)
    assert node.end() == 0, node.log()


def test_a_state_directory_that_is_not_there(node: Node) -> None:
    node.configure(state_dir=node.home / "missing")
    refused(node, 78, "state_dir", "missing")


def test_a_metrics_address_that_no_node_could_have(node: Node) -> None:
    """One that is only taken keeps nothing from being deployed (test_exposition)."""
    address = "no.such.host.invalid:1"
    node.configure(metrics__listen=address)
    refused(node, 78, address, "metrics.listen")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch__setle_seconds": 1}, "batch.setle_seconds is not a key"),
        ({"batch__settle_seconds": -1}, "batch.settle_seconds"),
        ({"push__workers": "many"}, "push.workers"),
        ({"working_dir": "relative"}, "working_dir: expected an absolute path"),
        ({"metrics__listen": "nowhere"}, "metrics.listen: expected HOST:PORT"),
        ({"metrics__folder": "a/b"}, "metrics.folder: expected a name without '/'"),
        ({"metrics__tls_key": "/key"}, "tls_certificate and tls_key are only good together"),
        ({"metrics__tls_client_authorities": "/ca"}, "needs tls_certificate and tls_key"),
        ({"metrics__textfile_dir": "here"}, "metrics.textfile_dir: expected an absolute path"),
        ({"lock__suspend_seconds": 1}, "the lock's times must rise"),
        ({"push__publish_order": ["a", 7]}, "push.publish_order"),
        ({"undeploy__on_reboot": "perhaps"}, "undeploy.on_reboot"),
    ],
)
def test_a_bad_configuration_names_file_key_and_what_is_expected(
    node: Node, options: dict[str, object], said: str
) -> None:
    node.configure(**options)
    refused(node, 78, str(node.config), said)


def test_a_configuration_that_cannot_be_read(node: Node) -> None:
    node.config.unlink()
    assert node.command("check").returncode == 78
    node.config.write_text("working_dir = ")
    checked = node.command("check")
    assert (checked.returncode, "is not TOML" in checked.stderr) == (78, True)


class PlainNode(Node):
    """A node whose program may not pass over permissions, also where the tests run as root."""

    def start(self) -> None:
        log = (self.home / "log").open("ab")
        command = [sys.executable, "-m", "onesync.program", "run", "--config", str(self.config)]
        if os.geteuid() == 0:
            command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
        self.process = subprocess.Popen(command, stderr=log, stdout=log)


@pytest.fixture
def plain(tmp_path: Path, store: Path) -> Iterator[PlainNode]:
    node = PlainNode(tmp_path / "plain", store)
    yield node
    if node.running():
        node.end(9)


def test_an_unreadable_file_is_a_problem_and_the_rest_goes_on(plain: Node) -> None:
    node = plain
    node.deploy()
    (node.work / "secret").write_bytes(b"precious")
    (node.work / "secret").chmod(0)
    (node.work / "closed").mkdir(mode=0)
    (node.work / "open").write_bytes(b"1")
    flushed = node.command("flush")
    assert flushed.returncode == 3
    assert "secret: A file of the working copy cannot be read" in flushed.stderr
    assert "closed cannot be listed" in flushed.stderr
    assert (node.store / "open").read_bytes() == b"1"
    (node.work / "secret").chmod(0o644)
    (node.work / "closed").chmod(0o755)
    assert node.flush() == 0, node.log()
    assert (node.store / "secret").read_bytes() == b"precious"
    assert node.end() == 0, node.log()


def _comes(path: Path, content: bytes, node: Node) -> None:
    deadline = time.monotonic() + SOON
    while not path.exists() or path.read_bytes() != content:
        assert time.monotonic() < deadline, node.log()
        time.sleep(0.05)


@pytest.fixture
def closing(plain: PlainNode) -> Iterator[PlainNode]:
    """A node with a directory that will let nobody in."""
    plain.configure(undeploy__flush_retry_seconds=2)
    plain.deploy()
    (plain.work / "run" / "inner").mkdir(parents=True)
    (plain.work / "run" / "f").write_bytes(b"1")
    (plain.work / "run" / "inner" / "g").write_bytes(b"1")
    (plain.work / "data").write_bytes(b"precious")
    assert plain.flush() == 0, plain.log()
    yield plain
    (plain.work / "run").chmod(0o755)


@pytest.mark.parametrize("mode", [0o644, 0o400, 0])
def test_what_lets_nobody_in_stops_nothing_else(closing: PlainNode, mode: int) -> None:
    """``chmod -R 644`` is what people type."""
    node, run = closing, closing.work / "run"
    run.chmod(mode)
    (run / "f").write_bytes(b"22")
    (node.work / "other").write_bytes(b"2")
    flushed = node.command("flush")
    assert flushed.returncode == 3
    assert (node.store / "other").exists(), flushed.stderr
    assert "run cannot be" in flushed.stderr
    assert len(flushed.stderr.splitlines()) == 1, "one problem, however much lies in it"
    assert (node.store / "run" / "f").read_bytes() == b"1"
    assert (node.store / "run" / "inner" / "g").read_bytes() == b"1"
    run.chmod(0o755)
    _comes(node.store / "run" / "f", b"22", node)
    assert node.flush() == 0, node.log()
    assert node.end() == 0, node.log()


def test_a_node_that_lets_nobody_in_somewhere_can_be_stopped(closing: PlainNode) -> None:
    (closing.work / "run").chmod(0o644)
    assert closing.end() == 0, closing.log()
    assert (closing.store / "run" / "f").read_bytes() == b"1"


def test_what_is_told_of_and_then_closed_stops_nothing_else(closing: PlainNode) -> None:
    """As tar does it as another user: files first, then the mode of their directory."""
    node, run = closing, closing.work / "run"
    node.pause()
    (run / "f").write_bytes(b"22")
    (run / "inner" / "g").unlink()
    run.chmod(0)
    (node.work / "other").write_bytes(b"2")
    node.go_on()
    _comes(node.store / "other", b"2", node)
    assert (node.store / "run" / "inner" / "g").read_bytes() == b"1", "nobody can look"
    run.chmod(0o755)
    _comes(node.store / "run" / "f", b"22", node)
    assert node.flush() == 0, node.log()
    assert not (node.store / "run" / "inner" / "g").exists()


def test_what_was_moved_to_where_nobody_can_look_stays(closing: PlainNode) -> None:
    node, run = closing, closing.work / "run"
    node.pause()
    (node.work / "data").rename(node.work / "datum")
    (node.work / "datum").rename(run / "datum")
    run.chmod(0o644)
    node.go_on()
    for _ in range(3):
        assert node.flush() == 3, node.log()
    assert (node.store / "data").read_bytes() == b"precious"
    run.chmod(0o755)
    _comes(node.store / "run" / "datum", b"precious", node)
    assert node.flush() == 0, node.log()
    assert not (node.store / "data").exists()


def test_a_database_in_what_was_renamed_and_closed_stays(closing: PlainNode) -> None:
    node = closing
    runs = node.work / "Runs"
    (runs / "1").mkdir(parents=True)
    with connect(runs / "1" / "run.db") as database:
        database.execute("CREATE TABLE t (a)")
        database.execute("INSERT INTO t VALUES (1)")
    database.close()
    assert node.flush() == 0, node.log()
    node.pause()
    (runs / "1").rename(runs / "2")
    (runs / "2").chmod(0o644)
    node.go_on()
    for _ in range(3):
        assert node.flush() == 3, node.log()
    assert list(node.store.glob("Runs/*/run.db")), node.log()
    (runs / "2").chmod(0o755)
    assert node.flush() == 0, node.log()
    assert (node.store / "Runs" / "2" / "run.db").exists()


def test_a_state_directory_that_cannot_be_written(plain: Node) -> None:
    (plain.home / "state").chmod(0o500)
    refused(plain, 78, "state_dir", "can write")


def test_a_toml_value_survives_the_test_writer() -> None:
    assert toml({"a": Path("/x"), "s__b": [1]}) == 'a = "/x"\n[s]\nb = [1]\n'
