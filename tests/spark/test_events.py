"""Cleaning: each reason on a literal row, and rows that are good."""

import gzip
import json
from datetime import date
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from features import columns as c
from features.contracts import ContractError
from features.events import CleaningSpec, RunDays, good_events, parse_events, rejected_events
from features.sources import SourceMap, read_log
from tests.logs import SOURCE, line, write_log

SPEC = CleaningSpec(min_date=date(2000, 1, 1), future_tolerance_s=300, unknown_action="reject")
DAYS = RunDays(date(2024, 3, 1), date(2024, 3, 2), lateness_days=1)


def clean(
    spark: SparkSession, path: str, source: SourceMap = SOURCE, spec: CleaningSpec = SPEC
) -> tuple[list[dict[str, object]], list[tuple[str, str]]]:
    parsed = parse_events(read_log(spark, source, [path]), source, spec, DAYS)
    good = [row.asDict() for row in good_events(parsed).orderBy(c.EVENT_TIME, c.ITEM_ID).collect()]
    return good, [(row[c.REASON], row[c.RAW]) for row in rejected_events(parsed).collect()]


def test_every_reason_keeps_the_row_whole(spark: SparkSession, tmp_path: Path) -> None:
    refused = {
        "ann,i1": "malformed_row",
        "ann,i1,c1,pv,1709294400,more": "malformed_row",
        line(user=" "): "no_user",
        line(item=""): "no_item",
        line(when="noon"): "bad_time",
        line(when="1999-12-31 23:59"): "time_out_of_range",
        line(what="stare"): "unknown_action",
        line(when="2024-03-03 00:00"): "after_run",
        line(when="2024-02-28 23:59"): "too_late",
    }
    good, rejected = clean(spark, write_log(tmp_path / "log.csv", *refused, line(), line(when="2024-02-29 00:00")))
    assert len(good) == 2
    assert sorted(reason for reason, _ in rejected) == sorted(refused.values())
    for reason, raw in rejected:
        if reason == "malformed_row":
            assert refused[raw] == reason
        else:
            fields = json.loads(raw)
            assert refused[",".join(fields.get(name, "") for name in ("user", "item", "category", "what", "when"))]


