"""Scores, sessions and a simulated log on a Spark that runs tasks again: a worker is killed, what was shuffled is lost.

    python -m tests.spark.rerun_job FOLDER

FOLDER/tables is a root with what scoring reads. Leaves FOLDER/<case>, a root each, and FOLDER/seen.json.
"""

import json
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyspark.sql import DataFrame, Observation

from features.contracts import HELD_EVENTS, SESSIONS
from jobs import score as scoring
from jobs import sessionize as cutting
from jobs import simulate as simulating
from jobs import spark as starting
from jobs.settings import Settings, load_settings
from jobs.store import Store
from tests.logs import SOURCE, line, write_log
from tests.spark import test_score_job as fakes
from tests.spark.test_scoring import SPEC, FakeScorer, MakeFake
from tests.spark.test_simulation import LAST, settings, simulation

SETTINGS = Settings.model_construct(
    scoring=SPEC.model_copy(update={"bucket_users": 5}),  # many more tasks than run at once
    feeds=fakes.SETTINGS.feeds,
)
EVENTS = HELD_EVENTS.schema  # user and event
observations: list[Observation] = []


@dataclass(frozen=True)
class MakeLosing:
    """Makes the fake, and at the first time loses what was shuffled: tasks that have not read it yet can't."""

    local: str
    marker: str

    def __call__(self) -> FakeScorer:
        lose(self.local, self.marker)
        return FakeScorer(by_past=True)


def lose(local: str, marker: str) -> None:
    is_lost = Path(f"{marker}-is-lost")
    if fakes.is_first(marker):
        for path in Path(local).rglob("shuffle_*"):
            path.unlink(missing_ok=True)  # Spark clears away what queries before have shuffled
        is_lost.touch()
    while not is_lost.exists():  # else the others might all have read it by then
        time.sleep(0.01)


def losing(batches: Iterator[pa.RecordBatch], local: str, marker: str) -> Iterator[pa.RecordBatch]:
    lose(local, marker)
    yield from batches


def observed(name: str) -> Observation:
    observations.append(Observation(name))
    return observations[-1]


def main(folder: Path) -> None:
    local, plain = str(folder / "local"), starting.read_spark_conf
    changes = {
        "spark.master": "local[2,3]",
        "spark.local.dir": local,
        "spark.sql.shuffle.partitions": "8",
        "spark.sql.adaptive.coalescePartitions.enabled": "false",
    }
    starting.read_spark_conf = lambda path: plain(path) | changes
    spark = starting.spark_session("reruns")
    scoring.load_bundle = lambda *_: fakes.FakeBundle(fakes.vocabulary())
    scoring.Observation = observed
    makers: dict[str, Any] = {
        "undisturbed": MakeFake(),
        "killed": fakes.MakeDying(str(folder / "killed.marker")),
        "lost": MakeLosing(local, str(folder / "lost.marker")),
    }
    for case, maker in makers.items():
        shutil.copytree(folder / "tables", folder / case)
        scoring.LoadBundle = lambda *_, maker=maker: maker
        scoring.score(spark, SETTINGS, str(folder / case), fakes.DAY, str(folder / "bundle"))
    seen: dict[str, Any] = {"observed": [observation.get["rows"] for observation in observations]}

    spec, sort = simulation(users=20, late_rows=0.05, duplicates=0.05), DataFrame.sortWithinPartitions
    seen["simulated"] = [simulating.simulate(spark, settings(spec), str(folder / "log"), LAST)]
    lost = partial(losing, local=local, marker=str(folder / "log.marker"))
    DataFrame.sortWithinPartitions = lambda lines, *by: sort(lines.mapInArrow(lost, lines.schema), *by)
    seen["simulated"].append(simulating.simulate(spark, settings(spec), str(folder / "lost-log"), LAST))
    DataFrame.sortWithinPartitions = sort

    log = write_log(folder / "log.csv", *(line(f"u{k}", what="pv" if k % 9 else "stare") for k in range(90)))
    seen["sessionized"], by_user = [], cutting.events_by_user
    cutting.partitions_for = lambda *_: 16  # again many more tasks than run at once
    lost = partial(losing, local=local, marker=str(folder / "sessions.marker"))
    for case, events in (("cut", by_user), ("lost-cut", lambda *of: by_user(*of).mapInArrow(lost, EVENTS))):
        cutting.events_by_user = events
        root = str(folder / case)
        done = cutting.sessionize(spark, load_settings(), SOURCE, [log], root, fakes.DAY, fakes.DAY, bootstrap=True)
        seen["sessionized"].append([done, Store(root).check(SESSIONS, fakes.DAY, "").counters])
    (folder / "seen.json").write_text(json.dumps(seen, default=asdict))
    spark.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
