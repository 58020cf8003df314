"""What a night's log looks like, and whether it looks like the nights before."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from statistics import median
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from features import columns as c
from features.drift import stability_index
from features.events import midnight

# What can be wrong with a night; also what `--accept` takes.
VOLUME, REJECTED, OOV_ITEMS, OOV_CATEGORIES = "volume", "rejected", "oov_items", "oov_categories"
NEW_USERS, ACTIONS, CATEGORIES = "new_users", "actions", "categories"
INPUT_CHECKS = (VOLUME, REJECTED, OOV_ITEMS, OOV_CATEGORIES, NEW_USERS, ACTIONS, CATEGORIES)

KEPT_CATEGORIES = 1000  # most frequent categories of a night whose counts are kept; the rest are one number
_OTHERS = ""  # their name; no category is called so


class InputQualitySpec(BaseModel):
    """When a night's log is not to be believed. Units and reasons are in conf/base.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    nights: int = Field(ge=1)
    min_nights: int = Field(ge=1)
    volume_low: float = Field(ge=0, lt=1)
    volume_high: float = Field(gt=1)
    max_rejected_share: float = Field(ge=0, le=1)
    max_oov_item_share: float = Field(ge=0, le=1)
    max_oov_category_share: float = Field(ge=0, le=1)
    max_new_user_share: float = Field(ge=0, le=1)
    max_action_psi: float = Field(gt=0)
    max_category_psi: float = Field(gt=0)
    category_bins: int = Field(ge=1, le=KEPT_CATEGORIES)

    @model_validator(mode="after")
    def _enough_nights(self) -> Self:
        if self.min_nights > self.nights:
            raise ValueError(f"min_nights = {self.min_nights} is more than nights = {self.nights}: lower it")
        return self


@dataclass(frozen=True)
class NightFacts:
    """One night in numbers. Events are those of the UTC day as known at its end; None: nothing to compare with."""

    date: str
    rows_read: int
    rows_refused: int
    events: int
    users: int
    new_users: int | None
    events_with_category: int
    oov_items: int | None  # events whose item the latest earlier vocabulary does not hold
    oov_categories: int | None
    actions: Mapping[str, int]
    categories: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """What `to_json` gave."""
        return cls(**values)

    @property
    def oov_item_share(self) -> float:
        """Share of the night's events whose item has no id yet; 0 without a vocabulary."""
        return (self.oov_items or 0) / max(self.events, 1)


@dataclass(frozen=True)
class Finding:
    """One number of a night against what is allowed."""

    check: str
    value: float
    low: float | None
    high: float | None
    against: str  # what it is measured by, in words

    @property
    def is_good(self) -> bool:
        """Within the thresholds, which are allowed themselves."""
        return (self.low is None or self.value >= self.low) and (self.high is None or self.value <= self.high)

    def __str__(self) -> str:
        bounds = [] if self.low is None else [f"at least {self.low:g}"]
        bounds += [] if self.high is None else [f"at most {self.high:g}"]
        return f"{self.check} = {self.value:.4g} ({self.against}; allowed: {' and '.join(bounds)})"


def events_of_day(events: DataFrame, day: date) -> DataFrame:
    """The events that happened on a UTC day. events: with event_time."""
    start, end = midnight(day), midnight(day + timedelta(days=1))
    return events.where((F.col(c.EVENT_TIME) >= F.lit(start)) & (F.col(c.EVENT_TIME) < F.lit(end)))


def day_counts(events: DataFrame, vocabulary: DataFrame | None) -> DataFrame:
    """One row: events, users, events_with_category, oov_items, oov_categories and one count for each action.

    events: as `flat_events`. vocabulary: `vocabulary_v1`, unique by (kind, token); without one nothing is unknown.
    """
    marked = events
    for kind, token in ((c.KIND_ITEM, c.ITEM_ID), (c.KIND_CATEGORY, c.CATEGORY_ID)):
        if vocabulary is None:
            marked = marked.withColumn(f"_{kind}", F.lit(True))
            continue
        known = vocabulary.where(F.col(c.KIND) == kind).select(
            F.col(c.TOKEN).alias(token), F.lit(True).alias(f"_{kind}")
        )
        marked = marked.join(known, on=token, how="left")
    has_category = F.col(c.CATEGORY_ID).isNotNull()
    return marked.agg(
        F.count(F.lit(1)).alias("events"),
        F.count_distinct(c.USER_ID).alias("users"),
        F.count(F.when(has_category, 1)).alias("events_with_category"),
        F.count(F.when(F.col("_item").isNull(), 1)).alias("oov_items"),
        F.count(F.when(has_category & F.col("_category").isNull(), 1)).alias("oov_categories"),
        *(F.count(F.when(F.col(c.ACTION) == action, 1)).alias(action) for action in c.ACTIONS),
    )


