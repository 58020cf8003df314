"""Which earlier day's scores and states a day may go on from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from features.contracts import SCORES, SEQUENCES, USER_STATES
from features.scoring_spec import ScoringSpec
from jobs.cli import say
from jobs.encoded import vocabulary_of
from jobs.score_files import Earlier, Left
from jobs.settings import Settings, config_hash
from jobs.store import DIGEST, Manifest, Store, code_version

_SCORE = "jobs/score.py"
_GROWTH = 4  # times as many users as a bucket was meant for; more are dealt anew


@dataclass(frozen=True)
class Carry:
    """Scores and states of an earlier day that this one goes on from. states: its layers, the latest first."""

    scores: Manifest
    states: tuple[Manifest, ...]

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
        scores, *layers = (_files(store, of) for of in (self.scores, *self.states))
        states = {name: tuple(layer[name] for layer in layers if name in layer) for name in scores}
        return Earlier(scores, states, as_of(date.fromisoformat(self.day)))

    def bears_layer(self, spec: ScoringSpec) -> bool:
        """Whether a day's states are to be laid on these; else they are written whole, as the layers have grown."""
        laid = sum(layer.rows for layer in self.states[:-1])
        return len(self.states) < spec.state_layers and laid < spec.state_layer_share * self.scores.rows


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
        elif (reason := _difference(states, scores.rows, basis, settings)) is not None:
            reasons.append(f"those of {day}: {reason}")
        elif (layers := _layers(store, states)) is None:
            reasons.append(f"those of {day} were laid on states that have been written again or are gone")
        else:
            for manifest in (scores, *layers):
                contract = SCORES if manifest is scores else USER_STATES
                store.check(contract, manifest.dt, f"{_SCORE} --full for this day, or {_SCORE}")
            return Carry(scores, layers)
    if reasons:
        say(f"score: everyone is scored anew, no earlier states can be carried ({reasons[0]})")
    return None


def _files(store: Store, manifest: Manifest) -> dict[str, Left]:
    """Files with rows, by name."""
    folder = store.path(manifest.table, manifest.dt)
    return {
        str(file["path"]): Left(f"{folder}/{file['path']}", str(file.get(DIGEST, "")))
        for file in manifest.files
        if file["rows"]
    }


def _layers(store: Store, states: Manifest) -> tuple[Manifest, ...] | None:
    """These states and those that they were laid on, the latest first; None where one of them is not there any more."""
    layers = [states]
    while below := [key for key in layers[-1].inputs if key.startswith(f"{USER_STATES.name}/")]:
        day = below[0].rpartition("/")[2]
        if day not in store.dates(USER_STATES.name):
            return None
        layers.append(store.manifest(USER_STATES.name, day, _SCORE))
        if layers[-1].hash != layers[-2].inputs[below[0]]:
            return None
    return tuple(layers)


def _difference(states: Manifest, n_users: int, basis: Mapping[str, Any], settings: Settings) -> str | None:
    """In what the states differ from those of this run, or None where they are the same."""
    for name, value in basis.items():
        if states.counters.get(name) != value:
            return f"{name} is {value} now and was {states.counters.get(name)}"
    if states.schema_hash != USER_STATES.schema_hash or states.code_version != code_version():
        return "another version of the project made them"
    if states.config_hash != config_hash(settings.scoring):
        return "the section scoring of the configuration has changed"
    if n_users > _GROWTH * int(states.counters["buckets"]) * settings.scoring.bucket_users:
        return f"{n_users:,} users have become too many for {states.counters['buckets']} buckets"
    return None
