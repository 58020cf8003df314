"""Losses of the heads for the time ahead against loops over events, and their numbers at extremes."""

import math
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from features import columns as c
from model.ahead import Timeline, landmarks, timeline
from model.head_losses import head_losses, log_expm1, rate, rate_sum
from model.network import Network
from model.spec import ACTION, HEADS, HORIZON, HOUR, TOUCHED, WHEN
from tests.model import lives, tables

SEED = tf.constant([3, 64])
SPAN_S = tables.NETWORK.return_bins_h[-1] * 3600
DAY_S = 86_400
# What stands for the gap codes that end a session, by the edges of tables.SIZES.
SILENCE_DAYS = {5: math.sqrt(1800 * 20_000) / DAY_S, 6: math.sqrt(20_000 * 100_000) / DAY_S, 7: 100_000 / DAY_S}


def _random_life(rng: np.random.Generator) -> lives.Life:
    n_events = int(rng.integers(2, 22))
    gaps = rng.choice([0, 30, 900, 1800, 1801, 5_000, 40_000, 90_000, 400_000], n_events)
    times = np.cumsum(gaps) + rng.integers(0, 10_000)
    categories = rng.integers(c.OOV, tables.SIZES.categories, n_events)
    actions = rng.integers(c.FIRST_ID, c.N_ACTION_CODES, n_events)
    return lives.Life(times.tolist(), categories.tolist(), actions.tolist())


def _cut(rng: np.random.Generator) -> tuple[lives.Life, int, int]:
    """A life, where its window stops, and until when it is known."""
    life = _random_life(rng)
    stop = int(rng.integers(1, len(life.time_s) + 1))
    known_at = life.time_s[stop - 1] + int(rng.choice([0, 1000, 2000, 50_000, 300_000, 900_000]))
    return life, stop, known_at


@pytest.fixture(scope="module")
def cuts() -> list[tuple[lives.Life, int, int]]:
    rng = np.random.default_rng(5)
    return [_cut(rng) for _ in range(40)]


@pytest.fixture(scope="module")
def network() -> Network:
    """Every weight random, those that start at 0 too."""
    network = Network(tables.NETWORK, tables.SIZES, seed=3, heads=HEADS)
    rng = np.random.default_rng(0)
    for weight in network.heads.weights.values():
        weight.assign(rng.normal(0, 0.2, weight.shape))
    return network


def _hidden(n_rows: int) -> np.ndarray:
    shape = (n_rows, tables.LENGTH, tables.NETWORK.units)
    return np.random.default_rng(9).normal(0, 1, shape).astype(np.float32)


