"""The network: channels embedded, cells over them, and two heads tied to the embeddings.

Letters: B rows, L positions, P gathered positions, H units, E item_dim, C category_dim, V known ids of a kind.
"Known" leaves out PAD and OOV, which are never predicted: column j of any logits is id FIRST_ID + j.
"""

from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from features import columns as c
from model import inputs
from model.cells import Cell, Recurrent, make_cell
from model.draws import dropped, seed_at, uniform
from model.heads import Heads
from model.lookup import lookup
from model.pace import N_SUMS, features, increments, silence_days
from model.repeats import Modes, Repeats, log_distribution, seen
from model.spec import WHEN, NetworkSpec, Sizes

QUERY_UNKNOWN, QUERY_SAME_SESSION, QUERY_NEW_SESSION = 0, 1, 2
_N_QUERIES = 3

_NORM_EPSILON = 1e-5  # guards layer normalisation against a variance of 0

Tensor = Any  # TensorFlow 2.15 carries no types


class Network:
    """Weights by name, and the forward pass in parts. `cells` are its layers over time, the first one first."""

    def __init__(self, spec: NetworkSpec, sizes: Sizes, seed: int = 0, heads: Sequence[str] = ()) -> None:
        """heads: those for the time ahead, of model.spec.HEADS."""
        self.spec = spec
        self.sizes = sizes
        rows = {
            c.ITEM: (sizes.items, spec.item_dim),
            c.CATEGORY: (sizes.categories, spec.category_dim),
            c.ACTION_CODE: (c.N_ACTION_CODES, spec.action_dim),
            c.GAP: (sizes.gap_codes, spec.gap_dim),
            c.HOUR: (c.N_HOUR_CODES, spec.hour_dim),
            inputs.SESSION_START: (inputs.N_START_CODES, spec.session_dim),
            inputs.SESSION_POSITION: (spec.session_positions, spec.position_dim),
        }
        rows = {name: shape for name, shape in rows.items() if shape[1] > 0}
        seeds = count(seed * 100)
        self._tables = {name: _normal(shape, shape[1] ** -0.5, next(seeds)) for name, shape in rows.items()}
        width = spec.item_dim if spec.inputs == "sum" else sum(dim for _, dim in rows.values())
        self.cells: list[Cell] = [
            make_cell(spec, spec.units if layer else width, sizes.length, seeds) for layer in range(spec.layers)
        ]
        self._norms = [
            (tf.Variable(tf.ones([spec.units])), tf.Variable(tf.zeros([spec.units])))
            for _ in range(spec.layers if spec.layer_norm else 0)
        ]
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
        added = [name for name in rows if name != c.ITEM] if spec.inputs == "sum" else []
        self._input_projections = {
            name: _normal((rows[name][1], spec.item_dim), rows[name][1] ** -0.5, next(seeds)) for name in added
        }
        self._stand_in = (
            _normal((spec.category_dim, spec.item_dim), spec.category_dim**-0.5, next(seeds))
            if spec.oov_from_category
            else None
        )
        self.heads = Heads(heads, spec, sizes, seed)
        self._silence_days = silence_days(sizes.gap_edges_s, sizes.new_session_gap)
        self.repeats = {c.ITEM: Repeats(c.ITEM, spec.units)} if spec.repeat else {}

    @property
    def weights(self) -> dict[str, Tensor]:
        """Every trainable variable under its stable name, in a fixed order."""
        named = {f"embedding/{name}": table for name, table in self._tables.items()}
        named |= {f"input/{name}": projection for name, projection in self._input_projections.items()}
        if self._stand_in is not None:
            named["stand_in/projection"] = self._stand_in
        for index, cell in enumerate(self.cells):
            named |= {f"{self.spec.cell}_{index}/{name}": weight for name, weight in cell.weights.items()}
        for index, (scale, bias) in enumerate(self._norms):
            named |= {f"norm_{index}/scale": scale, f"norm_{index}/bias": bias}
        named |= {"query/scale": self._query_scale, "query/shift": self._query_shift}
        for kind in (c.ITEM, c.CATEGORY):
            named |= {f"{kind}/projection": self._projections[kind], f"{kind}/bias": self._biases[kind]}
        for repeats in self.repeats.values():
            named |= repeats.weights
        return named | self.heads.weights

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
        if kind == c.CATEGORY:
            self.heads.start(bias)

    def encode(self, channels: Mapping[str, Tensor], seed: Tensor | None = None, first_row: Tensor = 0) -> Tensor:
        """Hidden state after every position. channels: [B, L] each, right-padded → [B, L, H].

        A state depends on nothing behind its position, so padding needs no mask: states there mean nothing, and nobody
        reads them. With `seed` ([2] int32, stateless: the same seed drops the same units) dropout is on; `first_row` is
        the place of these rows in the batch that the seed is of.
        """
        hidden = self.embedded(channels)
        hidden = _dropped(hidden, self.spec.embedding_dropout, seed, 0, first_row)
        for index, cell in enumerate(self.cells):
            hidden = self.normed(index, cell(hidden))  # [B, L, H]
            hidden = _dropped(hidden, self.spec.hidden_dropout, seed, 1 + index, first_row)
        return hidden

    @property
    def is_recurrent(self) -> bool:
        """Whether a state goes on with new events alone; else `advance` must be given a row's whole context."""
        return all(isinstance(cell, Recurrent) for cell in self.cells)

    @property
    def state_floats(self) -> int:
        """Z, numbers in a row's state.

        h (and c) of each layer, those of the first one first, or a cnn's last output; behind them the sums of
        model.pace, where the head `when` reads them.
        """
        return self._cell_floats + (N_SUMS if WHEN in self.heads.names else 0)

    @property
    def _cell_floats(self) -> int:
        return self.spec.units * (sum(cell.n_states for cell in self.cells) if self.is_recurrent else 1)

    def advance(self, channels: Mapping[str, Tensor], length: Tensor, state: Tensor) -> Tensor:
        """The state after further events. channels: [B, L] each; length: [B]; state: [B, Z] → [B, Z].

        Zeros are the state before a first event; a row of length 0 keeps its state.
        """
        hidden = self.embedded(channels)
        state, sums = state[:, : self._cell_floats], state[:, self._cell_floats :]
        before = tf.split(state, self._cell_floats // self.spec.units, axis=1)
        after: list[Tensor] = []
        for index, cell in enumerate(self.cells):
            if isinstance(cell, Recurrent):
                own = slice(index * cell.n_states, (index + 1) * cell.n_states)
                hidden, reached = cell.run(hidden, length, tuple(before[own]))
                after += reached
            else:
                hidden = cell(hidden)
            hidden = self.normed(index, hidden)
        if not self.is_recurrent:
            newest = tf.gather(hidden, tf.maximum(length - 1, 0), batch_dims=1)  # [B, H]
            after = [tf.where(length[:, None] > 0, newest, state)]
        if WHEN in self.heads.names:
            is_event = tf.range(tf.shape(channels[c.GAP])[1])[None, :] < length[:, None]
            after.append(sums + tf.reduce_sum(self._increments(channels[c.GAP], is_event), axis=1))
        return tf.concat(after, axis=1)

    def pace(self, state: Tensor) -> Tensor:
        """What the head `when` reads of the silences behind a state. state: [B, Z] → [B, 2]."""
        return features(state[:, self._cell_floats :])

    def paces(self, gap_codes: Tensor, is_event: Tensor) -> Tensor:
        """The same after every position of rows read from their start. gap_codes, is_event: [B, L] → [B, L, 2]."""
        return features(tf.cumsum(self._increments(gap_codes, is_event), axis=1))

    def _increments(self, gap_codes: Tensor, is_event: Tensor) -> Tensor:
        return increments(gap_codes, is_event, self._silence_days, self.sizes.new_session_gap)

    def newest(self, state: Tensor) -> Tensor:
        """What heads read of a state: the last layer's output. state: [B, Z] → [B, H]."""
        if not self.is_recurrent:
            return state[:, : self._cell_floats]
        first = self._cell_floats - self.cells[-1].n_states * self.spec.units
        return self.normed(len(self.cells) - 1, state[:, first : first + self.spec.units])

    def embedded(self, channels: Mapping[str, Tensor]) -> Tensor:
        """What the first cell takes. channels: [B, L] each → [B, L, W]: all side by side, or their sum (W = E).

        For the sum every channel but the item goes through a matrix of its own into item space. With
        `oov_from_category` an unknown item is its row plus its category's, taken into item space in the same way.
        """
        spec, gaps = self.spec, channels[c.GAP]
        ids = {name: channels[name] for name in c.CHANNELS}
        if spec.session_dim:
            ids[inputs.SESSION_START] = inputs.starts(gaps, self.sizes)
        if spec.position_dim:
            ids[inputs.SESSION_POSITION] = inputs.positions(gaps, self.sizes, spec.session_positions)
        vectors = {name: self.embed(name, of) for name, of in ids.items()}
        if self._stand_in is not None:
            stand_in = tf.matmul(vectors[c.CATEGORY], self._stand_in)  # [B, L, E]
            vectors[c.ITEM] += tf.where((ids[c.ITEM] == c.OOV)[..., None], stand_in, 0.0)
        if spec.inputs == "concat":
            return tf.concat(list(vectors.values()), axis=-1)
        projected = [tf.matmul(vectors[name], matrix) for name, matrix in self._input_projections.items()]
        return tf.add_n([vectors[c.ITEM], *projected])

    def normed(self, layer: int, hidden: Tensor) -> Tensor:
        """Outputs of a layer, normalised over its units where the spec says so (Ba et al. 2016). hidden: [..., H]."""
        if not self._norms:
            return hidden
        scale, bias = self._norms[layer]
        mean, variance = tf.nn.moments(hidden, axes=[-1], keepdims=True)
        return (hidden - mean) * tf.math.rsqrt(variance + _NORM_EPSILON) * scale + bias

    def embed(self, name: str, ids: Tensor) -> Tensor:
        """Rows of one channel's table. ids: any shape → that shape + [dim]."""
        return lookup(self._tables[name], ids, self.is_sparse(name))

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
        return tf.matmul(self.asked(hidden, query), self._projections[kind])

    def asked(self, hidden: Tensor, query: Tensor) -> Tensor:
        """The state as a query sees it. hidden: [..., H]; query: [...] → [..., H]."""
        return hidden * (1.0 + lookup(self._query_scale, query)) + lookup(self._query_shift, query)

    def logits(self, kind: str, answers: Tensor) -> Tensor:
        """Scores of all known ids, tied to the input embedding: a·Eᵀ + b. answers: [P, E or C] → [P, V]."""
        table, bias = self._tables[kind], self._biases[kind]
        return tf.matmul(answers, table[c.FIRST_ID :], transpose_b=True) + bias[c.FIRST_ID :]

    def output_table(self, kind: str) -> tuple[Tensor, Tensor]:
        """Output embedding and bias of all known ids → [V, E or C], [V]."""
        return self._tables[kind][c.FIRST_ID :], self._biases[kind][c.FIRST_ID :]

    def output_rows(self, kind: str, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Output embedding and bias of some ids. ids: [P] → [P, E or C], [P]."""
        return self.embed(kind, ids), lookup(self._biases[kind], ids, self.is_sparse(kind))

    def last(self, channels: Mapping[str, Tensor], length: Tensor, next_gap: Tensor) -> dict[str, Tensor]:
        """Logits for the event after each row, by kind: only the last position meets the output layer. → [B, V]."""
        hidden = self.encode(channels)
        newest = tf.gather(hidden, tf.maximum(length - 1, 0), batch_dims=1)  # [B, H]
        answers = self.answers(newest, next_gap)
        logits = {kind: self.logits(kind, answer) for kind, answer in answers.items()}
        for kind in self.repeats:
            modes = self.modes(kind, newest, next_gap, answers[kind], channels, length)
            logits[kind] = log_distribution(logits[kind], channels[kind], modes)
        return logits

    def modes(
        self, kind: str, newest: Tensor, next_gap: Tensor, answer: Tensor, row: Mapping[str, Tensor], length: Tensor
    ) -> Modes:
        """How the next id divides into the row's and new ones, for a kind in `repeats`.

        newest: [B, H]; next_gap: [B]; answer: [B, E or C]; row: [B, L] channels; length: [B] → of [B] and [B, L].
        """
        scores = self.held_scores(kind, answer[:, None], row[kind])[:, 0]  # [B, L]
        asked = self.asked(newest, self._query_after(next_gap))
        return self.repeats[kind].newest(asked, scores, seen(row[kind], row[c.ACTION_CODE]), length)

    def held_scores(self, kind: str, answers: Tensor, ids: Tensor) -> Tensor:
        """The softmax's scores of the ids that rows hold. answers: [B, T, E or C]; ids: [B, L] → [B, T, L].

        Without the bias: popularity says nothing of what a user comes back to, and an id that is new has none.
        """
        return tf.matmul(answers, self.embed(kind, ids), transpose_b=True)

    def answers(self, newest: Tensor, next_gap: Tensor) -> dict[str, Tensor]:
        """What the heads look for after each row, by kind. newest: [B, H]; next_gap: [B] → [B, E or C].

        A row whose next_gap already is a session's end is asked for a new session; otherwise the query is unknown.
        """
        query = self._query_after(next_gap)
        return {kind: self.answer(kind, newest, query) for kind in (c.ITEM, c.CATEGORY)}

    def _query_after(self, next_gap: Tensor) -> Tensor:
        return tf.where(next_gap >= self.sizes.new_session_gap, QUERY_NEW_SESSION, QUERY_UNKNOWN)


def following(channel: Tensor, length: Tensor, after: Tensor) -> Tensor:
    """The value one event later at every position. channel: [B, L]; after: [B], the value behind the row → [B, L].

    Position length - 1 takes `after`; padding stays 0.
    """
    positions = tf.range(tf.shape(channel)[1])
    shifted = tf.concat([channel[:, 1:], tf.zeros_like(channel[:, :1])], axis=1)
    is_last = positions[None, :] == length[:, None] - 1
    return tf.where(is_last, after[:, None], shifted)


def training_query(gaps_ahead: Tensor, sizes: Sizes, dropout: float, seed: Tensor, first_row: Tensor = 0) -> Tensor:
    """Query at every position, from the gap to the next event; dropped to unknown with probability `dropout`.

    gaps_ahead: [B, L] gap codes → [B, L] int32. seed and first_row: as for `Network.encode`.
    """
    query = tf.where(gaps_ahead >= sizes.new_session_gap, QUERY_NEW_SESSION, QUERY_SAME_SESSION)
    hidden = uniform(seed, first_row, tf.shape(query)) < dropout
    return tf.where(hidden | (gaps_ahead < c.FIRST_GAP), QUERY_UNKNOWN, query)


def _normal(shape: tuple[int, int], deviation: float, seed: int) -> Tensor:
    return tf.Variable(tf.random.stateless_normal(shape, [seed, 0], stddev=deviation))


def _dropped(values: Tensor, rate: float, seed: Tensor | None, place: int, first_row: Tensor) -> Tensor:
    return dropped(values, rate, None if seed is None else seed_at(seed, place), first_row)
