import numpy as np
import tensorflow as tf

from model.gradients import added, compact, scaled


def _rows(indices: list[int], values: list[float]) -> tf.IndexedSlices:
    return tf.IndexedSlices(tf.constant(values)[:, None], tf.constant(indices), tf.constant([6, 1]))


def _dense(gradient: tf.IndexedSlices) -> list[float]:
    return tf.convert_to_tensor(gradient).numpy()[:, 0].tolist()


def test_a_row_named_twice_becomes_one_with_the_sum_of_both():
    found = compact(_rows([4, 1, 4], [1.0, 2.0, 5.0]))
    assert sorted(found.indices.numpy().tolist()) == [1, 4]
    assert _dense(found) == [0, 2, 0, 0, 6, 0]
    assert float(tf.linalg.global_norm([found])) == np.float32(np.sqrt(40.0))  # of the sum, not of 1, 2 and 5


def test_gradients_add_up_whatever_their_form():
    assert added([tf.constant([1.0, 2.0]), tf.constant([0.5, 0.5])]).numpy().tolist() == [1.5, 2.5]
    both = added([_rows([1, 2], [1.0, 2.0]), _rows([2], [3.0])])
    assert sorted(both.indices.numpy().tolist()) == [1, 2]
    assert _dense(scaled(both, tf.constant(2.0))) == [0, 2, 10, 0, 0, 0]
    assert scaled(tf.constant([1.0, 3.0]), tf.constant(2.0)).numpy().tolist() == [2.0, 6.0]
