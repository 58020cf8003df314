"""What the report shows, worked out on rows given literally."""

from datetime import date, datetime

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from features import columns as c
from features import report
from features.contracts import REJECTED_EVENTS, SCORES
from features.report_sums import FLOWS, NEXT, OTHERS, PAST, STEP, USERS, WEEK
from tests.score_rows import score_row

_EVENTS = "user_id string, event_id long, item_id string, category_id string, action string, event_time timestamp"


def scores_of(spark: SparkSession, rows: list[tuple[str, str, float, float]]) -> DataFrame:
    """(user, category, past, next) as rows of scores_v1, dealt over partitions."""
    listed: dict[str, list[tuple[str, float, float, str]]] = {}
    for user, name, past, following in rows:
        listed.setdefault(user, []).append((name, following, past, "steady"))
    return spark.createDataFrame([score_row(u, of) for u, of in listed.items()], SCORES.schema).repartition(3)


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
    ann[c.INTERESTS][0][c.DAYS_AHEAD] = [(1, 0.625, 0.5), (7, None, 0.5)]  # days, share, touched
    bob, pop = (
        score_row(user, [("a", 0.5, 0.25, "new")], by=by) for user, by in (("bob", "model"), ("pop", "popularity"))
    )
    found = report.population_shares(spark.createDataFrame([ann, bob, pop], SCORES.schema), {"a": 1.0})
    assert {row[STEP]: (row[c.SHARE], row[USERS]) for row in found} == {PAST: (0.25, 2), NEXT: (0.5, 2), 1: (0.625, 1)}


def test_shares_of_the_mean_user_and_their_moves(spark: SparkSession) -> None:
    # bob lists a only: of his rest 0.5, later 0.7, all goes to b, the one other category of the background.
    scores = scores_of(spark, [("ann", "a", 0.6, 0.2), ("ann", "b", 0.4, 0.8), ("bob", "a", 0.5, 0.3)])
    shares = report.population_shares(scores, {"a": 0.25, "b": 0.75})
    found = {(row[c.CATEGORY_ID], row[STEP]): row for row in shares}
    assert {key: round(row[c.SHARE], 6) for key, row in found.items()} == {
        ("a", PAST): 0.55, ("b", PAST): 0.45, ("a", NEXT): 0.25, ("b", NEXT): 0.75,
    }  # fmt: skip
    a, b = found["a", NEXT], found["b", NEXT]
    assert (a[USERS], b[USERS]) == (2, 1)
    half = 1.96 * 0.1 / 2**0.5  # moves of -0.4 and -0.2, of +0.4 and +0.2
    assert (a[c.MOVE], a["low"], a["high"]) == pytest.approx((-0.3, -0.3 - half, -0.3 + half), rel=1e-5)
    assert (b[c.MOVE], b["low"], b["high"]) == pytest.approx((0.3, 0.3 - half, 0.3 + half), rel=1e-5)
    half = 1.96 * 0.05 / 2**0.5  # shares of 0.2 and 0.3
    assert (a["share_low"], a["share_high"]) == pytest.approx((0.25 - half, 0.25 + half), rel=1e-5)
    assert found["a", PAST][c.MOVE] == found["a", PAST]["low"] == 0


def test_an_unlisted_category_gets_its_part_of_the_rest_only(spark: SparkSession) -> None:
    scores = scores_of(spark, [("ann", "a", 0.5, 0.5), ("bob", "b", 0.5, 0.5), ("cid", "z", 1.0, 1.0)])
    shares = report.population_shares(scores, {"a": 0.4, "b": 0.4, "c": 0.2})
    found = {row[c.CATEGORY_ID]: row for row in shares if row[STEP] == NEXT}
    # bob's rest 0.5 goes to a and c as 0.4 : 0.2; cid has none.
    assert found["a"][c.SHARE] == pytest.approx((0.5 + 0.5 * 0.4 / 0.6) / 3)
    assert found["z"][c.SHARE] == pytest.approx(1 / 3 + 0)


