"""The page at the metrics' address: what it shows and escapes, and what Chromium makes of it."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import struct
import subprocess
import time
import zlib
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onesync.core.model import printable, show
from onesync.core.page import HOURS, MINUTE, POLICY, Done, Minute, Past, page
from onesync.core.view import Look, Tone, view_of
from onesync.exposition import Exposition
from onesync.metrics import Metrics
from onesync.recent import Recent
from tests.campaign.virtual import VirtualClock
from tests.node import SOON, Node
from tests.test_prometheus import free_port
from tests.test_status import LIVE, NOW, PENDING, problem, seen, until

TAGS = {
    *("html", "head", "meta", "title", "style", "body", "header", "section", "footer"),
    *("h1", "h2", "p", "dl", "dt", "dd", "ul", "li", "b", "span", "a", "div"),
    *("figure", "figcaption", "svg", "path", "table", "tbody", "tr", "th", "td"),
}
HOSTILE = b"<script>alert(1)</script>\"'><img src=x onerror=alert(1)>&amp;\xff\x1b\xe2\x80\xae"
AT = 600_000.0


@dataclass
class Shown(HTMLParser):
    """A document as a browser would take it apart."""

    document: str
    tags: list[str] = field(default_factory=list)
    attributes: list[tuple[str, str | None]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.document)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def values(self, name: str) -> list[str]:
        """Return the values of an attribute, in their order."""
        return [value or "" for found, value in self.attributes if found == name]


def shown(look: Look, past: Past | None = None, folder: str = "project") -> Shown:
    return Shown(page(folder, look, past or Past(AT, AT)).decode())


# -- the document ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys",
    [{}, PENDING, {"phase": "suspended"}, {"phase": "fenced"}, {"phase": "stopped"}],
    ids=[tone.value for tone in Tone],
)
def test_the_page_shows_the_view_of_the_status(keys: dict[str, Any]) -> None:
    look = seen(**keys, problems=[problem("odd", "Rename it.", path="a/b")])
    view, found = view_of(look), shown(look)
    assert found.values("class")[0] == view.tone.value
    told = [f"{view.word}: project", view.word, view.meaning]
    told += [part for line in view.lines + view.problems for part in (line.label, line.text)]
    assert [text for text in told if text not in found.texts] == []


def test_the_rate_is_that_since_the_earlier_look() -> None:
    look = seen(**PENDING, moved_bytes=30_000_000)
    past = Past(AT, AT, earlier=Look(LIVE, NOW - 10, True))
    assert "3.0 MB/s" in shown(look, past).texts
    assert "rate" not in shown(look).texts


def test_what_others_named_is_text_whatever_it_holds() -> None:
    name = show(HOSTILE)
    look = seen(
        **PENDING,
        phase=name,
        pending=[name],
        problems=[problem(name, f"It is {name}.", name), problem("odd", "So.", name)],
        last_checkpoint={"name": name, "at": NOW},
        mount={"path": name, "up": True},
    )
    batch = Done(AT, name, 1, 1, 1)
    found = shown(look, Past(AT, AT, batches=[batch]), folder=os.fsdecode(HOSTILE))
    assert set(found.tags) <= TAGS
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    assert sum("<script>alert(1)</script>" in text for text in found.texts) == 11
    assert all(text.strip("\n").isprintable() for text in found.texts if ":root" not in text)


@given(st.text())
def test_any_text_comes_through_as_it_is_escaped(text: str) -> None:
    found = shown(seen(problems=[problem("odd", text)]), folder=text)
    assert found.tags == shown(seen(problems=[problem("odd")])).tags
    assert f"attention: {printable(text)}" in found.texts


def test_nothing_is_loaded_from_anywhere_and_the_style_is_the_one_that_is_allowed() -> None:
    found = shown(seen())
    assert found.values("src") == []
    assert found.values("href") == ["/metrics"]
    style = next(text for text in found.texts if ":root" in text)
    assert "url(" not in style
    assert "@import" not in style
    digest = b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in POLICY
    assert "script" not in POLICY, "the default is that there is none"


# -- the plots -------------------------------------------------------------------------------------

NUMBER = int(AT // MINUTE)


def columns(found: Shown, plot: int) -> dict[int, float]:
    """Return the columns of a plot: how high each is, as a share of the highest."""
    steps = re.findall(r"V([\d.]+)H(\d+)", found.values("d")[plot])
    return {int(end) - 1: round((99 - float(height)) / 97, 2) for height, end in steps}


def test_each_minute_has_a_column_and_where_nothing_happened_it_is_flat() -> None:
    minutes = [Minute(NUMBER - 10, 120_000_000, 8), Minute(NUMBER, 60_000_000, 4)]
    found = shown(seen(), Past(AT, AT - 1800, minutes))
    assert "Throughput, at most 2.0 MB/s" in found.texts
    assert "Lag of changes, at most 8 s" in found.texts
    for plot in (0, 1):
        drawn = columns(found, plot)
        assert list(drawn) == list(range(29, 60)), "nothing is known of the time before"
        assert {place: high for place, high in drawn.items() if high} == {49: 1.0, 59: 0.5}


def test_a_change_that_is_old_now_had_waited_before_though_nobody_looked() -> None:
    drawn = columns(shown(seen(), Past(AT, AT - 1800, [Minute(NUMBER, 0, 240)])), 1)
    assert [drawn[place] for place in range(54, 60)] == [0, 0, 0.25, 0.5, 0.75, 1]


@pytest.mark.parametrize(("hours", "start"), [(0, 1), (0.9, 1), (1.5, 3), (5, 6), (100, HOURS)])
def test_the_plots_begin_where_something_is_known_and_not_before_six_hours(
    hours: float, start: int
) -> None:
    since = AT - 3600 * hours
    old = Minute(int(since // MINUTE), 1, 1)
    found = shown(seen(), Past(AT, since, [old]))
    assert found.texts.count(f"{start} h ago") == 2
    assert min(columns(found, 0)) == max(0, 60 * start - 1 - int(AT // 60) + old.number)


def test_batches_are_listed_the_newest_first() -> None:
    batches = [
        Done(AT - 4000, "E000003-000006.jsonl.gz", 1200, 5_000_000, 61),
        Done(AT - 5, "E000003-000007.jsonl.gz", 0, 0, 0.25),
    ]
    texts = shown(seen(), Past(AT, AT, batches=batches)).texts
    row = texts.index("E000003-000007")
    assert texts[row : row + 5] == ["E000003-000007", "0", "0 B", "0.25 s", "5 s"]
    assert texts[row + 5 : row + 10] == ["E000003-000006", "1,200", "5.0 MB", "1 min 1 s",
                                         "1 h 6 min"]  # fmt: skip
    assert "Recent batches" not in shown(seen()).texts


# -- what is remembered ----------------------------------------------------------------------------


class Watched:
    """A ``Recent`` with a clock of its own."""

    def __init__(self) -> None:
        self.clock = VirtualClock(int(AT), lambda *_: None)
        self.recent = Recent(self.clock)
        self.moved = 0

    def look(self, seconds: float = 0, moved: int = 0, age: float | None = None) -> Look:
        """Let time pass, bytes travel, and look."""
        self.clock.now += seconds
        self.moved += moved
        now = self.clock.boottime()
        oldest = None if age is None else now - age
        document = LIVE | {"moved_bytes": self.moved, "oldest_unsynced_at": oldest}
        look = Look(document, now, True)
        self.recent.looked(look)
        return look


def test_a_minute_adds_up_what_was_seen_in_it_and_one_without_anything_is_not_kept() -> None:
    watched = Watched()
    watched.look(0, 5, 3)
    watched.look(10, 7)
    watched.look(60)
    watched.recent.synced(1, 2.5)
    look = watched.look(120, 1)
    assert watched.recent.past(look).minutes == (
        Minute(NUMBER, 12, 3),
        Minute(NUMBER + 1, 0, 2.5),
        Minute(NUMBER + 3, 1, 0),
    )


def test_of_two_looks_at_once_the_younger_may_be_noted_first() -> None:
    watched = Watched()
    watched.look(0, 10)
    watched.look(0, -4)
    look = watched.look(0, 5)
    assert watched.recent.past(look).minutes == (Minute(NUMBER, 11, 0),)


def test_no_more_is_kept_than_six_hours_and_twenty_batches() -> None:
    watched = Watched()
    look = watched.look()
    for number in range(1000):
        watched.recent.committed(f"E000001-{number:06d}.jsonl.gz")
        watched.recent.pushed(number, 10 * number)
        watched.recent.synced(1, 2)
        look = watched.look(60, 1_000_000_000, 1)
    past = watched.recent.past(look)
    assert len(past.minutes) == 60 * HOURS
    assert [batch.files for batch in past.batches] == list(range(980, 1000))
    assert past.batches[-1] == Done(past.at - 60, "E000001-000999.jsonl.gz", 999, 9990, 1)
    assert len(page("project", look, past)) < 20_000


def test_the_earlier_look_is_ten_seconds_old_at_least_and_a_minute_at_most() -> None:
    watched = Watched()
    ages = []
    for _ in range(60):
        look = watched.look(1)
        earlier = watched.recent.past(look).earlier
        assert earlier is not None
        ages.append(look.at - earlier.at)
    assert ages[:10] == list(range(10))
    assert (min(ages[10:]), max(ages[10:])) == (10, 19)
    assert watched.recent.past(watched.look(3600)).earlier is None
    assert watched.recent.past(watched.look(10)).earlier is not None


# -- the server ------------------------------------------------------------------------------------


@pytest.fixture
def served() -> Iterator[Exposition]:
    found = Exposition(Metrics().registry, "127.0.0.1:0", page=lambda: b"<!doctype html>\n\xc3\xa4")
    yield found
    found.stop()


def ask(port: int, path: str, method: str = "GET") -> tuple[http.client.HTTPResponse, bytes]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=SOON)) as connection:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer, answer.read()


def raw(port: int, method: str) -> bytes:
    """Return the very bytes of an answer: a client drops what must not follow a HEAD."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=SOON)) as connection:
        connection.connect()
        connection.sock.sendall(f"{method} / HTTP/1.0\r\n\r\n".encode())
        return b"".join(iter(lambda: connection.sock.recv(1 << 16), b""))


