from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from onesync.core.chain import (
    _LINE,
    Change,
    Gone,
    Header,
    Position,
    Renamed,
    Set,
    _change_fields,
    _change_line,
    _change_of,
    _line,
    _parse,
    _read_change,
    apply,
    base_name,
    checkpoint_name,
    encode,
    file_digest,
    find_head,
)
from onesync.core.model import LONGEST_PATH, Entry, Kind, Problem, RelPath, is_beneath
from onesync.core.tree import Tree

NAME = st.sampled_from([b"a", b"a-", b"b", b"\xff", b"\xc3\xa9", b'"', b"\x7f", b"\x1f"])
PATH = st.lists(NAME, min_size=1, max_size=4).map(b"/".join)
DIGEST = st.sampled_from(["ab" * 32, "AB" * 32, "a b" * 21 + "c", "ab", ""])
ENTRY = st.one_of(
    st.builds(
        Entry,
        st.just(Kind.FILE),
        st.sampled_from([0, 1, 2**40, 2**63 - 1]),
        st.sampled_from([0, 1, -1, 2**63 - 1, 1 - 2**63, 1_795_618_894_620_523_286]),
        st.integers(0, 0o777),
        DIGEST,
        group=st.sampled_from([0, 0, 7]),
        xattrs=st.sampled_from([(), (), ((b"user.a", b"\0"),)]),
    ),
    st.builds(Entry, st.just(Kind.DIRECTORY), st.just(0), st.integers(0, 2**62), st.just(0o755)),
    st.builds(Entry, st.just(Kind.LINK), target=st.just(b"t")),
)
PLAIN_PATH = st.lists(st.sampled_from([b"a", b"a-", b"b"]), min_size=1, max_size=3).map(b"/".join)
PLAIN_FILE = st.builds(
    Entry, st.just(Kind.FILE), st.integers(0, 9), digest=st.sampled_from(["ab" * 32, "ab"])
)


def _changes(
    path: st.SearchStrategy[RelPath], entry: st.SearchStrategy[Entry]
) -> st.SearchStrategy[list[Change]]:
    moved = st.builds(Gone, path) | st.builds(Renamed, path, path)
    return st.lists(st.builds(Set, path, entry) | moved, max_size=12)


CHANGES = st.one_of(
    _changes(PATH, ENTRY), _changes(PLAIN_PATH, PLAIN_FILE | st.just(Entry(Kind.DIRECTORY)))
)


def _simply(changes: list[Change]) -> dict[RelPath, Entry]:
    """Fold into a dict, in no clever way."""
    tree: dict[RelPath, Entry] = {}

    def cut(top: RelPath) -> dict[RelPath, Entry]:
        entry = tree.get(top)
        is_alone = entry is not None and entry.kind is not Kind.DIRECTORY
        paths = [top] if is_alone else [path for path in tree if is_beneath(path, top)]
        return {path: tree.pop(path) for path in paths}

    for change in changes:
        if isinstance(change, Set):
            old = tree.get(change.path)
            if old is not None and old.kind is Kind.DIRECTORY is not change.entry.kind:
                cut(change.path)
            tree[change.path] = change.entry
        elif isinstance(change, Gone):
            cut(change.path)
        elif isinstance(change, Renamed):
            moved = cut(change.source)
            cut(change.target)
            for path, entry in moved.items():
                tree[change.target + path[len(change.source) :]] = entry
    return tree


@given(CHANGES, CHANGES)
def test_the_fold_is_what_a_simple_one_is(changes: list[Change], more: list[Change]) -> None:
    place = Position(1, 1)
    header = Header("f", place, None, "w", "t", "base")
    first = encode(header, changes)
    late = Header("f", Position(1, 2), (base_name(place), file_digest(first)), "w", "t", "final")
    data = {base_name(place): first, checkpoint_name(Position(1, 2)): encode(late, more)}

    def read(name: str) -> bytes:
        if name not in data:
            raise FileNotFoundError(name)
        return data[name]

    head = find_head(data, read)
    assert head is not None
    problems: dict[RelPath, Problem] = {}
    for part in (changes, more):
        apply(Tree(), part, problems)
    assert head.problems == problems
    expected = _simply(changes + more)
    assert dict(head.tree.items()) == expected
    assert len(head.tree) == len(expected)
    assert all(path in head.tree and head.tree[path] == expected[path] for path in expected)
    paths = list(head.tree)
    above = [path.rpartition(b"/")[0] for path in paths]
    assert all(a not in paths[n:] for n, a in enumerate(above) if a), "directories come first"


@given(st.one_of(st.builds(Set, PATH, ENTRY), st.builds(Gone, PATH)))
def test_the_short_way_of_a_line_is_the_long_one(change: Change) -> None:
    line = _line(_change_fields(change))
    assert _change_line(change) == line
    (found,) = _LINE.finditer(line.decode())
    assert _change_of(found) == _read_change(_parse(line)) == change


def test_a_directory_goes_and_moves_in_one_step() -> None:
    tree = Tree({b"a": Entry(Kind.DIRECTORY)})
    for number in range(1000):
        tree.put(b"a/%d/x" % number, Entry(Kind.FILE, digest="ab" * 32))
    inner = tree._root.folders[b"a"]
    tree.rename(b"a", b"b/c")
    assert tree._root.folders[b"b"].folders[b"c"] is inner, "nothing in it was touched"
    assert tree.get(b"b/c/7/x") is not None
    assert b"a/7/x" not in tree
    tree.remove(b"b/c")
    assert list(tree) == []


def test_no_depth_that_a_path_can_have_is_too_deep() -> None:
    beneath = b"/d" * (LONGEST_PATH // 2 - 1)
    tree = Tree({b"d" + beneath: Entry(Kind.FILE, 1)})
    assert (tree[b"d" + beneath].size, len(tree)) == (1, 1)
    # What stands beneath a file's name becomes one with what is renamed to it, at every level.
    tree.put(b"x", Entry(Kind.FILE))
    tree.put(b"x" + beneath + b"2", Entry(Kind.FILE, 2))
    tree.rename(b"d", b"x")
    assert (tree[b"x" + beneath].size, tree[b"x" + beneath + b"2"].size) == (1, 2)
