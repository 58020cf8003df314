"""What the jobs are called, what each does in a sentence, and examples, for `--help` of each job and of `interest`."""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Command:
    """One command. arguments: examples of what follows its name. module: below jobs, with `main` and `parser`."""

    name: str
    summary: str
    arguments: tuple[str, ...]
    module: str
    main: str = "main"
    parser: str = "parser"


_ROOT = "--root out/shop --date 2024-05-02"
_LOG = "--source shop.yaml --input 'logs/{date}/'"


def _command(name: str, summary: str, *arguments: str) -> Command:
    return Command(name, summary, arguments, f"jobs.{name}")


GROUPS: dict[str, tuple[Command, ...]] = {
    "The whole path": (
        Command(
            "demo",
            "A log is simulated and taken all the way: scores, evaluation, a report to open.",
            ("", "--root out/other --set simulation.users=1000"),
            "jobs.run",
            main="demo",
            parser="demo_parser",
        ),
        _command(
            "run",
            "From a raw log to scores for every user, in one command.",
            "--source deskdrop --input users_interactions.csv.gz --root out/deskdrop",
            "--source shop.yaml --input shop.csv --root out/shop --conf shop-settings.yaml",
        ),
        _command(
            "nightly",
            "One night: from the day's log to published scores, going on where it stopped.",
            f"{_LOG} --root out/shop --date 2024-05-01 --bootstrap",
            f"{_LOG} {_ROOT}",
            f"{_LOG} {_ROOT} --accept volume",
        ),
        _command(
            "week",
            "A week of nights on a simulated log: scores published each night, a new model twice.",
            "",
            "--root out/other --nights 3",
        ),
    ),
    "Its stages, one by one": (
        _command(
            "simulate",
            "Write a simulated log that ends with --date, and the truth behind it, below ROOT.",
            "--root out/shop --date 2024-05-02 --set simulation.users=1000",
        ),
        _command(
            "sessionize",
            "Cut a raw behaviour log into sessions; finished ones come out once.",
            f"{_LOG} --root out/shop --date 2024-05-01 --bootstrap",
            f"{_LOG} {_ROOT}",
        ),
        _command("vocabulary", "Give every frequent item and category an id that never moves.", _ROOT),
        _command(
            "sequences",
            "Encode each user's latest events for scoring, and windows with targets for training.",
            _ROOT,
            f"{_ROOT} --scoring-only",
        ),
        _command(
            "train",
            "Train the network on a day's sequences, alone or in several ranks.",
            _ROOT,
            f"{_ROOT} --launcher horovodrun --ranks 2",
            f"{_ROOT} --set network.cell=gru --fresh",
        ),
        _command(
            "evaluate",
            "Judge a bundle on held-out events, beside simple baselines.",
            _ROOT,
            f"{_ROOT} --cohorts --markdown",
            f"{_ROOT} --against out/shop/bundle/dt=2024-05-01",
        ),
        _command(
            "score",
            "Score every user with a model bundle; writes scores_v1 and user_states_v1.",
            _ROOT,
            f"{_ROOT} --bundle out/shop/bundle/dt=2024-05-01",
        ),
        _command(
            "publish",
            "Point readers to the scores of a night, or back.",
            _ROOT,
            "--root out/shop --show",
            "--root out/shop --rollback",
        ),
    ),
    "To look closer": (
        _command("explain", "Why a user's scores are what they are.", f"{_ROOT} --user u123"),
        _command(
            "report",
            "One HTML file about a day: interests, model, people, and what was refused.",
            _ROOT,
            f"{_ROOT} --out morning.html",
        ),
        _command(
            "search",
            "Look for better settings of the network and its training, by validation alone.",
            f"{_ROOT} --trials 20",
        ),
        _command(
            "plan",
            "What a run would take, before it runs: tasks, memory, time, the command for a cluster.",
            "--source shop.yaml --input 'logs/{date}/' --root out/shop --date 2024-05-02 --cores 64",
            "--source shop.yaml --input shop.csv --root out/shop --bootstrap",
        ),
        _command("doctor", "Check the installed environment piece by piece; each line ok or the exact fix.", ""),
    ),
}
COMMANDS = {command.name: command for group in GROUPS.values() for command in group}


def program(name: str) -> str:
    """What people typed to start the job: the `interest` command, or the module."""
    return f"interest {name}" if Path(sys.argv[0]).name == "interest" else f"python -m {COMMANDS[name].module}"


def command_parser(name: str) -> argparse.ArgumentParser:
    """A parser that says what the command does, with examples, and takes --json and --debug."""
    command = COMMANDS[name]
    examples = "\n".join(f"  {program(name)} {arguments}".rstrip() for arguments in command.arguments)
    parser = argparse.ArgumentParser(
        prog=program(name),
        description=command.summary,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print the result, or the error, as JSON")
    parser.add_argument("--debug", action="store_true", help="show the stack trace of an error")
    return parser
