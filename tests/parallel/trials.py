"""A small training, started and killed in processes of its own, and what its ranks recorded; for tests of faults."""

import json
import os
import random
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jobs.ranks import start_ranks
from tests.model import tables

# Two streams, everything random switched on. A large epsilon: see test_ranks.
CASE: dict[str, Any] = {
    "network": {"embedding_dropout": 0.1, "hidden_dropout": 0.1, "full_softmax_max_items": 5},
    "training": {"streams": 2, "batch_rows": 4, "max_epochs": 3, "patience_epochs": 3, "shuffle_rows": 64}
    | {"checkpoint_steps": 7, "commit_steps": 5, "adam_epsilon": 1e-3},
}
N_STEPS = 3 * 40
TOLERANCE = (
    1e-5  # of weights, between trainings with other numbers of ranks; with two ranks they were equal bit for bit
)
DELAY_S = 0.05  # at most between a chosen step and the kill: longer than a step or a checkpoint takes
SPARE_STEPS = 30  # that a training takes at most between a chosen step and the kill


class Start:
    """A training that runs beside the test until it is killed. `error` is what ended it, None if it finished.

    The moment is a random one of the `left` steps from here. However late it comes, the training has not ended: it
    waits for it SPARE_STEPS later.
    """

    def __init__(
        self, folder: Path, case: str, ranks: int, rng: random.Random, left: int, min_ranks: int | None = None
    ) -> None:
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self._run, args=(folder, case, ranks, min_ranks))
        self._folder, self._case, self._ranks, self._rng = folder, case, ranks, rng
        self._known = set(records(folder, case))
        self._after, self._delay_s = rng.randint(1, left), rng.uniform(0, DELAY_S)
        self._killed = folder / f"{case}-killed-{len(self._known)}"
        content = json.loads((folder / f"{case}.json").read_text())
        hold = {"hold_after": self._after + SPARE_STEPS - 1, "hold_until": self._killed.name}
        (folder / f"{case}.json").write_text(json.dumps(content | hold))
        self.thread.start()

    def _run(self, folder: Path, case: str, ranks: int, min_ranks: int | None) -> None:
        try:
            start_ranks(ranks, "tests.parallel.rank_job", [str(folder), case], min_ranks)
        except Exception as error:
            self.error = error

    def kill(self, n_victims: int) -> list[Path]:
        """SIGKILL to random ranks; the victims' records."""
        own: list[Path] = []
        try:
            while len(own) < self._ranks or any(len(steps(path)) < self._after for path in own):
                assert self.thread.is_alive(), f"it ended before step {self._after} of this start: {self.error}"
                time.sleep(0.001)
                own = sorted(set(records(self._folder, self._case)) - self._known)
            time.sleep(self._delay_s)
        except BaseException:
            n_victims = self._ranks
            raise
        finally:
            victims = self._rng.sample(own, min(n_victims, len(own)))
            for path in victims:
                with suppress(ProcessLookupError):  # what went wrong before is told instead
                    os.kill(int(path.stem.rpartition("-")[2]), signal.SIGKILL)
            self._killed.touch()
        moment = f"{self._delay_s * 1000:.0f} ms after {self._after} steps"
        print(f"{self._case}: {n_victims} of {self._ranks} killed {moment}")
        return victims


@dataclass(frozen=True)
class Taken:
    """A step that a rank took part in: positions over all ranks, and (stream, number) of the rank's own batches."""

    step: int
    positions: float
    batches: tuple[tuple[int, int], ...]


def write_rows(folder: Path) -> None:
    tables.write_split(folder / "train", tables.ruled_rows(320, seed=1), groups=10)
    tables.write_split(folder / "valid", tables.ruled_rows(75, seed=2), groups=2)


def write_case(folder: Path, case: str, **more: Any) -> None:
    (folder / f"{case}.json").write_text(json.dumps({**CASE, **more}))


def new_seed(trial: int) -> int:
    """Another one in each run, unless INTEREST_KILL_SEED gives that of trial 0."""
    first = os.environ.get("INTEREST_KILL_SEED")
    return int(first) + trial if first else random.SystemRandom().randrange(10**6)


def records(folder: Path, case: str) -> list[Path]:
    return sorted(folder.glob(f"{case}-record-*.txt"))


def steps(record: Path) -> list[Taken]:
    """What one process took part in, in order; a line cut off by a kill is none."""
    found = []
    for line in record.read_text().split("\n")[:-1]:
        step, positions, *batches = line.split()
        numbers = tuple(tuple(map(int, batch.split(":"))) for batch in batches)
        found.append(Taken(int(step), float(positions), numbers))  # type: ignore[arg-type]
    return found


def weights(folder: Path, case: str) -> dict[str, np.ndarray]:
    return dict(np.load(folder / f"{case}-weights-0.npz"))


def history(folder: Path, case: str) -> list[dict[str, float]]:
    """The history without what a clock says."""
    rows = json.loads((folder / f"{case}-history-0.json").read_text())
    return [{name: value for name, value in row.items() if name not in ("seconds", "events_per_s")} for row in rows]
