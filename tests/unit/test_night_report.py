"""A report that can't be made leaves the night as it is."""

from argparse import Namespace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from jobs import night
from jobs.settings import load_settings
from jobs.steps import FAILED, Steps
from jobs.store import Store


def test_a_failed_report_is_said_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: Any) -> str:
        raise OSError("no space left")

    monkeypatch.setattr(night, "report", fails)
    monkeypatch.setattr(night.Night, "spark", None)
    tonight = night.Night.__new__(night.Night)  # no source, no log: only what the step asks for
    tonight.store, tonight.date, tonight.settings = Store(str(tmp_path)), date(2024, 3, 2), load_settings()
    tonight.arguments, tonight.metrics = Namespace(root=str(tmp_path)), {}
    tonight.steps = Steps(tonight.store, tonight.date)
    tonight._report()
    assert [(run.name, run.status) for run in tonight.steps.runs] == [("report", FAILED)]
    assert tonight.metrics["report"] == "not made: no space left"
    assert "the scores stay published" in capsys.readouterr().err
