"""What is logged, as a line for people and, where journald listens, as fields for programs."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from onesync.core.model import printable

EVENTS = {
    "batch": "ad59eb3d5990452faf79a166579114a2",
    "phase": "8e2c28e965834a0b9d2f4ad2c784ced8",
    "not pushed, tried again": "cbc35113d57b4d06be70ef4e19d3a035",
    "recovered": "8a05b620f0db417095aaab5b20bf8464",
    "undeployed": "c97455f06f184e5b932ffc165883ae6d",
    "left with the lock kept": "9b8a2feda21147ef9fcf9d4db18d0f69",
    "ended": "394451a63378467dbdba5b98f317daf7",
    "deletions held": "c33a58306b5f4a588b7b533786b255eb",
    "OneData does not hold what was pushed": "0cebdf73a6a14be9933aa319ecaf8d2e",
    "OneData does not have it any more, it is sent again": "d7e7e15564b74143a5bd8df637beee74",
    "kernel events were dropped, everything is scanned": "64d8ecedba3f4f769b087ea530d3c0a7",
    "half-done batch settled": "24337c15c42b48149e7d536ef5ad87a0",
    "the deployment ends soon": "7222556161ff424484f54b2851d138b0",
    "the deployment's time is over, it is undeployed": "358eeef703454ee7930e697cc16cbb73",
    "the configuration was reloaded": "444d6c4f5dde48fe8da73116b16134c5",
}
"""The MESSAGE_ID of each event that operators script on: for ever. The others have none.

An event whose message is a sentence of its own names itself (``extra={"event": …}``).
"""

_SOCKET = Path("/run/systemd/journal/socket")
_IDENTIFIER = "onesync"
_LEVELS = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3}
_STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "event"}
_MOST = 20
_WINDOW_SECONDS = 60.0


class LineFormatter(logging.Formatter):
    """``<level>message key=value …``: constant messages, values as fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's line; line breaks in values are escaped."""
        prefix = f"<{_level(record)}>" if "JOURNAL_STREAM" in os.environ else ""
        return prefix + _line(record)


class Damper(logging.Filter):
    """Lets 20 warnings of one message through in a minute; the last of them says so.

    One failing mount may be told of once for each of ten thousand files.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        """Begin with nothing seen; ``now`` are seconds on a clock that nobody sets."""
        super().__init__()
        self._now = now
        self._seen: dict[str, tuple[float, int]] = {}
        self._guard = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is told."""
        if record.levelno < logging.WARNING:
            return True
        now = self._now()
        with self._guard:
            began, count = self._seen.get(record.msg, (now, 0))
            if now - began >= _WINDOW_SECONDS:
                began, count = now, 0
            self._seen[record.msg] = (began, count + 1)
        if count + 1 == _MOST:
            record.more = "more of them are not told for a minute"
        return count < _MOST


class JournalHandler(logging.Handler):
    """Sends each record to journald with its values as fields; to ``fallback`` where that fails.

    ``ONESYNC_…`` are the record's values, MESSAGE_ID tells its event (``EVENTS``).
    """

    def __init__(self, folder: str, fallback: logging.Handler, socket: Path = _SOCKET) -> None:
        """Connect to journald; ``folder`` is in every record. Raises OSError."""
        super().__init__()
        # A command that asks the daemon something does not need it.
        from logging_journald import JournaldTransport

        self._transport = JournaldTransport(socket)
        self._folder = folder
        self._fallback = fallback

    def emit(self, record: logging.LogRecord) -> None:
        """Send it."""
        try:
            self._transport.send(_fields(record, self._folder))
        except OSError:  # journald is away: its stream may still be read
            self._fallback.handle(record)


def open_log(folder: str) -> None:
    """Log to journald where it reads our stderr, else to stderr."""
    stream = logging.StreamHandler()
    stream.setFormatter(LineFormatter())
    handler: logging.Handler = stream
    if _is_journal(os.environ.get("JOURNAL_STREAM", "")):
        try:
            handler = JournalHandler(folder, stream)
        except OSError:
            handler = stream  # its stream is as good, without the fields
    handler.addFilter(Damper())
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def _is_journal(stream: str) -> bool:
    """Whether stderr is the journal's stream, which systemd names by device and inode."""
    found = os.fstat(sys.stderr.fileno())
    return stream == f"{found.st_dev}:{found.st_ino}"


def _values(record: logging.LogRecord) -> Mapping[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


def _line(record: logging.LogRecord) -> str:
    told = "".join(f" {key}={value!r}" for key, value in _values(record).items())
    text = printable(record.getMessage()) + told
    if record.exc_info:
        text += "\n" + logging.Formatter().formatException(record.exc_info)
    return text


def _fields(record: logging.LogRecord, folder: str) -> Iterator[tuple[str, Any]]:
    yield "MESSAGE", _utf8(_line(record))
    yield "PRIORITY", _level(record)
    yield "SYSLOG_IDENTIFIER", _IDENTIFIER
    yield "CODE_FUNC", f"{record.name}.{record.funcName}"
    event = EVENTS.get(getattr(record, "event", record.msg))
    if event is not None:
        yield "MESSAGE_ID", event
    yield "ONESYNC_FOLDER", folder
    for key, value in _values(record).items():
        yield f"ONESYNC_{key.upper()}", value if isinstance(value, int | float) else _utf8(value)


def _utf8(value: object) -> str:
    return str(value).encode("utf-8", "backslashreplace").decode()


def _level(record: logging.LogRecord) -> int:
    return _LEVELS.get(record.levelno, 6)
