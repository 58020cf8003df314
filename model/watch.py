"""What people see of a training while it runs: its steps and epochs, handed to whoever watches. Loads no TensorFlow."""

import operator
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from model.checkpoint import Progress

PROGRESS_S = 10.0  # seconds between two progress lines within an epoch

History = Sequence[Mapping[str, float]]


class TrainSums(NamedTuple):
    """Sums over all ranks' positions of a step: loss and targets by kind, and positions trained on."""

    item_loss: float = 0.0
    item_targets: float = 0.0
    category_loss: float = 0.0
    category_targets: float = 0.0
    positions: float = 0.0


@dataclass(frozen=True)
class Plan:
    """A training that starts, or goes on after `steps_done` steps and the epochs of `history`, one mapping each."""

    identity: str
    ranks: int
    max_epochs: int
    steps_done: int
    history: tuple[Mapping[str, float], ...]


@dataclass(frozen=True)
class Step:
    """A finished step. Losses are means over the epoch so far, those of the step alone are `own_…`; over all ranks."""

    epoch: int
    max_epochs: int
    step: int  # of the epoch, from 1
    steps: int  # that an epoch has
    number: int  # of the training, from 1
    item_loss: float
    category_loss: float
    own_item_loss: float
    own_category_loss: float
    learning_rate: float
    events_per_s: float
    seconds: float  # since the epoch began

    @property
    def title(self) -> str:
        """Which epoch of how many."""
        return f"epoch {self.epoch}/{self.max_epochs}"

    @property
    def figures(self) -> str:
        """Losses, speed, and the time that is left of the epoch's training."""
        left_s = self.seconds / self.step * (self.steps - self.step)
        return (
            f"loss {self.item_loss:.3f} item, {self.category_loss:.3f} category  {self.events_per_s:,.0f} events/s  "
            f"{left_s:.0f} s left"
        )


class Watcher:
    """Someone who looks on, on rank 0; by default at nothing. Nothing that a watcher does changes the training."""

    def started(self, plan: Plan) -> None:
        """Before the first step of this run."""

    def step(self, step: Step) -> None:
        """After every step; to be quick about."""

    def epoch(self, history: History, is_best: bool) -> None:
        """After an epoch's validation; it is the last of `history`."""

    def bundled(self, version: str, best_epoch: int) -> None:
        """The training came to a bundle."""

    def close(self) -> None:
        """No more will come, whether the training ended well or not."""