def test_without_a_user_of_the_model_there_are_no_shares_and_no_flows(spark: SparkSession) -> None:
    rows = [score_row("pop", [("a", 0.5, 0.25, "new")], by="popularity"), score_row("ann", [])]
    scores = spark.createDataFrame(rows, SCORES.schema)
    assert report.population_shares(scores, {"a": 1.0}) == []
    assert report.interest_flows(scores, (PAST, NEXT), ["a"]) == []


def test_flows_count_main_interests_ties_by_name(spark: SparkSession) -> None:
    scores = scores_of(spark, [
        ("ann", "a", 0.6, 0.2), ("ann", "b", 0.4, 0.8), ("bob", "b", 0.5, 0.5), ("bob", "a", 0.5, 0.1),
        ("cid", "rare", 0.9, 0.9), ("dan", "a", 0.9, 0.9),
    ])  # fmt: skip
    found = report.interest_flows(scores, (PAST, NEXT), ["a", "b"])
    assert sorted(tuple(row[name] for name in FLOWS.names) for row in found) == [
        (PAST, "a", "a", 1), (PAST, "a", "b", 2), (PAST, OTHERS, OTHERS, 1),
    ]  # fmt: skip


def test_flows_go_from_step_to_step_and_leave_out_who_is_not_told_the_next_one(spark: SparkSession) -> None:
    ann, bob = (score_row(user, [("a", 0.5, 0.5, "steady"), ("b", 0.4, 0.4, "steady")]) for user in ("ann", "bob"))
    ann[c.INTERESTS][0][c.DAYS_AHEAD], ann[c.INTERESTS][1][c.DAYS_AHEAD] = [(7, 0.1, 0.5)], [(7, 0.2, 0.5)]
    found = report.interest_flows(spark.createDataFrame([ann, bob], SCORES.schema), (PAST, NEXT, 7), ["a", "b"])
    assert sorted(tuple(row[name] for name in FLOWS.names) for row in found) == [
        (PAST, "a", "a", 2),
        (NEXT, "a", "b", 1),
    ]


def test_weeks_weigh_every_user_alike(events: DataFrame) -> None:
    weeks, _ = report.weeks_and_hours(events, 2)
    found = {(row[WEEK], row[c.CATEGORY_ID]): (row[c.SHARE], row[c.EVENTS]) for row in weeks}
    first, second = date(2024, 3, 4), date(2024, 3, 11)
    assert found == {
        (first, "a"): (0.25, 2),  # ann 2 of 4, bob 0 of 1: his event without a category is no one's
        (first, "b"): (0.75, 3),
        (second, "a"): (1.0, 1),
    }


def test_hours_run_from_monday_to_sunday(events: DataFrame) -> None:
    _, hours = report.weeks_and_hours(events, 2)
    assert {row[c.HOUR]: row["count"] for row in hours} == {0: 4, 24 + 13: 2, 167: 1}


def test_events_without_any_category_have_hours_and_no_weeks(events: DataFrame) -> None:
    weeks, hours = report.weeks_and_hours(events.where(F.col(c.CATEGORY_ID).isNull()), 2)
    assert (weeks, hours) == ([], [{c.HOUR: 24 + 13, "count": 1}])


def test_activity_is_users_by_number_of_events(events: DataFrame) -> None:
    assert sorted((r["events"], r["users"]) for r in report.activity(events).collect()) == [(3, 1), (4, 1)]


def test_samples_are_few_and_the_same_ones(spark: SparkSession) -> None:
    rows = [("no_item", f"row {n}") for n in range(6)] + [("bad_time", "other")]
    frame = spark.createDataFrame(rows, REJECTED_EVENTS.schema)
    found, again = (sorted(map(tuple, report.reason_samples(f, 2).collect())) for f in (frame, frame.repartition(4)))
    assert found == again
    assert [reason for reason, _ in found] == ["bad_time", "no_item", "no_item"]
