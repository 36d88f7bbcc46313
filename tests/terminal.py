"""A command of the program on a pseudo-terminal, and what is to be seen there."""

from __future__ import annotations

import fcntl
import os
import re
import select
import struct
import subprocess
import sys
import termios
import threading
from contextlib import suppress

from tests.node import SOON, Node


class Terminal:
    """A command of a node on a terminal of its own, and what is to be seen there.

    Any sequence that is not understood fails the test that looks.
    """

    _SEQUENCE = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])")

    def __init__(self, node: Node, *words: str, columns: int = 100, **environment: str) -> None:
        self._master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 40, columns, 0, 0))
        plain = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "onesync.cli", *words, "--config", str(node.config)],
            preexec_fn=lambda: os.login_tty(slave),
            pass_fds=[slave],
            env=plain | {"TERM": "xterm-256color"} | environment,
        )
        os.close(slave)
        self._raw = bytearray()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join()
        os.close(self._master)

    def _read(self) -> None:
        with suppress(OSError):  # EIO: nobody has it open any more
            while select.select([self._master], [], [], SOON)[0]:
                part = os.read(self._master, 1 << 16)
                self._raw += part

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def wait(self) -> int:
        code = self.process.wait(SOON)
        self._reader.join()
        return code

    def raw(self) -> str:
        return bytes(self._raw).decode(errors="replace")

    def styles(self) -> set[str]:
        """All parameters of colours and styles that were set."""
        found = [m[1].split(";") for m in self._SEQUENCE.finditer(self.raw()) if m[2] == "m"]
        return {number for numbers in found for number in numbers}

    def hides_cursor(self) -> bool:
        return self.raw().rfind("\x1b[?25l") > self.raw().rfind("\x1b[?25h")

    def text(self) -> str:
        """What is to be seen, as a terminal shows it."""
        rows, row, column = [""], 0, 0
        for part in re.split(r"(\x1b\[[?0-9;]*[A-Za-z]|\r|\n)", self.raw()):
            if part == "\r":
                column = 0
            elif part == "\n":
                row += 1
                rows += [""] * (row + 1 - len(rows))
            elif found := self._SEQUENCE.fullmatch(part):
                row = self._obey(found[1], found[2], rows, row)
            else:
                assert part.isprintable(), part
                rows[row] = (
                    rows[row].ljust(column)[:column] + part + rows[row][column + len(part) :]
                )
                column += len(part)
        return "\n".join(rows)

    @staticmethod
    def _obey(numbers: str, command: str, rows: list[str], row: int) -> int:
        if command == "A":
            return row - int(numbers or 1)
        if command == "K":
            assert numbers == "2"
            rows[row] = ""
        else:
            assert command == "m" or numbers == "?25", (numbers, command)
        return row
