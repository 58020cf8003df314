"""The training loop: epochs by counted steps, decisions that are the same on every rank, the best weights kept."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features import columns as c
from model import feed, streams
from model.checkpoint import Checkpoints, Progress
from model.network import Network
from model.preflight import agree, library_versions
from model.spec import NetworkSpec, Sizes, TrainingSpec
from model.step import KINDS, Steps, TrainSums, ValidSums
from model.workers import Workers, guarded, stop_all, together

PROGRESS_S = 10.0  # seconds between two progress lines within an epoch

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
        """Hash of all that shapes the weights, but for the number of streams where ranks decide it."""
        specs = [self.network.model_dump(), self.training.model_dump(), self.sizes.model_dump()]
        return hashlib.sha256(json.dumps([specs, dict(self.facts)], sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Outcome:
    """A finished training: the network with its best weights, on every rank, and one mapping of figures an epoch."""

    network: Network
    best_epoch: int
    history: tuple[Mapping[str, float], ...]


def train(task: Task, workers: Workers, checkpoints: Checkpoints, say: Callable[[str], None]) -> Outcome:
    """Train until validation stops getting better, and hand back the best weights.

    Rank 0 alone writes checkpoints and speaks (`say`). Goes on from the newest checkpoint of the same task.

    Raises:
        ModelError: the data, the ranks or the numbers are not fit; on every rank, before or within the first steps.
    """
    return _Run(task, workers, checkpoints, say if workers.rank == 0 else _silent).outcome()


class _Run:
    def __init__(self, task: Task, workers: Workers, checkpoints: Checkpoints, say: Callable[[str], None]) -> None:
        self._task, self._workers, self._checkpoints, self._say = task, workers, checkpoints, say
        self._spec = task.training
        self.network = Network(task.network, task.sizes, self._spec.seed)
        self._best: dict[str, NDArray[Any]] = {}

    def outcome(self) -> Outcome:
        self._join()
        while not self._progress.is_finished:
            self._epoch()
        if self._workers.rank == 0:
            self.network.set_weights(self._best)
        self._workers.broadcast(list(self.network.weights.values()))
        return Outcome(self.network, self._progress.best_epoch, self._progress.history)

    def _join(self) -> None:
        """Agree with the other ranks on what is trained and from where on, and take this rank's streams."""
        workers, task, spec = self._workers, self._task, self._spec
        agree(workers, {**library_versions(), **task.facts, "settings": task.identity})
        found = together(workers, self._newest)
        state = workers.gather(None if found is None else asdict(found[0]))[0]
        self._progress = (
            Progress(task.identity, spec.streams or workers.size, 0, 0, 0, False, ())
            if state is None
            else Progress(**{**state, "history": tuple(state["history"])})
        )
        own_counts = together(workers, self._take_streams)
        agree(workers, {"steps per epoch": str(self._steps_per_epoch)})
        counts = {kind: workers.sum(own_counts[kind].astype(np.float64)).astype(np.int64) for kind in KINDS}
        for kind in KINDS:
            self.network.start_bias(kind, counts[kind])
        self._steps = Steps(self.network, spec, workers, counts)
        if found is not None:
            _assign(self.network.weights, found[1], "weight/")
            _assign(self._steps.optimizer.state, found[1], "optimizer/")
            self._best = _part(found[1], "best/")
        if state is not None:
            self._say(f"going on after epoch {self._progress.epoch} of an earlier run of the same training")
        workers.broadcast([*self.network.weights.values(), *self._steps.optimizer.state.values()])

    def _newest(self) -> tuple[Progress, dict[str, NDArray[Any]]] | None:
        """Rank 0's newest checkpoint of this training; other ranks have none."""
        return self._checkpoints.newest(self._task.identity, self._say) if self._workers.rank == 0 else None

    def _take_streams(self) -> Counts:
        """Deal the streams, and read this rank's once whole: a torn or unfit file is found before step 1.

        Returns how often each id is a target in them.
        """
        task, n_streams = self._task, self._progress.streams
        own = streams.own_streams(n_streams, self._workers.rank, self._workers.size)
        self._steps_per_epoch = streams.steps_per_epoch(task.train, n_streams, self._spec)
        self._valid_shard = streams.shard_of(c.VALID, task.valid, n_streams, own)
        feed.target_counts(self._valid_shard, task.sizes)
        counts = feed.target_counts(streams.shard_of(c.TRAIN, task.train, n_streams, own), task.sizes)
        self._batches = streams.step_batches(
            task.train, task.sizes.length, self._spec, n_streams, own, self._progress.step
        )
        return counts

    def _epoch(self) -> None:
        epoch, step, started = self._progress.epoch + 1, self._progress.step, time.monotonic()
        figures = _TrainFigures(self._say, f"epoch {epoch}/{self._spec.max_epochs}", self._steps_per_epoch)
        for _ in range(self._steps_per_epoch):
            step += 1
            batches, rate = next(self._batches), self._learning_rate(epoch, step)
            sums = guarded(partial(self._steps.train, batches, step, rate))
            if not all(map(math.isfinite, sums)):
                stop_all(
                    self._workers,
                    f"The loss is not a number at step {step} (epoch {epoch}): the weights ran away. Lower "
                    f"training.learning_rate (now {self._spec.learning_rate}) or training.clip_norm (now "
                    f"{self._spec.clip_norm}) and start again; the checkpoint before it is whole.",
                )
            figures.add(sums)
        row = {"epoch": epoch, "learning_rate": rate, **figures.row(), **self._validate()}
        row["seconds"] = round(time.monotonic() - started, 3)
        history = (*self._progress.history, row)
        best_epoch = best_of(history, self._spec)
        is_finished = epoch == self._spec.max_epochs or epoch - best_epoch >= self._spec.patience_epochs
        self._progress = replace(
            self._progress, epoch=epoch, step=step, best_epoch=best_epoch, is_finished=is_finished, history=history
        )
        self._say(_epoch_line(row, self._spec.max_epochs, epoch == best_epoch))
        if epoch == best_epoch and self._workers.rank == 0:
            self._best = {name: weight.numpy() for name, weight in self.network.weights.items()}
        together(self._workers, self._checkpoint)

    def _learning_rate(self, epoch: int, step: int) -> float:
        spec = self._spec
        n_batches = self._progress.streams * spec.backward_passes_per_step  # in a step, over all ranks
        scale = {"none": 1.0, "sqrt": math.sqrt(n_batches), "linear": float(n_batches)}[spec.lr_scaling]
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


