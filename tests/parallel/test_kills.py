"""Killed at any moment and started again until it finishes, a training ends where an uninterrupted one does.

Real processes and SIGKILL. Each trial prints its seed; INTEREST_KILL_SEED=n makes it that of the first trial.
"""

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from jobs.ranks import start_ranks
from model.errors import ModelError
from tests.parallel import trials

KILLS = 3  # at most in a trial of the long form


def test_one_process_killed_ends_bit_for_bit_where_an_uninterrupted_one_does(folder_of_whole: Path):
    with ThreadPoolExecutor() as both:  # two trials side by side, to save time
        for trial in [both.submit(_one_process, folder_of_whole, trials.new_seed(number), 1) for number in (0, 1)]:
            trial.result()


def test_two_ranks_killed_end_where_one_process_does(folder_of_whole: Path):
    _two_ranks(folder_of_whole, trials.new_seed(2), kills=1)


@pytest.mark.soak
@pytest.mark.parametrize("trial", range(10))
def test_one_process_killed_again_and_again(folder_of_whole: Path, trial: int):
    _one_process(folder_of_whole, trials.new_seed(trial), KILLS)


@pytest.mark.soak
@pytest.mark.parametrize("trial", range(10))
def test_two_ranks_killed_again_and_again(folder_of_whole: Path, trial: int):
    _two_ranks(folder_of_whole, trials.new_seed(trial), KILLS)


def _one_process(folder: Path, seed: int, kills: int) -> None:
    case, whole = f"one-{seed}", trials.weights(folder, "whole")
    _run_with_kills(folder, case, ranks=1, seed=seed, kills=kills)
    weights = trials.weights(folder, case)
    assert weights.keys() == whole.keys()
    for name, weight in whole.items():
        np.testing.assert_array_equal(weights[name], weight, err_msg=f"{name}, {case}")
    assert trials.history(folder, case) == trials.history(folder, "whole")


def _two_ranks(folder: Path, seed: int, kills: int) -> None:
    case = f"two-{seed}"
    _run_with_kills(folder, case, ranks=2, seed=seed, kills=kills)
    weights = trials.weights(folder, case)
    for name, weight in trials.weights(folder, "whole").items():
        np.testing.assert_allclose(weights[name], weight, atol=trials.TOLERANCE, err_msg=f"{name}, {case}")
    for row, other in zip(trials.history(folder, case), trials.history(folder, "whole"), strict=True):
        assert row == pytest.approx(other, rel=1e-3)


def _run_with_kills(folder: Path, case: str, ranks: int, seed: int, kills: int) -> None:
    """Start and kill at a random moment, one rank or all, `kills` times or until little is left; then let it end."""
    rng = random.Random(seed)
    trials.write_case(folder, case)
    for _ in range(kills):
        last = max((taken.step for path in trials.records(folder, case) for taken in trials.steps(path)), default=0)
        left = trials.N_STEPS - last - trials.SPARE_STEPS
        if left > 0:
            start = trials.Start(folder, case, ranks, rng, left)
            start.kill(n_victims=rng.randint(1, ranks))
            start.thread.join(600)
            assert isinstance(start.error, ModelError | RuntimeError), f"{case}: it ended before it was killed"
    start_ranks(ranks, "tests.parallel.rank_job", [str(folder), case])
