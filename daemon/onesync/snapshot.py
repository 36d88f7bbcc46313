"""Consistent copies of live SQLite databases.

``python -m onesync.snapshot`` copies each in one read transaction: a stepwise backup is restarted
by every foreign commit. It is a process of its own because closing any other descriptor of a
database drops SQLite's locks on it in that process.

SQLite opens by name, follows links, and where it rolls back it writes, and deletes what the journal
names. So it must have opened the very file that was opened without following any link, is asked for
reading alone, and rolls back in a copy of our own.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import select
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from urllib.parse import quote

from onesync.beneath import open_plain
from onesync.core.model import Entry, Kind, RelPath, join
from onesync.core.trouble import SOURCE

HEADER = b"SQLite format 3\0"
BUSY_SECONDS = 2.0
_HEADER_BYTES = 100
_SMALLEST_PAGE = 512
_VERSIONS, _ROLLBACK = slice(18, 20), b"\1\1"
"""Where the header tells the file's format, and that of a database without a log."""
_READ_VERSION, _LOGGED = 19, b"\2"
"""Where the header tells how to read the file, and that there may be a log."""
_SHARED_PLACE, _SHARED_BYTES = (1 << 30) + 2, 510
"""What SQLite locks of a file while it reads it, and as long as a database with a log is open."""
_INDEX_BYTES = 48
"""The head of a log's index, which stands there twice: one that is being written differs."""
_CHUNK = 64 << 20
_JOURNALS = (b"-journal", b"-wal")
_SIDECARS = (*_JOURNALS, b"-shm")
_SUPER_JOURNAL = bytes.fromhex("d9d505f920a163d7")
"""The last bytes of a journal that names a super-journal (SQLite's file format, 3.3)."""
_FICLONE = 0x40049409
_NOTHING = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
_NO_FILE = (*_NOTHING, errno.ENXIO, errno.ENODEV, errno.EINVAL)
"""What is answered where nothing stands, what is no file, or one that SQLite cannot open either.

All else says nothing of it.
"""
_NO_DATABASE = frozenset({sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT})
_MAY_BE_THE_DISK = _NO_DATABASE | {sqlite3.SQLITE_IOERR}
_NOT_NOW = frozenset(
    {
        None,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_NOMEM,
    }
)
"""Why a database cannot be copied that a later try may copy; None: SQLite was not even asked."""
_TAKES_LOCK = "PRAGMA schema_version"
"""Reads the header alone: a newer SQLite may have written a schema that ours cannot parse."""


Traces = tuple[tuple[tuple[int, ...], ...], tuple[bytes, ...]]
"""Mode, inode, size, time of a database and its journals; the heads of it and its log's index."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of one snapshot.

    Attributes:
        taken: whether the target is a whole, consistent copy.
        is_database: False for a file that only looks like one, or is half of one.
        reason: why it was not taken.
        has_rows: whether any of its tables has a row.
        lost: the errno that the disk gives instead of some of its content; 0 where that is not why.
    """

    taken: bool
    is_database: bool = True
    reason: str = ""
    has_rows: bool = True
    lost: int = 0


def is_database(path: bytes, *, was_one: bool = False) -> bool:
    """Return whether the file at the absolute ``path`` has SQLite's header.

    Where it ``was_one`` it still is when it ends within the header, for it is being written anew,
    and when nobody may read it. Raises OSError where it could not be found out: a live database
    must not be taken for a plain file because there was no descriptor left.
    """
    try:
        header = _read_header(path, len(HEADER))
    except PermissionError:
        return was_one
    except OSError as error:
        if error.errno in _NO_FILE:
            return False
        raise
    return header == HEADER or (was_one and HEADER.startswith(header))


def may_be_database(root: bytes, path: RelPath, entry: Entry) -> bool:
    """Return whether a database stands at ``path`` beneath ``root``, of which ``entry`` may be.

    Snapshots are whole pages: most other files are told apart without being opened.
    """
    if entry.kind is not Kind.FILE or not entry.size or entry.size % _SMALLEST_PAGE:
        return False
    return is_database(join(root, path))


def _read_header(path: bytes, size: int) -> bytes:
    fd = _open_file(path)
    try:
        return os.pread(fd, size, 0)
    finally:
        os.close(fd)


