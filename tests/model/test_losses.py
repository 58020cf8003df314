import math

import numpy as np
import pytest
import tensorflow as tf

from features import columns as c
from model import losses
from model.losses import Negatives, NegativeSampler, bpr_max_loss, full_softmax, head_loss, log_partition
from model.network import Network
from tests.model import tables

V = 50


def _logits(rows: int = 4) -> np.ndarray:
    return np.random.default_rng(1).normal(0, 2, (rows, V)).astype(np.float32)


def _by_hand(logits: np.ndarray, label: int) -> float:
    return float(np.log(np.exp(logits.astype(np.float64)).sum()) - logits[label])


def test_full_softmax_is_log_v_at_zero_weights_and_the_formula_elsewhere():
    assert full_softmax(tf.zeros([1, V]), tf.constant([7])).numpy() == pytest.approx([math.log(V)])
    logits = _logits()
    targets = [2, 3, 30, 51]
    wanted = [_by_hand(row, target - 2) for row, target in zip(logits, targets, strict=True)]
    np.testing.assert_allclose(full_softmax(logits, tf.constant(targets)), wanted, rtol=1e-5)


def _network(zero: bool = False, **spec: object) -> Network:
    network = Network(tables.NETWORK.model_copy(update=spec), tables.SIZES, seed=3)
    rng = np.random.default_rng(0)
    shapes = {name: weight.shape for name, weight in network.weights.items()}
    network.set_weights({name: rng.normal(0, 0.0 if zero else 1.0, shape) for name, shape in shapes.items()})
    return network


def _answers(rows: int) -> tf.Tensor:
    return tf.constant(np.random.default_rng(1).normal(0, 1, (rows, tables.NETWORK.item_dim)), tf.float32)


def _every_item_once() -> Negatives:
    return Negatives(tf.range(c.FIRST_ID, tables.SIZES.items), tf.zeros([tables.N_ITEMS]))


