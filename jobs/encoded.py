"""Whether encoded tables still mean what they say: their ids against the vocabulary that is in place."""

from datetime import date

from features.contracts import VOCABULARY, ContractError
from jobs.store import Manifest, Store

_VOCABULARY_JOB, _SEQUENCES_JOB = "jobs.vocabulary", "jobs.sequences"


def latest_vocabulary(store: Store, dt: date) -> Manifest:
    """Manifest of the vocabulary of a day, or of the latest day before it that has one."""
    days = [day for day in store.dates(VOCABULARY.name) if day <= str(dt)]
    return store.check(VOCABULARY, days[-1] if days else dt, _VOCABULARY_JOB)


def vocabulary_of(encoded: Manifest) -> tuple[str, str]:
    """Day and hash of the vocabulary that sequences_v1 or training_sequences_v1 were made with."""
    prefix = f"{VOCABULARY.name}/"
    ((key, used),) = ((key, used) for key, used in encoded.inputs.items() if key.startswith(prefix))
    return key.removeprefix(prefix), used


def check_vocabulary(store: Store, encoded: Manifest) -> Manifest:
    """Manifest of the vocabulary that `encoded`, sequences_v1 or training_sequences_v1, was made with.

    Raises:
        ContractError: it is missing or torn, or has been replaced since.
    """
    day, used = vocabulary_of(encoded)
    vocabulary = store.check(VOCABULARY, day, _VOCABULARY_JOB)
    if used != vocabulary.hash:
        raise ContractError(
            f"{store.path(encoded.table, encoded.dt)} was encoded with vocabulary {used}, but "
            f"{store.path(VOCABULARY.name, day)} now is {vocabulary.hash}: ids would mean other items. "
            f"Run {_SEQUENCES_JOB} for {encoded.dt} again."
        )
    return vocabulary
