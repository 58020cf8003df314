"""The search for settings: what is tried, when it stops, what a killed one leaves, and one with real trainings."""

import json
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

from features.contracts import TRAINING_SEQUENCES
from jobs import search as job
from jobs.search_space import SearchSpec, load_space
from jobs.settings import CONF_DIR, Settings, UsageError, load_settings
from jobs.store import Store
from model.bundle import load_bundle
from model.errors import ModelError
from model.watch import Plan
from tests.model import tables
from tests.model.day import write_day

DAY = date(2024, 6, 30)
SPACE = {
    "trials": 6,
    "goal": {"item": 1.0, "category": 0.0},
    "random_trials": 2,
    "prune_after_epochs": 1,
    "prune_after_trials": 2,
    "seed": 3,
    "parameters": {
        "training.learning_rate": {"low": 0.00001, "high": 0.1, "log": True},
        "network.units": {"values": [32, 64, 128]},
        "network.layers": {"low": 1, "high": 3, "log": False},
    },
}

pytest.importorskip("optuna", reason="Optuna is not installed (the extra [search])")


def space(**changes: Any) -> SearchSpec:
    return SearchSpec.model_validate(SPACE | changes)


def load(assignments: Sequence[str] = ()) -> Settings:
    return load_settings(assignments=list(assignments))


@pytest.fixture
def root(tmp_path: Path) -> str:
    return write_day(tmp_path / "root", DAY)


