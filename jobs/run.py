"""The whole path in one command: a raw log in, every user's future interests out, with a line for each stage."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date, timedelta
from math import lcm
from typing import TypeVar

from pyspark.sql import SparkSession

from features.contracts import (
    DRIFT,
    FLAGGED_USERS,
    OPEN_SESSIONS,
    REJECTED_EVENTS,
    SCORES,
    SCORES_EXPLODED,
    SEQUENCES,
    SESSIONS,
    SIMULATED_TRUTH,
    TRAINING_SEQUENCES,
    VOCABULARY,
    Contract,
)
from features.sources import SourceMap
from jobs import score as scoring
from jobs import sequences as encoding
from jobs import sessionize as cutting
from jobs import vocabulary as counting
from jobs.cli import day, run_job, say, show, stage_parser
from jobs.evaluate import evaluate, evaluation_facts
from jobs.evaluation_table import EvaluationResult, format_table
from jobs.feeds import feed_tables
from jobs.inputs import find_inputs, load_source, log_span
from jobs.observing import begin_stage
from jobs.report import report
from jobs.root_lock import exclusive
from jobs.settings import CONF_DIR, Settings, UsageError, load_settings
from jobs.simulate import RAW, simulate
from jobs.spark import last_stage, shuffled_bytes, spark_session
from jobs.stage_times import StageRun, write_stages
from jobs.store import Store
from jobs.terminal import BOLD, paint
from jobs.train import launch
from jobs.words import users_in_words

DEMO_CONF = CONF_DIR / "demo.yaml"
DEMO_DATE = date(2024, 6, 30)  # any fixed day: the demo's log is the same on every machine and day
DEMO_SOURCE = "simulated"
_USERS_IN_WORDS = 5
_FEED_WORDS = {DRIFT.name: "those whose interests move most", SCORES_EXPLODED.name: "the scores, one item a row"}

Result = TypeVar("Result")


class Stages:
    """Numbers the stages, says what each does, what came out and how long it took."""

    def __init__(self, n_stages: int) -> None:
        self._n_stages = n_stages
        self._done = 0
        self._started = time.monotonic()
        self.runs: list[StageRun] = []  # every stage that is done

    def run(self, name: str, what: str, work: Callable[[], Result], summary: Callable[[Result], str]) -> Result:
        """Do one stage between two lines; an error of the stage passes through."""
        self._done += 1
        begin_stage(name)
        label = paint(f"[{self._done}/{self._n_stages}] {name}", BOLD, sys.stderr)
        say(f"{label}: {what} …")
        started, before = time.monotonic(), last_stage()
        result = work()
        self.runs.append(StageRun(name, time.monotonic() - started, shuffled_bytes(before)))
        say(f"{label}: {summary(result)} ({self.runs[-1].seconds:.1f} s)")
        return result

    @property
    def seconds(self) -> float:
        """Since the start of the first stage."""
        return time.monotonic() - self._started


def run(arguments: argparse.Namespace) -> None:
    """All stages for one day; what an earlier run of that day wrote is replaced."""
    _check(arguments)
    overlays = [str(DEMO_CONF), *arguments.conf] if arguments.demo else list(arguments.conf)
    settings = load_settings(overlays, arguments.set)
    _check_ranks(arguments.ranks, settings.training.streams, settings.sequences.world_sizes)
    source = load_source(arguments.source or DEMO_SOURCE)
    with exclusive(Store(arguments.root), "jobs.run", say):
        _run_stages(arguments, overlays, settings, source)


def _run_stages(arguments: argparse.Namespace, overlays: Sequence[str], settings: Settings, source: SourceMap) -> None:
    root, store, categories = arguments.root, Store(arguments.root), arguments.categories
    stages = Stages(8 if arguments.demo else 7)
    spark = spark_session("run")

    if arguments.demo:
        last = arguments.date or DEMO_DATE
        first = last - timedelta(days=settings.simulation.days - 1)
        inputs = [f"{store.root}/{RAW}"]
        stages.run(
            "simulate",
            f"{settings.simulation.users:,} users over {settings.simulation.days} days to {last}",
            lambda: simulate(spark, settings, root, last),
            lambda facts: f"{facts['rows']:,} rows of raw log",
        )
    else:
        inputs = arguments.input
        first, last = _span(spark, settings, source, arguments, store)
    stages.run(
        "sessionize",
        f"cleaning the log and cutting sessions, {first} to {last}",
        lambda: cutting.sessionize(spark, settings, source, inputs, root, first, last, True, categories),
        cutting.summary,
    )
    stages.run(
        "vocabulary",
        "numbering items and categories",
        lambda: counting.build_vocabulary(spark, settings, root, last),
        counting.summary,
    )
    stages.run(
        "sequences",
        "encoding histories, cutting train, valid and test",
        lambda: encoding.build_sequences(spark, settings, root, last),
        lambda manifests: encoding.summary(*manifests),
    )
    stages.run(
        "train",
        f"the network on {arguments.ranks} Horovod rank{'s' if arguments.ranks > 1 else ''}",
        lambda: launch(arguments.ranks, root, last, overlays, arguments.set, arguments.min_ranks),
        lambda _: f"bundle in {store.path('bundle', last)}",
    )
    result = stages.run(
        "evaluate",
        "ranking held-out events, baselines beside the model",
        lambda: evaluate(settings, root, last),
        lambda done: f"{done.split.n_users:,} users of the {done.split.split} split",
    )
    stages.run(
        "score",
        "every user",
        lambda: scoring.score(spark, settings, root, last),
        scoring.summary,
    )
    write_stages(store, last, stages.runs, spark.sparkContext.defaultParallelism)
    told = stages.run(
        "report",
        "figures and the page",
        lambda: report(spark, settings, root, last),
        lambda path: path,
    )
    words = users_in_words(spark, store, last, _USERS_IN_WORDS)
    spark.stop()
    places = _places(store, last, arguments.demo, result.path, feed_tables(settings.feeds))
    facts = {
        "date": last,
        "stages": [{"name": run.name, "seconds": round(run.seconds, 1)} for run in stages.runs],
        "evaluation": evaluation_facts(result),
        "places": [{"path": path, "what": what} for path, what in places],
        "report": told,
    }
    show(arguments, facts, _in_words(result, words, places, told))
    say(f"Done in {stages.seconds:.0f} s.")


def _check(arguments: argparse.Namespace) -> None:
    """Refuse flags that do not go together, before anything starts."""
    log = [flag for flag, value in (("--source", arguments.source), ("--input", arguments.input)) if value]
    further = [flag for flag, value in (("--from", arguments.first), ("--categories", arguments.categories)) if value]
    if arguments.demo and (log or further):
        raise UsageError(f"--demo makes its own log: drop {', '.join(log + further)}, or drop --demo.")
    if not arguments.demo and len(log) < 2:
        raise UsageError(
            f"A log needs --source and --input; given: {', '.join(log) or 'neither'}. For example "
            "--source deskdrop --input users_interactions.csv.gz --root out/deskdrop; or --demo --root out/demo."
        )
    if arguments.ranks < 1:
        raise UsageError(f"--ranks {arguments.ranks}: training needs one process or more.")
    if arguments.min_ranks is not None and not 1 <= arguments.min_ranks <= arguments.ranks:
        raise UsageError(f"--min-ranks {arguments.min_ranks}: take 1 to {arguments.ranks}, the number of --ranks.")
    if arguments.first and arguments.date and arguments.first > arguments.date:
        raise UsageError(f"--from {arguments.first} lies after --date {arguments.date}.")


def _check_ranks(ranks: int, streams: int, world_sizes: tuple[int, ...]) -> None:
    """Refuse numbers of ranks and streams that the row groups of training are not planned for."""
    if streams and ranks > streams:
        raise UsageError(
            f"--ranks {ranks}: training.streams = {streams}, and each rank needs a stream of its own at least. Take "
            "fewer ranks or more streams; 0 streams means as many as ranks."
        )
    unit, shares = lcm(*world_sizes), streams or ranks
    if unit % shares:
        named = f"training.streams = {streams}" if streams else f"--ranks {ranks}"
        wanted = sorted({*world_sizes, shares})
        raise UsageError(
            f"{named}: sequences.world_sizes = {list(world_sizes)} plans row groups in multiples of {unit}, "
            f"which {shares} streams, one or more a rank, cannot share equally. Take another number, or add {shares} "
            f"to the key: --set 'sequences.world_sizes={wanted}'."
        )


def _span(
    spark: SparkSession, settings: Settings, source: SourceMap, arguments: argparse.Namespace, store: Store
) -> tuple[date, date]:
    """First and last day of the run: as given, else those of the log's events."""
    first, last = arguments.first, arguments.date
    if first and last:
        return first, last
    dated = [path for path in arguments.input if "{date}" in path]
    if dated:
        raise UsageError(f"--input {dated[0]}: with {{date}} in a path give both --from and --date.")
    find_inputs(store, arguments.input, date.min, date.min)
    found_first, found_last = log_span(spark, source, arguments.input)
    first = first or max(found_first, settings.cleaning.min_date)
    last = last or found_last
    if first > last:
        raise UsageError(f"The log spans {found_first} to {found_last}; nothing lies between {first} and {last}.")
    return first, last


