"""Has the configuration read for the daemon, by processes that end with it.

What reads and checks it would stay in memory: a fourth of all that the daemon has. At the start a
copy of the process does it, beside the imports that follow. Once there are threads a copy might
hang, so ``python -m onesync.reader FILE INSTANCE`` (one is empty) is a program for it.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from onesync.errors import OnesyncError
from onesync.settings import Settings


def begin_to_load(config: Path | None, instance: str | None) -> Callable[[], Settings]:
    """Begin to read the configuration in a copy of this process, which has one thread.

    Returns what waits for it, and raises as ``configuration.load`` does.
    """
    ours, theirs = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.close(ours)
            with open(theirs, "wb") as out:
                _read(config, instance, out)
        finally:
            os._exit(0)  # what the copy has of the process is not its own to end
    os.close(theirs)

    def loaded() -> Settings:
        with open(ours, "rb") as told:
            found = told.read()
        with suppress(ChildProcessError):  # whoever started us has them reaped by the kernel
            os.waitpid(pid, 0)
        return _settings_in(found)

    return loaded


def load_again(config: Path | None, instance: str | None) -> Settings:
    """Read the configuration in a program of its own. Raises as ``configuration.load`` does."""
    places = ["" if config is None else str(config.absolute()), instance or ""]
    command = [sys.executable, "-m", "onesync.reader", *places]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd="/", check=False
        )
    except OSError as error:
        raise OnesyncError(f"No process can be started that reads it: {error}.") from error
    return _settings_in(done.stdout)


def _read(config: Path | None, instance: str | None, out: BinaryIO) -> None:
    from onesync.configuration import load

    try:
        found: Settings | OnesyncError = load(config, instance)
    except OnesyncError as error:
        found = error
    except Exception as error:  # noqa: BLE001 - reported to the daemon
        found = OnesyncError(f"unexpected: {error!r}")
    out.write(pickle.dumps(found))


def _settings_in(told: bytes) -> Settings:
    if not told:
        raise OnesyncError("The process that reads the configuration failed; nothing was changed.")
    # Both ends are onesync's own processes over an unnamed pipe: the pickle is trusted.
    found: Settings | OnesyncError = pickle.loads(told)
    if isinstance(found, OnesyncError):
        raise found
    return found


def main() -> None:
    """Read what the command line names, and write what came of it to standard output."""
    config, instance = sys.argv[1:]
    _read(Path(config) if config else None, instance or None, sys.stdout.buffer)


if __name__ == "__main__":
    main()
