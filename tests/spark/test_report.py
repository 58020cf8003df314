"""What the report shows, worked out on rows given literally."""

from datetime import date, datetime

import pytest
from pyspark.sql import DataFrame, SparkSession

from features import columns as c
from features import report
from features.contracts import REJECTED_EVENTS, SCORES
from features.report import NEXT, PAST
from tests.score_rows import score_row

_STEPS = "user_id string, category_id string, step int, share double"
_EVENTS = "user_id string, event_id long, item_id string, category_id string, action string, event_time timestamp"


def steps_of(spark: SparkSession, rows: list[tuple[str, str, float, float]]) -> DataFrame:
    """(user, category, past, next) as rows of interest_steps."""
    points = [
        (u, name, step, share) for u, name, *shares in rows for step, share in zip((PAST, NEXT), shares, strict=True)
    ]
    return spark.createDataFrame(points, _STEPS).repartition(3)


@pytest.fixture(scope="module")
def events(spark: SparkSession) -> DataFrame:
    rows = [
        ("ann", 1, "i1", "a", "view", datetime(2024, 3, 4, 0, 0)),  # a Monday
        ("ann", 2, "i2", "a", "view", datetime(2024, 3, 4, 0, 10)),
        ("ann", 3, "i3", "b", "buy", datetime(2024, 3, 4, 0, 20)),
        ("ann", 4, "i4", "b", "view", datetime(2024, 3, 10, 23, 59)),  # the Sunday of its week
        ("bob", 5, "i1", "b", "view", datetime(2024, 3, 5, 13, 0)),
        ("bob", 6, "i5", None, "view", datetime(2024, 3, 5, 13, 1)),
        ("bob", 7, "i1", "a", "click", datetime(2024, 3, 11, 0, 0)),
    ]
    return spark.createDataFrame(rows, _EVENTS).repartition(3)


def test_steps_are_past_next_and_the_days_that_are_told(spark: SparkSession) -> None:
    ann = score_row("ann", [("a", 0.5, 0.25, "rising")])
    ann[c.INTERESTS][0][c.DAYS_AHEAD] = [(1, 0.5, 0.5), (7, None, 0.5)]  # days, share, touched
    bob, pop = (
        score_row(user, [("a", 0.5, 0.25, "new")], by=by) for user, by in (("bob", "model"), ("pop", "popularity"))
    )
    rows = [ann, bob, pop]
    found = report.interest_steps(spark.createDataFrame(rows, SCORES.schema)).collect()
    assert sorted((r["user_id"], r["step"], r["share"]) for r in found) == [
        ("ann", PAST, 0.25), ("ann", NEXT, 0.5), ("ann", 1, 0.5), ("bob", PAST, 0.25), ("bob", NEXT, 0.5),
    ]  # fmt: skip


def test_shares_of_the_mean_user_and_their_moves(spark: SparkSession) -> None:
    # bob lists a only: of his rest 0.5, later 0.7, all goes to b, the one other category of the background.
    steps = steps_of(spark, [("ann", "a", 0.6, 0.2), ("ann", "b", 0.4, 0.8), ("bob", "a", 0.5, 0.3)])
    background = spark.createDataFrame([("a", 0.25), ("b", 0.75)], "category_id string, share double")
    found = {(r["category_id"], r["step"]): r for r in report.population_shares(steps, background).collect()}
    assert {key: round(row["share"], 9) for key, row in found.items()} == {
        ("a", PAST): 0.55, ("b", PAST): 0.45, ("a", NEXT): 0.25, ("b", NEXT): 0.75,
    }  # fmt: skip
    a, b = found["a", NEXT], found["b", NEXT]
    assert (a["users"], b["users"]) == (2, 1)
    half = 1.96 * 0.1 / 2**0.5  # moves of -0.4 and -0.2, of +0.4 and +0.2
    assert (a["move"], a["low"], a["high"]) == pytest.approx((-0.3, -0.3 - half, -0.3 + half))
    assert (b["move"], b["low"], b["high"]) == pytest.approx((0.3, 0.3 - half, 0.3 + half))
    assert found["a", PAST]["move"] == found["a", PAST]["low"] == 0


def test_an_unlisted_category_gets_its_part_of_the_rest_only(spark: SparkSession) -> None:
    steps = steps_of(spark, [("ann", "a", 0.5, 0.5), ("bob", "b", 0.5, 0.5), ("cid", "z", 1.0, 1.0)])
    background = spark.createDataFrame([("a", 0.4), ("b", 0.4), ("c", 0.2)], "category_id string, share double")
    found = {r["category_id"]: r for r in report.population_shares(steps, background).collect() if r["step"] == NEXT}
    # bob's rest 0.5 goes to a and c as 0.4 : 0.2; cid has none.
    assert found["a"]["share"] == pytest.approx((0.5 + 0.5 * 0.4 / 0.6) / 3)
    assert found["z"]["share"] == pytest.approx(1 / 3 + 0)


def test_flows_count_main_interests_ties_by_name(spark: SparkSession) -> None:
    steps = steps_of(spark, [
        ("ann", "a", 0.6, 0.2), ("ann", "b", 0.4, 0.8), ("bob", "b", 0.5, 0.5), ("bob", "a", 0.5, 0.1),
        ("cid", "rare", 0.9, 0.9), ("dan", "a", 0.9, 0.9),
    ])  # fmt: skip
    found = report.interest_flows(steps, (PAST, NEXT), ["a", "b"]).collect()
    assert sorted((r["step"], r["from"], r["to"], r["users"]) for r in found) == [
        (PAST, "a", "a", 1), (PAST, "a", "b", 2), (PAST, report.OTHERS, report.OTHERS, 1),
    ]  # fmt: skip


def test_weeks_weigh_every_user_alike(events: DataFrame) -> None:
    found = {(r["week"], r["category_id"]): (r["share"], r["events"]) for r in report.weekly_shares(events).collect()}
    first, second = date(2024, 3, 4), date(2024, 3, 11)
    assert found == {
        (first, "a"): (0.25, 2),  # ann 2 of 4, bob 0 of 1: his event without a category is no one's
        (first, "b"): (0.75, 3),
        (second, "a"): (1.0, 1),
    }


def test_hours_run_from_monday_to_sunday(events: DataFrame) -> None:
    found = {r["hour"]: r["count"] for r in report.hour_counts(events).collect()}
    assert found == {0: 4, 24 + 13: 2, 167: 1}


def test_activity_is_users_by_number_of_events(events: DataFrame) -> None:
    assert sorted((r["events"], r["users"]) for r in report.activity(events).collect()) == [(3, 1), (4, 1)]


def test_samples_are_few_and_the_same_ones(spark: SparkSession) -> None:
    rows = [("no_item", f"row {n}") for n in range(6)] + [("bad_time", "other")]
    frame = spark.createDataFrame(rows, REJECTED_EVENTS.schema)
    found, again = (sorted(map(tuple, report.reason_samples(f, 2).collect())) for f in (frame, frame.repartition(4)))
    assert found == again
    assert [reason for reason, _ in found] == ["bad_time", "no_item", "no_item"]


def test_sessions_of_chosen_users(events: DataFrame) -> None:
    found = report.sessions_of(events, ["ann"], gap_s=1800).orderBy("start").collect()
    assert [(r["n_events"], r["categories"], r["actions"], r["last_item"]) for r in found] == [
        (3, ["a", "b"], ["buy", "view"], "i3"), (1, ["b"], ["view"], "i4"),
    ]  # fmt: skip
    assert {r[c.USER_ID] for r in found} == {"ann"}
