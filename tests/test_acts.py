"""What people ask of a running daemon: to pause, to follow its configuration, to stay longer."""

from __future__ import annotations

import os
import signal
import threading
import time
import urllib.request
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from onesync.configuration import load
from onesync.errors import ConfigurationError
from onesync.settings import Settings, reloaded
from tests.campaign.life import Life, Place
from tests.node import SOON, Node
from tests.test_dashboards import listening
from tests.test_prometheus import free_port


@pytest.fixture
def one(nodes: list[Node]) -> Node:
    return nodes[0]


def kinds(node: Node) -> list[str]:
    return [problem["kind"] for problem in node.status()["problems"]]


def metrics(node: Node) -> str:
    with urllib.request.urlopen(f"http://{listening(node)}/metrics", timeout=SOON) as answer:
        return str(answer.read().decode())


def at(seconds: float) -> str:
    """Return the time in so many seconds, as a configuration takes it."""
    return datetime.fromtimestamp(time.time() + seconds, UTC).isoformat()


# -- pause -----------------------------------------------------------------------------------------


def test_a_pause_pushes_nothing_but_what_is_flushed(one: Node) -> None:
    one.deploy()
    asked = one.command("pause", "--for", "2h")
    assert (asked.returncode, asked.stdout.split(":")[0]) == (0, "Paused for 2h"), asked.stderr
    one.wait_for_phase("paused")
    assert kinds(one) == ["paused"]
    assert 7000 < one.status()["paused_until"] - time.time() <= 7200
    (one.work / "file").write_bytes(b"1")
    one.wait_until(lambda: one.status()["pending_paths"])
    assert not (one.store / "file").exists()
    assert one.flush() == 0, one.log()
    assert (one.store / "file").read_bytes() == b"1"
    one.wait_for_phase("paused")
    (one.work / "other").write_bytes(b"2")
    one.wait_until(lambda: one.status()["pending_paths"])
    assert not (one.store / "other").exists()
    resumed = one.command("resume")
    assert (resumed.returncode, resumed.stdout) == (0, "It goes on.\n")
    one.wait_until(lambda: (one.store / "other").exists())
    one.wait_until(lambda: kinds(one) == [])
    assert one.end() == 0, one.log()


def test_a_pause_ends_by_itself(one: Node) -> None:
    one.deploy()
    assert one.command("pause", "--for", "1s").returncode == 0
    (one.work / "file").write_bytes(b"1")
    one.wait_until(lambda: (one.store / "file").exists())
    assert one.status()["paused_until"] is None
    assert one.end() == 0, one.log()


def test_a_stop_in_a_pause_flushes(one: Node) -> None:
    one.deploy()
    assert one.command("pause").returncode == 0
    one.wait_for_phase("paused")
    (one.work / "file").write_bytes(b"1")
    assert one.end() == 0, one.log()
    assert (one.store / "file").read_bytes() == b"1"


def test_a_pause_of_no_length_is_refused(one: Node) -> None:
    asked = one.command("pause", "--for", "soon")
    assert asked.returncode == 78
    assert asked.stderr.startswith("onesync: 'soon': expected a duration such as")


# -- the configuration -----------------------------------------------------------------------------


def test_a_changed_configuration_is_followed(one: Node) -> None:
    one.configure(batch__settle_seconds=600.0, batch__max_delay_seconds=600.0)
    one.deploy()
    (one.work / "file").write_bytes(b"1")
    one.wait_until(lambda: one.status()["pending_paths"])
    one.configure(batch__settle_seconds=0.05, push__workers=3)
    told = one.command("reload")
    assert told.returncode == 0, told.stderr
    assert told.stdout == "Changed: batch.max_delay_seconds, batch.settle_seconds.\n"
    assert told.stderr == "Needs a restart: push.workers.\n"
    one.wait_until(lambda: (one.store / "file").exists())
    assert one.command("reload").stderr == "Needs a restart: push.workers.\n"
    assert one.end() == 0, one.log()


