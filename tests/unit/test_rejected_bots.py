"""Events of bots as they stand among the rejected rows: each whole, as JSON."""

import json
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyspark.sql.pandas.types import to_arrow_schema

from features import columns as c
from features import denoising
from features.contracts import HELD_EVENTS, REJECTED_EVENTS
from features.denoising import rejected_as_bot

SCHEMA = to_arrow_schema(HELD_EVENTS.schema)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=5) | st.sampled_from(
    ['"', "\\", "\n", "\u2028", "é"]
)
TIMES = st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))
EVENTS = st.fixed_dictionaries(
    {
        c.USER_ID: TEXTS,
        c.EVENT_ID: st.integers(-(1 << 63), (1 << 63) - 1),
        c.ITEM_ID: TEXTS,
        c.CATEGORY_ID: st.none() | TEXTS,
        c.ACTION: st.sampled_from(c.ACTIONS),
        c.EVENT_TIME: TIMES,
    }
)


def as_json(event: dict[str, Any]) -> str:
    """One at a time, by Python's own writer."""
    names = [name for name in SCHEMA.names if name != c.EVENT_TIME and event[name] is not None]
    row = {name: event[name] for name in names}
    row[c.EVENT_TIME] = f"{event[c.EVENT_TIME].replace(tzinfo=None).isoformat(timespec='microseconds')}Z"
    return json.dumps(row, ensure_ascii=False, separators=(",", ":"))


@given(st.lists(EVENTS, max_size=6), st.integers(1, 4))
def test_each_is_the_json_that_python_writes_of_it(events: list[dict[str, Any]], batch_rows: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(denoising, "_BATCH_ROWS", batch_rows)
        found = rejected_as_bot(pa.Table.from_pylist(events, schema=SCHEMA))
    assert found.schema == to_arrow_schema(REJECTED_EVENTS.schema)
    assert found.to_pylist() == [{c.REASON: "bot", c.RAW: as_json(event)} for event in events]
