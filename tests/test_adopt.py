"""A folder that West-Life's scripts deployed on this node, taken over without a new stage-in."""

from __future__ import annotations

import gzip
import os
import pwd
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

import pathspec
import pytest

import onesync
from onesync.core.model import STATUS_FOLDER
from tests.machine import lacks
from tests.node import _DYING, SOON, Node, picture
from tests.standin.mounted import Mounted

STATUS = os.fsdecode(STATUS_FOLDER)
KILLED = -signal.SIGKILL
JOB = "*/30 * * * * cd /opt/onedata && ./working-to-onedata\n"


class Scripts:
    """What the scripts have left: a working copy, the folder as of their last push, a crontab."""

    def __init__(self, node: Node, store: Path) -> None:
        self.node = node
        self.store = store
        self.crontab = node.home / "crontabs" / "scipion"
        self.crontab.parent.mkdir()
        self.crontab.write_text("MAILTO=root\n")
        self.system = node.home / "cron.d" / "scipion"
        self.hourly = node.home / "cron.hourly" / "onedata"
        for place in (self.system.parent, self.hourly.parent):
            place.mkdir()

    def deploy(self) -> None:
        """As their stage-in and first push do."""
        files = {"project.sqlite": b"p", "Runs/1/movie.mrc": b"m" * 5000, "Runs/1/DONE/1": b""}
        for name, content in files.items():
            path = self.node.work / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        (self.node.work / "Runs" / "1" / "link 1").symlink_to("/data/movies/1.tif")
        (self.store / STATUS).mkdir()
        self.lock()
        (self.node.work / STATUS).mkdir()
        shutil.copy2(self.store / STATUS / "lock", self.node.work / STATUS / "lock")
        self.push()

    def lock(self, host: str = "", directory: str = "") -> None:
        text = (
            "# This folder is already deployed on:\n"
            f"HOST:{host or socket.gethostname()}\nMOUNT:{self.store}\n"
            f"DIR:{directory or self.node.work}\nUSER:scipion\nDATE:2026-11-01 10:00:00+00:00\n"
        )
        (self.store / STATUS / "lock").write_text(text)

    def push(self) -> None:
        """As ``rsync --recursive --perms --times --delete``: links stay, times are of seconds."""
        work = self.node.work
        links = [path for path in sorted(work.rglob("*")) if path.is_symlink()]
        lines = [f'"{path.parent}" "{path.name}" "{path.readlink()}"\n' for path in links]
        (work / STATUS / "linklist").write_text("".join(lines))
        for path in sorted(self.store.rglob("*"), reverse=True):
            if not (work / path.relative_to(self.store)).exists():
                (path.rmdir if path.is_dir() else path.unlink)()
        for path in sorted(work.rglob("*")):
            target = self.store / path.relative_to(work)
            if path.is_dir() and not path.is_symlink():
                target.mkdir(exist_ok=True)
            elif path.is_file() and not path.is_symlink():
                shutil.copy(path, target)
                os.utime(target, (int(path.stat().st_mtime), int(path.stat().st_mtime)))

    def adopt(self, *words: str, before: str = "") -> subprocess.CompletedProcess[str]:
        """Run ``onesync adopt`` on a node whose only crontabs are these."""
        before = (
            f"{before}\nfrom pathlib import Path\nfrom onesync import predecessor\n"
            f"places = (Path({str(self.crontab.parent)!r}), Path({str(self.system.parent)!r}))\n"
            "predecessor.CRONTABS = places\n"
            f"predecessor.CRON_SCRIPTS = (Path({str(self.hourly.parent)!r}),)"
        )
        with TemporaryFile("w+") as out, TemporaryFile("w+") as error:
            process = self.node._started(("adopt", *words), out.fileno(), error.fileno(), before)
            code = process.wait(SOON)
            out.seek(0)
            error.seek(0)
            return subprocess.CompletedProcess(words, code, out.read(), error.read())


def dying_at(module: str, owner: str, name: str, calls: int = 1) -> str:
    return f"{_DYING}\ndie_at({module!r}, {owner!r}, {name!r}, {calls})"


def meanwhile(code: str) -> str:
    """Something else happens when the folder is compared."""
    return f"""
from pathlib import Path
from onesync import adopt
_compare = adopt._compare
def compare(*arguments):
    found = _compare(*arguments)
    {code}
    return found
adopt._compare = compare
"""


@pytest.fixture
def scripts(nodes: list[Node], store: Path) -> Scripts:
    found = Scripts(nodes[0], store)
    found.deploy()
    return found


