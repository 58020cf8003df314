"""Sessions of a day, or of many days in one pass: a raw log and yesterday's open sessions in, sessions out."""

import argparse
import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from typing import Any

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, Observation, SparkSession
from pyspark.sql import functions as F

from features import columns as c
from features.categories import with_categories
from features.contracts import (
    FLAGGED_USERS,
    HELD_EVENTS,
    OPEN_SESSIONS,
    REJECTED_EVENTS,
    SESSIONS,
    ContractError,
)
from features.denoising import BOT
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
from features.partitions import partitions_for, power_of_two
from features.pseudonyms import pseudonymous
from features.sessions import CutRules, events_by_user
from features.sources import SourceMap, read_log
from jobs.cli import day, run_job, say, show, stage_parser
from jobs.inputs import (
    KEY_INPUT,
    check_same_key,
    file_system_of,
    find_inputs,
    load_categories,
    load_key,
    load_source,
    readable_error,
)
from jobs.session_files import write_sessions
from jobs.settings import Settings, UsageError, config_hash, load_settings
from jobs.spark import even_splits, spark_session
from jobs.store import Lineage, Manifest, Store

_GZIP_GROWTH = 5  # text logs unpack to about this many times their gzip size
_CARRIED_GROWTH = 4  # text against Parquet, rather too much than too little: then the partitions are smaller
_OPEN_FROM = "open_from"  # counter: the first day whose sessions the next run may add to
_ENOUGH_ROWS = 100  # of a day after the first: not one of them with a category is no chance
# Counters of denoising. Flagged, capped and burst events are gone for good, held ones are not.
DENOISED = ("flagged_users", "events_flagged", "events_capped", "events_burst", "events_held")


