"""An evaluation in words and as a table, for people: the protocol, one row a model, the best honest row marked."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from features import columns as c
from jobs.evaluation_details import Details, main_k
from jobs.evaluation_inputs import ORACLE, TRUTHS
from jobs.evaluation_models import AGAINST, MODEL
from jobs.future_table import future_tables
from model.evaluation import (
    ACCURACY,
    CATEGORY_TARGET,
    COVERAGE,
    ITEM_TARGET,
    MACRO_F1,
    REMOVE,
    TARGETS,
    Comparison,
    Evaluation,
    MetricRow,
    SplitProtocol,
)
from model.metrics import F1, HR, MRR, NDCG, PRECISION, RECALL

_TEXT_WIDTH = 110


@dataclass(frozen=True)
class EvaluationResult:
    """One evaluation as written: its rows, how they were made, and what a reader must know beside them."""

    evaluation: Evaluation
    split: SplitProtocol
    ks: tuple[int, ...]
    versions: Mapping[str, str]  # of the rows of bundles
    notes: tuple[str, ...]
    path: str
    details: Details
    future: Evaluation  # of the days ahead; without rows where they are not judged

    @property
    def model_version(self) -> str:
        """Of the row that is judged."""
        return self.versions[MODEL]

    @property
    def headlines(self) -> tuple[dict[str, Any], ...]:
        """The headline of each target."""
        return tuple(headline(self, target) for target in TARGETS)


def format_table(result: EvaluationResult, markdown: bool = False) -> str:
    """The table for people: the protocol above it, one row a model, the best honest row marked."""
    parts = [_wrapped(_protocol_text(result), markdown)]
    for target in TARGETS:
        rows = [row for row in result.evaluation.rows if row.target == target]
        heading = f"Next {target}, {rows[0].candidates:,} candidates"
        if rows[0].n_label_unknown or rows[0].n_label_removed:
            heading += (
                f" (misses by rule: {rows[0].n_label_unknown} unknown labels, {rows[0].n_label_removed} seen ones)"
            )
        parts.append(f"{heading}\n\n{render(_cells(rows, target, result.ks, markdown), markdown)}")
        parts.append(_headline_text(headline(result, target)))
    for title, lines, said in future_tables(result.future, MODEL):
        parts.append(f"{title}\n\n{render(lines, markdown)}")
        parts += [said] if said else []
    return "\n\n".join([*parts, *(_wrapped(note, markdown) for note in result.notes)])


def headline(result: EvaluationResult, target: str) -> dict[str, Any]:
    """The model against the best baseline by NDCG, with the paired interval, and against the oracle if there is one."""
    k = main_k(result.ks)
    value = {r.model: r.value for r in result.evaluation.rows if (r.target, r.metric, r.k) == (target, NDCG, k)}
    best = max((name for name in value if name not in (MODEL, AGAINST, *TRUTHS)), key=lambda name: value[name])
    pair: Comparison = next(
        x for x in result.evaluation.comparisons if (x.target, x.metric, x.k, x.second) == (target, NDCG, k, best)
    )
    said = {
        "target": target,
        "metric": NDCG,
        "k": k,
        "model": value[MODEL],
        "best_baseline": best,
        "baseline": value[best],
        "difference": pair.difference,
        "low": pair.low,
        "high": pair.high,
    }
    if ORACLE in value:
        gap = value[ORACLE] - value[best]
        said["oracle"] = value[ORACLE]
        said["share_of_gap"] = round((value[MODEL] - value[best]) / gap, 4) if gap > 0 else None
    return said


def _protocol_text(result: EvaluationResult) -> str:
    split = result.split
    seen = "removed from the candidates" if _seen(result) == REMOVE else "kept among the candidates"
    if split.protocol == c.GLOBAL_TIME:
        how = (
            f"global time: trained before {split.train_before}, inputs before {split.cutoff}, "
            f"embargo {split.embargo_days} days"
        )
    else:
        how = "leave one out: each user's last event but one is for validation, the last for the test"
    return (
        f"Split {split.split} of {split.date}, {how}. n = {split.n_users:,} of {split.n_users_in_split:,} users; "
        f"baselines fitted on {split.n_train_users:,} of {split.n_train_users_in_split:,} training users. "
        f"Every item and category is ranked, seen items {seen}, ties and unknown labels count against. "
        "HR, NDCG, MRR and accuracy: the next event; Recall, Precision and F1: all distinct ones of the label period. "
        f"In brackets: 95 % bootstrap interval over users. Model {result.model_version}."
    )


def _seen(result: EvaluationResult) -> str:
    return next(row.seen_items for row in result.evaluation.rows if row.target == ITEM_TARGET)


def _cells(rows: list[MetricRow], target: str, ks: Sequence[int], markdown: bool) -> list[list[str]]:
    """Header and one line for each model; the best NDCG among those that see no truth is marked."""
    k, columns = main_k(ks), columns_shown(target, ks)
    value = {(row.model, row.metric, row.k): row for row in rows}
    shown = [(metric, at) for metric, at in columns if (rows[0].model, metric, at) in value]
    models = list(dict.fromkeys(row.model for row in rows))
    best = max((name for name in models if name not in TRUTHS), key=lambda name: value[name, NDCG, k].value)
    header = [title(metric, at) for metric, at in shown]
    lines = [["", *header]]
    for name in models:
        row = value[name, *shown[0]]
        cells = [f"{row.value:.4f} [{row.low:.4f}, {row.high:.4f}]"]
        cells += [f"{value[name, metric, at].value:.4f}" for metric, at in shown[1:]]
        label = name if name != best else f"**{name}**" if markdown else f"{name} *"
        lines.append([label, *cells])
    return lines


def columns_shown(target: str, ks: Sequence[int]) -> list[tuple[str, int]]:
    """Metric and K of each column, the one that rows are judged by first."""
    k, deep = main_k(ks), max(ks)
    columns = [(NDCG, k), (HR, k), (RECALL, k), (PRECISION, k), (F1, k), (MRR, deep)]
    return columns + ([(ACCURACY, 1), (MACRO_F1, 1)] if target == CATEGORY_TARGET else [(HR, 1), (COVERAGE, k)])


def title(metric: str, k: int) -> str:
    """Head of a column."""
    names = {ACCURACY: "accuracy", MACRO_F1: "macro-F1", COVERAGE: f"coverage@{k}"}
    short = {RECALL: "Recall", PRECISION: "Precision"}
    return names.get(metric, f"{short.get(metric, metric.upper())}@{k}")


def render(lines: list[list[str]], markdown: bool) -> str:
    """Lines of cells as aligned columns, the first line their heads; the first column to the left."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    padded = [
        [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        for line in lines
    ]
    if not markdown:
        return "\n".join("  ".join(line).rstrip() for line in padded)
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in [padded[0], rule, *padded[1:]])


def _wrapped(text: str, markdown: bool) -> str:
    return text if markdown else textwrap.fill(text, width=_TEXT_WIDTH)


def _headline_text(said: Mapping[str, Any]) -> str:
    text = (
        f"{said['metric'].upper()}@{said['k']}, model − {said['best_baseline']}: {said['difference']:+.4f} "
        f"[{said['low']:+.4f}, {said['high']:+.4f}], paired over users"
    )
    if said.get("share_of_gap") is not None:
        text += f"; share of the way from there to the oracle: {said['share_of_gap']:.0%}"
    return f"{text}."
