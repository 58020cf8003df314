"""jobs.evaluate beyond its table: a second bundle, ensembles, groups of users and calibration in what it writes."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs.evaluate import Choice
from jobs.evaluation_table import format_table
from jobs.evaluation_texts import detail_texts
from jobs.settings import UsageError
from model.errors import ModelError
from tests.unit.test_evaluation import N_USERS, TOKENS, RightNext, job, write_sequences  # noqa: F401


def another(job, name="other", step=2, data_hash=None):  # noqa: F811
    """A second bundle beside the job's: it names the item `step` after the last one."""
    model = RightNext(data_hash or job.model.bundle.data_hash)
    model.step, model.model_version = step, f"2024-03-10-{name}"
    model.bundle = SimpleNamespace(**{**vars(model.bundle), "model_version": model.model_version})
    job.others[name] = model
    return model


def lines_of(result):
    return [json.loads(line) for line in Path(result.path, "metrics.jsonl").read_text().splitlines()]


def test_a_second_bundle_is_a_row_with_paired_tests(job):  # noqa: F811
    other = another(job)
    result = job(choice=Choice(against="other"))
    rows = [
        x for x in lines_of(result) if (x["model"], x["target"], x["metric"], x["k"]) == ("against", "item", "hr", 1)
    ]
    assert [(row["value"], row["model_version"]) for row in rows] == [(0, other.model_version)]
    summary = json.loads(Path(result.path, "summary.json").read_text())
    (test,) = (x for x in summary["against"] if (x["target"], x["metric"], x["k"]) == ("item", "hr", 1))
    assert (test["first_value"], test["second_value"], test["difference"]) == (1, 0, 1)
    assert (test["low"], test["high"], test["n"], test["n_differ"]) == (1, 1, N_USERS, N_USERS)
    assert test["p_value"] == pytest.approx(1 / 201, abs=1e-6)  # none of 200 flips of 20 users is as far out
    assert [said["best_baseline"] for said in result.headlines] != ["against", "against"]
    text = "\n".join(detail_texts(result, cohorts=False, markdown=False))
    assert text.startswith(f"{job.model.model_version} against {other.model_version}, paired over users")
    line = next(line for line in text.splitlines() if line.startswith("next item, HR@1 "))
    assert line.split()[3:] == ["1.0000", "0.0000", "+1.0000", "[+1.0000,", "+1.0000]", "0.0050", "20", "of", "20"]


def test_a_bundle_against_itself_does_not_differ(job):  # noqa: F811
    result = job(choice=Choice(against=f"{job.root}/bundle/dt=2024-03-10"))
    assert {(test.difference, test.p_value, test.n_differ) for test in result.details.tests} == {(0, 1, 0)}
    assert len(result.details.tests) == 2 * 6 * 3  # targets, metrics, cut-offs


def test_a_second_bundle_of_other_sequences_is_refused_unless_they_end_earlier(job):  # noqa: F811
    another(job, data_hash="feed")
    with pytest.raises(ModelError, match=r"2024-03-10-other in other was trained on .* feed.*may hold the labels"):
        job(choice=Choice(against="other"))
    cutoffs = {"test_cutoff": "2024-03-09T00:00:00Z", "valid_cutoff": "2024-03-08T00:00:00Z"}
    earlier = write_sequences(job.root, day="2024-03-09", **cutoffs)
    another(job, data_hash=earlier.hash)
    assert job(choice=Choice(against="other")).versions["against"] == "2024-03-10-other"
    later = write_sequences(job.root, day="2024-03-09", test_cutoff="2024-03-11T00:00:00Z")
    another(job, data_hash=later.hash)
    with pytest.raises(ModelError, match="may hold the labels"):
        job(choice=Choice(against="other"))


def test_a_bundle_whose_ids_mean_other_tokens_is_refused(job):  # noqa: F811
    other = another(job)
    other.bundle.vocabulary = {**TOKENS, "item": ["", "", "i0", "i2", "i1", "i3"]}
    with pytest.raises(ModelError, match="they are not of one root"):
        job(choice=Choice(against="other"))


def test_an_ensemble_is_judged_as_the_model(job):  # noqa: F811
    path = f"{job.root}/bundle/dt=2024-03-10"
    another(job)
    another(job, "third", step=1)
    result = job(choice=Choice((path, "other", "third"), "probabilities", against=path))
    assert result.versions["model"] == f"probabilities of {job.model.model_version}, 2024-03-10-other, 2024-03-10-third"
    right = [x for x in result.evaluation.rows if (x.model, x.target, x.metric, x.k) == ("model", "item", "hr", 1)]
    assert right[0].value == 1  # two of three name the right item
    assert result.details.calibrations["model", "item"].confidence == pytest.approx(2 / 3, abs=1e-5)
    assert result.details.calibrations["model", "item"].ece == pytest.approx(1 / 3, abs=1e-5)
    ranks = job(choice=Choice((path, "other"), "ranks"))
    assert ("model", "item") not in ranks.details.calibrations
    assert "Calibration" not in format_table(ranks)


@pytest.mark.parametrize("choice", [Choice(("a", "b")), Choice(("a",), "ranks"), Choice((), "ranks")])
def test_several_bundles_need_a_mean_and_a_mean_several_bundles(job, choice):  # noqa: F811
    with pytest.raises(UsageError, match="--ensemble makes one model of several bundles"):
        job(choice=choice)


def test_groups_of_users_and_calibration_are_always_written(job):  # noqa: F811
    result = job()
    lines = lines_of(result)
    cohorts = [x for x in lines if x["metric"] == "cohort_ndcg" and x["target"] == "item" and x["model"] == "model"]
    assert {(x["cohort"], x["group"], x["n"]) for x in cohorts if x["cohort"] == "history length"} == {
        ("history length", "1+ events", N_USERS)
    }
    acted = [(x["group"], x["n"], x["value"]) for x in cohorts if x["cohort"] == "label action"]
    assert acted == [("view", N_USERS, 1)]
    popular = [x for x in cohorts if x["cohort"] == "label popularity"]
    assert sum(x["n"] for x in popular) == N_USERS
    assert all(x["value"] == 1 and x["cutoff"] == "2024-03-10T00:00:00Z" for x in popular)
    assert {x["model"] for x in lines if x["metric"] == "cohort_hr"} >= {"model", "markov", "popularity"}
    (curve,) = (x for x in lines if (x["metric"], x["target"]) == ("ece", "item"))
    assert (curve["value"], curve["confidence"], curve["accuracy"], curve["n"]) == (0, 1, 1, N_USERS)
    assert [part["n"] for part in curve["bins"]] == [10, 10]
    assert curve["model_version"] == job.model.model_version
    assert "Calibration of the first choice, 2 bins of equally many users: next category ECE 0.000" in " ".join(
        format_table(result).split()
    )


def test_groups_are_printed_where_asked_for(job):  # noqa: F811
    result = job(history_edges=(2, 4))
    assert list(detail_texts(result, cohorts=False, markdown=False)) == []
    (text,) = detail_texts(result, cohorts=True, markdown=False)
    line = next(line for line in text.splitlines() if line.startswith("history length: 3–4 events"))
    assert line.split()[4:7] == ["20", "1.0000", "[1.0000,"]
    assert "Next item, NDCG@10 by groups of users" in text
    (table,) = detail_texts(result, cohorts=True, markdown=True)
    assert "| --" in table
