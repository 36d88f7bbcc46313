"""Consistent copies of live SQLite databases.

``python -m onesync.snapshot SOURCE TARGET`` copies in one read transaction: a stepwise backup is
restarted by every foreign commit. It runs as a process of its own because closing any other
descriptor of a database drops SQLite's locks on it in that process.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from urllib.parse import quote

from onesync.beneath import open_plain

HEADER = b"SQLite format 3\0"
BUSY_SECONDS = 5.0


def is_database(path: bytes) -> bool:
    """Return whether the file at the absolute ``path`` has SQLite's header."""
    try:
        fd = open_plain(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        return os.pread(fd, len(HEADER), 0) == HEADER
    except OSError:
        return False
    finally:
        os.close(fd)


def take(source: bytes, target: bytes, timeout: float) -> str | None:
    """Snapshot ``source`` into the new file ``target``; returns None, or why it could not be.

    Blocks up to ``timeout`` seconds. A file that only looks like a database gives a reason.
    """
    command: list[str | bytes] = [sys.executable, "-m", "onesync.snapshot", source, target]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return f"its snapshot took longer than {timeout:g} s"
    if done.returncode == 0:
        return None
    return done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2] or "unknown"


def _copy(source: bytes, target: bytes) -> None:
    try:
        _backup(source, target, "ro")
    except sqlite3.OperationalError:
        # A hot journal or lone WAL of dead writers: SQLite rolls it back, which needs to write.
        _backup(source, target, "rw")


def _backup(source: bytes, target: bytes, mode: str) -> None:
    if os.path.exists(target):
        os.unlink(target)
    uri = f"file:{quote(source)}?mode={mode}"
    # Opened before and closed after the connection: closing any descriptor of the file drops
    # SQLite's locks on it in this process.
    fd = open_plain(source, os.O_RDONLY)
    try:
        with closing(
            sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
        ) as origin:
            origin.execute("BEGIN")
            origin.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if _has_wal(source):
                with closing(sqlite3.connect(os.fsdecode(target))) as copy:
                    origin.backup(copy, pages=-1)
            else:
                # Under the read lock nobody changes the file, so its bytes are the snapshot: the
                # backup call would count one change more and differ from the source for ever.
                _copy_bytes(fd, target)
    finally:
        os.close(fd)


def _has_wal(source: bytes) -> bool:
    try:
        return os.stat(source + b"-wal").st_size > 0
    except FileNotFoundError:
        return False


def _copy_bytes(fd: int, target: bytes) -> None:
    offset, size = 0, os.fstat(fd).st_size
    with open(target, "xb") as copy:
        while offset < size:
            offset += os.copy_file_range(fd, copy.fileno(), size - offset, offset)


def main() -> int:
    """Copy the database named on the command line."""
    source, target = map(os.fsencode, sys.argv[1:])
    try:
        _copy(source, target)
    except sqlite3.Error as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
