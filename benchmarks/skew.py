"""Sessionizing a log with a heavy user, a heavy item or a crowded second, against the same number of events without."""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.logs import SKEWS, make_log, make_log_apart
from benchmarks.report import Row, in_turn, report
from benchmarks.sessionize import ours, peer_settings
from jobs.spark import spark_session


def main(argv: Sequence[str]) -> int:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.skew", description=__doc__)
    parser.add_argument("--events", type=int, default=5_000_000, help="events of each log (default: 5,000,000)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each; the median is reported (default: 3)")
    parser.add_argument("--json", metavar="FILE", help="write JSON lines there; - for standard output")
    arguments = parser.parse_args(argv)
    settings = peer_settings()
    with tempfile.TemporaryDirectory(prefix="interest-bench-") as place:
        warm, root = Path(place) / "warm", Path(place) / "ours"
        make_log(warm, 10_000)
        logs = {"none": Path(place) / "none"} | {skew: Path(place) / f"skew-{k}" for k, skew in enumerate(SKEWS)}
        for skew, log in logs.items():
            make_log_apart(log, arguments.events, skew=None if skew == "none" else skew)
        spark = spark_session("benchmark")
        ours(spark, settings, warm, root)

        def run(log: Path) -> None:
            ours(spark, settings, log, root)

        measured = in_turn({skew: partial(run, log) for skew, log in logs.items()}, arguments.runs)
        spark.stop()
    even, _ = measured["none"]
    report(
        [
            Row(
                "skew",
                skew,
                "time",
                "s",
                measured[skew][0],
                even,
                "without",
                "lower",
                arguments.runs,
                measured[skew][1],
            )
            for skew in SKEWS
        ],
        arguments.json,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
