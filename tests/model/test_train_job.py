import csv
import json
import os
import re
import subprocess
import sys
from datetime import date
from pathlib import Path
from unittest.mock import ANY

import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from features import columns as c
from features.contracts import TRAINING_SEQUENCES, VOCABULARY, ContractError
from jobs import train as job
from jobs.settings import Settings, UsageError
from model.bundle import load_bundle
from model.errors import ModelError
from model.predict import Predictor
from tests.model import tables
from tests.model.day import CODING, write_day

DAY = date(2024, 6, 30)


def _settings() -> Settings:
    training = tables.TRAINING.model_copy(update={"max_epochs": 1})
    return Settings.model_construct(network=tables.NETWORK, training=training, tracking=tables.TRACKING)


@pytest.fixture
def root(tmp_path: Path) -> str:
    return write_day(tmp_path / "root", DAY)


def test_a_day_becomes_a_bundle_that_predicts(root: str, capsys: pytest.CaptureFixture[str]):
    job.train(_settings, root, DAY)
    folder = Path(root) / "bundle" / f"dt={DAY}"
    bundle = load_bundle(str(folder))
    assert bundle.sizes == tables.SIZES
    assert bundle.vocabulary[c.KIND_ITEM][:3] == ["", "", "item 0"]
    bundle.check_sequences(CODING)
    rows = tables.ruled_rows(5, seed=9)
    items, _ = Predictor.load(str(folder)).probabilities(rows, rows[c.LENGTH], rows[c.NEXT_GAP])
    assert items.shape == (5, tables.SIZES.items)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert (metrics["best_epoch"], metrics["epochs"], metrics["ranks"]) == (1, 1, 1)

    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("training: 1 x ")
    assert "200 train rows, 40 valid rows, 20 items, 4 categories" in said[0]
    assert re.fullmatch(
        r"summary: best epoch 1 of 1, \d+ s, [\d,]+ events/s \(mean over epochs\), 1 x \d+ \(ranks x threads\)",
        said[-2],
    )
    assert said[-1].startswith(f"model {bundle.model_version}: best epoch 1 of 1")
    live = Path(root) / "_training" / f"dt={DAY}"
    assert (live / "history.csv").read_bytes() == (folder / "history.csv").read_bytes()
    curves = _curves(live / "tensorboard")
    assert curves["step/train_item_loss"] == [(2, pytest.approx(3, abs=0.5)), (4, ANY), (6, ANY)]  # of 6 steps
    (row,) = csv.DictReader((live / "history.csv").open())
    assert curves["epoch/valid_item_loss"] == [(1, pytest.approx(float(row["valid_item_loss"])))]

    job.train(_settings, root, DAY)  # goes on from the finished run
    assert load_bundle(str(folder)).model_version == bundle.model_version
    said = capsys.readouterr().err.splitlines()
    assert "going on after epoch 1" in said[1]
    assert said[2].endswith("no epoch was left to train")
    assert _curves(live / "tensorboard") == curves
    job.train(_settings, root, DAY, fresh=True)
    assert "going on" not in capsys.readouterr().err
    assert load_bundle(str(folder)).model_version == bundle.model_version
    assert [at for at, _ in _curves(live / "tensorboard")["step/train_item_loss"]] == [2, 4, 6]  # the old ones are gone


def test_a_store_that_mlflow_cant_use_is_refused_before_the_first_step(root: str):
    pytest.importorskip("mlflow.tracking", reason="MLflow is not installed (the extra [mlflow])")
    tracking = tables.TRACKING.model_copy(update={"mlflow_uri": "nonsense://store"})
    with pytest.raises(UsageError, match=r"MLflow can't use tracking\.mlflow_uri = nonsense://store: .* set the key"):
        job.train(lambda: _settings().model_copy(update={"tracking": tracking}), root, DAY)
    assert not (Path(root) / "_checkpoints").exists()


def _curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of every point by curve, as TensorBoard reads them."""
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    return {
        name: [(event.step, float(tf.make_ndarray(event.tensor_proto))) for event in events.Tensors(name)]
        for name in events.Tags()["tensors"]
    }


def test_another_vocabulary_than_that_of_the_sequences_is_refused(root: str):
    manifest = Path(root) / VOCABULARY.name / f"dt={DAY}" / "_MANIFEST.json"
    values = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**values, "config_hash": "other"}))
    with pytest.raises(ContractError, match=r"encoded with vocabulary .* ids would mean other items\. Run jobs\.seq"):
        job.train(_settings, root, DAY)
    assert not (Path(root) / "bundle").exists()


def test_a_missing_day_and_a_torn_partition_are_refused(root: str):
    with pytest.raises(ContractError, match="no finished partition for 2024-07-01"):
        job.train(_settings, root, date(2024, 7, 1))
    torn = Path(root) / TRAINING_SEQUENCES.name / f"dt={DAY}" / "split=train" / "group-00001.parquet"
    torn.write_bytes(torn.read_bytes()[:-100])
    with pytest.raises(ContractError, match=r"group-00001\.parquet has \d+ bytes, .* the partition is torn"):
        job.train(_settings, root, DAY)


def test_launch_hands_on_the_error_of_its_process_with_its_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(ContractError, match="training_sequences_v1 has no finished partition"):
        job.launch(1, str(tmp_path), DAY)
    assert "error" not in capsys.readouterr().err  # whoever called tells it, once


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--set", "training.batch_size=5"], 2, "unknown key training.batch_size"),
        (["--elastic"], 2, "--elastic needs ranks that an elastic horovodrun has started"),
        ([], 3, "Run jobs.sequences for 2024-06-30 first."),
    ],
)
def test_errors_are_one_paragraph_and_an_exit_code(tmp_path: Path, arguments: list[str], code: int, text: str):
    command = [sys.executable, "-m", "jobs.train", "--root", str(tmp_path), "--date", str(DAY), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(Path(job.__file__).parent.parent)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == code
    assert text in " ".join(done.stderr.split())
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_starting_ranks_loads_no_tensorflow():
    code = "import sys, jobs.train; sys.exit('tensorflow' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(Path(job.__file__).parent.parent)}
    assert subprocess.run([sys.executable, "-c", code], check=False, env=environment).returncode == 0


def test_a_bundle_of_another_day_is_not_touched_by_a_failure(root: str):
    job.train(_settings, root, DAY)
    before = load_bundle(f"{root}/bundle/dt={DAY}").model_version

    def broken() -> Settings:
        training = tables.TRAINING.model_copy(update={"learning_rate": 1e30, "clip_norm": 1e30})
        return Settings.model_construct(network=tables.NETWORK, training=training, tracking=tables.TRACKING)

    with pytest.raises(ModelError, match="not a number"):
        job.train(broken, root, DAY)
    assert load_bundle(f"{root}/bundle/dt={DAY}").model_version == before
