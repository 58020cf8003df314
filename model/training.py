"""The training loop: epochs by counted steps, decisions that are the same on every rank, the best weights kept."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features import columns as c
from model import feed
from model.checkpoint import Checkpoints, Progress
from model.network import Network
from model.preflight import agree
from model.spec import NetworkSpec, Sizes, TrainingSpec
from model.step import KINDS, Steps, ValidSums
from model.watch import EpochFigures, Lines, Plan, Watcher
from model.workers import Workers, guarded, stop_all, together

Counts = dict[str, NDArray[np.int64]]


@dataclass(frozen=True)
class Task:
    """What is to be trained, on what. `facts` must be equal on all ranks (hashes of configuration, data, code)."""

    network: NetworkSpec
    training: TrainingSpec
    sizes: Sizes
    train: tuple[feed.DataFile, ...]
    valid: tuple[feed.DataFile, ...]
    facts: Mapping[str, str]

    @property
    def identity(self) -> str:
        """Hash of all that shapes the weights, but for the number of ranks."""
        specs = [self.network.model_dump(), self.training.model_dump(), self.sizes.model_dump()]
        return hashlib.sha256(json.dumps([specs, dict(self.facts)], sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Outcome:
    """A finished training: the network with its best weights, on every rank, and one mapping of figures an epoch."""

    network: Network
    best_epoch: int
    history: tuple[Mapping[str, float], ...]


def train(
    task: Task,
    workers: Workers,
    checkpoints: Checkpoints,
    say: Callable[[str], None],
    watcher: Watcher | None = None,
) -> Outcome:
    """Train until validation stops getting better, and hand back the best weights.

    Rank 0 alone writes checkpoints, speaks (`say`) and shows its steps to `watcher`, or in lines where there is none.
    Goes on from the newest checkpoint of the same task.

    Raises:
        ModelError: the data, the ranks or the numbers are not fit; on every rank, before or within the first steps.
    """
    if workers.rank != 0:
        say, watcher = _silent, None
    return _Run(task, workers, checkpoints, say, watcher).outcome()


class _Run:
    def __init__(
        self,
        task: Task,
        workers: Workers,
        checkpoints: Checkpoints,
        say: Callable[[str], None],
        watcher: Watcher | None = None,
    ) -> None:
        self._task, self._workers, self._checkpoints, self._say = task, workers, checkpoints, say
        self._watcher = watcher or Lines(say)
        self._spec = task.training
        self._train_shard, self._valid_shard, own = together(workers, self._look_at_data)
        self._steps_per_epoch = agree(
            workers,
            {**task.facts, "settings": task.identity},
            self._train_shard.rows,
            self._spec.batch_rows,
        )
        counts = {kind: workers.sum(own[kind].astype(np.float64)).astype(np.int64) for kind in KINDS}
        self.network = Network(task.network, task.sizes, self._spec.seed)
        for kind in KINDS:
            self.network.start_bias(kind, counts[kind])
        self._steps = Steps(self.network, self._spec, workers, counts)
        self._best: dict[str, NDArray[Any]] = {}
        self._progress = Progress(self._identity, 0, 0, 0, False, ())

    @property
    def _identity(self) -> str:
        return f"{self._task.identity}-{self._workers.size}"

    def _look_at_data(self) -> tuple[feed.Shard, feed.Shard, Counts]:
        """This rank's shards, each read once whole: targets counted, a torn or unfit file found before step 1."""
        rank, size, sizes = self._workers.rank, self._workers.size, self._task.sizes
        train_shard = feed.planned_shard(c.TRAIN, self._task.train, rank, size)
        valid_shard = feed.planned_shard(c.VALID, self._task.valid, rank, size)
        feed.target_counts(valid_shard, sizes)
        return train_shard, valid_shard, feed.target_counts(train_shard, sizes)

    def outcome(self) -> Outcome:
        self._resume()
        done = self._progress
        self._watcher.started(
            Plan(self._task.identity, self._workers.size, self._spec.max_epochs, done.step, done.history)
        )
        if not self._progress.is_finished:
            batches = feed.training_batches(
                self._train_shard,
                self._task.sizes.length,
                self._spec.batch_rows,
                self._spec.shuffle_rows,
                self._spec.seed + 7919 * self._workers.rank,
                skip_batches=self._progress.step,
            )
            while not self._progress.is_finished:
                self._epoch(batches)
        if self._workers.rank == 0:
            self.network.set_weights(self._best)
        self._workers.broadcast(list(self.network.weights.values()))
        return Outcome(self.network, self._progress.best_epoch, self._progress.history)

    def _resume(self) -> None:
        """Take up rank 0's newest checkpoint, on all ranks; without one, rank 0's first weights."""
        found = together(
            self._workers,
            lambda: self._checkpoints.newest(self._identity, self._say) if self._workers.rank == 0 else None,
        )
        state = self._workers.gather(None if found is None else vars(found[0]))[0]
        if found is not None:
            _assign(self.network.weights, found[1], "weight/")
            _assign(self._steps.optimizer.state, found[1], "optimizer/")
            self._best = _part(found[1], "best/")
        if state is not None:
            self._progress = Progress(**{**state, "history": tuple(state["history"])})
            self._say(f"going on after epoch {self._progress.epoch} of an earlier run of the same training")
        variables = [*self.network.weights.values(), *self._steps.optimizer.state.values()]
        self._workers.broadcast(variables)

    def _epoch(self, batches: Iterator[feed.Block]) -> None:
        epoch, step, started = self._progress.epoch + 1, self._progress.step, time.monotonic()
        figures = EpochFigures(self._watcher, epoch, self._spec.max_epochs, self._steps_per_epoch)
        for _ in range(self._steps_per_epoch):
            step += 1
            batch, rate = next(batches), self._learning_rate(epoch, step)
            sums = guarded(partial(self._steps.train, batch, step, rate))
            if not all(map(math.isfinite, sums)):
                stop_all(
                    self._workers,
                    f"The loss is not a number at step {step} (epoch {epoch}): the weights ran away. Lower "
                    f"training.learning_rate (now {self._spec.learning_rate}) or training.clip_norm (now "
                    f"{self._spec.clip_norm}) and start again; the checkpoint before it is whole.",
                )
            figures.add(sums, step, rate)
        row = {"epoch": epoch, "learning_rate": rate, **figures.row(), **self._validate()}
        row["seconds"] = round(time.monotonic() - started, 3)
        history = (*self._progress.history, row)
        best_epoch = best_of(history, self._spec)
        is_finished = epoch == self._spec.max_epochs or epoch - best_epoch >= self._spec.patience_epochs
        self._progress = Progress(self._identity, epoch, step, best_epoch, is_finished, history)
        self._watcher.epoch(history, epoch == best_epoch)
        if epoch == best_epoch and self._workers.rank == 0:
            self._best = {name: weight.numpy() for name, weight in self.network.weights.items()}
        together(self._workers, self._checkpoint)

    def _learning_rate(self, epoch: int, step: int) -> float:
        spec = self._spec
        scale = {"none": 1.0, "sqrt": math.sqrt(self._workers.size), "linear": float(self._workers.size)}[
            spec.lr_scaling
        ]
        warm = min(1.0, step / spec.warmup_steps) if spec.warmup_steps else 1.0
        return spec.learning_rate * scale * warm * spec.lr_epoch_decay ** (epoch - 1)

    def _validate(self) -> dict[str, float]:
        """Validation figures over all ranks' rows; each row counts once."""
        batches = feed.evaluation_batches(self._valid_shard, self._task.sizes.length, self._spec.batch_rows)
        own = [self._steps.validate(batch, n_rows) for batch, n_rows in batches]
        total = self._workers.sum(np.sum(np.array(own, np.float64).reshape(-1, len(ValidSums._fields)), axis=0))
        sums = ValidSums(*total.tolist())
        row = {
            "valid_item_loss": sums.item_loss / max(sums.item_targets, 1.0),
            "valid_category_loss": sums.category_loss / max(sums.category_targets, 1.0),
            "valid_item_hr": sums.item_hits / sums.rows,
            "valid_item_ndcg": sums.item_ndcg / sums.rows,
            "valid_category_hr": sums.category_hits / sums.rows,
            "valid_category_ndcg": sums.category_ndcg / sums.rows,
        }
        return {**row, "valid_loss": _weighted(self._spec, row["valid_item_loss"], row["valid_category_loss"])}

    def _checkpoint(self) -> None:
        if self._workers.rank != 0:
            return
        tensors = {f"weight/{name}": weight.numpy() for name, weight in self.network.weights.items()}
        tensors |= {f"optimizer/{name}": value.numpy() for name, value in self._steps.optimizer.state.items()}
        tensors |= {f"best/{name}": value for name, value in self._best.items()}
        self._checkpoints.save(self._progress, tensors)


def best_of(history: Sequence[Mapping[str, float]], spec: TrainingSpec) -> int:
    """The epoch that validation likes best: least loss, or highest NDCG@10; the heads count by their weights.

    The earliest of equals. history: one mapping an epoch, not empty.
    """
    if spec.select_by == "loss":
        return int(min(history, key=lambda row: row["valid_loss"])["epoch"])
    return int(
        max(history, key=lambda row: _weighted(spec, row["valid_item_ndcg"], row["valid_category_ndcg"]))["epoch"]
    )


def _weighted(spec: TrainingSpec, item: float, category: float) -> float:
    return spec.item_weight * item + spec.category_weight * category


def _assign(variables: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]], prefix: str) -> None:
    for name, value in _part(tensors, prefix).items():
        variables[name].assign(value)


def _part(tensors: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _silent(message: str) -> None:
    """Ranks other than 0 say nothing."""
