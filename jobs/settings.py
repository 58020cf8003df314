"""The whole configuration: `conf/base.yaml`, overlays and `--set key=value`, checked before anything runs."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from features.denoising import DenoisingSpec
from features.events import CleaningSpec
from features.input_quality import InputQualitySpec
from features.report import ReportSpec
from features.scoring_spec import ScoringSpec
from features.sequences import SequencesSpec
from features.sessions import SessionsSpec
from features.simulation import SimulationSpec
from features.vocabulary import VocabularySpec
from jobs.nightly_spec import FeedsSpec, NightlySpec, RetentionSpec
from model.evaluation import EvaluationSpec
from model.gate import GateSpec
from model.spec import NetworkSpec, TrackingSpec, TrainingSpec

_HERE = Path(__file__).resolve().parent.parent
# Beside the packages; where these lie in an archive (--py-files), beside that.
CONF_DIR = (_HERE.parent if _HERE.is_file() else _HERE) / "conf"


class UsageError(Exception):
    """A wrong argument or configuration value: what, where, which value, how to fix it. Exit code 2."""


class Settings(BaseModel):
    """Every setting of every stage; `conf/base.yaml` holds the values, their units and reasons."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    simulation: SimulationSpec
    cleaning: CleaningSpec
    denoising: DenoisingSpec
    sessions: SessionsSpec
    vocabulary: VocabularySpec
    sequences: SequencesSpec
    network: NetworkSpec
    training: TrainingSpec
    tracking: TrackingSpec
    evaluation: EvaluationSpec
    scoring: ScoringSpec
    feeds: FeedsSpec
    nightly: NightlySpec
    input_quality: InputQualitySpec
    gate: GateSpec
    retention: RetentionSpec
    report: ReportSpec

    @model_validator(mode="after")
    def _sessions_show_in_gaps(self) -> Self:
        edges, gap_s = self.sequences.gap_edges_s, self.sessions.gap_s
        if gap_s not in edges:
            raise ValueError(
                f"sequences.gap_edges_s = {list(edges)} does not hold sessions.gap_s = {gap_s}: the model could "
                f"not see where a session starts. Add {gap_s} to the edges"
            )
        return self

    @model_validator(mode="after")
    def _anchors_lie_in_rows(self) -> Self:
        events, length = self.scoring.anchor_events, self.sequences.length
        if events > length:
            raise ValueError(
                f"scoring.anchor_events = {events} is more than sequences.length = {length}: a context would be empty. "
                "Lower it"
            )
        return self


def load_settings(overlays: Sequence[str] = (), assignments: Sequence[str] = ()) -> Settings:
    """Read `conf/base.yaml`, lay each overlay file over it, then each `section.key=value`.

    Raises:
        UsageError: a file, key or value is wrong; the message names it and what is allowed.
    """
    tree = read_yaml(CONF_DIR / "base.yaml")
    for overlay in overlays:
        tree = _merge(tree, read_yaml(Path(overlay)))
    for assignment in assignments:
        tree = _merge(tree, _assignment_tree(assignment))
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        origin = ", ".join(["conf/base.yaml", *overlays, *(f"--set {a}" for a in assignments)])
        raise UsageError(f"The configuration ({origin}) is not valid: {describe(error)}.") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read one YAML mapping; an unreadable or non-mapping file is a UsageError that names it."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"Cannot read the configuration file {path}: {error.strerror}.") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none, bytes that are not UTF-8
        raise UsageError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(tree, dict):
        raise UsageError(f"{path} must hold a YAML mapping (section: …), found {type(tree).__name__}.")
    return tree


def describe(error: ValidationError) -> str:
    """All problems of a validation error on one line: key, value, what is wrong."""
    problems = []
    for detail in error.errors():
        key = ".".join(str(part) for part in detail["loc"])
        if detail["type"] == "extra_forbidden":
            problems.append(f"unknown key {key} (value {detail['input']!r}); remove it or correct its spelling")
        elif detail["type"] == "missing":
            problems.append(f"key {key} is missing")
        elif not key:  # about several keys, which the message names
            problems.append(detail["msg"].removeprefix("Value error, "))
        else:
            problems.append(f"{key} = {detail['input']!r}: {detail['msg']}")
    return "; ".join(problems)


def config_hash(*sections: BaseModel) -> str:
    """First 16 hex digits of the SHA-256 over the sections a stage depends on."""
    content = json.dumps([section.model_dump(mode="json") for section in sections], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _assignment_tree(assignment: str) -> dict[str, Any]:
    key, equals, text = assignment.partition("=")
    if not equals or not key:
        raise UsageError(f"--set {assignment!r}: expected section.key=value, for example sessions.gap_s=1800.")
    try:
        tree: Any = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none
        raise UsageError(
            f"--set {assignment!r}: the value is not valid YAML: {' '.join(str(error).split())}. Write numbers, words "
            "or lists, for example sessions.gap_s=1800 or 'sequences.world_sizes=[1, 2]'."
        ) from None
    for part in reversed(key.split(".")):
        tree = {part: tree}
    return dict(tree)
