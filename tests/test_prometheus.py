"""A real Prometheus scrapes a real onesync and answers queries."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from tests.machine import lacks
from tests.node import SOON, Node
from tests.test_program import fill


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def needs_prometheus() -> None:
    if shutil.which("prometheus") and shutil.which("promtool"):
        return
    lacks("needs Debian's prometheus")


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    needs_prometheus()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    (tmp_path / "store").mkdir()
    listen = f"127.0.0.1:{free_port()}"
    node = Node(tmp_path / "node", tmp_path / "store", metrics__listen=listen)
    node.deploy()
    yield node
    if node.running():
        node.end(signal.SIGKILL)


_TIMES = ("scrape_interval", "scrape_timeout", "evaluation_interval")


def _job(name: str, target: str) -> dict[str, object]:
    return {"job_name": name, "static_configs": [{"targets": [target]}]}


class Prometheus:
    """A server of the test's own that scrapes four times a second.

    Its job ``onesync`` has the target and, in ``scrape``, what else is configured for it; each of
    ``jobs`` has another target.
    """

    def __init__(
        self,
        home: Path,
        target: str,
        jobs: Mapping[str, str] = MappingProxyType({}),
        rules: Path | None = None,
        scrape: Mapping[str, object] = MappingProxyType({}),
    ) -> None:
        home.mkdir()
        self._address = f"127.0.0.1:{free_port()}"
        others = [_job(name, place) for name, place in jobs.items()]
        configuration = {
            "global": dict.fromkeys(_TIMES, "250ms"),
            "scrape_configs": [{**_job("onesync", target), **scrape}, *others],
            "rule_files": [] if rules is None else [str(rules)],
        }
        (home / "prometheus.yml").write_text(json.dumps(configuration))  # JSON is YAML
        self._log = home / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={home / 'prometheus.yml'}",
                    f"--storage.tsdb.path={home / 'data'}",
                    f"--web.listen-address={self._address}",
                ],
                stdout=log,
                stderr=log,
            )

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def get(self, path: str) -> Any:
        """Return the data that an address of its HTTP interface gives."""
        url = f"http://{self._address}/api/v1/{path}"
        with urllib.request.urlopen(url, timeout=5) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[dict[str, object]]:
        """Return the series of an instant query; the server may not be up yet."""
        found = self.get(f"query?query={urllib.parse.quote(expression)}")["result"]
        assert isinstance(found, list)
        return found

    def value(self, expression: str) -> float | None:
        """Return the value of a query's only series, or None where there is none yet."""
        try:
            found = self.query(expression)
        except OSError:
            return None
        if not found:
            return None
        assert len(found) == 1, found
        value = found[0]["value"]
        assert isinstance(value, list)
        return float(value[1])

    def wait_for(self, expression: str, expected: float) -> None:
        deadline = time.monotonic() + SOON
        while (found := self.value(expression)) != expected:
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, f"{expression} is {found}, not {expected}"
            time.sleep(0.1)


@pytest.fixture
def prometheus(tmp_path: Path, node: Node) -> Iterator[Prometheus]:
    server = Prometheus(tmp_path / "prometheus", listening(node))
    yield server
    server.stop()


def listening(node: Node) -> str:
    for line in node.config.read_text().splitlines():
        if line.startswith("listen = "):
            address: str = json.loads(line.partition(" = ")[2])
            return address
    raise AssertionError("no address")