def test_a_signal_reloads_too(one: Node) -> None:
    one.configure(batch__settle_seconds=600.0, batch__max_delay_seconds=600.0)
    one.deploy()
    (one.work / "file").write_bytes(b"1")
    one.configure(batch__settle_seconds=0.05)
    assert one.process is not None
    one.process.send_signal(signal.SIGHUP)
    one.wait_until(lambda: (one.store / "file").exists())
    one.wait_until(lambda: "the configuration was reloaded" in one.log())  # told when it is done
    assert one.end() == 0, one.log()


@pytest.mark.parametrize("way", ["command", "signal"])
def test_a_wrong_configuration_is_not_followed(one: Node, way: str) -> None:
    one.configure(metrics__listen=f"127.0.0.1:{free_port()}")
    one.deploy()
    good = one.config.read_text()
    one.config.write_text(good + "\n[nothing]\nkey = 1\n")
    if way == "command":
        told = one.command("reload")
        assert told.returncode == 78, told.stderr
    else:
        assert one.process is not None
        one.process.send_signal(signal.SIGHUP)
        one.wait_until(lambda: "the configuration was not reloaded" in one.log())
        assert "onesync_config_last_reload_successful 0.0" in metrics(one)
    one.config.write_text(good)
    assert one.command("reload").stdout == "Nothing changed.\n"
    assert "onesync_config_last_reload_successful 1.0" in metrics(one)
    assert one.flush() == 0, one.log()
    assert one.end() == 0, one.log()


def settings(tmp_path: Path, text: str) -> Settings:
    for name in ("work", "state", "run"):
        (tmp_path / name).mkdir(exist_ok=True)
    config = tmp_path / "onesync.toml"
    places = {"working_dir": "work", "state_dir": "state", "runtime_dir": "run"}
    head = [f'{key} = "{tmp_path / name}"' for key, name in places.items()]
    config.write_text("\n".join([*head, f'onedata_dir = "{tmp_path / "data"}"', text]))
    return load(config, None)


def test_what_needs_a_restart_stays_as_it_was(tmp_path: Path) -> None:
    old = settings(tmp_path, "[push]\nworkers = 8\nround_seconds = 5\n")
    new = settings(
        tmp_path,
        '[push]\nworkers = 9\nround_seconds = 6\n[deployment]\nduration = "2d"\n'
        "[mount]\nio_timeout_seconds = 60\n",
    )
    found = reloaded(old, new)
    assert found.applied == ("deployment.duration", "push.round_seconds")
    assert found.restart == ("mount.io_timeout_seconds", "push.workers")
    assert (found.settings.push.workers, found.settings.push.round_seconds) == (8, 6)
    assert found.settings.deployment.duration == 172_800
    assert found.settings.mount == old.mount
    again = reloaded(found.settings, new)
    assert (again.applied, again.restart) == ((), found.restart)


# -- the end of a deployment -----------------------------------------------------------------------


def test_a_deployment_ends_by_itself(one: Node) -> None:
    one.configure(deployment__duration="3s", deployment__warn="1h")
    one.deploy()
    assert kinds(one) == ["expiring"]
    (one.work / "file").write_bytes(b"1")
    assert one.process is not None
    assert one.process.wait(SOON) == 0, one.log()
    assert (one.store / "file").read_bytes() == b"1"
    assert one.status()["lock"]["released"], "as by a stop"
    assert "the deployment's time is over" in one.log()
    assert one.log().count("the deployment ends soon") == 1
    one.deploy()  # a deployment of its own, with a time of its own
    assert one.end() == 0, one.log()


