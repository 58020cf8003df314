"""The page of a report: facts and figures put into the files of jobs/report_page/."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from string import Template
from typing import Any

from features.rungs import CATEGORY_POPULARITY, COVISITATION, FROM_MODEL, FROM_POPULARITY, SHORT_HISTORY
from jobs.evaluation_models import MODEL
from jobs.report_facts import ReportFacts
from jobs.report_figure import Figure, percent, step_name
from jobs.report_interests import last_step, movers
from jobs.report_pipeline import REASONS, refused

_LESS_IS_BETTER = ("cross_entropy", "brier", "log_loss", "jensen_shannon", "perplexity")
_MINUS = "\N{MINUS SIGN}"
_BY = {
    FROM_MODEL: "by the model",
    SHORT_HISTORY: "by the model, of a short history",
    COVISITATION: "by what others did in one session with theirs",
    CATEGORY_POPULARITY: "by what is popular in their categories",
    FROM_POPULARITY: "by what is popular",
}


def page(facts: ReportFacts, figures: Sequence[Figure], plotly_js: str) -> str:
    """One self-contained HTML file."""
    files = resources.files("jobs").joinpath("report_page")
    read = {name: files.joinpath(name).read_text(encoding="utf-8") for name in ("page.html", "page.css", "page.js")}
    drawn = {f.name: {"data": f.data, "layout": f.layout, "height": f.height} for f in figures if not f.missing}
    data = {"figures": drawn, "people": facts.people, "samples": facts.samples}
    sections = {section: "\n".join(_figure(f) for f in figures if f.section == section)
                for section in ("night", "interests", "model", "pipeline")}  # fmt: skip
    return Template(read["page.html"]).substitute(
        date=escape(facts.date),
        model=escape(facts.night.model_version),
        css=read["page.css"],
        js=read["page.js"],
        plotly=plotly_js,
        data=json.dumps(data, separators=(",", ":"), default=str).replace("</", "<\\/"),
        answers="\n".join(answers(facts)),
        tiles=_tiles(facts),
        checks=_checks(facts),
        gate=_gate(facts),
        missing=_list(facts.night.missing),
        future=_future(facts),
        people_note=_people_note(facts),
        user_names="".join(f'<option value="{escape(str(p["user"]))}">' for p in facts.people),
        reasons=_reasons(facts),
        night=sections["night"],
        interests=sections["interests"],
        model_figures=sections["model"],
        pipeline=sections["pipeline"],
    )


def answers(facts: ReportFacts) -> list[str]:
    """The cards of the first screen: what rises, whether the model is good, what was refused, how the night went."""
    return [_rises(facts), _is_good(facts), _was_refused(facts), _went(facts)]


def _card(question: str, answer: str, lines: Sequence[str], where: str, tone: str = "") -> str:
    said = "".join(f"<li>{line}</li>" for line in lines)
    return (
        f'<article class="card {tone}"><h2>{escape(question)}</h2><p class="answer">{answer}</p><ul>{said}</ul>'
        f'<p class="more"><a href="#{where}">See how</a></p></article>'
    )


def _rises(facts: ReportFacts) -> str:
    rising, fading = movers(facts, 3)
    step = last_step(facts)
    if step is None:
        return _card("Which interests rise?", "Not known", ["No user was scored by a model."], "interests")

    def line(row: Mapping[str, Any]) -> str:
        sign = "▲ +" if row["move"] > 0 else f"▼ {_MINUS}"
        low, high = (f"{row[k] * 100:+.2f}".replace("-", _MINUS) for k in ("low", "high"))
        return (
            f"<b>{escape(row['category_id'])}</b> {sign}{abs(row['move']) * 100:.2f} points <small>[{low}, {high}], to "
            f"{percent(row['share'])}</small>"
        )

    if not rising and not fading:
        return _card("Which interests rise?", "None clearly", ["No move is larger than chance."], "interests")
    head = escape(rising[0]["category_id"]) if rising else "None clearly"
    lines = [line(row) for row in (*rising, *fading)] + [f"Share of the mean user, latest events → {step_name(step)}."]
    return _card("Which interests rise?", head, lines, "interests")


def _is_good(facts: ReportFacts) -> str:
    question = "Is the model better than something simple?"
    heads = facts.quality.get("headlines", [])
    if not heads:
        return _card(question, "Not known", ["No evaluation of this root up to this day."], "model")

    def verdict(head: Mapping[str, Any]) -> str:
        return "Yes" if head["low"] > 0 else "No" if head["high"] < 0 else "No clear difference"

    lines = []
    for head in heads:
        line = (
            f"Next {head['target']}: <b>{verdict(head)}</b>, NDCG@{head['k']} {head[MODEL]:.3f} against "
            f"{head['baseline']:.3f} of “{escape(head['best_baseline'])}” <small>({head['difference']:+.3f} "
            f"[{head['low']:+.3f}, {head['high']:+.3f}])</small>"
        )
        if head.get("share_of_gap") is not None:
            line += f"; {percent(head['share_of_gap'], 0)} of the way to the best possible"
        lines.append(line)
    said = {verdict(head) for head in heads}
    answer = said.pop() if len(said) == 1 else "Partly"
    when = facts.quality["date"]
    lines.append(f"Judged on held-out events of {when}." + ("" if when == facts.date else " Not trained since."))
    return _card(question, answer, lines, "model", {"Yes": "good", "No": "bad"}.get(answer, "so-so"))


def _was_refused(facts: ReportFacts) -> str:
    n, found = facts.night.counters, refused(facts.night.counters)
    read = int(n.get("rows_read", 0))
    total = sum(found.values())
    share = total / max(read, 1)
    lines = [f"<b>{count:,}</b> {escape(REASONS.get(reason, reason))} <small>({escape(reason)})</small>"
             for reason, count in list(found.items())[:4]]  # fmt: skip
    rest = sum(list(found.values())[4:])
    lines += [f"<b>{rest:,}</b> for {len(found) - 4} other reasons"] if rest else []
    lines.append(f"{total:,} of {read:,} rows; {int(n.get('duplicates', 0)):,} further exact copies counted once.")
    return _card("What was rejected, and why?", f"{percent(share)} of the rows", lines, "pipeline")


def _rungs(facts: ReportFacts) -> list[tuple[str, int]]:
    """Provenances of the rows, most frequent first."""
    return sorted(facts.provenance.items(), key=lambda pair: -pair[1])


def _by(rung: str) -> str:
    return _BY.get(rung, f"by {rung}")


def _went(facts: ReportFacts) -> str:
    bad = [check for check in facts.night.checks if not check["good"]]
    gate = facts.night.gate
    answer = f"{facts.night.users:,} users scored"
    where = "; ".join(f"{n:,} {escape(_by(rung))}" for rung, n in _rungs(facts))
    lines = [f"Where from: {where}.", f"Model <code>{escape(facts.night.model_version)}</code>."]
    if gate:
        lines.append(f"Gate: <b>{'passed' if gate['passed'] else 'not passed'}</b>.")
    else:
        lines.append("Gate: no decision of this day.")
    lines.append(
        f"Log: {len(facts.night.checks)} check{'' if len(facts.night.checks) == 1 else 's'}, "
        + (f"<b>broken: {escape(', '.join(str(check['check']) for check in bad))}</b>." if bad else "all held.")
    )
    tone = "bad" if bad or (gate and not gate["passed"]) else "good"
    return _card("How did the night go?", answer, lines, "night", tone)


def _tiles(facts: ReportFacts) -> str:
    night = facts.night
    seconds = sum(s for _, s, _ in night.stages)
    tiles = [
        (f"{night.users:,}", "users scored"),
        *((f"{n:,}", _by(rung)) for rung, n in _rungs(facts)),
        (f"{int(night.counters.get('rows_read', 0)):,}", "rows of log read"),
        (f"{night.sessions:,}", "sessions finished"),
        (f"{seconds:,.0f} s" if night.stages else "–", "all stages"),
    ]
    return "".join(f"<div><b>{escape(n)}</b><span>{escape(what)}</span></div>" for n, what in tiles)


def _checks(facts: ReportFacts) -> str:
    rows = []
    for check in facts.night.checks:
        bounds = [f"at least {check['low']:g}" if check["low"] is not None else "",
                  f"at most {check['high']:g}" if check["high"] is not None else ""]  # fmt: skip
        rows.append((
            str(check["check"]).replace("_", " "), f"{check['value']:.4g}", " and ".join(b for b in bounds if b),
            "✓ held" if check["good"] else "✗ broken",
        ))  # fmt: skip
    return _table(("check of the log", "value", "allowed", "result"), rows)


def _gate(facts: ReportFacts) -> str:
    gate = facts.night.gate
    if not gate:
        why = facts.night.training
        return f"<p>No decision of this day{f': training {escape(why)}' if why else ''}.</p>"
    rows = [
        (check["name"].replace("_", " "), f"{check['value']:.4g}", f"{check['threshold']:.4g}", check["what"],
         "✓ held" if check["passed"] else "✗ broken")
        for check in gate["checks"]
    ]  # fmt: skip
    who = f"Challenger <code>{escape(gate['challenger'])}</code> against " + (
        f"<code>{escape(gate['champion'])}</code>" if gate.get("champion") else "nothing: there was no model before"
    )
    verdict = "passed" if gate["passed"] else "not passed"
    table = _table(("check", "value", "threshold", "what it is", "result"), rows)
    return f"<p>{who}: <b>{verdict}</b>.</p>{table}"


def _future(facts: ReportFacts) -> str:
    heads = facts.quality.get("future_headlines", [])
    if not heads:
        return "<p>The last evaluation judges no days ahead.</p>"
    rows = []
    for head in heads:
        best = head.get("best_baseline", "")
        interval = f"{head['low']:+.4f} to {head['high']:+.4f}" if head.get("low") is not None else ""
        rows.append((
            str(head["target"]).replace("_", " "), str(head["metric"]).replace("_", " "), best,
            f"{head['difference']:+.4f}" if head.get("difference") is not None else "", interval, _better(head),
        ))  # fmt: skip
    return _table(("what", "metric", "best simple row", "model minus it", "95 % interval", "the model is"), rows)


def _better(head: Mapping[str, Any]) -> str:
    """Whether the interval of a difference says so, by the direction of its metric."""
    if head.get("low") is None:
        return ""
    low, high = (head["low"], head["high"]) if head["metric"] not in _LESS_IS_BETTER else (-head["high"], -head["low"])
    return "✓ better" if low > 0 else "✗ worse" if high < 0 else "about equal"


def _people_note(facts: ReportFacts) -> str:
    notes = " ".join(escape(note) for note in facts.notes)
    return (
        f"A sample: {len(facts.people):,} of {facts.night.users:,} users, half of them those whose interests move "
        f"most. The number is <code>report.people</code>. {notes}"
    )


def _reasons(facts: ReportFacts) -> str:
    found = refused(facts.night.counters)
    return "".join(
        f'<button type="button" class="reason" aria-expanded="false" data-reason="{escape(reason)}">{escape(reason)} '
        f"<b>{count:,}</b><small>{escape(REASONS.get(reason, ''))}</small></button>"
        for reason, count in found.items()
    )


def _figure(figure: Figure) -> str:
    head = f'<figure id="figure-{figure.name}"><figcaption><h3>{escape(figure.title)}</h3>'
    if figure.missing:
        return f'{head}</figcaption><p class="missing">{escape(figure.missing)} {escape(figure.says)}</p></figure>'
    spoken = escape(f"{figure.title}. {figure.says} The table below holds the numbers.")
    return (
        f'{head}<p>{escape(figure.says)}</p></figcaption><div class="plot" id="plot-{figure.name}" role="img" '
        f'data-figure="{figure.name}" style="height:{figure.height}px" aria-label="{spoken}"></div>'
        f"<details><summary>Table: {escape(figure.title)}</summary>{_table(figure.columns, figure.rows)}</details>"
        "</figure>"
    )


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    head = "".join(f'<th scope="col">{escape(str(name))}</th>' for name in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="table"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _list(lines: Sequence[str]) -> str:
    if not lines:
        return ""
    said = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<div class="missing"><p>Not on record here:</p><ul>{said}</ul></div>'
