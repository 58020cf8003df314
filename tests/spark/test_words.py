"""Users in words: who is chosen, and what the sentence says."""

from pyspark.sql import SparkSession

from features.columns import ACTIONS
from features.contracts import SCORES
from jobs.words import days_ahead_in_words, in_words, most_moved
from tests.score_rows import score_row

GROWS, FADES, STAYS = ("a", 0.5, 0.1, "rising"), ("b", 0.1, 0.4, "fading"), ("c", 0.2, 0.2, "steady")


def test_those_whose_interests_grow_and_fade_come_first_then_the_largest_move(spark: SparkSession) -> None:
    rows = [
        score_row("steady", [STAYS]),
        score_row("far", [("a", 0.9, 0.1, "rising"), FADES]),
        score_row("grows only", [("a", 0.99, 0.0, "new")]),
        score_row("tie b", [GROWS, FADES]),
        score_row("tie a", [GROWS, FADES]),
        score_row("popular", [GROWS, FADES], by="popularity"),
        score_row("empty"),
    ]
    scores = spark.createDataFrame(rows, SCORES.schema).repartition(3)
    chosen = [row.user_id for row in most_moved(scores).collect()]
    assert chosen == ["far", "tie a", "tie b", "grows only", "steady", "empty"]


def test_the_sentence_holds_past_future_trend_and_what_fades_beyond() -> None:
    interests = [
        {"category_id": token, "probability": p, "past_share": past, "trend": trend}
        for token, p, past, trend in (GROWS, STAYS, ("d", 0.15, 0.1, "new"), FADES, ("e", 0.012, 0.0, "steady"))
    ]
    assert in_words("u1", ["c", "b", "b", "a", "x"], interests) == (
        "u1, 5 latest events: was interested in b (40 %), a (20 %), c (20 %) → will be interested in a (50 %, rising), "
        "c (20 %), d (15 %, new); fading: b (40 % → 10 %)"
    )
    assert in_words("u2", [], interests[:1]).startswith("u2, 0 latest events: was interested in nothing known → ")


def test_the_days_ahead_are_told_as_far_as_the_row_tells_them() -> None:
    chances = zip(ACTIONS, (0.9, 0.5, 0.1, 0.2, 0.04), strict=True)
    row = score_row(
        "u1",
        back=[{"hours": hours, "probability": p} for hours, p in ((24, 0.25), (36, 0.3), (168, 0.8))],
        best_hours=[{"hour": 4 * 24 + 20, "probability": 0.1}, {"hour": 3, "probability": 0.05}],
        actions=[{"action": action, "probability": p} for action, p in chances],
        contacts_per_week=1.46,
        drift=0.318,
    )
    assert days_ahead_in_words(row) == (
        "; back within 1 d 25 %, 36 h 30 %, 7 d 80 %, most likely on Friday at 20 h UTC, buy 4.0 %, "
        "1.5 contacts a week, drift 0.32"
    )
    assert days_ahead_in_words({**row, "back": [], "best_hours": [], "actions": []}) == (
        "; 1.5 contacts a week, drift 0.32"
    )
    assert days_ahead_in_words(score_row("u2")) == ""
