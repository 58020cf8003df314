"""Users to score: sequences of two days and a bundle with random weights, as the stages before would write them.

A user's events are a function of user and number, so a row of any day is made without a history. Letters: n users.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyspark.sql.pandas.types import to_arrow_schema

from features import columns as c
from features.contracts import SEQUENCES, VOCABULARY
from jobs.bucket_files import write_sequences
from jobs.settings import Settings
from jobs.store import Lineage, Store
from model.bundle import Bundle, Reports, save_bundle
from model.spec import Sizes

DAY, NIGHT = date(2024, 3, 1), date(2024, 3, 2)
N_CATEGORIES = 500
_ROWS_PER_FILE = 65_536
_SEQUENCES = to_arrow_schema(SEQUENCES.schema)

Ints = NDArray[np.int64]


def make_world(root: Path, n_users: int, n_items: int, settings: Settings) -> str:
    """Vocabulary, bundle and the sequences of DAY → path of the bundle."""
    store, coding = Store(str(root)), settings.sequences.coding(settings.sessions.gap_s)
    tokens = {c.KIND_ITEM: _tokens("i", n_items), c.KIND_CATEGORY: _tokens("c", N_CATEGORIES)}
    counts = {kind: [0, 0, *range(len(of), 2, -1)] for kind, of in tokens.items()}
    vocabulary = _write_vocabulary(store, tokens, counts)
    bundle = write_bundle(root, DAY, tokens, counts, vocabulary, settings)
    numbers = np.arange(n_users)
    lineage = Lineage({f"{VOCABULARY.name}/{DAY}": vocabulary}, "-", coding)
    _write_sequences(store, DAY, numbers, n_events_of(numbers), n_items, settings, lineage)
    return bundle


def add_night(root: Path, n_users: int, n_items: int, share: float, settings: Settings) -> int:
    """The layer of NIGHT: a share of the users, each with a few more events → how many users."""
    store = Store(str(root))
    below = store.manifest(SEQUENCES.name, DAY, "")
    active = np.flatnonzero(_uniform(np.arange(n_users), 5) < share)
    more = _log_normal(active, 6, median=6, sigma=1.0, most=200)
    lineage = Lineage({**below.inputs, f"{SEQUENCES.name}/{DAY}": below.hash}, "-", below.counters)
    _write_sequences(store, NIGHT, active, n_events_of(active) + more, n_items, settings, lineage)
    return len(active)


def n_events_of(users: Ints) -> Ints:
    """Events of each user up to DAY: some sessions of median 6, so median 18 and a long tail; a fifth beyond 50."""
    return _log_normal(users, 4, median=18, sigma=1.2, most=5_000)


def _write_sequences(
    store: Store, day: date, users: Ints, n_events: Ints, n_items: int, settings: Settings, lineage: Lineage
) -> None:
    staged = store.staging(SEQUENCES.name, day)
    store.fs.makedirs(staged)
    for at, table in enumerate(_rows(day, users, n_events, n_items, settings.sequences.length)):
        write_sequences(table, f"{staged}/part-{at:05d}.parquet", _end_us(day) - settings.sessions.gap_s * c.MICROS)
    store.write_empty(SEQUENCES, staged)
    store.publish(SEQUENCES, day, staged, lineage, c.LAST_TIME)


def _rows(day: date, users: Ints, n_events: Ints, n_items: int, length: int) -> Iterator[pa.Table]:
    for at in range(0, len(users), _ROWS_PER_FILE):
        some, n = users[at : at + _ROWS_PER_FILE], n_events[at : at + _ROWS_PER_FILE]
        filled = np.minimum(n, length)
        number = (n - filled)[:, None] + np.arange(length)  # [n, L] of the event
        random = _mixed(some[:, None].astype(np.uint64) * np.uint64(1 << 20) + number.astype(np.uint64))
        share = (random >> np.uint64(11)).astype(np.float64) / (1 << 53)
        item = c.FIRST_ID + np.minimum(n_items * share**3, n_items - 1).astype(np.int64)  # few items make most events
        channels = {
            c.ITEM: item,
            c.CATEGORY: c.FIRST_ID + item % N_CATEGORIES,
            c.ACTION_CODE: c.FIRST_ID + (random % np.uint64(5)).astype(np.int64),
            c.GAP: c.FIRST_GAP + (random % np.uint64(12)).astype(np.int64),
            c.HOUR: c.FIRST_HOUR + (random % np.uint64(168)).astype(np.int64),
        }
        is_event = np.arange(length) < filled[:, None]
        silence_s = (_uniform(some, 7 + day.day) * (c.DAY_S if day == NIGHT else 30 * c.DAY_S)).astype(np.int64)
        ordered = np.sort(np.where(is_event, item, np.iinfo(np.int64).max), axis=1)
        first = np.diff(ordered, axis=1, prepend=-1) > 0
        first &= ordered < np.iinfo(np.int64).max
        columns = {
            c.USER_ID: pa.array([f"user-{user:08d}" for user in some.tolist()]),
            c.LENGTH: pa.array(filled.astype(np.int32)),
            **{name: _list(np.where(is_event, channel, c.PAD)) for name, channel in channels.items()},
            c.NEXT_GAP: pa.array(np.where(silence_s > 1_800, 7, 5).astype(np.int32)),
            c.LAST_TIME: pa.array(_end_us(day) - (1 + silence_s) * c.MICROS).cast(_SEQUENCES.field(c.LAST_TIME).type),
            c.SEEN_ITEMS: pa.ListArray.from_arrays(
                np.append(0, np.cumsum(first.sum(axis=1))).astype(np.int32), ordered[first].astype(np.int32)
            ),
        }
        yield pa.table([columns[name] for name in _SEQUENCES.names], names=_SEQUENCES.names).cast(_SEQUENCES)


def _end_us(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() + c.DAY_S) * c.MICROS


def _list(rows: Ints) -> pa.ListArray:
    offsets = np.arange(len(rows) + 1, dtype=np.int32) * rows.shape[1]
    return pa.ListArray.from_arrays(offsets, rows.astype(np.int32).ravel())


def _write_vocabulary(store: Store, tokens: dict[str, list[str]], counts: dict[str, list[int]]) -> str:
    staged = store.staging(VOCABULARY.name, DAY)
    store.fs.makedirs(staged)
    columns = [
        (kind, token, number, counts[kind][number])
        for kind, of in tokens.items()
        for number, token in enumerate(of)
        if number >= c.FIRST_ID
    ]
    schema = to_arrow_schema(VOCABULARY.schema)
    pq.write_table(
        pa.table([list(column) for column in zip(*columns, strict=True)], schema=schema), f"{staged}/p.parquet"
    )
    return store.publish(VOCABULARY, DAY, staged, Lineage({}, "-")).hash


def write_bundle(
    root: Path,
    day: date,
    tokens: dict[str, list[str]],
    counts: dict[str, list[int]],
    vocabulary: str,
    settings: Settings,
    heads: Sequence[str] = (),
) -> str:
    """The bundle of a day for a vocabulary of that hash, with these heads and random weights → its path."""
    from model.network import Network

    spec, edges_s = settings.network, settings.sequences.gap_edges_s
    sizes = Sizes(
        items=len(tokens[c.KIND_ITEM]),
        categories=len(tokens[c.KIND_CATEGORY]),
        length=settings.sequences.length,
        gap_codes=c.FIRST_GAP + len(edges_s) + 1,
        new_session_gap=settings.sequences.new_session_gap(settings.sessions.gap_s),
        session_gap_s=settings.sessions.gap_s,
        gap_edges_s=edges_s,
        horizons_days=settings.sequences.horizons_days,
    )
    weights = {name: weight.numpy() for name, weight in Network(spec, sizes, seed=1, heads=heads).weights.items()}
    made = Bundle(spec, sizes, edges_s, tokens, counts, weights, "", "-", vocabulary, "-")
    path = str(root / "bundle" / f"dt={day}")
    save_bundle(path, str(day), made, Reports("", {}, []))
    return path


def _tokens(letter: str, n: int) -> list[str]:
    return ["", "", *(f"{letter}{number}" for number in range(c.FIRST_ID, n + c.FIRST_ID))]


def _log_normal(users: Ints, salt: int, median: float, sigma: float, most: int) -> Ints:
    u, v = (np.maximum(_uniform(users, salt * 100 + k), 1e-12) for k in (1, 2))
    normal = np.sqrt(-2 * np.log(u)) * np.cos(2 * np.pi * v)  # Box & Muller 1958
    return np.clip(median * np.exp(sigma * normal), 1, most).astype(np.int64)


def _uniform(users: Ints, salt: int) -> NDArray[np.float64]:
    """A number in [0, 1) for each user."""
    random = _mixed(users.astype(np.uint64) * np.uint64(4_096) + np.uint64(salt))
    return (random >> np.uint64(11)).astype(np.float64) / (1 << 53)


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64 (Steele, Lea & Flood 2014)."""
    values = (values + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
