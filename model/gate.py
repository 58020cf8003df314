"""The gate: whether a newly trained model may take over from the one in use. Numbers in, a decision out.

B rows (users), V ids of a vocabulary.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from features.columns import FIRST_ID
from model.evaluation import CATEGORY_TARGET, ITEM_TARGET, Comparison, ScoreBlock, Scores
from model.metrics import NDCG, Bools, Floats, Ints

CHALLENGER, CHAMPION = "challenger", "champion"
K = 10  # cut-off of the metrics that are compared: the headline of every table of this project


class GateSpec(BaseModel):
    """What a challenger must keep up to. Units and reasons are in conf/base.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    category_margin: float = Field(ge=0, lt=1)
    item_margin: float = Field(ge=0, lt=1)
    min_coverage_ratio: float = Field(ge=0)
    max_ece: float = Field(gt=0, le=1)
    ece_bins: int = Field(ge=2)
    max_degenerate_share: float = Field(ge=0, lt=1)
    max_interest_psi: float = Field(gt=0)
    interest_bins: int = Field(ge=1)
    drift_users: int = Field(ge=1)


@dataclass(frozen=True)
class GateCheck:
    """One comparison with a threshold. `what` says in words what `value` is."""

    name: str
    value: float
    threshold: float
    passed: bool
    what: str

    def __str__(self) -> str:
        return f"{self.name} = {self.value:.4g} ({self.what}; threshold {self.threshold:.4g})"


@dataclass(frozen=True)
class Decision:
    """Whether the challenger takes over, and every check behind it."""

    challenger: str
    champion: str | None
    checks: tuple[GateCheck, ...]

    @property
    def passed(self) -> bool:
        """No check failed."""
        return all(check.passed for check in self.checks)

    @property
    def why(self) -> str:
        """What failed, or that nothing did, as part of a sentence."""
        failed = [str(check) for check in self.checks if not check.passed]
        return "; ".join(failed) if failed else f"all {len(self.checks)} checks held"

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `from_json`, and whether it passed."""
        return {**asdict(self), "passed": self.passed}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Decision":
        """What `to_json` gave."""
        checks = tuple(GateCheck(**check) for check in values["checks"])
        return cls(values["challenger"], values["champion"], checks)


class OutputRecord:
    """What a model puts out for B rows while it is ranked: its first choice, how sure it is, and rows that say nothing.

    A row is degenerate where a score is no finite number, or where all ids score alike.
    """

    def __init__(self, n_rows: int) -> None:
        self.choice: Ints = np.zeros(n_rows, np.int32)  # [B] likeliest category
        self.confidence: Floats = np.zeros(n_rows, np.float32)  # [B] its probability
        self.degenerate: Bools = np.zeros(n_rows, np.bool_)  # [B]

    def watch(self, source: ScoreBlock) -> ScoreBlock:
        """The same scores; of a degenerate row zeros, which rank its label last instead of stopping everything."""

        def block(start: int, stop: int) -> Scores:
            items, categories = (np.array(scores, np.float32) for scores in source(start, stop))  # [b, V] each
            bad = _says_nothing(items) | _says_nothing(categories)
            items[bad], categories[bad] = 0, 0
            known = categories[:, FIRST_ID:]
            choice = np.argmax(known, axis=1)
            self.choice[start:stop] = choice + FIRST_ID
            self.confidence[start:stop] = known[np.arange(len(known)), choice]
            self.degenerate[start:stop] = bad
            return items, categories

        return block

    @property
    def degenerate_share(self) -> float:
        """Share of the rows that say nothing, 0..1."""
        return float(self.degenerate.mean())


def calibration_error(confidence: Floats, correct: Bools, n_bins: int) -> float:
    """Expected calibration error of a first choice, 0..1, in bins of equal width.

    ECE = sum over bins of (rows in it / B) · |share correct - mean confidence| (Guo et al. 2017, eq. 3). confidence,
    correct: [B]. Always sure and right half of the time: 0.5; a calibrated model: 0, and sampling noise.
    """
    bins = np.minimum((confidence * n_bins).astype(np.int64), n_bins - 1)  # [B]
    gap = np.bincount(bins, correct.astype(np.float64) - confidence.astype(np.float64), n_bins)
    return float(np.abs(gap).sum() / len(confidence))


def decide(
    spec: GateSpec,
    versions: tuple[str, str | None],
    comparisons: Sequence[Comparison],
    coverage: tuple[float, float | None],
    ece: float,
    degenerate_share: float,
    interest_psi: float | None,
) -> Decision:
    """Judge the challenger; without a champion only what it says by itself.

    versions: of challenger and champion. comparisons: of the challenger (first) with the champion on the same rows,
    paired; it may be worse by a margin at most: the low end of the 95 % interval of NDCG@10 is not below -margin
    (non-inferiority with a one-sided error of 2.5 %; Piaggio et al. 2012, CONSORT). coverage: share of all items that
    either lists among the first K of anyone. interest_psi: drift of the population's interests since the published
    night.
    """
    checks = []
    margins = {CATEGORY_TARGET: spec.category_margin, ITEM_TARGET: spec.item_margin}
    for target, margin in margins.items():
        for pair in comparisons:
            if (pair.target, pair.metric, pair.k) == (target, NDCG, K):
                what = f"low end of the 95 % interval of NDCG@{K} against the champion; mean {pair.difference:+.4f}"
                checks.append(GateCheck(f"{target}_ndcg", pair.low, -margin, pair.low >= -margin, what))
    if coverage[1]:
        ratio = coverage[0] / coverage[1]
        what = f"item coverage@{K} {coverage[0]:.4f} against the champion's {coverage[1]:.4f}"
        checks.append(GateCheck("coverage", ratio, spec.min_coverage_ratio, ratio >= spec.min_coverage_ratio, what))
    checks.append(GateCheck("calibration", ece, spec.max_ece, ece <= spec.max_ece, "ECE of the likeliest category"))
    most = spec.max_degenerate_share
    what = "share of rows without finite, differing scores"
    checks.append(GateCheck("degenerate", degenerate_share, most, degenerate_share <= most, what))
    if interest_psi is not None:
        most, what = spec.max_interest_psi, "PSI of the population's interests against the published night"
        checks.append(GateCheck("drift", interest_psi, most, interest_psi <= most, what))
    return Decision(*versions, tuple(checks))


def _says_nothing(scores: Floats) -> Bools:
    """[B, V] → [B]: not finite, or all candidates alike where there are several."""
    known = scores[:, FIRST_ID:]
    unfinite: Bools = ~np.isfinite(scores).all(axis=1)
    alike: Bools = (known == known[:, :1]).all(axis=1)
    return np.asarray(unfinite | alike if known.shape[1] > 1 else unfinite, np.bool_)
