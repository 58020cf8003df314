"""What a search for settings may try, and what it makes large: a YAML file, checked before anything runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from jobs.settings import UsageError, describe, read_yaml

_SECTIONS = ("network.", "training.")  # what a trial may change; all else shapes the data, or nothing
_ITEM_NDCG, _CATEGORY_NDCG = "valid_item_ndcg", "valid_category_ndcg"

Value = bool | int | float | str


class Span(BaseModel):
    """Any number from low to high; whole ones where both ends are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: int | float
    high: int | float
    log: bool

    def drawn(self, trial: Any, name: str) -> Value:
        """A value for a trial of Optuna."""
        suggest = trial.suggest_int if isinstance(self.low, int) and isinstance(self.high, int) else trial.suggest_float
        value: Value = suggest(name, self.low, self.high, log=self.log)
        return value

    def holds(self, value: Any) -> bool:
        """Whether a setting lies within."""
        return isinstance(value, int | float) and self.low <= value <= self.high


class Choice(BaseModel):
    """One of some values."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    values: tuple[Value, ...] = Field(min_length=1)

    def drawn(self, trial: Any, name: str) -> Value:
        """A value for a trial of Optuna."""
        value: Value = trial.suggest_categorical(name, list(self.values))
        return value

    def holds(self, value: Any) -> bool:
        """Whether a setting is one of them."""
        return value in self.values


class Goal(BaseModel):
    """Weights of the two validation figures."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    item: float = Field(ge=0)
    category: float = Field(ge=0)

    def value(self, epoch: Mapping[str, float]) -> float:
        """Of one epoch's figures."""
        return self.item * epoch[_ITEM_NDCG] + self.category * epoch[_CATEGORY_NDCG]


class SearchSpec(BaseModel):
    """What is looked for, and how; values and reasons stand in conf/search.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trials: int = Field(ge=1)
    goal: Goal
    random_trials: int = Field(ge=1)
    prune_after_epochs: int = Field(ge=0)
    prune_after_trials: int = Field(ge=1)
    seed: int = Field(ge=0)
    parameters: Mapping[str, Span | Choice] = Field(min_length=1)

    @field_validator("parameters")
    @classmethod
    def _of_the_model(cls, parameters: Mapping[str, Span | Choice]) -> Mapping[str, Span | Choice]:
        for name, space in parameters.items():
            if not name.startswith(_SECTIONS):
                raise ValueError(f"{name} is no setting of network or training; only those leave the data as it is")
            if isinstance(space, Span) and (space.low >= space.high or (space.log and space.low <= 0)):
                raise ValueError(f"{name}: low must lie below high, and above 0 with log: true")
        return parameters


def load_space(path: str) -> SearchSpec:
    """Read a search space; raises UsageError for what is wrong with it."""
    try:
        return SearchSpec.model_validate(read_yaml(Path(path)))
    except ValidationError as error:
        raise UsageError(f"The search space {path} is not valid: {describe(error)}.") from None
