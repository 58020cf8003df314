"""Figures of the model: against baselines, over time, by cohort, how honest its probabilities are, how it learned."""

from collections.abc import Mapping, Sequence
from typing import Any

from jobs.evaluation_models import MODEL
from jobs.report_facts import ReportFacts
from jobs.report_figure import BLUE, DASHES, GREEN, GREY, ORANGE, PALETTE, SKY, Figure, percent

SECTION = "model"
_NONE = "No evaluation of this root up to this day: run jobs.evaluate."


def model_figures(facts: ReportFacts) -> list[Figure]:
    """In the order of the page."""
    return [
        versus_figure(facts), over_time_figure(facts), cohort_figure(facts), reliability_figure(facts),
        training_figure(facts),
    ]  # fmt: skip


def versus_figure(facts: ReportFacts) -> Figure:
    """Model, baselines and truths of the last evaluation, as points with intervals."""
    name, title = "versus", "Better than something simple?"
    rows = facts.quality.get("latest", [])
    if not rows:
        return Figure(name, SECTION, title, "", missing=_NONE)
    k, truths = facts.quality["k"], facts.quality["truths"]
    data: list[dict[str, Any]] = []
    for target, symbol, colour in (("category", "circle", BLUE), ("item", "diamond", ORANGE)):
        mine = sorted((r for r in rows if r["target"] == target), key=lambda r: (r["value"], r["model"]))
        data.append({
            "type": "scatter", "mode": "markers", "name": f"next {target}", "orientation": "h",
            "x": [r["value"] for r in mine], "y": [r["model"] for r in mine],
            "marker": {"symbol": [f"{symbol}-open" if r["model"] in truths else symbol for r in mine], "color": colour,
                       "size": [13 if r["model"] == MODEL else 9 for r in mine]},
            "error_x": {"type": "data", "symmetric": False, "thickness": 1.3, "color": colour,
                        "array": [_over(r, "high") for r in mine], "arrayminus": [_over(r, "low") for r in mine]},
            "hovertemplate": "%{y}: %{x:.4f}<extra></extra>",
        })  # fmt: skip
    layout = {
        "xaxis": {"title": {"text": f"NDCG@{k} (1 = the right one always first)"}, "rangemode": "tozero"},
        "yaxis": {"automargin": True},
        "legend": {"orientation": "h", "y": 1.12},
    }
    says = (
        f"Held-out events of {rows[0]['n']:,} users, {facts.quality['date']}: how high the event that really came "
        "next stood in each list. Lines are 95 % intervals over users."
    )
    if any(r["model"] in truths for r in rows):
        says += " Open marks see the simulation's truth: the oracle is the best that anyone could say from the log."
    table = [
        (f"next {r['target']}", r["model"], f"{r['value']:.4f}", _interval(r), f"{r['n']:,}")
        for r in sorted(rows, key=lambda r: (r["target"], -r["value"]))
    ]
    return Figure(name, SECTION, title, says, data, layout, ("what", "who", f"NDCG@{k}", "95 % interval", "users"),
                  table, height=420)  # fmt: skip


def over_time_figure(facts: ReportFacts) -> Figure:
    """The same metric over the evaluations of the root."""
    name, title = "over_time", "The metric over time"
    rows = [r for r in facts.quality.get("over_time", []) if r["target"] == "category"]
    if not rows:
        return Figure(name, SECTION, title, "", missing=_NONE)
    days = sorted({r["date"] for r in rows})
    names = sorted({r["model"] for r in rows}, key=lambda m: (m != MODEL, m))
    data = []
    for i, who in enumerate(names):
        mine = sorted((r for r in rows if r["model"] == who), key=lambda r: r["date"])
        data.append({
            "type": "scatter", "mode": "lines+markers", "name": who, "x": [r["date"] for r in mine],
            "y": [r["value"] for r in mine],
            "line": {"color": PALETTE[i % 8], "width": 3 if who == MODEL else 1.6,
                     "dash": "solid" if who == MODEL else DASHES[1 + i % 3]},
            "error_y": {"type": "data", "symmetric": False, "thickness": 1.1,
                        "array": [_over(r, "high") for r in mine], "arrayminus": [_over(r, "low") for r in mine]},
        })  # fmt: skip
    k = facts.quality["k"]
    says = f"NDCG@{k} of the next category at each evaluation of this root, with 95 % intervals."
    if len(days) == 1:
        says += " There is one evaluation so far; a line needs a second one."
    layout = {
        "xaxis": {"type": "category"},
        "yaxis": {"title": {"text": f"NDCG@{k}"}, "rangemode": "tozero"},
        "legend": {"orientation": "h", "y": -0.2},
    }
    table = [(r["date"], r["model"], f"{r['value']:.4f}", _interval(r), f"{r['n']:,}") for r in rows]
    return Figure(name, SECTION, title, says, data, layout, ("day", "who", f"NDCG@{k}", "95 % interval", "users"),
                  table, height=400)  # fmt: skip


