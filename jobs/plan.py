"""What a run will take, before it runs: rows, tasks, bytes shuffled, memory of a task, row groups, time, the command.

Nothing starts and no table is read: sizes of files, the beginning of the log, and manifests. Speeds and shuffled bytes
are those of the latest run at the same root that left them, scaled by size and cores; without one, rough ones. How near
a plan comes is in docs/performance.md.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from math import ceil, sqrt

from features.contracts import OPEN_SESSIONS, SEQUENCES, TRAINING_SEQUENCES
from features.partitions import EVENT_GROWTH, partitions_for, plan_row_groups, power_of_two
from jobs.cli import cores, day, run_job, show, stage_parser
from jobs.history import session_chain
from jobs.inputs import find_inputs, load_source
from jobs.layers import layers_of
from jobs.log_sample import LogSize, log_size
from jobs.packing import window_bytes
from jobs.sessionize import unpacked_bytes
from jobs.settings import Settings, UsageError, load_settings
from jobs.stage_times import StageRun, StageTimes, latest_times
from jobs.store import Manifest, Store

STAGES = ("sessionize", "vocabulary", "sequences", "train", "score")
# Of a stage whatever its size, seconds: Spark plans, Python workers and TensorFlow start, the JVM compiles.
FIXED_S = {"sessionize": 12.0, "vocabulary": 5.0, "sequences": 5.0, "train": 12.0, "score": 12.0}
# Core-seconds for a million of what `_Sizes.of` counts; of training for one epoch. Rough, for orders of magnitude: only
# that of sessionize comes from a measurement of its size (docs/performance.md).
REFERENCE = {"sessionize": 2.8, "vocabulary": 1.0, "sequences": 5.0, "train": 600.0, "score": 300.0}

_MIB = 1 << 20
_PACKED = 0.5  # of the bytes of Spark's rows, after LZ4 in a shuffle
_HELD = 6  # a partition in memory against its size on the way in (conf/base.yaml: sessions.partition_mib)
_ENCODED_HELD = 2.5  # the same of encoded events
_SESSION_BYTES = 20  # of an event in sessions_v1, where no earlier day tells
_ENCODED_BYTES = 48  # of an encoded event as Spark's row, with its user
_SCORED_BYTES = 4096  # of a user while it is scored (conf/base.yaml: scoring.bucket_users)
_PYTHON_MIB = 200  # a Python worker with its libraries, before it holds any rows
_MODEL_MIB = 800  # a Python worker with TensorFlow and a model of the default size
_JVM_MIB = 1024  # heap of an executor for each of its cores
_EXECUTOR_CORES = 4
_MORE_USERS = 0.4  # users grow like events to this power: 0.36 to 0.42 in a year of Deskdrop, 0.3 in a simulated log


@dataclass(frozen=True)
class StagePlan:
    """One stage: what it reads, in how many tasks, what a task's Python worker holds. None: not known beforehand."""

    name: str
    size: int | None
    unit: str
    tasks: int | None = None
    shuffle_mib: int | None = None
    task_mib: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Plan:
    """The stages of a run on so many cores. row_groups: of the train split."""

    date: str
    cores: int
    log: LogSize | None
    stages: tuple[StagePlan, ...]
    row_groups: int | None
    speeds: str
    notes: tuple[str, ...]
    submit: str


@dataclass(frozen=True)
class _Sizes:
    """How much there is. new_*: what sessionize reads, row_bytes each in its shuffle; session_bytes: of all events."""

    new_rows: int | None
    new_bytes: int
    row_bytes: int
    events: int
    session_bytes: int
    users: int | None
    windows: int | None

    def of(self, stage: str) -> int | None:
        """What a stage's work grows with: rows of the log, events, windows for training, users."""
        return {"sessionize": self.new_rows, "train": self.windows, "score": self.users}.get(stage, self.events)


_UNITS = {"sessionize": "rows", "train": "windows", "score": "users"}


def plan(settings: Settings, arguments: argparse.Namespace, stages: Sequence[str] = STAGES) -> Plan:
    """Plan some stages. arguments: --root, --date, and --source, --input, --from, --bootstrap where the job has them.

    Raises:
        ContractError: a file of the log is missing, or its beginning does not fit the source map.
        UsageError: neither a log nor the root says how much there is.
    """
    store, cores, root_day = Store(arguments.root), arguments.plan, arguments.date or date.max
    log, files = _log(store, arguments)
    known = _latest(store, root_day, is_new=log is not None and _begins_anew(arguments))
    sizes = _sizes(store, known, log, files)
    if log is None:
        sizes = replace(sizes, new_rows=None)  # that of an earlier day says nothing of the next
    if not sizes.events:
        until = f" up to {arguments.date}" if arguments.date else ""
        raise UsageError(f"{store.root} holds no sessions{until}, and no log is given: --source and --input.")
    times = latest_times(store, root_day)
    then = _sizes(store, times.dt, None, {}) if times else None
    notes = []
    if sizes.users is None:
        notes.append("users and windows are known after the first run; until then no size for training and scores")
    planned = tuple(_stage(name, sizes, settings, cores, _Past.of(name, sizes, times, then)) for name in stages)
    groups = None
    if sizes.windows:
        spec = settings.sequences
        wanted = plan_row_groups(sizes.windows, window_bytes(spec), spec.world_sizes, spec.row_group_mib, "train")
        groups = len(wanted.sizes)
    speeds = "rough, until a run at this root has left its own"
    if times:
        speeds = f"of the run of {times.dt} at this root, {times.cores} cores"
    return Plan(
        str(arguments.date or "the log's last day"), cores, log, planned, groups, speeds, tuple(notes),
        _submit(planned, cores, arguments),
    )  # fmt: skip


