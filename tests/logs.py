"""Small logs for tests: a base row with overrides, written as the files a user would bring."""

from datetime import UTC, datetime
from pathlib import Path

from features.sources import SourceMap

SOURCE = SourceMap(
    format="csv",
    columns={"user_id": "user", "item_id": "item", "category_id": "category", "action": "what", "event_time": "when"},
    time_unit="s",
    actions={"pv": "view", "fav": "like", "order": "buy"},
)
HEADER = "user,item,category,what,when"


def at(text: str) -> int:
    """Seconds since 1970 of `YYYY-MM-DD HH:MM[:SS]` UTC."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


def line(
    user: str = "ann", item: str = "i1", category: str = "c1", what: str = "pv", when: str = "2024-03-01 12:00"
) -> str:
    """One row of the log; `when` is a time, or the raw text of the field where it is none."""
    seconds = at(when) if when[:2].isdigit() and "-" in when else when
    return f"{user},{item},{category},{what},{seconds}"


def write_log(path: Path, *lines: str, header: str = HEADER) -> str:
    """Write a CSV log; returns its path as text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *lines]) + "\n")
    return str(path)