@dataclass(frozen=True)
class Sessionized:
    """What a run of sessionize read and wrote."""

    rows_read: int
    rejected: dict[str, int]
    duplicates: int
    n_sessions: int
    n_open: int
    flagged_users: int
    events_flagged: int
    events_capped: int
    events_burst: int
    events_held: int


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
    """Write sessions_v1, open_sessions_v1, rejected_events_v1, flagged_users_v1 and held_events_v1 of the run.

    Their partition is its last day.

    inputs: files or folders of the raw log; `{date}` stands for each day of the run.
    categories: files with the items' categories, as the source map describes them; `{date}` is the last day.

    Raises:
        ContractError: an input is missing, empty or torn, or the day before has no open sessions and this is no
            bootstrap. Nothing that a later stage would accept is left behind.
    """
    store = Store(root)
    key = load_key(settings.cleaning.pseudonym_key_file)
    lineage_inputs: dict[str, str] = {KEY_INPUT: key.fingerprint} if key else {}
    carried, held, n_carried, carried_bytes, open_from = None, None, 0, 0, None
    if not bootstrap:
        yesterday = _open_sessions_before(store, first_day)
        check_same_key(yesterday, key)
        carried = store.read(spark, OPEN_SESSIONS, yesterday.dt, "jobs/sessionize.py")
        open_from = yesterday.counters.get(_OPEN_FROM)
        n_carried = int(yesterday.counters["events_open"]) + int(yesterday.counters["events_held"])
        lineage_inputs[f"{OPEN_SESSIONS.name}/{yesterday.dt}"] = yesterday.hash
        held_then = _held_events_of(store, yesterday)
        held = store.read(spark, HELD_EVENTS, yesterday.dt, "jobs/sessionize.py") if held_then.rows else None
        carried_bytes = sum(int(file["bytes"]) for file in [*yesterday.files, *held_then.files])
        lineage_inputs[f"{HELD_EVENTS.name}/{yesterday.dt}"] = held_then.hash
    since = date.fromisoformat(open_from) if open_from else None
    days = RunDays(first_day, last_day, settings.sessions.lateness_days, since)
    paths, n_bytes = find_inputs(store, inputs, first_day, last_day)
    lineage_inputs |= {path: str(size) for path, size in n_bytes.items()}
    category_paths, category_bytes = find_inputs(store, categories, last_day, last_day, "--categories")
    # Events do not tell of their items' categories, so the bytes are looked at: a corrected file may be as long.
    lineage_inputs |= {path: f"{size} {_digest(store, path)}" for path, size in category_bytes.items()}
    hashed = config_hash(settings.cleaning, settings.sessions, settings.denoising, source)

    try:
        of_items = load_categories(spark, source, category_paths)
        raw = read_log(spark, source, paths)
        raw = pseudonymous(raw, source, key) if key else raw
        parsed = parse_events(raw, source, settings.cleaning, days)
        observed = Observation("rows")
        events = parsed.drop(c.RAW) if of_items is None else with_categories(parsed.drop(c.RAW), of_items)
        counted = events.observe(observed, *(agg.alias(n) for n, agg in row_counters().items()))
        n_partitions = power_of_two(
            partitions_for(
                unpacked_bytes(n_bytes, carried_bytes),
                settings.sessions.partition_mib,
                spark.sparkContext.defaultParallelism,
            )
        )
        by_user = events_by_user(good_events(counted), carried, n_partitions, held)
        folder = store.staging(SESSIONS.name, last_day)
        refused = store.staging(REJECTED_EVENTS.name, last_day)
        rules = CutRules.of(settings.sessions, last_day)
        with even_splits(spark, sum(n_bytes.values())):
            staged = write_sessions(by_user, n_partitions, rules, store, folder, settings.denoising, refused)
        found = observed.get
        rejected = _write_rejected(spark, parsed, refused, n_partitions) if found[ROWS_REFUSED] else {}
        store.write_empty(REJECTED_EVENTS, refused)
        if found[ROWS_READ] != staged.read - n_carried + sum(rejected.values()):
            # Tasks that ran again after a lost executor were observed again: count anew.
            found = events.agg(*(agg.alias(n) for n, agg in row_counters().items())).collect()[0].asDict()
        counters: dict[str, Any] = {name: int(found[name] or 0) for name in row_counters()}
    except (PySparkException, Py4JJavaError) as error:
        raise readable_error(error, paths, list(category_bytes)) from error

    if counters[ROWS_READ] == counters[ROWS_REFUSED] and (counters[ROWS_READ] or carried is None):
        why = ", ".join(f"{reason}: {n:,}" for reason, n in rejected.items()) or "the log is empty"
        raise ContractError(
            f"{', '.join(paths)}: {counters['rows_read']:,} rows were read and none is usable ({why}). "
            f"Check the source map (columns, time_unit, actions) and the dates of the run ({first_day} to {last_day})."
        )
    accepted = counters[ROWS_READ] - counters[ROWS_REFUSED]
    if categories and not counters[WITH_CATEGORY] and (accepted >= _ENOUGH_ROWS or (bootstrap and accepted)):
        raise ContractError(
            f"--categories {', '.join(categories)}: no event's item has a category there. Check format, item and "
            f"category under categories: in the source map."
        )
    counters |= {f"rejected_{reason}": n for reason, n in rejected.items()}
    if staged.events_flagged:
        counters[f"rejected_{BOT}"] = staged.events_flagged
    counters |= {"events": staged.events, "events_open": staged.events_open, "digest": staged.digest}
    counters |= {name: getattr(staged, name) for name in DENOISED}
    counters[_OPEN_FROM] = str(days.left_open_from)
    counters["duplicates"] = accepted + n_carried - staged.distinct
    lineage = Lineage(lineage_inputs, hashed, counters)
    # Rejected rows first and open sessions last: tomorrow's run starts only from a day that is complete.
    store.retract(OPEN_SESSIONS, last_day)
    store.publish(REJECTED_EVENTS, last_day, refused, lineage)
    store.publish(FLAGGED_USERS, last_day, staged.flagged, lineage)
    store.publish(HELD_EVENTS, last_day, staged.held, lineage, c.EVENT_TIME)
    finished = store.publish(SESSIONS, last_day, staged.finished, lineage, c.SESSION_START)
    opened = store.publish(OPEN_SESSIONS, last_day, staged.opened, lineage, c.SESSION_START)
    store.fs.rm(folder, recursive=True)
    denoised = {name: counters[name] for name in DENOISED}
    return Sessionized(counters[ROWS_READ], rejected, counters["duplicates"], finished.rows, opened.rows, **denoised)


def _digest(store: Store, path: str) -> str:
    with file_system_of(store, path).open(path, "rb") as file:
        return str(hashlib.file_digest(file, "sha256").hexdigest()[:16])