def _places(store: Store, last: date, demo: bool, evaluation: str, feeds: Sequence[Contract]) -> list[tuple[str, str]]:
    """Where everything lies, and what it is."""
    return [
        *([(f"{store.root}/{RAW}", "the simulated raw log")] if demo else []),
        *([(store.path(SIMULATED_TRUTH.name, last), "what a perfect model would say")] if demo else []),
        (f"{store.root}/{SESSIONS.name}", "finished sessions"),
        (store.path(OPEN_SESSIONS.name, last), "sessions that may still grow"),
        (store.path(REJECTED_EVENTS.name, last), "refused rows with their reasons"),
        (store.path(FLAGGED_USERS.name, last), "days of bots and heavy users, taken out"),
        (store.path(VOCABULARY.name, last), "ids of items and categories"),
        (store.path(SEQUENCES.name, last), "every user's latest events, encoded"),
        (store.path(TRAINING_SEQUENCES.name, last), "windows for training and evaluation"),
        (store.path("bundle", last), "the model: weights, vocabulary, configuration, metrics"),
        (evaluation, "the evaluation above, as files"),
        (store.path(SCORES.name, last), "every user's future interests"),
        *[(store.path(table.name, last), _FEED_WORDS[table.name]) for table in feeds],
    ]


def _in_words(
    result: EvaluationResult, words: Sequence[str], places: Sequence[tuple[str, str]], report_path: str
) -> str:
    """For people: the table, users in words, where everything lies, and the report to open."""
    width = max(len(path) for path, _ in places)
    parts = ["", format_table(result), ""]
    if words:
        parts += [f"{len(words)} users whose interests moved most:", "", *(f"  {line}" for line in words)]
    parts += ["", "Where everything lies (columns: docs/contracts.md):", ""]
    parts += [f"  {path.ljust(width)}  {what}" for path, what in places]
    return "\n".join([*parts, "", f"Open the report in a browser: {report_path}"])


