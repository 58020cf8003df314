"""What every job shares: signals end it in order, and an error is a paragraph whose paths can be copied."""

import argparse
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import cli
from jobs.settings import UsageError
from jobs.spark import hear_no_interrupts

PROJECT = Path(cli.__file__).parent.parent
WAITING = """
import sys, time
from jobs.cli import run_job, stage_parser
def work(arguments):
    print("started", flush=True)
    time.sleep(3600)
sys.exit(run_job(work, stage_parser("score", needs_date=False), ["--root", "r"]))
"""


NOTHING_IGNORED = """
import signal
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
"""


def started(nohup: bool = False) -> "subprocess.Popen[str]":
    # The tests may themselves run with these signals ignored, which a child inherits.
    code = WAITING if nohup else f"{NOTHING_IGNORED}{WAITING}"
    command = [*(["nohup"] if nohup else []), sys.executable, "-c", code]
    process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_a_job_like_ctrl_c(number: signal.Signals) -> None:
    process = started()
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert said.startswith("Interrupted; ")


def test_a_job_under_nohup_outlives_its_terminal() -> None:
    process = started(nohup=True)
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 130
    process.communicate()


def test_paths_and_flags_in_an_error_stay_whole(capsys: pytest.CaptureFixture[str]) -> None:
    path = os.sep.join(["", *["a-long-folder-name"] * 8, "dt=2024-03-01"])

    def work(_arguments: argparse.Namespace) -> None:
        raise UsageError(f"{'word ' * 15}{path} {'word ' * 16}--a-flag-with-hyphens is wrong.")

    assert cli.run_job(work, cli.stage_parser("score", needs_date=False), ["--root", "r"]) == 2
    said = capsys.readouterr().err
    assert path in said
    assert "--a-flag-with-hyphens" in said
    assert len(said.splitlines()) > 2


def test_of_a_ctrl_c_py4j_logs_nothing_but_of_other_failures_it_does(caplog: pytest.LogCaptureFixture) -> None:
    hear_no_interrupts()
    connection = logging.getLogger("py4j.clientserver")
    for first in (KeyboardInterrupt(), OSError("the JVM is gone")):
        try:
            try:
                raise first
            except BaseException:
                raise ConnectionResetError("reset by peer")  # noqa: B904 - as Py4J meets it, in the midst of the first
        except ConnectionResetError:
            connection.exception(f"of {type(first).__name__}")
    logging.exception("KeyboardInterrupt while sending command.")
    assert caplog.messages == ["of OSError"]