def state_of(path: bytes) -> bytes | None:
    """Return what is another one after each commit; None where nothing cheap surely is.

    Of a database that is all in its file the header, with the change counter; not where it has a
    journal: its writer is about to change it, or is dead. With a log, what its index says of it.
    """
    try:
        header = _read_header(path, _HEADER_BYTES)
        if _holds_bytes(path + b"-journal"):
            return None
        if _holds_bytes(path + b"-wal"):
            return _state_of_log(path)
    except OSError:
        return None  # whoever copies it finds out
    return header if header[_VERSIONS] == _ROLLBACK else None


def _state_of_log(path: bytes) -> bytes | None:
    """Return the head of the log's index, which all share who have the database open.

    It has the log's salts, its last frame that counts, and the checksum of all frames up to that;
    each commit adds a frame, and a log that is begun anew gets other salts. The log's own stamp
    stands beside it for a writer that shares no index (``locking_mode=EXCLUSIVE``); without its
    ctime, for SQLite gives a log to the database's owner whenever root opens it.
    """
    inode, size, modified, _ = _stamp(os.lstat(path + b"-wal"))
    log = repr((inode, size, modified)).encode()
    heads = _read_header(path + b"-shm", 2 * _INDEX_BYTES)
    first, second = heads[:_INDEX_BYTES], heads[_INDEX_BYTES:]
    is_whole = first == second and len(first) == _INDEX_BYTES and any(first)
    return first + log if is_whole else None


def traces_of(path: bytes) -> Traces:
    """Return what each commit leaves another of, and reading leaves as it is.

    Unlike ``state_of`` it tells of every database; but not whether it is as it was, for a journal
    may be there before and after. Left out is what opening changes: the times of the log's index,
    and those of change, for SQLite gives sidecars to the database's owner whenever root opens it.
    """
    stamps = tuple(_stamp_of(path + suffix) for suffix in (b"", *_JOURNALS))
    return stamps, tuple(_head_of(path + suffix) for suffix in (b"", b"-shm"))


def _stamp_of(path: bytes) -> tuple[int, ...]:
    try:
        status = os.lstat(path)
    except OSError:
        return ()  # whoever copies it finds out
    return status.st_mode, *_stamp(status)[:-1]


def _head_of(path: bytes) -> bytes:
    try:
        return _read_header(path, 2 * _INDEX_BYTES)
    except OSError:
        return b""


def has_journal(path: bytes) -> bool:
    """Return whether a journal or log with anything in it stands beside a database."""
    return any(_holds_bytes(path + suffix) for suffix in _JOURNALS)


def _holds_bytes(path: bytes) -> bool:
    try:
        return os.lstat(path).st_size > 0
    except FileNotFoundError:
        return False


