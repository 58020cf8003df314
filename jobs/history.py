"""The sessions that make up the history of a day: a chain of runs, each of which took up the open ones of the last."""

from collections.abc import Mapping
from datetime import date
from types import MappingProxyType

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from features import columns as c
from features.contracts import OPEN_SESSIONS, SESSIONS, ContractError
from features.events import midnight
from features.sequences import flat_events
from jobs.store import Manifest, Store

_MADE_BY = "jobs/sessionize.py"


def events_until(
    spark: SparkSession, store: Store, dt: date, since: date | None = None
) -> tuple[DataFrame, dict[str, str], int]:
    """Every event in the sessions of a day's history, open ones included: (events, manifest hashes, bytes read).

    since: a day before which events are left out; partitions of days before it stay closed.

    Raises:
        ContractError: a run of the chain is missing, torn, or was replaced after the next one had been built on it.
    """
    chain = session_chain(store, dt)
    if since:
        start = midnight(since)
        chain = [manifest for manifest in chain if manifest.dt >= str(since)]
    opened = store.check(OPEN_SESSIONS, dt, _MADE_BY)
    inputs = {f"{manifest.table}/{manifest.dt}": manifest.hash for manifest in [*chain, opened]}
    n_bytes = sum(int(file["bytes"]) for manifest in [*chain, opened] for file in manifest.files)
    sessions = store.read(spark, OPEN_SESSIONS, dt, _MADE_BY)
    if chain:
        paths = [store.path(SESSIONS.name, manifest.dt) for manifest in chain]
        sessions = spark.read.schema(SESSIONS.schema).parquet(*paths).unionByName(sessions)
    events = flat_events(sessions)
    return events.where(F.col(c.EVENT_TIME) >= F.lit(start)) if since else events, inputs, n_bytes


def session_chain(store: Store, dt: date | str, until: Mapping[str, str] = MappingProxyType({})) -> list[Manifest]:
    """Manifests of `sessions_v1` from the run of a day back to its bootstrap. Other chains are left out.

    until: days whose past is known already, with the hash of their run; the first of them that is unchanged is the last
    one looked at.
    """
    chain: list[Manifest] = []
    day: str | None = str(dt)
    while day is not None:
        finished = store.check(SESSIONS, day, _MADE_BY)
        opened = store.manifest(OPEN_SESSIONS.name, day, _MADE_BY)
        if finished.inputs != opened.inputs or finished.config_hash != opened.config_hash:
            raise ContractError(
                f"{SESSIONS.name} and {OPEN_SESSIONS.name} of {day} come from different runs. Run {_MADE_BY} for {day} "
                f"again."
            )
        if chain and chain[-1].inputs[f"{OPEN_SESSIONS.name}/{day}"] != opened.hash:
            raise ContractError(
                f"{SESSIONS.name} of {chain[-1].dt} took up the open sessions of {day} as they were before {day} was "
                f"run again with other input. Run {_MADE_BY} for {chain[-1].dt} and every later day again."
            )
        chain.append(finished)
        if until.get(day) == finished.hash:
            break
        before = [key.rpartition("/")[2] for key in finished.inputs if key.startswith(f"{OPEN_SESSIONS.name}/")]
        day = before[0] if before else None
    return chain
