"""Publish the scores of a night, go back to those before it, or say what is published."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict

from jobs.cli import run_job, say, show, stage_parser
from jobs.published import in_words, publish, read_pointer, roll_back
from jobs.root_lock import exclusive
from jobs.settings import UsageError, load_settings
from jobs.store import Store


def work(arguments: argparse.Namespace) -> None:
    """One of three: --date D publishes, --rollback goes back, --show lists."""
    chosen = [
        flag
        for flag, given in (
            ("--date", arguments.date is not None),
            ("--rollback", arguments.rollback),
            ("--show", arguments.show),
        )
        if given
    ]
    if len(chosen) != 1:
        raise UsageError(f"Give one of --date, --rollback and --show; given: {', '.join(chosen) or 'none'}.")
    settings, store = load_settings(arguments.conf, arguments.set), Store(arguments.root)
    if arguments.show:
        pointer = read_pointer(store)
        show(arguments, asdict(pointer), "\n".join(in_words(pointer)) or "nothing is published")
        return
    with exclusive(store, "jobs.publish", say):
        if arguments.rollback:
            back, gone = roll_back(store)
            say(
                f"published: {back.name}, {back.rows:,} users, model {back.model_version}; taken back: {gone.name}, "
                f"model {gone.model_version}. The next night publishes anew."
            )
            show(arguments, {"published": asdict(back), "withdrawn": asdict(gone)})
            return
        release = publish(store, arguments.date, settings.retention.releases)
        say(f"published: {release.name}, {release.rows:,} users, model {release.model_version}")
        show(arguments, {"published": asdict(release)})


def main(argv: Sequence[str]) -> int:
    """Command line of the job."""
    return run_job(work, parser(), argv, takes_root=True)


def parser() -> argparse.ArgumentParser:
    """The flags of the job."""
    flags = stage_parser("publish", needs_date=False)
    flags.add_argument("--rollback", action="store_true", help="go back to the release before the current one")
    flags.add_argument("--show", action="store_true", help="list the releases, the current one first")
    return flags


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
