"""One training step and one validation step, as graphs traced once.

Letters: B rows, L positions, P positions with a target, H units.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from features import columns as c
from model import feed
from model.errors import ModelError
from model.gradients import added, compact, scaled
from model.losses import Negatives, NegativeSampler, full_softmax, head_loss
from model.network import Network, Tensor, following, seed_at, training_query
from model.optimizer import Adam
from model.spec import TrainingSpec
from model.workers import Workers, threads_in_use

KINDS = (c.ITEM, c.CATEGORY)
TOP = 10  # validation's HR@10 and NDCG@10

# Places in a step's stream of random numbers; the network's own dropout takes 0 and up.
_SEEDS_PER_STEP, _QUERY_SEED, _NEGATIVES_SEED = 64, 62, 63
_SEEDS_PER_PART = 104_729  # between the parts of a batch


class TrainSums(NamedTuple):
    """Sums over all ranks' positions of a step: loss and targets by kind, and positions trained on."""

    item_loss: float
    item_targets: float
    category_loss: float
    category_targets: float
    positions: float


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
        self._samplers: dict[str, NegativeSampler | None] = dict.fromkeys(KINDS)
        if network.is_sampled(c.ITEM):
            if spec.label_smoothing > 0.0:
                raise ModelError(
                    f"training.label_smoothing = {spec.label_smoothing} needs the full softmax, but the vocabulary has "
                    f"{network.sizes.items} items, more than network.full_softmax_max_items = "
                    f"{network.spec.full_softmax_max_items}. Set it to 0 or raise that limit."
                )
            self._samplers[c.ITEM] = NegativeSampler(counts[c.ITEM], spec.negatives, spec.negative_power)
        self._n_parts = 1 if tf.config.list_physical_devices("GPU") else threads_in_use()
        rows = {name: tf.TensorSpec([None, None] if name in c.CHANNELS else [None], tf.int32) for name in feed.COLUMNS}
        number, rate = tf.TensorSpec([], tf.int32), tf.TensorSpec([], tf.float32)
        self._train = tf.function(self._train_graph, input_signature=[rows, number, rate])
        self._validate = tf.function(self._validate_graph, input_signature=[rows, number])

    def train(self, batch: feed.Block, step: int, learning_rate: float) -> TrainSums:
        """Move the weights once, the same on every rank. step: 1 for the first."""
        sums = self._train(batch, np.int32(step), np.float32(learning_rate))
        return TrainSums(*sums.numpy().tolist())

    def validate(self, batch: feed.Block, n_rows: int) -> ValidSums:
        """Sums over this rank's first `n_rows` rows of the batch, at their last position."""
        sums = self._validate(batch, np.int32(n_rows))
        return ValidSums(*sums.numpy().tolist())

    def _train_graph(self, batch: Mapping[str, Tensor], step: Tensor, learning_rate: Tensor) -> Tensor:
        # Sums and counts are exchanged and divided afterwards: ranks with unequal targets weigh as their targets do.
        gradients, sums = self._gradients(batch, self._seed(step))
        *gradients, sums = self._workers.sum_in_graph([*gradients, sums])
        count = tf.maximum(TrainSums(*tf.unstack(sums)).positions, 1.0)
        gradients = [
            scaled(gradient if self._workers.size == 1 else compact(gradient), 1.0 / count) for gradient in gradients
        ]
        gradients, _ = tf.clip_by_global_norm(gradients, self._spec.clip_norm)
        self.optimizer.apply(dict(zip(self._network.weights, gradients, strict=True)), learning_rate, step)
        return sums

    def _gradients(self, batch: Mapping[str, Tensor], seed: Tensor) -> tuple[list[Any], Tensor]:
        """Gradients of the batch's summed loss by weight, and its TrainSums as one vector.

        The batch is cut into one part for each thread, and each part goes through the network by itself: a step of a
        recurrence is too small to be shared by threads without waiting for one another.
        """
        negatives = {
            kind: sampler.draw(seed_at(seed, _NEGATIVES_SEED)) if sampler else None
            for kind, sampler in self._samplers.items()
        }
        parts = [
            self._part_gradients(part, at, seed, negatives) for at, part in enumerate(_parts(batch, self._n_parts))
        ]
        gradients = [added(each) for each in zip(*(found for found, _ in parts), strict=True)]
        return gradients, tf.add_n([sums for _, sums in parts])

    def _part_gradients(
        self, rows: Mapping[str, Tensor], at: int, seed: Tensor, negatives: Mapping[str, Negatives | None]
    ) -> tuple[list[Any], Tensor]:
        weights = list(self._network.weights.values())
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights)
            objective, sums = self._objective(rows, tf.stack([seed[0] + at * _SEEDS_PER_PART, seed[1]]), negatives)
        return tape.gradient(objective, weights, unconnected_gradients="zero"), sums

    def _objective(
        self, rows: Mapping[str, Tensor], seed: Tensor, negatives: Mapping[str, Negatives | None]
    ) -> tuple[Tensor, Tensor]:
        """Weighted loss summed over the positions, and the TrainSums as one vector."""
        network, length = self._network, rows[c.LENGTH]
        items = following(rows[c.ITEM], length, rows[c.NEXT_ITEM])  # [B, L]
        categories = following(rows[c.CATEGORY], length, rows[c.NEXT_CATEGORY])  # [B, L]
        gaps = following(rows[c.GAP], length, rows[c.NEXT_GAP])  # [B, L]
        query = training_query(gaps, network.sizes, network.spec.query_dropout, seed_at(seed, _QUERY_SEED))  # [B, L]
        hidden = network.encode(rows, seed)  # [B, L, H]

        place = tf.where((items >= c.FIRST_ID) | (categories >= c.FIRST_ID))  # [P, 2]: nothing else meets the heads
        hidden, query = tf.gather_nd(hidden, place), tf.gather_nd(query, place)  # [P, H], [P]
        objective, sums = 0.0, []
        weights = {c.ITEM: self._spec.item_weight, c.CATEGORY: self._spec.category_weight}
        for kind, ahead in ((c.ITEM, items), (c.CATEGORY, categories)):
            targets = tf.gather_nd(ahead, place)  # [P]
            answers = network.answer(kind, hidden, query)
            loss = head_loss(network, kind, answers, targets, self._spec.label_smoothing, negatives[kind])
            objective += weights[kind] * loss
            sums += [loss, _count(targets >= c.FIRST_ID)]
        return objective, tf.stack([*sums, tf.cast(tf.shape(place)[0], tf.float32)])

    def _seed(self, step: Tensor) -> Tensor:
        # Every rank and step has its own dropout; a run that resumes at this step draws the same again.
        own = (self._spec.seed + 7919 * self._workers.rank) % (2**31 - 1)
        return tf.stack([tf.constant(own, tf.int32), step * _SEEDS_PER_STEP])

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


def _count(mask: Tensor) -> Tensor:
    return tf.reduce_sum(tf.cast(mask, tf.float32))


def _parts(batch: Mapping[str, Tensor], n_parts: int) -> list[dict[str, Tensor]]:
    """The rows of a batch in `n_parts` runs of about equal size."""
    n_rows = tf.shape(batch[c.LENGTH])[0]
    ends = [n_rows * at // n_parts for at in range(n_parts + 1)]
    return [{name: values[start:end] for name, values in batch.items()} for start, end in pairwise(ends)]
