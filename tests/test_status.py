"""What people and programs are told: the view, the terminal, and the document's schema."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from onesync.control import NEVER_RAN
from onesync.core.view import Line, Look, Tone, age_text, rate, seconds_left, size_text, view_of
from tests.node import SOON, Node
from tests.standin.mounted import Mounted
from tests.terminal import Terminal
from tests.test_deploy import forget_lock

SCHEMA = json.loads((Path(__file__).parents[1] / "config" / "status.schema.json").read_text())
NOW = 1_800_000_000.0
LIVE: dict[str, Any] = NEVER_RAN | {
    "phase": "syncing",
    "epoch": 3,
    "deployment_id": "d",
    "progress": {"since": NOW - 100, "done": 0, "total": 0, "bytes": 0},
    "last_checkpoint": {"name": "E000003-000007.jsonl.gz", "at": NOW - 125},
    "lock": {"beat": 9, "confirmed_at": NOW - 4, "released": False},
    "watches": {"kernel": 12, "polled": 0},
    "mount": {"path": "/mnt/onedata/project", "up": True},
}
PENDING = {"pending_paths": 2, "pending_bytes": 4_000_000, "oldest_unsynced_at": NOW - 61}


def until(condition: Callable[[], object], told: Callable[[], object]) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline, told()
        time.sleep(0.02)


# -- the view --------------------------------------------------------------------------------------


def seen(**keys: Any) -> Look:
    return Look(LIVE | keys, NOW, True)


def problem(kind: str, text: str = "It is so.", path: str = "") -> dict[str, str]:
    return {"path": path, "kind": kind, "text": text}


def line(look: Look, label: str, earlier: Look | None = None) -> str | None:
    found = [line.text for line in view_of(look, earlier).lines if line.label == label]
    return found[0] if found else None


@pytest.mark.parametrize(
    ("keys", "word", "tone"),
    [
        ({}, "safe", Tone.GOOD),
        (PENDING, "syncing", Tone.BUSY),
        ({"problems": [problem("newcomer")]}, "attention", Tone.WAITING),
        ({"mount": {"path": "/m", "up": False}}, "waiting", Tone.WAITING),
        ({"phase": "starting"}, "deploying", Tone.BUSY),
        ({"phase": "locking"}, "deploying", Tone.BUSY),
        ({"phase": "staging_in"}, "deploying", Tone.BUSY),
        ({"phase": "backing_off"}, "waiting", Tone.WAITING),
        ({"phase": "suspended"}, "waiting", Tone.WAITING),
        ({"phase": "flushing"}, "flushing", Tone.BUSY),
        ({"phase": "cleaning"}, "cleaning", Tone.BUSY),
        ({"phase": "stopped"}, "stopped", Tone.QUIET),
        ({"phase": "fenced"}, "fenced", Tone.BAD),
        ({"phase": "halted"}, "halted", Tone.BAD),
        ({"phase": "stopped", "problems": [problem("died")]}, "died", Tone.BAD),
        ({"phase": "of\x1bnext"}, "of\\x1bnext", Tone.WAITING),
    ],
)
def test_the_state_is_one_word(keys: dict[str, Any], word: str, tone: Tone) -> None:
    view = view_of(seen(**keys))
    assert (view.word, view.tone) == (word, tone)


def test_every_phase_of_the_schema_has_a_word() -> None:
    for phase in SCHEMA["properties"]["phase"]["enum"]:
        assert "does not know" not in view_of(seen(phase=phase)).meaning


def test_what_a_daemon_that_does_not_answer_wrote_last_is_no_safety() -> None:
    view = view_of(Look(LIVE, NOW, False))
    assert (view.word, view.tone) == ("mute", Tone.BAD)
    assert "wrote last" in view.meaning


def test_each_thing_has_its_line() -> None:
    look = seen(**PENDING, pending=["a", "b"])
    assert line(look, "phase") == "syncing"
    assert line(look, "unsaved") == "2 paths, 4.0 MB, for 1 min 1 s (a, b)"
    assert line(look, "checkpoint") == "E000003-000007.jsonl.gz, 2 min 5 s ago"
    assert line(look, "lock") == "epoch 3, beat 9, confirmed 4 s ago"
    assert line(look, "mount") == "/mnt/onedata/project"
    assert line(look, "watches") == "12 directories"


def test_whether_the_folder_is_free_is_told() -> None:
    released = {"beat": 9, "confirmed_at": NOW - 4, "released": True}
    assert "deployed elsewhere" in view_of(seen(phase="stopped", lock=released)).meaning
    assert line(seen(phase="stopped", lock=released), "lock") == "released, it was epoch 3"
    assert "stays locked" in view_of(seen(phase="stopped")).meaning
    assert line(seen(phase="fenced"), "lock") == "lost, it was epoch 3"
    assert line(seen(phase="stopped", lock=None), "lock") == "not held"


def test_of_more_than_is_measured_the_size_is_a_least_one_and_no_time_is_told() -> None:
    many = seen(**PENDING | {"pending_paths": 10_001})
    assert "10,001 paths, at least 4.0 MB" in str(line(many, "unsaved"))
    assert seconds_left(many, 1e6) is None
    assert seconds_left(seen(**PENDING), 1e6) == 4


def test_the_rate_is_that_between_two_looks() -> None:
    first, second = seen(**PENDING, moved_bytes=10), seen(**PENDING, moved_bytes=2_000_010)
    earlier = Look(first.document, NOW - 2, True)
    assert rate(second, earlier) == 1e6
    assert line(second, "rate", earlier) == "1.0 MB/s"
    assert line(second, "time left", earlier) == "about 4 s"
    assert line(second, "rate") is None, "one look at a daemon that syncs knows nothing of it"
    assert rate(first, Look(second.document, NOW - 2, True)) is None, "another daemon counts anew"
    assert rate(second, Look(first.document, NOW - 2, False)) is None
    assert rate(seen(moved_bytes=2_000_010), earlier) is None, "nothing is on its way"


def test_a_stage_in_tells_its_rate_and_time_left_in_one_look() -> None:
    progress = {"since": NOW - 100, "done": 50, "total": 200, "bytes": 300_000_000}
    look = seen(phase="staging_in", progress=progress)
    assert line(look, "progress") == "50 of 200 files, 300.0 MB"
    assert line(look, "rate") == "3.0 MB/s"
    assert line(look, "time left") == "about 5 min 0 s"
    none_yet = seen(phase="staging_in", progress=progress | {"done": 0})
    assert line(none_yet, "time left") is None


def test_problems_come_with_their_sentences_and_paths_and_not_without_end() -> None:
    found = [problem("odd", "Rename it.", path="a/b"), problem("odd", "a/b is odd.", path="a/b")]
    view = view_of(seen(problems=found))
    assert view.problems == (
        Line("odd", "a/b: Rename it.", Tone.BAD),
        Line("odd", "a/b is odd.", Tone.BAD),
    )
    many = view_of(seen(problems=[problem("odd")] * 25)).problems
    assert len(many) == 21
    assert many[-1].text.startswith("5 others")


def test_nothing_comes_through_that_a_terminal_would_obey() -> None:
    evil = "\x1b]0;evil\x07\n\u202e"
    view = view_of(
        seen(
            **PENDING,
            pending=[evil],
            problems=[problem(evil, evil, evil)],
            last_checkpoint={"name": evil, "at": NOW},
            mount={"path": evil, "up": True},
        )
    )
    told = [view.word, view.meaning]
    told += [part for each in view.lines + view.problems for part in (each.label, each.text)]
    assert all(text.isprintable() for text in told), told
    assert sum("\\x1b]0;evil" in text for text in told) == 5


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0 s"), (59.9, "59 s"), (60, "1 min 0 s"), (3_725, "1 h 2 min"), (180_000, "2 d 2 h")],
)
def test_ages(seconds: float, text: str) -> None:
    assert age_text(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1_500, "1.5 kB"), (2e12, "2.0 TB")]
)
def test_sizes(size: float, text: str) -> None:
    assert size_text(size) == text


# -- the document ----------------------------------------------------------------------------------


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema, but with no key allowed, at any depth, that it does not describe."""
    found = {key: strict(value) if key == "items" else value for key, value in schema.items()}
    if "properties" in schema:
        found["properties"] = {key: strict(value) for key, value in schema["properties"].items()}
        found["additionalProperties"] = False
    return found


