import math

import numpy as np
import pytest

from model.returns import back, log_likelihood, log_survival

EDGES_S = np.array([0.0, 100.0, 300.0, 1000.0])
HAZARDS = np.array([[0.2, 0.5, 0.1], [0.9, 1e-6, 0.3]], np.float32)


def _survival(row: int, time_s: float) -> float:
    """By the definition: whole bins, then a share of the next at its constant rate; the last rate goes on."""
    left = 1.0
    for k, hazard in enumerate(HAZARDS[row].astype(float)):
        low, high = EDGES_S[k : k + 2]
        end = math.inf if k == 2 else high
        left *= (1 - hazard) ** ((min(time_s, end) - low) / (high - low)) if time_s > low else 1.0
    return left


@pytest.mark.parametrize("time_s", [0.0, 1.0, 100.0, 250.0, 300.0, 999.0, 1000.0, 5000.0])
def test_survival_is_that_of_the_definition(time_s: float):
    found = np.exp(log_survival(HAZARDS, EDGES_S, np.full(2, time_s)))
    np.testing.assert_allclose(found, [_survival(row, time_s) for row in range(2)], rtol=1e-6)


def test_back_is_conditional_on_silence_and_rises_with_time():
    within, silence = np.array([0.0, 10.0, 90.0, 400.0, 5e7]), np.array([50.0, 350.0])
    found = back(HAZARDS, EDGES_S, silence, within)
    wanted = [
        [1 - _survival(row, silence[row] + each) / _survival(row, silence[row]) for each in within] for row in range(2)
    ]
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-9)
    assert (np.diff(found, axis=1) > 0).all()
    assert (found[:, -1] > 1 - 1e-9).all()


def test_the_density_is_the_slope_of_survival_and_a_censored_time_only_survives():
    for time_s in (60.0, 299.0, 300.0, 700.0, 3000.0):
        times, silence = np.full(2, time_s), np.array([20.0, 55.0])
        found = log_likelihood(HAZARDS, EDGES_S, silence, times, np.array([True, False]))
        slope = (_survival(0, time_s - 0.01) - _survival(0, time_s)) / 0.01
        assert found[0] == pytest.approx(math.log(slope / _survival(0, 20.0)), abs=1e-3)
        assert found[1] == pytest.approx(math.log(_survival(1, time_s) / _survival(1, 55.0)), abs=1e-6)
