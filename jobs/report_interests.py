"""Figures of the interests: flows, what rises and fades, weeks with the forecast, hours of the week."""

from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any

from features.report import ReportSpec
from features.report_sums import NEXT, OTHERS, PAST
from jobs.report_facts import ReportFacts
from jobs.report_figure import BLUE, DASHES, GREY, PALETTE, RED, SCALE, Figure, percent, rgba, short, step_name

SECTION = "interests"
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_NO_HEADS = "The model that scored has no heads for the days ahead, so this ends at the next event."


def interest_figures(facts: ReportFacts, spec: ReportSpec) -> list[Figure]:
    """In the order of the page."""
    return [movers_figure(facts, spec), flow_figure(facts), weeks_figure(facts), hours_figure(facts)]


def last_step(facts: ReportFacts) -> int | None:
    """The step that movement is measured at: 7 days where told, else the nearest ahead, else the next event."""
    steps = {int(row["step"]) for row in facts.shares} - {PAST}
    if not steps:
        return None
    return 7 if 7 in steps else min((s for s in steps if s > NEXT), default=NEXT)


def movers(facts: ReportFacts, n: int) -> tuple[list[Any], list[Any]]:
    """(rising, fading): at most n each whose interval leaves out 0, by size of the move."""
    step = last_step(facts)
    rows = sorted((r for r in facts.shares if r["step"] == step), key=lambda r: (-r["move"], r["category_id"]))
    rising = [row for row in rows if row["low"] > 0][:n]
    fading = [row for row in reversed(rows) if row["high"] < 0][:n]
    return rising, fading


def movers_figure(facts: ReportFacts, spec: ReportSpec) -> Figure:
    """Bars of the mean move with intervals."""
    name, title, step = "movers", "Which interests rise, which fade", last_step(facts)
    if step is None:
        return Figure(name, SECTION, title, "", missing="No user was scored by a model: nothing can move.")
    rising, fading = movers(facts, spec.movers)
    rows = [*rising, *reversed(fading)]
    says = (
        f"How far the mean user's share of each interest moves from the latest events to "
        f"{'the days until ' if step > 1 else 'the '}{'day ' + str(step) if step else 'next event'}, in points of a "
        f"percent. The lines are 95 % intervals over {facts.sampled_users:,} users; only moves that are clearly not 0 "
        "are shown."
    )
    if step == NEXT:
        says += f" {_NO_HEADS}"
    if not rows:
        return Figure(name, SECTION, title, says, missing="No interest moves by more than chance.")
    bars = {
        "type": "bar",
        "orientation": "h",
        "y": [short(row["category_id"]) for row in rows],
        "x": [round(row["move"] * 100, 3) for row in rows],
        "error_x": {
            "type": "data",
            "array": [round((row["high"] - row["move"]) * 100, 3) for row in rows],
            "thickness": 1.4,
            "width": 3,
            "color": GREY,
        },
        "marker": {
            "color": [BLUE if row["move"] > 0 else RED for row in rows],
            "pattern": {"shape": ["" if row["move"] > 0 else "/" for row in rows]},
        },
        "hovertemplate": "%{y}: %{x:+.2f} points<extra></extra>",
    }
    layout = {
        "xaxis": {"title": {"text": "change of share, percentage points"}, "zeroline": True},
        "yaxis": {"autorange": "reversed", "automargin": True},
        "showlegend": False,
    }
    columns = ("interest", "share before", "share then", "change, points", "95 % interval", "users who list it")
    table = [
        (
            row["category_id"], percent(row["share"] - row["move"], 2), percent(row["share"], 2),
            f"{row['move'] * 100:+.2f}", f"{row['low'] * 100:+.2f} to {row['high'] * 100:+.2f}", f"{row['users']:,}",
        )
        for row in rows
    ]  # fmt: skip
    return Figure(name, SECTION, title, says, [bars], layout, columns, table, height=max(260, 60 + 28 * len(rows)))


