"""Ranks inside Spark's executors. The only module that imports horovod.spark.

Horovod starts a task for each rank and in each task a process, which runs a function that travels with the job. The
function returns its error as a value, so that an error is told once, here, and by its kind. Errors are handed over by
a connection of our own too, as Horovod drops all values when one rank is gone, and so do lines of rank 0 come: what its
processes print Horovod hands on only when they have ended, and not always then.
"""

import atexit
import contextlib
import json
import os
import re
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
from pyspark.sql import SparkSession

from jobs.line_channel import Address, FarStream, listen, reporter
from jobs.ranks import PATIENCE, REPORT, STALL_KEY, STALL_S, error_of, error_report
from jobs.settings import UsageError
from model.environment import RANK_CORES
from model.errors import ModelError, rank_gone

START_TIMEOUT_S = 300  # for every rank to get a slot of the cluster, executors that are started on demand included
_POLL_S = 1.0  # seconds between two looks at the tasks
_STOP_S = 20.0  # for the ranks to end by themselves, once one is lost or the run is interrupted
# What ranks printed comes by threads of their own, after the news of an end: at least, for all to speak, and at most.
_LAST_WORDS_S = (3.0, 10.0)
_RANK = "HOROVOD_RANK"
_PYTHON_ERROR = re.compile(r"(?:^|>:)(\w+(?:\.\w+)*Error: .*)")


def run_in_executors(
    spark: SparkSession,
    ranks: int,
    work: Callable[[], Any],
    tell: Callable[[str], None],
    environment: Mapping[str, str],
    start_timeout_s: int = START_TIMEOUT_S,
    debug: bool = False,
) -> Any:
    """Call `work` in `ranks` processes, one a Spark task, and return what it returned on rank 0.

    work: a nested function, which Spark carries by value; it may refer to plain values and imports what it needs.
    `tell` hears the lines that rank 0 writes to standard error; `environment` is added to that of the ranks.

    Raises:
        UsageError: this Spark runs fewer tasks at a time than there are ranks, or executors lack the project.
        ContractError, ModelError: what stopped a rank, once, whichever rank it was; or that one is gone.
        TimeoutError: the cluster had no room for every rank in time.
        RuntimeError: anything else.
    """
    import horovod.spark

    context = spark.sparkContext
    settings = context.getConf()
    cores = settings.get("spark.task.cpus", "1")
    _check_slots(context, ranks, int(cores))
    own = {STALL_KEY: os.environ.get(STALL_KEY, STALL_S), **PATIENCE}
    is_local = str(context.master).startswith("local")
    if not is_local:
        own[RANK_CORES] = cores
    noise = _Noise()
    host = settings.get("spark.driver.host", "127.0.0.1")
    bind = settings.get("spark.driver.bindAddress", host)
    meet = None if is_local else socket.gethostbyname(host)
    handed: list[dict[str, Any]] = []
    with (
        listen(bind, meet or host, tell, lambda report: handed.append(json.loads(report))) as address,
        _horovod_in_a_thread(noise, meet) as stop,
        _quiet(context),
    ):
        rank = _rank_function(work, str(Path(__file__).resolve().parent.parent), address, debug)
        run = _Run(
            lambda: horovod.spark.run(
                rank,
                num_proc=ranks,
                start_timeout=start_timeout_s,
                use_gloo=True,
                env={**own, **environment},
                stdout=noise,
                stderr=noise,
                verbose=0,
                nics={_loopback()} if is_local else None,
            )
        )
        try:
            reports = _wait(context, run, stop)
        except TimeoutError as error:
            raise TimeoutError(
                f"{run.most_tasks} of {ranks} ranks had a slot of the cluster {context.master} after {start_timeout_s} "
                f"s, so training did not start. Each needs a task of {cores} cores (spark.task.cpus). Free or add "
                "executors, lower --ranks, or wait longer with --start-timeout."
            ) from error
        except _LostError as error:
            explanation = error_of(handed) or noise.last_words(*_LAST_WORDS_S)
            if debug:
                noise.show()
            raise explanation from error
    found = error_of(report["error"] for report in reports if "error" in report)
    if found is not None:
        raise found
    return reports[0]["result"]


def leave(code: int) -> int:
    """Pass an exit code on; end at once where Horovod's threads still wait for a machine that is gone."""
    if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        sys.stderr.flush()
        os._exit(code)
    return code


