"""One training step and one validation step, as graphs traced once.

A rank that serves one stream takes a step in one graph. With several batches a step (streams, or backward passes) their
gradients are added up first, so that ranks still exchange once.

Letters: B rows, L positions, P positions with a target, H units.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from features import columns as c
from model.augment import noised, rearranged
from model.batches import COLUMNS, SCALARS, Block
from model.draws import seed_at
from model.errors import ModelError
from model.gradients import added, compact, scaled
from model.head_losses import head_losses
from model.losses import (
    Negatives,
    NegativeSampler,
    bpr_max_loss,
    distinct,
    full_softmax,
    head_loss,
)
from model.network import Network, Tensor, following, training_query
from model.optimizer import Adam, Averages, penalised
from model.repeat_losses import divided
from model.spec import TrainingSpec
from model.streams import StreamBatch, stream_seed
from model.watch import TrainSums
from model.workers import SingleProcess, Workers, threads_in_use

KINDS = (c.ITEM, c.CATEGORY)
TOP = 10  # validation's HR@10 and NDCG@10

# Places in a batch's stream of random numbers; the network's own dropout takes 0 and up, model.augment 48 and up.
_SEEDS_PER_BATCH, _QUERY_SEED, _NEGATIVES_SEED = 64, 62, 63


class ValidSums(NamedTuple):
    """Sums over rows. Loss over rows whose target is known; hits and NDCG over all, an unknown target being a miss."""

    rows: float
    item_loss: float
    item_targets: float
    item_hits: float
    item_ndcg: float
    category_loss: float
    category_targets: float
    category_hits: float
    category_ndcg: float


class Steps:
    """The two graphs around one network, its optimizer and the ranks."""

    def __init__(
        self,
        network: Network,
        spec: TrainingSpec,
        workers: Workers,
        counts: Mapping[str, NDArray[np.int64]],
    ) -> None:
        """counts: training targets of all ranks by kind; the negatives of a sampled softmax are drawn from them."""
        self._network = network
        self._spec = spec
        self._workers = workers
        self.optimizer = Adam(network.weights, spec.adam_epsilon, spec.weight_decay)
        self.averages = Averages(network.weights, spec.ema_decay)
        self._samplers: dict[str, NegativeSampler | None] = dict.fromkeys(KINDS)
        self._is_ranked = spec.loss == "bpr_max"
        if spec.label_smoothing > 0.0 and self._is_ranked:
            raise ModelError(
                f"training.label_smoothing = {spec.label_smoothing} needs a softmax over items, which "
                "training.loss = bpr_max does not have. Set it to 0, or take training.loss = cross_entropy."
            )
        if network.repeats and self._is_ranked:
            raise ModelError(
                "network.repeat = true needs a softmax over items, which training.loss = bpr_max does not have. Set it "
                "to false, or take training.loss = cross_entropy."
            )
        if network.is_sampled(c.ITEM) or self._is_ranked:
            if spec.label_smoothing > 0.0:
                raise ModelError(
                    f"training.label_smoothing = {spec.label_smoothing} needs the full softmax, but the vocabulary has "
                    f"{network.sizes.items} items, more than network.full_softmax_max_items = "
                    f"{network.spec.full_softmax_max_items}. Set it to 0 or raise that limit."
                )
            self._samplers[c.ITEM] = NegativeSampler(counts[c.ITEM], spec.negatives, spec.negative_power)
        if spec.xla:
            tf.config.optimizer.set_jit("autoclustering")
        self._n_parts = 1 if tf.config.list_physical_devices("GPU") else threads_in_use()
        rows = {name: tf.TensorSpec([None] if name in SCALARS else [None, None], tf.int32) for name in COLUMNS}
        seed, number, rate = tf.TensorSpec([2], tf.int32), tf.TensorSpec([], tf.int32), tf.TensorSpec([], tf.float32)
        self._train = tf.function(self._train_graph, input_signature=[rows, seed, number, rate], autograph=False)
        self._gradients = tf.function(self._gradient_graph, input_signature=[rows, seed], autograph=False)
        self._of_part = tf.function(self._part_gradients, autograph=False)  # built once, whatever the number of parts
        self._apply: Any = None  # made when the first gradients tell which of them are sparse
        self._validate = tf.function(self._validate_graph, input_signature=[rows, number], autograph=False)

    def train(self, batches: Sequence[StreamBatch], step: int, learning_rate: float) -> TrainSums:
        """Move the weights once, the same on every rank, by all ranks' gradients together. step: 1 for the first."""
        inputs = [(batch.rows, self._seed(batch.stream, batch.number)) for batch in batches]
        number, rate = np.int32(step), np.float32(learning_rate)
        if len(inputs) == 1:
            sums = self._train(*inputs[0], number, rate)
        else:
            gradients, sums = _added([self._gradients(*rows_and_seed) for rows_and_seed in inputs])
            if self._apply is None:
                specs = (
                    [_any_rows(gradient) for gradient in gradients],
                    *map(tf.type_spec_from_value, (sums, number, rate)),
                )
                self._apply = tf.function(self._apply_graph, input_signature=specs, autograph=False)
            sums = self._apply(gradients, sums, number, rate)
        return TrainSums(*sums.numpy().tolist())

    def validate(self, batch: Block, n_rows: int) -> ValidSums:
        """Sums over this rank's first `n_rows` rows of the batch, at their last position."""
        sums = self._validate(batch, np.int32(n_rows))
        return ValidSums(*sums.numpy().tolist())

    def _train_graph(self, batch: Mapping[str, Tensor], seed: Tensor, step: Tensor, learning_rate: Tensor) -> Tensor:
        return self._apply_graph(*self._gradient_graph(batch, seed), step, learning_rate)

    def _apply_graph(self, gradients: Sequence[Any], sums: Tensor, step: Tensor, learning_rate: Tensor) -> Tensor:
        # Sums and counts are exchanged and divided afterwards: ranks with unequal targets weigh as their targets do.
        if self._spec.sparse_as_dense:
            gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]
        gradients, sums = self._workers.sum_in_graph(gradients, sums)
        count = tf.maximum(TrainSums(*tf.unstack(sums)).positions, 1.0)
        if not isinstance(self._workers, SingleProcess):
            gradients = [compact(gradient) for gradient in gradients]  # ranks name the same rows
        gradients = [scaled(gradient, 1.0 / count) for gradient in gradients]
        gradients = penalised(self._network.weights, gradients, self._spec.l1, self._spec.l2)
        gradients, _ = tf.clip_by_global_norm(gradients, self._spec.clip_norm)
        self.optimizer.apply(dict(zip(self._network.weights, gradients, strict=True)), learning_rate, step)
        self.averages.update()
        return sums

    def _gradient_graph(self, batch: Mapping[str, Tensor], seed: Tensor) -> tuple[list[Any], Tensor]:
        """Gradients of the loss summed over a batch, in the order of the weights, and its TrainSums as one vector.

        The batch is cut into one part for each thread, and each part goes through the network by itself: a step of a
        recurrence is too small to be shared by threads without waiting for one another. Random numbers are those of
        the batch: the parts' number changes nothing but the order of sums.
        """
        negatives = {
            kind: sampler.draw(seed_at(seed, _NEGATIVES_SEED)) if sampler else None
            for kind, sampler in self._samplers.items()
        }
        if self._network.repeats:
            negatives = {kind: distinct(drawn) if drawn else None for kind, drawn in negatives.items()}
        parts = [self._of_part(part, first_row, seed, negatives) for first_row, part in _parts(batch, self._n_parts)]
        gradients = [added(each) for each in zip(*(found for found, _ in parts), strict=True)]
        return gradients, tf.add_n([sums for _, sums in parts])

    def _part_gradients(
        self, rows: Mapping[str, Tensor], first_row: Tensor, seed: Tensor, negatives: Mapping[str, Negatives | None]
    ) -> tuple[list[Any], Tensor]:
        weights = list(self._network.weights.values())
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights)
            objective, sums = self._objective(rows, first_row, seed, negatives)
        return tape.gradient(objective, weights, unconnected_gradients="zero"), sums

    def _objective(
        self, rows: Mapping[str, Tensor], first_row: Tensor, seed: Tensor, negatives: Mapping[str, Negatives | None]
    ) -> tuple[Tensor, Tensor]:
        """Weighted loss summed over the positions, and the TrainSums as one vector.

        rows: a part of the batch that the seed is of, from its `first_row` on.
        """
        rows = rearranged(rows, self._spec, seed, first_row)
        network, length = self._network, rows[c.LENGTH]
        items = following(rows[c.ITEM], length, rows[c.NEXT_ITEM])  # [B, L]
        categories = following(rows[c.CATEGORY], length, rows[c.NEXT_CATEGORY])  # [B, L]
        gaps = following(rows[c.GAP], length, rows[c.NEXT_GAP])  # [B, L]
        query_seed = seed_at(seed, _QUERY_SEED)
        query = training_query(gaps, network.sizes, network.spec.query_dropout, query_seed, first_row)  # [B, L]
        hidden = network.encode(noised(rows, self._spec, seed, first_row), seed, first_row)  # [B, L, H]

        objective = 0.0
        if network.heads.names:
            losses = head_losses(network, rows, hidden, seed, first_row)
            objective = tf.add_n([self._spec.head_weights[head] * loss for head, loss in losses.items()])
        place = tf.where((items >= c.FIRST_ID) | (categories >= c.FIRST_ID))  # [P, 2]: nothing else meets the heads
        sums, spec = [], self._spec
        importance = self._importance(rows, place)
        weights = {c.ITEM: spec.item_weight, c.CATEGORY: spec.category_weight}
        for kind, ahead in ((c.ITEM, items), (c.CATEGORY, categories)):
            targets = tf.gather_nd(ahead, place)  # [P]
            known = _known(targets, importance)
            drawn = negatives[kind]
            softmax = spec.label_smoothing, drawn, spec.softmax_precision
            if kind in network.repeats:
                answers = network.answer(kind, hidden, query)  # [B, L, E or C]
                asked = network.asked(hidden, query)
                found = divided(network, kind, rows, asked, answers, ahead, place, drawn)
                answers = tf.gather_nd(answers, place)
                new = found.is_new if importance is None else found.is_new * importance
                loss = head_loss(network, kind, answers, targets, *softmax, new, found.columns)
                loss -= tf.reduce_sum(known * found.log_p)
            else:
                answers = network.answer(kind, tf.gather_nd(hidden, place), tf.gather_nd(query, place))  # [P, E or C]
                if drawn is not None and self._is_ranked:
                    loss = bpr_max_loss(network, kind, answers, targets, drawn, spec.bpr_regularisation, importance)
                else:
                    loss = head_loss(network, kind, answers, targets, *softmax, importance)
            objective += weights[kind] * loss
            sums += [loss, tf.reduce_sum(known)]
        return objective, tf.stack([*sums, tf.cast(tf.shape(place)[0], tf.float32)])

    def _importance(self, rows: Mapping[str, Tensor], place: Tensor) -> Tensor | None:
        """Weight of each position's target by the action of its event → [P]; None where all weigh the same."""
        actions = self._spec.action_weights
        if actions.are_equal:
            return None
        after = rows[c.AHEAD_ACTION][:, 0]  # [B] of the event behind the row; PAD where it lies beyond all horizons
        ahead = tf.gather_nd(following(rows[c.ACTION_CODE], rows[c.LENGTH], after), place)  # [P]
        return tf.gather(tf.constant(actions.by_code), ahead)

    def _seed(self, stream: int, number: int) -> NDArray[np.int32]:
        # Every batch of every stream has its own dropout and negatives, whichever rank takes it, and however often.
        place = number * _SEEDS_PER_BATCH % (2**31 - _SEEDS_PER_BATCH)
        return np.array([stream_seed(self._spec.seed, stream), place], np.int32)

    def _validate_graph(self, batch: Mapping[str, Tensor], n_rows: Tensor) -> Tensor:
        logits = self._network.last(batch, batch[c.LENGTH], batch[c.NEXT_GAP])
        is_real = tf.range(tf.shape(batch[c.LENGTH])[0]) < n_rows
        sums = [tf.cast(n_rows, tf.float32)]
        for kind, after in ((c.ITEM, c.NEXT_ITEM), (c.CATEGORY, c.NEXT_CATEGORY)):
            targets = tf.where(is_real, batch[after], c.PAD)
            rank = _rank_of(logits[kind], targets)
            is_hit = rank <= TOP
            gain = tf.where(is_hit, np.log(2.0).astype(np.float32) / tf.math.log(1.0 + tf.cast(rank, tf.float32)), 0.0)
            losses = full_softmax(logits[kind], targets)
            sums += [tf.reduce_sum(losses), _count(targets >= c.FIRST_ID), _count(is_hit), tf.reduce_sum(gain)]
        return tf.stack(sums)


