"""What a run leaves for machines: lines as JSON, numbers as JSON and for Prometheus, and Spark's event log.

    INTEREST_LOG_FORMAT=json       lines on standard error are JSON objects, on driver, executors and ranks alike
    INTEREST_PROMETHEUS_DIR=DIR    a copy of the numbers as DIR/interest_<job>-<root>.prom, for a collector of files
    ROOT/_runs/dt=D/<job>/         metrics.json and metrics.prom of the latest run of a job for a day
    ROOT/_runs/dt=D/spark-events/  event logs, for Spark's history server

What all lines of a run share travels in the environment, so that ranks have it from the process that starts them and
executors from the driver.
"""

import hashlib
import json
import os
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from jobs.store import Store

LOG_FORMAT = "INTEREST_LOG_FORMAT"
PROMETHEUS_DIR = "INTEREST_PROMETHEUS_DIR"
RUNS, EVENTS = "_runs", "spark-events"
POINTER = "published.json"  # see jobs.published
UNDATED = "undated"  # instead of a day, for a run that finds its last day in the log

INFO, ERROR = "info", "error"  # levels of lines

_RUN, _JOB, _DATE, _STAGE = (f"INTEREST_RUN_{name}" for name in ("ID", "JOB", "DATE", "STAGE"))
_RANK = "HOROVOD_RANK"
_LINE_START = '{"time": '
_MAKE_ROOTS = ("demo", "week", "run", "nightly", "sessionize", "simulate")  # jobs that may be the first on a root
_NAMED_BY = ("name", "check", "table")  # of entries of a list: what tells one from the others
# Prometheus names, all gauges about the latest run of a job: help text and name.
_GAUGES = {
    "interest_job_exit_code": "exit code: 0 done, 3 data, model or gate, 4 held, 130 interrupted",
    "interest_job_duration_seconds": "wall time",
    "interest_job_end_timestamp_seconds": "when it ended, seconds since 1970",
    "interest_job_data_timestamp_seconds": "end of the day that it was for, seconds since 1970",
    "interest_published_data_timestamp_seconds": "end of the day whose scores are published, seconds since 1970",
    "interest_job_value": "a number of the job's result, named as in metrics.json",
}


class RunRecord:
    """One run of a job: collects its result and writes what it leaves."""

    def __init__(self, job: str, root: str | None, day: date | None) -> None:
        self.job, self.root, self.day = job, root, day
        self.result: Any = None
        self.error: str | None = None
        self._began, self._started = datetime.now(UTC), time.monotonic()

    def write(self, code: int) -> None:
        """Write the numbers of the run, where its root is there."""
        store = Store(self.root) if self.root else None
        if store is None or not store.fs.exists(store.root):
            return
        day = str(self.day or (self.result.get("date") if isinstance(self.result, Mapping) else None) or UNDATED)
        content = {
            "job": self.job,
            "date": day,
            "run": os.environ.get(_RUN),
            "started": self._began.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - self._started, 1),
            "exit_code": code,
            "error": self.error,
            "root": store.root,
            "published": _published_day(store),
            "result": json.loads(json.dumps(self.result, default=str)),
        }
        folder, text = f"{store.root}/{RUNS}/dt={day}/{self.job}", prometheus_text(content, time.time())
        _write_text(f"{folder}/metrics.json", json.dumps(content, indent=1, sort_keys=True) + "\n")
        _write_text(f"{folder}/metrics.prom", text)
        if os.environ.get(PROMETHEUS_DIR):
            of = hashlib.sha256(store.root.encode()).hexdigest()[:8]
            _write_text(f"{os.environ[PROMETHEUS_DIR]}/interest_{self.job}-{of}.prom", text)


_open: list[RunRecord] = []  # the innermost last


@contextmanager
def observed(job: str, root: str | None, day: date | None) -> Iterator[RunRecord]:
    """The run of a job, whose lines and result are kept from here on."""
    record, before = RunRecord(job, root, day), dict(os.environ)
    mine = {_RUN: before.get(_RUN, uuid.uuid4().hex[:12]), _JOB: job, _DATE: str(day or "")}
    os.environ.update(mine)
    _open.append(record)
    try:
        yield record
    finally:
        _open.remove(record)
        for name in (*mine, _STAGE):
            if name in before:
                os.environ[name] = before[name]
            else:
                os.environ.pop(name, None)


def is_rank() -> bool:
    """Whether this process is one of several ranks: what a run leaves is its driver's to write."""
    return _RANK in os.environ


def days_of_runs(store: Store) -> list[str]:
    """Days below _runs, rising; the undated one is none."""
    folder = f"{store.root}/{RUNS}"
    found = store.fs.ls(folder, detail=False) if store.fs.exists(folder) else []
    return sorted({path.rstrip("/").rpartition("/dt=")[2] for path in found} - {UNDATED})


