"""What somebody changes in OneData by hand, while a node works, stops nothing but that one path.

It is kept and told where bytes of it are somebody's; what the working copy has comes there anew.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.node import Node, picture

LARGE = 3_000_000
PRECIOUS = b"of somebody else"

Hand = Callable[[Path], None]
"""What somebody does in OneData, or a program in the working copy."""


def removed(top: Path) -> None:
    (top / "D/f").unlink()


def cut_off(top: Path) -> None:
    os.truncate(top / "D/f", 10)


def made_a_directory(top: Path) -> None:
    removed(top)
    (top / "D/f").mkdir()
    (top / "D/f/precious").write_bytes(PRECIOUS)


def made_a_link(top: Path) -> None:
    removed(top)
    (top / "D/f").symlink_to("nowhere")


def removed_with_its_directory(top: Path) -> None:
    shutil.rmtree(top / "D")


def touch(top: Path) -> None:
    os.utime(top / "D/f")


def modify(top: Path) -> None:
    (top / "D/f").write_bytes(os.urandom((top / "D/f").stat().st_size))


def chmod(top: Path) -> None:
    (top / "D/f").chmod(0o600)


def append(top: Path) -> None:
    with (top / "D/f").open("ab") as file:
        file.write(b"more")


def change_inside(top: Path) -> None:
    with (top / "D/f").open("r+b") as file:
        file.write(b"else")


def rename(top: Path) -> None:
    (top / "D/f").rename(top / "D/g")


def rename_directory(top: Path) -> None:
    (top / "D").rename(top / "E")


def link(top: Path) -> None:
    os.link(top / "D/f", top / "D/h")


def make_a_directory(top: Path) -> None:
    removed(top)
    (top / "D/f").mkdir()
    (top / "D/f/x").write_bytes(b"x")


def begin(node: Node, size: int) -> None:
    node.deploy()
    (node.work / "D").mkdir()
    (node.work / "D/f").write_bytes(os.urandom(size))
    (node.work / "D/keep").write_bytes(b"kept")
    assert node.flush() == 0, node.log()


def without_what_was_kept(found: dict[bytes, tuple[object, ...]]) -> dict[bytes, object]:
    """Return kinds, bytes and modes; a directory's time changes with what is kept in it."""
    return {
        path: entry[:2] if entry[0] == "dir" else entry
        for path, entry in found.items()
        if b"~kept~" not in path
    }


def precious_ones(store: Path) -> list[str]:
    found = (path for path in store.rglob("*") if path.is_file() and not path.is_symlink())
    return [str(p.relative_to(store)) for p in found if p.read_bytes() == PRECIOUS]


CASES = [
    *((hand, act) for hand in (removed, made_a_directory, made_a_link) for act in (
        touch, modify, chmod, append, change_inside, rename, link, make_a_directory)),
    *((cut_off, act) for act in (touch, modify, append, change_inside, rename, link)),
    *((removed_with_its_directory, act) for act in (rename, rename_directory, make_a_directory)),
]  # fmt: skip


@pytest.mark.parametrize("size", [100, LARGE])
@pytest.mark.parametrize(("hand", "act"), CASES)
def test_it_stops_nothing(nodes: list[Node], store: Path, hand: Hand, act: Hand, size: int) -> None:
    one, two = nodes
    begin(one, size)
    hand(store)
    act(one.work)
    (one.work / "other").write_bytes(b"other")
    code, problems = one.flush(), one.status()["problems"]
    assert (store / "other").read_bytes() == b"other"
    kept = precious_ones(store)
    if hand is made_a_directory:
        assert code == 3
        assert [os.path.dirname(path) for path in kept] == [problems[0]["path"]]
        assert problems[0]["kind"] == "newcomer"
    else:
        assert (code, problems) == (0, []), one.log()
    expected = without_what_was_kept(picture(one.work))
    assert one.end() == 0, one.log()
    assert precious_ones(store) == kept
    two.deploy()
    assert without_what_was_kept(picture(two.work)) == expected


def test_an_uploaded_directory_is_kept_when_the_batch_dies(nodes: list[Node], store: Path) -> None:
    one = nodes[0]
    begin(one, 100)
    assert one.end() == 0, one.log()
    one.start_dying("onesync.leftovers", "Leftovers", "tidy", 1)
    one.wait_for_phase("syncing")
    made_a_directory(store)
    modify(one.work)
    assert one.wait() == -signal.SIGKILL
    one.deploy()
    assert one.flush() == 3
    assert precious_ones(store) == ["D/f~kept~1/precious"]
    assert [problem["path"] for problem in one.status()["problems"]] == ["D/f~kept~1"]
    assert (store / "D/f").read_bytes() == (one.work / "D/f").read_bytes()


def test_an_uploaded_directory_is_kept_when_the_file_is_sent_anew(
    nodes: list[Node], store: Path
) -> None:
    one = nodes[0]
    begin(one, 100)
    made_a_directory(store)
    assert one.command("scrub").returncode == 0, one.log()
    assert precious_ones(store) == ["D/f~kept~1/precious"]
    assert [problem["path"] for problem in one.status()["problems"]] == ["D/f~kept~1"]
    assert (store / "D/f").read_bytes() == (one.work / "D/f").read_bytes()


def test_an_uploaded_directory_is_told_when_the_file_is_deleted(
    nodes: list[Node], store: Path
) -> None:
    one = nodes[0]
    begin(one, 100)
    made_a_directory(store)
    removed(one.work)
    assert one.flush() == 3
    assert precious_ones(store) == ["D/f/precious"]
    assert [problem["path"] for problem in one.status()["problems"]] == ["D/f"]