def report_of(work: Callable[[], Any], address: Address | None, debug: bool) -> dict[str, Any]:
    """In the rank's process: call `work`; returns {"result": …} or {"error": …}, which JSON can hold."""
    if address and os.environ[_RANK] == "0":
        sys.stderr = FarStream(address, sys.stderr)
    try:
        return {"result": work()}
    except Exception as error:
        if debug:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        atexit.register(os._exit, 0)  # runs before Horovod's own exit handler, which would wait for ranks that are gone
        return {"error": error_report(error)}


def _rank_function(
    work: Callable[[], Any], project: str, address: Address | None, debug: bool
) -> Callable[[], dict[str, Any]]:
    """What Horovod calls in an executor's process. Nested, so that it is carried by value: nothing is imported yet."""
    hand_over = reporter(address)

    def rank() -> dict[str, Any]:
        import json
        import os
        import socket
        import sys
        from glob import glob

        here = os.environ.get("HOROVOD_SPARK_WORK_DIR", ".")  # where Spark lays what --py-files brought
        sys.path[:0] = [project, here, *sorted(glob(f"{here}/*.zip"))]
        try:
            from jobs.spark_ranks import report_of
        except ImportError as error:
            message = (
                f"The executor on {socket.gethostname()} can't import the project: {error}. Submit it with "
                "--py-files and --archives as docs/operations.md has them, or put it at the same path on every node."
            )
            report: dict[str, Any] = {"error": {"type": "UsageError", "message": message, "order": 0}}
        else:
            report = report_of(work, address, debug)
        if "result" in report or report["error"]["order"] > 1:  # of another rank's end
            return report
        text = json.dumps(report["error"])
        is_heard = hand_over(text)
        horovod = sys.modules.get("horovod.tensorflow")
        if horovod is None or not horovod.is_initialized():
            if not is_heard:
                print(f"{REPORT}rank {text}", file=sys.__stderr__, flush=True)  # Horovod mostly hands it on
            os._exit(1)  # so that those are ended who wait to meet this rank
        return report

    return rank


class _LostError(Exception):
    """A rank, or the task around it, ended without a report."""


class _Run:
    """Horovod's call in a thread, so that this one can look at the tasks and be interrupted."""

    def __init__(self, call: Callable[[], list[dict[str, Any]]]) -> None:
        from horovod.spark.driver import job_id

        self._call = call
        self.reports: list[dict[str, Any]] = []
        self.error: BaseException | None = None
        self.most_tasks = 0
        self.group = f"horovod.spark.run.{job_id.JOB_ID + 1}"  # as Horovod is about to call it
        self.ended = threading.Event()  # waited for instead of the thread: an interrupted join() takes it for ended
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        try:
            self.reports = self._call()
        except BaseException as error:
            self.error = error
        finally:
            self.ended.set()


def _wait(context: Any, run: _Run, stop: threading.Event) -> list[dict[str, Any]]:
    """Reports in order of rank. Whatever happens to the executors, it ends within bounds."""
    from horovod.runner.common.util.timeout import TimeoutException

    lost_s: float | None = None
    try:
        while not run.ended.wait(_POLL_S):
            active, failed = _tasks(context, run.group)
            run.most_tasks = max(run.most_tasks, active)
            if lost_s is None and (failed or stop.is_set()):
                lost_s = time.monotonic()
                stop.set()
            if lost_s is not None and time.monotonic() - lost_s > _STOP_S:
                context.cancelJobGroup(run.group)
                raise _LostError("a Spark task failed")
    except BaseException:  # an interrupt too: no rank is to outlive it
        stop.set()
        run.ended.wait(_STOP_S)
        context.cancelJobGroup(run.group)
        raise
    if isinstance(run.error, TimeoutException):
        raise TimeoutError(str(run.error))
    if run.error is not None or any(report is None for report in run.reports):
        raise _LostError(str(run.error))
    return run.reports


def _tasks(context: Any, group: str) -> tuple[int, int]:
    """Running and failed tasks of the jobs of a group."""
    tracker = context.statusTracker()
    jobs = [tracker.getJobInfo(job) for job in tracker.getJobIdsForGroup(group)]
    found = [tracker.getStageInfo(stage) for job in jobs if job for stage in job.stageIds]
    stages = [stage for stage in found if stage]
    return sum(stage.numActiveTasks for stage in stages), sum(stage.numFailedTasks for stage in stages)


