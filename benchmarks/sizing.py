"""What `jobs.plan` says beforehand, against what then happens: rows, tasks, bytes shuffled, memory, seconds.

A log of equal days. Its first days are run, which leaves sizes and times at the root, as a first small run does; the
rest is planned, then run in a session of its own. Bytes are those of Spark's event log; memory is the most that one
Python worker held, which is used again from stage to stage. Training is left out: how many epochs it takes is not known
beforehand. Validation and test have a day each, so that a week is enough for the first run. The bundle that scores has
random weights.
"""

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import date, timedelta
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import yaml
from pyspark.sql import SparkSession

from benchmarks.logs import DAYS, LAST_DAY, SOURCE, make_log_apart, split_log
from benchmarks.report import Row, report
from benchmarks.score_world import write_bundle
from features.contracts import VOCABULARY
from jobs.plan import Plan, parser, plan
from jobs.score import score
from jobs.sequences import build_sequences
from jobs.sessionize import sessionize
from jobs.settings import Settings, load_settings
from jobs.spark import last_stage, shuffled_bytes, spark_session
from jobs.stage_times import StageRun, write_stages
from jobs.store import Store
from jobs.vocabulary import build_vocabulary
from model.bundle import vocabulary_lists
from model.spec import HEADS

STAGES = ("sessionize", "vocabulary", "sequences", "score")
_MIB = 1 << 20


class Watch:
    """Wall-clock span of each stage, and the most memory of a Python worker in it."""

    def __init__(self) -> None:
        self.spans: dict[str, tuple[float, float]] = {}
        self.runs: list[StageRun] = []
        self.peak_mib: dict[str, float] = {}

    @contextmanager
    def over(self, stage: str, every_s: float = 0.1) -> Iterator[None]:
        """Watch while a stage runs."""
        done, began, before, peak = threading.Event(), time.time(), last_stage(), 0

        def sample() -> None:
            nonlocal peak
            while not done.wait(every_s):
                peak = max([peak, *map(_own_bytes, _python_workers())])

        sampler = threading.Thread(target=sample, daemon=True)
        sampler.start()
        try:
            yield
        finally:
            done.set()
            sampler.join()
            self.spans[stage] = (began, time.time())
            self.runs.append(StageRun(stage, time.time() - began, shuffled_bytes(before)))
            self.peak_mib[stage] = peak / _MIB


def run(spark: SparkSession, settings: Settings, log: Path, root: Path, first: date, last: date, is_new: bool) -> Watch:
    """All stages of a day but training."""
    watch, store = Watch(), Store(str(root))
    works: dict[str, Callable[[], object]] = {
        "sessionize": lambda: sessionize(spark, settings, SOURCE, [str(log)], str(root), first, last, is_new),
        "vocabulary": lambda: build_vocabulary(spark, settings, str(root), last),
        "sequences": lambda: build_sequences(spark, settings, str(root), last),
        "score": lambda: score(spark, settings, str(root), last, full=True),
    }
    for stage, work in works.items():
        if stage == "score":
            tokens, counts = vocabulary_lists(pq.read_table(store.path(VOCABULARY.name, last)))
            found = store.check(VOCABULARY, last, "jobs/vocabulary.py").hash
            write_bundle(root, last, tokens, counts, found, settings, HEADS)
        with watch.over(stage):
            work()
    return watch


def happened(events: Path, watch: Watch) -> dict[str, dict[str, float]]:
    """MiB shuffled, seconds and memory of each stage of ours, by the times in Spark's event log."""
    found: dict[str, dict[str, float]] = {}
    tasks = [
        record
        for path in events.glob("[!.]*")  # beside each lies a hidden checksum
        for record in map(json.loads, path.read_text(encoding="utf-8").splitlines())
        if record["Event"] == "SparkListenerTaskEnd"
    ]
    for stage, (began, end) in watch.spans.items():
        own = [task for task in tasks if began <= task["Task Info"]["Launch Time"] / 1000 <= end]
        shuffled = sum(task["Task Metrics"]["Shuffle Write Metrics"]["Shuffle Bytes Written"] for task in own) / _MIB
        found[stage] = {"shuffled": shuffled, "seconds": end - began, "worker": watch.peak_mib[stage]}
    return found


