"""How work is cut: equal row groups that every planned number of ranks can share, shuffle partitions from bytes."""

from math import lcm

import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.contracts import ContractError
from features.partitions import partitions_for, plan_row_groups
from jobs.sessionize import unpacked_bytes

MIB = 1 << 20
NAME = "training_sequences_v1, split train"
WORLD_SIZES = st.lists(st.integers(1, 8), min_size=1, max_size=4).map(tuple)


@given(WORLD_SIZES, st.integers(0, 50_000), st.integers(1, 5_000), st.integers(1, 3))
def test_groups_hold_every_row_once_in_equal_shares(
    world_sizes: tuple[int, ...], more: int, row_bytes: int, group_mib: int
) -> None:
    n_rows = lcm(*world_sizes) + more
    plan = plan_row_groups(n_rows, row_bytes, world_sizes, group_mib, NAME)
    assert sum(plan.sizes) == n_rows
    assert min(plan.sizes) >= 1
    assert max(plan.sizes) - min(plan.sizes) <= 1
    assert (max(plan.sizes) - 1) * row_bytes <= group_mib * MIB
    for world_size in world_sizes:
        assert len(plan.sizes) % world_size == 0
    assert plan.starts == tuple(sum(plan.sizes[:index]) for index in range(len(plan.sizes)))


@pytest.mark.parametrize(
    ("n_rows", "row_bytes", "world_sizes", "sizes"),
    [
        (11, 1, (1, 2), (6, 5)),
        (11, 1, (2, 3), (2, 2, 2, 2, 2, 1)),
        (4, 1, (4, 2), (1, 1, 1, 1)),
        (4, MIB, (1,), (1, 1, 1, 1)),
        (5, 9 * MIB, (2,), (2, 1, 1, 1)),
    ],
)
def test_sizes_by_hand(n_rows: int, row_bytes: int, world_sizes: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    assert plan_row_groups(n_rows, row_bytes, world_sizes, 1, NAME).sizes == sizes


def test_too_few_rows_name_the_table_the_split_and_the_key() -> None:
    assert len(plan_row_groups(8, 1, (1, 2, 4, 8), 1, NAME).sizes) == 8
    with pytest.raises(ContractError) as refused:
        plan_row_groups(7, 1, (1, 2, 4, 8), 1, NAME)
    assert str(refused.value) == (
        "training_sequences_v1, split train: 7 rows cannot be shared among sequences.world_sizes = [1, 2, 4, 8], which "
        "need 8 row groups. Take a longer log or lower sequences.world_sizes."
    )


@pytest.mark.parametrize(
    ("input_bytes", "n"), [(0, 3), (1, 3), (3 * 64 * MIB, 3), (3 * 64 * MIB + 1, 4), (1000 * MIB, 16)]
)
def test_partitions_take_their_share_and_are_never_fewer_than_asked(input_bytes: int, n: int) -> None:
    assert partitions_for(input_bytes, partition_mib=64, least=3) == n


def test_a_run_is_planned_by_its_log_unpacked_and_by_what_it_takes_up() -> None:
    log = {"1.csv": 64 * MIB, "2.csv.gz": 10 * MIB}
    assert unpacked_bytes(log, carried=0) == (64 + 5 * 10) * MIB
    assert unpacked_bytes(log, carried=20 * MIB) == (64 + 5 * 10 + 4 * 20) * MIB
    quiet_night = unpacked_bytes({"3.csv": 1}, carried=400 * MIB)
    assert partitions_for(quiet_night, partition_mib=64, least=2) == 26
