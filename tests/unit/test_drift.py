"""The population stability index: by hand, and less what chance alone brings."""

import numpy as np
import pytest

from features.drift import stability_index


def test_a_move_by_hand() -> None:
    # Half and half against 3/4 and 1/4; with so many events what chance brings, and the priors, are next to nothing.
    n = 1_000_000
    by_hand = 0.25 * np.log(1.5) - 0.25 * np.log(0.5)
    found = stability_index({"a": n, "b": n}, {"a": 1.5 * n, "b": 0.5 * n}, 10)
    assert found == pytest.approx(by_hand, rel=1e-3)


def test_the_same_distribution_is_no_drift_at_any_size() -> None:
    rng = np.random.default_rng(3)
    shares = rng.dirichlet(np.ones(30))
    names = [f"c{k}" for k in range(30)]
    for n in (200, 5_000, 100_000):
        found = []
        for _ in range(40):
            a, b = (dict(zip(names, map(float, rng.multinomial(n, shares)), strict=True)) for _ in range(2))
            found.append(stability_index(a, b, 20))
        assert np.mean(found) < 0.05
        assert max(found) < 0.25


def test_names_outside_the_bins_share_one() -> None:
    n = 100_000
    before = {"a": 8.0 * n, "b": 1.0 * n, "c": 1.0 * n}
    moved = {"a": 8.0 * n, "x": 1.0 * n, "y": 1.0 * n}
    assert stability_index(before, moved, 1) == pytest.approx(0, abs=1e-6)
    assert stability_index(before, moved, 3) > 1


def test_nothing_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="without any weight"):
        stability_index({}, {"a": 1.0}, 5)
