"""Measurements against named peers in the same run; each prints a table, or JSON lines with --json."""
