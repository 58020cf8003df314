"""The scoring job around a fake model: what it writes, and what it refuses before or instead of publishing."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pytest
from pyspark import cloudpickle
from pyspark.sql import DataFrame, SparkSession

from features import columns as c
from features.contracts import SCORES, SEQUENCES, USER_STATES, VOCABULARY, Contract, ContractError
from jobs import score as job
from jobs.nightly_spec import FeedsSpec
from jobs.settings import Settings
from jobs.store import MANIFEST, Lineage, Store
from model.errors import ModelError
from tests.spark.test_scoring import COUNTS, LENGTH, SPEC, FakeScorer, MakeFake, history, many_histories

cloudpickle.register_pickle_by_value(sys.modules[__name__])

PROJECT = Path(job.__file__).parent.parent
DAY = date(2024, 3, 1)
SETTINGS = Settings.model_construct(scoring=SPEC, feeds=FeedsSpec(exploded=False, drift_users=0))
CODING = {"length": LENGTH, "gap_edges_s": [60, 1800], "new_session_gap": 4}


class Sizes(NamedTuple):
    """Of the vocabularies."""

    items: int
    categories: int


class FakeBundle:
    """Accepts the coding above; its ids are named by rows of vocabulary_v1."""

    model_version = "2024-03-01-abc"
    vocabulary_hash = "of the day it was trained on"

    def __init__(self, rows: list[tuple[str, str, int, int]]) -> None:
        self.vocabulary = {
            kind: ["", "", *(token for of, token, _, _ in rows if of == kind)]
            for kind in (c.KIND_ITEM, c.KIND_CATEGORY)
        }
        self.sizes = Sizes(*(len(self.vocabulary[kind]) for kind in (c.KIND_ITEM, c.KIND_CATEGORY)))

    def check_sequences(self, counters: dict[str, Any]) -> None:
        if {name: counters[name] for name in CODING} != CODING:
            raise ModelError("other coding")


@dataclass(frozen=True)
class Broken:
    """Fails where the model would be loaded: in the worker."""

    def __call__(self) -> Any:
        raise ModelError("the bundle out/bundle holds model B, the run started with A; run again")


def is_first(marker: str) -> bool:
    """Whether nobody was here before; of many that ask at once one is told so."""
    try:
        Path(marker).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


class Dying(FakeScorer):
    """Kills its own process in the midst of the work, once."""

    def __init__(self, marker: str) -> None:
        super().__init__(by_past=True)
        self.marker = marker

    def top_of(self, *arguments: Any) -> tuple[Any, Any, Any, Any]:
        if self.calls and is_first(self.marker):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().top_of(*arguments)


@dataclass(frozen=True)
class MakeDying:
    marker: str

    def __call__(self) -> FakeScorer:
        return Dying(self.marker)


@dataclass(frozen=True)
class MakeBeside:
    """Makes the fake once another process has tried to score the same day, and keeps what that said after its code."""

    root: str
    said: str

    def __call__(self) -> FakeScorer:
        if is_first(self.said):
            command = [sys.executable, "-m", "jobs.score", "--root", self.root, "--date", str(DAY)]
            done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
            Path(self.said).write_text(f"{done.returncode} {' '.join(done.stderr.split())}")
        return FakeScorer(by_past=True)


def vocabulary(n_ids: int = len(COUNTS), swapped: bool = False) -> list[tuple[str, str, int, int]]:
    """Rows of vocabulary_v1 that name ids as the fake scorer does."""
    ids = range(c.FIRST_ID, n_ids)
    names = {i: i for i in ids} | ({2: 3, 3: 2} if swapped else {})
    kinds = ((c.KIND_ITEM, "i"), (c.KIND_CATEGORY, "c"))
    return [(kind, f"{letter}{names[i]}", i, 10) for kind, letter in kinds for i in ids]


@pytest.fixture(scope="module")
def tables(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with what scoring reads."""
    return write_tables(spark, tmp_path_factory.mktemp("tables"))


def write_tables(spark: SparkSession, folder: Path) -> Path:
    """Write what scoring reads. The vocabulary has grown since the bundle: the same ids mean the same."""
    store = Store(str(folder))
    known = spark.createDataFrame(vocabulary(len(COUNTS) + 3), VOCABULARY.schema).coalesce(1)
    used = {f"{VOCABULARY.name}/{DAY}": store.write(known, VOCABULARY, DAY, Lineage({}, "-")).hash}
    rows = [*many_histories(), history("unknown", [1], [1])]
    store.write(spark.createDataFrame(rows, SEQUENCES.schema), SEQUENCES, DAY, Lineage(used, "-", CODING))
    return folder


