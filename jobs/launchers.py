"""Starting the ranks of a training: horovodrun here or over hosts, or tasks of a Spark cluster."""

import argparse
import json
import re
from collections.abc import Sequence
from datetime import date

import fsspec
from pyspark.sql import SparkSession

from jobs.cli import run_job, say, show
from jobs.settings import Settings, UsageError, load_settings
from jobs.store import Store
from jobs.watching import BAR, terminal_bar

NONE, HOROVODRUN, SPARK = "none", "horovodrun", "spark"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of jobs.train that say where its ranks run."""
    parser.add_argument(
        "--launcher",
        choices=(NONE, HOROVODRUN, SPARK),
        default=NONE,
        help="none: train in this process, as one rank if horovodrun started it; horovodrun: start ranks here or on "
        "--hosts; spark: start them in the executors of Spark",
    )
    parser.add_argument("--ranks", type=int, metavar="N", help="ranks that the launcher starts")
    parser.add_argument(
        "--min-ranks", type=int, metavar="N", help="for horovodrun: go on after a loss with so many (default: end)"
    )
    parser.add_argument("--hosts", metavar="A:N,B:N", help="machines for horovodrun, each with the most ranks it takes")
    parser.add_argument(
        "--start-timeout", type=int, metavar="S", help="seconds for Spark to find room for all ranks (default: 300)"
    )


def check_none(arguments: argparse.Namespace) -> None:
    """Refuse a launcher's flags where there is no launcher."""
    given = [name for name in ("ranks", "min_ranks", "hosts", "start_timeout") if getattr(arguments, name) is not None]
    if given:
        raise UsageError(f"--{given[0].replace('_', '-')} needs --launcher {HOROVODRUN} or {SPARK}.")


def run(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    """Start what the command line asks for, wait for it, and return the exit code."""
    code = run_job(_start, parser, argv)
    if parser.parse_args(argv).launcher == SPARK:
        from jobs.spark_ranks import leave

        return leave(code)
    return code


def _start(arguments: argparse.Namespace) -> None:
    """Start the ranks that the command line asks for and wait for them."""
    launcher, ranks, hosts, min_ranks = arguments.launcher, arguments.ranks, arguments.hosts, arguments.min_ranks
    if arguments.elastic:
        raise UsageError("--elastic is for a rank that horovodrun starts; with --launcher horovodrun give --min-ranks.")
    if arguments.into is not None:
        raise UsageError(f"--into is for a training without a launcher; drop --launcher {launcher} or --into.")
    if ranks is None or ranks < 1:
        raise UsageError(f"--launcher {launcher} needs --ranks, a number from 1; given: {ranks}.")
    if launcher == HOROVODRUN:
        if arguments.start_timeout is not None:
            raise UsageError("--start-timeout is for --launcher spark.")
        if min_ranks is not None and not 1 <= min_ranks <= ranks:
            raise UsageError(f"--min-ranks {min_ranks}: take 1 to {ranks}, the number of --ranks.")
        _check_hosts(hosts, ranks)
        from jobs.train import bundle_facts, launch

        job = (arguments.root, arguments.date, arguments.conf, arguments.set)
        launch(ranks, *job, min_ranks, arguments.fresh, hosts)
        show(arguments, bundle_facts(Store(arguments.root), arguments.date))
        return
    if hosts is not None or min_ranks is not None:
        raise UsageError(
            "--hosts and --min-ranks are for --launcher horovodrun: Spark chooses the machines itself, and its ranks "
            "are not elastic."
        )
    from jobs.spark import spark_session
    from jobs.train import bundle_facts

    settings, options = load_settings(arguments.conf, arguments.set), (arguments.start_timeout, arguments.debug)
    launch_on_spark(spark_session("train"), settings, ranks, arguments.root, arguments.date, arguments.fresh, *options)
    show(arguments, bundle_facts(Store(arguments.root), arguments.date))


def _check_hosts(hosts: str | None, ranks: int) -> None:
    if hosts is None:
        return
    parts = [re.fullmatch(r"[^:,\s]+:([1-9]\d*)", part) for part in hosts.split(",")]
    if not all(parts):
        raise UsageError(f"--hosts {hosts}: expected name:ranks, separated by commas, as in a:2,b:2.")
    room = sum(int(part[1]) for part in parts if part)
    if room < ranks:
        raise UsageError(f"--hosts {hosts} has room for {room} ranks, --ranks asks for {ranks}. Add hosts or lower it.")


def launch_on_spark(
    spark: SparkSession,
    settings: Settings,
    ranks: int,
    root: str,
    date: date,
    fresh: bool = False,
    start_timeout_s: int | None = None,
    debug: bool = False,
) -> None:
    """Train in `ranks` tasks of a Spark cluster; their progress is shown here. Every node must see `root`.

    Raises:
        UsageError, ContractError, ModelError: what stopped a rank, once.
        TimeoutError: the cluster had no room for every rank in time.
        RuntimeError: anything else.
    """
    from jobs.spark_ranks import START_TIMEOUT_S, run_in_executors

    tree, day = settings.model_dump(mode="json"), str(date)

    def work() -> str | None:
        from datetime import date

        from jobs.settings import Settings
        from jobs.train import train

        return train(lambda: Settings.model_validate(tree), root, date.fromisoformat(day), fresh)

    bar = terminal_bar()
    try:
        tell, environment = (bar.pass_on, {BAR: "1"}) if bar else (say, {})
        timeout_s = START_TIMEOUT_S if start_timeout_s is None else start_timeout_s
        version = run_in_executors(spark, ranks, work, tell, environment, timeout_s, debug)
    finally:
        if bar:
            bar.close()
    path = f"{Store(root).path('bundle', date)}/_MANIFEST.json"
    if not _holds(path, version):
        raise UsageError(
            f"The executors wrote model {version}, but {path} does not hold it here: --root {root} is another folder "
            "on their machines. Take a mount that driver and executors share, or a URI."
        )


def _holds(manifest: str, version: str) -> bool:
    try:
        with fsspec.open(manifest, "r") as file:
            return bool(json.load(file)["model_version"] == version)
    except (OSError, ValueError, KeyError):
        return False
