"""A rank that reports nothing: rank 1 is killed, the other one waits until it is ended too. For test_ranks."""

import os
import signal
import time

if os.environ["HOROVOD_RANK"] == "1":
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(600)
