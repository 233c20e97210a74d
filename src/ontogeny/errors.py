"""The errors that a user is meant to read, and the checks of settings that raise them most often.

The module imports nothing, so that the command line need not import JAX.
"""

from collections.abc import Collection, Mapping

NOT_ENOUGH_MEMORY = (
    "there is not enough memory: use smaller batches, shorter lifetimes or contexts, or a smaller model or environment"
)


class BadInput(ValueError):
    """Input of the user that cannot be used; the message is one clear sentence about it."""

    def __str__(self) -> str:
        return " ".join(super().__str__().split())  # one line, whatever text it quotes


class StorageUnavailable(Exception):
    """The disk is full or fails, so nothing was stored; what was stored before is intact, and a retry may succeed."""


class CommitUnknown(StorageUnavailable):
    """The connection to the database ended at a COMMIT: all of the transaction was stored, or nothing."""


class StorageDamaged(StorageUnavailable):
    """The database is damaged, absent or replaced: nothing can be read or stored until it is repaired."""


class ServerFailed(Exception):
    """No deployment of a server can answer requests any more; the message says why."""


class StudyIncomplete(Exception):
    """Measurements of a study failed or are missing after all others were carried out; the message says which."""


class ContractViolation(BadInput):
    """An agent, most likely one from outside the package, violated the agent contract."""


class LearningDiverged(BadInput):
    """What `learn` computed is not finite, so that all that follows would be without meaning."""


def require_finite_learning(num_finite_steps: Mapping[str, int], num_steps: int) -> None:
    """Raises `LearningDiverged` for the quantity of `learn` that is the first to be infinite or NaN.

    Args:
        num_finite_steps: By the name of the quantity, the number of steps before the first at which it is not finite.
        num_steps: Of the lifetime.
    """
    diverged = {name: number for name, number in num_finite_steps.items() if number < num_steps}
    if diverged:
        name = min(diverged, key=diverged.__getitem__)
        raise LearningDiverged(
            f"the learning diverged: its '{name}' is not finite at step {diverged[name] + 1:,} of the lifetime; a "
            "smaller learning rate or outcome features of smaller size may help"
        )


def require_at_least(minimum: float, **settings: float) -> None:
    """Raises `BadInput` for the first setting that is below `minimum` or is NaN."""
    for name, value in settings.items():
        if not value >= minimum:
            raise BadInput(f"the setting '{name}' must be at least {minimum}, not {value}")


def require_between(minimum: float, maximum: float, **settings: float) -> None:
    """Raises `BadInput` for the first setting outside the closed range."""
    for name, value in settings.items():
        if not minimum <= value <= maximum:
            raise BadInput(f"the setting '{name}' must lie between {minimum} and {maximum}, not {value}")


def require_probability(**settings: float) -> None:
    """Raises `BadInput` for the first setting that does not lie between 0 and 1."""
    require_between(0, 1, **settings)


def require_positive(**settings: float) -> None:
    """Raises `BadInput` for the first setting that is not greater than 0."""
    for name, value in settings.items():
        if not value > 0:
            raise BadInput(f"the setting '{name}' must be greater than 0, not {value}")


def require_one_of(choices: Collection[str], **settings: str) -> None:
    """Raises `BadInput` for the first setting that is none of the choices."""
    for name, value in settings.items():
        if value not in choices:
            raise BadInput(f"the setting '{name}' must be one of {', '.join(choices)}, not '{value}'")
