"""A few users in words: what they were interested in, and what they will be."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from features import columns as c
from features.contracts import SCORES, SEQUENCES, VOCABULARY
from features.rungs import BY_MODEL
from features.trends import FADING, NEW, RISING, STEADY, TRENDS
from jobs.encoded import vocabulary_of
from jobs.layers import read_sequences
from jobs.store import Store

_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_SHOWN = 3  # interests on either side of the arrow


def users_in_words(spark: SparkSession, store: Store, date: date, n_users: int) -> list[str]:
    """One line for each of `n_users` users whose interests moved most, always the same ones for the same scores."""
    moved = most_moved(store.read(spark, SCORES, date, "jobs/score.py")).limit(n_users).collect()
    users = [row[c.USER_ID] for row in moved]
    sequences = read_sequences(spark, store, date).where(F.col(c.USER_ID).isin(users))
    past = {row[c.USER_ID]: row[c.CATEGORY] for row in sequences.select(c.USER_ID, c.CATEGORY).collect()}
    ids = sorted({category for channel in past.values() for category in channel})
    day, _ = vocabulary_of(store.manifest(SEQUENCES.name, date, "jobs/sequences.py"))
    vocabulary = store.read(spark, VOCABULARY, day, "jobs/vocabulary.py")
    named = vocabulary.where((F.col(c.KIND) == c.KIND_CATEGORY) & F.col(c.ID).isin(ids)).select(c.ID, c.TOKEN).collect()
    tokens = {row[c.ID]: row[c.TOKEN] for row in named}
    return [
        in_words(row[c.USER_ID], [tokens[i] for i in past[row[c.USER_ID]] if i in tokens], row[c.INTERESTS])
        + days_ahead_in_words(row.asDict(recursive=True))
        for row in moved
    ]


def most_moved(scores: DataFrame) -> DataFrame:
    """Scores by the model, those first that hold both a growing and a fading interest, then by the largest move."""

    def any_of(*codes: int) -> Column:
        return F.exists(c.INTERESTS, lambda interest: interest[c.TREND].isin([TRENDS[code] for code in codes]))

    def move(interest: Column) -> Column:
        return F.abs(interest[c.PROBABILITY] - interest[c.PAST_SHARE])

    both = any_of(NEW, RISING) & any_of(FADING)
    largest = F.array_max(F.transform(c.INTERESTS, move))
    return scores.where(F.col(c.PROVENANCE).isin(*BY_MODEL)).orderBy(both.desc(), largest.desc(), c.USER_ID)


def in_words(user: str, past: Sequence[str], interests: Sequence[Mapping[str, Any]]) -> str:
    """The user's past categories, oldest first, and scored interests as one sentence."""
    counts = sorted(Counter(past).items(), key=lambda entry: (-entry[1], entry[0]))[:_SHOWN]
    was = ", ".join(f"{token} ({_percent(n / len(past))})" for token, n in counts) or "nothing known"
    will = ", ".join(
        f"{interest[c.CATEGORY_ID]} ({_percent(interest[c.PROBABILITY])}{_trend(interest)})"
        for interest in interests[:_SHOWN]
    )
    fading = [
        f"{interest[c.CATEGORY_ID]} ({_percent(interest[c.PAST_SHARE])} → {_percent(interest[c.PROBABILITY])})"
        for interest in interests[_SHOWN:]
        if interest[c.TREND] == TRENDS[FADING]
    ]
    also = f"; fading: {', '.join(fading[:_SHOWN])}" if fading else ""
    return f"{user}, {len(past)} latest events: was interested in {was} → will be interested in {will}{also}"


def days_ahead_in_words(row: Mapping[str, Any]) -> str:
    """What a row of scores says of the days ahead, to be put behind `in_words`; empty where it says nothing."""
    parts = []
    if row[c.BACK]:
        told = ", ".join(f"{_span(entry[c.HOURS])} {_percent(entry[c.PROBABILITY])}" for entry in row[c.BACK])
        parts.append(f"back within {told}")
    if row[c.BEST_HOURS]:
        hour = row[c.BEST_HOURS][0][c.HOUR]
        parts.append(f"most likely on {_WEEKDAYS[hour // 24]} at {hour % 24} h UTC")
    holds = [entry for entry in row[c.NEXT_ACTIONS] if entry[c.ACTION] == c.ACTIONS[-1]]
    if holds:
        parts.append(f"{holds[0][c.ACTION]} {_percent(holds[0][c.PROBABILITY])}")
    if row[c.CONTACTS_PER_WEEK] is not None:
        parts.append(f"{row[c.CONTACTS_PER_WEEK]:.1f} contacts a week")
    if row[c.DRIFT] is not None:
        parts.append(f"drift {row[c.DRIFT]:.2f}")
    return f"; {', '.join(parts)}" if parts else ""


def _span(hours: int) -> str:
    return f"{hours // 24} d" if hours % 24 == 0 else f"{hours} h"


def _trend(interest: Mapping[str, Any]) -> str:
    return "" if interest[c.TREND] == TRENDS[STEADY] else f", {interest[c.TREND]}"


def _percent(share: float) -> str:
    return f"{share * 100:.0f} %" if share >= 0.1 else f"{share * 100:.1f} %"
