"""Every metric, on a registry of its own, and the server that Prometheus scrapes."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from socketserver import ThreadingMixIn
from threading import Thread
from typing import TYPE_CHECKING, Any, cast
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Enum,
    Gauge,
    Info,
    disable_created_metrics,
    make_wsgi_app,
)

from onesync import __version__
from onesync.errors import ConfigurationError

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

PHASES = (
    "starting", "locking", "staging_in", "syncing", "backing_off", "suspended", "flushing",
    "cleaning", "halted", "fenced", "stopped",
)  # fmt: skip

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_EXHAUSTED_SECONDS = 0.5

disable_created_metrics()  # type: ignore[no-untyped-call]


class _Server(ThreadingMixIn, WSGIServer):
    """Answers each scrape in a thread of its own, at one address."""

    daemon_threads = True
    is_closed = False

    def __init__(self, host: str, port: int) -> None:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        self.address_family, *_, address = found[0]
        super().__init__((str(address[0]), port), _Silent)

    def serve_until_closed(self) -> None:
        """Answer one scrape after the other; between them nothing wakes up."""
        while not self.is_closed:
            self.handle_request()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Take the next connection; where there is no descriptor for it, let it wait.

        The socket stays readable then, so that the loop would ask again at once, and for ever.
        """
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in _EXHAUSTED:
                time.sleep(_EXHAUSTED_SECONDS)
            raise


class _Silent(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing of each scrape."""


class Metrics:
    """The daemon's metrics. Any thread."""

    def __init__(self) -> None:
        """Register every metric."""
        self.registry = registry = CollectorRegistry()
        self._server: tuple[_Server, Thread] | None = None
        Info("onesync_build", "Version of onesync", registry=registry).info(
            {"version": __version__}
        )

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"onesync_{name}", text, registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"onesync_{name}", text, labels, registry=registry)

        self.phase = Enum("onesync_phase", "Phase", states=PHASES, registry=registry)
        self.pending_paths = gauge("pending_paths", "Paths that may differ from the replica")
        self.pending_bytes = gauge("pending_bytes", "Bytes known to wait for a push")
        self.oldest_unsynced_timestamp = gauge(
            "oldest_unsynced_timestamp_seconds", "When the oldest unsynced change was seen; 0: none"
        )
        self.last_checkpoint_timestamp = gauge(
            "last_checkpoint_timestamp_seconds", "When the newest checkpoint was committed"
        )
        self.lock_beat_timestamp = gauge(
            "lock_beat_timestamp_seconds", "When the lock's last heartbeat was confirmed"
        )
        self.mount_up = gauge("mount_up", "Whether the mount answered last time")
        self.epoch = gauge("lock_epoch", "Epoch of our claim; 0: none")
        self.watches = gauge("inotify_watches", "Directories that the kernel watches")
        self.polled = gauge("polled_directories", "Directories polled, for want of kernel watches")
        self.problems = gauge("problems", "Paths that have a problem")
        self.held_deletions = gauge(
            "held_deletions", "Paths that are missing unexplained and are kept in the replica"
        )
        self.pushed_files = counter("pushed_files", "Files published in the replica")
        self.pushed_bytes = counter("pushed_bytes", "Bytes of files published in the replica")
        self.push_errors = counter("push_errors", "Batches that failed", "kind")
        self.verify_failures = counter(
            "verify_failures", "Files in OneData that were not what had been pushed"
        )
        self.rescans = counter("rescans", "Scans of the whole working copy", "reason")
        self.overflows = counter("inotify_overflows", "Times the kernel dropped events")
        self._overflows = 0

    def update(self, status: dict[str, Any], overflows: int) -> None:
        """Take over what the status document says, and how many overflows there were so far."""
        self.overflows.inc(overflows - self._overflows)
        self._overflows = overflows
        self.phase.state(status["phase"])
        self.pending_paths.set(status["pending_paths"])
        self.pending_bytes.set(status["pending_bytes"])
        self.oldest_unsynced_timestamp.set(status["oldest_unsynced_at"] or 0)
        self.mount_up.set(status["mount"]["up"])
        self.epoch.set(status["epoch"] or 0)
        if status["lock"] is not None:
            self.lock_beat_timestamp.set(status["lock"]["confirmed_at"])
        self.held_deletions.set(status["held_deletions"])
        self.watches.set(status["watches"]["kernel"])
        self.polled.set(status["watches"]["polled"])
        self.problems.set(len(status["problems"]))

    def serve(self, listen: str, refresh: Callable[[], None] = lambda: None) -> None:
        """Serve at HOST:PORT; ``refresh`` brings the metrics up to date before each scrape.

        Raises ConfigurationError when the address is not to be had.
        """
        host, _, port = listen.rpartition(":")
        try:
            server = _Server(host, int(port))
        except OSError as error:
            raise ConfigurationError(
                f"The metrics address {listen} cannot be used ({error.strerror}); nothing was"
                " changed. Set metrics.listen to a free one."
            ) from error
        scraped = make_wsgi_app(self.registry)

        def refreshed(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
            refresh()
            return cast("Iterable[bytes]", scraped(environ, start))

        server.set_app(refreshed)
        thread = Thread(target=server.serve_until_closed, name="metrics", daemon=True)
        thread.start()
        self._server = server, thread

    def stop(self) -> None:
        """End the server."""
        if self._server is not None:
            server, thread = self._server
            server.is_closed = True
            with suppress(OSError):
                server.socket.shutdown(socket.SHUT_RDWR)
            server.server_close()
            thread.join()