def test_the_page_comes_with_what_keeps_a_browser_from_doing_more(served: Exposition) -> None:
    answer, body = ask(served.port, "/")
    assert (answer.status, body) == (200, b"<!doctype html>\n\xc3\xa4")
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert answer.headers["Content-Length"] == str(len(body))
    assert answer.headers["Content-Security-Policy"] == POLICY
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-store"
    head, _, nothing = raw(served.port, "HEAD").partition(b"\r\n\r\n")
    assert nothing == b""
    assert b"Content-Length: 18" in head
    assert ask(served.port, "/?a=b")[1] == body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "get"])
def test_who_would_do_more_than_read_is_refused(served: Exposition, method: str) -> None:
    head, _, body = raw(served.port, method).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 405 ")
    assert b"Allow: GET, HEAD" in head
    assert body == b""


@pytest.mark.parametrize(
    "path", ["/index.html", "/metrics/", "//metrics/x", "/..", "/%3Cscript%3E"]
)
def test_there_is_nothing_else(served: Exposition, path: str) -> None:
    answer, body = ask(served.port, path)
    assert (answer.status, body) == (404, b"")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_the_metrics_are_where_they_were(served: Exposition) -> None:
    answer, body = ask(served.port, "/metrics")
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    assert b"onesync_build_info" in body
    assert ask(served.port, "/metrics", "POST")[0].status == 405


