"""Views of a day's scores for readers who want less than a row: one line an item, those who move most, and means."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import to_arrow_schema

from features import columns as c
from features.contracts import DRIFT, SCORES_EXPLODED, conform

EXPLODED_ARROW = to_arrow_schema(SCORES_EXPLODED.schema)
DRIFT_ARROW = to_arrow_schema(DRIFT.schema)
BACK_HOURS = "back_hours"  # the longest time of `back`
_OF_INTEREST = (c.CATEGORY_ID, c.PROBABILITY, c.PAST_SHARE, c.TREND)


def exploded(scores: pa.Table) -> pa.Table:
    """Rows of scores_exploded_v1: each user's items in their order, ranks from 1."""
    items = scores[c.ITEMS].combine_chunks()
    sizes = pc.list_value_length(items).to_numpy()
    first = np.repeat(np.cumsum(sizes) - sizes, sizes)
    listed = items.flatten()
    columns = {
        c.USER_ID: scores[c.USER_ID].take(pa.array(np.repeat(np.arange(len(scores)), sizes))),
        c.RANK: pa.array((np.arange(len(listed)) - first + 1).astype(np.int32)),
        c.ITEM_ID: pc.struct_field(listed, c.ITEM_ID),
        c.SCORE: pc.struct_field(listed, c.PROBABILITY),
    }
    return pa.table([columns[name] for name in EXPLODED_ARROW.names], schema=EXPLODED_ARROW)


def most_drifted(scores: pa.Table, n_users: int) -> pa.Table:
    """Rows of drift_v1 of these users alone: the greatest drift first, ties by user_id; ranks from 1."""
    scores = scores.filter(pc.is_valid(scores[c.DRIFT]))
    keys = scores.select([c.USER_ID, c.DRIFT])
    order = pc.sort_indices(keys, sort_keys=[(c.DRIFT, "descending"), (c.USER_ID, "ascending")])[:n_users]
    scores = scores.take(order).combine_chunks()
    interests = scores[c.INTERESTS].combine_chunks() if len(scores) else pa.array([], scores[c.INTERESTS].type)
    place = _largest_move(interests)
    columns = {
        **{name: scores[name] for name in (c.USER_ID, c.AS_OF, c.MODEL_VERSION, c.DRIFT)},
        c.RANK: pa.array(np.arange(1, len(scores) + 1, dtype=np.int32)),
        **{name: pc.struct_field(interests.flatten(), name).take(place) for name in _OF_INTEREST},
    }
    return pa.table([columns[name] for name in DRIFT_ARROW.names], schema=DRIFT_ARROW)


def _largest_move(interests: pa.ListArray) -> pa.Array:
    """Of each list the place of the interest with the greatest |move|, the first of equal ones; null in an empty list.

    Places count through all lists.
    """
    sizes = pc.list_value_length(interests).to_numpy(zero_copy_only=False)
    row = np.repeat(np.arange(len(sizes)), sizes)
    move = np.abs(pc.struct_field(interests.flatten(), c.MOVE).to_numpy(zero_copy_only=False))
    order = np.lexsort((np.arange(len(row)), -move, row))
    first = np.minimum(np.cumsum(sizes) - sizes, max(len(row) - 1, 0)).astype(np.int64)
    place = order[first] if len(row) else first
    return pa.array(place, mask=sizes == 0)


def outlook_sums(scores: pa.Table) -> dict[str, float]:
    """Rows that tell each of drift, return (within the longest time) and contacts, and the sums over them."""
    back = pc.list_flatten(scores[c.BACK])
    returns = within_h = np.zeros(0)
    if len(back):
        n_times = int(pc.max(pc.list_value_length(scores[c.BACK])).as_py())  # the same in every row that tells it
        returns, within_h = (
            pc.struct_field(back, name).to_numpy().reshape(-1, n_times)[:, -1] for name in (c.PROBABILITY, c.HOURS)
        )
    told = {c.BACK: returns, BACK_HOURS: within_h}
    told |= {name: scores[name].drop_null().to_numpy() for name in (c.DRIFT, c.CONTACTS_PER_WEEK)}
    counted = {f"{name}_rows": float(len(values)) for name, values in told.items()}
    return counted | {f"{name}_sum": float(values.sum(dtype=np.float64)) for name, values in told.items()}


def outlook_means(sums: Mapping[str, float]) -> dict[str, float]:
    """Means of what rows tell, of the sums over all of them, to four digits."""
    names = (name for name in (c.DRIFT, c.BACK, BACK_HOURS, c.CONTACTS_PER_WEEK) if sums.get(f"{name}_rows"))
    return {f"mean_{name}": round(sums[f"{name}_sum"] / sums[f"{name}_rows"], 4) for name in names}


def merged(candidates: DataFrame, n_users: int) -> DataFrame:
    """drift_v1 of all users from that of shares of them, each with its own `n_users` at least or all it has."""
    top = candidates.orderBy(F.desc(c.DRIFT), c.USER_ID).limit(n_users)
    ordered = F.struct((-F.col(c.DRIFT)).alias("order"), *(F.col(name) for name in DRIFT.schema.names))
    listed = top.agg(F.sort_array(F.collect_list(ordered)).alias("rows"))
    ranked = listed.select(F.posexplode("rows").alias("place", "row"))
    names = [name for name in DRIFT.schema.names if name != c.RANK]
    rank = (F.col("place") + 1).cast("int").alias(c.RANK)
    return conform(ranked.select(rank, *(F.col(f"row.{name}") for name in names)), DRIFT)
