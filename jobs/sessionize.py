"""Sessions of a day, or of many days in one pass: a raw log and yesterday's open sessions in, sessions out."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import Observation, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import to_arrow_schema

from features import columns as c
from features.contracts import OPEN_SESSIONS, REJECTED_EVENTS, SESSIONS, ContractError, conform
from features.events import (
    RunDays,
    good_events,
    parse_events,
    rejected_events,
    rejection_counters,
)
from features.partitions import partitions_for
from features.sessions import FINISHED, OPEN, STATE, cut_sessions
from features.sources import SourceMap, read_log
from jobs.cli import day, run_job, say, stage_parser
from jobs.inputs import find_inputs, load_source, readable_error
from jobs.settings import Settings, UsageError, config_hash, load_settings
from jobs.spark import spark_session
from jobs.store import Lineage, Manifest, Store

_GZIP_GROWTH = 5  # text logs unpack to about this many times their gzip size


@dataclass(frozen=True)
class Sessionized:
    """What a run of sessionize read and wrote."""

    rows_read: int
    rejected: dict[str, int]
    duplicates: int
    n_sessions: int
    n_open: int


def sessionize(
    spark: SparkSession,
    settings: Settings,
    source: SourceMap,
    inputs: Sequence[str],
    root: str,
    first_day: date,
    last_day: date,
    bootstrap: bool,
) -> Sessionized:
    """Write sessions_v1, open_sessions_v1 and rejected_events_v1 of the run; their partition is its last day.

    inputs: files or folders of the raw log; `{date}` stands for each day of the run.

    Raises:
        ContractError: an input is missing, empty or torn, or the day before has no open sessions and this is no
            bootstrap. Nothing that a later stage would accept is left behind.
    """
    store = Store(root)
    days = RunDays(first_day, last_day, settings.sessions.lateness_days)
    lineage_inputs: dict[str, str] = {}
    carried, n_carried = None, 0
    if not bootstrap:
        yesterday = _open_sessions_before(store, first_day)
        carried = store.read(spark, OPEN_SESSIONS, yesterday.dt, "jobs/sessionize.py")
        n_carried = int(yesterday.counters["events_open"])
        lineage_inputs[f"{OPEN_SESSIONS.name}/{yesterday.dt}"] = yesterday.hash
    paths, n_bytes = find_inputs(store, inputs, first_day, last_day)
    lineage_inputs |= {path: str(size) for path, size in n_bytes.items()}
    hashed = config_hash(settings.cleaning, settings.sessions, source)

    try:
        parsed = parse_events(read_log(spark, source, paths), source, settings.cleaning, days)
        observed = Observation("rows")
        counted = parsed.drop(c.RAW).observe(observed, *(agg.alias(n) for n, agg in rejection_counters().items()))
        n_partitions = partitions_for(
            sum(n_bytes.values()) * (_GZIP_GROWTH if any(path.endswith(".gz") for path in n_bytes) else 1),
            settings.sessions.partition_mib,
            spark.sparkContext.defaultParallelism,
        )
        cut = Observation("sessions")
        sessions = cut_sessions(good_events(counted), carried, settings.sessions, last_day, n_partitions).observe(
            cut,
            F.sum(c.N_EVENTS).alias("events"),
            F.sum(F.when(F.col(STATE) == OPEN, F.col(c.N_EVENTS))).alias("events_open"),
        )
        staged = store.staging(SESSIONS.name, last_day)
        sessions.write.partitionBy(STATE).parquet(staged)
        found = observed.get | cut.get
        counters = {name: int(found[name] or 0) for name in [*rejection_counters(), "events", "events_open"]}
        rejected = {n.removeprefix("rejected_"): v for n, v in counters.items() if n.startswith("rejected_") and v}
        refused = store.staging(REJECTED_EVENTS.name, last_day)
        if rejected:
            rejected_events(parsed).coalesce(n_partitions).write.parquet(refused)
        else:
            conform(spark.createDataFrame([], REJECTED_EVENTS.schema), REJECTED_EVENTS).write.parquet(refused)
    except (PySparkException, Py4JJavaError) as error:
        raise readable_error(error, paths) from error

    if counters["rows_read"] == sum(rejected.values()) and carried is None:
        why = ", ".join(f"{reason}: {n:,}" for reason, n in rejected.items()) or "the log is empty"
        raise ContractError(
            f"{', '.join(paths)}: {counters['rows_read']:,} rows were read and none is usable ({why}). "
            f"Check the source map (columns, time_unit, actions) and the dates of the run ({first_day} to {last_day})."
        )
    accepted = counters["rows_read"] - sum(rejected.values())
    counters["duplicates"] = accepted + n_carried - counters["events"]
    return _publish(store, staged, refused, last_day, Lineage(lineage_inputs, hashed, counters), rejected)


def _open_sessions_before(store: Store, first_day: date) -> Manifest:
    try:
        return store.check(OPEN_SESSIONS, first_day - timedelta(days=1), "jobs/sessionize.py")
    except ContractError as error:
        raise ContractError(
            f"{error} Sessions are carried from day to day, so {first_day} cannot start without them; pass "
            f"--bootstrap if {first_day} is the first day of the log."
        ) from None


def _publish(
    store: Store, staged: str, refused: str, last_day: date, lineage: Lineage, rejected: dict[str, int]
) -> Sessionized:
    """Publish rejected rows first and open sessions last: tomorrow's run starts only from a complete day."""
    store.publish(REJECTED_EVENTS, last_day, refused, lineage)
    finished = store.publish(SESSIONS, last_day, _staged(store, staged, FINISHED), lineage, c.SESSION_START)
    opened = store.publish(OPEN_SESSIONS, last_day, _staged(store, staged, OPEN), lineage, c.SESSION_START)
    store.fs.rm(staged, recursive=True)
    counters = lineage.counters
    return Sessionized(counters["rows_read"], rejected, counters["duplicates"], finished.rows, opened.rows)