def test_the_core_metrics_answer_queries(node: Node, prometheus: Prometheus) -> None:
    prometheus.wait_for('up{job="onesync"}', 1)
    fill(node.work)
    assert node.flush() == 0, node.log()
    prometheus.wait_for('onesync_phase{onesync_phase="syncing"}', 1)
    # A file may be pushed twice: a batch may begin while it is written.
    published = sum(map(int, re.findall(r" files=(\d+)", node.log())))
    assert published >= 5, node.log()
    prometheus.wait_for("onesync_pushed_files_total", published)
    prometheus.wait_for("onesync_pending_paths", 0)
    prometheus.wait_for("onesync_pending_bytes", 0)
    prometheus.wait_for("onesync_oldest_unsynced_timestamp_seconds", 0)
    prometheus.wait_for("onesync_mount_up", 1)
    prometheus.wait_for("onesync_lock_epoch", 1)
    prometheus.wait_for('onesync_rescans_total{reason="flush"}', 1)
    prometheus.wait_for("onesync_inotify_overflows_total", 0)
    prometheus.wait_for("time() - onesync_last_checkpoint_timestamp_seconds < bool 60", 1)
    prometheus.wait_for("time() - onesync_lock_beat_timestamp_seconds < bool 60", 1)
    prometheus.wait_for("onesync_pushed_bytes_total > bool 300000", 1)
    prometheus.wait_for('onesync_build_info{version!=""}', 1)
    prometheus.wait_for('onesync_folder_info{folder="onesync", folder_id=~"[0-9a-f]{32}"}', 1)
    prometheus.wait_for("onesync_stage_in_duration_seconds_count", 1)
    batches = len(re.findall("batch checkpoint=.* changes=[1-9]", node.log()))
    prometheus.wait_for(f"onesync_push_duration_seconds_count >= bool {batches}", 1)
    prometheus.wait_for(
        "onesync_push_attempts_total >= bool onesync_push_duration_seconds_count", 1
    )
    prometheus.wait_for("onesync_sync_delay_seconds_count >= bool 1", 1)
    prometheus.wait_for("time() - onesync_last_success_timestamp_seconds < bool 60", 1)
    prometheus.wait_for(
        'onesync_remote_operation_duration_seconds_count{op="identify"} > bool 0', 1
    )
    prometheus.wait_for("onesync_remote_operations_allowed", 64)
    prometheus.wait_for("onesync_lock_held", 1)
    prometheus.wait_for("onesync_lock_warn_seconds", 6 * 20)
    prometheus.wait_for("onesync_lock_suspend_seconds", 8 * 20)
    prometheus.wait_for("onesync_inotify_watches > bool 0", 1)
    limit = int(Path("/proc/sys/fs/inotify/max_user_watches").read_text())
    prometheus.wait_for("onesync_inotify_watch_limit", limit)
    size = os.statvfs(node.work)
    prometheus.wait_for(
        'onesync_directory_size_bytes{directory="working_dir"}', size.f_blocks * size.f_frsize
    )
    assert node.end() == 0, node.log()


def test_what_is_not_pushed_is_seen(node: Node, prometheus: Prometheus) -> None:
    node.store.rename(node.store.with_name("away"))
    (node.work / "file").write_bytes(bytes(1000))
    prometheus.wait_for('onesync_phase{onesync_phase="backing_off"}', 1)
    prometheus.wait_for("onesync_pending_paths >= bool 1", 1)
    prometheus.wait_for("onesync_pending_bytes >= bool 1000", 1)
    prometheus.wait_for("time() - onesync_oldest_unsynced_timestamp_seconds < bool 60", 1)
    prometheus.wait_for("onesync_mount_up", 0)
    prometheus.wait_for('onesync_push_errors_total{kind="MountNotThere"} > bool 0', 1)
    node.store.with_name("away").rename(node.store)
    assert node.end() == 0, node.log()


def test_a_problem_that_is_over_is_told_as_none(node: Node, prometheus: Prometheus) -> None:
    (node.work / "file").write_text("1")
    os.mkfifo(node.work / "fifo")
    assert node.flush() == 3, node.log()
    prometheus.wait_for('onesync_problems{kind="special"}', 1)
    (node.work / "fifo").unlink()
    assert node.flush() == 0, node.log()
    prometheus.wait_for('onesync_problems{kind="special"}', 0)
    assert node.end() == 0, node.log()


def test_promtool_finds_nothing_to_mend(node: Node) -> None:
    with urllib.request.urlopen(f"http://{listening(node)}/metrics", timeout=5) as answer:
        exposed = answer.read()
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=exposed, capture_output=True, check=False
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")
    assert node.end() == 0, node.log()
