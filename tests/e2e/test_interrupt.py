"""Ctrl-C in the middle of a run that Spark is busy with, as a terminal sends it: to every process of the group."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from features.contracts import OPEN_SESSIONS, SESSIONS
from jobs.store import Store

# What the tests were started by may ignore the signal, which a child inherits; a terminal's shell does not.
LISTENING = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); from jobs import interest; "


def test_ctrl_c_leaves_no_process_and_nothing_half_written(tmp_path: Path) -> None:
    root = tmp_path / "out"
    arguments = ["demo", "--root", str(root), "--set", "simulation.users=200"]
    started = subprocess.Popen(
        [sys.executable, "-c", f"{LISTENING}sys.exit(interest.main({arguments!r}))"],
        env={**os.environ, "INTEREST_SPARK_PROFILE": "test", "SPARK_SUBMIT_OPTS": ""},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert started.stderr is not None
        assert any("[2/8] sessionize" in line for line in started.stderr), "it ended before that"
        time.sleep(2)  # Spark reads the log by now
        os.killpg(started.pid, signal.SIGINT)
        _, said = started.communicate(timeout=300)
        assert started.returncode == 130, said
        assert said == "Interrupted; what was unfinished is not readable and a new run replaces it.\n"
        assert _left_of(started.pid) == []
        assert not Store(str(root)).dates(OPEN_SESSIONS.name), "sessionize was done before the signal came"
        assert not Store(str(root)).dates(SESSIONS.name)
    finally:
        if started.poll() is None:
            os.killpg(started.pid, signal.SIGKILL)


def _left_of(session: int) -> list[str]:
    """Processes of a session, but for those that are dead and wait for their parent; waits a moment for the JVM."""
    for _ in range(600):
        left = []
        for process in psutil.process_iter(["pid", "cmdline", "status"]):
            try:
                if os.getsid(process.pid) == session and process.info["status"] != psutil.STATUS_ZOMBIE:
                    left.append(" ".join(process.info["cmdline"] or []))
            except ProcessLookupError:
                continue
        if not left:
            break
        time.sleep(0.1)
    return left