VALIDATOR = jsonschema.Draft202012Validator(strict(SCHEMA))


def document(node: Node) -> dict[str, Any]:
    """What ``onesync status --json`` prints, which the schema describes to the last key."""
    result = node.command("status", "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    VALIDATOR.validate(found)
    assert isinstance(found, dict)
    return found


def in_phase(node: Node, phase: str) -> dict[str, Any]:
    """The document, as soon as it is of this phase."""
    until(lambda: node.status()["phase"] == phase, node.log)
    found = document(node)
    assert found["phase"] == phase
    return found


def test_the_schema_is_one_and_describes_each_key() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)

    def undescribed(schema: dict[str, Any], place: str) -> Iterator[str]:
        if "description" not in schema:
            yield place
        for key, value in schema.get("properties", {}).items():
            yield from undescribed(value, f"{place}.{key}")
            assert key in schema["required"], f"{place}.{key}"
        if "items" in schema and schema["items"].get("type") == "object":
            yield from undescribed(schema["items"], f"{place}[]")

    assert list(undescribed(SCHEMA, "")) == []


def test_a_document_with_a_key_that_is_not_described_is_refused() -> None:
    VALIDATOR.validate(LIVE)
    for wrong in (
        LIVE | {"more": 1},
        LIVE | {"lock": LIVE["lock"] | {"more": 1}},
        LIVE | {"problems": [problem("odd") | {"more": 1}]},
        LIVE | {"phase": "resting"},
        {key: value for key, value in LIVE.items() if key != "progress"},
    ):
        assert not VALIDATOR.is_valid(wrong)


