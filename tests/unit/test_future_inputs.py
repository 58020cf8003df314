from types import SimpleNamespace

import pytest

from jobs.future_inputs import model_futures
from model.errors import ModelError


def test_a_model_of_other_horizons_is_refused_by_name():
    predictor = SimpleNamespace(sizes=SimpleNamespace(horizons_days=(1, 7)), model_version="m1")
    rows = SimpleNamespace(period_s=86_400)
    with pytest.raises(ModelError, match=r"Model m1 looks \[1, 7\] days ahead, .* \[1, 7, 30\]"):
        model_futures(predictor, rows, (1, 7, 30))
    model_futures(predictor, rows, (7,))  # fewer are fine
