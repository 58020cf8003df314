"""Sessionizing a Parquet log: the nightly stage against DuckDB and Polars on the same files, results compared first.

All three read the same files, drop repeated rows, cut sessions at 30 minutes of silence and write each session with
its events in order to Parquet. Starting the JVM and the Python workers is not counted.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import duckdb
import polars as pl
from pyspark.sql import SparkSession

from benchmarks.logs import LAST_DAY, SOURCE, make_log, make_log_apart
from benchmarks.report import Row, in_turn, report
from features.denoising import DenoisingSpec
from jobs.sessionize import sessionize
from jobs.settings import Settings, load_settings
from jobs.spark import spark_session

GAP_S = 1_800


def peer_settings() -> Settings:
    """What the peers do: sessions end with the gap, nothing is waited for, nothing is taken for noise."""
    rules = [f"denoising.{name}=0" for name in DenoisingSpec.model_fields]
    return load_settings(assignments=["sessions.lateness_days=0", f"sessions.gap_s={GAP_S}", *rules])


def ours(spark: SparkSession, settings: Settings, log: Path, root: Path) -> None:
    """The nightly stage itself."""
    shutil.rmtree(root, ignore_errors=True)
    sessionize(spark, settings, SOURCE, [str(log)], str(root), date(2024, 3, 1), LAST_DAY, bootstrap=True)


def with_duckdb(log: Path, out: Path, threads: int) -> None:
    """The same in one SQL statement."""
    connection = duckdb.connect(config={"threads": threads})
    connection.execute("SET preserve_insertion_order = false; SET TimeZone = 'UTC'")
    connection.execute(f"""
        COPY (
          WITH once AS (SELECT DISTINCT * FROM read_parquet('{log}/*.parquet')),
          marked AS (
            SELECT *, coalesce(event_time - lag(event_time) OVER by_user > INTERVAL {GAP_S} SECONDS, true) AS starts
            FROM once WINDOW by_user AS (PARTITION BY user_id ORDER BY event_time, position)
          ),
          numbered AS (
            SELECT *, sum(starts::INT) OVER (
              PARTITION BY user_id ORDER BY event_time, position ROWS UNBOUNDED PRECEDING) AS session
            FROM marked
          )
          SELECT user_id, min(event_time) AS session_start, max(event_time) AS session_end, count(*)::INT AS n_events,
            list({{'position': position, 'item_id': item_id, 'category_id': category_id, 'action': action,
                  'event_time': event_time}} ORDER BY event_time, position) AS events
          FROM numbered GROUP BY user_id, session
        ) TO '{out}' (FORMAT parquet)
    """)
    connection.close()


def with_polars(log: Path, out: Path) -> None:
    """The same as a lazy frame."""
    by_user = pl.scan_parquet(f"{log}/*.parquet").unique().sort("user_id", "event_time", "position")
    silent = pl.col("event_time").diff() > pl.duration(seconds=GAP_S)
    starts = (pl.col("user_id") != pl.col("user_id").shift()) | silent
    event = pl.struct("position", "item_id", "category_id", "action", "event_time")
    sessions = (
        by_user.with_columns(starts.fill_null(True).cum_sum().alias("session"))
        .group_by("session")
        .agg(
            pl.col("user_id").first(),
            pl.col("event_time").first().alias("session_start"),
            pl.col("event_time").last().alias("session_end"),
            pl.len().alias("n_events"),
            event.alias("events"),
        )
    )
    sessions.collect().write_parquet(out)


def differences(mine: str, theirs: str) -> int:
    """Sessions that one result has and the other has not, compared with all their events in order."""
    sessions = [
        f"""
        SELECT user_id, epoch_us(session_start), epoch_us(session_end), n_events, md5(list_transform(events, lambda e:
          ({position}, e.item_id, e.category_id, e.action, epoch_us(e.event_time)))::TEXT)
        FROM read_parquet('{files}')
        """
        for files, position in ((mine, "e.event_id >> 20"), (theirs, "e.position"))
    ]
    both = f"({sessions[0]} EXCEPT ALL {sessions[1]}) UNION ALL ({sessions[1]} EXCEPT ALL {sessions[0]})"
    ((count,),) = duckdb.sql(f"SELECT count(*) FROM ({both})").fetchall()
    return int(count)


def main(argv: Sequence[str]) -> int:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sessionize", description=__doc__)
    parser.add_argument("--events", type=int, default=2_000_000, help="events of the log (default: 2,000,000)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each; the median is reported (default: 3)")
    parser.add_argument("--grow-to", type=int, metavar="N", help="then time the stage alone, once, on N events")
    parser.add_argument("--json", metavar="FILE", help="write JSON lines there; - for standard output")
    arguments = parser.parse_args(argv)
    settings = peer_settings()
    with tempfile.TemporaryDirectory(prefix="interest-bench-") as place:
        log, root = Path(place) / "log", Path(place) / "ours"
        make_log_apart(log, arguments.events)
        spark = spark_session("benchmark")
        warm = Path(place) / "warm"
        make_log(warm, 10_000)
        ours(spark, settings, warm, root)
        works = {
            "ours": lambda: ours(spark, settings, log, root),
            "duckdb": lambda: with_duckdb(log, Path(place) / "duckdb.parquet", os.cpu_count() or 1),
            "polars": lambda: with_polars(log, Path(place) / "polars.parquet"),
        }
        measured = in_turn(works, arguments.runs)
        mine = f"{root}/*sessions_v1/dt={LAST_DAY}/*.parquet"
        for peer in ("duckdb", "polars"):
            differing = differences(mine, f"{place}/{peer}.parquet")
            if differing:
                print(f"error: {peer} and the stage differ in {differing:,} sessions; no time counts.", file=sys.stderr)
                return 1
        seconds, peak = measured["ours"]
        case = f"{arguments.events:,} events"
        rows = [
            Row("sessionize", case, "time", "s", seconds, measured[peer][0], peer, "lower", arguments.runs, peak)
            for peer in ("duckdb", "polars")
        ]
        if arguments.grow_to:
            more = Path(place) / "more"
            make_log_apart(more, arguments.grow_to)
            grown, peak = in_turn({"ours": lambda: ours(spark, settings, more, root)}, 1)["ours"]
            peer = f"ours on {case}"
            rows.append(
                Row("sessionize", f"{arguments.grow_to:,} events", "time", "s", grown, seconds, peer, "lower", 1, peak)
            )
        spark.stop()
    report(rows, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
