"""Elastic ranks, started by horovodrun's elastic driver: one is lost, the others go on; one is added, it joins.

Real processes and SIGKILL. Each trial prints its seed; INTEREST_KILL_SEED=n makes it that of the first trial.
"""

import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.parallel import trials

COMMIT_STEPS = trials.CASE["training"]["commit_steps"]
CHECKPOINT_STEPS = trials.CASE["training"]["checkpoint_steps"]  # a commit too


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is lost here while ranks meet, and one machine may load TensorFlow for one of them long after another."""
    monkeypatch.setenv("HOROVOD_GLOO_TIMEOUT_SECONDS", "300")


def test_one_of_two_ranks_is_lost_and_the_other_goes_on(folder_of_whole: Path):
    _lose_one(folder_of_whole, trials.new_seed(3))


@pytest.mark.soak
@pytest.mark.parametrize("trial", range(10))
def test_one_of_two_ranks_is_lost_again_and_again(folder_of_whole: Path, trial: int):
    _lose_one(folder_of_whole, trials.new_seed(trial))


@pytest.mark.soak
def test_a_rank_that_is_added_takes_up_its_stream(folder_of_whole: Path):
    folder, case = folder_of_whole, "added"
    trials.write_case(folder, case, elastic=True, pause_s=0.1)
    hosts, more = folder / "hosts.sh", folder / "more"
    hosts.write_text(f"#!/bin/sh\necho localhost:1\nif [ -e {more} ]; then echo 127.0.0.1:1; fi\n")
    hosts.chmod(0o755)
    options = ["-np", "1", "--min-np", "1", "--max-np", "2", "--network-interfaces", "lo"]
    command = [str(Path(sys.executable).with_name("horovodrun")), "--gloo", *options, "--host-discovery-script"]
    command += [str(hosts), sys.executable, "-m", "tests.parallel.rank_job", str(folder), case]
    driver = subprocess.Popen(command, cwd=Path(__file__).parent.parent.parent)
    try:
        while not any(trials.steps(path) for path in trials.records(folder, case)):
            assert driver.poll() is None
            time.sleep(0.1)
        more.touch()
        assert driver.wait(600) == 0
    finally:
        driver.terminate()
        driver.wait(120)
    first, second = sorted(map(trials.steps, trials.records(folder, case)), key=lambda taken: taken[0].step)
    joined = second[0].step
    assert any(joined % steps == 1 for steps in (COMMIT_STEPS, CHECKPOINT_STEPS))
    assert [taken.batches for taken in first] == [
        ((0, step), (1, step)) if step < joined else ((0, step),) for step in range(1, trials.N_STEPS + 1)
    ]
    assert [taken.batches for taken in second] == [((1, step),) for step in range(joined, trials.N_STEPS + 1)]
    _ended_as_whole(folder, case)


def _lose_one(folder: Path, seed: int) -> None:
    case = f"elastic-{seed}"
    trials.write_case(folder, case, elastic=True)
    start = trials.Start(folder, case, 2, random.Random(seed), trials.N_STEPS - trials.SPARE_STEPS, min_ranks=1)
    (lost,) = start.kill(n_victims=1)
    start.thread.join(600)
    assert not start.thread.is_alive()
    assert start.error is None
    _ended_as_whole(folder, case)
    (left,) = set(trials.records(folder, case)) - {lost}
    _each_batch_once(trials.steps(left), trials.steps(lost), trials.steps(trials.records(folder, "whole")[0]))


def _each_batch_once(left: list[trials.Taken], lost: list[trials.Taken], whole: list[trials.Taken]) -> None:
    """What counts: both ranks' steps up to the commit that the rank that is left went back to, then its own alone."""
    alone = [taken for taken in left if len(taken.batches) == 2]
    back_to = alone[0].step - 1
    assert any(back_to % steps == 0 for steps in (COMMIT_STEPS, CHECKPOINT_STEPS))
    assert lost[-1].step - back_to <= COMMIT_STEPS + 1  # the bound on what is done again
    counted = [taken for taken in left if len(taken.batches) == 1 and taken.step <= back_to] + alone
    assert [(taken.step, taken.positions) for taken in counted] == [(taken.step, taken.positions) for taken in whole]
    # A rank may be killed when its gradients are sent but its line is not yet written.
    others = [batch for taken in lost if taken.step <= back_to for batch in taken.batches]
    assert len(others) in (back_to, back_to - 1)
    batches = {batch for taken in counted for batch in taken.batches} | set(others)
    assert len(batches) == sum(len(taken.batches) for taken in counted) + len(others)  # none twice
    missing = {batch for taken in whole for batch in taken.batches} - batches
    assert all(number == back_to for _, number in missing)


def _ended_as_whole(folder: Path, case: str) -> None:
    weights = trials.weights(folder, case)
    for name, weight in trials.weights(folder, "whole").items():
        np.testing.assert_allclose(weights[name], weight, atol=trials.TOLERANCE, err_msg=f"{name}, {case}")
    for row, other in zip(trials.history(folder, case), trials.history(folder, "whole"), strict=True):
        assert row == pytest.approx(other, rel=1e-3)
