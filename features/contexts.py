"""Where the model starts to read a user's latest events, and hashes by which a state knows what it has read.

A context is what the model reads, from zeros, to score a user: the end of the row of sequences_v1. A state may go on
from last night's only where the context still starts at the same event, so its start must not move with each new one.

Letters: n rows, L positions.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features import columns as c

Ids = NDArray[np.int32]
Ints = NDArray[np.int64]
Hashes = NDArray[np.uint64]

_ODD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: consecutive ids land far apart
_NOTHING_READ = np.uint64(0x2545F4914F6CDD1D)


def contexts(channels: Mapping[str, Ids], length: Ids, anchor_events: int) -> tuple[dict[str, Ids], Ids, Hashes]:
    """What the model reads of each row → channels [n, L] and length [n] of the contexts, and hashes [n, L + 1].

    channels: [n, L] each; length: [n]. A history shorter than L is read whole. Of a full row the context starts at that
    one of the first `anchor_events` whose hash is least (the first of equal ones), so L - anchor_events < its length
    <= L. It stays there until it leaves those positions or a lesser one enters: with `anchor_events` = S and k new
    events with probability about (S - k) / (S + k) (winnowing: Schleimer, Wilkerson & Aiken 2003). It depends on
    nothing but the row; 1 reads every row whole.

    hashes[:, m] is of the first m events of the context; equal contexts have equal ones.
    """
    events = _event_hashes(channels)  # [n, L]
    width = events.shape[1]
    first = np.argmin(events[:, :anchor_events], axis=1)
    start = np.where(length == width, first, 0)
    if start.any():
        place = np.minimum(start[:, None] + np.arange(width), width - 1)  # [n, L]
        beyond = np.arange(width) >= (length - start)[:, None]
        channels = {
            name: np.where(beyond, np.int32(c.PAD), np.take_along_axis(channel, place, axis=1))
            for name, channel in channels.items()
        }
        events = np.take_along_axis(events, place, axis=1)
    hashes = np.empty((len(length), width + 1), np.uint64)
    hashes[:, 0] = _NOTHING_READ
    for position in range(width):
        hashes[:, position + 1] = _mixed(hashes[:, position] * _ODD + events[:, position])
    return dict(channels), (length - start).astype(np.int32), hashes


def after_events(channels: Mapping[str, Ids], n_events: Ints) -> dict[str, Ids]:
    """The rows without their first n_events events, padded at the end. channels: [n, L] each; n_events: [n]."""
    if not n_events.any():
        return dict(channels)
    (width,) = {channel.shape[1] for channel in channels.values()}
    place = n_events[:, None] + np.arange(width)  # [n, L]
    beyond, place = place >= width, np.minimum(place, width - 1)
    return {
        name: np.where(beyond, np.int32(c.PAD), np.take_along_axis(channel, place, axis=1))
        for name, channel in channels.items()
    }


def row_hashes(channels: Mapping[str, Ids], length: Ids, seen: pa.ListArray) -> Hashes:
    """Hash of all that scores depend on: every event of the row and the items seen before. seen: [n], ragged → [n]."""
    _, _, hashes = contexts(channels, length, anchor_events=1)
    items = _mixed(seen.flatten().to_numpy(zero_copy_only=False).astype(np.uint64) + _ODD)
    ends = np.append(np.uint64(0), np.cumsum(items, dtype=np.uint64))  # sums wrap around; differences stay right
    offsets = seen.offsets.to_numpy() - seen.offsets[0].as_py()
    whole = hashes[np.arange(len(length)), length]
    return _mixed(whole * _ODD + (ends[offsets[1:]] - ends[offsets[:-1]]))


def _event_hashes(channels: Mapping[str, Ids]) -> Hashes:
    """Hash of each event by itself. channels: [n, L] each → [n, L]."""
    hashes = np.zeros(next(iter(channels.values())).shape, np.uint64)
    for name in c.CHANNELS:
        hashes = _mixed(hashes * _ODD + channels[name].astype(np.uint64))
    return hashes


def _mixed(values: Hashes) -> Hashes:
    """The finalizer of SplitMix64 (Steele, Lea & Flood 2014): each bit in moves half the bits out."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
