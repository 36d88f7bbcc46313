"""What a lost index is made anew from, where files were renamed meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from blake3 import blake3

from onesync.core.model import Entry, Kind, RelPath, Stamp, lost_stamp
from onesync.index import Index
from onesync.local import stamp_of
from onesync.rebuild import rebuild
from onesync.scanner import Scanner

CONTENT = b"what both had"


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with closing(Index(tmp_path / "index")) as index:
        yield index


def stamps(root: Path, index: Index, tree: dict[RelPath, Entry]) -> dict[RelPath, Stamp | None]:
    """Return what the rows of ``tree`` are made with."""
    scanner = Scanner(os.fsencode(root), index, lambda _: False)
    with ThreadPoolExecutor(1) as pool:
        rebuilt = rebuild(os.fsencode(root), scanner, tree, pool, lambda *_: None)
    return {path: stamp for path, _, stamp in rebuilt.rows}


def test_one_file_of_several_that_are_alike_is_one_of_them(tmp_path: Path, index: Index) -> None:
    root = tmp_path / "work"
    root.mkdir()
    (root / "moved").write_bytes(CONTENT)
    moved = stamp_of((root / "moved").lstat(), Kind.FILE)
    digest = blake3(CONTENT).hexdigest()
    entry = Entry(Kind.FILE, len(CONTENT), moved.mtime_ns, moved.mode, digest)
    tree = {b"": Entry(Kind.DIRECTORY), b"a": entry, b"b": entry}
    for name in ("a", "b"):
        (root / name).write_bytes(b"another one")
    found = stamps(root, index, tree)
    assert (found[b"a"], found[b"b"]) == (moved, lost_stamp(Kind.FILE))


def test_what_is_alike_and_has_another_content_is_no_renamed_file(
    tmp_path: Path, index: Index
) -> None:
    root = tmp_path / "work"
    root.mkdir()
    (root / "moved").write_bytes(CONTENT.upper())
    moved = stamp_of((root / "moved").lstat(), Kind.FILE)
    digest = blake3(CONTENT).hexdigest()
    entry = Entry(Kind.FILE, len(CONTENT), moved.mtime_ns, moved.mode, digest)
    (root / "a").write_bytes(b"another one")
    tree = {b"": Entry(Kind.DIRECTORY), b"a": entry}
    assert stamps(root, index, tree)[b"a"] == lost_stamp(Kind.FILE)
