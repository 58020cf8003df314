"""The network: five channels embedded, an LSTM over them, and two heads tied to the embeddings.

Letters: B rows, L positions, P gathered positions, H units, E item_dim, C category_dim, V known ids of a kind.
"Known" leaves out PAD and OOV, which are never predicted: column j of any logits is id FIRST_ID + j.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow import keras

from features import columns as c
from model.spec import NetworkSpec, Sizes

QUERY_UNKNOWN, QUERY_SAME_SESSION, QUERY_NEW_SESSION = 0, 1, 2
_N_QUERIES = 3

Tensor = Any  # TensorFlow 2.15 carries no types


class Network:
    """Weights by name, and the forward pass in parts. The LSTM is Keras's own, with nothing that keeps cuDNN away."""

    def __init__(self, spec: NetworkSpec, sizes: Sizes, seed: int = 0) -> None:
        self.spec = spec
        self.sizes = sizes
        rows = {
            c.ITEM: (sizes.items, spec.item_dim),
            c.CATEGORY: (sizes.categories, spec.category_dim),
            c.ACTION_CODE: (c.N_ACTION_CODES, spec.action_dim),
            c.GAP: (sizes.gap_codes, spec.gap_dim),
            c.HOUR: (c.N_HOUR_CODES, spec.hour_dim),
        }
        seeds = iter(range(seed * 100, seed * 100 + 100))
        self._tables = {name: _normal(shape, shape[1] ** -0.5, next(seeds)) for name, shape in rows.items()}
        self._cells = [_lstm(spec.units, seeds) for _ in range(spec.layers)]
        width = sum(dim for _, dim in rows.values())
        for cell in self._cells:
            cell.build((None, None, width))
            width = spec.units
        self._query_scale = tf.Variable(tf.zeros([_N_QUERIES, spec.units]))
        self._query_shift = tf.Variable(tf.zeros([_N_QUERIES, spec.units]))
        self._projections = {
            c.ITEM: _normal((spec.units, spec.item_dim), spec.units**-0.5, next(seeds)),
            c.CATEGORY: _normal((spec.units, spec.category_dim), spec.units**-0.5, next(seeds)),
        }
        self._biases = {
            c.ITEM: tf.Variable(tf.zeros([sizes.items])),
            c.CATEGORY: tf.Variable(tf.zeros([sizes.categories])),
        }

    @property
    def weights(self) -> dict[str, Tensor]:
        """Every trainable variable under its stable name, in a fixed order."""
        named = {f"embedding/{name}": table for name, table in self._tables.items()}
        for index, cell in enumerate(self._cells):
            kernel, recurrent, bias = cell.trainable_variables
            named |= {f"lstm_{index}/kernel": kernel, f"lstm_{index}/recurrent": recurrent, f"lstm_{index}/bias": bias}
        named |= {"query/scale": self._query_scale, "query/shift": self._query_shift}
        for kind in (c.ITEM, c.CATEGORY):
            named |= {f"{kind}/projection": self._projections[kind], f"{kind}/bias": self._biases[kind]}
        return named

    def set_weights(self, values: Mapping[str, NDArray[Any]]) -> None:
        """Take over every weight by name; names and shapes must be those of `weights`, else KeyError or ValueError."""
        for name, variable in self.weights.items():
            variable.assign(values[name])

    def start_bias(self, kind: str, counts: NDArray[np.int64]) -> None:
        """Start a head's output bias at the log popularity of its training targets, add-one smoothed. counts: [V + 2].

        At random weights the loss is then near the entropy of the popularity, not log V: popularity needs no learning.
        """
        known = counts[c.FIRST_ID :] + 1.0
        bias = np.zeros(len(counts), np.float32)
        bias[c.FIRST_ID :] = np.log(known / known.sum())
        self._biases[kind].assign(bias)

    def encode(self, channels: Mapping[str, Tensor], seed: Tensor | None = None) -> Tensor:
        """Hidden state after every position. channels: [B, L] each, right-padded → [B, L, H].

        A state depends on nothing behind its position, so padding needs no mask: states there mean nothing, and nobody
        reads them. With `seed` ([2] int32, stateless: the same seed drops the same units) dropout is on.
        """
        hidden = _dropped(self._embedded(channels), self.spec.embedding_dropout, seed, 0)
        for index, cell in enumerate(self._cells):
            hidden, *_ = cell(hidden)  # [B, L, H]
            hidden = _dropped(hidden, self.spec.hidden_dropout, seed, 1 + index)
        return hidden

    @property
    def state_floats(self) -> int:
        """Numbers in a row's state: h and c of each layer, those of the first layer first."""
        return 2 * self.spec.layers * self.spec.units

    def advance(self, channels: Mapping[str, Tensor], length: Tensor, state: Tensor) -> Tensor:
        """The state after further events. channels: [B, L] each; length: [B]; state: [B, state_floats] → the same.

        Zeros are the state before a first event; a row of length 0 keeps its state.
        """
        hidden = self._embedded(channels)
        mask = tf.sequence_mask(length, tf.shape(hidden)[1])
        before, after = tf.split(state, 2 * len(self._cells), axis=1), []
        for index, cell in enumerate(self._cells):
            hidden, *parts = cell(hidden, mask=mask, initial_state=before[2 * index : 2 * index + 2])
            after += parts
        return tf.concat(after, axis=1)

    def newest(self, state: Tensor) -> Tensor:
        """What heads read of a state: h of the last layer. state: [B, state_floats] → [B, H]."""
        return state[:, -2 * self.spec.units : -self.spec.units]

    def _embedded(self, channels: Mapping[str, Tensor]) -> Tensor:
        return tf.concat([self.embed(name, channels[name]) for name in c.CHANNELS], axis=-1)

    def embed(self, name: str, ids: Tensor) -> Tensor:
        """Rows of one channel's table. ids: any shape → that shape + [dim]."""
        return _lookup(self._tables[name], ids, self.is_sparse(name))

    def is_sampled(self, kind: str) -> bool:
        """Whether a kind is trained by sampled softmax: items, where there are more than the spec's limit."""
        return kind == c.ITEM and self.sizes.items > self.spec.full_softmax_max_items

    def is_sparse(self, name: str) -> bool:
        """Whether the gradient of a table names the rows that a step touched, instead of holding every row."""
        return self.is_sampled(name) and self.sizes.items >= self.spec.sparse_min_items

    def answer(self, kind: str, hidden: Tensor, query: Tensor) -> Tensor:
        """What a head looks for, as a vector of its embedding space. hidden: [P, H]; query: [P] → [P, E or C].

        The query (is the next event in this session, in a new one, or unknown) scales and shifts each unit first:
        FiLM (Perez et al. 2018), started as the identity.
        """
        asked = hidden * (1.0 + _lookup(self._query_scale, query)) + _lookup(self._query_shift, query)
        return tf.matmul(asked, self._projections[kind])

    def logits(self, kind: str, answers: Tensor) -> Tensor:
        """Scores of all known ids, tied to the input embedding: a·Eᵀ + b. answers: [P, E or C] → [P, V]."""
        table, bias = self._tables[kind], self._biases[kind]
        return tf.matmul(answers, table[c.FIRST_ID :], transpose_b=True) + bias[c.FIRST_ID :]

    def output_table(self, kind: str) -> tuple[Tensor, Tensor]:
        """Output embedding and bias of all known ids → [V, E or C], [V]."""
        return self._tables[kind][c.FIRST_ID :], self._biases[kind][c.FIRST_ID :]

    def output_rows(self, kind: str, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Output embedding and bias of some ids. ids: [P] → [P, E or C], [P]."""
        return self.embed(kind, ids), _lookup(self._biases[kind], ids, self.is_sparse(kind))

    def last(self, channels: Mapping[str, Tensor], length: Tensor, next_gap: Tensor) -> dict[str, Tensor]:
        """Logits for the event after each row, by kind: only the last position meets the output layer. → [B, V]."""
        hidden = self.encode(channels)
        newest = tf.gather(hidden, tf.maximum(length - 1, 0), batch_dims=1)  # [B, H]
        return {kind: self.logits(kind, answer) for kind, answer in self.answers(newest, next_gap).items()}

    def answers(self, newest: Tensor, next_gap: Tensor) -> dict[str, Tensor]:
        """What the heads look for after each row, by kind. newest: [B, H]; next_gap: [B] → [B, E or C].

        A row whose next_gap already is a session's end is asked for a new session; otherwise the query is unknown.
        """
        query = tf.where(next_gap >= self.sizes.new_session_gap, QUERY_NEW_SESSION, QUERY_UNKNOWN)
        return {kind: self.answer(kind, newest, query) for kind in (c.ITEM, c.CATEGORY)}


def following(channel: Tensor, length: Tensor, after: Tensor) -> Tensor:
    """The value one event later at every position. channel: [B, L]; after: [B], the value behind the row → [B, L].

    Position length - 1 takes `after`; padding stays 0.
    """
    positions = tf.range(tf.shape(channel)[1])
    shifted = tf.concat([channel[:, 1:], tf.zeros_like(channel[:, :1])], axis=1)
    is_last = positions[None, :] == length[:, None] - 1
    return tf.where(is_last, after[:, None], shifted)


def training_query(gaps_ahead: Tensor, sizes: Sizes, dropout: float, seed: Tensor) -> Tensor:
    """Query at every position, from the gap to the next event; dropped to unknown with probability `dropout`.

    gaps_ahead: [B, L] gap codes → [B, L] int32.
    """
    query = tf.where(gaps_ahead >= sizes.new_session_gap, QUERY_NEW_SESSION, QUERY_SAME_SESSION)
    hidden = tf.random.stateless_uniform(tf.shape(query), seed) < dropout
    return tf.where(hidden | (gaps_ahead < c.FIRST_GAP), QUERY_UNKNOWN, query)


def seed_at(seed: Tensor, place: int) -> Tensor:
    """The seed of one place where a step draws random numbers. seed: [2] int32 → [2]."""
    return tf.stack([seed[0], seed[1] + place])


def _normal(shape: tuple[int, int], deviation: float, seed: int) -> Tensor:
    return tf.Variable(tf.random.stateless_normal(shape, [seed, 0], stddev=deviation))


def _lstm(units: int, seeds: Any) -> Any:
    return keras.layers.LSTM(
        units,
        return_sequences=True,
        return_state=True,
        kernel_initializer=keras.initializers.GlorotUniform(next(seeds)),
        recurrent_initializer=keras.initializers.Orthogonal(seed=next(seeds)),
    )


def _dropped(values: Tensor, rate: float, seed: Tensor | None, place: int) -> Tensor:
    if seed is None or rate == 0.0:
        return values
    return tf.nn.experimental.stateless_dropout(values, rate, seed_at(seed, place))


def _lookup(table: Tensor, ids: Tensor, is_sparse: bool = False) -> Tensor:
    """Rows of a table by id. Unless sparse, with a dense gradient: cheaper where most rows are touched or another is.

    table: [V, …]; ids: any shape → that shape + […].
    """
    if is_sparse:
        return tf.gather(table, ids)
    n_rows, row = table.shape[0], table.shape[1:].as_list()

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def lookup(values: Tensor) -> tuple[Tensor, Any]:
        def gradient(upstream: Tensor) -> Tensor:
            return tf.math.unsorted_segment_sum(tf.reshape(upstream, [-1, *row]), tf.reshape(ids, [-1]), n_rows)

        return tf.gather(values, ids), gradient

    return lookup(tf.convert_to_tensor(table))
