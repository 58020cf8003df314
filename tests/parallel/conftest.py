from pathlib import Path

import pytest

from jobs.ranks import start_ranks
from tests.parallel import trials


@pytest.fixture(scope="session")
def folder_of_whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows, and the case `whole`: the training in one process that nothing interrupts."""
    made = tmp_path_factory.mktemp("trials")
    trials.write_rows(made)
    trials.write_case(made, "whole")
    start_ranks(1, "tests.parallel.rank_job", [str(made), "whole"])
    return made