def unpacked_bytes(log: Mapping[str, int], carried: int) -> int:
    """About how large the input of a run is as text, by which its shuffle is cut into partitions.

    log: bytes of each file of the raw log. carried: bytes of yesterday's open_sessions_v1 and held_events_v1.
    """
    of_log = sum(n_bytes * (_GZIP_GROWTH if path.endswith(".gz") else 1) for path, n_bytes in log.items())
    return of_log + carried * _CARRIED_GROWTH


def _write_rejected(spark: SparkSession, parsed: DataFrame, folder: str, n_partitions: int) -> dict[str, int]:
    """Add the refused rows, read from the log a second time, to a folder → rows by reason.

    Bots' events lie in the folder already and are not counted: they are no rows of the log.
    """
    rejected_events(parsed).coalesce(n_partitions).write.mode("append").parquet(folder)
    rows = spark.read.schema(REJECTED_EVENTS.schema).parquet(folder).where(F.col(c.REASON) != BOT)
    by_reason = rows.groupBy(c.REASON).count().orderBy(c.REASON).collect()
    return {row[c.REASON]: int(row["count"]) for row in by_reason}


def _open_sessions_before(store: Store, first_day: date) -> Manifest:
    try:
        return store.check(OPEN_SESSIONS, first_day - timedelta(days=1), "jobs/sessionize.py")
    except ContractError as error:
        raise ContractError(
            f"{error} Sessions are carried from day to day, so {first_day} cannot start without them; pass "
            f"--bootstrap if {first_day} is the first day of the log."
        ) from None


def _held_events_of(store: Store, yesterday: Manifest) -> Manifest:
    """Manifest of the events held back by the run that left the open sessions of `yesterday`."""
    held = store.check(HELD_EVENTS, yesterday.dt, "jobs/sessionize.py")
    if (held.inputs, held.config_hash, held.counters) != (yesterday.inputs, yesterday.config_hash, yesterday.counters):
        raise ContractError(
            f"{HELD_EVENTS.name} and {OPEN_SESSIONS.name} of {yesterday.dt} come from different runs. Run "
            f"jobs/sessionize.py for {yesterday.dt} again."
        )
    return held


def main(argv: Sequence[str]) -> int:
    """Command line of the stage."""
    return run_job(_work, parser(), argv)


def parser() -> argparse.ArgumentParser:
    """The flags of the stage."""
    flags = stage_parser("sessionize")
    flags.add_argument("--source", required=True, help="name of a map in conf/sources, or a YAML file")
    flags.add_argument(
        "--input", action="append", required=True, metavar="PATH", help="file or folder; {date} = each day of the run"
    )
    flags.add_argument(
        "--from", dest="first", type=day, metavar="DAY", help="first day of a backfill (default: --date)"
    )
    flags.add_argument(
        "--categories",
        action="append",
        default=[],
        metavar="PATH",
        help="file with the items' categories (the source map says how to read it); {date} = the last day",
    )
    flags.add_argument("--bootstrap", action="store_true", help="first day of the log: nothing is carried over")
    return flags


def _work(arguments: argparse.Namespace) -> None:
    settings, source = load_settings(arguments.conf, arguments.set), load_source(arguments.source)
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
    show(arguments, asdict(done))


def summary(done: Sessionized) -> str:
    """One line for people."""
    refused: dict[str, Any] = {reason: f"{n:,}" for reason, n in done.rejected.items()}
    why = f" ({', '.join(f'{reason} {n}' for reason, n in refused.items())})" if refused else ""
    noise = {
        "flagged for good": done.events_flagged,
        "capped": done.events_capped,
        "in bursts": done.events_burst,
        "held until their day is complete": done.events_held,
    }
    taken = ", ".join(f"{n:,} {name}" for name, n in noise.items() if n)
    users = f"; {done.flagged_users:,} users flagged" if done.flagged_users else ""
    denoised = f"{users}; events taken out: {taken}" if taken else ""
    return (
        f"{done.rows_read:,} rows read, {sum(done.rejected.values()):,} refused{why}, {done.duplicates:,} duplicates; "
        f"{done.n_sessions:,} sessions finished, {done.n_open:,} still open"
        f"{denoised}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
