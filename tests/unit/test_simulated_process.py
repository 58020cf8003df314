"""The hidden process does what docs/simulation.md says, and the oracle is right by enumeration and by count."""

import itertools
import math
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from features import simulated_truth as truth
from features.simulated_lives import Life, Window, _Clock, live
from features.simulated_process import Floats, Process, process_of
from tests.simulated import GAP_S, life, process, process_spec

DAY_MS = 86_400_000
END_MS = int(datetime(2024, 6, 3, tzinfo=UTC).timestamp()) * 1000  # a Monday
WINDOW = Window(END_MS - 56 * DAY_MS, END_MS)
CUTOFF_MS = END_MS - 7 * DAY_MS


@pytest.fixture(scope="module")
def crowd() -> tuple[Process, list[Life]]:
    simulated = process()
    return simulated, [live(simulated, WINDOW, 5, user) for user in range(2500)]


def test_a_life_depends_on_seed_and_user_only() -> None:
    simulated = process()
    first = live(simulated, WINDOW, 5, 1)
    live(simulated, WINDOW, 5, 0)
    for once, again in zip(first, live(process(), WINDOW, 5, 1), strict=True):
        np.testing.assert_array_equal(once, again)
    assert not np.array_equal(first.time_ms[:5], live(simulated, WINDOW, 6, 1).time_ms[:5])


def test_sessions_are_visible_as_gaps(crowd: tuple[Process, list[Life]]) -> None:
    _, lives = crowd
    for one in lives:
        gaps, same = np.diff(one.time_ms), np.diff(one.session) == 0
        assert (gaps[same] >= 1).all()
        assert (gaps[same] < 1000 * GAP_S).all()
        assert (gaps[~same] > 1000 * GAP_S).all()
        assert ((one.time_ms >= WINDOW.start_ms) & (one.time_ms < END_MS)).all()
        assert len(one.state) == len(set(one.session.tolist()))


def test_shares_are_those_of_the_spec(crowd: tuple[Process, list[Life]]) -> None:
    simulated, lives = crowd
    opens = np.concatenate([np.diff(one.session, prepend=-1) > 0 for one in lives])
    state = np.concatenate([one.state[one.session] for one in lives])
    category = np.concatenate([one.category for one in lives])
    first = state[opens] == 4
    np.testing.assert_allclose(
        np.bincount(category[opens][first], minlength=12) / first.sum(), simulated.taste[4], atol=0.03
    )
    inside = np.concatenate([np.diff(one.session) == 0 for one in lives])
    repeats = np.concatenate([np.diff(one.category) == 0 for one in lives])[inside]
    states_inside = np.concatenate([one.state[one.session[1:]] for one in lives])[inside]
    by_chance = (simulated.taste**2).sum(axis=1)[states_inside].mean()
    assert repeats.mean() == pytest.approx(0.3 + 0.7 * by_chance, abs=0.01)
    moves = np.zeros((12, 12))
    for one in lives:
        np.add.at(moves, (one.state[:-1], one.state[1:]), 1)
    np.testing.assert_allclose(moves / moves.sum(axis=1, keepdims=True), simulated.step, atol=0.05)
    actions = np.bincount(np.concatenate([one.action for one in lives]), minlength=5)
    np.testing.assert_allclose(actions / actions.sum(), simulated.actions, atol=0.005)


def test_items_follow_their_successors(crowd: tuple[Process, list[Life]]) -> None:
    simulated, lives = crowd
    sizes = np.diff(simulated.first_item)
    follows, by_chance = [], []
    for one in lives:
        assert (np.searchsorted(simulated.first_item, one.item, side="right") - 1 == one.category).all()
        for category in range(12):
            item = one.item[one.category == category] - simulated.first_item[category]
            successor = (item[:-1] + 1) % sizes[category]
            follows.append(item[1:] == successor)
            by_chance.append(simulated.popularity[simulated.first_item[category] + successor])
    expected = 0.35 + 0.65 * np.concatenate(by_chance).mean()
    assert np.concatenate(follows).mean() == pytest.approx(expected, abs=0.01)


