"""Before a working copy is cleaned OneData still has to hold what was pushed days before."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.node import Node
from tests.standin.mounted import Mounted
from tests.test_inconsistent_mount import contents

pytestmark = pytest.mark.fuse

CONTENT = b"precious" * 1000
FILES = 40


@pytest.fixture(params=["plain", "18.02", "21.02"])
def mounted(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mounted]:
    with Mounted(tmp_path / "onedata", profile=request.param) as found:
        (found.backing / "project" / "Runs" / "staged").mkdir(parents=True)
        for name in ("staged", "Runs/staged/file"):
            (found.backing / "project" / name).write_bytes(CONTENT)
        yield found


@pytest.fixture
def one(tmp_path: Path, mounted: Mounted) -> Iterator[Node]:
    node = Node(tmp_path / "one", mounted.path / "project")
    configure(node)
    yield node
    if node.running():
        node.end(9)


def configure(node: Node, **options: object) -> None:
    always = {"mount__io_timeout_seconds": 5, "undeploy__clean_working_dir": True}
    node.configure(**{**always, **options})


def push(node: Node) -> dict[bytes, object]:
    """Push some files, and deploy once more; returns what OneData has to hold in the end.

    The end of the first deployment leaves nothing unverified, and its working copy is used again.
    """
    configure(node, undeploy__clean_working_dir=False)
    node.deploy()
    (node.work / "Runs" / "one").mkdir()
    for number in range(FILES):
        (node.work / "Runs" / "one" / f"{number}").write_bytes(b"%d" % number + CONTENT)
    (node.work / "pushed").write_bytes(CONTENT)
    (node.work / "empty").touch()
    assert node.end() == 0, node.log()
    configure(node)
    node.deploy()
    return contents(node.work)


def stopped_in_vain(node: Node) -> int:
    """Let the final flush be tried for a second only; returns the exit code."""
    configure(node, undeploy__flush_retry_seconds=1)
    assert node.command("reload").returncode == 0
    configure(node)
    return node.end()


def truncate(path: Path) -> None:
    os.truncate(path, 5)


def looks(mounted: Mounted) -> list[str]:
    """The users' files that were looked up since the log began, in order."""
    calls = [c.path.removeprefix("/project/") for c in mounted.log() if c.operation == "getattr"]
    return sorted(
        path
        for path in calls
        if (mounted.backing / "project" / path).is_file() and ".deployment" not in path
    )


@pytest.mark.parametrize(
    ("name", "lose"),
    [("pushed", Path.unlink), ("staged", truncate), ("Runs/staged/file", Path.unlink)],
)
def test_a_file_that_went_in_onedata_is_sent_anew(
    one: Node, mounted: Mounted, name: str, lose: Callable[[Path], None]
) -> None:
    expected = push(one)
    lose(mounted.backing / "project" / name)
    assert one.end() == 0, one.log()
    assert contents(mounted.backing / "project") == expected
    assert list(one.work.iterdir()) == []
    assert "OneData does not hold what was pushed" in one.log()


def test_a_directory_that_went_in_onedata_is_sent_anew(one: Node, mounted: Mounted) -> None:
    expected = push(one)
    shutil.rmtree(mounted.backing / "project" / "Runs")
    assert one.end() == 0, one.log()
    assert contents(mounted.backing / "project") == expected
    assert list(one.work.iterdir()) == []


def test_a_directory_in_the_place_of_a_file_is_kept_and_so_is_the_file_here(
    one: Node, mounted: Mounted
) -> None:
    expected = push(one)
    stored = mounted.backing / "project" / "Runs" / "one" / "1"
    stored.unlink()
    stored.mkdir()
    (stored / "theirs").write_bytes(b"theirs")
    assert stopped_in_vain(one) == 10, one.log()
    assert "Runs/one/1 is something else in OneData" in one.log()
    assert (stored / "theirs").read_bytes() == b"theirs"
    assert contents(one.work) == expected
    shutil.rmtree(stored)
    one.deploy()
    assert one.end() == 0, one.log()
    assert contents(mounted.backing / "project") == expected


def test_a_file_in_the_place_of_a_directory_is_kept_and_so_are_the_files_here(
    one: Node, mounted: Mounted
) -> None:
    expected = push(one)
    stored = mounted.backing / "project" / "Runs"
    shutil.rmtree(stored)
    stored.write_bytes(b"theirs")
    assert stopped_in_vain(one) == 10, one.log()
    assert stored.read_bytes() == b"theirs"
    assert contents(one.work) == expected


@pytest.mark.parametrize("mounted", ["18.02", "21.02"], indirect=True)
@pytest.mark.parametrize("cleans", [True, False])
def test_each_file_is_looked_up_once_and_only_where_it_is_cleaned(
    one: Node, mounted: Mounted, cleans: bool
) -> None:
    expected = push(one)
    one.end(9)
    configure(one, undeploy__clean_working_dir=cleans)
    one.deploy()
    mounted.start_log()
    assert one.end() == 0, one.log()
    files = sorted(os.fsdecode(p) for p, told in expected.items() if isinstance(told, bytes))
    assert looks(mounted) == (files if cleans else [])


def test_a_mount_that_fails_or_hangs_meanwhile_is_waited_for_as_in_a_flush(
    one: Node, mounted: Mounted
) -> None:
    expected = push(one)
    (mounted.backing / "project" / "pushed").unlink()
    mounted.fail("getattr", errno.ENOTCONN, times=-1, pattern="staged$")
    assert stopped_in_vain(one) == 10, one.log()
    assert "The final flush could not finish" in one.log()
    assert contents(one.work) == expected
    mounted.clear()
    one.deploy()
    mounted.hang_at("getattr", pattern="staged$")
    assert stopped_in_vain(one) == 10, one.log()
    assert contents(one.work) == expected
    mounted.release()
    one.deploy()
    assert one.end() == 0, one.log()
    assert contents(mounted.backing / "project") == expected
    assert list(one.work.iterdir()) == []
