"""Bringing the project onto a cluster: what is shipped (package), and a small cluster of one's own (cluster)."""