def test_weeks_have_their_sessions_and_a_rhythm(crowd: tuple[Process, list[Life]]) -> None:
    _, lives = crowd
    starts = np.concatenate([one.time_ms[np.diff(one.session, prepend=-1) > 0] for one in lives])
    hour = (starts // 3_600_000) % 24
    weekend = ((starts // DAY_MS) + 3) % 7 >= 5
    afternoon, night = np.isin(hour, [15, 16, 17]).sum(), np.isin(hour, [3, 4, 5]).sum()
    expected = len(lives) * 56 * 0.5 * (1.0 - 0.2 / 2)  # a fifth joins halfway on average
    assert len(starts) == pytest.approx(expected, rel=0.05)
    assert 4.0 < afternoon / night < 6.5  # (1 + swing) / (1 - swing) = 5.7 at the peak hours
    assert weekend.mean() / 2 / ((1 - weekend.mean()) / 5) == pytest.approx(1.3, abs=0.08)


def test_session_lengths_of_a_shop() -> None:
    shop = process(session_median=6, session_p95=68, session_max=500)
    upto = np.cumsum(shop.length)
    assert int(np.searchsorted(upto, 0.5)) == 6
    assert 60 <= int(np.searchsorted(upto, 0.95)) <= 70
    assert shop.mean_length == pytest.approx(16.8, abs=1.5)
    assert upto[-1] == pytest.approx(1.0)
    assert shop.ends_after(500) == 1.0
    survives = np.prod([1.0 - shop.ends_after(n) for n in range(1, 10)])
    assert survives == pytest.approx(shop.length[10:].sum())


def test_observed_lengths_and_gaps(crowd: tuple[Process, list[Life]]) -> None:
    simulated, lives = crowd
    lengths = np.concatenate([np.bincount(one.session)[:-1] for one in lives if len(one.session)])
    assert lengths.mean() == pytest.approx(simulated.mean_length, rel=0.03)
    gaps = np.concatenate([np.diff(one.time_ms)[np.diff(one.session) == 0] for one in lives])
    for gap_ms in (1, 60_000, 600_000):
        assert (gaps >= gap_ms).mean() == pytest.approx(simulated.gap_at_least(gap_ms), abs=0.01)
    assert simulated.gap_at_least(1000 * GAP_S) == 0.0


@given(st.integers(0, 10**12), st.floats(0.0, 500.0))
def test_clock_waits_by_the_rhythm(now_ms: int, wait: float) -> None:
    rhythm = 1.0 + 0.5 * np.sin(np.arange(168))
    then_ms = _Clock(rhythm).after(now_ms, wait)
    slow, now = 0.0, float(now_ms)
    while now < then_ms:  # hour by hour: intensity × time
        hour = int(now // 3_600_000)
        end = min((hour + 1) * 3_600_000.0, then_ms)
        slow += (end - now) / 3_600_000 * rhythm[(hour + 72) % 168]
        now = end
    assert slow == pytest.approx(wait, abs=1e-5)


@pytest.mark.parametrize(
    "sessions", [[[0]], [[0, 0, 1]], [[2], [1, 1]], [[0, 1], [1, 1, 1], [2]], [[1], [0, 0], [2, 0], [1, 2]]]
)
def test_filter_equals_enumeration(sessions: list[list[int]]) -> None:
    tiny = process(categories=3, items=7, themes=3, types=2, regimes=2, strong_categories=1, strong_share=0.6)
    joint = np.zeros(4)
    for path in itertools.product(range(4), repeat=len(sessions)):
        joint[path[-1]] += _path_probability(tiny, path, sessions)
    observed = life(sessions, tiny)
    np.testing.assert_allclose(truth.belief(tiny, observed), joint / joint.sum(), rtol=1e-10)


@pytest.mark.parametrize("silence_ms", [0, 1, 2000, 60_000, 1_799_999, 1_800_000, 10**9])
def test_prediction_equals_enumeration(silence_ms: int) -> None:
    """Every way to go on: the session ends, or its next gap has one of the lengths that the silence allows."""
    tiny = process(categories=3, items=7, themes=3, types=2, regimes=2, strong_categories=1, gap_mean_s=20)
    sessions = [[0, 1], [1, 1, 2]]
    joint = np.zeros(3)
    likely_gap = sum(
        _gap_probability(tiny, gap) for gap in range(max(silence_ms, 1), min(silence_ms + 600_000, 1_800_000), 1)
    )
    for path in itertools.product(range(4), repeat=2):
        before = _path_probability(tiny, path, sessions)
        ends = tiny.length[3] / tiny.length[3:].sum()
        for category in range(3):
            taste = tiny.taste[path[-1], category]
            goes_on = tiny.repeat * (category == 2) + (1 - tiny.repeat) * taste
            joint[category] += before * (1 - ends) * likely_gap * goes_on
            for state in range(4):
                joint[category] += before * ends * tiny.step[path[-1], state] * tiny.taste[state, category]
    observed = life(sessions, tiny)
    cutoff_ms = int(observed.time_ms[-1]) + silence_ms
    predicted = truth.next_categories(tiny, truth.belief(tiny, observed), observed, cutoff_ms)
    np.testing.assert_allclose(predicted, joint / joint.sum(), rtol=1e-6)


def test_next_items_by_hand() -> None:
    tiny = process(categories=3, items=7, successor=0.5, themes=3, regimes=3)
    first, popularity = tiny.first_item, tiny.popularity
    items = truth.next_items(tiny, np.array([0.2, 0.3, 0.5]), life([[1, 1, 0]], tiny))
    expected = np.zeros(7)
    for category, share, visited in ((0, 0.2, True), (1, 0.3, True), (2, 0.5, False)):
        members = range(first[category], first[category + 1])
        for item in members:
            expected[item] = share * popularity[item] * (0.5 if visited else 1.0)
        if visited:  # the life holds the first item of each category only
            expected[first[category] + 1 % len(members)] += 0.5 * share
    np.testing.assert_allclose(items, expected)
    assert items.sum() == pytest.approx(1.0)


def test_strongest_breaks_ties_by_position() -> None:
    values = np.array([0.1, 0.3, 0.1, 0.3 + 1e-12, 0.1, 0.0])
    assert truth.strongest(values, 4).tolist() == [1, 3, 0, 2]
    assert truth.strongest(values, 99).tolist() == [1, 3, 0, 2, 4, 5]


def test_oracle_is_calibrated_and_unbeaten(crowd: tuple[Process, list[Life]]) -> None:
    simulated, lives = crowd
    popularity = sum(np.bincount(one.before(CUTOFF_MS).category, minlength=12) for one in lives) / 1e6
    rows: dict[str, list[Floats]] = {"latent": [], "oracle": [], "last": [], "popularity": []}
    actual = []
    for one in lives:
        past = one.before(CUTOFF_MS)
        n = len(past.time_ms)
        if 0 < n < len(one.time_ms):
            actual.append(int(one.category[n]))
            rows["latent"].append(truth.next_categories(simulated, truth.certain(simulated, past), past, CUTOFF_MS))
            rows["oracle"].append(truth.next_categories(simulated, truth.belief(simulated, past), past, CUTOFF_MS))
            rows["last"].append(popularity + (np.arange(12) == past.category[-1]))
            rows["popularity"].append(popularity)
    scores = {name: np.stack(score) for name, score in rows.items()}
    target = np.array(actual)
    everyone = np.arange(len(target))
    assert len(target) > 1500
    hit = np.eye(12)[target]
    for low, high in itertools.pairwise((0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 1.0)):
        bucket = (scores["oracle"] >= low) & (scores["oracle"] < high)
        said, happened = scores["oracle"][bucket].mean(), hit[bucket].mean()
        assert abs(said - happened) < 4 * math.sqrt(said / bucket.sum()), (low, said, happened)
    log_likelihood = {name: np.log(scores[name][everyone, target]).mean() for name in ("latent", "oracle")}
    assert log_likelihood["latent"] > log_likelihood["oracle"]
    ndcg = {name: _ndcg(score, target) for name, score in scores.items()}
    assert ndcg["latent"] >= ndcg["oracle"] - 0.005
    assert ndcg["oracle"] > max(ndcg["last"], ndcg["popularity"]) + 0.08


def test_silence_tells_whether_a_session_goes_on(crowd: tuple[Process, list[Life]]) -> None:
    simulated, lives = crowd
    said, happened = [], []
    for one in lives:
        for position in range(0, len(one.time_ms) - 1, 5):
            cutoff_ms = int(one.time_ms[position]) + 45_000
            if one.time_ms[position + 1] >= cutoff_ms:
                said.append(truth.session_goes_on(simulated, one.before(cutoff_ms), cutoff_ms))
                happened.append(one.session[position + 1] == one.session[position])
    assert 0.1 < np.mean(said) < 0.9
    assert np.mean(happened) == pytest.approx(np.mean(said), abs=0.015)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"regimes": 7}, "regimes = 7"),
        ({"items": 3}, "items = 3"),
        ({"stay": 0.9}, "stay \\+ advance"),
        ({"session_p95": 2}, "session_p95 = 2"),
        ({"strong_categories": 13}, "strong_categories = 13"),
        ({"actions": {"view": 1.0}}, "actions"),
        ({"strong_share": 1.0}, "strong_share"),
    ],
)
def test_impossible_processes_are_refused(overrides: dict[str, object], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        process_spec(**overrides)


def test_one_category_and_one_item_work() -> None:
    least = process_of(
        process_spec(categories=1, items=1, themes=1, types=1, regimes=1, strong_categories=1), GAP_S, seed=1
    )
    one = live(least, WINDOW, 1, 0)
    assert set(one.item.tolist()) == {0}
    assert truth.next_categories(least, truth.belief(least, one), one, END_MS).tolist() == pytest.approx([1.0])


def _path_probability(of: Process, path: tuple[int, ...], sessions: list[list[int]]) -> float:
    """Joint probability of a path of states and the categories seen, one event at a time."""
    probability = 1.0
    for number, (state, session) in enumerate(zip(path, sessions, strict=True)):
        probability *= of.step[path[number - 1], state] if number else of.start[state]
        for position, category in enumerate(session):
            taste = of.taste[state, category]
            if position == 0:
                probability *= taste
            else:
                probability *= of.repeat * (session[position - 1] == category) + (1 - of.repeat) * taste
    return probability


def _gap_probability(of: Process, gap_ms: int) -> float:
    """A truncated exponential, rounded up to whole milliseconds."""
    mean, greatest = of.gap_mean_ms, of.gap_max_ms
    whole = 1.0 - math.exp(-greatest / mean)
    return (math.exp(-(gap_ms - 1) / mean) - math.exp(-gap_ms / mean)) / whole if gap_ms <= greatest else 0.0


def _ndcg(scores: Floats, target: Floats) -> float:
    of_target = scores[np.arange(len(target)), target.astype(int)]
    rank = (scores >= of_target[:, None]).sum(axis=1)
    return float(np.where(rank <= 10, 1.0 / np.log2(1 + rank), 0.0).mean())
