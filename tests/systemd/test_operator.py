"""A new operator, with nothing but README and runbook: from the unit to an alert and its end."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from tests.systemd.container import Container
from tests.systemd.nspawn import REPOSITORY
from tests.test_prometheus import needs_prometheus

pytestmark = [pytest.mark.systemd, pytest.mark.node, pytest.mark.timeout(600)]

README = (REPOSITORY / "README.md").read_text()
RUNBOOK = (REPOSITORY / "config" / "prometheus" / "RUNBOOK.md").read_text()
PROMETHEUS = "http://127.0.0.1:9090/api/v1"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Container]:
    needs_prometheus()
    found = shutil.which("prometheus")
    assert found is not None
    with Container(tmp_path / "node", Path(found), user="scipion") as container:
        yield container


def blocks(text: str, section: str) -> list[str]:
    """Return what a section shows to be typed or written, without the list's indentation."""
    body = re.split(r"^## ", text.partition(f"## {section}\n")[2], maxsplit=1, flags=re.MULTILINE)[
        0
    ]
    found = re.findall(r"(?:^ {4,}\S.*\n)+", body, re.MULTILINE)
    return [dedent(block) for block in found]


def typed(section: str, words: str) -> list[str]:
    """Return the runbook's command that begins with ``words``, for this instance."""
    lines = [line for block in blocks(RUNBOOK, section) for line in block.splitlines()]
    (line,) = [line.strip() for line in lines if line.strip().startswith(words)]
    return line.replace("NAME", "p").split()


def alerts(node: Container) -> dict[str, Any]:
    """Return the alerts that fire, by their names."""
    answer = node.fetch(f"{PROMETHEUS}/alerts")
    found = json.loads(answer)["data"]["alerts"] if answer else []
    return {a["labels"]["alertname"]: a for a in found if a["state"] == "firing"}


def watch(node: Container) -> None:
    """Set Prometheus up as the runbook says, on the node itself."""
    configuration, *_ = blocks(RUNBOOK, "Setting up")
    lines = [line for line in configuration.splitlines() if "scheme" not in line]
    lines = [line for line in lines if "tls_config" not in line]  # "where it is set"
    text = "\n".join(["global: {scrape_interval: 1s, evaluation_interval: 1s}", *lines])
    (node.home / "etc" / "prometheus.yml").write_text(text.replace("node1:9821", "127.0.0.1:9821"))
    node.run("mkdir", "-p", "/etc/prometheus", check=True)
    rules = "/opt/checkout/config/prometheus/onesync.rules.yml"
    node.run("cp", rules, "/etc/prometheus/onesync.rules.yml", check=True)
    words = ["--config.file=/etc/onesync/prometheus.yml", "--storage.tsdb.path=/tmp/prometheus"]
    words.append("--web.listen-address=127.0.0.1:9090")
    node.run("systemd-run", "--unit=prometheus", "prometheus", *words, check=True)


def test_from_the_readme_to_an_alert_and_its_end(node: Container) -> None:
    # "Write /etc/onesync/project.toml": the README's own, for this node's two directories.
    configuration = next(
        block for block in blocks(README, "From here to a service") if "working_dir" in block
    )
    text = configuration.replace("/srv/work/project", "/srv/work")
    text = text.replace("/mnt/onedata/space/project", "/mnt/onedata/project")
    (node.home / "etc" / "p.toml").write_text(text)
    checked = node.run("onesync", "check", "--instance", "p")
    assert checked.returncode == 0, checked.stderr
    node.systemctl("daemon-reload")
    # "Start it", "Work", "onesync flush returns when everything is".
    node.systemctl("start", "oneclient@p.service")
    node.systemctl("start", "onesync@p.service")
    (node.work / "file").write_bytes(b"1")
    assert node.run("onesync", "flush", "--instance", "p").returncode == 0
    assert (node.backing / "project" / "file").read_bytes() == b"1"
    told = node.run("onesync", "status", "--instance", "p").stdout
    assert told.startswith("safe: everything is in OneData"), told
    watch(node)
    node.wait_for(
        lambda: "onesync_folder_info" in node.fetch(f"{PROMETHEUS}/label/__name__/values"),
        "a scrape",
    )
    assert alerts(node) == {}
    # The node is rented until in half an hour.
    (node.home / "etc" / "p.toml").write_text(text + '[deployment]\nduration = "30min"\n')
    node.systemctl("reload", "onesync@p.service")
    node.wait_for(lambda: "OnesyncExpiring" in alerts(node), "the alert")
    annotations = alerts(node)["OnesyncExpiring"]["annotations"]
    assert annotations["summary"] == "The deployment of p on 127.0.0.1:9821 ends soon"
    section = annotations["runbook"].partition("#")[2]
    assert f"## {section}\n".lower() in RUNBOOK.lower()
    # What its section says is typed.
    looked = node.run(*typed("OnesyncExpiring", "onesync status"))
    assert "ends in 29 min" in " ".join(looked.stdout.split()), looked.stdout
    put_off = node.run(*typed("OnesyncExpiring", "onesync extend"))
    assert put_off.returncode == 0, put_off.stderr
    node.wait_for(lambda: alerts(node) == {}, "the alert's end")
    node.systemctl("stop", "onesync@p.service")
    assert node.show("Result") == "success"
