"""What a row of scores says, as the section scoring of the configuration has it."""

from typing import Literal, Self

from pydantic import ConfigDict, Field, model_validator

from features.fallbacks import FallbackSpec
from features.outlook_columns import OutlookSpec


class ScoringSpec(OutlookSpec):
    """What a row of scores_v1 holds. Units and reasons are in conf/base.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    top_k_items: int = Field(ge=1)
    top_k_interests: int = Field(ge=1)
    fading_interests: int = Field(ge=0)
    interest_depth: int = Field(ge=1)
    seen_items: Literal["keep", "remove"]
    new_probability_floor: float = Field(ge=0, le=1)
    rising_ratio: float = Field(gt=1)
    fading_ratio: float = Field(gt=0, lt=1)
    batch_rows: int = Field(ge=1)
    bucket_users: int = Field(ge=1)
    state_layers: int = Field(ge=1)
    state_layer_share: float = Field(ge=0)
    anchor_events: int = Field(ge=1)
    short_history_events: int = Field(ge=1)
    fallback: FallbackSpec
    item_index: Literal["exact", "approximate"]
    item_index_probes: int = Field(ge=1)

    @property
    def probes(self) -> int | None:
        """Lists of the item index that are read for a user; None: every item is compared."""
        return self.item_index_probes if self.item_index == "approximate" else None

    @model_validator(mode="after")
    def _depth_holds_top(self) -> Self:
        if self.interest_depth < self.top_k_interests:
            raise ValueError(
                f"interest_depth = {self.interest_depth} is less than top_k_interests = {self.top_k_interests}; "
                "raise it or lower the other"
            )
        return self
