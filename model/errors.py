"""Errors that people read: what, where, which value, how to fix it."""


class ModelError(Exception):
    """Data, a bundle or a set of ranks that does not fit the model. Exit code 3."""


def rank_gone(whose: str = "a rank", place: str = "machine") -> str:
    """What is said where a rank ended without a word. place: what may have been lost with it."""
    return (
        f"Training stopped because {whose} is gone (killed, out of memory, or its {place}). Start it again: it goes on "
        "from the latest checkpoint."
    )
