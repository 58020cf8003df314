"""Where the time of sessionizing goes: the same plan ended after the scan, the shuffle, the transfer, the kernel.

Each part is the median time of its plan less that of the plan that ends one step earlier; the last one, writing and
publishing, is the stage itself less the kernel. Parts that overlap in the stage are counted with the later one.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession

from benchmarks.logs import DAYS, LAST_DAY, SOURCE, make_log, make_log_apart
from benchmarks.report import Row, in_turn, report
from benchmarks.sessionize import ours, peer_settings
from features.events import RunDays, good_events, parse_events
from features.partitions import partitions_for
from features.sessions import CutRules, events_by_user, sessions_of
from features.sources import read_log
from jobs.settings import Settings
from jobs.spark import spark_session


def plans(spark: SparkSession, settings: Settings, log: Path) -> dict[str, Callable[[], object]]:
    """The stage's plan up to each step, its result thrown away."""
    days = RunDays(date.fromordinal(LAST_DAY.toordinal() - DAYS), LAST_DAY, settings.sessions.lateness_days)
    rules = CutRules.of(settings.sessions, LAST_DAY)
    n_bytes = sum(file.stat().st_size for file in log.glob("*.parquet"))
    n_partitions = partitions_for(n_bytes, settings.sessions.partition_mib, spark.sparkContext.defaultParallelism)

    def events() -> DataFrame:
        return good_events(parse_events(read_log(spark, SOURCE, [str(log)]), SOURCE, settings.cleaning, days))

    def by_user() -> DataFrame:
        return events_by_user(events(), None, n_partitions)

    def read_only(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        n_rows = sum(batch.num_rows for batch in batches)
        yield pa.record_batch([pa.array([n_rows])], names=["n"])

    def cut_only(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        held = list(batches)
        n_rows = sum(table.num_rows for table in sessions_of(pa.Table.from_batches(held), rules)) if held else 0
        yield pa.record_batch([pa.array([n_rows])], names=["n"])

    return {
        "scan and clean": lambda: events().write.format("noop").mode("overwrite").save(),
        "shuffle": lambda: by_user().write.format("noop").mode("overwrite").save(),
        "transfer": lambda: by_user().mapInArrow(read_only, "n long").collect(),
        "kernel": lambda: by_user().mapInArrow(cut_only, "n long").collect(),
    }


def main(argv: Sequence[str]) -> int:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sessionize_parts", description=__doc__)
    parser.add_argument("--events", type=int, default=20_000_000, help="events of the log (default: 20,000,000)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each; the median is reported (default: 3)")
    parser.add_argument("--json", metavar="FILE", help="write JSON lines there; - for standard output")
    arguments = parser.parse_args(argv)
    settings = peer_settings()
    with tempfile.TemporaryDirectory(prefix="interest-bench-") as place:
        log, warm, root = (Path(place) / name for name in ("log", "warm", "ours"))
        make_log_apart(log, arguments.events)
        make_log(warm, 10_000)
        spark = spark_session("benchmark")
        ours(spark, settings, warm, root)
        stage = "write and publish"
        works = plans(spark, settings, log) | {stage: lambda: ours(spark, settings, log, root)}
        measured = in_turn(works, arguments.runs)
        spark.stop()
    whole, peak = measured[stage]
    until = [0.0, *(seconds for seconds, _ in measured.values())]
    rows = [
        Row("sessionize_parts", part, "time", "s", after - before, whole, "whole stage", "lower", arguments.runs, peak)
        for part, (before, after) in zip(works, pairwise(until), strict=True)
    ]
    report(rows, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
