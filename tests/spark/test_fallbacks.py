"""What the last days say of users unknown to the model, against a slow count."""

from collections import defaultdict
from datetime import UTC, datetime, timedelta
from itertools import product
from math import sqrt
from typing import Any

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession

from features import columns as c
from features.contracts import SESSIONS
from features.fallbacks import FallbackSpec, fallbacks, popular, recent_events
from features.rungs import FALLBACK, LIKED_ITEMS, NEAR_CATEGORIES, NEAR_ITEMS, OWN_CATEGORIES, OWN_ITEMS, WEIGHT

SPEC = FallbackSpec(recent_days=7, neighbours=3, least_users=2, session_items=5, back_off=0.1)
UNKNOWN = ("u0", "u1", "nobody")
MANY = 1_000

Event = tuple[str, str, str, str | None]  # user, session, item, category


@pytest.fixture(scope="module")
def events() -> list[Event]:
    random = np.random.default_rng(3)
    found: list[Event] = []
    for user, number in product(range(12), range(4)):
        for item in random.integers(0, 9, random.integers(1, 9)).tolist():
            category = None if item == 8 else f"c{item % 3 if random.random() < 0.9 else 3}"
            found.append((f"u{user}", f"u{user}-s{number}", f"i{item}", category))
    return found


@pytest.fixture(scope="module")
def frame(spark: SparkSession, events: list[Event]) -> DataFrame:
    return spark.createDataFrame(
        events, f"{c.USER_ID} string, {c.SESSION_ID} string, {c.ITEM_ID} string, {c.CATEGORY_ID} string"
    ).repartition(3)


def found(spark: SparkSession, frame: DataFrame, spec: FallbackSpec = SPEC, k_items: int = MANY) -> dict[str, Any]:
    users = spark.createDataFrame([(user,) for user in UNKNOWN], f"{c.USER_ID} string")
    rows = fallbacks(users, frame, spec, k_items).collect()
    assert len(rows) == len(UNKNOWN)
    return {row[c.USER_ID]: row[FALLBACK].asDict(recursive=True) for row in rows}


def weights(listed: list[dict[str, Any]], token: str) -> dict[str, float]:
    """The list as a dictionary, once its order is seen to be right."""
    assert listed == sorted(listed, key=lambda entry: (-entry[WEIGHT], entry[token]))
    return {entry[token]: entry[WEIGHT] for entry in listed}


def near_items(events: list[Event], user: str, spec: FallbackSpec) -> dict[str, float]:
    baskets: dict[str, set[str]] = defaultdict(set)
    users_of: dict[str, set[str]] = defaultdict(set)
    for who, session, item, _ in events:
        baskets[session].add(item)
        users_of[item].add(who)
    owner = {session: who for who, session, _, _ in events}
    votes: dict[str, float] = defaultdict(float)
    for mine in {item for who, _, item, _ in events if who == user}:
        similar = {}
        for other in users_of:
            both = {
                owner[s] for s, items in baskets.items() if len(items) <= spec.session_items and {mine, other} <= items
            }
            if other != mine and len(both) >= spec.least_users:
                similar[other] = len(both) / sqrt(len(users_of[mine]) * len(users_of[other]))
        for other in sorted(similar, key=lambda item: (-similar[item], item))[: spec.neighbours]:
            votes[other] += similar[other]
    return dict(votes)


def test_what_is_known_is_that_of_a_slow_count(spark: SparkSession, frame: DataFrame, events: list[Event]) -> None:
    for user, row in found(spark, frame).items():
        own = [event for event in events if event[0] == user]
        assert row[OWN_ITEMS] == sorted({item for _, _, item, _ in own})
        categories = [category for *_, category in own if category]
        counts = {category: float(categories.count(category)) for category in categories}
        assert weights(row[OWN_CATEGORIES], c.CATEGORY_ID) == counts
        near = near_items(events, user, SPEC)
        assert weights(row[NEAR_ITEMS], c.ITEM_ID) == pytest.approx(near, abs=1e-8)
        assert (user == "nobody") == (not near)

        main = {}
        for item in near:
            of_item = [category for _, _, it, category in events if it == item and category]
            if of_item:
                main[item] = max(of_item, key=lambda one: (of_item.count(one), one))
        expected: dict[str, float] = defaultdict(float)
        for item, category in main.items():
            expected[category] += near[item]
        assert weights(row[NEAR_CATEGORIES], c.CATEGORY_ID) == pytest.approx(dict(expected), abs=1e-8)

        liked: dict[str, float] = defaultdict(float)
        for category, count in counts.items():
            pairs = {(who, item) for who, _, item, of in events if of == category}
            for _, item in pairs:
                liked[item] += count / len(categories) / len(pairs)
        assert weights(row[LIKED_ITEMS], c.ITEM_ID) == pytest.approx(dict(liked), abs=1e-8)


def test_lists_are_cut_and_long_sessions_left_out(spark: SparkSession, frame: DataFrame, events: list[Event]) -> None:
    whole, cut = found(spark, frame)["u0"], found(spark, frame, k_items=2)["u0"]
    for name in (OWN_CATEGORIES, NEAR_ITEMS, NEAR_CATEGORIES):
        assert cut[name] == whole[name][:2]
    longer = SPEC.model_copy(update={"session_items": 9})
    assert near_items(events, "u0", longer) != near_items(events, "u0", SPEC)
    assert weights(found(spark, frame, longer)["u0"][NEAR_ITEMS], c.ITEM_ID) == pytest.approx(
        near_items(events, "u0", longer), abs=1e-8
    )


def test_popular_tokens_have_shares_of_the_events(frame: DataFrame, events: list[Event]) -> None:
    said = popular(frame, 3, MANY)
    n = {item: sum(event[2] == item for event in events) for item in {event[2] for event in events}}
    best = sorted(n, key=lambda item: (-n[item], item))[:3]
    assert said.items == tuple((item, pytest.approx(n[item] / len(events))) for item in best)
    assert sum(share for _, share in said.categories) == pytest.approx(1.0)


def test_events_outside_the_days_are_not_looked_at(spark: SparkSession) -> None:
    start = datetime(2024, 3, 1, tzinfo=UTC)
    at = [start - timedelta(seconds=1), start, start + timedelta(days=1, seconds=-1), start + timedelta(days=1)]
    one = [
        {"event_id": n, "event_time": time, "item_id": f"i{n}", "category_id": None, "action": "view", "dwell_s": None}
        for n, time in enumerate(at)
    ]
    row = dict.fromkeys(SESSIONS.schema.names) | {
        c.USER_ID: "u", c.SESSION_ID: "s", c.SESSION_START: at[0], c.SESSION_END: at[-1], c.N_EVENTS: 4, c.EVENTS: one,
    }  # fmt: skip
    sessions = spark.createDataFrame([row], SESSIONS.schema)
    since, until = (int((start + timedelta(days=days)).timestamp()) * c.MICROS for days in (0, 1))
    assert [event[c.ITEM_ID] for event in recent_events(sessions, since, until).collect()] == ["i1", "i2"]