def contents(folder: Path) -> dict[bytes, tuple[object, ...]]:
    """All but the status folder and the times of directories, which links that are made change."""
    return {
        path: what[:2] if what[0] == "dir" else what
        for path, what in picture(folder).items()
        if not path.startswith(STATUS_FOLDER)
    }


def assert_whole(nodes: list[Node]) -> None:
    """The daemon goes on without a stage-in, and another node gets exactly the working copy."""
    one, two = nodes
    before = contents(one.work)
    inodes = {path: path.lstat().st_ino for path in one.work.rglob("*")}
    one.deploy()
    assert one.flush() == 0, one.log() + str(one.status()["problems"])
    assert contents(one.work) == before
    assert {path: path.lstat().st_ino for path in one.work.rglob("*")} == inodes
    assert one.end() == 0, one.log()
    two.deploy()
    assert contents(two.work) == before
    assert two.end() == 0, two.log()


# -- what is taken over ----------------------------------------------------------------------------


def test_what_the_scripts_pushed_is_known_and_nothing_is_sent_again(
    nodes: list[Node], store: Path, scripts: Scripts
) -> None:
    sent = {p: p.stat().st_ino for p in store.rglob("*") if STATUS not in str(p)}
    done = scripts.adopt()
    assert done.returncode == 0, done.stderr
    assert "Adopted: 7 files, directories and links are here as OneData has" in done.stdout
    lock = (store / STATUS / "lock").read_text()
    assert "DEPLOYMENT: " in lock
    assert "USER:scipion" not in lock
    links = nodes[1].command("manifest", "links")  # a node that has nothing of its own to look at
    assert links.stdout == "Runs/1/link 1 -> /data/movies/1.tif\n"
    assert_whole(nodes)
    assert {p: p.stat().st_ino for p in store.rglob("*") if STATUS not in str(p)} == sent


def test_what_is_newer_or_more_here_is_pushed(
    nodes: list[Node], store: Path, scripts: Scripts
) -> None:
    work = nodes[0].work
    (work / "project.sqlite").write_bytes(b"q")  # of the same size
    (work / "Runs" / "1" / "movie.mrc").write_bytes(b"m" * 6000)
    (work / "Runs" / "2").mkdir()
    (work / "Runs" / "2" / "new.mrc").write_bytes(b"n")
    (work / "Runs" / "2" / "link 2").symlink_to("new.mrc")
    done = scripts.adopt()
    assert done.returncode == 0, done.stderr
    assert "2 files differ and are sent: Runs/1/movie.mrc, project.sqlite." in done.stdout
    assert (store / "project.sqlite").read_bytes() == b"p"  # adopting overwrites nothing
    assert nodes[0].status()["pending"] == ["."]  # and does not say that all is safe
    assert_whole(nodes)
    assert (store / "Runs" / "2" / "new.mrc").read_bytes() == b"n"


def test_what_is_in_onedata_alone_stays_until_a_person_lets_it_go(
    nodes: list[Node], store: Path, scripts: Scripts
) -> None:
    one, two = nodes
    (store / "Runs" / "0").mkdir()
    (store / "Runs" / "0" / "old.mrc").write_bytes(b"o")
    (one.work / "Runs" / "1" / "DONE" / "1").unlink()
    done = scripts.adopt()
    assert done.returncode == 0, done.stderr
    assert "3 files and directories are in OneData alone" in done.stdout
    one.deploy()
    assert one.flush() == 3
    assert one.status()["held_deletions"] == 3
    assert (store / "Runs" / "0" / "old.mrc").exists()
    assert (store / "Runs" / "1" / "DONE" / "1").exists()
    accepted = one.command("resume", "--accept-deletions")
    assert accepted.stdout.splitlines()[:3] == ["Runs/0", "Runs/0/old.mrc", "Runs/1/DONE/1"]
    assert one.flush() == 0
    assert not (store / "Runs" / "0").exists()
    assert one.end() == 0, one.log()
    two.deploy()
    assert contents(two.work) == contents(one.work)


def test_a_stage_in_of_theirs_that_died_deletes_nothing(
    nodes: list[Node], store: Path, scripts: Scripts
) -> None:
    one, two = nodes
    whole = contents(one.work)
    shutil.rmtree(one.work / "Runs")
    (one.work / ".project.sqlite.Xa3Bc9").write_bytes(b"half")
    done = scripts.adopt()
    assert done.returncode == 0, done.stderr
    one.deploy()
    assert one.flush() == 3
    assert one.end() == 0, one.log()
    two.deploy()
    found = contents(two.work)
    assert found.pop(b".project.sqlite.Xa3Bc9")[:2] == ("file", b"half")
    assert {p: what[:2] for p, what in found.items()} == {p: what[:2] for p, what in whole.items()}


