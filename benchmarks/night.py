"""A night on top of a long history, against the same log taken from the start; the rows compared first.

The log has the same number of events on each of its days. The night is its last day: sessions from the raw log of that
day and the open sessions of the day before, then the scoring sequences of the users it touched. The peer is one run of
both stages over the whole log. Starting the JVM and the Python workers is not counted.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import duckdb
from pyspark.sql import SparkSession

from benchmarks.logs import LAST_DAY, SOURCE, make_log_apart
from benchmarks.report import Row, in_turn, report
from features.contracts import SEQUENCES, SESSIONS
from jobs.histories import build_scoring_sequences
from jobs.history import session_chain
from jobs.layers import read_sequences
from jobs.sessionize import sessionize
from jobs.settings import Settings, load_settings
from jobs.spark import spark_session
from jobs.store import Store
from jobs.vocabulary import build_vocabulary

_NIGHTLY = (
    "flagged_users_v1",
    "held_events_v1",
    "histories_v1",
    "open_sessions_v1",
    "rejected_events_v1",
    "sequences_v1",
    "sessions_v1",
)


def split_log(log: Path, past: Path, night: Path) -> None:
    """Write the last day of a log to `night` and what came before it to `past`."""
    for place, condition in ((past, "<"), (night, ">=")):
        place.mkdir()
        duckdb.sql(
            f"COPY (SELECT * FROM read_parquet('{log}/*.parquet') WHERE event_time AT TIME ZONE 'UTC' {condition} "
            f"TIMESTAMP '{LAST_DAY}') TO '{place}/part.parquet' (FORMAT parquet, ROW_GROUP_SIZE 1000000)"
        )


def stages(spark: SparkSession, settings: Settings, log: Path, root: Path, days: int) -> None:
    """Sessions and scoring sequences of a run that ends on the log's last day and covers `days` days."""
    first, bootstrap = LAST_DAY - timedelta(days=days - 1), days > 1
    sessionize(spark, settings, SOURCE, [str(log)], str(root), first, LAST_DAY, bootstrap)
    build_scoring_sequences(spark, settings, str(root), LAST_DAY)


def forget(root: Path, dt: str) -> None:
    """Remove what a run of a day wrote, so that the next one starts where it did."""
    for table in _NIGHTLY:
        shutil.rmtree(root / table / f"dt={dt}", ignore_errors=True)


def differences(spark: SparkSession, mine: Path, theirs: Path) -> int:
    """Scoring rows and finished sessions that one root has and the other has not."""
    count = 0
    for read in (
        lambda store: read_sequences(spark, store, LAST_DAY),
        lambda store: spark.read.schema(SESSIONS.schema).parquet(
            *(store.path(SESSIONS.name, run.dt) for run in session_chain(store, LAST_DAY))
        ),
    ):
        ours, peers = read(Store(str(mine))), read(Store(str(theirs)))
        count += ours.exceptAll(peers).count() + peers.exceptAll(ours).count()
    return count


def main(argv: Sequence[str]) -> int:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.night", description=__doc__)
    parser.add_argument("--events", type=int, default=2_000_000, help="events of the history (default: 2,000,000)")
    parser.add_argument("--days", type=int, default=100, help="days of the history; each brings as much (default: 100)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each; the median is reported (default: 3)")
    parser.add_argument("--json", metavar="FILE", help="write JSON lines there; - for standard output")
    arguments = parser.parse_args(argv)
    settings, days = load_settings(), arguments.days + 1
    n_events = arguments.events * days // arguments.days
    with tempfile.TemporaryDirectory(prefix="interest-bench-") as place:
        log, past, night = (Path(place) / name for name in ("log", "past", "night"))
        make_log_apart(log, n_events, days=days)
        split_log(log, past, night)
        spark = spark_session("benchmark")
        root, rebuilt, before = Path(place) / "root", Path(place) / "rebuilt", LAST_DAY - timedelta(days=1)
        first = before - timedelta(days=arguments.days - 1)
        sessionize(spark, settings, SOURCE, [str(past)], str(root), first, before, bootstrap=True)
        build_vocabulary(spark, settings, str(root), before)
        build_scoring_sequences(spark, settings, str(root), before)
        shutil.copytree(root / "vocabulary_v1", rebuilt / "vocabulary_v1")

        def one_night() -> None:
            forget(root, str(LAST_DAY))
            stages(spark, settings, night, root, 1)

        def rebuild() -> None:
            forget(rebuilt, str(LAST_DAY))
            stages(spark, settings, log, rebuilt, days)

        measured = in_turn({"night": one_night, "rebuild": rebuild}, arguments.runs)
        touched = Store(str(root)).manifest(SEQUENCES.name, LAST_DAY, "").rows
        users = Store(str(rebuilt)).manifest(SEQUENCES.name, LAST_DAY, "").rows
        differing = differences(spark, root, rebuilt)
        spark.stop()
    if differing:
        print(f"error: the night and the rebuild differ in {differing:,} rows; no time counts.", file=sys.stderr)
        return 1
    print(f"The night touched {touched:,} of {users:,} users.", file=sys.stderr)
    seconds, peak = measured["night"]
    case = f"1 of {days} days, {n_events:,} events"
    report(
        [Row("night", case, "time", "s", seconds, measured["rebuild"][0], "rebuild", "lower", arguments.runs, peak)],
        arguments.json,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
