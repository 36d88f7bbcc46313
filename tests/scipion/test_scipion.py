"""A real Scipion project, running while onesync syncs it, and restored elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from onesync.core.model import STATUS_FOLDER
from tests.machine import lacks
from tests.node import SOON, Node, picture
from tests.standin.mounted import Mounted

pytestmark = [pytest.mark.fuse, pytest.mark.timeout(600)]

VERSION = "3.11.7"
HERE = Path(__file__).parent
COUNT = 40
SIZE = 20_000


class Scipion:
    """Scipion's own interpreter, apart from onesync's: their requirements differ."""

    def __init__(self, home: Path, environment: Path) -> None:
        self._python = environment / "bin" / "python"
        (home / "config").mkdir(parents=True)
        (home / "config" / "hosts.conf").write_text("[localhost]\nPARALLEL_COMMAND = none\n")
        self._environment = {
            **os.environ,
            "PATH": f"{self._python.parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(HERE),
            "SCIPION_DOMAIN": "mockdomain",
            "SCIPION_HOME": str(home),
            "SCIPION_USER_DATA": str(home / "user"),
        }

    def start(self, project: Path, log: Path) -> subprocess.Popen[bytes]:
        """Make a project and run the streaming protocol in it."""
        with log.open("wb") as output:
            return subprocess.Popen(
                [self._python, HERE / "project.py", "run", project],
                env=self._environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def look(self, project: Path) -> dict[str, Any]:
        """Open the project and return its only run."""
        done = subprocess.run(
            [self._python, HERE / "project.py", "look", project],
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        runs = json.loads(done.stdout.splitlines()[-1])["runs"]
        assert len(runs) == 1
        run: dict[str, Any] = runs[0]
        return run


@pytest.fixture(scope="session")
def environment() -> Path:
    """A virtual environment with Scipion's engine, made once."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "onesync-tests"
    path = cache / f"scipion-{VERSION}-{sys.version_info.major}.{sys.version_info.minor}"
    if path.exists():
        return path
    making = path.with_suffix(".making")
    shutil.rmtree(making, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", making], check=True)
    wanted = ["setuptools<70", f"scipion-pyworkflow=={VERSION}"]
    installed = subprocess.run(
        [making / "bin" / "python", "-m", "pip", "install", "-q", *wanted],
        capture_output=True,
        text=True,
        check=False,
    )
    if installed.returncode != 0:
        lacks(f"Scipion cannot be installed: {installed.stderr[-500:]}")
    making.rename(path)
    return path


@pytest.fixture
def scipion(tmp_path: Path, environment: Path) -> Scipion:
    return Scipion(tmp_path / "scipion", environment)


@pytest.fixture
def store(mounted: Mounted) -> Path:
    return mounted.path / "project"


def restored(tmp_path: Path, backing: Path, number: int) -> Path:
    """Deploy what OneData holds right now on a node of its own."""
    copy = tmp_path / f"copy{number}"
    shutil.copytree(backing, copy)
    (copy / os.fsdecode(STATUS_FOLDER) / "lock").unlink()
    node = Node(tmp_path / f"restored{number}", copy)
    node.deploy()
    node.end(signal.SIGKILL)
    return node.work


def assert_consistent(work: Path, run: dict[str, Any]) -> None:
    """Every database is whole, every item and every marker has its file, whole."""
    for path in work.rglob("*"):
        if path.suffix in (".sqlite", ".db") and path.stat().st_size:
            with closing(sqlite3.connect(path)) as db:
                assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",), path
    for item in run["items"]:
        assert (work / item).stat().st_size == SIZE, item
    for marker in work.glob("Runs/*/extra/DONE/*"):
        number = marker.stem.partition("_")[2]
        assert (marker.parents[1] / f"mic_{number}.mrc").stat().st_size == SIZE
        assert (marker.parents[1] / f"movie_{number}.tif").is_symlink()


def test_a_streaming_run_survives_the_node(
    tmp_path: Path, nodes: list[Node], mounted: Mounted, scipion: Scipion
) -> None:
    one, two = nodes
    for node in nodes:
        node.configure(mount__require_fuse=True)
    one.deploy()
    process = scipion.start(one.work, tmp_path / "scipion.log")
    seen = []
    for number in range(3):
        wait_for_micrographs(mounted.backing, 8 * (number + 1), one)
        one.end(signal.SIGKILL)
        work = restored(tmp_path, mounted.backing / "project", number)
        run = scipion.look(work)
        assert_consistent(work, run)
        seen.append(len(run["items"]))
        one.deploy()
    assert process.wait(120) == 0, (tmp_path / "scipion.log").read_text()
    assert 0 < seen[0] < seen[-1], seen
    assert one.flush() == 0, one.log()
    expected = picture(one.work)
    assert one.end() == 0, one.log()
    two.deploy()
    assert picture(two.work) == expected
    run = scipion.look(two.work)
    assert (run["status"], len(run["items"])) == ("finished", COUNT)
    assert_consistent(two.work, run)
    assert two.end() == 0, two.log()


def wait_for_micrographs(backing: Path, count: int, node: Node) -> None:
    deadline = time.monotonic() + SOON
    while len(list(backing.glob("project/Runs/*/extra/DONE/*.TXT"))) < count:
        assert time.monotonic() < deadline, node.log()
        time.sleep(0.05)
    # They are there before their batch is committed, and are taken back if it never is.
    before = node.status()["last_checkpoint"]
    while node.status()["last_checkpoint"] == before:
        assert time.monotonic() < deadline, node.log()
        time.sleep(0.05)
