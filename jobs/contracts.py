"""docs/contracts.md from the schemas in features/contracts.py; `--check` says whether it is current."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pyspark.sql import types as T

from features.contracts import CONTRACTS, Contract
from jobs.cli import run_job, say

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "contracts.md"

_HEAD = """\
# Contracts

<!-- Generated from features/contracts.py by `python -m jobs.contracts`; do not edit. -->

Every table lies in `<root>/<table>/dt=YYYY-MM-DD/` as Parquet. `dt` is the UTC day of the run; the run for day D uses
nothing at or after its cutoff, the midnight that ends D. All times are UTC with microseconds. The name of a table
carries its version: an incompatible change is a new name. Columns marked "no" under *null* never hold null.

L is `sequences.length` and K the `top_k_*` of `scoring`, both from the configuration and repeated in the manifest.
Ids 0 (padding) and 1 (unknown) are reserved in every vocabulary.
"""

_MANIFEST = """\
## The manifest

Each partition holds `_MANIFEST.json`, written last. A partition without one is unfinished and no stage reads it; one
whose files or schema differ from its manifest is refused by name.

| key | meaning |
|---|---|
| `table`, `dt` | which partition this is |
| `schema_hash` | hash of names, types and nullability of the columns, in order |
| `rows`, `row_groups` | totals over all files |
| `min_time`, `max_time` | range of the table's main time column, where it has one; ISO 8601 |
| `counters` | what the stage counted: kept, rejected by reason, rows by split, … |
| `inputs` | the manifest hash of every partition it was made from, or the bytes of a raw file |
| `config_hash` | hash of the configuration sections the stage depends on |
| `code_version` | hash of the project's source |
| `files` | path, bytes and rows of every data file; of scores and states `crc32`, which the next night compares |

The identity of a partition ("manifest hash") covers everything but `files`, whose names differ from run to run.
"""


def document() -> str:
    """The whole page."""
    return "\n".join([_HEAD, *(_section(contract) for contract in CONTRACTS), _MANIFEST])


def _section(contract: Contract) -> str:
    key = ", ".join(f"`{name}`" for name in contract.key) or "none"
    lines = [
        f"## {contract.name}",
        "",
        contract.row,
        "",
        f"Key: {key}. Schema hash: `{contract.schema_hash}`.",
        "",
        "| column | type | null | meaning |",
        "|---|---|---|---|",
        *_rows(contract.schema),
        "",
    ]
    return "\n".join(lines)


def _rows(struct: T.StructType, prefix: str = "") -> Iterator[str]:
    """One table row for each field; the fields of a list of structs follow it as `list[].field`."""
    for field in struct.fields:
        name = f"{prefix}{field.name}"
        nullable = "yes" if field.nullable else "no"
        yield f"| `{name}` | {_type_name(field.dataType)} | {nullable} | {field.metadata.get('comment', '')} |"
        if isinstance(field.dataType, T.ArrayType) and isinstance(field.dataType.elementType, T.StructType):
            yield from _rows(field.dataType.elementType, f"{name}[].")


def _type_name(kind: T.DataType) -> str:
    if isinstance(kind, T.ArrayType):
        return f"list of {_type_name(kind.elementType)}"
    return "struct" if isinstance(kind, T.StructType) else kind.simpleString()


def main(argv: Sequence[str]) -> int:
    """Write the page, or with --check exit 1 where the written one is stale."""
    parser = argparse.ArgumentParser(prog="python -m jobs.contracts", description="Write docs/contracts.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when the page is stale")
    parser.add_argument("--debug", action="store_true", help="show the stack trace of an error")

    def work(arguments: argparse.Namespace) -> None:
        if not arguments.check:
            DOCUMENT.write_text(document(), encoding="utf-8")
            say(f"Wrote {DOCUMENT}.")
        elif not DOCUMENT.exists() or DOCUMENT.read_text(encoding="utf-8") != document():
            raise RuntimeError(f"{DOCUMENT} does not match features/contracts.py. Run python -m jobs.contracts.")

    return run_job(work, parser, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
