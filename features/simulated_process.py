"""The hidden process behind a simulated log: its parameters. Formulas: docs/simulation.md.

Letters in shapes: S hidden states (user type × regime), C categories, I items, N longest session.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from features import columns as c

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Inner = Annotated[float, Field(gt=0.0, lt=1.0)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0.0)]

WEEK_H = 7 * 24
HOUR_MS = 3_600_000
_Z95 = 1.6448536269514722
# Streams of random numbers: the same seed never feeds two of them.
PARAMETERS, LIVES, DIRT, BOTS, HEAVY = range(5)


class ProcessSpec(BaseModel):
    """Sizes and probabilities of the hidden process; units and reasons stand in conf/base.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    categories: Count
    items: Count
    themes: Count
    types: Count
    regimes: Count
    strong_categories: Count
    strong_share: Inner
    stay: Share
    advance: Share
    repeat: Share
    successor: Share
    category_zipf: Annotated[float, Field(ge=0.0)]
    item_zipf: Annotated[float, Field(ge=0.0)]
    sessions_per_day: Positive
    activity_spread: Annotated[float, Field(ge=0.0)]
    late_joiners: Share
    session_median: Annotated[float, Field(ge=1.0)]
    session_p95: Annotated[float, Field(ge=1.0)]
    session_max: Count
    gap_mean_s: Positive
    daily_swing: Annotated[float, Field(ge=0.0, lt=1.0)]
    weekend_lift: Positive
    actions: dict[str, Share]

    @model_validator(mode="after")
    def _fits(self) -> "ProcessSpec":
        problems = []
        if self.regimes > self.themes:
            problems.append(f"regimes = {self.regimes} is more than themes = {self.themes}")
        if self.strong_categories > self.categories:
            problems.append(f"strong_categories = {self.strong_categories} is more than categories = {self.categories}")
        if self.items < self.categories:
            problems.append(f"items = {self.items} is less than categories = {self.categories}; each needs one item")
        if self.stay + self.advance > 1.0:
            problems.append(f"stay + advance = {self.stay + self.advance:g} is above 1")
        if self.session_p95 < self.session_median:
            problems.append(f"session_p95 = {self.session_p95:g} is below session_median = {self.session_median:g}")
        if sorted(self.actions) != sorted(c.ACTIONS) or abs(sum(self.actions.values()) - 1.0) > 1e-6:
            problems.append(f"actions must give a share to each of {', '.join(c.ACTIONS)}, with sum 1")
        if problems:
            raise ValueError("; ".join(problems))
        return self


@dataclass(frozen=True)
class Process:
    """The process with every number filled in. Items of a category are numbered along its cycle of successors."""

    start: Floats  # [S] state of a user's first session
    step: Floats  # [S, S] state of a session → state of the next
    taste: Floats  # [S, C] category of a fresh event, given the state
    repeat: float  # an event takes the category of the one before it in its session
    successor: float  # an event takes the successor of the user's last item in its category
    first_item: Ints  # [C + 1] the items of category k are first_item[k] … first_item[k + 1] - 1
    popularity: Floats  # [I] share of the item within its category
    length: Floats  # [N + 1] probability that a session has so many events; length[0] = 0
    gap_mean_ms: float
    gap_max_ms: int  # gaps within a session lie in 1 … gap_max_ms, gaps between sessions above gap_max_ms + 1
    rhythm: Floats  # [168] session starts by hour of the week, mean 1
    sessions_per_hour: float
    activity_spread: float
    late_joiners: float
    actions: Floats  # [5] in the order of columns.ACTIONS

    @property
    def categories(self) -> int:
        """C."""
        return len(self.first_item) - 1

    @property
    def items(self) -> int:
        """I."""
        return len(self.popularity)

    @property
    def mean_length(self) -> float:
        """Mean events of a session."""
        return float(self.length @ np.arange(len(self.length)))

    @property
    def mean_gap_ms(self) -> float:
        """Mean of a gap within a session."""
        least = math.exp(-self.gap_max_ms / self.gap_mean_ms)
        return self.gap_mean_ms - self.gap_max_ms * least / (1.0 - least)

    def ends_after(self, n_events: int) -> float:
        """Hazard: probability that a session with `n_events` so far has no further one."""
        return float(self.length[n_events] / self.length[n_events:].sum())

    def gap_at_least(self, gap_ms: int) -> float:
        """Probability that a gap within a session is `gap_ms` or more."""
        if gap_ms > self.gap_max_ms:
            return 0.0
        least = math.exp(-self.gap_max_ms / self.gap_mean_ms)
        return (math.exp(-max(gap_ms - 1, 0) / self.gap_mean_ms) - least) / (1.0 - least)


