"""The whole path as a newcomer runs it, on a smaller demo: real Spark, two real ranks, every table at the end."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from features import columns as c
from jobs.java import ensure_java
from jobs.settings import CONF_DIR
from jobs.store import Store
from tests.e2e.conftest import run

DATE = "2024-06-30"


def ndcg(root: Path, target: str) -> dict[str, dict[str, float]]:
    """NDCG@10 rows of a target by model."""
    lines = (root / "evaluation" / f"dt={DATE}" / "metrics.jsonl").read_text().splitlines()
    rows = (json.loads(line) for line in lines)
    return {r["model"]: r for r in rows if (r["target"], r["metric"], r["k"]) == (target, "ndcg", 10)}


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
    by_model = [row for row in scores if row[c.PROVENANCE] == "model"]
    for row in by_model[:200]:
        shares = [interest[c.PROBABILITY] for interest in row[c.INTERESTS]]
        assert shares == sorted(shares, reverse=True)
        assert 0 < sum(shares) <= 1.0001
        assert len({item[c.ITEM_ID] for item in row[c.ITEMS]}) == len(row[c.ITEMS]) > 0
        assert {tuple(entry[c.DAYS] for entry in of[c.DAYS_AHEAD]) for of in row[c.INTERESTS]} == {(1, 7, 30)}
        assert 0 < row[c.BACK][0][c.PROBABILITY] <= row[c.BACK][1][c.PROBABILITY] <= 1
        assert 0 < row[c.DRIFT] < 1
        assert 0 < row[c.CONTACTS_PER_WEEK] <= 3


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
    arguments = ("--root", str(root), "--date", DATE, "--conf", str(CONF_DIR / "demo.yaml"))
    done = run("jobs.score", *arguments, INTEREST_LOG_FORMAT="json")
    assert done.returncode == 0, done.stderr
    assert scores() == before

    lines = [json.loads(line) for line in done.stderr.splitlines()]  # nothing but JSON, tasks' own lines included
    assert {(line["job"], line["date"], line["level"]) for line in lines} == {("score", DATE, "info")}
    assert len({line["run"] for line in lines}) == 1
    of_tasks = [line["text"] for line in lines if line["stage"] == "score"]
    written = [int(text.split(", ")[1].split(" written")[0].replace(",", "")) for text in of_tasks]
    assert sum(written) == len(before)
    left = json.loads((root / "_runs" / f"dt={DATE}" / "score" / "metrics.json").read_text())
    assert (left["exit_code"], left["result"]["rows"]) == (0, len(before))


def test_a_run_leaves_its_numbers_and_sparks_event_log(demo: tuple[Path, str]) -> None:
    folder = demo[0] / "_runs"
    left = json.loads((folder / f"dt={DATE}" / "run" / "metrics.json").read_text())
    assert [stage["name"] for stage in left["result"]["stages"]][:2] == ["simulate", "sessionize"]
    text = (folder / f"dt={DATE}" / "run" / "metrics.prom").read_text()
    assert re.search(r'interest_job_value\{command="run",root="[^"]+",name="stages.sessionize.seconds"\}', text)
    (log,) = (folder / "dt=undated" / "spark-events").iterdir()  # the day was found in the log
    events = [json.loads(line)["Event"] for line in log.read_text().splitlines()]
    assert (events[0], events[-1]) == ("SparkListenerLogStart", "SparkListenerApplicationEnd")


def test_a_plan_says_what_the_run_counted(demo: tuple[Path, str]) -> None:
    root, store = demo[0], Store(str(demo[0]))
    sessions, training = (store.manifest(table, DATE, "") for table in ("sessions_v1", "training_sequences_v1"))
    stages = json.loads((root / "_run" / f"dt={DATE}" / "stages.json").read_text())
    arguments = ("--root", str(root), "--date", DATE, "--cores", str(stages["cores"]), "--json")
    known = json.loads(run("jobs.plan", *arguments).stdout)
    found = {stage["name"]: stage for stage in known["stages"]}
    assert found["sessionize"]["size"] is None  # no log is named
    assert found["vocabulary"]["size"] == sessions.counters["events"]
    assert found["train"]["size"] == training.counters["splits"]["train"]["rows"]
    assert known["row_groups"] == training.counters["splits"]["train"]["row_groups"]
    assert found["score"]["size"] == store.manifest("scores_v1", DATE, "").rows
    took = {name: seconds for name, seconds, _ in stages["stages"]}
    for name in ("vocabulary", "sequences", "train", "score"):  # the same sizes on the same cores
        assert found[name]["seconds"] == pytest.approx(took[name], abs=0.1)
    shuffled = {name: n_bytes for name, _, n_bytes in stages["stages"]}
    assert shuffled["sequences"] > 0
    assert found["sequences"]["shuffle_mib"] == round(shuffled["sequences"] / 2**20)

    log = ("--source", "simulated", "--input", str(root / "raw"), "--bootstrap")
    first = {stage["name"]: stage for stage in json.loads(run("jobs.plan", *arguments, *log).stdout)["stages"]}
    assert first["sessionize"]["size"] == pytest.approx(sessions.counters["rows_read"], rel=0.02)
    (n_partitions,) = {Path(file["path"]).stem.split("-of-")[1][:5] for file in sessions.files}
    assert first["sessionize"]["tasks"] == int(n_partitions)


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
        capture_output=True, text=True, timeout=600, check=False,
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
