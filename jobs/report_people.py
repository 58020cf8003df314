"""A sample of users for the report: what they did, what they like now and next, and what speaks for each item."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date
from itertools import islice
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from features import columns as c
from features.contracts import ContractError
from jobs.explanations import EventEffect, explain_users
from jobs.settings import Settings, UsageError
from jobs.store import Store
from jobs.words import most_moved
from model.errors import ModelError

_MOVED_SHARE = 0.5  # of the people shown, those whose interests moved most; the others by a hash of their id
_RELATED = 3
_SHOWN_EFFECTS = 5
_SHOWN_CATEGORIES = 3

Row = Mapping[str, Any]


def people_facts(
    spark: SparkSession, settings: Settings, store: Store, dt: date, scores: DataFrame, events: DataFrame
) -> tuple[list[Mapping[str, Any]], list[str]]:
    """(people, notes). scores and events: the users that the report looks at."""
    spec = settings.report
    if not spec.people:
        return [], []
    n_moved = max(1, int(spec.people * _MOVED_SHARE))
    chosen = {row[c.USER_ID]: row.asDict(recursive=True) for row in most_moved(scores).limit(n_moved).collect()}
    further = scores.orderBy(F.xxhash64(c.USER_ID), c.USER_ID).limit(spec.people).collect()
    for row in further:
        if len(chosen) < spec.people:
            chosen.setdefault(row[c.USER_ID], row.asDict(recursive=True))
    users = sorted(chosen)
    mine = _events_of(events, users)
    timeline = {user: sessions_of(mine[user], settings.sessions.gap_s) for user in users}
    related = _related(events, mine, chosen)
    moved, why = _moved(spark, settings, store, dt, users)
    people: list[Mapping[str, Any]] = [
        {
            "user": user,
            "provenance": chosen[user][c.PROVENANCE],
            "interests": [_interest(entry) for entry in chosen[user][c.INTERESTS]],
            "items": [
                {
                    "item": item[c.ITEM_ID],
                    "p": round(item[c.PROBABILITY], 4),
                    "why": related.get((user, item[c.ITEM_ID]), []),
                }
                for item in chosen[user][c.ITEMS]
            ],
            "sessions": timeline[user][-spec.sessions_per_person :],
            "n_sessions": len(timeline[user]),
            "moved": moved.get(user),
            "outlook": _outlook(chosen[user]),
        }
        for user in users
    ]
    notes = [f"What moved the scores is not told: {why}"] if why else []
    return people, notes


def _moved(
    spark: SparkSession, settings: Settings, store: Store, dt: date, users: list[str]
) -> tuple[dict[str, dict[str, Any]], str]:
    """For each user the events that moved interest and item most, and why that is not known, where it isn't."""
    try:
        told = explain_users(spark, settings, store, dt, users, n_months=0)
    except (ContractError, ModelError, UsageError) as error:
        return {}, str(error)
    return {
        user: {
            "interest": found.interest[c.CATEGORY_ID] if found.interest else "",
            "item": found.item[c.ITEM_ID] if found.item else "",
            "by_interest": _effects([(e, e.interest_effect) for e in found.events]),
            "by_item": _effects([(e, e.item_effect) for e in found.events]),
            "read": len(found.events),
        }
        for user, found in told.items()
    }, ""


def _effects(effects: Sequence[tuple[EventEffect, float | None]]) -> list[list[Any]]:
    """[event in words, factor on the probability], the largest first."""
    known = [(event, effect) for event, effect in effects if effect is not None]
    known.sort(key=lambda entry: (-abs(entry[1]), entry[0].event_time))
    return [[_in_words(event), round(math.exp(effect), 2)] for event, effect in known[:_SHOWN_EFFECTS]]


def _in_words(event: EventEffect) -> str:
    category = f" ({event.category_id})" if event.category_id else ""
    return f"{event.event_time[:16].replace('T', ' ')} {event.action} {event.item_id}{category}"


