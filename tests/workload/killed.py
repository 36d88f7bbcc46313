"""A writer that dies in the middle of a transaction whose pages have reached the file already."""

from __future__ import annotations

import os
import signal
import sqlite3
import sys


def main() -> None:
    """Change many rows of the database that the argument names, and die."""
    db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
    db.execute("PRAGMA cache_size = 2")  # so that pages are written before the commit
    db.execute("BEGIN IMMEDIATE")
    db.execute("UPDATE Objects SET path = 'never committed'")
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
