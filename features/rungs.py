"""Rungs of the ladder on which every user finds scores, best first: where a row of scores_v1 comes from.

The network answers where it knows enough, or little, of a history; below lie answers for histories of nothing but items
and categories that are younger than it. docs/adr/0015 has the reasons.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pyspark.sql import types as T

from features import columns as c

FROM_MODEL, SHORT_HISTORY = "model", "short_history"
COVISITATION, CATEGORY_POPULARITY, FROM_POPULARITY = "covisitation", "category_popularity", "popularity"
RUNGS = (FROM_MODEL, SHORT_HISTORY, COVISITATION, CATEGORY_POPULARITY, FROM_POPULARITY)
BY_MODEL = (FROM_MODEL, SHORT_HISTORY)  # rows that the network scored, which it answers for

# What is known of a user of whom the model knows nothing, from the events of the last days: features/fallbacks.py
FALLBACK = "fallback"
OWN_ITEMS, OWN_CATEGORIES = "own_items", "own_categories"
NEAR_ITEMS, NEAR_CATEGORIES, LIKED_ITEMS = "near_items", "near_categories", "category_items"
WEIGHT = "weight"

Ids = NDArray[np.int32]


def weighted(token: str) -> T.ArrayType:
    """A list of tokens with weights, falling by weight, ties by token."""
    return T.ArrayType(T.StructType([T.StructField(token, T.StringType()), T.StructField(WEIGHT, T.DoubleType())]))


# Nothing in it is null; Arrow does not cast to a type that says so.
FALLBACK_TYPE = T.StructType(
    [
        T.StructField(OWN_ITEMS, T.ArrayType(T.StringType())),
        T.StructField(OWN_CATEGORIES, weighted(c.CATEGORY_ID)),
        T.StructField(NEAR_ITEMS, weighted(c.ITEM_ID)),
        T.StructField(NEAR_CATEGORIES, weighted(c.CATEGORY_ID)),
        T.StructField(LIKED_ITEMS, weighted(c.ITEM_ID)),
    ]
)


class Popular(NamedTuple):
    """Tokens of the last days with their shares of everyone's events, falling, ties by token."""

    items: tuple[tuple[str, float], ...]
    categories: tuple[tuple[str, float], ...]


def n_known(items: Ids, categories: Ids) -> NDArray[np.int64]:
    """Events of each row whose item or category the model knows; items, categories: [B, L] → [B]."""
    known: NDArray[np.int64] = ((items >= c.FIRST_ID) | (categories >= c.FIRST_ID)).sum(axis=1)
    return known
