"""Whether arrays are what a model takes; a ModelError that says which is not, and what was expected."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features import columns as c
from model.errors import ModelError
from model.spec import Sizes

Ints = NDArray[np.int32]


def check_rows(rows: Mapping[str, Ints], sizes: Sizes, model_version: str) -> None:
    """Refuse channels, lengths and gap codes of other shapes or codings. Lengths or gap codes give the number n."""
    n = len(rows[c.LENGTH if c.LENGTH in rows else c.NEXT_GAP])
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
                f"Column {name} has shape {list(values.shape)}, model {model_version} takes {list(wanted)}. "
                "Make sequences with the model's sequences.length."
            )
        if n and (values.min() < 0 or values.max() >= limit):
            raise ModelError(
                f"Column {name} holds {values.max()}, model {model_version} knows 0 to {limit - 1}. "
                "The sequences were encoded with another vocabulary or configuration; use those of the model."
            )


def check_states(state: NDArray[Any], wanted: tuple[int, int], model_version: str) -> None:
    """Refuse states of another shape."""
    if state.shape != wanted:
        raise ModelError(
            f"States have shape {list(state.shape)}, model {model_version} takes {list(wanted)}. "
            "They were made by another model; score everyone anew (jobs/score.py --full)."
        )


def check_ids(ids: Mapping[str, Ints], sizes: Sizes, model_version: str) -> None:
    """Refuse ids that are never predicted: padding, unknown ones, and those of a larger vocabulary."""
    for kind, values in ids.items():
        limit = sizes.items if kind == c.ITEM else sizes.categories
        if len(values) and (values.min() < c.FIRST_ID or values.max() >= limit):
            raise ModelError(
                f"Probabilities of {kind} ids {values.min()} to {values.max()} were asked for, model {model_version} "
                f"predicts {c.FIRST_ID} to {limit - 1}."
            )


def check_silence(silence_s: Ints, n: int, wanted: Sequence[str], heads: Sequence[str], model_version: str) -> None:
    """Refuse a model without heads for the time ahead or without a wanted one, and silences that are none."""
    missing = [head for head in wanted if head not in heads]
    if not heads or missing:
        which = f"head {missing[0]}" if missing else "head for the time ahead"
        raise ModelError(
            f"Model {model_version} has no {which}: it was trained with weights of 0. Set "
            "training.horizon_weight, touched_weight, when_weight, hour_weight or action_weight and run jobs.train."
        )
    if silence_s.shape != (n,) or (n and silence_s.min() < 0):
        raise ModelError(
            f"silence_s has shape {list(silence_s.shape)} and least value {silence_s.min() if n else 0}; expected "
            f"[{n}] and at least 0: seconds from the last event to the instant of asking. Was a row asked about a "
            "time before its last event?"
        )
