import numpy as np
import pytest

from model.cohorts import by_action, by_history, by_popularity, by_rung, cohort_values


def ids(*values):
    return np.array(values, dtype=np.int32)


def names(cohorts):
    return [cohorts.groups[group] for group in cohorts.of_row]


def test_history_by_edges():
    cohorts = by_history(ids(1, 5, 6, 20, 21, 50), (5, 20))
    assert names(cohorts) == ["1–5 events"] * 2 + ["6–20 events"] * 2 + ["21+ events"] * 2
    assert by_history(ids(1, 2), (1,)).groups == ("1 events", "2+ events")


def test_history_by_quartiles_of_the_users():
    length = ids(*range(1, 101))
    cohorts = by_history(np.random.default_rng(0).permutation(length), ())
    assert cohorts.groups == ("1–25 events", "26–50 events", "51–75 events", "76+ events")
    assert np.bincount(cohorts.of_row).tolist() == [25, 25, 25, 25]


def test_quartiles_that_coincide_make_fewer_groups():
    full = by_history(ids(3, 50, 50, 50, 50, 50, 50, 50), ())
    assert full.groups == ("1+ events",)  # all three are the longest length
    assert by_history(ids(2, 2, 2, 2, 2, 50), ()).groups == ("1–2 events", "3+ events")


def naive_popularity(counts, shares):
    """Items from the most frequent down, each where its first event falls."""
    order = sorted((i for i in range(2, len(counts)) if counts[i]), key=lambda i: (-counts[i], i))
    total, before, group = sum(counts), 0, {}
    for item in order:
        share = before / total
        group[item] = "head" if share < shares[0] else "middle" if share < shares[1] else "tail"
        before += counts[item]
    return [group.get(item, "not in training") for item in range(len(counts))]


@pytest.mark.parametrize("seed", range(20))
def test_popularity_is_that_of_a_slow_count(seed):
    rng = np.random.default_rng(seed)
    counts = np.concatenate([[0, 0], rng.integers(0, 9, rng.integers(1, 30))])
    shares = (0.5, 0.8) if seed % 2 else (0.25, 0.5)
    cohorts = by_popularity(np.arange(len(counts), dtype=np.int32), counts, shares)
    assert names(cohorts) == naive_popularity(counts.tolist(), shares)


def test_popularity_by_hand():
    # Of 10 events: id 3 has 5 (head up to half), 2 has 3 (from .5 to .8), 5 and 6 one each; 4 none; 1 is unknown.
    cohorts = by_popularity(ids(3, 2, 5, 6, 4, 1), np.array([0, 0, 3, 5, 0, 1, 1]), (0.5, 0.8))
    assert names(cohorts) == ["head", "middle", "tail", "tail", "not in training", "not in training"]


def test_actions_are_named():
    assert names(by_action(ids(2, 6, 1, 0, 4))) == ["view", "buy", "unknown", "unknown", "like"]


def test_rungs_by_known_events():
    assert names(by_rung(np.array([0, 1, 2, 3, 50]), 3)) == [
        "unknown to the model",
        *["short_history"] * 2,
        "model",
        "model",
    ]


def test_groups_add_up_to_the_whole():
    rng = np.random.default_rng(1)
    values = {"model": rng.random(90, dtype=np.float32), "other": rng.random(90, dtype=np.float32)}
    cohorts = by_history(rng.integers(1, 60, 90).astype(np.int32), (10, 30, 100))
    found = list(cohort_values(cohorts, values, 300, seed=0))
    assert {value.group for value in found} == {"1–10 events", "11–30 events", "31–100 events"}  # none has 101
    for model, column in values.items():
        own = [value for value in found if value.model == model]
        assert sum(value.value * value.n for value in own) / 90 == pytest.approx(column.mean(), abs=1e-5)
        assert sum(value.n for value in own) == 90
        for value in own:
            mean = column[[group == value.group for group in names(cohorts)]].mean()
            assert value.value == pytest.approx(mean, abs=1e-6)
            assert value.low <= value.value <= value.high
