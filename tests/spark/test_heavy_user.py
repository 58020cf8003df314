"""A user with a million events among ordinary ones, from the log to the scores: whole, or taken out and told."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark import cloudpickle
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from features import columns as c
from features.contracts import FLAGGED_USERS, OPEN_SESSIONS, REJECTED_EVENTS, SCORES, SESSIONS, VOCABULARY
from features.scoring import Names
from features.sequences import flat_events
from jobs import score as scoring
from jobs.histories import build_scoring_sequences
from jobs.layers import read_sequences
from jobs.sessionize import Sessionized, sessionize, summary
from jobs.settings import Settings, load_settings
from jobs.store import MANIFEST, Store
from jobs.vocabulary import build_vocabulary
from tests.logs import SOURCE
from tests.spark.test_score_job import CODING, FakeBundle
from tests.spark.test_scoring import LENGTH, FakeScorer

cloudpickle.register_pickle_by_value(sys.modules[__name__])

FIRST, SECOND = date(2024, 3, 1), date(2024, 3, 2)
PARQUET = SOURCE.model_copy(update={"format": "parquet", "time_unit": "us"})
HEAVY, N_EVENTS, N_ITEMS = "heavy", 1_000_000, 8_000
STEP_US, PER_HOUR = 24_000, 50_000  # in each of twenty hours twenty minutes long, then silence
ORDINARY = [f"u{k}" for k in range(30)]
NO_RULES = [
    f"denoising.{rule}=0"
    for rule in ("bot_events_per_day", "bot_events_per_minute", "bot_hours_per_day", "max_user_day_events")
]


def settings(*more: str) -> Settings:
    coding = [f"sequences.length={LENGTH}", f"sequences.gap_edges_s={CODING['gap_edges_s']}"]
    return load_settings(assignments=[*coding, "scoring.seen_items=remove", *more])


@pytest.fixture(scope="module", autouse=True)
def as_outside_of_tests(spark: SparkSession) -> Iterator[None]:
    """Arrow batches of seven rows would be most of the work, plans that are interpreted the rest."""
    values = {
        "spark.sql.execution.arrow.maxRecordsPerBatch": "10000",
        "spark.sql.codegen.wholeStage": "true",
        "spark.sql.codegen.factoryMode": "FALLBACK",
    }
    before = {key: spark.conf.get(key) for key in values}
    for key, value in values.items():
        spark.conf.set(key, value)
    yield
    for key, found in before.items():
        spark.conf.set(key, found)


def midnight_us(day: date) -> int:
    return (day - date(1970, 1, 1)).days * c.DAY_S * c.MICROS


def write(
    path: Path, day: date, user: list[str], item: "np.ndarray[Any, Any]", after_us: "np.ndarray[Any, Any]"
) -> str:
    n = len(item)
    texts = {"user": pa.array(user), "category": pa.array(["c"] * n), "what": pa.array(["pv"] * n)}
    items = pa.array([f"i{k}" for k in range(N_ITEMS)]).take(pa.array(item))
    pq.write_table(pa.table({**texts, "item": items, "when": pa.array(after_us + midnight_us(day))}), path)
    return str(path)


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> dict[date, str]:
    """A day with a million events of one user and five of each other, and a day with three of the same one."""
    folder = tmp_path_factory.mktemp("logs")
    k = np.arange(N_EVENTS)
    heavy_us = k // PER_HOUR * 3_600 * c.MICROS + k % PER_HOUR * STEP_US
    ordinary = np.arange(5 * len(ORDINARY))
    users = [HEAVY] * N_EVENTS + [ORDINARY[k // 5] for k in ordinary]
    items = np.concatenate([k * 7_919 % N_ITEMS, ordinary % 7])  # a prime: as many different ones as there can be
    times_us = np.concatenate([heavy_us, ordinary * 60 * c.MICROS])
    first = write(folder / "1.parquet", FIRST, users, items, times_us)
    few = np.arange(3)
    return {FIRST: first, SECOND: write(folder / "2.parquet", SECOND, [HEAVY] * 3, few, few * 60 * c.MICROS)}


class Wide(FakeScorer):
    """Of many items those with the smallest ids are the likeliest, whoever asks."""

    def __init__(self, tokens: tuple[str, ...]) -> None:
        super().__init__()
        self.items = Names(pa.array(tokens), np.ones(len(tokens), np.int64))
        self.categories = Names(pa.array(["", "", "c"]), np.ones(3, np.int64))

    def top_of(self, state: Any, *asked: Any) -> tuple[Any, Any, Any, Any]:
        n, (*_, k_items, k_categories) = len(state), asked
        ids = np.tile(np.arange(k_items, dtype=np.int32) + c.FIRST_ID, (n, 1))
        p = np.tile(np.arange(k_items, 0, -1, dtype=np.float32) / N_ITEMS**2, (n, 1))
        return ids, p, ids[:, :k_categories], np.ones((n, k_categories), np.float32)


@dataclass(frozen=True)
class MakeWide:
    tokens: tuple[str, ...]

    def __call__(self) -> FakeScorer:
        return Wide(self.tokens)


def run(spark: SparkSession, with_settings: Settings, root: Path, log: str, day: date) -> Sessionized:
    return sessionize(spark, with_settings, PARQUET, [log], str(root), day, day, day == FIRST)


def events(spark: SparkSession, root: Path, day: date, *tables: Any) -> DataFrame:
    store = Store(str(root))
    first, *others = (flat_events(store.read(spark, table, day, "")) for table in tables)
    return first.unionByName(others[0]) if others else first


def test_without_rules_every_event_is_kept_and_the_user_is_scored(
    spark: SparkSession, logs: dict[date, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, spec = tmp_path / "out", settings(*NO_RULES)
    done = run(spark, spec, root, logs[FIRST], FIRST)
    assert (done.rows_read, done.flagged_users, done.duplicates) == (N_EVENTS + 150, 0, 0)
    build_vocabulary(spark, spec, str(root), FIRST)
    store, scored = Store(str(root)), {}
    known = store.read(spark, VOCABULARY, FIRST, "").orderBy(c.KIND, c.ID).collect()
    bundle = FakeBundle([(row[c.KIND], row[c.TOKEN], row[c.ID], row[c.COUNT]) for row in known])
    (tmp_path / MANIFEST).write_text("{}")
    monkeypatch.setattr(scoring, "load_bundle", lambda *_: bundle)
    monkeypatch.setattr(scoring, "LoadBundle", lambda *_: MakeWide(tuple(bundle.vocabulary[c.KIND_ITEM])))
    for day in (FIRST, SECOND):
        if day == SECOND:  # takes up the sessions, which are open still, and finishes them
            run(spark, spec, root, logs[SECOND], SECOND)
        build_scoring_sequences(spark, spec, str(root), day)
        scoring.score(spark, spec, str(root), day, str(tmp_path))
        rows = store.read(spark, SCORES, day, "").collect()
        scored[day] = {row[c.USER_ID]: row for row in rows}
        assert len(rows) == len(scored[day])
        assert scored[day].keys() == {HEAVY, *ORDINARY}

    sessions = store.read(spark, SESSIONS, SECOND, "").where(F.col(c.USER_ID) == HEAVY).select(c.N_EVENTS).collect()
    assert [row[c.N_EVENTS] for row in sessions] == [PER_HOUR] * (N_EVENTS // PER_HOUR)
    counted = events(spark, root, SECOND, SESSIONS, OPEN_SESSIONS).agg(
        F.count(F.lit(1)), F.count_distinct(c.USER_ID, c.EVENT_TIME, c.EVENT_ID)
    )
    assert tuple(counted.collect()[0]) == (N_EVENTS + 153, N_EVENTS + 153)

    (row,) = read_sequences(spark, store, FIRST).where(F.col(c.USER_ID) == HEAVY).collect()
    kept = spec.sequences.history_events
    ids = {token: at for at, token in enumerate(bundle.vocabulary[c.KIND_ITEM])}
    latest = [ids[f"i{k * 7_919 % N_ITEMS}"] for k in range(N_EVENTS - kept, N_EVENTS)]
    assert row[c.ITEM] == latest[-LENGTH:]
    assert row[c.SEEN_ITEMS] == sorted(latest)
    assert len(row[c.SEEN_ITEMS]) == kept
    unseen = [token for token, at in ids.items() if at >= c.FIRST_ID and at not in set(latest)]
    assert [item[c.ITEM_ID] for item in scored[FIRST][HEAVY][c.ITEMS]] == unseen[: spec.scoring.top_k_items]


def test_by_default_the_user_is_flagged_taken_out_and_told_and_the_others_stay(
    spark: SparkSession, logs: dict[date, str], tmp_path: Path
) -> None:
    root, spec = tmp_path / "out", settings()
    done = run(spark, spec, root, logs[FIRST], FIRST)
    assert (done.flagged_users, done.events_held, done.events_flagged) == (1, N_EVENTS, 0)
    assert summary(done).endswith("1 users flagged; events taken out: 1,000,000 held until their day is complete")
    store = Store(str(root))
    flagged = {
        (row[c.USER_ID], row[c.RULE], row[c.VALUE]) for row in store.read(spark, FLAGGED_USERS, FIRST, "").collect()
    }
    assert flagged == {
        (HEAVY, "events_per_day", N_EVENTS),
        (HEAVY, "events_per_minute", 60 * c.MICROS // STEP_US),
        (HEAVY, "capped", N_EVENTS),
    }
    assert events(spark, root, FIRST, OPEN_SESSIONS).where(F.col(c.USER_ID) == HEAVY).count() == 0
    build_vocabulary(spark, spec, str(root), FIRST)
    build_scoring_sequences(spark, spec, str(root), FIRST)
    assert {row[c.USER_ID] for row in read_sequences(spark, store, FIRST).collect()} == set(ORDINARY)

    done = run(spark, spec, root, logs[SECOND], SECOND)
    assert (done.events_held, done.events_flagged) == (0, N_EVENTS)
    bots = store.read(spark, REJECTED_EVENTS, SECOND, "")
    assert {tuple(row) for row in bots.groupBy(c.REASON).count().collect()} == {("bot", N_EVENTS)}
    assert bots.select(c.RAW).distinct().count() == N_EVENTS
    event = json.loads(bots.first()[c.RAW])
    assert event.keys() == {c.USER_ID, c.EVENT_ID, c.ITEM_ID, c.CATEGORY_ID, c.ACTION, c.EVENT_TIME}
    left = events(spark, root, SECOND, SESSIONS, OPEN_SESSIONS).groupBy(c.USER_ID).count().collect()
    assert {row[c.USER_ID]: row["count"] for row in left} == {**dict.fromkeys(ORDINARY, 5), HEAVY: 3}
