"""The log of a night in numbers, and a stop where it does not look like the nights before."""

from collections.abc import Collection, Sequence
from datetime import date

from pyspark.sql import DataFrame, SparkSession

from features import columns as c
from features.contracts import OPEN_SESSIONS, SEQUENCES, SESSIONS, VOCABULARY, ContractError
from features.events import ROWS_READ, ROWS_REFUSED
from features.input_quality import (
    Finding,
    InputQualitySpec,
    NightFacts,
    category_counts,
    day_counts,
    events_of_day,
    judge_input,
    new_users,
    with_others,
)
from features.sequences import flat_events
from jobs.cli import say
from jobs.layers import layers_of, read_sequences
from jobs.steps import NIGHTLY, read_json
from jobs.store import Store

QUALITY = "input.json"
_SESSIONIZE = "jobs/sessionize.py"


def latest_before(store: Store, table: str, dt: date) -> str | None:
    """The latest day before `dt` that has a partition."""
    days = [day for day in store.dates(table) if day < str(dt)]
    return days[-1] if days else None


def gather_facts(spark: SparkSession, store: Store, dt: date) -> NightFacts:
    """Count the events of a day in its finished and open sessions.

    Unknown tokens are counted against the latest vocabulary of an earlier day, new users against the latest sequences
    of an earlier day; None where there are none.

    Raises:
        ContractError: sessions of the day are missing or torn.
    """
    run = store.check(SESSIONS, dt, _SESSIONIZE)
    sessions = store.read(spark, SESSIONS, dt, _SESSIONIZE).unionByName(
        store.read(spark, OPEN_SESSIONS, dt, _SESSIONIZE)
    )
    day = latest_before(store, VOCABULARY.name, dt)
    vocabulary = store.read(spark, VOCABULARY, day, "jobs/vocabulary.py") if day else None
    known = _users_before(spark, store, dt)
    events = events_of_day(flat_events(sessions), dt).persist()
    try:
        counted = day_counts(events, vocabulary).collect()[0].asDict()
        categories = {row[c.CATEGORY_ID]: int(row["count"]) for row in category_counts(events).collect()}
        n_new = None if known is None else new_users(events, known).count()
    finally:
        events.unpersist()
    n_with_category = int(counted["events_with_category"])
    return NightFacts(
        date=str(dt),
        rows_read=int(run.counters[ROWS_READ]),
        rows_refused=int(run.counters[ROWS_REFUSED]),
        events=int(counted["events"]),
        users=int(counted["users"]),
        new_users=n_new,
        events_with_category=n_with_category,
        oov_items=int(counted["oov_items"]) if day else None,
        oov_categories=int(counted["oov_categories"]) if day else None,
        actions={action: int(counted[action]) for action in c.ACTIONS},
        categories=with_others(categories, n_with_category),
    )


def accepted_nights(store: Store, dt: date, nights: int) -> list[NightFacts]:
    """The latest nights before a day whose log was good or accepted, latest first, at most `nights`."""
    folder = f"{store.root}/{NIGHTLY}"
    names = store.fs.ls(folder, detail=False) if store.fs.exists(folder) else []
    days = sorted((name.rpartition("dt=")[2].rstrip("/") for name in names if "dt=" in name), reverse=True)
    found: list[NightFacts] = []
    for day in days:
        if day < str(dt) and len(found) < nights:
            values = read_json(store, f"{folder}/dt={day}/{QUALITY}")
            if values is not None and values["accepted"]:
                found.append(NightFacts.from_json(values["facts"]))
    return found


def check_input(facts: NightFacts, earlier: Sequence[NightFacts], spec: InputQualitySpec) -> list[Finding]:
    """All findings, each said where it breaks its threshold."""
    findings = judge_input(facts, earlier, spec)
    for finding in findings:
        if not finding.is_good:
            say(f"{facts.date} input: {finding}")
    return findings


def refuse_bad(findings: Sequence[Finding], accepted: Collection[str], dt: date) -> None:
    """Stop a night whose log breaks a threshold that was not accepted.

    Raises:
        ContractError: names each check, its value and threshold, and how to go on.
    """
    bad = [finding for finding in findings if not finding.is_good and finding.check not in accepted]
    if bad:
        names = ",".join(finding.check for finding in bad)
        raise ContractError(
            f"The log of {dt} is not like the nights before: {'; '.join(map(str, bad))}. Nothing was scored or "
            f"published; what is published stays. Correct the log and run the night again, or where it is right as it "
            f"is, run it with --accept {names}. Thresholds: input_quality in the configuration."
        )


def _users_before(spark: SparkSession, store: Store, dt: date) -> DataFrame | None:
    day = latest_before(store, SEQUENCES.name, dt)
    if day is None:
        return None
    try:
        layers_of(store, day)
    except ContractError as error:
        say(f"{dt} input: new users are not counted: {error}")
        return None
    return read_sequences(spark, store, date.fromisoformat(day))
