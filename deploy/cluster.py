"""A real Spark standalone cluster on this machine: one Master and some Workers, each a process with its own folder.

    python -m deploy.cluster up      starts it and prints the address for --master
    python -m deploy.cluster down    ends what `up` started, executors included

It listens on one address (127.0.0.1 unless told otherwise) at ports that the system chooses. FOLDER/cluster.json names
every process by id and start time, so that only those are ended that were started.
"""

import argparse
import contextlib
import http.client
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from jobs.java import ensure_java
from jobs.processes import began

TOP = Path(__file__).resolve().parent.parent
STATE = "cluster.json"
_START_S = 240.0  # for a JVM to start and say where it listens; two cores that are busy otherwise need some seconds
_END_S = 10.0  # for a process to end by itself, before it is killed
_DAEMON_MEMORY = "256m"  # heap of Master and of each Worker; executors have their own


class ClusterError(Exception):
    """The cluster did not come up, or one is up already: what was seen and what to do."""


@dataclass(frozen=True)
class Started:
    """A process that `up` started; `began` tells it from a later one with the same id (jobs.processes)."""

    name: str
    pid: int
    began: str | None


@dataclass(frozen=True)
class Cluster:
    """A running cluster: where it lies, how it is reached, and its processes, the Master first."""

    folder: str
    master: str
    ui: str
    processes: tuple[Started, ...]

    def workers(self) -> list[dict[str, Any]]:
        """What the Master knows of its workers: id, host, port, cores, memory, state."""
        with urllib.request.urlopen(f"{self.ui}/json/", timeout=10) as answer:
            found: list[dict[str, Any]] = json.load(answer)["workers"]
        return found

    def alive(self) -> int:
        """Number of workers that the Master can use; none while it does not answer."""
        try:
            return sum(worker["state"] == "ALIVE" for worker in self.workers())
        except (OSError, http.client.HTTPException):
            return 0


def up(folder: Path, workers: int = 2, cores: int = 1, memory_mib: int = 2048, host: str = "127.0.0.1") -> Cluster:
    """Start a Master and `workers` Workers of `cores` cores and `memory_mib` MiB each; returns when all have met.

    host: the address at which all of them listen.

    Raises:
        ClusterError: one is up in this folder already, or a process did not start.
    """
    path = folder / STATE
    if path.exists():
        raise ClusterError(f"{path} says that a cluster is up. End it first: make cluster-down")
    folder.mkdir(parents=True, exist_ok=True)
    started: list[Started] = []
    try:
        command = ["org.apache.spark.deploy.master.Master", "--host", host, "--port", "0", "--webui-port", "0"]
        started.append(_start(folder, "master", command, {}, (), host))
        log = folder / "master.log"
        master = _said(log, r"Starting Spark master at (spark://\S+)", started[0])
        ui = _said(log, r"Bound MasterWebUI to \S+, and started at (http://\S+)", started[0])
        cluster = Cluster(str(folder), master, ui, tuple(started))
        _write(path, cluster)
        for number in range(1, workers + 1):
            cluster = add_worker(cluster, f"worker-{number}", cores, memory_mib, host)
        deadline = time.monotonic() + _START_S
        while cluster.alive() < workers:
            if time.monotonic() > deadline:
                raise ClusterError(f"{cluster.alive()} of {workers} workers came up within {_START_S:.0f} s: {folder}")
            time.sleep(0.2)
        return cluster
    except BaseException:
        if path.exists():
            down(folder)
        else:
            _end([process for record in started if (process := _alive(record))])
        raise


def add_worker(
    cluster: Cluster, name: str, cores: int, memory_mib: int, host: str = "127.0.0.1", prefix: Sequence[str] = ()
) -> Cluster:
    """Start one more Worker, with its work and scratch folders in FOLDER/<name>; `prefix` goes before its command.

    memory_mib: what its executors may take as heap, together.
    """
    folder = Path(cluster.folder)
    own = folder / name
    command = ["org.apache.spark.deploy.worker.Worker", "--host", host, "--port", "0", "--webui-port", "0"]
    command += ["--cores", str(cores), "--memory", f"{memory_mib}m", "--work-dir", str(own / "work"), cluster.master]
    environment = {
        "SPARK_LOCAL_DIRS": str(own / "scratch"),
        # What an application unpacked is over a gigabyte a worker: gone soon after its end.
        "SPARK_WORKER_OPTS": "-Dspark.worker.cleanup.enabled=true -Dspark.worker.cleanup.interval=20 "
        "-Dspark.worker.cleanup.appDataTtl=20",
    }
    (own / "scratch").mkdir(parents=True, exist_ok=True)
    grown = Cluster(
        cluster.folder,
        cluster.master,
        cluster.ui,
        (*cluster.processes, _start(folder, name, command, environment, prefix, host)),
    )
    _write(folder / STATE, grown)
    return grown


