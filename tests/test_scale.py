"""What must not grow with the project: what waits at stage-in, and what compaction writes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from onesync import manifest as manifests
from onesync import stagein
from onesync.clock import SystemClock
from onesync.core import chain
from onesync.core.model import Entry, Kind
from onesync.core.tree import Tree
from onesync.manifest import MANIFEST, Manifest
from onesync.replica.door import Listed
from onesync.stagein import StageIn
from onesync.stored_tree import stored_trees
from tests.apart import grown_kib
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
            changes.append(chain.Set(path, entries[path]))
        made = manifest.write(changes, "incremental")
        written["incremental"] += len(replica.read(MANIFEST + b"/" + made.name.encode()))
        if manifest.compaction_due():
            bases += 1
            made = manifest.write((chain.Set(*item) for item in entries.items()), "base")
            written["base"] += len(replica.read(MANIFEST + b"/" + made.name.encode()))
    assert bases >= 2, written
    assert written["base"] <= 2 * written["incremental"], written


class _Wide(MemoryReplica):
    """Lists ``number`` files, a hundred in each directory; none of them can be had."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._directories = [b"%05d" % it for it in range(number // 100)]

    def list(self, path: bytes, known: Mapping[bytes, Kind] = MappingProxyType({})) -> list[Listed]:
        if not path:
            return [Listed(name, Kind.DIRECTORY, 0) for name in self._directories]
        return [Listed(b"micrograph_%s_%02d" % (path, it), Kind.FILE, 1) for it in range(100)]


class _Enough(Exception):
    """All is known that is to be fetched."""


def _begin_to_fetch(place: Path, number: int, is_known: bool) -> None:
    """Do a stage-in of so many files up to the point where it would fetch them."""
    replica = _Wide(number)
    (place / "work").mkdir(parents=True)

    def advanced(_: int, count: int) -> None:
        assert count == number
        raise _Enough

    with stored_trees(place) as make, ThreadPoolExecutor(2) as pool:
        tree = make()
        for directory in replica.list(b"") if is_known else ():
            tree.put(directory.name, Entry(Kind.DIRECTORY))
            above, names = directory.name.decode(), replica.list(directory.name)
            tree.put_files((above, it.name.decode(), 1, 1, 0o644, "ab" * 32) for it in names)
        stage_in = StageIn(replica, os.fsencode(place / "work"), pool, advanced, Tabled())
        with pytest.raises(_Enough):
            stage_in.run(tree, make())


@pytest.mark.parametrize("is_known", [True, False], ids=["by manifest", "first"])
def test_stage_in_takes_no_memory_for_a_file(tmp_path: Path, is_known: bool) -> None:
    small, large = (
        grown_kib(partial(_begin_to_fetch, tmp_path / str(number), number, is_known))
        for number in (50_000, 100_000)
    )
    assert large - small < 50_000 * 0.1, (small, large)  # tenths of a kB
