"""A real Prometheus with our rules scrapes a real onesync and a real node_exporter.

Every query of every dashboard returns data, every rule is evaluated, every metric is documented.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from math import isnan
from pathlib import Path
from typing import Any

import pytest

from tests.machine import lacks
from tests.node import SOON, Node
from tests.test_prometheus import Prometheus, free_port, needs_prometheus

CONFIG = Path(__file__).parents[1] / "config"
RULES = CONFIG / "prometheus" / "onesync.rules.yml"
DASHBOARDS = ("fleet", "node")


def dashboard(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CONFIG / "grafana" / f"{name}.json").read_text())
    return found


def panels(name: str) -> list[dict[str, Any]]:
    return [panel for panel in dashboard(name)["panels"] if panel["type"] != "row"]


def queries(name: str, folder: str, instance: str) -> list[str]:
    """Return the queries of a dashboard as Grafana sends them."""
    variables = {"folder": folder, "instance": instance, "__rate_interval": "20s"}
    found = [target["expr"] for panel in panels(name) for target in panel["targets"]]
    found += [note["expr"] for note in dashboard(name)["annotations"]["list"]]
    for variable, value in variables.items():
        found = [query.replace(f"${variable}", value) for query in found]
    assert not [query for query in found if "$" in query], "a variable that nobody knows"
    return found


class NodeExporter:
    """Debian's node_exporter with nothing but its textfile collector."""

    def __init__(self, home: Path) -> None:
        self.directory = home / "textfile"
        self.directory.mkdir()
        self.address = f"127.0.0.1:{free_port()}"
        with (home / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus-node-exporter",
                    "--collector.disable-defaults",
                    "--collector.textfile",
                    f"--collector.textfile.directory={self.directory}",
                    f"--web.listen-address={self.address}",
                ],
                stdout=log,
                stderr=log,
            )

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def exporter(tmp_path: Path) -> Iterator[NodeExporter]:
    needs_prometheus()
    if shutil.which("prometheus-node-exporter") is None:
        lacks("needs Debian's prometheus-node-exporter")
    (tmp_path / "exporter").mkdir()
    running = NodeExporter(tmp_path / "exporter")
    yield running
    running.stop()


@pytest.fixture
def node(nodes: list[Node], exporter: NodeExporter) -> Node:
    node = nodes[0]
    configure(node, exporter, f"127.0.0.1:{free_port()}")
    return node


def configure(node: Node, exporter: NodeExporter, listen: str) -> None:
    node.configure(
        metrics__listen=listen,
        metrics__textfile_dir=exporter.directory,
        metrics__folder=node.home.name,
        undeploy__flush_retry_seconds=0.5,
    )


def listening(node: Node) -> str:
    found = re.search(r'listen = "(.+)"', node.config.read_text())
    assert found is not None
    return found[1]


@pytest.fixture
def prometheus(tmp_path: Path, node: Node, exporter: NodeExporter) -> Iterator[Prometheus]:
    jobs = {"node": exporter.address}
    server = Prometheus(tmp_path / "prometheus", listening(node), jobs, RULES)
    yield server
    server.stop()


def answers(prometheus: Prometheus, query: str) -> bool:
    """Whether a query returns a series that has a number."""
    values = [series["value"] for series in prometheus.query(query)]
    return any(not isnan(float(value[1])) for value in values if isinstance(value, list))


def rules(prometheus: Prometheus) -> list[dict[str, Any]]:
    return [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]


