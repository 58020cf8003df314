"""Sessions of a day, or of many days in one pass: a raw log and yesterday's open sessions in, sessions out."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, Observation, SparkSession

from features import columns as c
from features.categories import with_categories
from features.contracts import OPEN_SESSIONS, REJECTED_EVENTS, SESSIONS, ContractError
from features.events import (
    ROWS_READ,
    ROWS_REFUSED,
    WITH_CATEGORY,
    RunDays,
    good_events,
    parse_events,
    rejected_events,
    row_counters,
)
from features.partitions import partitions_for
from features.pseudonyms import pseudonymous
from features.sessions import CutRules, events_by_user
from features.sources import SourceMap, read_log
from jobs.cli import day, run_job, say, stage_parser
from jobs.inputs import (
    KEY_INPUT,
    check_same_key,
    find_inputs,
    load_categories,
    load_key,
    load_source,
    readable_error,
)
from jobs.session_files import write_sessions
from jobs.settings import Settings, UsageError, config_hash, load_settings
from jobs.spark import spark_session
from jobs.store import Lineage, Manifest, Store

_GZIP_GROWTH = 5  # text logs unpack to about this many times their gzip size
_CARRIED_GROWTH = 4  # open sessions unpack to about this many times their bytes in Parquet (as in jobs/sequences.py)


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
    categories: Sequence[str] = (),
) -> Sessionized:
    """Write sessions_v1, open_sessions_v1 and rejected_events_v1 of the run; their partition is its last day.

    inputs: files or folders of the raw log; `{date}` stands for each day of the run.
    categories: files with the items' categories, as the source map describes them; `{date}` is the last day.

    Raises:
        ContractError: an input is missing, empty or torn, or the day before has no open sessions and this is no
            bootstrap. Nothing that a later stage would accept is left behind.
    """
    store = Store(root)
    key = load_key(settings.cleaning.pseudonym_key_file)
    days = RunDays(first_day, last_day, settings.sessions.lateness_days)
    lineage_inputs: dict[str, str] = {KEY_INPUT: key.fingerprint} if key else {}
    carried, n_carried, carried_bytes = None, 0, 0
    if not bootstrap:
        yesterday = _open_sessions_before(store, first_day)
        check_same_key(yesterday, key)
        carried = store.read(spark, OPEN_SESSIONS, yesterday.dt, "jobs/sessionize.py")
        n_carried = int(yesterday.counters["events_open"])
        carried_bytes = sum(int(file["bytes"]) for file in yesterday.files)
        lineage_inputs[f"{OPEN_SESSIONS.name}/{yesterday.dt}"] = yesterday.hash
    paths, n_bytes = find_inputs(store, inputs, first_day, last_day)
    lineage_inputs |= {path: str(size) for path, size in n_bytes.items()}
    category_paths, category_bytes = find_inputs(store, categories, last_day, last_day, "--categories")
    lineage_inputs |= {path: str(size) for path, size in category_bytes.items()}
    hashed = config_hash(settings.cleaning, settings.sessions, source)

    try:
        of_items = load_categories(spark, source, category_paths)
        raw = read_log(spark, source, paths)
        raw = pseudonymous(raw, source, key) if key else raw
        parsed = parse_events(raw, source, settings.cleaning, days)
        observed = Observation("rows")
        events = parsed.drop(c.RAW) if of_items is None else with_categories(parsed.drop(c.RAW), of_items)
        counted = events.observe(observed, *(agg.alias(n) for n, agg in row_counters().items()))
        n_partitions = partitions_for(
            unpacked_bytes(n_bytes, carried_bytes),
            settings.sessions.partition_mib,
            spark.sparkContext.defaultParallelism,
        )
        by_user = events_by_user(good_events(counted), carried, n_partitions)
        folder = store.staging(SESSIONS.name, last_day)
        staged = write_sessions(by_user, CutRules.of(settings.sessions, last_day), store, folder)
        found = observed.get
        counters: dict[str, Any] = {name: int(found[name] or 0) for name in row_counters()}
        refused = store.staging(REJECTED_EVENTS.name, last_day)
        rejected: dict[str, int] = {}
        if counters[ROWS_REFUSED]:
            rejected = _write_rejected(spark, parsed, refused, n_partitions)
        store.write_empty(REJECTED_EVENTS, refused)
    except (PySparkException, Py4JJavaError) as error:
        raise readable_error(error, paths) from error

    if counters[ROWS_READ] == counters[ROWS_REFUSED] and (counters[ROWS_READ] or carried is None):
        why = ", ".join(f"{reason}: {n:,}" for reason, n in rejected.items()) or "the log is empty"
        raise ContractError(
            f"{', '.join(paths)}: {counters['rows_read']:,} rows were read and none is usable ({why}). "
            f"Check the source map (columns, time_unit, actions) and the dates of the run ({first_day} to {last_day})."
        )
    if categories and not counters[WITH_CATEGORY]:
        raise ContractError(
            f"--categories {', '.join(categories)}: no event's item has a category there. Check format, item and "
            f"category under categories: in the source map."
        )
    accepted = counters[ROWS_READ] - counters[ROWS_REFUSED]
    counters |= {f"rejected_{reason}": n for reason, n in rejected.items()}
    counters |= {"events": staged.events, "events_open": staged.events_open, "digest": staged.digest}
    counters["duplicates"] = accepted + n_carried - staged.events
    lineage = Lineage(lineage_inputs, hashed, counters)
    # Rejected rows first and open sessions last: tomorrow's run starts only from a day that is complete.
    store.retract(OPEN_SESSIONS, last_day)
    store.publish(REJECTED_EVENTS, last_day, refused, lineage)
    finished = store.publish(SESSIONS, last_day, staged.finished, lineage, c.SESSION_START)
    opened = store.publish(OPEN_SESSIONS, last_day, staged.opened, lineage, c.SESSION_START)
    store.fs.rm(folder, recursive=True)
    return Sessionized(counters[ROWS_READ], rejected, counters["duplicates"], finished.rows, opened.rows)


def unpacked_bytes(log: Mapping[str, int], carried: int) -> int:
    """About how large the input of a run is as text, by which its shuffle is cut into partitions.

    log: bytes of each file of the raw log. carried: bytes of yesterday's open_sessions_v1.
    """
    of_log = sum(n_bytes * (_GZIP_GROWTH if path.endswith(".gz") else 1) for path, n_bytes in log.items())
    return of_log + carried * _CARRIED_GROWTH


def _write_rejected(spark: SparkSession, parsed: DataFrame, folder: str, n_partitions: int) -> dict[str, int]:
    """Write the refused rows, read from the log a second time → rows by reason."""
    rejected_events(parsed).coalesce(n_partitions).write.parquet(folder)
    by_reason = spark.read.parquet(folder).groupBy(c.REASON).count().orderBy(c.REASON).collect()
    return {row[c.REASON]: int(row["count"]) for row in by_reason}


def _open_sessions_before(store: Store, first_day: date) -> Manifest:
    try:
        return store.check(OPEN_SESSIONS, first_day - timedelta(days=1), "jobs/sessionize.py")
    except ContractError as error:
        raise ContractError(
            f"{error} Sessions are carried from day to day, so {first_day} cannot start without them; pass "
            f"--bootstrap if {first_day} is the first day of the log."
        ) from None


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
    parser.add_argument(
        "--categories",
        action="append",
        default=[],
        metavar="PATH",
        help="file with the items' categories (the source map says how to read it); {date} = the last day",
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
            arguments.categories,
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