def _check_slots(context: Any, ranks: int, cores: int) -> None:
    """Refuse more ranks than a Spark on this machine alone can ever run; on a cluster slots may come."""
    if not context.master.startswith("local[") and context.master != "local":
        return
    slots = context.defaultParallelism // cores
    if ranks > slots:
        raise UsageError(
            f"--ranks {ranks}: this Spark ({context.master}) runs {slots} tasks at a time, and every rank is one. "
            f"Lower --ranks, or give it more, as in --master 'local[{ranks}]'."
        )


def _loopback() -> str:
    """Name of the interface that has 127.0.0.1: on one machine nothing needs to listen outside."""
    return next(
        name for name, found in psutil.net_if_addrs().items() if any(entry.address == "127.0.0.1" for entry in found)
    )


@contextlib.contextmanager
def _horovod_in_a_thread(noise: "_Noise", meet: str | None) -> Iterator[threading.Event]:
    """Let horovod.spark.run work outside the main thread; setting the event ends its ranks.

    meet: the driver's address, where ranks find each other; None where it is one machine. A process that ends with
    another exit code than 0, or can't be started, ends the others, as under horovodrun: they may wait to meet it.

    Functions of its launcher are replaced meanwhile. One installs signal handlers, which only the main thread
    may, and would take Ctrl-C from us. One loads TensorFlow in a fork of this process to see whether Gloo was built,
    and a fork disturbs the connection to Spark; ranks without Gloo say so themselves. One is told an address of the
    driver by the name of an interface that all executors have, which may be another network here; the address at
    which executors reach the driver anyway is known.
    """
    from horovod.runner import gloo_run, launch
    from horovod.spark import gloo_run as spark_gloo_run

    stop = threading.Event()
    launch_gloo = spark_gloo_run.launch_gloo

    def launch_at(command: Any, execute: Any, settings: Any, nics: Any, env: Any, address: str) -> None:
        def execute_once(*arguments: Any) -> tuple[int, float]:
            try:
                code, ended_s = execute(*arguments)
            except BaseException:
                stop.set()
                raise
            if code != 0:
                stop.wait(_LAST_WORDS_S[0])  # for what others say of it
                stop.set()
            return code, ended_s

        launch_gloo(command, execute_once, settings, nics, env, meet or address)

    replaced = (
        (spark_gloo_run, "launch_gloo", launch_at),
        (gloo_run, "register_shutdown_event", lambda: stop),
        (launch, "gloo_built", lambda verbose: True),  # noqa: ARG005
        (threading, "excepthook", lambda thrown: noise.write(str(thrown.exc_value))),  # they reach us by other ways
    )
    before = [getattr(owner, name) for owner, name, _ in replaced]
    for owner, name, value in replaced:
        setattr(owner, name, value)
    try:
        yield stop
    finally:
        for (owner, name, _), value in zip(replaced, before, strict=True):
            setattr(owner, name, value)


@contextlib.contextmanager
def _quiet(context: Any) -> Iterator[None]:
    """Keep Spark's log of failed tasks off the screen: what failed is told once, by us."""
    level = os.environ.get("INTEREST_SPARK_LOG")
    if level is None:
        context.setLogLevel("OFF")
    try:
        yield
    finally:
        context.setLogLevel(level or "ERROR")


class _Noise:
    """What ranks print besides: Horovod writes it here from one thread for each stream. The last lines are kept."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=50)

    def write(self, text: str) -> int:
        """Keep the lines."""
        self._lines.extend(line for line in text.split("\n") if line)  # str.splitlines() would split at REPORT
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""

    def show(self) -> None:
        """Print them."""
        print(*self._lines, sep="\n", file=sys.stderr)

    def last_words(self, least_s: float, most_s: float) -> Exception:
        """Why a rank ended without a report: what is said within some seconds, else that it is simply gone."""
        until = time.monotonic() + most_s
        time.sleep(least_s)
        while (said := self._explanation()) is None and time.monotonic() < until:
            time.sleep(_POLL_S / 4)
        return said or ModelError(rank_gone(place="executor"))

    def _explanation(self) -> Exception | None:
        """What a rank reported where it could not reach us, or a stack trace says last."""
        lines = list(self._lines)
        reports = [line.partition(REPORT)[2].partition(" ")[2] for line in lines if REPORT in line]
        with contextlib.suppress(ValueError):  # a line that was cut
            if reports:
                return error_of(map(json.loads, reports))
        if any("Traceback (most recent call last)" in line for line in lines):
            for match in filter(None, map(_PYTHON_ERROR.search, reversed(lines))):
                return RuntimeError(f"A rank in Spark's executors broke off: {match[1][:500]}")
        return None
