import numpy as np
import pytest
import tensorflow as tf

from features import columns as c
from model import step
from model.network import Network
from model.step import Steps
from model.streams import StreamBatch
from model.workers import SingleProcess
from tests.model import tables

COUNTS = {c.ITEM: np.full(tables.SIZES.items, 3), c.CATEGORY: np.full(tables.SIZES.categories, 9)}


def _moved(n_parts: int, monkeypatch: pytest.MonkeyPatch, **spec: object) -> dict[str, np.ndarray]:
    """Weights after two steps with a batch cut into so many parts."""
    monkeypatch.setattr(step, "threads_in_use", lambda: n_parts)
    network = Network(tables.NETWORK.model_copy(update={"query_dropout": 0.0, **spec}), tables.SIZES, seed=3)
    steps = Steps(network, tables.TRAINING.model_copy(update={"adam_epsilon": 1e-3}), SingleProcess(), COUNTS)
    batch = tables.ruled_rows(11, seed=5)
    for number in (1, 2):
        steps.train([StreamBatch(0, number, batch)], number, 0.01)
    return {name: weight.numpy() for name, weight in network.weights.items()}


@pytest.mark.parametrize(
    "spec", [{}, {"full_softmax_max_items": 5}, {"full_softmax_max_items": 5, "sparse_min_items": 99}]
)
def test_a_batch_in_parts_moves_the_weights_as_a_whole_one_does(spec: dict[str, int], monkeypatch: pytest.MonkeyPatch):
    whole, parts = (_moved(n_parts, monkeypatch, **spec) for n_parts in (1, 3))
    for name, weight in whole.items():
        np.testing.assert_allclose(parts[name], weight, atol=1e-5, err_msg=name)


def test_sparse_and_dense_gradients_of_a_first_step_move_the_same_rows(monkeypatch: pytest.MonkeyPatch):
    """From moments of zero, Adam leaves rows without a gradient where they are, named or not."""
    monkeypatch.setattr(step, "threads_in_use", lambda: 2)
    found = []
    for sparse_min_items in (0, 99):
        spec = {"full_softmax_max_items": 5, "sparse_min_items": sparse_min_items}
        network = Network(tables.NETWORK.model_copy(update=spec), tables.SIZES, seed=3)
        steps = Steps(network, tables.TRAINING.model_copy(update={"negatives": 4}), SingleProcess(), COUNTS)
        before = network.weights["embedding/item"].numpy()
        steps.train([StreamBatch(0, 1, tables.ruled_rows(3, seed=5))], 1, 0.01)
        found.append((before, network.weights["embedding/item"].numpy()))
    (before, sparse), (_, dense) = found
    np.testing.assert_allclose(sparse, dense, atol=1e-6)
    moved = np.abs(dense - before).max(axis=1) > 0
    assert 0 < moved.sum() < len(moved)  # some rows stay: the two ways could differ there


def test_parts_draw_their_own_dropout(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(step, "threads_in_use", lambda: 2)
    network = Network(tables.NETWORK.model_copy(update={"embedding_dropout": 0.5}), tables.SIZES, seed=3)
    steps = Steps(network, tables.TRAINING, SingleProcess(), COUNTS)
    row = tables.ruled_rows(1, seed=5)
    twice = {name: tf.constant(np.concatenate([values, values])) for name, values in row.items()}
    seeds: list[tf.Tensor] = []
    whole = Network.encode

    def encode(self: Network, rows: dict[str, tf.Tensor], seed: tf.Tensor) -> tf.Tensor:
        seeds.append(whole(self, rows, seed))
        return seeds[-1]

    monkeypatch.setattr(Network, "encode", encode)
    steps._gradient_graph(twice, tf.constant([7, 64]))
    assert np.abs(seeds[0] - seeds[1]).max() > 0.01
