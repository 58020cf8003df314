"""What is said of the days ahead, judged by hand on a few users; baselines on a few windows."""

import math
from dataclasses import replace

import numpy as np
import pytest

from features.columns import ACTION_CODE, AGE, CATEGORY, GAP, ITEM
from jobs.future_table import future_headline, future_tables
from model.baselines import TrainEvents, Windows
from model.future_baselines import Gaps, action_rates, fit_future_baselines, gaps_of, kaplan_meier_hazards
from model.future_evaluation import (
    Answers,
    FutureRows,
    area_under_curve,
    average_precision,
    binned,
    evaluate_futures,
    interest_metrics,
    next_session,
    touch_metrics,
)
from model.metrics import Ragged
from tests.unit.test_evaluation import SPEC, SPLIT, ids, ragged

HOUR, DAY = 3600, 86_400
N_IDS = 5  # categories 2, 3, 4


def rows() -> FutureRows:
    """User a goes on and starts another session; b comes on the third day; c stays away; d does one unknown thing."""
    category = np.array([[2, 2, 3], [4, 0, 0], [2, 0, 0], [3, 3, 0]], dtype=np.int32)
    return FutureRows(
        user_id=("a", "b", "c", "d"),
        channels={
            ITEM: category,
            CATEGORY: category,
            ACTION_CODE: np.where(category > 0, 2, 0).astype(np.int32),
            GAP: np.array([[1, 5, 2], [1, 0, 0], [1, 0, 0], [1, 2, 0]], dtype=np.int32),
        },
        length=ids(3, 1, 1, 2),
        next_gap=ids(2, 5, 5, 5),
        silence_s=ids(60, DAY, 2 * DAY, DAY),
        categories=ragged([3, 3, 2, 4], [4, 4, 2], [], [1]),
        actions=ragged([2, 2, 3, 6], [2, 4, 2], [], [2]),
        after_s=ragged([100, 200, 5 * HOUR, 5 * HOUR + 60], [2 * DAY, 2 * DAY + 9, 3 * DAY], [], [HOUR - 1]),
        period_s=7 * DAY,
        session_gap_s=1800,
    )


def test_the_next_session_is_the_first_after_a_silence() -> None:
    ahead = next_session(rows())
    assert ahead.is_back.tolist() == [True, True, False, True]
    assert ahead.start_s.tolist() == [5 * HOUR, 2 * DAY, 7 * DAY, HOUR - 1]
    # a holds click and buy, not the views of the session before; b view and like, not what comes a day later.
    assert ahead.holds.tolist()[:2] == [[False, True, False, False, True], [True, False, True, False, False]]


def test_a_session_that_goes_on_all_through_is_no_return() -> None:
    one = replace(rows(), after_s=ragged([100, 200, 300, 400], [2 * DAY, 2 * DAY + 9, 3 * DAY], [], [HOUR]))
    ahead = next_session(one)
    assert not ahead.is_back[0]
    assert ahead.start_s[0] == 7 * DAY
    assert not ahead.holds[0].any()


def test_interests_by_hand() -> None:
    counts = np.array([[0, 0, 3, 1, 0], [0, 0, 0, 0, 0]], dtype=float)
    said = np.array([[0, 0, 0.2, 0.5, 0.3]] * 2, dtype=np.float32)
    found = interest_metrics(said, counts)
    assert found["cross_entropy"][0][0] == pytest.approx(-0.75 * math.log(0.2) - 0.25 * math.log(0.5), rel=1e-5)
    assert [float(below[1]) for _, below in found.values()] == [0, 0, 0]
    # Ranked 3, 4, 2: gains 0.25, 0, 0.75.
    ideal = 0.75 + 0.25 / math.log2(3)
    assert found["ndcg"][0][0] == pytest.approx((0.25 + 0.75 / 2) / ideal)
    p, q = np.array([0.75, 0.25, 0.0]), np.array([0.2, 0.5, 0.3])
    m = (p + q) / 2
    divergence = (sum(x * math.log2(x / y) for x, y in zip(p, m, strict=True) if x) + (q * np.log2(q / m)).sum()) / 2
    assert found["jensen_shannon"][0][0] == pytest.approx(math.sqrt(divergence), rel=1e-5)
    exact = interest_metrics((counts / 4).astype(np.float32), counts)
    assert exact["jensen_shannon"][0][0] == 0
    assert exact["ndcg"][0][0] == 1


