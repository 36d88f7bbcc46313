"""What must not grow with the project: what waits at stage-in, and what compaction writes."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from onesync import manifest as manifests
from onesync import stagein
from onesync.clock import SystemClock
from onesync.core.chain import Set
from onesync.core.model import Entry, Kind
from onesync.core.tree import Tree
from onesync.manifest import MANIFEST, Manifest
from onesync.stagein import StageIn
from tests.memory import MemoryReplica, Tabled


class _Pool(ThreadPoolExecutor):
    """Counts what was submitted and is not done."""

    def __init__(self) -> None:
        super().__init__(4)
        self.open = 0
        self.most = 0

    def submit(self, act: Callable[..., Any], /, *args: Any, **named: Any) -> Future[Any]:
        self.open += 1
        self.most = max(self.most, self.open)
        return super().submit(act, *args, **named)


def test_few_files_wait_for_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stagein, "_MOST_WAITING", 10)
    replica = MemoryReplica()
    for number in range(100):
        replica.write_new(b"%d" % number, b"x")
    with _Pool() as pool:

        def advanced(done: int, _: int) -> None:
            pool.open = pool.open - 1 if done else 0

        rows = Tabled()
        StageIn(replica, os.fsencode(tmp_path), pool, advanced, rows).run(Tree())
    assert len(rows.put_in) == 100
    assert pool.most == 10


def test_compaction_writes_no_more_than_the_checkpoints_did(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(manifests, "_COMPACT_AT_LEAST", 1 << 14)
    replica = MemoryReplica()
    for path in (b".deployment_status_do_not_delete", MANIFEST):
        replica.make_directory(path)
    manifest = Manifest(replica, SystemClock(), "f", None, 1, "w", ())
    entries: dict[bytes, Entry] = {}
    written = {"base": 0, "incremental": 0}
    bases = 0
    for batch in range(60):
        changes = []
        for number in range(50):
            path = b"%d/%d" % (batch, number)
            entries[path] = Entry(Kind.FILE, 1, 1, 0o644, os.urandom(32).hex())
            changes.append(Set(path, entries[path]))
        made = manifest.write(changes, "incremental")
        written["incremental"] += len(replica.read(MANIFEST + b"/" + made.name.encode()))
        if manifest.compaction_due():
            bases += 1
            made = manifest.write((Set(*item) for item in entries.items()), "base")
            written["base"] += len(replica.read(MANIFEST + b"/" + made.name.encode()))
    assert bases >= 2, written
    assert written["base"] <= 2 * written["incremental"], written
