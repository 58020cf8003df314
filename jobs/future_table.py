"""The tables of the days ahead for people: interests, categories touched, the next session, what it holds."""

import re
from collections.abc import Sequence

from jobs.evaluation_inputs import TRUTHS
from model.evaluation import Evaluation, MetricRow
from model.future_evaluation import (
    ACCURACY,
    ACTION,
    AUC,
    AVERAGE_PRECISION,
    BRIER,
    CROSS_ENTROPY,
    F1,
    INTERESTS,
    JENSEN_SHANNON,
    LOG_LIKELIHOOD,
    LOG_LOSS,
    MACRO,
    MAIN,
    NDCG_DEPTH,
    NDCG_SHARE,
    PERPLEXITY,
    PRECISION,
    RECALL,
    RETURN,
    TOUCHED,
)

_SHOWN = {
    INTERESTS: (CROSS_ENTROPY, PERPLEXITY, NDCG_SHARE, JENSEN_SHANNON),
    TOUCHED: (BRIER, AVERAGE_PRECISION, F1, PRECISION, RECALL, MACRO + F1, MACRO + PRECISION, MACRO + RECALL, ACCURACY),
    RETURN: (LOG_LIKELIHOOD, *(f"{BRIER}_{days}d" for days in range(1, 366))),
    ACTION: (LOG_LOSS, BRIER, AUC, AVERAGE_PRECISION),
}
_WORDS = {NDCG_SHARE: f"NDCG@{NDCG_DEPTH}", F1: "F1", MACRO + F1: "macro-F1", AUC: "AUC"}


def future_tables(evaluation: Evaluation, model: str) -> list[tuple[str, list[list[str]], str]]:
    """Title, lines (the first is the header) and the model's own sentence of each table, in the order of the rows."""
    targets = list(dict.fromkeys(row.target for row in evaluation.rows))
    return [
        (_title(target), _lines(_rows(evaluation, target), target), future_headline_text(evaluation, target, model))
        for target in targets
    ]


def future_headline(evaluation: Evaluation, target: str, model: str) -> dict[str, object] | None:
    """The model against the best baseline by the table's main metric, and against the oracle if there is one."""
    metric, more_is_better = MAIN[_kind(target)]
    value = {row.model: row.value for row in _rows(evaluation, target) if row.metric == metric}
    baselines = [name for name in value if name not in (model, *TRUTHS)]
    if model not in value or not baselines:
        return None
    best = (max if more_is_better else min)(baselines, key=lambda name: value[name])
    pair = next(x for x in evaluation.comparisons if (x.target, x.metric, x.second) == (target, metric, best))
    said: dict[str, object] = {
        "target": target,
        "metric": metric,
        "model": value[model],
        "best_baseline": best,
        "baseline": value[best],
        "difference": pair.difference,
        "low": pair.low,
        "high": pair.high,
    }
    oracle = next((value[name] for name in TRUTHS if name in value), None)
    if oracle is not None:
        gap = oracle - value[best]
        is_ahead = gap > 0 if more_is_better else gap < 0
        said["oracle"] = oracle
        said["share_of_gap"] = round((value[model] - value[best]) / gap, 4) if is_ahead else None
    return said


def future_headline_text(evaluation: Evaluation, target: str, model: str) -> str:
    """One sentence on the model against the best baseline; empty where there is none."""
    said = future_headline(evaluation, target, model)
    if said is None:
        return ""
    text = (
        f"{_word(str(said['metric']))}, model − {said['best_baseline']}: {said['difference']:+.4f} "
        f"[{said['low']:+.4f}, {said['high']:+.4f}], paired over users"
    )
    if said.get("share_of_gap") is not None:
        text += f"; share of the way from there to the oracle: {said['share_of_gap']:.0%}"
    return f"{text}."


def _rows(evaluation: Evaluation, target: str) -> list[MetricRow]:
    return [row for row in evaluation.rows if row.target == target]


def _lines(rows: Sequence[MetricRow], target: str) -> list[list[str]]:
    value = {(row.model, row.metric): row for row in rows}
    metrics = [metric for metric in _SHOWN[_kind(target)] if any(row.metric == metric for row in rows)]
    lines = [["", *map(_word, metrics)]]
    for name in dict.fromkeys(row.model for row in rows):
        cells = []
        for place, metric in enumerate(metrics):
            row = value.get((name, metric))
            shown = "" if row is None else f"{row.value:.4f}"
            if row is not None and place == 0 and row.low is not None:
                shown += f" [{row.low:.4f}, {row.high:.4f}]"
            cells.append(shown)
        lines.append([name, *cells])
    return lines


def _title(target: str) -> str:
    kind, _, rest = target.partition("_")
    days = f"next {rest.removesuffix('d')} days" if rest != "1d" else "next day"
    return {
        INTERESTS: f"Interests of the {days}: shares of the events by category",
        TOUCHED: f"Categories touched in the {days}: every user and category",
        RETURN: "When they are back: the hour of the next session, in nats",
        ACTION: f"What they will do: whether the next session holds a {rest}",
    }[kind]


def _kind(target: str) -> str:
    return target.partition("_")[0]


def _word(metric: str) -> str:
    days = re.fullmatch(rf"{BRIER}_(\d+)d", metric)
    return f"Brier {days[1]} d" if days else _WORDS.get(metric, metric.replace("_", " "))
