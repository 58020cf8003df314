"""Look for better settings of network and training, judged on validation alone. The only module that imports Optuna."""

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from features.contracts import TRAINING_SEQUENCES
from jobs.cli import run_job, say, show, stage_parser
from jobs.search_space import Goal, SearchSpec, Value, load_space
from jobs.settings import CONF_DIR, Settings, UsageError, load_settings
from jobs.store import Store, code_version
from jobs.train import BUNDLE, CHECKPOINTS, train
from model.errors import ModelError
from model.watch import History, Plan, Watcher

SEARCH = "_search"  # `<root>/_search/dt=D`: the journal of all searches, and a folder for each trial of each
_BEST = "best.yaml"
_FAILED = "failed"  # attribute of a trial whose training failed: the error
_INSTALL = ".venv/bin/pip install -c requirements/constraints.txt '.[search]'"


class PrunedError(BaseException):
    """A training that is not worth going on with. No Exception: watchers that fail are left out, this ends it."""


class _Judge(Watcher):
    """Reports each epoch of a training to its trial, and ends it where the trial says so."""

    def __init__(self, trial: Any, goal: Goal) -> None:
        self._trial, self._goal = trial, goal

    def started(self, plan: Plan) -> None:
        """See Watcher. A training that goes on has epochs already."""
        for epoch in plan.history:
            self._trial.report(self._goal.value(epoch), int(epoch["epoch"]))

    def epoch(self, history: History, is_best: bool) -> None:  # noqa: ARG002
        """See Watcher."""
        self._trial.report(self._goal.value(history[-1]), int(history[-1]["epoch"]))
        if self._trial.should_prune():
            raise PrunedError


def search(
    load: Callable[[Sequence[str]], Settings], root: str, date: date, space: SearchSpec, trials: int | None = None
) -> dict[str, Any]:
    """Try settings until there are `trials` (else space.trials), and return the best ones, by section and key.

    load: the settings with some KEY=VALUE on top. Goes on with the search of the same space, settings, sequences and
    code, and with the training that was interrupted; only one process at a time may search a root. The test split is
    never read.

    Raises:
        UsageError: Optuna is not installed, the root is not a local folder, or a parameter is no setting.
        ContractError, ModelError: the first training fails; a later one counts as a trial that came to nothing.
    """
    optuna = _optuna()
    store = Store(root)
    if "://" in store.root:
        raise UsageError(f"--root {root}: the journal of a search needs a local folder, or a mounted one.")
    settings = load(())
    _check_names(settings, space)
    manifest = store.check(TRAINING_SEQUENCES, date, "jobs/sequences.py")
    folder = f"{store.root}/{SEARCH}/dt={date}"
    store.fs.makedirs(folder, exist_ok=True)
    study = _study(optuna, folder, _identity(settings, space, manifest.hash), space, settings)
    trials_of = _Trials(study, space, load, root, date, f"{folder}/{study.study_name}", trials or space.trials)
    while not trials_of.are_done:
        trials_of.next()
    return _told(study, store, folder)


@dataclass(frozen=True)
class _Trials:
    """The trials of one search, one after the other, each with a root of its own below `folder`."""

    study: Any
    space: SearchSpec
    load: Callable[[Sequence[str]], Settings]
    root: str
    date: date
    folder: str
    wanted: int

    @property
    def are_done(self) -> bool:
        return len(_finished(self.study)) >= self.wanted

    def next(self) -> None:
        """Draw settings, train with them, and tell the study what came of it."""
        trial = self.study.ask()
        drawn = {name: part.drawn(trial, name) for name, part in self.space.parameters.items()}
        number = len(_finished(self.study)) + 1
        label = f"trial {number} of {self.wanted}"
        say(f"{label}: {', '.join(f'{name} {_short(value)}' for name, value in drawn.items())}")
        into = f"{self.folder}/trial={_hash(drawn)[:12]}"
        settings = partial(self.load, [f"{name}={_written(value)}" for name, value in drawn.items()])
        try:
            train(settings, self.root, self.date, into=into, watchers=[_Judge(trial, self.space.goal)])
        except PrunedError:
            _forget_checkpoints(into)
            self.study.tell(trial.number, state=_states().PRUNED)
            say(f"{label}: ended early, below the median of the others")
            return
        except ModelError as error:
            if number == 1:
                raise  # not of these settings: any would fail
            trial.set_user_attr(_FAILED, str(error))
            self.study.tell(trial.number, state=_states().FAIL)
            say(f"{label}: failed: {error}")
            return
        _forget_checkpoints(into)
        figures = json.loads(Path(into, BUNDLE, f"dt={self.date}", "metrics.json").read_text(encoding="utf-8"))
        value = self.space.goal.value(figures["best"])
        self.study.tell(trial.number, value)
        say(f"{label}: {value:.4f} (best so far {self.study.best_value:.4f})")