def test_documents_of_a_life_from_never_ran_to_undeployed(nodes: list[Node]) -> None:
    one, two = nodes
    never = document(one)
    assert (never["phase"], never["mount"], never["format"]) == ("stopped", None, 1)
    one.configure(batch__settle_seconds=3600, batch__max_delay_seconds=3600)
    one.deploy()
    assert one.flush() == 0, one.log()
    idle = in_phase(one, "syncing")
    assert idle["lock"]["released"] is False
    (one.work / "file").write_bytes(b"x" * 100_000)
    until(lambda: one.status()["pending_paths"], one.log)
    assert document(one)["pending"] == ["file"]
    two.configure(lock__wait_seconds=3600)
    two.start()
    assert in_phase(two, "locking")["lock"] is None
    assert two.end() == 0, two.log()
    assert one.flush() == 0, one.log()
    assert document(one)["moved_bytes"] >= idle["moved_bytes"] + 100_000
    assert one.end() == 0, one.log()
    left = document(one)
    assert (left["phase"], left["lock"]["released"]) == ("stopped", True)


def test_documents_of_daemons_that_died_handed_over_and_were_fenced(
    nodes: list[Node], store: Path
) -> None:
    one, _ = nodes
    one.configure(lock__beat_seconds=0.5)
    one.deploy()
    one.end(signal.SIGKILL)
    assert document(one)["problems"][0]["kind"] == "died"
    one.deploy()
    assert one.command("handover").returncode == 0
    assert one.wait() == 0
    kept = document(one)
    assert (kept["phase"], kept["lock"]["released"]) == ("stopped", False)
    one.deploy()
    forget_lock(store)
    assert one.wait() == 12, one.log()
    assert in_phase(one, "fenced")["problems"][0]["kind"] == "LockLost"


@pytest.fixture
def on_fuse(tmp_path: Path, mounted: Mounted) -> Iterator[Node]:
    """A node whose folder on a mount holds 30 files."""
    for number in range(30):
        (mounted.backing / "project" / f"{number:02}").write_bytes(b"x" * 1000)
    node = Node(tmp_path / "node", mounted.path / "project", mount__require_fuse=True)
    yield node
    if mounted.running():
        mounted.release()
    if node.running():
        node.end(signal.SIGKILL)


@pytest.mark.fuse
def test_documents_while_the_mount_does_not_answer_a_start(on_fuse: Node, mounted: Mounted) -> None:
    mounted.hang()
    on_fuse.start()
    assert in_phase(on_fuse, "starting")["lock"] is None
    assert on_fuse.command("status").stdout.startswith("deploying: ")
    mounted.release()
    on_fuse.wait_for_phase("syncing")
    assert on_fuse.end() == 0, on_fuse.log()


@pytest.mark.fuse
def test_documents_of_a_stage_in_and_of_a_mount_that_is_gone(
    on_fuse: Node, mounted: Mounted
) -> None:
    on_fuse.configure(mount__require_fuse=True, push__workers=2)
    mounted.hang_at("open", pattern="/project/29$")
    on_fuse.start()
    until(lambda: (on_fuse.status()["progress"] or {}).get("done"), on_fuse.log)
    staging = in_phase(on_fuse, "staging_in")
    assert staging["progress"]["total"] == 30
    assert 0 < staging["progress"]["done"] < 30
    told = on_fuse.command("status").stdout
    assert told.startswith("deploying: "), told
    assert " of 30 files, " in told
    mounted.release()
    on_fuse.wait_for_phase("syncing")
    mounted.stop()
    gone = in_phase(on_fuse, "backing_off")
    assert gone["mount"]["up"] is False
    told = on_fuse.command("status").stdout
    assert told.startswith("waiting: "), told
    assert f"{on_fuse.store}, not there" in told
    assert "MountNotThere: " in told
    on_fuse.end(signal.SIGKILL)
    assert on_fuse.refusal() == 14
    assert in_phase(on_fuse, "halted")["problems"][0]["kind"] == "MountNotThere"


