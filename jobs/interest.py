"""The `interest` command: a thin front of the jobs, with the same flags as `python -m jobs.…` and `spark-submit`.

Only the job that is asked for is loaded: help comes at once, and `interest doctor` runs where something is broken.
"""

import argparse
import difflib
import sys
from collections.abc import Sequence
from importlib import import_module, metadata

from jobs.commands import COMMANDS, GROUPS
from jobs.terminal import BOLD, RED, paint

_COMPLETION = "completion"
_SHELLS = ("bash", "zsh", "tcsh")
_DISTRIBUTION = "interest-evolution"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code (docs/errors.md)."""
    given = list(sys.argv[1:] if argv is None else argv)
    if not given or given[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0
    if given[0] in ("-V", "--version"):
        print(f"{_DISTRIBUTION} {metadata.version(_DISTRIBUTION)}")
        return 0
    name, arguments = given[0], given[1:]
    if name == _COMPLETION:
        return _print_completion(arguments)
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"Did you mean {close[0]}?" if close else f"There are {', '.join(COMMANDS)}."
        print(f"{paint('error:', RED, sys.stderr)} interest has no command {name!r}. {hint}", file=sys.stderr)
        return 2
    command = COMMANDS[name]
    try:
        code: int = getattr(import_module(command.module), command.main)(arguments)
    except KeyboardInterrupt:  # before the job could take the signal
        print("Interrupted.", file=sys.stderr)
        return 130
    return code


def help_text() -> str:
    """All commands in groups, each with its sentence."""
    lines = ["usage: interest COMMAND [flags]", "", "What every user will be interested in next, night after night."]
    for title, commands in GROUPS.items():
        lines += ["", paint(f"{title}:", BOLD, sys.stdout)]
        lines += [f"  {command.name:<11} {command.summary}" for command in commands]
    return "\n".join(
        [
            *lines,
            "",
            "interest COMMAND --help shows flags and examples. Start with: interest demo",
            f"Completion: interest {_COMPLETION} bash > ~/.local/share/bash-completion/completions/interest",
            "Colours are for terminals (NO_COLOR=1: none). Exit codes: 0 done, 2 arguments, 3 data, model or gate,",
            "4 root held by another run, 130 interrupted, 1 anything else.",
        ]
    )


def whole_parser() -> argparse.ArgumentParser:
    """Every command in one parser, for completion; it loads every job."""
    parser = argparse.ArgumentParser(prog="interest")
    commands = parser.add_subparsers(metavar="COMMAND")
    for command in COMMANDS.values():
        flags: argparse.ArgumentParser = getattr(import_module(command.module), command.parser)()
        commands.add_parser(command.name, parents=[flags], add_help=False, help=command.summary)
    return parser


def _print_completion(arguments: Sequence[str]) -> int:
    import shtab  # here: nothing else needs it

    parser = argparse.ArgumentParser(
        prog=f"interest {_COMPLETION}", description="Print a script that completes commands and flags in a shell."
    )
    parser.add_argument("shell", choices=_SHELLS)
    print(shtab.complete(whole_parser(), shell=parser.parse_args(arguments).shell))
    return 0


if __name__ == "__main__":
    sys.exit(main())
