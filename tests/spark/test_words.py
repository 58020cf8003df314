"""Users in words: who is chosen, and what the sentence says."""

from datetime import UTC, datetime

from pyspark.sql import SparkSession

from features.contracts import SCORES
from jobs.words import in_words, most_moved

AS_OF = datetime(2024, 3, 2, tzinfo=UTC)
GROWS, FADES, STAYS = ("a", 0.5, 0.1, "rising"), ("b", 0.1, 0.4, "fading"), ("c", 0.2, 0.2, "steady")


def test_those_whose_interests_grow_and_fade_come_first_then_the_largest_move(spark: SparkSession) -> None:
    rows = [
        ("steady", AS_OF, "v", "model", [STAYS], []),
        ("far", AS_OF, "v", "model", [("a", 0.9, 0.1, "rising"), FADES], []),
        ("grows only", AS_OF, "v", "model", [("a", 0.99, 0.0, "new")], []),
        ("tie b", AS_OF, "v", "model", [GROWS, FADES], []),
        ("tie a", AS_OF, "v", "model", [GROWS, FADES], []),
        ("popular", AS_OF, "v", "popularity", [GROWS, FADES], []),
        ("empty", AS_OF, "v", "model", [], []),
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
