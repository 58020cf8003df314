"""What watches a training, fed with made-up steps. Files for TensorBoard and MLflow: tests/model."""

import io
import os
from types import SimpleNamespace
from typing import Any

import pytest

from jobs import ranks
from model import watch
from model.bar import Bar, BarLines
from model.checkpoint import Progress
from model.watch import EpochFigures, Lines, Plan, Step, Summary, TrainSums, Watcher, Watchers

STEP = Step(
    epoch=1,
    max_epochs=2,
    step=1,
    steps=4,
    number=1,
    item_loss=3.25,
    category_loss=1.5,
    own_item_loss=3.0,
    own_category_loss=1.0,
    learning_rate=0.01,
    events_per_s=12_345.6,
    seconds=2.0,
)
ROW = {
    "epoch": 1,
    "train_item_loss": 3.0,
    "train_category_loss": 1.0,
    "valid_item_loss": 2.5,
    "valid_category_loss": 0.9,
    "valid_item_ndcg": 0.123456,
    "valid_category_ndcg": 0.5,
    "events_per_s": 1234.5,
    "seconds": 61.7,
}
EPOCH_LINE = (
    "epoch 1/2  train 3.000 item, 1.000 category  valid 2.500, 0.900  NDCG@10 0.1235, 0.5000  1,234 events/s  62 s"
    "  best so far"
)
PLAN = Plan("abc", 1, 2, 0, ())


class Seen(Watcher):
    def __init__(self) -> None:
        self.seen: list[Step] = []

    def step(self, step: Step) -> None:
        self.seen.append(step)


def at(step: int, **changes: Any) -> Step:
    return Step(**{**vars(STEP), "step": step, "number": step, "seconds": 2.0 * step, **changes})


def test_lines_come_every_ten_seconds_and_at_the_end_of_an_epoch() -> None:
    said: list[str] = []
    lines = Lines(said.append)
    lines.started(PLAN)
    for step in range(1, 9):
        lines.step(at(step, steps=8))
    lines.step(at(6, epoch=2, steps=8))  # twelve seconds into the next epoch
    assert said == [
        "epoch 1/2  step 5/8  loss 3.250 item, 1.500 category  12,346 events/s  6 s left",
        "epoch 2/2  step 6/8  loss 3.250 item, 1.500 category  12,346 events/s  4 s left",
    ]
    said.clear()
    lines.epoch([ROW], True)
    assert said == [EPOCH_LINE]


def test_a_watcher_that_fails_is_told_of_once_and_left_out() -> None:
    class Torn(Watcher):
        def step(self, step: Step) -> None:
            raise OSError(f"disk full at {step.number}")

    said: list[str] = []
    summary = Summary()
    both = Watchers([Torn(), summary], said.append)
    both.started(PLAN)
    both.step(STEP)
    both.step(at(2))
    both.epoch([ROW], True)
    assert said == ["Torn stopped: OSError: disk full at 1. The training goes on without it."]
    assert summary.events_per_s == 1234.5


def test_figures_are_means_over_targets_and_over_the_epoch_also_of_one_that_was_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    monkeypatch.setattr(watch.time, "monotonic", lambda: clock[0])
    steps = [TrainSums(8, 4, 2, 2, 10), TrainSums(2, 1, 0, 0, 30), TrainSums(0, 5, 4, 4, 0)]
    whole, cut = (EpochFigures(Seen(), 9, 3, Progress("abc", 1, 1, epoch=2, step=6)) for _ in range(2))
    for number, (second, sums) in enumerate(zip((2.0, 4.0, 8.0), steps, strict=True), start=7):
        clock[0] = second
        whole.add(sums, number, 0.5)
        if number == 7:
            cut.add(sums, number, 0.5)
            state = cut.state()
    assert [(step.step, step.number, step.item_loss, step.own_item_loss) for step in whole._watcher.seen] == [
        (1, 7, 2.0, 2.0),
        (2, 8, 2.0, 2.0),
        (3, 9, 1.0, 0.0),
    ]
    assert [step.events_per_s for step in whole._watcher.seen] == [5.0, 10.0, 5.0]
    assert whole.row() == {"train_item_loss": 1.0, "train_category_loss": 1.0, "events_per_s": 5.0}

    clock[0] = 102.0  # a hundred seconds nobody trained
    resumed = EpochFigures(Seen(), 9, 3, Progress("abc", 1, 1, epoch=2, step=7, **state))
    for number, (second, sums) in enumerate(zip((104.0, 108.0), steps[1:], strict=True), start=8):
        clock[0] = second
        resumed.add(sums, number, 0.5)
    assert resumed._watcher.seen == whole._watcher.seen[1:]


