import pytest

from model import step


@pytest.fixture(autouse=True)
def batches_in_one_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever cores there are: a graph of several parts takes longer to build, and tests/model/test_step.py has it."""
    monkeypatch.setattr(step, "threads_in_use", lambda: 1)
