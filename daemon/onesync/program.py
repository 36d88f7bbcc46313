"""The program. What units start runs without the parts that people's commands need.

For the memory of what stays, and for the time of what runs at every boot.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from onesync.errors import Exit, OnesyncError


def main() -> None:
    """Run the program; failures become one sentence and an exit code."""
    if sys.flags.isolated:
        _isolate_children()
    try:
        _run(sys.argv[1:])
    except OnesyncError as error:
        from onesync.core.model import printable

        sys.stderr.write(f"onesync: {printable(str(error))}\n")
        sys.exit(error.code)
    except Exception as error:
        import logging

        logging.getLogger(__name__).debug("unexpected", exc_info=True)
        sys.stderr.write(f"onesync: unexpected: {error!r}\n")
        sys.exit(Exit.UNEXPECTED)


def _isolate_children() -> None:
    """Let the processes of ours be without what we were told to ignore, too."""
    for name in [name for name in os.environ if name.startswith("PYTHON")]:
        del os.environ[name]


def _run(words: Sequence[str]) -> None:
    match words:
        case ["generator", normal, _, _]:
            from onesync.generator import generate

            generate(normal)
        case ["prepare", "--instance", name]:
            from onesync.prepare import prepare

            prepare(name)
        case ["oneclient", "--instance", name]:
            from onesync.oneclient import keep_mounted

            keep_mounted(name)
        case _ if (wanted := _daemon(words)) is not None:
            from onesync.systemd import hold_signals

            hold_signals()
            from onesync.reader import begin_to_load

            loaded = begin_to_load(*wanted)  # beside the imports that follow
            from onesync.daemon import run_daemon

            run_daemon(loaded, *wanted)
        case _:
            from onesync.cli import app

            app()


def _daemon(words: Sequence[str]) -> tuple[Path | None, str | None] | None:
    """Return configuration and instance where ``run`` is asked for in its plain form."""
    match words:
        case ["run", "--config", path] if not path.startswith("-"):
            return Path(path), None
        case ["run", "--instance", name] if not name.startswith("-"):
            return None, name
        case _:
            return None


if __name__ == "__main__":
    main()
