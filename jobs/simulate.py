"""Simulate a behaviour log with a known truth: raw CSV by day of arrival, and `simulated_truth_v1`."""

import argparse
import gzip
import math
import sys
from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any

from pyspark.sql import Observation, SparkSession
from pyspark.sql import functions as F

from features import columns as c
from features.contracts import SIMULATED_TRUTH
from features.simulated_dirt import KINDS, RAW_COLUMNS
from features.simulated_process import process_of
from features.simulation import ARRIVAL_MS, LINE, line_counters, log_lines, simulated_truth
from jobs.cli import run_job, say, show, stage_parser
from jobs.settings import Settings, UsageError, config_hash, load_settings
from jobs.spark import spark_session
from jobs.store import Lineage, Store

RAW = "raw"
TRUTH_FILE = "_TRUTH.json"
# Users of one task: a second or two of work.
_TASK_USERS = 1000
# Rows of one file of a day; a larger day gets several files.
_FILE_ROWS = 1_000_000
# Separator and quote that no line holds: the CSV writer then writes each line as it is, and the header.
_NO_SEPARATOR, _NO_QUOTE = "\u0001", "\u0000"


def main(argv: Sequence[str]) -> int:
    """Run the stage from the command line."""
    return run_job(_run, parser(), argv)


def parser() -> argparse.ArgumentParser:
    """The flags of the stage."""
    return stage_parser("simulate")


def simulate(spark: SparkSession, settings: Settings, root: str, last: date) -> dict[str, Any]:
    """Write the log of the days up to `last` and its truth; returns what _TRUTH.json holds.

    ROOT/raw appears whole, by one rename, after everything in it is written; an earlier simulated log is replaced.

    Raises:
        UsageError: ROOT/raw holds something that is not a simulated log, or the log is too short for the split.
    """
    spec, gap_s = settings.simulation, settings.sessions.gap_s
    test_days = settings.sequences.split.test_days
    if test_days >= spec.days:
        raise UsageError(
            f"sequences.split.test_days = {test_days} leaves nothing before the cutoff of a log of simulation.days = "
            f"{spec.days} days; raise simulation.days or lower test_days."
        )
    # Only what the log holds of the time after the cutoff can be compared.
    horizons = tuple(days for days in settings.sequences.horizons_days if days <= test_days)
    if not horizons:
        raise UsageError(
            f"sequences.horizons_days = {list(settings.sequences.horizons_days)}: none fits into the {test_days} days "
            "after the cutoff (sequences.split.test_days), of which the truth tells. Raise test_days or add a shorter "
            "horizon."
        )
    store = Store(root)
    raw = f"{store.root}/{RAW}"
    if store.fs.exists(raw) and not store.fs.exists(f"{raw}/{TRUTH_FILE}"):
        raise UsageError(
            f"{raw} exists and is not a simulated log (it has no {TRUTH_FILE}): it is not overwritten. "
            f"Pass another --root, or move it away."
        )
    cutoff = last + timedelta(days=1 - test_days)
    n_tasks = math.ceil(spec.users / _TASK_USERS)

    staged = f"{store.root}/_staging-{RAW}"
    if store.fs.exists(staged):
        store.fs.rm(staged, recursive=True)
    counts = _write_log(spark, settings, staged, last, n_tasks)
    _add_empty_days(store, staged, [last - timedelta(days=ago) for ago in range(spec.days)])
    rows = sum(counts[kind] for kind in KINDS)
    facts: dict[str, Any] = {
        "date": str(last),
        "cutoff": f"{cutoff}T00:00:00Z",
        "gap_s": gap_s,
        "rows": rows,
        "kinds": {kind: counts[kind] for kind in KINDS},
        "late_by_days": {name.removeprefix("late_"): n for name, n in counts.items() if name.startswith("late_")},
        "skewed_rows": counts["skewed"],
        "rows_ahead_of_ingest": counts["ahead"],
        "simulation": spec.model_dump(mode="json"),
    }
    lineage = Lineage(
        inputs={},
        config_hash=config_hash(spec, settings.sessions, settings.sequences),
        counters={"cutoff": facts["cutoff"], "log_rows": rows},
    )
    if store.fs.exists(raw):
        store.fs.rm(raw, recursive=True)  # from here on no log lies beside a truth that is not its own
    frame = simulated_truth(spark, spec, gap_s, last, cutoff, horizons, n_tasks)
    manifest = store.write(frame, SIMULATED_TRUTH, last, lineage, time_column=c.AS_OF)
    facts["truth_users"] = manifest.rows
    store.write_json(f"{staged}/{TRUTH_FILE}", facts)
    store.fs.mv(staged, raw, recursive=True)
    say(
        f"simulate: {rows:,} rows over {spec.days} days to {raw}, {rows - counts['clean']:,} of them dirt; "
        f"truth of {manifest.rows:,} users at {facts['cutoff']}"
    )
    return facts


def _write_log(spark: SparkSession, settings: Settings, folder: str, last: date, n_tasks: int) -> dict[str, int]:
    """Write `folder`/dt=…/part-*.csv.gz in order of arrival; returns the counts of line_counters."""
    spec, gap_s = settings.simulation, settings.sessions.gap_s
    per_day = spec.expected_rows(process_of(spec.process, gap_s, spec.seed)) / spec.days
    file_of_day = F.pmod(F.xxhash64(LINE), F.lit(math.ceil(per_day / _FILE_ROWS)))
    observation = Observation("lines")
    counters = [value.alias(name) for name, value in line_counters(spec).items()]
    (
        log_lines(spark, spec, gap_s, last, n_tasks)
        .repartition(c.DT, file_of_day)
        # Behind the shuffle: of the tasks that write each counts once, of those before it each time that it runs again.
        .observe(observation, *counters)
        .sortWithinPartitions(c.DT, ARRIVAL_MS, LINE)
        .select(F.col(LINE).alias(",".join(RAW_COLUMNS)), c.DT)
        .write.partitionBy(c.DT)
        .option("header", True)
        .option("sep", _NO_SEPARATOR)
        .option("quote", _NO_QUOTE)
        .option("compression", "gzip")
        .csv(folder)
    )
    return {name: int(count or 0) for name, count in observation.get.items()}


def _add_empty_days(store: Store, folder: str, days: Sequence[date]) -> None:
    """A day on which nothing arrived gets a file with the header alone, so that a missing day is noticed later."""
    header = gzip.compress((",".join(RAW_COLUMNS) + "\n").encode(), mtime=0)
    for day in days:
        path = f"{folder}/{c.DT}={day}"
        if not store.fs.exists(path):
            store.fs.makedirs(path)
            with store.fs.open(f"{path}/part-00000.csv.gz", "wb") as file:
                file.write(header)


def _run(arguments: argparse.Namespace) -> None:
    settings = load_settings(arguments.conf, arguments.set)
    spark = spark_session("interest-evolution simulate")
    show(arguments, simulate(spark, settings, arguments.root, arguments.date))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
