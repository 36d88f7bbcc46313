"""The program on a mount that tells sizes late, loses bytes silently, and lists what once was."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest

from onesync.core.blocks import block_size
from onesync.core.model import STATUS_FOLDER
from tests.node import Node, picture
from tests.standin.mounted import Mounted
from tests.test_faults import flushed, is_up, troubles
from tests.test_program import names_of_ours

pytestmark = pytest.mark.fuse

SIZE = 200_000
LARGE = 2 << 20
OF_USERS = r"^/project/(?!\.deployment)"


@pytest.fixture
def store(mounted: Mounted) -> Path:
    return mounted.path / "project"


@pytest.fixture
def one(nodes: list[Node]) -> Node:
    node = nodes[0]
    node.configure(mount__require_fuse=True, mount__io_timeout_seconds=5, verify__content="all")
    return node


def begin(node: Node) -> None:
    """Deploy, and bring what is changed later."""
    node.deploy()
    for name in ("replaced", "appended", "gone"):
        (node.work / name).write_bytes(os.urandom(SIZE))
    (node.work / "patched").write_bytes(os.urandom(LARGE))
    flushed(node)


def change(node: Node) -> int:
    """Change in every way; returns how many bytes have to travel."""
    (node.work / "new").write_bytes(os.urandom(SIZE))
    (node.work / "replaced").write_bytes(os.urandom(SIZE + 1))
    with (node.work / "appended").open("ab") as file:
        file.write(os.urandom(SIZE))
    with (node.work / "patched").open("r+b") as file:
        file.write(os.urandom(SIZE))
    (node.work / "gone").unlink()
    return 5 * SIZE  # what is appended to is small, and travels whole


def blocks_of(length: int) -> int:
    """Return the bytes of the whole blocks that the head of the patched file touches."""
    size = block_size(LARGE)
    return -(-length // size) * size


def contents(root: Path) -> dict[bytes, object]:
    """Return the bytes of all users' files."""
    found = picture(root).items()
    return {path: told[1] for path, told in found if not path.startswith(STATUS_FOLDER)}


@pytest.mark.parametrize("own", [True, False])
def test_sizes_that_are_told_late_are_waited_for(one: Node, mounted: Mounted, own: bool) -> None:
    begin(one)
    mounted.late(1, own=own)
    mounted.reset()
    needed = change(one)
    flushed(one)
    # A patch writes its old blocks too.
    assert mounted.counts()["bytes_written"] < needed + 2 * SIZE
    assert "not pushed" not in one.log()
    mounted.late(0)
    expected = contents(one.work)
    assert one.end() == 0, one.log()
    assert contents(mounted.backing / "project") == expected
    assert names_of_ours(mounted.backing) == []


@pytest.mark.parametrize(("which", "times"), [("new", 1), (r"\.onesync~", 1), ("", 3)])
def test_bytes_that_are_dropped_are_sent_again_and_not_for_ever(
    one: Node, mounted: Mounted, which: str, times: int
) -> None:
    """Every call answers success; that a file is too short is all that shows.

    One dropped write costs one more batch at most: all three may be of one batch, or each of
    its own.
    """
    begin(one)
    mounted.drop_at("write", pattern=OF_USERS + ".*" + which, times=times)
    mounted.reset()
    batch = change(one) - SIZE + 2 * blocks_of(SIZE)  # A patch writes its old blocks too.
    flushed(one)
    records = 20_000
    assert mounted.counts()["bytes_written"] < (1 + times) * (batch + records)
    expected = contents(one.work)
    assert one.end() == 0, one.log()
    assert contents(mounted.backing / "project") == expected
    assert names_of_ours(mounted.backing) == []


