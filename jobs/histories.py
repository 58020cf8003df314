"""Every user's scoring row of a night, at the cost of what the night brought.

`histories_v1` holds the past of all users in buckets; what came on top are the sessions of the runs since. A night
reads of the buckets the users whose events changed, and writes their rows of `sequences_v1` as a layer on those of an
earlier day. When the runs since have grown to a share of the histories, these are written anew. Why: docs/adr/0007.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from pyspark.sql import SparkSession

from features import columns as c
from features.contracts import HISTORIES, OPEN_SESSIONS, SEQUENCES, SESSIONS, VOCABULARY, ContractError
from features.partitions import EVENT_GROWTH, buckets_for, partitions_for, power_of_two
from features.sequences import cutoffs_for
from jobs.bucket_files import EARLIER, GONE, NEW, OPEN, BucketPlan, shares_of, write_buckets
from jobs.encoded import latest_vocabulary, vocabulary_of
from jobs.history import session_chain
from jobs.layers import layers_of
from jobs.settings import Settings, config_hash
from jobs.store import Lineage, Manifest, Store, code_version

_SESSIONIZE, _SEQUENCES = "jobs/sessionize.py", "jobs/sequences.py"


@dataclass(frozen=True)
class _Night:
    """What a day is built on: histories, the runs since, the layer below with its day's open sessions."""

    histories: Manifest | None
    runs: Sequence[Manifest]  # latest first
    opened: Manifest
    layer: Manifest | None
    writes_histories: bool


def build_scoring_sequences(spark: SparkSession, settings: Settings, root: str, date: date) -> Manifest:
    """Write sequences_v1 of a day: the users touched since the layer below, or all; now and then histories_v1 too.

    The rows, read by `jobs.layers.read_sequences`, are those that `build_sequences` writes.

    Raises:
        ContractError: an input is missing or torn.
    """
    spec, store = settings.sequences, Store(root)
    vocabulary = latest_vocabulary(store, date)
    hashed = config_hash(spec, settings.sessions)
    night = _night(store, settings, date, hashed, vocabulary)
    everyone = night.layer is None
    n_bytes = sum(_bytes(manifest) for manifest in [*night.runs, night.opened])
    if night.histories and (everyone or night.writes_histories):
        n_bytes += _bytes(night.histories)
    known = night.histories
    n_buckets = int(known.counters["buckets"]) if known else buckets_for(n_bytes * EVENT_GROWTH, spec.partition_mib)
    wanted = partitions_for(n_bytes * EVENT_GROWTH, spec.partition_mib, spark.sparkContext.defaultParallelism)
    n_tasks = min(n_buckets, power_of_two(wanted))

    staged = store.staging(SEQUENCES.name, date)
    histories = store.staging(HISTORIES.name, date) if night.writes_histories else None
    for folder in filter(None, (staged, histories)):
        store.fs.makedirs(folder, exist_ok=True)
    plan = BucketPlan(
        histories=store.path(HISTORIES.name, known.dt) if known else None,
        n_buckets=n_buckets,
        bucket_files=frozenset(str(file["path"]) for file in known.files) if known else frozenset(),
        new_histories=histories,
        sequences=staged,
        vocabulary=tuple(f"{store.path(VOCABULARY.name, vocabulary.dt)}/{f['path']}" for f in vocabulary.files),
        everyone=everyone,
        keep=spec.history_events,
        length=spec.length,
        gap_edges_s=spec.gap_edges_s,
        session_gap_s=settings.sessions.gap_s,
        end_us=cutoffs_for(spec, date).end_us,
    )
    written = write_buckets(spark, shares_of(_files(store, night), n_tasks, n_buckets), plan)
    for folder in filter(None, (staged, histories)):
        store.keep_only(folder, written)
    store.write_empty(SEQUENCES, staged)

    inputs = {f"{manifest.table}/{manifest.dt}": manifest.hash for manifest in [*night.runs, night.opened]}
    if known:
        inputs[f"{HISTORIES.name}/{known.dt}"] = known.hash
    if histories:
        counters = {"buckets": n_buckets, "history_events": spec.history_events}
        lineage = Lineage(dict(inputs), config_hash(settings.sessions), counters)
        store.publish(HISTORIES, date, histories, lineage, time_column=c.EVENT_TIME)
    inputs[f"{VOCABULARY.name}/{vocabulary.dt}"] = vocabulary.hash
    if night.layer:
        inputs[f"{SEQUENCES.name}/{night.layer.dt}"] = night.layer.hash
    return store.publish(
        SEQUENCES, date, staged, Lineage(inputs, hashed, spec.coding(settings.sessions.gap_s)), c.LAST_TIME
    )