def category_counts(events: DataFrame) -> DataFrame:
    """(category_id, count) of the most frequent categories, at most KEPT_CATEGORIES, in a total order."""
    counts = events.where(F.col(c.CATEGORY_ID).isNotNull()).groupBy(c.CATEGORY_ID).count()
    return counts.orderBy(F.desc("count"), c.CATEGORY_ID).limit(KEPT_CATEGORIES)


def new_users(events: DataFrame, known: DataFrame) -> DataFrame:
    """(user_id) of the users of `events` that are not among the known ones. known: with user_id."""
    return events.select(c.USER_ID).distinct().join(known.select(c.USER_ID), on=c.USER_ID, how="left_anti")


def with_others(categories: Mapping[str, int], total: int) -> dict[str, int]:
    """Counts of the kept categories, and the events of all others as one number where there are any."""
    rest = total - sum(categories.values())
    return {**categories, _OTHERS: rest} if rest else dict(categories)


def judge_input(facts: NightFacts, earlier: Sequence[NightFacts], spec: InputQualitySpec) -> list[Finding]:
    """Every number that can be judged. earlier: accepted nights before this one, latest first.

    With fewer than `min_nights` of them, volume, new users and shifts have nothing to be compared with and are left
    out, but for the volume of a night without one event: that is too little beside any. Unknown tokens and new users
    are left out also where the night knows no earlier vocabulary or users.
    """
    found = [
        Finding(
            REJECTED,
            facts.rows_refused / max(facts.rows_read, 1),
            None,
            spec.max_rejected_share,
            f"{facts.rows_refused:,} of {facts.rows_read:,} rows refused",
        )
    ]
    for check, n_oov, of, most in (
        (OOV_ITEMS, facts.oov_items, facts.events, spec.max_oov_item_share),
        (OOV_CATEGORIES, facts.oov_categories, facts.events_with_category, spec.max_oov_category_share),
    ):
        if n_oov is not None:
            found.append(
                Finding(check, n_oov / max(of, 1), None, most, f"{n_oov:,} of {of:,} events with unknown ones")
            )
    nights = list(earlier)[: spec.nights]
    if len(nights) < spec.min_nights:
        if not facts.events:
            found.append(Finding(VOLUME, 0.0, spec.volume_low, spec.volume_high, "not one event"))
        return found
    middle = median(night.events for night in nights)
    against = f"{facts.events:,} events against a median of {middle:,.0f} in {len(nights)} nights"
    found.append(Finding(VOLUME, facts.events / max(middle, 1), spec.volume_low, spec.volume_high, against))
    if facts.new_users is not None:
        share = facts.new_users / max(facts.users, 1)
        against = f"{facts.new_users:,} of {facts.users:,} users never seen before"
        found.append(Finding(NEW_USERS, share, None, spec.max_new_user_share, against))
    shifts = (
        (ACTIONS, facts.actions, [night.actions for night in nights], len(c.ACTIONS), spec.max_action_psi),
        (CATEGORIES, facts.categories, [n.categories for n in nights], spec.category_bins, spec.max_category_psi),
    )
    for check, actual, before, bins, most in shifts:
        expected = _sum(before)
        if sum(expected.values()) and sum(actual.values()):
            against = f"PSI against {len(nights)} nights"
            found.append(Finding(check, stability_index(expected, actual, bins), None, most, against))
    return found


def _sum(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for night in counts:
        for name, n in night.items():
            total[name] = total.get(name, 0) + n
    return total
