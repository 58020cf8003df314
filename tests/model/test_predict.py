import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from features import columns as c
from features.contexts import after_events
from model.bundle import save_bundle
from model.errors import ModelError
from model.network import Network
from model.predict import Predictor
from tests.model import tables
from tests.model.test_bundle import REPORTS, bundle

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    folder = str(tmp_path_factory.mktemp("predict") / "dt=2024-06-30")
    save_bundle(folder, "2024-06-30", bundle(), REPORTS)
    return Predictor.load(folder, threads=1)


def _rows(n_rows: int) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    rows = tables.ruled_rows(n_rows, seed=4)
    return {name: rows[name] for name in c.CHANNELS}, rows[c.LENGTH], rows[c.NEXT_GAP]


def test_rows_sum_to_one_and_padding_and_unknown_have_none(predictor: Predictor):
    items, categories = predictor.probabilities(*_rows(10))
    assert items.shape == (10, tables.SIZES.items)
    assert categories.shape == (10, tables.SIZES.categories)
    for part in (items, categories):
        assert part.dtype == np.float32
        np.testing.assert_allclose(part.sum(axis=1), 1, rtol=1e-5)
        assert not part[:, : c.FIRST_ID].any()
        assert (part[:, c.FIRST_ID :] > 0).all()


def test_the_number_of_rows_and_their_place_change_nothing(predictor: Predictor):
    channels, length, next_gap = _rows(600)  # three batches
    items, _ = predictor.probabilities(channels, length, next_gap)
    assert items.shape[0] == 600
    for at in (0, 255, 256, 599):
        alone, _ = predictor.probabilities(
            {name: values[at : at + 1] for name, values in channels.items()}, length[at : at + 1], next_gap[at : at + 1]
        )
        np.testing.assert_allclose(alone[0], items[at], rtol=1e-4)
    assert predictor._probabilities.experimental_get_tracing_count() == 1


_MILLION = """
import resource, sys
from dataclasses import replace
import numpy as np
from features import columns as c
from model.network import Network
from model.predict import Predictor
from tests.model import tables
from tests.model.test_bundle import bundle
sizes = tables.SIZES.model_copy(update={"items": c.FIRST_ID + 1_000_000})
network = Network(tables.NETWORK, sizes, seed=1)
known = Predictor(replace(bundle(), sizes=sizes, weights={k: w.numpy() for k, w in network.weights.items()}))
rows = tables.ruled_rows(8, seed=4)
def ask(n):
    channels = {name: rows[name][:n] for name in c.CHANNELS}
    return known.probabilities(channels, rows[c.LENGTH][:n], rows[c.NEXT_GAP][:n])[0]
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
np.testing.assert_allclose(ask(8)[0], ask(1)[0], rtol=1e-4)
print(peak() - before)
"""


def test_a_few_rows_of_a_million_items_take_the_memory_of_a_few_rows():
    done = subprocess.run(
        [sys.executable, "-c", _MILLION], capture_output=True, text=True, timeout=900, check=False, cwd=PROJECT
    )
    assert done.returncode == 0, done.stderr[-2000:]
    n_mib = float(done.stdout.split()[-1])
    assert n_mib < 500, "eight rows are 31 MiB of probabilities, 256 rows 977 MiB, and that several times"


def test_top_is_the_sorted_head_of_the_full_distribution(predictor: Predictor):
    rows = _rows(300)
    items, categories = predictor.probabilities(*rows)
    top = predictor.top(*rows, k_items=5, k_categories=2)
    for full, ids, p in ((items, top.item_ids, top.item_p), (categories, top.category_ids, top.category_p)):
        order = np.argsort(-full, axis=1, kind="stable")[:, : ids.shape[1]]
        np.testing.assert_array_equal(ids, order)
        np.testing.assert_allclose(p, np.take_along_axis(full, order, axis=1), rtol=1e-4)
        assert (ids.dtype, p.dtype) == (np.int32, np.float32)


def test_one_id_has_the_log_probability_of_the_full_distribution(predictor: Predictor):
    channels, length, next_gap = _rows(300)
    full = predictor.probabilities(channels, length, next_gap)
    state = predictor.advance(channels, length, np.zeros((300, predictor.state_floats), np.float32))
    ids = [c.FIRST_ID + np.arange(300, dtype=np.int32) % (part.shape[1] - c.FIRST_ID) for part in full]
    for found, part, of in zip(predictor.log_p_of(state, next_gap, channels, length, *ids), full, ids, strict=True):
        np.testing.assert_allclose(found, np.log(part[np.arange(300), of]), atol=1e-4)
    with pytest.raises(ModelError, match="Probabilities of item ids 1 to"):
        predictor.log_p_of(state, next_gap, channels, length, ids[0] - 1, ids[1])


def test_ties_go_to_the_smaller_id(tmp_path: Path):
    flat = bundle()
    flat = type(flat)(**{**vars(flat), "weights": {name: np.zeros_like(w) for name, w in flat.weights.items()}})
    save_bundle(str(tmp_path / "flat"), "2024-06-30", flat, REPORTS)
    top = Predictor.load(str(tmp_path / "flat")).top(*_rows(3), k_items=4, k_categories=50)
    assert top.item_ids.tolist() == [[2, 3, 4, 5]] * 3
    np.testing.assert_allclose(top.item_p, 1 / tables.N_ITEMS, rtol=1e-5)
    assert top.category_ids.tolist() == [[2, 3, 4, 5]] * 3  # as many as there are


