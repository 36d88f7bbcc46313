"""Reads away what the kernel tells of directories, as onesync asks for it; does nothing with it."""

from __future__ import annotations

import os
import sys

import pyinotify

from onesync.watcher import MASK

_MOST_BYTES = 1 << 20


def main() -> None:
    """Watch the directories of the command line until we are killed."""
    watches = pyinotify.WatchManager()
    for folder in sys.argv[1:]:
        watches.add_watch(folder, MASK)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while os.read(watches.get_fd(), _MOST_BYTES):
        pass


if __name__ == "__main__":
    main()
