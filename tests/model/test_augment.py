import numpy as np
import pytest
import tensorflow as tf

from features import columns as c
from model.augment import noised, rearranged
from model.network import following
from tests.model import tables

SEED = tf.constant([7, 64])
KINDS = (c.ITEM, c.CATEGORY, c.ACTION_CODE)


def _rows(n_rows: int) -> dict[str, np.ndarray]:
    return tables.ruled_rows(n_rows, seed=5)


def _changed(change, rows: dict[str, np.ndarray], **spec: object) -> dict[str, np.ndarray]:
    found = change(rows, tables.TRAINING.model_copy(update=spec), SEED, 0)
    return {name: np.array(values) for name, values in found.items()}


@pytest.mark.parametrize("change", [noised, rearranged])
def test_by_default_rows_stay_as_they_are(change):
    rows = _rows(20)
    for name, values in _changed(change, rows).items():
        np.testing.assert_array_equal(values, rows[name])


def test_a_cropped_row_loses_its_oldest_events_and_keeps_what_follows_it():
    rows = _rows(400)
    found = _changed(rearranged, rows, crop=0.5, crop_keep=0.5)
    lost = rows[c.LENGTH] - found[c.LENGTH]
    assert (found[c.LENGTH] >= np.ceil(rows[c.LENGTH] / 2)).all()
    for row in range(400):
        for name in c.CHANNELS:
            wanted = np.zeros(tables.LENGTH, np.int32)
            wanted[: found[c.LENGTH][row]] = rows[name][row, lost[row] : rows[c.LENGTH][row]]
            np.testing.assert_array_equal(found[name][row], wanted)
    for name in (c.NEXT_ITEM, c.NEXT_CATEGORY, c.NEXT_GAP):
        np.testing.assert_array_equal(found[name], rows[name])
    # Of rows of eight, half are cropped, and of those each of 0 to 4 events is lost equally often.
    eight = lost[rows[c.LENGTH] == 8]
    assert len(eight) > 40
    assert set(eight.tolist()) == {0, 1, 2, 3, 4}
    assert np.mean(lost > 0) == pytest.approx(0.5 * 0.7, abs=0.08)
    assert (_changed(rearranged, rows, crop=1.0, crop_keep=1.0)[c.LENGTH] == rows[c.LENGTH]).all()


def test_item_dropout_hides_items_and_masking_their_categories_too():
    rows = _rows(500)
    is_event = rows[c.ITEM] >= c.FIRST_ID
    dropped = _changed(noised, rows, item_dropout=0.3)
    hidden = dropped[c.ITEM] == c.OOV
    assert hidden[is_event].mean() == pytest.approx(0.3, abs=0.03)
    assert not hidden[~is_event].any()
    np.testing.assert_array_equal(dropped[c.ITEM][~hidden], rows[c.ITEM][~hidden])
    np.testing.assert_array_equal(dropped[c.CATEGORY], rows[c.CATEGORY])
    masked = _changed(noised, rows, item_mask=0.2)
    np.testing.assert_array_equal(masked[c.ITEM] == c.OOV, masked[c.CATEGORY] == c.OOV)
    assert (masked[c.ITEM] == c.OOV)[is_event].mean() == pytest.approx(0.2, abs=0.03)
    both = _changed(noised, rows, item_dropout=0.3, item_mask=0.2)
    assert (both[c.ITEM] == c.OOV)[is_event].mean() == pytest.approx(1 - 0.7 * 0.8, abs=0.03)  # drawn apart


def test_events_of_one_moment_change_places_and_no_others():
    gaps = np.array([[1, 2, 2, 5, 2, 3, 0, 0]], np.int32)  # moments: events 0 1 2, events 3 4, event 5
    rows = {name: np.repeat(values, 600, axis=0) for name, values in _rows(1).items()}
    place = np.array([[10, 11, 12, 13, 14, 15, 0, 0]], np.int32)
    rows |= {name: np.repeat(place, 600, axis=0) for name in KINDS}
    rows |= {c.GAP: np.repeat(gaps, 600, axis=0), c.LENGTH: np.full(600, 6, np.int32)}
    found = _changed(rearranged, rows, shuffle_ties=True)
    orders, counts = np.unique(found[c.ITEM], axis=0, return_counts=True)
    assert len(orders) == 6 * 2
    assert counts.min() > 25  # of 50 expected
    assert {tuple(sorted(order[:3])) for order in orders.tolist()} == {(10, 11, 12)}
    assert {tuple(sorted(order[3:5])) for order in orders.tolist()} == {(13, 14)}
    assert (orders[:, 5:] == [15, 0, 0]).all()
    for name in KINDS:  # an event stays one
        np.testing.assert_array_equal(found[name], found[c.ITEM])
    np.testing.assert_array_equal(found[c.GAP], rows[c.GAP])


def test_what_follows_a_shuffled_event_is_what_is_now_behind_it():
    rows = _rows(50)
    rows[c.GAP] = np.where(rows[c.GAP] > 0, c.FIRST_GAP, 0)
    found = _changed(rearranged, rows, shuffle_ties=True)
    assert (found[c.ITEM] != rows[c.ITEM]).any()
    ahead = following(tf.constant(found[c.ITEM]), rows[c.LENGTH], rows[c.NEXT_ITEM]).numpy()
    for row, n in enumerate(rows[c.LENGTH]):
        np.testing.assert_array_equal(ahead[row, :n], [*found[c.ITEM][row, 1:n], rows[c.NEXT_ITEM][row]])
        assert sorted(found[c.ITEM][row, :n]) == sorted(rows[c.ITEM][row, :n])


def test_a_row_is_changed_alike_in_whichever_part_it_is():
    rows = _rows(30)
    spec = tables.TRAINING.model_copy(update={"crop": 0.7, "item_dropout": 0.3, "item_mask": 0.2, "shuffle_ties": True})
    for change in (rearranged, noised):
        whole = change(rows, spec, SEED, 0)
        part = change({name: values[13:] for name, values in rows.items()}, spec, SEED, 13)
        for name, values in part.items():
            np.testing.assert_array_equal(values, whole[name][13:], err_msg=name)
