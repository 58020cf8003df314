import math

import numpy as np
import pytest
import tensorflow as tf

from features import columns as c
from model.losses import NegativeSampler, full_softmax, head_loss, sampled_softmax
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


def test_a_network_at_zero_weights_loses_log_v():
    network = Network(tables.NETWORK, tables.SIZES)
    network.set_weights({name: np.zeros(weight.shape, np.float32) for name, weight in network.weights.items()})
    answers = network.answer(c.ITEM, tf.zeros([3, tables.NETWORK.units]), tf.zeros([3], tf.int32))
    loss = head_loss(network, c.ITEM, answers, tf.constant([2, 9, 21]), 0.0, None, None)
    np.testing.assert_allclose(loss, [math.log(tables.N_ITEMS)] * 3, rtol=1e-6)


def test_padding_and_unknown_targets_cost_nothing():
    targets = tf.constant([c.PAD, c.OOV, 5, c.PAD])
    negative, sampled = tf.zeros([4, 3]), tf.constant([3, 4, 6])
    for loss in (
        full_softmax(_logits(), targets),
        full_softmax(_logits(), targets, smoothing=0.1),
        sampled_softmax(tf.zeros([4]), negative, targets, sampled, tf.zeros([3])),
    ):
        assert (loss.numpy() > 0).tolist() == [False, False, True, False]


def test_smoothing_mixes_in_the_uniform_distribution():
    logits, targets = _logits(), tf.constant([2, 3, 30, 51])
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    own = log_p[np.arange(4), targets.numpy() - 2]
    np.testing.assert_allclose(
        full_softmax(logits, targets, smoothing=0.2), -(0.8 * own + 0.2 * log_p.mean(axis=1)), rtol=1e-5
    )


def test_sampled_softmax_with_every_id_once_is_the_full_softmax():
    logits, targets = _logits(), np.array([2, 3, 30, 51])
    positive = logits[np.arange(4), targets - 2]
    found = sampled_softmax(positive, logits, tf.constant(targets), tf.range(2, V + 2), tf.zeros([V]))
    np.testing.assert_allclose(found, full_softmax(logits, tf.constant(targets)), rtol=1e-5)


def test_sampled_softmax_estimates_the_full_partition_function_without_bias():
    """exp(loss) is the partition function over exp(s_y): its mean over draws is that of the full softmax."""
    logits, targets = _logits(1), tf.constant([4])
    counts = np.concatenate([[0, 0], np.random.default_rng(2).integers(0, 100, V)])
    sampler = NegativeSampler(counts, negatives=20, power=0.75)

    def ratio(draw: tf.Tensor) -> tf.Tensor:
        sampled, log_expected = sampler.draw(tf.stack([7, draw]))
        negative = tf.gather(logits, sampled - 2, axis=1)
        return tf.exp(sampled_softmax(logits[:, 2], negative, targets, sampled, log_expected))[0]

    ratios = tf.function(lambda: tf.map_fn(ratio, tf.range(3000), fn_output_signature=tf.float32))().numpy()
    full = float(tf.exp(full_softmax(logits, targets))[0])
    error = np.std(ratios) / math.sqrt(len(ratios))
    assert np.mean(ratios) == pytest.approx(full, abs=4 * error)
    assert error < 0.05 * full  # else the line above proves nothing


def test_sampled_softmax_is_about_log_v_at_zero_weights():
    sampler = NegativeSampler(np.full(V + 2, 3), negatives=400, power=1.0)
    sampled, log_expected = sampler.draw(tf.constant([1, 1]))
    loss = sampled_softmax(tf.zeros([1]), tf.zeros([1, 400]), tf.constant([9]), sampled, log_expected)
    assert loss.numpy()[0] == pytest.approx(math.log(V), abs=0.05)


def test_negatives_follow_frequency_to_the_power_and_never_padding():
    counts = np.array([0, 0, 16, 1, 0, 81])  # an id never seen counts as seen once
    sampler = NegativeSampler(counts, negatives=20_000, power=0.5)
    sampled, log_expected = sampler.draw(tf.constant([3, 4]))
    share = np.bincount(sampled, minlength=6) / 20_000
    np.testing.assert_allclose(share, np.array([0, 0, 4, 1, 1, 9]) / 15, atol=0.01)
    np.testing.assert_allclose(
        np.exp(log_expected.numpy()) / 20_000, np.array([0, 0, 4, 1, 1, 9])[sampled] / 15, rtol=1e-5
    )