def test_it_is_told_ahead_and_put_off(one: Node) -> None:
    one.configure(deployment__until=at(1800), deployment__warn="1h")
    one.deploy()
    assert kinds(one) == ["expiring"]
    first = one.status()["expires_at"]
    assert 1700 < first - time.time() <= 1800
    assert "ends in" in " ".join(one.command("status").stdout.split())
    put_off = one.command("extend", "36h")
    assert put_off.returncode == 0, put_off.stderr
    assert one.status()["expires_at"] == pytest.approx(first + 36 * 3600, abs=1)
    assert kinds(one) == []
    # It stands over a restart, and over the configuration.
    one.end(signal.SIGKILL)
    one.deploy()
    assert one.status()["expires_at"] == pytest.approx(first + 36 * 3600, abs=1)
    sooner = one.command("extend", "--until", at(7200))
    assert sooner.returncode == 0, sooner.stderr
    assert one.status()["expires_at"] == pytest.approx(time.time() + 7200, abs=60)
    assert one.end() == 0, one.log()


def test_an_end_that_is_set_while_it_runs_counts(one: Node) -> None:
    one.deploy()
    assert one.status()["expires_at"] is None
    refused = one.command("extend", "1h")
    assert refused.returncode == 1
    assert refused.stderr.startswith("onesync: This deployment has no end that could be put off")
    one.configure(deployment__until=at(2))
    assert "deployment.until" in one.command("reload").stdout
    assert one.process is not None
    assert one.process.wait(SOON) == 0, one.log()


def test_what_is_over_is_not_deployed(one: Node) -> None:
    one.configure(deployment__until=at(-60))
    assert one.refusal() == 78
    assert "nothing was deployed" in one.log()
    assert os.listdir(one.store) == []


def test_what_ended_while_the_node_was_off_is_undeployed_at_the_start(one: Node) -> None:
    one.configure(deployment__until=at(4))
    one.deploy()
    one.end(signal.SIGKILL)
    (one.work / "file").write_bytes(b"1")
    over = one.status()["expires_at"]
    one.wait_until(lambda: time.time() > over)
    one.start()
    assert one.process is not None
    assert one.process.wait(SOON) == 0, one.log()
    assert (one.store / "file").read_bytes() == b"1"
    assert one.status()["lock"]["released"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "Say how much longer"),
        (("1h", "--until", "2030-01-01T00:00Z"), "Say how much longer"),
        (("--until", "tomorrow"), "'tomorrow' is no time with its zone"),
        (("--until", "2030-01-01T00:00"), "is no time with its zone"),
        (("never",), "'never': expected a duration"),
    ],
)
def test_a_wrong_wish_is_refused(one: Node, words: tuple[str, ...], sentence: str) -> None:
    refused = one.command("extend", *words)
    assert refused.returncode == 78
    assert sentence in refused.stderr


@pytest.mark.parametrize(
    "text",
    ['until = 2030-01-01T00:00:00Z\nduration = "1d"', "until = 2030-01-01T00:00:00", 'warn = "x"'],
)
def test_a_wrong_end_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigurationError, match="deployment"):
        settings(tmp_path, f"[deployment]\n{text}")


# -- what must not go wrong beside it --------------------------------------------------------------


