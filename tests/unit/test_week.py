"""Nights one after another: which days, from where on, and what follows a night that stops."""

import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from features.contracts import ContractError
from jobs import week
from jobs.settings import load_settings
from jobs.simulate import RAW, TRUTH_FILE

DAYS = load_settings([str(week.DEMO_CONF)]).simulation.days
Ran = list[tuple[str, str, bool, int]]  # of each night: date, first day read, whether nothing is carried over, training


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Ran:
    """Nights that do nothing but the second one, which stops; what each was asked."""
    asked: Ran = []

    class Asked:
        def __init__(self, arguments: Any, _accepted: frozenset[str], first: date) -> None:
            often = load_settings(arguments.conf, arguments.set).nightly.train_every_days
            asked.append((str(arguments.date), str(first), arguments.bootstrap, often))
            steps = [{"name": "train"}] if arguments.bootstrap else []
            self.metrics = {"date": str(arguments.date), "steps": steps, "seconds": 1.0, "outcome": "done"}

        def go(self) -> None:
            if len(asked) == 2:
                self.metrics["outcome"] = "stopped"
                raise ContractError("half of the log is missing")

    monkeypatch.setattr(week, "Night", Asked)
    return asked


def simulated(root: Path) -> Callable[..., None]:
    """Writes what `simulate` says of its log, and no log."""

    def write(_spark: object, settings: Any, _root: str, last: date) -> None:
        facts = {"date": str(last), "simulation": settings.simulation.model_dump(mode="json")}
        (root / RAW).mkdir(parents=True)
        (root / RAW / TRUTH_FILE).write_text(json.dumps(facts))

    return write


def test_a_night_that_stops_does_not_keep_the_next_from_its_turn(
    ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "out"
    monkeypatch.setattr(week, "simulate", simulated(root))
    monkeypatch.setattr(week, "spark_session", lambda _: None)
    arguments = ["--root", str(root), "--date", "2024-06-30", "--nights", "3"]
    assert week.main(arguments) == 3
    begins = str(date.fromordinal(date(2024, 6, 30).toordinal() - DAYS + 1))
    assert ran == [
        ("2024-06-28", begins, True, 3),
        ("2024-06-29", "2024-06-29", False, 3),
        ("2024-06-30", "2024-06-30", False, 3),
    ]
    out, err = capsys.readouterr()
    assert [line.split()[:1] + line.split()[3:4] + line.split()[-1:] for line in out.splitlines()[2:]] == [
        ["2024-06-28", "yes", "done"],
        ["2024-06-29", "no", "stopped"],
        ["2024-06-30", "no", "done"],
    ]
    assert "half of the log is missing" in err
    assert "The night of 2024-06-29 stopped" in " ".join(err.split())

    ran.clear()
    ran += [("", "", False, 0)] * 2  # none stops
    monkeypatch.setattr(week, "simulate", lambda *_: pytest.fail("the log is there"))
    assert week.main([*arguments, "--set", "nightly.train_every_days=5"]) == 0
    assert [night[-1] for night in ran[2:]] == [5, 5, 5]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--nights", "0"], "--nights 0: take 1 to"),
        (["--set", "simulation.users=7"], "simulated up to 2024-06-30 with"),
    ],
)
def test_what_it_refuses(
    ran: Ran, tmp_path: Path, more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    simulated(tmp_path)(None, load_settings([str(week.DEMO_CONF)]), "", date(2024, 6, 30))
    assert week.main(["--root", str(tmp_path), *more]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not ran
