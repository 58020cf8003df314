"""Two ranks of one thread each against one rank of one thread: events/s together, and memory of each."""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import median

from benchmarks.report import Row, report
from benchmarks.train import timed
from benchmarks.train_parts import Case, encoded, write_files
from features import columns as c

_FOUND = re.compile(r"\{.*\}")


def main(argv: Sequence[str]) -> int:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--items", type=int, nargs="*", default=[20_000, 1_000_002], help="sizes of the vocabulary")
    parser.add_argument(
        "--rows", type=int, nargs="*", default=[256, 32], help="rows of a rank's batch (default: 256 32)"
    )
    parser.add_argument("--length", type=int, default=50, help="events of a row (default: 50)")
    parser.add_argument("--steps", type=int, default=12, help="steps timed in each run (default: 12)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each; the median is reported (default: 3)")
    parser.add_argument("--pin", action="store_true", help="with training.pin_ranks: each of the two on its own core")
    parser.add_argument("--json", metavar="FILE", help="write JSON lines there; - for standard output")
    arguments = parser.parse_args(argv)
    rows = []
    for items, n_rows in product(arguments.items, arguments.rows):
        case = Case(n_rows, arguments.length, items=items, threads=1, steps=arguments.steps, pin_ranks=arguments.pin)
        one, two, peak = [], [], 0.0
        for _ in range(arguments.runs):
            one.append(timed("ours", case)["events_s"])
            ranks = _two_ranks(case)
            two.append(min(rank["events_s"] for rank in ranks))
            peak = max(peak, *(rank["peak_rss_mib"] for rank in ranks))
        name = f"{items:,} items, B = {n_rows}{', pinned' if arguments.pin else ''}"
        rows.append(
            Row("scaling", name, "events_s", "1/s", median(two), median(one), "one rank", "higher", len(one), peak)
        )
    for items in arguments.items:
        rows.append(_memory(Case(arguments.rows[0], arguments.length, items=items, threads=1)))
    report(rows, arguments.json)
    return 0


def _memory(case: Case) -> Row:
    """The larger rank of a whole training of two: feed, steps, validation, best weights, checkpoints."""
    with tempfile.TemporaryDirectory(prefix="interest-bench-") as place:
        for split, n_files in ((c.TRAIN, 8), (c.VALID, 2)):
            write_files(Path(place) / split, case, n_files)
        peak = max(rank["peak_rss_mib"] for rank in _two_ranks(case, "whole_training", place))
    return Row("scaling", f"{case.items:,} items", "rank_rss", "MiB", peak, 4_096.0, "the limit", "lower", 1, peak)


def _two_ranks(case: Case, piece: str = "ours", *arguments: str) -> list[dict[str, float]]:
    horovodrun = str(Path(sys.executable).with_name("horovodrun"))
    command = [horovodrun, "--gloo", "-np", "2", sys.executable, "-m", "benchmarks.train_parts", piece, encoded(case)]
    command += arguments
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": os.getcwd()}
    )
    found = [json.loads(text) for text in _FOUND.findall(done.stdout) if '"rank"' in text]
    if done.returncode != 0 or len(found) != 2:
        raise RuntimeError(f"horovodrun failed: {(done.stdout + done.stderr).strip()[-2_000:]}")
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
