"""Everything that a tree can be comes back on the next node as it was."""

from __future__ import annotations

import os
import stat
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from onesync.core.model import STATUS_FOLDER
from tests.node import Node, picture

DEEP = 1_100
"""More than Python's limit of calls within calls; the whole path has room in 4,096 bytes."""


def names(work: Path) -> dict[bytes, set[bytes]]:
    """Return the names of each hard-linked file, by each of them."""
    found: dict[int, set[bytes]] = defaultdict(set)
    for folder, _, files in os.walk(os.fsencode(work)):
        for name in files:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
                found[status.st_ino].add(os.path.relpath(path, os.fsencode(work)))
    return {name: group for group in found.values() for name in group}


def xattrs(work: Path) -> dict[str, dict[str, bytes]]:
    return {
        str(path.relative_to(work)): {name: os.getxattr(path, name) for name in os.listxattr(path)}
        for path in work.rglob("*")
        if not path.is_symlink() and os.listxattr(path)
    }


def restored(nodes: list[Node]) -> Path:
    """Undeploy node one, deploy node two, compare what any tree must keep."""
    one, two = nodes
    assert one.flush() == 0, one.log()
    expected = picture(one.work)
    assert one.end() == 0, one.log()
    two.deploy()
    assert picture(two.work) == expected
    assert two.status()["problems"] == []
    return two.work


@pytest.fixture
def work(nodes: list[Node]) -> Path:
    nodes[0].deploy()
    return nodes[0].work


def test_hard_links_are_restored_as_such(nodes: list[Node], work: Path) -> None:
    (work / "a").mkdir()
    (work / "a" / "one").write_bytes(b"shared")
    os.link(work / "a" / "one", work / "two")
    os.link(work / "a" / "one", work / "three")
    (work / "twin").write_bytes(b"shared")
    back = restored(nodes)
    assert names(back) == names(work)
    assert set(names(back)) == {b"a/one", b"two", b"three"}


def test_a_name_added_or_removed_changes_the_group(nodes: list[Node], work: Path) -> None:
    for name in ("one", "pair"):
        (work / name).write_bytes(b"shared")
    os.link(work / "one", work / "two")
    os.link(work / "pair", work / "gone")
    assert nodes[0].flush() == 0
    os.link(work / "one", work / "three")
    (work / "gone").unlink()
    back = restored(nodes)
    assert names(back) == names(work)
    assert set(names(back)) == {b"one", b"two", b"three"}


def test_a_change_through_one_name_reaches_all(nodes: list[Node], work: Path) -> None:
    (work / "one").write_bytes(b"first")
    os.link(work / "one", work / "two")
    assert nodes[0].flush() == 0
    with (work / "one").open("ab") as file:
        file.write(b" and second")
    back = restored(nodes)
    assert (back / "two").read_bytes() == b"first and second"
    assert names(back) == names(work)
    with (back / "two").open("ab") as file:
        file.write(b" and third")
    assert nodes[1].flush() == 0
    assert (nodes[1].store / "one").read_bytes() == b"first and second and third"


def test_extended_attributes_come_back(nodes: list[Node], work: Path) -> None:
    (work / "dir").mkdir()
    for name in ("file", "read-only", "changed"):
        (work / name).write_bytes(b"x")
    os.setxattr(work / "file", "user.odd \xe9", b"\xff\0value")
    os.setxattr(work / "read-only", "user.a", b"1")
    (work / "read-only").chmod(0o400)
    os.setxattr(work / "dir", "user.of-a-directory", b"2")
    assert nodes[0].flush() == 0
    os.setxattr(work / "changed", "user.later", b"3")
    back = restored(nodes)
    assert xattrs(back) == xattrs(work)
    assert len(xattrs(back)) == 4


def test_modes_come_back_but_never_setuid(nodes: list[Node], work: Path) -> None:
    for mode in (0o600, 0o444, 0o777, 0o000, 0o4755, 0o2755):
        path = work / f"{mode:o}"
        path.write_bytes(b"x")
        path.chmod(mode)
    (work / "shared").mkdir()
    (work / "shared").chmod(0o3770)
    back = restored(nodes)
    assert all(path.stat().st_mode & 0o7000 == 0 for path in back.iterdir())
    assert (back / "4755").stat().st_mode & 0o777 == 0o755


def test_any_name_comes_back(nodes: list[Node], work: Path) -> None:
    odd = (b"\xff\xfe", b"new\nline", b" ", b"-rf", b"a" * 255, b"%2f", b'"', b"\\", b"x@y", b"~")
    for name in (*odd, "é".encode() * 127, b".hidden", b"tab\t", b"\x01\x7f"):
        Path(os.fsdecode(os.fsencode(work) + b"/" + name)).write_bytes(name)
    folder = os.fsencode(work) + b"/folder \xff"
    os.mkdir(folder)
    Path(os.fsdecode(folder + b"/inner")).write_bytes(b"x")
    restored(nodes)


def test_long_paths_come_back(nodes: list[Node], work: Path) -> None:
    deep = work / "/".join(["d" * 100] * 25)
    deep.mkdir(parents=True)
    (deep / "file").write_bytes(b"x")
    assert len(os.fsencode(deep)) > 2500
    back = restored(nodes)
    assert (back / deep.relative_to(work) / "file").read_bytes() == b"x"


