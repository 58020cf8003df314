"""Where contexts start, and what the hashes of what was read tell apart."""

import numpy as np
import pyarrow as pa
import pytest

from features import columns as c
from features.contexts import after_events, contexts, row_hashes

L = 10
Window = tuple[dict[str, np.ndarray], np.ndarray]


def _history(n_events: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.integers(2, 50, n_events).astype(np.int32) for name in c.CHANNELS}


def _window(history: dict[str, np.ndarray], stop: int) -> Window:
    """The latest L events before `stop` as one row."""
    start = max(0, stop - L)
    rows = {
        name: np.pad(channel[start:stop], (0, L - (stop - start)))[None, :].astype(np.int32)
        for name, channel in history.items()
    }
    return rows, np.array([stop - start], np.int32)


def _read(window: Window, anchor_events: int) -> list[tuple[int, ...]]:
    channels, length, _ = contexts(*window, anchor_events)
    assert all((channel[0, length[0] :] == c.PAD).all() for channel in channels.values())
    return list(zip(*(channels[name][0, : length[0]].tolist() for name in c.CHANNELS), strict=True))


@pytest.mark.parametrize("anchor_events", [1, 4, L])
def test_a_context_is_the_end_of_the_row_and_no_shorter_than_promised(anchor_events: int):
    history = _history(60)
    for stop in range(1, 60):
        window = _window(history, stop)
        whole, read = _read(window, 1), _read(window, anchor_events)
        assert read == whole[len(whole) - len(read) :]
        assert len(read) == stop if stop < L else L - anchor_events < len(read) <= L


def test_without_an_anchor_every_row_is_read_whole():
    history = _history(30)
    assert all(len(_read(_window(history, stop), 1)) == min(stop, L) for stop in range(1, 30))


def test_the_start_stays_as_often_as_winnowing_says():
    """One new event: density 2 / (S + 1) of moves (Schleimer, Wilkerson & Aiken 2003, proposition 1)."""
    history, anchor_events, stays, n = _history(1500, seed=3), 5, 0, 0
    for stop in range(L, 1499):
        before, after = (_read(_window(history, at), anchor_events) for at in (stop, stop + 1))
        stays += after[: len(before)] == before
        n += 1
    assert 1 - stays / n == pytest.approx(2 / (anchor_events + 1), abs=0.04)


def test_a_hash_names_the_events_read_and_their_order():
    history = _history(8, seed=1)
    _, _, hashes = contexts(*_window(history, 8), 1)
    _, _, fewer = contexts(*_window(history, 5), 1)
    np.testing.assert_array_equal(hashes[0, :6], fewer[0, :6])
    assert len(set(hashes[0, :9].tolist())) == 9
    for name in c.CHANNELS:
        changed = {**history, name: history[name] + (np.arange(8) == 3).astype(np.int32)}
        _, _, other = contexts(*_window(changed, 8), 1)
        assert (other[0] == hashes[0])[:4].all()
        assert not (other[0] == hashes[0])[4:9].any()
    swapped = {name: channel[[0, 2, 1, *range(3, 8)]] for name, channel in history.items()}
    _, _, other = contexts(*_window(swapped, 8), 1)
    assert other[0, 3] != hashes[0, 3]


def test_what_is_left_after_the_first_events():
    channels, _ = _window(_history(7), 7)
    rows = {name: np.repeat(channel, 3, axis=0) for name, channel in channels.items()}
    left = after_events(rows, np.array([0, 3, 7]))
    np.testing.assert_array_equal(left[c.ITEM][0], rows[c.ITEM][0])
    assert left[c.ITEM][1].tolist() == [*rows[c.ITEM][1, 3:].tolist(), 0, 0, 0]
    assert not left[c.ITEM][2].any()


def test_the_hash_of_a_row_covers_events_and_seen_items():
    channels, length = _window(_history(4), 4)
    rows = {name: np.repeat(channel, 4, axis=0) for name, channel in channels.items()}
    rows[c.HOUR][3, 0] += 1
    seen = pa.array([[9], [5, 6], [5, 7], [5, 7], [5, 7]], pa.list_(pa.int32()))[1:]  # with an offset
    hashes = row_hashes(rows, np.repeat(length, 4), seen.take(pa.array([1, 1, 0, 1])))
    assert hashes[0] == hashes[1]
    assert len(set(hashes.tolist())) == 3
    np.testing.assert_array_equal(row_hashes(rows, np.repeat(length, 4), seen)[1:2], hashes[:1])
