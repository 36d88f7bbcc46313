"""Nodes made by the recipes of packaging/images: each deploys by itself; and the container.

What is the site's own in a recipe, its repository, is the package's file here; all else stays.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import textwrap
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from onesync.core.model import STATUS_FOLDER
from tests.standin.passthrough import Passthrough
from tests.systemd.nspawn import REPOSITORY, leader, suite
from tests.systemd.packaged import Node, bare, package, publish, root

pytestmark = [pytest.mark.node, pytest.mark.timeout(400)]

IMAGES = REPOSITORY / "packaging" / "images"
CONTAINER = REPOSITORY / "packaging" / "container"
UNIT = "onesync@project.service"
TOKEN = "the-access-token"
TOOLS = ("ansible-core", "cloud-init", "python3-apt")
SITE = "https://packages.example.org/onesync"
# Takes what oneclient takes from its launcher, and mounts the pass-through.
ONECLIENT = f"""#!/bin/sh
[ "$ONECLIENT_ACCESS_TOKEN" = {TOKEN} ] || {{ echo "invalid token" >&2; exit 1; }}
for point; do :; done
exec passthrough /srv/backing /srv/control "$point" -f
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Return an apt repository with the package."""
    place = tmp_path / "repository"
    place.mkdir()
    shutil.copy(package(), place)
    publish(place)
    return place


@pytest.fixture
def space() -> Iterator[Path]:
    """Return a directory for what is too large to be kept."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as place:
        yield Path(place)


def ours(recipe: Path, repository: str) -> str:
    """Return a recipe with our repository, which nobody signed."""
    text = recipe.read_text()
    assert SITE in text
    text = re.sub(r"\n *key: \|\n(?: +---.*\n)+", "\n", text)
    return re.sub(rf"deb (\[.*?\] )?{SITE}", f"deb [trusted=yes] {repository}", text)


def site(home: Path, image: Path, binds: dict[str, Path]) -> Node:
    """Return a node where OneData is reached by the stand-in for its client."""
    client = home / "oneclient"
    client.write_text(ONECLIENT)
    client.chmod(0o755)
    node = Node(home / "node", image=image, binds={"/usr/bin/oneclient": client, **binds})
    (node.home / "backing" / "space" / "project").mkdir(parents=True)
    # Whoever the recipe's user is, OneData lets him write.
    for path, _, _ in os.walk(node.home / "backing"):
        Path(path).chmod(0o777)
    node.control.chmod(0o666)
    return node


def journal(node: Node) -> str:
    return node.run("journalctl", "--no-pager", "-o", "cat").stdout


def check(node: Node) -> None:
    """Require what every recipe promises: deployed by itself, and undeployed by its stop."""
    node.wait_for(lambda: node.show("ActiveState", UNIT) == "active", "the deployment")
    assert node.run("systemctl", "is-enabled", UNIT).stdout == "enabled\n"
    told = node.run("cat", "/etc/onesync/project.toml", check=True).stdout
    assert tomllib.loads(told) == tomllib.loads((IMAGES / "packer/project.toml").read_text())
    assert node.run("stat", "-c", "%a %U", "/etc/onesync/project.token").stdout == "600 root\n"
    folder = node.home / "backing" / "space" / "project"
    lock = folder / os.fsdecode(STATUS_FOLDER) / "lock"
    assert lock.exists()
    words = ("setpriv", "--reuid=scipion", "--regid=scipion", "--clear-groups")
    node.run(*words, "sh", "-c", "echo 1 > /srv/work/project/file", check=True)
    stopped = node.run("systemctl", "stop", UNIT)
    assert stopped.returncode == 0, stopped.stderr + journal(node)
    assert (folder / "file").read_text() == "1\n"
    assert not lock.exists()


def is_mounted(node: Node) -> bool:
    return "/mnt/onedata" in node.run("cat", "/proc/mounts", check=True).stdout.split()