def test_links_of_their_list_that_are_missing_are_made(
    nodes: list[Node], store: Path, scripts: Scripts
) -> None:
    link = nodes[0].work / "Runs" / "1" / "link 1"
    link.unlink()
    with (store / STATUS / "linklist").open("a") as file:
        file.write('"/srv/elsewhere" "stray" "/etc"\n"/" "evil" "/etc"\n')
    done = scripts.adopt()
    assert done.returncode == 0, done.stderr
    assert link.readlink() == Path("/data/movies/1.tif")
    assert not (nodes[0].work / "stray").is_symlink()
    assert_whole(nodes)


def test_a_list_of_the_working_directory_before_this_one(
    nodes: list[Node], store: Path, scripts: Scripts
) -> None:
    """A stage-in of theirs that died, or kept no link, before a push wrote the list anew."""
    link = nodes[0].work / "Runs" / "1" / "link 1"
    link.unlink()
    (store / STATUS / "linklist").write_text(
        '"/home/old/work/Runs/1" "link 1" "/data/movies/1.tif"\n"/home/old/work" "top" "Runs/1"\n'
    )
    done = scripts.adopt()
    assert done.returncode == 0, done.stderr
    assert "2 links of the linklist were missing and are made" in done.stdout
    assert link.readlink() == Path("/data/movies/1.tif")
    assert (nodes[0].work / "top").readlink() == Path("Runs/1")
    assert_whole(nodes)


def test_lines_of_their_list_that_make_no_link_are_told(
    nodes: list[Node], store: Path, scripts: Scripts
) -> None:
    work = os.fsencode(nodes[0].work)
    with (store / STATUS / "linklist").open("ab") as file:
        file.write(b'"%b/Runs" "broken\nname" "x"\n' % work)  # two lines
        file.write(b'"%b/Gone" "link" "x"\n' % work)
        file.write(b'"%b/Runs" "zero" "a\0b"\n' % work)
        file.write(b'"%b/Runs" "%b" "x"\n' % (work, b"n" * 300))
    done = scripts.adopt()
    assert done.returncode == 0, done.stderr
    assert "5 lines of the linklist are left out" in done.stdout
    assert_whole(nodes)


def test_rows_that_are_in_the_write_ahead_log_alone_are_sent(
    nodes: list[Node], store: Path, scripts: Scripts
) -> None:
    """Their push took the database without its log: the file itself is the same on both sides."""
    one, two = nodes
    writer = sqlite3.connect(one.work / "Runs" / "run.db", isolation_level=None)
    try:
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute("CREATE TABLE steps (number)")
        writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        scripts.push()
        writer.execute("INSERT INTO steps VALUES (1)")
        assert (one.work / "Runs" / "run.db-wal").stat().st_size > 0
        done = scripts.adopt()
        assert done.returncode == 0, done.stderr
        one.deploy()
        assert one.flush() == 0, one.log()
        assert one.end() == 0, one.log()
    finally:
        writer.close()
    two.deploy()
    with closing(sqlite3.connect(two.work / "Runs" / "run.db")) as reader:
        assert reader.execute("SELECT number FROM steps").fetchall() == [(1,)]


def test_a_folder_that_onesync_had_before_the_scripts(
    nodes: list[Node], store: Path, scripts: Scripts
) -> None:
    """Its manifest and epochs were copied to and fro like all else."""
    one, two = nodes
    (store / STATUS / "lock").unlink()
    two.deploy()
    assert two.end() == 0, two.log()
    shutil.copytree(store / STATUS, one.work / STATUS, dirs_exist_ok=True)
    scripts.lock()
    shutil.copy2(store / STATUS / "lock", one.work / STATUS / "lock")
    (one.work / "Runs" / "1" / "movie.mrc").write_bytes(b"of the scripts")
    scripts.push()
    shutil.rmtree(two.work)
    two.work.mkdir()
    for path in (two.home / "state").iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    done = scripts.adopt()
    assert done.returncode == 0, done.stderr
    assert_whole(nodes)


def test_a_journal_that_was_copied_beside_a_database_never_comes_here(
    nodes: list[Node], store: Path, scripts: Scripts
) -> None:
    (store / "project.sqlite-journal").write_bytes(b"of another moment")
    done = scripts.adopt()
    assert done.returncode == 0, done.stderr
    one, two = nodes
    one.deploy()
    assert one.flush() == 0, one.log()
    assert one.end() == 0
    two.deploy()
    for node in nodes:
        assert not (node.work / "project.sqlite-journal").exists()
    assert (store / "project.sqlite-journal").exists()


