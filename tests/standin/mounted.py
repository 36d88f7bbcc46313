"""The stand-in as a mount of a test's own, and its switches."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from tests import nursery
from tests.standin.control import ask
from tests.standin.log import Call, read_log


class Mounted:
    """Mounts ``home/backing`` at ``home/mount``; ends only what it started.

    ``profile`` names a generation of OneData's client (``profiles``). A ``backing`` folder of
    another mount makes this one a second client of the same provider.

    The verbs that take ``more`` befall the calls of an ``operation`` as ``weather.Fault`` has it:
    ``nth``, ``times`` (-1 for ever), ``pattern`` of the path, ``probability`` with ``seed``,
    ``delay`` in seconds, ``applied``: the call is carried out all the same. ``"*"`` stands for
    every operation. Two points can be named like operations, and count as none: ``replace``, inside
    a rename after the target is gone, and ``store``, before a buffer goes to the storage.
    """

    def __init__(self, home: Path, *, profile: str = "plain", backing: Path | None = None) -> None:
        self.backing = backing or home / "backing"
        self.path = home / "mount"
        self.profile = profile
        self._control = home / "control"
        self._log = home / "log"
        self._process: nursery.Process | None = None

    def __enter__(self) -> Mounted:
        self.backing.mkdir(parents=True, exist_ok=True)
        self.path.mkdir(parents=True, exist_ok=True)
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
        places = [str(self.backing), str(self.path), str(self._control)]
        self._process = nursery.start("tests.standin.onedata", [*places, self.profile])
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
        self._end()

    def _end(self) -> None:
        assert self._process is not None
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

    @property
    def pid(self) -> int:
        """The client's process."""
        assert self._process is not None
        return self._process.pid

    def running(self) -> bool:
        """Whether the client lives."""
        return self._process is not None and self._process.poll() is None

    def died(self) -> None:
        """Wait until the client has died of ``kill_at``."""
        assert self._process is not None
        self._process.wait(20)

    def remount(self, profile: str | None = None) -> None:
        """Clear the mount away, dead or alive, and mount anew, with another profile if told."""
        self.profile = profile or self.profile
        subprocess.run(["fusermount3", "-uz", str(self.path)], check=True)
        self._end()
        self.start()

    def counts(self) -> dict[str, int]:
        """Return how often each operation was called, and ``bytes_written``."""
        found = self._ask("counts")
        assert isinstance(found, dict)
        return found

    def calls(self) -> int:
        """Return how many operations were called, all together."""
        return sum(times for name, times in self.counts().items() if name != "bytes_written")

    def reset(self) -> None:
        """Count from zero."""
        self._ask("reset")

    def latency(self, seconds: float) -> None:
        """Let every call take this much longer."""
        self._ask("latency", seconds=seconds)

    def fail(self, operation: str, number: int, **more: Any) -> None:
        """Let calls fail with the errno ``number``.

        A write's error comes late, as a buffered one's does, unless it is told ``at_once``. With
        ``applied`` the result is unknown to the caller: it fails and is carried out.
        """
        self._ask("fail", operation=operation, number=number, **more)

    def drop_at(self, operation: str, **more: Any) -> None:
        """Let calls answer success and do nothing; a read that is dropped tells zeros."""
        self._ask("fail", effect="drop", operation=operation, **more)

    def kill_at(self, operation: str, **more: Any) -> None:
        """Let the client die of a call, before it is carried out or (``applied``) after.

        With ``victims`` those processes die instead, and all that they started, which with
        ``orphans`` lives on; ``pid`` is the client's own.
        """
        self._ask("fail", effect="kill", operation=operation, **more)

    def hang_at(self, operation: str, **more: Any) -> None:
        """Let calls hang until ``release``, which takes this fault away, or ``clear``."""
        self._ask("fail", effect="hang", operation=operation, **more)

    def delay_at(self, operation: str, seconds: float, **more: Any) -> None:
        """Let calls take this much longer."""
        self._ask("fail", effect="wait", operation=operation, delay=seconds, **more)

    def clear(self) -> None:
        """Let nothing fail any more."""
        self._ask("clear")

    def names(self, **switches: Any) -> None:
        """Set what becomes of names (``refusals.Refusals``)."""
        self._ask("names", **switches)

    def hang(self) -> None:
        """Let no call return until ``release``."""
        self._ask("hang")

    def release(self) -> None:
        """Let the hanging calls go on."""
        self._ask("release")

    def buffer(self, size: int) -> None:
        """Let every handle hold back so many bytes; 0: none, as the plain profile does."""
        self._ask("buffer", size=size)

    def lose_connection(self, *, keep_sizes: bool = False) -> None:
        """Lose the provider: all buffers are dropped, silently; 18.02 hangs until ``release``.

        With ``keep_sizes`` this mount goes on telling the sizes that the files would have had.
        """
        self._ask("lose_connection", keep_sizes=keep_sizes)

    def late(self, seconds: float, *, own: bool = True) -> None:
        """Let sizes and times be told this late; ``own`` false: only of what others changed."""
        self._ask("late", seconds=seconds, own=own)

    def lag(self, seconds: float) -> None:
        """Let the provider say this late that it has a file's bytes; not of the plain profile."""
        self._ask("lag", seconds=seconds)

    def hide(self, pattern: str) -> None:
        """Let listings skip the paths that match; look-ups find them."""
        self._ask("hide", pattern=pattern)

    def freeze(self) -> None:
        """Let every directory be listed as it is now, whatever happens to it."""
        self._ask("freeze")

    def show(self) -> None:
        """List everything again, as it is."""
        self._ask("show")

    def quota(self, size: int | None, number: int = errno.ENOSPC, *, at: str = "write") -> None:
        """Let files grow to ``size`` bytes together; None is no limit.

        Beyond, nothing is stored, and ``write``, ``fsync`` or ``close`` tells ``number``.
        """
        self._ask("quota", size=size, number=number, told_at=at)

    def read_only(self, on: bool = True) -> None:
        """Let changes fail with EROFS; a truncation answers success and does nothing."""
        self._ask("read_only", on=on)

    def start_log(self) -> None:
        """Begin a log of every call; one that was there goes."""
        self._ask("start_log", path=str(self._log))

    def stop_log(self) -> None:
        """Write no log any more."""
        self._ask("stop_log")

    def log(self) -> list[Call]:
        """Return the calls since ``start_log``, in the order in which they came."""
        return read_log(self._log)

    def _ask(self, verb: str, **arguments: Any) -> Any:
        return ask(self._control, verb, **arguments)