def cpu(node: Node) -> float:
    """Seconds of processor time of the parent so far."""
    assert node.process is not None
    fields = Path(f"/proc/{node.process.pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_pause_costs_no_processor_while_something_is_to_be_verified(one: Node) -> None:
    one.deploy()
    before = one.status()["last_checkpoint"]
    (one.work / "file").write_bytes(b"1")
    one.wait_until(lambda: one.status()["last_checkpoint"] != before)
    assert one.command("pause", "--for", "1h").returncode == 0
    one.wait_for_phase("paused")
    time.sleep(6.0)  # what was pushed is due to be read back
    began = cpu(one)
    time.sleep(3.0)
    used = cpu(one) - began
    assert one.command("resume").returncode == 0
    assert used < 0.3, f"{used:.2f} s of processor time in 3 s of a pause"


@pytest.mark.parametrize("is_paused", [False, True], ids=["control", "paused"])
def test_an_owner_that_lost_the_folder_in_a_pause_leaves_at_once(
    nodes: list[Node], *, is_paused: bool
) -> None:
    one, two = nodes
    for node in nodes:
        node.configure(
            mount__io_timeout_seconds=5,
            lock__beat_seconds=0.3,
        )
    one.deploy()
    if is_paused:
        assert one.command("pause", "--for", "1h").returncode == 0
        one.wait_for_phase("paused")
    status = one.store / ".deployment_status_do_not_delete"
    for found in status.rglob("lock"):
        found.unlink()  # by hand: 'it frees the folder at once'
    two.deploy()
    assert one.process is not None
    one.wait_until(lambda: not one.running(), 15.0)
    assert one.process.wait(1) == 12


@pytest.mark.parametrize("word", ["duration", "until"])
def test_the_end_of_a_deployment_that_died_at_its_release_frees_the_folder(
    nodes: list[Node], word: str
) -> None:
    one, two = nodes
    one.configure(**{f"deployment__{word}": "4s" if word == "duration" else at(4)})
    one.start_dying("onesync.lock", "Lock", "release", 1)
    one.wait_for_phase("syncing")
    (one.work / "file").write_bytes(b"1")
    one.wait()  # it died before the lock was released
    one.start()  # as systemd does
    code = one.wait()
    two.configure(lock__wait_seconds=0)
    two.start()
    time.sleep(3)
    assert code == 0, one.log()[-800:]
    assert two.running(), two.log()[-800:]


def test_an_endless_extension_does_not_end_the_daemon(one: Node) -> None:
    one.configure(deployment__duration="1h")
    one.deploy()
    told = one.command("extend", "99999999d")
    time.sleep(1)
    assert one.running(), one.log()[-1500:]
    assert told.returncode == 0 or told.stderr.startswith("onesync:"), told.stderr


def test_an_endless_pause_is_shown(one: Node) -> None:
    one.deploy()
    one.command("pause", "--for", "99999999d")
    time.sleep(1)
    assert one.running(), one.log()[-1500:]
    told = one.command("status")
    assert told.returncode in (0, 3), told.stderr[-800:]


def test_reload_does_not_claim_an_end_that_does_not_count(one: Node) -> None:
    one.configure(deployment__until=at(7200))
    one.deploy()
    assert one.command("extend", "1h").returncode == 0
    one.configure(deployment__until=at(30 * 86400))
    told = one.command("reload")
    assert told.returncode == 0
    ends = one.status()["expires_at"] - time.time()
    assert "deployment.until" not in told.stdout or ends > 20 * 86400, (told.stdout, ends)


def test_what_is_told_to_come_later_comes(one: Node) -> None:
    """Asked during the final flush: it must not be answered with success."""
    one.configure(undeploy__flush_retry_seconds=30)
    one.deploy()
    one.configure(undeploy__flush_retry_seconds=30, deployment__duration="30d")
    one.store.rename(one.store.with_name("away"))
    (one.work / "file").write_bytes(b"1")
    assert one.process is not None
    one.process.send_signal(signal.SIGTERM)
    one.wait_for_phase("flushing")
    told = one.command("reload")
    one.store.with_name("away").rename(one.store)
    one.wait()
    done = "the configuration was reloaded" in one.log()
    assert done or told.returncode != 0, (told.stdout, told.stderr)


def test_an_end_while_the_mount_is_gone_is_not_lost(one: Node) -> None:
    """Nobody is there when a deployment ends by itself: it goes on trying, or is started again
    (systemd does not start again what left with 10)."""
    one.configure(deployment__duration="4s", undeploy__flush_retry_seconds=3)
    one.deploy()
    (one.work / "file").write_bytes(b"1")
    one.wait_until(lambda: (one.store / "file").exists())
    one.store.rename(one.store.with_name("away"))
    (one.work / "unsent").write_bytes(b"1")
    time.sleep(10)  # the provider restarts: longer than flush_retry_seconds, which are 8 minutes
    one.store.with_name("away").rename(one.store)
    if not one.running():
        assert one.process is not None
        code = one.process.wait(1)
        assert code not in (10, 11, 12, 13, 78), f"it left with {code} and nobody starts it again"
    one.wait_until(lambda: (one.store / "unsent").exists())


def test_who_resumes_before_the_pause_began_is_not_paused(one: Node) -> None:
    """A pause that the busy engine was asked for ('it follows as soon as ...') and resumed."""
    one.configure(batch__min_interval_seconds=0.1)
    one.deploy()
    assert one.process is not None
    one.store.rename(one.store.with_name("away"))
    (one.work / "file").write_bytes(b"1")
    one.wait_for_phase("backing_off")
    time.sleep(3)  # the tries are some seconds apart by now
    told: list[object] = []
    thread = threading.Thread(target=lambda: told.append(one.command("pause", "--for", "1h")))
    thread.start()
    time.sleep(1.0)
    resumed = one.command("resume")
    one.store.with_name("away").rename(one.store)
    thread.join()
    one.wait_until(lambda: (one.store / "file").exists())
    assert one.status()["paused_until"] is None, (told, resumed)


def test_a_flush_that_fails_in_a_pause_does_not_keep_it_busy(one: Node) -> None:
    one.deploy()
    assert one.command("pause", "--for", "1h").returncode == 0
    one.wait_for_phase("paused")
    one.store.rename(one.store.with_name("away"))
    (one.work / "file").write_bytes(b"1")
    assert one.flush() != 0
    one.store.with_name("away").rename(one.store)
    one.wait_until(lambda: one.status()["mount"]["up"], 20)
    kinds = [problem["kind"] for problem in one.status()["problems"]]
    assert kinds == ["paused"], one.status()["problems"]


@pytest.mark.parametrize("kind", ["paused", "expiring"])
def test_what_is_over_is_not_told_after_the_end(one: Node, kind: str) -> None:
    """The last status is what 'onesync status' and the page of a fleet go on showing."""
    if kind == "expiring":
        one.configure(deployment__duration="3s")
    one.deploy()
    if kind == "paused":
        assert one.command("pause").returncode == 0
        one.wait_for_phase("paused")
        assert one.end() == 0, one.log()
    else:
        assert one.wait() == 0, one.log()
    last = one.status()
    assert last["phase"] == "stopped"
    assert [problem["text"] for problem in last["problems"]] == []
    assert last["paused_until"] is None
    assert one.command("resume").returncode == 0


class Counting(Life):
    reasons: list[str]

    def rescanned(self, reason: str) -> None:
        self.reasons.append(reason)


def test_the_interval_of_rescans_changes_at_once(tmp_path: Path) -> None:
    """Somebody lets a node rescan each minute instead of each week."""
    store = tmp_path / "store"
    store.mkdir()

    class Weekly(Place):
        def settings(self) -> Settings:
            found = super().settings()
            batch = replace(found.batch, rescan_seconds=604_800.0)
            return replace(found, batch=batch)

    place = Weekly(tmp_path / "one", store)
    began: list[float] = []

    def change(life: Life) -> None:
        old = place.settings()
        batch = replace(old.batch, rescan_seconds=60.0)
        found = reloaded(old, replace(old, batch=batch))
        assert found.applied == ("batch.rescan_seconds",)
        life.engine.ask(lambda: life.engine.reconfigure(found.settings))
        began.append(life.clock.now)

    life = Counting(place, [lambda _: None, change, *[lambda _: None] * 60])
    life.reasons = []
    life.live()
    waited = life.clock.now - began[0]
    assert waited > 3000
    assert "interval" in life.reasons, f"no rescan for {waited:.0f} s: {life.reasons}"