def _log(store: Store, arguments: argparse.Namespace) -> tuple[LogSize | None, Mapping[str, int]]:
    inputs = getattr(arguments, "input", None)
    if bool(inputs) != bool(getattr(arguments, "source", None)):
        raise UsageError("A log needs both --source and --input.")
    if not inputs:
        return None, {}
    last = arguments.date or date.min
    _, files = find_inputs(store, inputs, getattr(arguments, "first", None) or last, last)
    return log_size(store, load_source(arguments.source), files), files


def _begins_anew(arguments: argparse.Namespace) -> bool:
    """Whether a run takes nothing up from an earlier day: a whole log, or a first day."""
    return arguments.job == "run" or bool(getattr(arguments, "bootstrap", False))


def _latest(store: Store, until: date, is_new: bool) -> str | None:
    """The latest day with sessions; None where a bootstrap begins anew."""
    days = [] if is_new else [day for day in store.dates(OPEN_SESSIONS.name) if day <= str(until)]
    return days[-1] if days else None


def _sizes(store: Store, day: str | None, log: LogSize | None, files: Mapping[str, int]) -> _Sizes:
    """Sizes as of a day at the root, and a log on top; without one, what the run of that day read."""
    chain = session_chain(store, day) if day else []
    opened = [store.manifest(OPEN_SESSIONS.name, day, "jobs/sessionize.py")] if day else []
    session_bytes = sum(_bytes(manifest) for manifest in [*chain, *opened])
    carried = int(opened[0].counters["events_open"]) if opened else 0
    finished = (int(run.counters["events"]) - int(run.counters["events_open"]) for run in chain)
    events = sum(finished) + carried
    users, windows = None, None
    if day and day in store.dates(SEQUENCES.name):
        users = layers_of(store, day)[-1].rows
    trained = [dt for dt in store.dates(TRAINING_SEQUENCES.name) if day and dt <= day]
    if trained:
        splits = store.manifest(TRAINING_SEQUENCES.name, trained[-1], "jobs/sequences.py").counters["splits"]
        windows = int(splits["train"]["rows"])
    if log is None:
        read = int(chain[0].counters["rows_read"]) if chain else None
        return _Sizes(read, 0, 0, events, session_bytes, users, windows)
    each = session_bytes / events if events else _SESSION_BYTES
    grown = (events + log.rows) / events if events else 1
    return _Sizes(
        log.rows + carried,
        unpacked_bytes(files, _bytes(opened[0]) if opened else 0),
        log.row_bytes,
        events + log.rows,
        session_bytes + round(each * log.rows),
        round(users * grown**_MORE_USERS) if users else None,
        round(windows * grown) if windows else None,
    )


@dataclass(frozen=True)
class _Past:
    """A stage as it went on so many cores, and by how much its work and what it shuffles have grown since then."""

    run: StageRun
    cores: int
    grown: float
    bytes_grown: float

    @classmethod
    def of(cls, name: str, sizes: _Sizes, times: StageTimes | None, then: _Sizes | None) -> "_Past | None":
        """None where no run left it.

        Sequences are rows of users that hold events, scores start from such rows: where one has grown more than the
        other, the work of the first and the bytes of the second have grown between the two, by their geometric mean.
        """
        before, now = (of.of(name) if of else None for of in (then, sizes))
        if times is None or then is None or name not in times.stages or not before or not now:
            return None
        grown = now / before
        both = grown
        if then.users and sizes.users and then.events:
            both = sqrt(sizes.users / then.users * sizes.events / then.events)
        work = both if name == "sequences" else grown
        return cls(times.stages[name], times.cores, work, both if name == "score" else grown)


def _seconds(name: str, size: int, settings: Settings, cores: int, past: _Past | None) -> float:
    """Wall time of a stage: as long as it took then, by size and cores, or by the reference."""
    fixed = FIXED_S[name]
    if past:
        fixed = min(fixed, past.run.seconds)
        return fixed + (past.run.seconds - fixed) * past.grown * past.cores / cores
    passes = settings.training.max_epochs if name == "train" else 1
    return fixed + REFERENCE[name] * size * passes / 1e6 / cores


