"""Keyed pseudonyms: user ids become HMAC-SHA256 digests at the door, before anything is written.

The key never leaves its file but for the memory of the Python workers: not as a literal of a query (plans are logged,
and kept in event logs), not in a pickled closure, not in a broadcast (which lies on disk). What travels is how to read
it and its fingerprint.
"""

import hashlib
import hmac
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.pandas.functions import pandas_udf

from features import columns as c
from features.contracts import ContractError
from features.sources import CORRUPT, SourceMap

MIN_KEY_BYTES = 32  # as long as the digest: a shorter key is the weakest part (RFC 2104, section 3)
HEX_DIGITS = 32  # 128 bits: no two of a billion users share a pseudonym but with a chance of 1e-21
_BLOCK_BYTES, _IPAD, _OPAD = 64, 0x36, 0x5C  # RFC 2104
_FINGERPRINTED = b"interest-evolution: fingerprint of a pseudonym key"


@dataclass(frozen=True)
class PseudonymKey:
    """How to read the key on any machine of the run, and the fingerprint that says whether it is the same one."""

    read: Callable[[], bytes]
    fingerprint: str

    def secret(self) -> bytes:
        """The key as this machine reads it.

        Raises:
            ContractError: it is not the key that the run was started with.
        """
        key = self.read()
        if fingerprint(key) != self.fingerprint:
            raise ContractError(
                f"cleaning.pseudonym_key_file holds a key with fingerprint {fingerprint(key)} on this machine, the run "
                f"was started with {self.fingerprint}. Put the same file on the driver and on every executor."
            )
        return key


def fingerprint(key: bytes) -> str:
    """8 hex digits that tell keys apart and say nothing about them: of SHA-256 of the HMAC of a constant."""
    return hashlib.sha256(hmac.digest(key, _FINGERPRINTED, "sha256")).hexdigest()[:8]


def pseudonyms(users: Iterable[str], key: bytes) -> dict[str, str]:
    """Each user's pseudonym: the first 32 hex digits of HMAC-SHA256 (RFC 2104) of the id in UTF-8.

    By the definition, H((K ^ opad) || H((K ^ ipad) || id)): the two padded keys are hashed once, not once a user.
    """
    padded = (key if len(key) <= _BLOCK_BYTES else hashlib.sha256(key).digest()).ljust(_BLOCK_BYTES, b"\0")
    inner_start, outer_start = (hashlib.sha256(bytes(byte ^ pad for byte in padded)) for pad in (_IPAD, _OPAD))
    found = {}
    for user in users:
        inner, outer = inner_start.copy(), outer_start.copy()
        inner.update(user.encode())
        outer.update(inner.digest())
        found[user] = outer.hexdigest()[:HEX_DIGITS]
    return found


def pseudonymous(raw: DataFrame, source: SourceMap, key: PseudonymKey) -> DataFrame:
    """A log as `read_log` gives it, without a raw user id: the user column holds the pseudonym of the trimmed id.

    Columns that the map does not name are dropped, because they may repeat the id. A torn line cannot be taken apart:
    CORRUPT says how long it was and no more.
    """
    user = source.columns[c.USER_ID]
    trimmed = F.nullif(F.trim(F.col(f"`{user}`").cast("string")), F.lit(""))
    kept = [F.col(f"`{name}`") for name in source.needed if name != user]
    redacted = F.concat(F.lit("[redacted: "), F.length(CORRUPT).cast("string"), F.lit(" characters]"))
    return raw.select(_in_batches(trimmed, key).alias(user), *kept, redacted.alias(CORRUPT))


def _in_batches(users: Column, key: PseudonymKey) -> Column:
    def of_batch(batch: pd.Series) -> pd.Series:
        known = pseudonyms((user for user in batch.unique() if user is not None), key.secret())
        return pd.Series([known.get(user) for user in batch], dtype=object)

    make: Any = pandas_udf  # the stubs know only its older form, with functionType
    pseudonym: Column = make(of_batch, "string")(users)
    return pseudonym