def _oracle(network: Network, cuts: list[tuple[lives.Life, int, int]], hidden: np.ndarray) -> dict[str, float]:
    """The same losses, event by event in double precision."""
    rows = lives.batch([lives.row(*cut) for cut in cuts])
    silences, used = (x.numpy() for x in landmarks(timeline(rows, tables.SIZES), SPAN_S, SEED, 0))
    w = {name: weight.numpy().astype(np.float64) for name, weight in network.weights.items()}
    table = w["embedding/category"]
    edges_s = [0.0, *(hours * 3600.0 for hours in tables.NETWORK.return_bins_h)]
    total = dict.fromkeys(HEADS, 0.0)
    for at_row, (life, stop, known_to_s) in enumerate(cuts):
        start = max(0, stop - tables.LENGTH)
        known_at = known_to_s
        after = [at for at in range(stop, len(life.time_s)) if life.time_s[at] <= known_at]
        if len(after) > lives.N_AHEAD:
            known_at = life.time_s[after[lives.N_AHEAD]] - 1
            after = after[: lives.N_AHEAD]
        n_seen = stop + len(after)
        for at in range(start, stop):
            state, now_s = hidden[at_row, at - start].astype(np.float64), life.time_s[at]
            silence_s, is_used = silences[at_row, at - start], used[at_row, at - start]
            bucket = sum(silence_s >= edge for edge in edges_s[1:-1])
            asked = state * (1 + w["silence/scale"][bucket]) + w["silence/shift"][bucket]
            ahead = range(at + 1, n_seen)
            for d, days in enumerate(tables.SIZES.horizons_days):
                until = now_s + silence_s + days * DAY_S
                if not is_used or until > known_at:
                    continue
                z, u = (
                    (asked @ w[f"{name}/projection"][d] @ table.T + w[f"{name}/bias"][d])[c.FIRST_ID :]
                    for name in (HORIZON, TOUCHED)
                )
                ids = [life.category[s] for s in ahead if life.time_s[s] <= until and life.category[s] >= c.FIRST_ID]
                if ids:
                    own = np.mean([z[id_ - c.FIRST_ID] for id_ in ids])
                    total[HORIZON] += (np.log(np.exp(z).sum()) - own) / 2
                for id_ in range(c.FIRST_ID, tables.SIZES.categories):
                    log_missed = -math.exp(u[id_ - c.FIRST_ID])  # of a Poisson count
                    total[TOUCHED] -= (math.log(-math.expm1(log_missed)) if id_ in ids else log_missed) / 2
            has_next = at + 1 < n_seen
            gap_s = life.time_s[at + 1] - now_s if has_next else None
            if has_next and gap_s <= 1800:
                continue
            codes = rows[c.GAP][at_row, : at - start + 1].tolist()
            days = [SILENCE_DAYS[code] for code in codes if code in SILENCE_DAYS]
            pace = np.array([math.log((sum(days) + 1) / (len(days) + 1)), math.log(1 + len(days))])
            logits = state @ w["when/projection"] + w["when/bias"] + pace @ w["when/pace"]
            hazards = 1 / (1 + np.exp(-logits))
            for k, hazard in enumerate(hazards):
                time_s = gap_s if has_next else known_at - now_s
                low, high = edges_s[k : k + 2]
                if has_next and low < time_s <= high:
                    total[WHEN] -= math.log(hazard)
                else:
                    total[WHEN] -= min(max((time_s - low) / (high - low), 0), 1) * math.log(1 - hazard)
            if not has_next or not is_used:
                continue
            if at + 1 < stop:
                hour = lives.hour_code(now_s) - 1 + silence_s // 3600
                logits = asked @ w["hour/projection"] + w["hour/bias"]
                from_now = asked @ w["hour/ahead/projection"] + w["hour/ahead/bias"]
                logits += from_now[(np.arange(168) - hour) % 168]
                total[HOUR] += np.log(np.exp(logits).sum()) - logits[lives.hour_code(life.time_s[at + 1]) - 1]
            end = at + 1
            while end + 1 < n_seen and life.time_s[end + 1] - life.time_s[end] <= 1800:
                end += 1
            if end + 1 < n_seen or known_at - life.time_s[end] > 1800:
                p = 1 / (1 + np.exp(-(asked @ w["action/projection"] + w["action/bias"])))
                held = {life.action[s] for s in range(at + 1, end + 1)}
                for code in range(c.FIRST_ID, c.N_ACTION_CODES):
                    total[ACTION] -= math.log(p[code - c.FIRST_ID] if code in held else 1 - p[code - c.FIRST_ID])
    return total


def test_losses_are_those_of_a_loop_over_events(network: Network, cuts: list[tuple[lives.Life, int, int]]):
    rows = lives.batch([lives.row(*cut) for cut in cuts])
    hidden = _hidden(len(cuts))
    wanted = _oracle(network, cuts, hidden)
    found = tf.function(head_losses)(network, rows, tf.constant(hidden), SEED, 0)
    assert min(wanted.values()) > 1  # each head has labels here
    for name in HEADS:
        assert float(found[name]) == pytest.approx(wanted[name], rel=1e-4), name


def test_losses_of_parts_add_up_to_those_of_the_batch(network: Network, cuts: list[tuple[lives.Life, int, int]]):
    rows, hidden = lives.batch([lives.row(*cut) for cut in cuts]), _hidden(len(cuts))
    whole = head_losses(network, rows, tf.constant(hidden), SEED, 0)
    parts = [
        head_losses(network, {n: v[part] for n, v in rows.items()}, tf.constant(hidden[part]), SEED, part.start)
        for part in (slice(0, 13), slice(13, 40))
    ]
    for name in HEADS:
        assert float(whole[name]) == pytest.approx(sum(float(part[name]) for part in parts), rel=1e-4)


def test_gradients_of_rows_that_say_nothing_are_zero(network: Network):
    """No event ahead, nothing known: what has no label moves nothing, and is no error."""
    rows = tables.ruled_rows(4, seed=1) | {name: np.zeros(4, np.int32) for name in (c.NEXT_GAP, c.LENGTH)}
    hidden = tf.constant(_hidden(4))
    with tf.GradientTape() as tape:
        losses = tf.function(head_losses)(network, rows, hidden, SEED, 0)
        loss = tf.add_n(list(losses.values()))
    assert float(loss) == 0.0
    weights = list(network.heads.weights.values())
    for gradient in tape.gradient(loss, weights, unconnected_gradients="zero"):
        assert not np.any(tf.convert_to_tensor(gradient).numpy())


