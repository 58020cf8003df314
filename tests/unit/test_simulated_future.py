"""The days after the cutoff in truth: by hand, by integration, and against lives that the process itself draws."""

import itertools
import math
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from scipy.integrate import quad

from features import simulated_truth as truth
from features.simulated_future import Future, Outlook, rest_of_session
from features.simulated_lives import Life, Window, live
from features.simulated_process import Floats, Process, process_of
from tests.simulated import life, process, process_spec

DAY_MS, HOUR_MS = 86_400_000, 3_600_000
CUTOFF_MS = int(datetime(2024, 5, 27, tzinfo=UTC).timestamp()) * 1000  # a Monday


def outlook(of: Process, *days: int, past_days: int = 2) -> Outlook:
    return Outlook(of, Window(CUTOFF_MS - past_days * DAY_MS, CUTOFF_MS + 7 * DAY_MS), CUTOFF_MS, days)


def past(of: Process, sessions: list[list[int]], days_ago: float) -> Life:
    """These sessions, an hour apart, the last one ending so long before the cutoff."""
    one = life(sessions, of)
    shift = CUTOFF_MS - int(days_ago * DAY_MS) - int(one.time_ms[-1])
    return one._replace(time_ms=one.time_ms + shift)


def test_two_states_in_turn_by_hand() -> None:
    """Sessions of one event, almost no dead time, one state = one category, strictly in turn: sums of a Poisson law."""
    spec = process_spec(
        categories=2, items=2, themes=2, types=1, regimes=2, strong_categories=1, stay=0.0, advance=1.0,
        session_median=1, session_p95=1, session_max=1, daily_swing=0.0, weekend_lift=1.0, activity_spread=0.0,
    )  # fmt: skip
    flip = replace(process_of(spec, gap_s=1, seed=1), taste=np.eye(2), repeat=0.3)
    past_life = past(flip, [[0], [1], [0]], days_ago=1)
    [future] = outlook(flip, 7).futures(np.array([1.0, 0.0]), outlook(flip, 7).true_rate(past_life), past_life)
    mean = 0.5 * 7
    law = [math.exp(-mean) * mean**k / math.factorial(k) for k in range(60)]
    # The first session ahead is of state 1, the second of state 0, …
    ones = sum(p * ((k + 1) // 2) for k, p in enumerate(law))
    np.testing.assert_allclose(future.counts, [mean - ones, ones], rtol=5e-3)
    # Of k sessions one half, or a little more, is of state 1.
    share = sum(p * ((k + 1) // 2) / k for k, p in enumerate(law) if k) / (1.0 - law[0])
    np.testing.assert_allclose(future.interests, [1.0 - share, share], atol=1e-3)
    np.testing.assert_allclose(future.touched, [1.0 - law[0] - law[1], 1.0 - law[0]], atol=1e-3)
    assert future.returns == pytest.approx(1.0 - law[0], abs=1e-3)


def test_the_first_session_ahead_alone() -> None:
    """So rare that a second one hardly comes: one step of the chain, and one session's chance of a category."""
    rare = process(sessions_per_day=1e-4, activity_spread=0.0)
    state = np.random.default_rng(3).dirichlet(np.ones(12))
    past_life = past(rare, [[3, 3]], days_ago=1)
    view = outlook(rare, 7)
    [future] = view.futures(state, view.true_rate(past_life), past_life)
    np.testing.assert_allclose(future.interests, state @ rare.step @ rare.taste, rtol=1e-3)
    assert future.counts.sum() == pytest.approx(future.returns * rare.mean_length, rel=1e-3)
    # A session without the category, over every length and pattern of repeats: each fresh event must miss it.
    spared = np.zeros(rare.categories)
    for share, taste in zip(state @ rare.step, rare.taste, strict=True):
        for n, of_length in enumerate(rare.length[1:], start=1):
            fresh = [math.comb(n - 1, m) * 0.7**m * 0.3 ** (n - 1 - m) for m in range(n)]
            spared += share * of_length * sum(p * (1.0 - taste) ** (1 + m) for m, p in enumerate(fresh))
    np.testing.assert_allclose(future.touched / future.returns, 1.0 - spared, rtol=2e-3)


def test_expectations_are_those_of_drawn_lives() -> None:
    """A user whose state and rate are known, free at the cutoff, lived 6,000 times."""
    one = process(activity_spread=0.0, late_joiners=0.0, sessions_per_day=0.6)
    state = np.zeros(12)
    state[[1, 6]] = 0.7, 0.3
    past_life = past(one, [[2]], days_ago=1)
    view = outlook(one, 1, 7)
    for future in view.futures(state, view.true_rate(past_life), past_life):
        ahead = replace(one, start=state @ one.step)
        window = Window(CUTOFF_MS, CUTOFF_MS + future.days * DAY_MS)
        lives = [live(ahead, window, 11, user) for user in range(6000)]
        counts = np.stack([np.bincount(each.category, minlength=12) for each in lives])
        assert future.returns == pytest.approx((counts.sum(axis=1) > 0).mean(), abs=0.02)
        sigma = counts.sum(axis=1).std() / math.sqrt(len(lives))
        expected = future.counts.sum()
        assert expected == pytest.approx(counts.sum(axis=1).mean(), abs=4 * sigma + 0.02 * expected)
        np.testing.assert_allclose(future.counts / expected, counts.sum(axis=0) / counts.sum(), atol=0.015)
        active = counts[counts.sum(axis=1) > 0]
        shares = active / active.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(future.interests, shares.mean(axis=0), atol=0.015)
        np.testing.assert_allclose(future.touched, (counts > 0).mean(axis=0), atol=0.025)


@pytest.fixture(scope="module")
def busy() -> list[tuple[Life, Life, Future, Future]]:
    """Users with many sessions, at 16 h, when a good part of them is in one: what followed, oracle and latent."""
    often = process(sessions_per_day=4.0, session_median=6, session_p95=20)
    cutoff_ms = CUTOFF_MS + 16 * HOUR_MS
    window = Window(CUTOFF_MS - 6 * DAY_MS, cutoff_ms + DAY_MS)
    view = Outlook(often, window, cutoff_ms, (1,))
    found = []
    for user in range(2500):
        whole = live(often, window, 9, user)
        before = whole.before(cutoff_ms)
        if len(before.time_ms):
            [oracle] = view.futures(truth.belief(often, before), view.observed_rate(before), before)
            [latent] = view.futures(truth.certain(often, before), view.true_rate(before), before)
            found.append((before, whole, oracle, latent))
    return found


def test_oracle_and_latent_are_calibrated_over_a_crowd(busy: list[tuple[Life, Life, Future, Future]]) -> None:
    counts = np.stack([np.bincount(all_.category[len(past_.time_ms) :], minlength=12) for past_, all_, _, _ in busy])
    returned = np.array([all_.session[-1] > past_.session[-1] for past_, all_, _, _ in busy])
    log_likelihood = []
    for futures in ([row[2] for row in busy], [row[3] for row in busy]):
        expected = np.stack([future.counts for future in futures])
        assert expected.sum() == pytest.approx(counts.sum(), rel=0.03)
        np.testing.assert_allclose(expected.sum(axis=0) / expected.sum(), counts.sum(axis=0) / counts.sum(), atol=0.01)
        touched = np.stack([future.touched for future in futures])
        returns = np.array([future.returns for future in futures])[:, None]
        for said, happened in ((touched, counts > 0), (returns, returned[:, None])):
            for low, high in itertools.pairwise((0.0, 0.2, 0.4, 0.6, 0.8, 0.95, 1.0)):
                bucket = (said >= low) & (said < high)
                if bucket.sum() > 200:
                    assert said[bucket].mean() == pytest.approx(happened[bucket].mean(), abs=0.04), (low, high)
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        interests = np.stack([future.interests for future in futures])
        np.testing.assert_allclose(
            interests[shares.sum(axis=1) > 0].mean(axis=0), shares.sum(axis=0) / (shares.sum()), atol=0.015
        )
        log_likelihood.append((shares * np.log(interests)).sum() / shares.sum())
    assert log_likelihood[1] > log_likelihood[0]  # latent above oracle
    shuffled = np.roll([row[2].interests for row in busy], 1, axis=0)
    assert log_likelihood[0] > (shares * np.log(shuffled)).sum() / shares.sum() + 0.05


def test_a_session_that_goes_on_counts(busy: list[tuple[Life, Life, Future, Future]]) -> None:
    """Users seen a minute before the cutoff: what they still do in that session is expected, by category."""
    cutoff_ms = CUTOFF_MS + 16 * HOUR_MS
    inside = [row for row in busy if cutoff_ms - int(row[0].time_ms[-1]) < 60_000]
    assert len(inside) > 40
    further = [int((all_.session[len(p.time_ms) :] == p.session[-1]).sum()) for p, all_, _, _ in inside]
    often = process(sessions_per_day=4.0, session_median=6, session_p95=20)
    expected = [
        truth.session_goes_on(often, p, cutoff_ms) * rest_of_session(often, p).survives.sum() for p, _, _, _ in inside
    ]
    sigma = np.std(further) / math.sqrt(len(further))
    assert np.mean(expected) == pytest.approx(np.mean(further), abs=3 * sigma)


def test_what_is_left_of_a_session_by_hand() -> None:
    short = replace(process(), length=np.array([0.0, 0.4, 0.3, 0.2, 0.1]))
    rest = rest_of_session(short, life([[0], [1]], short))
    np.testing.assert_allclose(rest.survives, [1.0, 0.5, 1 / 6])
    assert rest.wait_ms == pytest.approx((1 + 0.5 + 1 / 6) * short.mean_gap_ms)


def test_mean_gap_is_that_of_the_truncated_law() -> None:
    long = process(gap_mean_s=1500)
    mean = sum(long.gap_at_least(gap) for gap in range(1, long.gap_max_ms + 1, 100)) * 100
    assert long.mean_gap_ms == pytest.approx(mean, rel=1e-3)


@pytest.mark.parametrize("late", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("sessions", [1, 3])
def test_the_rate_is_the_posterior_of_the_observed_times(late: float, sessions: int) -> None:
    steady = process(daily_swing=0.0, weekend_lift=1.0, late_joiners=late, activity_spread=0.8)
    one = past(steady, [[0, 1]] * sessions, days_ago=0.5)
    view = outlook(steady, 1, past_days=3)
    start_ms, end_ms = view.window
    first_h = (int(one.time_ms[0]) - start_ms) / HOUR_MS
    window_h = (end_ms - start_ms) / HOUR_MS
    silent_h = 12.0 - 1800.001 / 3600 + (sessions - 1) * (3601 - 1800.001) / 3600

    def joint(deviation: float) -> tuple[float, float]:
        rate = 0.5 / 24 * math.exp(0.8 * deviation - 0.32)
        waited, _ = quad(lambda joined: math.exp(-rate * (first_h - joined)), 0.0, first_h)
        first = (1.0 - late) * math.exp(-rate * first_h) + late * waited / window_h
        return rate, rate**sessions * math.exp(-rate * silent_h) * first * math.exp(-(deviation**2) / 2)

    total, _ = quad(lambda deviation: joint(deviation)[1], -6, 6)
    moment, _ = quad(lambda deviation: math.prod(joint(deviation)), -6, 6)
    weight = view.observed_rate(one)
    assert weight.sum() == pytest.approx(1.0)
    assert weight @ view.rates == pytest.approx(moment / total, rel=1e-3)


def test_the_true_rate_lies_between_its_neighbours() -> None:
    spread = process(activity_spread=0.5)
    view = outlook(spread, 1)
    for rate in (spread.sessions_per_hour, 0.9 * spread.sessions_per_hour, 3.3 * spread.sessions_per_hour):
        weight = view.true_rate(past(spread, [[0]], 1)._replace(rate=rate))
        assert np.count_nonzero(weight) <= 2
        assert weight @ view.rates == pytest.approx(rate, rel=1e-3)


def test_silence_lowers_the_rate_and_sessions_raise_it() -> None:
    one = process()
    view = outlook(one, 7, past_days=20)

    def returns(sessions: int, days_ago: float) -> float:
        before = past(one, [[0]] * sessions, days_ago)
        state: Floats = truth.belief(one, before)
        return view.futures(state, view.observed_rate(before), before)[0].returns

    assert returns(1, 15) < returns(1, 1) < returns(10, 1)