class Lines(Watcher):
    """A line every ten seconds and one for each epoch."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._max_epochs = 0
        self._epoch, self._told_s = 0, 0.0

    def started(self, plan: Plan) -> None:
        """See Watcher."""
        self._max_epochs = plan.max_epochs

    def step(self, step: Step) -> None:
        """See Watcher."""
        if step.epoch != self._epoch:
            self._epoch, self._told_s = step.epoch, 0.0
        if step.seconds - self._told_s >= PROGRESS_S:
            self._told_s = step.seconds
            self._say(f"{step.title}  step {step.step}/{step.steps}  {step.figures}")

    def epoch(self, history: History, is_best: bool) -> None:
        """See Watcher."""
        self._say(epoch_line(history[-1], self._max_epochs, is_best))


class Watchers(Watcher):
    """Several watchers as one. One that fails is told of once and left out from then on: the training goes on."""

    def __init__(self, watchers: Iterable[Watcher], say: Callable[[str], None]) -> None:
        self._watchers, self._say = list(watchers), say

    def started(self, plan: Plan) -> None:
        """See Watcher."""
        self._each(lambda watcher: watcher.started(plan))

    def step(self, step: Step) -> None:
        """See Watcher."""
        self._each(lambda watcher: watcher.step(step))

    def epoch(self, history: History, is_best: bool) -> None:
        """See Watcher."""
        self._each(lambda watcher: watcher.epoch(history, is_best))

    def bundled(self, version: str, best_epoch: int) -> None:
        """See Watcher."""
        self._each(lambda watcher: watcher.bundled(version, best_epoch))

    def close(self) -> None:
        """See Watcher."""
        self._each(lambda watcher: watcher.close())

    def _each(self, call: Callable[[Watcher], None]) -> None:
        for watcher in list(self._watchers):
            try:
                call(watcher)
            except Exception as error:
                self._watchers.remove(watcher)
                name, reason = type(watcher).__name__, " ".join(str(error).split())[:300]
                self._say(f"{name} stopped: {type(error).__name__}: {reason}. The training goes on without it.")


class Summary(Watcher):
    """What a training comes to, in a line at its end. Speed is that of the epochs of this run, not of earlier ones."""

    def __init__(self) -> None:
        self.plan = Plan("", 1, 0, 0, ())
        self._speeds: list[float] = []

    def started(self, plan: Plan) -> None:
        """See Watcher."""
        self.plan, self._speeds = plan, []

    def epoch(self, history: History, is_best: bool) -> None:  # noqa: ARG002
        """See Watcher."""
        self._speeds.append(history[-1]["events_per_s"])

    @property
    def events_per_s(self) -> float | None:
        """Mean over the epochs of this run; None where it trained none."""
        return sum(self._speeds) / len(self._speeds) if self._speeds else None

    def line(self, best_epoch: int, n_epochs: int, seconds: float, threads: int, one_rank: float | None) -> str:
        """For people. one_rank: events/s of one rank with as many threads on the same settings, where that is known."""
        parts = [f"best epoch {best_epoch} of {n_epochs}", f"{seconds:.0f} s"]
        speed, ranks = self.events_per_s, self.plan.ranks
        if speed is None:
            return f"summary: {', '.join(parts)}, no epoch was left to train"
        parts += [f"{speed:,.0f} events/s (mean over epochs)", f"{ranks} x {threads} (ranks x threads)"]
        if ranks > 1 and one_rank:
            parts.append(f"{speed / one_rank:.2f} times one rank ({one_rank:,.0f} events/s)")
        elif ranks > 1:
            parts.append(f"{speed / ranks:,.0f} events/s per rank")
        return f"summary: {', '.join(parts)}"


class EpochFigures:
    """Running sums of an epoch's training over all ranks, shown to a watcher after each step."""

    def __init__(self, watcher: Watcher, max_epochs: int, steps: int, progress: "Progress") -> None:
        """progress: where the epoch begins, or goes on if an earlier run took some of its `steps`."""
        self._watcher, self._epoch, self._max_epochs, self._steps = watcher, progress.epoch + 1, max_epochs, steps
        self._started = time.monotonic() - progress.seconds
        self._sums = TrainSums(*progress.train_sums) if progress.train_sums else TrainSums()
        self._done = progress.step - progress.epoch * steps

    @property
    def seconds(self) -> float:
        """Spent on the epoch so far, by an earlier run too."""
        return time.monotonic() - self._started

    def state(self) -> dict[str, Any]:
        """What a later run needs to go on: see Progress."""
        return {"train_sums": tuple(self._sums), "seconds": round(self.seconds, 3)}

    def add(self, sums: TrainSums, number: int, learning_rate: float) -> None:
        """Count a step; `number` of the training, from 1."""
        self._sums = TrainSums(*map(operator.add, self._sums, sums))
        self._done += 1
        own, row = _means(sums), self.row()
        self._watcher.step(
            Step(
                epoch=self._epoch,
                max_epochs=self._max_epochs,
                step=self._done,
                steps=self._steps,
                number=number,
                item_loss=row["train_item_loss"],
                category_loss=row["train_category_loss"],
                own_item_loss=own["train_item_loss"],
                own_category_loss=own["train_category_loss"],
                learning_rate=learning_rate,
                events_per_s=row["events_per_s"],
                seconds=self.seconds,
            )
        )

    def row(self) -> dict[str, float]:
        """Train losses and events/s of the steps counted."""
        return {**_means(self._sums), "events_per_s": round(self._sums.positions / max(self.seconds, 1e-9), 1)}


def _means(sums: TrainSums) -> dict[str, float]:
    return {
        "train_item_loss": sums.item_loss / max(sums.item_targets, 1.0),
        "train_category_loss": sums.category_loss / max(sums.category_targets, 1.0),
    }


def epoch_line(row: Mapping[str, float], max_epochs: int, is_best: bool) -> str:
    """One epoch's figures for people."""
    return (
        f"epoch {row['epoch']}/{max_epochs}  train {row['train_item_loss']:.3f} item, {row['train_category_loss']:.3f} "
        f"category  valid {row['valid_item_loss']:.3f}, {row['valid_category_loss']:.3f}  NDCG@10 "
        f"{row['valid_item_ndcg']:.4f}, {row['valid_category_ndcg']:.4f}  {row['events_per_s']:,.0f} events/s  "
        f"{row['seconds']:.0f} s{'  best so far' if is_best else ''}"
    )
