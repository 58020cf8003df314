"""What a table of scores looks like as a whole: rows that say nothing, and the interests of the population."""

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from features import columns as c
from features.rungs import BY_MODEL

_HASH_PARTS = 1_000_000
MOST_CATEGORIES = 1000  # of the population's interests that are looked at; the others weigh next to nothing


def sample_of(rows: DataFrame, share: float) -> DataFrame:
    """The rows of a share 0..1 of the users, the same users in every table. rows: with user_id."""
    if share >= 1:
        return rows
    return rows.where(F.pmod(F.xxhash64(c.USER_ID), F.lit(_HASH_PARTS)) < F.lit(int(share * _HASH_PARTS)))


def degenerate_count(scores: DataFrame) -> DataFrame:
    """One row: rows, and degenerate ones of them. scores: `scores_v1`.

    A row is degenerate that lists nothing, a probability (of the days ahead, too) or drift that is no number or outside
    0..1, or several interests (of a user whom the model knows) that are all equally likely.
    """
    interests, items = F.col(c.INTERESTS), F.col(c.ITEMS)
    probabilities = F.transform(interests, lambda interest: interest[c.PROBABILITY])
    constant = (F.size(interests) > 1) & (F.array_max(probabilities) == F.array_min(probabilities))
    bad = (
        (F.size(interests) == 0)
        | (F.size(items) == 0)
        | F.exists(interests, lambda interest: _no_probability(interest[c.PROBABILITY]))
        | F.exists(items, lambda item: _no_probability(item[c.PROBABILITY]))
        | (F.col(c.PROVENANCE).isin(*BY_MODEL) & constant)
        | (F.col(c.DRIFT).isNotNull() & _no_probability(F.col(c.DRIFT)))
    )
    for name in (c.BACK, c.BEST_HOURS, c.NEXT_ACTIONS):
        bad |= F.exists(name, lambda entry: _no_probability(entry[c.PROBABILITY]))
    return scores.agg(F.count(F.lit(1)).alias("rows"), F.count(F.when(bad, 1)).alias("degenerate"))


def interest_mass(scores: DataFrame, k: int) -> DataFrame:
    """(category_id, mass): the probability of each category over the k likeliest interests of the users, summed.

    Users whom the model knows nothing of are left out. At most MOST_CATEGORIES, the heaviest.
    """
    known = scores.where(F.col(c.PROVENANCE).isin(*BY_MODEL))
    listed = known.select(F.explode(F.slice(c.INTERESTS, 1, k)).alias("interest"))
    mass = listed.groupBy(f"interest.{c.CATEGORY_ID}").agg(F.sum(f"interest.{c.PROBABILITY}").alias("mass"))
    return mass.orderBy(F.desc("mass"), c.CATEGORY_ID).limit(MOST_CATEGORIES)


def _no_probability(value: Column) -> Column:
    return value.isNull() | F.isnan(value) | (value < 0) | (value > 1)
