"""The control socket: one JSON line asks, one JSON line answers; and the status left on disk."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

Handler = Callable[[dict[str, Any]], dict[str, Any]]
_MOST_BYTES = 1 << 16
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_EXHAUSTED_SECONDS = 0.5
_LAST_ANSWERS_SECONDS = 2.0


class NotRunning(Exception):
    """Nobody listens on the socket."""


class ControlServer:
    """Answers on a Unix socket, each connection in a thread of its own."""

    def __init__(self, path: Path, handlers: dict[str, Handler]) -> None:
        """Prepare; ``handlers`` maps commands to what answers them."""
        self._path = path
        self._handlers = handlers
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._answering = 0
        self._answered = threading.Condition()

    def start(self) -> None:
        """Listen; the caller holds the state directory, so a socket that stands there is dead."""
        self._path.unlink(missing_ok=True)
        self._socket.bind(str(self._path))
        self._path.chmod(0o660)
        self._socket.listen(16)
        threading.Thread(target=self._accept, name="control", daemon=True).start()

    def stop(self) -> None:
        """Stop listening; whoever asked before gets his answer, if there is one by then."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._path.unlink(missing_ok=True)
        with self._answered:
            self._answered.wait_for(lambda: not self._answering, _LAST_ANSWERS_SECONDS)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    return
                time.sleep(_EXHAUSTED_SECONDS)  # whoever asks waits until there is one
                continue
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            try:
                thread.start()
            except RuntimeError:  # there is no thread to be had: who asks is told by the silence
                connection.close()
                time.sleep(_EXHAUSTED_SECONDS)

    def _serve(self, connection: socket.socket) -> None:
        with self._answered:
            self._answering += 1
        try:
            self._answer_one(connection)
        finally:
            with self._answered:
                self._answering -= 1
                self._answered.notify_all()

    def _answer_one(self, connection: socket.socket) -> None:
        # Outermost: closing the stream writes what is left, to who may be gone.
        with suppress(OSError), connection, connection.makefile("rwb") as stream:
            reply = self._answer(connection, stream.readline(_MOST_BYTES))
            stream.write(json.dumps(reply).encode() + b"\n")
            stream.flush()

    def _answer(self, connection: socket.socket, line: bytes) -> dict[str, Any]:
        if _peer_uid(connection) not in (0, os.geteuid()):
            return {"ok": False, "reason": "only root and the daemon's own user may ask"}
        try:
            request = json.loads(line)
            handler = self._handlers[request["command"]]
        except (ValueError, KeyError, TypeError, RecursionError):
            return {"ok": False, "reason": "unknown command"}
        try:
            return handler(request)
        except Exception as error:
            log.exception("unexpected")
            return {"ok": False, "reason": f"an unexpected failure: {error!r}"}


def ask(socket_path: Path, command: str, timeout: float | None, **arguments: Any) -> dict[str, Any]:
    """Ask the daemon; blocks up to ``timeout`` seconds.

    Raises NotRunning when nobody listens, TimeoutError when no answer came in time.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        try:
            connection.connect(str(socket_path))
            connection.sendall(json.dumps({"command": command, **arguments}).encode() + b"\n")
            with connection.makefile("rb") as stream:
                line = stream.readline()
        except (FileNotFoundError, ConnectionError) as error:
            raise NotRunning(str(error)) from error
    if not line.endswith(b"\n"):
        raise NotRunning("the daemon went away before it answered")
    reply = json.loads(line)
    assert isinstance(reply, dict)
    return reply


FORMAT = 1
"""Of the status document, which ``config/status.schema.json`` describes."""
NEVER_RAN: dict[str, Any] = {
    "format": FORMAT,
    "phase": "stopped",
    "epoch": None,
    "deployment_id": None,
    "pending_paths": 0,
    "pending_bytes": 0,
    "oldest_unsynced_at": None,
    "pending": [],
    "held_deletions": 0,
    "moved_bytes": 0,
    "progress": None,
    "last_checkpoint": None,
    "lock": None,
    "watches": {"kernel": 0, "polled": 0},
    "mount": None,
    "expires_at": None,
    "paused_until": None,
    "problems": [],
}
_LAST_PHASES = ("stopped", "halted", "fenced")


class StatusFile:
    """The daemon's last status, for when it is down."""

    def __init__(self, state_dir: Path) -> None:
        """Keep it in ``state_dir``."""
        self.path = state_dir / "status.json"
        self._written = ""
        self._failing = False
        self._guard = threading.Lock()

    def write(self, status: Mapping[str, Any]) -> None:
        """Write it when it changed; readers see the old or the new one. Any thread."""
        text = json.dumps(status)
        with self._guard:
            if text == self._written:
                return
            temporary = self.path.with_suffix(".new")
            try:
                temporary.write_text(text)
                temporary.replace(self.path)
            except OSError as error:
                # A full disk must not end the daemon; it is written when there is room again.
                if not self._failing:
                    log.warning("status file not written", extra={"reason": error.strerror})
                self._failing = True
                return
            self._written = text
            self._failing = False

    def read(self) -> dict[str, Any] | None:
        """Return what the daemon left, or None; keys that an earlier version lacked are added."""
        try:
            found = json.loads(self.path.read_text())
        except (FileNotFoundError, ValueError):
            return None
        except OSError as error:
            log.warning("status file not read", extra={"reason": error.strerror})
            return None
        return NEVER_RAN | found if isinstance(found, dict) else None

    def last_word(self) -> dict[str, Any]:
        """Return the status of a daemon that is down; one that died in mid-work says so."""
        left = self.read() or NEVER_RAN
        if left["phase"] in _LAST_PHASES:
            return left
        text = (
            f"onesync died while it was {left['phase']}; local data are kept and the folder is"
            " still locked for this node. Start it again."
        )
        died = {"path": "", "kind": "died", "text": text}
        return {**left, "phase": "stopped", "problems": [died, *left["problems"]]}


def _peer_uid(connection: socket.socket) -> int:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int(struct.unpack("3i", credentials)[1])
