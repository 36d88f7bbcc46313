"""One file's content: which blocks are remembered of it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from onesync import transfer
from onesync.core import blocks
from onesync.core.model import Entry, Kind, Known
from onesync.core.plan import Difference
from onesync.local import stamp_of
from onesync.replica import folder


def test_a_stack_that_outgrows_its_blocks_gets_larger_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "_SIZES", ((1 << 16, 1 << 14), (0, 1 << 10)))
    monkeypatch.setattr(folder, "PATCH_FROM", 4096)
    monkeypatch.setattr(transfer, "PATCH_FROM", 4096)
    store, local = tmp_path / "store", tmp_path / "stack"
    store.mkdir()
    replica = folder.FolderReplica(os.fsencode(store))
    local.write_bytes(os.urandom(60_000))
    source = transfer.Source(os.fsencode(local), False, b"new", None, None)
    first = replica.put(source.local, b"stack")
    assert first.blocks is not None
    known = Known(Entry(Kind.FILE, first.size, 0, 0o644, first.digest), first.before)
    with local.open("r+b") as file:
        file.write(b"header")
        file.seek(0, 2)
        file.write(os.urandom(20_000))
    difference = Difference(b"stack", known, stamp_of(local.stat(), Kind.FILE))
    source = replace(source, undo=b"undo", blocks=first.blocks)
    brought = transfer.transfer(replica, difference, source, None)
    assert isinstance(brought, transfer.Brought)
    assert brought.renewed is not None
    assert brought.renewed.size == blocks.block_size(80_000)
    whole = replica.put(os.fsencode(local), b"whole")
    assert brought.renewed == whole.blocks
    assert replica.digest(b"stack") == replica.digest(b"whole")
