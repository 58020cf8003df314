from datetime import datetime
from types import SimpleNamespace

import pytest

from features import columns as c
from jobs.future_inputs import model_futures, period_end_us
from model.errors import ModelError


def test_labels_end_where_the_events_of_the_split_or_fold_do():
    counters = {"test_cutoff": "2024-05-25T00:00:00+00:00", "end_cutoff": "2024-05-29T00:00:00+00:00"}
    for split, wanted in ((c.VALID, "2024-05-25"), (c.TEST, "2024-05-29")):
        end_us = period_end_us(counters, SimpleNamespace(split=split, date="2024-06-01"))
        assert end_us == datetime.fromisoformat(f"{wanted}T00:00:00+00:00").timestamp() * 1e6


def test_a_model_of_other_horizons_is_refused_by_name():
    predictor = SimpleNamespace(sizes=SimpleNamespace(horizons_days=(1, 7)), model_version="m1")
    rows = SimpleNamespace(period_s=86_400)
    with pytest.raises(ModelError, match=r"Model m1 looks \[1, 7\] days ahead, .* \[1, 7, 30\]"):
        model_futures(predictor, rows, (1, 7, 30))
    model_futures(predictor, rows, (7,))  # fewer are fine
