"""The whole path as a newcomer runs it, on a smaller demo: real Spark, two real ranks, every table at the end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from features import columns as c
from jobs.java import ensure_java
from jobs.settings import CONF_DIR
from jobs.store import Store

DATE = "2024-06-30"
SMALLER = ["simulation.users=1500", "training.max_epochs=5", "evaluation.n_bootstrap=200"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Root of a finished demo, and what it printed for people."""
    root = tmp_path_factory.mktemp("demo") / "out"
    done = run("jobs.run", "--demo", "--root", str(root), *(part for text in SMALLER for part in ("--set", text)))
    assert done.returncode == 0, done.stderr[-3000:]
    return root, done.stdout


def run(module: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "INTEREST_SPARK_PROFILE": "local"}
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env=environment, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip


def ndcg(root: Path, target: str) -> dict[str, dict[str, float]]:
    """NDCG@10 rows of a target by model."""
    lines = (root / "evaluation" / f"dt={DATE}" / "metrics.jsonl").read_text().splitlines()
    rows = (json.loads(line) for line in lines)
    return {r["model"]: r for r in rows if (r["target"], r["metric"], r["k"]) == (target, "ndcg", 10)}


@pytest.mark.timeout(300)
def test_the_model_lies_between_the_best_baseline_and_the_oracle(demo: tuple[Path, str]) -> None:
    rows = ndcg(demo[0], "category")
    baselines = {name: row for name, row in rows.items() if name not in {"model", "oracle", "latent truth"}}
    assert {"popularity", "recent popularity", "last category", "markov", "session-knn"} <= set(baselines)
    best = max(row["value"] for row in baselines.values())
    model, oracle = rows["model"], rows["oracle"]
    assert best < model["low"], "the model does not beat the best simple baseline outside its interval"
    assert model["value"] <= oracle["high"], "nothing honest beats the Bayes-optimal prediction: look for a leak"
    assert ndcg(demo[0], "item")["model"]["value"] <= ndcg(demo[0], "item")["oracle"]["high"]


def test_every_user_is_scored_once_with_probabilities(demo: tuple[Path, str]) -> None:
    root = demo[0]
    scores = pq.read_table(root / "scores_v1" / f"dt={DATE}").to_pylist()
    users = pq.read_table(root / "sequences_v1" / f"dt={DATE}", columns=[c.USER_ID])[c.USER_ID].to_pylist()
    assert sorted(row[c.USER_ID] for row in scores) == sorted(users)
    assert len(set(users)) == len(users)
    version = Store(str(root)).manifest("scores_v1", DATE, "")
    assert version.rows == len(users)
    for row in scores[:200]:
        shares = [interest[c.PROBABILITY] for interest in row[c.INTERESTS]]
        assert shares == sorted(shares, reverse=True)
        assert 0 < sum(shares) <= 1.0001
        assert len({item[c.ITEM_ID] for item in row[c.ITEMS]}) == len(row[c.ITEMS]) > 0


def test_what_was_refused_is_what_was_spoilt(demo: tuple[Path, str]) -> None:
    spoilt = json.loads((demo[0] / "raw" / "_TRUTH.json").read_text())
    counters = Store(str(demo[0])).manifest("sessions_v1", DATE, "").counters
    assert counters["rows_read"] == spoilt["rows"]
    assert counters["rejected_unknown_action"] > 0
    refused = sum(value for name, value in counters.items() if name.startswith("rejected_"))
    assert Store(str(demo[0])).manifest("rejected_events_v1", DATE, "").rows == refused


def test_people_get_a_table_users_in_words_and_places(demo: tuple[Path, str]) -> None:
    root, printed = demo
    assert "Next category, 36 candidates" in printed
    assert printed.count("will be interested in") == 5
    assert f"{root}/scores_v1/dt={DATE}" in printed


def test_scoring_again_gives_equal_rows(demo: tuple[Path, str]) -> None:
    root = demo[0]

    def scores() -> list[str]:
        rows = pq.read_table(root / "scores_v1" / f"dt={DATE}").to_pylist()
        return sorted(json.dumps(row, default=str) for row in rows)

    before = scores()
    done = run("jobs.score", "--root", str(root), "--date", DATE, "--conf", str(CONF_DIR / "demo.yaml"))
    assert done.returncode == 0, done.stderr
    assert scores() == before


def test_a_stage_runs_the_same_under_spark_submit(demo: tuple[Path, str]) -> None:
    root, store = demo[0], Store(str(demo[0]))
    before = store.manifest("vocabulary_v1", DATE, "").hash
    ensure_java()
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("spark-submit")), "--master", "local[2]",
            str(CONF_DIR.parent / "jobs" / "vocabulary.py"), "--root", str(root), "--date", DATE,
        ],
        env={**os.environ, "PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert store.manifest("vocabulary_v1", DATE, "").hash == before


@pytest.mark.parametrize(
    ("module", "arguments", "code", "message"),
    [
        ("jobs.run", ["--root", "x", "--demo", "--set", "sessions.gap=3"], 2, "unknown key sessions.gap"),
        ("jobs.run", ["--root", "x", "--source", "nope", "--input", "y"], 2, "Known sources: "),
        ("jobs.score", ["--root", "nowhere", "--date", DATE], 3, "jobs/sequences.py"),
        ("jobs.train", ["--root", "nowhere", "--date", "yesterday"], 2, "expected YYYY-MM-DD"),
    ],
)
def test_mistakes_are_told_in_a_paragraph_with_their_code(
    tmp_path: Path, module: str, arguments: list[str], code: int, message: str
) -> None:
    done = run(module, *[str(tmp_path / "none") if part in {"x", "nowhere"} else part for part in arguments])
    assert done.returncode == code, done.stderr
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "none").exists()
