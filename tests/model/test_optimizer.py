import numpy as np
import pytest
import tensorflow as tf

from model.network import Network
from model.optimizer import Averages, penalised
from tests.model import tables

KERNELS = {"lstm_0/kernel", "lstm_0/recurrent", "item/projection", "category/projection"}


def test_penalties_are_the_gradient_of_the_kernels_absolute_values_and_squares():
    network = Network(tables.NETWORK.model_copy(update={"layer_norm": True}), tables.SIZES, seed=3)
    weights = network.weights
    with tf.GradientTape() as tape:
        penalty = tf.add_n(
            [0.3 * tf.reduce_sum(tf.abs(weights[name])) + 0.7 * tf.reduce_sum(weights[name] ** 2) for name in KERNELS]
        )
    wanted = dict(zip(weights, tape.gradient(penalty, list(weights.values())), strict=True))
    ones = [tf.ones_like(weight) for weight in weights.values()]
    for name, found in zip(weights, penalised(weights, ones, l1=0.3, l2=0.7), strict=True):
        np.testing.assert_allclose(found, 1.0 if wanted[name] is None else 1.0 + wanted[name], atol=1e-6, err_msg=name)
    assert all(np.array_equal(found, one) for found, one in zip(penalised(weights, ones, 0.0, 0.0), ones, strict=True))


def test_every_kernel_of_the_convolutions_is_penalised():
    weights = Network(tables.NETWORK.model_copy(update={"cell": "cnn"}), tables.SIZES).weights
    zeros = [tf.zeros_like(weight) for weight in weights.values()]
    found = dict(zip(weights, penalised(weights, zeros, 0.0, 1.0), strict=True))
    moved = {name for name, gradient in found.items() if np.abs(gradient).max() > 0}
    assert {name for name in weights if name.startswith("cnn_") and name.endswith("/kernel")} < moved
    assert not any(name.endswith("bias") or name.startswith(("embedding/", "query/")) for name in moved)


def test_averages_weigh_the_newest_most_and_sum_to_one():
    """After w = 1, 2, 4 with d = 0.5: (4·0.5 + 2·0.25 + 1·0.125) / 0.875; after one step the weight itself."""
    weight = tf.Variable([0.0, 0.0])
    averages = Averages({"a": weight}, 0.5)
    for step, value in enumerate((1.0, 2.0, 4.0), start=1):
        weight.assign([value, -value])
        averages.update()
        if step == 1:
            with averages.in_place(step):
                assert weight.numpy().tolist() == [1.0, -1.0]
    with averages.in_place(3):
        np.testing.assert_allclose(weight, [3.0, -3.0], rtol=1e-6)
    assert weight.numpy().tolist() == [4.0, -4.0]


def test_the_weights_come_back_when_something_fails_while_averages_stand_in():
    weight = tf.Variable([1.0])
    averages = Averages({"a": weight}, 0.9)
    averages.update()
    weight.assign([5.0])
    seen: list[float] = []

    def validate() -> None:
        with averages.in_place(1):
            seen.extend(weight.numpy())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        validate()
    assert seen == pytest.approx([1.0])
    assert weight.numpy().tolist() == [5.0]


def test_without_a_decay_nothing_is_kept():
    weight = tf.Variable([1.0])
    averages = Averages({"a": weight}, 0.0)
    averages.update()
    with averages.in_place(7):
        assert weight.numpy().tolist() == [1.0]
    assert averages.state == {}
