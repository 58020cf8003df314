"""Counts of a night's log and of its scores, on rows given literally."""

from datetime import date, datetime
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession

from features import columns as c
from features.contracts import SCORES, VOCABULARY
from features.input_quality import category_counts, day_counts, events_of_day, new_users
from features.score_checks import degenerate_count, interest_mass, sample_of
from tests.score_rows import score_row

DAY = date(2024, 3, 2)


@pytest.fixture(scope="module")
def events(spark: SparkSession) -> DataFrame:
    rows = [
        ("ann", "i1", "c1", "view", datetime(2024, 3, 2, 0, 0)),
        ("ann", "i2", "c1", "view", datetime(2024, 3, 2, 23, 59, 59)),
        ("bob", "i3", None, "buy", datetime(2024, 3, 2, 12)),
        ("cid", "i1", "c9", "click", datetime(2024, 3, 2, 12)),
        ("ann", "i1", "c1", "view", datetime(2024, 3, 1, 23, 59, 59)),
        ("ann", "i1", "c1", "view", datetime(2024, 3, 3, 0, 0)),
    ]
    names = [c.USER_ID, c.ITEM_ID, c.CATEGORY_ID, c.ACTION, c.EVENT_TIME]
    return spark.createDataFrame(rows, f"{names[0]} string, {names[1]} string, {names[2]} string, {names[3]} string, "
                                 f"{names[4]} timestamp")  # fmt: skip


def test_a_day_is_counted_from_midnight_to_midnight(spark: SparkSession, events: DataFrame) -> None:
    of_day = events_of_day(events, DAY)
    vocabulary = spark.createDataFrame(
        [(c.KIND_ITEM, "i1", 2, 5), (c.KIND_ITEM, "i2", 3, 1), (c.KIND_CATEGORY, "c1", 2, 6)], VOCABULARY.schema
    )
    (row,) = day_counts(of_day, vocabulary).collect()
    assert row.asDict() == {
        "events": 4,
        "users": 3,
        "events_with_category": 3,
        "oov_items": 1,
        "oov_categories": 1,
        "view": 2,
        "click": 1,
        "like": 0,
        "cart": 0,
        "buy": 1,
    }
    (bare,) = day_counts(of_day, None).collect()
    assert (bare["events"], bare["oov_items"], bare["oov_categories"]) == (4, 0, 0)
    assert [tuple(found) for found in category_counts(of_day).collect()] == [("c1", 2), ("c9", 1)]


def test_users_that_were_never_seen_are_new_once(spark: SparkSession, events: DataFrame) -> None:
    known = spark.createDataFrame([("ann", 1), ("zoe", 1)], f"{c.USER_ID} string, length int")
    assert sorted(row[0] for row in new_users(events, known).collect()) == ["bob", "cid"]


def score(
    user: str, interests: list[tuple[str, float]], items: list[tuple[str, float]] | None = None, by: str = "model"
) -> dict[str, Any]:
    listed = [(category, p, 0.1, "steady") for category, p in interests]
    return score_row(user, listed, [("i1", 0.5)] if items is None else items, by)


def test_rows_that_say_nothing_are_found(spark: SparkSession) -> None:
    good = [("a", 0.6), ("b", 0.2)]
    rows = [
        {**score("good", good), c.DRIFT: 0.5, c.BACK: [{c.HOURS: 24, c.PROBABILITY: 0.5}]},
        score("one interest", [("a", 0.5)]),
        score("unknown user", [("a", 0.5), ("b", 0.5)], by="popularity"),
        score("no interest", []),
        score("no item", good, []),
        score("no number", [("a", float("nan")), ("b", 0.1)]),
        score("beyond one", good, [("i1", 1.5)]),
        score("all alike", [("a", 0.3), ("b", 0.3)]),
        {**score("no drift", good), c.DRIFT: float("nan")},
        {**score("no return", good), c.BACK: [{c.HOURS: 24, c.PROBABILITY: float("nan")}]},
    ]
    scores = spark.createDataFrame(rows, SCORES.schema)
    users = [row[c.USER_ID] for row in rows]
    found = {user for user in users if degenerate_count(scores.where(f"user_id = '{user}'")).collect()[0][1]}
    assert found == set(users[3:])
    assert tuple(degenerate_count(scores).collect()[0]) == (10, 7)


def test_interests_of_the_population_are_the_likeliest_of_known_users(spark: SparkSession) -> None:
    rows = [
        score("ann", [("a", 0.5), ("b", 0.25), ("fading", 0.125)]),
        score("bob", [("b", 0.5), ("c", 0.25)]),
        score("cid", [("z", 0.9), ("y", 0.1)], by="popularity"),
    ]
    mass = interest_mass(spark.createDataFrame(rows, SCORES.schema), 2).collect()
    assert [tuple(row) for row in mass] == [("b", 0.75), ("a", 0.5), ("c", 0.25)]


def test_a_sample_holds_the_same_users_of_every_table(spark: SparkSession) -> None:
    users = [f"u{k}" for k in range(2_000)]
    first, second = (
        {
            row[0]
            for row in sample_of(spark.createDataFrame([(u,) for u in part], f"{c.USER_ID} string"), 0.25).collect()
        }
        for part in (users, users[500:])
    )
    assert 400 < len(first) < 600
    assert second == first & set(users[500:])
    assert sample_of(spark.createDataFrame([("ann",)], f"{c.USER_ID} string"), 3.0).count() == 1
