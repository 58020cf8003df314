"""A training as a run of MLflow, where `tracking.mlflow_uri` asks for it. The only module that imports MLflow."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.settings import UsageError
from model.spec import TrackingSpec
from model.watch import History, Plan, Watcher

_IDENTITY = "training"  # tag: hash of the training, so that one that goes on stays one run
_INSTALL = ".venv/bin/pip install -c requirements/constraints.txt '.[mlflow]'"
# Set before MLflow loads, where the user has not.
_ENVIRONMENT = {
    "MLFLOW_ALLOW_FILE_STORE": "true",  # newer versions refuse folders otherwise; the small package has no database
    "MLFLOW_DISABLE_TELEMETRY": "true",  # nobody else is told of a training
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # by default 7 with growing pauses: minutes, in which the ranks wait
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds
    "GIT_PYTHON_REFRESH": "quiet",  # no warning on a machine without git
}


class MlflowRun(Watcher):
    """A watcher: parameters, the figures of each epoch, and in the end the bundle's version as a tag."""

    def __init__(self, spec: TrackingSpec, parameters: Mapping[str, Any]) -> None:
        """Reach the store; raises UsageError if MLflow is not installed or the store can't be used."""
        os.environ.update({name: value for name, value in _ENVIRONMENT.items() if name not in os.environ})
        uri = _with_scheme(str(spec.mlflow_uri))
        try:
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise UsageError(
                f"tracking.mlflow_uri = {spec.mlflow_uri} needs MLflow, which can't be loaded ({error}). Install it: "
                f"{_INSTALL}; or set the key to null."
            ) from None
        try:
            self._client = MlflowClient(tracking_uri=uri)
            self._experiment = self._experiment_named(spec.mlflow_experiment)
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise UsageError(
                f"MLflow can't use tracking.mlflow_uri = {spec.mlflow_uri}: {reason}. Correct the key, start the "
                "server, or set the key to null."
            ) from error
        self._parameters = parameters
        self._run = ""
        self._is_finished = False

    def _experiment_named(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name))
            except Exception:  # of two elastic ranks, or two trainings, at the same moment one comes too late
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)

    def started(self, plan: Plan) -> None:
        """See Watcher. A training that goes on takes up its run; one that starts anew gets another."""
        runs = self._client.search_runs([self._experiment], f"tags.{_IDENTITY} = '{plan.identity}'", max_results=1)
        if plan.steps_done and runs:
            self._run = runs[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
            return
        self._run = self._client.create_run(self._experiment, tags={_IDENTITY: plan.identity}).info.run_id
        for name, value in {**self._parameters, "ranks": plan.ranks}.items():
            self._client.log_param(self._run, name, value)

    def epoch(self, history: History, is_best: bool) -> None:  # noqa: ARG002
        """See Watcher."""
        from mlflow.entities import Metric

        row, now_ms = history[-1], int(time.time() * 1000)
        metrics = [Metric(name, float(value), now_ms, int(row["epoch"])) for name, value in row.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def bundled(self, version: str, best_epoch: int) -> None:
        """See Watcher."""
        self._client.set_tag(self._run, "model_version", version)
        self._client.set_tag(self._run, "best_epoch", str(best_epoch))
        self._is_finished = True

    def close(self) -> None:
        """See Watcher. A run without a bundle has failed."""
        if self._run:
            self._client.set_terminated(self._run, "FINISHED" if self._is_finished else "FAILED")


def _with_scheme(uri: str) -> str:
    """A plain path as a `file:` URI."""
    return uri if ":" in uri else Path(uri).resolve().as_uri()