@pytest.mark.fuse
def test_documents_of_a_suspended_daemon_and_of_a_final_flush(
    on_fuse: Node, mounted: Mounted
) -> None:
    times = {"beat": 0.5, "warn": 1, "suspend": 5, "dead": 10}
    options = {f"lock__{name}_seconds": seconds for name, seconds in times.items()}
    on_fuse.configure(mount__require_fuse=True, mount__io_timeout_seconds=2, **options)
    on_fuse.deploy()
    mounted.hang()
    (on_fuse.work / "file").write_bytes(b"precious")
    assert in_phase(on_fuse, "suspended")["pending_paths"] > 0
    assert on_fuse.command("status").stdout.startswith("waiting: ")
    assert on_fuse.process is not None
    on_fuse.process.send_signal(signal.SIGTERM)
    assert in_phase(on_fuse, "flushing")["pending_paths"] > 0
    mounted.release()
    assert on_fuse.wait() == 0, on_fuse.log()
    assert document(on_fuse)["pending_paths"] == 0


@pytest.mark.fuse
def test_documents_while_the_node_is_cleaned(on_fuse: Node, mounted: Mounted) -> None:
    on_fuse.configure(mount__require_fuse=True, undeploy__clean_working_dir=True)
    on_fuse.deploy()
    mounted.hang_at("unlink", pattern="do_not_delete/lock$")
    assert on_fuse.process is not None
    on_fuse.process.send_signal(signal.SIGTERM)
    assert in_phase(on_fuse, "cleaning")["lock"]["released"] is False
    assert on_fuse.command("status").stdout.startswith("cleaning: all is in OneData")
    mounted.release()
    assert on_fuse.wait() == 0, on_fuse.log()
    assert document(on_fuse)["lock"]["released"] is True


def test_what_an_earlier_version_left_is_completed(nodes: list[Node]) -> None:
    one, _ = nodes
    one.deploy()
    assert one.end() == 0, one.log()
    place = one.home / "state" / "status.json"
    left = json.loads(place.read_text())
    new = ("format", "moved_bytes", "progress")
    place.write_text(json.dumps({key: value for key, value in left.items() if key not in new}))
    assert document(one)["progress"] is None
    assert one.command("status").stdout.startswith("stopped: ")


def test_a_paused_daemon_that_many_asked_before_is_mute(nodes: list[Node]) -> None:
    one, _ = nodes
    one.deploy()
    one.pause()
    asking = []
    with suppress(BlockingIOError):
        while True:
            asking.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            asking[-1].setblocking(False)
            asking[-1].connect(str(one.home / "run" / "control.sock"))
    assert document(one)["phase"] == "syncing", "nobody else can even ask"
    assert one.command("status").stdout.startswith("mute: onesync does not answer")
    for one_of_many in asking:
        one_of_many.close()
    one.go_on()
    assert one.end() == 0, one.log()


# -- pipes and terminals ---------------------------------------------------------------------------


def test_a_pipe_gets_plain_lines_that_are_not_wrapped(tmp_path: Path) -> None:
    store = tmp_path / ("long name " * 12) / ("and more " * 12)
    store.mkdir(parents=True)
    node = Node(tmp_path / "node", store)
    node.deploy()
    assert node.flush() == 0, node.log()
    printed = node.command("status").stdout
    assert printed.startswith("safe: everything is in OneData\n")
    assert f"  mount       {store}\n" in printed
    assert "\x1b" not in printed
    assert node.end() == 0, node.log()


