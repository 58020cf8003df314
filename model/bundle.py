"""The model as it is deployed: weights, specs, vocabulary, configuration and figures in one folder, checked by hash."""

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors.numpy import load, save

from features import columns as c
from model.errors import ModelError
from model.spec import HEADS, NetworkSpec, Sizes

MANIFEST = "_MANIFEST.json"
WEIGHTS, SPEC, VOCABULARY = "weights.safetensors", "spec.json", "vocabulary.parquet"
CONFIG, METRICS, HISTORY = "config.yaml", "metrics.json", "history.csv"
_IDENTITY = (WEIGHTS, SPEC, VOCABULARY)  # what decides a prediction, and so the model's version

Weights = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Bundle:
    """A trained model. `vocabulary`: by kind, the token of each id ("" for PAD and OOV); `counts` go with it."""

    spec: NetworkSpec
    sizes: Sizes
    gap_edges_s: tuple[int, ...]
    vocabulary: Mapping[str, Sequence[str]]
    counts: Mapping[str, Sequence[int]]
    weights: Weights
    model_version: str
    data_hash: str
    vocabulary_hash: str
    code_version: str

    def check_sequences(self, coding: Mapping[str, Any]) -> None:
        """Refuse sequences that were encoded otherwise than the training data: their codes would mean other things.

        coding: length, gap_edges_s and new_session_gap, as the manifest of the sequences counts them.

        Raises:
            ModelError: names every difference, and the value on both sides.
        """
        own = {
            "length": self.sizes.length,
            "gap_edges_s": list(self.gap_edges_s),
            "new_session_gap": self.sizes.new_session_gap,
        }
        wrong = [
            f"{name} is {coding.get(name)} in the sequences, {value} in the model"
            for name, value in own.items()
            if coding.get(name) != value
        ]
        if wrong:
            raise ModelError(
                f"Model {self.model_version} does not fit these sequences: {'; '.join(wrong)}. "
                "Train a model on them (jobs.train), or make sequences with the model's configuration."
            )

    def network(self) -> Any:
        """The network with these weights; loads TensorFlow on first use."""
        from model.network import Network

        heads = [name for name in HEADS if f"{name}/bias" in self.weights]
        network = Network(self.spec, self.sizes, heads=heads)
        network.set_weights(self.weights)
        return network


def read_coding(folder: str) -> dict[str, Any]:
    """How sequences are coded that the bundle in a folder reads, as `check_sequences` wants it; loads no weights."""
    fs, place = fsspec.core.url_to_fs(folder)
    spec = json.loads(fs.cat_file(f"{place}/{SPEC}"))
    sizes = spec["sizes"]
    return {
        "length": sizes["length"],
        "gap_edges_s": spec["gap_edges_s"],
        "new_session_gap": sizes["new_session_gap"],
    }


@dataclass(frozen=True)
class Reports:
    """What a bundle tells people: the resolved configuration (YAML text), figures, and one mapping an epoch."""

    config: str
    metrics: Mapping[str, Any]
    history: Sequence[Mapping[str, float]]


def save_bundle(folder: str, day: str, bundle: Bundle, reports: Reports) -> str:
    """Write a bundle beside `folder`, put it in place, and return its version: the day and a hash of the model.

    The version in `bundle` is ignored; equal models of a day get equal versions. A reader sees the old bundle, the new
    one, or one that `load_bundle` refuses.
    """
    spec = {
        "network": bundle.spec.model_dump(mode="json"),
        "sizes": bundle.sizes.model_dump(mode="json"),
        "gap_edges_s": list(bundle.gap_edges_s),
    }
    files = {
        WEIGHTS: save({name: np.ascontiguousarray(value) for name, value in bundle.weights.items()}),
        SPEC: _json(spec),
        VOCABULARY: _vocabulary_bytes(bundle),
        CONFIG: reports.config.encode(),
        METRICS: _json(dict(reports.metrics)),
        HISTORY: history_csv(reports.history),
    }
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    identity = "".join(hashes[name] for name in _IDENTITY)
    version = f"{day}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    manifest = {
        "model_version": version,
        "sha256": hashes,
        "data_hash": bundle.data_hash,
        "vocabulary_hash": bundle.vocabulary_hash,
        "code_version": bundle.code_version,
    }
    fs, final = fsspec.core.url_to_fs(folder)
    parent, _, name = final.rpartition("/")
    staged = f"{parent}/_staging-{name}"
    _remove(fs, staged)
    fs.makedirs(staged, exist_ok=True)
    for name, content in {**files, MANIFEST: _json(manifest)}.items():
        with fs.open(f"{staged}/{name}", "wb") as file:
            file.write(content)
    _remove(fs, f"{final}/{MANIFEST}")
    _remove(fs, final)
    fs.mv(staged, final, recursive=True)
    return version


