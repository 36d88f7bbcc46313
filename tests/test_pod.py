"""The pod of packaging/container: what its file says, and its oneclient run by a shell as there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from onesync.mounts import is_mount_point
from tests.machine import lacks
from tests.node import SOON
from tests.standin.client import TOKEN, client, switches

ROOT = Path(__file__).parents[1]
_PARSED = "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(sys.stdin))))"
POINT = "/mnt/onedata"


@pytest.fixture(scope="module")
def documents() -> dict[str, Any]:
    """Return what the file makes in a cluster, by kind."""
    text = (ROOT / "packaging" / "container" / "kubernetes.yaml").read_text()
    for python in (sys.executable, "/usr/bin/python3"):
        done = subprocess.run(
            [python, "-c", _PARSED], input=text, capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            return {document["kind"]: document for document in json.loads(done.stdout)}
    return lacks("needs PyYAML (python3-yaml)")


@pytest.fixture(scope="module")
def containers(documents: dict[str, Any]) -> dict[str, Any]:
    found = documents["Pod"]["spec"]["initContainers"]
    return {container["name"]: container for container in found}


@pytest.fixture(scope="module")
def snippet(containers: dict[str, Any]) -> str:
    """Return what the shell of oneclient's container is told."""
    shell, flag, text = containers["oneclient"]["command"]
    assert (shell, flag) == ("sh", "-c")
    return str(text)


def test_the_sidecars_start_in_order_and_nobody_is_stopped_by_a_hook(
    containers: dict[str, Any],
) -> None:
    assert list(containers) == ["oneclient", "onesync"]
    for container in containers.values():
        assert container["restartPolicy"] == "Always"
        assert "startupProbe" in container
        assert "lifecycle" not in container, "it would run while the others still do"


def test_oneclient_waits_for_a_call_as_long_as_onesync(
    documents: dict[str, Any], snippet: str
) -> None:
    settings = tomllib.loads(documents["ConfigMap"]["data"]["project.toml"])
    seconds = settings["mount"]["io_timeout_seconds"]
    assert f" --provider-timeout {seconds} " in snippet


class Pod:
    """The container of oneclient, on a mount point of its own."""

    def __init__(self, home: Path, snippet: str) -> None:
        self.backing = home / "backing"
        environment = client(home)
        self.point = home / f"onedata-{home.name}"
        self.control = switches(self.point)
        assert POINT in snippet
        self._command = ["sh", "-c", snippet.replace(POINT, str(self.point))]
        self._environment = environment | {
            "ONECLIENT_PROVIDER_HOST": "provider.test",
            "ONECLIENT_ACCESS_TOKEN": TOKEN,
        }
        self._said = home / "said"
        self.program = home / "bin" / "oneclient"

    def start(self) -> subprocess.Popen[bytes]:
        with self._said.open("ab") as said:
            return subprocess.Popen(self._command, env=self._environment, stdout=said, stderr=said)

    def said(self) -> str:
        return self._said.read_text()

    @contextmanager
    def mounted(self) -> Iterator[subprocess.Popen[bytes]]:
        """Run it until it has mounted; what is left in the end is ended."""
        process = self.start()
        try:
            deadline = time.monotonic() + SOON
            while not (is_mount_point(str(self.point)) and self.control.exists()):
                assert time.monotonic() < deadline, self.said()
                assert process.poll() is None, self.said()
                time.sleep(0.02)
            yield process
        finally:
            process.kill()
            process.wait()
            subprocess.run(["umount", "-l", self.point], check=False, capture_output=True)
            self.control.unlink(missing_ok=True)


@pytest.fixture
def pod(snippet: str) -> Iterator[Pod]:
    if os.geteuid() != 0:
        lacks("needs root, as the container has it")
    with tempfile.TemporaryDirectory(prefix="onesync-pod-") as home:
        yield Pod(Path(home), snippet)


@pytest.mark.fuse
def test_what_oneclient_has_not_sent_comes_with_its_sigterm(pod: Pod) -> None:
    with pod.mounted() as process:
        (pod.point / "file").write_text("1")
        process.send_signal(signal.SIGTERM)
        assert process.wait(SOON) == 0, pod.said()
        assert (pod.backing / "file").read_text() == "1"
        assert "lazy unmount" not in pod.said(), "SIGTERM is not oneclient's"
        assert not is_mount_point(str(pod.point))


@pytest.mark.fuse
def test_a_file_that_is_open_keeps_it_no_longer_than_some_seconds(pod: Pod) -> None:
    with pod.mounted() as process, (pod.point / "file").open("w") as file:
        process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + SOON
        while is_mount_point(str(pod.point)):
            assert time.monotonic() < deadline, pod.said()
            time.sleep(0.02)
        file.close()
        assert process.wait(SOON) == 0, pod.said()


@pytest.mark.fuse
def test_a_client_that_dies_ends_its_container_and_the_next_one_mounts(pod: Pod) -> None:
    with pod.mounted() as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for child in children:
            os.kill(int(child), signal.SIGKILL)
        assert process.wait(SOON) == 128 + signal.SIGKILL
        pod.control.unlink(missing_ok=True)
        with pod.mounted() as again:
            again.send_signal(signal.SIGTERM)
            assert again.wait(SOON) == 0, pod.said()


def test_a_client_that_has_not_mounted_yet_just_ends(pod: Pod) -> None:
    pod.program.write_text("#!/bin/sh\necho begun\nexec sleep 60\n")
    process = pod.start()
    try:
        deadline = time.monotonic() + SOON
        while "begun" not in pod.said():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.wait()
