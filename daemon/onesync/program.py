"""The program. The daemon runs without the parts that its commands need, for their memory."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from onesync.core.model import printable
from onesync.errors import Exit, OnesyncError
from onesync.systemd import hold_signals


def main() -> None:
    """Run the program; failures become one sentence and an exit code."""
    try:
        if (wanted := _daemon(sys.argv[1:])) is not None:
            hold_signals()
            from onesync.daemon import run_daemon

            run_daemon(*wanted)
        else:
            from onesync.cli import app

            app()
    except OnesyncError as error:
        sys.stderr.write(f"onesync: {printable(str(error))}\n")
        sys.exit(error.code)
    except Exception as error:
        logging.getLogger(__name__).debug("unexpected", exc_info=True)
        sys.stderr.write(f"onesync: unexpected: {error!r}\n")
        sys.exit(Exit.UNEXPECTED)


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