class Trainings:
    """Stands in for jobs.train: two epochs, the better the fewer units. Fails or is killed where a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, score: Callable[[Settings], float]) -> None:
        self.settings: list[Settings] = []
        self.at: dict[int, BaseException] = {}
        self._score = score
        monkeypatch.setattr(job, "train", self)

    def __call__(self, load: Any, _root: str, date: date, into: str, watchers: Sequence[Any]) -> None:
        settings = load()
        self.settings.append(settings)
        if (error := self.at.get(len(self.settings))) is not None:
            raise error
        history = []
        for epoch, share in ((1, 0.5), (2, 1.0)):
            figures = {"valid_item_ndcg": share * self._score(settings), "valid_category_ndcg": 0.9}
            history.append({"epoch": epoch, **figures})
            if epoch == 1:
                watchers[0].started(Plan("", 1, 2, 0, ()))
            watchers[0].epoch(history, True)
        folder = Path(into, "bundle", f"dt={date}")
        folder.mkdir(parents=True, exist_ok=True)
        Path(into, "_checkpoints").mkdir()
        (folder / "metrics.json").write_text(json.dumps({"best": history[-1]}))


def fewer_units(settings: Settings) -> float:
    return 1 / settings.network.units


def drawn(settings: Settings) -> tuple[float, int, int]:
    return settings.training.learning_rate, settings.network.units, settings.network.layers


def test_the_best_of_all_trials_is_printed_as_an_overlay(
    root: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    trainings = Trainings(monkeypatch, fewer_units)
    file = tmp_path / "space.yaml"
    file.write_text(yaml.safe_dump(SPACE))
    assert job.main(["--root", root, "--date", str(DAY), "--space", str(file)]) == 0
    printed = capsys.readouterr().out
    best = yaml.safe_load(printed)
    assert len(trainings.settings) == 6
    assert drawn(trainings.settings[0]) == drawn(load())  # the settings as they are come first
    assert best["network"]["units"] == min(settings.network.units for settings in trainings.settings)
    assert all(1e-5 <= settings.training.learning_rate <= 0.1 for settings in trainings.settings)
    assert all(settings.network.layers in (1, 2, 3) for settings in trainings.settings)
    assert (Path(root) / "_search" / f"dt={DAY}" / "best.yaml").read_text() == printed
    assert not list(Path(root).rglob("_checkpoints"))
    overlay = tmp_path / "best.yaml"
    overlay.write_text(printed)
    assert load_settings([str(overlay)]).network.units == best["network"]["units"]


def test_a_killed_search_goes_on_and_repeats_only_what_was_cut(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trainings = Trainings(monkeypatch, fewer_units)
    trainings.at = {4: KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        job.search(load, root, DAY, space())
    job.search(load, root, DAY, space())
    tried = [drawn(settings) for settings in trainings.settings]
    assert len(tried) == 7  # three, the one that was cut, that one again, two more
    assert tried[3] == tried[4]
    job.search(load, root, DAY, space())
    assert len(trainings.settings) == 7
    job.search(load, root, DAY, space(), trials=8)  # more trials are no other search
    assert len(trainings.settings) == 9
    job.search(load, root, DAY, space(seed=4), trials=1)
    assert len(trainings.settings) == 10


def test_a_training_below_the_others_is_ended_after_its_first_free_epochs(
    root: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = [1.0, 0.9, 0.1, 0.95]
    trainings = Trainings(monkeypatch, lambda _: scores[len(trainings.settings) - 1])
    job.search(load, root, DAY, space(), trials=4)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("trial")]
    assert len(trainings.settings) == 4
    assert said[5] == "trial 3 of 4: ended early, below the median of the others"
    assert said[7].startswith("trial 4 of 4: 0.9500 (best so far 1.0000)")


def test_a_failure_is_a_trial_that_came_to_nothing_but_the_first_stops_all(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainings = Trainings(monkeypatch, fewer_units)
    trainings.at = {2: ModelError("The loss is not a number")}
    job.search(load, root, DAY, space(), trials=3)
    assert len(trainings.settings) == 3
    broken = Trainings(monkeypatch, fewer_units)
    broken.at = {1: ModelError("The rows are damaged")}
    with pytest.raises(ModelError, match="damaged"):
        job.search(load, root, DAY, space(seed=9))


def test_nothing_of_the_test_split_is_needed(root: str) -> None:
    """Real trainings, in a root whose test rows are spoilt but for their size."""
    for file in Path(root, TRAINING_SEQUENCES.name, f"dt={DAY}", "split=test").iterdir():
        file.write_bytes(b"x" * file.stat().st_size)
    training = tables.TRAINING.model_copy(update={"max_epochs": 1})

    def small(assignments: Sequence[str] = ()) -> Settings:
        given = load_settings(assignments=list(assignments))
        changed = training.model_copy(update={"learning_rate": given.training.learning_rate})
        return Settings.model_construct(network=tables.NETWORK, training=changed, tracking=tables.TRACKING)

    only = {"training.learning_rate": {"low": 0.001, "high": 0.02, "log": True}}
    best = job.search(small, root, DAY, space(parameters=only), trials=2)
    folder = Path(root) / "_search" / f"dt={DAY}"
    bundles = [load_bundle(str(path / "bundle" / f"dt={DAY}")) for path in sorted(folder.glob("*/trial=*"))]
    assert len({bundle.model_version for bundle in bundles}) == 2
    values = {}
    for path in folder.glob("*/trial=*"):
        figures = json.loads((path / "bundle" / f"dt={DAY}" / "metrics.json").read_text())
        rate = yaml.safe_load((path / "bundle" / f"dt={DAY}" / "config.yaml").read_text())["training"]["learning_rate"]
        values[rate] = figures["best"]["valid_item_ndcg"]
    assert best == {"training": {"learning_rate": max(values, key=values.__getitem__)}}
    assert not Path(root, "bundle").exists()
    assert Store(root).dates(TRAINING_SEQUENCES.name) == [str(DAY)]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        (
            {"parameters": {"sequences.length": {"values": [5]}}},
            "sequences.length is no setting of",
        ),
        ({"parameters": {"network.units": {"low": 9, "high": 3, "log": False}}}, "low must lie below high"),
        ({"parameters": {"training.weight_decay": {"low": 0.0, "high": 1.0, "log": True}}}, "above 0 with log"),
        ({"trials": 0}, "trials = 0"),
        ({"extra": 1}, "unknown key extra"),
    ],
)
def test_a_wrong_space_is_refused(tmp_path: Path, changes: dict[str, Any], what: str) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(yaml.safe_dump(SPACE | changes))
    with pytest.raises(UsageError, match=what):
        load_space(str(file))


def test_unknown_settings_and_roots_without_a_folder_are_refused(root: str) -> None:
    with pytest.raises(UsageError, match=r"names network\.unit, which conf/base\.yaml does not have"):
        job.search(load, root, DAY, space(parameters={"network.unit": {"values": [3]}}))
    with pytest.raises(UsageError, match="needs a local folder"):
        job.search(load, "memory://root", DAY, space())


def test_the_space_that_comes_along_fits_the_settings() -> None:
    given = load_space(str(CONF_DIR / "search.yaml"))
    known = job._flat(load())
    assert all(part.holds(known[name]) for name, part in given.parameters.items())
