"""The one-command path refuses flags that do not go together before it starts anything."""

import pytest

from jobs import run


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "needs --source and --input; given: neither"),
        (["--source", "deskdrop"], "given: --source"),
        (["--input", "log.csv"], "given: --input"),
        (["--demo", "--source", "deskdrop"], "--demo makes its own log: drop --source"),
        (["--demo", "--from", "2024-01-01"], "--demo makes its own log: drop --from"),
        (["--demo", "--ranks", "0"], "--ranks 0"),
        (["--demo", "--min-ranks", "3"], "--min-ranks 3: take 1 to 2"),
        (["--demo", "--ranks", "3"], "--set 'sequences.world_sizes=[1, 2, 3, 4, 8]'"),
        (["--demo", "--set", "training.streams=3"], "training.streams = 3: sequences.world_sizes"),
        (["--demo", "--ranks", "3", "--set", "training.streams=2"], "--ranks 3: training.streams = 2, and each rank"),
        (
            ["--demo", "--set", "training.seed='[1'", "--set", "training.seed=[1"],
            "--set 'training.seed=[1': the value is",
        ),
        (["--demo", "--set", "cleaning.min_date=2024-02-31"], "--set 'cleaning.min_date=2024-02-31': the value is"),
        (["--demo", "--set", "sequences.world_sizes=[]"], "name one number of ranks or more"),
        (["--demo", "--set", "sequences.world_sizes=[2, 0]"], "each at least 1"),
        (
            ["--demo", "--set", "sessions.gap_s=900"],
            "is not valid: sequences.gap_edges_s = [1, 10, 60, 300, 1800, 7200, 21600, 86400, 259200, 604800, 2592000] "
            "does not hold sessions.gap_s = 900: the model could not see where a session starts. Add 900 to the edges.",
        ),
        (
            ["--source", "deskdrop", "--input", "x", "--from", "2024-02-02", "--date", "2024-02-01"],
            "--from 2024-02-02 lies after --date 2024-02-01",
        ),
    ],
)
def test_flags_that_do_not_go_together_exit_2(
    flags: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "spark_session", lambda name: pytest.fail(f"started Spark: {name}"))
    assert run.main(["--root", "never-made", *flags]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_stages_are_numbered_and_timed(capsys: pytest.CaptureFixture[str]) -> None:
    stages = run.Stages(2)
    assert stages.run("first", "doing this", lambda: 7, lambda n: f"{n} rows") == 7
    with pytest.raises(ValueError, match="broken"):
        stages.run("second", "doing that", lambda: int("broken"), str)
    first, done, second = capsys.readouterr().err.splitlines()
    assert first == "[1/2] first: doing this …"
    assert done.startswith("[1/2] first: 7 rows (")
    assert second == "[2/2] second: doing that …"
