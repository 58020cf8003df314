"""The training loop: epochs by counted steps, decisions that are the same on every rank, the best weights kept."""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from features import columns as c
from model import feed, streams
from model.checkpoint import Checkpoint, Checkpoints, Progress
from model.network import Network, Tensor
from model.preflight import agree, library_versions
from model.spec import NetworkSpec, Sizes, TrainingSpec
from model.step import KINDS, Steps, ValidSums
from model.watch import EpochFigures, Lines, Plan, Watcher
from model.workers import Workers, guarded, stop_all, together

# Settings that may change between two starts of one training: the weights are the same with any of their values.
_SHAPES_NOTHING = {"checkpoint_steps", "checkpoints_kept", "commit_steps", "cycle_ms", "fusion_mib"}

# Scores, rows × items, that validation holds at a time: 64 MiB, of which a step has a few copies.
_VALID_SCORES = 1 << 24

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
        training = self.training.model_dump(exclude=_SHAPES_NOTHING)
        facts = {name: value for name, value in self.facts.items() if name != "configuration"}
        specs = [self.network.model_dump(), training, self.sizes.model_dump(), facts]
        return hashlib.sha256(json.dumps(specs, sort_keys=True).encode()).hexdigest()[:16]


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
    Goes on from the newest checkpoint of the same task. When one of the ranks is lost, elastic ones go on from their
    last commit.

    Raises:
        ModelError: the data, the ranks or the numbers are not fit; on every rank, before or within the first steps.
    """
    return workers.persevere(_Run(task, workers, checkpoints, say, watcher).outcome)


class _Run:
    """A training as one rank sees it. `outcome` starts again from the last commit when elastic ranks change."""

    def __init__(
        self,
        task: Task,
        workers: Workers,
        checkpoints: Checkpoints,
        say: Callable[[str], None],
        watcher: Watcher | None = None,
    ) -> None:
        self._task, self._workers, self._checkpoints, self._tell = task, workers, checkpoints, say
        self._shown = watcher or Lines(say)
        self._spec = task.training
        self.network = Network(task.network, task.sizes, self._spec.seed, tuple(self._spec.head_weights))
        with tf.device("CPU"):
            self._best = {name: tf.Variable(tf.zeros_like(value)) for name, value in self.network.weights.items()}
        self._counts: Counts = {}
        self._steps: Steps  # made when targets are counted
        self._committed: tuple[Progress, dict[str, NDArray[np.float32]]] | None = None

    def outcome(self) -> Outcome:
        self._join()
        done = self._progress
        self._watcher.started(
            Plan(self._task.identity, self._workers.size, self._spec.max_epochs, done.step, done.history)
        )
        while not self._progress.is_finished:
            self._epoch()
        for name, weight in self.network.weights.items():
            weight.assign(self._best[name])
        return Outcome(self.network, self._progress.best_epoch, self._progress.history)

    def _say(self, message: str) -> None:
        if self._workers.rank == 0:  # asked anew each time: elastic ranks change places
            self._tell(message)

    @property
    def _watcher(self) -> Watcher:
        """Who looks on, on rank 0; nobody elsewhere."""
        return self._shown if self._workers.rank == 0 else Watcher()

    def _join(self) -> None:
        """Agree with the other ranks on what is trained and from where on, and take this rank's streams.

        From the newest commit of any rank, if there is one; else from rank 0's newest checkpoint; else from the start.
        """
        workers, task, spec = self._workers, self._task, self._spec
        agree(workers, {**library_versions(), **task.facts, "settings": task.identity})
        committed = workers.gather(-1 if self._committed is None else self._committed[0].step)
        root, is_begun = committed.index(max(committed)), max(committed) >= 0
        found = None if is_begun else together(workers, self._newest)
        mine = found.progress if found is not None else self._committed[0] if self._committed is not None else None
        state = workers.gather(None if mine is None else asdict(mine))[root]
        if state is None:
            self._progress = Progress(task.identity, spec.seed, spec.streams or workers.size)
        else:
            self._progress = Progress.from_json(state)
            self._say(_joined_line(self._progress, workers.size, is_begun))
        counts = together(workers, partial(self._take_streams, is_begun))
        if is_begun and workers.rank != root:
            counts = {kind: np.zeros_like(count) for kind, count in counts.items()}
        is_built = bool(self._counts)
        self._counts = {kind: workers.sum(count.astype(np.float64)).astype(np.int64) for kind, count in counts.items()}
        self._steps_per_epoch = streams.steps_per_epoch(
            self._counts[c.LENGTH], task.sizes.length, spec, self._progress.streams
        )
        agree(workers, {"steps per epoch": str(self._steps_per_epoch)})
        if not is_built:
            # The scores of BPR-max are kept near 0, and no log-probabilities.
            for kind in (c.CATEGORY,) if self._spec.loss == "bpr_max" else KINDS:
                self.network.start_bias(kind, self._counts[kind])
            self._steps = Steps(self.network, spec, workers, self._counts)
        together(workers, partial(self._take_up, found))
        workers.broadcast(list(self._variables.values()), root)
        self._commit()

    def _newest(self) -> Checkpoint | None:
        """Rank 0's newest checkpoint of this training; other ranks have none."""
        return self._checkpoints.newest(self._task.identity, self._say) if self._workers.rank == 0 else None

    def _take_streams(self, is_begun: bool) -> Counts:
        """Deal the streams. At the start, read this rank's once whole: a torn or unfit file is found before step 1.

        Returns how often each id is a target: in this rank's streams, or where training is under way, in all.
        """
        task, n_streams = self._task, self._progress.streams
        own = streams.own_streams(n_streams, self._workers.rank, self._workers.size)
        streams.check_streams(task.train, n_streams)
        self._valid_shard = streams.shard_of(c.VALID, task.valid, n_streams, own)
        self._batches = streams.step_batches(
            task.train, task.sizes.length, self._spec, n_streams, own, self._progress.step
        )
        if is_begun:
            return self._counts or feed.no_counts(task.sizes)
        feed.target_counts(self._valid_shard, task.sizes)
        return feed.target_counts(streams.shard_of(c.TRAIN, task.train, n_streams, own), task.sizes)

    def _take_up(self, found: Checkpoint | None) -> None:
        """Set this rank's variables to a checkpoint's, or back to its own last commit."""
        tensors = found.tensors() if found is not None else self._committed[1].items() if self._committed else ()
        variables = self._variables
        for name, value in tensors:
            variables[name].assign(value)

    def _commit(self) -> None:
        """Keep a copy in memory for the case that a rank is lost. What is best changes with a commit only."""
        if self._workers.is_elastic:
            copies = {} if self._committed is None else self._committed[1]
            for name, variable in self._variables.items():
                if not name.startswith("best/"):
                    copies[name] = variable.numpy()
            self._committed = self._progress, copies

    @property
    def _variables(self) -> dict[str, Tensor]:
        """All that makes up the state of a training besides its progress, by name."""
        named = {f"weight/{name}": value for name, value in self.network.weights.items()}
        named |= {f"optimizer/{name}": value for name, value in self._steps.optimizer.state.items()}
        named |= {f"average/{name}": value for name, value in self._steps.averages.state.items()}
        if self._progress.best_epoch:
            named |= {f"best/{name}": value for name, value in self._best.items()}
        return named

    def _epoch(self) -> None:
        """Train one epoch, or what is left of it, and decide what follows; the same on every rank."""
        epoch, last = self._progress.epoch + 1, (self._progress.epoch + 1) * self._steps_per_epoch
        figures = EpochFigures(self._watcher, self._spec.max_epochs, self._steps_per_epoch, self._progress)
        for step in range(self._progress.step + 1, last + 1):
            rate = self._learning_rate(epoch, step)
            sums = guarded(partial(self._steps.train, next(self._batches), step, rate))
            self._check_numbers(sums, step, epoch)
            figures.add(sums, step, rate)
            is_saved = self._spec.checkpoint_steps > 0 and step % self._spec.checkpoint_steps == 0
            is_committed = self._workers.is_elastic and step % self._spec.commit_steps == 0
            if step < last and (is_saved or is_committed):
                self._progress = replace(self._progress, step=step, **figures.state())
                self._secure(on_disk=is_saved)
        with self._steps.averages.in_place(last):
            valid = self._validate()
        row = {"epoch": epoch, "learning_rate": self._learning_rate(epoch, last), **figures.row(), **valid}
        self._check_numbers(row.values(), last, epoch)
        row["seconds"] = round(figures.seconds, 3)
        history = (*self._progress.history, row)
        best_epoch = best_of(history, self._spec)
        is_finished = epoch == self._spec.max_epochs or epoch - best_epoch >= self._spec.patience_epochs
        if epoch == best_epoch:
            with self._steps.averages.in_place(last):
                for name, weight in self.network.weights.items():
                    self._best[name].assign(weight)
        self._progress = replace(
            self._progress,
            epoch=epoch,
            step=last,
            best_epoch=best_epoch,
            is_finished=is_finished,
            history=history,
            train_sums=(),
            seconds=0.0,
        )
        self._watcher.epoch(history, epoch == best_epoch)
        self._secure(on_disk=True)

    def _secure(self, on_disk: bool) -> None:
        """Make the progress so far one that is gone back to, in memory (at once, before ranks meet) and on disk."""
        self._commit()
        if on_disk:
            together(self._workers, self._checkpoint)
        self._workers.look_for_changes()

    def _check_numbers(self, figures: Iterable[float], step: int, epoch: int) -> None:
        if not all(map(math.isfinite, figures)):
            stop_all(
                self._workers,
                f"The loss is not a number at step {step} (epoch {epoch}): the weights ran away. Lower "
                f"training.learning_rate (now {self._spec.learning_rate}) or training.clip_norm (now "
                f"{self._spec.clip_norm}) and start again.",
            )

    def _learning_rate(self, epoch: int, step: int) -> float:
        spec = self._spec
        n_batches = self._progress.streams * spec.backward_passes_per_step  # in a step, over all ranks
        scale = {"none": 1.0, "sqrt": math.sqrt(n_batches), "linear": float(n_batches)}[spec.lr_scaling]
        warm = min(1.0, step / spec.warmup_steps) if spec.warmup_steps else 1.0
        return spec.learning_rate * scale * warm * spec.lr_epoch_decay ** (epoch - 1)

    def _validate(self) -> dict[str, float]:
        """Validation figures over all ranks' rows; each row counts once."""
        sizes = self._task.sizes
        batch_rows = min(self._spec.batch_rows, max(1, _VALID_SCORES // sizes.items))
        batches = feed.evaluation_batches(self._valid_shard, sizes.length, batch_rows)
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
        if self._workers.rank == 0:
            self._checkpoints.save(self._progress, self._variables)


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


def _joined_line(progress: Progress, ranks: int, is_begun: bool) -> str:
    where = f"epoch {progress.epoch}" + (f", step {progress.step}" if progress.train_sums else "")
    if is_begun:
        return f"ranks have changed: {ranks} go on with {progress.streams} streams after {where}"
    served = f"; its {progress.streams} streams on {ranks} rank{'s' if ranks > 1 else ''}"
    return f"going on after {where} of an earlier run of the same training{served if progress.streams != ranks else ''}"
