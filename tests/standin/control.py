"""The stand-in's control socket: one request of JSON a connection, one answer."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

Verbs = dict[str, Callable[..., Any]]


def serve(path: str, verbs: Verbs) -> None:
    """Answer on the socket ``path`` for ever."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(f"{path}~")
    listening.listen()
    os.rename(f"{path}~", path)  # who sees it may connect
    while True:
        connection, _ = listening.accept()
        # A verb may wait for a call that hangs, and the next one must be able to release that.
        threading.Thread(target=_talk, args=(connection, verbs), daemon=True).start()


def _talk(connection: socket.socket, verbs: Verbs) -> None:
    with connection, connection.makefile("rwb") as stream:
        answer = _answer(verbs, json.loads(stream.readline()))
        stream.write(json.dumps(answer).encode() + b"\n")
        stream.flush()


def _answer(verbs: Verbs, request: dict[str, Any]) -> Any:
    try:
        return verbs[request.pop("verb")](**request)
    except (KeyError, TypeError, ValueError, OSError) as error:
        return {"refused": repr(error)}


def ask(socket_path: Path, verb: str, /, **arguments: Any) -> Any:
    """Send one request and return its answer.

    Raises:
        ValueError: The stand-in does not know the verb or refuses its arguments.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(20)
        connection.connect(str(socket_path))
        with connection.makefile("rwb") as stream:
            stream.write(json.dumps({"verb": verb, **arguments}).encode() + b"\n")
            stream.flush()
            answer = json.loads(stream.readline())
    if isinstance(answer, dict) and "refused" in answer:
        raise ValueError(answer["refused"])
    return answer