@pytest.mark.parametrize("profile", ["plain", "21.02"])
def test_a_hole_that_no_size_tells_is_found_at_the_undeploy(
    one: Node, mounted: Mounted, profile: str
) -> None:
    mounted.remount(profile)
    mounted.buffer(1 << 20 if profile != "plain" else 0)
    one.deploy()
    mounted.drop_at("write" if profile == "plain" else "store", pattern=OF_USERS, times=1)
    # At once: sent again when it was written on it would come whole.
    (one.home / "large").write_bytes(os.urandom(3 * LARGE))
    (one.home / "large").rename(one.work / "large")
    flushed(one)
    stored = mounted.backing / "project" / "large"
    assert stored.stat().st_size == 3 * LARGE
    assert stored.read_bytes() != (one.work / "large").read_bytes(), "nobody noticed yet"
    expected = contents(one.work)
    assert one.end() == 0, one.log()
    assert contents(mounted.backing / "project") == expected


def test_a_mount_that_fails_for_good_is_waited_for_until_it_is_mounted_anew(
    one: Node, mounted: Mounted
) -> None:
    """As with a token that ran out: the client lives, and every call fails."""
    begin(one)
    mounted.fail("*", errno.ECONNABORTED, times=-1)
    change(one)
    one.wait_for_phase("backing_off")
    assert troubles(one) == ["MountNotThere"]
    assert "lost its connection" in one.status()["problems"][0]["text"]
    assert not is_up(one)
    assert one.status()["pending_paths"] > 0
    assert one.running()
    mounted.remount()
    one.wait_until(lambda: one.status()["pending_paths"] == 0)
    assert troubles(one) == []
    expected = contents(one.work)
    assert one.end() == 0, one.log()
    assert contents(mounted.backing / "project") == expected
    assert names_of_ours(mounted.backing) == []


def test_a_listing_of_before_the_deployment_deceives_nobody(
    nodes: list[Node], mounted: Mounted
) -> None:
    """It hides what came, and shows what is gone."""
    one, two = nodes
    (mounted.backing / "project" / "before").write_bytes(b"x")
    mounted.freeze()
    one.deploy()
    (one.work / "before").unlink()
    (one.work / "Runs" / "one").mkdir(parents=True)
    (one.work / "Runs" / "one" / "file").write_bytes(b"y")
    expected = picture(one.work)
    assert one.end() == 0, one.log()
    two.deploy()
    assert picture(two.work) == expected
    assert two.end() == 0, two.log()
    assert contents(mounted.backing / "project").keys() == expected.keys()


@pytest.mark.parametrize("between", ["nothing", "a deployment", "a lost index"])
def test_nothing_is_cleaned_that_the_client_lost_without_a_word(
    one: Node, mounted: Mounted, between: str
) -> None:
    """The mount cannot tell, the size is right, and no call has failed."""
    one.configure(mount__require_fuse=True, undeploy__clean_working_dir=between != "a deployment")
    one.deploy()
    mounted.drop_at("write", pattern=OF_USERS, times=1)
    # At once: sent again when it was written on it would come whole.
    (one.home / "large").write_bytes(os.urandom(3 * LARGE))
    (one.home / "large").rename(one.work / "large")
    flushed(one)
    (one.work / "small").write_bytes(os.urandom(SIZE))
    flushed(one)
    expected = contents(one.work)
    assert contents(mounted.backing / "project") != expected, "nobody noticed yet"
    if between == "a deployment":  # whose working copy is used again
        assert one.end() == 0, one.log()
        one.configure(mount__require_fuse=True, undeploy__clean_working_dir=True)
        one.deploy()
    elif between == "a lost index":
        one.end(signal.SIGKILL)
        for left in (one.home / "state").glob("index.sqlite*"):
            left.unlink()
        one.deploy()
    assert contents(mounted.backing / "project") != expected, "nobody noticed yet"
    assert one.end() == 0, one.log()
    assert contents(mounted.backing / "project") == expected
    assert list(one.work.iterdir()) == []
    assert "is read back" in one.log()
    # Where nothing was pushed nothing is read once more.
    told = len(one.log())
    one.deploy()
    assert one.end() == 0, one.log()
    assert list(one.work.iterdir()) == []
    assert "is read back" not in one.log()[told:]