@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("is_sampled", [False, True])
def test_the_log_partition_and_its_gradients_are_those_of_the_plain_formula(
    pieces: int, is_sampled: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(losses, "_PIECE_ROWS", 1)
    monkeypatch.setattr(losses, "_PIECE_SCORES", -(-7 // pieces) * 5)
    rng = np.random.default_rng(4)
    answers, rows, offset, own = (tf.constant(rng.normal(0, 2, shape), tf.float32) for shape in ((7, 3), (5, 3), 5, 7))
    weight = tf.constant([1.0, 0.0, 2.0, 1.0, 1.0, 0.5, 1.0])
    targets, ids = tf.constant([2, 3, 4, 5, 9, 9, 2]), tf.constant([2, 2, 5, 6, 7])
    inputs = [answers, rows, offset] + ([own] if is_sampled else [])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(inputs)
        scores = tf.matmul(answers, rows, transpose_b=True) + offset
        if is_sampled:
            scores = tf.where(targets[:, None] == ids[None, :], -np.inf, scores)
            scores = tf.concat([scores, own[:, None]], axis=1)
        wanted = 3.0 * tf.reduce_sum(weight * tf.reduce_logsumexp(scores, axis=1))
        skipped = (targets, ids) if is_sampled else None
        found = 3.0 * log_partition(answers, rows, offset, weight, own if is_sampled else None, skipped)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    for mine, plain in zip(tape.gradient(found, inputs), tape.gradient(wanted, inputs), strict=True):
        np.testing.assert_allclose(mine, plain, rtol=1e-4, atol=1e-5)


def test_a_network_at_zero_weights_loses_log_v_a_position():
    loss = head_loss(_network(zero=True), c.ITEM, _answers(3), tf.constant([2, 9, 21]), 0.0, None)
    assert float(loss) == pytest.approx(3 * math.log(tables.N_ITEMS), rel=1e-6)


def test_padding_and_unknown_targets_cost_nothing():
    targets = tf.constant([c.PAD, c.OOV, 5, c.PAD])
    network, answers = _network(), _answers(4)
    for smoothing, negatives in ((0.0, None), (0.1, None), (0.0, _every_item_once())):
        whole = head_loss(network, c.ITEM, answers, targets, smoothing, negatives)
        third = head_loss(network, c.ITEM, answers[2:3], targets[2:3], smoothing, negatives)
        assert float(whole) == pytest.approx(float(third), rel=1e-6)
        assert float(whole) > 0
    assert (full_softmax(_logits(), targets).numpy() > 0).tolist() == [False, False, True, False]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_head_loses_what_the_full_softmax_says(smoothing: float):
    network, answers, targets = _network(), _answers(4), tf.constant([2, 3, 15, 21])
    wanted = tf.reduce_sum(full_softmax(network.logits(c.ITEM, answers), targets, smoothing))
    assert float(head_loss(network, c.ITEM, answers, targets, smoothing, None)) == pytest.approx(
        float(wanted), rel=1e-5
    )


def test_smoothing_mixes_in_the_uniform_distribution():
    logits, targets = _logits(), tf.constant([2, 3, 30, 51])
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    own = log_p[np.arange(4), targets.numpy() - 2]
    np.testing.assert_allclose(
        full_softmax(logits, targets, smoothing=0.2), -(0.8 * own + 0.2 * log_p.mean(axis=1)), rtol=1e-5
    )


def test_half_precision_moves_the_loss_by_its_rounding_only():
    network, answers, targets = _network(), _answers(4), tf.constant([2, 3, 15, 21])
    whole, half = (
        float(head_loss(network, c.ITEM, answers, targets, 0.0, None, precision))
        for precision in ("float32", "bfloat16")
    )
    assert half != whole
    assert half == pytest.approx(whole, rel=2e-2)


def test_sampled_softmax_with_every_id_once_is_the_full_softmax():
    network, answers, targets = _network(), _answers(4), tf.constant([2, 3, 15, 21])
    sampled, full = (head_loss(network, c.ITEM, answers, targets, 0.0, each) for each in (_every_item_once(), None))
    assert float(sampled) == pytest.approx(float(full), rel=1e-5)


def test_sampled_softmax_estimates_the_full_partition_function_without_bias():
    """exp(loss) is the partition function over exp(s_y): its mean over draws is that of the full softmax."""
    network, answers, targets = _network(), _answers(1) * 0.3, tf.constant([4])
    counts = np.concatenate([[0, 0], np.random.default_rng(2).integers(0, 100, tables.N_ITEMS)])
    sampler = NegativeSampler(counts, negatives=20, power=0.75)

    def ratio(draw: tf.Tensor) -> tf.Tensor:
        return tf.exp(head_loss(network, c.ITEM, answers, targets, 0.0, sampler.draw(tf.stack([7, draw]))))

    ratios = tf.function(lambda: tf.map_fn(ratio, tf.range(3000), fn_output_signature=tf.float32))().numpy()
    full = float(tf.exp(head_loss(network, c.ITEM, answers, targets, 0.0, None)))
    error = np.std(ratios) / math.sqrt(len(ratios))
    assert np.mean(ratios) == pytest.approx(full, abs=4 * error)
    assert error < 0.05 * full  # else the line above proves nothing


def test_sampled_softmax_is_about_log_v_at_zero_weights():
    negatives = NegativeSampler(np.full(tables.SIZES.items, 3), negatives=400, power=1.0).draw(tf.constant([1, 1]))
    loss = head_loss(_network(zero=True), c.ITEM, _answers(1), tf.constant([9]), 0.0, negatives)
    assert float(loss) == pytest.approx(math.log(tables.N_ITEMS), abs=0.05)


def test_bpr_max_is_log_2_at_zero_weights():
    loss = bpr_max_loss(_network(zero=True), c.ITEM, _answers(3), tf.constant([2, 9, 21]), _every_item_once(), 1.0)
    assert float(loss) == pytest.approx(3 * math.log(2), rel=1e-6)


@pytest.mark.parametrize("pieces", [1, 3])
def test_bpr_max_and_its_gradients_are_those_of_the_plain_formula(pieces: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(losses, "_PIECE_ROWS", 1)
    monkeypatch.setattr(losses, "_PIECE_SCORES", -(-7 // pieces) * 5)
    network, targets, ids = _network(), tf.constant([2, 3, 15, c.OOV, 15, 21, c.PAD]), tf.constant([2, 2, 15, 9, 7])
    answers, importance = tf.Variable(_answers(7)), tf.constant([1.0, 2.0, 1.0, 1.0, 0.5, 1.0, 1.0])
    weights = [answers, network.weights["embedding/item"], network.weights["item/bias"]]
    with tf.GradientTape(persistent=True) as tape:
        logits = tf.matmul(answers, weights[1], transpose_b=True) + weights[2]  # [P, V + 2]
        wanted = 0.0
        for row, target in enumerate(targets.numpy()):
            if target >= c.FIRST_ID:
                scores = tf.gather(logits[row], [j for j in ids.numpy() if j != target])
                q = tf.nn.softmax(scores)
                ranked = -tf.math.log(tf.reduce_sum(q * tf.sigmoid(logits[row, target] - scores)))
                wanted += importance[row] * (ranked + 0.3 * tf.reduce_sum(q * scores**2))
        negatives = Negatives(ids, tf.zeros([5]))
        found = bpr_max_loss(network, c.ITEM, answers, targets, negatives, 0.3, importance)
    assert float(found) == pytest.approx(float(wanted), rel=1e-5)
    for mine, plain in zip(tape.gradient(found, weights), tape.gradient(wanted, weights), strict=True):
        np.testing.assert_allclose(tf.convert_to_tensor(mine), tf.convert_to_tensor(plain), rtol=1e-4, atol=1e-5)


def test_bpr_max_stays_finite_where_every_negative_is_the_target():
    negatives = Negatives(tf.constant([9, 9]), tf.zeros([2]))
    network, answers = _network(), tf.Variable(_answers(1) * 30)
    with tf.GradientTape() as tape:
        loss = bpr_max_loss(network, c.ITEM, answers, tf.constant([9]), negatives, 1.0)
    assert np.isfinite(loss.numpy())
    assert np.isfinite(tape.gradient(loss, answers).numpy()).all()


@pytest.mark.parametrize("negatives", [None, _every_item_once()])
def test_a_position_s_importance_multiplies_its_loss(negatives: Negatives | None):
    network, answers, targets = _network(), _answers(3), tf.constant([2, 3, 15])
    alone = [
        float(head_loss(network, c.ITEM, answers[row : row + 1], targets[row : row + 1], 0.0, negatives))
        for row in range(3)
    ]
    importance = tf.constant([1.0, 0.0, 2.5])
    together = head_loss(network, c.ITEM, answers, targets, 0.0, negatives, importance=importance)
    assert float(together) == pytest.approx(alone[0] + 2.5 * alone[2], rel=1e-5)


def test_negatives_follow_frequency_to_the_power_and_never_padding():
    counts = np.array([0, 0, 16, 1, 0, 81])  # an id never seen counts as seen once
    sampler = NegativeSampler(counts, negatives=20_000, power=0.5)
    sampled, log_expected = sampler.draw(tf.constant([3, 4]))
    share = np.bincount(sampled, minlength=6) / 20_000
    np.testing.assert_allclose(share, np.array([0, 0, 4, 1, 1, 9]) / 15, atol=0.01)
    np.testing.assert_allclose(
        np.exp(log_expected.numpy()) / 20_000, np.array([0, 0, 4, 1, 1, 9])[sampled] / 15, rtol=1e-5
    )
