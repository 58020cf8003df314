"""Figures of the pipeline: time by stage, rows from the log to scores, what was refused and why, who did how much."""

import math
from collections.abc import Mapping
from typing import Any

from jobs.report_facts import ReportFacts
from jobs.report_figure import BLUE, GREEN, GREY, ORANGE, PINK, RED, Figure, percent, rgba

NIGHT, SECTION = "night", "pipeline"
# Why a row was refused, in words; features/events.py and features/denoising.py say when.
REASONS: Mapping[str, str] = {
    "malformed_row": "the line is torn or has no such columns",
    "no_user": "no user",
    "no_item": "no item",
    "bad_time": "the time cannot be read",
    "time_out_of_range": "the time lies before the first day that is believed",
    "unknown_action": "an action that the source map does not name",
    "future_time": "it happened after the log received it",
    "after_run": "it happened after the day of the run",
    "too_late": "it came later than late events may",
    "bounce": "a view shorter than the least dwell time",
    "bot": "events of bots: a day that only a program could have",
}
_PREFIX = "rejected_"


def refused(counters: Mapping[str, Any]) -> dict[str, int]:
    """Rows by reason, most first."""
    found = {k.removeprefix(_PREFIX): int(n) for k, n in counters.items() if k.startswith(_PREFIX) and n}
    return dict(sorted(found.items(), key=lambda pair: (-pair[1], pair[0])))


def stage_figure(facts: ReportFacts) -> Figure:
    """Seconds of each stage."""
    title, stages = "Time by stage", facts.night.stages
    if not stages:
        return Figure(
            "stages", NIGHT, title, "", missing="No record of times: neither jobs.nightly nor jobs.run made it."
        )
    total = sum(seconds for _, seconds, _ in stages)
    bars = {
        "type": "bar", "orientation": "h", "y": [name for name, _, _ in stages], "x": [s for _, s, _ in stages],
        "marker": {"color": BLUE}, "text": [f"{s:.0f} s" for _, s, _ in stages], "textposition": "outside",
        "cliponaxis": False, "hovertemplate": "%{y}: %{x:.1f} s<extra></extra>",
    }  # fmt: skip
    layout = {"xaxis": {"title": {"text": "seconds"}}, "yaxis": {"autorange": "reversed", "automargin": True},
              "margin": {"r": 56}}  # fmt: skip
    longest = max(stages, key=lambda stage: stage[1])
    says = (
        f"{total:.0f} s in all, of which {longest[0]} took {percent(longest[1] / max(total, 1e-9), 0)}. Seconds of the "
        "whole machine or cluster are the cost that is known; no price is."
    )
    rows = [(name, f"{seconds:.1f}", percent(seconds / max(total, 1e-9), 0), said) for name, seconds, said in stages]
    return Figure("stages", NIGHT, title, says, [bars], layout, ("stage", "seconds", "of all", "what came out"), rows,
                  height=max(240, 70 + 30 * len(stages)))  # fmt: skip


def pipeline_figures(facts: ReportFacts) -> list[Figure]:
    """In the order of the page."""
    return [rows_figure(facts), reasons_figure(facts), skew_figure(facts)]


def rows_figure(facts: ReportFacts) -> Figure:
    """A Sankey from the rows of the log to events and sessions."""
    title, n = "From the log to sessions", facts.night.counters
    read = int(n.get("rows_read", 0))
    if not read:
        return Figure("rows", SECTION, title, "", missing="The run of this day read no rows.")
    lost = {
        "refused": (int(n.get("rows_refused", 0)), RED), "duplicates": (int(n.get("duplicates", 0)), GREY),
        "of bots": (int(n.get("events_flagged", 0)), ORANGE), "beyond the cap": (int(n.get("events_capped", 0)), PINK),
        "bursts": (int(n.get("events_burst", 0)), PINK), "held back": (int(n.get("events_held", 0)), GREY),
    }  # fmt: skip
    events, still_open = int(n.get("events", 0)), int(n.get("events_open", 0))
    carried = max(0, sum(count for count, _ in lost.values()) + events - read)
    labels, colours = ["read", "all rows"], [BLUE, BLUE]
    links: list[tuple[int, int, int, str]] = [(0, 1, read, BLUE)]

    def node(name: str, colour: str) -> int:
        labels.append(name)
        colours.append(colour)
        return len(labels) - 1

    if carried:
        links.append((node("from the night before", GREY), 1, carried, GREY))
    links += [(1, node(name, colour), count, colour) for name, (count, colour) in lost.items() if count]
    kept = node("events", GREEN)
    links.append((1, kept, events, GREEN))
    links += [
        (kept, node(name, colour), count, colour)
        for name, count, colour in (
            ("in finished sessions", events - still_open, GREEN),
            ("in open ones", still_open, BLUE),
        )
        if count > 0
    ]
    through = [max(sum(k for s, _, k, _ in links if s == i), sum(k for _, t, k, _ in links if t == i))
               for i in range(len(labels))]  # fmt: skip
    sankey = {
        "type": "sankey", "arrangement": "snap",
        "node": {"label": [f"{name} {count:,}" for name, count in zip(labels, through, strict=True)],
                 "color": colours, "pad": 18, "thickness": 14, "hovertemplate": "%{label}<extra></extra>"},
        "link": {"source": [s for s, _, _, _ in links], "target": [t for _, t, _, _ in links],
                 "value": [k for _, _, k, _ in links], "color": [rgba(colour, 0.3) for *_, colour in links]},
    }  # fmt: skip
    says = (
        f"{read:,} rows in; {int(n.get('rows_refused', 0)):,} refused, {events:,} events out, in "
        f"{facts.night.sessions:,} finished sessions and some that may still grow; {facts.night.users:,} users scored "
        "from them. Nothing is dropped silently: each band is counted."
    )
    rows = [(labels[s], labels[t], f"{k:,}", percent(k / read, 2)) for s, t, k, _ in links]
    layout = {"margin": {"l": 8, "r": 8, "t": 16, "b": 16}}
    return Figure(
        "rows", SECTION, title, says, [sankey], layout, ("from", "to", "rows", "of all read"), rows, height=400
    )


