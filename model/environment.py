"""Names of environment variables that those who start ranks and the ranks share. Loads nothing."""

RANKS_HERE = "INTEREST_RANKS_HERE"  # ranks that share this machine's cores, where Horovod takes one machine for several
RANK_CORES = "INTEREST_RANK_CORES"  # cores of the task that a rank runs in, on a Spark cluster
