"""Views of the scores: one row an item, and those who move most, from shares of the users."""

import pyarrow as pa
from pyspark.sql import SparkSession

from features import columns as c
from features.contracts import DRIFT
from features.score_feeds import EXPLODED_ARROW, exploded, merged, most_drifted, outlook_means, outlook_sums
from features.scoring import SCORES_ARROW
from tests.score_rows import AS_OF, score_row

INTERESTS = [("a", 0.3, 0.2, "rising"), ("b", 0.1, 0.4, "fading"), ("d", 0.5, 0.2, "rising")]
ROWS = [
    score_row("u3", INTERESTS, [("i1", 0.5), ("i2", 0.25)], drift=0.25),
    score_row("u1", [], [], drift=0.75),
    score_row("u2", INTERESTS[:1], [("i9", 0.125)], drift=0.25),
    score_row("popular", INTERESTS, [("i1", 0.5)], by="popularity"),
    score_row("u4", INTERESTS[1:], [], drift=0.125),
]


def table(rows: list[dict[str, object]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=SCORES_ARROW)


def test_each_item_is_a_row_with_its_rank() -> None:
    found = exploded(table(ROWS).slice(0))
    assert found.schema == EXPLODED_ARROW
    assert [tuple(row.values()) for row in found.to_pylist()] == [
        ("u3", 1, "i1", 0.5),
        ("u3", 2, "i2", 0.25),
        ("u2", 1, "i9", 0.125),
        ("popular", 1, "i1", 0.5),
    ]
    assert exploded(table(ROWS[1:2])).num_rows == exploded(table([])).num_rows == 0
    assert exploded(table(ROWS).slice(2, 1)).to_pylist()[0][c.USER_ID] == "u2"


def test_the_users_with_the_greatest_drift_are_listed_with_what_moves_them() -> None:
    found = most_drifted(table(ROWS), 3).to_pylist()
    listed = [(row[c.RANK], row[c.USER_ID], row[c.DRIFT], row[c.CATEGORY_ID], row[c.TREND]) for row in found]
    assert listed == [
        (1, "u1", 0.75, None, None),
        (2, "u2", 0.25, "a", "rising"),
        (3, "u3", 0.25, "b", "fading"),  # of b and d, which move as far, the one listed first
    ]
    assert {(row[c.AS_OF], row[c.MODEL_VERSION]) for row in found} == {(AS_OF, "v")}
    assert most_drifted(table(ROWS[3:4]), 3).num_rows == most_drifted(table([]), 3).num_rows == 0


def test_means_are_of_the_rows_that_tell_something() -> None:
    back = [{"hours": 24, "probability": 0.1}, {"hours": 168, "probability": 0.5}]
    rows = [
        score_row("u1", drift=0.25, back=back, contacts_per_week=1.5),
        score_row("u2", drift=0.75, back=[back[0], {"hours": 168, "probability": 1.0}]),
        score_row("u3"),
    ]
    assert outlook_means(outlook_sums(table(rows))) == {
        "mean_drift": 0.5,
        "mean_back": 0.75,
        "mean_back_hours": 168.0,
        "mean_contacts_per_week": 1.5,
    }
    halves = [outlook_sums(table(rows[:1])), outlook_sums(table(rows[1:]))]
    assert {name: halves[0][name] + halves[1][name] for name in halves[0]} == outlook_sums(table(rows))
    assert outlook_means(outlook_sums(table(rows[2:]))) == {}


def test_shares_merge_into_the_list_of_all(spark: SparkSession) -> None:
    whole = most_drifted(table(ROWS), 3).to_pylist()
    parts = [row for k in range(5) for row in most_drifted(table(ROWS[k : k + 1]), 3).to_pylist()]
    found = merged(spark.createDataFrame(parts, DRIFT.schema).repartition(3), 3).collect()
    assert [row.asDict() for row in sorted(found, key=lambda row: row[c.RANK])] == [
        {**row, c.AS_OF: row[c.AS_OF].replace(tzinfo=None)} for row in whole
    ]
    assert merged(spark.createDataFrame([], DRIFT.schema), 3).count() == 0
