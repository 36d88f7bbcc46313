"""The thread that keeps the lock's heartbeat going, and finds out when the lock is lost."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from onesync.core.clock import Clock
from onesync.errors import LockLost, OnesyncError
from onesync.lock import Lock

log = logging.getLogger(__name__)


class Heartbeat:
    """Beats every ``lock.times.beat`` seconds until stopped or lost."""

    def __init__(
        self,
        lock: Lock,
        clock: Clock,
        last_checkpoint: Callable[[], str | None],
        told: Callable[[Exception | None], None],
        check_mount: Callable[[], object],
    ) -> None:
        """Prepare.

        ``told`` is called after each beat with what went wrong, in the beat's thread.
        ``check_mount`` raises where the folder is not there: that its lock is not there either
        means nothing then.
        """
        self._lock = lock
        self._clock = clock
        self._last_checkpoint = last_checkpoint
        self._told = told
        self._check_mount = check_mount
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="beat", daemon=True)
        self.lost: LockLost | None = None
        self.failed: Exception | None = None

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def stop(self) -> None:
        """Beat no more; does not wait for a beat that is stuck on the mount."""
        self._ended.set()

    def _run(self) -> None:
        while not self._clock.wait(self._ended, self._lock.times.beat):
            failed: Exception | None = None
            try:
                self._check_mount()
                self._lock.beat(self._last_checkpoint())
            except LockLost as error:
                if not self._ended.is_set():
                    self.lost = error
                self._told(error)
                return
            except (OSError, OnesyncError) as error:
                failed = error
                late = self._lock.age() > self._lock.times.warn
                log.log(
                    logging.ERROR if late else logging.WARNING,
                    "heartbeat not confirmed",
                    extra={"reason": str(error), "seconds": round(self._lock.age())},
                )
            except Exception as error:
                failed = error  # such as no thread to be had: the next beat may find one
                log.exception("unexpected")
            self.failed = failed
            self._told(failed)