class Snapshots:
    """The child process that takes them; started when first needed. One thread."""

    def __init__(self) -> None:
        """Start nothing yet."""
        self._process: subprocess.Popen[bytes] | None = None

    def take(self, pairs: Sequence[tuple[bytes, bytes]], timeout: float) -> list[Taken]:
        """Snapshot each (source, target) in this order; blocks up to ``timeout`` seconds.

        Targets are made anew. What was not answered in time was not taken.
        """
        if not pairs:
            return []
        answers: list[Taken] = []
        try:
            self._ask([[os.fsdecode(path) for path in pair] for pair in pairs])
            deadline = time.monotonic() + timeout
            while len(answers) < len(pairs):
                answers.append(self._answer(deadline))
        except (OSError, EOFError) as error:
            self.close()
            failed = Taken(False, reason=str(error) or "the process that copies it ended")
            answers += [failed] * (len(pairs) - len(answers))
        return answers

    def close(self) -> None:
        """End the child."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with suppress(OSError):
                        stream.close()
            process.wait()

    def _ask(self, pairs: list[list[str]]) -> None:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "onesync.snapshot"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
                cwd="/",
            )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(pairs).encode() + b"\n")
        self._process.stdin.flush()

    def _answer(self, deadline: float) -> Taken:
        assert self._process is not None
        assert self._process.stdout is not None
        # One line at a time is asked for only when it is there, or the buffer would hide the rest.
        line = b""
        fd = self._process.stdout.fileno()
        ready = select.poll()
        ready.register(fd, select.POLLIN)
        while not line.endswith(b"\n"):
            patience = deadline - time.monotonic()
            if patience <= 0 or not ready.poll(1000 * patience):
                raise TimeoutError("its copy took too long")
            byte = os.read(fd, 1)
            if not byte:
                raise EOFError
            line += byte
        return Taken(**json.loads(line))


def _take_one(source: bytes, target: bytes) -> Taken:
    try:
        _copy(source, target)
    except sqlite3.Error as error:
        is_database = _answer_of(error) in _NOT_NOW
        return _not_taken(error, is_database=is_database, place=source)
    except OSError as error:
        lost = _lost(source) if error.errno in SOURCE else 0
        return Taken(False, True, error.strerror or repr(error), lost=lost)
    try:
        return Taken(True, has_rows=_has_rows(target))
    except sqlite3.Error as error:
        if _answer_of(error) in _NO_DATABASE:
            return _not_taken(error, is_database=False, place=target)  # it may share the content
        return Taken(True)  # a table that only its own program can read, or a newer SQLite


def _not_taken(error: sqlite3.Error, *, is_database: bool, place: bytes) -> Taken:
    """Return what SQLite's refusal says, unless the disk does not give what it read at ``place``.

    It calls that corruption, too, which says nothing of the database.
    """
    lost = _lost(place) if _answer_of(error) in _MAY_BE_THE_DISK else 0
    if lost:
        return Taken(False, True, os.strerror(lost), lost=lost)
    return Taken(False, is_database, str(error))


def _lost(path: bytes) -> int:
    """Return the errno that the disk gives instead of some content; 0 where it gives all of it.

    That is of a database and what stands beside it, for SQLite reads both.
    """
    return next(filter(None, map(_lost_of, (path, *(path + s for s in _JOURNALS)))), 0)


def _lost_of(path: bytes) -> int:
    try:
        fd = _open_file(path)
        try:
            offset = 0
            while chunk := os.pread(fd, _CHUNK, offset):
                offset += len(chunk)
        finally:
            os.close(fd)
    except OSError as error:
        return error.errno if error.errno is not None and error.errno in SOURCE else 0
    return 0


def _answer_of(error: sqlite3.Error) -> int | None:
    """Return what SQLite answered; None where it is Python's own error."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _has_rows(target: bytes) -> bool:
    uri = f"file:{quote(target)}?mode=ro&immutable=1"
    with closing(sqlite3.connect(uri, uri=True)) as copy:
        copy.execute("PRAGMA trusted_schema=OFF")
        copy.execute("BEGIN")
        copy.execute(_TAKES_LOCK).fetchone()  # half a database is none, which is not asked below
        copy.execute("PRAGMA writable_schema=ON")  # what it cannot parse is passed over
        names = copy.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        return any(
            copy.execute('SELECT 1 FROM "{}" LIMIT 1'.format(name.replace('"', '""'))).fetchone()
            for (name,) in names
        )


def _copy(source: bytes, target: bytes) -> None:
    _clear(target)
    # Opened before and closed after the connection: closing any descriptor of the file drops
    # SQLite's locks on it in this process.
    fd = _open_file(source)
    try:
        if _is_copied_closed(source, fd, target):
            return
        try:
            _backup(source, fd, target)
        except sqlite3.OperationalError as error:
            if _answer_of(error) == sqlite3.SQLITE_BUSY:
                raise
            # A hot journal or lone WAL of dead writers.
            _clear(target)
            _roll_back_copy(source, fd, target)
    except BaseException:
        _clear(target)  # room for the next one, where that was what it lacked
        raise
    finally:
        os.close(fd)


def _open_file(path: bytes) -> int:
    fd = open_plain(path, os.O_RDONLY | os.O_NONBLOCK)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise OSError(errno.EINVAL, "it is not a regular file any more")


def _clear(target: bytes) -> None:
    for suffix in (b"", *_SIDECARS):
        with suppress(FileNotFoundError):
            os.unlink(target + suffix)


