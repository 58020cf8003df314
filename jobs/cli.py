"""What every job shares on the command line: the common flags, and errors as one paragraph with an exit code."""

import argparse
import json
import os
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import date
from types import FrameType
from typing import Any

from features.contracts import ContractError
from jobs.commands import command_parser
from jobs.observing import ERROR, INFO, is_rank, keep_error, keep_result, line_of, observed, says_json, write_line
from jobs.root_lock import HeldError, one_stage, refuse_if_held
from jobs.settings import UsageError
from jobs.store import Store
from jobs.terminal import RED, paint
from model.errors import ModelError

EXIT_OTHER = 1
EXIT_USAGE = 2
EXIT_CONTRACT = 3
EXIT_HELD = 4
WRITERS = ("sessionize", "vocabulary", "sequences", "score")  # jobs of which one at a time writes a day
PLANNED = ("run", "nightly", "sessionize", "vocabulary", "sequences", "train", "score")  # jobs that take --plan


def stage_parser(name: str, needs_date: bool = True, root: str | None = None) -> argparse.ArgumentParser:
    """A parser with the flags that every stage takes: --root, --date, --conf, --set, --json, --debug; --plan for some.

    root: where none is given; None: one must be.
    """
    parser = command_parser(name)
    where = "folder or URI of all tables" + (f" (default: {root})" if root else "")
    parser.add_argument("--root", required=root is None, default=root, metavar="DIR", help=where)
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
    parser.set_defaults(job=name)
    if name in PLANNED:
        parser.add_argument(
            "--plan",
            nargs="?",
            type=cores,
            const=os.cpu_count(),
            metavar="CORES",
            help="only say what it would take on so many cores (default: this machine's): tasks, memory, time, command",
        )
    return parser


def cores(text: str) -> int:
    """Parse a number of cores for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of cores; expected 1 or more")
    return int(text)


def day(text: str) -> date:
    """Parse YYYY-MM-DD for argparse."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a date; expected YYYY-MM-DD") from None


def say(message: str, level: str = INFO) -> None:
    """One progress line for people, on standard error; results go to standard output."""
    write_line(line_of(message, level))


def show(arguments: argparse.Namespace, facts: Mapping[str, Any] | Sequence[Any], text: str = "") -> None:
    """The result, on standard output: `facts` as JSON with --json, else `text` where there is one."""
    keep_result(facts)
    if getattr(arguments, "json", False):
        print(json.dumps(facts, indent=1, default=str), flush=True)
    elif text:
        print(text, flush=True)


def run_job(
    main: Callable[[argparse.Namespace], None],
    parser: argparse.ArgumentParser,
    argv: Sequence[str],
    takes_root: bool = False,
) -> int:
    """Parse, run, and turn an error into one paragraph and its exit code.

    2 arguments, 3 contract or gate, 4 a root or day that another run holds, 1 other. takes_root: `main` holds the root
    itself.
    """
    arguments = parser.parse_args(argv)
    job = getattr(arguments, "job", "")
    if job in PLANNED and arguments.plan:
        from jobs.plan import show_plan  # it needs this module

        job, main, takes_root = "plan", show_plan, True
    with observed(job, getattr(arguments, "root", None), getattr(arguments, "date", None)) as record:
        code = _exit_code_of(main, arguments, takes_root)
        if code != EXIT_USAGE and not is_rank():
            record.write(code)
        return code


def _exit_code_of(main: Callable[[argparse.Namespace], None], arguments: argparse.Namespace, takes_root: bool) -> int:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)  # a scheduler's kill cleans up like Ctrl-C
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # a closed terminal too, but not under nohup
            signal.signal(signal.SIGHUP, _interrupt)
    try:
        with nullcontext() if takes_root else _held(arguments):
            main(arguments)
    except KeyboardInterrupt:
        if "jobs.spark" in sys.modules:  # not imported for this
            sys.modules["jobs.spark"].hush()
        say("Interrupted; what was unfinished is not readable and a new run replaces it.")
        return 130
    except UsageError as error:
        return _report(error, EXIT_USAGE, arguments)
    except (ContractError, ModelError) as error:
        return _report(error, EXIT_CONTRACT, arguments)
    except HeldError as error:
        return _report(error, EXIT_HELD, arguments)
    except Exception as error:
        return _report(error, EXIT_OTHER, arguments)
    return 0


def _held(arguments: argparse.Namespace) -> AbstractContextManager[None]:
    """What a stage that is run alone holds meanwhile: its day, where it writes one and the root is there."""
    root, job, dt = (getattr(arguments, name, None) for name in ("root", "job", "date"))
    if root:
        refuse_if_held(root)
        store = Store(root)
        if dt and job in WRITERS and not is_rank() and store.fs.exists(store.root):
            return one_stage(store, job, dt, say)
    return nullcontext()


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _report(error: Exception, code: int, arguments: argparse.Namespace) -> int:
    if arguments.debug or os.environ.get("INTEREST_DEBUG"):
        raise error
    name = "" if code != EXIT_OTHER else f"{type(error).__name__}: "
    text = " ".join(str(error).split())
    if code == EXIT_OTHER and len(text) > 1200:
        text = text[:1200] + " …"
    told = f"error: {name}{text}"
    if not says_json():
        told = textwrap.fill(told, width=100, break_long_words=False, break_on_hyphens=False)
        told = told.replace("error:", paint("error:", RED, sys.stderr), 1)
    say(told, ERROR)
    if code == EXIT_OTHER:
        say("Run again with --debug for the stack trace.")
    keep_error(name + text)
    if getattr(arguments, "json", False):
        print(json.dumps({"error": name + text, "exit_code": code}, indent=1), flush=True)
    return code
