"""Submitting the jobs' scripts to a live cluster, seeing who works there, and comparing what came out."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import duckdb
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deploy.cluster import Cluster, down, read, spark_home
from deploy.package import CODE, ENVIRONMENT
from features.contracts import SCORES, SESSIONS
from jobs.java import archive_options, ensure_java
from jobs.simulate import RAW
from jobs.store import MANIFEST

DAY = date(2024, 6, 30)
FIRST = DAY - timedelta(days=34)
# A log whose tables take seconds, a network that learns in seconds.
SMALL = (
    "simulation.users=600", "simulation.days=35", "simulation.process.items=500", "network.units=24",
    "network.item_dim=16", "training.max_epochs=1", "training.batch_rows=16",
)  # fmt: skip
_JVM = " ".join([os.environ["SPARK_SUBMIT_OPTS"], *archive_options(ensure_java())])  # as JVMs of all tests
# Executors of one core and little heap: two workers and a driver share two cores.
_SIZES = {
    "spark.executor.cores": "1",
    "spark.executor.memory": "700m",
    "spark.driver.memory": "700m",
    "spark.sql.shuffle.partitions": "4",
    "spark.driver.extraJavaOptions": _JVM,
    "spark.executor.extraJavaOptions": _JVM,
}
_STEP_S = 0.05
_HELD = Path(__file__).parent / "held.py"


class Unpacked:
    """The environment's archive, unpacked while other things begin; who needs its Python waits for it."""

    def __init__(self, archive: Path, folder: Path) -> None:
        folder.mkdir()
        self._python = folder / "bin" / "python"
        self._process = subprocess.Popen(["tar", "-xzf", archive, "-C", folder])

    @property
    def python(self) -> str:
        assert self._process.wait() == 0, "tar failed"
        return str(self._python)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