def random_numbers(seed: int, stream: int, unit: int = 0) -> np.random.Generator:
    """The random numbers of one unit of one stream: the same whoever computes it, and whatever else is computed."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, stream, unit])))


def process_of(spec: ProcessSpec, gap_s: float, seed: int) -> Process:
    """Draw the parameters. `gap_s` is the sessionizer's: silence that long ends a session."""
    rng = random_numbers(seed, PARAMETERS)
    background = _zipf(spec.categories, spec.category_zipf)[rng.permutation(spec.categories)]  # [C]
    themes = np.stack([_theme(spec, background, rng) for _ in range(spec.themes)])  # [themes, C]
    order = np.stack([rng.permutation(spec.themes)[: spec.regimes] for _ in range(spec.types)])  # [types, regimes]
    n_states = spec.types * spec.regimes
    sizes = _sizes(spec.items, spec.categories)[rng.permutation(spec.categories)]
    popularity = [_zipf(size, spec.item_zipf)[rng.permutation(size)] for size in sizes]
    return Process(
        start=np.full(n_states, 1.0 / n_states),
        step=np.kron(np.eye(spec.types), _cycle(spec)),
        taste=themes[order.ravel()],
        repeat=spec.repeat,
        successor=spec.successor,
        first_item=np.concatenate([[0], np.cumsum(sizes)]),
        popularity=np.concatenate(popularity),
        length=_lengths(spec),
        gap_mean_ms=1000.0 * spec.gap_mean_s,
        gap_max_ms=int(1000 * gap_s) - 1,
        rhythm=_rhythm(spec),
        sessions_per_hour=spec.sessions_per_day / 24.0,
        activity_spread=spec.activity_spread,
        late_joiners=spec.late_joiners,
        actions=np.array([spec.actions[name] for name in c.ACTIONS]),
    )


def _theme(spec: ProcessSpec, background: Floats, rng: np.random.Generator) -> Floats:
    """A few strong categories, each with 0.6 of the weight of the one before, over the background → [C]."""
    strong = rng.choice(spec.categories, spec.strong_categories, replace=False)
    weight = 0.6 ** np.arange(spec.strong_categories)
    theme = (1.0 - spec.strong_share) * background
    theme[strong] += spec.strong_share * weight / weight.sum()
    return theme


def _cycle(spec: ProcessSpec) -> Floats:
    """One type's regimes: stay, advance to the next of its cycle, or jump anywhere → [regimes, regimes]."""
    n = spec.regimes
    jump = 1.0 - spec.stay - spec.advance
    here = np.eye(n)
    cycle: Floats = spec.stay * here + spec.advance * np.roll(here, 1, axis=1) + jump / n
    return cycle


def _lengths(spec: ProcessSpec) -> Floats:
    """Log-normal session lengths, rounded and cut at session_max → [N + 1]."""
    mean = math.log(spec.session_median)
    spread = max(math.log(spec.session_p95 / spec.session_median) / _Z95, 1e-3)
    edges = [(math.log(n + 0.5) - mean) / spread for n in range(spec.session_max + 1)]
    below = np.array([0.5 * (1.0 + math.erf(edge / math.sqrt(2.0))) for edge in edges])
    below[0] = 0.0
    length: Floats = np.diff(below, prepend=0.0) / below[-1]
    return length


def _rhythm(spec: ProcessSpec) -> Floats:
    """Session starts by hour of the week: lowest at 4 h, highest at 16 h UTC, other weekends → [168]."""
    hour = np.arange(WEEK_H)
    daily = 1.0 - spec.daily_swing * np.cos(2.0 * np.pi * (hour % 24 - 4) / 24.0)
    weekly = np.where(hour >= 5 * 24, spec.weekend_lift, 1.0)
    rhythm: Floats = daily * weekly / (daily * weekly).mean()
    return rhythm


def _zipf(n: int, exponent: float) -> Floats:
    weight: Floats = np.arange(1, n + 1, dtype=np.float64) ** -exponent
    weight /= weight.sum()
    return weight


def _sizes(items: int, categories: int) -> Ints:
    """Items of each category: one each, the rest by the inverse square root of the rank → [C], sum `items`."""
    upto = np.floor((items - categories) * np.cumsum(_zipf(categories, 0.5)) + 0.5).astype(np.int64)
    return np.diff(upto, prepend=0) + 1
