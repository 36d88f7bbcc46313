"""A finished project of Scipion, the same for the same seed.

``S`` is about 20,000 entries of 5 GB; ``L`` is half a million entries of 2 TB that take some 15 GB
of disk: its larger files are holes with one block in every mebibyte, its databases no larger than
those of ``S``. ``XS`` is for every day.
"""

from __future__ import annotations

import argparse
import os
import random
import sqlite3
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from tests.workload import content, databases
from tests.workload.content import generation_of
from tests.workload.names import ODD_NAMES

__all__ = ["SIZES", "generation_of", "make_tree"]

_KILO = 1000
_MEGA = 1_000_000
_SPARSE_FROM = 100 * _KILO
_ROW = 600
_DAYS = 10 * 86_400 * 10**9
_BEGAN = 1_700_000_000 * 10**9
_MODES = ((0o644, 0.95), (0o664, 0.02), (0o600, 0.01), (0o444, 0.015), (0o755, 0.005))


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of file: in which run, its name's ending, how many, mean size, log-normal sigma."""

    run: str
    ending: str
    count: int
    mean: float
    sigma: float


@dataclass(frozen=True, slots=True)
class Shape:
    """A size of project.

    Attributes:
        movies: how many, each with an absolute link and its markers.
        kinds: of files.
        tables: count, bytes and name of databases.
        links: relative links inside.
        runs: how many folders.
        sparse: whether larger files are mostly holes.
    """

    movies: int
    kinds: tuple[Kind, ...]
    tables: tuple[tuple[int, float, str], ...]
    links: int
    runs: int
    sparse: bool


_MARKED = ("Motion", "Full", "Ctf", "Ctf2", "Pick", "Pick2", "Extract")


def _small(movies: int) -> tuple[Kind, ...]:
    each = (
        ("Motion", ".mrc", 3.11 * _MEGA, 0.05),
        ("Motion", "_Full.log", 3 * _KILO, 0.05),
        ("Motion", "_shifts.png", 25 * _KILO, 0.05),
        ("Motion", "_thumbnail.png", 60 * _KILO, 0.05),
        ("Motion", "_psd.png", 15 * _KILO, 0.05),
        ("Ctf", "_ctf.mrc", 263 * _KILO, 0.05),
        ("Ctf", "_avrot.txt", 30 * _KILO, 0.05),
        ("Ctf2", "_ctf.psd", 131 * _KILO, 0.05),
        ("Ctf2", ".xmd", 2 * _KILO, 0.6),
        ("Pick", ".star", 8 * _KILO, 0.6),
        ("Pick2", ".cbox", 40 * _KILO, 0.6),
        ("Pick2", ".box", 2 * _KILO, 0.6),
        ("Pick2", ".star", 4 * _KILO, 0.6),
        ("Extract", ".mrcs", 656 * _KILO, 0.6),
        ("Extract", "_coords.star", 6 * _KILO, 0.6),
        ("Extract2", ".mrcs", 1.31 * _MEGA, 0.6),
        ("Extract2", "_coords.star", 6 * _KILO, 0.6),
    )
    return tuple(Kind(run, ending, movies, mean, sigma) for run, ending, mean, sigma in each)


def _large(movies: int) -> tuple[Kind, ...]:
    """The same kinds with the sizes of a modern camera."""
    means = (47.1 * _MEGA, 6e3, 25e3, 120e3, 40e3, 1.05e6, 60e3, 525e3, 2e3, 20e3)
    rest = (120e3, 6e3, 12e3, 9.83 * _MEGA, 15e3, 39.3 * _MEGA, 15e3)
    return tuple(
        Kind(kind.run, kind.ending, movies, mean, kind.sigma)
        for kind, mean in zip(_small(movies), means + rest, strict=True)
    )