def test_every_query_of_every_dashboard_returns_data(
    node: Node, nodes: list[Node], exporter: NodeExporter, prometheus: Prometheus
) -> None:
    # Another one of this machine has left, and could not finish its flush.
    other = nodes[1]
    configure(other, exporter, f"127.0.0.1:{free_port()}")
    other.store = node.home / "other"
    other.store.mkdir()
    other.config.write_text(other.config.read_text().replace(str(node.store), str(other.store)))
    other.deploy()
    assert other.flush() == 0, other.log()
    other.store.rename(other.store.with_name("gone"))
    (other.work / "a").write_text("1")
    assert other.end() == 10, other.log()
    node.deploy()
    os.mkfifo(node.work / "fifo")  # a problem of one path
    missing = set(queries("fleet", f"{node.home.name}|{other.home.name}", listening(node)))
    missing |= set(queries("node", node.home.name, listening(node)))
    prometheus.wait_for('up{job="onesync"}', 1)
    away = node.store.with_name("away")
    deadline = time.monotonic() + 3 * SOON
    number = 0
    while missing:
        assert time.monotonic() < deadline, "\n".join(sorted(missing))
        number += 1
        (node.work / f"file{number}").write_bytes(bytes(1000))
        # Rates need a rise between two scrapes, of what fails as well.
        if number % 2:
            assert node.flush() == 3, node.log()
        else:
            node.store.rename(away)
            prometheus.wait_for('onesync_phase{onesync_phase="backing_off"}', 1)
        missing = {query for query in missing if not answers(prometheus, query)}
        if not number % 2:
            away.rename(node.store)
    assert {rule["health"] for rule in rules(prometheus)} == {"ok"}, rules(prometheus)
    assert documented() == exposed(prometheus)
    assert node.end() == 0, node.log()


def exposed(prometheus: Prometheus) -> set[str]:
    names = prometheus.get("label/__name__/values")
    return {re.sub("_(bucket|sum|count)$", "", n) for n in names if n.startswith("onesync_")}


def documented() -> set[str]:
    tables = (CONFIG / "prometheus" / "METRICS.md").read_text().splitlines()
    cells = " ".join(line.split("|")[1] for line in tables if line.startswith("| `"))
    return set(re.findall(r"`(onesync_\w+)`", cells))


def test_an_exit_as_it_should_be_is_told_from_one_that_is_not(
    node: Node, prometheus: Prometheus, exporter: NodeExporter
) -> None:
    deadline = time.monotonic() + SOON
    while not (exprs := _expressions(prometheus)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    node.deploy()
    prometheus.wait_for('up{job="onesync"}', 1)
    assert node.end() == 0, node.log()
    prometheus.wait_for('up{job="onesync"}', 0)
    prometheus.wait_for("onesync_last_exit_clean", 1)
    assert not prometheus.query(exprs["OnesyncDown"])
    assert not prometheus.query(exprs["OnesyncFinalFlushIncomplete"])
    node.deploy()
    prometheus.wait_for('up{job="onesync"}', 1)
    prometheus.wait_for("absent(onesync_last_exit_clean)", 1)
    node.store.rename(node.store.with_name("away"))
    (node.work / "file").write_bytes(bytes(1000))
    assert node.end() == 10, node.log()
    prometheus.wait_for("onesync_last_exit_pending_bytes >= bool 1000", 1)
    prometheus.wait_for('up{job="onesync"}', 0)
    assert prometheus.query(exprs["OnesyncDown"])
    assert prometheus.query(exprs["OnesyncFinalFlushIncomplete"])


def _expressions(prometheus: Prometheus) -> dict[str, str]:
    try:
        return {rule["name"]: rule["query"] for rule in rules(prometheus)}
    except OSError:
        return {}


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_is_whole(name: str) -> None:
    found = dashboard(name)
    assert found["uid"] == f"onesync-{name}"
    source = {"type": "prometheus", "uid": "${datasource}"}
    variables = {variable["name"]: variable for variable in found["templating"]["list"]}
    assert list(variables) == ["datasource", "folder", "instance"]
    assert variables["folder"]["datasource"] == variables["instance"]["datasource"] == source
    shown = panels(name)
    for panel in shown:
        assert panel["title"]
        assert panel["description"]
        assert [panel["datasource"], *(t["datasource"] for t in panel["targets"])] == [source] * (
            1 + len(panel["targets"])
        )
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references)
    places = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in found["panels"]
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(set(places)) == len(places), "two panels lie on each other"
    assert max(x for x, _ in places) < 24
    identifiers = [panel["id"] for panel in found["panels"]]
    assert len(set(identifiers)) == len(identifiers)