def test_equal_scores_count_against_the_gains() -> None:
    counts = np.array([[0, 0, 0, 0, 1]], dtype=float)
    found = interest_metrics(np.full((1, 5), 0.2, np.float32), counts)
    assert found["ndcg"][0][0] == pytest.approx(1 / math.log2(6))


def test_touches_by_hand() -> None:
    said = np.array([[0.9, 0.6, 0.1], [0.5, 0.2, 0.4]], dtype=np.float32)
    true = np.array([[True, False, True], [True, False, False]])
    found = {name: above.sum() / below.sum() for name, (above, below) in touch_metrics(said, true).items()}
    assert found["precision"] == pytest.approx(2 / 3)
    assert found["recall"] == pytest.approx(2 / 3)
    assert found["f1"] == pytest.approx(2 / 3)
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["brier"] == pytest.approx((0.01 + 0.36 + 0.81 + 0.25 + 0.04 + 0.16) / 6, rel=1e-5)


def test_average_precision_and_area_by_hand() -> None:
    said = np.array([0.9, 0.8, 0.5, 0.5, 0.1], dtype=np.float32)
    true = np.array([True, False, True, False, False])
    counts = binned(said, true)
    assert average_precision(counts) == pytest.approx(0.5 * 1 + 0.5 * 2 / 4)
    assert area_under_curve(counts) == pytest.approx((3 + 1.5) / 6)
    assert area_under_curve(binned(said, np.zeros(5, dtype=bool))) == 0.5


def fixed(interests, touched, per_hour, actions):
    """The same answer for everyone; a session starts with a constant hazard."""

    def source(start: int, stop: int) -> Answers:
        n = stop - start
        survival = np.exp(-per_hour * np.arange(7 * 24 + 1))
        return Answers(
            np.tile(np.float32([0, 0, *interests]), (n, 2, 1)),
            np.tile(np.float32([0, 0, *touched]), (n, 2, 1)),
            np.tile(survival, (n, 1)),
            None,
            np.tile(np.float32(actions), (n, 1)),
        )

    return source


def judged(block_cells: int = 1000, **sources):
    spec = SPEC.model_copy(update={"block_cells": block_cells})
    return evaluate_futures(rows(), SPLIT, sources, (1, 7), N_IDS, spec, "model")


def value(evaluation, target, metric, model="model"):
    [row] = [r for r in evaluation.rows if (r.target, r.metric, r.model) == (target, metric, model)]
    return row


MODEL = fixed([0.25, 0.25, 0.5], [0.9, 0.6, 0.7], 0.01, [0.8, 0.6, 0.4, 0.1, 0.2])
EVEN = fixed([1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0.5], 0.001, [0.5, 0.5, 0.5, 0.5, 0.5])


def test_the_table_by_hand() -> None:
    evaluation = judged(model=MODEL, even=EVEN)
    # a: 3 3 2 4; b: 4 4 2 within seven days, nothing within one; c and d nothing that is known.
    a = -(0.75 * math.log(0.25) + 0.25 * math.log(0.5))
    b = -(1 / 3 * math.log(0.25) + 2 / 3 * math.log(0.5))
    said = value(evaluation, "interests_7d", "cross_entropy")
    assert (said.value, said.n, said.n_label_unknown) == (pytest.approx((a + b) / 2, abs=1e-6), 2, 1)
    assert value(evaluation, "interests_7d", "perplexity").value == pytest.approx(math.exp((a + b) / 2), abs=1e-5)
    assert value(evaluation, "interests_1d", "cross_entropy").value == pytest.approx(a, abs=1e-6)
    assert value(evaluation, "interests_1d", "cross_entropy", "even").value == pytest.approx(math.log(3), abs=1e-6)
    # All three called for all four: a has 2, 3, 4 and b 2, 4.
    assert value(evaluation, "touched_7d", "precision").value == pytest.approx(5 / 12, abs=1e-6)
    assert value(evaluation, "touched_7d", "recall").value == 1
    assert value(evaluation, "touched_7d", "macro_f1").value == pytest.approx((4 / 6 + 2 / 5 + 4 / 6) / 3, abs=1e-6)
    # a in hour 5, b in hour 48, c not within 168, d in hour 0.
    per_hour = -0.01 * (5 + 48) + 3 * math.log(-math.expm1(-0.01)) - 0.01 * 168
    assert value(evaluation, "return", "log_likelihood").value == pytest.approx(per_hour / 4, abs=1e-5)
    day = -math.expm1(-0.24)
    assert value(evaluation, "return", "brier_1d").value == pytest.approx(((1 - day) ** 2 + day**2) / 2, abs=1e-5)
    # Next sessions with a view: b and d of three.
    loss = -(math.log(0.2) + 2 * math.log(0.8)) / 3
    said = value(evaluation, "action_view", "log_loss")
    assert (said.value, said.n) == (pytest.approx(loss, abs=1e-5), 3)
    assert value(evaluation, "action_view", "average_precision").value == pytest.approx(2 / 3, abs=1e-6)


