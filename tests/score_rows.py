"""Rows of scores_v1 for tests, given by what matters to them."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from features import columns as c

AS_OF = datetime(2024, 3, 2, tzinfo=UTC)

Interest = tuple[str, float, float, str]  # category, probability, past share, trend


def score_row(
    user: str,
    interests: Sequence[Interest] = (),
    items: Sequence[tuple[str, float]] = (),
    by: str = "model",
    **columns: Any,
) -> dict[str, Any]:
    """A row that says nothing of the days ahead, but for `columns`."""
    return {
        c.USER_ID: user,
        c.AS_OF: AS_OF,
        c.MODEL_VERSION: "v",
        c.PROVENANCE: by,
        c.INTERESTS: [
            {
                c.CATEGORY_ID: token,
                c.PROBABILITY: p,
                c.PAST_SHARE: past,
                c.MOVE: p - past,
                c.TREND: trend,
                c.DAYS_AHEAD: [],
            }
            for token, p, past, trend in interests
        ],
        c.ITEMS: [{c.ITEM_ID: item, c.PROBABILITY: p} for item, p in items],
        c.DRIFT: None,
        c.BACK: [],
        c.BEST_HOURS: [],
        c.NEXT_ACTIONS: [],
        c.CONTACTS_PER_WEEK: None,
        **columns,
    }
