"""The gate: what a model that was just trained must keep up to."""

import json
from typing import Any

import numpy as np
import pytest

from features import columns as c
from jobs.gating import _Padded
from jobs.settings import load_settings
from model.evaluation import CATEGORY_TARGET, ITEM_TARGET, Channels, Comparison, EvaluationRows, Scores
from model.gate import CHALLENGER, CHAMPION, Decision, OutputRecord, calibration_error, decide
from model.metrics import Floats, Ints, Ragged
from model.spec import Sizes

SPEC = load_settings().gate.model_copy(
    update={"category_margin": 0.01, "item_margin": 0.005, "min_coverage_ratio": 0.5, "max_ece": 0.1}
)


def compared(low: float, target: str = CATEGORY_TARGET, metric: str = "ndcg", k: int = 10) -> Comparison:
    return Comparison(target, metric, k, CHALLENGER, CHAMPION, low + 0.01, low, low + 0.02)


def decision(**changes: Any) -> Decision:
    told: dict[str, Any] = {
        "versions": ("new", "old"),
        "comparisons": [compared(0.0), compared(0.0, ITEM_TARGET)],
        "coverage": (0.5, 0.5),
        "ece": 0.05,
        "degenerate_share": 0.0,
        "interest_psi": 0.1,
    }
    return decide(SPEC, **{**told, **changes})


def test_a_model_as_good_as_the_one_in_use_takes_over() -> None:
    found = decision()
    assert found.passed
    assert found.why == "all 6 checks held"


@pytest.mark.parametrize(
    ("changes", "failed"),
    [
        ({"comparisons": [compared(-0.0101), compared(0.0, ITEM_TARGET)]}, "category_ndcg"),
        ({"comparisons": [compared(0.0), compared(-0.0051, ITEM_TARGET)]}, "item_ndcg"),
        ({"coverage": (0.24, 0.5)}, "coverage"),
        ({"ece": 0.11}, "calibration"),
        ({"degenerate_share": 0.002}, "degenerate"),
        ({"interest_psi": 0.3}, "drift"),
    ],
)
def test_each_check_can_fail_alone_and_says_value_and_threshold(changes: dict[str, Any], failed: str) -> None:
    found = decision(**changes)
    assert not found.passed
    (check,) = [check for check in found.checks if not check.passed]
    assert check.name == failed
    assert f"{failed} = {check.value:.4g}" in found.why
    assert f"threshold {check.threshold:.4g}" in found.why


def test_within_the_margin_is_good_enough_and_other_metrics_do_not_count() -> None:
    close = [compared(-0.0099), compared(-0.0049, ITEM_TARGET), compared(-0.5, metric="hr"), compared(-0.5, k=1)]
    assert decision(comparisons=close).passed


def test_a_first_model_is_judged_by_what_it_says_alone() -> None:
    found = decision(versions=("new", None), comparisons=[], coverage=(0.1, None), interest_psi=None)
    assert [check.name for check in found.checks] == ["calibration", "degenerate"]
    assert found.passed


def test_a_decision_survives_json() -> None:
    found = decision(ece=0.4)
    values = json.loads(json.dumps(found.to_json()))
    assert values.pop("passed") is False
    assert Decision.from_json(values) == found


def test_calibration_error_of_known_cases() -> None:
    sure = np.ones(10, np.float32)
    half = np.arange(10) % 2 == 0
    assert calibration_error(sure, half, 15) == pytest.approx(0.5)
    assert calibration_error(sure, np.ones(10, bool), 15) == 0
    # Two bins: 4 rows at 0.2 with 1 right, 6 rows at 0.9 with 3 right: (4 * 0.05 + 6 * 0.4) / 10
    confidence = np.array([0.2] * 4 + [0.9] * 6, np.float32)
    correct = np.array([1, 0, 0, 0, 1, 1, 1, 0, 0, 0], bool)
    assert calibration_error(confidence, correct, 2) == pytest.approx(0.26, abs=1e-6)
    rng = np.random.default_rng(1)
    honest = rng.random(100_000).astype(np.float32)
    assert calibration_error(honest, rng.random(100_000) < honest, 15) < 0.01


def test_rows_that_say_nothing_are_counted_and_rank_last() -> None:
    items = np.tile(np.array([0, 0, 0.5, 0.3, 0.2], np.float32), (4, 1))
    categories = np.tile(np.array([0, 0, 0.1, 0.7, 0.2], np.float32), (4, 1))
    items[1, 3] = np.nan
    categories[2, 2:] = 1 / 3  # all alike

    def source(start: int, stop: int) -> tuple[Floats, Floats]:
        return items[start:stop], categories[start:stop]

    record = OutputRecord(4)
    watched = record.watch(source)
    seen = [watched(0, 2), watched(2, 4)]
    assert record.degenerate.tolist() == [False, True, True, False]
    assert record.degenerate_share == 0.5
    assert record.choice[[0, 3]].tolist() == [3, 3]
    assert record.confidence[[0, 3]].tolist() == pytest.approx([0.7, 0.7])
    assert np.isfinite(seen[0][0]).all()
    assert not seen[0][0][1].any()
    assert (seen[1][0][1] == items[3]).all()


class SmallModel:
    """Knows items 2 and 3 and category 2; keeps what it is given."""

    sizes = Sizes(
        items=4,
        categories=3,
        length=3,
        gap_codes=5,
        new_session_gap=4,
        session_gap_s=1800,
        gap_edges_s=(60, 1800),
        horizons_days=(1, 7),
    )

    def probabilities(self, channels: Channels, length: Ints, next_gap: Ints) -> Scores:
        assert len(length) == len(next_gap)
        self.given = channels
        n = len(length)
        return np.full((n, 4), 0.5, np.float32), np.full((n, 3), 1.0, np.float32)


def test_a_model_of_fewer_ids_takes_newer_ones_for_unknown_and_scores_them_0() -> None:
    channels = {name: np.array([[2, 3, 0], [4, 2, 6]], np.int32) for name in c.CHANNELS}
    empty = Ragged(np.zeros(0, np.int32), np.zeros(3, np.int64))
    ints, longs = np.array([2, 3], np.int32), np.zeros(2, np.int64)
    rows = EvaluationRows(
        ("ann", "bob"), channels, ints, ints, longs, longs, ints, ints, empty, empty, empty, empty, empty
    )
    model = SmallModel()
    items, categories = _Padded(model, rows, (7, 5))(0, 2)
    assert model.given[c.ITEM].tolist() == [[2, 3, 0], [1, 2, 1]]
    assert model.given[c.CATEGORY].tolist() == [[2, 1, 0], [1, 2, 1]]
    assert model.given[c.HOUR].tolist() == channels[c.HOUR].tolist()
    assert (items.shape, categories.shape) == ((2, 7), (2, 5))
    assert items[:, :4].min() == 0.5
    assert not items[:, 4:].any()
    assert not categories[:, 3:].any()
