"""What the judging of the days ahead reads: users and what they did, the model's answers, a simulation's truth."""

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from features import columns as c
from features.contracts import SEQUENCES
from features.windows import gap_codes
from jobs.evaluation_inputs import (
    LATENT,
    ORACLE,
    channels_of,
    ints_of,
    micros,
    one_chunk,
    read_files,
    times_of,
    truth_as_of,
)
from jobs.layers import earlier_layer
from jobs.store import Manifest, Store
from model.errors import ModelError
from model.evaluation import EvaluationRows, SplitProtocol
from model.future_evaluation import HOUR_S, Answers, FutureRows, FutureSource
from model.metrics import Floats, Ragged
from model.returns import back

if TYPE_CHECKING:  # it loads TensorFlow
    from model.predict import Predictor

_SILENT_COLUMNS = (c.USER_ID, c.LENGTH, *c.CHANNELS, c.LAST_TIME)


def period_end_us(counters: Mapping[str, object], protocol: SplitProtocol) -> int:
    """Where the labels of the split end: validation at the test cutoff, test where the events end.

    That is the end of the run's day, and for a fold of a rolling origin so many days before it.
    """
    if protocol.split == c.VALID:
        return micros(str(counters["test_cutoff"]))
    if "end_cutoff" in counters:
        return micros(str(counters["end_cutoff"]))
    return micros((datetime.fromisoformat(protocol.date) + timedelta(days=1)).isoformat() + "+00:00")