def test_cloud_init(tmp_path: Path, repository: Path) -> None:
    seed = tmp_path / "seed"
    seed.mkdir()
    recipe = IMAGES / "cloud-init" / "user-data"
    (seed / "user-data").write_text(ours(recipe, "file:/srv/repository"))
    (seed / "meta-data").write_text("instance-id: node\n")
    # It is no cloud's image, with locales.
    (seed / "vendor-data").write_text("#cloud-config\nlocale: false\n")
    (seed / "network-config").write_text("version: 1\nconfig: disabled\n")
    places = {
        "/var/lib/cloud/seed/nocloud": seed,
        "/srv/repository": repository,
        "/srv/recipe": recipe.parent,
    }
    with site(tmp_path, root(*TOOLS), places) as node:
        checked = node.run("cloud-init", "schema", "--config-file", "/srv/recipe/user-data")
        assert (checked.returncode, checked.stderr) == (0, ""), checked.stdout
        done = node.run("cloud-init", "status", "--wait", "--long")
        assert "status: done" in done.stdout, done.stdout + journal(node)
        check(node)


def test_ansible(tmp_path: Path, repository: Path) -> None:
    places = {"/srv/recipe": IMAGES / "ansible", "/srv/repository": repository}
    more = {"onesync_repository": "deb [trusted=yes] file:/srv/repository ./"}
    words = ("ansible-playbook", "-i", "localhost,", "-c", "local", "/srv/recipe/playbook.yml")
    with site(tmp_path, root(*TOOLS), places) as node:
        bare(node)
        node.run(*words, "--syntax-check", check=True)

        def run(**settings: str) -> str:
            """Run the playbook; returns what it said."""
            said = ("-e", json.dumps({**more, **settings}))
            return node.run(*words, *said, check=True, environment={"ONEDATA_TOKEN": TOKEN}).stdout

        run(onesync_state="stopped")
        assert node.run("systemctl", "is-enabled", UNIT).stdout == "enabled\n"
        assert node.show("ActiveState", UNIT) == "inactive"
        assert TOKEN not in run()
        node.wait_for(lambda: node.show("ActiveState", UNIT) == "active", "the deployment")
        second = run()
        assert re.search(r"changed=0 .*failed=0", second), second
        check(node)
        assert is_mounted(node), "until somebody stops oneclient, too"
        for verb in ("remove", "purge"):
            done = node.apt(verb, "onesync")
            assert done.returncode == 0, done.stdout + done.stderr
            assert not is_mounted(node)
        assert node.show("ActiveState", "oneclient@project.service") == "inactive"
        node.run("test", "-f", "/etc/onesync/project.token", check=True)


def test_what_packer_runs(tmp_path: Path) -> None:
    recipe = (IMAGES / "packer" / "onesync.pkr.hcl").read_text()
    lines = re.search(r"inline = \[(.*?),?\s*\]", recipe, re.S)
    assert lines is not None
    places = {
        "/srv/onesync.deb": package(),
        "/srv/project.toml": IMAGES / "packer" / "project.toml",
    }
    with site(tmp_path, root(), places) as node:
        bare(node)
        node.run("sh", "-c", "cp /srv/onesync.deb /srv/project.toml /tmp", check=True)
        node.run("sh", "-euc", "\n".join(json.loads(f"[{lines[1]}]")), check=True)
        token = "/etc/onesync/project.token"
        node.run("install", "-m", "600", "/dev/stdin", token, text=TOKEN, check=True)
        # What a boot does, with all that is enabled.
        node.run("systemctl", "start", "--no-block", "multi-user.target", check=True)
        check(node)


