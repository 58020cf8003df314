"""What an explanation says in words and as JSON, and scores that the sessions of the day do not give."""

import json
import math
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from features import columns as c
from features.contracts import ContractError
from features.evolution import Month
from features.left_out import Effects
from jobs.explain import in_words
from jobs.explanations import EventEffect, Explanation, _check
from jobs.store import Store
from tests.score_rows import score_row

ROW = score_row("u1", [("c7", 0.4, 0.125, "rising")], [("i9", 0.05)])
EVENTS = (
    EventEffect("2024-05-30T10:00:00+00:00", "view", "i1", "c7", math.log(1.5), -0.01),
    EventEffect("2024-06-01T23:59:59+00:00", "buy", "i2", None, math.log(0.5), math.log(3.0)),
)
MONTHS = (
    Month("2024-05", 1, (("c7", 1.0),), (("c7", 0.5), ("c1", 0.25))),
    Month("2024-06", 12, (), (("c7", 0.4),)),
)


def told(events: tuple[EventEffect, ...] = EVENTS, by: str = "model") -> Explanation:
    interest, item = ROW[c.INTERESTS][0], ROW[c.ITEMS][0]
    return Explanation("u1", "2024-06-02T00:00:00+00:00", "v1", by, interest, item, events, MONTHS)


def test_the_text_names_the_events_that_moved_most_and_each_month() -> None:
    assert in_words(told()) == [
        "u1, as of 2024-06-02T00:00:00+00:00, by model, model v1",
        "Next interest: c7, 40 % (rising, 12 % of the past)",
        "Next item: i9, 5.0 %",
        "",
        "What moved the interest most, of the 2 events read:",
        "  2024-06-01 23:59  buy i2  × 0.50",
        "  2024-05-30 10:00  view i1 (c7)  × 1.50",
        "",
        "What moved the item most:",
        "  2024-06-01 23:59  buy i2  × 3.00",
        "  2024-05-30 10:00  view i1 (c7)  × 0.99",
        "  (× 2: without the event it would be half as likely. Effects need not add up.)",
        "",
        "Interests month by month: shares of the events → what the model expected next at the month's end",
        "  2024-05     1 event: c7 100 % → c7 50 %, c1 25 %",
        "  2024-06    12 events: nothing known → c7 40 %",
    ]


def test_what_has_no_effect_to_tell_is_said() -> None:
    assert "Not scored by the model, so no event of the user's moved the scores." in in_words(told((), "popularity"))
    lines = in_words(told((EventEffect("2024-06-01T23:59:59+00:00", "buy", "i2", None, None, None),)))
    assert "What moved the interest most, of the one event read: there is only one event, all that is known." in lines


def test_the_json_holds_everything_under_the_names_of_the_tables() -> None:
    found = json.loads(json.dumps(told().to_json()))
    assert found["events"][1] == {
        "event_time": "2024-06-01T23:59:59+00:00",
        "action": "buy",
        "item_id": "i2",
        "category_id": None,
        "interest_effect": math.log(0.5),
        "item_effect": math.log(3.0),
    }
    assert found["months"][0] == {
        "month": "2024-05",
        "events": 1,
        "shares": [{"category_id": "c7", "share": 1.0}],
        "expected": [{"category_id": "c7", "probability": 0.5}, {"category_id": "c1", "probability": 0.25}],
    }
    assert found["interest"]["probability"] == 0.4


def test_scores_that_the_sessions_do_not_give_are_not_explained(tmp_path: Path) -> None:
    store = Store(str(tmp_path))

    def given(item_p: float, category_p: float) -> Effects:
        return Effects(math.log(item_p), math.log(category_p), np.zeros(0, np.int64), np.zeros(0), np.zeros(0))

    _check(ROW, given(0.0501, 0.4), store, date(2024, 6, 1))
    for item_p, category_p, said in ((0.06, 0.4, "items of user u1 a probability of 0.05"), (0.05, 0.3, "interests")):
        with pytest.raises(ContractError, match=f"first of the {said}.*score the day again"):
            _check(ROW, given(item_p, category_p), store, date(2024, 6, 1))
