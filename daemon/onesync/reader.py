"""Has the configuration read for the daemon, by processes that end with it.

What reads and checks it would stay in memory: a fourth of all that the daemon has. At the start a
copy of the process does it, beside the imports that follow. Once there are threads a copy might
hang, so ``python -m onesync.reader FD FILE INSTANCE`` (one is empty) is a program for it, which may
be another version by then. What it writes to FD begins with a line that tells what it would be made
of: a pickle has the values of settings without their names.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import BinaryIO

from onesync import __version__, settings
from onesync.errors import OnesyncError
from onesync.settings import Settings

_REPLACED = (
    "The program was replaced since it was started, so it cannot read the configuration; nothing"
    " was changed. Restart it, or hand over ('onesync handover') and start it."
)


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
        status = 0
        with suppress(ChildProcessError):  # whoever started us has them reaped by the kernel
            _, status = os.waitpid(pid, 0)
        return _settings_in(found, os.waitstatus_to_exitcode(status))

    return loaded


def load_again(config: Path | None, instance: str | None) -> Settings:
    """Read the configuration in a program of its own; ``config`` is absolute.

    Raises as ``configuration.load`` does.
    """
    ours, theirs = os.pipe()
    with open(ours, "rb") as told:
        command = [sys.executable, "-m", "onesync.reader", str(theirs)]
        try:
            process = subprocess.Popen(
                [*command, "" if config is None else str(config), instance or ""],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs],
                cwd="/",
            )
        except OSError as error:
            raise OnesyncError(f"No process can be started that reads it: {error}.") from error
        finally:
            os.close(theirs)
        with process:
            found = told.read()
    return _settings_in(found, process.returncode)


def _read(config: Path | None, instance: str | None, out: BinaryIO) -> None:
    try:
        from onesync.configuration import load

        found: Settings | OnesyncError = load(config, instance)
    except OnesyncError as error:
        found = error
    except Exception as error:  # noqa: BLE001 - reported to the daemon
        found = OnesyncError(f"The configuration cannot be read, unexpectedly: {error!r}")
    out.write(_made_of() + pickle.dumps(found))


def _made_of() -> bytes:
    """Return a line that tells version and fields of all that settings are made of."""
    classes = ((name, one) for name, one in vars(settings).items() if is_dataclass(one))
    named = {name: [key.name for key in fields(one)] for name, one in sorted(classes)}
    return f"{(__version__, named)}\n".encode()


def _settings_in(told: bytes, exit_code: int) -> Settings:
    if not told:
        how = f"signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}"
        raise OnesyncError(
            f"The process that reads the configuration ended ({how}); nothing was changed."
        )
    head = _made_of()
    if not told.startswith(head):
        raise OnesyncError(_REPLACED)
    # Both ends are onesync's own processes over an unnamed pipe: the pickle is trusted.
    found: Settings | OnesyncError = pickle.loads(told[len(head) :])
    if isinstance(found, OnesyncError):
        raise found
    return found


def main() -> None:
    """Read what the command line names, and write what came of it to the descriptor."""
    fd, config, instance = sys.argv[1:]
    with open(int(fd), "wb") as out:
        _read(Path(config) if config else None, instance or None, out)


if __name__ == "__main__":
    main()
