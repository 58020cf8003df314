import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from features import columns as c
from model.bundle import Bundle, Reports, load_bundle, save_bundle, vocabulary_lists
from model.errors import ModelError
from model.network import Network
from tests.model import tables

REPORTS = Reports("seed: 1\n", {"best_epoch": 1}, [{"epoch": 1, "valid_loss": 2.5}])
CODING = {"length": tables.LENGTH, "gap_edges_s": [60, 600, 1800, 3600, 86400], "new_session_gap": 5, "more": "ignored"}


def bundle(seed: int = 1) -> Bundle:
    network = Network(tables.NETWORK, tables.SIZES, seed)
    items = ["", "", *(f"item {number}" for number in range(tables.N_ITEMS))]
    categories = ["", "", *(f"category {number}" for number in range(tables.N_CATEGORIES))]
    return Bundle(
        spec=tables.NETWORK,
        sizes=tables.SIZES,
        gap_edges_s=(60, 600, 1800, 3600, 86400),
        vocabulary={c.KIND_ITEM: items, c.KIND_CATEGORY: categories},
        counts={c.KIND_ITEM: [0, 0, *range(20, 0, -1)], c.KIND_CATEGORY: [0, 0, 9, 8, 7, 6]},
        weights={name: weight.numpy() for name, weight in network.weights.items()},
        model_version="",
        data_hash="d" * 16,
        vocabulary_hash="v" * 16,
        code_version="c" * 16,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_bundle(str(tmp_path / "dt=2024-06-30"), "2024-06-30", bundle(), REPORTS)
    return tmp_path / "dt=2024-06-30"


def test_a_bundle_comes_back_as_it_was(folder: Path):
    found, saved = load_bundle(str(folder)), bundle()
    assert found.model_version.startswith("2024-06-30-")
    assert replace(found, weights={}, model_version="") == replace(saved, weights={})
    for name, weight in found.network().weights.items():
        np.testing.assert_array_equal(weight, saved.weights[name])
    assert (folder / "history.csv").read_text() == "epoch,valid_loss\n1,2.5\n"
    assert (folder / "config.yaml").read_text() == "seed: 1\n"
    assert json.loads((folder / "metrics.json").read_text()) == {"best_epoch": 1}


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2], [2, 0, 3, 1]])
def test_the_order_of_a_vocabularys_rows_does_not_matter(order: list[int]):
    rows = [("item", "b", 2, 9), ("category", "x", 2, 13), ("item", "é", 3, 4), ("item", "a", 5, 0)]
    columns = zip(*(rows[position] for position in order), strict=True)
    table = pa.table(dict(zip((c.KIND, c.TOKEN, c.ID, c.COUNT), map(list, columns), strict=True)))
    tokens, counts = vocabulary_lists(pa.concat_tables([table.slice(0, 1), table.slice(1)]))
    assert tokens == {"item": ["", "", "b", "é", "", "a"], "category": ["", "", "x"]}
    assert counts == {"item": [0, 0, 9, 4, 0, 0], "category": [0, 0, 13]}


def test_the_version_is_that_of_the_model_not_of_the_run(folder: Path, tmp_path: Path):
    version = load_bundle(str(folder)).model_version
    other_run = Reports("seed: 2\n", {"seconds": 9}, [])
    assert save_bundle(str(tmp_path / "again"), "2024-06-30", bundle(), other_run) == version
    assert save_bundle(str(tmp_path / "other"), "2024-06-30", bundle(seed=2), REPORTS) != version


def test_a_new_bundle_replaces_the_old_one_whole(folder: Path):
    (folder / "left.over").write_text("")
    version = save_bundle(str(folder), "2024-06-30", bundle(seed=2), REPORTS)
    assert load_bundle(str(folder)).model_version == version
    assert not (folder / "left.over").exists()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize(
    "name", ["weights.safetensors", "spec.json", "vocabulary.parquet", "config.yaml", "metrics.json", "history.csv"]
)
def test_every_file_is_guarded_by_its_hash(folder: Path, name: str):
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(bytes(content))
    with pytest.raises(ModelError, match=f"{name} is not the file that was written"):
        load_bundle(str(folder))
    (folder / name).unlink()
    with pytest.raises(ModelError, match=f"{name} is missing: the bundle is torn"):
        load_bundle(str(folder))


def test_one_without_a_manifest_is_not_finished(folder: Path):
    (folder / "_MANIFEST.json").unlink()
    with pytest.raises(ModelError, match=r"_MANIFEST\.json is missing"):
        load_bundle(str(folder))


def test_one_of_another_version_is_refused(folder: Path):
    manifest = json.loads((folder / "_MANIFEST.json").read_text())
    del manifest["vocabulary_hash"]
    (folder / "_MANIFEST.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelError, match="is not of this version of the code: 'vocabulary_hash'"):
        load_bundle(str(folder))


def test_sequences_that_were_encoded_otherwise_are_refused_with_every_difference(folder: Path):
    found = load_bundle(str(folder))
    found.check_sequences(CODING)
    with pytest.raises(ModelError, match="length is 9 in the sequences, 8 in the model; new_session_gap is 3"):
        found.check_sequences({**CODING, "length": 9, "new_session_gap": 3})
    with pytest.raises(ModelError, match="gap_edges_s is None in the sequences"):
        found.check_sequences({"length": 8, "new_session_gap": 5})


def test_reading_a_bundle_loads_no_tensorflow(folder: Path):
    code = f"import sys, model.bundle; model.bundle.load_bundle({str(folder)!r}); sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_nothing_in_it_comes_from_horovod_or_pickle(folder: Path):
    for path in folder.iterdir():
        content = path.read_bytes().lower()
        assert b"horovod" not in content
        assert b"pickle" not in content
