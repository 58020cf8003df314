"""The approximate choice of the likeliest columns, against the exact one."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from features import columns as c
from jobs.score import LoadBundle
from jobs.settings import config_hash, load_settings
from model import item_index
from model.bundle import save_bundle
from model.errors import ModelError
from model.item_index import ItemIndex
from model.predict import Predictor
from model.top import top_columns
from tests.model import test_repeats
from tests.model.test_bundle import REPORTS, bundle

ALL = 1 << 20  # probes; more than there are lists
N_CLUSTERS, N_COLUMNS, WIDTH = 100, 20_000, 32


@pytest.fixture
def faiss() -> None:
    pytest.importorskip("faiss", reason="FAISS is not installed (the extra [index])")


def _whole(n_rows: int, n_columns: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Answers, table and bias of whole numbers: products are exact, many scores equal."""
    rng = np.random.default_rng(seed)
    answers, table = (rng.integers(-3, 4, (n, 3)).astype(np.float32) for n in (n_rows, n_columns))
    bias = rng.integers(0, 5, n_columns).astype(np.float32)
    bias[-1] -= bias.sum()  # a mean of 0, which is taken off without rounding
    return answers, table, bias


def _clustered(n_rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Columns and answers around common centres, and a bias that falls as popularity does."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(N_CLUSTERS, WIDTH))
    table = centres[rng.integers(0, N_CLUSTERS, N_COLUMNS)] + 0.5 * rng.normal(size=(N_COLUMNS, WIDTH))
    answers = centres[rng.integers(0, N_CLUSTERS, n_rows)] + 0.5 * rng.normal(size=(n_rows, WIDTH))
    bias = -0.8 * np.log(np.arange(1, N_COLUMNS + 1))
    return tuple(values.astype(np.float32) for values in (0.4 * answers, 0.5 * table, bias))


@pytest.fixture(scope="module")
def clustered() -> Iterator[tuple[ItemIndex, np.ndarray, np.ndarray, np.ndarray]]:
    """An index whose sample is a tenth of the columns."""
    pytest.importorskip("faiss", reason="FAISS is not installed (the extra [index])")
    answers, table, bias = _clustered(200)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(item_index, "_MIN_SAMPLE", N_COLUMNS // 10)
        yield ItemIndex(table, bias, probes=32), answers, table, bias


@pytest.mark.usefixtures("faiss")
@pytest.mark.parametrize("n_columns", [1, 7, 400])
@pytest.mark.parametrize("k", [1, 20, 400])
def test_with_all_lists_read_it_is_the_exact_choice_ties_included(n_columns: int, k: int):
    answers, table, bias = _whole(40, n_columns)
    k = min(k, n_columns)
    found = ItemIndex(table, bias, ALL).top_columns(answers, k)
    wanted = top_columns(answers, table, bias, k)
    np.testing.assert_array_equal(found.columns, wanted.columns)
    np.testing.assert_allclose(found.log_p, wanted.log_p, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("faiss")
@pytest.mark.parametrize("n_columns", [7, 400])
def test_excluded_columns_come_last_and_have_no_share(n_columns: int):
    answers, table, bias = _whole(40, n_columns)
    rng = np.random.default_rng(1)
    excluded = np.stack([rng.permutation(n_columns)[:7] for _ in answers]).astype(np.int32)
    excluded[0], excluded[1:, rng.integers(0, 7)] = -1, -1
    excluded[2, :6] = top_columns(answers[2:3], table, bias, 6).columns[0]  # the best of all
    excluded[2, 6] = -1
    index = ItemIndex(table, bias, ALL, max_excluded=7)
    for k in (1, 7, max(7, n_columns // 2)):
        found = index.top_columns(answers, k, tf.constant(excluded))
        wanted = top_columns(answers, table, bias, k, excluded=tf.constant(excluded))
        if k <= 7:  # of so many equal scores not all are fetched
            np.testing.assert_array_equal(found.columns, wanted.columns)
        np.testing.assert_allclose(found.log_p, wanted.log_p, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("faiss")
def test_a_row_has_k_columns_though_its_lists_hold_fewer():
    rng = np.random.default_rng(2)  # of 126 lists one holds the first 3,800 columns
    table = np.concatenate([np.full((3_800, 3), -5.0), rng.normal(5, 1, (200, 3))]).astype(np.float32)
    bias = np.zeros(4_000, np.float32)
    answers = np.array([[5, 5, 5], [-5, -5, -5]], np.float32)
    found = ItemIndex(table, bias, probes=1).top_columns(answers, 600)
    assert [len(set(row)) for row in found.columns.numpy().tolist()] == [600, 600]
    assert set(found.columns[0, :200].numpy()) == set(range(3_800, 4_000))
    assert found.columns[0, 200:].numpy().tolist() == list(range(400))


def test_most_of_the_likeliest_are_found(clustered: tuple[ItemIndex, np.ndarray, np.ndarray, np.ndarray]):
    index, answers, table, bias = clustered
    found, wanted = index.top_columns(answers, 20).columns, top_columns(answers, table, bias, 20).columns
    share = np.mean([len(np.intersect1d(*pair)) / 20 for pair in zip(found.numpy(), wanted.numpy(), strict=True)])
    assert share > 0.99


def test_the_normaliser_is_near_the_sum_over_all(clustered: tuple[ItemIndex, np.ndarray, np.ndarray, np.ndarray]):
    index, answers, table, bias = clustered
    found = index.top_columns(answers, 20)
    scores = np.take_along_axis(answers @ table.T + bias, found.columns.numpy(), axis=1).astype(np.float64)
    log_p = scores - tf.reduce_logsumexp(answers @ table.T + bias, axis=1, keepdims=True).numpy()
    off = found.log_p.numpy() - log_p
    np.testing.assert_allclose(off, np.repeat(off[:, :1], 20, axis=1), atol=1e-4)  # the scores are exact
    assert np.abs(off).max() < 0.2
    assert abs(off.mean()) < 0.03


def test_rows_are_answered_alike_by_any_build_and_in_any_batch(
    clustered: tuple[ItemIndex, np.ndarray, np.ndarray, np.ndarray],
):
    index, answers, table, bias = clustered
    whole = index.top_columns(answers, 20)
    again = ItemIndex(table, bias, probes=32)
    for start in range(0, 200, 50):
        some = slice(start, start + 50)
        part = again.top_columns(answers[some], 20)
        np.testing.assert_array_equal(part.columns, whole.columns[some])
        np.testing.assert_allclose(part.log_p, whole.log_p[some], atol=1e-4)


@pytest.mark.usefixtures("faiss")
@pytest.mark.parametrize("repeat", [False, True])
def test_a_predictor_with_an_index_says_what_the_exact_one_says(tmp_path: Path, repeat: bool):
    made = bundle()
    if repeat:
        weights = {name: value.numpy() for name, value in test_repeats._network().weights.items()}
        made = type(made)(**{**vars(made), "spec": test_repeats.SPEC, "weights": weights})
    save_bundle(str(tmp_path / "b"), "2024-06-30", made, REPORTS)
    exact, indexed = Predictor.load(str(tmp_path / "b")), Predictor.load(str(tmp_path / "b"), item_probes=ALL)
    rows = test_repeats._rows(300)
    channels, length, next_gap = {n: rows[n] for n in c.CHANNELS}, rows[c.LENGTH], rows[c.NEXT_GAP]
    for k in (3, 20):
        found, wanted = (of.top(channels, length, next_gap, k, 2) for of in (indexed, exact))
        np.testing.assert_array_equal(found.category_ids, wanted.category_ids)
        np.testing.assert_allclose(found.item_p, wanted.item_p, rtol=1e-4, atol=1e-7)
        assert (found.item_ids == wanted.item_ids).mean() > 0.99  # near ties may change places
    state = exact.advance(channels, length, np.zeros((300, exact.state_floats), np.float32))
    asked = state, next_gap, channels, length, np.maximum(rows[c.ITEM][:, 0], c.FIRST_ID), np.full(300, 2, np.int32)
    np.testing.assert_allclose(indexed.log_p_of(*asked)[0], exact.log_p_of(*asked)[0], atol=1e-4)


def test_without_faiss_the_command_that_installs_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    version = save_bundle(str(tmp_path / "b"), "2024-06-30", bundle(), REPORTS)
    monkeypatch.setitem(sys.modules, "faiss", None)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"^scoring\.item_index = .* -c requirements/constraints\.txt '\.\[index\]'"):
        LoadBundle(str(tmp_path / "b"), version, threads=1, item_probes=8)()
    LoadBundle(str(tmp_path / "b"), version, threads=1)()  # which does without


def test_the_index_is_part_of_what_carried_rows_must_share():
    keys = ("exact", 32), ("approximate", 32), ("approximate", 64)
    specs = [
        load_settings(assignments=[f"scoring.item_index={kind}", f"scoring.item_index_probes={probes}"]).scoring
        for kind, probes in keys
    ]
    assert [spec.probes for spec in specs] == [None, 32, 64]
    assert len({config_hash(spec) for spec in specs}) == 3