def test_what_is_of_another_kind_here(nodes: list[Node], store: Path, scripts: Scripts) -> None:
    """A directory that only OneData has stays whole; a file that became a link is one."""
    one, two = nodes
    shutil.rmtree(one.work / "Runs" / "1" / "DONE")
    (one.work / "Runs" / "1" / "DONE").write_bytes(b"a file")
    (one.work / "project.sqlite").unlink()
    (one.work / "project.sqlite").symlink_to("Runs")
    assert scripts.adopt().returncode == 0
    one.deploy()
    assert one.flush() == 3
    assert (store / "Runs" / "1" / "DONE" / "1").exists()
    assert not (store / "project.sqlite").exists()
    assert one.command("resume", "--accept-deletions").returncode == 0
    assert one.end() == 0, one.log()
    two.deploy()
    assert contents(two.work) == contents(one.work)


def test_an_empty_directory_that_is_a_file_here(
    nodes: list[Node], store: Path, scripts: Scripts
) -> None:
    (store / "odd").mkdir()
    (nodes[0].work / "odd").write_bytes(b"a file")
    assert scripts.adopt().returncode == 0
    nodes[0].deploy()
    assert nodes[0].flush() == 3
    assert nodes[0].status()["held_deletions"] == 1
    assert (store / "odd").is_dir()


def test_hard_links_and_what_stays_on_this_node(
    nodes: list[Node], store: Path, scripts: Scripts
) -> None:
    one, two = nodes
    one.configure(push__exclude=["*.scratch"])
    os.link(one.work / "Runs" / "1" / "movie.mrc", one.work / "again.mrc")
    (one.work / "here.scratch").write_bytes(b"1")
    scripts.push()
    (store / "there.scratch").write_bytes(b"2")
    done = scripts.adopt()
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Adopted: 8 files")
    assert "kept there" not in done.stdout
    one.deploy()
    assert one.flush() == 0
    assert one.end() == 0, one.log()
    assert (store / "there.scratch").read_bytes() == b"2"
    two.deploy()
    assert os.path.samefile(two.work / "again.mrc", two.work / "Runs" / "1" / "movie.mrc")


@pytest.mark.fuse
def test_on_a_mount(nodes: list[Node], mounted: Mounted) -> None:
    folder = mounted.path / "project"
    for node in nodes:
        node.store = folder
        node.configure(mount__require_fuse=True)
    scripts = Scripts(nodes[0], folder)
    scripts.deploy()
    movie = nodes[0].work / "Runs" / "1" / "movie.mrc"
    there = (folder / "Runs" / "1" / "movie.mrc").stat().st_mtime
    movie.write_bytes(b"older")
    os.utime(movie, (there - 60, there - 60))
    assert "a newer time than here (Runs/1/movie.mrc)" in scripts.adopt().stderr
    movie.touch()
    done = scripts.adopt()
    assert done.returncode == 0, done.stderr
    assert_whole(nodes)


# -- what is refused -------------------------------------------------------------------------------


def refused(scripts: Scripts, code: int, sentence: str) -> None:
    """It refuses, and neither side nor the crontab has changed."""
    sides = (scripts.node.work, scripts.store, scripts.crontab.parent)
    before = [picture(side) for side in sides]
    done = scripts.adopt()
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert sentence in done.stderr
    assert [picture(side) for side in sides] == before


def test_another_nodes_lock_is_refused(scripts: Scripts) -> None:
    scripts.lock(host="other.example.org")
    refused(scripts, 11, "names the node 'other.example.org'")


def test_another_working_directory_is_refused(scripts: Scripts) -> None:
    scripts.lock(directory="/srv/other")
    refused(scripts, 78, "names the working directory /srv/other")


def test_a_copy_of_another_deployment_is_refused(scripts: Scripts) -> None:
    """A node of the same name deployed the folder since: one of two clones."""
    kept = scripts.node.work / STATUS / "lock"
    kept.write_text(kept.read_text().replace("DATE:2026-11", "DATE:2026-10"))
    refused(scripts, 11, f"{kept} is of another deployment")
    kept.unlink()
    assert scripts.adopt().returncode == 0


def test_a_batch_of_onesync_that_died_before_is_refused(scripts: Scripts) -> None:
    intent = scripts.store / STATUS / "intent" / "E000001-000002.json"
    intent.parent.mkdir()
    intent.write_text("{}")
    refused(scripts, 13, "onesync died within a batch")
    intent.unlink()
    assert scripts.adopt().returncode == 0


def test_a_folder_without_their_lock_is_refused(scripts: Scripts) -> None:
    (scripts.store / STATUS / "lock").unlink()
    refused(scripts, 13, "No lock of the predecessors")


def test_an_empty_working_directory_is_refused(scripts: Scripts) -> None:
    for path in scripts.node.work.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    refused(scripts, 13, "is empty")


