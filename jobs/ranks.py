"""Ranks as processes: start them on this machine, pass on what they say, tell an error once, leave none behind."""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from features.contracts import ContractError
from jobs.cli import EXIT_CONTRACT, EXIT_OTHER, EXIT_USAGE, run_job, say
from jobs.settings import UsageError
from jobs.watching import BAR, terminal_bar
from model.errors import ModelError

_STATUS_DIR = "INTEREST_STATUS_DIR"  # where a rank leaves its error for `start_ranks`, which tells it once
_RANK = "HOROVOD_RANK"
_RANK_LINE = re.compile(r"^\[\d+\]<std(?:out|err)>:")
_STALL_KEY, _STALL_S = "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", "300"  # a rank that hangs ends them all, not never
_STOP_S = 5  # for a rank to end by itself after SIGTERM
_TYPES = {kind.__name__: kind for kind in (UsageError, ContractError, ModelError)}


def start_ranks(ranks: int, module: str, arguments: Sequence[str]) -> None:
    """Run `python -m module arguments` in `ranks` processes of their own until all end; none outlives this call.

    More than one run under horovodrun. What they print is said here.

    Raises:
        UsageError, ContractError, ModelError: what stopped a rank, once, whichever rank it was.
        RuntimeError: anything else.
    """
    command = [sys.executable, "-m", module, *arguments]
    if ranks > 1:
        command = [str(Path(sys.executable).with_name("horovodrun")), "--gloo", "-np", str(ranks), *command]
    project = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(part for part in (project, os.environ.get("PYTHONPATH")) if part)
    with tempfile.TemporaryDirectory(prefix="interest-ranks-") as status:
        stall = {_STALL_KEY: os.environ.get(_STALL_KEY, _STALL_S)}
        environment = {**os.environ, **stall, "PYTHONPATH": path, _STATUS_DIR: status}
        bar = terminal_bar()
        if bar:
            environment[BAR] = "1"
        try:
            code, rest = _relay(command, environment, bar.pass_on if bar else say, is_launched=ranks > 1)
        finally:
            if bar:
                bar.close()
        if code != 0:
            raise _first_error(Path(status)) or RuntimeError(f"{module} ended with exit code {code}. {rest}")


def run_rank(main: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    """`run_job` for what may be one of several ranks: the rank that met an error tells it, the others only stop."""

    def work(arguments: argparse.Namespace) -> None:
        try:
            main(arguments)
        except Exception as error:
            if not arguments.debug and _is_told_elsewhere(error):
                raise SystemExit(_exit_code(error)) from None
            raise

    try:
        code = run_job(work, parser, argv)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else EXIT_OTHER
    if code != 0 and _RANK in os.environ:
        sys.stderr.flush()
        os._exit(code)  # Horovod's own exit handler would wait for ranks that are gone
    return code


def _is_told_elsewhere(error: Exception) -> bool:
    """Whether another process tells this error; under `start_ranks` it is left there first."""
    from model.workers import RankLostError, StoppedByRankError

    if isinstance(error, StoppedByRankError):
        return True
    is_lost = isinstance(error, RankLostError)
    if _STATUS_DIR not in os.environ:
        return is_lost and os.environ.get(_RANK, "0") != "0"
    kind = next((name for name, known in _TYPES.items() if isinstance(error, known)), type(error).__name__)
    report = {"type": kind, "message": str(error), "is_lost": is_lost}
    name = f"rank-{os.environ.get(_RANK, '0')}.json"
    Path(os.environ[_STATUS_DIR], name).write_text(json.dumps(report), encoding="utf-8")
    return True


def _exit_code(error: Exception) -> int:
    if isinstance(error, UsageError):
        return EXIT_USAGE
    return EXIT_CONTRACT if isinstance(error, ContractError | ModelError) else EXIT_OTHER


def _relay(
    command: Sequence[str], environment: Mapping[str, str], tell: Callable[[str], None], is_launched: bool
) -> tuple[int, str]:
    """Run a command and tell its lines; of a launcher's own lines only the last are kept, for an error of its own."""
    own: deque[str] = deque(maxlen=20)
    process = subprocess.Popen(
        command,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the others in order
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            prefix = _RANK_LINE.match(line)
            if prefix or not is_launched:
                tell(line[prefix.end() if prefix else 0 :].rstrip())
            else:
                own.append(line.strip())
        return process.wait(), " ".join(own)
    finally:
        _end(process)


def _end(process: "subprocess.Popen[str]") -> None:
    """End a process and all that it started, wherever they moved: horovodrun's ranks have sessions of their own."""
    try:
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    except psutil.NoSuchProcess:
        return
    for member in family:
        _signal(member.terminate)
    _, alive = psutil.wait_procs(family, timeout=_STOP_S)
    for member in alive:
        _signal(member.kill)
    process.wait()


def _signal(send: Any) -> None:
    try:
        send()
    except psutil.NoSuchProcess:
        return


def _first_error(status: Path) -> Exception | None:
    """The error to tell: a rank's own, else that a rank was lost. None where no rank left one."""
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(status.glob("rank-*.json"))]
    for report in sorted(reports, key=lambda found: bool(found["is_lost"])):
        kind = _TYPES.get(report["type"])
        return kind(report["message"]) if kind else RuntimeError(f"{report['type']}: {report['message']}")
    return None
