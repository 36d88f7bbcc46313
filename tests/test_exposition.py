"""Metrics and page over TLS, as a real Prometheus and others ask for them."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest

from onesync import exposition
from onesync.errors import ConfigurationError
from onesync.exposition import Exposition, Tls
from onesync.metrics import Metrics
from tests.machine import lacks
from tests.node import SOON, Node
from tests.test_prometheus import Prometheus, free_port, needs_prometheus


class Authority:
    """Signs certificates for 127.0.0.1."""

    def __init__(self, home: Path) -> None:
        home.mkdir()
        self.home = home
        self.certificate, key = home / "ca.crt", home / "ca.key"
        _openssl("req", "-x509", *_KEY, "-keyout", key, "-out", self.certificate, "-subj", "/CN=ca")
        self._signed = ["-CA", self.certificate, "-CAkey", key, "-CAcreateserial", "-days", "1"]

    def issue(self, name: str) -> tuple[Path, Path]:
        """Return a new certificate and its key."""
        certificate, key, request, names = (
            self.home / f"{name}.{end}" for end in ("crt", "key", "csr", "names")
        )
        names.write_text("subjectAltName=IP:127.0.0.1")
        _openssl("req", *_KEY, "-keyout", key, "-out", request, "-subj", f"/CN={name}")
        _openssl("x509", "-req", "-in", request, "-out", certificate, "-extfile", names,
                 *self._signed)  # fmt: skip
        return certificate, key


_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def _openssl(*words: object) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    if shutil.which("openssl") is None:
        lacks("needs openssl")
    return Authority(tmp_path / "authority")


def _get(port: int, context: ssl.SSLContext, path: str = "/metrics") -> str:
    url = f"https://127.0.0.1:{port}{path}"
    with urllib.request.urlopen(url, timeout=20, context=context) as answer:
        text: str = answer.read().decode()
    return text


def test_prometheus_scrapes_with_a_certificate_and_nobody_without(
    tmp_path: Path, nodes: list[Node], authority: Authority
) -> None:
    needs_prometheus()
    certificate, key = authority.issue("node")
    node, port = nodes[0], free_port()
    node.configure(
        metrics__listen=f"127.0.0.1:{port}",
        metrics__tls_certificate=certificate,
        metrics__tls_key=key,
        metrics__tls_client_authorities=authority.certificate,
    )
    node.deploy()
    theirs, their_key = authority.issue("prometheus")
    files = {"ca_file": authority.certificate, "cert_file": theirs, "key_file": their_key}
    tls = {"scheme": "https", "tls_config": {name: str(path) for name, path in files.items()}}
    server = Prometheus(tmp_path / "prometheus", f"127.0.0.1:{port}", scrape=tls)
    try:
        server.wait_for('up{job="onesync"}', 1)
        server.wait_for("onesync_mount_up", 1)
    finally:
        server.stop()
    stranger = ssl.create_default_context(cafile=str(authority.certificate))
    with pytest.raises(OSError, match=r"certificate required|reset|EOF"):
        _get(port, stranger)
    with pytest.raises(OSError):  # noqa: PT011 - whichever way a plain request is refused
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20)
    assert node.end() == 0, node.log()
    assert node.log().count("a scrape failed") == 1, "one line for all who are refused in a row"


def test_a_renewed_certificate_counts_without_a_restart(authority: Authority) -> None:
    certificate, key = authority.issue("node")
    served = Exposition(Metrics().registry, "127.0.0.1:0", Tls(certificate, key, None))
    try:
        anybody = ssl.create_default_context(cafile=str(authority.certificate))
        assert "onesync_build_info" in _get(served.port, anybody)
        renewed = Authority(authority.home / "new")
        for old, new in zip((certificate, key), renewed.issue("node"), strict=True):
            new.replace(old)
        with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
            _get(served.port, anybody)
        trusting = ssl.create_default_context(cafile=str(renewed.certificate))
        assert "onesync_build_info" in _get(served.port, trusting)
    finally:
        served.stop()


def test_the_page_asks_for_a_certificate_as_the_metrics_do(authority: Authority) -> None:
    tls = Tls(*authority.issue("node"), authority.certificate)
    served = Exposition(Metrics().registry, "127.0.0.1:0", tls, page=lambda: b"the page")
    try:
        known = ssl.create_default_context(cafile=str(authority.certificate))
        with pytest.raises(OSError, match=r"certificate required|reset|EOF"):
            _get(served.port, known, "/")
        known.load_cert_chain(*authority.issue("person"))
        assert _get(served.port, known, "/") == "the page"
    finally:
        served.stop()


def test_who_does_not_shake_hands_keeps_nobody_waiting(authority: Authority) -> None:
    served = Exposition(Metrics().registry, "127.0.0.1:0", Tls(*authority.issue("node"), None))
    try:
        anybody = ssl.create_default_context(cafile=str(authority.certificate))
        with socket.create_connection(("127.0.0.1", served.port)):
            assert "onesync_build_info" in _get(served.port, anybody)
    finally:
        served.stop()


def test_failures_are_told_once_until_a_scrape_succeeds(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    served = Exposition(Metrics().registry, "127.0.0.1:0", Tls(*authority.issue("node"), None))
    try:
        for _ in range(3):
            _say_nonsense(served.port)
        deadline = time.monotonic() + SOON
        while not caplog.messages:  # who asked may be told before it is
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert caplog.messages == ["a scrape failed"]
        _get(served.port, ssl.create_default_context(cafile=str(authority.certificate)))
        deadline = time.monotonic() + SOON
        while len(caplog.messages) < 2:  # the answer may be here before its thread is done
            assert time.monotonic() < deadline
            _say_nonsense(served.port)
    finally:
        served.stop()


def _say_nonsense(port: int) -> None:
    """Be refused; returns when the server is done with it."""
    with socket.create_connection(("127.0.0.1", port)) as connection, suppress(ConnectionError):
        connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        while connection.recv(1 << 12):
            pass


def test_a_key_of_another_certificate_is_refused_at_the_door(authority: Authority) -> None:
    certificate, _ = authority.issue("one")
    _, key = authority.issue("two")
    with pytest.raises(ConfigurationError, match="KEY_VALUES_MISMATCH"):
        Exposition(Metrics().registry, "127.0.0.1:0", Tls(certificate, key, None))


def test_a_file_that_is_missing_is_refused_at_the_door(nodes: list[Node]) -> None:
    missing = nodes[0].home / "missing"
    nodes[0].configure(metrics__tls_certificate=missing, metrics__tls_key=missing)
    assert nodes[0].refusal() == 78
    assert "No such file or directory" in nodes[0].log()


def test_a_second_instance_at_the_same_address_is_deployed_and_says_so(nodes: list[Node]) -> None:
    one, two = nodes
    port = free_port()
    (one.home.parent / "another store").mkdir()
    two.store = one.home.parent / "another store"
    for node in nodes:
        node.configure(metrics__listen=f"127.0.0.1:{port}", metrics__textfile_dir=node.home)
    one.deploy()
    two.deploy()
    (two.work / "file").write_bytes(b"1")
    assert two.flush() == 0, "it is no problem of what is pushed"
    assert (two.store / "file").read_bytes() == b"1"
    (problem,) = two.status()["problems"]
    assert (problem["path"], problem["kind"]) == ("", "no_metrics")
    assert (
        f"The metrics address 127.0.0.1:{port} cannot be used (Address already in use)"
        in (problem["text"])
    )
    assert problem["text"] in two.log()
    assert one.status()["problems"] == []
    assert two.end() == 0, two.log()
    assert f'port="{port}"' in (two.home / "onesync-onesync.prom").read_text(), "which was meant"
    assert one.end() == 0, one.log()


def test_an_address_that_comes_free_is_served_without_a_restart(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(exposition, "_AGAIN_SECONDS", 0.02)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        served = Exposition(Metrics().registry, f"127.0.0.1:{port}")
        assert "Address already in use" in served.trouble
        assert served.port == port
    try:
        deadline = time.monotonic() + SOON
        while served.trouble:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
            assert b"onesync_build_info" in answer.read()
        assert len(caplog.messages) == 1, "told once, however often it was tried"
    finally:
        served.stop()


def test_who_waits_for_his_address_is_stopped_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        served = Exposition(Metrics().registry, f"127.0.0.1:{taken.getsockname()[1]}")
        served.stop()
    assert not served._thread.is_alive()
