"""Scores and a simulated log on a Spark that runs tasks again, as a cluster does: a worker is killed, a shuffle lost.

    python -m tests.spark.rerun_job FOLDER

FOLDER/tables is a root with what scoring reads. Leaves FOLDER/<case>, a root each, and FOLDER/seen.json.
"""

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyspark.sql import DataFrame, Observation

from jobs import score as scoring
from jobs import simulate as simulating
from jobs import spark as starting
from jobs.settings import Settings
from tests.spark import test_score_job as fakes
from tests.spark.test_scoring import SPEC, FakeScorer, MakeFake
from tests.spark.test_simulation import LAST, settings, simulation

SETTINGS = Settings.model_construct(
    scoring=SPEC.model_copy(update={"bucket_users": 5}),  # many more tasks than run at once
    feeds=fakes.SETTINGS.feeds,
)
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
    if fakes.is_first(marker):
        for path in Path(local).rglob("shuffle_*"):
            path.unlink()


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
    (folder / "seen.json").write_text(json.dumps(seen))
    spark.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