def future_rows(
    store: Store, rows: EvaluationRows, protocol: SplitProtocol, manifest: Manifest
) -> tuple[FutureRows, str]:
    """The split's users and, for the test, those who stayed away all through its period; and what to say about them.

    Who did nothing in the test period has no row among the held-out ones. His latest events of the run's day are those
    before the cutoff, so `sequences_v1` of the day has his row; only the silence up to the cutoff is set anew.
    """
    cutoff_us = micros(str(protocol.cutoff))
    edges_s = tuple(int(edge) for edge in manifest.counters["gap_edges_s"])
    gap_s = edges_s[int(manifest.counters["new_session_gap"]) - c.FIRST_GAP - 1]
    silent = _silent_users(store, rows, protocol, cutoff_us) if protocol.split == c.TEST else None
    n_silent = 0 if silent is None else silent.num_rows
    note = f"Days ahead: {len(rows.user_id):,} users with an event in the period"
    note += f" and {n_silent:,} without one." if silent is not None else "; those without one have no rows here."
    user_id, channels, length, last_us = rows.user_id, rows.channels, rows.length, rows.last_time_us
    if silent is not None:
        more = channels_of(silent, c.CHANNELS)
        user_id += tuple(silent[c.USER_ID].to_pylist())
        channels = {name: np.concatenate([channels[name], more[name]]) for name in c.CHANNELS}
        length = np.concatenate([length, ints_of(silent, c.LENGTH)])
        last_us = np.concatenate([last_us, times_of(silent, c.LAST_TIME)])
    period_s = (period_end_us(manifest.counters, protocol) - cutoff_us) // c.MICROS

    def with_silent(lists: Ragged, values: NDArray[Any]) -> Ragged:
        return Ragged(values, np.append(lists.offsets, np.full(n_silent, lists.offsets[-1])))

    times = rows.label_times_us
    found = FutureRows(
        user_id=user_id,
        channels=channels,
        length=length,
        next_gap=gap_codes(cutoff_us - last_us, edges_s),
        silence_s=((cutoff_us - last_us) // c.MICROS).astype(np.int32),
        categories=with_silent(rows.label_categories, rows.label_categories.values),
        actions=with_silent(rows.label_actions, rows.label_actions.values),
        after_s=with_silent(times, (times.values - cutoff_us) // c.MICROS),
        period_s=int(period_s),
        session_gap_s=gap_s,
    )
    return found, note


def model_futures(predictor: "Predictor", rows: FutureRows, horizons_days: Sequence[int]) -> FutureSource:
    """The bundle's answers, cut to the horizons that are judged.

    Raises:
        ModelError: it has no answer for one of them.
    """
    own = predictor.sizes.horizons_days
    if set(horizons_days) - set(own):
        raise ModelError(
            f"Model {predictor.model_version} looks {list(own)} days ahead, the sequences of the day "
            f"{list(horizons_days)}. Train a model on them (jobs.train), or make sequences with the model's "
            "sequences.horizons_days."
        )
    places = [own.index(days) for days in horizons_days]
    after_s = np.arange(rows.period_s // HOUR_S + 1) * float(HOUR_S)

    def source(start: int, stop: int) -> Answers:
        channels = {name: channel[start:stop] for name, channel in rows.channels.items()}
        silence_s = rows.silence_s[start:stop]
        said = predictor.future(channels, rows.length[start:stop], rows.next_gap[start:stop], silence_s)
        survival = None
        if said.hazards is not None:
            survival = 1.0 - back(said.hazards, predictor.back_bins, silence_s.astype(np.float64), after_s)
        return Answers(
            interests=None if said.interests is None else said.interests[:, places],
            touched=None if said.touched is None else said.touched[:, places],
            survival=survival,
            actions=said.actions,
        )

    return source


def true_futures(
    store: Store, rows: FutureRows, protocol: SplitProtocol, categories: Sequence[str], horizons_days: Sequence[int]
) -> dict[str, FutureSource]:
    """The simulation's truth of the days ahead, where it was written for this cutoff and these horizons.

    A user without a truth (a crawler, the heavy account) gets equal shares, and even chances of everything.
    """
    truth = truth_as_of(store, rows.user_id, protocol)
    if truth is None:
        return {}
    found = {}
    for name, column in ((ORACLE, c.ORACLE_FUTURE), (LATENT, c.LATENT_FUTURE)):
        answers = _dense(truth, column, rows.user_id, categories, horizons_days)
        if answers is not None:
            found[name] = _sliced(answers)
    return found


def _sliced(whole: tuple[Floats, Floats, Floats]) -> FutureSource:
    interests, touched, returns = whole
    return lambda start, stop: Answers(interests[start:stop], touched[start:stop], returns=returns[start:stop])


def _dense(
    truth: pa.Table, column: str, user_id: Sequence[str], categories: Sequence[str], horizons_days: Sequence[int]
) -> tuple[Floats, Floats, Floats] | None:
    """Interests [B, H, V], touched [B, H, V] and returns [B, H] of one column; None where a horizon is missing."""
    row = pc.index_in(one_chunk(truth[c.USER_ID]), value_set=pa.array(user_id)).to_numpy()
    lists = one_chunk(truth[column])
    entries = lists.flatten()
    days = entries.field(c.HORIZON_DAYS).to_numpy()
    if len(days) == 0 or set(horizons_days) - set(days.tolist()):
        return None
    n_rows, n_ids = len(user_id), len(categories)
    shape = (n_rows, len(horizons_days), n_ids)
    interests = np.zeros(shape, np.float32)
    interests[:, :, c.FIRST_ID :] = 1.0 / max(n_ids - c.FIRST_ID, 1)
    touched, returns = np.full(shape, 0.5, np.float32), np.full(shape[:2], 0.5, np.float32)
    touched[:, :, : c.FIRST_ID] = 0.0
    user = np.repeat(row, pc.list_value_length(lists).to_numpy())
    inner = entries.field(c.CATEGORIES)
    listed = inner.flatten()
    ids = pc.fill_null(
        pc.index_in(listed.field(c.CATEGORY_ID), value_set=pa.array(categories, pa.string())), c.OOV
    ).to_numpy()
    entry = np.repeat(np.arange(len(days)), pc.list_value_length(inner).to_numpy())
    for place, horizon in enumerate(horizons_days):
        chosen = days == horizon
        interests[user[chosen], place] = touched[user[chosen], place] = 0.0
        returns[user[chosen], place] = entries.field(c.RETURNS).to_numpy()[chosen]
        of = chosen[entry]
        cells = user[entry[of]], place, ids[of]
        interests[cells] = listed.field(c.PROBABILITY).to_numpy()[of]
        touched[cells] = listed.field(c.TOUCHED).to_numpy()[of]
    interests[:, :, : c.FIRST_ID] = touched[:, :, : c.FIRST_ID] = 0.0
    return interests, touched, returns


def _silent_users(store: Store, rows: EvaluationRows, protocol: SplitProtocol, cutoff_us: int) -> pa.Table | None:
    """Rows of users whose last event lies before the cutoff, in the sample's proportion; None without such a table."""
    if protocol.date not in store.dates(SEQUENCES.name):
        return None
    manifest = store.check(SEQUENCES, protocol.date, "jobs/sequences.py")
    if earlier_layer(manifest) is not None:  # a later night wrote the users with new events only
        return None
    folder = store.path(SEQUENCES.name, protocol.date)
    limit = max(map(_place, rows.user_id)) if protocol.n_users < protocol.n_users_in_split else None
    kept = []
    for file in manifest.files:
        table = read_files(store, [f"{folder}/{file['path']}"], _SILENT_COLUMNS)
        is_silent = times_of(table, c.LAST_TIME) < cutoff_us
        if limit is not None:
            is_silent &= np.array([_place(user) <= limit for user in table[c.USER_ID].to_pylist()], dtype=np.bool_)
        kept.append(table.filter(pa.array(is_silent)))
    return pa.concat_tables(kept).sort_by(c.USER_ID).combine_chunks() if kept else None


def _place(user_id: str) -> bytes:
    """Where the sample of `read_split` has a user."""
    return hashlib.blake2b(user_id.encode(), digest_size=8).digest()
