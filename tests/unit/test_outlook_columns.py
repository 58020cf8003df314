"""Columns of the days ahead: formulas on rows given literally, against slow oracles where they are long."""

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features import columns as c
from features.contacts import ActionValues, ContactsSpec, contacts_per_week
from features.drift import jensen_shannon_distance
from features.outlook_columns import Asked, OutlookSpec, has_moved_on, when_asked, with_answers, with_returns
from features.scoring import SCORES_ARROW
from tests.outlook import EDGES_H, FakeOutlook, Said
from tests.score_rows import score_row

HOUR_US = 3600 * c.MICROS
AS_OF_US = round(datetime(2024, 3, 2, tzinfo=UTC).timestamp()) * c.MICROS  # the end of a Friday
VALUES = ActionValues(view=0.0, click=0.1, like=0.2, cart=0.5, buy=1.0)
CONTACTS = ContactsSpec(values=VALUES, session_worth=0.5, most_per_week=3.0)
SPEC = OutlookSpec(past_smoothing_events=2.0, drift_days=7, best_hours=3, contacts=CONTACTS)
TOKENS = pa.array(["", "", "a", "b", "d"])
SHARES = np.array([0, 0, 0.5, 0.25, 0.25])


class Told(FakeOutlook):
    """Answers given by the test."""

    def __init__(self, said: Said, back: Any = ()) -> None:
        super().__init__()
        self._said, self._back = said, np.array(back)

    def answers(self, state: Any, hour_code: Any, silence_s: Any) -> Said:
        self.asked = hour_code.tolist(), silence_s.tolist()
        at = state[:, 0].astype(int)
        return Said(*(None if part is None else np.asarray(part, np.float32)[at] for part in self._said))

    def back(self, state: Any, silence_s: Any) -> Any:  # noqa: ARG002
        return self._back[state[:, 0].astype(int)]


def rows(*given: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(given), schema=SCORES_ARROW)


def asked(*hours_silent: float, past: list[list[int]] | None = None) -> Asked:
    n = len(hours_silent)
    last_us = AS_OF_US - (np.array(hours_silent) * HOUR_US).astype(np.int64)
    lists = pa.array(past or [[]] * n, pa.list_(pa.int32()))
    return Asked(np.arange(n, dtype=np.float32)[:, None], last_us, lists, AS_OF_US)


def test_drift_is_the_root_of_the_divergence_in_bits() -> None:
    p = np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.2, 0.3, 0.5]])
    q = np.array([[1.0, 0.0, 0.0], [0.0, 0.4, 0.6], [0.5, 0.5, 0.0], [0.2, 0.3, 0.5]])
    # Third row: m = (3/4, 1/4); KL(p‖m) = log2(4/3), KL(q‖m) = log2(2/3) / 2 + log2(2) / 2.
    third = np.sqrt((np.log2(4 / 3) + (np.log2(2 / 3) + 1) / 2) / 2)
    assert jensen_shannon_distance(p, q) == pytest.approx([0.0, 1.0, third, 0.0])
    assert jensen_shannon_distance(q, p) == pytest.approx([0.0, 1.0, third, 0.0])


@given(st.lists(st.lists(st.floats(0.0, 1.0), min_size=4, max_size=4), min_size=3, max_size=3))
def test_drift_is_a_metric(weights: list[list[float]]) -> None:
    p, q, r = (np.array([row]) + 1e-9 for row in weights)
    p, q, r = (each / each.sum() for each in (p, q, r))
    distance = jensen_shannon_distance
    assert distance(p, r)[0] <= distance(p, q)[0] + distance(q, r)[0] + 1e-6
    assert 0 <= distance(p, q)[0] <= 1