def test_a_path_too_long_for_any_call_is_a_problem_and_the_rest_goes_on(
    nodes: list[Node], work: Path
) -> None:
    top = os.open(work, os.O_RDONLY)
    current = top
    for _ in range(50):
        os.mkdir("d" * 100, dir_fd=current)
        current = os.open("d" * 100, os.O_RDONLY, dir_fd=current)
    os.close(os.open("lost", os.O_CREAT | os.O_WRONLY, dir_fd=current))
    (work / "file").write_bytes(b"x")
    assert nodes[0].flush() == 3, nodes[0].log()
    assert (nodes[0].store / "file").read_bytes() == b"x"
    assert {p["kind"] for p in nodes[0].status()["problems"]} == {"unreadable", "unwatched"}


def make_deep(top: Path, depth: int) -> None:
    """Make directories in each other, deeper than Python calls itself."""
    current = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=current)
        inner = os.open("d", os.O_RDONLY, dir_fd=current)
        os.close(current)
        current = inner
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=current))
    os.close(current)


@pytest.fixture
def deep_ones_go(nodes: list[Node]) -> Iterator[None]:
    """Remove what pytest, which calls itself for each level, could not remove later."""
    yield
    tops = [*(node.work / "d" for node in nodes), nodes[0].store / "d"]
    subprocess.run(["rm", "-rf", *map(str, tops)], check=True)


@pytest.mark.usefixtures("deep_ones_go")
def test_a_tree_of_any_depth_comes_and_goes(nodes: list[Node], work: Path) -> None:
    one = nodes[0]
    make_deep(work, DEEP)
    assert one.flush() == 0, one.log()
    assert (one.store / "/".join(["d"] * DEEP) / "file").exists()
    subprocess.run(["rm", "-rf", str(work / "d")], check=True)
    assert one.flush() == 0, one.log()
    assert one.end() == 0, one.log()
    assert {path.name for path in one.store.iterdir()} == {STATUS_FOLDER.decode()}


@pytest.mark.usefixtures("deep_ones_go")
def test_what_somebody_put_deep_into_a_tree_stays_when_that_goes(
    nodes: list[Node], work: Path
) -> None:
    one = nodes[0]
    make_deep(work, DEEP)
    assert one.flush() == 0, one.log()
    half = one.store / "/".join(["d"] * (DEEP // 2))
    (half / "theirs").write_bytes(b"1")
    subprocess.run(["rm", "-rf", str(work / "d")], check=True)
    assert one.flush() == 3, one.log()
    assert [problem["kind"] for problem in one.status()["problems"]] == ["newcomer"]
    assert os.listdir(half) == ["theirs"]
    assert one.end() == 0, one.log()
    assert (half / "theirs").read_bytes() == b"1"


def test_links_of_every_kind_come_back(nodes: list[Node], work: Path) -> None:
    (work / "dir").mkdir()
    (work / "to-dir").symlink_to("dir")
    (work / "dangling").symlink_to("nowhere")
    (work / "loop").symlink_to("loop")
    (work / "long").symlink_to("x" * 4000)
    (work / "outside").symlink_to("/etc/passwd")
    (work / "inside").symlink_to(work / "dir")
    one, two = nodes
    assert one.flush() == 0
    assert one.end() == 0, one.log()
    two.deploy()
    assert os.readlink(two.work / "inside") == str(two.work / "dir"), "it follows the directory"
    for name in ("to-dir", "dangling", "loop", "long", "outside"):
        assert os.readlink(two.work / name) == os.readlink(work / name)


@pytest.mark.parametrize("before", ["file", "link", "dir"])
@pytest.mark.parametrize("after", ["file", "link", "dir"])
def test_a_path_changes_its_kind(nodes: list[Node], work: Path, before: str, after: str) -> None:
    path = work / "path"
    make(path, before)
    assert nodes[0].flush() == 0
    if before == "dir":
        (path / "inner").unlink()
        path.rmdir()
    else:
        path.unlink()
    make(path, after)
    restored(nodes)


def make(path: Path, kind: str) -> None:
    if kind == "file":
        path.write_bytes(b"content")
    elif kind == "link":
        path.symlink_to("somewhere")
    else:
        path.mkdir()
        (path / "inner").write_bytes(b"inner")


def test_other_bytes_of_the_same_size_and_time_are_noticed(nodes: list[Node], work: Path) -> None:
    (work / "file").write_bytes(b"one")
    assert nodes[0].flush() == 0
    status = (work / "file").stat()
    (work / "file").write_bytes(b"two")
    os.utime(work / "file", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert nodes[0].flush() == 0
    assert (nodes[0].store / "file").read_bytes() == b"two"
    (work / "new").write_bytes(b"six")
    os.utime(work / "new", ns=(status.st_atime_ns, status.st_mtime_ns))
    (work / "new").rename(work / "file")
    assert nodes[0].flush() == 0
    assert (nodes[0].store / "file").read_bytes() == b"six"
