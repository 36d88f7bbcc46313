"""What is logged: lines for people, fields for programs, and not the same a thousand times."""

from __future__ import annotations

import logging
import os
import socket
import struct
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from onesync.journal import EVENTS, Damper, JournalHandler, LineFormatter


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(str(tmp_path / "socket"))
        made.settimeout(10)
        yield made


@pytest.fixture
def logger(tmp_path: Path, journald: socket.socket) -> Iterator[logging.Logger]:
    fallback = logging.FileHandler(tmp_path / "fallback")
    fallback.setFormatter(LineFormatter())
    handler = JournalHandler("project", fallback, tmp_path / "socket")
    made = logging.getLogger(f"test-{uuid.uuid4()}")
    made.setLevel(logging.INFO)
    made.propagate = False
    made.addHandler(handler)
    yield made
    made.removeHandler(handler)
    handler.close()
    fallback.close()


def fields(journald: socket.socket) -> dict[str, bytes]:
    """Receive one record, also where it comes as a file."""
    content, descriptors, _, _ = socket.recv_fds(journald, 1 << 20, 1)
    for fd in descriptors:
        with os.fdopen(fd, "rb") as file:
            file.seek(0)
            content = file.read()
    found: dict[str, bytes] = {}
    while content:
        head, _, content = content.partition(b"\n")
        name, is_short, value = head.partition(b"=")
        if not is_short:
            (length,) = struct.unpack_from("<Q", content)
            value, content = content[8 : 8 + length], content[9 + length :]
        found[name.decode()] = value
    return found


def test_values_are_fields(logger: logging.Logger, journald: socket.socket) -> None:
    logger.info("batch", extra={"bytes": 12, "push_seconds": 0.5, "checkpoint": "E1"})
    found = fields(journald)
    assert found["MESSAGE"] == b"batch bytes=12 push_seconds=0.5 checkpoint='E1'"
    assert (found["ONESYNC_BYTES"], found["ONESYNC_PUSH_SECONDS"]) == (b"12", b"0.5")
    assert (found["ONESYNC_CHECKPOINT"], found["ONESYNC_FOLDER"]) == (b"E1", b"project")
    assert found["MESSAGE_ID"].decode() == EVENTS["batch"]
    assert (found["PRIORITY"], found["SYSLOG_IDENTIFIER"]) == (b"6", b"onesync")


def test_a_sentence_tells_its_event(logger: logging.Logger, journald: socket.socket) -> None:
    logger.error("Something happened.", extra={"event": "ended", "code": 13})
    found = fields(journald)
    assert found["MESSAGE"] == b"Something happened. code=13"
    assert found["MESSAGE_ID"].decode() == EVENTS["ended"]
    assert (found["PRIORITY"], found["ONESYNC_CODE"]) == (b"3", b"13")
    assert "ONESYNC_EVENT" not in found


def test_no_value_makes_a_field_of_its_own(logger: logging.Logger, journald: socket.socket) -> None:
    logger.warning("path", extra={"path": "a\nPRIORITY=0\nMESSAGE_ID=1"})
    found = fields(journald)
    assert found["PRIORITY"] == b"4"
    assert "MESSAGE_ID" not in found
    assert found["ONESYNC_PATH"] == b"a\nPRIORITY=0\nMESSAGE_ID=1"
    assert b"\n" not in found["MESSAGE"]


def test_a_trace_is_part_of_the_message(logger: logging.Logger, journald: socket.socket) -> None:
    try:
        int("what")
    except ValueError:
        logger.exception("unexpected")
    found = fields(journald)
    assert found["MESSAGE"].startswith(b"unexpected\nTraceback")
    assert b"ValueError: invalid literal" in found["MESSAGE"].splitlines()[-1]


def test_a_record_too_long_for_a_datagram_comes_whole(
    logger: logging.Logger, journald: socket.socket
) -> None:
    logger.info("long", extra={"what": "x" * 3_000_000})
    assert len(fields(journald)["ONESYNC_WHAT"]) == 3_000_000


def test_without_journald_it_goes_to_the_stream(
    logger: logging.Logger, journald: socket.socket, tmp_path: Path
) -> None:
    journald.close()
    (tmp_path / "socket").unlink()
    logger.info("batch", extra={"bytes": 12})
    assert (tmp_path / "fallback").read_text() == "batch bytes=12\n"


def test_journald_that_comes_back_is_told_again(
    logger: logging.Logger, journald: socket.socket, tmp_path: Path
) -> None:
    journald.close()
    (tmp_path / "socket").unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as again:
        again.bind(str(tmp_path / "socket"))
        again.settimeout(10)
        logger.info("batch")
        assert fields(again)["MESSAGE"] == b"batch"


def test_every_event_has_an_id_of_its_own() -> None:
    assert len(set(EVENTS.values())) == len(EVENTS)
    assert all(uuid.UUID(found).version == 4 for found in EVENTS.values())


def test_every_event_is_told_of_in_the_readme() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    assert [found for found in EVENTS.values() if found not in readme] == []


def test_every_event_is_one_that_is_logged() -> None:
    program = Path(__file__).parents[1] / "daemon" / "onesync"
    text = "".join(path.read_text() for path in program.rglob("*.py") if path.stem != "journal")
    assert [event for event in EVENTS if f'"{event}"' not in text] == []


# -- the same, again and again ---------------------------------------------------------------------


def record(text: str, level: int = logging.WARNING) -> logging.LogRecord:
    return logging.LogRecord("onesync", level, "", 0, text, (), None)


def test_of_many_alike_twenty_are_told_in_a_minute() -> None:
    now = [0.0]
    damper = Damper(lambda: now[0])

    def is_told(text: str, seconds: float) -> bool:
        now[0] = seconds
        return damper.filter(record(text))

    told = [made for _ in range(100) if damper.filter(made := record("lost"))]
    assert len(told) == 20
    assert LineFormatter().format(told[-1]) == "lost more='more of them are not told for a minute'"
    assert is_told("another", 10.0)
    assert not is_told("lost", 59.9)
    assert is_told("lost", 60.0)


def test_what_is_no_warning_is_always_told() -> None:
    damper = Damper()
    assert all(damper.filter(record("batch", logging.INFO)) for _ in range(100))


def test_a_value_that_is_no_utf_8_is_told(logger: logging.Logger, journald: socket.socket) -> None:
    logger.warning("lost", extra={"reason": "/tmp/\udcff"})
    assert fields(journald)["ONESYNC_REASON"] == b"/tmp/\\udcff"