def test_intervals_differences_and_blocks() -> None:
    evaluation = judged(model=MODEL, even=EVEN)
    for row in evaluation.rows:
        if row.metric.startswith("macro_") or row.metric in ("average_precision", "auc"):
            assert row.low is None
        else:
            assert row.low - 1e-6 <= row.value <= row.high + 1e-6
    [pair] = [x for x in evaluation.comparisons if (x.target, x.metric) == ("interests_7d", "cross_entropy")]
    own, other = (value(evaluation, "interests_7d", "cross_entropy", name).value for name in ("model", "even"))
    assert pair.difference == pytest.approx(own - other, abs=2e-6)
    assert judged(block_cells=1, model=MODEL, even=EVEN) == evaluation


def test_the_best_baseline_is_named_in_the_direction_of_the_metric() -> None:
    worse = fixed([0.9, 0.05, 0.05], [0.1, 0.1, 0.1], 1e-5, [0.5] * 5)
    evaluation = judged(
        model=MODEL, even=EVEN, worse=worse, oracle=fixed([0.3, 0.3, 0.4], [0.6, 0.3, 0.5], 0.02, [0.5] * 5)
    )
    for target in ("interests_7d", "touched_7d", "return"):
        assert future_headline(evaluation, target, "model")["best_baseline"] == "even"
    said = future_headline(evaluation, "touched_7d", "model")
    assert said["share_of_gap"] == pytest.approx(
        (said["model"] - said["baseline"]) / (said["oracle"] - said["baseline"]), abs=1e-3
    )
    titles = [title for title, _, _ in future_tables(evaluation, "model")]
    assert titles[0].startswith("Interests of the next day")
    assert sum(title.startswith("What they will do") for title in titles) == 5
    for _, lines, _ in future_tables(evaluation, "model"):
        assert {len(line) for line in lines} == {len(lines[0])}
        assert {line[0] for line in lines[1:]} == {"model", "even", "worse", "oracle"}


def windows() -> Windows:
    """User 0: three sessions in two windows of two; user 1: one session, one window."""
    return Windows(
        user=np.array([0, 0, 1]),
        window=ids(0, 1, 0),
        channels={
            ITEM: np.full((3, 2), 2, np.int32),
            CATEGORY: np.array([[3, 3], [2, 2], [4, 0]], dtype=np.int32),
            ACTION_CODE: np.array([[3, 2], [2, 6], [2, 0]], dtype=np.int32),
            GAP: np.array([[5, 2], [1, 2], [1, 0]], dtype=np.int32),
            AGE: np.array([[30, 0], [10, 0], [0, 0]], dtype=np.int32),
        },
        length=ids(2, 2, 1),
        next_gap=ids(5, 5, 2),
        next_item=ids(2, 2, 2),
        next_category=ids(4, 3, 4),
        last_time_us=np.array([10_030, 10, 500]) * 1_000_000,
        next_time_us=np.array([30_030, 10_000, 520]) * 1_000_000,
    )


