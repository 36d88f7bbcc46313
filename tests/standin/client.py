"""The stand-in as the program \"oneclient\" of a test, for what starts that itself."""

from __future__ import annotations

import os
import sys
from pathlib import Path

TOKEN = "the-access-token"
_ROOT = Path(__file__).parents[2]


def client(home: Path) -> dict[str, str]:
    """Put a oneclient into ``home``, whose provider stores in ``home/backing``.

    Returns the environment in which it is found.
    """
    (home / "backing").mkdir()
    (home / "token").write_text(TOKEN)
    programs = home / "bin"
    programs.mkdir()
    program = programs / "oneclient"
    command = f'exec {sys.executable} -m tests.standin.oneclient "$@"'
    program.write_text(f"#!/bin/sh\ncd {_ROOT}\n{command}\n")
    program.chmod(0o755)
    path = f"{programs}:{os.environ['PATH']}"
    return os.environ | {"PATH": path, "ONEDATA_STANDIN": str(home)}


def switches(point: Path) -> Path:
    """Return where a mount made by it is controlled."""
    return Path("/tmp") / f"onedata-{point.name}"
