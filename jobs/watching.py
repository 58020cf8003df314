"""Who watches a training: its lines or progress bar, files that grow with it, MLflow; and what is said at its end."""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jobs.cli import say
from jobs.settings import Settings
from jobs.store import Store
from jobs.terminal import is_terminal
from jobs.tracking import MlflowRun
from model.bar import Bar, BarLines
from model.watch import Lines, Plan, Summary, Watcher, Watchers

FOLDER = "_training"  # `<root>/_training/dt=D`: what is of interest while a training runs
BAR = "INTEREST_BAR"  # set for ranks whose output reaches a process that draws the progress bar
_SPEED = "speed.json"


class Watch:
    """All that watches one training on rank 0. `tell` prints a line beside the progress bar."""

    def __init__(
        self, settings: Settings, store: Store, day: str, threads: int, further: Sequence[Watcher] = ()
    ) -> None:
        """Raises UsageError if tracking can't start."""
        from model.curves import HistoryFile, TensorBoardFiles  # here: TensorFlow is loaded by the ranks alone

        self._store, self._folder, self._threads = store, f"{store.root}/{FOLDER}/dt={day}", threads
        progress, self.tell = _progress()
        self._summary = Summary()
        watchers: list[Watcher] = [progress, self._summary, HistoryFile(self._folder), *further]
        if settings.tracking.tensorboard_steps:
            watchers.append(TensorBoardFiles(self._folder, settings.tracking.tensorboard_steps))
        if settings.tracking.mlflow_uri:
            watchers.append(MlflowRun(settings.tracking, {**_parameters(settings), "day": day, "threads": threads}))
        self.watcher = Watchers(watchers, self.tell)

    def finish(self, version: str, best_epoch: int, n_epochs: int, seconds: float) -> str:
        """Tell the watchers of the bundle; returns the summary line."""
        self.watcher.bundled(version, best_epoch)
        known = self._one_rank_speed(self._summary.plan)
        return self._summary.line(best_epoch, n_epochs, seconds, self._threads, known)

    def close(self) -> None:
        """End every watcher, however the training ended."""
        self.watcher.close()

    def _one_rank_speed(self, plan: Plan) -> float | None:
        """Events/s of one rank with the same settings and threads, if known: a training by one leaves it here."""
        path, speed = f"{self._folder}/{_SPEED}", self._summary.events_per_s
        key = {"training": plan.identity, "threads": self._threads}
        try:
            if plan.ranks == 1 and speed is not None:
                self._store.write_json(path, {**key, "events_per_s": round(speed, 1)})
                return speed
            found = json.loads(self._store.fs.cat_file(path))
            return float(found["events_per_s"]) if found == {**found, **key} else None
        except (OSError, ValueError, KeyError, TypeError):  # the bundle is there: nothing is to fail for a comparison
            return None


def terminal_bar() -> Bar | None:
    """A progress bar where standard error is a terminal that can draw one."""
    if not is_terminal(sys.stderr):
        return None
    return Bar(sys.stderr) if os.get_terminal_size(sys.stderr.fileno()).columns else None


def _progress() -> tuple[Watcher, Callable[[str], None]]:
    bar = terminal_bar()
    if bar is not None:
        return bar, bar.say
    return (BarLines(say) if BAR in os.environ else Lines(say)), say


def _parameters(settings: Settings) -> dict[str, Any]:
    sections: Mapping[str, Mapping[str, Any]] = {
        "network": settings.network.model_dump(mode="json"),
        "training": settings.training.model_dump(mode="json"),
    }
    return {f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()}