def test_a_file_that_is_newer_in_onedata_is_refused(scripts: Scripts) -> None:
    movie = scripts.store / "Runs" / "1" / "movie.mrc"
    movie.write_bytes(b"newer")
    later = movie.stat().st_mtime + 60
    os.utime(movie, (later, later))
    refused(scripts, 13, "a newer time than here (Runs/1/movie.mrc)")


def test_a_deployment_of_onesync_is_refused(nodes: list[Node], scripts: Scripts) -> None:
    one, two = nodes
    (scripts.store / STATUS / "lock").unlink()
    two.deploy()
    done = scripts.adopt()
    assert done.returncode == 11
    assert "holds it since" in done.stderr
    assert two.end() == 0, two.log()
    scripts.lock()
    assert scripts.adopt().returncode == 0
    one.deploy()
    one.end(signal.SIGKILL)
    done = scripts.adopt()
    assert done.returncode == 13
    assert "onesync has deployed this working directory already" in done.stderr


def test_their_cron_job_is_refused_and_named(scripts: Scripts) -> None:
    scripts.crontab.write_text(f"MAILTO=root\n#{JOB}{JOB}")
    refused(scripts, 13, f"{scripts.crontab}: {JOB.strip()}")


def test_their_cron_job_is_commented_out_where_that_is_wanted(
    nodes: list[Node], scripts: Scripts
) -> None:
    text = f"MAILTO=root\n{JOB}@daily /usr/bin/true\n"
    scripts.crontab.write_text(text)
    done = scripts.adopt("--disable-cron")
    assert done.returncode == 0, done.stderr
    assert JOB.strip() in done.stdout
    first, second, third = scripts.crontab.read_text().splitlines()
    assert (first, third) == ("MAILTO=root", "@daily /usr/bin/true")
    assert second.startswith("# ")
    assert second.endswith(JOB.strip())
    assert (nodes[0].home / "state" / "crontab-scipion").read_text() == text


@pytest.mark.parametrize("end", ["\r\n", " # \x0c\x85\u2028\n"])
def test_a_line_of_a_crontab_ends_where_cron_says(scripts: Scripts, end: str) -> None:
    line = JOB.rstrip("\n") + end
    scripts.crontab.write_text(line + "@daily true\n", newline="")
    assert scripts.adopt("--disable-cron").returncode == 0
    text = scripts.crontab.read_bytes().decode()
    assert text.startswith("# ")
    assert text.endswith(line + "@daily true\n")
    assert text.count("\n") == 2


def test_of_two_crontabs_with_one_name_both_are_kept(scripts: Scripts) -> None:
    scripts.crontab.write_text(f"# mine\n{JOB}{JOB}")
    scripts.system.write_text(f"# the system's\n{JOB}")
    assert scripts.adopt("--disable-cron").returncode == 0
    for crontab in (scripts.crontab, scripts.system):
        assert all(line.startswith("#") for line in crontab.read_text().splitlines())
    kept = (scripts.node.home / "state").glob("crontab-*")
    assert {path.read_text() for path in kept} == {
        f"# mine\n{JOB}{JOB}",
        f"# the system's\n{JOB}",
    }


def test_a_crontab_is_kept_for_its_owner_alone_and_through_no_link(scripts: Scripts) -> None:
    scripts.crontab.write_text(JOB)
    state = scripts.node.home / "state"
    (state / "crontab-scipion").symlink_to(scripts.node.home / "led astray")
    assert scripts.adopt("--disable-cron").returncode == 0
    assert not (scripts.node.home / "led astray").exists()
    kept = state / "crontab-scipion.2"
    assert (kept.read_text(), kept.stat().st_mode & 0o777) == (JOB, 0o600)


def test_a_script_that_cron_runs_of_itself(scripts: Scripts) -> None:
    text = "#!/bin/sh\ncd /opt/onedata && ./working-to-onedata\n"
    scripts.hourly.write_text(text)
    scripts.hourly.chmod(0o755)
    refused(scripts, 13, f"{scripts.hourly}: cd /opt/onedata && ./working-to-onedata")
    done = scripts.adopt("--disable-cron")
    assert done.returncode == 0, done.stderr
    assert f"Not executable any more: {scripts.hourly}" in done.stdout
    assert (scripts.hourly.read_text(), scripts.hourly.stat().st_mode & 0o777) == (text, 0o644)


