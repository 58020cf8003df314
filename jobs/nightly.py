"""One night on a root that is run night after night: from the day's log to published scores.

Every step is one of the jobs that also run alone. A step that was done from the same inputs is skipped, so a night that
was killed goes on where it stopped; two runs on one root exclude each other.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from jobs.cli import day, run_job, say, show, stage_parser
from jobs.night import ACCEPTABLE, STEPS, Night
from jobs.observing import keep_result
from jobs.root_lock import exclusive
from jobs.settings import UsageError
from model.gate import Decision


def run(arguments: argparse.Namespace) -> None:
    """One night, under the lock of its root; its summary is printed and written also where it stops.

    Raises:
        HeldError: another run holds the root.
        ContractError: the log is not like the nights before, the scores are not fit to be published, or the model that
            was trained did not pass the gate (then the scores by the model in use are published all the same).
    """
    accepted = _accepted(arguments.accept)
    first = arguments.first or arguments.date
    if first > arguments.date:
        raise UsageError(f"--from {first} lies after --date {arguments.date}.")
    night = Night(arguments, accepted, first)
    with exclusive(night.store, "jobs.nightly", say):
        try:
            night.go()
        except BaseException:
            keep_result(night.metrics)
            if not arguments.json:  # then the error alone is printed, one object; all else stands in metrics.json
                print(summary(night.metrics), flush=True)
            raise
        show(arguments, night.metrics, summary(night.metrics))


def summary(metrics: dict[str, Any]) -> str:
    """A run in a few lines: its steps, whether and why it trained, the gate's decision, what is published."""
    width = max((len(step["name"]) for step in metrics["steps"]), default=0)
    lines = [f"Night of {metrics['date']}: {metrics['outcome']} after {metrics['seconds']:.1f} s"]
    lines += [
        f"  {s['name'].ljust(width)}  {s['status']:7}  {s['seconds']:6.1f} s  {s['said']}" for s in metrics["steps"]
    ]
    if "training" in metrics:
        lines.append(f"  training: {metrics['training']}")
    gate = metrics.get("gate")
    if gate:
        decision = Decision.from_json({key: gate[key] for key in ("challenger", "champion", "checks")})
        lines.append(f"  gate: {'passed' if decision.passed else 'not passed'}; {decision.why}")
    if metrics.get("published"):
        lines.append(f"  published: {metrics['published']['path']}, model {metrics['published']['model_version']}")
    if "why" in metrics:
        lines.append(f"  stopped by: {metrics['why']}")
    return "\n".join(lines)


def _accepted(texts: Sequence[str]) -> frozenset[str]:
    names = frozenset(name.strip() for text in texts for name in text.split(",") if name.strip())
    unknown = sorted(names - set(ACCEPTABLE))
    if unknown:
        raise UsageError(f"--accept {', '.join(unknown)}: no such check; there are {', '.join(ACCEPTABLE)}.")
    return names


def main(argv: Sequence[str]) -> int:
    """Command line of the night."""
    return run_job(run, parser(), argv, takes_root=True)


def parser() -> argparse.ArgumentParser:
    """The flags of the night."""
    flags = stage_parser("nightly")
    flags.add_argument("--source", required=True, help="name of a map in conf/sources, or a YAML file")
    flags.add_argument(
        "--input", action="append", required=True, metavar="PATH", help="file or folder; {date} = each day of the run"
    )
    flags.add_argument("--categories", action="append", default=[], metavar="PATH", help="file with items' categories")
    flags.add_argument(
        "--from", dest="first", type=day, metavar="DAY", help="first day of a backfill (default: --date)"
    )
    flags.add_argument("--bootstrap", action="store_true", help="first day of the log: nothing is carried over")
    flags.add_argument("--train", action="store_true", help="train tonight, due or not")
    flags.add_argument(
        "--accept",
        action="append",
        default=[],
        metavar="CHECK",
        help=f"go on though this check fails, for this night: {', '.join(ACCEPTABLE)}",
    )
    flags.add_argument("--until", choices=STEPS, default=STEPS[-1], help="the last step of this run (default: all)")
    return flags


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