def flow_figure(facts: ReportFacts) -> Figure:
    """A Sankey of users' main interests."""
    name, title = "flows", "Where users' main interest goes"
    if not facts.flows:
        return Figure(name, SECTION, title, "", missing="No user was scored by a model: there are no flows.")
    nodes: dict[tuple[int, str], int] = {}
    position = {step: at for at, step in enumerate(facts.route)}
    weight: dict[tuple[int, str], int] = {}
    for row in facts.flows:
        weight[row["step"], row["from"]] = weight.get((row["step"], row["from"]), 0) + row["users"]
        after = facts.route[position[row["step"]] + 1]
        if after == facts.route[-1]:
            weight[after, row["to"]] = weight.get((after, row["to"]), 0) + row["users"]
    for key in sorted(weight, key=lambda k: (position[k[0]], k[1] == OTHERS, -weight[k], k[1])):
        nodes[key] = len(nodes)
    names = list(dict.fromkeys(node[1] for node in nodes))
    colour = {n: GREY if n == OTHERS else PALETTE[i % (len(PALETTE) - 1)] for i, n in enumerate(names)}
    links = sorted(facts.flows, key=lambda r: (position[r["step"]], -r["users"], r["from"], r["to"]))
    sankey = {
        "type": "sankey",
        "arrangement": "snap",
        "node": {
            "label": [short(label, 16) for _, label in nodes],
            "color": [colour[label] for _, label in nodes],
            "pad": 8,
            "thickness": 14,
            "hovertemplate": "%{label}: %{value:,} users<extra></extra>",
        },
        "link": {
            "source": [nodes[r["step"], r["from"]] for r in links],
            "target": [nodes[facts.route[position[r["step"]] + 1], r["to"]] for r in links],
            "value": [r["users"] for r in links],
            "color": [rgba(colour[r["from"]], 0.35 if r["from"] != r["to"] else 0.18) for r in links],
            "hovertemplate": "%{source.label} → %{target.label}: %{value:,} users<extra></extra>",
        },
    }
    steps = [step_name(step) for step in facts.route]
    notes = [
        {
            "text": f"<b>{text}</b>", "x": i / (len(steps) - 1), "y": 1.0, "yanchor": "bottom", "yshift": 8,
            "xref": "paper", "yref": "paper", "showarrow": False,
            "xanchor": "left" if i == 0 else "right" if i == len(steps) - 1 else "center",
        }
        for i, text in enumerate(steps)
    ]  # fmt: skip
    stays = sum(r["users"] for r in facts.flows if r["from"] == r["to"] and r["step"] == facts.route[0])
    of = sum(r["users"] for r in facts.flows if r["step"] == facts.route[0])
    says = (
        f"Each user counts once, at the interest with the greatest share: {' → '.join(steps)}. From the first step to "
        f"the second, {percent(stays / max(of, 1), 0)} of {of:,} users stay within the same band."
    )
    if max(facts.route) == NEXT:
        says += f" {_NO_HEADS}"
    table = [
        (step_name(r["step"]), r["from"], step_name(facts.route[position[r["step"]] + 1]), r["to"], f"{r['users']:,}")
        for r in links
    ]
    columns = ("at", "main interest", "later", "main interest then", "users")
    layout = {"annotations": notes, "margin": {"l": 8, "r": 8, "t": 40, "b": 12}}
    return Figure(name, SECTION, title, says, [sankey], layout, columns, table, height=560)