@pytest.mark.skipif(suite() != "bookworm", reason="the recipe is for mkosi 14")
def test_mkosi(tmp_path: Path, space: Path, repository: Path) -> None:
    recipe = shutil.copytree(IMAGES / "mkosi", space / "recipe")
    source = recipe / "mkosi.skeleton/etc/apt/sources.list.d/onesync.list"
    source.write_text(ours(source, f"copy:{repository}"))
    cache = Path("/var/cache/onesync-tests/mkosi")
    cache.mkdir(parents=True, exist_ok=True)
    words = ("mkosi", "--nspawn-keep-unit", f"--cache={cache}", "--output=image")
    done = subprocess.run(words, cwd=recipe, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    image = recipe / "image"
    assert not list(image.glob("etc/onesync/*.token")), "an image has no secrets"
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    waits = "/etc/systemd/system/systemd-networkd-wait-online.service"
    places = {"/etc/onesync/project.token": token, waits: Path("/dev/null")}  # for no network here
    with site(tmp_path, image, places) as node:
        check(node)


def buildah(space: Path, *words: str) -> str:
    store = ("--storage-driver=vfs", f"--root={space}/store", f"--runroot={space}/run")
    done = subprocess.run(
        ["buildah", *store, *words], cwd=space, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (words, done.stdout[-3000:], done.stderr[-3000:])
    return done.stdout.strip()


def test_the_container(tmp_path: Path, space: Path) -> None:
    shutil.copy(package(), space / "onesync.deb")
    base = buildah(space, "from", "scratch")
    buildah(space, "add", "--quiet", base, str(root()), "/")
    buildah(space, "commit", "--quiet", "--rm", base, "localhost/base")
    arguments = ("--build-arg=BASE=localhost/base", "--build-arg=PACKAGE=onesync.deb")
    recipe = f"--file={CONTAINER / 'Containerfile'}"
    how = ("--isolation=chroot", "--pull-never", "--tag=onesync")
    buildah(space, "build", *how, *arguments, recipe, str(space))
    about = json.loads(buildah(space, "inspect", "--type=image", "onesync"))["OCIv1"]["config"]
    assert about["StopSignal"] == "SIGTERM"
    place = buildah(space, "mount", buildah(space, "from", "--pull-never", "onesync"))
    pod = (CONTAINER / "kubernetes.yaml").read_text()
    told = re.search(r"project\.toml: \|\n((?: {4}.*\n)+)", pod)
    probe = re.search(r'command: \[sh, -c, (".*")\]', pod)
    assert told is not None
    assert probe is not None
    (tmp_path / "project.toml").write_text(textwrap.dedent(told[1]))
    with Passthrough(tmp_path / "onedata", "allow_other") as onedata:
        folder = onedata.backing / "space" / "project"
        work = tmp_path / "work"
        for path in (folder, work, tmp_path / "state"):
            path.mkdir(parents=True)
            os.chown(path, 1000, 1000)
        binds = {
            "/etc/onesync/project.toml": tmp_path / "project.toml",
            "/mnt/onedata": onedata.path,
            "/srv/work/project": work,
            "/var/lib/onesync/project": tmp_path / "state",
        }
        words = [
            *("systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--private-network"),
            *("--console=pipe", "--kill-signal=SIGTERM", f"--machine=onesync-node-{os.getpid()}"),
            *(f"--bind={ours}:{place}" for place, ours in binds.items()),
            *(f"--setenv={setting}" for setting in about["Env"]),
            *(f"--directory={place}", f"--user={about['User']}"),
            *(*about["Entrypoint"], *about["Cmd"]),
        ]
        with (tmp_path / "said").open("wb") as said:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT
            )
        try:
            wait_for_probe(process, json.loads(probe[1]), about["Env"])
            (work / "file").write_text("1\n")
            os.chown(work / "file", 1000, 1000)
            first = leader(process)
            assert first is not None
            os.kill(first, signal.SIGTERM)
            code = process.wait(60)
        finally:
            process.kill()
            process.wait()
        assert code == 0, (tmp_path / "said").read_text()
        assert (folder / "file").read_text() == "1\n"
        assert (folder / os.fsdecode(STATUS_FOLDER) / "epochs").exists()
        assert not (folder / os.fsdecode(STATUS_FOLDER) / "lock").exists()


def wait_for_probe(process: subprocess.Popen[bytes], command: str, settings: list[str]) -> None:
    """Wait until the pod's startup probe succeeds in the container."""
    deadline = time.monotonic() + 60
    words = ["-a", "env", *settings, "sh", "-c", command]
    while (first := leader(process)) is None or subprocess.run(
        ["nsenter", "-t", str(first), *words], check=False, capture_output=True
    ).returncode:
        assert process.poll() is None, "the container ended"
        assert time.monotonic() < deadline, "the probe did not succeed"
        time.sleep(0.2)
