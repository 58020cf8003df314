"""A training's figures as files that grow with it: history.csv, and points for TensorBoard."""

import posixpath
from typing import Any

import fsspec
import tensorflow as tf

from model.bundle import HISTORY, history_csv
from model.watch import History, Plan, Step, Watcher

TENSORBOARD = "tensorboard"


class HistoryFile(Watcher):
    """A watcher: `history.csv` in a folder or URI, a line an epoch; a reader sees it before or after, never half."""

    def __init__(self, folder: str) -> None:
        self._fs, self._folder = fsspec.core.url_to_fs(folder)

    def started(self, plan: Plan) -> None:
        """See Watcher. What another training left goes."""
        path = f"{self._folder}/{HISTORY}"
        if plan.history:
            self._write(plan.history)
        elif not plan.steps_done and self._fs.exists(path):
            self._fs.rm(path)

    def epoch(self, history: History, is_best: bool) -> None:  # noqa: ARG002
        """See Watcher."""
        self._write(history)

    def _write(self, history: History) -> None:
        hidden, final = f"{self._folder}/.{HISTORY}", f"{self._folder}/{HISTORY}"
        self._fs.makedirs(self._folder, exist_ok=True)
        with self._fs.open(hidden, "wb") as file:
            file.write(history_csv(history))
        self._fs.mv(hidden, final)


class TensorBoardFiles(Watcher):
    """A watcher: scalars below `<folder>/tensorboard`, of every n-th step by step and of every epoch by epoch."""

    def __init__(self, folder: str, every_steps: int) -> None:
        self._folder, self._every_steps = posixpath.join(folder, TENSORBOARD), every_steps
        self._writer: Any = None

    def started(self, plan: Plan) -> None:
        """See Watcher. Curves go on where an interrupted training left them; those of another training go."""
        self.close()
        if not plan.steps_done and tf.io.gfile.exists(self._folder):
            tf.io.gfile.rmtree(self._folder)
        self._writer = tf.summary.create_file_writer(self._folder)

    def step(self, step: Step) -> None:
        """See Watcher."""
        if step.number % self._every_steps == 0:
            values = {
                "step/train_item_loss": step.own_item_loss,
                "step/train_category_loss": step.own_category_loss,
                "step/learning_rate": step.learning_rate,
                "step/events_per_s": step.events_per_s,
            }
            self._write(values, step.number)

    def epoch(self, history: History, is_best: bool) -> None:  # noqa: ARG002
        """See Watcher."""
        row = history[-1]
        self._write({f"epoch/{name}": value for name, value in row.items() if name != "epoch"}, int(row["epoch"]))
        self._writer.flush()

    def close(self) -> None:
        """See Watcher."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _write(self, values: dict[str, float], at: int) -> None:
        with self._writer.as_default():
            for name, value in values.items():
                tf.summary.scalar(name, value, step=at)
