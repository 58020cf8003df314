"""Two ranks: rank 0 stops because of an error of rank 1, which is slow to tell it. For test_ranks."""

import argparse
import os
import sys
import time

from jobs.ranks import run_rank
from model.errors import ModelError
from model.workers import StoppedByRankError


def _main(_arguments: argparse.Namespace) -> None:
    if os.environ["HOROVOD_RANK"] == "0":
        raise StoppedByRankError("rank 1 has an error")
    time.sleep(3)
    raise ModelError("file 7 is torn")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.set_defaults(debug=False)
    sys.exit(run_rank(_main, parser, sys.argv[1:]))