def test_a_cron_job_that_comes_back_while_the_folder_is_compared(scripts: Scripts) -> None:
    """Puppet looks every half hour, and a large folder takes longer."""
    again = meanwhile(f"Path({str(scripts.crontab)!r}).write_text({JOB!r})")
    done = scripts.adopt(before=again)
    assert (done.returncode, done.stdout) == (13, "")
    assert "cron job is still active" in done.stderr
    done = scripts.adopt("--disable-cron", before=again)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Commented out") == 2
    assert scripts.crontab.read_text().startswith("# ")


def test_a_push_of_theirs_while_the_folder_is_compared_is_refused(scripts: Scripts) -> None:
    """What was compared is not what OneData holds any more."""
    there = scripts.store / STATUS / "linklist"
    code = f"__import__('os').utime({str(there)!r}, (2000000000, 2000000000))"
    done = scripts.adopt(before=meanwhile(code))
    assert (done.returncode, done.stdout) == (13, "")
    assert "pushed while the folder was compared" in done.stderr
    assert scripts.adopt().returncode == 0


@contextmanager
def rsync(*arguments: str, cwd: Path = Path("/")) -> Iterator[int]:
    """A process that looks like an rsync; its number."""
    words = ["rsync", "-c", "input()", *arguments]
    process = subprocess.Popen(words, executable=sys.executable, stdin=subprocess.PIPE, cwd=cwd)
    try:
        yield process.pid
    finally:
        process.communicate()


def test_a_push_of_theirs_that_runs_is_refused(scripts: Scripts) -> None:
    with rsync(f"{scripts.node.work}/", f"{scripts.store}/") as pid:
        refused(scripts, 13, f"running as {pid} (rsync")


def test_a_push_under_another_name_of_the_folder_is_refused(scripts: Scripts) -> None:
    name = scripts.node.home / "known as"
    name.symlink_to(scripts.node.work)
    scripts.lock(directory=str(name))
    shutil.copy2(scripts.store / STATUS / "lock", scripts.node.work / STATUS / "lock")
    with rsync(f"{name}/", "/elsewhere/") as pid:
        refused(scripts, 13, f"running as {pid} (rsync")
    with rsync("./", "../store/", cwd=scripts.node.work) as pid:
        refused(scripts, 13, f"running as {pid} (rsync")


def test_an_rsync_of_another_folder_is_none_of_ours(scripts: Scripts) -> None:
    with rsync(f"{scripts.node.work}2/", f"{scripts.store}-old/"):
        assert scripts.adopt().returncode == 0


def test_their_status_folder_that_cannot_be_kept_is_told(scripts: Scripts) -> None:
    theirs = scripts.node.work / STATUS
    os.mkfifo(theirs / "odd")
    done = scripts.adopt()
    assert done.returncode == 13
    assert f"{theirs} cannot be put away" in done.stderr
    (theirs / "odd").unlink()
    assert scripts.adopt().returncode == 0
    assert (scripts.node.home / "state" / "predecessor" / "linklist").exists()


def test_a_link_in_place_of_their_status_folder_is_left(scripts: Scripts) -> None:
    theirs = scripts.node.work / STATUS
    theirs.rename(scripts.node.home / "moved")
    theirs.symlink_to(scripts.node.home / "moved")
    assert scripts.adopt().returncode == 0
    assert (scripts.node.home / "moved" / "linklist").exists()
    assert not (scripts.node.home / "state" / "predecessor").exists()


def test_crontabs_that_cannot_be_read_are_refused(scripts: Scripts) -> None:
    done = scripts.adopt(
        before="import os\nos.access = lambda place, mode, **_: not str(place).endswith('crontabs')"
    )
    assert done.returncode == 78
    assert "crontabs cannot be read" in done.stderr


def test_a_lock_that_changed_since_is_refused(nodes: list[Node], scripts: Scripts) -> None:
    assert scripts.adopt(before=dying_at(*DEATHS["put away"])).returncode == KILLED
    scripts.lock(host="other.example.org")
    assert nodes[0].refusal() == 11
    assert "an old script's lock stands there" in nodes[0].log()


def test_a_claim_that_cannot_go_on_keeps_the_folder(store: Path, scripts: Scripts) -> None:
    """Their lock is gone by then: were ours given back, anybody could deploy the folder."""
    (store / STATUS / "manifest").mkdir()
    damaged = store / STATUS / "manifest" / "E000001-000001.base.jsonl.gz"
    damaged.write_bytes(gzip.compress(b"{}\n"))
    done = scripts.adopt()
    assert done.returncode == 13, done.stderr
    assert "No checkpoint of the manifest can be used" in done.stderr
    assert "DEPLOYMENT: " in (store / STATUS / "lock").read_text()
    damaged.unlink()
    assert scripts.adopt().returncode == 0


# -- as whom ---------------------------------------------------------------------------------------


AS_NOBODY = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")


