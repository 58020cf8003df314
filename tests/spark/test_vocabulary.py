"""Ids given in Spark against ids given by a plain loop: any number of partitions, two versions, limits reached."""

from collections import Counter
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from pyspark.sql import SparkSession

from features import columns as c
from features.contracts import VOCABULARY, ContractError
from features.vocabulary import IdPlan, plan_ids
from jobs import vocabulary as job
from jobs.sessionize import sessionize
from jobs.settings import load_settings
from jobs.store import Store
from tests.logs import SOURCE, line, write_log

FIRST, SECOND = date(2024, 3, 1), date(2024, 3, 2)
MAX_ITEMS, MAX_CATEGORIES, MIN_COUNT = 26, 9, 2
SETTINGS = load_settings(
    assignments=[
        "sessions.lateness_days=0",
        f"vocabulary.max_items={MAX_ITEMS}",
        f"vocabulary.max_categories={MAX_CATEGORIES}",
        f"vocabulary.min_count={MIN_COUNT}",
    ]
)
Ids = dict[tuple[str, str], tuple[int, int]]


def events_of(day: date, seed: int, n_items: int) -> list[tuple[str, str, str]]:
    """(item, category, line): many ties in count, tokens of several alphabets and lengths."""
    random = np.random.default_rng(seed)
    names = [f"{'é' if k % 7 == 0 else 'i' if k % 2 else 'I'}{k}" for k in range(n_items)]
    events = []
    for minute, item in enumerate((random.pareto(0.7, 150) * 3).astype(int) % n_items):
        when = f"{day} {minute // 60:02d}:{minute % 60:02d}"
        category = f"c{item % (n_items // 4)}"
        events.append((names[item], category, line(item=names[item], category=category, when=when)))
    return events


DAYS = {FIRST: events_of(FIRST, 1, 40), SECOND: events_of(SECOND, 2, 70)}


def slow_ids(tokens: list[tuple[str, str]], known: Ids) -> Ids:
    """The plain loop. tokens: (kind, token) of every event so far."""
    counts = Counter(tokens)
    ids = {key: (id_, counts[key]) for key, (id_, _) in known.items()}
    for kind, most in ((c.KIND_ITEM, MAX_ITEMS), (c.KIND_CATEGORY, MAX_CATEGORIES)):
        fresh = [key for key, n in counts.items() if key[0] == kind and n >= MIN_COUNT and key not in known]
        for key in sorted(fresh, key=lambda key: (-counts[key], key[1].encode())):
            given = sum(other == kind for other, _ in ids)
            if given < most:
                ids[key] = (c.FIRST_ID + given, counts[key])
    return ids


