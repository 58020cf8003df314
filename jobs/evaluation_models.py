"""The bundles that an evaluation judges: loaded, held against the sequences and each other, alone or as one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from features import columns as c
from features.contracts import TRAINING_SEQUENCES
from jobs.settings import UsageError
from jobs.store import Manifest, Store
from model.ensemble import Ensemble, Widened
from model.errors import ModelError
from model.evaluation import Ranker

MODEL, AGAINST = "model", "against"  # table rows of the bundle that is judged, and of the second one


@dataclass(frozen=True)
class Judged:
    """What is judged: the row `model`, perhaps the row `against`, and the ids that all of them rank."""

    rankers: Mapping[str, Ranker]
    versions: Mapping[str, str]  # by row
    vocabulary: Mapping[str, Sequence[str]]

    @property
    def n_ids(self) -> tuple[int, int]:
        """Numbers of items and categories, PAD and OOV included."""
        return len(self.vocabulary[c.KIND_ITEM]), len(self.vocabulary[c.KIND_CATEGORY])


def load_judged(
    store: Store, manifest: Manifest, bundles: Sequence[str], ensemble: str | None, against: str | None
) -> Judged:
    """Load the bundles for the rows MODEL (several: an ensemble) and AGAINST.

    Raises:
        UsageError: the number of bundles and `ensemble` do not go together.
        ModelError: a bundle is damaged, or was trained on sequences other than these that may hold the labels, or its
            ids mean other tokens.
    """
    from model.predict import Predictor  # TensorFlow: not before arguments and inputs are checked

    if (len(bundles) > 1) != (ensemble is not None):
        fix = "add --ensemble probabilities or ranks" if ensemble is None else "repeat --bundle, or drop --ensemble"
        raise UsageError(f"--ensemble makes one model of several bundles; {len(bundles)} given: {fix}.")
    paths = [*bundles, *([against] if against else [])]
    predictors = {path: Predictor.load(path) for path in dict.fromkeys(paths)}
    for path, predictor in predictors.items():
        predictor.bundle.check_sequences(manifest.counters)
        _check_trained_on(store, predictor.bundle, manifest, path)
    vocabulary = _common_vocabulary({path: predictor.bundle.vocabulary for path, predictor in predictors.items()})
    n_ids = len(vocabulary[c.KIND_ITEM]), len(vocabulary[c.KIND_CATEGORY])

    def ranker(path: str) -> Ranker:
        known = predictors[path].bundle.vocabulary
        own = len(known[c.KIND_ITEM]), len(known[c.KIND_CATEGORY])
        return predictors[path] if own == n_ids else Widened(predictors[path], own, n_ids)

    rankers = {MODEL: Ensemble([ranker(p) for p in bundles], ensemble) if ensemble else ranker(bundles[0])}
    versions = [predictors[path].model_version for path in bundles]
    named = {MODEL: f"{ensemble} of {', '.join(versions)}" if ensemble else versions[0]}
    if against:
        rankers[AGAINST], named[AGAINST] = ranker(against), predictors[against].model_version
    return Judged(rankers, named, vocabulary)


def _check_trained_on(store: Store, bundle: Any, manifest: Manifest, where: str) -> None:
    """Refuse a bundle of other sequences than these, unless those are of this root and end training no later.

    Else there may be other ids, or other cutoffs, with these labels among its training events.
    """
    if bundle.data_hash == manifest.hash:
        return
    for day in store.dates(TRAINING_SEQUENCES.name):
        other = store.manifest(TRAINING_SEQUENCES.name, day, "jobs/sequences.py")
        if other.hash == bundle.data_hash and _ends_by(other.counters, manifest.counters):
            return
    raise ModelError(
        f"Model {bundle.model_version} in {where} was trained on {TRAINING_SEQUENCES.name} with manifest hash "
        f"{bundle.data_hash}, those of {manifest.dt} have {manifest.hash}: its training events may hold the labels "
        f"to be predicted. Train on these sequences first (jobs.train --date {manifest.dt}), or take a bundle of an "
        "earlier day of this root whose sequences are still there."
    )


def _ends_by(other: Mapping[str, Any], ours: Mapping[str, Any]) -> bool:
    """Whether the other sequences end training and validation no later than ours end training."""
    if {other.get("protocol"), ours.get("protocol")} != {c.GLOBAL_TIME}:
        return False
    return bool(other["test_cutoff"] <= ours["test_cutoff"] and other["valid_cutoff"] <= ours["valid_cutoff"])


def _common_vocabulary(vocabularies: Mapping[str, Mapping[str, Sequence[str]]]) -> Mapping[str, Sequence[str]]:
    """The one with most ids; ids never move in a root, so the others must be the first of it."""
    kinds = c.KIND_ITEM, c.KIND_CATEGORY
    longest = {kind: max((tokens[kind] for tokens in vocabularies.values()), key=len) for kind in kinds}
    for path, vocabulary in vocabularies.items():
        for kind, tokens in longest.items():
            own = vocabulary[kind]
            differ = next((i for i, (a, b) in enumerate(zip(own, tokens, strict=False)) if a != b), None)
            if differ is not None:
                raise ModelError(
                    f"The bundle {path} has {kind} id {differ} for {own[differ]}, another of the bundles for "
                    f"{tokens[differ]}: they are not of one root and cannot be judged together."
                )
    return longest
