"""What an evaluation says beside its table: groups of users, and the paired tests against a second bundle."""

from collections.abc import Iterator

from jobs.evaluation_details import main_k
from jobs.evaluation_models import AGAINST, MODEL
from jobs.evaluation_table import EvaluationResult, render
from model.evaluation import TARGETS
from model.metrics import HR, MRR, NDCG, RECALL


def detail_texts(result: EvaluationResult, cohorts: bool, markdown: bool) -> Iterator[str]:
    """The tests, where a second bundle was judged; groups of users, where they are asked for."""
    if AGAINST in result.versions:
        yield against_text(result, markdown)
    if cohorts:
        yield cohort_text(result, markdown)


def cohort_text(result: EvaluationResult, markdown: bool) -> str:
    """A table for each target: groups of users down; the model, a second bundle and the best baseline across."""
    parts = []
    best = {said["target"]: said["best_baseline"] for said in result.headlines}
    details = result.details
    for target in TARGETS:
        found = [row for row in details.cohorts if (row.target, row.metric) == (target, NDCG)]
        value = {(row.found.cohort, row.found.group, row.found.model): row.found for row in found}
        sources = [name for name in (MODEL, AGAINST, best[target]) if any(key[2] == name for key in value)]
        lines = [["", "users", *sources]]
        for cohort, group in dict.fromkeys((row.found.cohort, row.found.group) for row in found):
            cells = [value[cohort, group, source] for source in sources]
            numbers = [f"{cell.value:.4f} [{cell.low:.4f}, {cell.high:.4f}]" for cell in cells]
            lines.append([f"{cohort}: {group}", f"{cells[0].n:,}", *numbers])
        parts.append(f"Next {target}, NDCG@{found[0].k} by groups of users\n\n{render(lines, markdown)}")
    return "\n\n".join(parts)


def against_text(result: EvaluationResult, markdown: bool) -> str:
    """The paired tests of the headline metrics, a line each."""
    details, versions, ks = result.details, result.versions, result.ks
    k, deep = main_k(ks), max(ks)
    shown = [(NDCG, k), (HR, k), (RECALL, k), (MRR, deep), *([(HR, 1)] if 1 in ks else [])]
    lines = [["", "model", AGAINST, "difference", "95 % interval", "p", "users that differ"]]
    for target in TARGETS:
        by_metric = {(test.metric, test.k): test for test in details.tests if test.target == target}
        for metric, at in shown:
            test = by_metric[metric, at]
            lines.append(
                [
                    f"next {target}, {metric.upper()}@{at}",
                    f"{test.first_value:.4f}",
                    f"{test.second_value:.4f}",
                    f"{test.difference:+.4f}",
                    f"[{test.low:+.4f}, {test.high:+.4f}]",
                    f"{test.p_value:.4f}",
                    f"{test.n_differ:,} of {test.n:,}",
                ]
            )
    title = f"{versions[MODEL]} against {versions[AGAINST]}, paired over users (p: sign flips, two-sided, not adjusted)"
    return f"{title}\n\n{render(lines, markdown)}"