def cohort_figure(facts: ReportFacts) -> Figure:
    """Model and best baseline for groups of users."""
    name, title = "cohorts", "For whom it is good"
    rows = facts.quality.get("cohorts", [])
    if not rows:
        return Figure(name, SECTION, title, "", missing="The last evaluation holds no groups of users.")
    best = next((h["best_baseline"] for h in facts.quality["headlines"] if h["target"] == "category"), None)
    wanted = [who for who in (MODEL, best) if who]
    data = []
    for who, colour, symbol in zip(wanted, (BLUE, GREY), ("circle", "square"), strict=False):
        mine = [r for r in rows if r["model"] == who]
        data.append({
            "type": "scatter", "mode": "markers", "name": who, "x": [r["value"] for r in mine],
            "y": [f"{r['cohort'].replace('_', ' ')}: {r['group']}" for r in mine],
            "marker": {"color": colour, "symbol": symbol, "size": 10},
            "error_x": {"type": "data", "symmetric": False, "thickness": 1.3, "color": colour,
                        "array": [_over(r, "high") for r in mine], "arrayminus": [_over(r, "low") for r in mine]},
            "hovertemplate": "%{y}: %{x:.4f}<extra></extra>",
        })  # fmt: skip
    n_groups = len({(r["cohort"], r["group"]) for r in rows})
    layout = {
        "xaxis": {"title": {"text": f"NDCG@{rows[0]['k']}, next category"}, "rangemode": "tozero"},
        "yaxis": {"automargin": True, "autorange": "reversed"},
        "legend": {"orientation": "h", "y": 1.1},
    }
    says = (
        "The same metric for groups of users: by how much they did, by how common what came next is, and by what they "
        f"did next; beside the best simple row, {best}. Groups of few users have wide intervals."
    )
    table = [
        (r["cohort"].replace("_", " "), r["group"], r["model"], f"{r['value']:.4f}", _interval(r), f"{r['n']:,}")
        for r in rows
        if r["model"] in wanted
    ]
    columns = ("group by", "group", "who", "NDCG", "95 % interval", "users")
    return Figure(name, SECTION, title, says, data, layout, columns, table, height=max(320, 90 + 30 * n_groups))


def reliability_figure(facts: ReportFacts) -> Figure:
    """How often the first choice came true, by how sure the model was."""
    name, title = "reliability", "Are its probabilities honest?"
    curves = facts.quality.get("curves", [])
    if not curves:
        return Figure(name, SECTION, title, "", missing="The last evaluation holds no reliability curve.")
    data: list[dict[str, Any]] = [{
        "type": "scatter", "mode": "lines", "name": "perfectly honest", "x": [0, 1], "y": [0, 1],
        "line": {"color": GREY, "dash": "dash", "width": 1.2}, "hoverinfo": "skip",
    }]  # fmt: skip
    table: list[Sequence[Any]] = []
    said = []
    for curve, colour, dash in zip(curves, (BLUE, ORANGE), ("solid", "dot"), strict=False):
        bins = curve["bins"]
        data.append({
            "type": "scatter", "mode": "lines+markers", "name": f"next {curve['target']}",
            "x": [b["confidence"] for b in bins], "y": [b["accuracy"] for b in bins],
            "line": {"color": colour, "dash": dash},
            "hovertemplate": "said %{x:.1%}, came true %{y:.1%}<extra></extra>",
        })  # fmt: skip
        said.append(f"next {curve['target']}: off by {percent(curve['value'])} on average")
        table += [
            (f"next {curve['target']}", percent(b["confidence"]), percent(b["accuracy"]), f"{b['n']:,}") for b in bins
        ]
    most = max(max(b["confidence"], b["accuracy"]) for curve in curves for b in curve["bins"])
    span = [0, min(1.0, round(most + 0.08, 2))]
    layout = {
        "xaxis": {"title": {"text": "what the model said of its first choice"}, "range": span, "tickformat": ".0%"},
        "yaxis": {"title": {"text": "how often it came true"}, "range": span, "tickformat": ".0%"},
        "legend": {"orientation": "h", "y": 1.12},
    }
    says = f"Points on the dashed line mean what they say. {'; '.join(said).capitalize()} (ECE). Below it: too sure."
    return Figure(name, SECTION, title, says, data, layout, ("what", "said", "came true", "users"), table, height=400)


def training_figure(facts: ReportFacts) -> Figure:
    """Losses and NDCG by epoch."""
    name, title, history = "training", "How it learned", facts.night.history
    if not history:
        return Figure(name, SECTION, title, "", missing="There is no bundle up to this day with a history.")
    epochs = [int(row.get("epoch", i + 1)) for i, row in enumerate(history)]
    lines = [key for key in history[0] if key.endswith(("ndcg", "loss")) or "loss" in key or "ndcg" in key]
    data = []
    for i, key in enumerate(lines):
        is_rank = "ndcg" in key
        data.append({
            "type": "scatter", "mode": "lines+markers", "name": key.replace("_", " "), "x": epochs,
            "y": [row.get(key) for row in history], "yaxis": "y2" if is_rank else "y",
            "line": {"color": (GREEN if "categ" in key else SKY) if is_rank else PALETTE[i % 8],
                     "dash": DASHES[i % 4]},
        })  # fmt: skip
    layout = {
        "xaxis": {"title": {"text": "epoch"}, "dtick": 1},
        "yaxis": {"title": {"text": "loss, nats<br>(less is better)"}, "rangemode": "tozero", "domain": [0.48, 1]},
        "yaxis2": {"title": {"text": "NDCG@10<br>(more is better)"}, "rangemode": "tozero", "domain": [0, 0.4]},
        "legend": {"orientation": "h", "y": -0.22},
    }  # fmt: skip
    says = (
        f"The training of {facts.night.trained_on}, epoch by epoch; figures are means over all its ranks. Validation "
        "picks the epoch that is kept."
    )
    columns = tuple(key.replace("_", " ") for key in history[0])
    table = [tuple(f"{row[key]:g}" if key in row else "" for key in history[0]) for row in history]
    return Figure(name, SECTION, title, says, data, layout, columns, table, height=440)


def _over(row: Mapping[str, Any], side: str) -> float:
    """How far an interval reaches from its value, 0 where there is none."""
    return 0.0 if row.get(side) is None else abs(round(row[side] - row["value"], 5))


def _interval(row: Mapping[str, Any]) -> str:
    return "" if row.get("low") is None else f"{row['low']:.4f} to {row['high']:.4f}"