def test_the_bar_shows_loss_speed_and_time_left_and_leaves_the_lines() -> None:
    screen = io.StringIO()
    bar = Bar(screen, width=120)
    bar.started(PLAN)
    bar.step(STEP)
    bar.say("checkpoint written")
    bar.step(at(4))
    drawn = screen.getvalue().split("\r")
    assert any(
        part.startswith("epoch 1/2   25%|") and "loss 3.250 item, 1.500 category  12,346 events/s  6 s left" in part
        for part in drawn
    )
    assert any(part.startswith("epoch 1/2  100%|") and " 4/4, loss" in part for part in drawn)
    bar.epoch([ROW], True)
    bar.close()
    lines = on_screen(screen.getvalue())
    assert lines == ["checkpoint written", EPOCH_LINE, ""]


def test_a_rank_without_a_terminal_draws_on_that_of_the_process_that_started_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[str] = []
    lines = BarLines(sent.append)
    lines.started(PLAN)
    with monkeypatch.context() as patch:
        patch.setattr("model.bar.time", SimpleNamespace(monotonic=lambda: 1000.0))
        for step in range(1, 5):
            lines.step(at(step))
    lines.epoch([ROW], True)
    assert len(sent) == 3  # the first step, the last one, and the epoch; those in between came too soon
    screen = io.StringIO()
    monkeypatch.setattr(ranks, "terminal_bar", lambda: Bar(screen, width=120))
    monkeypatch.setenv("INTEREST_TEST_LINES", "\n".join(sent))
    ranks.start_ranks(1, "tests.unit.test_watch", [])
    assert "loss 3.250 item" in screen.getvalue()
    assert on_screen(screen.getvalue()) == [EPOCH_LINE, "bar 1", ""]


@pytest.mark.parametrize(
    ("n_ranks", "one_rank", "text"),
    [
        (1, 1000.0, "best epoch 1 of 2, 90 s, 1,500 events/s (mean over epochs), 1 x 3 (ranks x threads)"),
        (2, None, "1,500 events/s (mean over epochs), 2 x 3 (ranks x threads), 750 events/s per rank"),
        (2, 800.0, "2 x 3 (ranks x threads), 1.88 times one rank (800 events/s)"),
    ],
)
def test_the_summary_says_what_is_known(n_ranks: int, one_rank: float | None, text: str) -> None:
    summary = Summary()
    summary.started(Plan("abc", n_ranks, 2, 0, ()))
    for speed in (1000.0, 2000.0):
        summary.epoch([{**ROW, "events_per_s": speed}], False)
    line = summary.line(1, 2, 90.4, 3, one_rank)
    assert line.startswith("summary: best epoch 1 of 2, 90 s, ")
    assert line.endswith(text)
    summary.started(Plan("abc", n_ranks, 2, 8, (ROW, ROW)))
    assert summary.line(1, 2, 3.0, 3, one_rank) == "summary: best epoch 1 of 2, 3 s, no epoch was left to train"


def on_screen(text: str) -> list[str]:
    """The lines that stay, as a terminal shows them: what follows a carriage return is written over what is there."""
    lines = []
    for line in text.split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        lines.append(shown.rstrip())
    return lines


if __name__ == "__main__":  # a rank: says what it is to say, and whether it knows of the bar
    print(os.environ["INTEREST_TEST_LINES"], "bar " + os.environ["INTEREST_BAR"], sep="\n")
