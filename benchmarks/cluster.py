"""What a second worker brings: stages on a standalone cluster of one worker, then of two, each bound to its own core.

The driver is this process, bound to nothing. Starting it and the executors is not counted: before a stage is timed, it
runs once for each worker, so that an executor has done as much when timing starts and its JVM has compiled as much.
Several rounds, each with a cluster of its own, take turns, as a shared machine's speed drifts. The first run is printed
beside the timed ones, as "cold": executors are started in it, and with two the second worker, too. What two
workers write is compared with what one wrote before any time counts.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from statistics import median
from time import monotonic

import pyarrow.parquet as pq
from pyspark.sql import SparkSession

from benchmarks.logs import LAST_DAY, SOURCE, make_log_apart
from benchmarks.report import Row, peak_memory, report
from benchmarks.score_world import DAY, make_world
from deploy import cluster, package
from features import columns as c
from features.contracts import OPEN_SESSIONS, SCORES, SESSIONS
from jobs.score import score
from jobs.sessionize import sessionize
from jobs.settings import CONF_DIR, load_settings
from jobs.spark import read_spark_conf, spark_session

_WORKER_MIB = 3_072


def main(argv: Sequence[str]) -> int:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description=__doc__)
    parser.add_argument("--events", type=int, default=20_000_000, help="events to sessionize (default: 20,000,000)")
    parser.add_argument("--users", type=int, default=500_000, help="users to score (default: 500,000)")
    parser.add_argument("--items", type=int, default=20_000, help="items of the vocabulary (default: 20,000)")
    parser.add_argument("--runs", type=int, default=2, help="timed runs of each in a round (default: 2)")
    parser.add_argument("--rounds", type=int, default=3, help="clusters started; medians of all runs (default: 3)")
    parser.add_argument("--json", metavar="FILE", help="write JSON lines there; - for standard output")
    arguments = parser.parse_args(argv)
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2 or shutil.which("taskset") is None:
        parser.error("two workers need a core each, and the program taskset binds them")
    with tempfile.TemporaryDirectory(prefix="interest-bench-") as place:
        rows = _measured(Path(place), cores[:2], arguments)
    report(rows, arguments.json)
    return 0


def _measured(place: Path, cores: Sequence[int], arguments: argparse.Namespace) -> list[Row]:
    settings, world, log = load_settings(), place / "world", place / "log"
    works: dict[str, tuple[str, Callable[[SparkSession], object]]] = {}
    if arguments.events:
        make_log_apart(log, arguments.events)
        works["sessionize"] = (
            f"{arguments.events:,} events",
            lambda spark: sessionize(
                spark, settings, SOURCE, [str(log)], str(place / "out"), date(2024, 3, 1), LAST_DAY, bootstrap=True
            ),
        )
    if arguments.users:
        bundle = make_world(world, arguments.users, arguments.items, settings)
        works["score"] = (
            f"{arguments.users:,} users, {arguments.items:,} items",
            lambda spark: score(spark, settings, str(world), DAY, bundle, full=True),
        )
    package.main(["--into", str(place / "dist"), "--code-only"])
    seconds: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in works}
    digests: dict[str, set[int]] = {name: set() for name in works}
    peak_mib = 0.0
    for _ in range(arguments.rounds):
        found = cluster.up(place / "cluster", workers=0)
        try:
            for number, core in enumerate(cores):
                prefix = ("taskset", "--cpu-list", str(core))
                found = cluster.add_worker(found, f"worker-{number + 1}", 1, _WORKER_MIB, prefix=prefix)
                with peak_memory(every_s=1.0) as peak:  # rarely: the sampler works on the workers' cores
                    for name, times, digest in _timed(found.master, place, works, number + 1, arguments.runs):
                        seconds[name][number].extend(times)
                        digests[name].add(digest)
                peak_mib = max(peak_mib, peak.mib)
        finally:
            cluster.down(place / "cluster")
    for name, written in digests.items():
        if len(written) > 1:
            raise RuntimeError(f"{name}: two workers wrote other rows than one; no time counts.")
    return [
        Row(
            "cluster",
            f"{name}, {works[name][0]}",
            "time",
            "s",
            median(two),
            median(one),
            "one worker",
            "lower",
            len(two),
            peak_mib,
        )
        for name, (one, two) in seconds.items()
    ]


def _timed(
    master: str, place: Path, works: dict[str, tuple[str, Callable[[SparkSession], object]]], n_workers: int, runs: int
) -> list[tuple[str, list[float], int]]:
    """Every piece of work on the cluster as it is: name, seconds of each run, digest of what it wrote."""
    builder = SparkSession.builder.master(master)
    profile = read_spark_conf(CONF_DIR / "spark" / "standalone.conf") | {
        "spark.pyspark.python": sys.executable,
        "spark.executor.cores": "1",
        "spark.executor.memory": "2g",
        "spark.driver.host": "127.0.0.1",
        "spark.submit.pyFiles": str(place / "dist" / package.CODE),
        "spark.ui.enabled": "false",
    }
    for key, value in profile.items():
        builder = builder.config(key, value)
    os.environ["PYSPARK_PYTHON"] = sys.executable
    builder.getOrCreate()
    spark = spark_session("benchmark")  # joins it
    found = []
    try:
        for name, (_, work) in works.items():
            times = []
            for _ in range(n_workers + runs):
                started = monotonic()
                work(spark)
                times.append(monotonic() - started)
            each = ", ".join(f"{time:.2f}" for time in times[n_workers:])
            print(f"{name}, workers: {n_workers}, cold: {times[0]:.2f} s, timed: {each} s", file=sys.stderr)
            found.append((name, times[n_workers:], _digest(place, name)))
    finally:
        spark.stop()
    return found


def _digest(place: Path, stage: str) -> int:
    """Of all rows that a stage wrote, whatever their order and files."""
    tables = (SESSIONS, OPEN_SESSIONS) if stage == "sessionize" else (SCORES,)
    folder, day = (place / "out", LAST_DAY) if stage == "sessionize" else (place / "world", DAY)
    total = 0
    for table in tables:
        columns = [c.SESSION_ID, c.SESSION_END, c.N_EVENTS] if stage == "sessionize" else [c.USER_ID, c.ITEMS]
        for path in sorted((folder / table.name / f"dt={day}").glob("*.parquet")):
            for batch in pq.ParquetFile(path).iter_batches(columns=columns):
                total += sum(hash(str(row)) for row in batch.to_pylist())
    return total


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
