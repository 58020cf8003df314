"""Two modes of the next item, against the plain formula; training and prediction say the same."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from features import columns as c
from model.bundle import save_bundle
from model.errors import ModelError
from model.losses import Negatives, NegativeSampler
from model.network import Network
from model.predict import Predictor
from model.step import Steps
from model.streams import StreamBatch
from model.workers import SingleProcess
from tests.model import tables
from tests.model.test_bundle import REPORTS, bundle
from tests.model.test_step import COUNTS

SPEC = tables.NETWORK.model_copy(update={"repeat": True, "query_dropout": 1.0})
DISTANCES = (0, 1, 2, 4, 8, 16, 32)
V = tables.N_ITEMS


def _network(**spec: Any) -> Network:
    network = Network(SPEC.model_copy(update=spec), tables.SIZES, seed=3)
    rng = np.random.default_rng(0)
    network.set_weights({name: rng.normal(0, 0.5, weight.shape) for name, weight in network.weights.items()})
    return network


def _rows(n_rows: int = 12) -> dict[str, np.ndarray]:
    """Rows with repeats, an unknown item here and there, one row of unknown items alone, and one with every item."""
    rows = tables.ruled_rows(n_rows, seed=6)
    rng = np.random.default_rng(2)
    items = rows[c.ITEM]
    few = c.FIRST_ID + rng.integers(0, 5, items.shape)
    mask = items > 0
    items = np.where(mask & (rng.random(items.shape) < 0.6), few, items)
    items[0] = np.where(mask[0], c.OOV, items[0])
    items[1, 2:4] = c.OOV if rows[c.LENGTH][1] > 4 else items[1, 2:4]
    return {**rows, c.ITEM: items.astype(np.int32)}


def _log_p_by_hand(network: Network, row: dict[str, np.ndarray], n_events: int) -> np.ndarray:
    """Log-probabilities [V] of the item after the first `n_events` events of one row, place by place."""
    channels = {name: tf.constant(row[name][None, :n_events]) for name in c.CHANNELS}
    hidden = network.encode(channels)[0, -1]
    answer = network.answer(c.ITEM, hidden[None], tf.constant([0]))
    logits = network.logits(c.ITEM, answer)[0].numpy().astype(np.float64)
    weights = {name: value.numpy().astype(np.float64) for name, value in network.weights.items()}
    asked = (
        network.asked(hidden[None], tf.constant([0]))[0].numpy() @ weights["repeat_item/projection"]
        + weights["repeat_item/bias"]
    )
    bias = weights["item/bias"][c.FIRST_ID :]
    items, actions = row[c.ITEM][:n_events], row[c.ACTION_CODE][:n_events]
    scores: dict[int, float] = {}
    for place, (item, action) in enumerate(zip(items.tolist(), actions.tolist(), strict=True)):
        if item >= c.FIRST_ID:  # a later place of the same item replaces this one
            distance = n_events - 1 - place
            bucket = sum(distance > edge for edge in DISTANCES)
            times = min(int((items[: place + 1] == item).sum()), 3)
            scores[item] = asked[1 + bucket] + asked[9 + times - 1] + asked[12 + action]
            scores[item] += weights["repeat_item/scale"][0] * (logits - bias)[item - c.FIRST_ID]
    n_ids = len(logits)
    new = [i for i in range(n_ids) if i + c.FIRST_ID not in scores]
    gate = 1 / (1 + np.exp(-asked[0])) if scores else 0.0
    gate = 1.0 if not new else gate
    log_p = np.full(n_ids, -np.inf)
    with np.errstate(divide="ignore"):
        if new:
            log_p[new] = np.log(1 - gate) + logits[new] - np.log(np.exp(logits[new]).sum())
        total = sum(np.exp(score) for score in scores.values())
        for item, score in scores.items():
            log_p[item - c.FIRST_ID] = np.log(gate) + score - np.log(total)
    return log_p


def test_the_distribution_is_that_of_the_plain_formula():
    network, rows = _network(), _rows()
    batch = {name: tf.constant(values) for name, values in rows.items()}
    found = network.last(batch, batch[c.LENGTH], tf.zeros_like(batch[c.NEXT_GAP]))[c.ITEM].numpy()
    n_repeated = 0
    for at, length in enumerate(rows[c.LENGTH].tolist()):
        row = {name: values[at] for name, values in rows.items()}
        wanted = _log_p_by_hand(network, row, length)
        assert np.exp(wanted).sum() == pytest.approx(1.0)
        np.testing.assert_allclose(found[at], wanted, atol=1e-4)
        n_repeated += len(set(row[c.ITEM][:length].tolist())) < length
    assert n_repeated > 5


@pytest.mark.parametrize("is_sampled", [False, True])
def test_a_training_step_learns_what_is_predicted(is_sampled: bool, monkeypatch: pytest.MonkeyPatch):
    """The loss of each position is −log P of what `last` says after so many events; sampled: of every item, twice."""
    network = _network(full_softmax_max_items=5 if is_sampled else 1000)
    every = tf.tile(tf.range(c.FIRST_ID, tables.SIZES.items), [2])
    twice = Negatives(every, tf.fill([2 * V], np.log(2.0).astype(np.float32)))
    monkeypatch.setattr(NegativeSampler, "draw", lambda *_: twice)
    rows = _rows()
    wanted, n_repeated = 0.0, 0
    for at, length in enumerate(rows[c.LENGTH].tolist()):
        row = {name: values[at] for name, values in rows.items()}
        ahead = [*row[c.ITEM][1:length].tolist(), int(row[c.NEXT_ITEM])]
        for n_events, item in enumerate(ahead, start=1):
            if item >= c.FIRST_ID:
                wanted -= _log_p_by_hand(network, row, n_events)[item - c.FIRST_ID]
                n_repeated += item in row[c.ITEM][:n_events]
    assert n_repeated > 10
    steps = Steps(network, tables.TRAINING.model_copy(update={"category_weight": 0.0}), SingleProcess(), COUNTS)
    sums = steps.train([StreamBatch(0, 1, rows)], 1, 0.0)
    assert sums.item_loss == pytest.approx(wanted, rel=1e-4)


def test_the_likeliest_items_and_single_ids_are_those_of_the_full_distribution(tmp_path: Path):
    network = _network()
    weights = {name: value.numpy() for name, value in network.weights.items()}
    whole = type(bundle())(**{**vars(bundle()), "spec": SPEC, "weights": weights})
    save_bundle(str(tmp_path / "b"), "2024-06-30", whole, REPORTS)
    predictor = Predictor.load(str(tmp_path / "b"))
    rows = _rows(40)
    channels, length, next_gap = {n: rows[n] for n in c.CHANNELS}, rows[c.LENGTH], rows[c.NEXT_GAP]
    full, _ = predictor.probabilities(channels, length, next_gap)
    np.testing.assert_allclose(full.sum(axis=1), 1.0, rtol=1e-5)
    for k in (3, V, 500):
        top = predictor.top(channels, length, next_gap, k, 2)
        assert top.item_ids.shape == (40, min(k, V))
        assert all(len(set(ids)) == len(ids) for ids in top.item_ids.tolist())
        best = -np.sort(-full[:, c.FIRST_ID :], axis=1)[:, :k]
        np.testing.assert_allclose(top.item_p, best, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(np.take_along_axis(full, top.item_ids, axis=1), top.item_p, rtol=1e-4, atol=1e-7)
    state = predictor.advance(channels, length, np.zeros((40, predictor.state_floats), np.float32))
    for ids in (rows[c.ITEM][:, 0], np.full(40, 7, np.int32)):
        known = np.maximum(ids, c.FIRST_ID)
        log_p, _ = predictor.log_p_of(state, next_gap, channels, length, known, np.full(40, 2, np.int32))
        np.testing.assert_allclose(log_p, np.log(full[np.arange(40), known]), atol=1e-4)


@pytest.mark.parametrize("is_never", [True, False])
def test_it_learns_that_nobody_or_everybody_comes_back(is_never: bool):
    """Rows whose items are drawn anew each, or are the first two for ever; new rows are then judged."""
    network = Network(SPEC, tables.SIZES, seed=1)
    steps = Steps(network, tables.TRAINING, SingleProcess(), COUNTS)
    rng = np.random.default_rng(5)

    def rows() -> dict[str, np.ndarray]:
        given = tables.ruled_rows(32, seed=int(rng.integers(1 << 30)))
        drawn = rng.permuted(np.tile(np.arange(V), (32, 1)), axis=1)[:, : tables.LENGTH + 1] + c.FIRST_ID
        drawn = drawn if is_never else drawn[:, np.arange(tables.LENGTH + 1) % 2]
        items = np.where(given[c.ITEM] > 0, drawn[:, : tables.LENGTH], 0).astype(np.int32)
        return {**given, c.ITEM: items, c.NEXT_ITEM: drawn[np.arange(32), given[c.LENGTH]].astype(np.int32)}

    for number in range(1, 121):
        steps.train([StreamBatch(0, number, rows())], number, 0.02)
    judged = {name: tf.constant(values) for name, values in rows().items()}
    p = np.exp(network.last(judged, judged[c.LENGTH], judged[c.NEXT_GAP])[c.ITEM].numpy())
    items, length = judged[c.ITEM].numpy(), judged[c.LENGTH].numpy()
    held = np.array([p[at, list({i - 2 for i in items[at, :n].tolist()})].sum() for at, n in enumerate(length)])
    long = length >= 4
    assert (held[long] < 0.05).all() if is_never else (held[long] > 0.9).all()


def test_scores_without_probabilities_are_refused():
    with pytest.raises(ModelError, match=r"network\.repeat = true needs a softmax"):
        Steps(_network(), tables.TRAINING.model_copy(update={"loss": "bpr_max"}), SingleProcess(), COUNTS)
