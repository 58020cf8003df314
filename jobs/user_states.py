"""Which earlier day's scores and states a day may go on from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from features.contracts import SCORES, SEQUENCES, USER_STATES
from jobs.cli import say
from jobs.encoded import vocabulary_of
from jobs.score_files import Earlier
from jobs.settings import Settings, config_hash
from jobs.store import DIGEST, Manifest, Store, code_version

_SCORE = "jobs/score.py"
_GROWTH = 4  # times as many users as a bucket was meant for; more are dealt anew


@dataclass(frozen=True)
class Carry:
    """Scores and states of an earlier day that this one goes on from."""

    scores: Manifest
    states: Manifest

    @property
    def day(self) -> str:
        """The earlier day."""
        return self.scores.dt

    def lies_below(self, layers: Sequence[Manifest]) -> bool:
        """Whether `layers_of` a later day are laid on the sequences that the carried scores were made of."""
        used = self.scores.inputs[f"{SEQUENCES.name}/{self.day}"]
        return any(layer.dt == self.day and layer.hash == used for layer in layers[1:])

    def earlier(self, store: Store) -> Earlier:
        """Where tasks find it."""
        of_scores = {str(file["path"]): str(file.get(DIGEST, "")) for file in self.scores.files}
        digests = {
            str(file["path"]): (of_scores.get(str(file["path"]), ""), str(file.get(DIGEST, "")))
            for file in self.states.files
            if file["rows"]
        }
        scores, states = (store.path(table, self.day) for table in (SCORES.name, USER_STATES.name))
        return Earlier(scores, states, digests, as_of(date.fromisoformat(self.day)))


def as_of(dt: date) -> datetime:
    """The cutoff of a day: the midnight that ends it, UTC."""
    return datetime.combine(dt + timedelta(days=1), time(), UTC)


def basis_of(sequences: Manifest, model_version: str) -> dict[str, Any]:
    """What states of another day must share with those of this one: model, vocabulary, coding and configuration."""
    coding = {name: sequences.counters[name] for name in ("length", "gap_edges_s", "new_session_gap")}
    vocabulary = list(vocabulary_of(sequences))
    return {"model_version": model_version, "vocabulary": vocabulary, **coding, "sequences": sequences.config_hash}


def latest_carry(store: Store, dt: date, basis: Mapping[str, Any], settings: Settings) -> Carry | None:
    """The latest earlier day whose scores and states this one may go on from; says why where there is none.

    Raises:
        ContractError: its files are torn.
    """
    reasons = []
    for day in [day for day in reversed(store.dates(USER_STATES.name)) if day < str(dt)]:
        states = store.manifest(USER_STATES.name, day, _SCORE)
        scores = store.manifest(SCORES.name, day, _SCORE) if day in store.dates(SCORES.name) else None
        if scores is None or states.inputs.get(f"{SCORES.name}/{day}") != scores.hash:
            reasons.append(f"those of {day} are not of that day's scores")
        elif (reason := _difference(states, basis, settings)) is not None:
            reasons.append(f"those of {day}: {reason}")
        else:
            for contract in (SCORES, USER_STATES):
                store.check(contract, day, f"{_SCORE} --full for this day, or {_SCORE}")
            return Carry(scores, states)
    if reasons:
        say(f"score: everyone is scored anew, no earlier states can be carried ({reasons[0]})")
    return None


def _difference(states: Manifest, basis: Mapping[str, Any], settings: Settings) -> str | None:
    """In what the states differ from those of this run, or None where they are the same."""
    for name, value in basis.items():
        if states.counters.get(name) != value:
            return f"{name} is {value} now and was {states.counters.get(name)}"
    if states.schema_hash != USER_STATES.schema_hash or states.code_version != code_version():
        return "another version of the project made them"
    if states.config_hash != config_hash(settings.scoring):
        return "the section scoring of the configuration has changed"
    if states.rows > _GROWTH * int(states.counters["buckets"]) * settings.scoring.bucket_users:
        return f"{states.rows:,} users have become too many for {states.counters['buckets']} buckets"
    return None