def test_contacts_go_with_expected_returns_and_the_worth_of_a_session() -> None:
    # -ln(1 - p) returns in 84 hours, twice as many in a week; worth of the sessions: 0.1 · 0.5, 1, and none.
    p = 1 - np.exp(-np.array([0.5, 0.5, 0.5, 5.0, 0.0]))
    actions = np.array([[1, 0.5, 0, 0, 0], [1, 0, 0, 0, 1], [1, 0, 0, 0, 0], [1, 0, 0, 1, 0], [1, 1, 1, 1, 1]])
    found = contacts_per_week(p, 84, actions, CONTACTS)
    assert found == pytest.approx([1.0 * 0.05 / 0.5, 1.0, 0.0, 3.0, 0.0])
    assert contacts_per_week(np.array([1.0, 1.0]), 84, actions[1:3], CONTACTS) == pytest.approx([3.0, 0.0])


@given(st.floats(0, 40 * 24), st.integers(0, 30))
def test_answers_stand_for_the_nights_within_a_bin(hours: float, nights: int) -> None:
    model = FakeOutlook()
    edges_s, silence_s = [edge * 3600 for edge in EDGES_H], int(hours * 3600)

    def bin_of(seconds: int) -> int:
        return max(at for at, edge in enumerate(edges_s) if edge <= seconds)

    at = silence_s
    while at - c.DAY_S >= 0 and bin_of(at - c.DAY_S) == bin_of(silence_s):
        at -= c.DAY_S
    assert when_asked(np.array([silence_s], np.int32), model).tolist() == [at]
    last_us = np.array([AS_OF_US - silence_s * c.MICROS])
    moved = has_moved_on(last_us, AS_OF_US, AS_OF_US + nights * c.DAY_S * c.MICROS, model)[0]
    assert moved == (bin_of(silence_s) != bin_of(silence_s + nights * c.DAY_S))


def test_rows_tell_horizons_drift_best_hours_and_actions() -> None:
    shares = np.array([[[0, 0, 0.2, 0.3, 0.5], [0, 0, 0.6, 0.2, 0.2]], [[0, 0, 1, 0, 0], [0, 0, 0.25, 0.5, 0.25]]])
    touched = shares / 2
    hour = np.full((2, 168), 0.5 / 165)
    hour[0, [167, 3, 40]] = 0.2, 0.1, 0.2
    hour[1, [5, 6, 7]] = 0.1, 0.3, 0.2
    actions = [[0.9, 0.5, 0.0, 0.2, 0.1], [0.8, 0.4, 0.1, 0.3, 0.2]]
    model = Told(Said(np.tile(shares, (2, 1, 1)), np.tile(touched, (2, 1, 1)), np.tile(hour, (2, 1)), actions * 2))
    listed = [("d", 0.4, 0.2, "rising"), ("a", 0.3, 0.5, "fading")]
    scores = rows(
        score_row("u", listed),
        score_row("v", listed[1:]),
        score_row("popular", listed, by="popularity"),
        score_row("w"),
    )
    past = [[2, 2, 3, 4, 4, 4], [], [2], [4]]
    found = with_answers(scores, asked(1, 31, 1, 110, past=past), model, TOKENS, SHARES, SPEC).to_pylist()

    # It is Saturday, 00:00; after 110 hours it is asked what it was a day before, at 86 hours, the first of the bin.
    assert model.asked == ([120, 90, 120, 11], [3600, 31 * 3600, 3600, 86 * 3600])
    ahead = [[interest[c.DAYS_AHEAD] for interest in row[c.INTERESTS]] for row in found]
    assert [(e["days"], *map(pytest.approx, (e["share"], e["touched"]))) for e in ahead[0][0]] == [
        (1, 0.5, 0.25), (7, 0.2, 0.1),
    ]  # fmt: skip
    assert [e["share"] for e in ahead[0][1]] == pytest.approx([0.2, 0.6])
    assert [e["share"] for e in ahead[1][0]] == pytest.approx([1.0, 0.25])
    assert ahead[2] == [[], []]
    assert [interest[c.CATEGORY_ID] for interest in found[0][c.INTERESTS]] == ["d", "a"]

    # Past of u with two events of everyone's taste: (2 + 1) / 8, (1 + 0.5) / 8, (3 + 0.5) / 8; of v everyone's taste.
    before = [np.array([[3, 1.5, 3.5]]) / 8, SHARES[None, 2:]]
    wanted = [jensen_shannon_distance(before[at], shares[at : at + 1, 1, 2:])[0] for at in range(2)]
    assert [found[at][c.DRIFT] for at in range(2)] == pytest.approx(wanted, rel=1e-5)
    assert found[2][c.DRIFT] is None
    assert found[3][c.DRIFT] is not None

    assert [entry["hour"] for entry in found[0][c.BEST_HOURS]] == [40, 167, 3]  # ties: the earlier hour
    assert [entry["probability"] for entry in found[1][c.BEST_HOURS]] == pytest.approx([0.3, 0.2, 0.1])
    assert [entry["action"] for entry in found[1][c.NEXT_ACTIONS]] == list(c.ACTIONS)
    assert [entry["probability"] for entry in found[1][c.NEXT_ACTIONS]] == pytest.approx(actions[1])
    assert found[2][c.BEST_HOURS] == found[2][c.NEXT_ACTIONS] == []


