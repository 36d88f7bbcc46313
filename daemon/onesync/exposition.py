"""Where the world looks: the server for Prometheus and browsers, and a last file at exit."""

from __future__ import annotations

import errno
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from socketserver import ThreadingMixIn
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, cast
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, generate_latest, make_wsgi_app

from onesync.core.page import POLICY
from onesync.errors import ConfigurationError

if TYPE_CHECKING:
    import ssl

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

log = logging.getLogger(__name__)

_TAKEN = (errno.EADDRINUSE, errno.EADDRNOTAVAIL)
"""Why an address is not to be had now: somebody else has it, or this node does not have it yet."""
_AGAIN_SECONDS = 60.0
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_EXHAUSTED_SECONDS = 0.5
_PATIENCE_SECONDS = 30.0
"""Who connects and then says nothing is let go after so long."""
_GUARDS = [
    ("Content-Security-Policy", POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-store"),
]


@dataclass(frozen=True, slots=True)
class Tls:
    """The files for TLS, in PEM.

    Attributes:
        certificate: ours, with those that it follows from.
        key: of our certificate.
        client_authorities: who must have signed the certificates of those who ask; None: anybody
            may ask.
    """

    certificate: Path
    key: Path
    client_authorities: Path | None

    def context(self) -> ssl.SSLContext:
        """Read the files. Raises OSError, of which a bad certificate's error is one too."""
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        if self.client_authorities is not None:
            context.load_verify_locations(self.client_authorities)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


class _Server(ThreadingMixIn, WSGIServer):
    """Answers each scrape in a thread of its own, at one address."""

    daemon_threads = True
    _is_failing = False

    def __init__(self, host: str, port: int, tls: Tls | None) -> None:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        self.address_family, *_, address = found[0]
        self._tls = tls
        super().__init__((str(address[0]), port), _Scrape)

    def serve_until(self, stopped: Event) -> None:
        """Answer one scrape after the other; between them nothing wakes up."""
        while not stopped.is_set():
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

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Answer, in the scrape's own thread: who is slow to shake hands keeps no other waiting."""
        if self._tls is None:
            super().finish_request(request, client_address)
        else:
            request.settimeout(_PATIENCE_SECONDS)
            # Read anew for each scrape: a certificate that was renewed counts without a restart.
            with self._tls.context().wrap_socket(request, server_side=True) as wrapped:
                super().finish_request(wrapped, client_address)
        self._is_failing = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say why a scrape failed, once until one succeeds: none who asks may fill the journal."""
        if not self._is_failing:
            self._is_failing = True
            log.warning("a scrape failed", extra={"reason": repr(sys.exception())})


class _Scrape(WSGIRequestHandler):
    timeout = _PATIENCE_SECONDS

    def log_message(self, *_: object) -> None:
        """Say nothing of each scrape."""


class Exposition:
    """The server that Prometheus scrapes, and where a browser finds the page.

    Attributes:
        trouble: a sentence that says why nobody can ask now, or "".
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        listen: str,
        tls: Tls | None = None,
        refresh: Callable[[], None] = lambda: None,
        page: Callable[[], bytes] = lambda: b"",
    ) -> None:
        """Serve at HOST:PORT; ``refresh`` brings the metrics up to date before each scrape.

        Both it and ``page``, which returns an HTML document, are called in the thread of who asks.
        An address that somebody else has keeps no folder from being deployed: it is tried again
        until it is free. Raises ConfigurationError when it can never be had, or the files for TLS
        are no good.
        """
        host, _, port = listen.rpartition(":")
        if tls is not None:
            _refuse_bad_files(tls)
        scraped = make_wsgi_app(registry)

        def refreshed(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
            refresh()
            return cast("Iterable[bytes]", scraped(environ, start))

        self._listen = listen
        self._make: Callable[[], _Server] = lambda: _Server(host, int(port), tls)
        self._answer = _by_path(refreshed, page)
        self._server: _Server | None = None
        self._is_stopped = Event()
        self.trouble = ""
        self._begin()
        if self.trouble:
            log.error(self.trouble)
        self._thread = Thread(target=self._serve, name="metrics", daemon=True)
        self._thread.start()

    def _begin(self) -> None:
        """Take the address, or note why it is not to be had now."""
        try:
            server = self._make()
        except OSError as error:
            if error.errno not in _TAKEN:
                raise ConfigurationError(
                    f"The metrics address {self._listen} cannot be used ({error.strerror}); nothing"
                    " was changed. Set metrics.listen to a free one."
                ) from error
            self.trouble = (
                f"The metrics address {self._listen} cannot be used ({error.strerror}), so nobody"
                " can ask for the metrics and the page; all else goes on. Set metrics.listen to a"
                " free one, another one for each onesync of this node: it counts from the next"
                " start on. Until then this one is tried again every minute."
            )
            return
        server.set_app(self._answer)
        self._server, self.trouble = server, ""

    def _serve(self) -> None:
        while self._server is None and not self._is_stopped.wait(_AGAIN_SECONDS):
            with suppress(ConfigurationError):  # a name that is not found just now
                self._begin()
        if self._server is not None:
            self._server.serve_until(self._is_stopped)

    @property
    def port(self) -> int:
        """The port that is served, or is to be."""
        if self._server is None:
            return int(self._listen.rpartition(":")[2])
        return self._server.server_port

    def stop(self) -> None:
        """End the server."""
        self._is_stopped.set()
        if self._server is not None:
            with suppress(OSError):
                self._server.socket.shutdown(socket.SHUT_RDWR)
            self._server.server_close()
        self._thread.join()


def _by_path(metrics: WSGIApplication, page: Callable[[], bytes]) -> WSGIApplication:
    """Return what answers: the metrics, the page, or that there is nothing else."""

    def answered(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if path == "/metrics":
            return metrics(environ, start)
        status, headers, body = "200 OK", [("Content-Type", "text/html; charset=utf-8")], b""
        if path != "/":
            status, headers = "404 Not Found", []
        elif method not in ("GET", "HEAD"):
            status, headers = "405 Method Not Allowed", [("Allow", "GET, HEAD")]
        else:
            body = page()
        start(status, [*headers, *_GUARDS, ("Content-Length", str(len(body)))])
        return [] if method == "HEAD" else [body]

    return answered


def _refuse_bad_files(tls: Tls) -> None:
    try:
        tls.context()
    except OSError as error:
        raise ConfigurationError(
            f"The files for TLS cannot be used ({error.strerror or error}); nothing was changed."
            " metrics.tls_certificate, tls_key and tls_client_authorities must be files in PEM that"
            " onesync may read, and the key must belong to the certificate."
        ) from error


class Textfile:
    """A last word for node_exporter's textfile collector: at exit the server is gone."""

    def __init__(self, directory: Path, folder: str) -> None:
        """Keep it in ``directory``, in a file of this folder's own."""
        self._path = directory / f"onesync-{folder}.prom"

    def write(self, registry: CollectorRegistry) -> None:
        """Write what ``registry`` holds; readers see all of it or nothing. Never raises."""
        # The collector reads every *.prom, so the temporary is called otherwise.
        temporary = self._path.with_suffix(".new")
        try:
            temporary.unlink(missing_ok=True)
            # The directory may be another user's: no link of his is followed.
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
            with open(fd, "wb") as file:
                file.write(generate_latest(registry))
                file.flush()
                os.fchmod(fd, 0o644)  # node_exporter is somebody else
                os.fsync(fd)  # what follows may be a power-off
            temporary.replace(self._path)
        except OSError as error:
            self._complain(error)

    def remove(self) -> None:
        """Remove what the last life left: should this one die, it must not speak for it."""
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            self._complain(error)

    def _complain(self, error: OSError) -> None:
        log.warning("textfile not written", extra={"reason": error.strerror})
