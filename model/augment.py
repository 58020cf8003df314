"""Training rows changed at random, anew in every epoch, so that the network cannot learn them by heart.

`rearranged` makes other rows, targets and all; `noised` hides parts of what the network is shown, and no targets.
Every change is a function of the batch's seed and of the row's place in it. A rate of 0 leaves its operation out of
the graph.

Letters: B rows, L positions.
"""

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from features import columns as c
from model.batches import BY_POSITION
from model.draws import seed_at, uniform
from model.spec import TrainingSpec

Tensor = Any  # TensorFlow 2.15 carries no types
Rows = dict[str, Tensor]

# Places in a batch's stream of random numbers.
_CROP_SEED, _KEEP_SEED, _TIES_SEED, _DROPOUT_SEED, _MASK_SEED = range(48, 53)

# What events of one moment exchange. Their gaps stay: the first has that to the event before, the others none.
_EXCHANGED = (c.ITEM, c.CATEGORY, c.ACTION_CODE)


def rearranged(rows: Mapping[str, Tensor], spec: TrainingSpec, seed: Tensor, first_row: Tensor) -> Rows:
    """Rows cropped and events of one moment shuffled. rows: as of model.batches; seed: [2] int32 of the batch."""
    found = dict(rows)
    if spec.crop > 0.0:
        found = _cropped(found, spec, seed, first_row)
    if spec.shuffle_ties:
        found = _ties_shuffled(found, seed, first_row)
    return found


def noised(rows: Mapping[str, Tensor], spec: TrainingSpec, seed: Tensor, first_row: Tensor) -> Rows:
    """Rows with some events' items unknown (item dropout), or items and categories both (masking).

    Item dropout shows the network what an item without an id looks like: a category and nothing else.
    """
    items, categories = rows[c.ITEM], rows[c.CATEGORY]
    if spec.item_dropout > 0.0:
        is_hidden = uniform(seed_at(seed, _DROPOUT_SEED), first_row, tf.shape(items)) < spec.item_dropout
        items = _unknown(items, is_hidden)
    if spec.item_mask > 0.0:
        is_hidden = uniform(seed_at(seed, _MASK_SEED), first_row, tf.shape(items)) < spec.item_mask
        items, categories = _unknown(items, is_hidden), _unknown(categories, is_hidden)
    return {**rows, c.ITEM: items, c.CATEGORY: categories}


def _unknown(ids: Tensor, is_hidden: Tensor) -> Tensor:
    return tf.where(is_hidden & (ids >= c.FIRST_ID), c.OOV, ids)


def _cropped(rows: Rows, spec: TrainingSpec, seed: Tensor, first_row: Tensor) -> Rows:
    """A share `crop` of the rows without their oldest events: of a row of n, ⌈crop_keep·n⌉ to n stay, equally likely.

    The crop of Xie et al. 2022 (CL4SRec) at one end only, so that what follows the row still follows it.
    """
    length = rows[c.LENGTH]
    shape = tf.stack([tf.shape(length)[0], 1])
    is_cropped = uniform(seed_at(seed, _CROP_SEED), first_row, shape)[:, 0] < spec.crop  # [B]
    least = tf.cast(tf.math.ceil(spec.crop_keep * tf.cast(length, tf.float32)), tf.int32)
    n_choices = tf.cast(length - least + 1, tf.float32)
    lost = tf.cast(uniform(seed_at(seed, _KEEP_SEED), first_row, shape)[:, 0] * n_choices, tf.int32)
    lost = tf.where(is_cropped, lost, 0)  # [B]
    places = tf.range(tf.shape(rows[c.ITEM])[1])[None, :] + lost[:, None]  # [B, L]
    is_there = places < length[:, None]
    places = tf.where(is_there, places, 0)
    moved = {name: tf.where(is_there, tf.gather(rows[name], places, batch_dims=1), c.PAD) for name in BY_POSITION}
    return {**rows, **moved, c.LENGTH: length - lost}


def _ties_shuffled(rows: Rows, seed: Tensor, first_row: Tensor) -> Rows:
    """Events of one moment in random order: their order in the log says nothing of the user.

    One moment is a gap of the smallest code, 0 s up to the first of sequences.gap_edges_s.
    """
    moment = tf.cumsum(tf.cast(rows[c.GAP] != c.FIRST_GAP, tf.int32), axis=1)  # [B, L], padding each its own
    within = uniform(seed_at(seed, _TIES_SEED), first_row, tf.shape(moment))
    order = tf.argsort(tf.cast(moment, tf.float32) + within, axis=1, stable=True)
    return {**rows, **{name: tf.gather(rows[name], order, batch_dims=1) for name in _EXCHANGED}}