def _states() -> Any:
    from optuna.trial import TrialState

    return TrialState


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _forget_checkpoints(into: str) -> None:
    """They are larger than the bundle, and a trial that has ended needs none."""
    shutil.rmtree(Path(into, CHECKPOINTS), ignore_errors=True)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        reason = f"jobs.search needs Optuna, which can't be loaded ({error})"
        raise UsageError(f"{reason}. Install it: {_INSTALL}.") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _check_names(settings: Settings, space: SearchSpec) -> None:
    known = _flat(settings)
    unknown = [name for name in space.parameters if name not in known]
    if unknown:
        raise UsageError(f"The search space names {', '.join(unknown)}, which conf/base.yaml does not have.")


def _flat(settings: Settings) -> dict[str, Any]:
    sections = {"network": settings.network, "training": settings.training}
    return {f"{name}.{key}": value for name, spec in sections.items() for key, value in spec.model_dump().items()}


def _identity(settings: Settings, space: SearchSpec, data_hash: str) -> str:
    """A search goes on only where all that decides its results is the same; more trials are no other search."""
    fixed = {name: value for name, value in _flat(settings).items() if name not in space.parameters}
    parts = [space.model_dump(mode="json", exclude={"trials"}), fixed, data_hash, code_version()]
    return _hash(parts)[:16]


def _study(optuna: Any, folder: str, identity: str, space: SearchSpec, settings: Settings) -> Any:
    """The study of this search; what an earlier process left unfinished is put first in line."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    storage = JournalStorage(JournalFileBackend(f"{folder}/journal.log"))
    study = optuna.create_study(storage=storage, study_name=identity, direction="maximize", load_if_exists=True)
    done = len(_finished(study))
    study.sampler = optuna.samplers.TPESampler(seed=space.seed + done, n_startup_trials=space.random_trials)
    study.pruner = optuna.pruners.MedianPruner(
        n_startup_trials=space.prune_after_trials, n_warmup_steps=space.prune_after_epochs + 1
    )
    if not study.trials:
        own = {name: _flat(settings)[name] for name in space.parameters}
        if all(space.parameters[name].holds(value) for name, value in own.items()):
            study.enqueue_trial(own)
    for left in study.get_trials(states=(_states().RUNNING,)):
        study.tell(left.number, state=_states().FAIL)
        if len(left.params) == len(space.parameters):
            study.enqueue_trial(left.params)
    if done:
        say(f"search {identity}: going on after {done} trials")
    return study


def _finished(study: Any) -> list[Any]:
    """Trials that came to an end of their own: a value, pruned, or failed in training. Not those that were killed."""
    ended = (trial for trial in study.trials if trial.state.is_finished())
    return [trial for trial in ended if trial.state.name != "FAIL" or _FAILED in trial.user_attrs]


def _told(study: Any, store: Store, folder: str) -> dict[str, Any]:
    """The best settings, by section and key; also in best.yaml."""
    best: dict[str, Any] = {}
    for name, value in sorted(study.best_params.items()):
        section, _, key = name.partition(".")
        best.setdefault(section, {})[key] = value
    states = [trial.state.name.lower() for trial in _finished(study)]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    say(f"search: {len(states)} trials ({counts}); best validation value {study.best_value:.4f}")
    with store.fs.open(f"{folder}/{_BEST}", "w") as file:
        file.write(yaml.safe_dump(best, sort_keys=False))
    return best


def _written(value: Value) -> str:
    """As --set reads it; JSON's 1e-05 would be a word there."""
    return yaml.safe_dump([value], default_flow_style=True).strip()[1:-1]


def _short(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main(argv: Sequence[str]) -> int:
    """Command line of the search."""
    return run_job(_work, parser(), argv)


def parser() -> argparse.ArgumentParser:
    """The flags of the search."""
    flags = stage_parser("search")
    flags.add_argument(
        "--space",
        default=str(CONF_DIR / "search.yaml"),
        metavar="FILE",
        help="what to look for (default: conf/search.yaml)",
    )
    flags.add_argument("--trials", type=int, metavar="N", help="settings to try in all (default: as in the space)")
    return flags


def _work(arguments: argparse.Namespace) -> None:
    if arguments.trials is not None and arguments.trials < 1:
        raise UsageError(f"--trials {arguments.trials}: try one or more.")

    def load(further: Sequence[str]) -> Settings:
        return load_settings(arguments.conf, [*arguments.set, *further])

    best = search(load, arguments.root, arguments.date, load_space(arguments.space), arguments.trials)
    show(arguments, best, yaml.safe_dump(best, sort_keys=False).rstrip())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