# -- a browser -------------------------------------------------------------------------------------


class Browser:
    """Debian's Chromium, without a window."""

    def __init__(self, home: Path) -> None:
        self._home = home

    def dom(self, url: str) -> str:
        """Return the document as it stands after all scripts that may run."""
        return self._run("--dump-dom", url).decode()

    def picture(self, url: str, width: int) -> bytes:
        """Return a PNG of the page."""
        place = self._home / f"{width}.png"
        self._run(f"--screenshot={place}", f"--window-size={width},844", url)
        return place.read_bytes()

    def _run(self, *words: str) -> bytes:
        command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
                   "--disable-dev-shm-usage", "--disable-background-networking",
                   f"--user-data-dir={self._home / 'profile'}", *words]  # fmt: skip
        done = subprocess.run(command, capture_output=True, timeout=2 * SOON, check=False)
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return done.stdout


@pytest.fixture
def browser(tmp_path: Path) -> Browser:
    home = tmp_path / "browser"
    home.mkdir()
    return Browser(home)


def colours(png: bytes) -> set[bytes]:
    """Return the colours of a PNG with eight bits for each of red, green, blue (and alpha)."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    chunks, place = [], 8
    while place < len(png):
        size, kind = struct.unpack_from(">I4s", png, place)
        chunks.append((kind, png[place + 8 : place + 8 + size]))
        place += size + 12
    width, height, depth, kind_of_colour, *_, interlaced = struct.unpack(">IIBBBBB", chunks[0][1])
    assert (depth, interlaced) == (8, 0)
    step = {2: 3, 6: 4}[kind_of_colour]
    packed = zlib.decompress(b"".join(data for kind, data in chunks if kind == b"IDAT"))
    found: set[bytes] = set()
    above = bytes(width * step)
    for start in range(0, len(packed), width * step + 1):
        above = _row(packed[start], packed[start + 1 : start + 1 + width * step], above, step)
        found.update(above[pixel : pixel + 3] for pixel in range(0, len(above), step))
    assert len(packed) == height * (width * step + 1)
    return found


def _row(way: int, row: bytes, above: bytes, step: int) -> bytes:
    """Undo a row's filter (PNG specification, 9.2)."""
    found = bytearray(row)
    for place, byte in enumerate(row):
        left = found[place - step] if place >= step else 0
        corner = above[place - step] if place >= step else 0
        up = above[place]
        guess = left + up - corner
        nearest = min((left, up, corner), key=lambda value: abs(guess - value))
        found[place] = (byte + (0, left, up, (left + up) // 2, nearest)[way]) & 0xFF
    return bytes(found)


def colour_of(tone: Tone) -> bytes:
    """Return the colour that the page's style has for it."""
    style = page("", seen(), Past(AT, AT)).decode()
    found = re.search(rf"\.{tone.value} {{ --deep: #(\w{{6}});", style)
    assert found is not None
    return bytes.fromhex(found[1])


@pytest.fixture
def node(nodes: list[Node]) -> Node:
    """A node at whose address there is a page, and which pushes when it is asked to."""
    node = nodes[0]
    node.configure(
        metrics__listen=f"127.0.0.1:{free_port()}",
        batch__settle_seconds=3600,
        batch__max_delay_seconds=3600,
    )
    return node


def address(node: Node) -> str:
    found = re.search(r'listen = "(.*)"', node.config.read_text())
    assert found is not None
    return f"http://{found[1]}/"


def texts(browser: Browser, node: Node, word: str) -> list[str]:
    """Return what the page says, once its title, with the state, is as it should be."""
    found = Shown("")
    deadline = time.monotonic() + 2 * SOON
    while f"{word}: onesync" not in found.texts:
        assert time.monotonic() < deadline, found.texts
        found = Shown(browser.dom(address(node)))
    assert set(found.tags) <= TAGS
    return found.texts


def test_a_browser_shows_that_all_is_safe_and_what_was_pushed(node: Node, browser: Browser) -> None:
    node.deploy()
    assert node.flush() == 0, "what is written from now on is one batch"
    (node.home / "file").write_bytes(b"x" * 2_000_000)
    (node.home / "file").rename(node.work / "file")
    assert node.flush() == 0, node.log()
    found = texts(browser, node, "safe")
    assert "everything is in OneData" in found
    assert found[found.index("unsaved") + 1] == "nothing"
    checkpoint = node.status()["last_checkpoint"]["name"].removesuffix(".jsonl.gz")
    assert found[found.index(checkpoint) : found.index(checkpoint) + 3] == [
        checkpoint,
        "1",
        "2.0 MB",
    ]
    assert "Throughput, at most 0 B/s" not in found
    for width in (390, 1280):
        drawn = colours(browser.picture(address(node), width))
        assert colour_of(Tone.GOOD) in drawn, "its style was taken"
        assert len(drawn) > 20, "there is text on it"


def test_a_browser_takes_names_for_text_and_runs_none_of_them(node: Node, browser: Browser) -> None:
    node.deploy()
    # A name has no slash, but a path has: one is a directory and a file in it.
    script = b"<script>document.title='ran'</script>"
    picture = b"\"'><img src=x onerror=document.title='ran'>\xff"
    work = os.fsencode(node.work)
    os.makedirs(os.path.dirname(os.path.join(work, script)))
    assert node.flush() == 0, "what is written from now on waits"
    for name in (script, picture):
        with open(os.path.join(work, name), "wb") as file:
            file.write(b"precious")
    until(lambda: node.status()["pending_paths"] >= 2, node.log)
    unsaved = " ".join(texts(browser, node, "syncing"))
    assert show(script) in unsaved
    assert show(picture) in unsaved
    drawn = colours(browser.picture(address(node), 390))
    assert {colour_of(Tone.BUSY), colour_of(Tone.WAITING)} <= drawn

    for name in (script, picture):
        os.unlink(os.path.join(work, name))
        os.mkfifo(os.path.join(work, name))
    assert node.flush() == 3, "done but for the problems"
    troubles = texts(browser, node, "attention")
    assert troubles.count("special") == 2
    for name in (script, picture):
        assert f"{show(name)} is a socket, FIFO or device and is left out." in troubles
    assert colour_of(Tone.BAD) in colours(browser.picture(address(node), 390))
    assert node.end() == 0, node.log()


def test_were_something_not_escaped_the_browser_still_would_not_run_it(browser: Browser) -> None:
    evil = b"<title>as sent</title><script>document.title = 'ran'</script>"
    evil += b"<img src=x onerror=\"document.title = 'ran'\">"
    place = browser._home / "evil.html"
    place.write_bytes(evil)
    assert "<title>ran</title>" in browser.dom(f"file://{place}"), "it would run elsewhere"
    served = Exposition(Metrics().registry, "127.0.0.1:0", page=lambda: evil)
    try:
        assert "<title>as sent</title>" in browser.dom(f"http://127.0.0.1:{served.port}/")
    finally:
        served.stop()
