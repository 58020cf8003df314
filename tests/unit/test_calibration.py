import numpy as np
import pytest

from model.calibration import FirstChoices, calibration, observed


def choices(confidence, correct):
    made = FirstChoices(len(confidence))
    made.confidence[:], made.correct[:] = confidence, correct
    return made


def naive_ece(confidence, correct, n_bins):
    """Sorted rows dealt out in order, the first bins one longer; mean gap, weighted."""
    rows = sorted(range(len(confidence)), key=lambda row: (confidence[row], row))
    n_bins = min(n_bins, len(rows))
    short, longer = divmod(len(rows), n_bins)
    total, at = 0.0, 0
    for number in range(n_bins):
        size = short + (number < longer)
        part, at = rows[at : at + size], at + size
        mean = sum(confidence[row] for row in part) / size
        share = sum(bool(correct[row]) for row in part) / size
        total += size / len(rows) * abs(mean - share)
    return total


@pytest.mark.parametrize(("n_rows", "n_bins"), [(1, 15), (7, 3), (10, 15), (1000, 15)])
def test_error_is_that_of_a_slow_count(n_rows, n_bins):
    rng = np.random.default_rng(n_rows)
    confidence = np.round(rng.random(n_rows), 1).astype(np.float32)  # with ties
    correct = rng.random(n_rows) < confidence**2
    found = calibration(choices(confidence, correct), n_bins)
    assert found.ece == pytest.approx(naive_ece(confidence.tolist(), correct.tolist(), n_bins), abs=2e-6)
    sizes = [part.n for part in found.bins]
    assert sum(sizes) == n_rows
    assert max(sizes) - min(sizes) <= 1
    assert [part.low for part in found.bins] == sorted(part.low for part in found.bins)


def test_a_curve_by_hand():
    found = calibration(choices([0.9, 0.2, 0.8, 0.4], [True, False, False, True]), 2)
    low, high = found.bins
    assert (low.n, low.confidence, low.accuracy) == (2, pytest.approx(0.3, abs=1e-6), 0.5)
    assert (high.n, high.low, high.high) == (2, pytest.approx(0.8, abs=1e-6), pytest.approx(0.9, abs=1e-6))
    assert found.ece == pytest.approx((0.2 + 0.35) / 2, abs=1e-6)
    assert (found.confidence, found.accuracy) == (pytest.approx(0.575, abs=1e-6), 0.5)


def test_a_perfect_predictor_has_only_the_error_of_chance_and_a_boastful_one_its_boast():
    rng = np.random.default_rng(0)
    p = rng.random(200_000).astype(np.float32)
    right = rng.random(200_000) < p
    assert calibration(choices(p, right), 15).ece < 0.005
    assert calibration(choices(np.sqrt(p), right), 15).ece == pytest.approx(2 / 3 - 1 / 2, abs=0.01)


def test_first_choices_are_noted_block_by_block_as_the_scores_pass():
    items = np.array([[0, 0, 0.2, 0.5, 0.3], [0, 0, 0.4, 0.4, 0.2], [0.9, 0, 0.05, 0.05, 0]], dtype=np.float32)
    categories = np.array([[0, 0, 0.6, 0.4], [0, 0, 0.1, 0.9], [0, 0, 0.5, 0.5]], dtype=np.float32)
    labels = np.array([3, 3, 1], dtype=np.int32), np.array([3, 3, 2], dtype=np.int32)
    asked = []

    def source(start, stop):
        asked.append((start, stop))
        return items[start:stop], categories[start:stop]

    block, noted = observed(source, *labels)
    for start, stop in ((0, 2), (2, 3)):
        np.testing.assert_array_equal(block(start, stop)[0], items[start:stop])
    assert asked == [(0, 2), (2, 3)]
    np.testing.assert_allclose(noted["item"].confidence, [0.5, 0.4, 0.05])  # padding is no choice
    assert noted["item"].correct.tolist() == [True, False, False]  # of equals the smaller id; unknown is never right
    np.testing.assert_allclose(noted["category"].confidence, [0.6, 0.9, 0.5])
    assert noted["category"].correct.tolist() == [False, True, True]
