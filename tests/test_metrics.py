"""The metrics server where descriptors have run out."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

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
