"""One working directory is one instance's, whatever their other directories are."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.node import Node, picture

LOCKS_NO_DIRECTORY = """
import errno, fcntl, os, stat
locks = fcntl.flock
def flock(file, how):
    if stat.S_ISDIR(os.fstat(file).st_mode):
        raise OSError(errno.{name}, os.strerror(errno.{name}))
    locks(file, how)
fcntl.flock = flock
"""


@pytest.fixture
def two(tmp_path: Path, nodes: list[Node]) -> Node:
    """Another folder's instance: its configuration was copied, and the directory forgotten."""
    one, two = nodes
    two.store = tmp_path / "other"
    two.store.mkdir()
    (two.store / "file").write_bytes(b"project B")
    two.work.rmdir()
    two.work = one.work
    two.configure(undeploy__clean_working_dir=True)
    return two


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """As another instance does."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)


def refuses(node: Node) -> None:
    before = picture(node.work), picture(node.store)
    assert node.refusal() == 11, node.log()
    assert f"uses the working directory {node.work}; nothing was changed" in node.log()
    assert (picture(node.work), picture(node.store)) == before


def test_a_second_instance_in_a_working_directory_is_refused(
    nodes: list[Node], store: Path, two: Node
) -> None:
    one = nodes[0]
    one.deploy()  # an empty folder: nothing else tells that the directory is taken
    refuses(two)
    (one.work / "file").write_bytes(b"project A")
    assert one.end() == 0, one.log()
    assert (store / "file").read_bytes() == b"project A"


def test_a_working_directory_that_was_made_anew_is_one_instances_too(
    nodes: list[Node], two: Node
) -> None:
    one = nodes[0]
    one.deploy()
    one.end(signal.SIGKILL)
    shutil.rmtree(one.work)
    one.configure(stagein__lost_copy="restage")
    one.deploy()
    refuses(two)
    assert one.end() == 0, one.log()


def test_no_child_keeps_the_working_directory_of_a_dead_daemon(nodes: list[Node]) -> None:
    one = nodes[0]
    one.deploy()
    assert one.process is not None
    tasks = Path(f"/proc/{one.process.pid}/task").glob("*/children")
    children = [int(pid) for task in tasks for pid in task.read_text().split()]
    assert children
    for pid in children:
        opened = {os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()}
        assert str(one.work) not in opened
    one.end(signal.SIGKILL)
    with held(one.work):
        pass
    one.deploy()
    assert one.end() == 0, one.log()


def test_a_cleaning_is_not_finished_in_a_directory_that_another_instance_has(
    nodes: list[Node],
) -> None:
    one = nodes[0]
    one.configure(undeploy__clean_working_dir=True)
    one.start_dying("onesync.working_copy", "_Removal", "remove", 1)
    one.wait_for_phase("syncing")
    (one.work / "file").write_bytes(b"project A")
    assert one.end() == -signal.SIGKILL
    with held(one.work):
        refuses(one)
    one.start()
    assert one.wait() == 0, one.log()
    assert list(one.work.iterdir()) == []


def test_adopting_a_working_directory_that_another_instance_has_is_refused(
    nodes: list[Node], two: Node
) -> None:
    one = nodes[0]
    one.deploy()
    refused = two.command("adopt")
    assert refused.returncode == 11, refused.stderr
    assert "uses the working directory" in refused.stderr
    assert one.end() == 0, one.log()


@pytest.mark.parametrize("name", ["ENOLCK", "EOPNOTSUPP"])
def test_a_file_system_without_locks_is_told_of_and_goes_on(
    nodes: list[Node], store: Path, name: str
) -> None:
    one = nodes[0]
    one.start_after(LOCKS_NO_DIRECTORY.format(name=name))
    one.wait_for_phase("syncing")
    assert "cannot be locked" in one.log()
    (one.work / "file").write_bytes(b"project A")
    assert one.end() == 0, one.log()
    assert (store / "file").read_bytes() == b"project A"