def _staged(store: Store, staged: str, state: str) -> str:
    """The staged folder of one state; where no session has it, with an empty file, so that its schema is readable."""
    path = f"{staged}/{STATE}={state}"
    if not store.fs.exists(path):
        store.fs.makedirs(path, exist_ok=True)
        with store.fs.open(f"{path}/part-empty.parquet", "wb") as file:
            pq.write_table(pa.Table.from_batches([], to_arrow_schema(SESSIONS.schema)), file)
    return path


def main(argv: Sequence[str]) -> int:
    """Command line of the stage."""
    parser = stage_parser("sessionize", "Cut a raw behaviour log into sessions; finished ones come out once.")
    parser.add_argument("--source", required=True, help="name of a map in conf/sources, or a YAML file")
    parser.add_argument(
        "--input", action="append", required=True, metavar="PATH", help="file or folder; {date} = each day of the run"
    )
    parser.add_argument(
        "--from", dest="first", type=day, metavar="DAY", help="first day of a backfill (default: --date)"
    )
    parser.add_argument("--bootstrap", action="store_true", help="first day of the log: nothing is carried over")

    def work(arguments: argparse.Namespace) -> None:
        settings = load_settings(arguments.conf, arguments.set)
        source = load_source(arguments.source)
        first = arguments.first or arguments.date
        if first > arguments.date:
            raise UsageError(f"--from {first} lies after --date {arguments.date}.")
        done = sessionize(
            spark_session("sessionize"),
            settings,
            source,
            arguments.input,
            arguments.root,
            first,
            arguments.date,
            arguments.bootstrap,
        )
        say(summary(done))

    return run_job(work, parser, argv)


def summary(done: Sessionized) -> str:
    """One line for people."""
    refused: dict[str, Any] = {reason: f"{n:,}" for reason, n in done.rejected.items()}
    why = f" ({', '.join(f'{reason} {n}' for reason, n in refused.items())})" if refused else ""
    return (
        f"{done.rows_read:,} rows read, {sum(done.rejected.values()):,} refused{why}, {done.duplicates:,} duplicates; "
        f"{done.n_sessions:,} sessions finished, {done.n_open:,} still open"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
