"""Whether encoded tables still mean what they say: their ids against the vocabulary that is in place."""

from features.contracts import VOCABULARY, ContractError
from jobs.store import Manifest, Store

_VOCABULARY_JOB, _SEQUENCES_JOB = "jobs.vocabulary", "jobs.sequences"


def check_vocabulary(store: Store, encoded: Manifest) -> Manifest:
    """Manifest of the vocabulary of the day of `encoded`, sequences_v1 or training_sequences_v1.

    Raises:
        ContractError: it is missing or torn, or `encoded` was made with another one.
    """
    vocabulary = store.check(VOCABULARY, encoded.dt, _VOCABULARY_JOB)
    used = encoded.inputs.get(f"{VOCABULARY.name}/{encoded.dt}")
    if used != vocabulary.hash:
        raise ContractError(
            f"{store.path(encoded.table, encoded.dt)} was encoded with vocabulary {used}, but "
            f"{store.path(VOCABULARY.name, encoded.dt)} now is {vocabulary.hash}: ids would mean other items. "
            f"Run {_SEQUENCES_JOB} for {encoded.dt} again."
        )
    return vocabulary