def down(folder: Path) -> int:
    """End every process of the cluster and those that these started → how many. Nothing where none is up."""
    path = folder / STATE
    if not path.exists():
        return 0
    found = [process for record in read(folder).processes if (process := _alive(record))]
    n_ended = _end(found)
    path.unlink()
    return n_ended


def read(folder: Path) -> Cluster:
    """The cluster that is up in a folder.

    Raises:
        ClusterError: there is none.
    """
    try:
        values = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ClusterError(f"No cluster is up: {folder / STATE} does not exist. Start one: make cluster-up") from None
    return Cluster(**{**values, "processes": tuple(Started(**entry) for entry in values["processes"])})


def spark_home() -> Path:
    """Where pip put Spark."""
    found = importlib.util.find_spec("pyspark")
    if found is None or found.origin is None:
        raise ClusterError("pyspark is not installed. Run: make setup")
    return Path(found.origin).parent


def _start(
    folder: Path,
    name: str,
    command: Sequence[str],
    environment: Mapping[str, str],
    prefix: Sequence[str],
    host: str,
) -> Started:
    ensure_java()
    own = {"SPARK_HOME": str(spark_home()), "SPARK_LOCAL_IP": host, "SPARK_PUBLIC_DNS": host}
    own |= {"SPARK_DAEMON_MEMORY": _DAEMON_MEMORY, "TZ": "UTC"}
    # Its executors get what it has: of our own environment nothing that would bring our packages to them.
    kept = {key: os.environ[key] for key in ("PATH", "HOME", "LANG", "JAVA_HOME") if key in os.environ}
    with (folder / f"{name}.log").open("wb") as log:  # what an earlier one said is not of this one
        process = subprocess.Popen(
            [*prefix, str(spark_home() / "bin" / "spark-class"), *command],
            env={**kept, **own, **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C of whoever looks on is not for the cluster
            cwd=folder,
        )
    return Started(name, process.pid, began(process.pid))


def _said(log: Path, pattern: str, by: Started) -> str:
    """Wait for a line in a log and return what the pattern's group holds."""
    deadline = time.monotonic() + _START_S
    while True:
        is_last = _alive(by) is None or time.monotonic() > deadline  # before the log: an end comes after its last words
        text = log.read_text(encoding="utf-8", errors="replace")
        found = re.search(pattern, text)
        if found:
            return found[1]
        if is_last:
            raise ClusterError(f"{by.name} did not start; the end of {log}: {text[-1500:]}")
        time.sleep(0.1)


def _alive(record: Started) -> psutil.Process | None:
    try:
        process = psutil.Process(record.pid)
        is_same = began(record.pid) == record.began and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return None
    return process if is_same else None


def _end(processes: Sequence[psutil.Process]) -> int:
    """Ask every process and its descendants to end, then kill what is left; a stopped one is woken first."""
    tree: dict[int, psutil.Process] = {}
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            tree |= {child.pid: child for child in (process, *process.children(recursive=True))}
    for act in (psutil.Process.resume, psutil.Process.terminate):
        for process in tree.values():
            _unless_gone(act, process)
    _, left = psutil.wait_procs(list(tree.values()), timeout=_END_S)
    for process in left:
        _unless_gone(psutil.Process.kill, process)
    psutil.wait_procs(left, timeout=_END_S)
    return len(tree)


def _unless_gone(act: Callable[[psutil.Process], None], process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        act(process)


def _write(path: Path, cluster: Cluster) -> None:
    hidden = path.with_name(f".{path.name}.tmp")
    hidden.write_text(json.dumps(asdict(cluster), indent=1) + "\n", encoding="utf-8")
    hidden.replace(path)


def main(argv: Sequence[str]) -> int:
    """Command line: up or down. Exit code 1 where the cluster did not come up."""
    parser = argparse.ArgumentParser(prog="python -m deploy.cluster", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("up", "down"))
    parser.add_argument(
        "--folder", type=Path, default=TOP / "out" / "cluster", metavar="DIR", help="its files and logs"
    )
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="workers to start (default: 2)")
    parser.add_argument("--cores", type=int, default=1, metavar="N", help="cores of each worker (default: 1)")
    parser.add_argument("--memory-mib", type=int, default=2048, metavar="N", help="MiB of each worker (default: 2048)")
    arguments = parser.parse_args(argv)
    folder = arguments.folder.resolve()
    try:
        if arguments.what == "down":
            print(f"ended {down(folder)} processes")
            return 0
        cluster = up(folder, arguments.workers, arguments.cores, arguments.memory_mib)
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{cluster.master}\n{cluster.ui}\n{len(cluster.processes)} processes: {folder / STATE}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