def keep_result(result: Any) -> None:
    """The result of the run that is on, for its metrics."""
    if _open:
        _open[-1].result = result


def keep_error(text: str) -> None:
    """Why the run that is on ends."""
    if _open:
        _open[-1].error = text


def begin_stage(name: str) -> None:
    """What lines say from here on of where the run is."""
    os.environ[_STAGE] = name


def says_json() -> bool:
    """Whether lines on standard error are JSON objects."""
    return os.environ.get(LOG_FORMAT) == "json"


def line_of(text: str, level: str = INFO, stage: str | None = None) -> str:
    """A line for people, as INTEREST_LOG_FORMAT wants it; one that is JSON already, a rank's, stays as it is."""
    if not says_json() or text.startswith(_LINE_START):
        return text
    environment = os.environ
    rank = environment.get(_RANK)
    return json.dumps(
        {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "level": level,
            "run": environment.get(_RUN),
            "job": environment.get(_JOB),
            "date": environment.get(_DATE) or None,
            "stage": stage or environment.get(_STAGE),
            "rank": None if rank is None else int(rank),
            "text": text,
        }
    )


def task_line(text: str, stage: str) -> None:
    """A line of a task on an executor, in its log; only as JSON: people at a terminal have the driver's."""
    if says_json():
        write_line(line_of(text, stage=stage))


def write_line(line: str) -> None:
    """A line on standard error, in one piece: where several processes write there, none comes into the midst of it.

    `print` writes the end of a line by itself where Python does not buffer, as in Spark's workers.
    """
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def executor_environment() -> dict[str, str]:
    """What executors need for their lines."""
    names = (LOG_FORMAT, _RUN, _JOB, _DATE)
    return {name: os.environ[name] for name in names if name in os.environ}


def event_folder() -> str | None:
    """Where Spark's event log of this run goes, made if need be: a URI, or None where there is no root for it."""
    record = _open[-1] if _open else None
    if record is None or not record.root or is_rank():
        return None
    store = Store(record.root)
    if record.job not in _MAKE_ROOTS and not store.fs.exists(store.root):
        return None
    folder = f"{store.root}/{RUNS}/dt={record.day or UNDATED}/{EVENTS}"
    store.fs.makedirs(folder, exist_ok=True)
    return folder if "://" in folder else Path(folder).absolute().as_uri()


def prometheus_text(content: Mapping[str, Any], now_s: float) -> str:
    """A run's metrics.json in Prometheus's text format. Source: prometheus.io, "Exposition formats"."""
    found: dict[str, list[tuple[str, float]]] = {
        "interest_job_exit_code": [("", content["exit_code"])],
        "interest_job_duration_seconds": [("", content["seconds"])],
        "interest_job_end_timestamp_seconds": [("", round(now_s, 3))],
        "interest_job_data_timestamp_seconds": _end_of(content["date"]),
        "interest_published_data_timestamp_seconds": _end_of(content["published"]),
        "interest_job_value": list(numbers_of(content["result"])),
    }
    lines = []
    for gauge, values in found.items():
        if values:
            lines += [f"# HELP {gauge} {_GAUGES[gauge]}", f"# TYPE {gauge} gauge"]
        for name, value in values:
            # Not `job`: whoever collects the files names its own so.
            labels = f'command="{content["job"]}",root="{_escaped(str(content["root"]))}"'
            labels += f',name="{_escaped(name)}"' if name else ""
            lines.append(f"{gauge}{{{labels}}} {value!r}")
    return "\n".join(lines) + "\n"


def numbers_of(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Every number in a tree of mappings and lists, with its path; truth counts as 1 and 0."""
    if isinstance(value, bool | int | float):
        yield path, (int(value) if isinstance(value, bool) else value)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from numbers_of(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for index, inner in enumerate(value):
            keys = [key for key in _NAMED_BY if key in inner] if isinstance(inner, Mapping) else []
            named = inner[keys[0]] if keys else index
            yield from numbers_of(inner, f"{path}.{named}" if path else str(named))


def _end_of(day: str | None) -> list[tuple[str, float]]:
    if day is None or day == UNDATED:
        return []
    return [("", datetime.fromisoformat(f"{day}T00:00:00+00:00").timestamp() + 86_400)]


def _published_day(store: Store) -> str | None:
    """The day whose scores are in use, whichever run published them."""
    try:
        with store.fs.open(f"{store.root}/{POINTER}", "r") as file:
            return str(json.load(file)["current"]["date"])
    except (OSError, ValueError, KeyError, TypeError):  # there is none, or none that can be read
        return None


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _write_text(path: str, text: str) -> None:
    """Write a file by rename; one that cannot be written is told, and ends nothing."""
    folder = path.rpartition("/")[0]
    store = Store(folder)
    try:
        store.fs.makedirs(folder, exist_ok=True)
        store.write_text(path, text)
    except OSError as error:
        write_line(line_of(f"{path} cannot be written: {error.strerror}", ERROR))
