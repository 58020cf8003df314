"""How nights follow each other on a root: when to train, and how much of the past stays."""

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field, field_validator

from features.contracts import CONTRACTS, EVENTS, SESSIONS, SIMULATED_TRUTH

BUNDLE = "bundle"
# Finished sessions are the history itself, which every training reads from its first day on.
_NEVER = (EVENTS.name, SESSIONS.name, SIMULATED_TRUTH.name)
PRUNABLE = (*(t.name for t in CONTRACTS if t.name not in _NEVER), BUNDLE, "evaluation", "evaluation_valid")


class NightlySpec(BaseModel):
    """When a night trains, and with how many processes. Units and reasons are in conf/base.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train_every_days: int = Field(ge=1)
    train_oov_share: float = Field(gt=0, le=1)
    ranks: int = Field(ge=1)


class FeedsSpec(BaseModel):
    """What a night writes beside the scores. Units and reasons are in conf/base.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    exploded: bool
    drift_users: int = Field(ge=0)


class RetentionSpec(BaseModel):
    """How many nights of each table stay. Units and reasons are in conf/base.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    nights: Mapping[str, int]
    runs: int = Field(ge=1)
    releases: int = Field(ge=2)

    @field_validator("nights")
    @classmethod
    def _known(cls, nights: Mapping[str, int]) -> Mapping[str, int]:
        unknown = sorted(set(nights) - set(PRUNABLE))
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: no table that may be pruned; these may: {', '.join(PRUNABLE)}")
        if min(nights.values(), default=1) < 1:
            raise ValueError("at least 1 night of each table stays; leave a table out to keep all of it")
        return nights
