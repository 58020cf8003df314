"""The `interest` command: what it lists is there, its examples are right, and it is the jobs' own flags in front."""

import io
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from jobs import interest
from jobs.commands import COMMANDS, GROUPS
from jobs.terminal import RED, paint

INTEREST = Path(sys.executable).with_name("interest")


def ran(*command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


def test_the_installed_command_lists_every_command_at_once_without_loading_one() -> None:
    told = ran(str(INTEREST))
    assert told.returncode == 0
    assert all(f"  {name} " in told.stdout for name in COMMANDS)
    code = "import sys, jobs.interest; jobs.interest.main(['--help']); assert not {'pyspark', 'numpy'} & {*sys.modules}"
    assert ran(sys.executable, "-c", code).returncode == 0


NO_STAGES = {"class_archive", "contracts"}  # of this project's own upkeep: make targets


def test_every_job_with_flags_of_a_stage_is_a_command() -> None:
    folder = Path(interest.__file__).parent
    jobs = {file.stem for file in folder.glob("*.py") if "def main(argv: Sequence[str]) -> int" in file.read_text()}
    assert {command.module for command in COMMANDS.values()} == {f"jobs.{name}" for name in jobs - NO_STAGES}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_of_a_command_are_arguments_it_takes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = COMMANDS[name]
    module = import_module(command.module)
    parser = getattr(module, command.parser)()
    for arguments in command.arguments:
        parser.parse_args(shlex.split(arguments))
    with pytest.raises(SystemExit):
        getattr(module, command.main)(["--help"])
    told = capsys.readouterr().out
    assert command.summary in " ".join(told.split())
    assert all(arguments in told for arguments in command.arguments)


def test_help_names_the_command_that_was_typed() -> None:
    ours, theirs = ran(str(INTEREST), "publish", "--help"), ran(sys.executable, "-m", "jobs.publish", "--help")
    assert ours.stdout.startswith("usage: interest publish ")
    assert theirs.stdout.startswith("usage: python -m jobs.publish ")
    flags = [line for line in ours.stdout.splitlines() if line.startswith("  -")]
    assert flags == [line for line in theirs.stdout.splitlines() if line.startswith("  -")]


@pytest.mark.parametrize(("typed", "said"), [("nigthly", "Did you mean nightly?"), ("x", "There are demo, run,")])
def test_an_unknown_command_is_refused(typed: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert interest.main([typed]) == 2
    told = capsys.readouterr()
    assert said in told.err
    assert not told.out


def test_an_error_is_a_paragraph_for_people_and_json_for_machines(tmp_path: Path) -> None:
    flags = ("publish", "--root", str(tmp_path), "--rollback")
    plain, told = ran(str(INTEREST), *flags), ran(str(INTEREST), *flags, "--json")
    assert (plain.returncode, plain.stdout) == (3, "")
    assert "Traceback" not in plain.stderr
    assert "\x1b" not in plain.stderr, "colours are for terminals"
    error = json.loads(told.stdout)
    assert error["exit_code"] == told.returncode == 3
    assert " ".join(told.stderr.split()) == f"error: {error['error']}"
    debugged = ran(str(INTEREST), *flags, "--debug")
    assert "Traceback" in debugged.stderr


def test_a_night_that_stops_is_one_json_object(tmp_path: Path) -> None:
    flags = ("--source", "simulated", "--input", str(tmp_path / "missing"), "--date", "2024-05-02", "--json")
    told = ran(str(INTEREST), "nightly", "--root", str(tmp_path / "out"), *flags)
    assert "no such file" in json.loads(told.stdout)["error"]
    assert told.returncode == 3


def test_results_are_json_for_machines(tmp_path: Path) -> None:
    told = ran(str(INTEREST), "publish", "--root", str(tmp_path), "--show", "--json")
    assert json.loads(told.stdout) == {"current": None, "previous": [], "withdrawn": []}


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colours_are_for_terminals_that_want_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert paint("error:", RED, _Terminal()) == "\x1b[1;31merror:\x1b[0m"
    assert paint("error:", RED, io.StringIO()) == "error:"
    monkeypatch.setenv("NO_COLOR", "1")
    assert paint("error:", RED, _Terminal()) == "error:"
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert paint("error:", RED, _Terminal()) == "error:"


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """What bash offers for the last of some words."""
    script = tmp_path_factory.mktemp("completion") / "interest"
    made = ran(str(INTEREST), "completion", "bash")
    assert made.returncode == 0, made.stderr
    script.write_text(made.stdout)

    def offered(*words: str) -> list[str]:
        line = " ".join(shlex.quote(word) for word in words)
        code = (
            f"source {script}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; "
            '$(complete -p interest | grep -o -- "-F [^ ]*" | cut -c4-) interest; printf "%s\\n" "${COMPREPLY[@]}"'
        )
        told = ran("bash", "-c", code)
        assert told.returncode == 0, told.stderr
        return told.stdout.split()

    return offered


def test_bash_completes_commands_flags_and_choices(complete: Callable[..., list[str]]) -> None:
    assert complete("interest", "ni") == ["nightly"]
    assert set(complete("interest", "")) >= set(COMMANDS)
    assert complete("interest", "nightly", "--boot") == ["--bootstrap"]
    assert complete("interest", "evaluate", "--split", "va") == ["valid"]


def test_the_groups_name_no_command_twice() -> None:
    names = [command.name for group in GROUPS.values() for command in group]
    assert len(names) == len(set(names))
