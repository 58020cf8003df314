from typing import Any

import pytest

from model.errors import ModelError
from model.preflight import agree, library_versions
from model.workers import SingleProcess, StoppedByRankError

FACTS = {"configuration": "a", "vocabulary": "b", "data": "c", "code": "d", "steps per epoch": "10"}


class Ranks(SingleProcess):
    """One of three ranks; the others' facts are given."""

    size = 3

    def __init__(self, rank: int, second: dict[str, str], third: dict[str, str]) -> None:
        self.rank, self._others = rank, [second, third]

    def gather(self, value: Any) -> list[Any]:
        return [value, *self._others]


def test_ranks_with_the_same_facts_pass():
    agree(Ranks(0, FACTS, FACTS), FACTS)


@pytest.mark.parametrize("fact", FACTS)
def test_every_difference_is_named_with_its_rank_on_all_ranks(fact: str):
    with pytest.raises(ModelError, match=f"3 ranks do not agree.*: rank 2 has {fact} x, rank 0 has {FACTS[fact]}"):
        agree(Ranks(0, FACTS, {**FACTS, fact: "x"}), FACTS)
    with pytest.raises(StoppedByRankError):
        agree(Ranks(2, FACTS, {**FACTS, fact: "x"}), FACTS)


def test_a_fact_that_only_one_rank_has_is_named_too():
    with pytest.raises(ModelError, match=r"rank 1 has version of horovod None, rank 0 has 0\.28\.1"):
        agree(Ranks(0, FACTS, {**FACTS, "version of horovod": "0.28.1"}), {**FACTS, "version of horovod": "0.28.1"})


def test_versions_of_what_shapes_the_result_are_known():
    assert {"version of horovod", "version of petastorm", "version of numpy"} <= library_versions().keys()
