import numpy as np
import pytest
import tensorflow as tf

from model.draws import dropped, uniform

SEED = tf.constant([7, 64])


@pytest.mark.parametrize("row", [(), (1,), (3, 5), (8,), (4, 4)])
def test_parts_of_a_batch_draw_what_the_whole_one_does(row: tuple[int, ...]):
    whole = uniform(SEED, 0, (11, *row)).numpy()
    parts = [uniform(SEED, start, (end - start, *row)).numpy() for start, end in ((0, 4), (4, 5), (5, 11))]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert len(np.unique(whole)) == whole.size  # no row repeats another


def test_whole_rows_of_counter_values_are_what_tensorflow_itself_draws():
    """Known numbers to compare with: that the counter starts and steps as TensorFlow's own does."""
    np.testing.assert_array_equal(uniform(SEED, 0, (6, 8)), tf.random.stateless_uniform((6, 8), SEED))


def test_numbers_are_uniform_and_follow_the_seed():
    numbers = uniform(SEED, 5, (200, 7, 9)).numpy()
    assert numbers.min() >= 0
    assert numbers.max() < 1
    np.testing.assert_allclose(np.histogram(numbers, 10, (0, 1))[0] / numbers.size, 0.1, atol=0.01)
    assert np.abs(uniform(tf.constant([7, 65]), 5, (200, 7, 9)) - numbers).max() > 0.5


def test_dropout_keeps_the_mean_and_passes_gradients_where_it_kept():
    values = tf.ones([100, 10, 10])
    with tf.GradientTape() as tape:
        tape.watch(values)
        found = dropped(values, 0.2, SEED, 0)
    assert set(np.unique(found).tolist()) == {0.0, 1.25}
    assert np.mean(found) == pytest.approx(1.0, abs=0.02)
    np.testing.assert_array_equal(tape.gradient(found, values), found)
    assert dropped(values, 0.0, SEED, 0) is values
    assert dropped(values, 0.2, None, 0) is values