SIZES = {
    "XS": Shape(
        5,
        (
            *(Kind(k.run, k.ending, 5, k.mean / 50, k.sigma) for k in _small(5)),
            Kind("Misc", ".json", 10, 12 * _KILO, 1.0),
        ),
        ((3, 50 * _KILO, "steps.sqlite"),),
        10,
        4,
        sparse=False,
    ),
    "S": Shape(
        752,
        (
            *_small(752),
            Kind("Classes", "_it.star", 125, 1.8 * _MEGA, 0.05),
            Kind("Classes", "_classes.mrcs", 50, 1.64 * _MEGA, 0.05),
            Kind("Classes", "_map.mrc", 60, 4.2 * _MEGA, 0.05),
            Kind("Logs", ".stdout", 22, 150 * _KILO, 1.0),
            Kind("Logs", ".log", 58, 100 * _KILO, 1.0),
            Kind("Misc", ".json", 450, 12 * _KILO, 1.0),
            Kind("Stack", ".stk", 1, 100 * _MEGA, 0.0),
        ),
        (
            (14, 12 * _MEGA, "particles.sqlite"),
            (40, 300 * _KILO, "set.sqlite"),
            (22, 250 * _KILO, "steps.sqlite"),
            (22, 120 * _KILO, "run.db"),
        ),
        110,
        22,
        sparse=False,
    ),
    "L": Shape(
        19_000,
        (
            *_large(19_000),
            Kind("Classes", "_data.star", 75, 1280 * _MEGA, 0.05),
            Kind("Classes", "_model.star", 225, 2 * _MEGA, 0.05),
            Kind("Classes", "_classes.mrcs", 50, 6.6 * _MEGA, 0.05),
            Kind("Classes", "_map.mrc", 180, 67 * _MEGA, 0.05),
            Kind("Logs", ".stdout", 60, 6 * _MEGA, 1.0),
            Kind("Logs", ".log", 134, 140 * _KILO, 1.0),
            Kind("Misc", ".json", 22_000, 14 * _KILO, 1.0),
            Kind("Stack", ".stk", 2, 30_000 * _MEGA, 0.0),
        ),
        (
            (16, 12 * _MEGA, "particles.sqlite"),
            (60, 8 * _MEGA, "set.sqlite"),
            (60, 9 * _MEGA, "steps.sqlite"),
            (60, 400 * _KILO, "run.db"),
        ),
        1500,
        60,
        sparse=True,
    ),
}


def make_tree(root: Path, size: str, seed: int) -> int:
    """Make a project in ``root``, which may exist; returns how many entries it has."""
    shape, chance = SIZES[size], random.Random(f"{seed} {size}")
    root.mkdir(parents=True, exist_ok=True)
    for kind in shape.kinds:
        for number in range(kind.count):
            _make_file(root, kind, number, chance, sparse=shape.sparse)
    _make_markers_and_imports(root, shape, chance)
    _make_databases(root, shape)
    _make_links(root, shape)
    _make_odd(root, seed)
    _make_runs(root, shape)
    return sum(len(directories) + len(files) for _, directories, files in os.walk(root))


def _folder(root: Path, run: str) -> Path:
    path = root / "Runs" / f"{_number(run):06d}_{run}" / "extra"
    path.mkdir(parents=True, exist_ok=True)
    return path


def _number(run: str) -> int:
    names = ("Import", *_MARKED, "Extract2", "Classes", "Logs", "Misc", "Stack", "Odd", "Links")
    return names.index(run) + 1


def _stem(number: int) -> str:
    """Return a name as one of the programs for microscopes gives it."""
    if number % 10 == 9:
        return f"20240131_sample_{number:05d}"
    if number % 50 == 7:
        return f"mic ({number:06d})"
    if number % 100 == 13:
        return f"m\xe9ta_{number:06d}"
    return f"FoilHole_{20_000_000 + number}_Data_{number:08d}_20240131_101500"