@pytest.fixture(scope="module")
def everybodys_python() -> str:
    """Return a Python that nobody may run, too: ours may lie in root's home."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        lacks("needs root and setpriv")
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    for found in (sys.executable, f"/usr/bin/{version}"):
        # setpriv itself may still be root when it runs a program; a shell of its is not.
        words = [*AS_NOBODY, "sh", "-c", f"exec {found} -c 'import onesync.adopt'"]
        if subprocess.run(words, env=everybodys(), check=False, capture_output=True).returncode:
            continue
        return found
    return lacks(f"needs a {version} that everybody may run")


def everybodys() -> dict[str, str]:
    """Return the environment in which any Python of our version finds our packages."""
    files = (str(onesync.__file__), str(pathspec.__file__))
    places = [str(Path(file).parents[1]) for file in files]
    return os.environ | {"PYTHONPATH": os.pathsep.join(places)}


@pytest.fixture
def at_a_unit(everybodys_python: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scripts]:
    """A folder of nobody's on a node where he is the unit's user, with no directory of ours yet."""
    with TemporaryDirectory(prefix="onesync-test-", dir="/var/lib") as place:
        home = Path(place)
        home.chmod(0o755)
        (home / "store").mkdir()
        node = Node(home / "node", home / "store")
        monkeypatch.setattr(sys, "executable", everybodys_python)
        monkeypatch.setenv("PYTHONPATH", everybodys()["PYTHONPATH"])
        node.within = list(AS_NOBODY)
        scripts = Scripts(node, node.store)
        scripts.deploy()
        scripts.crontab.write_text(JOB)
        (node.work / "Runs" / "1" / "link 1").unlink()
        (node.home / "state").rmdir()
        for owned in (node.work, node.store, node.home / "run"):
            subprocess.run(["chown", "-R", "nobody:", owned], check=True)
        yield scripts


def adopt_instance(scripts: Scripts, user: str = "") -> subprocess.CompletedProcess[str]:
    """Run ``onesync adopt --instance p`` where nobody is the user that the package makes."""
    home = scripts.node.home
    said = f'user = "{user}"\n' if user else ""
    (home / "p.toml").write_text(said + scripts.node.config.read_text())
    before = f"""
from pathlib import Path
from onesync import instance, predecessor, settings
instance.DEFAULT_USER = "nobody"
instance.CONFIGURATIONS = {str(home)!r}
settings.CONFIGURATIONS = Path({str(home)!r})
predecessor.CRONTABS = (Path({str(scripts.crontab.parent)!r}),)
predecessor.CRON_SCRIPTS = ()
from onesync.program import main
main()
"""
    words = [sys.executable, "-c", before, "adopt", "--instance", "p", "--disable-cron"]
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=SOON)


def not_of_nobody(*places: Path) -> set[str]:
    """Return what is beneath, or at, these places and not nobody's."""
    nobody = pwd.getpwnam("nobody")
    paths = {path for place in places for path in (place, *place.rglob("*"))}
    owned = {path: path.lstat() for path in paths}
    return {p.name for p, it in owned.items() if (it.st_uid, it.st_gid) != nobody[2:4]}


@pytest.mark.parametrize("user", ["", "nobody"])
def test_what_root_adopts_is_the_units_users(at_a_unit: Scripts, user: str) -> None:
    node, state = at_a_unit.node, at_a_unit.node.home / "state"
    done = adopt_instance(at_a_unit, user)
    assert done.returncode == 0, done.stderr
    assert "1 links of the linklist were missing and are made" in done.stdout
    assert state.stat().st_mode & 0o777 == 0o700
    kept = state / "crontab-scipion"
    assert not_of_nobody(node.work, node.store, state) == {kept.name}, "for root alone"
    assert (kept.stat().st_uid, kept.stat().st_mode & 0o777) == (0, 0o600)
    node.deploy()
    assert node.flush() == 0, node.log()
    assert node.end() == 0, node.log()


def test_a_state_directory_of_his_with_another_group_gives_nothing_of_roots_away(
    at_a_unit: Scripts,
) -> None:
    """systemd changes the owner of all that is beneath where that of the top is another one."""
    state = at_a_unit.node.home / "state"
    subprocess.run(["install", "-d", "-o", "nobody", state], check=True)
    done = adopt_instance(at_a_unit)
    assert done.returncode == 0, done.stderr
    assert not_of_nobody(state) == {"crontab-scipion"}


