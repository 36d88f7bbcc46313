"""The order of a batch."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pathspec import PathSpec

from onesync.core.model import parent_of
from onesync.core.ordering import (
    DATA,
    SCIPION_ORDER,
    SCIPION_SCRATCH,
    SCIPION_UNNAMED,
    PublishOrder,
    ranks,
    spread,
    waiting_one_way,
)

PATHS = st.lists(st.sampled_from([b"a/1", b"a/2", b"a/3", b"b/1", b"b/2", b"c", b"d/e/1"]))


@given(PATHS)
def test_spread_keeps_everything_and_takes_turns(paths: list[bytes]) -> None:
    ordered = spread(paths, lambda path: path)
    assert sorted(ordered) == sorted(paths)
    for number in range(len({parent_of(path) for path in paths})):
        assert parent_of(ordered[number]) not in {parent_of(p) for p in ordered[:number]}
    for parent in {parent_of(path) for path in paths}:
        kept = [path for path in ordered if parent_of(path) == parent]
        assert kept == [path for path in paths if parent_of(path) == parent]


PIECES = ["*", "**", "?", "/", "!", "#", " ", "[ab]", "[!a]", "\\\\", "a", "b", "DONE", "tmp"]
PIECES += ["Runs", ".sqlite", "steps.sqlite", "run.db", "project", "\n", "\u00e4", "."]
PATTERNS = st.lists(st.lists(st.sampled_from(PIECES), max_size=6).map("".join), max_size=4)
NAMES = st.lists(
    st.sampled_from([b"a", b"b", b"DONE", b"tmp", b"Runs", b".sqlite", b"\xff", b"\n", b" ", b"."]),
    min_size=1,
    max_size=3,
).map(b"".join)
PLACES = st.lists(NAMES.filter(lambda name: name not in (b".", b"..")), min_size=1, max_size=4)


@given(PATTERNS, PATTERNS, PATTERNS, PLACES.map(b"/".join))
@example([*SCIPION_ORDER], [*SCIPION_SCRATCH], [], b"Runs/000012_X/tmp/a/DONE/steps.sqlite")
@example([*SCIPION_ORDER], [], [*SCIPION_UNNAMED], b"Logs/project.log")
@example([], ["*", "!a", "a/b"], [], b"a/b")
def test_a_path_is_in_the_group_that_its_patterns_say(
    order: list[str], scratch: list[str], unnamed: list[str], path: bytes
) -> None:
    try:
        judged = [PathSpec.from_lines("gitignore", [line]) for line in order]
        worked_on = PathSpec.from_lines("gitignore", scratch)
        nobodys = PathSpec.from_lines("gitignore", unnamed)
    except ValueError:
        return
    text = path.decode("utf-8", "surrogateescape")
    groups = [number for number, spec in enumerate(judged, 1) if spec.match_file(text)]
    found = PublishOrder(order, scratch, unnamed)
    assert found.group_of(path, is_database=False) == max(groups, default=DATA)
    assert found.is_scratch(path) == worked_on.match_file(text)
    assert found.is_unnamed(path) == nobodys.match_file(text)
    if found.is_promised(path):
        assert not any((groups, found.is_scratch(path), found.is_unnamed(path)))


def test_no_path_is_spelled_anew_for_each_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked with every new name, by who must not fall behind the kernel."""

    def matched(*_: object) -> bool:
        raise AssertionError("that takes ten times as long")

    found = PublishOrder(SCIPION_ORDER, SCIPION_SCRATCH)
    monkeypatch.setattr(PathSpec, "match_file", matched)
    assert found.group_of(b"Runs/000012_X/extra/mic.mrc", is_database=False) == DATA
    assert found.is_scratch(b"Runs/000012_X/tmp/mic.mrc")


def test_what_nobody_names_in_scipions_projects() -> None:
    order = PublishOrder(SCIPION_ORDER, SCIPION_SCRATCH, SCIPION_UNNAMED)
    assert order.is_unnamed(b"Logs/project.log.1")
    assert not any(map(order.is_unnamed, (b"Logs", b"Runs/000012_X/Logs/x", b"project.sqlite")))


def test_how_many_have_to_come_before() -> None:
    assert ranks({}) == {}
    assert ranks({"a": "b", "b": "c"}) == {"a": 2, "b": 1}
    assert ranks({"b": "c", "a": "b", "d": "b"}) == {"a": 2, "b": 1, "d": 2}
    circle = {"a": "b", "b": "a"}
    assert ranks(circle) == {"a": None, "b": None}
    assert ranks({"before": "a", **circle, "other": "none"}) == {
        **dict.fromkeys(("before", "a", "b")),
        "other": 1,
    }


@pytest.mark.parametrize(
    ("waits_for", "found"),
    [
        ({}, set()),
        ({"a": set()}, set()),
        ({"a": {"b"}, "b": set()}, {"a"}),
        ({"a": {"b"}, "b": {"a"}}, set()),
        ({"a": {"b"}, "b": {"c"}, "c": {"b"}}, {"a"}),
        ({"a": {"b", "c"}, "b": {"a"}, "c": set()}, {"a", "b"}),
        ({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"d"}}, set()),
    ],
)
def test_those_that_wait_for_each_other_do_not_wait_one_way(
    waits_for: dict[str, set[str]], found: set[str]
) -> None:
    assert waiting_one_way(waits_for) == found
