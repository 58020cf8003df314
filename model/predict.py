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
from model.item_index import ItemIndex
from model.network import Tensor
from model.outlook import hazards_of, outlook
from model.repeats import NOWHERE, Modes, certain, columns_of, merged
from model.returns import back
from model.row_batches import BATCH_ROWS, POSITION_STEP, ROW_STEP, batches_of, filled, filled_cut, rounded_up
from model.row_checks import check_ids, check_rows, check_silence, check_states
from model.spec import WHEN
from model.top import TopColumns, top_columns
from model.workers import use_threads

_FUTURE_CELLS = 1 << 22  # categories × horizons × rows at a time; each costs some ten numbers on the way
_HAZARD_ROWS = 4096  # rows at a time where each costs a few numbers only

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]
_KINDS = (c.ITEM, c.CATEGORY)
_HELD = (c.ITEM, c.ACTION_CODE)  # channels that the mode of repeating reads

# Each predictor traces its functions once; TensorFlow counts those of several as one function that is traced often.
tf.get_logger().addFilter(lambda record: "triggered tf.function retracing" not in str(record.msg))


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
    """A bundle ready to answer; load it once per process.

    The likeliest ids are found exactly, or with `item_probes` the items by an index of which so many lists are read
    (model.item_index). `probabilities` and `future` are exact with either.
    """

    def __init__(self, bundle: Bundle, item_probes: int | None = None, threads: int = 0) -> None:
        self.bundle = replace(bundle, weights={})  # the network holds them; a second copy may be large
        self.sizes = bundle.sizes
        self.model_version = bundle.model_version
        self.new_session_gap = bundle.sizes.new_session_gap
        self._network = bundle.network()
        self._item_index = None if item_probes is None else self._indexed(item_probes, threads)
        length = bundle.sizes.length
        shapes = {name: [None, length] for name in c.CHANNELS} | {c.LENGTH: [None], c.NEXT_GAP: [None]}
        rows = {name: tf.TensorSpec(shape, tf.int32) for name, shape in shapes.items()}
        self._probabilities = tf.function(self._probabilities_graph, input_signature=[rows], autograph=False)
        events = {name: tf.TensorSpec([None, None], tf.int32) for name in c.CHANNELS}
        state, codes, number = (
            tf.TensorSpec(shape, kind)
            for shape, kind in (([None, self.state_floats], tf.float32), ([None], tf.int32), ([], tf.int32))
        )
        self._advance = tf.function(self._network.advance, input_signature=[events, codes, state], autograph=False)
        row = {name: events[name] for name in _HELD} | {c.LENGTH: codes}
        asked = [state, codes, row]
        self._top = tf.function(self._top_graph, input_signature=[*asked, number, number], autograph=False)
        self._log_p = tf.function(self._log_p_graph, input_signature=[*asked, codes, codes], autograph=False)
        self._future = tf.function(self._future_graph, input_signature=[state, codes, codes], autograph=False)
        self._hazards = tf.function(self._hazards_graph, input_signature=[state], autograph=False)

    @property
    def state_floats(self) -> int:
        """Z, numbers in a row's state."""
        return int(self._network.state_floats)

    @property
    def is_recurrent(self) -> bool:
        """Whether a state goes on with new events alone; else `advance` must be given a whole context.

        Embeddings of positions need it too: new events alone would be counted from the first position on.
        """
        return bool(self._network.is_recurrent) and not self._network.spec.position_dim

    @classmethod
    def load(cls, path: str, threads: int | None = None, item_probes: int | None = None) -> "Predictor":
        """Load a bundle. threads: TensorFlow's, where this process has not used TensorFlow yet; None: its own choice.

        Raises:
            ModelError: the bundle is missing, damaged or of another version, or there is no library for the index.
        """
        in_use = 0 if threads is None else use_threads(threads, side_by_side=False)
        return cls(load_bundle(path), item_probes, in_use)

    def probabilities(self, channels: Mapping[str, Ints], length: Ints, next_gap: Ints) -> tuple[Floats, Floats]:
        """Full distributions, for evaluation → [n, V] of items, [n, V] of categories.

        channels: [n, L] each; length, next_gap: [n]. Each row sums to 1; PAD and OOV have probability 0.

        Raises:
            ModelError: shapes or ids are not those of the bundle.
        """
        parts = [[p.numpy() for p in self._probabilities(rows)] for rows in self._batches(channels, length, next_gap)]
        sizes = (self.bundle.sizes.items, self.bundle.sizes.categories)
        items, categories = (
            np.concatenate([part[at] for part in parts] or [np.zeros((0, size), np.float32)])
            for at, size in enumerate(sizes)
        )
        return items, categories

    def top(self, channels: Mapping[str, Ints], length: Ints, next_gap: Ints, k_items: int, k_categories: int) -> Top:
        """The likeliest items and categories. Arguments and errors as for `probabilities`."""
        start = np.zeros((len(length), self.state_floats), np.float32)
        return self.top_of(self.advance(channels, length, start), next_gap, channels, length, k_items, k_categories)

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
        n_read = np.minimum(rounded_up(length[order], POSITION_STEP), self.sizes.length)  # [n] positions, falling
        for some in batches_of(n_read):
            rows, n_positions = order[some], int(n_read[some.start])
            events = {name: filled(channels[name][rows, :n_positions]) for name in c.CHANNELS}
            found = self._advance(events, filled(length[rows]), filled(after[rows]))
            after[rows] = found.numpy()[: len(rows)]
        return after

    def top_of(
        self,
        state: Floats,
        next_gap: Ints,
        channels: Mapping[str, Ints],
        length: Ints,
        k_items: int,
        k_categories: int,
    ) -> Top:
        """The likeliest items and categories after states; state: [n, Z], next_gap: [n].

        channels, length: as for `probabilities`; only the items that a row holds and the actions are read, for
        `network.repeat`.

        Raises:
            ModelError: states, gap codes or rows are not those of this model.
        """
        row = self._row(next_gap, channels, length)
        self._check_states(state, len(next_gap))
        k = [
            min(wanted, size - c.FIRST_ID)
            for wanted, size in ((k_items, self.sizes.items), (k_categories, self.sizes.categories))
        ]
        parts = []
        for start in range(0, len(next_gap), BATCH_ROWS):
            some = slice(start, start + BATCH_ROWS)
            held = filled_cut(row, some)
            found = self._top(filled(state[some]), filled(next_gap[some]), held, *map(np.int32, k))
            parts.append([values.numpy()[: len(next_gap[some])] for values in found])
        item_ids, item_p, category_ids, category_p = (
            np.concatenate([np.zeros((0, k[at // 2]), kind), *(part[at] for part in parts)])
            for at, kind in enumerate((np.int32, np.float32) * 2)
        )
        return Top(item_ids, item_p, category_ids, category_p)

    def log_p_of(
        self,
        state: Floats,
        next_gap: Ints,
        channels: Mapping[str, Ints],
        length: Ints,
        item_ids: Ints,
        category_ids: Ints,
    ) -> tuple[Floats, Floats]:
        """Log-probabilities of one item and one category after each state.

        state: [n, Z]; next_gap, item_ids, category_ids: [n], ids known ones; channels, length: as for `top_of`
        → [n], [n].

        Raises:
            ModelError: states, gap codes, rows or ids are not those of this model.
        """
        row = self._row(next_gap, channels, length)
        self._check_states(state, len(next_gap))
        check_ids({c.ITEM: item_ids, c.CATEGORY: category_ids}, self.sizes, self.model_version)
        log_p = np.zeros((2, len(next_gap)), np.float32)
        for start in range(0, len(next_gap), BATCH_ROWS):
            some = slice(start, start + BATCH_ROWS)
            before, gap, *ids = (filled(values[some]) for values in (state, next_gap, item_ids, category_ids))
            for found, of in zip(self._log_p(before, gap, filled_cut(row, some), *ids), log_p, strict=True):
                of[some] = found.numpy()[: len(next_gap[some])]
        return log_p[0], log_p[1]

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
        newest = np.maximum(length - 1, 0)[:, None]
        start = np.zeros((len(length), self.state_floats), np.float32)
        self._check({c.NEXT_GAP: next_gap})
        state = self.advance(channels, length, start)
        return self.future_of(state, np.take_along_axis(channels[c.HOUR], newest, axis=1)[:, 0], silence_s)

    def future_of(self, state: Floats, hour_code: Ints, silence_s: Ints) -> Future:
        """What lies ahead of states. state: [n, Z]; hour_code: [n] of the last event, as in the hour channel.

        silence_s: [n], and errors, as for `future`. Holds the arrays of `Future` whole, so ask for some rows at a time.
        """
        n, heads = len(state), self._network.heads
        check_silence(silence_s, n, (), self.heads, self.model_version)
        self._check_states(state, n)
        parts: list[dict[str, Floats]] = []
        cells = max(1, len(heads.horizons_s)) * self.sizes.categories
        step = max(ROW_STEP, min(BATCH_ROWS, _FUTURE_CELLS // cells // ROW_STEP * ROW_STEP))
        for at in range(0, n, step):
            some = slice(at, at + step)
            found = self._future(filled(state[some]), filled(hour_code[some]), filled(silence_s[some]))
            parts.append({name: values.numpy()[: len(state[some])] for name, values in found.items()})
        if not parts:
            empty = self._future.get_concrete_function().structured_outputs
            parts = [{name: np.zeros((0, *spec.shape[1:]), np.float32) for name, spec in empty.items()}]
        named = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        hazards = named.get("hazards")
        returns = None if hazards is None else self._back(hazards, silence_s).astype(np.float32)
        return Future(**{**dict.fromkeys(Future._fields), **named, "back": returns})

    def back_of(self, state: Floats, silence_s: Ints) -> NDArray[np.float64]:
        """`Future.back` alone, of states: one small product a row. state: [n, Z]; silence_s: [n] → [n, R].

        Raises:
            ModelError: the bundle has no such head, or states or silences are not fit.
        """
        check_silence(silence_s, len(state), (WHEN,), self.heads, self.model_version)
        self._check_states(state, len(state))
        hazards = np.zeros((len(state), len(self.back_bins) - 1), np.float32)
        for at in range(0, len(state), _HAZARD_ROWS):
            some = slice(at, at + _HAZARD_ROWS)
            hazards[some] = self._hazards(filled(state[some])).numpy()[: len(state[some])]
        return self._back(hazards, silence_s)

    def _back(self, hazards: Floats, silence_s: Ints) -> NDArray[np.float64]:
        hours = np.array(self.bundle.spec.back_hours) * 3600.0
        return back(hazards, self.back_bins, silence_s.astype(np.float64), hours)

    def _batches(self, channels: Mapping[str, Ints], length: Ints, next_gap: Ints) -> Iterator[dict[str, Ints]]:
        """Batches of at most BATCH_ROWS rows. None is filled up: of a large vocabulary each row has many columns."""
        rows = {**{name: channels[name] for name in c.CHANNELS}, c.LENGTH: length, c.NEXT_GAP: next_gap}
        self._check(rows)
        for start in range(0, len(length), BATCH_ROWS):
            yield {name: values[start : start + BATCH_ROWS] for name, values in rows.items()}

    def _row(self, next_gap: Ints, channels: Mapping[str, Ints], length: Ints) -> dict[str, Ints]:
        """What the mode of repeating reads of rows, checked."""
        row = {name: channels[name] for name in _HELD} | {c.LENGTH: length}
        self._check({**row, c.NEXT_GAP: next_gap})
        return row

    def _check(self, rows: Mapping[str, Ints]) -> None:
        check_rows(rows, self.sizes, self.model_version)

    def _check_states(self, state: Floats, n: int) -> None:
        check_states(state, (n, self.state_floats), self.model_version)

    def _probabilities_graph(self, rows: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        logits = self._logits(rows)
        items, categories = (
            tf.pad(tf.nn.softmax(logits[kind]), [[0, 0], [c.FIRST_ID, 0]]) for kind in _KINDS
        )  # [B, V]
        return items, categories

    def _top_graph(
        self, state: Tensor, next_gap: Tensor, row: Mapping[str, Tensor], k_items: Tensor, k_categories: Tensor
    ) -> list[Tensor]:
        newest = self._network.newest(state)
        found: list[Any] = []
        answers = self._network.answers(newest, next_gap)
        for (kind, answer), k in zip(answers.items(), (k_items, k_categories), strict=True):
            modes, held = self._modes(kind, newest, next_gap, answer, row)
            best = self._likeliest(kind, answer, k, held)
            ids, log_p = best.columns + c.FIRST_ID, best.log_p
            if modes is not None:
                ids, log_p = merged(best.columns, log_p, row[kind], modes, k)
            found += [ids, tf.exp(log_p)]
        return found

    def _log_p_graph(
        self, state: Tensor, next_gap: Tensor, row: Mapping[str, Tensor], item_ids: Tensor, category_ids: Tensor
    ) -> list[Tensor]:
        newest = self._network.newest(state)
        found = []
        answers = self._network.answers(newest, next_gap)
        for (kind, answer), ids in zip(answers.items(), (item_ids, category_ids), strict=True):
            table, bias = self._network.output_table(kind)
            modes, held = self._modes(kind, newest, next_gap, answer, row)
            best = self._likeliest(kind, answer, 1, held)  # it gives the normaliser
            columns = tf.stack([tf.maximum(ids - c.FIRST_ID, 0), best.columns[:, 0]], axis=1)  # [B, 2]
            scores = tf.einsum("be,bke->bk", answer, tf.gather(table, columns)) + tf.gather(bias, columns)
            log_p = best.log_p[:, 0] + scores[:, 0] - scores[:, 1]
            if modes is not None:
                is_held = (modes.places > NOWHERE / 2) & (row[kind] == ids[:, None])  # [B, L]
                place = tf.reduce_sum(tf.where(is_held, modes.places, 0.0), axis=1)
                log_p = tf.where(tf.reduce_any(is_held, axis=1), modes.repeats + place, modes.explores + log_p)
            found.append(log_p)
        return found

    def _indexed(self, probes: int, threads: int) -> ItemIndex:
        table, bias = (values.numpy() for values in self._network.output_table(c.ITEM))
        return ItemIndex(table, bias, probes, self.sizes.length if c.ITEM in self._network.repeats else 0, threads)

    def _likeliest(self, kind: str, answer: Tensor, k: Tensor, held: Tensor | None) -> TopColumns:
        if kind == c.ITEM and self._item_index is not None:
            return self._item_index.top_columns(answer, k, held)
        table, bias = self._network.output_table(kind)
        return top_columns(answer, table, bias, k, excluded=held)

    def _modes(
        self, kind: str, newest: Tensor, next_gap: Tensor, answer: Tensor, row: Mapping[str, Tensor]
    ) -> tuple[Modes | None, Tensor | None]:
        """The modes of the next id, and the columns of the softmax that the rows hold; None without `repeat`."""
        if kind not in self._network.repeats:
            return None, None
        modes = self._network.modes(kind, newest, next_gap, answer, row, row[c.LENGTH])
        counts = modes.places > NOWHERE / 2
        return certain(modes, counts, tf.shape(self._network.output_table(kind)[1])[0]), columns_of(row[kind], counts)

    def _future_graph(self, state: Tensor, hour_code: Tensor, silence_s: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = outlook(self._network, state, hour_code, silence_s)
        return found

    def _hazards_graph(self, state: Tensor) -> Tensor:
        return hazards_of(self._network, state)

    def _logits(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        logits: dict[str, Tensor] = self._network.last(rows, rows[c.LENGTH], rows[c.NEXT_GAP])
        return logits