def reasons_figure(facts: ReportFacts) -> Figure:
    """Rows refused by reason, on a logarithmic axis."""
    title, found = "What was rejected, and why", refused(facts.night.counters)
    if not found:
        return Figure("reasons", SECTION, title, "", missing="Not one row was refused.")
    bars = {
        "type": "bar", "orientation": "h", "y": list(found), "x": list(found.values()), "marker": {"color": RED},
        "text": [f"{count:,}" for count in found.values()], "textposition": "outside", "cliponaxis": False,
        "hovertemplate": "%{y}: %{x:,} rows<extra></extra>",
    }  # fmt: skip
    layout = {
        "xaxis": {"type": "log", "title": {"text": "rows (each step of the axis is ten times more)"}, "dtick": 1,
                  "range": [0, math.log10(max(found.values())) + 0.45]},
        "yaxis": {"autorange": "reversed", "automargin": True}, "margin": {"r": 64},
    }  # fmt: skip
    read = max(int(facts.night.counters.get("rows_read", 0)), 1)
    rows = [(name, REASONS.get(name, name), f"{count:,}", percent(count / read, 3)) for name, count in found.items()]
    says, columns = "Click a bar, or a reason below, to see such rows.", ("reason", "in words", "rows", "of all read")
    height = max(240, 80 + 32 * len(found))
    return Figure("reasons", SECTION, title, says, [bars], layout, columns, rows, height=height)


def skew_figure(facts: ReportFacts) -> Figure:
    """Share of the events made by the most active share of users."""
    title = "Who makes the events"
    counts = sorted(((int(r["events"]), int(r["users"])) for r in facts.activity), reverse=True)
    n_users, n_events = sum(u for _, u in counts), sum(e * u for e, u in counts)
    if not n_users:
        return Figure("skew", SECTION, title, "", missing="The log holds no events in the weeks that are looked at.")
    x, y, users, events = [0.0], [0.0], 0, 0
    every = max(1, len(counts) // 200)
    for i, (e, u) in enumerate(counts):
        users, events = users + u, events + e * u
        if i % every == 0 or i == len(counts) - 1:
            x.append(round(users / n_users, 5))
            y.append(round(events / n_events, 5))
    data = [
        {"type": "scatter", "mode": "lines", "name": "users, most active first", "x": x, "y": y,
         "line": {"color": BLUE},         "fill": "tozeroy", "fillcolor": rgba(BLUE, 0.12),
         "hovertemplate": "the most active %{x:.1%} make %{y:.1%}<extra></extra>"},
        {"type": "scatter", "mode": "lines", "name": "if all did the same", "x": [0, 1], "y": [0, 1],
         "line": {"color": GREY, "dash": "dash"}, "hoverinfo": "skip"},
    ]  # fmt: skip
    bots = "; ".join(f"{r['rule'].replace('_', ' ')}: {r['users']:,} users" for r in facts.rules) or "none"
    top = counts[0][0]
    tenth = next(b for a, b in zip(x, y, strict=True) if a >= 0.1)
    says = (
        f"The most active tenth of {n_users:,} users makes {percent(tenth, 0)} of the events; the most active user "
        f"made {top:,} ({percent(top / n_events, 2)}). Bots are out already. Users that a rule flagged: {bots}."
    )
    table: list[tuple[Any, ...]] = []
    for share in (0.001, 0.01, 0.1, 0.5, 1.0):
        table.append(
            (f"most active {percent(share)}", percent(next(b for a, b in zip(x, y, strict=True) if a >= share - 1e-9)))
        )
    table += [
        (f"rule {r['rule']}: users / days / events out", f"{r['users']:,} / {r['days']:,} / {r['events']:,}")
        for r in facts.rules
    ]
    layout = {
        "xaxis": {"title": {"text": "users, most active first"}, "tickformat": ".0%", "range": [0, 1]},
        "yaxis": {"title": {"text": "share of all events"}, "tickformat": ".0%", "range": [0, 1.02]},
        "legend": {"orientation": "h", "y": 1.12},
    }
    return Figure("skew", SECTION, title, says, data, layout, ("who", "share of the events"), table, height=360)
