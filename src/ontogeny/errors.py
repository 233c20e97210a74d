"""The one error that a person is meant to read, and the check that raises it most often.

Kept apart so that the command line need not import JAX.
"""


class BadInput(ValueError):
    """Something that a person gave cannot be used; the message is one clear sentence about it."""


class ContractViolation(BadInput):
    """An agent, most likely one of a person's own, did what the three laws forbid."""


def require_at_least(least: float, **settings: float) -> None:
    """Raises `BadInput` for the first setting that is smaller than `least`, or no number."""
    for name, value in settings.items():
        if not value >= least:
            raise BadInput(f"the setting '{name}' must be at least {least}, not {value}")


def require_probability(**settings: float) -> None:
    """Raises `BadInput` for the first setting that does not lie between 0 and 1."""
    for name, value in settings.items():
        if not 0 <= value <= 1:
            raise BadInput(f"the setting '{name}' must lie between 0 and 1, not {value}")
