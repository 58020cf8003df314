"""Nights one after another on a simulated shop, as a scheduler would run them: published scores, new models, gates.

The log is simulated once. The first night reads all of it up to its day and trains; each further one reads its own day,
and some train again. After a night that stops, or whose model does not pass the gate, the next one has its turn.
"""

import argparse
import sys
from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any

from features.contracts import SCORES, ContractError
from features.states import CARRIED
from jobs import nightly
from jobs.cli import run_job, say, show, stage_parser
from jobs.night import REPORT, TRAIN, Night
from jobs.published import read_pointer
from jobs.report import HTML
from jobs.root_lock import exclusive
from jobs.run import DEMO_CONF, DEMO_DATE, DEMO_SOURCE
from jobs.settings import Settings, UsageError, load_settings
from jobs.simulate import RAW, TRUTH_FILE, simulate
from jobs.spark import spark_session
from jobs.steps import NIGHTLY, read_json
from jobs.store import MANIFEST, Store
from jobs.terminal import BOLD, paint

# Trained on the first night, the fourth and the seventh; the reports come without their images, which nobody looks at.
_OF_A_DEMO = ("nightly.train_every_days=3", "report.images=false")


def run(arguments: argparse.Namespace) -> None:
    """The log, then a night for each day; a table of the nights at the end.

    Raises:
        HeldError: another run holds the root.
        UsageError: the root holds nights of another log, or there are more nights than days.
        ContractError: at least one night stopped, or kept the model before; all the others were still run.
    """
    overlays, given = [str(DEMO_CONF), *arguments.conf], [*_OF_A_DEMO, *arguments.set]
    settings, store = load_settings(overlays, given), Store(arguments.root)
    last: date = arguments.date or DEMO_DATE
    if not 1 <= arguments.nights < settings.simulation.days:
        raise UsageError(
            f"--nights {arguments.nights}: take 1 to {settings.simulation.days - 1}; the simulated log has "
            f"simulation.days = {settings.simulation.days} days, and the first night needs some to learn from."
        )
    begins = last - timedelta(days=settings.simulation.days - 1)
    dates = [last - timedelta(days=ago) for ago in reversed(range(arguments.nights))]
    with exclusive(store, "jobs.week", say):
        _make_log(store, settings, last)
    done, stopped = [], []
    for number, dt in enumerate(dates, 1):
        say(paint(f"[night {number}/{len(dates)}] {dt}", BOLD, sys.stderr))
        night = _night(arguments.root, dt, begins, number == 1, overlays, given)
        try:
            with exclusive(store, "jobs.week", say):
                night.go()
        except ContractError as error:
            say(str(error))
            stopped.append(str(dt))
        done.append(night.metrics)
    current = read_pointer(store).current
    facts = {"nights": done, "published": current and {"path": current.path, "model_version": current.model_version}}
    show(arguments, facts, in_words(done, store))
    if stopped:
        raise ContractError(
            f"The night{'s' if len(stopped) > 1 else ''} of {', '.join(stopped)} stopped, or went on with the model "
            f"before; why is said above and in {store.root}/{NIGHTLY}/dt={stopped[0]}/metrics.json."
        )


def _make_log(store: Store, settings: Settings, last: date) -> None:
    """Simulate the log, unless it is there; it then is not made anew, so that nights that were done stay done."""
    facts = read_json(store, f"{store.root}/{RAW}/{TRUTH_FILE}")
    if facts is None:
        simulate(spark_session("week"), settings, store.root, last)
    elif (facts["date"], facts["simulation"]) != (str(last), settings.simulation.model_dump(mode="json")):
        raise UsageError(
            f"{store.root}/{RAW} holds a log that was simulated up to {facts['date']} with other settings. "
            f"Take another --root, or remove {store.root}."
        )


def _night(
    root: str, dt: date, log_begins: date, is_first: bool, overlays: Sequence[str], given: Sequence[str]
) -> Night:
    words = ["--root", root, "--date", str(dt), "--source", DEMO_SOURCE, "--input", f"{root}/{RAW}/dt={{date}}"]
    arguments = nightly.parser().parse_args([*words, *(["--bootstrap"] if is_first else [])])
    arguments.conf, arguments.set = list(overlays), list(given)
    return Night(arguments, frozenset(), log_begins if is_first else dt)


def in_words(nights: Sequence[dict[str, Any]], store: Store) -> str:
    """A line for each night, then where the published scores lie."""
    rows = [("night", "users", "carried", "trained", "model in use", "time", "outcome")]
    for metrics in nights:
        dt, released = metrics["date"], metrics.get("published") or {}
        scored = read_json(store, f"{store.path(SCORES.name, dt)}/{MANIFEST}")
        users, carried = (f"{scored['rows']:,}", f"{scored['counters'][CARRIED]:,}") if scored else ("–", "–")
        trained = "yes" if any(step["name"] == TRAIN for step in metrics["steps"]) else "no"
        model = str(released.get("model_version", "–"))
        rows.append((dt, users, carried, trained, model, f"{metrics['seconds']:.0f} s", metrics["outcome"]))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    current = read_pointer(store).current
    if current:
        lines += ["", f"Published: {store.root}/{current.path}, the scores of {current.date}"]
        lines += [f"Open the report of the last night in a browser: {store.path(REPORT, nights[-1]['date'])}/{HTML}"]
    return "\n".join(["", *lines])


def main(argv: Sequence[str]) -> int:
    """Command line of the job."""
    return run_job(run, parser(), argv, takes_root=True)


def parser() -> argparse.ArgumentParser:
    """The flags of the job."""
    flags = stage_parser("week", needs_date=False, root="out/week")
    flags.add_argument("--nights", type=int, default=7, metavar="N", help="the log's last N days (default: 7)")
    return flags


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
