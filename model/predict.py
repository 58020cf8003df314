"""Next-item and next-category probabilities for batches of sequences.

Letters: n rows asked for, B rows of the fixed batch, L positions, V ids of a vocabulary (PAD and OOV included),
K kept.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from features import columns as c
from model.bundle import Bundle, load_bundle
from model.errors import ModelError
from model.network import Tensor
from model.outlook import outlook
from model.returns import back
from model.workers import use_threads

BATCH_ROWS = 256  # fixed, so that each graph is traced once; large enough for full matrix-multiply speed

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]
_KINDS = (c.ITEM, c.CATEGORY)


class Top(NamedTuple):
    """The K likeliest ids of each row, falling by probability; ties by smaller id. [n, K] each.

    A vocabulary with fewer than K known ids gives as many columns as it has.
    """

    item_ids: Ints
    item_p: Floats
    category_ids: Ints
    category_p: Floats


class Future(NamedTuple):
    """What lies ahead of each row, asked at an instant after some silence; None where the bundle has no such head.

    Horizons D, hours R and hazard bins K are those of the bundle: `sizes.horizons_days`, `spec.back_hours`, `back_bins`.
    """

    interests: Floats | None  # [n, D, V] distribution over categories of the events within each horizon
    touched: Floats | None  # [n, D, V] probability that a category is touched at all within each horizon
    back: Floats | None  # [n, R] P(the next session starts within so many hours | silent so far)
    hazards: Floats | None  # [n, K] P(next session starts in the bin | not before), from the last event on
    hour: Floats | None  # [n, 168] distribution of the hour of the week in which it starts, 0 for Monday 00:00 UTC
    actions: Floats | None  # [n, 5] probability that it holds each action, in the order of columns.ACTIONS


class Predictor:
    """A bundle ready to answer; load it once per process."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.sizes = bundle.sizes
        self.model_version = bundle.model_version
        self._network = bundle.network()
        length = bundle.sizes.length
        shapes = {name: [BATCH_ROWS, length] for name in c.CHANNELS} | {
            c.LENGTH: [BATCH_ROWS],
            c.NEXT_GAP: [BATCH_ROWS],
        }
        rows = {name: tf.TensorSpec(shape, tf.int32) for name, shape in shapes.items()}
        self._probabilities = tf.function(self._probabilities_graph, input_signature=[rows])
        silence = tf.TensorSpec([BATCH_ROWS], tf.int32)
        self._future = tf.function(self._future_graph, input_signature=[rows, silence])
        self._top = tf.function(self._top_graph, input_signature=[rows, *[tf.TensorSpec([], tf.int32)] * 2])

    @classmethod
    def load(cls, path: str, threads: int | None = None) -> "Predictor":
        """Load a bundle. threads: TensorFlow's, where this process has not used TensorFlow yet; None: its own choice.

        Raises:
            ModelError: the bundle is missing, damaged or of another version.
        """
        if threads is not None:
            use_threads(threads, side_by_side=False)
        return cls(load_bundle(path))

    def probabilities(self, channels: Mapping[str, Ints], length: Ints, next_gap: Ints) -> tuple[Floats, Floats]:
        """Full distributions, for evaluation → [n, V] of items, [n, V] of categories.

        channels: [n, L] each; length, next_gap: [n]. Each row sums to 1; PAD and OOV have probability 0.

        Raises:
            ModelError: shapes or ids are not those of the bundle.
        """
        parts = [
            [p.numpy()[:n] for p in self._probabilities(rows)] for rows, n in self._batches(channels, length, next_gap)
        ]
        sizes = (self.bundle.sizes.items, self.bundle.sizes.categories)
        items, categories = (
            np.concatenate([part[at] for part in parts] or [np.zeros((0, size), np.float32)])
            for at, size in enumerate(sizes)
        )
        return items, categories

    def top(self, channels: Mapping[str, Ints], length: Ints, next_gap: Ints, k_items: int, k_categories: int) -> Top:
        """The likeliest items and categories, chosen inside the graph. Arguments and errors as for `probabilities`."""
        k = [
            min(wanted, size - c.FIRST_ID)
            for wanted, size in ((k_items, self.bundle.sizes.items), (k_categories, self.bundle.sizes.categories))
        ]
        parts = [
            [values.numpy()[:n] for values in self._top(rows, *map(np.int32, k))]
            for rows, n in self._batches(channels, length, next_gap)
        ]
        item_ids, item_p, category_ids, category_p = (
            np.concatenate([np.zeros((0, k[at // 2]), kind), *(part[at] for part in parts)])
            for at, kind in enumerate((np.int32, np.float32) * 2)
        )
        return Top(item_ids, item_p, category_ids, category_p)

    @property
    def back_bins(self) -> NDArray[np.float64]:
        """Edges of the hazards' bins, [K + 1] seconds from the last event, from 0 up; what to do with: model.returns."""
        edges: NDArray[np.float64] = self._network.heads.edges_s
        return edges

    def future(self, channels: Mapping[str, Ints], length: Ints, next_gap: Ints, silence_s: Ints) -> Future:
        """What lies ahead of each row. silence_s: [n] seconds from its last event to the instant of asking, at least 0.

        Other arguments as for `probabilities`. Horizons and hours count from that instant.

        Raises:
            ModelError: the bundle has no head for the time ahead, or shapes, ids or silences are not fit.
        """
        if not self._network.heads.names:
            raise ModelError(
                f"Model {self.model_version} has no head for the time ahead: it was trained with weights of 0. Set "
                "training.horizon_weight, touched_weight, when_weight, hour_weight or action_weight and run jobs.train."
            )
        n = len(length)
        if silence_s.shape != (n,) or (n and silence_s.min() < 0):
            raise ModelError(
                f"silence_s has shape {list(silence_s.shape)} and least value {silence_s.min() if n else 0}; expected "
                f"[{n}] and at least 0: seconds from the last event to the instant of asking. Was a row asked about a "
                "time before its last event?"
            )
        silence = np.zeros(-(-n // BATCH_ROWS) * BATCH_ROWS, np.int32)
        silence[:n] = silence_s
        parts: list[dict[str, Floats]] = []
        for at, (rows, n_real) in enumerate(self._batches(channels, length, next_gap)):
            found = self._future(rows, silence[at * BATCH_ROWS : (at + 1) * BATCH_ROWS])
            parts.append({name: values.numpy()[:n_real] for name, values in found.items()})
        if not parts:
            empty = self._future.structured_outputs
            parts = [{name: np.zeros((0, *spec.shape[1:]), np.float32) for name, spec in empty.items()}]
        named = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        hazards = named.get("hazards")
        hours = np.array(self.bundle.spec.back_hours) * 3600.0
        returns = None if hazards is None else back(hazards, self.back_bins, silence_s, hours).astype(np.float32)
        return Future(**{**dict.fromkeys(Future._fields), **named, "back": returns})

    def _batches(
        self, channels: Mapping[str, Ints], length: Ints, next_gap: Ints
    ) -> Iterator[tuple[dict[str, Ints], int]]:
        """Batches of BATCH_ROWS rows, the last one filled with empty rows, and how many rows of each are real."""
        rows = {**{name: channels[name] for name in c.CHANNELS}, c.LENGTH: length, c.NEXT_GAP: next_gap}
        self._check(rows)
        for start in range(0, len(length), BATCH_ROWS):
            part = {name: values[start : start + BATCH_ROWS] for name, values in rows.items()}
            n = len(part[c.LENGTH])
            if n < BATCH_ROWS:
                part = {
                    name: np.concatenate([values, np.zeros((BATCH_ROWS - n, *values.shape[1:]), np.int32)])
                    for name, values in part.items()
                }
            yield part, n

    def _check(self, rows: Mapping[str, Ints]) -> None:
        sizes, n = self.bundle.sizes, len(rows[c.LENGTH])
        limits = {
            c.ITEM: sizes.items,
            c.CATEGORY: sizes.categories,
            c.ACTION_CODE: c.N_ACTION_CODES,
            c.GAP: sizes.gap_codes,
            c.HOUR: c.N_HOUR_CODES,
            c.LENGTH: sizes.length + 1,
            c.NEXT_GAP: sizes.gap_codes,
        }
        for name, limit in limits.items():
            values = rows[name]
            wanted = (n, sizes.length) if name in c.CHANNELS else (n,)
            if values.shape != wanted:
                raise ModelError(
                    f"Column {name} has shape {list(values.shape)}, model {self.model_version} takes {list(wanted)}. "
                    "Make sequences with the model's sequences.length."
                )
            if n and (values.min() < 0 or values.max() >= limit):
                raise ModelError(
                    f"Column {name} holds {values.max()}, model {self.model_version} knows 0 to {limit - 1}. "
                    "The sequences were encoded with another vocabulary or configuration; use those of the model."
                )

    def _probabilities_graph(self, rows: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        logits = self._logits(rows)
        items, categories = (
            tf.pad(tf.nn.softmax(logits[kind]), [[0, 0], [c.FIRST_ID, 0]]) for kind in _KINDS
        )  # [B, V]
        return items, categories

    def _top_graph(self, rows: Mapping[str, Tensor], k_items: Tensor, k_categories: Tensor) -> list[Tensor]:
        logits = self._logits(rows)
        found: list[Any] = []
        for kind, k in ((c.ITEM, k_items), (c.CATEGORY, k_categories)):
            # top_k gives the smaller index first among equals; only K logits are turned into probabilities.
            best, index = tf.math.top_k(logits[kind], k)  # [B, K]
            total = tf.reduce_logsumexp(logits[kind], axis=-1, keepdims=True)
            found += [index + c.FIRST_ID, tf.exp(best - total)]
        return found

    def _future_graph(self, rows: Mapping[str, Tensor], silence_s: Tensor) -> dict[str, Tensor]:
        newest = tf.maximum(rows[c.LENGTH] - 1, 0)
        hidden = tf.gather(self._network.encode(rows), newest, batch_dims=1)  # [B, U]
        hour_code = tf.gather(rows[c.HOUR], newest, batch_dims=1)
        found: dict[str, Tensor] = outlook(self._network, hidden, hour_code, silence_s)
        return found

    def _logits(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        logits: dict[str, Tensor] = self._network.last(rows, rows[c.LENGTH], rows[c.NEXT_GAP])
        return logits
