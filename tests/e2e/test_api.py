"""The stages as functions, on the tables of a finished run: what they say is what the commands wrote."""

from datetime import date, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from features import columns as c
from features.contracts import ContractError
from features.denoising import OFF
from jobs import api
from jobs.layers import at_the_end_of
from jobs.settings import CONF_DIR, UsageError

DAY = date(2024, 6, 30)


@pytest.fixture
def root(demo: tuple[Path, str]) -> str:
    return str(demo[0])


def rows(frame: DataFrame, *by: str) -> pa.Table:
    return pa.Table.from_pylist([row.asDict(recursive=True) for row in frame.orderBy(*by).collect()])


def test_sessions_are_those_that_the_command_wrote(spark: SparkSession, root: str) -> None:
    written = [
        spark.read.parquet(f"{root}/{table}").withColumn(api.IS_OPEN, F.lit(is_open)).drop("dt")
        for table, is_open in (("sessions_v1", False), (f"open_sessions_v1/dt={DAY}", True))
    ]
    sessions = written[0].unionByName(written[1])
    events = sessions.select(c.USER_ID, F.explode(c.EVENTS).alias("event")).select(c.USER_ID, "event.*")
    # Noise is gone already, and what bursts were thinned out by is no longer there.
    settings = api.load_settings([str(CONF_DIR / "demo.yaml")]).model_copy(update={"denoising": OFF})
    cut = api.sessionize(events.orderBy(F.rand(1)), settings, DAY, 3)
    told, wanted = (rows(frame.select(cut.columns), c.SESSION_ID) for frame in (cut, sessions))
    assert told.num_rows > 1000
    assert told.equals(wanted)
    assert 0 < sum(told[api.IS_OPEN].to_pylist()) < told.num_rows


def test_scores_are_those_that_the_command_wrote(spark: SparkSession, root: str) -> None:
    settings = api.load_settings([str(CONF_DIR / "demo.yaml")])
    sequences = api.read_table(spark, root, "sequences_v1", DAY)
    told, written = (
        frame.orderBy(c.USER_ID).collect()
        for frame in (
            api.score_users(sequences, f"{root}/bundle/dt={DAY}", settings, DAY, 3),
            api.read_table(spark, root, "scores_v1", DAY),
        )
    )
    assert len(told) == len(written) > 200
    for ours, theirs in zip(told, written, strict=True):
        for name in (c.USER_ID, c.AS_OF, c.MODEL_VERSION, c.PROVENANCE):
            assert ours[name] == theirs[name]
        probabilities = ([i[c.PROBABILITY] for i in row[c.INTERESTS]] for row in (ours, theirs))
        assert next(probabilities) == pytest.approx(next(probabilities), abs=1e-4)
        assert ours[c.DRIFT] == pytest.approx(theirs[c.DRIFT], abs=1e-4)
    bundle = api.load_bundle(f"{root}/bundle/dt={DAY}")
    assert {row[c.MODEL_VERSION] for row in told} == {bundle.model_version}


def test_scores_of_a_later_day_count_the_silence_up_to_there(spark: SparkSession, root: str) -> None:
    settings = api.load_settings([str(CONF_DIR / "demo.yaml")])
    sequences, bundle = api.read_table(spark, root, "sequences_v1", DAY), f"{root}/bundle/dt={DAY}"
    later = DAY + timedelta(days=3)
    moved = at_the_end_of(sequences, later, api.load_bundle(bundle).gap_edges_s)
    assert moved.join(sequences, [c.USER_ID, c.NEXT_GAP]).count() < sequences.count()
    told, wanted = (
        frame.select(c.USER_ID, c.INTERESTS, c.ITEMS).orderBy(c.USER_ID).limit(50).collect()
        for frame in (api.score_users(rows, bundle, settings, later, 3) for rows in (sequences, moved))
    )
    assert told == wanted
    now = api.score_users(sequences, bundle, settings, DAY, 3).select(*told[0].asDict()).orderBy(c.USER_ID).limit(50)
    assert now.collect() != told


def test_tables_that_are_not_there_are_refused(spark: SparkSession, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no table scores; there are"):
        api.read_table(spark, str(tmp_path), "scores", DAY)
    with pytest.raises(ContractError, match="has no finished partition for 2024-06-30"):
        api.read_table(spark, str(tmp_path), "scores_v1", DAY)