def test_a_state_directory_of_somebody_else_is_refused(at_a_unit: Scripts) -> None:
    node, state = at_a_unit.node, at_a_unit.node.home / "state"
    state.mkdir(mode=0o700)
    (state / "index.sqlite").touch()
    for owner, told in (("root", "the user 0's"), ("daemon", "the user 1's")):
        subprocess.run(["chown", "-R", owner, state], check=True)
        done = adopt_instance(at_a_unit)
        assert (done.returncode, done.stdout) == (78, "")
        assert f"state_dir {state} is {told}, and onesync runs as nobody" in done.stderr
        assert os.listdir(state) == ["index.sqlite"]
        assert at_a_unit.crontab.read_text() == JOB
        assert not_of_nobody(node.work, node.store) == set()


def test_a_working_directory_that_the_user_may_not_write_is_refused(at_a_unit: Scripts) -> None:
    os.chown(at_a_unit.node.work, 0, 0)
    done = adopt_instance(at_a_unit)
    assert (done.returncode, done.stdout) == (78, "")
    assert "cannot be read and written by nobody, as whom onesync runs" in done.stderr


def test_a_user_who_is_not_there_is_refused(at_a_unit: Scripts) -> None:
    done = adopt_instance(at_a_unit, "ghost")
    assert (done.returncode, done.stdout) == (78, "")
    assert "The user ghost does not exist" in done.stderr
    assert not (at_a_unit.node.home / "state").exists()


# -- deaths ----------------------------------------------------------------------------------------

SHORT_WATCH: dict[str, object] = {
    "mount__io_timeout_seconds": 2,
    "lock__beat_seconds": 0.5,
    "lock__warn_seconds": 1,
    "lock__suspend_seconds": 4.6,
    "lock__dead_seconds": 6,
}
"""A claim without a record is watched for life, until nobody could write by it any more."""

DEATHS = {
    "compare": ("onesync.adopt", "", "_sort", 1),
    "linked": ("onesync.adopt", "", "_record", 1),
    "rows": ("onesync.index", "Index", "remember_blocks", 1),
    "held": ("onesync.index", "Index", "hold", 1),
    "put away": ("onesync.adopt", "", "_put_away", 1),
    "claim": ("onesync.lock", "Lock", "acquire", 1),
    "claimed": ("onesync.lock", "Lock", "_settled", 1),
    "lock": ("onesync.lock", "Lock", "_send", 1),
    "beating": ("onesync.deploy", "Deploy", "take_over", 1),
    "checkpoint": ("onesync.batch", "Batches", "base", 1),
    "recorded": ("onesync.batch", "Batches", "_record", 1),
    "told": ("onesync.engine", "Engine", "_end_threads", 1),
}


@pytest.mark.parametrize("death", DEATHS)
def test_a_death_is_made_good_by_doing_it_again(
    nodes: list[Node], store: Path, scripts: Scripts, death: str
) -> None:
    one, two = nodes
    one.configure(**SHORT_WATCH)
    (one.work / "project.sqlite").write_bytes(b"newer")
    (one.work / "Runs" / "1" / "link 1").unlink()
    (store / "alone").write_bytes(b"1")
    before = {p: what[:2] for p, what in contents(store).items()}
    done = scripts.adopt(before=dying_at(*DEATHS[death]))
    assert done.returncode == KILLED, done.stderr
    assert {p: what[:2] for p, what in contents(store).items()} == before
    assert (store / STATUS / "lock").exists()
    again = scripts.adopt()
    if death == "told":  # it was done
        assert again.returncode == 13, again.stderr
    else:
        assert again.returncode == 0, again.stderr
    one.deploy()
    assert one.flush() == 3
    assert one.command("resume").stdout == "alone\n"
    assert (store / "alone").read_bytes() == b"1"
    assert one.command("resume", "--accept-deletions").returncode == 0
    assert one.end() == 0, one.log()
    two.deploy()
    assert contents(two.work) == contents(one.work)
    assert two.end() == 0, two.log()


@pytest.mark.parametrize("death", ["rows", "held", "put away", "claimed", "lock", "checkpoint"])
def test_a_start_after_a_death_loses_nothing(
    nodes: list[Node], store: Path, scripts: Scripts, death: str
) -> None:
    """It goes on where everything is known, and says what to do where it is not."""
    one = nodes[0]
    one.configure(**SHORT_WATCH)
    (store / "alone").write_bytes(b"1")
    assert scripts.adopt(before=dying_at(*DEATHS[death])).returncode == KILLED
    if death in ("rows", "held"):
        assert one.refusal() == 13
        assert "Run 'onesync adopt' again" in one.log()
        assert "USER:scipion" in (store / STATUS / "lock").read_text()
        assert scripts.adopt().returncode == 0
    one.deploy()
    assert one.flush() == 3, one.log()
    assert one.command("resume").stdout == "alone\n"
    assert one.end() == 0, one.log()
    assert (store / "alone").exists()
