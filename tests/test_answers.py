"""What a child process tells its parent of a call: as little as possible, and all that counts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from onesync.replica import child, children
from onesync.replica.children import ChildrenReplica
from onesync.replica.flights import aloft, of_this_thread

MEBIBYTE = 1 << 20


@pytest.mark.parametrize(
    ("size", "messages"), [(0, 1), (4096, 1), (64 << 10, 1), (3 * MEBIBYTE, 4)]
)
def test_what_comes_in_one_piece_is_told_with_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, messages: int
) -> None:
    received: list[Any] = []
    told: list[int] = []

    def receive(*arguments: Any) -> Any:
        message = child.receive(*arguments)
        received.append(message)
        return message

    monkeypatch.setattr(children, "receive", receive)
    (tmp_path / "file").write_bytes(os.urandom(size))
    replica = ChildrenReplica(os.fsencode(tmp_path), 1, 1, patience=20, advanced=told.append)
    with aloft(b"file", size, is_fetched=True):
        copied = replica.fetch(b"file", os.fsencode(tmp_path / "copy"), 0o644, None)
        flight = of_this_thread()
    assert flight is not None
    assert (copied.size, sum(told), flight.moved) == (size, size, size)
    assert len(received) == messages


def test_what_came_of_a_call_that_failed_counts(tmp_path: Path) -> None:
    told: list[int] = []
    (tmp_path / "file").write_bytes(b"x" * 4096)
    replica = ChildrenReplica(os.fsencode(tmp_path), 1, 1, patience=20, advanced=told.append)
    no_time: Any = "none"
    with pytest.raises(RuntimeError, match="TypeError"):
        replica.fetch(b"file", os.fsencode(tmp_path / "copy"), 0o644, no_time)
    assert sum(told) == 4096