def main(argv: Sequence[str]) -> int:
    """Command line of the whole path."""
    return run_job(run, parser(), argv, takes_root=True)


def demo(argv: Sequence[str]) -> int:
    """Command line of the whole path on a simulated log."""
    return run_job(run, demo_parser(), argv, takes_root=True)


def parser() -> argparse.ArgumentParser:
    """The flags of the whole path."""
    flags = stage_parser("run", needs_date=False)
    flags.add_argument("--demo", action="store_true", help="simulate a log with conf/demo.yaml and run on it")
    flags.add_argument("--source", help="name of a map in conf/sources, or a YAML file")
    flags.add_argument("--input", action="append", metavar="PATH", help="file or folder of the log; may be repeated")
    flags.add_argument("--categories", action="append", default=[], metavar="PATH", help="file with items' categories")
    flags.add_argument("--from", dest="first", type=day, metavar="DAY", help="first day (default: of the log)")
    _add_ranks(flags)
    return flags


def demo_parser() -> argparse.ArgumentParser:
    """The flags of the demo: those of the whole path, without a log."""
    flags = stage_parser("demo", needs_date=False, root="out/demo")
    flags.set_defaults(demo=True, source=None, input=None, categories=[], first=None)
    _add_ranks(flags)
    return flags


def _add_ranks(flags: argparse.ArgumentParser) -> None:
    flags.add_argument("--ranks", type=int, default=2, metavar="N", help="Horovod processes that train (default: 2)")
    flags.add_argument(
        "--min-ranks", type=int, metavar="N", help="go on training when one is lost, as long as N are left"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
