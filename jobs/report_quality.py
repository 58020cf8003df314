"""How good the model is: what the evaluations of a root say, for figures."""

from collections.abc import Mapping
from datetime import date
from typing import Any

from jobs.evaluation_details import COHORT, ECE
from jobs.evaluation_files import SUMMARY, read_metrics
from jobs.evaluation_inputs import TRUTHS
from jobs.evaluation_models import MODEL
from jobs.steps import read_json
from jobs.store import Store
from model.metrics import NDCG

_TABLE, _K = "evaluation", 10


def quality_facts(store: Store, dt: date, nights: int) -> Mapping[str, Any]:
    """Metrics of the latest evaluations up to a day, and of the last one its details; {} where there is none.

    over_time: rows of NDCG by date, target and model. latest: the same of the last day. future: metrics of the days
    ahead. cohorts, bins, headlines, protocol: of the last day.
    """
    days = [day for day in store.dates(_TABLE) if day <= str(dt)][-nights:]
    if not days:
        return {}
    records = {day: read_metrics(store, _TABLE, day) for day in days}
    k = _K if any(r["metric"] == NDCG and r["k"] == _K for r in records[days[-1]]) else 1
    keys = ("target", "model", "value", "low", "high", "n")
    over_time = [
        {"date": day, **{key: row.get(key) for key in keys}}
        for day, rows in records.items()
        for row in rows
        if row["metric"] == NDCG and row["k"] == k and row["target"] in ("category", "item")
    ]
    last = records[days[-1]]
    ahead = [r for r in last if r["target"] not in ("category", "item") and "value" in r and "bins" not in r]
    summary = read_json(store, f"{store.path(_TABLE, days[-1])}/{SUMMARY}") or {}
    return {
        "date": days[-1],
        "k": k,
        "truths": list(TRUTHS),
        "over_time": over_time,
        "latest": [row for row in over_time if row["date"] == days[-1]],
        "future": [{key: row.get(key) for key in (*keys, "metric", "k")} for row in ahead],
        "cohorts": [r for r in last if r["metric"] == f"{COHORT}{NDCG}" and r["target"] == "category"],
        "curves": [r for r in last if r["metric"] == ECE and r["model"] == MODEL],
        "headlines": summary.get("headlines", []),
        "future_headlines": [h for h in summary.get("future_headlines", []) if h],
        "protocol": summary.get("protocol", {}),
    }