def _rank_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Rank of the target among all known ids, 1 the best; ties count against it. An unknown target ranks behind all.

    logits: [B, V]; targets: [B] ids → [B] int32.
    """
    labels = tf.maximum(targets - c.FIRST_ID, 0)
    own = tf.gather(logits, labels, batch_dims=1)  # [B]
    rank = tf.reduce_sum(tf.cast(logits >= own[:, None], tf.int32), axis=-1)
    return tf.where(targets >= c.FIRST_ID, rank, np.iinfo(np.int32).max - 1)


def _known(targets: Tensor, importance: Tensor | None) -> Tensor:
    known = tf.cast(targets >= c.FIRST_ID, tf.float32)
    return known if importance is None else known * importance


def _count(mask: Tensor) -> Tensor:
    return tf.reduce_sum(tf.cast(mask, tf.float32))


def _parts(batch: Mapping[str, Tensor], n_parts: int) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """The rows of a batch in `n_parts` runs of about equal size, each with the place of its first row."""
    n_rows = tf.shape(batch[c.LENGTH])[0]
    ends = [n_rows * at // n_parts for at in range(n_parts + 1)]
    return [(start, {name: values[start:end] for name, values in batch.items()}) for start, end in pairwise(ends)]


def _added(parts: Sequence[tuple[Sequence[Any], Tensor]]) -> tuple[list[Any], Tensor]:
    """Sum of several batches' gradients and TrainSums."""
    gradients, sums = zip(*parts, strict=True)
    return [added(same) for same in zip(*gradients, strict=True)], tf.add_n(sums)


def _any_rows(gradient: Any) -> Any:
    """What a graph is told of a gradient; a sparse one may have any number of rows."""
    if isinstance(gradient, tf.IndexedSlices):
        types = gradient.values.dtype, gradient.indices.dtype, gradient.dense_shape.dtype
        return tf.IndexedSlicesSpec(gradient.shape, *types, indices_shape=tf.TensorShape([None]))
    return tf.TensorSpec(gradient.shape, gradient.dtype)
