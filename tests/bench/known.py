"""A deployed working copy of many entries that nobody had to push: the index is made directly.

A rescan reads only the working copy and the index, so that it costs what it would cost had they
come from OneData.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from blake3 import blake3

from onesync.core.chain import Change, Set
from onesync.core.model import Entry, Kind, RelPath, Stamp
from onesync.index import Index
from onesync.local import stamp_of
from tests.node import Node

_IN_A_DIRECTORY = 1000
_AT_ONCE = 10_000
_EMPTY = blake3(b"").hexdigest()


def known_tree(home: Path, number: int) -> Node:
    """Return a node that syncs ``number`` empty files which its index knows."""
    store = home / "store"
    store.mkdir()
    node = Node(home / "node", store, mount__io_timeout_seconds=600)
    node.deploy()
    assert node.command("handover").returncode == 0, node.log()
    index = Index(node.home / "state" / "index.sqlite")
    rows = _rows(node.work, number)
    while some := list(islice(rows, _AT_ONCE)):
        changes: list[Change] = [Set(path, _entry(stamp)) for path, stamp in some]
        index.commit(changes, dict(some))
    index.close()
    node.start()
    node.wait_for_phase("syncing")
    assert node.flush() == 0, node.log()
    return node


def _rows(work: Path, number: int) -> Iterator[tuple[RelPath, Stamp]]:
    for first in range(0, number, _IN_A_DIRECTORY):
        folder = work / f"d{first // _IN_A_DIRECTORY:04}"
        folder.mkdir()
        for index in range(first, min(number, first + _IN_A_DIRECTORY)):
            path = folder / f"f{index}"
            os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o644))
            yield os.fsencode(path.relative_to(work)), stamp_of(os.lstat(path), Kind.FILE)
        yield os.fsencode(folder.name), stamp_of(os.lstat(folder), Kind.DIRECTORY)


def _entry(stamp: Stamp) -> Entry:
    digest = _EMPTY if stamp.kind is Kind.FILE else ""
    return Entry(stamp.kind, 0, stamp.mtime_ns, stamp.mode, digest)
