"""Killed at any moment and started again until it finishes, a training ends where an uninterrupted one does.

Real processes and SIGKILL. Each trial prints its seed; INTEREST_KILL_SEED=n makes it the first trial's.
"""

import json
import os
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from jobs.ranks import start_ranks
from model.errors import ModelError
from tests.model import tables

# Two streams, everything random switched on. A large epsilon: see test_ranks.
CASE = {
    "network": {"embedding_dropout": 0.1, "hidden_dropout": 0.1, "full_softmax_max_items": 5},
    "training": {"streams": 2, "batch_rows": 4, "max_epochs": 3, "patience_epochs": 3, "checkpoint_steps": 7}
    | {"shuffle_rows": 64, "adam_epsilon": 1e-3},
}
N_STEPS = 3 * 40
TOLERANCE = 2e-4
KILLS = 3  # at most in a trial of the long form
_DELAY_S = 0.05  # at most between the chosen step and the kill: longer than a step or a checkpoint takes
_SPARE_STEPS = 15  # from the chosen step to the end, so that the kill comes before it


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("kills")
    tables.write_split(made / "train", tables.ruled_rows(320, seed=1), groups=10)
    tables.write_split(made / "valid", tables.ruled_rows(75, seed=2), groups=2)
    return made


@pytest.fixture(scope="module")
def whole(folder: Path) -> dict[str, np.ndarray]:
    """Weights of the training in one process that nothing interrupts."""
    _write(folder, "whole")
    start_ranks(1, "tests.parallel.rank_job", [str(folder), "whole"])
    return _weights(folder, "whole")


@pytest.mark.timeout(120)
def test_one_process_killed_ends_bit_for_bit_where_an_uninterrupted_one_does(folder: Path, whole):
    with ThreadPoolExecutor() as both:  # two trials side by side, to save time
        for trial in [both.submit(_one_process, folder, whole, _seed(number), kills=1) for number in (0, 1)]:
            trial.result()


@pytest.mark.timeout(120)
def test_two_ranks_killed_end_where_one_process_does(folder: Path, whole):
    _two_ranks(folder, whole, _seed(2), kills=1)


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("trial", range(10))
def test_one_process_killed_again_and_again(folder: Path, whole, trial: int):
    _one_process(folder, whole, _seed(trial), KILLS)


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("trial", range(10))
def test_two_ranks_killed_again_and_again(folder: Path, whole, trial: int):
    _two_ranks(folder, whole, _seed(10 + trial), KILLS)


def _one_process(folder: Path, whole: dict[str, np.ndarray], seed: int, kills: int) -> None:
    case = f"one-{seed}"
    _run_with_kills(folder, case, ranks=1, seed=seed, kills=kills)
    weights = _weights(folder, case)
    assert weights.keys() == whole.keys()
    for name, weight in whole.items():
        np.testing.assert_array_equal(weights[name], weight, err_msg=f"{name}, seed {seed}")
    assert _history(folder, case) == _history(folder, "whole")


def _two_ranks(folder: Path, whole: dict[str, np.ndarray], seed: int, kills: int) -> None:
    case = f"two-{seed}"
    _run_with_kills(folder, case, ranks=2, seed=seed, kills=kills)
    weights = _weights(folder, case)
    for name, weight in whole.items():
        np.testing.assert_allclose(weights[name], weight, atol=TOLERANCE, err_msg=f"{name}, seed {seed}")
    for row, other in zip(_history(folder, case), _history(folder, "whole"), strict=True):
        assert row == pytest.approx(other, rel=1e-3)


def _run_with_kills(folder: Path, case: str, ranks: int, seed: int, kills: int) -> None:
    """Start and kill at a random moment, `kills` times or until little is left; then let it end."""
    rng = random.Random(seed)
    _write(folder, case)
    for _ in range(kills):
        known = _records(folder, case)
        left = N_STEPS - max(map(_last_step, known), default=0) - _SPARE_STEPS
        if left <= 0:
            break
        after, delay_s, whom = rng.randint(1, left), rng.uniform(0, _DELAY_S), rng.choice(["all", 0, 1])
        victims: list[int] = []
        start = _Start(folder, case, ranks)
        try:
            while len(new := _records(folder, case) - known) < ranks or any(_n_steps(path) < after for path in new):
                assert start.thread.is_alive(), f"seed {seed}: ended before step {after} of this start: {start.error}"
                time.sleep(0.001)
            time.sleep(delay_s)
            pids = [int(path.stem.rpartition("-")[2]) for path in sorted(new)]
            victims = pids if whom == "all" or ranks == 1 else [pids[whom]]
            print(f"seed {seed}: {len(victims)} of {ranks} killed {delay_s * 1000:.0f} ms after {after} steps")
        finally:
            for pid in victims:
                os.kill(pid, signal.SIGKILL)
            start.thread.join(60)
        assert isinstance(start.error, ModelError | RuntimeError), f"seed {seed}: it ended before it was killed"
    start_ranks(ranks, "tests.parallel.rank_job", [str(folder), case])
    if ranks == 1:
        assert any(_n_steps(path) < N_STEPS for path in _records(folder, case)), "no start went on from a checkpoint"


class _Start:
    """A training that runs beside the test. `error` is what ended it, None if it finished."""

    def __init__(self, folder: Path, case: str, ranks: int) -> None:
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self._run, args=(folder, case, ranks))
        self.thread.start()

    def _run(self, folder: Path, case: str, ranks: int) -> None:
        try:
            start_ranks(ranks, "tests.parallel.rank_job", [str(folder), case])
        except Exception as error:
            self.error = error


def _write(folder: Path, case: str) -> None:
    (folder / f"{case}.json").write_text(json.dumps(CASE))


def _seed(trial: int) -> int:
    first = os.environ.get("INTEREST_KILL_SEED")
    return int(first) + trial if first else random.SystemRandom().randrange(10**6)


def _records(folder: Path, case: str) -> set[Path]:
    return set(folder.glob(f"{case}-record-*.txt"))


def _n_steps(record: Path) -> int:
    return record.read_text().count("\n")


def _last_step(record: Path) -> int:
    lines = record.read_text().splitlines()
    return int(lines[-1].split()[0]) if lines else 0


def _weights(folder: Path, case: str) -> dict[str, np.ndarray]:
    return dict(np.load(folder / f"{case}-weights-0.npz"))


def _history(folder: Path, case: str) -> list[dict[str, float]]:
    rows = json.loads((folder / f"{case}-history-0.json").read_text())
    return [{name: value for name, value in row.items() if name not in ("seconds", "events_per_s")} for row in rows]
