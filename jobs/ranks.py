"""Ranks as processes: start them on this machine, pass on what they say, tell an error once, leave none behind."""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from features.contracts import ContractError
from jobs.cli import EXIT_CONTRACT, EXIT_OTHER, EXIT_USAGE, run_job, say
from jobs.settings import UsageError
from jobs.watching import BAR, terminal_bar
from model.environment import RANKS_HERE
from model.errors import ModelError, rank_gone

_STATUS_DIR = "INTEREST_STATUS_DIR"  # where a rank leaves its error for `start_ranks`, which tells it once
_RANK = "HOROVOD_RANK"
REPORT = "\x1ereport "  # starts the line in which a rank on another machine hands its error over, after its name
_KILLED = re.compile(r"Exit code: (?:137|-9)\b")  # horovodrun's last words, of the rank that was the first to end
_RANK_LINE = re.compile(r"^\[\d+\]<std(?:out|err)>:")
STALL_KEY, STALL_S = "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", "300"  # a rank that hangs ends them all, not never
# Ranks find each other within it though one machine loads TensorFlow slower than another. Elastic ones have Horovod's
# 30 s: so long the others wait for one that is lost while they meet.
PATIENCE = {"HOROVOD_GLOO_TIMEOUT_SECONDS": "120"}
_STOP_S = 5  # for a rank to end by itself after SIGTERM
_TYPES = {kind.__name__: kind for kind in (UsageError, ContractError, ModelError)}


def start_ranks(
    ranks: int, module: str, arguments: Sequence[str], min_ranks: int | None = None, hosts: str | None = None
) -> None:
    """Run `python -m module arguments` in `ranks` processes of their own until all end; none outlives this call.

    More than one run under horovodrun. What they print is said here. With `min_ranks` they are elastic: as long as so
    many are left, the loss of one ends nothing. The arguments must then tell the module so. hosts: where they run, as
    `a:2,b:2` with the most ranks of each; without it on this machine.

    Raises:
        UsageError, ContractError, ModelError: what stopped a rank, once, whichever rank it was.
        RuntimeError: anything else.
    """
    command = [sys.executable, "-m", module, *arguments]
    is_launched = ranks > 1 or hosts is not None
    if is_launched:
        places = ["-H", hosts] if hosts else []
        elastic = [] if min_ranks is None else _elastic_options(ranks, min_ranks, is_here=hosts is None)
        horovodrun = str(Path(sys.executable).with_name("horovodrun"))
        # Its cache of what it checked is one file of the user, which two of them at once would tear.
        command = [horovodrun, "--gloo", "--disable-cache", "-np", str(ranks), *places, *elastic, *command]
    project = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(part for part in (project, os.environ.get("PYTHONPATH")) if part)
    with tempfile.TemporaryDirectory(prefix="interest-ranks-") as status:
        stall = {STALL_KEY: os.environ.get(STALL_KEY, STALL_S)}
        here = {} if hosts else {RANKS_HERE: str(ranks)}
        patience = PATIENCE if min_ranks is None else {}
        environment = {**patience, **os.environ, **stall, **here, "PYTHONPATH": path, _STATUS_DIR: status}
        bar = terminal_bar()
        if bar:
            environment[BAR] = "1"
        try:
            code, rest = _relay(command, environment, bar.pass_on if bar else say, is_launched)
        finally:
            if bar:
                bar.close()
        if code != 0:
            silent = RuntimeError(f"{module} ended with exit code {code}. {rest}")
            was_killed = code == -signal.SIGKILL or _KILLED.search(rest)
            raise _first_error(Path(status)) or (ModelError(rank_gone()) if was_killed else silent)


def run_rank(main: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    """`run_job` for what may be one of several ranks: the rank that met an error tells it, the others only stop."""
    has_failed = False

    def work(arguments: argparse.Namespace) -> None:
        nonlocal has_failed
        try:
            main(arguments)
        except Exception as error:
            has_failed = True
            if not arguments.debug and _is_told_elsewhere(error):
                raise SystemExit(_exit_code(error)) from None
            raise

    try:
        code = run_job(work, parser, argv)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else EXIT_OTHER
    if (code != 0 or has_failed) and _RANK in os.environ:
        sys.stderr.flush()
        os._exit(code)  # Horovod's own exit handler would wait for ranks that are gone
    return code


def _elastic_options(ranks: int, min_ranks: int, is_here: bool) -> list[str]:
    """Horovod drops the host of a lost rank with all its ranks: this machine goes by two names, half the ranks each."""
    half = ranks // 2
    hosts = f"localhost:{ranks - half},127.0.0.1:{half}"
    places = ["-H", hosts, "--network-interfaces", "lo"] if is_here else []
    return ["--min-np", str(min_ranks), "--max-np", str(ranks), *places]


def _is_told_elsewhere(error: Exception) -> bool:
    """Whether another process tells this error; under `start_ranks` it is left there first."""
    from model.workers import RankLostError, StoppedByRankError

    if isinstance(error, StoppedByRankError):
        return True
    is_lost = isinstance(error, RankLostError)
    if _STATUS_DIR not in os.environ:
        return is_lost and os.environ.get(_RANK, "0") != "0"
    folder, report = Path(os.environ[_STATUS_DIR]), json.dumps(error_report(error))
    name = f"rank-{os.environ.get(_RANK, '0')}-{os.getpid()}.json"  # elastic ranks may start with one rank twice
    if folder.is_dir():
        hidden = folder / f".{name}"
        hidden.write_text(report, encoding="utf-8")
        hidden.replace(folder / name)  # whoever ends this rank while it writes leaves no half of it
    else:
        say(f"{REPORT}{name} {report}")
    return True


def error_report(error: Exception) -> dict[str, Any]:
    """A rank's error as plain values, for `error_of` in another process."""
    kind = next((name for name, known in _TYPES.items() if isinstance(error, known)), type(error).__name__)
    order = 0 if kind in _TYPES else 1  # the lowest is told
    workers = sys.modules.get("model.workers")  # not imported for this: it loads TensorFlow, and who raised it has it
    if workers and isinstance(error, workers.StoppedByRankError | workers.RankLostError):
        order = 2 if isinstance(error, workers.RankLostError) else 3
    return {"type": kind, "message": str(error), "order": order}


def error_of(reports: Iterable[Mapping[str, Any]]) -> Exception | None:
    """The error to tell of those of all ranks: a rank's own, else that a rank was lost. None where there is none."""
    for report in sorted(reports, key=lambda found: int(found["order"])):
        kind = _TYPES.get(report["type"])
        return kind(report["message"]) if kind else RuntimeError(f"{report['type']}: {report['message']}")
    return None


def _exit_code(error: Exception) -> int:
    from model.workers import StoppedByRankError

    if isinstance(error, StoppedByRankError) and os.environ.get("HOROVOD_ELASTIC") != "1":
        return 0  # with another code, horovodrun might end the rank that met the error before it has told it
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
            text = line[prefix.end() if prefix else 0 :].rstrip()
            if text.startswith(REPORT):
                name, _, report = text.removeprefix(REPORT).partition(" ")
                Path(environment[_STATUS_DIR], Path(name).name).write_text(report, encoding="utf-8")
            elif prefix or not is_launched:
                tell(text)
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
    psutil.wait_procs(alive, timeout=_STOP_S)
    process.wait()


def _signal(send: Any) -> None:
    try:
        send()
    except psutil.NoSuchProcess:
        return


def _first_error(status: Path) -> Exception | None:
    """The error to tell; None where no rank left one."""
    return error_of(json.loads(path.read_text(encoding="utf-8")) for path in sorted(status.glob("rank-*.json")))
