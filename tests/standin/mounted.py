"""The stand-in as a mount of a test's own, and its switches."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

_REPOSITORY = Path(__file__).parents[2]


class Mounted:
    """Mounts ``home/backing`` at ``home/mount``; ends only what it started."""

    def __init__(self, home: Path) -> None:
        self.backing = home / "backing"
        self.path = home / "mount"
        self._control = home / "control"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Mounted:
        self.backing.mkdir(parents=True, exist_ok=True)
        self.path.mkdir(exist_ok=True)
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Mount, and wait until the mount is there."""
        self._control.unlink(missing_ok=True)
        command = [sys.executable, "-m", "tests.standin.onedata"]
        places = [str(self.backing), str(self.path), str(self._control)]
        self._process = subprocess.Popen(command + places, cwd=_REPOSITORY)
        deadline = time.monotonic() + 20
        while not os.path.ismount(self.path) or not self._control.exists():
            assert self._process.poll() is None, "the stand-in ended"
            assert time.monotonic() < deadline, "the stand-in did not mount"
            time.sleep(0.02)

    def stop(self) -> None:
        """Unmount and end the process."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._ask("release")
        for flags in ("-u", "-uz"):
            if (
                subprocess.run(
                    ["fusermount3", flags, str(self.path)], capture_output=True, check=False
                ).returncode
                == 0
            ):
                break
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def kill(self) -> None:
        """Let the client die: every call on the mount fails with ENOTCONN until ``start``."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def remount(self) -> None:
        """Clear the dead mount away and mount anew."""
        subprocess.run(["fusermount3", "-uz", str(self.path)], check=True)
        self.start()

    def counts(self) -> dict[str, int]:
        """Return how often each operation was called, and ``bytes_written``."""
        found = self._ask("counts")
        assert isinstance(found, dict)
        return found

    def reset(self) -> None:
        """Count from zero."""
        self._ask("reset")

    def latency(self, seconds: float) -> None:
        """Let every call take this much longer."""
        self._ask("latency", seconds=seconds)

    def fail(
        self, operation: str, number: int, *, nth: int = 1, times: int = 1, pattern: str = ""
    ) -> None:
        """Let calls fail with the errno ``number``; ``times`` -1 is for ever."""
        self._ask("fail", operation=operation, number=number, nth=nth, times=times, pattern=pattern)

    def clear(self) -> None:
        """Let nothing fail any more."""
        self._ask("clear")

    def hang(self) -> None:
        """Let no call return until ``release``."""
        self._ask("hang")

    def release(self) -> None:
        """Let the hanging calls go on."""
        self._ask("release")

    def _ask(self, verb: str, **arguments: Any) -> Any:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(20)
            connection.connect(str(self._control))
            with connection.makefile("rwb") as stream:
                stream.write(json.dumps({"verb": verb, **arguments}).encode() + b"\n")
                stream.flush()
                return json.loads(stream.readline())
