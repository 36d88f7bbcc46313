"""Which runs a database may name files of: never too few."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from onesync.mentions import by_run, holds_name, leading, linked, mentioned

RUN, OTHER = b"Runs/000028_ProtMany", b"Runs/000003_ProtCtf"
BOTH = {RUN, OTHER}
NAME = f"{RUN.decode()}/extra/item_1.mrc"


def made(path: Path, *statements: tuple[str, tuple[object, ...]], before: str = "") -> bytes:
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.executescript(before)
        for statement, values in statements:
            database.execute(statement, values)
    return os.fsencode(path)


def holding(path: Path, value: object, before: str = "") -> bytes:
    create = ("CREATE TABLE item (id INTEGER PRIMARY KEY, value)", ())
    insert = ("INSERT INTO item (value) VALUES (?)", (value,))
    return made(path, create, insert, before=before)


@pytest.mark.parametrize(
    "value",
    [
        NAME,
        NAME.encode(),
        f"1@{NAME}",
        f"../{RUN.decode().removeprefix('Runs/')}/extra",
        NAME.replace("/", "\\/"),
        b"\0\xff" + NAME.encode() + b"\0",
    ],
)
def test_a_value_that_names_a_file(tmp_path: Path, value: object) -> None:
    assert mentioned(holding(tmp_path / "db", value), by_run(BOTH)) == {RUN}


@pytest.mark.parametrize("value", ["", "Runs/000002_ProtImport/extra/1.mrc", 28, None, b"000028"])
def test_a_value_that_names_nothing_of_it(tmp_path: Path, value: object) -> None:
    assert mentioned(holding(tmp_path / "db", value), by_run(BOTH)) == set()


def test_a_name_that_the_end_of_a_page_splits(tmp_path: Path) -> None:
    """Wherever in a long value the name begins, it is found, or taken to be there."""
    split = 0
    for before in range(520):
        path = tmp_path / f"{before}"
        value = "." * before + NAME + "." * 1500
        place = holding(path, value, before="PRAGMA page_size = 512; PRAGMA synchronous = OFF")
        assert mentioned(place, by_run(BOTH)) == {RUN}, before
        split += os.path.basename(RUN) not in path.read_bytes()
        path.unlink()
    assert split >= len(os.path.basename(RUN)) - 1, "it was never split"


def test_long_values_that_mention_nothing(tmp_path: Path) -> None:
    assert (
        mentioned(holding(tmp_path / "db", "." * 5000, "PRAGMA page_size = 512"), by_run(BOTH))
        == set()
    )


@pytest.mark.parametrize("encoding", ["UTF-16le", "UTF-16be"])
def test_another_encoding_may_mention_all(tmp_path: Path, encoding: str) -> None:
    place = holding(tmp_path / "db", NAME, before=f"PRAGMA encoding = '{encoding}'")
    assert mentioned(place, by_run(BOTH)) == BOTH


def test_names_that_may_be_written_differently_are_mentioned_by_all(tmp_path: Path) -> None:
    odd = {"Runs/000004_Prot\u00e9".encode(), b"Runs/000005 with space", b"Runs/7", b""}
    assert mentioned(holding(tmp_path / "db", ""), by_run(odd | {RUN})) == odd


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\0", bytes(512)])
def test_what_is_no_whole_database_may_mention_all(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "db").write_bytes(content)
    place = os.fsencode(tmp_path / "db")
    assert mentioned(place, by_run(BOTH)) == BOTH
    assert holds_name(place, {b"item_1.mrc"})


ITEM = NAME.encode()
OTHERS = {RUN + b"/extra/item_10.mrc", RUN + b"/extra/item_2.mrc", RUN + b"/item_1.mrc", RUN}


@pytest.mark.parametrize(
    "value",
    [
        NAME,
        f"1@{NAME}",
        f"../{NAME.removeprefix('Runs/')}",
        NAME.removesuffix(".mrc"),
        NAME.replace("/", "\\/"),
        NAME.replace("/extra", "//extra"),
        NAME.replace("/extra", "/./extra"),
        f"{RUN.decode()}/extra/item_%d.mrc",
        f"{RUN.decode()}/ex\u00e9",
        f'["{RUN.decode()}/extra"]',
    ],
)
def test_a_value_that_may_be_a_file(tmp_path: Path, value: object) -> None:
    assert ITEM in mentioned(holding(tmp_path / "db", value), by_run({ITEM, *OTHERS}))


@pytest.mark.parametrize("value", [NAME, f"1@{NAME}"])
def test_a_value_that_is_another_file(tmp_path: Path, value: object) -> None:
    found = mentioned(holding(tmp_path / "db", value), by_run({ITEM, *OTHERS}))
    assert found == {ITEM, RUN}


def test_values_that_follow_at_once(tmp_path: Path) -> None:
    """In a row nothing stands between two texts: here are two names, and one and a label."""
    create = ("CREATE TABLE item (one TEXT, two TEXT, label TEXT)", ())
    two = NAME.replace("item_1", "item_2")
    insert = ("INSERT INTO item VALUES (?, ?, ?)", (NAME, two, "label"))
    found = mentioned(made(tmp_path / "db", create, insert), by_run({ITEM, *OTHERS}))
    assert found == {ITEM, two.encode(), RUN}


def test_a_row_that_names_a_directory_says_nothing_of_its_files(tmp_path: Path) -> None:
    create = ("CREATE TABLE item (path TEXT, number INTEGER)", ())
    rows = [(f"{RUN.decode()}/extra", 5), (RUN.decode(), 7), (f"{RUN.decode()}/", 9)]
    inserts = [("INSERT INTO item VALUES (?, ?)", row) for row in rows]
    found = mentioned(made(tmp_path / "db", create, *inserts), by_run({ITEM, *OTHERS}))
    assert found == {RUN}


def test_a_path_that_the_end_of_a_page_splits(tmp_path: Path) -> None:
    """Wherever in a long value the path begins, its file is taken to be named."""
    whole = 0
    for before in range(520):
        path = tmp_path / f"{before}"
        value = "." * before + NAME + " " * 1500
        place = holding(path, value, before="PRAGMA page_size = 512; PRAGMA synchronous = OFF")
        assert ITEM in mentioned(place, by_run({ITEM})), before
        whole += ITEM in path.read_bytes()
        path.unlink()
    assert 0 < whole < 520 - len(ITEM) + 1, "it was never split"


def test_a_path_that_goes_on_on_a_page_elsewhere(tmp_path: Path) -> None:
    """Pages that were freed are used again: what follows in the file is any other page."""
    texts = [("item", "." * 1400)] * 6 + [("other", "," * 100)] * 6
    tables = [
        (f"CREATE TABLE {name} (id INTEGER PRIMARY KEY, value)", ()) for name in ("item", "other")
    ]
    filled = [(f"INSERT INTO {table} (value) VALUES (?)", (text,)) for table, text in texts]
    freed = ("DELETE FROM item WHERE id IN (2, 4, 6)", ())
    for before in range(520):
        path = tmp_path / f"{before}"
        long = ("INSERT INTO item (value) VALUES (?)", (" " * (500 + before) + NAME + " " * 1500,))
        steps = [tables[0], *filled[:6], tables[1], *filled[6:], freed, long]
        place = made(path, *steps, before="PRAGMA page_size = 512; PRAGMA synchronous = OFF")
        assert ITEM in mentioned(place, by_run({ITEM})), before
        path.unlink()


def test_a_name_that_begins_with_a_control_character(tmp_path: Path) -> None:
    item = RUN + b"/extra/\titem"
    assert item in mentioned(holding(tmp_path / "db", item.decode()), by_run({item}))


def test_a_name_stands_somewhere_or_may(tmp_path: Path) -> None:
    place = holding(tmp_path / "db", NAME)
    assert holds_name(place, {b"other.mrc", b"item_1.mrc"})
    assert holds_name(place, {b"odd name"})
    assert not holds_name(place, {b"other.mrc"})


def test_links_that_lead_into_a_run() -> None:
    links = [
        (b"Runs/000009_X/extra/1", b"../../000028_ProtMany/extra/1"),
        (b"Runs/000009_X/extra/2", b"2.mrc"),
        (b"Runs/000009_X/extra/3", b"/data/project/Runs/000028_ProtMany"),
        (b"latest", b"Runs/000003_ProtCtf/extra"),
    ]
    assert linked(links, {RUN}) == {links[0][0], links[2][0]}
    assert linked(links, {OTHER}) == {b"latest"}


def test_links_that_lead_to_paths() -> None:
    links = [
        (RUN + b"/extra/same", b"item_1.mrc"),
        (RUN + b"/through", b"extra/same"),
        (RUN + b"/directory", b"extra"),
        (RUN + b"/beneath", b"directory/item_2.mrc"),
        (RUN + b"/absolute", b"/data/project/" + RUN + b"/extra/./item_1.mrc"),
        (b"outside", RUN + b"/extra/item_1.mrc"),
        (RUN + b"/extra/other", b"item_3.mrc"),
        (RUN + b"/extra/away", b"../../../../item_1.mrc"),
        (RUN + b"/extra/elsewhere", b"/data/item_1.mrc"),
    ]
    found = leading(links, {RUN + b"/extra/item_1.mrc"})
    assert found == {path for path, _ in links[:6]}
    assert leading(links, {RUN + b"/extra/item_4.mrc"}) == {links[2][0], links[3][0]}
    loop = [(b"a", b"b"), (b"b", b"a")]
    assert leading(loop, {b"b"}) == {b"a"}
    assert leading(loop, {b"c"}) == set()
