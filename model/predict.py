"""Next-item and next-category probabilities for batches of sequences, and the states that a night carries on.

Letters: n rows asked for, B rows of a batch, L positions, T of these in a batch, Z numbers of a state, V ids of a
vocabulary (PAD and OOV included), K kept.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
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
from model.top import top_columns
from model.workers import use_threads

BATCH_ROWS = 256  # large enough for full matrix-multiply speed
# Batches have few different shapes, for which a library may prepare itself: rows and positions are rounded up to these.
_ROW_STEP, _POSITION_STEP = 32, 8

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

    Horizons D are `sizes.horizons_days`, hours R `spec.back_hours` of the bundle, hazard bins K the `back_bins`.
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
        self.bundle = replace(bundle, weights={})  # the network holds them; a second copy may be large
        self.sizes = bundle.sizes
        self.model_version = bundle.model_version
        self.new_session_gap = bundle.sizes.new_session_gap
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
        events = {name: tf.TensorSpec([None, None], tf.int32) for name in c.CHANNELS}
        state, codes, number = (
            tf.TensorSpec(shape, kind)
            for shape, kind in (([None, self.state_floats], tf.float32), ([None], tf.int32), ([], tf.int32))
        )
        self._advance = tf.function(self._network.advance, input_signature=[events, codes, state], autograph=False)
        self._top = tf.function(self._top_graph, input_signature=[state, codes, number, number], autograph=False)

    @property
    def state_floats(self) -> int:
        """Z, numbers in a row's state."""
        return int(self._network.state_floats)

    @property
    def is_recurrent(self) -> bool:
        """Whether a state goes on with new events alone; else `advance` must be given a whole context."""
        return bool(self._network.is_recurrent)

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
        """The likeliest items and categories. Arguments and errors as for `probabilities`."""
        start = np.zeros((len(length), self.state_floats), np.float32)
        return self.top_of(self.advance(channels, length, start), next_gap, k_items, k_categories)

    def advance(self, channels: Mapping[str, Ints], length: Ints, state: Floats) -> Floats:
        """The states after further events: zeros are the state before a first event.

        channels: [n, L] each, right-padded; length: [n], 0 keeps a state as it is; state: [n, Z] → [n, Z].
        Rows travel by falling length, so that short ones meet few of the padding's positions.

        Raises:
            ModelError: as for `probabilities`, or states are not those of this model.
        """
        self._check({**channels, c.LENGTH: length})
        self._check_states(state, len(length))
        after = np.array(state, np.float32)
        order = np.argsort(-length, kind="stable")
        order = order[: int((length > 0).sum())]
        for start in range(0, len(order), BATCH_ROWS):
            rows = order[start : start + BATCH_ROWS]
            n_positions = min(_up(int(length[rows[0]]), _POSITION_STEP), self.sizes.length)
            events = {name: _filled(channels[name][rows, :n_positions]) for name in c.CHANNELS}
            found = self._advance(events, _filled(length[rows]), _filled(after[rows]))
            after[rows] = found.numpy()[: len(rows)]
        return after

    def top_of(self, state: Floats, next_gap: Ints, k_items: int, k_categories: int) -> Top:
        """The likeliest items and categories after states; state: [n, Z], next_gap: [n].

        Raises:
            ModelError: states or gap codes are not those of this model.
        """
        self._check({c.NEXT_GAP: next_gap})
        self._check_states(state, len(next_gap))
        k = [
            min(wanted, size - c.FIRST_ID)
            for wanted, size in ((k_items, self.sizes.items), (k_categories, self.sizes.categories))
        ]
        parts = []
        for start in range(0, len(next_gap), BATCH_ROWS):
            some = slice(start, start + BATCH_ROWS)
            found = self._top(_filled(state[some]), _filled(next_gap[some]), *map(np.int32, k))
            parts.append([values.numpy()[: len(next_gap[some])] for values in found])
        item_ids, item_p, category_ids, category_p = (
            np.concatenate([np.zeros((0, k[at // 2]), kind), *(part[at] for part in parts)])
            for at, kind in enumerate((np.int32, np.float32) * 2)
        )
        return Top(item_ids, item_p, category_ids, category_p)

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the heads for the time ahead that the bundle has."""
        return tuple(self._network.heads.names)

    @property
    def back_bins(self) -> NDArray[np.float64]:
        """Edges of the hazards' bins, [K + 1] seconds from the last event, from 0 up: as model.returns takes them."""
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
            empty = self._future.get_concrete_function().structured_outputs
            parts = [{name: np.zeros((0, *spec.shape[1:]), np.float32) for name, spec in empty.items()}]
        named = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        hazards = named.get("hazards")
        hours = np.array(self.bundle.spec.back_hours) * 3600.0
        returns = (
            None
            if hazards is None
            else back(hazards, self.back_bins, silence_s.astype(np.float64), hours).astype(np.float32)
        )
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

    def _check_states(self, state: Floats, n: int) -> None:
        if state.shape != (n, self.state_floats):
            raise ModelError(
                f"States have shape {list(state.shape)}, model {self.model_version} takes {[n, self.state_floats]}. "
                "They were made by another model; score everyone anew (jobs/score.py --full)."
            )

    def _check(self, rows: Mapping[str, Ints]) -> None:
        sizes, n = self.bundle.sizes, len(rows[c.LENGTH if c.LENGTH in rows else c.NEXT_GAP])
        limits = {
            c.ITEM: sizes.items,
            c.CATEGORY: sizes.categories,
            c.ACTION_CODE: c.N_ACTION_CODES,
            c.GAP: sizes.gap_codes,
            c.HOUR: c.N_HOUR_CODES,
            c.LENGTH: sizes.length + 1,
            c.NEXT_GAP: sizes.gap_codes,
        }
        for name, values in rows.items():
            limit = limits[name]
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

    def _top_graph(self, state: Tensor, next_gap: Tensor, k_items: Tensor, k_categories: Tensor) -> list[Tensor]:
        answers = self._network.answers(self._network.newest(state), next_gap)
        found: list[Any] = []
        for kind, k in ((c.ITEM, k_items), (c.CATEGORY, k_categories)):
            table, bias = self._network.output_table(kind)
            best = top_columns(answers[kind], table, bias, k)
            found += [best.columns + c.FIRST_ID, tf.exp(best.log_p)]
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


def _up(number: int, step: int) -> int:
    """The least multiple of `step` from a number on."""
    return -(-number // step) * step


def _filled(rows: NDArray[Any]) -> NDArray[Any]:
    """Rows of zeros at the end, up to a multiple of _ROW_STEP."""
    missing = _up(len(rows), _ROW_STEP) - len(rows)
    return np.concatenate([rows, np.zeros((missing, *rows.shape[1:]), rows.dtype)]) if missing else rows