def _is_copied_closed(source: bytes, fd: int, target: bytes) -> bool:
    """Copy a database that would have a log if anybody had it open; returns whether it did.

    SQLite makes a log and its index even to read one, and these would stay in the user's directory.
    Whoever opens it makes its log first, and only who has it alone takes that away again: nobody
    has while we share its lock.
    """
    if os.pread(fd, 1, _READ_VERSION) != _LOGGED:
        return False
    try:
        fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB, _SHARED_BYTES, _SHARED_PLACE)
    except OSError:
        return False  # somebody has it open: SQLite waits
    try:
        before = [_stamp(os.lstat(source))]
        if _stamps(source, fd) != before:
            return False  # it has a sidecar, or its name no more
        _copy_bytes(fd, target)
        if _stamps(source, fd) == before:
            return True
    finally:
        fcntl.lockf(fd, fcntl.LOCK_UN, _SHARED_BYTES, _SHARED_PLACE)
    _clear(target)
    return False


def _backup(source: bytes, fd: int, target: bytes) -> None:
    uri = f"file:{quote(source)}?mode=ro"
    with closing(
        sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
    ) as origin:
        _refuse_another(fd)
        origin.execute("BEGIN")
        origin.execute(_TAKES_LOCK).fetchone()
        if _holds_bytes(source + b"-wal"):
            with closing(sqlite3.connect(os.fsdecode(target))) as copy:
                origin.backup(copy, pages=-1)
        else:
            # Under the read lock nobody changes the file, so its bytes are the snapshot: the
            # backup call would count one change more and differ from the source for ever.
            before = _stamp(os.fstat(fd))
            _copy_bytes(fd, target)
            if _stamp(os.fstat(fd)) != before:
                raise OSError(errno.EBUSY, "it is written by something that knows no locks")


def _refuse_another(fd: int) -> None:
    """Raise unless SQLite, which opens by name, has opened the file of ``fd`` too."""
    wanted = os.fstat(fd)
    opened = 0
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            opened += os.path.samestat(os.fstat(int(name)), wanted)
    if opened < 2:
        raise OSError(errno.ESTALE, "another file has its name now")


def _roll_back_copy(source: bytes, fd: int, target: bytes) -> None:
    """Copy what dead writers left, and let SQLite roll the copy back."""
    before = _stamps(source, fd)
    _copy_bytes(fd, target)
    for suffix in _JOURNALS:
        with suppress(FileNotFoundError):
            side = _open_file(source + suffix)
            try:
                _copy_bytes(side, target + suffix)
            finally:
                os.close(side)
    if _stamps(source, fd) != before:
        raise OSError(errno.EBUSY, "it is written again")
    if _names_another(target + b"-journal"):
        raise OSError(errno.EPERM, "its journal names another one: open it with its own program")
    with closing(sqlite3.connect(os.fsdecode(target))) as copy:
        copy.execute(_TAKES_LOCK).fetchone()


def _stamps(source: bytes, fd: int) -> list[tuple[int, ...]]:
    """Return what tells that the database or a sidecar was written."""
    found = [os.fstat(fd)]
    for suffix in _JOURNALS:
        with suppress(FileNotFoundError):
            found.append(os.lstat(source + suffix))
    return list(map(_stamp, found))


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _names_another(journal: bytes) -> bool:
    """Return whether a journal ends with a super-journal's name, which rolling back deletes."""
    try:
        with open(journal, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - len(_SUPER_JOURNAL)))
            return file.read() == _SUPER_JOURNAL
    except FileNotFoundError:
        return False


def _copy_bytes(fd: int, target: bytes) -> None:
    """Copy an open file while its writers wait: by reference where the file system can."""
    with open(target, "xb") as copy:
        if is_cloned(fd, copy.fileno()):
            return
        offset = 0
        while sent := os.sendfile(copy.fileno(), fd, offset, _CHUNK):
            offset += sent


def is_cloned(fd: int, target: int) -> bool:
    """Whether ``target`` now shares the content of ``fd``; nothing is copied where it cannot.

    Why it cannot does not matter: what stands against copying too is met by the copying.
    """
    try:
        fcntl.ioctl(target, _FICLONE, fd)
    except OSError:
        return False
    return True


def main() -> None:
    """Copy the databases that each line of standard input names; answer each with a line."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    for line in sys.stdin.buffer:
        for source, target in json.loads(line):
            taken = _take_one(os.fsencode(source), os.fsencode(target))
            try:
                os.write(1, json.dumps(asdict(taken)).encode() + b"\n")
            except BrokenPipeError:
                return  # the daemon is gone


if __name__ == "__main__":
    main()
