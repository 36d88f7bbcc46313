"""What is written without a trace in size and times reaches OneData all the same."""

from __future__ import annotations

import mmap
import os
import resource
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from onesync.rereads import Rereads
from tests.node import SOON, Node


@pytest.fixture
def node(nodes: list[Node]) -> Iterator[Node]:
    one, _ = nodes
    one.configure(mount__io_timeout_seconds=120)
    one.deploy()
    yield one
    if one.running():
        assert one.end() == 0, one.log()


def _store_twice(node: Node, path: Path) -> None:
    """Let the second of two stores into one page come after the first one was pushed."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[0] = 1
        assert node.flush() == 0, node.log()
        before = path.stat()
        mapped[1] = 2
    after = path.stat()
    assert (after.st_mtime_ns, after.st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns)
    assert path.read_bytes()[:2] == b"\1\2"


@pytest.mark.parametrize("pages", [1, 1000], ids=["small", "patched"])
def test_a_store_into_a_page_that_was_pushed_dirty_is_pushed_too(node: Node, pages: int) -> None:
    path = node.work / "micrograph.mrc"
    path.write_bytes(bytes(pages * mmap.PAGESIZE))
    os.link(path, node.work / "other-name.mrc")
    assert node.flush() == 0, node.log()
    _store_twice(node, path)
    assert node.flush() == 0, node.log()
    for name in ("micrograph.mrc", "other-name.mrc"):
        assert (node.store / name).read_bytes() == path.read_bytes(), name


def test_nobody_has_to_ask_for_it(node: Node) -> None:
    path = node.work / "micrograph.mrc"
    path.write_bytes(bytes(mmap.PAGESIZE))
    _store_twice(node, path)
    deadline = time.monotonic() + SOON
    while (node.store / path.name).read_bytes() != path.read_bytes():
        assert time.monotonic() < deadline, node.log()
        time.sleep(0.05)


def test_each_file_is_read_by_turns_and_who_waits_is_woken(tmp_path: Path) -> None:
    for name in (b"a", b"b"):
        (tmp_path / os.fsdecode(name)).write_bytes(name)
    read = threading.Semaphore(0)
    rereads = Rereads(bytes(tmp_path), read.release)
    for name in (b"a", b"b", b"b", b"gone"):
        rereads.ask(name)
    assert rereads.pending() == {b"a", b"b", b"gone"}
    digests = {name: blake3(name).hexdigest() for name in (b"a", b"b")}
    assert rereads.found(wait=True) == digests, "what is gone, its event tells of"
    assert not rereads.pending()
    while read.acquire(timeout=0.1):
        pass
    (tmp_path / "a").write_bytes(b"new")
    rereads.ask(b"a")
    assert read.acquire(timeout=SOON)
    assert rereads.found(wait=False) == {b"a": blake3(b"new").hexdigest()}


def test_a_file_that_cannot_be_read_has_no_digest(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    rereads = Rereads(bytes(tmp_path), lambda: None)
    few = resource.getrlimit(resource.RLIMIT_NOFILE)
    rereads.found(wait=True)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, few[1]))
    try:
        rereads.ask(b"a")
        assert rereads.found(wait=True) == {b"a": ""}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, few)