@pytest.fixture
def root(tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The tables and a bundle, without scores."""
    shutil.copytree(tables, tmp_path, dirs_exist_ok=True)
    bundle = tmp_path / "bundle" / f"dt={DAY}"
    bundle.mkdir(parents=True)
    (bundle / MANIFEST).write_text("{}")
    monkeypatch.setattr(job, "load_bundle", lambda *_: FakeBundle(vocabulary()))
    monkeypatch.setattr(job, "LoadBundle", lambda *_: MakeFake())
    return str(tmp_path)


def refused(spark: SparkSession, root: str, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        job.score(spark, SETTINGS, root, DAY)
    assert Store(root).dates(SCORES.name) == []


def test_scores_every_user_and_says_from_what(spark: SparkSession, root: str) -> None:
    manifest = job.score(spark, SETTINGS, root, DAY)
    store = Store(root)
    rows = store.read(spark, SCORES, DAY, "jobs/score.py").collect()
    assert len({row[c.USER_ID] for row in rows}) == len(rows) == manifest.rows == 41
    assert manifest.min_time == manifest.max_time == "2024-03-02T00:00:00+00:00"
    assert {row[c.MODEL_VERSION] for row in rows} == {FakeBundle.model_version}
    assert manifest.inputs["sequences_v1/2024-03-01"] == store.manifest(SEQUENCES.name, DAY, "").hash
    assert set(manifest.inputs) == {"sequences_v1/2024-03-01", "bundle/2024-03-01-abc"}
    assert (manifest.counters["from_model"], manifest.counters["from_popularity"]) == (40, 1)
    told = ("top_k_items", "top_k_interests", "seen_items")
    assert [manifest.counters[name] for name in told] == [getattr(SETTINGS.scoring, name) for name in told]
    trends = [interest[c.TREND] for row in rows for interest in row[c.INTERESTS]]
    assert {name: manifest.counters[name] for name in set(trends)} == {name: trends.count(name) for name in set(trends)}
    assert job.summary(manifest).startswith("41 users, 0 with a short history, 1 unknown to the model; interests: ")
    assert job.summary(manifest).endswith("; 0 carried, 0 scored from their states, 41 from their sequences")


def test_the_item_index_that_is_configured_reaches_the_workers(
    spark: SparkSession, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[Any, ...]] = []
    monkeypatch.setattr(job, "LoadBundle", lambda *of: made.append(of) or MakeFake())
    approximate = SPEC.model_copy(update={"item_index": "approximate", "item_index_probes": 8})
    for spec in (SPEC, approximate):
        job.score(spark, Settings.model_construct(scoring=spec, feeds=SETTINGS.feeds), root, DAY)
    assert [item_probes for _, _, _, item_probes in made] == [None, 8]


def test_a_night_scores_its_layer_and_the_users_below_it(spark: SparkSession, root: str) -> None:
    store, night = Store(root), DAY + timedelta(days=1)
    below = store.manifest(SEQUENCES.name, DAY, "")
    used = {**below.inputs, f"{SEQUENCES.name}/{DAY}": below.hash}
    kept, gone, *_ = (row[c.USER_ID] for row in many_histories())
    rows = [
        {**history("unknown", [2, 3], [2, 2])},
        {**history("newcomer", [1], [1])},
        {**history(gone, [1], [1]), c.LENGTH: 0},
    ]
    store.write(spark.createDataFrame(rows, SEQUENCES.schema), SEQUENCES, night, Lineage(used, "-", CODING))
    manifest = job.score(spark, SETTINGS, root, night, f"{root}/bundle/dt={DAY}")
    scored = {row[c.USER_ID]: row for row in store.read(spark, SCORES, night, "").collect()}
    assert manifest.rows == len(scored) == 41  # one gone, one new
    assert gone not in scored
    assert scored["unknown"][c.PROVENANCE] == scored[kept][c.PROVENANCE] == "model"
    assert scored["newcomer"][c.PROVENANCE] == "popularity"


def test_a_bundle_for_other_sequences_is_refused(
    spark: SparkSession, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CODING, "length", LENGTH + 1)
    refused(spark, root, ModelError, "other coding")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (vocabulary(swapped=True), r"id 2 is i3 there and i2 here"),
        (vocabulary(len(COUNTS) + 4), r"of 11 item ids there and 10 in .*, the day's has fewer"),
    ],
)
def test_a_bundle_for_another_vocabulary_is_refused(
    spark: SparkSession,
    root: str,
    rows: list[tuple[str, str, int, int]],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(job, "load_bundle", lambda *_: FakeBundle(rows))
    refused(spark, root, ModelError, said)


def test_sequences_of_another_vocabulary_than_the_days_are_refused(spark: SparkSession, root: str) -> None:
    manifest = Path(Store(root).path(VOCABULARY.name, DAY), MANIFEST)
    values = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**values, "config_hash": "other"}))
    refused(spark, root, ContractError, r"sequences_v1/dt=2024-03-01 was encoded with vocabulary .*Run jobs\.sequences")


def test_missing_sequences_are_refused_by_name(spark: SparkSession, root: str) -> None:
    shutil.rmtree(Store(root).path(SEQUENCES.name, DAY))
    refused(spark, root, ContractError, "sequences_v1 has no finished partition for 2024-03-01.*jobs/sequences.py")


def test_an_error_in_a_worker_arrives_as_itself(
    spark: SparkSession, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "LoadBundle", lambda *_: Broken())
    refused(spark, root, ModelError, "^the bundle out/bundle holds model B, the run started with A; run again$")


def test_lost_rows_are_not_published(spark: SparkSession, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(sequences: DataFrame, plan: Any, fallbacks: Any) -> Any:
        return whole(sequences.where(f"{c.USER_ID} <> 'u3'"), plan, fallbacks)

    whole = job.write_scores
    monkeypatch.setattr(job, "write_scores", forgetful)
    refused(
        spark, root, ContractError, "would have 40 rows, of 40 rows of sequences_v1, but there are 41 users.*Nothing"
    )


def published(root: str, table: Contract = SCORES) -> tuple[str, list[dict[str, Any]]]:
    """Identity of the day's table, which is whole, and its rows by user."""
    store = Store(root)
    manifest, folder = store.check(table, DAY, ""), store.path(table.name, DAY)
    rows = [row for file in manifest.files for row in pq.ParquetFile(f"{folder}/{file['path']}").read().to_pylist()]
    assert len({row[c.USER_ID] for row in rows}) == len(rows) == manifest.rows == 41
    assert [path.name for path in Path(root, table.name).iterdir()] == [f"dt={DAY}"], "something was left beside it"
    return manifest.hash, sorted(rows, key=lambda row: str(row[c.USER_ID]))


def test_a_day_scored_twice_has_the_same_rows_once(spark: SparkSession, root: str) -> None:
    found = []
    for _ in range(2):
        job.score(spark, SETTINGS, root, DAY)
        found.append([published(root, table) for table in (SCORES, USER_STATES)])
    assert found[0] == found[1]


def test_a_worker_that_is_killed_in_the_midst_changes_nothing_that_is_published(
    spark: SparkSession, root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends_loudly(marker: Path) -> None:
        monkeypatch.setattr(job, "LoadBundle", lambda *_: MakeDying(str(marker)))
        with pytest.raises(RuntimeError, match=r"Python worker of Spark ended without a word.*Nothing was published"):
            job.score(spark, SETTINGS, root, DAY)
        assert marker.exists()

    ends_loudly(tmp_path / "first")
    assert Store(root).dates(SCORES.name) == []
    job.score(spark, SETTINGS, root, DAY)  # the same command again
    after = published(root)
    monkeypatch.setattr(job, "LoadBundle", lambda *_: MakeFake())
    job.score(spark, SETTINGS, root, DAY)
    assert published(root) == after
    ends_loudly(tmp_path / "second")
    manifest = Store(root).check(SCORES, DAY, "")
    assert manifest.hash == after[0]
    job.score(spark, SETTINGS, root, DAY)
    assert published(root) == after


def test_of_two_that_score_one_day_the_second_is_refused(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, arguments = tmp_path / "said", ["--root", root, "--date", str(DAY)]
    monkeypatch.setattr(job, "LoadBundle", lambda *_: MakeBeside(root, str(said)))
    assert job.main(arguments) == 0
    code, _, text = said.read_text().partition(" ")
    assert code == "4", text
    assert f"score-{DAY}.lock: this stage of the day is held by jobs.score on " in text
    found = published(root)
    monkeypatch.setattr(job, "LoadBundle", lambda *_: MakeFake())
    assert job.main(arguments) == 0  # the lock is free again
    assert published(root) == found
