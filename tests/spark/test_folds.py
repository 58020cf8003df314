"""Cross-validation with real sequences and real trainings: two folds of a small log, counted again by hand."""

import json
from collections.abc import Sequence
from datetime import date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from features import columns as c
from features.contracts import TRAINING_SEQUENCES
from jobs import folds as job
from jobs.evaluation_files import read_metrics
from jobs.sessionize import sessionize
from jobs.settings import Settings, UsageError, load_settings
from jobs.store import Store
from jobs.train import train
from jobs.vocabulary import build_vocabulary
from tests.logs import SOURCE, line, write_log

FIRST, LAST = date(2024, 3, 1), date(2024, 3, 9)
USERS = [f"u{k:02d}" for k in range(24)]
SET = [
    "sessions.lateness_days=0",
    "sequences.length=6",
    "sequences.world_sizes=[1]",
    "sequences.split.valid_days=2",
    "sequences.split.test_days=2",
    "network.units=8",
    "network.item_dim=4",
    "training.max_epochs=1",
    "training.batch_rows=4",
    "training.threads=1",
    "evaluation.n_bootstrap=100",
    "evaluation.n_permutations=100",
]


def days_of(user: str) -> range:
    """The days on which a user has two events: some come late, some leave early."""
    k = int(user[1:])
    return range(k % 4, 9 - k % 5)


def times_of(user: str) -> list[datetime]:
    return [datetime(2024, 3, 1, 9 + k) + timedelta(days=day) for day in days_of(user) for k in range(2)]


def march(day: int) -> datetime:
    return datetime(2024, 3, day)


def label_times(user: str, cutoff: datetime) -> list[datetime]:
    """Of the two test days behind a cutoff."""
    return [t for t in times_of(user) if cutoff <= t < cutoff + timedelta(days=2)]


def judged_users(cutoff: datetime) -> set[str]:
    """Those with an event before the cutoff and one behind it."""
    return {user for user in USERS if min(times_of(user)) < cutoff and label_times(user, cutoff)}


@pytest.fixture(scope="module")
def settings() -> Settings:
    return load_settings(assignments=SET)


@pytest.fixture(scope="module")
def root(spark: SparkSession, settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("folds")
    rows = [
        line(user, f"i{(int(user[1:]) + n) % 7}", f"c{n % 2}", when=f"{t:%Y-%m-%d %H:%M}")
        for user in USERS
        for n, t in enumerate(times_of(user))
    ]
    log, root = write_log(folder / "log.csv", *rows), str(folder / "out")
    sessionize(spark, settings, SOURCE, [log], root, FIRST, LAST, bootstrap=True)
    build_vocabulary(spark, settings, root, LAST)
    return root


def train_here(ranks: int, root: str, date: date, conf: Sequence[str], assignments: Sequence[str]) -> None:
    """A real training, without a process of its own for each fold: TensorFlow starts once."""
    assert ranks == 1
    train(lambda: load_settings(conf, assignments), root, date)


def test_folds_move_back_are_taken_up_again_and_averaged(
    spark: SparkSession,
    settings: Settings,
    root: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(job, "launch", train_here)
    result = job.cross_validate(settings, root, LAST, c.TEST, 2, lambda: spark, ((), SET))
    assert result.cutoffs == ("2024-03-08T00:00:00Z", "2024-03-06T00:00:00Z")
    for fold, cutoff in enumerate((march(8), march(6))):
        users = judged_users(cutoff)
        assert result.users[fold] == len(users)
        folder = Path(root, "_folds", f"dt={LAST}", f"fold={fold}", TRAINING_SEQUENCES.name, f"dt={LAST}")
        test = pq.read_table(folder / "split=test").to_pylist()
        assert {row[c.USER_ID] for row in test} == users
        for row in test:
            labels = label_times(row[c.USER_ID], cutoff)
            assert row[c.NEXT_TIME].replace(tzinfo=None) == labels[0]
            assert len(row[c.LABEL_ITEMS]) == len(labels)
            assert row[c.LAST_TIME].replace(tzinfo=None) == max(t for t in times_of(row[c.USER_ID]) if t < cutoff)
        train = pq.read_table(folder / "split=train", columns=[c.NEXT_TIME])[c.NEXT_TIME].to_pylist()
        assert max(train).replace(tzinfo=None) < cutoff - timedelta(days=2)

    values = [
        {
            (r["target"], r["model"], r["metric"], r["k"]): r["value"]
            for r in read_metrics(Store(f"{root}/_folds/dt={LAST}/fold={fold}"), "evaluation", str(LAST))
            if "cohort" not in r
        }
        for fold in range(2)
    ]
    assert {(row.target, row.model, row.metric, row.k) for row in result.rows} == set(values[0]) == set(values[1])
    for row in result.rows:
        one, two = (fold[row.target, row.model, row.metric, row.k] for fold in values)
        assert row.values == (one, two)
        assert row.mean == pytest.approx((one + two) / 2, abs=1e-6)
        assert row.sd == pytest.approx(abs(one - two) / np.sqrt(2), abs=1e-6)
        assert (row.low, row.high) == (min(one, two), max(one, two))
    assert len({row.values for row in result.rows if row.model == "model"}) > 1
    written = [json.loads(text) for text in Path(result.path, "metrics.jsonl").read_text().splitlines()]
    assert len(written) == len(result.rows)
    text = job.folds_text(result, markdown=False)
    assert text.startswith(f"2 folds of split test of {LAST}, cutoffs 2024-03-06T00:00:00Z to 2024-03-08T00:00:00Z")

    # Again: nothing is left to do. Then the last step of one fold, then all of a fold whose settings are others.
    def never(*_: object) -> None:
        raise AssertionError("done already")

    for name in ("build_sequences", "launch", "evaluate"):
        monkeypatch.setattr(job, name, never)
    assert job.cross_validate(settings, root, LAST, c.TEST, 2, lambda: spark, ((), SET)) == result
    Path(root, "_folds", f"dt={LAST}", "fold=1", "evaluation", f"dt={LAST}", "_MANIFEST.json").unlink()
    with pytest.raises(AssertionError, match="done already"):
        job.cross_validate(settings, root, LAST, c.TEST, 2, lambda: spark, ((), SET))
    assert capsys.readouterr().err.splitlines()[-1] == "fold 2 of 2: evaluation"
    others = load_settings(assignments=[*SET, "network.units=9"])
    with pytest.raises(AssertionError, match="done already"):
        job.cross_validate(others, root, LAST, c.TEST, 2, lambda: spark, ((), SET))
    assert capsys.readouterr().err.splitlines()[-1].startswith("fold 1 of 2: sequences")
    assert not Path(root, "_folds", f"dt={LAST}", "fold=0", "bundle").exists()


def test_one_fold_and_a_split_without_cutoffs_are_refused(settings: Settings, tmp_path: Path) -> None:
    def nothing() -> SparkSession:
        raise AssertionError("refused before Spark starts")

    with pytest.raises(UsageError, match="a spread needs two folds or more"):
        job.cross_validate(settings, str(tmp_path), LAST, c.TEST, 1, nothing, ((), SET))
    leave = load_settings(assignments=[*SET, "sequences.split.protocol=leave_one_out"])
    with pytest.raises(UsageError, match=r"--folds moves the cutoffs .* leave_one_out has none"):
        job.cross_validate(leave, str(tmp_path), LAST, c.TEST, 2, nothing, ((), SET))
