"""One rank of a training on a tiny table; run by the tests as a process of its own, alone or under horovodrun.

Usage: python -m tests.parallel.rank_job FOLDER CASE. FOLDER holds `CASE.json` and the splits. Writes
`CASE-weights-RANK.npz`, `CASE-history-RANK.json` and `CASE-cores-RANK.json` (cores of its threads) on success,
and in `CASE-record-PID.txt` a line for each step it took part in: the step, positions over all ranks, stream:number of
its own batches. One that failed leaves no line.
"""

import argparse
import json
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from jobs.ranks import run_rank
from tests.model import tables


def _main(arguments: argparse.Namespace) -> None:
    from model.checkpoint import Checkpoints
    from model.feed import DataFile
    from model.training import Task, train
    from model.workers import connect_workers, use_threads

    case = json.loads((arguments.folder / f"{arguments.case}.json").read_text())
    rank = os.environ.get("HOROVOD_RANK", "0")
    own = case.get(f"rank_{rank}", {})
    use_threads(1)
    training = tables.TRAINING.model_copy(update={**case.get("training", {}), **own.get("training", {})})
    workers = connect_workers(training, case.get("elastic", False))
    splits = {
        split: tuple(
            DataFile(str(path), pq.read_metadata(path).num_rows if path.stat().st_size > 100 else 1)
            for path in sorted((arguments.folder / split).glob("*.parquet"))
        )
        for split in ("train", "valid")
    }
    task = Task(
        tables.NETWORK.model_copy(update=case.get("network", {})),
        training,
        tables.SIZES,
        splits["train"],
        splits["valid"],
        {"configuration": own.get("configuration", "same")},
    )
    _watch_steps(
        arguments.folder / f"{arguments.case}-record-{os.getpid()}.txt",
        own.get("die_at"),
        case.get("pause_s", 0),
        case.get("hold_after", sys.maxsize),
        arguments.folder / case.get("hold_until", ""),
    )
    # A folder of its own, to see who wrote; elastic ranks change places and share one.
    folder = arguments.folder / f"{arguments.case}-rank-{'any' if workers.is_elastic else rank}"
    outcome = train(task, workers, Checkpoints(str(folder / "checkpoints"), 2), print)
    weights = {name: weight.numpy() for name, weight in outcome.network.weights.items()}
    np.savez(arguments.folder / f"{arguments.case}-weights-{workers.rank}.npz", **weights)
    (arguments.folder / f"{arguments.case}-cores-{workers.rank}.json").write_text(json.dumps(_cores()))
    (arguments.folder / f"{arguments.case}-history-{workers.rank}.json").write_text(json.dumps(outcome.history))


def _cores() -> list[int]:
    """Those on which any thread of this process may run."""
    cores: set[int] = set()
    for thread in os.listdir("/proc/self/task"):
        with suppress(ProcessLookupError):  # it has ended since
            cores |= os.sched_getaffinity(int(thread))
    return sorted(cores)


def _watch_steps(record: Path, die_at: int | None, pause_s: float, hold_after: int, hold_until: Path) -> None:
    """Record each step that was taken, or be killed instead of one, as the kernel does when memory is short.

    After `hold_after` steps of this process it goes on when the file `hold_until` exists.
    """
    from model import step as steps
    from model.streams import StreamBatch

    whole = steps.Steps.train
    taken = 0

    def train(self: steps.Steps, batches: tuple[StreamBatch, ...], step: int, rate: float) -> steps.TrainSums:
        nonlocal taken
        if step == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        while taken == hold_after and not hold_until.exists():
            time.sleep(0.01)
        taken += 1
        time.sleep(pause_s)
        sums = whole(self, batches, step, rate)
        print(step, sums.positions, *(f"{batch.stream}:{batch.number}" for batch in batches), file=lines, flush=True)
        return sums

    lines = record.open("a", encoding="utf-8")
    steps.Steps.train = train  # type: ignore[method-assign]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("case")
    parser.set_defaults(debug=False)
    sys.exit(run_rank(_main, parser, sys.argv[1:]))
