"""What every job shares on the command line: the common flags, and errors as one paragraph with an exit code."""

import argparse
import os
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Sequence
from datetime import date
from types import FrameType

from features.contracts import ContractError
from jobs.root_lock import HeldError, refuse_if_held
from jobs.settings import UsageError
from model.errors import ModelError

EXIT_OTHER = 1
EXIT_USAGE = 2
EXIT_CONTRACT = 3
EXIT_HELD = 4


def stage_parser(stage: str, description: str, needs_date: bool = True) -> argparse.ArgumentParser:
    """A parser with the flags that every stage takes: --root, --date, --conf, --set, --debug."""
    parser = argparse.ArgumentParser(prog=f"python -m jobs.{stage}", description=description)
    parser.add_argument("--root", required=True, metavar="DIR", help="folder or URI of all tables")
    parser.add_argument(
        "--date",
        type=day,
        required=needs_date,
        metavar="YYYY-MM-DD",
        help="the UTC day this run is for; nothing of a later day is used",
    )
    parser.add_argument("--conf", action="append", default=[], metavar="FILE", help="YAML laid over conf/base.yaml")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="one setting, e.g. sessions.gap_s=3600"
    )
    parser.add_argument("--debug", action="store_true", help="show the stack trace of an error")
    return parser


def day(text: str) -> date:
    """Parse YYYY-MM-DD for argparse."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a date; expected YYYY-MM-DD") from None


def say(message: str) -> None:
    """One progress line for people, on standard error; results go to standard output."""
    print(message, file=sys.stderr, flush=True)


def run_job(
    main: Callable[[argparse.Namespace], None],
    parser: argparse.ArgumentParser,
    argv: Sequence[str],
    takes_root: bool = False,
) -> int:
    """Parse, run, and turn an error into one paragraph and its exit code.

    2 arguments, 3 contract or gate, 4 a root that another run holds, 1 other. takes_root: `main` holds the root itself.
    """
    arguments = parser.parse_args(argv)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)  # a scheduler's kill cleans up like Ctrl-C
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # a closed terminal too, but not under nohup
            signal.signal(signal.SIGHUP, _interrupt)
    try:
        if not takes_root and getattr(arguments, "root", None):
            refuse_if_held(arguments.root)
        main(arguments)
    except KeyboardInterrupt:
        say("Interrupted; what was unfinished is not readable and a new run replaces it.")
        return 130
    except UsageError as error:
        return _report(error, EXIT_USAGE, arguments.debug)
    except (ContractError, ModelError) as error:
        return _report(error, EXIT_CONTRACT, arguments.debug)
    except HeldError as error:
        return _report(error, EXIT_HELD, arguments.debug)
    except Exception as error:
        return _report(error, EXIT_OTHER, arguments.debug)
    return 0


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _report(error: Exception, code: int, debug: bool) -> int:
    if debug or os.environ.get("INTEREST_DEBUG"):
        raise error
    name = "" if code != EXIT_OTHER else f"{type(error).__name__}: "
    text = " ".join(str(error).split())
    if code == EXIT_OTHER and len(text) > 1200:
        text = text[:1200] + " …"
    say(textwrap.fill(f"error: {name}{text}", width=100, break_long_words=False, break_on_hyphens=False))
    if code == EXIT_OTHER:
        say("Run again with --debug for the stack trace.")
    return code