def _night(store: Store, settings: Settings, dt: date, hashed: str, vocabulary: Manifest) -> _Night:
    spec = settings.sequences
    known = _usable_histories(store, settings, dt)
    chain = session_chain(store, dt, known)
    is_usable = known.get(chain[-1].dt) == chain[-1].hash  # else that day was run again since
    histories = store.check(HISTORIES, chain[-1].dt, _SEQUENCES) if is_usable else None
    runs = chain[:-1] if histories else chain
    opened = store.check(OPEN_SESSIONS, dt, _SESSIONIZE)
    due = histories is None or (
        len(runs) > spec.compact_runs or sum(map(_bytes, runs)) > spec.compact_share * _bytes(histories)
    )
    layer = None if due else _layer_below(store, chain, hashed, vocabulary)
    return _Night(histories, runs, opened, layer, due)


def _usable_histories(store: Store, settings: Settings, dt: date) -> dict[str, str]:
    """Days of the histories made up to a day under these settings → hash of that day's sessions_v1 then."""
    found = {}
    for day in store.dates(HISTORIES.name):
        manifest = store.manifest(HISTORIES.name, day, _SEQUENCES)
        fits = manifest.counters["history_events"] == settings.sequences.history_events
        if day < str(dt) and fits and manifest.config_hash == config_hash(settings.sessions):
            found[day] = manifest.inputs[f"{SESSIONS.name}/{day}"]
    return found


def _layer_below(store: Store, chain: Sequence[Manifest], hashed: str, vocabulary: Manifest) -> Manifest | None:
    """The latest sequences_v1 of an earlier day that was made of the same sessions, in the same way."""
    for run in chain[1:]:
        if run.dt not in store.dates(SEQUENCES.name):
            continue
        layer = store.manifest(SEQUENCES.name, run.dt, _SEQUENCES)
        opened = store.manifest(OPEN_SESSIONS.name, run.dt, _SESSIONIZE)
        same = (
            layer.config_hash == hashed
            and layer.code_version == code_version()
            and layer.inputs.get(f"{SESSIONS.name}/{run.dt}") == run.hash
            and layer.inputs.get(f"{OPEN_SESSIONS.name}/{run.dt}") == opened.hash
            and vocabulary_of(layer) == (vocabulary.dt, vocabulary.hash)
        )
        if same and _is_whole(store, layer):
            return layer
    return None


def _is_whole(store: Store, layer: Manifest) -> bool:
    try:
        layers_of(store, layer.dt)
    except ContractError:
        return False
    return True


def _files(store: Store, night: _Night) -> list[tuple[int, str]]:
    """(kind, path) of every file of sessions on top of the histories, and of open ones that may have lost events."""
    below = night.layer.dt if night.layer else ""
    kinds = [(NEW if run.dt > below else EARLIER, run) for run in night.runs] + [(OPEN, night.opened)]
    if night.layer:
        kinds.append((GONE, store.check(OPEN_SESSIONS, below, _SESSIONIZE)))
    return [
        (kind, f"{store.path(manifest.table, manifest.dt)}/{file['path']}")
        for kind, manifest in kinds
        for file in manifest.files
        if file["rows"]
    ]


def _bytes(manifest: Manifest) -> int:
    return sum(int(file["bytes"]) for file in manifest.files)


def summary(sequences: Manifest) -> str:
    """One line for people."""
    below = [key.rpartition("/")[2] for key in sequences.inputs if key.startswith(f"{SEQUENCES.name}/")]
    return f"{sequences.rows:,} users{f' touched; the others as in {below[0]}' if below else ''}"
