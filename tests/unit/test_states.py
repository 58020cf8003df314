"""What is carried from night to night, against scoring everyone anew; through a scorer that sees any event misread."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features import columns as c
from features.contracts import ContractError
from features.scoring_spec import ScoringSpec
from features.states import Before, Run, Scored, score_share
from features.windows import gap_codes
from tests.outlook import FakeOutlook
from tests.spark.test_scoring import LENGTH, SPEC, FakeScorer, history, table

EDGES_S = (60, 1800)
CODE = 4  # of a silence longer than 1,800 s
MIDNIGHT = datetime(2024, 3, 2, tzinfo=UTC)
NIGHTS = 4

Event = tuple[int, int, int]  # time_us, item, category


class Windows(FakeScorer):
    """Reads whole contexts only, as a network without recurrence does."""

    is_recurrent = False

    def advance(self, channels: dict[str, Any], length: Any, state: Any) -> Any:
        return super().advance(channels, length, np.where(length[:, None] > 0, 0, state).astype(np.float32))


def as_of(night: int) -> datetime:
    return MIDNIGHT + timedelta(days=night)


def row(user: str, events: list[Event], night: int) -> dict[str, Any]:
    """A user's row of sequences_v1 as of a night."""
    events = sorted(events)
    last = events[-LENGTH:]
    made = history(user, [e[1] for e in last], [e[2] for e in last], sorted({e[1] for e in events}))
    time_us = np.array([e[0] for e in last])
    silence = round(as_of(night).timestamp()) * c.MICROS - time_us[-1:]
    hours = (time_us // 3_600_000_000 % 168 + 1).tolist() + [0] * (LENGTH - len(last))
    when = datetime.fromtimestamp(int(time_us[-1]) / c.MICROS, UTC)
    return {**made, c.HOUR: hours, c.NEXT_GAP: int(gap_codes(silence, EDGES_S)[0]), c.LAST_TIME: when}


def scored(
    rows: list[dict[str, Any]],
    night: int,
    before: Before | None = None,
    is_everyone: bool = True,
    scorer: FakeScorer | None = None,
    spec: ScoringSpec = SPEC,
) -> Scored:
    run = Run(as_of(night), "v7", session_gap_s=1800)
    return score_share(table(rows), before, is_everyone, scorer or FakeScorer(by_past=True), spec, run)


def left(of: Scored, night: int) -> Before:
    return Before(of.scores, of.states, as_of(night), f"night {night}")


def by_user(rows: pa.Table) -> dict[str, dict[str, Any]]:
    return {found[c.USER_ID]: found for found in rows.to_pylist()}


@st.composite
def lives(draw: Any) -> list[dict[str, list[Event]]]:
    """What is known of each user on each night: events come, some for an earlier day; now and then someone goes."""
    users, known, nights = [f"u{k}" for k in range(draw(st.integers(1, 6)))], {}, []
    for night in range(NIGHTS):
        for user in users:
            minutes = draw(st.lists(st.integers(0, 24 * 60 - 1), max_size=3)) if draw(st.booleans()) else []
            if draw(st.integers(0, 3)) == 0:
                minutes.append(24 * 60 - draw(st.integers(1, 45)))  # near midnight: the session may be open
            back = draw(st.integers(0, 2)) if night else 0
            day_us = round((as_of(night) - timedelta(days=1 + back)).timestamp()) * c.MICROS
            events = [(day_us + minute * 60 * c.MICROS, 2 + minute % 5, 2 + minute % 4) for minute in minutes]
            known[user] = sorted({*known.get(user, []), *events})
        if draw(st.integers(0, 9)) == 0:
            known[draw(st.sampled_from(users))] = []
        nights.append({user: list(events) for user, events in known.items()})
    return nights


def silent(events: list[Event], night: int) -> bool:
    return round(as_of(night).timestamp()) * c.MICROS - events[-1][0] > 1800 * c.MICROS


@settings(max_examples=150)
@given(
    nights=lives(),
    anchor_events=st.integers(1, LENGTH),
    seen=st.sampled_from(["keep", "remove"]),
    kind=st.sampled_from([FakeScorer, Windows]),
    outlook=st.sampled_from([None, FakeOutlook(), FakeOutlook(heads=("interests", "actions")), FakeOutlook(("back",))]),
    layered=st.lists(st.booleans(), min_size=NIGHTS, max_size=NIGHTS),
)
def test_carried_nights_equal_full_ones(
    nights: list[dict[str, list[Event]]],
    anchor_events: int,
    seen: str,
    kind: type[FakeScorer],
    outlook: FakeOutlook | None,
    layered: list[bool],
) -> None:
    spec = SPEC.model_copy(update={"anchor_events": anchor_events, "seen_items": seen})
    before: Before | None = None
    for night, known in enumerate(nights):
        rows = {user: row(user, events, night) for user, events in known.items() if events}
        full = scored(list(rows.values()), night, scorer=kind(by_past=True, outlook=outlook), spec=spec)
        came, is_everyone = list(rows.values()), True
        if before is not None and layered[night]:  # the rows of a layer: who changed, who fell silent, who has gone
            earlier, is_everyone = nights[night - 1], False
            changed = [u for u in known if known[u] != earlier.get(u, [])]
            fell_silent = [
                u for u in rows if u not in changed and silent(known[u], night) != silent(known[u], night - 1)
            ]
            nothing = {**history("", [1], [1]), c.LENGTH: 0}
            came = [rows.get(u, {**nothing, c.USER_ID: u}) for u in changed + fell_silent]
        scorer = kind(by_past=True, outlook=outlook)
        found = scored(came, night, before, is_everyone, scorer, spec)
        assert by_user(found.scores) == by_user(full.scores)
        assert by_user(found.states) == by_user(full.states)
        counts = found.outcomes
        assert sum(counts[name] for name in ("carried", "asked_again", "advanced", "replayed")) == len(rows)
        n_before = len(before.scores) if before else 0
        assert n_before - counts["gone"] + counts["newcomers"] == len(rows)
        before = left(found, night)


def events_at(*minutes: int, day: int = 0) -> list[Event]:
    start = round((as_of(day) - timedelta(days=1)).timestamp()) * c.MICROS
    return [(start + minute * 60 * c.MICROS, 2 + minute % 5, 2) for minute in minutes]


def outcome(first: list[Event], then: list[Event], anchor_events: int = 1) -> tuple[str, int]:
    """What becomes of a user on the second night, and how many events are read for it."""
    spec = SPEC.model_copy(update={"anchor_events": anchor_events})
    scorer = FakeScorer(by_past=True)
    before = left(scored([row("u", first, 0)], 0, spec=spec), 0)
    counts = scored([row("u", then, 1)], 1, before, scorer=scorer, spec=spec).outcomes
    (name,) = [n for n in ("carried", "asked_again", "advanced", "replayed") if counts[n]]
    return name, scorer.n_read


def test_only_what_is_new_is_read() -> None:
    old = events_at(1, 5)
    assert outcome(old, old) == ("carried", 0)
    assert outcome(old, old + events_at(7, day=1)) == ("advanced", 1)
    assert outcome(events_at(24 * 60 - 10), events_at(24 * 60 - 10)) == ("asked_again", 0)  # the session has ended
    assert outcome(old, sorted(old + events_at(3))) == ("replayed", 3)  # late, before an event that was read
    assert outcome(old, events_at(1, 6)) == ("replayed", 2)  # another event than the one that was read
    assert outcome(events_at(1, 2, 3, 4), events_at(1, 2, 3, 4) + events_at(9, day=1)) == ("replayed", 4)


def test_an_anchor_lets_long_histories_be_carried() -> None:
    minutes = np.random.default_rng(1).permutation(600)[:150].tolist()
    found = [
        outcome(events_at(*range(at, at + 9)), events_at(*range(at, at + 9)) + events_at(7, day=1), 3) for at in minutes
    ]
    names = [name for name, _ in found]
    assert 0.3 < names.count("advanced") / len(names) < 0.7  # one of three positions leaves, one comes: about a half
    assert {n for name, n in found if name == "advanced"} == {1}


def test_a_silence_that_grows_is_asked_of_anew_in_each_of_its_bins_alone() -> None:
    before, n_asked, said = None, [], []
    for night in range(12):
        outlook, events = FakeOutlook(), events_at(60 * 12)
        rows = [row("u", events, 0)] if night == 0 else []
        scorer = FakeScorer(by_past=True, outlook=outlook)
        found = scored(rows, night, before, is_everyone=night == 0, scorer=scorer)
        full = scored([row("u", events, night)], night, scorer=FakeScorer(by_past=True, outlook=FakeOutlook()))
        assert found.scores.to_pylist() == full.scores.to_pylist()
        n_asked.append(outlook.n_asked)
        said.append(found.scores.drop([c.AS_OF]).to_pylist()[0])
        before = left(found, night)
    # Silent for 12, 36, 60, 84, … hours; bins start after 6, 30, 80 and 200 hours.
    assert n_asked == [1, 1, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0]
    for name in (c.DRIFT, c.BEST_HOURS, c.NEXT_ACTIONS):
        assert len({str(told[name]) for told in said}) == 4
    assert len({str(told[c.BACK]) for told in said}) == 12
    assert len({told[c.CONTACTS_PER_WEEK] for told in said}) == 11  # the first two are at the cap


def test_users_who_are_scored_in_another_order_keep_their_own_answers() -> None:
    spec = SPEC.model_copy(update={"seen_items": "remove"})
    users = [history("saw two", [2, 4], [2, 2]), history("saw none", [3], [4], seen=[]), history("saw one", [5], [3])]
    users = [{**user, c.LAST_TIME: as_of(-at)} for at, user in enumerate(users, start=1)]
    made = [
        scored(of, 0, scorer=FakeScorer(by_past=True, outlook=FakeOutlook()), spec=spec)
        for of in (users, *([user] for user in users))
    ]
    together, *alone = (by_user(of.scores) for of in made)
    assert list(together) != [user[c.USER_ID] for user in users]
    assert together == {name: row for of in alone for name, row in of.items()}


def changed(before: Before, **columns: Any) -> Before:
    states = before.states
    for name, values in columns.items():
        at = states.schema.get_field_index(name)
        states = states.set_column(at, states.schema.field(name), pa.array(values, states.schema.field(name).type))
    return replace(before, states=states)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({c.USER_ID: ["a", "c"]}, "its users are not those of the scores"),
        ({c.MODEL_VERSION: ["v7", "v6"]}, r"it holds states of \['v7', 'v6'\], not v7"),
        ({c.STATE: [b"1234", b"12345678"]}, "states are not of 12 bytes each, as the model v7 makes them"),
        ({c.STATE: [np.array([1, np.nan, 1], "<f4").tobytes()] * 2}, "it holds numbers that are none"),
        ({c.N_EVENTS: [1, LENGTH + 1]}, f"or of events outside 1 to {LENGTH}"),
        ({c.PAST_CATEGORIES: [[2], [7]]}, "past_categories holds ids that are none of the 7 known"),
    ],
)
def test_damaged_states_are_refused(columns: dict[str, Any], said: str) -> None:
    rows = [row(user, events_at(3), 0) for user in ("a", "b")]
    before = left(scored(rows, 0), 0)
    with pytest.raises(ContractError, match=f"^night 0 can't be carried on: .*{said}.*--full"):
        scored(rows, 1, changed(before, **columns))


def test_a_user_who_fell_silent_without_a_row_is_a_defect() -> None:
    before = left(scored([row("a", events_at(24 * 60 - 10), 0)], 0), 0)
    with pytest.raises(ContractError, match="the session of user a has ended since"):
        scored([], 1, before, is_everyone=False)
