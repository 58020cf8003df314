"""Which events a score is explained by."""

from datetime import UTC, date, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import types as T

from features import columns as c
from jobs import explanations
from jobs.store import Store

DAY = date(2024, 3, 1)
END = datetime(2024, 3, 2, tzinfo=UTC)
SCHEMA = T.StructType(
    [T.StructField(name, T.StringType()) for name in (c.USER_ID, c.ITEM_ID, c.CATEGORY_ID, c.ACTION)]
    + [T.StructField(c.EVENT_ID, T.LongType()), T.StructField(c.EVENT_TIME, T.TimestampType())]
)


def test_events_that_a_clock_put_behind_the_day_are_none_of_them(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = [
        (user, item, "c0", "view", number, END + timedelta(seconds=offset))
        for number, (user, item, offset) in enumerate(
            [("u1", "i2", -1), ("u1", "i1", -60), ("u1", "i3", 0), ("u1", "i4", 120), ("u2", "i1", -5)]
        )
    ]
    frame = spark.createDataFrame(events, SCHEMA)
    monkeypatch.setattr(explanations, "events_until", lambda *_: (frame, {}, 0))
    names = SimpleNamespace(tokens=pa.array(["", "", "i1", "i2", "i3"]))
    scorer: Any = SimpleNamespace(items=names, categories=SimpleNamespace(tokens=pa.array(["", "", "c0"])))
    end_us = int(END.timestamp()) * c.MICROS
    found = explanations._events(spark, Store("none"), DAY, end_us, ["u1"], scorer)
    assert found[c.ITEM_ID].to_pylist() == ["i1", "i2"]
    assert found[c.ITEM].to_pylist() == [2, 3]