def test_names_are_no_markup_and_obeyed_by_no_terminal(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = nodes
    one.configure(batch__settle_seconds=3600, batch__max_delay_seconds=3600)
    one.deploy()
    assert one.flush() == 0, one.log()
    (one.work / "[red]markup :smile: \xe9 \x1b]0;evil\x07").write_bytes(b"x")
    until(lambda: one.status()["pending_paths"], one.log)
    monkeypatch.setattr(Node, "is_forked", False)
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    printed = one.command("status").stdout
    assert "([red]markup :smile: \\xe9 \\x1b]0;evil\\x07)" in printed
    monkeypatch.delenv("PYTHONIOENCODING")
    assert "\x1b" not in printed
    with Terminal(one, "status") as terminal:
        assert terminal.wait() == 0
    assert "([red]markup :smile: \xe9 \\x1b]0;evil\\x07)" in terminal.text()


def test_a_terminal_gets_colours_and_no_colours_where_they_are_not_wanted(
    nodes: list[Node],
) -> None:
    one, _ = nodes
    one.deploy()
    assert one.flush() == 0, one.log()
    with Terminal(one, "status") as coloured, Terminal(one, "status", NO_COLOR="1") as plain:
        assert (coloured.wait(), plain.wait()) == (0, 0)
    assert re.search(r"\x1b\[1;32msafe\x1b\[0m", coloured.raw()), "green"
    assert not {number for number in plain.styles() if re.fullmatch(r"[349]\d|10\d", number)}
    assert coloured.text().startswith("safe: everything is in OneData")
    assert plain.text().startswith("safe: everything is in OneData")
    assert one.end(signal.SIGKILL) < 0
    with Terminal(one, "status") as died:
        assert died.wait() == 0
    assert "\x1b[1;31mdied" in died.raw(), "red"


def test_watch_is_drawn_anew_in_place_while_the_daemon_comes_and_goes(nodes: list[Node]) -> None:
    one, _ = nodes
    with Terminal(one, "status", "--watch", "--interval", "0.1", columns=40) as terminal:

        def shows(word: str) -> Callable[[], bool]:
            return lambda: terminal.text().startswith(f"{word}: ")

        until(shows("stopped"), terminal.raw)
        one.deploy()
        until(shows("safe"), terminal.raw)
        drawn = terminal.raw().count("safe")
        until(lambda: terminal.raw().count("safe") > drawn + 2, terminal.raw)
        assert terminal.text().count("safe: ") == 1, terminal.text()
        assert one.end() == 0, one.log()
        until(shows("stopped"), terminal.raw)
        one.deploy()
        until(shows("safe"), terminal.raw)
        assert terminal.hides_cursor()
        terminal.type(b"\x03")
        assert terminal.wait() == 0, terminal.raw()
    assert not terminal.hides_cursor()
    assert terminal.text().count("phase ") == 1, terminal.text()
    assert "Traceback" not in terminal.raw()


def test_watch_on_a_terminal_that_cannot_draw_is_one_view_after_the_other(
    nodes: list[Node],
) -> None:
    words = ("status", "--watch", "--interval", "0.1")
    with Terminal(nodes[0], *words, TERM="dumb") as terminal:
        until(lambda: terminal.raw().count("stopped: ") > 2, terminal.raw)
        terminal.type(b"\x03")
        assert terminal.wait() == 0
    assert "\x1b" not in terminal.raw()


def test_a_watch_that_is_terminated_gives_the_cursor_back(nodes: list[Node]) -> None:
    with Terminal(nodes[0], "status", "--watch") as terminal:
        until(lambda: "stopped: " in terminal.text(), terminal.raw)
        assert terminal.hides_cursor()
        terminal.process.terminate()
        assert terminal.wait() == 0
    assert not terminal.hides_cursor()


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_watch_in_a_pipe_is_one_view_or_document_after_the_other(
    nodes: list[Node], words: tuple[str, ...]
) -> None:
    program = [sys.executable, "-m", "onesync.program", "status", "--watch", "--interval", "0.1"]
    command = [*program, *words, "--config", str(nodes[0].config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        if words:
            for _ in range(3):
                VALIDATOR.validate(json.loads(process.stdout.readline()))
        else:
            firsts = [part for part in _views(process.stdout.readline) if part]
            assert [first.split(":")[0] for first in firsts] == ["stopped"] * 3
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait(SOON) == 0
    assert "\x1b" not in rest


def _views(readline: Callable[[], str]) -> Iterator[str]:
    """The first lines of three views."""
    for _ in range(3):
        yield readline()
        while readline().strip():
            pass


def test_no_other_command_and_no_daemon_imports_what_draws() -> None:
    program = "import sys, onesync.cli, onesync.service, onesync.inspect, onesync.history\n"
    program += "print([name for name in sys.modules if name.split('.')[0] == 'rich'])"
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stdout == "[]\n"


def test_who_may_not_ask_is_told_so(nodes: list[Node]) -> None:
    one, _ = nodes
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(one.home / "run" / "control.sock"))
        server.listen()

        def refuse() -> None:
            connection, _ = server.accept()
            with connection, connection.makefile("rwb") as stream:
                stream.readline()
                stream.write(b'{"ok": false, "reason": "only root may ask"}\n')

        answering = threading.Thread(target=refuse)
        answering.start()
        asked = one.command("status", "--json")
        answering.join()
    assert (asked.returncode, asked.stdout) == (1, "")
    assert "only root may ask" in asked.stderr
