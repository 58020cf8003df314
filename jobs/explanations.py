"""Why a row of scores says what it says: the events behind it, and how the user's interests came there."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from features import columns as c
from features.contracts import SCORES, ContractError
from features.evolution import Month, months_of
from features.left_out import Coding, Effects, effects
from features.rungs import BY_MODEL
from features.scoring import Names, Scorer
from jobs.history import events_until
from jobs.published import bundle_of
from jobs.score import LoadBundle
from jobs.settings import Settings, UsageError
from jobs.store import Store
from jobs.user_states import as_of
from model.bundle import load_bundle

N_MONTHS, N_CATEGORIES = 12, 5
_TOLERANCE = 0.01  # of a log-probability; rounding is a hundred times smaller
_NAMED = 5  # users that an error names


@dataclass(frozen=True)
class EventEffect:
    """One event that the model read, and what it added to two log-probabilities; None where it is the only event."""

    event_time: str
    action: str
    item_id: str
    category_id: str | None
    interest_effect: float | None
    item_effect: float | None


@dataclass(frozen=True)
class Explanation:
    """One user's row explained. interest, item: the likeliest ones, as the row has them; None in an empty list.

    events: oldest first; empty where the row is not by the model, which then has nothing to explain.
    """

    user_id: str
    as_of: str
    model_version: str
    provenance: str
    interest: Mapping[str, Any] | None
    item: Mapping[str, Any] | None
    events: tuple[EventEffect, ...]
    months: tuple[Month, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values; months with lists of {category_id, share} and {category_id, probability}."""
        months = [
            {
                "month": month.month,
                "events": month.events,
                "shares": [{c.CATEGORY_ID: name, c.SHARE: share} for name, share in month.shares],
                "expected": [{c.CATEGORY_ID: name, c.PROBABILITY: p} for name, p in month.expected],
            }
            for month in self.months
        ]
        return {**asdict(self), "events": [asdict(event) for event in self.events], "months": months}


def explain_users(
    spark: SparkSession,
    settings: Settings,
    store: Store,
    dt: date,
    users: Sequence[str],
    bundle_path: str | None = None,
    n_months: int = N_MONTHS,
) -> dict[str, Explanation]:
    """Explanations of some users' rows of scores_v1 of a day, all in one pass; some hundred users are one batch.

    bundle_path: of the model that made the scores; by default the bundle of the root with its version. n_months: how
    many months back to tell of, 0 for none.

    Raises:
        UsageError: scores_v1 has no row of a user.
        ContractError: scores, sessions or the bundle are missing, or do not belong together.
        ModelError: the bundle is damaged or holds another model.
    """
    scores = store.read(spark, SCORES, dt, "jobs/score.py").where(F.col(c.USER_ID).isin(list(users)))
    rows = {row[c.USER_ID]: row.asDict(recursive=True) for row in scores.collect()}
    missing = [user for user in users if user not in rows]
    if missing:
        raise UsageError(
            f"{SCORES.name} of {dt} has no row of user {', '.join(missing[:_NAMED])}. Users are those of the log, or "
            "their pseudonyms where cleaning.pseudonym_key_file is set; who was never seen up to that day has no row."
        )
    (version,) = {row[c.MODEL_VERSION] for row in rows.values()}
    path = bundle_path or _bundle_path(store, version, dt)
    bundle = load_bundle(path)
    scorer: Any = LoadBundle(path, version, threads=0, item_probes=settings.scoring.probes)()
    coding = Coding(tuple(bundle.gap_edges_s), settings.scoring.anchor_events)
    end_us = round(as_of(dt).timestamp()) * c.MICROS
    events = _events(spark, store, dt, end_us, sorted(rows), scorer)
    wanted = {user: _target(row, scorer) for user, row in rows.items() if row[c.PROVENANCE] in BY_MODEL}
    targets = {user: ids for user, ids in wanted.items() if ids is not None}
    found = effects(events, targets, end_us, scorer, scorer.log_p_of, coding)
    for user, told in found.items():
        _check(rows[user], told, store, dt)
    months = months_of(events, end_us, n_months, N_CATEGORIES, scorer, coding) if n_months else {}
    return {user: _explanation(row, found.get(user), events, tuple(months.get(user, ()))) for user, row in rows.items()}


def _bundle_path(store: Store, version: str, dt: date) -> str:
    path = bundle_of(store, version)
    if path is None:
        raise ContractError(
            f"{store.path(SCORES.name, dt)} was made by model {version}, and no bundle below {store.root} has this "
            "version any more. Pass its folder with --bundle, or score the day again (jobs/score.py)."
        )
    return f"{store.root}/{path}"


