"""Two real Gloo ranks. Each test starts processes and looks for what they leave behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from jobs.ranks import start_ranks
from model.errors import ModelError
from model.workers import check_own_name
from tests.model import tables
from tests.parallel import trials

_PROJECT = Path(__file__).parent.parent.parent
BATCH = 32
# Each file is one batch of a rank, nothing is shuffled or dropped: two ranks of 32 rows see, together, the very batches
# that one process of 64 rows sees. A large epsilon keeps Adam from blowing rounding errors up to whole steps.
SAME_ORDER = {"network": {"query_dropout": 0.0}, "training": {"shuffle_rows": 0, "adam_epsilon": 1e-3}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("ranks")
    tables.write_split(made / "train", tables.ruled_rows(10 * BATCH, seed=1), groups=10)
    tables.write_split(made / "valid", tables.ruled_rows(75, seed=2), groups=2)
    return made


def _run(folder: Path, case: str, ranks: int, content: dict[str, object]) -> list[dict[str, np.ndarray]]:
    (folder / f"{case}.json").write_text(json.dumps(content))
    start_ranks(ranks, "tests.parallel.rank_job", [str(folder), case])
    return [dict(np.load(folder / f"{case}-weights-{rank}.npz")) for rank in range(ranks)]


def test_two_ranks_agree_and_equal_one_process_with_the_double_batch(folder: Path, capfd: pytest.CaptureFixture[str]):
    first, second = _run(folder, "two", 2, SAME_ORDER)
    said = capfd.readouterr()
    for name, weight in first.items():
        np.testing.assert_array_equal(weight, second[name], err_msg=name)

    (single,) = _run(folder, "one", 1, {**SAME_ORDER, "training": {**SAME_ORDER["training"], "batch_rows": 2 * BATCH}})
    untrained = {name: np.array(weight) for name, weight in _untrained().items()}
    for name, weight in single.items():
        np.testing.assert_allclose(first[name], weight, atol=2e-4, err_msg=name)
    moved = max(float(np.abs(single[name] - untrained[name]).max()) for name in single)
    assert moved > 0.02  # a hundred times the tolerance: the weights went somewhere, and to the same place

    assert (folder / "two-rank-0" / "checkpoints").exists()
    assert not (folder / "two-rank-1").exists()  # only rank 0 writes
    assert said.err.count("epoch 1/2  train") == 1  # only rank 0 speaks


def test_gradients_as_16_bit_numbers_come_to_nearly_the_same(folder_of_whole: Path):
    training = {**trials.CASE["training"], "compression": "fp16", "fusion_mib": 1, "cycle_ms": 0.5}
    packed, other = _run(folder_of_whole, "packed", 2, {**trials.CASE, "training": training})
    furthest = 0.0
    for name, weight in trials.weights(folder_of_whole, "whole").items():
        np.testing.assert_array_equal(packed[name], other[name], err_msg=name)
        np.testing.assert_allclose(packed[name], weight, atol=5e-3, err_msg=name)
        furthest = max(furthest, float(np.abs(packed[name] - weight).max()))
    assert furthest > 2e-5  # far above the rounding of 32 bits


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two ranks need a core each")
def test_pinned_ranks_share_the_cores_out_and_learn_the_same(folder: Path):
    pinned, _ = _run(folder, "pinned", 2, {"training": {"pin_ranks": True}})
    free, _ = _run(folder, "free", 2, {})
    for name, weight in free.items():
        np.testing.assert_array_equal(pinned[name], weight, err_msg=name)
    allowed = sorted(os.sched_getaffinity(0))
    share = len(allowed) // 2
    for case, expected in (
        ("pinned", [allowed[:share], allowed[share : 2 * share]]),
        ("free", [allowed, allowed]),
    ):
        assert [json.loads((folder / f"{case}-cores-{rank}.json").read_text()) for rank in range(2)] == expected


def test_a_rank_with_another_configuration_stops_both_with_one_message(folder: Path):
    case = {"rank_1": {"configuration": "other", "training": {"learning_rate": 0.5}}}
    with pytest.raises(ModelError, match="rank 1 has configuration other, rank 0 has same") as raised:
        _run(folder, "differs", 2, case)
    assert "settings" in str(raised.value)
    assert not (folder / "differs-rank-0").exists()
    _assert_none_left(folder)


def test_a_torn_file_of_one_rank_stops_both_with_its_name(tmp_path: Path):
    tables.write_split(tmp_path / "train", tables.ruled_rows(64, seed=1), groups=2)
    tables.write_split(tmp_path / "valid", tables.ruled_rows(20, seed=2), groups=2)
    torn = tmp_path / "train" / "group-00001.parquet"
    torn.write_bytes(torn.read_bytes()[:90])
    with pytest.raises(ModelError, match=r"train/group-00001\.parquet cannot be read"):
        _run(tmp_path, "torn", 2, {})
    _assert_none_left(tmp_path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere.invalid", "The machine nowhere.invalid can't look up its own name, so"),
        (64 * "n", f"The machine {64 * 'n'} can't look up its own name, so"),  # longer than a label of DNS
        ("192.0.2.1", "The machine 192.0.2.1 has a name that leads to 192.0.2.1, not to itself, so"),  # of RFC 5737
    ],
)
def test_a_machine_whose_name_does_not_lead_to_it_is_named(name: str, said: str, monkeypatch: pytest.MonkeyPatch):
    check_own_name()
    monkeypatch.setattr(socket, "gethostname", lambda: name)
    with pytest.raises(ModelError, match=said):
        check_own_name()


def test_a_killed_rank_ends_the_other_with_a_message(folder: Path):
    with pytest.raises(ModelError, match=r"a(nother)? rank is gone"):
        _run(folder, "killed", 2, {"rank_1": {"die_at": 4}})
    _assert_none_left(folder)


def test_of_a_killed_rank_is_told_though_no_other_one_can_report(tmp_path: Path):
    with pytest.raises(ModelError, match="a rank is gone"):
        start_ranks(2, "tests.parallel.mute_rank", [str(tmp_path)])
    _assert_none_left(tmp_path)


def test_a_rank_that_only_stops_leaves_the_other_time_to_tell_why(tmp_path: Path):
    with pytest.raises(ModelError, match=r"^file 7 is torn$"):
        start_ranks(2, "tests.parallel.late_rank", [str(tmp_path)])
    _assert_none_left(tmp_path)


def test_an_interrupt_ends_every_process(folder: Path):
    (folder / "endless.json").write_text(json.dumps({"training": {"max_epochs": 100_000, "patience_epochs": 100_000}}))
    code = (
        f"from jobs.ranks import start_ranks; start_ranks(2, 'tests.parallel.rank_job', [{str(folder)!r}, 'endless'])"
    )
    caller = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, cwd=_PROJECT)
    try:
        assert caller.stderr is not None
        assert any("epoch 1/" in line for line in caller.stderr)
        caller.send_signal(signal.SIGINT)
        caller.communicate(timeout=300)
        assert caller.returncode != 0
        _assert_none_left(folder)
    finally:
        caller.kill()


def _untrained() -> dict[str, np.ndarray]:
    from model.network import Network

    network = Network(tables.NETWORK, tables.SIZES, tables.TRAINING.seed)
    return {name: weight.numpy() for name, weight in network.weights.items()}


def _assert_none_left(folder: Path) -> None:
    # Horovod's ranks move to sessions of their own, so they are looked for by their argument, not by parent.
    deadline = time.monotonic() + 60  # one that was killed may not have been given a moment to end
    while left := [command for command in _commands() if str(folder) in command]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def _commands() -> list[str]:
    return [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
