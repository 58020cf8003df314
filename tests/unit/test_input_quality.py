"""A night's log against the nights before it: what stops, what is left out, what may be passed over."""

from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from features.contracts import ContractError
from features.input_quality import INPUT_CHECKS, NightFacts, judge_input, with_others
from jobs.night_input import QUALITY, accepted_nights, refuse_bad
from jobs.settings import UsageError, load_settings
from jobs.steps import Steps
from jobs.store import Store

SPEC = load_settings().input_quality
GOOD = NightFacts(
    date="2024-03-10",
    rows_read=10_000,
    rows_refused=10,
    events=9_000,
    users=2_000,
    new_users=100,
    events_with_category=9_000,
    oov_items=90,
    oov_categories=0,
    actions={"view": 6_000, "click": 3_000, "like": 0, "cart": 0, "buy": 0},
    categories={f"c{k}": 300 for k in range(30)},
)
BEFORE = [replace(GOOD, date=f"2024-03-0{k}", events=9_000 + 100 * k) for k in (9, 8, 7, 6)]
TURNED = dict(zip(GOOD.categories, [3_000, *[207] * 29], strict=True))


def test_a_night_like_the_others_is_good() -> None:
    findings = judge_input(GOOD, BEFORE, SPEC)
    assert {finding.check for finding in findings} == set(INPUT_CHECKS)
    assert all(finding.is_good for finding in findings)
    refuse_bad(findings, frozenset(), date(2024, 3, 10))


@pytest.mark.parametrize(
    ("check", "night"),
    [
        ("volume", replace(GOOD, events=4_000)),
        ("volume", replace(GOOD, events=20_000)),
        ("rejected", replace(GOOD, rows_refused=600)),
        ("oov_items", replace(GOOD, oov_items=5_000)),
        ("oov_categories", replace(GOOD, oov_categories=2_000)),
        ("new_users", replace(GOOD, new_users=1_100)),
        ("actions", replace(GOOD, actions={**GOOD.actions, "view": 3_000, "click": 6_000})),
        ("categories", replace(GOOD, categories=TURNED)),
    ],
)
def test_each_check_stops_alone_and_can_be_passed_over(check: str, night: NightFacts) -> None:
    findings = judge_input(night, BEFORE, SPEC)
    (bad,) = [finding for finding in findings if not finding.is_good]
    assert bad.check == check
    with pytest.raises(ContractError, match=rf"{check} = [\d.e+-]+ .*allowed: .*--accept {check}"):
        refuse_bad(findings, frozenset(), date(2024, 3, 10))
    refuse_bad(findings, frozenset({check}), date(2024, 3, 10))


def test_volume_is_measured_by_the_median_so_that_one_bad_night_does_not_move_it() -> None:
    nights = [replace(GOOD, events=100), *BEFORE[:2], replace(GOOD, events=90_000), *BEFORE[2:]]
    (volume,) = [finding for finding in judge_input(GOOD, nights, SPEC) if finding.check == "volume"]
    assert volume.value == pytest.approx(9_000 / 9_750)


def test_without_enough_nights_only_what_the_night_says_by_itself_is_judged() -> None:
    checks = {finding.check for finding in judge_input(GOOD, BEFORE[: SPEC.min_nights - 1], SPEC)}
    assert checks == {"rejected", "oov_items", "oov_categories"}
    first = replace(GOOD, oov_items=None, oov_categories=None, new_users=None)
    assert {finding.check for finding in judge_input(first, [], SPEC)} == {"rejected"}


@pytest.mark.parametrize("n_nights", [0, 1, len(BEFORE)])
def test_a_night_without_one_event_is_stopped_however_few_the_nights_unless_that_is_allowed(n_nights: int) -> None:
    counts = {"rows_read": 0, "rows_refused": 0, "events": 0, "users": 0, "new_users": 0, "events_with_category": 0}
    nothing: dict[str, dict[str, int]] = {"actions": dict.fromkeys(GOOD.actions, 0), "categories": {}}
    empty = replace(GOOD, oov_items=0, **counts, **nothing)
    findings = judge_input(empty, BEFORE[:n_nights], SPEC)
    assert [finding.check for finding in findings if not finding.is_good] == ["volume"]
    with pytest.raises(ContractError, match=r"volume = 0 .*allowed: at least 0\.5 .*--accept volume"):
        refuse_bad(findings, frozenset(), date(2024, 3, 10))
    allowed = judge_input(empty, BEFORE[:n_nights], SPEC.model_copy(update={"volume_low": 0.0}))
    assert all(finding.is_good for finding in allowed)


def test_only_accepted_nights_before_the_day_count(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for day, accepted in ((5, True), (6, False), (7, True), (8, True), (9, True)):
        facts = replace(GOOD, date=f"2024-03-0{day}").to_json()
        Steps(store, date(2024, 3, day)).write(QUALITY, {"facts": facts, "accepted": accepted})
    found = accepted_nights(store, date(2024, 3, 9), 2)
    assert [night.date for night in found] == ["2024-03-08", "2024-03-07"]
    assert found[0] == replace(GOOD, date="2024-03-08")
    assert len(accepted_nights(store, date(2024, 3, 9), 9)) == 3


def test_what_is_not_kept_of_the_categories_is_one_number() -> None:
    assert with_others({"a": 3, "b": 2}, 9) == {"a": 3, "b": 2, "": 4}
    assert with_others({"a": 3}, 3) == {"a": 3}


def test_more_nights_needed_than_looked_at_is_refused() -> None:
    with pytest.raises(UsageError, match="min_nights = 9 is more than nights = 2"):
        load_settings(assignments=["input_quality.min_nights=9", "input_quality.nights=2"])
