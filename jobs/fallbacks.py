"""Fallbacks of a run of scoring: what the last days say of users of whom the model knows nothing."""

from collections.abc import Sequence
from datetime import date, timedelta
from typing import NamedTuple

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from features import columns as c
from features.contracts import OPEN_SESSIONS, SCORES, SESSIONS
from features.fallbacks import fallbacks, popular, recent_events
from features.rungs import BY_MODEL, Popular
from features.scoring_spec import ScoringSpec
from jobs.cli import say
from jobs.history import session_chain
from jobs.layers import unknown_users
from jobs.store import Manifest, Store
from jobs.user_states import Carry, as_of

_MADE_BY = "jobs/sessionize.py"
_SPARE_ITEMS = 100  # of the popular ones, for those that a user has met


class Fallbacks(NamedTuple):
    """(user_id, fallback) of every user of whom the model knows nothing, perhaps of others too, and what is popular."""

    users: DataFrame
    popular: Popular


def below_the_model(spark: SparkSession, store: Store, carry: Carry | None) -> DataFrame | None:
    """user_id of those whose carried scores are not the model's, who are scored anew each night; None: nobody."""
    if carry is None or carry.scores.rows == sum(int(carry.scores.counters[f"from_{name}"]) for name in BY_MODEL):
        return None
    scores = store.read(spark, SCORES, date.fromisoformat(carry.day), "jobs/score.py")
    return scores.where(~F.col(c.PROVENANCE).isin(*BY_MODEL)).select(c.USER_ID)


def fallbacks_of(
    spark: SparkSession,
    store: Store,
    dt: date,
    layers: Sequence[Manifest],
    always: DataFrame | None,
    sizes: tuple[int, int],
    spec: ScoringSpec,
) -> Fallbacks | None:
    """Fallbacks of a day's scores, or None where the model knows something of everyone, or the day has no sessions.

    layers: those whose rows are scored; always: users to be scored beside them; sizes: of the model's vocabularies.
    """
    users = unknown_users(spark, store, layers, *sizes)
    if always is not None:
        users = users.unionByName(always).distinct()
    if users.isEmpty():
        return None
    if str(dt) not in store.dates(SESSIONS.name):
        say(f"score: {SESSIONS.name} of {dt} is missing, so users unknown to the model get what its vocabulary counts")
        return None
    since = as_of(dt) - timedelta(days=spec.fallback.recent_days)
    # A session lies with the day that found its end, which is no earlier than that of its last event.
    days = [manifest.dt for manifest in session_chain(store, dt) if manifest.dt >= str(since.date())]
    paths = [store.path(SESSIONS.name, day) for day in days]
    sessions = spark.read.schema(SESSIONS.schema).parquet(*paths)
    sessions = sessions.unionByName(store.read(spark, OPEN_SESSIONS, dt, _MADE_BY))
    events = recent_events(sessions, int(since.timestamp()) * c.MICROS, int(as_of(dt).timestamp()) * c.MICROS)
    found = popular(events, spec.top_k_items + _SPARE_ITEMS, spec.interest_depth)
    return Fallbacks(fallbacks(users, events, spec.fallback, spec.top_k_items + _SPARE_ITEMS), found)