def main(argv: Sequence[str]) -> int:
    """Command line of the benchmark."""
    flags = argparse.ArgumentParser(prog="python -m benchmarks.sizing", description=__doc__)
    flags.add_argument("--events", type=int, default=20_000_000, help="events that are planned (default: 20,000,000)")
    flags.add_argument("--first-days", type=int, default=7, metavar="N", help=f"days of {DAYS} run before (default: 7)")
    flags.add_argument("--json", metavar="FILE", help="write JSON lines there; - for standard output")
    arguments = flags.parse_args(argv)
    settings = load_settings(assignments=["sequences.split.valid_days=1", "sequences.split.test_days=1"])
    with tempfile.TemporaryDirectory(prefix="interest-bench-") as place:
        log, past, rest, root, events = (Path(place) / name for name in ("log", "past", "rest", "root", "events"))
        events.mkdir()
        begin = LAST_DAY - timedelta(days=DAYS - 1)
        before = begin + timedelta(days=arguments.first_days - 1)
        make_log_apart(log, arguments.events * DAYS // (DAYS - arguments.first_days))
        split_log(log, before, past, rest)
        os.environ["PYSPARK_SUBMIT_ARGS"] = (
            f"--conf spark.eventLog.enabled=true --conf spark.eventLog.dir={events.as_uri()} pyspark-shell"
        )
        spark = spark_session("benchmark")
        cores = spark.sparkContext.defaultParallelism
        earlier = run(spark, settings, past, root, begin, before, True)
        write_stages(Store(str(root)), before, earlier.runs, cores)
        spark.stop()  # the next run is a process of its own
        spark = spark_session("benchmark")
        planned = _planned(settings, place, rest, root, before + timedelta(days=1), cores)
        watch = run(spark, settings, rest, root, before + timedelta(days=1), LAST_DAY, False)
        known = _planned(settings, place, None, root, None, cores)  # sizes as they then are
        spark.stop()
        measured = happened(events, watch)
    rows = []
    actual = {stage.name: stage for stage in known.stages}
    for stage in planned.stages:
        said, was = asdict(stage), measured[stage.name]
        pairs = {
            "size": (said["size"], actual[stage.name].size, stage.unit),
            "shuffled": (said["shuffle_mib"], was["shuffled"], "MiB"),
            "worker": (said["task_mib"], was["worker"], "MiB"),
            "time": (said["seconds"], was["seconds"], "s"),
        }
        rows += [
            Row("sizing", stage.name, name, unit, float(mine), float(real), "as it came", "equal", 1, was["worker"])
            for name, (mine, real, unit) in pairs.items()
            if mine and real
        ]
    report(rows, arguments.json)
    return 0


def _planned(settings: Settings, place: str, log: Path | None, root: Path, first: date | None, cores: int) -> Plan:
    """The plan of a log on top of a root, or of the root as it is."""
    words = ["--root", str(root), "--date", str(LAST_DAY), "--cores", str(cores)]
    if log:
        source = Path(place) / "source.yaml"
        source.write_text(yaml.safe_dump(SOURCE.model_dump(mode="json", exclude_defaults=True)), encoding="utf-8")
        words += ["--source", str(source), "--input", str(log), "--from", str(first)]
    arguments = parser().parse_args(words)
    arguments.job = "plan"
    return plan(settings, arguments, STAGES)


def _python_workers() -> list[psutil.Process]:
    """Processes that run our Python for Spark: forked by its daemons."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            parent = process.parent()
            if parent and all("pyspark.daemon" in of.cmdline() for of in (process, parent)):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def _own_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
