"""The child process that makes the calls on the mount.

``python -m onesync.replica.child FD ROOT THREADS [PLACE RATE]`` reads requests from the socket FD,
answers each from one of its threads, and ends when the parent's end closes. What it sends keeps to
RATE bytes a second, with all who have PLACE. It inherits nothing else: no lock, no signal
mask, no other descriptor.
"""

from __future__ import annotations

import os
import pickle
import socket
import struct
import sys
import threading
from queue import SimpleQueue
from typing import Any

from onesync.errors import LocalError
from onesync.replica.door import NameRefused
from onesync.replica.folder import FolderReplica
from onesync.replica.names import EscapedNames
from onesync.replica.pace import Pace

LENGTH = struct.Struct("!I")
READY = 0
"""The number of no call: under it a child says, once, that it has begun to listen."""
_SMALL = 1 << 16
"""Messages of up to so many bytes are copied once more, to be sent by one call."""


def receive(connection: socket.socket) -> Any:
    """Return the next message, or None when the other end closed."""
    head = _exactly(connection, LENGTH.size)
    if head is None:
        return None
    body = _exactly(connection, LENGTH.unpack(head)[0])
    # Both ends are onesync's own processes over an unnamed socket pair: the pickle is trusted.
    return None if body is None else pickle.loads(body)


def send(connection: socket.socket, message: Any) -> None:
    """Send one message; the caller holds the lock that keeps messages whole."""
    body = pickle.dumps(message)
    if len(body) < _SMALL:
        connection.sendall(LENGTH.pack(len(body)) + body)
        return
    connection.sendall(LENGTH.pack(len(body)))
    connection.sendall(body)


def _exactly(connection: socket.socket, count: int) -> bytearray | None:
    found = bytearray(count)
    left = memoryview(found)
    while left:
        try:
            size = connection.recv_into(left)
        except ConnectionError:
            return None
        if not size:
            return None
        left = left[size:]
    return found


class _Servant:
    def __init__(self, connection: socket.socket, root: bytes, pace: Pace | None) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._current = threading.local()
        self._replica = EscapedNames(FolderReplica(root, self._progress, self._sent, self._fetched))
        self._pace = pace
        self._asked: SimpleQueue[tuple[int, str, tuple[Any, ...]]] = SimpleQueue()
        self._idle = threading.Semaphore(0)

    def serve(self, threads: int) -> None:
        """Answer until the parent goes; what is being done then goes no further either."""
        self._send((READY, None, None, 0))
        # An executor's module would take an eighth of a child's start to import.
        while (request := receive(self._connection)) is not None:
            number, expected, forgotten, method, arguments = request
            self._replica.expect(expected)
            for top in forgotten:
                if top is None:
                    self._replica.walk_anew()
                else:
                    self._replica.forget(top)
            self._asked.put((number, method, arguments))
            if not self._idle.acquire(blocking=False) and threads:
                threads -= 1
                threading.Thread(target=self._work, daemon=True).start()
        os._exit(0)

    def _work(self) -> None:
        while True:
            self._answer(*self._asked.get())
            self._idle.release()

    def _answer(self, number: int, method: str, arguments: tuple[Any, ...]) -> None:
        self._current.number, self._current.moved = number, 0
        try:
            outcome: tuple[bool, Any] = (True, getattr(self._replica, method)(*arguments))
        except LocalError as error:
            outcome = (False, LocalError(error.errno, error.strerror, error.filename))
        except NameRefused as error:
            outcome = (False, NameRefused(error.errno, error.strerror, error.filename))
        except OSError as error:
            outcome = (False, OSError(error.errno, error.strerror, error.filename))
        except Exception as error:  # noqa: BLE001 - reported to the parent, which raises it
            outcome = (False, RuntimeError(f"{type(error).__name__}: {error}"))
        self._send((number, *outcome, self._current.moved))

    def _progress(self, size: int) -> None:
        # A long copy is alive as long as its chunks advance: the parent's patience starts anew.
        self._send((self._current.number, None, None, size))

    def _fetched(self, size: int) -> None:
        # A message of its own costs as much as the answer, which comes at once.
        self._current.moved += size

    def _sent(self, size: int) -> None:
        self._progress(size)
        if self._pace is not None:
            self._pace.sent(size, lambda: self._progress(0))

    def _send(self, message: tuple[Any, ...]) -> None:
        with self._sending:
            try:
                send(self._connection, message)
            except OSError:
                os._exit(0)  # the parent is gone


def main() -> None:
    """Serve the socket and root named on the command line."""
    if os.getuid() != os.geteuid():
        # Root acts as somebody: FUSE lets nobody in who is, by any of his ids, somebody else.
        os.setresgid(*[os.getegid()] * 3)
        os.setresuid(*[os.geteuid()] * 3)
    fd, root, threads, *limit = sys.argv[1:]
    pace = Pace(*map(int, limit)) if limit else None
    connection = socket.socket(fileno=int(fd))
    _Servant(connection, os.fsencode(root), pace).serve(int(threads))


if __name__ == "__main__":
    main()