def load_bundle(folder: str) -> Bundle:
    """Read a bundle back.

    Raises:
        ModelError: it is missing, cut short, changed since it was written, or not one this version can read.
    """
    fs, base = fsspec.core.url_to_fs(folder)
    if not fs.exists(f"{base}/{MANIFEST}"):
        raise ModelError(f"{base} is not a finished model bundle: {MANIFEST} is missing. Run jobs.train for that day.")
    try:
        manifest = json.loads(fs.cat_file(f"{base}/{MANIFEST}"))
        files = {name: _checked(fs, base, name, wanted) for name, wanted in manifest["sha256"].items()}
        spec = json.loads(files[SPEC])
        # Without threads: a process that ends right after starting some is aborted by Arrow 14 now and then.
        table = pq.read_table(io.BytesIO(files[VOCABULARY]), use_threads=False, pre_buffer=False)
        tokens, counts = vocabulary_lists(table)
        return Bundle(
            spec=NetworkSpec.model_validate(spec["network"]),
            sizes=Sizes.model_validate(spec["sizes"]),
            gap_edges_s=tuple(spec["gap_edges_s"]),
            vocabulary=tokens,
            counts=counts,
            weights=load(files[WEIGHTS]),
            model_version=manifest["model_version"],
            data_hash=manifest["data_hash"],
            vocabulary_hash=manifest["vocabulary_hash"],
            code_version=manifest["code_version"],
        )
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        raise ModelError(
            f"The model bundle {base} is not of this version of the code: {error}. Run jobs.train for that day."
        ) from error


def _checked(fs: Any, base: str, name: str, wanted: str) -> bytes:
    try:
        content: bytes = fs.cat_file(f"{base}/{name}")
    except FileNotFoundError:
        raise ModelError(f"{base}/{name} is missing: the bundle is torn. Run jobs.train for that day.") from None
    found = hashlib.sha256(content).hexdigest()
    if found != wanted:
        raise ModelError(
            f"{base}/{name} is not the file that was written (SHA-256 {found[:12]}…, manifest {wanted[:12]}…). "
            "Copy the bundle again or run jobs.train for that day."
        )
    return content


def _vocabulary_bytes(bundle: Bundle) -> bytes:
    kinds = [kind for kind in (c.KIND_ITEM, c.KIND_CATEGORY) for _ in bundle.vocabulary[kind][c.FIRST_ID :]]
    ids = [id_ for kind in (c.KIND_ITEM, c.KIND_CATEGORY) for id_ in range(c.FIRST_ID, len(bundle.vocabulary[kind]))]
    tokens = [bundle.vocabulary[kind][id_] for kind, id_ in zip(kinds, ids, strict=True)]
    counts = [bundle.counts[kind][id_] for kind, id_ in zip(kinds, ids, strict=True)]
    table = pa.table(
        {
            c.KIND: pa.array(kinds, pa.string()),
            c.TOKEN: pa.array(tokens, pa.string()),
            c.ID: pa.array(ids, pa.int32()),
            c.COUNT: pa.array(counts, pa.int64()),
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def vocabulary_lists(table: pa.Table) -> tuple[dict[str, list[str]], dict[str, list[int]]]:
    """Token and count of each id, by kind, from rows (kind, token, id, count) in any order; "" and 0: no token."""
    tokens: dict[str, list[str]] = {}
    counts: dict[str, list[int]] = {}
    for kind in sorted(pc.unique(table[c.KIND]).to_pylist()):
        rows = table.filter(pc.equal(table[c.KIND], kind))
        ids = rows[c.ID].to_numpy()  # [rows]
        names = np.full(ids.max() + 1, "", object)
        numbers = np.zeros(ids.max() + 1, np.int64)
        names[ids] = rows[c.TOKEN].to_numpy()
        numbers[ids] = rows[c.COUNT].to_numpy()
        tokens[kind], counts[kind] = names.tolist(), numbers.tolist()
    return tokens, counts


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()


def history_csv(history: Sequence[Mapping[str, float]]) -> bytes:
    """A header and one line an epoch."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(history[0]) if history else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue().encode()


def _remove(fs: Any, path: str) -> None:
    if fs.exists(path):
        fs.rm(path, recursive=True)