class _TrainFigures:
    """Running sums of an epoch's training, and its progress lines. Sums are over all ranks."""

    def __init__(self, say: Callable[[str], None], title: str, steps: int) -> None:
        self._say, self._title, self._steps = say, title, steps
        self._started = self._told = time.monotonic()
        self._sums = np.zeros(len(TrainSums._fields))
        self._done = 0

    def add(self, sums: TrainSums) -> None:
        self._sums += sums
        self._done += 1
        now = time.monotonic()
        if now - self._told >= PROGRESS_S:
            self._told = now
            row, left_s = self.row(), (now - self._started) / self._done * (self._steps - self._done)
            self._say(
                f"{self._title}  step {self._done}/{self._steps}  loss {row['train_item_loss']:.3f} item, "
                f"{row['train_category_loss']:.3f} category  {row['events_per_s']:,.0f} events/s  {left_s:.0f} s left"
            )

    def row(self) -> dict[str, float]:
        sums = TrainSums(*self._sums.tolist())
        return {
            "train_item_loss": sums.item_loss / max(sums.item_targets, 1.0),
            "train_category_loss": sums.category_loss / max(sums.category_targets, 1.0),
            "events_per_s": round(sums.positions / (time.monotonic() - self._started), 1),
        }


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


def _epoch_line(row: Mapping[str, float], max_epochs: int, is_best: bool) -> str:
    return (
        f"epoch {row['epoch']}/{max_epochs}  train {row['train_item_loss']:.3f} item, {row['train_category_loss']:.3f} "
        f"category  valid {row['valid_item_loss']:.3f}, {row['valid_category_loss']:.3f}  NDCG@10 "
        f"{row['valid_item_ndcg']:.4f}, {row['valid_category_ndcg']:.4f}  {row['events_per_s']:,.0f} events/s  "
        f"{row['seconds']:.0f} s{'  best so far' if is_best else ''}"
    )


def _assign(variables: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]], prefix: str) -> None:
    for name, value in _part(tensors, prefix).items():
        variables[name].assign(value)


def _part(tensors: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _silent(message: str) -> None:
    """Ranks other than 0 say nothing."""
