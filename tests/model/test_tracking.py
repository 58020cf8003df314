"""A training as a run of MLflow, by the real package in a folder; and what is said where it is not there."""

import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from jobs.settings import UsageError
from jobs.tracking import MlflowRun
from model.spec import TrackingSpec
from model.watch import Plan
from tests.model import tables

ROW = {"epoch": 1, "valid_loss": 2.5}


def _spec(uri: str) -> TrackingSpec:
    return tables.TRACKING.model_copy(update={"mlflow_uri": uri})


def test_a_training_is_one_run_with_its_parameters_figures_and_version(tmp_path: Path):
    tracking = pytest.importorskip("mlflow.tracking", reason="MLflow is not installed (the extra [mlflow])")
    spec = _spec(str(tmp_path / "runs"))
    cut = MlflowRun(spec, {"training.batch_rows": 32})
    cut.started(Plan("abc", 2, 3, 0, ()))
    cut.epoch([ROW], True)
    cut.close()
    client = tracking.MlflowClient(tracking_uri=(tmp_path / "runs").as_uri())
    (experiment,) = (found.experiment_id for found in client.search_experiments() if found.name == "tests")
    (run,) = client.search_runs([experiment])
    assert run.info.status == "FAILED"

    again = MlflowRun(spec, {"training.batch_rows": 32})
    again.started(Plan("abc", 2, 3, 40, (ROW,)))
    again.epoch([ROW, {"epoch": 2, "valid_loss": 2.0}], True)
    again.bundled("2024-06-30-0123456789ab", 2)
    again.close()
    (run,) = client.search_runs([experiment])
    assert run.info.status == "FINISHED"
    assert run.data.params == {"training.batch_rows": "32", "ranks": "2"}
    points = client.get_metric_history(run.info.run_id, "valid_loss")
    assert [(point.step, point.value) for point in points] == [(1, 2.5), (2, 2.0)]
    assert (run.data.tags["model_version"], run.data.tags["best_epoch"]) == ("2024-06-30-0123456789ab", "2")

    anew = MlflowRun(spec, {"training.batch_rows": 32})
    anew.started(Plan("abc", 1, 3, 0, ()))
    anew.close()
    assert len(client.search_runs([experiment])) == 2


def test_without_mlflow_the_command_that_installs_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("mlflow", "mlflow.tracking"):
        monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"needs MLflow, .* -c requirements/constraints\.txt '\.\[mlflow\]'"):
        MlflowRun(_spec(str(tmp_path)), {})


def test_a_password_in_the_address_is_refused():
    with pytest.raises(ValidationError, match="MLFLOW_TRACKING_PASSWORD"):
        TrackingSpec(tensorboard_steps=0, mlflow_uri="https://me:secret@host/", mlflow_experiment="x")