def _outlook(row: Mapping[str, Any]) -> list[str]:
    """What the row says of the return and the next session, in words; nothing where the model has no such heads."""
    said = [f"back within {b[c.HOURS]} h: {b[c.PROBABILITY]:.0%}" for b in row[c.BACK]]
    days = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
    hours = [f"{days[b[c.HOUR] // 24]} {b[c.HOUR] % 24:02d}:00" for b in row[c.BEST_HOURS][:3]]
    said += [f"likeliest hours (UTC): {', '.join(hours)}"] if hours else []
    actions = [f"{a[c.ACTION]} {a[c.PROBABILITY]:.0%}" for a in row[c.NEXT_ACTIONS]]
    said += [f"the next session holds {', '.join(actions)}"] if actions else []
    if row[c.CONTACTS_PER_WEEK] is not None:
        said.append(f"contacts a week that are worth it: {row[c.CONTACTS_PER_WEEK]:.1f}")
    if row[c.DRIFT] is not None:
        said.append(f"drift {row[c.DRIFT]:.2f} (0 = interests stay as they were)")
    return said


def _interest(entry: Mapping[str, Any]) -> dict[str, Any]:
    ahead = {str(a[c.DAYS]): round(a[c.SHARE], 4) for a in entry[c.DAYS_AHEAD] if a[c.SHARE] is not None}
    return {
        "name": entry[c.CATEGORY_ID],
        "past": round(entry[c.PAST_SHARE], 4),
        "next": round(entry[c.PROBABILITY], 4),
        "trend": entry[c.TREND],
        "ahead": ahead,
    }


def _events_of(events: DataFrame, users: Sequence[str]) -> dict[str, list[Row]]:
    """Each user's events, oldest first."""
    found: dict[str, list[Row]] = {user: [] for user in users}
    names = (c.USER_ID, c.EVENT_TIME, c.EVENT_ID, c.ITEM_ID, c.CATEGORY_ID, c.ACTION)
    for row in events.where(F.col(c.USER_ID).isin(list(users))).select(*names).collect():
        found[row[c.USER_ID]].append(row.asDict())
    for of_user in found.values():
        of_user.sort(key=lambda row: (row[c.EVENT_TIME], row[c.EVENT_ID]))
    return found


def sessions_of(events: Sequence[Row], gap_s: int) -> list[dict[str, Any]]:
    """Sessions of one user, for a timeline: {start, n, categories: the three most frequent, actions: distinct ones}.

    events: of `flat_events`, oldest first; a silence beyond gap_s starts a session.
    """
    sessions: list[list[Row]] = []
    for event in events:
        is_same = sessions and (event[c.EVENT_TIME] - sessions[-1][-1][c.EVENT_TIME]).total_seconds() <= gap_s
        if is_same:
            sessions[-1].append(event)
        else:
            sessions.append([event])
    told = []
    for session in sessions:
        counts = Counter(event[c.CATEGORY_ID] or "" for event in session)
        told.append(
            {
                "start": session[0][c.EVENT_TIME].isoformat(timespec="minutes"),
                "n": len(session),
                "categories": sorted(counts, key=lambda name: (-counts[name], name))[:_SHOWN_CATEGORIES],
                "actions": sorted({event[c.ACTION] for event in session}),
            }
        )
    return told


def _related(
    events: DataFrame, mine: Mapping[str, Sequence[Row]], chosen: Mapping[str, Row]
) -> dict[tuple[str, str], list[str]]:
    """The user's latest events with an item or in its category, for each listed item."""
    listed = sorted({item[c.ITEM_ID] for row in chosen.values() for item in row[c.ITEMS]})
    newest = F.max(F.struct(c.EVENT_TIME, c.EVENT_ID, c.CATEGORY_ID))[c.CATEGORY_ID]
    seen = events.where(F.col(c.ITEM_ID).isin(listed)).groupBy(c.ITEM_ID).agg(newest.alias(c.CATEGORY_ID))
    category = {row[c.ITEM_ID]: row[c.CATEGORY_ID] for row in seen.collect()} if listed else {}
    found: dict[tuple[str, str], list[str]] = {}
    for user, row in chosen.items():
        for item in (entry[c.ITEM_ID] for entry in row[c.ITEMS]):
            of = category.get(item)
            near = (e for e in reversed(mine[user]) if item == e[c.ITEM_ID] or (of and of == e[c.CATEGORY_ID]))
            found[user, item] = [
                f"{e[c.EVENT_TIME]:%Y-%m-%d %H:%M} {e[c.ACTION]} {e[c.ITEM_ID]}" for e in islice(near, _RELATED)
            ]
    return found