def _make_file(root: Path, kind: Kind, number: int, chance: random.Random, *, sparse: bool) -> None:
    path = _folder(root, kind.run) / (_stem(number) + kind.ending)
    # A log-normal number whose mean, not median, is the one of the table.
    factor = chance.lognormvariate(-(kind.sigma**2) / 2, kind.sigma)
    total = max(1, int(kind.mean * factor))
    name = str(path.relative_to(root))
    if sparse and total > _SPARSE_FROM:
        content.write_sparse(path, name, 1, total)
    else:
        with path.open("wb") as file:
            file.writelines(content.pieces(name, 1, total))
    _dress(path, chance)


def _dress(path: Path, chance: random.Random) -> None:
    """Give a file a mode and a time with nanoseconds; one in a thousand is of the future."""
    (mode,) = chance.choices([m for m, _ in _MODES], [part for _, part in _MODES])
    path.chmod(mode)
    when = _BEGAN + chance.randrange(_DAYS)
    if chance.random() < 0.001:
        when += 20 * 365 * 86_400 * 10**9
    os.utime(path, ns=(when, when))


def _make_markers_and_imports(root: Path, shape: Shape, chance: random.Random) -> None:
    imported = _folder(root, "Import")
    for number in range(shape.movies):
        stem = _stem(number)
        odd = " it's \xe9" if chance.random() < 0.05 else ""
        (imported / f"{stem}.tiff").symlink_to(f"/data/movies{odd}/{stem}.tiff")
        for run in _MARKED:
            done = _folder(root, run) / "DONE"
            done.mkdir(exist_ok=True)
            (done / f"{stem}.TXT").touch()


def _make_databases(root: Path, shape: Shape) -> None:
    place = root / "Databases"
    for count, size, name in shape.tables:
        for number in range(count):
            path = place / f"{number:03d}" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            _make_database(path, int(size / _ROW))
    for name in ("project.sqlite", "settings.sqlite"):
        _make_database(root / name, 20)


def _make_database(path: Path, rows: int) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA synchronous = OFF")
        text = "x" * (_ROW - 20)
        databases.transact(db, databases.fill([(n, text, 1) for n in range(rows)]))


def _make_links(root: Path, shape: Shape) -> None:
    extra = _folder(root, "Links")
    (extra / "target.dat").write_bytes(b"target")
    for number in range(shape.links):
        (extra / f"sibling_{number}.mrc").symlink_to("target.dat")
    targets = {
        "directory": "../../000002_Motion/extra",
        "inside": str(_folder(root, "Motion")),
        "itself": "itself",
        "up": "..",
        "root": "/",
        "chain": "directory",
        "dangling": "/scratch/nothing",
        "long": "x" * 4000,
    }
    for name, target in targets.items():
        (extra / name).symlink_to(target)


def _make_odd(root: Path, seed: int) -> None:
    """Odd names; a path of more than 1,024 bytes; hard links, a FIFO."""
    extra = _folder(root, "Odd")
    for name in ODD_NAMES:
        path = os.path.join(os.fsencode(extra), name)
        with open(path, "wb") as file:
            file.write(random.Random(f"{seed} {name!r}").randbytes(100))
    deep = extra.joinpath(*[str(level) * 100 for level in range(10)])
    deep.mkdir(parents=True, exist_ok=True)
    (deep / "deepest").write_bytes(b"deep")
    os.link(extra / "lock", extra / "hard link")
    os.mkfifo(extra / "fifo")


def _make_runs(root: Path, shape: Shape) -> None:
    """Folders that hold nothing are part of a project too."""
    for number in range(shape.runs):
        for name in ("extra", "logs", "tmp"):
            run = root / "Runs" / f"{900 + number:06d}_Run"
            (run / name).mkdir(parents=True, exist_ok=True)


def main() -> int:
    """Make a tree; prints how many entries it has."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--size", choices=sorted(SIZES), default="S")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    count = make_tree(asked.root.absolute(), asked.size, asked.seed)
    sys.stdout.write(f"{count} entries\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
