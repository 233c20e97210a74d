"""The one error that a person is meant to read. Kept apart so that the command line need not import JAX."""


class BadInput(ValueError):
    """Something that a person gave cannot be used; the message is one clear sentence about it."""
