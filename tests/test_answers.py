"""What a child process tells its parent of a call: as little as possible, and all that counts."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from onesync.errors import MountHung, MountNotThere
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
    replica.close()
    assert flight is not None
    assert (copied.size, sum(told), flight.moved) == (size, size, size)
    assert received[0] == (child.READY, None, None, 0)
    assert len([message for message in received[1:] if message is not None]) == messages


def test_what_came_of_a_call_that_failed_counts(tmp_path: Path) -> None:
    told: list[int] = []
    (tmp_path / "file").write_bytes(b"x" * 4096)
    replica = ChildrenReplica(os.fsencode(tmp_path), 1, 1, patience=20, advanced=told.append)
    no_time: Any = "none"
    with pytest.raises(RuntimeError, match="TypeError"):
        replica.fetch(b"file", os.fsencode(tmp_path / "copy"), 0o644, no_time)
    replica.close()
    assert sum(told) == 4096


def begins_after(seconds: float, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let processes begin late, as on a machine that has much to do."""
    program = place / "python"
    program.write_text(f'#!/bin/sh\nsleep {seconds}\nexec "{sys.executable}" "$@"\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


def test_a_process_that_begins_late_is_no_silence_of_the_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begins_after(3, tmp_path, monkeypatch)
    replica = ChildrenReplica(os.fsencode(tmp_path), 1, 1, patience=1)
    assert replica.look(b"python") is not None
    replica.close()


def test_a_process_that_does_not_begin_is_told_and_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "_BEGIN_SECONDS", 0.3)
    replica = ChildrenReplica(os.fsencode(tmp_path), 1, 1, patience=20)
    with monkeypatch.context() as late:
        begins_after(60, tmp_path, late)
        with pytest.raises(MountNotThere, match="did not begin") as told:
            replica.look(b"python")
    assert not isinstance(told.value, MountHung)
    monkeypatch.undo()
    assert replica.look(b"python") is not None
    replica.close()