@pytest.mark.parametrize("size", [1e-6, 1.0, 60.0, 3e4])
def test_gradients_are_finite_at_extremes(size: float, cuts: list[tuple[lives.Life, int, int]]):
    network = Network(tables.NETWORK, tables.SIZES, seed=3, heads=HEADS)
    for weight in network.heads.weights.values():
        weight.assign(tf.sign(weight + 0.1) * size)
    rows, hidden = lives.batch([lives.row(*cut) for cut in cuts]), tf.constant(_hidden(len(cuts)))
    with tf.GradientTape() as tape:
        tape.watch(hidden)
        losses = head_losses(network, rows, hidden, SEED, 0)
        loss = tf.add_n(list(losses.values()))
    assert np.isfinite(float(loss))
    for gradient in tape.gradient(loss, [hidden, *network.weights.values()], unconnected_gradients="zero"):
        assert np.isfinite(tf.convert_to_tensor(gradient).numpy()).all()


def test_the_log_of_a_touch_keeps_its_digits():
    scores = np.array([-80.0, -20.0, -7.0, -6.8, -1.0, 0.0, 2.0, 4.9], np.float32)
    wanted = [math.log(math.expm1(math.exp(score))) for score in scores.astype(np.float64)]
    np.testing.assert_allclose(log_expm1(tf.constant(scores)), wanted, rtol=1e-5, atol=1e-6)
    assert float(rate(tf.constant(7.0))) == pytest.approx(3 * math.exp(5.0))
    assert float(log_expm1(tf.constant(7.0))) == pytest.approx(3 * math.exp(5.0))


def test_rates_add_up_over_pieces_as_at_once(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(2)
    parts = [tf.constant(rng.normal(0, 1.5, shape).astype(np.float32)) for shape in ((7, 3), (5, 3), (5,))]
    found: list[Any] = []
    for piece_scores in (1 << 19, 11):
        monkeypatch.setattr("model.head_losses._PIECE_SCORES", piece_scores)
        with tf.GradientTape() as tape:
            tape.watch(parts)
            total = rate_sum(*parts)
        found.append((total, *tape.gradient(total, parts)))
    with tf.GradientTape() as tape:
        tape.watch(parts)
        total = tf.reduce_sum(rate(tf.matmul(parts[0], parts[1], transpose_b=True) + parts[2]))
    wanted = (total, *tape.gradient(total, parts))
    for each in found:
        for got, want in zip(each, wanted, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-4)


def test_a_landmark_is_used_where_the_user_was_still_silent():
    """Of gaps of 1000 s, those asked later than that are left out; no one else is."""
    n_rows = 300
    life = lives.Life([0, 1000, 2000, 3000], [2, 3, 4, 5], [2, 2, 2, 2])
    rows = lives.batch([lives.row(life, 3, 10**6)] * n_rows)
    times: Timeline = timeline(rows, tables.SIZES)
    silence_s, is_used = (x.numpy()[:, :3] for x in landmarks(times, SPAN_S, SEED, 0))
    np.testing.assert_array_equal(is_used, silence_s < 1000)
    assert np.mean(silence_s == 0) == pytest.approx(0.5, abs=0.05)
    later = np.log(silence_s[silence_s > 0])
    assert np.median(later) == pytest.approx(math.log(math.sqrt(60 * SPAN_S)), abs=0.3)


def test_a_silence_longer_than_any_in_training_is_asked_as_the_longest_there(network: Network):
    end_s = int(network.heads.edges_s[-1])
    silence_s = tf.constant([end_s - 1, end_s, 50 * end_s])
    rng = np.random.default_rng(0)
    for part in ("scale", "shift"):
        weight = network.heads.weights[f"silence/{part}"]
        weight.assign(rng.normal(size=weight.shape))
    asked = network.heads.asked(tf.ones([3, tables.NETWORK.units]), silence_s).numpy()
    np.testing.assert_array_equal(asked[1:], asked[[0, 0]])
    assert np.abs(asked[0] - 1).min() > 0


def test_a_head_of_weight_0_has_no_weights():
    names = [name.split("/")[0] for name in Network(tables.NETWORK, tables.SIZES, heads=(WHEN,)).weights]
    assert WHEN in names
    assert not {*HEADS, "silence"} - {WHEN} & set(names)
    training = tables.TRAINING.model_copy(update={"when_weight": 0.3})
    assert training.head_weights == {WHEN: 0.3}


def test_heads_start_at_popularity():
    network = Network(tables.NETWORK, tables.SIZES, heads=HEADS)
    network.start_bias(c.CATEGORY, np.array([0, 0, 9, 4, 3, 0]))
    for name in (HORIZON, TOUCHED):
        share = np.exp(network.heads.weights[f"{name}/bias"].numpy()[:, c.FIRST_ID :])
        np.testing.assert_allclose(share, [np.array([10, 5, 4, 1]) / 20] * 2, rtol=1e-5)
