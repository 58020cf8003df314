"""Publish the scores of a night, go back to those before it, or say what is published."""

import argparse
import sys
from collections.abc import Sequence

from jobs.cli import run_job, say, stage_parser
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
        print("\n".join(in_words(read_pointer(store))) or "nothing is published")
        return
    with exclusive(store, "jobs.publish", say):
        if arguments.rollback:
            back, gone = roll_back(store)
            say(
                f"published: {back.name}, {back.rows:,} users, model {back.model_version}; taken back: {gone.name}, "
                f"model {gone.model_version}. The next night publishes anew."
            )
            return
        release = publish(store, arguments.date, settings.retention.releases)
        say(f"published: {release.name}, {release.rows:,} users, model {release.model_version}")


def main(argv: Sequence[str]) -> int:
    """Command line of the job."""
    parser = stage_parser("publish", "Point readers to the scores of a night, or back.", needs_date=False)
    parser.add_argument("--rollback", action="store_true", help="go back to the release before the current one")
    parser.add_argument("--show", action="store_true", help="list the releases, one JSON line each")
    return run_job(work, parser, argv, takes_root=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
