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

# What the tests were started by may ignore the signal, which a child inherits; a terminal's shell does not. Spark is in
# the midst of sessionize until the signal comes.
HELD = """
import signal, sys, time
from pathlib import Path

signal.signal(signal.SIGINT, signal.default_int_handler)
from features.contracts import HELD_EVENTS
from jobs import interest, sessionize

at_work, by_user = sys.argv[1], sessionize.events_by_user

def hold(batches):
    Path(at_work).touch()
    time.sleep(600)
    yield from batches

sessionize.events_by_user = lambda *of: by_user(*of).mapInArrow(hold, HELD_EVENTS.schema)
sys.exit(interest.main(sys.argv[2:]))
"""


def test_ctrl_c_leaves_no_process_and_nothing_half_written(tmp_path: Path) -> None:
    root, at_work = tmp_path / "out", tmp_path / "at-work"
    arguments = ["demo", "--root", str(root), "--set", "simulation.users=200"]
    started = subprocess.Popen(
        [sys.executable, "-c", HELD, str(at_work), *arguments],
        env={**os.environ, "INTEREST_SPARK_PROFILE": "test", "SPARK_SUBMIT_OPTS": ""},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert started.stderr is not None
        assert any("[2/8] sessionize" in line for line in started.stderr), "it ended before that"
        deadline = time.monotonic() + 300
        while not at_work.exists():
            assert started.poll() is None, "it ended before a task of sessionize began"
            assert time.monotonic() < deadline
            time.sleep(0.05)
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
