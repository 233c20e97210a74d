"""What worlds share: the check of a whole-numbered setting."""

from ontogeny.types import BadInput


def at_least(least: float, **settings: float) -> None:
    """Raises `BadInput` for the first setting that is smaller than `least`."""
    for name, value in settings.items():
        if value < least:
            raise BadInput(f"the setting '{name}' must be at least {least}, not {value}")
