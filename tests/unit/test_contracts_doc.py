"""docs/contracts.md is what features/contracts.py says."""

from pathlib import Path

import pytest

from features.contracts import CONTRACTS
from jobs import contracts


def test_the_page_in_the_repository_is_current(capsys: pytest.CaptureFixture[str]) -> None:
    assert contracts.main(["--check"]) == 0, capsys.readouterr().err


def test_a_stale_or_missing_page_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "contracts.md"
    monkeypatch.setattr(contracts, "DOCUMENT", page)
    assert contracts.main(["--check"]) == 1
    assert not page.exists()
    assert contracts.main([]) == 0
    assert contracts.main(["--check"]) == 0
    page.write_text(page.read_text().replace("what was acted on", "something else"))
    assert contracts.main(["--check"]) == 1
    assert "Run python -m jobs.contracts" in capsys.readouterr().err


def test_every_table_and_column_is_on_the_page_with_its_meaning() -> None:
    page = contracts.document()
    for contract in CONTRACTS:
        assert f"## {contract.name}\n\n{contract.row}\n" in page
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) > sum(len(contract.schema) for contract in CONTRACTS)
    assert "| `interests[].trend` | string | no | new, rising, steady or fading against that share |" in rows
    assert [line for line in rows if line.endswith("|  |")] == []
