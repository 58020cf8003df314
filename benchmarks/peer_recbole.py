"""RecBole's GRU4Rec on the MovieLens 100k that it brings: seconds to its best epoch, and its metrics there.

In an environment of its own, without this project: `pip install torch==2.13.0 recbole==1.2.1`, then `python
benchmarks/peer_recbole.py`. Its defaults, the protocol of conf/quality/movielens-100k.yaml: the last film of each user
tests, the one before validates, all films are ranked, seen ones included; training ends ten epochs after the best one.
"""

import functools
import sys
import tempfile
import time

import numpy as np
import torch

# RecBole 1.2.1 names types that NumPy 2 has dropped, and saves what torch no longer loads unasked.
for _name, _kind in {"bool_": np.bool_, "float_": np.float64, "complex_": np.complex128, "unicode_": np.str_}.items():
    if not hasattr(np, _name):
        setattr(np, _name, _kind)
torch.load = functools.partial(torch.load, weights_only=False)

from recbole.config import Config  # noqa: E402
from recbole.data import create_dataset, data_preparation  # noqa: E402
from recbole.utils import get_model, get_trainer, init_seed  # noqa: E402

_MODEL = "GRU4Rec"


def main() -> int:
    """Train to the end and print one line for each epoch and the result."""
    with tempfile.TemporaryDirectory(prefix="interest-peer-") as place:
        settings = {
            "load_col": {"inter": ["user_id", "item_id", "rating", "timestamp"]},
            "train_neg_sample_args": None,
            "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"},
            "metrics": ["Hit", "NDCG", "MRR"],
            "topk": [10],
            "valid_metric": "MRR@10",
            "use_gpu": False,
            "checkpoint_dir": place,
        }
        config = Config(model=_MODEL, dataset="ml-100k", config_dict=settings)
        init_seed(config["seed"], reproducibility=True)
        dataset = create_dataset(config)
        train, valid, test = data_preparation(config, dataset)
        trainer = get_trainer(config["MODEL_TYPE"], _MODEL)(config, get_model(_MODEL)(config, train.dataset))
        started, best, best_s = time.monotonic(), 0.0, 0.0

        def after(epoch: int, score: float) -> None:
            nonlocal best, best_s
            seconds = time.monotonic() - started
            if score > best:
                best, best_s = score, seconds
            print(f"epoch {epoch + 1}  validation MRR@10 {score:.4f}  {seconds:.1f} s", flush=True)

        trainer.fit(train, valid, saved=True, show_progress=False, callback_fn=after)
        found = trainer.evaluate(test, load_best_model=True, show_progress=False)
        print(f"best after {best_s:.1f} s: HR@10 {found['hit@10']:.4f}, NDCG@10 {found['ndcg@10']:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