def weeks_figure(facts: ReportFacts) -> Figure:
    """Lines of the shares of the past weeks, the forecast with its interval attached."""
    name, title = "weeks", "Interests week by week, and ahead"
    if not facts.weekly:
        return Figure(name, SECTION, title, "", missing="The log holds no categories in the weeks that are looked at.")
    rising, fading = movers(facts, 3)
    past = sorted((r for r in facts.shares if r["step"] == PAST), key=lambda r: (-r["share"], r["category_id"]))
    wanted = [r["category_id"] for r in (*rising, *fading, *past)]
    wanted = list(dict.fromkeys(wanted or [r["category_id"] for r in facts.weekly]))[:6]
    end = date.fromisoformat(facts.date)
    data: list[dict[str, Any]] = []
    table: list[Sequence[Any]] = []
    for i, interest in enumerate(wanted):
        colour, dash = PALETTE[i % 7], DASHES[i // 3 % len(DASHES)]
        weeks = sorted((r for r in facts.weekly if r["category_id"] == interest), key=lambda r: r["week"])
        x = [str(min(r["week"] + timedelta(days=6), end)) for r in weeks]
        y = [round(r["share"] * 100, 3) for r in weeks]
        line = {"color": colour, "width": 2.2}
        group = {"legendgroup": interest, "hovertemplate": f"{interest}, %{{x}}: %{{y:.2f}} %<extra></extra>"}
        data.append({"type": "scatter", "mode": "lines+markers", "name": short(interest), "x": x, "y": y,
                     "line": {**line, "dash": dash}, "marker": {"size": 5}, **group})  # fmt: skip
        ahead = sorted((r for r in facts.shares if r["category_id"] == interest and r["step"] >= NEXT),
                       key=lambda r: r["step"])  # fmt: skip
        fx = [str(end + timedelta(days=max(1, r["step"]))) for r in ahead if r["step"] != 1 or len(ahead) < 3]
        rows = [r for r in ahead if r["step"] != 1 or len(ahead) < 3]
        table += [(interest, "week to " + a, f"{b:.2f} %", "", "seen") for a, b in zip(x, y, strict=True)]
        table += [
            (interest, step_name(r["step"]), percent(r["share"], 2),
             f"{percent(r['share_low'], 2)} to {percent(r['share_high'], 2)}", "forecast")
            for r in rows
        ]  # fmt: skip
        if not rows:
            continue
        low, high = ([round(r[k] * 100, 3) for r in rows] for k in ("share_low", "share_high"))
        first = [x[-1]] if x else []
        start = [y[-1]] if y else []
        data.append({"type": "scatter", "mode": "lines", "x": [*first, *fx, *reversed(fx), *first],
                     "y": [*start, *high, *reversed(low), *start], "fill": "toself", "line": {"width": 0},
                     "fillcolor": rgba(colour, 0.2), "showlegend": False, "hoverinfo": "skip",
                     "legendgroup": interest})  # fmt: skip
        data.append({"type": "scatter", "mode": "lines+markers", "x": [*first, *fx],
                     "y": [*start, *(round(r["share"] * 100, 3) for r in rows)], "showlegend": False,
                     "marker": {"symbol": "circle-open", "size": 8}, "line": {**line, "dash": "dot"},
                     **group})  # fmt: skip
    layout = {
        "yaxis": {"title": {"text": "share of the mean user, %"}, "rangemode": "tozero"},
        "xaxis": {"type": "date"},
        "shapes": [{"type": "line", "x0": str(end), "x1": str(end), "yref": "paper", "y0": 0, "y1": 1,
                    "line": {"dash": "dot", "width": 1.2, "color": GREY}}],
        "annotations": [{"x": str(end), "y": 1, "yref": "paper", "yanchor": "bottom", "text": "now",
                         "showarrow": False}],
        "legend": {"orientation": "h", "y": -0.18},
    }  # fmt: skip
    says = (
        "The interests that move most: filled points are weeks of the log, open ones what the model expects. The band "
        "is the 95 % interval of the mean over users; it holds no error of the model itself. The first and last week "
        "may be cut short."
    )
    if all(r["step"] <= NEXT for r in facts.shares):
        says += f" {_NO_HEADS}"
    return Figure(name, SECTION, title, says, data, layout, ("interest", "when", "share", "95 % interval", "kind"),
                  table, height=440)  # fmt: skip


def hours_figure(facts: ReportFacts) -> Figure:
    """A heat map of the hours of the week."""
    name, title = "hours", "When people are active"
    counts = {int(row["hour"]): int(row["count"]) for row in facts.hours}
    if not counts:
        return Figure(name, SECTION, title, "", missing="The log holds no events in the weeks that are looked at.")
    grid = [[counts.get(day * 24 + hour, 0) for hour in range(24)] for day in range(7)]
    heat = {
        "type": "heatmap",
        "z": grid,
        "x": [f"{hour:02d}" for hour in range(24)],
        "y": list(_DAYS),
        "colorscale": SCALE,
        "xgap": 1,
        "ygap": 1,
        "hovertemplate": "%{y} %{x}:00 UTC: %{z:,} events<extra></extra>",
        "colorbar": {"title": {"text": "events"}, "thickness": 10},
    }
    best = max(counts, key=lambda hour: (counts[hour], -hour))
    says = (
        f"Events by hour of the week (UTC) over the last {facts.weeks} calendar weeks. The "
        f"busiest hour begins on {_DAYS[best // 24]} at {best % 24:02d}:00."
    )
    hours = {"title": {"text": "hour of the day, UTC"}, "type": "category", "dtick": 3}
    layout = {"yaxis": {"autorange": "reversed"}, "xaxis": hours}
    rows = [(day, *(f"{n:,}" for n in line)) for day, line in zip(_DAYS, grid, strict=True)]
    columns = ("", *(f"{hour:02d}" for hour in range(24)))
    return Figure(name, SECTION, title, says, [heat], layout, columns, rows, height=300)
