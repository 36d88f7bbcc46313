"""Who may ask the daemon."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from onesync.control import ControlServer, ask

NOBODY = 65534


def asked_by(user: int, path: Path) -> dict[str, object]:
    """Ask as another user, in a process of its own: the interpreter's files may not be his."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
            os.write(writer, json.dumps(ask(path, "status", 10)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        told = answer.read()
    os.waitpid(child, 0)
    found: dict[str, object] = json.loads(told)
    return found


@pytest.fixture
def socket_path() -> Iterator[Path]:
    """The socket of a server, in a directory that every user reaches."""
    with tempfile.TemporaryDirectory() as home:
        Path(home).chmod(0o755)
        path = Path(home) / "control.sock"
        server = ControlServer(path, {"status": lambda _: {"ok": True, "told": "all"}})
        server.start()
        yield path
        server.stop()


def test_the_socket_is_for_its_user_and_group(socket_path: Path) -> None:
    assert stat.S_IMODE(socket_path.stat().st_mode) == 0o660
    assert ask(socket_path, "status", 10)["told"] == "all"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_another_user_gets_no_answer_though_he_reaches_the_socket(socket_path: Path) -> None:
    socket_path.chmod(0o666)
    told = asked_by(NOBODY, socket_path)
    assert told == {"ok": False, "reason": "only root and the daemon's own user may ask"}