@pytest.mark.parametrize(("drift_days", "horizon"), [(1, 0), (2, 1), (7, 1), (30, 1)])
def test_drift_takes_the_shortest_horizon_that_is_long_enough_else_the_longest(drift_days: int, horizon: int) -> None:
    shares = np.array([[[0, 0, 1.0, 0, 0], [0, 0, 0, 0, 1.0]]])
    spec = SPEC.model_copy(update={"drift_days": drift_days})
    said = with_answers(
        rows(score_row("u")), asked(1), Told(Said(shares, None, None, None)), TOKENS, SHARES, spec
    ).to_pylist()[0]
    wanted = jensen_shannon_distance(SHARES[None], shares[:, horizon])[0]
    assert said[c.DRIFT] == pytest.approx(wanted, rel=1e-5)


def test_pieces_of_any_size_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, listed = FakeOutlook(), [("d", 0.4, 0.2, "rising"), ("a", 0.3, 0.5, "fading")]
    given = [score_row(f"u{k}", listed[: k % 3], by="popularity" if k % 4 == 3 else "model") for k in range(11)]
    of = asked(*range(11), past=[[2] * (k % 4) for k in range(11)])
    tokens, shares = pa.array(["", "", "a", "b", "d", "e", "f"]), np.array([0, 0, 0.2, 0.2, 0.2, 0.2, 0.2])
    whole = with_answers(rows(*given), of, model, tokens, shares, SPEC)
    monkeypatch.setattr("features.outlook_columns._CELLS", 3 * 2 * len(tokens))
    pieces = with_answers(rows(*given), of, model, tokens, shares, SPEC)
    assert pieces.to_pylist() == whole.to_pylist()
    assert pieces[c.DRIFT].num_chunks == 4


def test_returns_and_contacts_are_told_where_their_heads_are() -> None:
    told = [{"action": action, "probability": float(action == "buy")} for action in c.ACTIONS]
    model = Told(Said(None, None, None, None), back=[[0.1, 1 - np.exp(-0.7)]] * 3)
    scores = rows(score_row("u", actions=told), score_row("v"), score_row("popular", by="popularity"))
    found = with_returns(scores, asked(1, 1, 1), model, SPEC).to_pylist()
    for row in found[:2]:
        assert [entry["hours"] for entry in row[c.BACK]] == [24, 168]
        assert [entry["probability"] for entry in row[c.BACK]] == pytest.approx([0.1, 1 - np.exp(-0.7)])
    assert [row[c.CONTACTS_PER_WEEK] for row in found] == [pytest.approx(0.7), None, None]
    assert found[2][c.BACK] == []
