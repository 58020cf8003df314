"""Errors that people read: what, where, which value, how to fix it."""


class ModelError(Exception):
    """Data, a bundle or a set of ranks that does not fit the model. Exit code 3."""