def _stage(name: str, sizes: _Sizes, settings: Settings, cores: int, past: _Past | None) -> StagePlan:
    size, unit = sizes.of(name), _UNITS.get(name, "events")
    if size is None:
        return StagePlan(name, None, unit)
    tasks, shuffled, task_bytes = cores, 0.0, 0
    if name == "sessionize":
        tasks = power_of_two(partitions_for(sizes.new_bytes, settings.sessions.partition_mib, cores))
        shuffled = size * sizes.row_bytes * _PACKED
        task_bytes = _PYTHON_MIB * _MIB + _HELD * sizes.new_bytes // tasks
    elif name == "sequences":
        held = sizes.session_bytes * EVENT_GROWTH
        tasks = partitions_for(held, settings.sequences.partition_mib, cores)
        shuffled, task_bytes = size * _ENCODED_BYTES * _PACKED, _PYTHON_MIB * _MIB + round(_ENCODED_HELD * held / tasks)
    elif name == "train":
        tasks, task_bytes = 1, _MODEL_MIB * _MIB
    elif name == "score":
        tasks = power_of_two(max(cores, ceil(size / settings.scoring.bucket_users)))
        shuffled = size * window_bytes(settings.sequences) * _PACKED
        task_bytes = _MODEL_MIB * _MIB + ceil(size / tasks) * _SCORED_BYTES
    if past and past.run.shuffled_bytes is not None:
        shuffled = past.run.shuffled_bytes * past.bytes_grown
    seconds = _seconds(name, size, settings, cores, past)
    return StagePlan(name, size, unit, tasks, round(shuffled / _MIB), ceil(task_bytes / _MIB), seconds)


def _submit(stages: Sequence[StagePlan], cores: int, arguments: argparse.Namespace) -> str:
    """The command for a cluster, its memory by the largest task."""
    each = min(_EXECUTOR_CORES, cores)
    python_mib = max((stage.task_mib or 0 for stage in stages), default=0) * each
    script = arguments.job if arguments.job in STAGES else "nightly"
    return (
        f"spark-submit --num-executors {ceil(cores / each)} --executor-cores {each} --executor-memory "
        f"{each * _JVM_MIB}m --conf spark.executor.memoryOverhead={max(1024, python_mib)}m "
        f"--properties-file dist/conf/spark/yarn.conf --py-files dist/interest_evolution.zip "
        f"--archives dist/environment.tar.gz#environment dist/jobs/{script}.py --root {arguments.root} …"
    )


def in_words(found: Plan) -> str:
    """A plan as a table, with what it rests on."""
    lines = []
    if found.log:
        log = found.log
        lines.append(
            f"log: {log.files:,} files, {_mib(log.stored_bytes)} stored, {_mib(log.unpacked_bytes)} unpacked, about "
            f"{log.rows:,} rows"
        )
    head = f"{'':<12}{'reads':>22}{'tasks':>8}{'shuffled':>12}{'a task holds':>15}{f'on {found.cores} cores':>16}"
    lines.append(head)
    for stage in found.stages:
        if stage.size is None:
            lines.append(f"{stage.name:<12}{'unknown':>22}")
            continue
        shuffled = f"{stage.shuffle_mib:,} MiB" if stage.shuffle_mib else "–"
        held = f"{stage.task_mib:,} MiB" if stage.task_mib else "–"
        reads = f"{stage.size:,} {stage.unit}"
        lines.append(f"{stage.name:<12}{reads:>22}{stage.tasks:>8,}{shuffled:>12}{held:>15}{_time(stage.seconds):>16}")
    if found.row_groups:
        lines.append(f"row groups of training: {found.row_groups:,}")
    lines.append(f"speeds {found.speeds}; evaluation and report come on top")
    return "\n".join([*lines, *found.notes, "", found.submit])


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / _MIB:,.0f} MiB" if n_bytes >= 10 * _MIB else f"{n_bytes / _MIB:.1f} MiB"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _bytes(manifest: Manifest) -> int:
    return sum(int(file["bytes"]) for file in manifest.files)


def show_plan(arguments: argparse.Namespace) -> None:
    """Print the plan of a job that was given --plan; arguments: its flags, with the job's name."""
    settings = load_settings(arguments.conf, arguments.set)
    found = plan(settings, arguments, [arguments.job] if arguments.job in STAGES else STAGES)
    show(arguments, asdict(found), in_words(found))


def main(argv: Sequence[str]) -> int:
    """Command line of the job."""
    return run_job(show_plan, parser(), argv, takes_root=True)


def parser() -> argparse.ArgumentParser:
    """The flags of the job."""
    flags = stage_parser("plan", needs_date=False)
    flags.add_argument("--source", help="name of a map in conf/sources, or a YAML file")
    flags.add_argument("--input", action="append", metavar="PATH", help="file or folder of the log; {date} = each day")
    flags.add_argument("--from", dest="first", type=day, metavar="DAY", help="first day (default: --date)")
    flags.add_argument("--bootstrap", action="store_true", help="a first day: nothing is carried over")
    flags.add_argument(
        "--cores",
        dest="plan",
        type=cores,
        default=os.cpu_count(),
        metavar="N",
        help="cores of Spark (default: this machine's)",
    )
    return flags


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
