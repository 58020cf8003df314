"""Text that people read, as it was last looked at. `make golden` rewrites the files beside this one; read the diff."""

from importlib import import_module
from pathlib import Path

import pytest
import yaml

from jobs.settings import CONF_DIR, load_settings

GOLDEN = Path(__file__).parent / "golden"
JOBS = (
    "class_archive",
    "contracts",
    "doctor",
    "evaluate",
    "explain",
    "interest",
    "nightly",
    "plan",
    "publish",
    "report",
    "run",
    "score",
    "search",
    "sequences",
    "sessionize",
    "simulate",
    "train",
    "vocabulary",
    "week",
)


def compare(name: str, text: str, update: bool) -> None:
    """Assert that a golden file holds exactly this text, or write it there."""
    path = GOLDEN / name
    if update:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.exists(), f"{path} is missing; make golden writes it"
    assert text == path.read_text(encoding="utf-8"), f"{path} differs; if the change is meant: make golden"


def test_every_job_with_a_command_line_has_a_golden_help() -> None:
    folder = CONF_DIR.parent / "jobs"
    assert (
        tuple(sorted(file.stem for file in folder.glob("*.py") if "def main(argv" in file.read_text("utf-8"))) == JOBS
    )


@pytest.mark.parametrize("job", JOBS)
def test_golden_help(
    job: str, update_golden: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    try:
        code = import_module(f"jobs.{job}").main(["--help"])  # jobs.train returns its code, the others raise it
    except SystemExit as end:
        code = end.code
    assert code == 0
    compare(f"help-{job}.txt", capsys.readouterr().out, update_golden)


def test_golden_configuration_of_the_demo(update_golden: bool) -> None:
    settings = load_settings([str(CONF_DIR / "demo.yaml")])
    resolved = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, width=100)
    compare("config-demo.yaml", resolved, update_golden)
