"""Interests and items of users of whom the model knows nothing, from what the last days say of them.

Each list is a mixture of what is near the user's own items, what is popular in the user's categories and what everyone
does, each level with 1 - back_off of what those above leave: Jelinek & Mercer 1980, "Interpolated estimation of Markov
source parameters from sparse data". B rows.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from pyspark.sql.pandas.types import to_arrow_schema

from features import columns as c
from features.contracts import SCORES
from features.rungs import (
    CATEGORY_POPULARITY,
    COVISITATION,
    FROM_POPULARITY,
    LIKED_ITEMS,
    NEAR_CATEGORIES,
    NEAR_ITEMS,
    OWN_CATEGORIES,
    OWN_ITEMS,
    WEIGHT,
    Popular,
)
from features.scoring_spec import ScoringSpec
from features.trends import TRENDS, past_shares, trend_codes

_SCHEMA = to_arrow_schema(SCORES.schema)

Fallback = Mapping[str, Any]
Shares = dict[str, float]


class FallbackRows(NamedTuple):
    """Columns of scores_v1 for B users."""

    provenance: pa.Array
    interests: pa.ListArray
    items: pa.ListArray


def rows_of(known: Sequence[Fallback], popular: Popular, spec: ScoringSpec) -> FallbackRows:
    """Rows for users of whom `known` says what FALLBACK_TYPE holds."""
    return FallbackRows(
        pa.array([rung_of(one) for one in known], pa.string()),
        pa.array([_interests(one, popular, spec) for one in known], _SCHEMA.field(c.INTERESTS).type),
        pa.array([_items(one, popular, spec) for one in known], _SCHEMA.field(c.ITEMS).type),
    )


def rung_of(known: Fallback) -> str:
    """The highest rung that has something to say of the user's items."""
    if known[NEAR_ITEMS]:
        return COVISITATION
    return CATEGORY_POPULARITY if known[LIKED_ITEMS] else FROM_POPULARITY


def mixture(levels: Sequence[Shares], back_off: float) -> Shares:
    """Levels that are not empty, best first, each with 1 - back_off of what is left, the last with all of it."""
    told = [level for level in levels if level]
    mixed: Shares = {}
    left = 1.0
    for number, level in enumerate(told, 1):
        weight = left if number == len(told) else left * (1 - back_off)
        left -= weight
        for token, share in level.items():
            mixed[token] = mixed.get(token, 0.0) + weight * share
    return mixed


def _items(known: Fallback, popular: Popular, spec: ScoringSpec) -> list[dict[str, Any]]:
    near = _normalised(_shares(known[NEAR_ITEMS], c.ITEM_ID))
    mixed = mixture((near, _shares(known[LIKED_ITEMS], c.ITEM_ID), dict(popular.items)), spec.fallback.back_off)
    own = set(known[OWN_ITEMS]) if spec.seen_items == "remove" else set()
    best = [(token, share) for token, share in _falling(mixed) if token not in own][: spec.top_k_items]
    return [{c.ITEM_ID: token, c.PROBABILITY: share} for token, share in best]


def _interests(known: Fallback, popular: Popular, spec: ScoringSpec) -> list[dict[str, Any]]:
    """The likeliest categories: the user's own, else those of near items, as events beside everyone's taste."""
    own = _shares(known[OWN_CATEGORIES], c.CATEGORY_ID)
    near = _normalised(_shares(known[NEAR_CATEGORIES], c.CATEGORY_ID))
    expected = own or {token: share * len(known[OWN_ITEMS]) for token, share in near.items()}
    everyone = dict(popular.categories)
    tokens = sorted({*expected, *everyone})
    if not tokens:
        return []
    share, counts, said = (
        np.array([[of.get(token, 0.0) for token in tokens]]) for of in (everyone, own, expected)
    )  # [1, V]
    smoothing = spec.past_smoothing_events
    past = past_shares(counts, counts.sum(axis=1, keepdims=True), share, smoothing)
    p = past_shares(said, said.sum(axis=1, keepdims=True), share, smoothing)
    trends = trend_codes(
        p,
        past,
        counts,
        counts.sum(axis=1, keepdims=True),
        spec.new_probability_floor,
        spec.rising_ratio,
        spec.fading_ratio,
    )
    order = np.argsort(-p[0], kind="stable")[: spec.top_k_interests]
    return [
        {
            c.CATEGORY_ID: tokens[at],
            c.PROBABILITY: float(p[0, at]),
            c.PAST_SHARE: float(past[0, at]),
            c.MOVE: float(p[0, at] - past[0, at]),
            c.TREND: TRENDS[int(trends[0, at])],
            c.DAYS_AHEAD: [],
        }
        for at in order
    ]


def _shares(listed: Sequence[Mapping[str, Any]], token: str) -> Shares:
    return {entry[token]: float(entry[WEIGHT]) for entry in listed}


def _normalised(weights: Shares) -> Shares:
    total = sum(weights.values())
    return {token: weight / total for token, weight in weights.items()}


def _falling(shares: Shares) -> list[tuple[str, float]]:
    return sorted(shares.items(), key=lambda entry: (-entry[1], entry[0]))