def _events(spark: SparkSession, store: Store, dt: date, end_us: int, users: Sequence[str], scorer: Scorer) -> pa.Table:
    """Every event of the users before `end_us`, encoded for the model, with its own words.

    A clock that is ahead may have put some behind it. Ordered by (user, time, event_id).
    """
    events, _, _ = events_until(spark, store, dt)
    words = (c.USER_ID, c.EVENT_ID, c.ITEM_ID, c.CATEGORY_ID, c.ACTION)
    events = events.where(F.col(c.USER_ID).isin(list(users)) & (F.unix_micros(c.EVENT_TIME) < end_us))
    rows = events.select(*words, F.unix_micros(c.EVENT_TIME).alias("time_us"))
    kinds = (pa.string(), pa.int64(), pa.string(), pa.string(), pa.string(), pa.int64())
    schema = pa.schema(list(zip((*words, "time_us"), kinds, strict=True)))
    table = pa.Table.from_pylist([row.asDict() for row in rows.collect()], schema=schema)
    table = table.sort_by([(name, "ascending") for name in (c.USER_ID, "time_us", c.EVENT_ID)])
    actions = pc.index_in(table[c.ACTION], pa.array(c.ACTIONS))
    codes = {
        c.ITEM: _ids(table[c.ITEM_ID], scorer.items),
        c.CATEGORY: _ids(table[c.CATEGORY_ID], scorer.categories),
        c.ACTION_CODE: pc.add(actions, c.FIRST_ID).fill_null(c.OOV).cast(pa.int32()),
    }
    for name, values in codes.items():
        table = table.append_column(name, values)
    return table


def _ids(tokens: pa.ChunkedArray, names: Names) -> pa.ChunkedArray:
    ids = pc.index_in(tokens, names.tokens).fill_null(c.OOV)
    return pc.max_element_wise(ids, c.OOV).cast(pa.int32())


def _target(row: Mapping[str, Any], scorer: Scorer) -> tuple[int, int] | None:
    """Ids of the row's likeliest item and interest; any item where it lists none, None without an interest."""
    if not row[c.INTERESTS]:
        return None
    item = row[c.ITEMS][0][c.ITEM_ID] if row[c.ITEMS] else scorer.items.tokens[c.FIRST_ID].as_py()
    category = row[c.INTERESTS][0][c.CATEGORY_ID]
    return scorer.items.tokens.index(item).as_py(), scorer.categories.tokens.index(category).as_py()


def _check(row: Mapping[str, Any], told: Effects, store: Store, dt: date) -> None:
    """Refuse to explain a row with events that do not give it."""
    for name, log_p in ((c.ITEMS, told.item_log_p), (c.INTERESTS, told.category_log_p)):
        own = row[name][0][c.PROBABILITY] if row[name] else np.exp(log_p)
        if abs(np.log(own) - log_p) > _TOLERANCE:
            raise ContractError(
                f"{store.path(SCORES.name, dt)} gives the first of the {name} of user {row[c.USER_ID]} a probability "
                f"of {own:.4g}, the sessions of the day give {np.exp(log_p):.4g}: the day was run again since, or with "
                "other settings of scoring and sequences. Pass the same --conf and --set, or score the day again."
            )


def _explanation(
    row: Mapping[str, Any], told: Effects | None, events: pa.Table, months: tuple[Month, ...]
) -> Explanation:
    listed: tuple[EventEffect, ...] = ()
    if told is not None:
        read = events.take(pa.array(told.place)).to_pylist()
        item_effects = told.item.tolist() if row[c.ITEMS] else [np.nan] * len(read)
        listed = tuple(
            EventEffect(
                _utc(event["time_us"]), event[c.ACTION], event[c.ITEM_ID], event[c.CATEGORY_ID],
                _number(category), _number(item),
            )
            for event, item, category in zip(read, item_effects, told.category.tolist(), strict=True)
        )  # fmt: skip
    interest, item = ({**row[name][0]} if row[name] else None for name in (c.INTERESTS, c.ITEMS))
    at = row[c.AS_OF].astimezone(UTC) if row[c.AS_OF].tzinfo else row[c.AS_OF].replace(tzinfo=UTC)
    return Explanation(
        row[c.USER_ID], at.isoformat(), row[c.MODEL_VERSION], row[c.PROVENANCE], interest, item, listed, months
    )


def _number(effect: float) -> float | None:
    return None if np.isnan(effect) else effect


def _utc(time_us: int) -> str:
    return datetime.fromtimestamp(time_us / c.MICROS, UTC).isoformat(timespec="seconds")
