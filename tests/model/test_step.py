from typing import Any

import numpy as np
import pytest

from features import columns as c
from model import step
from model.errors import ModelError
from model.network import Network
from model.spec import ActionWeights
from model.step import Steps
from model.streams import StreamBatch
from model.workers import SingleProcess
from tests.model import tables

Weights = dict[str, np.ndarray]

COUNTS = {c.ITEM: np.full(tables.SIZES.items, 3), c.CATEGORY: np.full(tables.SIZES.categories, 9)}


# Everything that is drawn at random in a step.
DRAWN = {"embedding_dropout": 0.2, "hidden_dropout": 0.2}
CHANGED = {"crop": 0.5, "item_dropout": 0.1, "item_mask": 0.1, "shuffle_ties": True}


def _moved(n_parts: int, monkeypatch: pytest.MonkeyPatch, training: dict[str, Any], **spec: object) -> Weights:
    """Weights after two steps with a batch cut into so many parts."""
    monkeypatch.setattr(step, "threads_in_use", lambda: n_parts)
    network = Network(tables.NETWORK.model_copy(update=spec), tables.SIZES, seed=3)
    changes = {"adam_epsilon": 1e-3, **training}
    steps = Steps(network, tables.TRAINING.model_copy(update=changes), SingleProcess(), COUNTS)
    batch = tables.ruled_rows(11, seed=5)
    for number in (1, 2):
        steps.train([StreamBatch(0, number, batch)], number, 0.01)
    assert steps._of_part.experimental_get_tracing_count() == 1
    return _values(network)


@pytest.mark.parametrize(
    ("training", "spec"),
    [
        (CHANGED, {**DRAWN, "repeat": True}),
        ({"loss": "bpr_max"}, {**DRAWN, "full_softmax_max_items": 5}),
        ({}, {**DRAWN, "full_softmax_max_items": 5, "sparse_min_items": 99, "cell": "gru"}),
        ({}, {**DRAWN, "full_softmax_max_items": 5, "repeat": True}),
    ],
)
def test_a_batch_in_parts_moves_the_weights_as_a_whole_one_does(
    training: dict[str, Any], spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    """Dropout included: what is drawn for a row does not depend on the number of threads."""
    whole, parts = (_moved(n_parts, monkeypatch, training, **spec) for n_parts in (1, 3))
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


def test_targets_weigh_by_the_action_of_their_event(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(step, "threads_in_use", lambda: 2)
    rows = tables.ruled_rows(100, seed=5)
    batch = {name: values[rows[c.LENGTH] == 4][:5] for name, values in rows.items()}
    batch[c.ACTION_CODE][:, :4] = c.FIRST_ID + c.ACTIONS.index("buy")
    batch[c.AHEAD_ACTION] = np.full((5, tables.N_AHEAD), c.PAD, np.int32)
    batch[c.AHEAD_ACTION][:2, 0] = c.FIRST_ID + c.ACTIONS.index("buy")
    weights = ActionWeights(view=0.0, click=0.0, like=0.0, cart=0.0, buy=3.0)
    sums = []
    for action_weights in (tables.TRAINING.action_weights, weights):
        network = Network(tables.NETWORK.model_copy(update={"query_dropout": 0.0}), tables.SIZES, seed=3)
        training = tables.TRAINING.model_copy(update={"action_weights": action_weights})
        steps = Steps(network, training, SingleProcess(), COUNTS)
        sums.append(steps.train([StreamBatch(0, 1, batch)], 1, 0.0))
    plain, weighted = sums
    assert plain.item_targets == 5 * 4
    assert weighted.item_targets == 5 * 3 * 3.0 + 2 * 3.0 + 3 * 1.0  # three events behind the rows lie too far ahead
    assert weighted.item_loss / plain.item_loss == pytest.approx(54 / 20, abs=0.1)
    assert weighted.positions == plain.positions


def test_penalties_pull_the_kernels_in_and_nothing_else():
    """A penalty far above the loss: Adam's first step then is the learning rate, towards 0."""
    network = Network(tables.NETWORK, tables.SIZES, seed=3)
    training = tables.TRAINING.model_copy(update={"l1": 1e4, "l2": 1e4, "clip_norm": 1e9})
    before = {name: weight.numpy() for name, weight in network.weights.items()}
    Steps(network, training, SingleProcess(), COUNTS).train([StreamBatch(0, 1, tables.ruled_rows(3, seed=5))], 1, 0.01)
    for name in ("lstm_0/kernel", "lstm_0/recurrent", "item/projection"):
        moved = network.weights[name].numpy() - before[name]
        np.testing.assert_allclose(moved, -0.01 * np.sign(before[name]), atol=1e-4)
    sizes = [np.abs(weight["embedding/hour"]).sum() for weight in (before, _values(network))]
    assert sizes[1] == pytest.approx(sizes[0], abs=0.2)


def test_averages_take_in_the_weights_after_they_moved():
    """After one step the average is the weight itself; for rows of a sparse gradient, and those it left alone, too."""
    network = Network(tables.NETWORK.model_copy(update={"full_softmax_max_items": 5}), tables.SIZES, seed=3)
    training = tables.TRAINING.model_copy(update={"ema_decay": 0.9})
    steps, before = Steps(network, training, SingleProcess(), COUNTS), _values(network)
    steps.train([StreamBatch(0, 1, tables.ruled_rows(3, seed=5))], 1, 0.01)
    moved = _values(network)
    assert np.abs(moved["embedding/item"] - before["embedding/item"]).max() > 0.005
    with steps.averages.in_place(1):
        for name, value in _values(network).items():
            np.testing.assert_allclose(value, moved[name], atol=1e-6, err_msg=name)


def test_smoothing_with_bpr_max_is_refused():
    training = tables.TRAINING.model_copy(update={"loss": "bpr_max", "label_smoothing": 0.1})
    with pytest.raises(ModelError, match=r"label_smoothing = 0\.1 needs a softmax .*bpr_max"):
        Steps(Network(tables.NETWORK, tables.SIZES), training, SingleProcess(), COUNTS)


def _values(network: Network) -> Weights:
    return {name: weight.numpy() for name, weight in network.weights.items()}