@pytest.fixture(scope="module")
def root(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sessions of both days."""
    folder = tmp_path_factory.mktemp("vocabulary")
    for day, events in DAYS.items():
        log = write_log(folder / f"{day}.csv", *(text for _, _, text in events))
        sessionize(spark, SETTINGS, SOURCE, [log], str(folder / "out"), day, day, bootstrap=day == FIRST)
    return folder / "out"


@pytest.fixture(params=[1, 3, 11])
def several_partitions(request: pytest.FixtureRequest, spark: SparkSession) -> Iterator[None]:
    """Shuffles really have so many partitions: small ones are not joined."""
    options = {
        "spark.sql.shuffle.partitions": str(request.param),
        "spark.sql.adaptive.coalescePartitions.enabled": "false",
    }
    before = {name: spark.conf.get(name) for name in options}
    for name, value in options.items():
        spark.conf.set(name, value)
    yield
    for name, value in before.items():
        spark.conf.set(name, str(value))


def written(spark: SparkSession, root: Path, day: date) -> Ids:
    rows = Store(str(root)).read(spark, VOCABULARY, day, "jobs/vocabulary.py").collect()
    ids = {(row[c.KIND], row[c.TOKEN]): (row[c.ID], row[c.COUNT]) for row in rows}
    assert len(ids) == len(rows)
    return ids


@pytest.mark.usefixtures("several_partitions")
def test_ids_are_those_of_a_plain_loop(spark: SparkSession, root: Path) -> None:
    known: Ids = {}
    tokens: list[tuple[str, str]] = []
    for day, events in DAYS.items():
        tokens += [(c.KIND_ITEM, item) for item, _, _ in events] + [(c.KIND_CATEGORY, name) for _, name, _ in events]
        expected = slow_ids(tokens, known)
        manifest = job.build_vocabulary(spark, SETTINGS, str(root), day)
        assert written(spark, root, day) == expected
        by_kind = Counter(kind for kind, _ in expected)
        assert dict(manifest.counters) == {**by_kind, "new": len(expected) - len(known)}
        assert manifest.rows == len(expected)
        assert len(manifest.files) == 1
        known = expected
    assert by_kind == {c.KIND_ITEM: MAX_ITEMS, c.KIND_CATEGORY: MAX_CATEGORIES}  # both limits were reached


@pytest.mark.usefixtures("several_partitions")
def test_blocks_lost_after_they_were_counted_change_no_id(
    spark: SparkSession, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = []

    def plan_after_a_loss(sizes: list[tuple[int, str, int]], *limits: dict[str, int]) -> IdPlan:
        for block in spark.sparkContext._jsc.getPersistentRDDs().values():
            block.unpersist(True)
            lost.append(block)
        return plan_ids(sizes, *limits)

    job.build_vocabulary(spark, SETTINGS, str(root), FIRST)
    whole = written(spark, root, FIRST)
    monkeypatch.setattr(job, "plan_ids", plan_after_a_loss)
    job.build_vocabulary(spark, SETTINGS, str(root), FIRST)
    assert lost
    assert written(spark, root, FIRST) == whole


def test_a_large_vocabulary_lies_in_several_files_with_the_same_rows(
    spark: SparkSession, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job.build_vocabulary(spark, SETTINGS, str(root), FIRST)
    one, first = job.build_vocabulary(spark, SETTINGS, str(root), SECOND), written(spark, root, SECOND)
    monkeypatch.setattr(job, "_FILE_ROWS", 15)
    several = job.build_vocabulary(spark, SETTINGS, str(root), SECOND)
    assert (len(one.files), len(several.files)) == (1, 3)
    assert written(spark, root, SECOND) == first


def test_a_lower_limit_than_before_takes_no_id_away_and_gives_none(spark: SparkSession, root: Path) -> None:
    job.build_vocabulary(spark, SETTINGS, str(root), FIRST)
    lower = SETTINGS.model_copy(update={"vocabulary": SETTINGS.vocabulary.model_copy(update={"max_items": 3})})
    manifest = job.build_vocabulary(spark, lower, str(root), SECOND)
    before, after = (
        {key: id_ for key, (id_, _) in written(spark, root, day).items() if key[0] == c.KIND_ITEM}
        for day in (FIRST, SECOND)
    )
    assert len(before) > 3
    assert after == before
    assert manifest.counters[c.KIND_ITEM] == len(before)


def test_after_a_refusal_nothing_stays_persisted(spark: SparkSession, root: Path) -> None:
    before = len(spark.sparkContext._jsc.getPersistentRDDs())
    rare = SETTINGS.model_copy(update={"vocabulary": SETTINGS.vocabulary.model_copy(update={"min_count": 1_000})})
    with pytest.raises(ContractError, match=r"No item of the log up to 2024-03-01 occurs vocabulary\.min_count = 1000"):
        job.build_vocabulary(spark, rare, str(root), FIRST)
    assert len(spark.sparkContext._jsc.getPersistentRDDs()) == before


def test_positions_become_ids_by_kind() -> None:
    sizes = [(0, c.KIND_CATEGORY, 4), (1, c.KIND_CATEGORY, 1), (1, c.KIND_ITEM, 2), (3, c.KIND_ITEM, 5)]
    plan = plan_ids(sizes, {c.KIND_ITEM: 10, c.KIND_CATEGORY: 0}, {c.KIND_ITEM: 12, c.KIND_CATEGORY: 100})
    assert plan.starts == (0, 4, 7, 7, 12)  # partition 2 is empty
    assert plan.shifts == {c.KIND_CATEGORY: 2, c.KIND_ITEM: 2 + 10 - 5}
    assert plan.ends == {c.KIND_CATEGORY: 102, c.KIND_ITEM: 14}
    assert plan.n_new == {c.KIND_CATEGORY: 5, c.KIND_ITEM: 2}
