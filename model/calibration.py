"""How far a predictor's probability of its first choice can be taken at its word.

B rows (users), V ids of a vocabulary.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from features.columns import FIRST_ID
from model.metrics import Bools, Doubles, Floats, Ints

Scores = tuple[Floats, Floats]  # [B, V items], [B, V categories]


class Bin(NamedTuple):
    """One point of a reliability curve: users of like confidence."""

    n: int
    low: float  # least probability in it
    high: float  # greatest
    confidence: float  # mean probability of the first choice
    accuracy: float  # share of first choices that came true


class Calibration(NamedTuple):
    """Expected calibration error of the first choice, and the curve behind it."""

    ece: float
    confidence: float  # mean over all
    accuracy: float
    bins: tuple[Bin, ...]


class FirstChoices:
    """Probability of the likeliest known id of each row, and whether it was right; [B] each, filled block by block."""

    def __init__(self, n_rows: int) -> None:
        self.confidence: Floats = np.zeros(n_rows, dtype=np.float32)
        self.correct: Bools = np.zeros(n_rows, dtype=np.bool_)

    def note(self, start: int, probabilities: Floats, labels: Ints) -> None:
        """Take up a block. probabilities: [b, V]; among equals the smallest id is chosen, as scoring does."""
        best = np.argmax(probabilities[:, FIRST_ID:], axis=1) + FIRST_ID
        rows = np.arange(len(best))
        self.confidence[start : start + len(best)] = probabilities[rows, best]
        self.correct[start : start + len(best)] = best == labels[start : start + len(best)]


def observed(
    source: Callable[[int, int], Scores], next_item: Ints, next_category: Ints
) -> tuple[Callable[[int, int], Scores], dict[str, FirstChoices]]:
    """The same scores, noted down as they pass: nothing is scored twice. By target, once all rows have passed.

    Calibration is of the distribution as the predictor gives it: seen items stay candidates, whatever is ranked.
    """
    choices = {"item": FirstChoices(len(next_item)), "category": FirstChoices(len(next_category))}

    def block(start: int, stop: int) -> Scores:
        items, categories = source(start, stop)
        choices["item"].note(start, items, next_item)
        choices["category"].note(start, categories, next_category)
        return items, categories

    return block, choices


def calibration(choices: FirstChoices, n_bins: int) -> Calibration:
    """ECE = Σ n_b / n · |accuracy_b - confidence_b| over bins of equally many rows, sorted by confidence.

    Guo et al. (ICML 2017) for the error, Nixon et al. (CVPR workshops 2019) for bins of equal mass: with bins of equal
    width nearly all rows of a large vocabulary fall into the lowest one. Bins differ by one row at most; where there
    are fewer rows than bins, each row is one. Even a perfectly calibrated predictor has ECE > 0 by chance, about
    sqrt(2 p (1 - p) / (π n_b)) for rows of probability p.
    """
    order = np.argsort(choices.confidence, kind="stable")
    confidence: Doubles = choices.confidence[order].astype(np.float64)
    correct = choices.correct[order]
    n_rows = len(order)
    bins, error = [], 0.0
    for rows in np.array_split(np.arange(n_rows), min(n_bins, n_rows)):
        mean, share = float(confidence[rows].mean()), float(correct[rows].mean())
        error += len(rows) / n_rows * abs(share - mean)
        least, most = (round(float(confidence[rows[at]]), 6) for at in (0, -1))
        bins.append(Bin(len(rows), least, most, round(mean, 6), round(share, 6)))
    return Calibration(
        round(error, 6), round(float(confidence.mean()), 6), round(float(correct.mean()), 6), tuple(bins)
    )
