"""Rows of users of whom the model knows nothing, by hand."""

from typing import Any

import pytest

from features import columns as c
from features.fallback_rows import mixture, rows_of, rung_of
from features.rungs import LIKED_ITEMS, NEAR_CATEGORIES, NEAR_ITEMS, OWN_CATEGORIES, OWN_ITEMS, WEIGHT, Popular
from features.scoring_spec import ScoringSpec
from tests.spark.test_scoring import SPEC

POPULAR = Popular((("hit", 0.5), ("mine", 0.3), ("other", 0.2)), (("news", 0.6), ("sport", 0.4)))


def known(
    own: list[str] = [],  # noqa: B006 — never changed
    categories: dict[str, float] | None = None,
    near: dict[str, float] | None = None,
    near_categories: dict[str, float] | None = None,
    liked: dict[str, float] | None = None,
) -> dict[str, Any]:
    def listed(token: str, weights: dict[str, float] | None) -> list[dict[str, Any]]:
        return [{token: name, WEIGHT: weight} for name, weight in (weights or {}).items()]

    return {
        OWN_ITEMS: own,
        OWN_CATEGORIES: listed(c.CATEGORY_ID, categories),
        NEAR_ITEMS: listed(c.ITEM_ID, near),
        NEAR_CATEGORIES: listed(c.CATEGORY_ID, near_categories),
        LIKED_ITEMS: listed(c.ITEM_ID, liked),
    }


def row(user: dict[str, Any], **over: Any) -> tuple[str, list[dict[str, Any]], dict[str, float]]:
    found = rows_of([user], POPULAR, ScoringSpec.model_validate({**SPEC.model_dump(), **over}))
    items = {item[c.ITEM_ID]: item[c.PROBABILITY] for item in found.items[0].as_py()}
    return found.provenance[0].as_py(), found.interests[0].as_py(), items


def test_each_level_leaves_the_rest_to_those_below_it() -> None:
    assert mixture(({"a": 1.0}, {"b": 1.0}, {"c": 1.0}), 0.1) == pytest.approx({"a": 0.9, "b": 0.09, "c": 0.01})
    assert mixture(({}, {"a": 0.5, "b": 0.5}, {"b": 1.0}), 0.2) == pytest.approx({"a": 0.4, "b": 0.6})
    assert mixture(({}, {}, {"c": 0.7}), 0.1) == pytest.approx({"c": 0.7})


def test_the_highest_rung_that_says_something_is_named() -> None:
    assert rung_of(known(near={"x": 0.1}, liked={"y": 1.0})) == "covisitation"
    assert rung_of(known(liked={"y": 1.0})) == "category_popularity"
    assert rung_of(known(own=["mine"])) == "popularity"


def test_items_near_the_users_own_come_first_and_popular_ones_fill_the_list() -> None:
    rung, _, items = row(known(["mine"], near={"x": 3.0, "y": 1.0}, liked={"z": 1.0}), top_k_items=6)
    assert rung == "covisitation"
    assert items == pytest.approx(
        {"x": 0.9 * 0.75, "y": 0.9 * 0.25, "z": 0.09, "hit": 0.005, "mine": 0.003, "other": 0.002}
    )
    assert list(items) == ["x", "y", "z", "hit", "mine", "other"]


def test_own_items_are_removed_where_seen_ones_are() -> None:
    user = known(["mine", "x"], near={"x": 1.0})
    assert list(row(user, seen_items="keep")[2]) == ["x", "hit", "mine"]
    assert list(row(user, seen_items="remove")[2]) == ["hit", "other"]


def test_interests_are_the_users_own_beside_everyones_taste() -> None:
    _, interests, _ = row(known(["mine"], {"sport": 2.0, "chess": 1.0}), top_k_interests=3)
    # Smoothed by one event: sport (2 + 0.4) / 4, chess 1 / 4, news 0.6 / 4.
    assert {i[c.CATEGORY_ID]: i[c.PROBABILITY] for i in interests} == pytest.approx(
        {"sport": 0.6, "chess": 0.25, "news": 0.15}
    )
    assert [i[c.MOVE] for i in interests] == [0.0, 0.0, 0.0]
    assert {i[c.TREND] for i in interests} == {"steady", "new"}  # news was never met


def test_without_categories_of_ones_own_those_of_near_items_stand_in() -> None:
    _, interests, _ = row(known(["a", "b"], near={"x": 1.0}, near_categories={"chess": 3.0, "sport": 1.0}))
    # Two events of the user, three quarters of them chess: (1.5 + 0) / 3 and (0.5 + 0.4) / 3.
    assert {i[c.CATEGORY_ID]: i[c.PROBABILITY] for i in interests} == pytest.approx({"chess": 0.5, "sport": 0.3})
    assert interests[0][c.PAST_SHARE] == 0.0


def test_someone_without_anything_gets_what_everyone_does() -> None:
    rung, interests, items = row(known())
    assert (rung, list(items)) == ("popularity", ["hit", "mine", "other"])
    assert {i[c.CATEGORY_ID]: i[c.PROBABILITY] for i in interests} == pytest.approx({"news": 0.6, "sport": 0.4})
