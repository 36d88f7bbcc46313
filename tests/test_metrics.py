"""Histograms, what counts as a failed call, and the server where descriptors have run out."""

from __future__ import annotations

import errno
import socket
import subprocess
import sys

import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from onesync.core.dirty import DirtySet
from onesync.errors import LocalError, MountHung
from onesync.marks import Marks
from onesync.metrics import Durations, Metrics
from tests.campaign.virtual import VirtualClock

SERVER = """
import os, resource, sys, time
from onesync import exposition, metrics

asked = 0
real = exposition._Server.get_request
def counted(self):
    global asked
    asked += 1
    return real(self)
exposition._Server.get_request = counted

served = exposition.Exposition(metrics.Metrics().registry, "127.0.0.1:0")
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
lowest = os.open("/dev/null", os.O_RDONLY)
os.close(lowest)
print(served.port, flush=True)
for line in sys.stdin:
    if line.strip() == "none":
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, most))
    elif line.strip() == "some":
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 20, most))
    print(asked, flush=True)
"""


def test_a_scrape_waits_for_a_descriptor_and_the_server_does_not_spin() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def tell(what: str) -> int:
            stdin.write(f"{what}\n")
            stdin.flush()
            return int(stdout.readline())

        port = int(stdout.readline())
        assert tell("none") == 0
        with socket.create_connection(("127.0.0.1", port)) as scrape:
            scrape.settimeout(2.2)
            scrape.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            with pytest.raises(TimeoutError):
                scrape.recv(1)
            # Each time it finds none it waits: a loop that spins asks many thousand times.
            assert 2 <= tell("look") <= 6
            tell("some")
            scrape.settimeout(20)
            answer = b"".join(iter(lambda: scrape.recv(1 << 16), b""))
        assert answer.startswith(b"HTTP/1.0 200")
        assert b"onesync_held_deletions 0.0" in answer
        stdin.close()


SEEN = (0.0, 0.5, 1.0, 1.0000001, 3, 10, 99, 1e9)


def test_durations_are_exposed_as_the_librarys_own_histogram_is() -> None:
    theirs, ours, at_once = CollectorRegistry(), CollectorRegistry(), CollectorRegistry()
    histogram = Histogram("a_seconds", "A", ["op"], registry=theirs, buckets=(1, 3, 10))
    durations = Durations(ours, "a_seconds", "A", (1, 3, 10), "op")
    for number, seconds in enumerate(SEEN):
        histogram.labels(f"op{number % 2}").observe(seconds)
        durations.observe(seconds, f"op{number % 2}")
    assert _values(ours) == _values(theirs)
    theirs = CollectorRegistry()
    histogram = Histogram("a_seconds", "A", registry=theirs, buckets=(1, 3, 10))
    durations = Durations(at_once, "a_seconds", "A", (1, 3, 10))
    assert _values(at_once) == _values(theirs), "before anything was seen"
    for seconds in SEEN:
        histogram.observe(seconds)
    durations.observe_all(SEEN)
    assert _values(at_once) == _values(theirs)


def _values(registry: CollectorRegistry) -> dict[tuple[str, str, str], float]:
    return {
        (sample.name, sample.labels.get("op", ""), str(float(sample.labels.get("le", "nan")))):
            sample.value
        for family in registry.collect()
        for sample in family.samples
    }  # fmt: skip


def test_an_answer_is_no_failed_call() -> None:
    metrics = Metrics()
    for error in (
        None,
        FileNotFoundError(errno.ENOENT, "no"),
        FileExistsError(errno.EEXIST, "yes"),
        LocalError(errno.ENOSPC, "full"),
    ):
        metrics.called("look", 0.1, error)
    assert "onesync_remote_errors_total{" not in generate_latest(metrics.registry).decode()
    metrics.called("look", 0.1, OSError(errno.EIO, "bad"))
    metrics.called("look", 0.1, MountHung("hangs"))
    metrics.called("identify", 0.1, FileNotFoundError(errno.ENOENT, "no folder"))
    text = generate_latest(metrics.registry).decode()
    for op, kind in (("look", "EIO"), ("look", "MountHung"), ("identify", "ENOENT")):
        assert f'onesync_remote_errors_total{{kind="{kind}",op="{op}"}} 1.0' in text
    assert 'onesync_remote_operation_duration_seconds_count{op="look"} 6.0' in text


def test_what_a_batch_left_to_the_next_one_still_waits() -> None:
    clock = VirtualClock(0, lambda *_: None)
    marks = Marks(DirtySet(0, 30), clock, lambda _: False)
    marks.changed(b"a")
    clock.now += 2
    marks.changed(b"b")
    marks.changed(b"c")
    clock.now += 3
    marks.take(everything=True)
    assert sorted(marks.waited({b"b"})) == [3, 5]
    marks.done()
    assert marks.waited(set()) == []