def test_good_rows_are_mapped(spark: SparkSession, tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.csv", line(what="order", category=""), line(item="i2", what="fav"))
    good, rejected = clean(spark, log)
    assert rejected == []
    assert [(e[c.ITEM_ID], e[c.CATEGORY_ID], e[c.ACTION]) for e in good] == [("i1", None, "buy"), ("i2", "c1", "like")]


def test_unknown_actions_can_count_as_views(spark: SparkSession, tmp_path: Path) -> None:
    lenient = SPEC.model_copy(update={"unknown_action": "view"})
    good, rejected = clean(spark, write_log(tmp_path / "log.csv", line(what="stare")), spec=lenient)
    assert ([e[c.ACTION] for e in good], rejected) == (["view"], [])


def test_equal_rows_have_one_id_and_others_have_not(spark: SparkSession, tmp_path: Path) -> None:
    good, _ = clean(spark, write_log(tmp_path / "log.csv", line(), line(), line(item="i2"), line(user="bob")))
    assert len({event[c.EVENT_ID] for event in good}) == 3


def test_the_logs_own_order_breaks_ties(spark: SparkSession, tmp_path: Path) -> None:
    ordered = SOURCE.model_copy(update={"order": "position"})
    rows = [f"{line(item=f'i{k}')},{9 - k}" for k in range(5)]
    good, _ = clean(
        spark, write_log(tmp_path / "log.csv", *rows, header="user,item,category,what,when,position"), ordered
    )
    by_id = sorted(good, key=lambda event: event[c.EVENT_ID])  # type: ignore[arg-type, return-value]
    assert [event[c.ITEM_ID] for event in by_id] == ["i4", "i3", "i2", "i1", "i0"]


@pytest.mark.parametrize(
    ("unit", "text"),
    [
        ("s", "1709294400"),
        ("s", "1709294400.000001"),
        ("ms", "1709294400000"),
        ("us", "1709294400000000"),
        ("iso", "2024-03-01T12:00:00Z"),
        ("iso", "2024-03-01 12:00:00 UTC"),
        ("iso", "2024-03-01T14:00:00+02:00"),
    ],
)
def test_times_in_every_unit(spark: SparkSession, tmp_path: Path, unit: str, text: str) -> None:
    source = SOURCE.model_copy(update={"time_unit": unit})
    good, _ = clean(spark, write_log(tmp_path / "log.csv", f"ann,i1,c1,pv,{text}"), source)
    assert [event[c.EVENT_TIME].replace(microsecond=0).isoformat() for event in good] == ["2024-03-01T12:00:00"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("unit", "text"),
    [
        ("iso", "12:30"),  # Spark alone would read it as today
        ("iso", "2024"),
        ("iso", "2024-03-01x"),
        ("s", "1709294400000"),  # milliseconds: the year 56135
        ("s", "999999999999999999"),  # microseconds that do not fit 64 bits
        ("ms", "1.7e12"),
        ("us", "-99999999999999999"),  # before the year 1
    ],
)
def test_what_is_no_time_is_refused(spark: SparkSession, tmp_path: Path, unit: str, text: str) -> None:
    source = SOURCE.model_copy(update={"time_unit": unit})
    good, rejected = clean(spark, write_log(tmp_path / "log.csv", f"ann,i1,c1,pv,{text}"), source)
    assert (good, [reason for reason, _ in rejected]) == ([], ["bad_time"])


def test_json_lines_and_parquet_read_like_csv(spark: SparkSession, tmp_path: Path) -> None:
    rows = [{"user": "ann", "item": 7, "category": None, "what": "pv", "when": 1_709_294_400}]
    with gzip.open(tmp_path / "log.json.gz", "wt") as file:
        file.write("\n".join([*map(json.dumps, rows), '{"user": "bob", "ite']))
    source = SOURCE.model_copy(update={"format": "json"})
    good, rejected = clean(spark, str(tmp_path / "log.json.gz"), source)
    assert [event[c.ITEM_ID] for event in good] == ["7"]
    assert rejected == [("malformed_row", '{"user": "bob", "ite')]

    spark.createDataFrame(rows, "user string, item long, category string, what string, when long").write.parquet(
        str(tmp_path / "log.parquet")
    )
    from_parquet, _ = clean(spark, str(tmp_path / "log.parquet"), SOURCE.model_copy(update={"format": "parquet"}))
    assert from_parquet == good


def test_late_and_future_rows_are_told_by_their_ingest_time(spark: SparkSession, tmp_path: Path) -> None:
    source = SOURCE.model_copy(update={"columns": {**SOURCE.columns, "ingest_time": "got"}})
    rows = {
        f"{line(item='late', when='2024-02-29 23:00')},{1709337600}": None,  # got 2024-03-02 00:00: too late by a day
        f"{line(item='in_time', when='2024-03-01 23:00')},{1709337600}": None,
        f"{line(item='skewed', when='2024-03-01 12:04')},{1709294400}": None,  # got at 12:00
        f"{line(item='future', when='2024-03-01 12:06')},{1709294400}": None,
    }
    good, rejected = clean(
        spark, write_log(tmp_path / "log.csv", *rows, header="user,item,category,what,when,got"), source
    )
    assert [event[c.ITEM_ID] for event in good] == ["skewed", "in_time"]
    assert sorted(reason for reason, _ in rejected) == ["future_time", "too_late"]


def test_a_missing_column_is_named_with_the_columns_there_are(spark: SparkSession, tmp_path: Path) -> None:
    path = write_log(tmp_path / "log.csv", "1,2", header="user,article")
    with pytest.raises(ContractError, match=r"log\.csv has no column item, category, what, when; .*user, article"):
        read_log(spark, SOURCE, [path])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"columns": {"user_id": "u"}}, "missing: .'item_id', 'event_time'"),
        ({"actions": {"pv": "stare"}}, "'stare'. are not canonical"),
        ({"default_action": "view"}, "either an action column or default_action"),
        ({"header": False}, "needs names"),
    ],
)
def test_a_source_map_is_checked(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SourceMap.model_validate({**SOURCE.model_dump(), **change})
