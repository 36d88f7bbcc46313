"""``make bench``: all tools side by side on the same mounts, in one run."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from tests.bench import report
from tests.bench.scenarios import FULL, QUICK, Bench, Row

_SCENARIOS = (
    *("new_and_unchanged", "staged_in", "changed", "renamed", "large"),
    *("several", "saved", "latencies", "directories", "entries", "scale", "files"),
    *("burst", "burst_on_disk"),
)
_NEEDED = ("rsync", "rclone", "lsyncd", "unison", "cc", "pkg-config", "fusermount3", "mkfs.ext4")


def main() -> None:
    """Measure, and write what was found."""
    options = _options()
    if options.readme and options.only:
        sys.exit("The README gets what was measured in one run: leave --only out.")
    missing = [name for name in _NEEDED if shutil.which(name) is None]
    if missing:
        sys.exit(f"'make bench' needs {', '.join(missing)}; run as root, it installs them.")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # each program would be compiled anew
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # nothing stays mounted or running
    rows: list[Row] = []
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory(dir=options.home, prefix="onesync-bench-") as home:
        bench = Bench(Path(home), QUICK if options.quick else FULL, lambda row: _found(rows, row))
        for name in options.only or _SCENARIOS:
            began = time.monotonic()
            if reason := bench.measure(name):
                failed[name] = reason
            told = f" and failed: {reason}" if reason else ""
            print(f"({name}: {time.monotonic() - began:.0f} s{told})", flush=True)
            _write(rows, failed, options.out)
    print(f"\n{(options.out / 'bench.md').read_text()}\nWritten: {options.out}")
    if failed:
        sys.exit(_apology(failed, options))
    if options.readme:
        report.into_readme(options.readme, rows, report.machine(), options.out / "latency.png")


def _apology(failed: Iterable[str], options: argparse.Namespace) -> str:
    kept = f" {options.readme} is as it was." if options.readme else ""
    return (
        f"Not all was measured: {', '.join(failed)} failed, the others are in {options.out}.{kept}"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--only", nargs="*", choices=_SCENARIOS, help="these scenarios alone")
    parser.add_argument("--home", type=Path, help="where everything is measured; a local disk")
    parser.add_argument("--out", type=Path, default=Path(".run/bench"), help="the results' place")
    parser.add_argument("--readme", type=Path, help="a README to put the table into")
    return parser.parse_args()


def _found(rows: list[Row], row: Row) -> None:
    rows.append(row)
    text = f"{row.scenario:32} {row.tool:32} {1000 * row.latency:3.0f} ms {row.files:7,} files"
    used = (
        f"{row.seconds:8.2f} s {row.calls_each:9.1f} calls {row.written / 1e6:8.1f} MB {row.note}"
    )
    print(text, used, flush=True)


def _write(rows: list[Row], failed: dict[str, str], out: Path) -> None:
    from tests.bench.plots import draw  # which needs more than all else here

    out.mkdir(parents=True, exist_ok=True)
    place = report.machine()
    text = f"{place}\n\n{report.table(rows, failed)}"
    (out / "bench.json").write_text(report.as_json(rows, failed, place))
    (out / "bench.md").write_text(text)
    draw(rows, out)


if __name__ == "__main__":
    main()
