"""Files of a layer of sequences."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features import columns as c
from jobs.bucket_files import write_sequences

SINCE = 1_000


@pytest.mark.parametrize("times", [[999, 1_000, 5, 1_001], [1, 2], [1_000], []])
def test_users_heard_of_last_lie_in_a_row_group_of_their_own(tmp_path: Path, times: list[int]) -> None:
    """So that the next night, which asks for them alone, reads no other."""
    rows = pa.table(
        {c.USER_ID: [f"u{at}" for at in times], c.LAST_TIME: pa.array(times, pa.timestamp("us", tz="UTC"))},
        schema=pa.schema([(c.USER_ID, pa.string()), (c.LAST_TIME, pa.timestamp("us", tz="UTC"))]),
    )
    write_sequences(rows, str(tmp_path / "rows.parquet"), SINCE)
    file = pq.ParquetFile(tmp_path / "rows.parquet")
    groups = [file.read_row_group(k)[c.LAST_TIME].cast(pa.int64()).to_pylist() for k in range(file.num_row_groups)]
    expected = [[at for at in times if at >= SINCE], [at for at in times if at < SINCE]]
    assert groups == [part for part in expected if part]
    assert sorted(file.read().to_pylist(), key=str) == sorted(rows.to_pylist(), key=str)
