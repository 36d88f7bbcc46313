"""The page for a browser: what a person is shown of the status, and how the last hours went.

Pure, and made of elements rather than of text: so everything is escaped, whatever it holds.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from xml.etree.ElementTree import Element, tostring

from onesync.core.model import printable
from onesync.core.view import Line, Look, View, age_text, size_text, view_of

MINUTE = 60.0
"""Seconds; the plots have a column for each minute."""
HOURS = 6
"""The plots show no more than so many hours."""
_SPANS = (1, 3, HOURS)
_REFRESH_SECONDS = 10


class Minute(NamedTuple):
    """What was seen in one minute.

    Attributes:
        number: of minutes since the clock's zero.
        size: bytes that travelled.
        lag: how many seconds the oldest change had waited at most.
    """

    number: int
    size: int
    lag: float


@dataclass(frozen=True, slots=True)
class Done:
    """A batch that was committed.

    Attributes:
        at: when.
        checkpoint: its name.
        files: files that it published.
        size: bytes of them together.
        seconds: how long it took.
    """

    at: float
    checkpoint: str
    files: int
    size: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Past:
    """What is remembered of the last hours. All times are of one clock that is never set.

    Attributes:
        at: now.
        since: from when on anything is known.
        minutes: those in which something was seen, rising.
        batches: the last ones, rising.
        earlier: a look of some seconds ago, for the rate.
    """

    at: float
    since: float
    minutes: Sequence[Minute] = ()
    batches: Sequence[Done] = ()
    earlier: Look | None = None


_STYLE = """
:root { color-scheme: light dark;
  --ground: #f5f6f7; --card: #ffffff; --ink: #1d2125; --soft: #5c6670; --rule: #e4e7ea; }
.good { --deep: #1a7f4b; --light: #5cc492; } .busy { --deep: #0b6e99; --light: #62b7dd; }
.waiting { --deep: #946200; --light: #d9a63c; } .bad { --deep: #b42318; --light: #f28b82; }
.quiet { --deep: #57606a; --light: #a3adb7; }
[class] { --tone: var(--deep); }
@media (prefers-color-scheme: dark) {
  :root { --ground: #121518; --card: #1b1f23; --ink: #e3e6e9; --soft: #97a1ab; --rule: #2c3238; }
  [class] { --tone: var(--light); } }
* { box-sizing: border-box; margin: 0; }
body { background: var(--ground); color: var(--ink); font: 1rem/1.45 system-ui, sans-serif;
  max-width: 46rem; margin: 0 auto; padding: 0.75rem; overflow-wrap: anywhere; }
header, section { border-radius: 0.6rem; padding: 0.9rem 1rem; margin-bottom: 0.75rem; }
header { background: var(--deep); color: #ffffff; }
h1 { font-size: 2.4rem; line-height: 1.2; }
section { background: var(--card); border: 1px solid var(--rule); overflow-x: auto; }
h2, figcaption, figure div, dt, th, footer { color: var(--soft); font-size: 0.85rem;
  font-weight: 400; }
th { font-size: inherit; }
h2 { margin-bottom: 0.3rem; }
dl { display: grid; grid-template-columns: 5.4rem 1fr; gap: 0.25rem 0.5rem; }
dt { padding-top: 0.12rem; }
dd, li b { color: var(--tone, inherit); }
ul { list-style: none; padding: 0; }
li + li { margin-top: 0.6rem; padding-top: 0.6rem; border-top: 1px solid var(--rule); }
li b, li span { display: block; }
figure + figure { margin-top: 0.9rem; }
svg { display: block; width: 100%; height: 4.5rem; margin: 0.3rem 0; }
path { fill: var(--tone); fill-opacity: 0.25; stroke: var(--tone); stroke-width: 1.25;
  vector-effect: non-scaling-stroke; }
figure div { display: flex; justify-content: space-between; }
table { width: 100%; border-collapse: collapse; white-space: nowrap;
  font-size: clamp(0.7rem, 3vw, 0.85rem); font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 0.2rem 0 0.2rem 0.4rem; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td { border-top: 1px solid var(--rule); }
footer { text-align: center; }
footer a { color: inherit; }
"""
_DIGEST = b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
POLICY = (
    f"default-src 'none'; style-src 'sha256-{_DIGEST}'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'"
)
"""The Content-Security-Policy of the page: its own style, and nothing else from anywhere."""


def page(folder: str, look: Look, past: Past) -> bytes:
    """Return the HTML document that shows a look at ``folder``, and its past."""
    view = view_of(look, past.earlier)
    body = [_header(folder, view), _section(_lines(view.lines))]
    if view.problems:
        body.append(_section(_element("h2", "Problems"), _problems(view.problems)))
    body.append(_section(*_plots(past)))
    if past.batches:
        body.append(_section(_element("h2", "Recent batches"), _batches(past)))
    body.append(_footer())
    document = _element(
        "html", "", _head(f"{view.word}: {printable(folder)}"), _element("body", "", *body)
    )
    document.set("lang", "en")
    return b"<!doctype html>\n" + tostring(document, encoding="unicode", method="html").encode()


def _element(tag: str, text: str = "", *children: Element, **attributes: str) -> Element:
    """Return an element; the attribute ``class_`` is its class."""
    element = Element(tag, {name.rstrip("_"): value for name, value in attributes.items()})
    element.text = text
    element.extend(children)
    return element


def _section(*children: Element) -> Element:
    return _element("section", "", *children)


def _head(title: str) -> Element:
    refresh = Element("meta", {"http-equiv": "refresh", "content": str(_REFRESH_SECONDS)})
    return _element(
        "head",
        "",
        _element("meta", charset="utf-8"),
        _element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        refresh,
        _element("title", title),
        _element("style", _STYLE),
    )


def _header(folder: str, view: View) -> Element:
    return _element(
        "header",
        "",
        _element("p", printable(folder)),
        _element("h1", view.word),
        _element("p", view.meaning),
        class_=view.tone.value,
    )


def _lines(lines: Iterable[Line]) -> Element:
    found = _element("dl")
    for line in lines:
        found.append(_element("dt", line.label))
        found.append(_toned("dd", line.text, line))
    return found


def _problems(problems: Iterable[Line]) -> Element:
    found = _element("ul")
    for line in problems:
        named, told = _toned("b", line.label, line), _element("span", line.text)
        found.append(_element("li", "", named, told))
    return found


def _toned(tag: str, text: str, line: Line) -> Element:
    return _element(tag, text, class_=line.tone.value) if line.tone else _element(tag, text)


def _plots(past: Past) -> Iterable[Element]:
    now, since = int(past.at // MINUTE), int(past.since // MINUTE)
    hours = next((hours for hours in _SPANS if now - since < 60 * hours), HOURS)
    first = now - 60 * hours + 1
    known = max(0, since - first)
    shown = [minute for minute in past.minutes if minute.number >= first]
    sizes, lags = [0.0] * (60 * hours), [0.0] * (60 * hours)
    for minute in shown:
        sizes[minute.number - first] = minute.size / MINUTE
        lags[minute.number - first] = minute.lag
    for place in range(len(lags) - 1, known, -1):
        # What was older than a minute then had waited before, though nobody looked.
        lags[place - 1] = max(lags[place - 1], lags[place] - MINUTE)
    start = f"{hours} h ago"
    yield _plot(f"Throughput, at most {size_text(max(sizes))}/s", sizes, known, "busy", start)
    yield _plot(f"Lag of changes, at most {age_text(max(lags))}", lags, known, "waiting", start)


def _plot(title: str, values: Sequence[float], known: int, tone: str, start: str) -> Element:
    steps = _element("path", d=_steps(values, known), class_=tone)
    drawn = _element(
        "svg",
        "",
        steps,
        viewBox=f"0 0 {len(values)} 100",
        preserveAspectRatio="none",
        role="img",
    )
    drawn.set("aria-label", title)
    axis = _element("div", "", _element("span", start), _element("span", "now"))
    return _element("figure", "", _element("figcaption", title), drawn, axis)


def _steps(values: Sequence[float], known: int) -> str:
    """Return the outline of a column for each value from ``known`` on, all on one base."""
    top = max(values) or 1.0
    steps = [f"M{known} 99"]
    for place in range(known, len(values)):
        steps.append(f"V{99 - 97 * values[place] / top:.4g}H{place + 1}")
    return "".join([*steps, "V99Z"])


def _batches(past: Past) -> Element:
    heads = ("checkpoint", "files", "size", "took", "ago")
    table = _element("table", "", _element("tr", "", *(_element("th", head) for head in heads)))
    for batch in reversed(past.batches):
        cells = (
            printable(batch.checkpoint.removesuffix(".jsonl.gz")),
            f"{batch.files:,}",
            size_text(batch.size),
            f"{batch.seconds:.2f} s" if batch.seconds < MINUTE else age_text(batch.seconds),
            age_text(past.at - batch.at),
        )
        table.append(_element("tr", "", *(_element("td", cell) for cell in cells)))
    return table


def _footer() -> Element:
    found = _element("footer", f"Read anew every {_REFRESH_SECONDS} seconds. For programs: ")
    found.append(_element("a", "metrics", href="/metrics"))
    return found
