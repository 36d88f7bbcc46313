"""What is said of a tool's memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.bench.usage import memory_of

_MAPS_AND_OWNS = """
import mmap, sys
with open(sys.argv[1], "rb") as file:
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
sum(mapped[::4096])
own = bytearray(b"x") * (20 << 20)
print("ready", flush=True)
sys.stdin.read()
"""
_FILE, _OWN = 50 << 20, 20 << 20


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[list[int]]:
    """Two that have the same 50 MiB of a file in memory, and 20 MiB each of their own."""
    path = tmp_path / "file"
    path.write_bytes(bytes(_FILE))
    with ExitStack() as stack:
        made = []
        for _ in range(2):
            words = [sys.executable, "-c", _MAPS_AND_OWNS, str(path)]
            process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            stack.enter_context(process)
            stack.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            made.append(process.pid)
        yield made


def test_what_several_share_counts_once_and_whole(processes: list[int]) -> None:
    one, both = memory_of(processes[:1]), memory_of(processes)
    assert one >= _FILE + _OWN
    assert one + _OWN <= both < one + _FILE
