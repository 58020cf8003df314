"""Bulk scoring: the Spark job against one process on the same cores, and a night's carried states against all anew.

Users have histories of log-normal length (median 18, a fifth beyond 50 events); the model has random weights. In a
night a share of the users has a few more events. Scores from carried states are compared with those of everyone anew
before any time counts. The JVM and its Python workers, with another model loaded, are there and warm before; they end
where a minute passes without a job. Last, the likeliest items by an index against the exact ones, on vectors in
clusters (benchmarks/score_index.py).
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from time import monotonic

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyspark.sql import SparkSession

from benchmarks.report import Row, in_turn, peak_memory, report
from benchmarks.score_world import DAY, NIGHT, add_night, make_world
from features import columns as c
from features.contracts import SCORES, SEQUENCES
from jobs.score import score
from jobs.settings import Settings, load_settings
from jobs.spark import spark_session

_WARM_USERS = 2_000  # scored before, so that workers have started
_LIMIT_MIB = 6_144.0  # 2 million users are to be scored within it
_MOST_APART = 1e-4  # of log-probabilities
_SWAPPED = 1e-3  # share of places at which near ties may have changed places
_OFF = 0.1  # of a log-probability; a tenth of a probability
_BUILT_S = 60.0  # an index is to be there within; each worker process makes one


def main(argv: Sequence[str]) -> int:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.score", description=__doc__)
    parser.add_argument("--users", type=int, default=100_000, help="users (default: 100,000)")
    parser.add_argument("--items", type=int, nargs="*", default=[20_000], help="sizes of the vocabulary")
    parser.add_argument(
        "--active", type=float, nargs="*", default=[1, 5, 20, 100], help="percent of users with new events in the night"
    )
    parser.add_argument(
        "--index", type=int, nargs="*", default=[20_000, 1_000_000], help="sizes of the vocabulary for the item index"
    )
    parser.add_argument("--runs", type=int, default=3, help="runs of each; the median is reported (default: 3)")
    parser.add_argument("--nights-only", action="store_true", help="leave the comparison with one process out")
    parser.add_argument("--json", metavar="FILE", help="write JSON lines there; - for standard output")
    arguments = parser.parse_args(argv)
    settings, rows = load_settings(), []
    if arguments.items:
        spark = spark_session("benchmark")
        for n_items in arguments.items:
            with tempfile.TemporaryDirectory(prefix="interest-bench-") as place:
                rows += _measured(spark, settings, Path(place), n_items, arguments)
        spark.stop()
    for n_items in arguments.index:
        rows += _of_index(n_items, settings.scoring.top_k_items, arguments.runs)
    report(rows, arguments.json)
    return 0


def _measured(
    spark: SparkSession, settings: Settings, root: Path, n_items: int, arguments: argparse.Namespace
) -> list[Row]:
    n_users, n_runs = arguments.users, arguments.runs
    bundle, case = make_world(root, n_users, n_items, settings), f"{n_users:,} users, {n_items:,} items"
    small = root / "small"
    another = make_world(small, _WARM_USERS, n_items, settings)
    add_night(small, _WARM_USERS, n_items, 0.5, settings)

    def warm() -> None:
        for day in (DAY, NIGHT):
            score(spark, settings, str(small), day, another, full=day == DAY)

    warm()
    rows: list[Row] = []
    if arguments.nights_only:
        score(spark, settings, str(root), DAY, bundle, full=True)
    else:
        rows += _of_job(spark, settings, root, bundle, case, arguments)
    for percent in arguments.active:
        n_active = add_night(root, n_users, n_items, percent / 100, settings)

        kept = {"carried": root / "carried", "anew": root / "anew"}

        def night(full: bool, into: Path) -> None:
            score(spark, settings, str(root), NIGHT, bundle, full=full)
            shutil.rmtree(into, ignore_errors=True)
            (root / SCORES.name / f"dt={NIGHT}").rename(into)

        works = {name: partial(night, name == "anew", into) for name, into in kept.items()}
        warm()
        measured = in_turn(works, n_runs)
        _check_equal(*kept.values())
        seconds, peak_of_night = measured["carried"]
        name = f"{percent:g} % active ({n_active:,})"
        rows.append(
            Row("state_carry", name, "time", "s", seconds, measured["anew"][0], "anew", "lower", n_runs, peak_of_night)
        )
    return rows


def _of_job(
    spark: SparkSession, settings: Settings, root: Path, bundle: str, case: str, arguments: argparse.Namespace
) -> list[Row]:
    n_users, n_runs = arguments.users, arguments.runs
    ours, peers, peak_mib = [], [], 0.0
    for _ in range(n_runs):
        with peak_memory() as peak:
            started = monotonic()
            score(spark, settings, str(root), DAY, bundle, full=True)
            ours.append(n_users / (monotonic() - started))
        peak_mib = max(peak_mib, peak.mib)
        peers.append(_in_one_process(root, bundle, n_users))
    alone, forward_s, top_s = (median(peer[name] for peer in peers) for name in ("seconds", "forward_s", "top_s"))
    return [
        Row("score", case, "users_s", "1/s", median(ours), n_users / alone, "one process", "higher", n_runs, peak_mib),
        Row(
            "score", case, "top_k", "ms", top_s * 1e3, forward_s * 1e3, "forward of a batch", "lower", n_runs, peak_mib
        ),
        Row("score", case, "peak_rss", "MiB", peak_mib, _LIMIT_MIB, "the limit", "lower", n_runs, peak_mib),
    ]


def _in_one_process(root: Path, bundle: str, n_users: int) -> dict[str, float]:
    sequences = str(root / SEQUENCES.name / f"dt={DAY}")
    return _alone("benchmarks.score_parts", bundle, sequences, os.cpu_count(), n_users)


def _of_index(n_items: int, k: int, n_runs: int) -> list[Row]:
    found = _alone("benchmarks.score_index", n_items, os.cpu_count(), n_runs)
    rows = [
        (f"recall@{k}", "share", found["recall"], 1.0, "exact", "higher"),
        ("log sum", "off", found["off_p50"], _OFF, "for scale; median", "lower"),
        ("log sum", "off", found["off_p99"], _OFF, "for scale; 99 of 100 rows", "lower"),
        ("top_k", "ms", found["index_ms"], found["exact_ms"], "exact, 256 rows", "lower"),
        ("build", "s", found["build_s"], _BUILT_S, "the limit", "lower"),
    ]
    return [Row("score_index", f"{n_items:,} items", *values, n_runs, found["peak_rss_mib"]) for values in rows]


def _alone(module: str, *arguments: object) -> dict[str, float]:
    """What a process of its own found."""
    command = [sys.executable, "-m", module, *(str(argument) for argument in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{module} failed: {done.stderr.strip()[-2_000:]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _check_equal(mine: Path, theirs: Path) -> None:
    """Raise RuntimeError unless two folders hold the same scores, bucket by bucket; then remove both."""
    files = sorted(file.name for file in mine.glob("*.parquet"))
    if files != sorted(file.name for file in theirs.glob("*.parquet")):
        raise RuntimeError("The scores compared lie in different buckets; no time counts.")
    for file in files:
        ours, peers = (pq.read_table(folder / file) for folder in (mine, theirs))
        ours, peers = (table.take(pc.sort_indices(table[c.USER_ID])) for table in (ours, peers))
        if not ours[c.USER_ID].equals(peers[c.USER_ID]) or not ours[c.AS_OF].equals(peers[c.AS_OF]):
            raise RuntimeError(f"{file}: other users or another cutoff; no time counts.")
        for column, token in ((c.ITEMS, c.ITEM_ID), (c.INTERESTS, c.CATEGORY_ID)):
            lists = [pc.list_flatten(table[column]) for table in (ours, peers)]
            p, q = (np.log(pc.struct_field(of, c.PROBABILITY).to_numpy()) for of in lists)
            names = [pc.struct_field(of, token) for of in lists]
            if len(p) != len(q) or np.abs(p - q).max(initial=0) > _MOST_APART or _unequal(*names) > _SWAPPED:
                raise RuntimeError(f"{file}: {column} differ; no time counts.")
    for folder in (mine, theirs):
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


def _unequal(ours: pa.ChunkedArray, peers: pa.ChunkedArray) -> float:
    """Share of places that hold different tokens."""
    return 1.0 - float(pc.mean(pc.equal(ours, peers).cast(pa.float64())).as_py() or 1.0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