def test_training_gaps_are_exact_and_the_last_ones_are_cut_off() -> None:
    gaps = gaps_of(windows(), 4, train_end_us=40_000 * 1_000_000)
    assert sorted(gaps.seconds[gaps.is_observed]) == [9990, 20_000]
    assert sorted(gaps.seconds[~gaps.is_observed]) == [9970, 39_480]


def test_hazards_by_hand() -> None:
    gaps = gaps_of(windows(), 4, train_end_us=40_000 * 1_000_000)
    hazards = kaplan_meier_hazards(gaps, np.array([0.0, 15_000.0, 30_000.0, 60_000.0]))
    np.testing.assert_allclose(hazards, [1.5 / (4 - 0.5 + 1), 1.5 / (2 + 1), 0.5 / (1 - 0.5 + 1)])


def test_silences_that_outlast_all_bins_reach_them_and_end_in_none() -> None:
    seconds = np.array([5.0] * 10 + [100.0] * 90)
    gaps = Gaps(seconds, np.array([True] * 10 + [True] * 40 + [False] * 50))
    hazards = kaplan_meier_hazards(gaps, np.array([0.0, 10.0, 20.0]))
    np.testing.assert_allclose(hazards, [10.5 / 101, 0.5 / 91])


def test_action_rates_join_windows_into_sessions() -> None:
    # View and buy; click and view; view.
    np.testing.assert_allclose(action_rates(windows(), 4), [1, 1 / 3, 0, 0, 1 / 3])


class Shares:
    def probabilities(self, channels, length, next_gap):
        n = len(next_gap)
        assert len(length) == n
        assert channels[CATEGORY].shape == (n, 3)
        return np.zeros((n, 3), np.float32), np.tile(np.float32([0, 0, 2, 1, 1]), (n, 1))


def test_baselines_say_what_their_names_say() -> None:
    events = TrainEvents(
        user=np.array([0, 0, 0, 0, 0, 1, 1]),
        item=np.full(7, 2, np.int32),
        category=ids(2, 2, 3, 3, 4, 4, 4),
        time_us=np.array([0, 10, 10_000, 10_030, 30_030, 500, 520]) * 1_000_000,
        session=np.array([1, 1, 2, 2, 3, 0, 0]),
    )
    given = rows()
    names = ("popularity", "recent popularity", "markov")
    sources = fit_future_baselines(
        windows(), events, dict.fromkeys(names, Shares()), given, (1, 7), (1, 60, 1800, 86_400), 4, 100_000 * 1_000_000
    )
    np.testing.assert_allclose(sources["popularity"](0, 2).interests[1, 1], [0, 0, 0.5, 0.25, 0.25])
    # a: 2 2 3 and five of popularity's.
    np.testing.assert_allclose(sources["user history"](0, 1).interests[0, 0], np.array([0, 0, 4.5, 2.25, 1.25]) / 8)
    # Three of five pairs stay: 2 2, 3 3, 4 4.
    np.testing.assert_allclose(sources["last category"](1, 2).interests[0, 0], [0, 0, 0.2, 0.1, 0.1 + 0.6], atol=1e-6)
    for name in names:
        said = sources[name](0, 4)
        assert (said.touched[:, :, 2:] >= 0).all()
        np.testing.assert_allclose(said.interests.sum(axis=2), 1, rtol=1e-6)
    np.testing.assert_allclose(sources["base rate"](0, 1).actions[0], [1, 1 / 3, 0, 0, 1 / 3], rtol=1e-6)
    # a: two sessions of views alone, beside three of everyone's.
    np.testing.assert_allclose(sources["own frequency"](0, 2).actions[0], [1, 1 / 5, 0, 0, 1 / 5], rtol=1e-6)
    everyone, own = sources["global hazard"](0, 4).survival, sources["own mean gap"](0, 4).survival
    for survival in (everyone, own):
        assert survival.shape == (4, 169)
        np.testing.assert_allclose(survival[:, 0], 1)
        assert (np.diff(survival, axis=1) <= 0).all()
    assert own[0, 24] != own[1, 24]  # a has a gap of its own
    np.testing.assert_allclose(own[1], own[2])
    assert isinstance(given.categories, Ragged)
