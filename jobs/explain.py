"""Explain one user's scores: the events that moved them most, and how the interests evolved month by month."""

import argparse
import math
import sys
from collections.abc import Sequence

from features import columns as c
from jobs.cli import run_job, show, stage_parser
from jobs.explanations import N_MONTHS, EventEffect, Explanation, explain_users
from jobs.settings import UsageError, load_settings
from jobs.spark import spark_session
from jobs.store import Store

_SHOWN = 5  # events of each list
_SHOWN_CATEGORIES = 3  # of a month


def work(arguments: argparse.Namespace) -> None:
    """On standard output: text, or one JSON object."""
    if arguments.months < 1:
        raise UsageError(f"--months {arguments.months}: take 1 or more.")
    settings, store = load_settings(arguments.conf, arguments.set), Store(arguments.root)
    spark = spark_session("explain")
    users, months = [arguments.user], arguments.months
    told = explain_users(spark, settings, store, arguments.date, users, arguments.bundle, months)[arguments.user]
    show(arguments, told.to_json(), "\n".join(in_words(told)))


def in_words(told: Explanation) -> list[str]:
    """Lines for people."""
    lines = [f"{told.user_id}, as of {told.as_of}, by {told.provenance}, model {told.model_version}"]
    if told.interest is not None:
        past = f"{told.interest[c.TREND]}, {_percent(told.interest[c.PAST_SHARE])} of the past"
        lines.append(
            f"Next interest: {told.interest[c.CATEGORY_ID]}, {_percent(told.interest[c.PROBABILITY])} ({past})"
        )
    if told.item is not None:
        lines.append(f"Next item: {told.item[c.ITEM_ID]}, {_percent(told.item[c.PROBABILITY])}")
    if told.events:
        n = len(told.events)
        read = f"of the {n} events read" if n > 1 else "of the one event read"
        lines += _moved(f"What moved the interest most, {read}", [(e, e.interest_effect) for e in told.events])
        lines += _moved("What moved the item most", [(e, e.item_effect) for e in told.events])
        lines.append("  (× 2: without the event it would be half as likely. Effects need not add up.)")
    else:
        lines += ["", "Not scored by the model, so no event of the user's moved the scores."]
    lines += ["", "Interests month by month: shares of the events → what the model expected next at the month's end"]
    for month in told.months:
        shares, expected = (
            ", ".join(f"{name} {_percent(value)}" for name, value in entries[:_SHOWN_CATEGORIES]) or "nothing known"
            for entries in (month.shares, month.expected)
        )
        lines.append(
            f"  {month.month}  {month.events:>4} event{'' if month.events == 1 else 's'}: {shares} → {expected}"
        )
    return lines


def _moved(title: str, effects: Sequence[tuple[EventEffect, float | None]]) -> list[str]:
    known = [(event, effect) for event, effect in effects if effect is not None]
    if not known:
        return ["", f"{title}: there is only one event, all that is known."]
    known.sort(key=lambda entry: (-abs(entry[1]), entry[0].event_time))
    return ["", f"{title}:"] + [
        f"  {event.event_time[:16].replace('T', ' ')}  {event.action} {event.item_id}"
        f"{f' ({event.category_id})' if event.category_id else ''}  × {math.exp(effect):.2f}"
        for event, effect in known[:_SHOWN]
    ]


def _percent(share: float) -> str:
    return f"{share * 100:.0f} %" if share >= 0.1 else f"{share * 100:.1f} %"


def main(argv: Sequence[str]) -> int:
    """Command line of the job."""
    return run_job(work, parser(), argv)


def parser() -> argparse.ArgumentParser:
    """The flags of the job."""
    flags = stage_parser("explain")
    flags.add_argument("--user", required=True, metavar="ID", help="the user_id, as scores_v1 has it")
    flags.add_argument(
        "--months", type=int, default=N_MONTHS, metavar="N", help=f"latest months that are told (default: {N_MONTHS})"
    )
    flags.add_argument("--bundle", metavar="DIR", help="the model bundle (default: that of the root with the version)")
    return flags


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
