"""Tiny training tables with a known rule, written by pyarrow as the sequences stage writes them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from features import columns as c
from model.feed import DataFile
from model.spec import ActionWeights, NetworkSpec, Sizes, TrackingSpec, TrainingSpec

LENGTH = 8
N_ITEMS = 20  # known items, ids 2 … 21
N_CATEGORIES = 4  # known categories; that of an item is its id modulo 4
N_AHEAD = 3
SIZES = Sizes(
    items=c.FIRST_ID + N_ITEMS,
    categories=c.FIRST_ID + N_CATEGORIES,
    length=LENGTH,
    gap_codes=8,
    new_session_gap=5,
    session_gap_s=1800,
    gap_edges_s=(10, 300, 1800, 20_000, 100_000),
    horizons_days=(1, 2),
)
NETWORK = NetworkSpec(
    cell="lstm",
    units=32,
    layers=1,
    layer_norm=False,
    cnn_kernel=3,
    inputs="concat",
    item_dim=16,
    category_dim=8,
    action_dim=4,
    gap_dim=4,
    hour_dim=4,
    session_dim=0,
    position_dim=0,
    session_positions=4,
    oov_from_category=False,
    repeat=False,
    embedding_dropout=0.0,
    hidden_dropout=0.0,
    query_dropout=0.3,
    full_softmax_max_items=1000,
    sparse_min_items=0,
    return_bins_h=(1, 4, 12, 24, 48, 96, 168),
    back_hours=(12, 24, 100),
)
TRAINING = TrainingSpec(
    streams=0,
    batch_rows=32,
    length_buckets=(),
    backward_passes_per_step=1,
    max_epochs=2,
    patience_epochs=2,
    select_by="loss",
    learning_rate=0.01,
    lr_scaling="none",
    lr_epoch_decay=1.0,
    warmup_steps=0,
    adam_epsilon=1e-7,
    weight_decay=0.0,
    l1=0.0,
    l2=0.0,
    ema_decay=0.0,
    clip_norm=5.0,
    item_weight=1.0,
    category_weight=0.5,
    horizon_weight=0.0,
    touched_weight=0.0,
    when_weight=0.0,
    hour_weight=0.0,
    action_weight=0.0,
    action_weights=ActionWeights(view=1.0, click=1.0, like=1.0, cart=1.0, buy=1.0),
    loss="cross_entropy",
    bpr_regularisation=1.0,
    label_smoothing=0.0,
    softmax_precision="float32",
    xla=False,
    negatives=64,
    negative_power=0.75,
    crop=0.0,
    crop_keep=0.6,
    item_dropout=0.0,
    item_mask=0.0,
    shuffle_ties=False,
    shuffle_rows=1024,
    checkpoint_steps=0,
    checkpoints_kept=2,
    commit_steps=100,
    compression="none",
    sparse_as_dense=False,
    fusion_mib=128,
    cycle_ms=1.0,
    threads=1,
    pin_ranks=False,
    seed=7,
)
TRACKING = TrackingSpec(tensorboard_steps=2, mlflow_uri=None, mlflow_experiment="tests")


def ruled_rows(n_rows: int, seed: int, length: int = LENGTH) -> dict[str, NDArray[np.int32]]:
    """Rows whose next item follows from the last two: one step on if the previous is even, else six, in a ring."""
    rng = np.random.default_rng(seed)
    walk = np.empty((n_rows, length + 1), np.int64)
    walk[:, :2] = rng.integers(0, N_ITEMS, (n_rows, 2))
    for at in range(2, length + 1):
        walk[:, at] = (walk[:, at - 1] + np.where(walk[:, at - 2] % 2 == 0, 1, 6)) % N_ITEMS
    n_events = rng.integers(2, length + 1, n_rows)
    mask = np.arange(length)[None, :] < n_events[:, None]
    items = walk + c.FIRST_ID
    gaps = rng.integers(c.FIRST_GAP, SIZES.gap_codes, (n_rows, length + 1))
    gaps[:, 0] = c.UNKNOWN_GAP
    after = np.arange(n_rows), n_events
    channels = {
        c.ITEM: items[:, :length],
        c.CATEGORY: category_of(items[:, :length]),
        c.ACTION_CODE: rng.integers(c.FIRST_ID, c.N_ACTION_CODES, (n_rows, length)),
        c.GAP: gaps[:, :length],
        c.HOUR: rng.integers(c.FIRST_HOUR, c.N_HOUR_CODES, (n_rows, length)),
    }
    rows = {name: np.where(mask, values, c.PAD) for name, values in channels.items()}
    rows |= {c.LENGTH: n_events, c.NEXT_GAP: gaps[after], c.NEXT_ITEM: items[after]}
    rows[c.NEXT_CATEGORY] = category_of(rows[c.NEXT_ITEM])
    rows |= nothing_ahead(n_rows, length)
    return {name: values.astype(np.int32) for name, values in rows.items()}


def nothing_ahead(n_rows: int, length: int) -> dict[str, NDArray[Any]]:
    """What rows say of their future where nothing is known of it."""
    ahead = {name: np.zeros((n_rows, N_AHEAD), np.int32) for name in c.AHEAD_CHANNELS}
    scalars = {name: np.zeros(n_rows, np.int32) for name in (c.AHEAD_LENGTH, c.KNOWN)}
    return {c.AGE: np.zeros((n_rows, length), np.int32), **ahead, **scalars}


def category_of(items: NDArray[Any]) -> NDArray[Any]:
    return items % N_CATEGORIES + c.FIRST_ID


def write_split(folder: Path, rows: dict[str, NDArray[np.int32]], groups: int) -> tuple[DataFile, ...]:
    """One row group a file, sizes differing by at most one row, ragged columns included as the contract has them."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for group, index in enumerate(np.array_split(np.arange(len(rows[c.LENGTH])), groups)):
        path = folder / f"group-{group:05d}.parquet"
        pq.write_table(_table({name: values[index] for name, values in rows.items()}), path)
        files.append(DataFile(str(path), len(index)))
    return tuple(files)


def _table(rows: dict[str, NDArray[np.int32]]) -> pa.Table:
    n_rows = len(rows[c.LENGTH])
    columns: dict[str, Any] = {
        c.USER_ID: pa.array([f"u{row}" for row in range(n_rows)]),
        c.WINDOW: pa.array(np.zeros(n_rows, np.int32)),
    }
    columns |= {name: _lists(values) if values.ndim == 2 else pa.array(values) for name, values in rows.items()}
    times = pa.array(np.zeros(n_rows, np.int64), pa.timestamp("us", "UTC"))
    ragged = pa.array([[2] * (row % 3) for row in range(n_rows)], pa.list_(pa.int32()))
    columns |= {c.LAST_TIME: times, c.NEXT_TIME: times}
    columns |= {c.SEEN_ITEMS: ragged, c.LABEL_ITEMS: ragged, c.LABEL_CATEGORIES: ragged, c.LABEL_ACTIONS: ragged}
    columns[c.LABEL_TIMES] = ragged.cast(pa.list_(pa.int64())).cast(pa.list_(pa.timestamp("us", "UTC")))
    return pa.table(columns)


def _lists(values: NDArray[np.int32]) -> pa.Array:
    offsets = np.arange(0, values.size + 1, values.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, values.ravel())


def concatenated(blocks: Sequence[dict[str, NDArray[np.int32]]]) -> dict[str, NDArray[np.int32]]:
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
