"""A day's tables as jobs.train reads them: published as the stages before do it."""

from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from features import columns as c
from features.contracts import TRAINING_SEQUENCES, VOCABULARY
from jobs.store import Lineage, Store
from tests.model import tables

CODING = {
    "length": tables.LENGTH,
    "gap_edges_s": list(tables.SIZES.gap_edges_s),
    "new_session_gap": 5,
    "horizons_days": [1, 2],
}


def write_day(root: Path, day: date) -> str:
    """training_sequences_v1 and vocabulary_v1 of a day, 200 rows to train on; returns the root."""
    store = Store(str(root))
    staged = Path(store.staging(VOCABULARY.name, day))
    staged.mkdir(parents=True)
    rows = [(c.KIND_ITEM, f"item {k}", c.FIRST_ID + k, 9) for k in range(tables.N_ITEMS)]
    rows += [(c.KIND_CATEGORY, f"category {k}", c.FIRST_ID + k, 9) for k in range(tables.N_CATEGORIES)]
    columns = zip(VOCABULARY.schema.names, zip(*rows, strict=True), strict=True)
    pq.write_table(pa.table({name: list(values) for name, values in columns}), staged / "part-0.parquet")
    vocabulary = store.publish(VOCABULARY, day, str(staged), Lineage({}, "config"))

    staged = Path(store.staging(TRAINING_SEQUENCES.name, day))
    for seed, (split, n_rows) in enumerate(((c.TRAIN, 200), (c.VALID, 40), (c.TEST, 40))):
        tables.write_split(staged / f"{c.SPLIT}={split}", tables.ruled_rows(n_rows, seed), groups=2)
    lineage = Lineage({f"{VOCABULARY.name}/{day}": vocabulary.hash}, "config", CODING)
    store.publish(TRAINING_SEQUENCES, day, str(staged), lineage)
    return str(root)
