"""Tasks that run again, because a worker was killed or what was shuffled is lost: the same rows, counted once."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from features.contracts import SCORES, USER_STATES
from jobs.store import MANIFEST
from tests.spark.test_score_job import PROJECT, published, write_tables


@pytest.fixture(scope="module")
def folder(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What tests/spark/rerun_job.py leaves; it has a Spark of its own, which tries a task three times."""
    place = tmp_path_factory.mktemp("reruns")
    write_tables(spark, place / "tables")
    (place / "bundle").mkdir()
    (place / "bundle" / MANIFEST).write_text("{}")
    command = [sys.executable, "-m", "tests.spark.rerun_job", str(place)]
    done = subprocess.run(command, cwd=PROJECT, env={**os.environ}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return place


def seen(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "seen.json").read_text())
    return found


@pytest.mark.parametrize("case", ["killed", "lost"])
def test_scores_are_those_of_an_undisturbed_run(folder: Path, case: str) -> None:
    assert (folder / f"{case}.marker").exists()
    for table in (SCORES, USER_STATES):
        identity, rows = published(str(folder / case), table)
        expected, expected_rows = published(str(folder / "undisturbed"), table)
        assert rows == expected_rows
        assert identity == expected


def test_rows_that_came_twice_are_counted_anew(folder: Path) -> None:
    undisturbed, killed, lost = seen(folder)["observed"]
    assert undisturbed == killed == 41
    assert lost > 41, "nothing was observed twice, so nothing is tested"


def test_a_simulated_log_is_counted_as_it_was_written(folder: Path) -> None:
    assert (folder / "log.marker").exists()
    undisturbed, lost = seen(folder)["simulated"]
    assert undisturbed == lost
    assert undisturbed["rows"] > 100


def test_rows_of_a_log_are_counted_as_they_were_read(folder: Path) -> None:
    assert (folder / "sessions.marker").exists()
    undisturbed, lost = seen(folder)["sessionized"]
    assert undisturbed == lost
    assert undisturbed[0]["rejected"] == {"unknown_action": 10}