@dataclass(frozen=True)
class Site:
    """A cluster in its folder, what is shipped to it, and the unpacked environment, whose Python is the driver's."""

    folder: Path
    dist: Path
    unpacked: Unpacked
    host: str = "127.0.0.1"  # the driver's address
    drivers: list["Driver"] = field(default_factory=list)

    @property
    def cluster(self) -> Cluster:
        return read(self.folder)

    def submit(
        self, job: str, root: Path, *arguments: str, by_archive: bool = False, is_held: bool = False
    ) -> "Driver":
        """Start `spark-submit dist/jobs/<job>.py` in a session of its own.

        by_archive: executors unpack the archive; else they take the copy that is unpacked already, as from a mount.
        is_held: it publishes nothing before `finished` is called, so that what a test does comes before its end.
        """
        python, go = self.unpacked.python, self.folder / f"driver-{len(self.drivers)}-go"
        values = _SIZES | {"spark.pyspark.driver.python": python}
        values |= {} if by_archive else {"spark.pyspark.python": python}
        command = [
            str(spark_home() / "bin" / "spark-submit"), "--master", self.cluster.master, "--deploy-mode", "client",
            "--properties-file", str(self.dist / "conf" / "spark" / "standalone.conf"),
            "--py-files", str(self.dist / CODE),
            *(["--archives", f"{self.dist / ENVIRONMENT}#environment"] if by_archive else []),
            *(part for key, value in values.items() for part in ("--conf", f"{key}={value}")),
            *([str(_HELD), str(go)] if is_held else []), str(self.dist / "jobs" / f"{job}.py"),
            "--root", str(root), "--date", str(DAY),
            *(part for text in SMALL for part in ("--set", text)), *arguments,
        ]  # fmt: skip
        kept = {key: os.environ[key] for key in ("HOME", "JAVA_HOME") if key in os.environ}
        environment = {**kept, "PATH": os.defpath, "SPARK_HOME": str(spark_home()), "SPARK_LOCAL_IP": self.host}
        log = self.folder / f"driver-{len(self.drivers)}-{job}.log"
        with log.open("wb") as said:  # a file and no pipe: nobody reads while the driver works
            process = subprocess.Popen(
                command, env=environment, cwd=self.folder, stdin=subprocess.DEVNULL,
                stdout=said, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self.drivers.append(Driver(process, log, go))
        return self.drivers[-1]

    def run(self, job: str, root: Path, *arguments: str) -> str:
        """Submit and wait; what it printed, once it ended well."""
        return self.submit(job, root, *arguments).finished()

    def end_drivers(self) -> None:
        """Those that a failed test left."""
        for driver in self.drivers:
            driver.kill()

    def end(self) -> None:
        """End what a failed test left, then the cluster."""
        self.end_drivers()
        down(self.folder)

    def executors(self) -> list[psutil.Process]:
        """JVMs of executors, below the workers or left over by one."""
        found = [p for p in psutil.process_iter() if "CoarseGrainedExecutorBackend" in _command(p)]
        return [process for process in found if _folder(process).startswith(str(self.folder))]

    def ranks(self) -> list[psutil.Process]:
        """Processes of ranks, below tasks of executors or left over by one."""
        found = [p for p in psutil.process_iter() if "-m horovod.spark.task.gloo_exec_fn" in _command(p)]
        found = [process for process in found if not _command(process).startswith("/bin/sh")]  # around each rank
        return [process for process in found if _folder(process).startswith(str(self.folder))]

    def python_workers(self) -> list[psutil.Process]:
        """Processes that run our Python in executors: forked by the daemon of each executor."""
        found = [child for jvm in self.executors() for child in _children(jvm) if "pyspark.daemon" in _command(child)]
        daemons = [process for process in found if not _command(process).startswith("/bin/sh")]  # becomes the daemon
        return [worker for daemon in daemons for worker in _children(daemon)]


@dataclass(frozen=True)
class Driver:
    """A job that was submitted, and the file with what it says."""

    process: "subprocess.Popen[bytes]"
    log: Path
    go: Path  # where it is held, it waits for this

    def is_over(self) -> bool:
        return self.process.poll() is not None

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def finished(self, code: int = 0, within_s: float = 600) -> str:
        """Let it go on and wait for its end; what it printed, once it ended with this exit code."""
        self.go.touch()
        try:
            self.process.wait(timeout=within_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"not over after {within_s:.0f} s: {self.said()[-3000:]}") from None
        assert self.process.returncode == code, self.said()[-3000:]
        return self.said()

    def kill(self) -> None:
        """SIGKILL the driver and everything below it, at once; nothing where it is over."""
        if not self.is_over():
            process = psutil.Process(self.process.pid)
            for one in (*process.children(recursive=True), process):
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            self.process.wait()


def skip_unless_left(wanted_s: int) -> None:
    """Skip, and say so, where INTEREST_UNTIL (seconds since 1970) comes sooner than that."""
    until = os.environ.get("INTEREST_UNTIL")
    if until and (left_s := float(until) - time.time()) < wanted_s:
        pytest.skip(f"INTEREST_UNTIL comes in {left_s:.0f} s; {wanted_s} s may be needed")


def as_root(*command: object) -> None:
    """Run what only root may; skip where the kernel refuses even root, as in many containers.

    Raises:
        RuntimeError: it failed for another reason.
    """
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if re.search("not permitted|permission denied", done.stderr, re.IGNORECASE):
        pytest.skip(f"{command[0]}: {done.stderr.strip()}")
    if done.returncode != 0:
        raise RuntimeError(f"{command}: {done.stderr}")


def wait_for(what: str, found: Callable[[], Any], driver: Driver | None = None) -> Any:
    """Poll until `found` gives something; an AssertionError where the driver ended before."""
    deadline = time.monotonic() + 600
    while not (value := found()):
        if driver is not None and driver.is_over():
            raise AssertionError(f"the driver ended before {what}: {driver.said()[-3000:]}")
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(_STEP_S)
    return value


def rows(root: Path, table: str) -> pa.Table:
    """Rows of the day, sorted by all columns; the order of files and rows in them says nothing."""
    folder = root / table / f"dt={DAY}"
    assert (folder / MANIFEST).exists(), f"{folder} is not published"
    found = duckdb.from_arrow(pq.read_table(folder))
    return found.query("found", "SELECT * FROM found ORDER BY ALL").to_arrow_table()


def counters(root: Path, table: str) -> dict[str, Any]:
    """What the manifest of the day counts."""
    found: dict[str, Any] = json.loads((root / table / f"dt={DAY}" / MANIFEST).read_text())["counters"]
    return found


def is_published(root: Path, table: str) -> bool:
    return (root / table / f"dt={DAY}" / MANIFEST).exists()


def copy_without(root: Path, into: Path, *tables: str) -> Path:
    """A copy of a root of its own for a test, as it was before these tables were written."""
    shutil.copytree(root, into, ignore=shutil.ignore_patterns(*tables))
    return into


def log_of(root: Path) -> list[str]:
    """Flags of sessionize for the simulated log of a root."""
    return ["--source", "simulated", "--input", str(root / RAW), "--from", str(FIRST), "--bootstrap"]


SCORED = (SCORES.name, "user_states_v1", "drift_v1")
CUT = (SESSIONS.name, "open_sessions_v1", "rejected_events_v1", "flagged_users_v1", "held_events_v1")


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        children: list[psutil.Process] = process.children()
    except psutil.NoSuchProcess:
        return []
    return children


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def _folder(process: psutil.Process) -> str:
    try:
        return str(process.cwd())
    except psutil.NoSuchProcess:
        return ""
