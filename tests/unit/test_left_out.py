"""Events left out in turn and months told, through a scorer that keeps the rows it is given."""

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from features import columns as c
from features.evolution import months_of
from features.left_out import Coding, effects
from tests.spark.test_scoring import LENGTH, FakeScorer

CODING = Coding((60, 1800, 86_400), anchor_events=1)


class Keeps(FakeScorer):
    """Keeps rows as (item, gap) pairs; the probability of an answer shows which events it read."""

    def __init__(self) -> None:
        super().__init__(by_past=True)
        self.rows: list[list[tuple[int, int]]] = []
        self.next_gaps: list[int] = []

    def advance(self, channels: dict[str, Any], length: Any, state: Any) -> Any:
        pairs = np.stack([channels[c.ITEM], channels[c.GAP]], axis=2)  # [n, L, 2]
        self.rows += [[tuple(pair) for pair in pairs[at, :n].tolist()] for at, n in enumerate(length)]
        sums = (channels[c.ITEM] * (np.arange(LENGTH) < length[:, None])).sum(axis=1)
        state = super().advance(channels, length, state)
        return np.column_stack([sums, state[:, 1:]]).astype(np.float32)

    def log_p_of(self, state: Any, next_gap: Any, _channels: Any, _length: Any, *ids: Any) -> tuple[Any, Any]:
        """The sum of the items read, and what was asked."""
        item_ids, category_ids = ids
        self.next_gaps += next_gap.tolist()
        return state[:, 0] - item_ids, 10 * state[:, 0] - category_ids


def us(day: int, hour: int = 0, minute: int = 0, month: int = 3) -> int:
    return round(datetime(2024, month, day, hour, minute, tzinfo=UTC).timestamp()) * c.MICROS


def events(*given: tuple[str, int, int, str | None]) -> pa.Table:
    """User, time, item and the word of the category; its id is the item's."""
    user, time_us, item, category = zip(*given, strict=True)
    ids = pa.array(item, pa.int32())
    return pa.table(
        {
            c.USER_ID: pa.array(user),
            "time_us": pa.array(time_us),
            c.EVENT_ID: pa.array(range(len(user)), pa.int64()),
            c.ITEM: ids,
            c.CATEGORY: ids,
            c.ACTION_CODE: pa.array([2] * len(user), pa.int32()),
            c.CATEGORY_ID: pa.array(category, pa.string()),
        }
    )


LOG = events(
    ("a", us(1), 2, "x"),
    ("a", us(1, 0, 1), 3, "x"),  # a minute later: code 2
    ("a", us(1, 0, 11), 4, "y"),  # ten minutes: code 3
    ("a", us(1, 6), 5, "y"),  # hours: code 4
    ("a", us(3), 6, "z"),  # days: code 5
    ("b", us(3), 3, None),
)


def test_rows_are_as_if_the_event_had_not_happened() -> None:
    scorer = Keeps()
    found = effects(LOG, {"a": (4, 5), "b": (2, 2)}, us(3, 0, 10), scorer, scorer.log_p_of, CODING)
    whole = [(3, 2), (4, 3), (5, 4), (6, 5)]
    left_out = [
        [(2, 1), (4, 3), (5, 4), (6, 5)],  # the oldest event moves up, the gap spans the one that is out
        [(2, 1), (3, 2), (5, 4), (6, 5)],
        [(2, 1), (3, 2), (4, 3), (6, 5)],
        [(2, 1), (3, 2), (4, 3), (5, 4)],
    ]
    assert sorted(scorer.rows) == sorted([whole, *left_out, [(3, 1)]])
    assert sorted(scorer.next_gaps) == [3, 3, 3, 3, 3, 5]  # of the one without the last event the silence is longer
    a, b = found["a"], found["b"]
    assert (a.item_log_p, a.category_log_p, a.place.tolist()) == (18 - 4, 180 - 5, [1, 2, 3, 4])
    assert a.item.tolist() == [1, 2, 3, 4]  # each less item 2, which moved up
    assert a.category.tolist() == [10, 20, 30, 40]
    assert (b.item_log_p, b.place.tolist()) == (1, [5])
    assert np.isnan(b.item).all()  # without it there is nothing


def test_users_are_told_the_same_one_by_one_and_together(monkeypatch: pytest.MonkeyPatch) -> None:
    targets = {"a": (4, 5), "b": (2, 2)}
    scorer = Keeps()
    together = effects(LOG, targets, us(4), scorer, scorer.log_p_of, CODING)
    monkeypatch.setattr("features.left_out._VARIANTS", 1)
    for user, one_by_one in effects(LOG, targets, us(4), scorer, scorer.log_p_of, CODING).items():
        for mine, theirs in zip(one_by_one, together[user], strict=True):
            np.testing.assert_array_equal(mine, theirs)
    assert effects(LOG, {}, us(4), scorer, scorer.log_p_of, CODING) == {}


@pytest.mark.parametrize("anchor_events", range(1, LENGTH + 1))
def test_an_effect_is_the_difference_to_the_log_without_the_event(anchor_events: int) -> None:
    scorer, coding = Keeps(), CODING._replace(anchor_events=anchor_events)

    def told(log: pa.Table) -> Any:
        return effects(log, {"a": (4, 5)}, us(4), scorer, scorer.log_p_of, coding)["a"]

    found = told(LOG)
    for at, item, category in zip(found.place.tolist(), found.item, found.category, strict=True):
        without = told(pa.concat_tables([LOG.slice(0, at), LOG.slice(at + 1)]))
        assert item == found.item_log_p - without.item_log_p
        assert category == found.category_log_p - without.category_log_p


def test_only_what_the_context_holds_is_told_with_anchors() -> None:
    scorer = Keeps()
    coding = CODING._replace(anchor_events=LENGTH)
    found = effects(LOG, {"a": (2, 2)}, us(4), scorer, scorer.log_p_of, coding)["a"]
    read = [LOG[c.ITEM][at].as_py() for at in found.place]
    assert sum(read) == found.item_log_p + 2
    assert read in [[item for item, _ in row] for row in scorer.rows]
    assert len(found.item) == len(read) < LENGTH


def test_months_tell_shares_of_events_and_what_was_expected_at_their_end() -> None:
    log = events(
        ("a", us(31, month=1), 2, "x"),
        ("a", us(1, month=3), 3, "y"),
        ("a", us(2, month=3), 3, "x"),
        ("a", us(2, 1, month=3), 3, "y"),
        ("a", us(2, 2, month=3), 3, None),
        ("b", us(2, month=3), 4, "z"),
    )
    scorer = Keeps()
    found = months_of(log, us(3), 12, 2, scorer, CODING)
    told = [(month.month, month.events, month.shares) for month in found["a"]]
    assert told == [
        ("2024-01", 1, (("x", 1.0),)),
        ("2024-02", 0, ()),
        ("2024-03", 4, (("y", 2 / 3), ("x", 1 / 3))),
    ]
    assert [month.month for month in found["b"]] == ["2024-03"]
    # At the ends of January, February and now; rows of a, then of both.
    assert [len(row) for row in scorer.rows[:2]] == [1, 1]
    assert sorted(len(row) for row in scorer.rows[2:]) == [1, 4]
    for month in found["a"]:
        assert len({name for name, _ in month.expected}) == 2
        assert [p for _, p in month.expected] == pytest.approx([0.4, 0.3])
    assert found["a"][0].expected == found["a"][1].expected != found["a"][2].expected
    assert [month.month for month in months_of(log, us(3), 2, 2, scorer, CODING)["a"]] == ["2024-02", "2024-03"]