def test_no_rows_give_no_rows(predictor: Predictor):
    items, categories = predictor.probabilities(*_rows(0))
    assert (items.shape, categories.shape) == ((0, tables.SIZES.items), (0, tables.SIZES.categories))
    top = predictor.top(*_rows(0), k_items=3, k_categories=2)
    assert [part.shape for part in top] == [(0, 3), (0, 3), (0, 2), (0, 2)]


def test_ids_and_shapes_of_another_encoding_are_refused(predictor: Predictor):
    channels, length, next_gap = _rows(4)
    with pytest.raises(ModelError, match=r"Column item holds 22, model .* knows 0 to 21"):
        predictor.probabilities({**channels, c.ITEM: channels[c.ITEM] * 0 + 22}, length, next_gap)
    with pytest.raises(ModelError, match=r"Column hour has shape \[4, 7\]"):
        predictor.probabilities({**channels, c.HOUR: channels[c.HOUR][:, :7]}, length, next_gap)


def _state(predictor: Predictor, n: int) -> np.ndarray:
    return np.zeros((n, predictor.state_floats), np.float32)


def test_a_state_carried_over_any_cut_equals_the_whole_read_at_once(predictor: Predictor):
    channels, length, next_gap = _rows(300)
    whole = predictor.advance(channels, length, _state(predictor, 300))
    first = np.random.default_rng(2).integers(0, length + 1).astype(np.int32)  # 0: nothing before; length: nothing new
    rest = after_events(channels, first.astype(np.int64))
    carried = predictor.advance(rest, length - first, predictor.advance(channels, first, _state(predictor, 300)))
    assert {0, 1} <= set((length - first).tolist())
    np.testing.assert_allclose(carried, whole, atol=1e-5)
    for state in (whole, carried):
        top = predictor.top_of(state, next_gap, channels, length, k_items=20, k_categories=4)
        items, categories = predictor.probabilities(channels, length, next_gap)
        for full, ids, p in ((items, top.item_ids, top.item_p), (categories, top.category_ids, top.category_p)):
            np.testing.assert_allclose(np.log(p), np.log(np.take_along_axis(full, ids, axis=1)), atol=1e-4)


def test_lengths_and_numbers_of_rows_are_traced_once(predictor: Predictor):
    for n in (1, 31, 33, 300):
        channels, length, next_gap = _rows(n)
        for least in (1, 5):
            state = predictor.advance(channels, np.minimum(length, least), _state(predictor, n))
            predictor.top_of(state, next_gap, channels, length, k_items=least, k_categories=2)
    assert predictor._advance.experimental_get_tracing_count() == 1
    assert predictor._top.experimental_get_tracing_count() == 1


def test_a_row_without_events_keeps_its_state_and_others_do_not_see_it(predictor: Predictor):
    channels, length, _ = _rows(4)
    before = np.random.default_rng(3).normal(0, 0.1, (4, predictor.state_floats)).astype(np.float32)
    kept = before.copy()
    after = predictor.advance(channels, np.array([0, length[1], 0, length[3]], np.int32), before)
    np.testing.assert_array_equal(before, kept)
    np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])
    alone = predictor.advance({name: rows[1:2] for name, rows in channels.items()}, length[1:2], before[1:2])
    np.testing.assert_allclose(after[1], alone[0], atol=1e-6)
    assert np.abs(after[1] - before[1]).max() > 1e-3


def test_two_layers_carry_both(tmp_path: Path):
    network = Network(tables.NETWORK.model_copy(update={"layers": 2}), tables.SIZES, seed=5)
    deep = replace(
        bundle(), spec=network.spec, weights={name: weight.numpy() for name, weight in network.weights.items()}
    )
    save_bundle(str(tmp_path / "deep"), "2024-06-30", deep, REPORTS)
    predictor = Predictor.load(str(tmp_path / "deep"))
    channels, length, _ = _rows(20)
    assert predictor.state_floats == 4 * tables.NETWORK.units
    whole = predictor.advance(channels, length, _state(predictor, 20))
    first = np.ones(20, np.int64)
    carried = predictor.advance(channels, first.astype(np.int32), _state(predictor, 20))
    carried = predictor.advance(after_events(channels, first), length - 1, carried)
    np.testing.assert_allclose(carried, whole, atol=1e-5)


def test_with_embeddings_of_positions_a_context_is_read_whole(tmp_path: Path, predictor: Predictor):
    """New events alone would be counted from the first position on, and give another state."""
    network = Network(tables.NETWORK.model_copy(update={"position_dim": 4}), tables.SIZES, seed=5)
    placed = replace(
        bundle(), spec=network.spec, weights={name: weight.numpy() for name, weight in network.weights.items()}
    )
    save_bundle(str(tmp_path / "placed"), "2024-06-30", placed, REPORTS)
    assert predictor.is_recurrent
    assert not Predictor.load(str(tmp_path / "placed")).is_recurrent


def test_states_of_another_model_are_refused(predictor: Predictor):
    channels, length, next_gap = _rows(3)
    with pytest.raises(ModelError, match=r"States have shape \[3, 8\], model .* takes \[3, 64\]"):
        predictor.top_of(np.zeros((3, 8), np.float32), next_gap, channels, length, 2, 2)
